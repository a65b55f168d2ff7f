"""Figures of deformations are checked by the vertices, arrows, limits and names that lie on them."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from matplotlib.colors import to_rgb

from course_utils import plotting
from tests.plotting.drawn import SHAPE, SPACING, contours, legend_names, panels, pictures, vertices

# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_grid_lines_are_at_x_plus_u(axis):
    u = np.random.default_rng(0).normal(size=(3, *SHAPE))
    figure = plotting.deformed_grid(torch.from_numpy(u)[None], step=3, axis=axis, at=2)
    (collection,) = figure.axes[0].collections
    horizontal, vertical = (a for a in range(3) if a != axis)
    position = np.moveaxis(np.indices(SHAPE) + u, axis + 1, 1)[:, 2]  # (3, horizontal, vertical)
    curves = np.stack([position[horizontal], position[vertical]], axis=-1)
    kept = [sorted({*range(0, SHAPE[a], 3), SHAPE[a] - 1}) for a in (horizontal, vertical)]
    expected = [curves[:, j] for j in kept[1]] + [curves[i] for i in kept[0]]
    drawn = [path.vertices for path in collection.get_paths()]
    assert len(drawn) == len(expected)
    for line, other in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(line, other)


def test_grid_is_wholly_on_the_page_and_panels_agree():
    u = np.zeros((2, 6, 6))
    u[0] = 5.0
    figure = plotting.deformed_grid({"moved": u, "still": 0 * u}, np.eye(6))
    assert [ax.get_title() for ax in figure.axes] == ["moved", "still"]
    for ax in figure.axes:
        assert ax.get_xlim() == (-0.5, 10.5) and ax.get_ylim() == (-0.5, 5.5)
        np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(6).T)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_moved_grid_is_where_x_plus_u_is_a_multiple_of_the_step(axis):
    """Each line of the square grid on the moving image, where the moved image has it."""
    rng = np.random.default_rng(0)
    u = scipy.ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 1.5, 1.5, 1.5)) * 8
    image = rng.uniform(size=SHAPE)
    figure = plotting.registration(image, image, image, torch.from_numpy(u)[None], step=2, axis=axis, at=2)
    ax = panels(figure)[-1]
    found = contours(ax)
    assert len(found) == 2
    plane = [a for a in range(3) if a != axis]
    for contour, component in zip(found, plane, strict=True):
        position = np.moveaxis(np.indices(SHAPE) + u, axis + 1, 1)[component, 2]  # (horizontal, vertical)
        levels = [level for level in range(0, SHAPE[component], 2) if position.min() < level < position.max()]
        assert contour.levels.tolist() == levels and len(levels) > 2
        for level, path in zip(levels, contour.get_paths(), strict=True):
            there = scipy.ndimage.map_coordinates(position, path.vertices.T, order=1)
            np.testing.assert_allclose(there, level, atol=0.35)  # linear along a voxel's sides, not inside of it


def test_letters_are_dark_on_differences_and_light_on_images():
    moving, fixed, moved = np.random.default_rng(0).random((3, *SHAPE))
    shown = panels(plotting.registration(moving, fixed, moved, np.zeros((3, *SHAPE))))
    letters = [{to_rgb(text.get_color()) for text in ax.texts} for ax in shown]
    white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    assert letters == [{white}, {white}, {white}, {black}, {black}, {white}]
    assert [to_rgb(ax.get_facecolor()) for ax in shown] == [black, black, black, white, white, black]


def test_a_registration_shows_both_images_what_differs_and_the_grid_in_the_slice_that_matters():
    moving, fixed, label = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE, np.uint8)
    moving[:, 7, 3], fixed[:, 7, 4], label[2:4, 7, 2:5] = 2.0, 1.0, 1
    figure = plotting.registration(moving, fixed, 0.5 * moving, np.zeros((3, *SHAPE)), label=label, spacing=SPACING)
    shown = pictures(figure)
    titles = [ax.get_title() for ax in panels(figure)]
    assert titles == ["moving", "fixed", "moved", "moving − fixed", "moved − fixed", "moved, and the grid"]
    expected = [moving, fixed, 0.5 * moving, moving - fixed, 0.5 * moving - fixed, 0.5 * moving]
    for picture, image in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(picture.get_array(), image[:, 7].T)
    assert {shown[i].get_clim() for i in (0, 1, 2, 5)} == {(0, 2)}  # one scale, or brightness would look like a change
    assert {shown[i].get_clim() for i in (3, 4)} == {(-2, 2)}
    for ax in panels(figure):  # upright: superior on top, right on the right, true to scale
        assert ax.get_xlim() == (-0.5, 6.5) and ax.get_ylim() == (-0.5, 10.5) and ax.get_aspect() == 2.0
    assert "coronal, y = 7" in figure.get_suptitle()


def test_arrows_go_from_x_to_x_plus_u_in_voxels():
    u = np.random.default_rng(0).normal(size=(3, *SHAPE))
    ax = plotting.arrows(u, np.zeros(SHAPE), step=2, axis=0, at=3, spacing=SPACING).axes[0]
    (quiver,) = ax.collections
    assert (quiver.angles, quiver.scale_units, quiver.scale, quiver.pivot) == ("xy", "xy", 1, "tail")
    assert set(map(tuple, quiver.XY)) == set(itertools.product(range(1, 9, 2), range(1, 11, 2)))
    for (y, z), first, second in zip(quiver.XY.astype(int), quiver.U, quiver.V, strict=True):
        assert (first, second) == pytest.approx((u[1, 3, y, z], u[2, 3, y, z]))


# --- Jacobian ---------------------------------------------------------------------------------------------------------


def test_jacobian_map_is_white_at_one_and_symmetric_in_the_logarithm():
    determinant = np.linspace(0.3, 1.5, 99).reshape(9, 11)
    (picture, folds) = pictures(plotting.jacobian(determinant))
    assert picture.norm(1.0) == pytest.approx(0.5)
    assert picture.norm(2.0) == pytest.approx(1 - picture.norm(0.5))
    assert picture.get_clim() == pytest.approx((0.3, 1 / 0.3))
    white = np.array(picture.cmap(picture.norm(1.0))[:3])
    assert white.min() > 0.95
    blue, red = picture.cmap(picture.norm(0.4)), picture.cmap(picture.norm(2.5))
    assert blue[2] > blue[0] and red[0] > red[2]
    np.testing.assert_array_equal(picture.get_array(), determinant.T)
    assert folds.get_array().mask.all()


def test_folded_voxels_are_marked_where_the_determinant_is_not_positive():
    determinant = np.ones((5, 6))
    determinant[1, 2], determinant[3, 4], determinant[0, 0] = -0.5, 0.0, 0.001
    figure = plotting.jacobian(determinant)
    picture, folds = pictures(figure)
    np.testing.assert_array_equal(~folds.get_array().mask.T, determinant <= 0)
    np.testing.assert_array_equal(picture.get_array().mask.T, determinant <= 0)
    assert legend_names(figure) == ["folded (determinant ≤ 0)"]
    assert plotting.jacobian(np.ones((5, 6))).legends == []
    colour = np.array(folds.cmap(0.5)[:3])
    scale = picture.cmap(np.linspace(0, 1, 256))[:, :3]
    assert np.abs(scale - colour).sum(1).min() > 0.3, "a fold has a colour of its own"


@pytest.mark.parametrize("shape", [(5, 6), (6, 7)], ids=["of voxels", "of cells"])
def test_folds_are_red_over_the_image_in_grey(shape):
    determinant = np.ones((5, 6))
    determinant[1, 2], determinant[3, 4], determinant[0, 0] = -0.5, 0.0, 0.001
    image = np.random.default_rng(0).uniform(size=shape)
    figure = plotting.folds({"first": determinant, "none": np.ones((5, 6))}, image)
    picture, marked, _, nothing = pictures(figure)
    np.testing.assert_array_equal(picture.get_array().T, image[:5, :6])
    np.testing.assert_array_equal(~marked.get_array().mask.T, determinant <= 0)
    assert nothing.get_array().mask.all()
    red, green, blue = marked.cmap(0.5)[:3]
    assert red > 0.8 and max(green, blue) < 0.2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["folded (determinant ≤ 0)"]


def test_jacobian_maps_share_a_scale_which_is_capped_and_says_so():
    figure = plotting.jacobian({"mild": np.full((4, 4), 1.2), "strong": np.full((4, 4), 50.0)})
    assert {picture.get_clim() for picture in pictures(figure)[::2]} == {(0.25, 4.0)}
    bar = pictures(figure)[0].colorbar or pictures(figure)[2].colorbar
    assert bar.extend == "max"
    assert [tick.get_text() for tick in bar.ax.get_yticklabels()] == ["0.25", "0.5", "1", "2", "4"]
    assert {p.get_clim() for p in pictures(plotting.jacobian(np.ones((4, 4)), limit=2))[:1]} == {(0.5, 2.0)}


def test_jacobian_map_draws_outlines_of_the_image():
    image = np.zeros((12, 12))
    image[4:8, 4:8] = 1
    (outline,) = contours(panels(plotting.jacobian(np.ones((12, 12)), image))[0])
    assert (vertices(outline).min(0) > 3).all() and (vertices(outline).max(0) < 8).all()
