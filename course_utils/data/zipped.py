"""What lies in ZIP files, NumPy's archives and submissions among them: no member is unpacked beyond its due."""

import io
import math
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from course_utils.data.stored import is_bomb
from course_utils.errors import CourseError

MOST_MEMBERS = 200_000
"""Of an archive: a million files of a data set are no archive that this course knows."""
LARGEST_HEADER = 2**16
"""Bytes before the numbers of an array."""
KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@contextmanager
def opened_zip(path: Path) -> Generator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """A ZIP file, and its members by name, directories left out.

    Raises:
        CourseError: two members of one name, one that needs a password or is packed in a way that Python cannot read,
            one that unpacks as no scan does, or too many.
        OSError, zipfile.BadZipFile: no such file, or none of ZIP.
    """
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if len(infos) > MOST_MEMBERS:
            raise CourseError(f"{path} has {len(infos)} members, more than {MOST_MEMBERS}: is it the right archive?")
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            if info.filename in members:
                raise CourseError(f"{path} is unsafe: two of its members are called {info.filename}; pack it again")
            members[info.filename] = info
        yield archive, members


def check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Raise CourseError where a member of an archive cannot be unpacked, or is a bomb."""
    if info.flag_bits & 0x1:
        raise CourseError(f"{path}: {info.filename} needs a password: pack it without one")
    if info.compress_type not in KNOWN:
        raise CourseError(f"{path}: {info.filename} is packed in a way that is not read here: pack it as usual")
    if is_bomb(info.file_size, max(1, info.compress_size)):
        raise CourseError(
            f"{path}: {info.filename} would become {info.file_size // max(1, info.compress_size)} times as large when "
            "it is unpacked, as no scan does: restore it or, if it is meant, pack it without compression"
        )


@contextmanager
def opened_arrays(path: Path) -> Generator[dict[str, "Packed"]]:
    """The arrays of a NumPy archive by name, none of them read yet.

    Raises:
        CourseError: as `opened_zip`.
        OSError, zipfile.BadZipFile: no such file, or none of NumPy.
    """
    with opened_zip(path) as (archive, members):
        yield {
            name.removesuffix(".npy"): Packed(path, archive, info)
            for name, info in members.items()
            if name.endswith(".npy")
        }


class Packed:
    """An array in an archive that is open."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._path, self._archive, self._info = path, archive, info

    def read(self) -> NDArray[Any]:
        """The array, in memory of its own.

        Raises:
            CourseError: see `check_member`.
            ValueError, zipfile.BadZipFile: damaged, of Python objects, or its header does not fit its bytes.
        """
        check_member(self._path, self._info)
        content = memoryview(bytearray(self._info.file_size))  # memory comes where it is written to
        with self._archive.open(self._info) as packed:
            at = 0
            while piece := packed.read(2**20):
                content[at : at + len(piece)] = piece
                at += len(piece)
        if at < len(content):
            raise ValueError(f"it ends after {at} of {len(content)} bytes")
        file = io.BytesIO(content[:LARGEST_HEADER])
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"arrays of version {version} are not read")
        shape, columns, dtype = readers[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not loaded")
        content = content[file.tell() :]
        size = math.prod(shape) * dtype.itemsize
        if dtype.itemsize < 1 or size != len(content):
            raise ValueError(f"its header tells of {size} bytes, and it has {len(content)}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if columns else "C")


def member_file(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo, target: IO[bytes]) -> None:
    """Unpack a member into an open file.

    Raises:
        CourseError: see `check_member`.
        OSError, zipfile.BadZipFile, zlib.error: damaged, or the disk is full.
    """
    check_member(path, info)
    with archive.open(info) as source:
        while chunk := source.read(2**20):
            target.write(chunk)
