"""A written field, read again: what it does to images, labels and points, beside register's results and by hand."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from course_utils.data.resampling import sample
from course_utils.errors import CourseError, CourseWarning
from course_utils.fields import integrate, resize
from course_utils.scans import writing
from course_utils.scans.applying import apply_files, apply_to_points, read_field
from course_utils.scans.registration import register_files
from course_utils.scans.transform import Transform
from tests import phantoms
from tests.phantoms import PAIRS, PLACES, volume


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A folder with two scans, a label map, and all that register writes of them, in both layouts."""
    folder = tmp_path_factory.mktemp("registered")
    moving, fixed = (phantoms.grid((24, 26, 22), (2.5, 2.5, 2.5), codes) for codes in ("LAS", "PIR"))
    for name, grid, bend in (("moving", moving, 2.5), ("fixed", fixed, 0.0)):
        points = phantoms.positions(grid)
        points = points + bend * np.sin(points[[1, 2, 0]] / 9)
        phantoms.save(folder / f"{name}.nii.gz", np.round(phantoms.intensity(points)), grid, np.int16)
        phantoms.save(folder / f"{name}_label.nii.gz", phantoms.structures(points), grid, np.uint8)
    names = ("moved", "warp", "inverse_warp", "moved_label")
    register_files(
        folder / "moving.nii.gz",
        folder / "fixed.nii.gz",
        {name: folder / f"{name}.nii.gz" for name in names},
        moving_label=folder / "moving_label.nii.gz",
        affine=True,
        iterations=20,
    )
    outputs = {"warp": folder / "warp.nrrd", "inverse_warp": folder / "inverse.mha", "moved": folder / "moved.mgz"}
    register_files(folder / "moving.nii.gz", folder / "fixed.nii.gz", outputs, affine=True, iterations=20)
    return folder


