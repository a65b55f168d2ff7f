"""The one way to a network's grid: against MONAI's transforms, SimpleITK, and back again."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
)
from torch.testing import assert_close

from course_utils.data.cohorts import load_cohort
from course_utils.data.grids import Grid
from course_utils.data.recipe import Recipe, normalise
from course_utils.data.resampling import resample
from course_utils.data.volumes import read_image
from course_utils.errors import CourseError
from course_utils.scans.transform import Transform
from tests import phantoms
from tests.phantoms import PLACES, volume

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)
]
assert len(ORIENTATIONS) == 48


def by_monai(recipe, image, label=None):
    """The same steps as a chain of MONAI's transforms, for volumes that need no resampling."""
    keys = ["image"] if label is None else ["image", "label"]
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys, channel_dim="no_channel"), Lambdad("image", normalise)]
    if not recipe.aligned:
        steps.append(Orientationd(keys, axcodes="RAS", labels=None))
    steps.append(ResizeWithPadOrCropd(keys, recipe.shape))
    found = Compose(steps)({"image": image} if label is None else {"image": image, "label": label})
    return {key: found[key].as_tensor() for key in keys}


def test_real_volumes_come_out_as_monai_s_transforms_make_them(real_data):
    """Bit for bit: nothing is interpolated where only axes and margins change."""
    cohort = load_cohort("hippocampus", real_data, download=False)
    for subject in cohort.subjects[::12]:
        ours = cohort.info.recipe.load(subject.image, subject.label)
        theirs = by_monai(cohort.info.recipe, subject.image, subject.label)
        assert torch.equal(ours["image"], theirs["image"].float())
        assert torch.equal(ours["label"], theirs["label"].to(torch.int16))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_turned_as_monai_turns_it(tmp_path, codes):
    grid = phantoms.grid((9, 12, 7), (2.0, 2.0, 2.0), codes)
    path = phantoms.save(tmp_path / "a.nii.gz", np.random.default_rng(0).random(grid.shape), grid)
    for shape in ((12, 13, 14), (8, 10, 7), (9, 7, 13)):  # padded, cropped, both; even and odd
        recipe = Recipe(shape, (2.0, 2.0, 2.0))
        assert torch.equal(recipe.load(path)["image"], by_monai(recipe, path)["image"].float())


def test_aligned_volumes_and_slices_are_taken_as_stored(tmp_path):
    generator = np.random.default_rng(0)
    for stored, shape in (((9, 12, 7), (10, 11, 8)), ((9, 12), (16, 11))):
        path = tmp_path / "a.nii.gz"
        nib.save(nib.Nifti1Image(generator.random(stored).astype(np.float32), np.diag([-3.0, 1.0, 2.0, 1.0])), path)
        recipe = Recipe(shape, (1.0,) * len(shape), aligned=True)
        assert torch.equal(recipe.load(path)["image"], by_monai(recipe, path)["image"].float())


def by_simpleitk(path, grid, interpolator):
    """A file on another grid, `(1, *shape)`, outside zero."""
    onto = sitk.Image([int(n) for n in grid.shape], sitk.sitkFloat32)
    lps = np.diag([-1.0, -1.0, 1.0])
    onto.SetOrigin((lps @ grid.affine[:3, 3]).tolist())
    onto.SetSpacing(grid.spacing)
    onto.SetDirection((lps @ (grid.affine[:3, :3] / grid.spacing)).ravel().tolist())
    found = sitk.Resample(sitk.ReadImage(str(path), sitk.sitkFloat32), onto, sitk.Transform(), interpolator)
    return torch.from_numpy(sitk.GetArrayFromImage(found).transpose(2, 1, 0).copy())[None]


@pytest.mark.parametrize("place", ["permuted RPI", "oblique, anisotropic, shifted"])
def test_another_spacing_is_interpolated_as_simpleitk_does(tmp_path, place):
    image = volume(tmp_path, place)
    grid = Recipe((40, 40, 40), (1.8, 1.8, 1.8)).grid(image.grid)  # finer than either: no smoothing
    theirs = by_simpleitk(image.path, grid, sitk.sitkLinear)
    ours = resample(image.data, image.grid, grid)[0]
    assert theirs.std() > 100
    assert (ours - theirs).abs().mean() < 0.05  # of intensities up to 1000
    # SimpleITK drops what lies in the outer half of an edge voxel, which here belongs to the image.
    assert ((ours - theirs).abs() > 1).float().mean() < 0.01


