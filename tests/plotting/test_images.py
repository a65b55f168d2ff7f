"""Figures of images are checked by the arrays, contours, limits and names that lie on them."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from course_utils import plotting
from tests.plotting.drawn import SHAPE, SPACING, contours, legend_names, pictures, vertices


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def page(ax, point) -> np.ndarray:
    """Where a point in voxels lies on the page: rightwards, upwards."""
    return ax.transData.transform(point)


# --- slices -----------------------------------------------------------------------------------------------------------


def test_slices_are_the_volumes_with_first_axis_rightwards(volume):
    figure = plotting.slices(volume, at=(1, 2, 3))
    sagittal, coronal, axial = figure.axes
    np.testing.assert_array_equal(sagittal.images[0].get_array(), volume[1].T)
    np.testing.assert_array_equal(coronal.images[0].get_array(), volume[:, 2].T)
    np.testing.assert_array_equal(axial.images[0].get_array(), volume[:, :, 3].T)
    assert [ax.get_title() for ax in figure.axes] == ["sagittal, x = 1", "coronal, y = 2", "axial, z = 3"]
    assert coronal.get_xlabel() == "left → right, x (voxels)"
    assert sagittal.get_xlabel() == "posterior → anterior, y (voxels)"
    assert axial.get_ylabel() == "posterior → anterior, y (voxels)"
    for ax in figure.axes:
        assert ax.images[0].origin == "lower"
        assert (page(ax, (1, 1)) > page(ax, (0, 0))).all()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA", "PIR", "ASL"])
def test_every_orientation_shows_the_same_anatomy(orientation):
    """One bright voxel at the patient's right, front and top, however the array is stored."""
    order = [next(a for a, pair in enumerate(("RL", "AP", "SI")) if code in pair) for code in orientation]
    volume, at = np.zeros([SHAPE[a] for a in order]), []
    for axis, code in zip(order, orientation, strict=True):
        at.append(SHAPE[axis] - 2 if code in "RAS" else 1)
    volume[tuple(at)] = 1
    figure = plotting.slices(volume, at=at, orientation=orientation)
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["sagittal", "coronal", "axial"]
    for ax, letters in zip(figure.axes, ("PAIS", "LRIS", "LRPA"), strict=True):
        row, column = np.argwhere(ax.images[0].get_array() == 1)[0]
        centre = ax.transAxes.transform((0.5, 0.5))
        assert (page(ax, (column, row)) > centre).all(), "the voxel is at the upper right of each slice"
        assert "".join(text.get_text() for text in ax.texts) == letters  # left, right, bottom, top
        left, right, bottom, top = (text.get_position() for text in ax.texts)
        assert left[0] < right[0] and bottom[1] < top[1]


@pytest.mark.parametrize("dots", [72, 90, 100, 150])
@pytest.mark.parametrize("width", range(30, 40, 3))
def test_every_letter_is_whole_wherever_it_falls_among_the_pixels(dots, width):
    """An L without its foot would be an I, which means something else: it is as wide as it should be."""
    figure = plotting.panel({"black": np.zeros((width, 20)), "too": np.zeros((width, 20))}, orientation="RS")
    figure.dpi = dots
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[::-1, :, 0]
    for ax in figure.axes:
        (left,) = (text for text in ax.texts if text.get_text() == "L")
        box = left.get_window_extent()
        letter = picture[int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1] > 100
        assert letter.any(axis=0).sum() > 0.6 * box.width
        assert letter.any(axis=1).sum() > 0.6 * box.height


def test_a_two_dimensional_image_lies_like_a_slice_of_the_volume(volume):
    flat = plotting.slices(volume[:, 2]).axes[0]
    np.testing.assert_array_equal(flat.images[0].get_array(), volume[:, 2].T)
    assert (flat.get_xlabel(), flat.get_ylabel(), len(flat.texts)) == ("axis 0 (voxels)", "axis 1 (voxels)", 0)
    upright = plotting.slices(volume[:, 2], orientation="LI").axes[0]
    assert (page(upright, (0, 0)) > page(upright, (1, 1))).all(), "left and inferior axes run backwards"
    told = ("left → right, axis 0 (voxels)", "inferior → superior, axis 1 (voxels)")
    assert (upright.get_xlabel(), upright.get_ylabel()) == told  # a slice's second axis is no y


def test_tensors_with_batch_and_channel_axes_are_the_same_picture(volume):
    tensor = torch.tensor(volume, dtype=torch.bfloat16, requires_grad=True)[None, None]
    first = (
        plotting.slices(tensor, torch.ones(1, *SHAPE, dtype=torch.uint8), at=(3, 4, 5)).axes[1].images[0].get_array()
    )
    np.testing.assert_allclose(first, volume[:, 4].T, atol=0.02)