def array(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("warp", ["warp.nii.gz", "warp.nrrd"])
def test_images_and_labels_come_out_as_register_wrote_them(registered, tmp_path, warp):
    for kind, result in (("image", "moved.nii.gz"), ("label", "moved_label.nii.gz")):
        given = registered / ("moving.nii.gz" if kind == "image" else "moving_label.nii.gz")
        out = tmp_path / result
        apply_files(registered / warp, out, **{kind: given})
        ours, theirs = array(out).astype(int), array(registered / result).astype(int)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(nib.load(out).affine, nib.load(registered / result).affine, atol=1e-4)
        if kind == "image":
            assert np.abs(ours - theirs).max() <= 1  # the field is stored in float32: a rounding may fall otherwise
        assert (ours != theirs).mean() < 2e-3


def test_freesurfer_s_format_holds_the_same_image(registered):
    np.testing.assert_array_equal(array(registered / "moved.mgz"), array(registered / "moved.nii.gz"))
    assert nib.load(registered / "moved.mgz").get_data_dtype().newbyteorder("=") == np.int16
    np.testing.assert_allclose(
        nib.load(registered / "moved.mgz").affine, nib.load(registered / "moved.nii.gz").affine, atol=1e-3
    )


@pytest.mark.parametrize("name", ["warp.nrrd", "inverse.mha"])
def test_simpleitk_reads_the_same_field_from_each_format(registered, name):
    """Both are given to ITK as a transform and moved through it: no array order, sign or unit is taken on trust."""
    nifti = {"warp.nrrd": "warp.nii.gz", "inverse.mha": "inverse_warp.nii.gz"}[name]
    image, target = ("moving", "fixed") if name == "warp.nrrd" else ("fixed", "moving")
    moved = []
    for file in (name, nifti):
        field = sitk.ReadImage(str(registered / file), sitk.sitkVectorFloat64)
        scans = (sitk.ReadImage(str(registered / f"{scan}.nii.gz"), sitk.sitkFloat32) for scan in (image, target))
        resampled = sitk.Resample(*scans, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
        moved.append(sitk.GetArrayFromImage(resampled))
    assert np.abs(moved[0] - moved[1]).max() < 0.5 < moved[0].std()  # of about 1000 grey values


@pytest.mark.parametrize("lps", [False, True])
@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_points_go_where_the_map_takes_them(tmp_path, target, source, lps):
    del source
    grid = PLACES[target]
    shift = np.array([3.0, -2.0, 5.0])
    matrix = phantoms.grid((1, 1, 1), (1.1, 0.95, 1.0), degrees=12).affine
    matrix[:3, 3] = shift
    transform = Transform(grid, torch.zeros(1, 3, *grid.shape), np.eye(4), matrix)
    image = volume(tmp_path, target)
    field = writing.itk_field(transform.between(grid, grid), grid, image.header)
    writing.save(field, tmp_path / "w.nii.gz", tmp_path / "w.nii.gz")
    points = np.random.default_rng(0).uniform(-12, 12, (40, 3))
    sign = np.array([-1, -1, 1]) if lps else np.ones(3)
    table = pd.DataFrame(points * sign, columns=["x", "y", "z"]).assign(name="landmark")
    table.to_csv(tmp_path / "p.csv", index=False)
    apply_files(tmp_path / "w.nii.gz", tmp_path / "q.csv", points=tmp_path / "p.csv", lps=lps)
    result = pd.read_csv(tmp_path / "q.csv")
    expected = points @ matrix[:3, :3].T + shift
    np.testing.assert_allclose(result[["x", "y", "z"]] * sign, expected, atol=2e-3)
    assert result["name"].tolist() == ["landmark"] * 40


def test_points_move_as_simpleitk_moves_them(registered):
    field = read_field(registered / "warp.nii.gz")
    points = np.random.default_rng(1).uniform(-20, 20, (50, 3))
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(str(registered / "warp.nii.gz"), sitk.sitkVectorFloat64))
    lps = np.array([-1, -1, 1])
    theirs = np.array([itk.TransformPoint((point * lps).tolist()) for point in points]) * lps
    assert np.linalg.norm(theirs - points, axis=1).mean() > 0.5
    np.testing.assert_allclose(apply_to_points(field, points), theirs, atol=1e-3)


def test_there_and_back_a_point_is_where_it_was(registered):
    points = np.random.default_rng(2).uniform(-12, 12, (50, 3))
    there = apply_to_points(read_field(registered / "warp.nii.gz"), points)
    back = apply_to_points(read_field(registered / "inverse_warp.nii.gz"), there)
    assert np.linalg.norm(there - points, axis=1).mean() > 0.5
    assert np.linalg.norm(back - points, axis=1).mean() < 0.1


def test_points_outside_are_counted(registered):
    field = read_field(registered / "warp.nii.gz")
    with pytest.warns(CourseWarning, match=r"1 of 2 points lie outside the grid of .*warp.nii.gz"):
        moved = apply_to_points(field, np.array([[0.0, 0, 0], [500.0, 0, 0]]))
    assert np.isfinite(moved).all()


def test_a_field_of_the_challenge_moves_arrays_and_no_points(tmp_path):
    moving, fixed = volume(tmp_path, "same", "moving.nii.gz"), PLACES["same"]
    displacement = integrate(
        resize(torch.randn(1, 3, 5, 5, 5, generator=torch.Generator().manual_seed(0)), fixed.shape)
    )
    writing.save(
        writing.learn2reg_field(displacement, fixed, moving.header), tmp_path / "disp.nii.gz", tmp_path / "disp.nii.gz"
    )
    apply_files(tmp_path / "disp.nii.gz", tmp_path / "moved.nii.gz", image=moving.path)
    by_hand = sample(moving.data, displacement, outside=moving.data.min().item())
    expected = writing.image_like(by_hand, moving, fixed, moving.header).get_fdata()
    np.testing.assert_allclose(nib.load(tmp_path / "moved.nii.gz").get_fdata(), expected, atol=0.05)
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n", encoding="utf-8")
    with pytest.raises(CourseError, match="points need a field of the layout itk"):
        apply_files(tmp_path / "disp.nii.gz", tmp_path / "q.csv", points=tmp_path / "p.csv")
    other = volume(tmp_path, "permuted RPI", "other.nii.gz")
    with pytest.raises(CourseError, match="for arrays of 24x26x22 voxels, not 22x27x30"):
        apply_files(tmp_path / "disp.nii.gz", tmp_path / "m.nii.gz", image=other.path)


def test_what_cannot_be_applied_is_said_in_one_line_and_writes_nothing(registered, tmp_path):
    warp, image = registered / "warp.nii.gz", registered / "moving.nii.gz"
    (tmp_path / "p.csv").write_text("x,y\n0,0\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("x,y,z\n0,0,0\n1,2,three\n", encoding="utf-8")
    (tmp_path / "broken.nii.gz").write_bytes(warp.read_bytes()[:3000])
    before = sorted(path.name for path in tmp_path.iterdir())
    cases = [
        ("apply needs one of", (warp, "a.nii.gz"), {}),
        ("apply needs one of", (warp, "a.nii.gz"), {"image": image, "label": image}),
        ("is not the name of an image that can be written", (warp, "a.png"), {"image": image}),
        ("is not the name of a CSV file", (warp, "a.nii.gz"), {"points": tmp_path / "t.csv"}),
        ("has no column z", (warp, "a.csv"), {"points": tmp_path / "p.csv"}),
        ("t.csv, line 3: x, y and z are not three numbers", (warp, "a.csv"), {"points": tmp_path / "t.csv"}),
        ("of shape 24x26x22 is no displacement field", (image, "a.nii.gz"), {"image": image}),
        ("none.nii.gz does not exist", (tmp_path / "none.nii.gz", "a.nii.gz"), {"image": image}),
        ("cannot be read as an image", (tmp_path / "broken.nii.gz", "a.nii.gz"), {"image": image}),
        ("values that are no labels", (warp, "a.nii.gz"), {"label": tmp_path / "float.nii.gz"}),
    ]
    phantoms.save(tmp_path / "float.nii.gz", phantoms.intensity(phantoms.positions(PLACES["same"])), PLACES["same"])
    for message, (field, out), options in cases:
        with pytest.raises(CourseError, match=message) as caught:
            apply_files(field, tmp_path / out, **options)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "float.nii.gz"])
    with pytest.raises(CourseError, match="also the name of an input"):
        apply_files(warp, image, image=image)


@pytest.mark.parametrize("name", ["field.mgz", "field.mgh"])
def test_freesurfer_s_format_holds_no_field(tmp_path, name):
    image = volume(tmp_path, "same")
    field = writing.itk_field(torch.zeros(1, 3, *image.grid.shape), image.grid, image.header)
    with pytest.raises(CourseError, match="cannot hold a field"):
        writing.save(field, tmp_path / name, tmp_path / name)
