"""Every figure of the course: functions that take arrays or tensors and return a matplotlib figure.

Nothing here computes a measure, shows or saves anything, and pyplot knows of none of these figures: the last expression
of a cell is displayed once, whatever the backend.

What all of them share:

- Images, labels and determinants are ``(*spatial)`` with any leading batch and channel axes of size 1; displacements
  are ``(N, *spatial)`` or ``(1, N, *spatial)`` in voxels. 2-D and 3-D. A shape that does not fit raises ValueError.
- ``axis`` is the array axis that a slice is perpendicular to and ``at`` its index; ``axis=1`` is the coronal plane of a
  RAS volume, ``at=None`` the middle. 2-D images have no use for either.
- ``spacing`` is mm between voxels along each array axis, or one number for all; it sets the aspect.
- ``orientation`` says where the array axes lead, as nibabel's axis codes do: "RAS" (the default in 3-D) for a first
  axis that runs to the right of the patient, a second to the front and a third to the top. Right is drawn on the right,
  front on the right or top, and top on top. In 2-D, where there is no default, the first axis is drawn rightwards and
  the second upwards, so that a slice of a RAS volume lies as in the volume's own figure.
- The data coordinates of the axes are voxels, whatever the spacing.
- Colours of labels, methods and curves are those of Okabe and Ito (2002), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

Array = np.ndarray | torch.Tensor
PerAxis = float | Sequence[float]

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
"""Okabe and Ito's palette without black."""
ON_WHITE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The same for curves and boxes: dark ones first, without yellow."""
STYLES = ("solid", (0, (4, 1.5)), (0, (1, 1)))
"""Line styles, one a round through the palette."""
GREY = "#777777"
TINTED = LinearSegmentedColormap.from_list("tinted", ["black", "#FFD9A0"])
"""Grey values of a second image."""
FOLDED = "#F0E442"
"""Not in the diverging map, so that a folded voxel cannot be taken for a strong compression."""

WIDTH = 9.5
"""Widest figure in inches: at 100 dots an inch it fits a notebook's column without being shrunk."""
STRUCTURES_IN_A_ROW = 12
"""Of box plots."""
LARGEST_PANEL = 3.4  # inches

_PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
_ENDS = {"R": "LR", "L": "LR", "A": "PA", "P": "PA", "S": "IS", "I": "IS"}
_WORDS = {"LR": "left → right", "PA": "posterior → anterior", "IS": "inferior → superior"}


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows as a cell's result, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi, bbox_inches="tight")
        return buffer.getvalue()


# --- figures ----------------------------------------------------------------------------------------------------------