def test_aspect_is_that_of_the_spacing(volume):
    figure = plotting.slices(volume, spacing=SPACING)
    for ax, (horizontal, vertical) in zip(figure.axes, ((1, 2), (0, 2), (0, 1)), strict=True):
        assert ax.get_aspect() == SPACING[vertical] / SPACING[horizontal]
    figure.draw_without_rendering()
    for ax, (horizontal, vertical) in zip(figure.axes, ((1, 2), (0, 2), (0, 1)), strict=True):
        box = ax.get_window_extent()
        millimetres = [SHAPE[a] * SPACING[a] for a in (vertical, horizontal)]
        assert box.height / box.width == pytest.approx(millimetres[0] / millimetres[1], rel=1e-6)


def test_slices_show_all_three_planes_at_one_scale(volume):
    figure = plotting.slices(volume, spacing=SPACING)
    figure.draw_without_rendering()
    scales = [
        ax.get_window_extent().width / (SHAPE[a] * SPACING[a]) for ax, a in zip(figure.axes, (1, 0, 0), strict=True)
    ]
    assert scales == pytest.approx([scales[0]] * 3, rel=1e-6)


def test_the_slice_shown_unasked_has_most_of_every_structure():
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[1:6, 1:4, 1:9] = 1  # large: one structure alone would decide for y = 1
    label[2:4, 3:6, 2:4] = 2
    figure = plotting.slices(np.zeros(SHAPE), label)
    assert figure.axes[1].get_title() == "coronal, y = 3"
    assert "y = 3" in plotting.panel({"a": np.zeros(SHAPE)}, labels={"a": label}).get_suptitle()
    assert "y = 4" in plotting.panel({"a": np.zeros(SHAPE)}).get_suptitle()


# --- contours ---------------------------------------------------------------------------------------------------------


def test_contour_runs_along_the_edge_of_the_voxels():
    label = np.zeros((10, 8), dtype=np.uint8)
    label[3:7, 2:5] = 1
    (contour,) = contours(plotting.slices(np.zeros((10, 8)), label).axes[0])
    np.testing.assert_allclose(vertices(contour).min(0), [2.5, 1.5])
    np.testing.assert_allclose(vertices(contour).max(0), [6.5, 4.5])


def test_contour_of_a_structure_at_the_border_is_closed_and_changes_no_limits():
    label = np.zeros((6, 6), dtype=np.uint8)
    label[0:3, 4:6] = 1
    ax = plotting.slices(np.zeros((6, 6)), label).axes[0]
    (contour,) = contours(ax)
    corners = vertices(contour)
    np.testing.assert_allclose(corners.min(0), [-0.5, 3.5])
    np.testing.assert_allclose(corners.max(0), [2.5, 5.5])
    np.testing.assert_allclose(corners[0], corners[-1])
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 5.5), (-0.5, 5.5))


def test_legend_names_what_is_drawn_and_sides_share_a_colour():
    label = np.zeros((10, 10), dtype=np.uint8)
    for value, row in ((1, 1), (2, 7), (3, 4), (9, 9)):
        label[row, 1:4] = value
    names = {1: "left hippocampus", 2: "right hippocampus", 3: "brain stem", 4: "left amygdala"}
    figure = plotting.slices(np.zeros((10, 10)), label, names=names)
    assert legend_names(figure) == ["hippocampus (left, right)", "brain stem"]
    left, right, stem = contours(figure.axes[0])  # label 9 has no name and is not asked for
    colours = [tuple(contour.get_edgecolor()[0]) for contour in (left, right, stem)]
    assert colours[0] == colours[1] != colours[2]
    assert legend_names(plotting.slices(np.zeros((10, 10)), label)) == ["label 1", "label 2", "label 3", "label 9"]
    assert legend_names(plotting.slices(np.zeros((10, 10)), label, names={2: "right hippocampus"})) == [
        "right hippocampus"
    ]


def test_thirty_five_structures_look_different():
    label = np.arange(36, dtype=np.uint8).repeat(2).reshape(6, 12)
    drawn = contours(plotting.slices(np.zeros((6, 12)), label).axes[0])
    looks = {(tuple(c.get_edgecolor()[0]), str(c.get_linestyle())) for c in drawn}
    assert len(drawn) == 35 and len(looks) >= 21


def test_structures_keep_their_colours_whichever_slice_they_are_in():
    label = np.zeros((4, 5, 6), dtype=np.uint8)
    label[1:3, 1, 1:4], label[1:3, 3, 1:4] = 1, 2
    names = {1: "anterior", 2: "posterior"}
    first, second = (
        plotting.panel({"a": np.zeros((4, 5, 6))}, labels={"a": label}, names=names, at=at) for at in (1, 3)
    )
    assert legend_names(first) == ["anterior"] and legend_names(second) == ["posterior"]
    colour = [tuple(contours(figure.axes[0])[0].get_edgecolor()[0]) for figure in (first, second)]
    assert colour[0] != colour[1]


