"""The bytes of an image file, read within bounds: nothing is allocated for a size that only a header claims.

All that reads NIfTI and MGH files in the package reads them here. A gzip's checksum is compared, which nibabel alone
does not: it stops before the sum at the end.
"""

import math
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from course_utils.errors import CourseError

MOST_VOXELS = 2**29
"""Of a file: 800 slices of 818 x 818, more than scanners make."""
SUSPICIOUS = ((2**25, 400), (2**27, 100))
"""Bytes that a file may unpack to however small it is, and how many times larger than itself one of more may become. A
scan unpacks to 2 to 5 times its size, a label map to 20 to 100, the mask of one organ in a large scan to 200; deflate
reaches 1030, of zeros."""
DEFLATE = 1032
"""How many times larger than itself the best packed content is."""
TRAILING = 2**20
"""Bytes behind the voxels, which MGH files use for notes."""
CHUNK = 2**18
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels that lie in a file and have not been read; `numpy.asarray` reads them.

    Attributes:
        path: Of the file, packed by gzip or not.
        offset: Bytes before the voxels, unpacked.
        shape: Of the array; its first axis varies fastest in the file.
        dtype: As stored.
        slope, inter: A value is `slope * stored + inter`.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float = 1.0
    inter: float = 0.0

    def read(self, dtype: Any = None) -> NDArray:
        """The scaled values, `shape`, in memory of their own.

        Args:
            dtype: Of the result; None keeps integers without a scale as they are, and else gives what scaling gives.

        Raises:
            CourseError: more voxels than any scan has, or a file that is packed more than any image.
            ValueError, zlib.error: truncated, damaged, or a header that does not fit the file.
            OSError: the file cannot be read.
        """
        raw = self._raw()
        if (self.slope, self.inter) == (1, 0):
            return raw if dtype is None else raw.astype(dtype, copy=False)
        # Slab by slab: scaling happens in float64, and needs many times the memory of the file.
        scaled = _scaled(raw[..., :1], self.slope, self.inter)
        values = np.empty(self.shape, scaled.dtype if dtype is None else dtype, order="F")
        for slab in slabs(self.shape):
            values[slab] = _scaled(raw[slab], self.slope, self.inter)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        """What `read` returns."""
        return self.read(dtype)

    def check_whole(self) -> None:
        """Read the file to its end and keep nothing of it; raises what `read` would."""
        if self._is_packed():
            for _ in _voxels(self.path, self.offset, self._size()):
                pass

    def _size(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _is_packed(self) -> bool:
        """Whether the file is packed, once its sizes have been held against its header; raises as `read`."""
        if min(self.shape, default=0) < 1 or self.dtype.itemsize < 1:
            raise ValueError("its header names no voxels")
        on_disk, packed, whole = self.path.stat().st_size, is_packed(self.path), self.offset + self._size()
        check_size(self.path, math.prod(self.shape), whole, on_disk, packed=packed)
        if not packed and on_disk > whole + TRAILING:
            raise ValueError(f"its header tells of {whole} bytes, and the file has {on_disk}")
        return packed

    def _raw(self) -> NDArray:
        if self._is_packed():
            content = bytearray(self._size())  # the system gives the memory only where it is written to
            for at, part in _voxels(self.path, self.offset, len(content)):
                content[at : at + len(part)] = part
            values = np.frombuffer(content, self.dtype)
        else:
            values = np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.offset)
        return values.reshape(self.shape, order="F")


def check_size(path: Path, voxels: int, size: int, on_disk: int, *, packed: bool) -> None:
    """Refuse what a header claims and a file cannot hold, before any memory is asked for.

    Args:
        path: Of the file, for the message.
        voxels: By its header.
        size: Bytes, unpacked, by its header.
        on_disk: Bytes that it has.
        packed: Whether it may be compressed.

    Raises:
        CourseError: more voxels than any scan has; compressed more than any image.
        ValueError: the file ends early.
    """
    if voxels > MOST_VOXELS:
        raise CourseError(
            f"{path} has {voxels} voxels by its header, more than {MOST_VOXELS}: it is damaged; restore it, or crop or "
            "resample it"
        )
    if size > (on_disk * DEFLATE + CHUNK if packed else on_disk):
        raise ValueError(f"its header tells of {size} bytes, and the file has {on_disk}")
    if packed and is_bomb(size, on_disk):
        raise CourseError(
            f"{path} would become {size // on_disk} times as large when it is unpacked, {size / 1e6:.0f} MB, as no "
            "scan does: restore it or, if it is meant, save it unpacked (.nii)"
        )


def is_bomb(size: int, packed: int) -> bool:
    """Whether `size` bytes are more than an image could have been packed into `packed` bytes, see `SUSPICIOUS`."""
    return any(size > free and size > ratio * packed for free, ratio in SUSPICIOUS)


def slabs(shape: tuple[int, ...], voxels: int = 2**20) -> Iterator[tuple[Any, ...]]:
    """Indices of parts of an array along its last axis, each of about so many voxels, which together are all of it."""
    count = max(1, voxels // max(1, math.prod(shape[:-1])))
    for first in range(0, shape[-1], count):
        yield (..., slice(first, first + count))


def _scaled(raw: NDArray, slope: float, inter: float) -> NDArray:
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads refuses what is not finite
        return apply_read_scaling(raw, np.float64(slope), np.float64(inter))


def is_packed(path: Path) -> bool:
    """Whether a file is one of gzip, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == GZIP


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file, unpacked, at most `size`.

    Raises:
        OSError, zlib.error, ValueError: it cannot be read or unpacked so far.
    """
    if not is_packed(path):
        with path.open("rb") as file:
            return file.read(size)
    found = b""
    for piece in _pieces(path, most=max(size, 512)):
        found += piece
        if len(found) >= size:
            break
    return found[:size]


def _voxels(path: Path, offset: int, size: int) -> Generator[tuple[int, bytes]]:
    """The `size` bytes of a gzip's content behind `offset`, piece by piece, each with its place among them.

    Behind the last one all checksums have been compared.
    """
    at = -offset
    for piece in _pieces(path):
        if at + len(piece) > 0 and at < size:
            yield max(0, at), piece[max(0, -at) : size - at]
        at += len(piece)
        if at > size + TRAILING:
            raise ValueError(f"it holds more than the {size} bytes of voxels that its header tells of")
    if at < size:
        raise ValueError(f"it holds {max(0, at + offset)} of the {offset + size} bytes that its header tells of")


def _pieces(path: Path, most: int = CHUNK * 4) -> Generator[bytes]:
    """The content of a gzip file, piece by piece; behind the last one its length and checksum have been compared."""
    with path.open("rb") as file:
        member, left = zlib.decompressobj(31), file.read(CHUNK)
        while left:
            piece = member.decompress(left, most)
            if piece:
                yield piece
            left = member.unused_data if member.eof else member.unconsumed_tail
            if not left:
                left = file.read(CHUNK)
            if member.eof:
                left = left.lstrip(b"\0")  # what fills up a block of a tape
                if left:
                    member = zlib.decompressobj(31)
        if not member.eof:
            raise ValueError("it ends early")
