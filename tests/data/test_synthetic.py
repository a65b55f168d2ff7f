"""The built-in cohort: it is what its parameters say, the same each time, and its true maps are true."""

import json
import os
import socket
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from course_utils.data import synthetic
from course_utils.data.synthetic import LABELS, make_cohort, true_displacement
from course_utils.errors import CourseError
from course_utils.fields import compose, integrate, jacobian_determinant, warp

pytestmark = pytest.mark.slow

SUBJECTS = 10


class Cohort:
    """A generated folder, read with nibabel alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = json.loads((folder / "cohort.json").read_text(encoding="utf-8"))
        self.names = sorted(path.name for path in (folder / "images").iterdir())
        self.images = [self.read("images", name) for name in self.names]
        self.labels = [self.read("labels", name) for name in self.names]
        self.velocities = [
            torch.from_numpy(self.read("velocities", name)).movedim(-1, 0).unsqueeze(0) for name in self.names
        ]
        self.subjects = [
            SimpleNamespace(name=name.removesuffix(".nii.gz"), velocity=folder / "velocities" / name)
            for name in self.names
        ]
        self.spacing = self.info["spacing"][0]

    def read(self, kind: str, name: str) -> np.ndarray:
        return np.asarray(nib.load(self.folder / kind / name).dataobj)

    def clean_image(self, index: int) -> np.ndarray:
        """The subject without contrast change, bias and noise."""
        grid = synthetic._grid(self.spacing, len(self.info["shape"]))
        return synthetic._see(grid, integrate(self.velocities[index])[0].numpy())[0]


def mean_dice(first: np.ndarray, second: np.ndarray) -> float:
    scores = []
    for value in LABELS:
        a, b = first == value, second == value
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


@pytest.fixture(scope="module", params=[3, 2], ids=["3d", "2d"])
def cohort(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    assert make_cohort(folder, subjects=SUBJECTS, dimensions=request.param) == folder
    return Cohort(folder)


def test_files_are_on_one_grid_that_the_description_names(cohort: Cohort) -> None:
    assert cohort.names == [f"synthetic_{k:03d}.nii.gz" for k in range(1, SUBJECTS + 1)]
    shape = tuple(cohort.info["shape"])
    assert shape in {(48, 64, 48), (96, 96)}
    assert all(size % 16 == 0 for size in shape)
    for name in cohort.names:
        image, label, velocity = (nib.load(cohort.folder / kind / name) for kind in ("images", "labels", "velocities"))
        assert image.shape == label.shape == shape
        assert velocity.shape == (*shape, len(shape))
        assert label.get_data_dtype() == np.uint8 and velocity.get_data_dtype() == np.float32
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_array_equal(image.affine, velocity.affine)
        np.testing.assert_allclose(image.header.get_zooms(), cohort.info["spacing"])
        assert nib.aff2axcodes(image.affine) == (("R", "A", "S") if len(shape) == 3 else ("R", "S", "P"))


def test_every_label_is_there_on_its_side_with_a_sensible_volume(cohort: Cohort) -> None:
    assert cohort.info["labels"] == {str(value): name for value, name in LABELS.items()}
    assert len(LABELS) == 10
    dims = len(cohort.info["shape"])
    affine = nib.load(cohort.folder / "labels" / cohort.names[0]).affine
    x = affine[0, 0] * np.arange(cohort.info["shape"][0]) + affine[0, 3]
    # Millilitres in a volume, square centimetres in a slice; a brain's own values, with room for these deformations.
    bounds = {
        "cortical grey": ((350, 650), (18, 45)),
        "white matter": ((220, 420), (18, 40)),
        "deep grey": ((15, 40), (3, 9)),
        "lateral ventricle": ((6, 15), (0.4, 2.0)),
        "CSF": ((45, 110), (5, 14)),
    }
    for label in cohort.labels:
        assert set(np.unique(label)) == {0, *LABELS}
        for value, name in LABELS.items():
            side, tissue = name.split(" ", 1)
            places = np.nonzero(label == value)
            low, high = bounds[tissue][3 - dims]
            assert low < len(places[0]) * cohort.spacing**dims / 10**dims < high, name
            centre = x[places[0]].mean()
            assert (centre < -2) if side == "left" else (centre > 2), name


def test_tissues_look_as_in_a_t1_image(cohort: Cohort) -> None:
    for index, label in enumerate(cohort.labels):
        image = cohort.clean_image(index)
        mean = {
            tissue: image[np.isin(label, [v for v, name in LABELS.items() if name.endswith(tissue)])].mean()
            for tissue in synthetic.TISSUES
        }
        assert mean["white matter"] > mean["deep grey"] > mean["cortical grey"] > mean["CSF"]
        assert mean["cortical grey"] > mean["lateral ventricle"]


def test_overlap_before_registration_leaves_work_to_do(cohort: Cohort) -> None:
    pairs = list(combinations(range(SUBJECTS), 2))
    assert len(pairs) >= 30
    assert 0.5 < np.mean([mean_dice(cohort.labels[i], cohort.labels[j]) for i, j in pairs]) < 0.65


def test_amplitude_is_the_root_mean_square_velocity_in_the_brain(cohort: Cohort) -> None:
    squares = [
        (cohort.spacing * velocity[0].numpy()[:, label > 0]) ** 2
        for velocity, label in zip(cohort.velocities, cohort.labels, strict=True)
    ]
    rms = np.sqrt(np.mean([square.mean() for square in squares]))
    assert rms == pytest.approx(cohort.info["amplitude_mm"], rel=0.15)


def test_nothing_folds_and_nothing_leaves_the_grid(cohort: Cohort) -> None:
    for velocity, label in zip(cohort.velocities, cohort.labels, strict=True):
        forward, backward = integrate(velocity), integrate(-velocity)
        assert jacobian_determinant(forward).min() > 0
        assert jacobian_determinant(backward).min() > 0
        assert compose(forward, backward).abs().mean() < 0.02
        for axis in range(label.ndim):
            for edge in (0, -1):
                assert velocity.select(axis + 2, edge).abs().max() == 0
                # In 3-D the template's brainstem is cut 5 mm above the grid's floor, so there a label may touch it.
                assert (label.ndim == 3 and axis == 2) or label.take(edge, axis=axis).max() == 0


def test_the_true_displacement_carries_moving_to_fixed(cohort: Cohort) -> None:
    # Linear interpolation of a 3.5 mm grid costs what it costs, so the bound is relative to the difference before.
    ceiling = 0.78 if len(cohort.info["shape"]) == 3 else 0.85
    for i, j in [(0, 1), (1, 0), (2, 3), (4, 9)]:
        u = true_displacement(cohort.subjects[i], cohort.subjects[j])
        assert u.dtype == torch.float32 and list(u.shape) == [len(cohort.info["shape"]), *cohort.info["shape"]]
        fixed, moving = cohort.clean_image(i), cohort.clean_image(j)
        moved = warp(torch.from_numpy(moving)[None, None], u[None])[0, 0].numpy()
        brain = cohort.labels[i] > 0
        before = np.sqrt(np.mean((moving - fixed)[brain] ** 2))
        after = np.sqrt(np.mean((moved - fixed)[brain] ** 2))
        assert after < 0.22 * before
        moved_label = warp(torch.from_numpy(cohort.labels[j])[None, None], u[None], mode="nearest")[0, 0].numpy()
        assert mean_dice(moved_label, cohort.labels[i]) > ceiling
        assert jacobian_determinant(u[None]).min() > 0
        distance_mm = cohort.spacing * u.norm(dim=0)[torch.from_numpy(brain)].mean()
        assert 2 < distance_mm < 8


def test_the_true_displacement_of_a_subject_to_itself_is_zero(cohort: Cohort) -> None:
    subject = cohort.subjects[0]
    assert true_displacement(subject, subject).abs().mean() < 0.02


def test_the_true_displacement_inverts_when_the_pair_is_swapped(cohort: Cohort) -> None:
    a, b = cohort.subjects[:2]
    there, back = true_displacement(a, b)[None], true_displacement(b, a)[None]
    assert compose(there, back).abs().mean() < 0.05 < 10 * there.abs().mean()


def test_constant_velocities_of_opposite_sign_add_up(tmp_path: Path) -> None:
    # exp of a translation is that translation: fixed by 1 voxel along axis 0, moving by -2 along axis 1.
    subjects = []
    for name, vector in (("fixed", [1.0, 0.0, 0.0]), ("moving", [0.0, -2.0, 0.0])):
        velocity = np.broadcast_to(np.float32(vector), (8, 9, 10, 3))
        nib.save(nib.Nifti1Image(velocity, np.eye(4)), tmp_path / f"{name}.nii.gz")
        subjects.append(SimpleNamespace(name=name, velocity=tmp_path / f"{name}.nii.gz"))
    u = true_displacement(*subjects)
    torch.testing.assert_close(u, torch.tensor([1.0, 2.0, 0.0]).view(3, 1, 1, 1).expand(3, 8, 9, 10))


def test_same_seed_same_bytes_and_a_subject_does_not_depend_on_the_count(cohort: Cohort, tmp_path: Path) -> None:
    dims = len(cohort.info["shape"])
    make_cohort(tmp_path / "again", subjects=2, dimensions=dims)
    make_cohort(tmp_path / "other", subjects=2, seed=1, dimensions=dims)
    for kind in ("images", "labels", "velocities"):
        for name in cohort.names[:2]:
            here = (cohort.folder / kind / name).read_bytes()
            assert here == (tmp_path / "again" / kind / name).read_bytes()
            assert here != (tmp_path / "other" / kind / name).read_bytes()
    assert not np.array_equal(cohort.images[0], cohort.images[1])


def test_a_finer_grid_shows_the_same_brain(tmp_path: Path) -> None:
    coarse, fine = (synthetic._grid(spacing, 2) for spacing in (3.5, 1.75))
    velocities = [
        grid.spacing * synthetic._random_velocity(grid, np.random.default_rng(5), 2.5) for grid in (coarse, fine)
    ]
    # Voxel edges coincide, so a coarse voxel's centre is the middle of 2x2 fine ones.
    pooled = velocities[1].reshape(2, coarse.shape[0], 2, coarse.shape[1], 2).mean((2, 4))
    assert np.abs(pooled - velocities[0]).max() < 0.15 < np.abs(velocities[0]).max() / 20


def test_no_network_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the built-in cohort opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    synthetic._scene.cache_clear()
    synthetic._template.cache_clear()
    make_cohort(tmp_path / "synthetic", subjects=2, dimensions=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save, saved = nib.save, []

    def failing(image: nib.Nifti1Image, path: Path) -> None:
        if len(saved) == 4:  # in the middle of the second subject
            raise error
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(nib, "save", failing)
    expected = CourseError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        make_cohort(tmp_path / "synthetic", subjects=2, dimensions=2)
    assert len(saved) == 4 and list(tmp_path.iterdir()) == []
    if expected is CourseError:
        assert "No space left on device" in str(caught.value) and str(tmp_path / "synthetic") in str(caught.value)


def test_the_same_cohort_is_kept_and_another_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "synthetic"
    make_cohort(folder, subjects=2, dimensions=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    make_cohort(folder, subjects=2, dimensions=2, spacing=1.75)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    with pytest.raises(CourseError, match="cohort of other parameters"):
        make_cohort(folder, subjects=3, dimensions=2)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert list(tmp_path.iterdir()) == [folder]


def test_two_processes_that_make_the_same_cohort_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "synthetic"
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        make_cohort(folder, subjects=2, dimensions=2)  # the other one finishes just before
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    make_cohort(folder, subjects=2, dimensions=2)
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list(folder.rglob("*.nii.gz"))) == 6


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"subjects": 1}, "subjects"),
        ({"spacing": 0.0}, "spacing"),
        ({"spacing": -1.0}, "spacing"),
        ({"spacing": float("nan")}, "spacing"),
        ({"spacing": 20.0}, "spacing"),
        ({"amplitude": -1.0}, "amplitude"),
        ({"amplitude": float("nan")}, "amplitude"),
        ({"amplitude": 30.0, "dimensions": 2}, "amplitude"),
        ({"dimensions": 4}, "dimensions"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_parameters_are_named_in_one_line(tmp_path: Path, parameters: dict, word: str) -> None:
    with pytest.raises(CourseError, match=word) as caught:
        make_cohort(tmp_path / "synthetic", **parameters)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_hold_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "synthetic"):
        with pytest.raises(CourseError, match="file") as caught:
            make_cohort(folder, subjects=2, dimensions=2)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_without_motion_every_subject_is_the_template(tmp_path: Path) -> None:
    still = Cohort(make_cohort(tmp_path / "synthetic", subjects=2, amplitude=0, dimensions=2))
    np.testing.assert_array_equal(still.labels[0], still.labels[1])
    assert not np.array_equal(still.images[0], still.images[1])  # contrast, bias and noise differ all the same
    assert true_displacement(*still.subjects).abs().max() == 0


def test_unknown_or_broken_velocities_are_named(cohort: Cohort, tmp_path: Path) -> None:
    good = cohort.subjects[0]
    with pytest.raises(CourseError, match="unknown"):
        true_displacement(good, SimpleNamespace(name="patient", velocity=None))
    broken = tmp_path / "broken.nii.gz"
    whole = good.velocity.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:1000] + bytes(200) + whole[1200:], b"<html>"):
        broken.write_bytes(content)
        with pytest.raises(CourseError, match=r"broken\.nii\.gz"):
            true_displacement(good, SimpleNamespace(name="broken", velocity=broken))
    with pytest.raises(CourseError, match="is no velocity"):
        true_displacement(good, SimpleNamespace(name="image", velocity=cohort.folder / "images" / cohort.names[0]))
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.float32), np.eye(4)), other)
    with pytest.raises(CourseError, match="different shape"):
        true_displacement(good, SimpleNamespace(name="other", velocity=other))
