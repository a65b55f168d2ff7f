"""Files from strangers: what they are is read from a few hundred bytes before anything is made of the rest.

A file that claims more voxels than it may have, or that unpacks to more than it claims, is refused without ever being
held in memory.
"""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
from nibabel.spatialimages import HeaderDataError

from course_utils.data.grids import by
from course_utils.serving.refusal import Refusal

PACKED = b"\x1f\x8b"
"""How a gzip file begins."""
CHUNK = 2**20
LARGEST_START = 2**24
"""Bytes before the first voxel: a header and its extensions."""
SLACK = 2**20
"""Bytes that may follow the last voxel."""


def check_upload(path: Path, what: str, voxels: int) -> str:
    """Refuse an uploaded file that is no whole NIfTI volume of bounded size.

    Args:
        path: Of the file, which is not changed.
        what: It is meant to be, to begin the line with: "the fixed scan".
        voxels: It may have at most.

    Returns:
        How the name of such a file ends, `".nii"` or `".nii.gz"`: what it holds decides, not what it was called.

    Raises:
        Refusal: 400, it is something else, damaged or truncated; 413, it is too large.
    """
    with path.open("rb") as raw:
        packed = raw.read(len(PACKED)) == PACKED
        raw.seek(0)
        file: BufferedIOBase = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            expected = _claimed_bytes(file, what, voxels)
            held = _count(file, expected + SLACK)
        except (EOFError, OSError, zlib.error) as error:
            raise Refusal(400, f"{what} is damaged or truncated: save or copy it again") from error
    if held < expected:
        raise Refusal(400, f"{what} ends before its last voxel: it is truncated; save or copy it again")
    if held > expected + SLACK:
        raise Refusal(400, f"{what} holds more than its header tells of: save it again as one volume")
    return ".nii.gz" if packed else ".nii"


def _claimed_bytes(file: BufferedIOBase, what: str, voxels: int) -> int:
    """The length, unpacked, that a file has according to its header."""
    block = file.read(nib.Nifti2Header.sizeof_hdr)
    file.seek(0)
    kinds = [kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(block)]
    if not kinds:
        raise Refusal(400, f"{what} is not a NIfTI file: give one that ends in .nii or .nii.gz")
    try:
        header = kinds[0](block[: kinds[0].sizeof_hdr], check=False)
        axes = int(header["dim"][0])
        shape = [int(n) for n in header["dim"][1 : 1 + axes]]
        itemsize = header.get_data_dtype().itemsize
        start = float(header["vox_offset"])
        single = bytes(header["magic"]).startswith(b"n+")
    except (ValueError, KeyError, HeaderDataError) as error:
        raise Refusal(400, f"{what} has a damaged header: save it again") from error
    if not single:
        raise Refusal(400, f"{what} is one half of a pair of files: save it as a single .nii or .nii.gz file")
    if not 3 <= axes <= 7 or min(shape) < 1 or not 0 <= start <= LARGEST_START or itemsize < 1:
        raise Refusal(400, f"{what} is no volume, as its header has it: save it as one volume of three axes")
    if math.prod(shape[3:]) > 1:
        raise Refusal(400, f"{what} holds several volumes ({by(shape)}): save one of them")
    if math.prod(shape) > voxels:
        raise Refusal(413, f"{what} has {by(shape[:3])} voxels, and this server takes {voxels}: crop or resample it")
    return max(int(start), kinds[0].sizeof_hdr) + math.prod(shape) * itemsize


def _count(file: BufferedIOBase, enough: int) -> int:
    """The bytes that a file holds, unpacked; counting ends above `enough`."""
    count = 0
    while count <= enough and (chunk := file.read(CHUNK)):
        count += len(chunk)
    return count
