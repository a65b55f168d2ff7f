"""What holds for every figure: it stays on the page, is shown once, and says what it cannot draw."""

import inspect
import itertools
import warnings

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from course_utils import plotting
from course_utils.plotting import curves, deformations, images, tables
from course_utils.plotting.alt_text import alt_text
from course_utils.plotting.figure import WIDTH
from tests.plotting.drawn import evaluation_table, history_table


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
        "registration": plotting.registration(image, 1 - image, image + 0.1, u, label=label, title="pair"),
        "arrows": plotting.arrows(u),
        "jacobian": plotting.jacobian({"a": 1 + u[0], "b": 1 + 0.1 * u[0]}, image),
        "folds": plotting.folds({"a": u[0, 1:, 1:, 1:], "b": u[1, 1:, 1:, 1:]}, image, title="folds"),
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


MODULES = (curves, deformations, images, tables)
NAMES = [
    name
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
]


def test_the_package_names_every_figure():
    assert sorted(plotting.__all__) == sorted([*NAMES, "Figure", "Slider"])


def test_every_public_function_is_tried_here(figures):
    assert sorted(figures) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_stays_on_the_page_and_headings_do_not_collide(figures, name):
    figure = figures[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that collapsed, of a missing glyph
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib|pyparsing")  # not ours
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert box.x0 > -0.05 and box.y0 > -0.05 and box.x1 < width + 0.05 and box.y1 < height + 0.05
    assert width <= WIDTH + 0.1
    texts = [*figure.texts, *(ax.title for ax in figure.axes)]
    texts += [axis.label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)


def test_a_notebook_shows_a_figure_once_and_pyplot_knows_of_none(figures):
    formatter = DisplayFormatter()
    # As IPython does for all figures once pyplot was imported.
    formatter.formatters["image/png"].for_type(matplotlib.figure.Figure, lambda figure: b"\x89PNG of another")
    data, metadata = formatter.format(figures["slices"])
    assert data["image/png"].startswith(b"\x89PNG") and set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["alt"].startswith("subject. 3 panels: sagittal, x = 11; coronal, y = 8; axial, z = 8.")
    assert plt.get_fignums() == []


def test_words_stand_in_for_a_figure(figures):
    said = {name: alt_text(figure) for name, figure in figures.items()}
    assert said["registration"] == (
        "pair – coronal, y = 8. 6 panels: moving; fixed; moved; moving − fixed; moved − fixed; moved, and the grid. "
        "Colours show intensity difference."
    )
    assert said["boxes"] == "distances: HD95 (mm). Legend: before; NCC."
    assert said["histograms"] == "share of voxels against intensity (a; constant)."
    assert "similarity (training; validation)" in said["history"] and "\n" not in "".join(said.values())
    figure = plotting.Figure()
    left, _ = figure.subplots(1, 2)
    left.plot([1], [1], label="Adam")
    left.set(xlabel="step", ylabel="loss $\\ell$")
    left.legend()
    assert alt_text(figure) == "2 panels: loss \\ell against step (Adam)."
    assert alt_text(plotting.Figure()) == "A figure without any words."


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
    "moved of another shape": (
        lambda: plotting.registration(IMAGE, IMAGE, LABEL, FIELD),
        r"fixed \(4, 5, 6\), moved \(4, 5, 7\)",
    ),
    "a registration without a field": (lambda: plotting.registration(IMAGE, IMAGE, IMAGE, IMAGE), r"\(4, 5, 6\)"),
    "a grid of step 0": (lambda: plotting.registration(IMAGE, IMAGE, IMAGE, FIELD, step=0), "step of 0"),
    "step 0": (lambda: plotting.deformed_grid(FIELD, step=0), "step of 0"),
    "no displacements": (lambda: plotting.deformed_grid({}), "no displacements"),
    "folds of another image": (lambda: plotting.folds(IMAGE, LABEL), r"\(4, 5, 6\) is neither .* \(4, 5, 7\)"),
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
