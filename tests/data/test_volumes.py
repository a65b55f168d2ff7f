"""Reading scans and label maps as other tools write them."""

import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from course_utils.data.resampling import sample
from course_utils.data.volumes import read_image, read_label, read_labels, read_volume
from course_utils.errors import CourseError
from course_utils.scans import writing
from tests import phantoms
from tests.phantoms import PLACES, volume


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
    (tmp_path / "text.nii.gz").write_text("<html>", encoding="utf-8")
    nib.save(nib.AnalyzeImage(np.ones((9, 9, 9), np.float32), np.eye(4)), tmp_path / "other.img")
    (tmp_path / "text.npz").write_text("<html>", encoding="utf-8")
    for name in ("short.nii.gz", "text.nii.gz", "other.img", "text.npz"):
        with pytest.raises(CourseError, match=f"{name} cannot be read as an image"):
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


# --- what other tools write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1e3), ("meter", 1e-3), ("mm", 1), ("unknown", 1)])
def test_units_of_length_become_millimetres(tmp_path, unit, scale):
    grid = PLACES["oblique, anisotropic, shifted"]
    affine = np.diag([scale] * 3 + [1]) @ grid.affine
    image = nib.Nifti1Image(phantoms.intensity(phantoms.positions(grid)).astype(np.float32), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "image.nii.gz")
    read = read_image(tmp_path / "image.nii.gz")
    np.testing.assert_allclose(read.grid.affine, grid.affine, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        sitk.ReadImage(str(tmp_path / "image.nii.gz")).GetSpacing(), read.grid.spacing, rtol=1e-5
    )


def test_voxels_of_no_size_are_refused_where_the_place_depends_on_them(tmp_path):
    grid = PLACES["same"]
    path = phantoms.save(tmp_path / "a.nii", phantoms.intensity(phantoms.positions(grid)), grid, sform=0)
    content = bytearray(path.read_bytes())
    content[80:92] = np.zeros(3, np.float32).tobytes()  # pixdim[1:4]
    path.write_bytes(content)
    with pytest.raises(CourseError, match=r"a\.nii has voxels of 0x0x0 mm in its header"):
        read_image(path)
    # With an sform nobody needs them.
    path = phantoms.save(tmp_path / "b.nii", phantoms.intensity(phantoms.positions(grid)), grid, qform=0)
    content = bytearray(path.read_bytes())
    content[80:92] = np.zeros(3, np.float32).tobytes()
    path.write_bytes(content)
    np.testing.assert_allclose(read_image(path).grid.affine, grid.affine, atol=1e-4)


@pytest.mark.parametrize("ending", ["mgz", "mgh", "nrrd", "mha"])
def test_other_formats_hold_the_same_image_in_the_same_place(tmp_path, ending):
    original = volume(tmp_path, "oblique, anisotropic, shifted")
    path = tmp_path / f"image.{ending}"
    if ending.startswith("mg"):
        nib.save(nib.MGHImage(original.data[0, 0].numpy(), original.grid.affine), path)
    else:
        sitk.WriteImage(sitk.ReadImage(str(original.path)), str(path))
    read = read_image(path)
    assert torch.equal(read.data, original.data)
    np.testing.assert_allclose(read.grid.affine, original.grid.affine, atol=1e-3)
    assert read.header.get_data_dtype() == np.float32


def test_arrays_of_voxelmorph_s_lists(tmp_path):
    grid = PLACES["same"]
    array, labels = phantoms.intensity(phantoms.positions(grid)), phantoms.structures(phantoms.positions(grid))
    np.savez_compressed(tmp_path / "both.npz", vol=array.astype(np.float32), seg=labels)
    np.savez_compressed(tmp_path / "one.npz", labels[None, ..., None])
    np.savez_compressed(tmp_path / "none.npz", a=labels, b=labels)
    image = read_volume(tmp_path / "both.npz")
    np.testing.assert_array_equal(image.data[0, 0], array.astype(np.float32))
    for name in ("both.npz", "one.npz"):
        np.testing.assert_array_equal(read_labels(tmp_path / name).data[0, 0], labels)
    with pytest.raises(CourseError, match=r"none\.npz has no array 'vol' but a, b"):
        read_volume(tmp_path / "none.npz")
    with pytest.raises(CourseError, match=r"both\.npz has no affine"):
        read_image(tmp_path / "both.npz")


def test_two_axes_of_one_at_the_end_are_no_axes(tmp_path):
    grid = PLACES["flipped LAS"]
    array = phantoms.intensity(phantoms.positions(grid))
    plain = read_volume(phantoms.save(tmp_path / "a.nii", array, grid))
    long = read_volume(phantoms.save(tmp_path / "b.nii", array[..., None, None], grid))
    assert torch.equal(plain.data, long.data)
    np.testing.assert_array_equal(plain.grid.affine, long.grid.affine)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(np.uint8, [0, 255]), (np.int64, [0, 2**24 + 1, 2**40 + 1]), (np.uint64, [0, 7]), (np.int32, [0, 2**31 - 1])],
)
def test_label_values_are_kept_exactly(tmp_path, dtype, values):
    grid = PLACES["same"]
    array = np.array(values, dtype)[phantoms.structures(phantoms.positions(grid)) % len(values)]
    nib.save(nib.Nifti1Image(array, grid.affine, dtype=dtype), tmp_path / "label.nii.gz")
    read = read_labels(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read.data[0, 0].numpy().astype(dtype), array)
    moved = sample(read.data, torch.zeros(1, 3, *grid.shape), mode="nearest")
    assert torch.equal(moved, read.data)
    image = writing.image_like(moved, read, read.grid, read.header)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)


def test_labels_with_a_scale_are_rounded_and_others_refused(tmp_path):
    grid = PLACES["same"]
    labels = np.array([0, 2, 5, 7])[np.random.default_rng(0).integers(0, 4, grid.shape)]
    image = nib.Nifti1Image(labels.astype(float), grid.affine)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "scaled.nii.gz").dataobj)
    assert (stored != labels).any()
    read = read_labels(tmp_path / "scaled.nii.gz")
    np.testing.assert_array_equal(read.data[0, 0], labels)
    assert read.header.get_slope_inter() == (1.0, 0.0)
    nib.save(nib.Nifti1Image((labels * 1.003).astype(np.float32), grid.affine), tmp_path / "blended.nii.gz")
    with pytest.raises(CourseError, match=r"values that are no labels .*nearest neighbour"):
        read_labels(tmp_path / "blended.nii.gz")


def test_points_lines_and_sheets_are_labels_too(tmp_path):
    image = volume(tmp_path, "same")
    points = np.zeros(image.grid.shape)
    points[20, 22, 10], points[3, 4, 5], points[8, 8], points[:, 12, :] = 1, 2, 3, 4
    read = read_label(phantoms.save(tmp_path / "points.nii.gz", points, image.grid, np.uint8), image)
    np.testing.assert_array_equal(read.data[0, 0], points)


def test_a_mask_is_an_image_where_one_says_so(tmp_path):
    grid = PLACES["same"]
    path = phantoms.save(tmp_path / "mask.nii.gz", phantoms.structures(phantoms.positions(grid)) > 0, grid, np.uint8)
    with pytest.raises(CourseError, match=r"looks like a label map .*--as-images"):
        read_image(path)
    assert read_image(path, as_image=True).data.unique().tolist() == [0, 1]
