"""Unpacking an archive within bounds: whole or not at all, and nothing outside of its folder."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tqdm.auto import tqdm

from course_utils.data.download import check_space, write_fault
from course_utils.data.zipped import check_member
from course_utils.errors import CourseError

MOST_MEMBERS = 1_000_000
"""Files of an archive."""
UNPACKED = 100
"""How many times larger than itself an archive may be unpacked, beyond `SMALL`: scans hardly shrink, labels most."""
SMALL = 1_000_000_000
"""Bytes that an archive may unpack to, however small it is."""
LARGEST_READ = 1 << 24
"""Bytes that one header of a tar file asks for at most."""
FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python before 3.11.4 has no filters; what they refuse, links and ways out of the folder, never gets so far here."""


def extract(
    archive: str | Path,
    destination: str | Path,
    members: Callable[[str], bool] = lambda name: True,
    *,
    progress: bool = True,
) -> Path:
    """Unpack the files of a tar or zip archive that `members` accepts by their path; returns the folder.

    `destination` appears at once, when all is unpacked. An archive with one folder at its top becomes that folder:
    `NAME/images/1.nii.gz` is found at `destination/images/1.nii.gz`. Links, devices and the hidden companions that
    macOS adds are not unpacked.

    Raises `CourseError` for a destination that holds something already, an archive that is truncated, of another format
    or without any such member, a path that leads out of the destination, two members of one name, one that needs a
    password, more than archives hold (see `UNPACKED`), and a full disk.
    """
    archive, destination = Path(archive), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CourseError(f"{destination} exists: move it away to unpack {archive.name} there")
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    content = partial / destination.name
    try:
        content.mkdir(parents=True)
        for _ in tqdm(_unpack(archive, content, members), desc="unpacking", unit=" files", disable=not progress):
            pass
        top = list(content.iterdir())
        if not top:
            raise CourseError(f"{archive} has none of the files that are needed: is it the right archive?")
        if destination.exists():
            destination.rmdir()
        os.replace(top[0] if len(top) == 1 and top[0].is_dir() else content, destination)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise CourseError(f"{archive} is truncated or damaged ({error}): remove it and download it again") from error
    except OSError as error:
        if error.errno is None:  # gzip, bz2 and lzma streams
            raise CourseError(f"{archive} is damaged ({error}): remove it and download it again") from error
        if isinstance(error, FileNotFoundError) and not archive.exists():
            raise CourseError(f"{archive} is missing: download it first") from error
        raise write_fault(error, destination, 0) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _unpack(archive: Path, folder: Path, members: Callable[[str], bool]) -> Iterator[str]:
    budget = _Budget(archive)
    if zipfile.is_zipfile(archive) and not _begins_as_tar(archive):
        yield from _unpack_zip(archive, folder, members, budget)
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(_unpacked(archive))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise CourseError(
                f"{archive} is truncated, or neither tar nor zip: remove it and download it again"
            ) from error
        for member in tar:
            if member.isfile() and _is_wanted(archive, member.name, members):
                budget.take(member.name, member.size)
                tar.extract(member, folder, set_attrs=False, **FILTER)
                yield member.name
        # A tar that was cut between two members ends like a whole one, but for the empty block that closes it.
        if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


class _Budget:
    """What an archive may unpack to."""

    def __init__(self, archive: Path) -> None:
        self._archive, self._names = archive, set[str]()
        self._left = max(SMALL, UNPACKED * archive.stat().st_size)

    def take(self, name: str, size: int) -> None:
        """Count a member; raises CourseError where it is one too many, or its name was there before."""
        # As the file systems of macOS and Windows compare names.
        plain = PurePosixPath(name.replace("\\", "/")).as_posix().casefold()
        if plain in self._names:
            raise CourseError(f"{self._archive} is unsafe: two of its members are called {name}; do not use it")
        self._names.add(plain)
        self._left -= size
        if self._left < 0 or len(self._names) > MOST_MEMBERS:
            raise CourseError(
                f"{self._archive} is unsafe: it unpacks to more than {UNPACKED} times its size, or to more than "
                f"{MOST_MEMBERS:,} files; do not use this archive"
            )


class _Stream(io.RawIOBase):
    """A tar file's content, unpacked; no header of it is given more than `LARGEST_READ` bytes of memory."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _unpacked(archive: Path) -> _Stream:
    with archive.open("rb") as file:
        begins = file.read(6)
    packed = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    opener = next((opener for magic, opener in packed.items() if begins.startswith(magic)), open)
    return _Stream(opener(archive, "rb"))


def _begins_as_tar(archive: Path) -> bool:
    """A tar of a ZIP ends like a ZIP; its first block has tar's own mark."""
    with archive.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"


def _unpack_zip(archive: Path, folder: Path, members: Callable[[str], bool], budget: _Budget) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        wanted = [
            info
            for info in file.infolist()
            if not info.is_dir()
            and not stat.S_ISLNK(info.external_attr >> 16)
            and _is_wanted(archive, info.filename, members)
        ]
        for info in wanted:
            check_member(archive, info)
            budget.take(info.filename, info.file_size)
        check_space(folder, sum(info.file_size for info in wanted))
        for info in wanted:
            file.extract(info, folder)
            yield info.filename


def _is_wanted(archive: Path, name: str, members: Callable[[str], bool]) -> bool:
    path = PurePosixPath(name)
    if path.name.startswith("._") or "__MACOSX" in path.parts or not members(name):
        return False
    # Both systems' rules, wherever this runs: an archive that tries is not to be trusted anywhere.
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise CourseError(f"{archive} is unsafe: its member {name} leads out of the folder; do not use this archive")
    return True