@pytest.mark.parametrize("place", PLACES)
def test_labels_keep_their_values(tmp_path, place):
    grid = PLACES[place]
    structures = phantoms.structures(phantoms.positions(grid)) * 70
    image = phantoms.save(tmp_path / "i.nii.gz", phantoms.intensity(phantoms.positions(grid)), grid)
    label = phantoms.save(tmp_path / "l.nii.gz", structures, grid, np.uint8)
    recipe = Recipe((40, 40, 40), (2.3, 2.3, 2.3))
    loaded = recipe.load(image, label)["label"]
    assert loaded.dtype == torch.int16 and loaded.unique().tolist() == [0, 70, 140]
    theirs = by_simpleitk(label, recipe.grid(read_image(image).grid), sitk.sitkNearestNeighbor)
    assert (loaded != theirs).float().mean() < 0.002 < (loaded > 0).float().mean()  # but for ties between two voxels


def test_a_structure_that_the_grid_would_cut_is_refused(tmp_path):
    grid = PLACES["same"]
    image = phantoms.save(tmp_path / "i.nii.gz", phantoms.intensity(phantoms.positions(grid)), grid)
    label = phantoms.save(tmp_path / "l.nii.gz", phantoms.structures(phantoms.positions(grid)), grid, np.uint8)
    with pytest.raises(CourseError, match=r"loses \d+ labelled ones on the grid 10x10x10"):
        Recipe((10, 10, 10), grid.spacing).load(image, label)
    assert Recipe((10, 10, 10), grid.spacing).load(image)["image"].shape == (1, 10, 10, 10)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_scan_to_be_registered_looks_as_in_training(tmp_path, place, aligned):
    """`whole` changes nothing where the field of view is not larger than the network's grid."""
    image = volume(tmp_path, place)
    spacing = image.grid.spacing if aligned else (2.0, 2.5, 3.0)
    recipe = Recipe((48, 50, 52), spacing, aligned=aligned)
    whole = recipe.prepare(read_image(image.path), recipe.grid(image.grid, whole=True))
    assert torch.equal(whole[0], recipe.load(image.path)["image"])


@pytest.mark.parametrize("place", PLACES)
def test_a_whole_grid_keeps_every_voxel(tmp_path, place):
    image = volume(tmp_path, place)
    grid = Recipe((4, 4, 4), (2.0, 2.0, 2.0)).grid(image.grid, whole=True)
    voxels = np.linalg.inv(grid.affine) @ image.grid.affine
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in image.grid.shape))])
    there = (voxels @ corners.T)[:3].T
    assert (there > -0.5).all() and (there < np.array(grid.shape) - 0.5).all()


@pytest.mark.parametrize("place", PLACES)
def test_a_field_found_on_the_grid_comes_back_to_the_scan(tmp_path, place):
    """A shift in millimetres, said in voxels of the network's grid, is the same shift in voxels of the scan."""
    image = volume(tmp_path, place)
    grid = Recipe((16, 16, 16), (3.0, 3.0, 3.0)).grid(image.grid, whole=True)
    shift = np.array([2.0, -3.0, 4.0])
    field = torch.tensor(np.linalg.inv(grid.affine[:3, :3]) @ shift, dtype=torch.float32)
    displacement = field.view(1, 3, 1, 1, 1).expand(1, 3, *grid.shape)
    back = Transform(grid, displacement, before=np.eye(4), after=np.eye(4)).between(image.grid, image.grid)
    expected = torch.tensor(np.linalg.inv(image.grid.affine[:3, :3]) @ shift, dtype=torch.float32)
    assert_close(back, expected.view(1, 3, 1, 1, 1).expand_as(back), rtol=0, atol=1e-4)


def test_intensities_are_those_of_the_stored_volume_in_any_place(tmp_path):
    """A scan that an affine alignment has moved is normalised as before."""
    image = volume(tmp_path, "same")
    recipe = Recipe((24, 26, 22), image.grid.spacing, aligned=True)
    shifted = image.grid.affine.copy()
    shifted[:3, 3] += 3 * image.grid.affine[:3, 0]
    moved = recipe.prepare(replace(image, grid=Grid(image.grid.shape, shifted)), image.grid)
    assert torch.equal(moved[:, :, 3:], recipe.prepare(image, image.grid)[:, :, :-3])


def test_a_field_of_view_without_end_is_refused():
    with pytest.raises(CourseError, match="more than 134217728: crop or resample it"):
        Recipe((8, 8, 8), (0.1, 0.1, 0.1)).grid(Grid.as_stored((200, 200, 200), (1.0, 1.0, 1.0)), whole=True)


def test_recipes_that_make_no_sense():
    with pytest.raises(ValueError, match="as many spacings"):
        Recipe((8, 8, 8), (1.0, 1.0))
    with pytest.raises(ValueError, match="only volumes are brought to a spacing"):
        Recipe((8, 8), (1.0, 1.0))
