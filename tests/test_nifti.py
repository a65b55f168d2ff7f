"""Grids, maps of millimetres, and files, against nibabel, MONAI, SciPy, SimpleITK and ANTs."""

import gzip
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close

from course_utils import nifti
from course_utils.datasets import Subject
from course_utils.errors import CourseError
from course_utils.fields import integrate, resize
from course_utils.loading import load_subject, normalise, preprocessing
from course_utils.nifti import Grid, Transform, covering, overlap, read_image, read_label, resample, sample
from tests import phantoms

PLACES = {
    "same": phantoms.grid(),
    "flipped LAS": phantoms.grid((26, 24, 25), codes="LAS"),
    "permuted RPI": phantoms.grid((22, 27, 30), (2.0, 2.5, 3.0), codes="PIR"),
    "oblique, anisotropic, shifted": phantoms.grid((30, 26, 16), (1.8, 2.2, 4.5), "LPS", degrees=25, centre=(4, -3, 5)),
}
PAIRS = [("flipped LAS", "permuted RPI"), ("oblique, anisotropic, shifted", "same"), ("permuted RPI", "flipped LAS")]
PAIRS += [("same", "oblique, anisotropic, shifted")]


def volume(tmp_path, place, name="image.nii.gz", **options):
    grid = PLACES[place]
    return read_image(phantoms.save(tmp_path / name, phantoms.intensity(phantoms.positions(grid)), grid, **options))


def mixed_transform(seed=0):
    """An affine map, and a smooth deformation on a grid of its own that covers the phantom."""
    rng = torch.Generator().manual_seed(seed)
    grid = phantoms.grid((20, 20, 20), (4.0, 4.0, 4.0), "RAS", degrees=10)
    velocity = resize(torch.randn(1, 3, 5, 5, 5, generator=rng) * 0.2, grid.shape)
    matrix = phantoms.grid((1, 1, 1), (1.05, 0.97, 1.0), degrees=8).affine
    matrix[:3, 3] = 3.0, -2.0, 1.0
    forward = Transform(grid, integrate(velocity), np.eye(4), matrix)
    return forward, Transform(grid, integrate(-velocity), np.linalg.inv(matrix), np.eye(4))


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


@pytest.mark.parametrize("place", PLACES)
def test_a_network_sees_what_it_saw_in_training(tmp_path, place):
    """The common grid is that of the training's transforms: orientation, spacing, padding, place of the odd voxel."""
    image = volume(tmp_path, place)
    grid = image.grid
    canonical = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine))
    spacing = [float(size) for size in np.linalg.norm(canonical.affine[:3, :3], axis=0)]
    shape = [n + extra for n, extra in zip(canonical.shape, (0, 3, 6), strict=True)]
    trained = load_subject(Subject("a", image.path), preprocessing(shape, spacing))["image"]
    common = covering(grid, spacing, at_least=shape, orientation="RAS")
    ours = resample(torch.as_tensor(normalise(image.data)), grid, common)
    assert common.shape == tuple(shape)
    assert_close(ours[0], trained, rtol=0, atol=2e-3)


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


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_a_translation_in_millimetres_is_one_in_any_orientation(target, source):
    shift = np.array([3.0, -5.0, 2.0])
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    common = PLACES["same"]
    transform = Transform(common, torch.zeros(1, 3, *common.shape), np.eye(4), matrix)
    field = transform.between(PLACES[target], PLACES[source])[0].numpy()
    reached = phantoms.apply(PLACES[source].affine, np.indices(PLACES[target].shape) + field)
    expected = phantoms.positions(PLACES[target]) + shift.reshape(3, 1, 1, 1)
    np.testing.assert_allclose(reached, expected, atol=1e-3)


def test_affine_and_deformation_are_one_map():
    """Against SciPy, point by point: into the grid, displaced, out again, through the affine map."""
    transform, _ = mixed_transform()
    target, source = PLACES["permuted RPI"], PLACES["oblique, anisotropic, shifted"]
    field = transform.between(target, source)[0].numpy()
    voxels = phantoms.apply(np.linalg.inv(transform.grid.affine), phantoms.positions(target))
    moved = [ndimage.map_coordinates(u, voxels, order=1, mode="nearest") for u in transform.displacement[0].numpy()]
    millimetres = phantoms.apply(transform.after @ transform.grid.affine, voxels + np.stack(moved))
    reached = phantoms.apply(source.affine, np.indices(target.shape) + field)
    np.testing.assert_allclose(reached, millimetres, atol=1e-3)


def test_the_inverse_undoes_the_map():
    forward, inverse = mixed_transform()
    points = phantoms.grid((11, 11, 11), (3.0, 3.0, 3.0))
    there = points.affine[:3, :3] @ forward.between(points, points)[0].flatten(1).numpy()
    reached = phantoms.positions(points).reshape(3, -1) + there
    # The inverse at the points reached, each a grid of one voxel.
    back = []
    for point in reached.T[::37]:
        affine = np.eye(4)
        affine[:3, 3] = point
        one = Grid((1, 1, 1), affine)
        back.append(point + inverse.between(one, one)[0].flatten().numpy())
    moved = np.linalg.norm(there, axis=0).mean()
    error = np.linalg.norm(np.array(back) - phantoms.positions(points).reshape(3, -1).T[::37], axis=1)
    assert moved > 3 and error.max() < 0.3 and error.mean() < 0.1  # mm, where a voxel of the field has 4


def test_sample_ends_half_a_voxel_beyond_the_outer_centres():
    image = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4).contiguous() + 1
    field = torch.zeros(1, 3, 4, 4, 4)
    for shift, expected in ((0.4, [1.4, 2.4, 3.4, 4.0]), (0.6, [1.6, 2.6, 3.6, -7.0]), (-0.6, [-7.0, 1.4, 2.4, 3.4])):
        field[:, 0] = shift
        assert_close(sample(image, field, outside=-7.0)[0, 0, :, 2, 1], torch.tensor(expected))


