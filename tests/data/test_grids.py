"""Grids, and values on another grid, against nibabel and by hand."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_utils.data.grids import Grid, covering, overlap, sheared
from course_utils.data.resampling import resample, sample
from tests import phantoms
from tests.phantoms import PLACES


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


def test_a_tilted_gantry_leaves_a_sheared_grid():
    assert not any(sheared(grid) for grid in PLACES.values())
    tilted = PLACES["same"].affine.copy()
    tilted[1, 2] = math.tan(math.radians(15)) * 2.5
    assert sheared(Grid(PLACES["same"].shape, tilted))