def slices(
    image: Array,
    label: Array | None = None,
    *,
    names: Mapping[int, str] | None = None,
    at: Sequence[int] | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    title: str | None = None,
) -> Figure:
    """The sagittal, coronal and axial slice of a volume, or a 2-D image, with the contours of its label.

    Args:
        image: ``(*spatial)``.
        label: integers ``(*spatial)``, 0 is background.
        names: value to name for the legend; only these structures are drawn. None draws all, by number.
        at: voxel that the slices go through, one index an array axis. None takes along each axis the slice that
            shows most of every structure of the label, or the middle.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; ``at`` or ``spacing`` does not fit.
    """
    image, label = _same_shape({"image": image, "label": label})
    count = image.ndim
    if at is None:
        at = [_richest(label, axis) for axis in range(count)] if label is not None else [n // 2 for n in image.shape]
    elif len(at) != count:
        raise ValueError(f"at has {len(at)} indices and the image of {image.shape} has {count} axes")
    planes = range(3) if count == 3 else (None,)
    views = [_View(image.shape, axis, None if axis is None else at[axis], spacing, orientation) for axis in planes]
    if count == 3:  # sagittal, coronal, axial, wherever the array keeps them
        views.sort(key=lambda view: list(_PLANES).index(view.code))
    figure, axes = _row_of_views(views)
    painter = _Contours(names, [label])
    for ax, view in zip(axes, views, strict=True):
        view.show(ax, image, cmap="gray", limits=_limits([image]))
        view.describe(ax, title=view.name)
        if label is not None:
            painter.draw(ax, view, label)
    painter.legend(figure)
    if title:
        figure.set_figheight(figure.get_figheight() + 0.25)
        figure.suptitle(title, fontsize="medium")
    return figure


def panel(
    images: Mapping[str, Array],
    *,
    labels: Mapping[str, Array] | None = None,
    references: Mapping[str, Array] | None = None,
    names: Mapping[int, str] | None = None,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
    colourbar: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """The same slice of several images side by side.

    Args:
        images: title to ``(*spatial)``, all of one shape.
        labels: title to label ``(*spatial)``, for those images that get contours.
        references: likewise, drawn dashed: the fixed label over the moved one shows what is left to do.
        names: value to name of the structures to draw; None draws all, by number.
        at: None takes the slice that shows most of every structure of the first label, or the middle.
        limits: intensities drawn as the map's two ends. None takes each image's own extremes, or those of all images
            together where there is a colour bar.
        colourbar: its title; None draws no bar.
        columns: images in a row.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; a label belongs to no image; ``at`` or ``spacing`` does
            not fit.
    """
    labels, references = dict(labels or {}), dict(references or {})
    if unknown := [key for key in (*labels, *references) if key not in images]:
        raise ValueError(f"labels of {', '.join(unknown)} belong to none of the images {', '.join(images)}")
    names_of = [*images, *(f"label of {key}" for key in labels), *(f"reference of {key}" for key in references)]
    values = _same_shape(dict(zip(names_of, (*images.values(), *labels.values(), *references.values()), strict=True)))
    arrays = dict(zip(images, values[: len(images)], strict=True))
    solid = dict(zip(labels, values[len(images) : len(images) + len(labels)], strict=True))
    dashed = dict(zip(references, values[len(images) + len(labels) :], strict=True))
    drawn = [*solid.values(), *dashed.values()]
    view = _view(arrays, axis, at, spacing, orientation, label=drawn[0] if drawn else None)
    figure, axes = _panels(arrays, view, columns, title)
    if colourbar and limits is None:
        limits = _limits(arrays.values())
    painter = _Contours(names, drawn)
    for ax, (key, image) in zip(axes, arrays.items(), strict=True):
        picture = view.show(ax, image, cmap=cmap, limits=limits or _limits([image]))
        if key in solid:
            painter.draw(ax, view, solid[key])
        if key in dashed:
            painter.draw(ax, view, dashed[key], dashed=True)
    painter.legend(figure)
    if colourbar:
        _colourbar(figure, axes, picture, colourbar)
    return figure


def checkerboard(
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    tiles: int = 8,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Square tiles taken in turn from two images, the second tinted: edges that run on across tiles are aligned.

    Args:
        pairs: title to (first, second), say ``{"before": (fixed, moving), "after": (fixed, moved)}``; the tile at the
            origin is of the first.
        tiles: number of tiles along the longer side.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; ``tiles`` is below 2.
    """
    if tiles < 2:
        raise ValueError(f"a checkerboard needs at least 2 tiles along a side, not {tiles}")
    arrays = _pairs(pairs)
    view = _view({key: first for key, (first, _) in arrays.items()}, axis, at, spacing, orientation)
    figure, axes = _panels(arrays, view, columns, title)
    edge = max(view.extent) / tiles
    row, column = (
        (np.arange(n) * step // edge).astype(int)
        for n, step in zip(view.shape, (view.spacing[view.vertical], view.spacing[view.horizontal]), strict=True)
    )
    of_second = (row[:, None] + column) % 2 == 1
    for ax, (first, second) in zip(axes, arrays.values(), strict=True):
        for image, hidden, cmap in ((first, of_second, "gray"), (second, ~of_second, TINTED)):
            tiles_of = np.ma.masked_array(view.cut(image), hidden)
            view.show_cut(ax, tiles_of, cmap=cmap, limits=_limits([first, second]))
    return figure


def difference(
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    limit: float | None = None,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Signed differences, second image minus first, all on one diverging scale that is white at 0.

    Args:
        pairs: title to (first, second), say ``{"before": (fixed, moving), "after": (fixed, moved)}``.
        limit: difference drawn as the ends of the scale; None takes the largest one in the slices drawn.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D.
    """
    arrays = {key: second.astype(float) - first for key, (first, second) in _pairs(pairs).items()}
    view = _view(arrays, axis, at, spacing, orientation)
    figure, axes = _panels(arrays, view, columns, title, light=True)
    limit = limit or max(float(np.nanmax(np.abs(view.cut(array)))) for array in arrays.values()) or 1.0
    for ax, array in zip(axes, arrays.values(), strict=True):
        picture = view.show(ax, array, cmap="RdBu_r", limits=(-limit, limit))
    _colourbar(figure, axes, picture, "intensity difference")
    return figure


def deformed_grid(
    displacement: Array | Mapping[str, Array],
    image: Array | None = None,
    *,
    step: int = 4,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Where the lines of the fixed grid come to lie in the moving image: the curves ``x + u(x)`` of a slice.

    The components in the slice's plane are drawn; a displacement out of the plane is not. Where lines cross over, the
    field folds.

    Args:
        displacement: ``(N, *spatial)`` in voxels, or title to such for several panels.
        image: the moving image ``(*spatial)``, drawn under the grid.
        step: voxels between lines; along a line every voxel is a vertex.

    Raises:
        ValueError: shapes differ or are no displacement's; ``step`` is below 1.
    """
    fields, image, view = _fields(displacement, image, step, axis, at, spacing, orientation)
    figure, axes = _panels(fields, view, columns, title, light=image is None)
    rows, columns_ = np.mgrid[: view.shape[0], : view.shape[1]].astype(float)
    vertices = [  # of each field (rows, columns, 2): x and y on the page
        np.stack([columns_ + view.cut(field[view.horizontal]), rows + view.cut(field[view.vertical])], axis=-1)
        for field in fields.values()
    ]
    for ax, points in zip(axes, vertices, strict=True):
        if image is not None:
            view.show(ax, image, cmap="gray", limits=_limits([image]))
        lines = [*points[_every(step, view.shape[0])], *points.swapaxes(0, 1)[_every(step, view.shape[1])]]
        colour = COLOURS[0] if image is not None else "#333333"
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.8), autolim=False)
        view.frame(ax, np.stack(vertices))
    return figure


def arrows(
    displacement: Array | Mapping[str, Array],
    image: Array | None = None,
    *,
    step: int = 4,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Arrows from x to ``x + u(x)``, true to scale: the components of the displacement in a slice's plane.

    Args:
        displacement: ``(N, *spatial)`` in voxels, or title to such for several panels.
        image: the fixed image ``(*spatial)``, drawn under the arrows.
        step: voxels between arrows.

    Raises:
        ValueError: shapes differ or are no displacement's; ``step`` is below 1.
    """
    fields, image, view = _fields(displacement, image, step, axis, at, spacing, orientation)
    figure, axes = _panels(fields, view, columns, title, light=image is None)
    rows, columns_ = np.mgrid[step // 2 : view.shape[0] : step, step // 2 : view.shape[1] : step]
    for ax, field in zip(axes, fields.values(), strict=True):
        if image is not None:
            view.show(ax, image, cmap="gray", limits=_limits([image]))
        u, v = (view.cut(field[component])[rows, columns_] for component in (view.horizontal, view.vertical))
        ax.quiver(
            columns_,
            rows,
            u,
            v,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.007,
            color=COLOURS[0],
            edgecolor="black",
            linewidth=0.4,
        )
        view.frame(ax)
    return figure


def jacobian(
    determinant: Array | Mapping[str, Array],
    image: Array | None = None,
    *,
    limit: float | None = None,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Map of the Jacobian determinant: white at 1, blue where volume shrinks, red where it grows, folds marked.

    The scale is logarithmic: half the volume is as blue as twice the volume is red.

    Args:
        determinant: ``(*spatial)``, or title to such for several panels on one scale.
        image: ``(*spatial)``, drawn as outlines for orientation.
        limit: the scale runs from ``1 / limit`` to ``limit``; None takes what the slices drawn need, at most 4. Voxels
            at or below 0 have a colour of their own.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; ``limit`` is not above 1.
    """
    if limit is not None and limit <= 1:
        raise ValueError(f"the scale runs from 1 / limit to limit: {limit} is not above 1")
    maps = determinant if isinstance(determinant, Mapping) else {"": determinant}
    named = {f"determinant {key}".strip(): value for key, value in maps.items()}
    *values, image = _same_shape({**named, "image": image})
    arrays = dict(zip(maps, values, strict=True))
    view = _view(arrays, axis, at, spacing, orientation)
    figure, axes = _panels(arrays, view, columns, title, light=True)
    cuts = [view.cut(array).astype(float) for array in arrays.values()]
    positive = np.concatenate([cut[cut > 0] for cut in cuts] + [[0.99]])
    limit = limit or min(4.0, max(positive.max(), 1 / positive.min()))
    for ax, cut in zip(axes, cuts, strict=True):
        shown = np.ma.masked_array(cut, cut <= 0)
        picture = view.show_cut(ax, shown, cmap="RdBu_r", norm=LogNorm(1 / limit, limit))
        view.show_cut(ax, np.ma.masked_array(cut, ~(cut <= 0)), cmap=ListedColormap([FOLDED]))
        if image is not None:
            ax.contour(view.cut(image), levels=[np.nanmean(image)], colors="#333333", linewidths=0.6)
    beyond = (positive.min() < 1 / limit, positive.max() > limit)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[beyond]
    bar = _colourbar(figure, axes, picture, "Jacobian determinant", extend=extend)
    ticks = limit ** np.array([-1, -0.5, 0, 0.5, 1])
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.set_ticks([], minor=True)
    if any((cut <= 0).any() for cut in cuts):
        _legend(figure, [Patch(facecolor=FOLDED, edgecolor=GREY, label="folded (determinant ≤ 0)")])
    return figure


def histograms(images: Mapping[str, Array], *, bins: int = 64, title: str | None = None) -> Figure:
    """Intensity distributions of several images over common bins.

    The shares are on a logarithmic scale: the background would dwarf everything else.

    Args:
        images: name to array of any shape; shapes may differ.

    Raises:
        ValueError: there are no images, or one has no finite voxel.
    """
    if not images:
        raise ValueError("there are no images to draw")
    values = {}
    for name, image in images.items():
        array = _array(image)
        values[name] = array[np.isfinite(array)]
        if not values[name].size:
            raise ValueError(f"{name} of shape {array.shape} has no finite voxel")
    low, high = _limits(values.values())
    high = high if high > low else low + 1
    edges = np.linspace(low, high, bins + 1)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    ax = figure.subplots()
    for (name, array), (colour, style) in zip(values.items(), _looks(len(values), ON_WHITE), strict=True):
        share = np.histogram(array, edges)[0] / array.size
        ax.stairs(share, edges, label=name, color=colour, linestyle=style, linewidth=1.6)
    ax.set(xlabel="intensity", ylabel="share of voxels", yscale="log", xlim=(low, high), title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def history(table: pd.DataFrame, *, columns: int = 3, title: str | None = None) -> Figure:
    """Training curves against the step: one small panel for each column of the table.

    Every numeric column but ``step`` and ``seconds`` is drawn, rows without a value left out; ``validation_x`` is drawn
    in the panel of ``x`` where there is one. What stays positive and spans a factor of ten or more is on a logarithmic
    scale. Where there are many points, a line of running means lies over the pale single values.

    Raises:
        ValueError: the table has no ``step`` column, or nothing to draw.
    """
    if "step" not in table:
        raise ValueError(f"the history has no column 'step', only {', '.join(map(str, table.columns))}")
    drawn = [c for c in table.select_dtypes("number") if c not in ("step", "seconds") and table[c].notna().any()]
    if not drawn:
        raise ValueError(f"the history has nothing to draw in its columns {', '.join(map(str, table.columns))}")
    panels: dict[str, list[str]] = {}
    for name in drawn:
        trained = name.removeprefix("validation_")
        panels.setdefault(trained if trained in drawn else name, []).append(name)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.2 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for ax, (name, curves) in zip(axes, panels.items(), strict=False):
        for curve, colour in zip(curves, ON_WHITE, strict=False):
            _curve(ax, table[["step", curve]].dropna(), curve, colour)
        _dress(ax, table[curves], _describe(name))
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize="small")
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax in axes[max(0, len(panels) - columns) : len(panels)]:
        ax.set_xlabel("step")
        ax.tick_params(labelbottom=True)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def grades(shares: Sequence[float], solved: Mapping[str, float], *, hardest: int = 12) -> Figure:
    """How a class did: a histogram of the students' shares of all points, and the exercises that fewest solved.

    Args:
        shares: of the points, one number from 0 to 1 a submission.
        solved: exercise to the share of submissions that solved it, 0 to 1.
        hardest: how many exercises are drawn at most.

    Raises:
        ValueError: there are no submissions.
    """
    if not len(shares):
        raise ValueError("there are no submissions to draw")
    order = sorted(solved, key=lambda name: solved[name])[:hardest]
    figure = Figure(figsize=(WIDTH, max(3.2, 0.6 + 0.3 * len(order))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.hist(100 * np.asarray(shares), bins=np.arange(0, 101, 10), color=ON_WHITE[0], edgecolor="white")
    left.set(xlabel="% of the points", ylabel="submissions", xlim=(0, 100), xticks=range(0, 101, 20))
    left.set_title(f"{len(shares)} submissions, median {100 * np.median(shares):.0f} %", fontsize="medium")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    bars = right.barh(order, [100 * solved[name] for name in order], color=ON_WHITE[1])
    right.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
    right.set(xlabel="% of submissions that solved it", xlim=(0, 100), xticks=range(0, 101, 20))
    right.set_title("hardest exercises", fontsize="medium")
    right.set_ylim(max(len(order), 5) - 0.5, -0.5)  # the hardest on top; a few bars do not grow fat
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def boxes(
    tables: Mapping[str, pd.DataFrame], column: str, *, label: str | None = None, title: str | None = None
) -> Figure:
    """Box plots of a measure for several methods, structure by structure, with every pair as a dot.

    Boxes go from the first to the third quartile with a line at the median, whiskers to the furthest value within 1.5
    box lengths. An infinite distance (a structure that only one image has) is a triangle at the upper edge, counted in
    a note; boxes are of the finite values.

    Args:
        tables: method to a table as `course_utils.evaluation.evaluate` gives it. ``{"before": table, "VoxelMorph":
            table}`` draws the same table's two sides.
        column: a column of all tables ("dice_after"), or a measure ("dice"), of which the method called "before" shows
            ``dice_before`` and all others ``dice_after``. A measure taken once a pair, such as ``folding_percent``,
            gives one box a method.
        label: of the value axis; None makes one from the column's name.

    Raises:
        ValueError: there are no tables, or one lacks the column.
    """
    if not tables:
        raise ValueError("there are no tables to draw")
    values = {method: _measure(method, table, column) for method, table in tables.items()}
    structures = list(dict.fromkeys(name for v in values.values() for name in v["structure"]))
    by_structure = len(structures) == 1 or any(
        (v.groupby("pair")["value"].nunique(dropna=False) > 1).any() for v in values.values() if len(v)
    )
    if not by_structure:
        values = {m: v.drop_duplicates("pair").assign(structure="all pairs") for m, v in values.items()}
        structures = ["all pairs"]
    in_a_row = min(len(structures), STRUCTURES_IN_A_ROW)
    rows = [structures[first : first + in_a_row] for first in range(0, len(structures), in_a_row)]
    width = min(WIDTH, max(4.5, 1.2 + 0.35 * in_a_row * (len(values) + 1)))
    figure = Figure(figsize=(width, 0.6 + 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), squeeze=False, sharey=True).ravel()
    colours = _method_colours(values)
    lost = {}
    for method, offset in zip(values, _offsets(len(values)), strict=True):
        jitter = np.random.default_rng(0)
        lost[method] = sum(
            _boxes_of(ax, values[method], row, offset, 0.8 / len(values), colours[method], jitter)
            for ax, row in zip(axes, rows, strict=True)
        )
    for ax, row in zip(axes, rows, strict=True):
        ax.set_xticks(range(len(row)), row)
        if len(row) > 1 and sum(map(len, row)) > 11 * width:
            ax.tick_params(axis="x", rotation=30)
            for text in ax.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        for boundary in np.arange(len(row) - 1) + 0.5:
            ax.axvline(boundary, color="#dddddd", linewidth=0.8, zorder=0)
        ax.set(xlim=(-0.5, in_a_row - 0.5), ylabel=label or _describe(column))
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        axes[0].set_title(title, fontsize="medium")
    handles = [Patch(facecolor=f"{colours[m]}66", edgecolor=colours[m], label=m) for m in values]
    _legend(figure, handles, "upper")
    if any(lost.values()):
        counts = ", ".join(f"{method} {count}" for method, count in lost.items() if count)
        figure.supxlabel(f"▲ infinite (structure lost): {counts}. Boxes are of the finite values.", fontsize="small")
    return figure


# --- slices on the page -----------------------------------------------------------------------------------------------


class _View:
    """A slice of volumes of one shape and how it lies on the page: rows are drawn upwards, columns rightwards."""

    def __init__(
        self,
        shape: tuple[int, ...],
        axis: int | None,
        at: int | None,
        spacing: PerAxis | None,
        orientation: str | None,
    ):
        dims = len(shape)
        self.spacing = np.broadcast_to(1.0 if spacing is None else spacing, dims) if np.ndim(spacing) == 0 else spacing
        if len(self.spacing) != dims or min(self.spacing) <= 0:
            raise ValueError(f"spacing {spacing} is not one positive number an axis of a volume of {shape}")
        codes = (orientation or "RAS").upper() if dims == 3 else (orientation or "").upper()
        ends = [_ENDS.get(code) for code in codes]
        if codes and (len(codes) != dims or None in ends or len(set(ends)) != dims):
            raise ValueError(f"orientation {orientation!r} is not one axis code, such as RAS, an axis of {shape}")
        if axis is not None and at not in range(shape[axis]):
            raise ValueError(f"slice {at} lies outside axis {axis} of a volume of {shape}")
        self.axis, self.index, self.codes = axis, at, codes
        self.code = codes[axis] if axis is not None else ""
        plane = [a for a in range(dims) if a != axis]
        if codes:  # left-right goes before posterior-anterior before inferior-superior
            plane.sort(key=lambda a: list(_WORDS).index(_ENDS[codes[a]]))
        self.horizontal, self.vertical = plane
        self.shape = (shape[self.vertical], shape[self.horizontal])
        self.extent = tuple(shape[a] * self.spacing[a] for a in (self.vertical, self.horizontal))  # mm
        self.name = f"{_PLANES[self.code]}, {'xyz'[axis]} = {at}" if self.code else ""

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice ``(rows, columns)`` = (vertical, horizontal)."""
        if self.axis is not None:
            volume = np.take(volume, self.index, self.axis)
        return volume if self.vertical < self.horizontal else volume.T

    def show(self, ax: Axes, volume: np.ndarray, **options: Any):
        return self.show_cut(ax, self.cut(volume), **options)

    def show_cut(
        self,
        ax: Axes,
        cut: np.ndarray,
        *,
        cmap: Any,
        limits: tuple[float, float] | None = None,
        norm: Any = None,
    ):
        low, high = limits or (None, None)
        picture = ax.imshow(cut, origin="lower", cmap=cmap, vmin=low, vmax=high, norm=norm, interpolation="nearest")
        self.frame(ax)
        return picture

    def frame(self, ax: Axes, points: np.ndarray | None = None) -> None:
        """Aspect and limits: the slice, or all of ``points`` (..., 2) where they reach beyond it."""
        ax.set_aspect(self.spacing[self.vertical] / self.spacing[self.horizontal])
        rows, columns = self.shape
        limits = np.array([[-0.5, -0.5], [columns - 0.5, rows - 0.5]])
        if points is not None:
            finite = points[np.isfinite(points).all(-1)]
            limits = np.array([np.minimum(limits[0], finite.min(0) - 0.5), np.maximum(limits[1], finite.max(0) + 0.5)])
        for axis, (low, high), set_limits in zip(
            (self.horizontal, self.vertical), limits.T, (ax.set_xlim, ax.set_ylim), strict=True
        ):
            backwards = bool(self.codes) and self.codes[axis] in "LPI"
            set_limits((high, low) if backwards else (low, high))

    def describe(self, ax: Axes, *, title: str, x: bool = True, y: bool = True, light: bool = False) -> None:
        ax.set_title(title, fontsize="medium")
        for axis, wanted, side in ((self.horizontal, x, ax.xaxis), (self.vertical, y, ax.yaxis)):
            side.set_major_locator(MaxNLocator(4, integer=True))
            if wanted:
                direction = f"{_WORDS[_ENDS[self.codes[axis]]]}, {'xyz'[axis]}" if self.codes else f"axis {axis}"
                side.set_label_text(f"{direction} (voxels)", fontsize="small")
            else:
                side.set_tick_params(labelleft=False, labelbottom=False)
        ax.tick_params(labelsize="small")
        if self.codes:
            self._letters(ax, *(("black", "white") if light else ("white", "black")))

    def _letters(self, ax: Axes, colour: str, halo: str) -> None:
        (left, right), (bottom, top) = (_ENDS[self.codes[a]] for a in (self.horizontal, self.vertical))
        outline = [withStroke(linewidth=2, foreground=halo)]
        style = {"transform": ax.transAxes, "color": colour, "fontsize": "small", "path_effects": outline}
        ax.text(0.02, 0.5, left, ha="left", va="center", **style)
        ax.text(0.98, 0.5, right, ha="right", va="center", **style)
        ax.text(0.5, 0.02, bottom, ha="center", va="bottom", **style)
        ax.text(0.5, 0.98, top, ha="center", va="top", **style)


def _view(
    arrays: Mapping[str, np.ndarray],
    axis: int,
    at: int | None,
    spacing: PerAxis | None,
    orientation: str | None,
    label: np.ndarray | None = None,
) -> _View:
    """The slice that a figure of several panels shows."""
    shape = next(iter(arrays.values())).shape
    if len(shape) == 2:
        if at is not None:
            raise ValueError(f"a 2-D image of {shape} has no slice {at} to choose")
        return _View(shape, None, None, spacing, orientation)
    if axis not in range(3):
        raise ValueError(f"axis {axis} is none of the axes 0, 1, 2 of a volume of {shape}")
    if at is None:
        at = shape[axis] // 2 if label is None else _richest(label, axis)
    return _View(shape, axis, at, spacing, orientation)


def _richest(label: np.ndarray, axis: int) -> int:
    """The slice that shows most of every structure: areas, each as a share of its structure's largest, add up.

    Roots of areas, so that a little of two structures is worth more than much of one.
    """
    others = tuple(a for a in range(label.ndim) if a != axis)
    areas = [(label == value).sum(others) for value in np.unique(label) if value]
    return int(np.argmax(sum(np.sqrt(area / area.max()) for area in areas))) if areas else label.shape[axis] // 2


def _row_of_views(views: Sequence[_View]) -> tuple[Figure, Sequence[Axes]]:
    """One row of slices at one scale: heights leave room, so that the widths, which share one ratio, decide."""
    widths, tallest = [view.extent[1] for view in views], max(view.extent[0] for view in views)
    least, around = 0.4 * len(views), 0.6 * len(views)  # inches for what stands beside the slices
    width = min(WIDTH, around + 1.2 * LARGEST_PANEL / tallest * sum(widths))
    height = (width - least) / sum(widths) * tallest + 0.9
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, len(views), squeeze=False, width_ratios=widths)[0]
    return figure, axes


def _panels(
    titles: Iterable[str], view: _View, columns: int | None, title: str | None, light: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """One panel a title, all of the same slice, described at the outer edges; ``light`` is what will be drawn."""
    titles = list(titles)
    columns = min(columns or 4, len(titles))
    rows = -(-len(titles) // columns)
    height, width = view.extent
    scale = min(LARGEST_PANEL / max(height, width), ((WIDTH - 1.5) / columns - 0.1) / width)
    heading = " – ".join(filter(None, (title, view.name)))
    size = (columns * (width * scale + 0.1) + 0.6, rows * (height * scale + 0.3) + 0.5 + 0.3 * bool(heading))
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (ax, text) in enumerate(zip(axes, titles, strict=False)):
        view.describe(ax, title=text, x=number + columns >= len(titles), y=number % columns == 0, light=light)
        view.frame(ax)
    for ax in axes[len(titles) :]:
        ax.remove()
    if heading:
        figure.suptitle(heading, fontsize="medium")
    return figure, axes[: len(titles)]


def _colourbar(figure: Figure, axes: Sequence[Axes], picture: ScalarMappable, label: str, **options: Any) -> Colorbar:
    """A bar for all panels, in room that is added to the figure."""
    figure.set_figwidth(figure.get_figwidth() + 0.9)
    bar = figure.colorbar(picture, ax=axes, label=label, **options)
    bar.ax.tick_params(labelsize="small")
    return bar


def _legend(figure: Figure, handles: Sequence[Artist], side: str = "lower") -> None:
    """A legend of as many columns as fit below or above the axes, in room that is added to the figure."""
    widest = 0.6 + 0.075 * max(len(handle.get_label()) for handle in handles)  # inches
    columns = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc=f"outside {side} center", ncols=columns, frameon=False, fontsize="small")


class _Contours:
    """Draws label contours, one colour a structure in all panels, and remembers what the legend must name.

    Structures whose names differ in nothing but their side share a colour; R and L in the picture tell them apart.
    """

    def __init__(self, names: Mapping[int, str] | None, labels: Iterable[np.ndarray | None]):
        if names is None:
            values = sorted({int(v) for label in labels if label is not None for v in np.unique(label)} - {0})
            names = {value: f"label {value}" for value in values}
        self.names = dict(names)
        kinds = list(dict.fromkeys(map(_without_side, self.names.values())))
        self.looks = dict(zip(kinds, _looks(len(kinds)), strict=True))
        self.drawn: dict[str, list[str]] = {}
        self.references = False

    def draw(self, ax: Axes, view: _View, label: np.ndarray, dashed: bool = False) -> None:
        cut = np.pad(view.cut(label), 1)  # a structure that touches the border gets a closed contour too
        rows, columns = (np.arange(n) - 1 for n in cut.shape)
        for value, name in self.names.items():
            mask = cut == value
            if not mask.any():
                continue
            colour, style = self.looks[_without_side(name)]
            style = (0, (2, 1.5)) if dashed else style
            contour = ax.contour(
                columns, rows, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.3, linestyles=[style]
            )
            contour.set_label(name)
            self.drawn.setdefault(_without_side(name), []).append(name)
        self.references |= dashed
        view.frame(ax)

    def legend(self, figure: Figure) -> None:
        handles = []
        for kind, (colour, style) in self.looks.items():
            if names := dict.fromkeys(self.drawn.get(kind, [])):
                text = next(iter(names)) if len(names) == 1 else f"{kind} (left, right)"
                handles.append(Line2D([], [], color=colour, linestyle=style, label=text, linewidth=2))
        if self.references:
            handles.append(Line2D([], [], color=GREY, linestyle=(0, (2, 1.5)), label="dashed: reference"))
        if handles:
            _legend(figure, handles)


def _without_side(name: str) -> str:
    return re.sub(r"^(left|right)[ _-]+", "", name, flags=re.IGNORECASE)


def _looks(count: int, colours: Sequence[str] = COLOURS) -> list[tuple[str, Any]]:
    """Colour and line style of each of ``count`` things; colours begin again in another style."""
    return [(colours[i % len(colours)], STYLES[i // len(colours) % len(STYLES)]) for i in range(count)]


def _limits(images: Iterable[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value of all images."""
    finite = [image[np.isfinite(image)] for image in images]
    return min(float(values.min()) for values in finite), max(float(values.max()) for values in finite)


def _every(step: int, count: int) -> list[int]:
    """Each ``step``-th of ``count`` grid lines, and the last, so that the grid is closed."""
    return sorted({*range(0, count, step), count - 1})


# --- curves and boxes -------------------------------------------------------------------------------------------------


def _curve(ax: Axes, points: pd.DataFrame, name: str, colour: str) -> None:
    step, value = points["step"], points[name]
    label = "validation" if name.startswith("validation_") else "training"
    if len(points) <= 60:
        ax.plot(step, value, color=colour, linewidth=1.2, marker=".", label=label)
        return
    ax.plot(step, value, color=colour, linewidth=1, alpha=0.3)
    mean = value.rolling(len(points) // 20, center=True, min_periods=1).mean()
    ax.plot(step, mean, color=colour, linewidth=1.6, label=label)


def _dress(ax: Axes, values: pd.DataFrame, title: str) -> None:
    low, high = values.min().min(), values.max().max()
    if low > 0 and high >= 10 * low:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(title, fontsize="medium")
    ax.grid(color="#e5e5e5", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _measure(method: str, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """pair, structure and value of one method."""
    side = "before" if method == "before" else "after"
    found = column if column in table else f"{column}_{side}"
    if missing := [c for c in ("pair", "structure", found) if c not in table]:
        raise ValueError(f"the table {method} has no column {', '.join(missing)}, only {', '.join(table.columns)}")
    return table[["pair", "structure", found]].rename(columns={found: "value"})


def _method_colours(methods: Iterable[str]) -> dict[str, str]:
    others = itertools.cycle(ON_WHITE)
    return {method: GREY if method == "before" else next(others) for method in methods}


def _offsets(count: int) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * 0.8 / count


def _boxes_of(
    ax: Axes,
    values: pd.DataFrame,
    structures: Sequence[str],
    offset: float,
    width: float,
    colour: str,
    jitter: np.random.Generator,
) -> int:
    """Draw one method's boxes and dots; returns how many values are infinite."""
    lost = 0
    for place, structure in enumerate(structures):
        value = values.loc[values["structure"] == structure, "value"].dropna().to_numpy(float)
        finite = value[np.isfinite(value)]
        if finite.size:
            ax.boxplot(
                finite,
                positions=[place + offset],
                widths=0.8 * width,
                showfliers=False,  # every pair is drawn as a dot below
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": f"{colour}66", "edgecolor": colour},
                medianprops={"color": "black", "linewidth": 1.4},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
        spread = jitter.uniform(-0.25, 0.25, len(value)) * width
        dots = place + offset + spread
        is_finite = np.isfinite(value)
        ax.scatter(dots[is_finite], finite, s=9, color=colour, edgecolors="white", linewidths=0.3, zorder=3)
        if not is_finite.all():
            top = np.ones((~is_finite).sum())
            upper_edge = ax.get_xaxis_transform()
            ax.plot(dots[~is_finite], top, "^", color=colour, markersize=5, clip_on=False, transform=upper_edge)
        lost += int((~is_finite).sum())
    return lost


_MEASURES = {
    "dice": "Dice",
    "folding": "folded voxels",
    "hd": "Hausdorff distance",
    "hd95": "HD95",
    "sdlogj": "SDlogJ",
    "tre": "target registration error",
}


def _describe(column: str) -> str:
    """Words for a column's name: "hd95_mm_after" is "HD95 (mm)"."""
    name = re.sub(r"_(before|after)$", "", column)
    validation = "validation " if name.startswith("validation_") else ""
    name = name.removeprefix("validation_")
    measure, unit = name, ""
    for ending, text in (("_mm", " (mm)"), ("_percent", " (%)")):
        if name.endswith(ending):
            measure, unit = name.removesuffix(ending), text
    return validation + _MEASURES.get(measure, measure.replace("_", " ")) + unit


# --- what comes in ----------------------------------------------------------------------------------------------------


def _array(values: Array) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    return array.astype(np.uint8) if array.dtype == bool else array


def _volume(values: Array, what: str) -> np.ndarray:
    """``(*spatial)``, 2-D or 3-D, without leading axes of size 1."""
    array = _array(values)
    given = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(f"{what} of shape {given} is not one 2-D or 3-D image: take one of its batch and channels")
    return array


def _same_shape(values: Mapping[str, Array | None]) -> list[np.ndarray | None]:
    """All as `_volume`, which must agree in shape; None stays None."""
    arrays = {what: None if value is None else _volume(value, what) for what, value in values.items()}
    if not any(array is not None for array in arrays.values()):
        raise ValueError("there are no images to draw")
    shapes = {what: array.shape for what, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{what} {shape}" for what, shape in shapes.items()))
    return list(arrays.values())


def _pairs(pairs: Mapping[str, tuple[Array, Array]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    named = {f"{key} ({side})": pair[i] for key, pair in pairs.items() for i, side in enumerate(("first", "second"))}
    arrays = _same_shape(named)
    return {key: (arrays[2 * i], arrays[2 * i + 1]) for i, key in enumerate(pairs)}


def _fields(
    displacement: Array | Mapping[str, Array],
    image: Array | None,
    step: int,
    axis: int,
    at: int | None,
    spacing: PerAxis | None,
    orientation: str | None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None, _View]:
    """Displacements ``(N, *spatial)`` by title, the image under them, and the slice."""
    if step < 1:
        raise ValueError(f"a step of {step} voxels draws nothing: take 1 or more")
    given = displacement if isinstance(displacement, Mapping) else {"": displacement}
    if not given:
        raise ValueError("there are no displacements to draw")
    fields = {}
    for key, value in given.items():
        array = _array(value)
        field = array[0] if array.ndim > 3 and array.shape[0] == 1 else array
        if field.ndim not in (3, 4) or field.shape[0] != field.ndim - 1:
            what = f"displacement {key}".strip()
            raise ValueError(f"{what} of shape {array.shape} is not (1, N, *spatial) with N = 2 or 3 components")
        fields[key] = field
    components = {f"displacement {key}".strip(): field[0] for key, field in fields.items()}
    *first, image = _same_shape({**components, "image": image})
    return fields, image, _view(dict(enumerate(first)), axis, at, spacing, orientation)
