"""Reading scans, grids, and values on another grid, against nibabel and by hand."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_utils.data.volumes import covering, overlap, read_image, read_label, resample, sample
from course_utils.errors import CourseError
from tests import phantoms
from tests.phantoms import PLACES, volume

# --- grids ------------------------------------------------------------------------------------------------------------


def test_covering_with_its_own_spacing_is_the_grid_itself():
    grid = PLACES["oblique, anisotropic, shifted"]
    again = covering(grid, grid.spacing)
    assert again.shape == grid.shape
    np.testing.assert_allclose(again.affine, grid.affine, atol=1e-9)


@pytest.mark.parametrize("place", PLACES)
def test_covering_reorients_as_nibabel_does(place):
    grid = PLACES[place]
    canonical = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine))
    sizes = np.linalg.norm(canonical.affine[:3, :3], axis=0)
    ours = covering(grid, sizes, orientation="RAS")
    assert ours.shape == canonical.shape
    np.testing.assert_allclose(ours.affine, canonical.affine, atol=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 2.0, 3.0)])
def test_covering_keeps_the_centre_and_covers_the_field_of_view(spacing):
    grid = PLACES["oblique, anisotropic, shifted"]
    cover = covering(grid, spacing)
    np.testing.assert_allclose(cover.spacing, spacing)
    np.testing.assert_allclose(phantoms.positions(cover).mean((1, 2, 3)), phantoms.positions(grid).mean((1, 2, 3)))
    assert overlap(cover, grid) == 1.0


def test_overlap_counts_the_fixed_field_of_view():
    fixed, half = phantoms.grid((20, 20, 20)), phantoms.grid((20, 20, 20), centre=(25, 0, 0))
    assert overlap(fixed, fixed) == 1.0
    assert overlap(half, fixed) == pytest.approx(0.5, abs=0.02)
    assert overlap(phantoms.grid((20, 20, 20), centre=(80, 0, 0)), fixed) == 0.0


def test_resample_smooths_where_voxels_become_larger():
    fine = phantoms.grid((32, 32, 32), (1.0, 1.0, 1.0))
    noise = torch.randn(1, 1, *fine.shape, generator=torch.Generator().manual_seed(0))
    coarse = resample(noise, fine, covering(fine, (4.0, 4.0, 4.0)))
    assert coarse.std() < 0.25
    constant = resample(torch.ones_like(noise), fine, covering(fine, (4.0, 4.0, 4.0)))
    assert_close(constant, torch.ones_like(constant))


def test_sample_ends_half_a_voxel_beyond_the_outer_centres():
    image = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4).contiguous() + 1
    field = torch.zeros(1, 3, 4, 4, 4)
    for shift, expected in ((0.4, [1.4, 2.4, 3.4, 4.0]), (0.6, [1.6, 2.6, 3.6, -7.0]), (-0.6, [-7.0, 1.4, 2.4, 3.4])):
        field[:, 0] = shift
        assert_close(sample(image, field, outside=-7.0)[0, 0, :, 2, 1], torch.tensor(expected))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_fourth_axis_of_one_is_no_time(tmp_path):
    grid = PLACES["same"]
    array = phantoms.intensity(phantoms.positions(grid))
    assert read_image(phantoms.save(tmp_path / "a.nii", array[..., None], grid)).data.shape == (1, 1, *grid.shape)


def spoil(array, grid, what):
    """A file that no registration can use, as an image."""
    image = nib.Nifti1Image(array.astype(np.float32), grid.affine)
    if what == "4-D":
        image = nib.Nifti1Image(np.stack([array, array], -1), grid.affine)
    if what == "RGB":
        colours = np.zeros(array.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        image = nib.Nifti1Image(colours, grid.affine)
    if what == "complex":
        image = nib.Nifti1Image(array.astype(np.complex64), grid.affine)
    if what == "NaN":
        image.dataobj[3, 4, 5] = math.nan
    if what == "constant":
        image.dataobj[:] = 4
    if what == "slice":
        image = nib.Nifti1Image(array[:, :, :1], grid.affine)
    if what == "no affine":
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    if what == "singular":
        image = nib.Nifti1Image(array, None)
        image.header.set_sform(np.diag([2.0, 2.0, 0.0, 1.0]), 1)
        image = nib.Nifti1Image(array, None, image.header)
    if what == "label":
        image = nib.Nifti1Image(phantoms.structures(phantoms.positions(grid)), grid.affine)
    return image


FAULTS = {
    "4-D": "is 4-D .*save one volume for each file",
    "RGB": "holds colours",
    "complex": "complex numbers",
    "NaN": "has 1 NaN or infinite voxels",
    "constant": r"is constant \(4 everywhere",
    "slice": "has 24x26x1 voxels: a volume has 4 or more",
    "no affine": r"has no affine \(sform_code and qform_code are 0",
    "singular": "has a singular affine",
    "label": r"looks like a label map \(3 integers.*--moving-label",
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_file_that_cannot_be_used_is_named_with_its_fault(tmp_path, what):
    grid = PLACES["same"]
    path = tmp_path / "scan.nii.gz"
    nib.save(spoil(phantoms.intensity(phantoms.positions(grid)), grid, what), path)
    with pytest.raises(CourseError, match=FAULTS[what]) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_missing_damaged_or_of_another_format(tmp_path):
    with pytest.raises(CourseError, match="does not exist"):
        read_image(tmp_path / "none.nii.gz")
    good = phantoms.save(
        tmp_path / "good.nii.gz", phantoms.intensity(phantoms.positions(PLACES["same"])), PLACES["same"]
    )
    (tmp_path / "short.nii.gz").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.nii.gz").write_text("<html>")
    nib.save(nib.MGHImage(np.ones((9, 9, 9), np.float32), np.eye(4)), tmp_path / "other.mgz")
    for name in ("short.nii.gz", "text.nii.gz", "other.mgz"):
        with pytest.raises(CourseError, match=f"{name} cannot be read as NIfTI"):
            read_image(tmp_path / name)


def test_a_label_must_be_one_and_fit_its_image(tmp_path):
    image = volume(tmp_path, "same")
    grid = image.grid
    structures = phantoms.structures(phantoms.positions(grid))
    label = read_label(phantoms.save(tmp_path / "label.nii.gz", structures * 70, grid, np.int32), image)
    assert label.data.dtype == torch.int32
    np.testing.assert_array_equal(label.data[0, 0], structures * 70)
    array = phantoms.intensity(phantoms.positions(grid))
    cases = {
        "no labels": (array, grid),
        "looks like an image": (np.round(array), grid),
        "26x26x22 voxels": (np.pad(structures, ((1, 1), (0, 0), (0, 0))), grid),
        "different affines": (structures, phantoms.grid(centre=(1, 0, 0))),
    }
    for match, (values, on) in cases.items():
        with pytest.raises(CourseError, match=match):
            read_label(phantoms.save(tmp_path / "bad.nii.gz", values, on), image)
