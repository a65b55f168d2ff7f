"""The common grid that files suggest, against grids whose answer is plain."""

import numpy as np
import pytest

from course_utils.data.common_grid import LARGEST_PROPOSED, propose
from course_utils.data.grids import Grid
from course_utils.data.recipe import Recipe
from tests import phantoms
from tests.phantoms import PLACES


def test_one_grid_for_all_is_that_grid():
    grid = phantoms.grid((24, 26, 22), (2.5, 2.0, 3.0))
    found = propose([grid] * 3, placed=True)
    assert (found.shape, found.spacing, found.aligned) == ((24, 26, 22), (2.5, 2.0, 3.0), False)


@pytest.mark.parametrize("spacing", [None, (1.5, 2.0, 4.0)])
def test_no_image_is_cut(spacing):
    grids = list(PLACES.values())
    found = propose(grids, placed=True, spacing=spacing)
    recipe = Recipe(found.shape, found.spacing, aligned=found.aligned)
    assert not any(recipe.cuts(grid) for grid in grids)
    smaller = Recipe(tuple(n - 1 for n in found.shape), found.spacing)
    assert any(smaller.cuts(grid) for grid in grids)


def test_the_spacing_is_the_median_along_right_anterior_superior():
    grids = [phantoms.grid((20, 20, 20), (1.0, 2.0, 3.0), codes="PIR")] * 2 + [
        phantoms.grid((9, 9, 9), (8.0, 8.0, 8.0))
    ]
    # P runs along the first array axis, I along the second, R along the third: R, A, S are 3, 1 and 2 mm.
    assert propose(grids, placed=True).spacing == (3.0, 1.0, 2.0)


def test_what_would_be_too_large_is_proposed_coarser_and_said():
    grid = phantoms.grid((512, 512, 300), (0.5, 0.5, 1.0))
    found = propose([grid], placed=True)
    assert np.prod(found.shape) <= 1.05 * LARGEST_PROPOSED and "coarser than the files" in str(found)
    extent = np.multiply(found.shape, found.spacing)
    assert (extent >= np.multiply(grid.shape, grid.spacing) - 1e-6).all()
    assert propose([grid], placed=True, spacing=(0.5, 0.5, 1.0)).shape == grid.shape  # who insists gets it


def test_files_without_a_place_and_slices_are_taken_as_stored():
    grids = [Grid.as_stored((30, 20, 25), (1, 1, 1)), Grid.as_stored((28, 24, 20), (1, 1, 1))]
    found = propose(grids, placed=False)
    assert (found.shape, found.spacing, found.aligned) == ((30, 24, 25), (1.0, 1.0, 1.0), True)
    slices = propose([Grid.as_stored((64, 60), (1.2, 0.8))], placed=True, shape=(32, 32))
    assert (slices.shape, slices.spacing, slices.aligned) == ((32, 32), (1.2, 0.8), True)
    assert "shape as you say" in str(slices)
