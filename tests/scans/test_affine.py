"""Affine alignment: known maps are found again, in whatever grids the two scans lie."""

import numpy as np
import pytest
import torch

from course_utils.errors import CourseError
from course_utils.scans import affine
from tests import phantoms

FIXED = phantoms.grid((26, 24, 22), (2.2, 2.5, 2.6), "LAS", degrees=12)
MOVING = phantoms.grid((30, 26, 16), (2.0, 2.3, 4.0), "PIR", centre=(4, -3, 5))


def known(degrees=0.0, stretch=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)):
    """From fixed to moving mm: about the origin, where the phantom is."""
    matrix = phantoms.grid((1, 1, 1), stretch, degrees=degrees).affine
    matrix[:3, 3] = shift
    return matrix


def scans(matrix, moving=MOVING, contrast=lambda values: values):
    """The phantom, and the same object where the matrix puts it, as tensors from 0 to 1."""
    back = np.linalg.inv(matrix)
    fixed = phantoms.intensity(phantoms.positions(FIXED))
    moved = phantoms.intensity(phantoms.apply(back, phantoms.positions(moving)))
    return [torch.tensor(a / 1000, dtype=torch.float32)[None, None] for a in (contrast(moved), fixed)]


def error(found, matrix):
    """Mean distance in mm within the phantom."""
    points = phantoms.positions(FIXED)
    inside = np.linalg.norm(points, axis=0) < 22
    difference = phantoms.apply(found, points) - phantoms.apply(matrix, points)
    return np.linalg.norm(difference[:, inside], axis=0).mean()


MAPS = {
    "translation": known(shift=(6, -4, 3)),
    "rotation": known(20.0),
    "all twelve": known(15.0, (1.12, 0.92, 1.0), (5, 2, -6)),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_known_map_is_found(name):
    matrix = MAPS[name]
    before = error(np.eye(4), matrix)
    found = affine.align(*scans(matrix), MOVING, FIXED)
    assert before > 3 and error(found, matrix) < 0.25  # mm; voxels have 2 to 4
    np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_scans_that_do_not_overlap_are_brought_together():
    """Their headers put them 300 mm apart, as after a new positioning."""
    far = phantoms.grid(MOVING.shape, MOVING.spacing, "PIR", centre=(304, -3, 5))
    matrix = known(8.0, shift=(300, 0, 0))
    assert error(affine.align(*scans(matrix, far), far, FIXED), matrix) < 0.25


def test_mutual_information_aligns_another_contrast_where_correlation_fails():
    matrix = MAPS["translation"]

    def bent(values):  # dark to bright to dark: no line fits
        return np.where(values > 20, 1000 - 2.2 * np.abs(values - 450), 0).clip(0, 1000)

    moving, fixed = scans(matrix, contrast=bent)
    by = {
        name: error(affine.align(moving, fixed, MOVING, FIXED, similarity=name), matrix)
        for name in ("mi", "correlation")
    }
    assert by["mi"] < 0.7 and by["mi"] < by["correlation"]


def test_the_map_back_is_the_inverse():
    moving, fixed = scans(MAPS["all twelve"])
    there = affine.align(moving, fixed, MOVING, FIXED)
    back = affine.align(fixed, moving, FIXED, MOVING)
    assert error(back @ there, np.eye(4)) < 0.4


def test_correlation_is_pearson_s():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 500, generator=generator)
    assert affine.correlation_loss(a, b).item() == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert affine.correlation_loss(3 * a + 2, a).item() == pytest.approx(0, abs=1e-6)
    assert affine.correlation_loss(a, torch.full_like(a, 0.3)).isfinite()


def test_mutual_information_is_that_of_a_normal_distribution():
    """`-log(1 - r^2) / 2` nats, of which the Parzen windows blur a little away."""
    correlation = 0.8
    noise = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    a = noise[0]
    b = correlation * a + (1 - correlation**2) ** 0.5 * noise[1]
    a, b = (0.5 + 0.12 * c.clamp(-4, 4) for c in (a, b))
    assert -affine.mutual_information_loss(a, b).item() == pytest.approx(0.51, abs=0.08)
    assert -affine.mutual_information_loss(a, 1 - b).item() == pytest.approx(0.51, abs=0.08)
    assert -affine.mutual_information_loss(a, b[torch.randperm(len(b))]).item() < 0.05


def test_two_images_that_never_overlap_are_refused(monkeypatch):
    moving, fixed = scans(np.eye(4))
    monkeypatch.setattr(affine, "LEAST_OVERLAP", 2.0)  # more than there is
    with pytest.raises(CourseError, match="check that they show the same part"):
        affine.align(moving, fixed, MOVING, FIXED)


# --- whether it is needed ---------------------------------------------------------------------------------------------

BRAIN = phantoms.grid((40, 44, 36), (4.0, 4.0, 4.0))


def ellipsoid(radii, degrees=0.0, shift=(0.0, 0.0, 0.0), grid=BRAIN):
    """An ellipsoid of 1, turned and then shifted by mm, on an empty ground."""
    back = np.linalg.inv(known(degrees, shift=shift))
    positions = phantoms.apply(back, phantoms.positions(grid))
    inside = sum((axis / radius) ** 2 for axis, radius in zip(positions, radii, strict=True))
    return torch.tensor(inside <= 1, dtype=torch.float32)[None, None]


LONG, ROUND = (50, 65, 50), (50, 50, 50)


@pytest.mark.parametrize(
    ("moving", "reason"),
    [
        (ellipsoid(LONG), ""),
        (ellipsoid((52, 62, 48), 5.0, (1, -2, 1)), ""),  # another subject, as aligned brains are
        (ellipsoid(LONG, shift=(10, 0, 0)), "their centres are 10 mm apart"),
        (ellipsoid(LONG, 20.0), "their long axes differ by 18 degrees"),  # of 20 about a slanting axis
        (ellipsoid(LONG, -20.0), "their long axes differ by 17 degrees"),  # on a grid
        (ellipsoid(ROUND, 20.0), ""),  # no long axis, nothing to be told apart by
    ],
)
def test_whether_scans_lie_on_each_other(moving, reason):
    assert affine.apart(moving, ellipsoid(LONG), BRAIN, BRAIN) == reason


def test_a_cut_object_has_no_axis_that_is_its_own():
    """A block cut out of an organ: where its intensities lie says where it was cut, not how it was turned."""
    cut = phantoms.grid((20, 14, 20), (4.0, 4.0, 4.0))
    whole = [ellipsoid(LONG, degrees) for degrees in (0.0, 20.0)]
    assert affine.apart(*whole, BRAIN, BRAIN)
    assert not affine.apart(ellipsoid(LONG, 20.0, grid=cut), ellipsoid(LONG, grid=cut), cut, cut)


def test_what_the_files_say_of_the_places_counts():
    """One object on grids of different axes and spacings, which lies where it lies."""
    for grid in (phantoms.grid((52, 40, 60), (3.2, 4.4, 3.0), "PIR", centre=(4, -3, 5), degrees=12), BRAIN):
        assert not affine.apart(ellipsoid(LONG, 30.0, grid=grid), ellipsoid(LONG, 30.0), grid, BRAIN)
    far = phantoms.grid(BRAIN.shape, BRAIN.spacing, centre=(150, 0, 0))
    assert affine.apart(ellipsoid(LONG, shift=(150, 0, 0), grid=far), ellipsoid(LONG), far, BRAIN).startswith(
        "they share"
    )
