"""Writing files so that a reader finds the old one or the new one, never a half."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from course_utils.errors import CourseError
from course_utils.sealed import seal_zip

PROBE = 2**16
"""Bytes that a folder must have room for before any work is done for it."""
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)  # Windows knows no quotas


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Write a file, or a new folder, beside `path` and put it in place at the end.

    Only a write that failed is blamed on the disk. Whatever else goes wrong within the block passes through as it is,
    and what was written until then is removed.

    Raises:
        CourseError: the file or folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if not _concerns(error, partial, path):
            raise
        if error.errno in FULL:
            reason, advice = "the disk is full", "make room and run again"
        else:
            reason, advice = error.strerror, "choose another place, or mend it"
        raise CourseError(f"{path} was not written ({reason}): {advice}; what was there before stays") from error
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _concerns(error: OSError, partial: Path, path: Path) -> bool:
    """Whether an error is of writing this file: it names the file, or (a full disk) comes from an open one."""
    if error.errno is None:  # not the operating system's: `requests`, for one, derives its errors from OSError
        return False
    named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return not named or any(place in (path, partial) or partial in place.parents for place in named)


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads; a failing disk raises OSError.

    The file carries its own SHA-256, see `course_utils.sealed`. PyTorch itself reports a failed write as a
    RuntimeError, as it does most other faults. From memory the bytes are written by Python, whose errors tell them
    apart.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(seal_zip(buffer.getvalue()))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: Path, example: str) -> None:
    """Refuse, before hours of work, the name of a file that could not be written.

    Args:
        path: of the file to be written.
        example: a name that the message proposes where `path` is a folder.

    Raises:
        CourseError: it is a folder, or in none; see `check_room`.
    """
    if not path.parent.is_dir():
        raise CourseError(f"{path.parent} is not a folder: make it, or choose another --out")
    if path.is_dir():
        raise CourseError(f"{path} is a folder: name a file in it, such as {path / example}")
    check_room(path.parent, file=path)


def check_room(folder: Path, option: str = "--out", file: Path | None = None) -> None:
    """Refuse, before hours of work, a folder where nothing can be written, or that is full.

    Args:
        folder: It need not be there yet: the nearest above it that is counts.
        option: Of the command that names it, for the message.
        file: What shall be written into it, for the message; None is the folder itself.

    Raises:
        CourseError: read-only, not permitted, full, or below a file.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise CourseError(f"{there} is a file: choose a folder for {option}")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
    except OSError as error:
        if error.errno in FULL:
            what = folder if file is None else file
            raise CourseError(
                f"{what} was not written (the disk is full): make room, or choose another {option}"
            ) from error
        raise CourseError(
            f"{there} cannot be written ({error.strerror}): choose another folder for {option}"
        ) from error
