"""Files from strangers: each hostile one gets one line, in little time and memory."""

import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from course_utils.serving.refusal import Refusal
from course_utils.serving.uploads import check_upload
from tests import phantoms

WHAT = "the fixed scan"


@pytest.fixture
def scan(tmp_path):
    """A whole file."""
    grid = phantoms.PLACES["same"]
    return phantoms.save(tmp_path / "scan.nii.gz", phantoms.intensity(phantoms.positions(grid)), grid)


def refused(path, content=None, voxels=10**6):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal) as refusal:
        check_upload(path, WHAT, voxels)
    line = str(refusal.value)
    assert line.startswith(WHAT) and "\n" not in line and str(path.parent) not in line
    return refusal.value.status, line


def changed(scan, place, form, *values):
    """The unpacked bytes of a scan whose header says something else at one place."""
    content = bytearray(gzip.decompress(scan.read_bytes()))
    struct.pack_into(form, content, place, *values)
    return bytes(content)


def test_whole_files_are_what_they_hold_not_what_they_are_called(scan, tmp_path):
    assert check_upload(scan, WHAT, 10**6) == ".nii.gz"
    bare = tmp_path / "named.nii.gz"
    bare.write_bytes(gzip.decompress(scan.read_bytes()))
    assert check_upload(bare, WHAT, 10**6) == ".nii"
    image = nib.load(scan)
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj)[..., None], image.affine), tmp_path / "second.nii")
    assert check_upload(tmp_path / "second.nii", WHAT, 10**6) == ".nii"


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
def test_truncated(scan, tmp_path, share):
    whole = scan.read_bytes()
    status, line = refused(tmp_path / "a", whole[: int(share * len(whole))])
    assert status == 400 and "not a whole NIfTI volume" in line
    whole = gzip.decompress(whole)
    status, line = refused(tmp_path / "b", whole[: int(share * len(whole))])
    assert status == 400 and "not a whole NIfTI volume" in line


def test_a_flipped_bit_in_the_packed_data(scan, tmp_path):
    content = bytearray(scan.read_bytes())
    content[len(content) // 2] ^= 0xFF
    status, line = refused(tmp_path / "a", bytes(content))
    assert status == 400 and "not a whole NIfTI volume" in line


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"MZ" * 1000, b"<html>" * 100, gzip.compress(b"PK\x03\x04" * 999, mtime=0)]
)
def test_something_else(tmp_path, content):
    assert refused(tmp_path / "a", content)[0] == 400


def test_half_of_a_pair(scan, tmp_path):
    assert "not a whole NIfTI volume in one file" in refused(tmp_path / "a", changed(scan, 344, "4s", b"ni1\0"))[1]


def test_huge_declared_dimensions_are_refused_by_the_header(scan, tmp_path):
    for shape in ((32767, 32767, 32767), (1000, 1000, 2)):
        status, line = refused(tmp_path / "a", changed(scan, 42, "<3h", *shape))
        assert status == 413 and "voxels" in line
    header = nib.Nifti2Header()
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 544
    content = bytearray(header.binaryblock)
    struct.pack_into("<4q", content, 16, 3, 2**62, 2**62, 2**62)  # whose product no 64-bit integer holds
    assert refused(tmp_path / "b", bytes(content))[0] == 413


@pytest.mark.parametrize("dims", [(3, -5, 4, 4), (3, 0, 4, 4), (0, 4, 4, 4), (2, 24, 26, 22), (9, 4, 4, 4)])
def test_dimensions_of_no_volume(scan, tmp_path, dims):
    assert refused(tmp_path / "a", changed(scan, 40, "<4h", *dims))[0] == 400


def test_several_volumes_and_unknown_types(scan, tmp_path):
    assert "several volumes" in refused(tmp_path / "a", changed(scan, 40, "<5h", 4, 24, 26, 22, 7))[1]
    assert "code 12345" in refused(tmp_path / "b", changed(scan, 70, "<h", 12345))[1]
    for offset in (float("nan"), float("inf"), -1.0, 1e30):
        assert refused(tmp_path / "c", changed(scan, 108, "<f", offset))[0] == 400


def test_a_bomb_is_not_unpacked(scan, tmp_path):
    """Of 256 MB of zeros behind a small volume no more is held than of the volume."""
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(gzip.decompress(scan.read_bytes()))
        for _ in range(16):
            file.write(bytes(2**24))
    tracemalloc.start()
    try:
        status, line = refused(bomb)
        assert status == 400 and "that its header tells of" in line
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
