"""Figures of images: slices, panels, checkerboards and differences, with the contours of labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

from course_utils.plotting.arrays import Array, PerAxis, same_shape
from course_utils.plotting.figure import GREY, Figure, colour_bar, intensity_range, legend_outside, looks
from course_utils.plotting.view import PLANES, View, common_view, figure_of_panels, figure_of_views, richest_slice

TINTED = LinearSegmentedColormap.from_list("tinted", ["black", "#FFD9A0"])
"""Colour map of a second image, so that it differs from one in grey values."""


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
        image: `(*spatial)`.
        label: integers `(*spatial)`, 0 is background.
        names: value to name for the legend; only these structures are drawn. None draws all, by number.
        at: voxel that the slices go through, one index for each array axis. None takes along each axis the slice that
            shows most of every structure of the label, or the middle.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; `at` or `spacing` does not fit.
    """
    arrays = same_shape({"image": image, "label": label})
    drawn, structures = arrays["image"], arrays.get("label")
    shape, count = drawn.shape, drawn.ndim
    if at is not None and len(at) != count:
        raise ValueError(f"at has {len(at)} indices and the image of {shape} has {count} axes")
    if at is None:
        at = [n // 2 if structures is None else richest_slice(structures, axis) for axis, n in enumerate(shape)]
    if count == 2:
        views = [View(shape, None, None, spacing, orientation)]
    else:
        views = [View(shape, axis, index, spacing, orientation) for axis, index in enumerate(at)]
        views.sort(key=lambda view: list(PLANES).index(view.code))  # sagittal, coronal, axial, whatever their axes are
    figure, axes = figure_of_views(views)
    contours = _Contours(names, [] if structures is None else [structures])
    for ax, view in zip(axes, views, strict=True):
        view.show(ax, drawn, cmap="gray", limits=intensity_range([drawn]))
        view.describe(ax, title=view.name)
        if structures is not None:
            contours.draw(ax, view, structures)
    contours.legend(figure)
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
    fill: bool = False,
) -> Figure:
    """The same slice of several images side by side.

    Args:
        images: title to `(*spatial)`, all of one shape.
        labels: title to label `(*spatial)`, for those images that get contours.
        references: likewise, drawn dashed: the fixed label over the moved one shows what is left to do.
        names: value to name of the structures to draw; None draws all, by number.
        at: None takes the slice that shows most of every structure of the first label, or the middle.
        limits: intensities drawn as the map's two ends. None takes each image's own extremes, or those of all images
            together where there is a colour bar.
        colourbar: its title; None draws no bar.
        columns: images in a row.
        fill: colours the inside of the `labels`' structures, through which the image is still seen.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; a label belongs to no image; `at` or `spacing` does
            not fit.
    """
    labels, references = dict(labels or {}), dict(references or {})
    if unknown := [key for key in (*labels, *references) if key not in images]:
        raise ValueError(f"labels of {', '.join(unknown)} belong to none of the images {', '.join(images)}")
    checked = same_shape(
        dict(images)
        | {f"label of {key}": label for key, label in labels.items()}
        | {f"reference of {key}": reference for key, reference in references.items()}
    )
    arrays = {key: checked[key] for key in images}
    solid = {key: checked[f"label of {key}"] for key in labels}
    dashed = {key: checked[f"reference of {key}"] for key in references}
    drawn = [*solid.values(), *dashed.values()]
    view = common_view(arrays, axis, at, spacing, orientation, label=drawn[0] if drawn else None)
    figure, axes = figure_of_panels(arrays, view, columns, title)
    if colourbar and limits is None:
        limits = intensity_range(arrays.values())
    contours = _Contours(names, drawn)
    for ax, (key, image) in zip(axes, arrays.items(), strict=True):
        picture = view.show(ax, image, cmap=cmap, limits=limits or intensity_range([image]))
        if key in solid:
            contours.draw(ax, view, solid[key], fill=fill)
        if key in dashed:
            contours.draw(ax, view, dashed[key], dashed=True)
    contours.legend(figure)
    if colourbar:
        colour_bar(figure, axes, picture, colourbar)
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
        pairs: title to (first, second), say `{"before": (fixed, moving), "after": (fixed, moved)}`; the tile at the
            origin is of the first.
        tiles: number of tiles along the longer side.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; `tiles` is below 2.
    """
    if tiles < 2:
        raise ValueError(f"a checkerboard needs at least 2 tiles along a side, not {tiles}")
    arrays = _pairs(pairs)
    view = common_view({key: first for key, (first, _) in arrays.items()}, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(arrays, view, columns, title)
    edge = max(view.extent) / tiles
    row, column = (
        (np.arange(n) * step // edge).astype(int)
        for n, step in zip(view.shape, (view.spacing[view.vertical], view.spacing[view.horizontal]), strict=True)
    )
    of_second = (row[:, None] + column) % 2 == 1
    for ax, (first, second) in zip(axes, arrays.values(), strict=True):
        for image, hidden, cmap in ((first, of_second, "gray"), (second, ~of_second, TINTED)):
            tiles_of = np.ma.masked_array(view.cut(image), hidden)
            view.show_cut(ax, tiles_of, cmap=cmap, limits=intensity_range([first, second]))
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
        pairs: title to (first, second), say `{"before": (fixed, moving), "after": (fixed, moved)}`.
        limit: difference drawn as the ends of the scale; None takes the largest one in the slices drawn.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D.
    """
    arrays = {key: second.astype(float) - first for key, (first, second) in _pairs(pairs).items()}
    view = common_view(arrays, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(arrays, view, columns, title, light=arrays)
    limit = limit or max(float(np.nanmax(np.abs(view.cut(array)))) for array in arrays.values()) or 1.0
    for ax, array in zip(axes, arrays.values(), strict=True):
        picture = view.show(ax, array, cmap="RdBu_r", limits=(-limit, limit))
    colour_bar(figure, axes, picture, "intensity difference")
    return figure


class _Contours:
    """The contours of labels, where a structure has one colour in all panels, and what the legend must name.

    Structures whose names differ in nothing but their side share a colour; R and L in the picture tell them apart.

    Args:
        names: value to name of the structures to draw; None draws all of `labels`, by number.
        labels: all labels that will be drawn, `(*spatial)`.
    """

    def __init__(self, names: Mapping[int, str] | None, labels: Iterable[np.ndarray]) -> None:
        if names is None:
            values = sorted({int(v) for label in labels for v in np.unique(label)} - {0})
            names = {value: f"label {value}" for value in values}
        self.names = dict(names)
        kinds = list(dict.fromkeys(map(_without_side, self.names.values())))
        self.looks = dict(zip(kinds, looks(len(kinds)), strict=True))
        self.drawn: dict[str, list[str]] = {}
        self.references = False

    def draw(self, ax: Axes, view: View, label: np.ndarray, *, dashed: bool = False, fill: bool = False) -> None:
        """Draw the contours of a label's slice; `dashed` those of a reference, `fill` what is inside of them too."""
        cut = np.pad(view.cut(label), 1)  # a structure that touches the border gets a closed contour too
        rows, columns = (np.arange(n) - 1 for n in cut.shape)
        for value, name in self.names.items():
            mask = cut == value
            if not mask.any():
                continue
            colour, style = self.looks[_without_side(name)]
            style = (0, (2, 1.5)) if dashed else style
            if fill:
                ax.contourf(columns, rows, mask.astype(float), levels=[0.5, 1.5], colors=[colour], alpha=0.4)
            contour = ax.contour(
                columns, rows, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.3, linestyles=[style]
            )
            contour.set_label(name)
            self.drawn.setdefault(_without_side(name), []).append(name)
        self.references |= dashed
        view.frame(ax)

    def legend(self, figure: Figure) -> None:
        """Name the structures that have been drawn below the axes; nothing where none was."""
        handles: list[Artist] = []
        for kind, (colour, style) in self.looks.items():
            if names := dict.fromkeys(self.drawn.get(kind, [])):
                text = next(iter(names)) if len(names) == 1 else f"{kind} (left, right)"
                handles.append(Line2D([], [], color=colour, linestyle=style, label=text, linewidth=2))
        if self.references:
            handles.append(Line2D([], [], color=GREY, linestyle=(0, (2, 1.5)), label="dashed: reference"))
        if handles:
            legend_outside(figure, handles)


def _without_side(name: str) -> str:
    return re.sub(r"^(left|right)[ _-]+", "", name, flags=re.IGNORECASE)


def _pairs(pairs: Mapping[str, tuple[Array, Array]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of `(*spatial)` by title, all of one shape."""
    named = {f"{key} ({side})": pair[i] for key, pair in pairs.items() for i, side in enumerate(("first", "second"))}
    arrays = same_shape(named)
    return {key: (arrays[f"{key} (first)"], arrays[f"{key} (second)"]) for key in pairs}
