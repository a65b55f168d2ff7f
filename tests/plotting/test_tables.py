"""Box plots are checked by their boxes, dots and names."""

import numpy as np
import pytest

from course_utils import plotting
from tests.plotting.drawn import evaluation_table, legend_names


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
