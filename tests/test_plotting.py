"""Figures are checked by what lies on them: arrays, vertices, limits, names."""

import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.contour import ContourSet

from course_utils import plotting

SHAPE = (7, 9, 11)
SPACING = (2.0, 1.0, 4.0)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def pictures(figure) -> list:
    """The images of a figure's panels, without those of colour bars."""
    return [image for ax in panels(figure) for image in ax.images]


def panels(figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def contours(ax) -> list[ContourSet]:
    return [child for child in ax.get_children() if isinstance(child, ContourSet)]


def vertices(contour: ContourSet) -> np.ndarray:
    return np.concatenate([path.vertices for path in contour.get_paths()])


def legend_names(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


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


def test_a_two_dimensional_image_lies_like_a_slice_of_the_volume(volume):
    flat = plotting.slices(volume[:, 2]).axes[0]
    np.testing.assert_array_equal(flat.images[0].get_array(), volume[:, 2].T)
    assert (flat.get_xlabel(), flat.get_ylabel(), len(flat.texts)) == ("axis 0 (voxels)", "axis 1 (voxels)", 0)
    upright = plotting.slices(volume[:, 2], orientation="LI").axes[0]
    assert (page(upright, (0, 0)) > page(upright, (1, 1))).all(), "left and inferior axes run backwards"


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


# --- curves and boxes -------------------------------------------------------------------------------------------------


def test_histograms_have_common_bins_and_sum_to_one():
    images = {"a": np.linspace(0, 1, 50), "b": np.linspace(-1, 3, 80).reshape(8, 10)}
    (ax,) = plotting.histograms(images, bins=16).axes
    first, second = (patch.get_data() for patch in ax.patches)
    np.testing.assert_array_equal(first.edges, np.linspace(-1, 3, 17))
    np.testing.assert_array_equal(first.edges, second.edges)
    assert first.values.sum() == pytest.approx(1) and second.values.sum() == pytest.approx(1)
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def history_table() -> pd.DataFrame:
    step = np.arange(1, 41)
    return pd.DataFrame(
        {
            "step": step,
            "loss": -0.3 - 0.01 * step,
            "similarity": -0.2 - 0.01 * step,
            "learning_rate": 1e-3 * 0.8**step,
            "regularisation": 0.5 + 0.01 * step,
            "seconds": 0.1 * step,
            "validation_dice": np.where(step % 10 == 0, step / 50, np.nan),
            "validation_similarity": np.where(step % 10 == 0, -0.4, np.nan),
        }
    )


def test_history_draws_each_term_in_its_panel():
    table = history_table()
    axes = {ax.get_title(): ax for ax in plotting.history(table).axes}
    assert list(axes) == ["loss", "similarity", "learning rate", "regularisation", "validation Dice"]
    (line,) = axes["loss"].lines
    np.testing.assert_allclose(line.get_xydata(), table[["step", "loss"]])
    (dice,) = axes["validation Dice"].lines
    np.testing.assert_allclose(dice.get_xydata(), [[10, 0.2], [20, 0.4], [30, 0.6], [40, 0.8]])
    assert [text.get_text() for text in axes["similarity"].get_legend().get_texts()] == ["training", "validation"]
    assert {title: ax.get_yscale() for title, ax in axes.items()} == {
        "loss": "linear",  # negative
        "similarity": "linear",
        "learning rate": "log",
        "regularisation": "linear",  # positive, but not by a factor of ten
        "validation Dice": "linear",
    }


def test_long_histories_keep_every_value_beside_the_running_mean():
    table = pd.DataFrame({"step": np.arange(200), "loss": np.tile([1.0, -1.0], 100)})
    values, mean = plotting.history(table).axes[0].lines
    np.testing.assert_array_equal(values.get_ydata(), table["loss"])
    assert np.abs(mean.get_ydata()[20:-20]).max() < 0.2


def evaluation_table(seed: int, pairs: int = 8, structures: tuple[str, ...] = ("anterior", "posterior")):
    rng = np.random.default_rng(seed)
    rows = []
    for pair in range(pairs):
        folding = rng.uniform()
        for structure in structures:
            before, after = rng.uniform(0.4, 0.6), rng.uniform(0.7, 0.9)
            distance = {"hd95_mm_before": 8 * before, "hd95_mm_after": 4 * after}
            dice = {"dice_before": before, "dice_after": after}
            rows.append({"pair": f"p{pair}", "structure": structure, "folding_percent": folding} | dice | distance)
    return pd.DataFrame(rows)


def boxes_of(ax) -> list[tuple[float, float, float]]:
    """(place, first quartile, third quartile) of each box, from left to right."""
    found = [patch.get_path().vertices for patch in ax.patches]
    return sorted((v[:4, 0].mean().round(6), v[:, 1].min(), v[:, 1].max()) for v in found)


def dots_of(ax) -> np.ndarray:
    return np.concatenate([collection.get_offsets() for collection in ax.collections])


def test_boxes_show_each_structure_before_and_after_with_every_pair():
    table, other = evaluation_table(0), evaluation_table(1)
    figure = plotting.boxes({"before": table, "NCC": table, "SSD": other}, "dice")
    (ax,) = figure.axes
    columns = [(table, "dice_before"), (table, "dice_after"), (other, "dice_after")]
    expected = [
        np.percentile(t.loc[t["structure"] == structure, column], (25, 75))
        for structure in ("anterior", "posterior")
        for t, column in columns
    ]
    np.testing.assert_allclose([box[1:] for box in boxes_of(ax)], expected)
    values = np.concatenate([t[column] for t, column in columns])
    np.testing.assert_allclose(np.sort(dots_of(ax)[:, 1]), np.sort(values))
    places = dots_of(ax)[np.isin(dots_of(ax)[:, 1], table.loc[table["structure"] == "anterior", "dice_before"]), 0]
    assert np.abs(places - boxes_of(ax)[0][0]).max() < 0.8 / 3 / 2, "dots stay at their own box"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["anterior", "posterior"]
    assert legend_names(figure) == ["before", "NCC", "SSD"]
    assert ax.get_ylabel() == "Dice"


def test_infinite_distances_are_drawn_at_the_edge_counted_and_left_out_of_the_box():
    table = evaluation_table(0)
    table.loc[[0, 2, 5], "hd95_mm_after"] = np.inf
    table.loc[4, "hd95_mm_after"] = np.nan
    figure = plotting.boxes({"before": table, "NCC": table}, "hd95_mm")
    (ax,) = figure.axes
    triangles = [line for line in ax.lines if line.get_marker() == "^"]
    assert sum(len(line.get_xdata()) for line in triangles) == 3
    for line in triangles:
        assert line.get_transform().transform((0, 1))[1] == pytest.approx(ax.transAxes.transform((0, 1))[1])
    assert figure.get_supxlabel() == "▲ infinite (structure lost): NCC 3. Boxes are of the finite values."
    anterior = table.loc[table["structure"] == "anterior", "hd95_mm_after"]
    finite = anterior[np.isfinite(anterior)]
    np.testing.assert_allclose(boxes_of(ax)[1][1:], np.percentile(finite, (25, 75)))
    assert ax.get_ylabel() == "HD95 (mm)"
    assert plotting.boxes({"before": table}, "hd95_mm").get_supxlabel() == ""


def test_a_measure_of_the_pair_is_drawn_once_a_pair():
    table = evaluation_table(0)
    (ax,) = plotting.boxes({"NCC": table}, "folding_percent").axes
    assert len(boxes_of(ax)) == 1 and len(dots_of(ax)) == 8
    assert ax.get_ylabel() == "folded voxels (%)"


def test_many_structures_take_several_rows_on_one_scale():
    structures = tuple(f"structure {number}" for number in range(30))
    figure = plotting.boxes({"a": evaluation_table(0, 3, structures)}, "dice")
    drawn = [tick.get_text() for ax in figure.axes for tick in ax.get_xticklabels()]
    assert drawn == list(structures)
    assert len({ax.get_ylim() for ax in figure.axes}) == 1 < len(figure.axes)


# --- display and bad input --------------------------------------------------------------------------------------------


def all_figures() -> dict[str, plotting.Figure]:
    image = np.random.default_rng(0).uniform(size=(12, 16, 12))
    label = (np.arange(12 * 16 * 12).reshape(12, 16, 12) // 200).astype(np.uint8)
    names = {value: f"a structure with a long name, number {value}" for value in range(1, 11)}
    u = np.random.default_rng(0).normal(size=(3, 12, 16, 12))
    table = evaluation_table(0, 4, tuple(names.values()))
    table.loc[0, "hd95_mm_after"] = np.inf
    pairs = {"before": (image, 1 - image), "after": (image, image + 0.1)}
    return {
        "slices": plotting.slices(image, label, names=names, title="subject"),
        "panel": plotting.panel(
            {str(n): image for n in range(6)}, labels={"1": label}, names=names, colourbar="intensity", title="panel"
        ),
        "checkerboard": plotting.checkerboard(pairs),
        "difference": plotting.difference(pairs),
        "deformed_grid": plotting.deformed_grid({"a": u, "b": 2 * u}, image, title="grid"),
        "arrows": plotting.arrows(u),
        "jacobian": plotting.jacobian({"a": 1 + u[0], "b": 1 + 0.1 * u[0]}, image),
        "grades": plotting.grades([0.1, 0.5, 1.0], {"warp by hand": 0.3, "scaling and squaring": 0.9}),
        "histograms": plotting.histograms({"a": image, "constant": np.zeros(4)}),
        "history": plotting.history(history_table(), title="run"),
        "boxes": plotting.boxes({"before": table, "NCC": table}, "hd95_mm", title="distances"),
    }


@pytest.fixture(scope="module")
def figures():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return all_figures()


NAMES = [
    name
    for name, value in vars(plotting).items()
    if not name.startswith("_")
    and getattr(value, "__module__", "") == plotting.__name__
    and not isinstance(value, type)
]


def test_every_public_function_is_tried_here(figures):
    assert sorted(figures) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_stays_on_the_page_and_headings_do_not_collide(figures, name):
    figure = figures[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that collapsed, of a missing glyph
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert box.x0 > -0.05 and box.y0 > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05
    assert width <= plotting.WIDTH + 0.1
    texts = [*figure.texts, *(ax.title for ax in figure.axes)]
    texts += [axis.label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)


def test_a_notebook_shows_a_figure_once_and_pyplot_knows_of_none(figures):
    data, _ = DisplayFormatter().format(figures["slices"])
    assert data["image/png"].startswith(b"\x89PNG") and set(data) == {"image/png", "text/plain"}
    assert plt.get_fignums() == []


IMAGE, LABEL, FIELD = np.zeros((4, 5, 6)), np.zeros((4, 5, 7), np.uint8), np.zeros((3, 4, 5, 6))
BAD = {
    "label of another shape": (lambda: plotting.slices(IMAGE, LABEL), r"\(4, 5, 6\).*\(4, 5, 7\)"),
    "two channels": (lambda: plotting.slices(np.zeros((2, 4, 5, 6))), r"\(2, 4, 5, 6\)"),
    "a batch": (lambda: plotting.panel({"a": np.zeros((2, 1, 4, 5, 6))}), r"a of shape \(2, 1, 4, 5, 6\)"),
    "a vector": (lambda: plotting.slices(np.zeros(4)), r"\(4,\)"),
    "images of two shapes": (lambda: plotting.panel({"a": IMAGE, "b": LABEL}), r"a \(4, 5, 6\), b \(4, 5, 7\)"),
    "a label of no image": (
        lambda: plotting.panel({"a": IMAGE}, labels={"b": IMAGE}),
        "b belong to none of the images a",
    ),
    "no images": (lambda: plotting.panel({}), "no images"),
    "a pair of two shapes": (lambda: plotting.difference({"a": (IMAGE, LABEL)}), r"\(4, 5, 7\)"),
    "one tile": (lambda: plotting.checkerboard({"a": (IMAGE, IMAGE)}, tiles=1), "at least 2 tiles"),
    "a field of two components in 3-D": (lambda: plotting.deformed_grid(FIELD[:2]), r"\(2, 4, 5, 6\)"),
    "an image as field": (lambda: plotting.arrows(IMAGE[None, None]), r"\(1, 1, 4, 5, 6\)"),
    "a field and an image": (lambda: plotting.arrows(FIELD, LABEL), r"\(4, 5, 6\).*\(4, 5, 7\)"),
    "step 0": (lambda: plotting.deformed_grid(FIELD, step=0), "step of 0"),
    "no displacements": (lambda: plotting.deformed_grid({}), "no displacements"),
    "limit 1": (lambda: plotting.jacobian(IMAGE, limit=1), "not above 1"),
    "determinant and image": (lambda: plotting.jacobian(IMAGE, LABEL), r"determinant \(4, 5, 6\), image \(4, 5, 7\)"),
    "slice outside": (lambda: plotting.panel({"a": IMAGE}, at=5), r"slice 5 .* axis 1 .*\(4, 5, 6\)"),
    "voxel outside": (lambda: plotting.slices(IMAGE, at=(0, 0, 6)), "slice 6 .* axis 2"),
    "voxel of two axes": (lambda: plotting.slices(IMAGE, at=(1, 1)), "at has 2 indices"),
    "no such axis": (lambda: plotting.panel({"a": IMAGE}, axis=3), "axis 3"),
    "a slice of a 2-D image": (lambda: plotting.panel({"a": IMAGE[0]}, at=1), "2-D"),
    "spacing of two axes": (lambda: plotting.slices(IMAGE, spacing=(1, 1)), r"spacing \(1, 1\)"),
    "spacing of 0": (lambda: plotting.slices(IMAGE, spacing=0), "spacing 0"),
    "orientation": (lambda: plotting.slices(IMAGE, orientation="RAL"), "'RAL'"),
    "empty image": (lambda: plotting.histograms({"a": np.full(3, np.nan)}), r"a of shape \(3,\)"),
    "no images at all": (lambda: plotting.histograms({}), "no images"),
    "history without step": (lambda: plotting.history(pd.DataFrame({"loss": [1.0]})), "'step'"),
    "history of nothing": (lambda: plotting.history(pd.DataFrame({"step": [1]})), "nothing to draw"),
    "no tables": (lambda: plotting.boxes({}, "dice"), "no tables"),
    "no such column": (
        lambda: plotting.boxes({"NCC": evaluation_table(0)}, "tre_mm"),
        "NCC has no column tre_mm_after",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_drawn_is_named(case):
    draw, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        draw()
