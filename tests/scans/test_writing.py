"""Maps of millimetres and the files made of them, against SciPy, SimpleITK, ANTs and the challenge's own way."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from course_utils.data.grids import Grid
from course_utils.data.resampling import sample
from course_utils.data.volumes import read_image
from course_utils.fields import integrate, resize
from course_utils.scans import writing
from course_utils.scans.transform import Transform
from tests import phantoms
from tests.phantoms import PAIRS, PLACES, volume


def mixed_transform(seed=0):
    """An affine map, and a smooth deformation on a grid of its own that covers the phantom."""
    rng = torch.Generator().manual_seed(seed)
    grid = phantoms.grid((20, 20, 20), (4.0, 4.0, 4.0), "RAS", degrees=10)
    velocity = resize(torch.randn(1, 3, 5, 5, 5, generator=rng) * 0.2, grid.shape)
    matrix = phantoms.grid((1, 1, 1), (1.05, 0.97, 1.0), degrees=8).affine
    matrix[:3, 3] = 3.0, -2.0, 1.0
    forward = Transform(grid, integrate(velocity), np.eye(4), matrix)
    return forward, Transform(grid, integrate(-velocity), np.linalg.inv(matrix), np.eye(4))


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
        field = writing.itk_field(transform.between(onto.grid, onto.grid), onto.grid, onto.header)
        writing.save(field, tmp_path / "field.nii.gz", tmp_path / "field.nii.gz")
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
    field = writing.itk_field(displacement, fixed.grid, fixed.header)
    assert field.shape == (*fixed.grid.shape, 1, 3) and field.get_data_dtype() == np.float32
    assert int(field.header["intent_code"]) == 1007
    assert int(field.header["sform_code"]) == int(field.header["qform_code"]) == 2
    np.testing.assert_allclose(field.affine, fixed.grid.affine, atol=1e-5)
    np.testing.assert_allclose(field.get_fdata()[3, 4, 5, 0], [0.0, 2.0, 0.0], atol=1e-6)  # posterior is positive


def test_the_learn2reg_layout_warps_arrays_as_the_challenge_does(tmp_path):
    fixed = volume(tmp_path, "flipped LAS", "fixed.nii.gz")
    displacement = mixed_transform()[0].between(fixed.grid, fixed.grid)
    field = writing.learn2reg_field(displacement, fixed.grid, fixed.header).get_fdata()
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
    writing.save(writing.image_like(template.data, template, grid, template.header), tmp_path / "b", tmp_path / "b.nii")
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
    writing.save(writing.image_like(values, template, grid, template.header), tmp_path / "b", tmp_path / "field.nii.gz")
    image = nib.Nifti1Image.from_bytes(gzip.decompress((tmp_path / "b").read_bytes()))
    assert image.get_data_dtype() == np.uint16
    assert image.get_fdata()[0, 0, 0] == -1024
    np.testing.assert_allclose(image.get_fdata().ravel()[1:], template.data.numpy().ravel()[1:])