# --- fields that other tools apply ------------------------------------------------------------------------------------


def by_simpleitk(image, target, field):
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    moving = sitk.ReadImage(str(image), sitk.sitkFloat32)
    moved = sitk.Resample(moving, sitk.ReadImage(str(target)), transform, sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(moved).transpose(2, 1, 0)


def by_ants(image, target, field):
    ants = pytest.importorskip("ants")
    return ants.apply_transforms(ants.image_read(str(target)), ants.image_read(str(image)), [str(field)]).numpy()


@pytest.mark.parametrize("apply", [by_simpleitk, by_ants])
@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_other_tools_apply_the_field_to_our_result(tmp_path, apply, target, source):
    moving, fixed = volume(tmp_path, source, "moving.nii.gz"), volume(tmp_path, target, "fixed.nii.gz")
    forward, inverse = mixed_transform()
    for transform, image, onto in ((forward, moving, fixed), (inverse, fixed, moving)):
        ours = sample(image.data, transform.between(onto.grid, image.grid))[0, 0].numpy()
        field = nifti.itk_field(transform.between(onto.grid, onto.grid), onto.grid, onto.header)
        nifti.save(field, tmp_path / "field.nii.gz", compress=True)
        theirs = apply(image.path, onto.path, tmp_path / "field.nii.gz")
        still = sample(
            image.data,
            Transform(transform.grid, torch.zeros_like(transform.displacement), np.eye(4), np.eye(4)).between(
                onto.grid, image.grid
            ),
        )[0, 0].numpy()
        assert np.abs(theirs - still).mean() > 20  # of 1000: the field does move the image
        assert np.abs(theirs - ours).mean() < 0.2  # the bound of 0.5 % of the range is 5


def test_the_itk_layout(tmp_path):
    fixed = volume(tmp_path, "permuted RPI", sform=2, qform=2)
    displacement = torch.zeros(1, 3, *fixed.grid.shape)
    displacement[:, 0] = 1.0  # a voxel of 2 mm along the first axis, which points posterior
    field = nifti.itk_field(displacement, fixed.grid, fixed.header)
    assert field.shape == (*fixed.grid.shape, 1, 3) and field.get_data_dtype() == np.float32
    assert int(field.header["intent_code"]) == 1007
    assert int(field.header["sform_code"]) == int(field.header["qform_code"]) == 2
    np.testing.assert_allclose(field.affine, fixed.grid.affine, atol=1e-5)
    np.testing.assert_allclose(field.get_fdata()[3, 4, 5, 0], [0.0, 2.0, 0.0], atol=1e-6)  # posterior is positive


def test_the_learn2reg_layout_warps_arrays_as_the_challenge_does(tmp_path):
    fixed = volume(tmp_path, "flipped LAS", "fixed.nii.gz")
    displacement = mixed_transform()[0].between(fixed.grid, fixed.grid)
    field = nifti.learn2reg_field(displacement, fixed.grid, fixed.header).get_fdata()
    assert field.shape == (*fixed.grid.shape, 3)
    identity = np.indices(fixed.grid.shape)
    label = phantoms.structures(phantoms.positions(fixed.grid))
    theirs = ndimage.map_coordinates(label, identity + field.transpose(3, 0, 1, 2), order=0)
    ours = sample(torch.from_numpy(label)[None, None], displacement, mode="nearest")[0, 0].numpy()
    assert (ours != theirs).mean() < 1e-3 < (ours != label).mean()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_a_file_keeps_data_type_and_values(tmp_path, dtype):
    grid = PLACES["oblique, anisotropic, shifted"]
    array = np.round(phantoms.intensity(phantoms.positions(grid)) / 4)
    template = read_image(phantoms.save(tmp_path / "a.nii.gz", array, grid, dtype, sform=3, qform=0))
    nifti.save(nifti.image_like(template.data, template, grid, template.header), tmp_path / "b", compress=False)
    (tmp_path / "b").rename(tmp_path / "b.nii")
    image = nib.load(tmp_path / "b.nii")
    assert image.get_data_dtype() == dtype and image.shape == grid.shape
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-5)
    assert int(image.header["sform_code"]) == 3
    np.testing.assert_allclose(image.get_fdata(), array, atol=1e-5)


def test_a_file_keeps_its_scaling(tmp_path):
    """Hounsfield units are often stored as unsigned integers with an offset."""
    grid = PLACES["same"]
    raw = np.round(phantoms.intensity(phantoms.positions(grid))).astype(np.uint16)
    stored = nib.Nifti1Image(raw, grid.affine)
    stored.header.set_slope_inter(2.0, -1024.0)
    nib.save(stored, tmp_path / "ct.nii.gz")
    template = read_image(tmp_path / "ct.nii.gz")
    assert template.data.min() == -1024 + 2.0 * raw.min()
    values = template.data + 0.4  # rounded to the nearest that can be stored; beyond the type's range clipped
    values[0, 0, 0, 0, 0] = -1e6
    nifti.save(nifti.image_like(values, template, grid, template.header), tmp_path / "b", compress=True)
    image = nib.Nifti1Image.from_bytes(gzip.decompress((tmp_path / "b").read_bytes()))
    assert image.get_data_dtype() == np.uint16
    assert image.get_fdata()[0, 0, 0] == -1024
    np.testing.assert_allclose(image.get_fdata().ravel()[1:], template.data.numpy().ravel()[1:])


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
    "4-D": "is 4-D .*save one volume a file",
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