# --- panels -----------------------------------------------------------------------------------------------------------


def test_panel_shows_one_slice_of_each_image_by_its_name(volume):
    label = (volume > 0).astype(np.uint8)
    images = {"fixed": volume, "moving": 2 * volume, "moved": volume + 1}
    figure = plotting.panel(
        images, labels={"moved": label}, references={"moved": 1 - label}, axis=2, at=5, columns=2, names={1: "brain"}
    )
    assert [ax.get_title() for ax in figure.axes] == list(images)
    for picture, image in zip(pictures(figure), images.values(), strict=True):
        np.testing.assert_array_equal(picture.get_array(), image[:, :, 5].T)
        assert picture.get_clim() == (image.min(), image.max())
    assert [len(contours(ax)) for ax in figure.axes] == [0, 0, 2]
    solid, dashed = contours(figure.axes[2])
    assert dashed.linestyles != solid.linestyles and solid.linestyles == ["solid"]
    assert legend_names(figure) == ["brain", "dashed: reference"]
    assert figure.get_suptitle() == "axial, z = 5"


def test_panels_with_a_colour_bar_share_its_scale(volume):
    figure = plotting.panel({"a": volume, "b": 2 * volume}, colourbar="intensity")
    assert {picture.get_clim() for picture in pictures(figure)} == {(2 * volume.min(), 2 * volume.max())}
    assert figure.axes[-1].get_ylabel() == "intensity"
    fixed = plotting.panel({"a": volume, "b": 2 * volume}, limits=(-1, 1))
    assert {picture.get_clim() for picture in pictures(fixed)} == {(-1, 1)}


def test_checkerboard_takes_every_other_tile_from_the_second_image():
    first, second = np.zeros((8, 4)), np.ones((8, 4))
    figure = plotting.checkerboard({"pair": (first, second)}, tiles=4)
    gray, tinted = pictures(figure)
    together = np.where(gray.get_array().mask, tinted.get_array().data, gray.get_array().data)
    assert (gray.get_array().mask != tinted.get_array().mask).all(), "every voxel is of one image"
    tile = np.repeat([[0, 1], [1, 0]], 2, axis=0).repeat(2, axis=1)  # 2 x 2 voxels a tile
    np.testing.assert_array_equal(together.T, np.tile(tile, (2, 1)))


def test_checkerboard_tiles_are_square_in_millimetres():
    figure = plotting.checkerboard({"pair": (np.zeros((8, 4)), np.ones((8, 4)))}, tiles=4, spacing=(1.0, 2.0))
    is_second = ~pictures(figure)[1].get_array().mask.T
    assert (is_second[:, 0] == [0, 0, 1, 1, 0, 0, 1, 1]).all() and (is_second[0] == [0, 1, 0, 1]).all()


def test_difference_is_second_minus_first_on_one_scale(volume):
    figure = plotting.difference({"before": (volume, volume + 2), "after": (volume, volume - 0.5)})
    before, after = pictures(figure)
    np.testing.assert_allclose(before.get_array(), 2)
    np.testing.assert_allclose(after.get_array(), -0.5)
    assert before.get_clim() == after.get_clim() == pytest.approx((-2, 2))
    assert before.norm(0.0) == pytest.approx(0.5)
    blue, red = before.cmap(0.0), before.cmap(1.0)
    assert red[0] > blue[0] and red[2] < blue[2]


def test_difference_of_unsigned_images_goes_below_zero():
    figure = plotting.difference({"a": (np.full((4, 4), 3, np.uint8), np.zeros((4, 4), np.uint8))})
    assert (pictures(figure)[0].get_array() == -3).all()


def test_filled_structures_let_the_image_through():
    image, label = np.full((20, 30), 0.5), np.zeros((20, 30), np.uint8)
    label[5:10, 8:20] = 3
    drawn = {}
    for fill in (False, True):
        figure = plotting.panel({"scan": image}, labels={"scan": label}, names={3: "part"}, limits=(0, 1), fill=fill)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba()).astype(float)
        across, up = figure.axes[0].transData.transform((7, 14))  # within the structure
        drawn[fill] = pixels[int(pixels.shape[0] - up), int(across), :3]
    assert np.ptp(drawn[False]) == 0  # grey
    colour = np.array(to_rgb(plotting.figure.COLOURS[0])) * 255
    np.testing.assert_allclose(drawn[True], 0.6 * drawn[False] + 0.4 * colour, atol=2)
