"""Slices of volumes as they lie on the page, and the figures that hold their panels."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.patheffects import Stroke
from matplotlib.ticker import MaxNLocator

from course_utils.plotting.arrays import PerAxis
from course_utils.plotting.figure import WIDTH, Figure

LARGEST_PANEL = 3.4
"""Length of a panel's longer side in inches, at most."""

PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
_ENDS = {"R": "LR", "L": "LR", "A": "PA", "P": "PA", "S": "IS", "I": "IS"}
_WORDS = {"LR": "left → right", "PA": "posterior → anterior", "IS": "inferior → superior"}


class View:
    """A slice of volumes of one shape and how it lies on the page: rows are drawn upwards, columns rightwards.

    Args:
        shape: of the volumes, or of 2-D images.
        axis: array axis that the slice is perpendicular to; None for 2-D images.
        at: index of the slice along `axis`; None for 2-D images.
        spacing: mm along each array axis, or one number for all; None is 1 mm.
        orientation: where the array axes lead; None is "RAS" for volumes and says nothing of 2-D images.

    Attributes:
        code: where `axis` leads, one letter; empty for 2-D images.
        horizontal: array axis that is drawn rightwards, or leftwards where it leads to the left.
        vertical: array axis that is drawn upwards, or downwards where it leads downwards.
        shape: of the slice, (rows, columns).
        extent: of the slice, (height, width) in mm.
        name: plane and index for a heading; empty for 2-D images.

    Raises:
        ValueError: `spacing` or `orientation` does not fit the shape, or the slice lies outside it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        axis: int | None,
        at: int | None,
        spacing: PerAxis | None,
        orientation: str | None,
    ) -> None:
        dims = len(shape)
        steps = np.asarray(1.0 if spacing is None else spacing, dtype=float)
        if steps.ndim == 0:
            steps = steps.repeat(dims)
        if steps.shape != (dims,) or not (steps > 0).all():
            raise ValueError(f"spacing {spacing} is not one positive number for each axis of a volume of {shape}")
        codes = (orientation or "RAS").upper() if dims == 3 else (orientation or "").upper()
        ends = [_ENDS.get(code) for code in codes]
        if codes and (len(codes) != dims or None in ends or len(set(ends)) != dims):
            raise ValueError(f"orientation {orientation!r} is not one letter, as in RAS, for each axis of {shape}")
        if axis is not None and at not in range(shape[axis]):
            raise ValueError(f"slice {at} lies outside axis {axis} of a volume of {shape}")
        self.spacing = tuple(steps.tolist())
        self.axis, self.index, self.codes = axis, at, codes
        self.code = codes[axis] if axis is not None else ""
        plane = [a for a in range(dims) if a != axis]
        if codes:  # left-right goes before posterior-anterior before inferior-superior
            plane.sort(key=lambda a: list(_WORDS).index(_ENDS[codes[a]]))
        self.horizontal, self.vertical = plane
        self.shape = (shape[self.vertical], shape[self.horizontal])
        self.extent = (
            shape[self.vertical] * self.spacing[self.vertical],
            shape[self.horizontal] * self.spacing[self.horizontal],
        )
        self.name = "" if axis is None else f"{PLANES[self.code]}, {'xyz'[axis]} = {at}"

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice `(rows, columns)` = (vertical, horizontal)."""
        if self.axis is not None and self.index is not None:
            volume = np.take(volume, self.index, self.axis)
        return volume if self.vertical < self.horizontal else volume.T

    def show(self, ax: Axes, volume: np.ndarray, **options: Any) -> AxesImage:
        """Draw the volume's slice; the options are those of `show_cut`."""
        return self.show_cut(ax, self.cut(volume), **options)

    def show_cut(
        self,
        ax: Axes,
        cut: np.ndarray,
        *,
        cmap: str | Colormap,
        limits: tuple[float, float] | None = None,
        norm: Normalize | None = None,
    ) -> AxesImage:
        """Draw a slice `(rows, columns)` that `cut` has given, its colours from `limits` or by `norm`."""
        low, high = limits or (None, None)
        picture = ax.imshow(cut, origin="lower", cmap=cmap, vmin=low, vmax=high, norm=norm, interpolation="nearest")
        self.frame(ax)
        return picture

    def frame(self, ax: Axes, points: np.ndarray | None = None) -> None:
        """Set aspect and limits: the slice, or all of `points` `(..., 2)` where they reach beyond it."""
        ax.set_aspect(self.spacing[self.vertical] / self.spacing[self.horizontal])
        rows, columns = self.shape
        limits = np.array([[-0.5, -0.5], [columns - 0.5, rows - 0.5]])
        if points is not None:
            finite = points[np.isfinite(points).all(-1)]
            limits = np.array([np.minimum(limits[0], finite.min(0) - 0.5), np.maximum(limits[1], finite.max(0) + 0.5)])
        backwards = [bool(self.codes) and self.codes[a] in "LPI" for a in (self.horizontal, self.vertical)]
        xlim, ylim = (ends[::-1] if turned else ends for ends, turned in zip(limits.T, backwards, strict=True))
        ax.set(xlim=xlim, ylim=ylim)

    def describe(self, ax: Axes, *, title: str, x: bool = True, y: bool = True, light: bool = False) -> None:
        """Write the title, the axes' names where `x` and `y` ask for them, and the ends of each axis inside.

        `light` says that what is drawn is light, so that the letters are dark.
        """
        ax.set_title(title, fontsize="medium")
        for axis, wanted, side in ((self.horizontal, x, ax.xaxis), (self.vertical, y, ax.yaxis)):
            side.set_major_locator(MaxNLocator(4, integer=True))
            if wanted:
                name = f"axis {axis}" if self.axis is None else "xyz"[axis]
                direction = f"{_WORDS[_ENDS[self.codes[axis]]]}, {name}" if self.codes else name
                side.set_label_text(f"{direction} (voxels)", fontsize="small")
            else:
                side.set_tick_params(labelleft=False, labelbottom=False)
        ax.tick_params(labelsize="small")
        if self.codes:
            self._letters(ax, *(("black", "white") if light else ("white", "black")))

    def _letters(self, ax: Axes, colour: str, halo: str) -> None:
        left, right, bottom, top = [*_ENDS[self.codes[self.horizontal]], *_ENDS[self.codes[self.vertical]]]
        # Not snapped to the pixels, as outlines of straight lines are: an L may lose its foot, and is read as an I.
        outline = [Stroke(linewidth=2, foreground=halo, snap=False), Stroke(linewidth=0, snap=False)]
        style: dict[str, Any] = {
            "transform": ax.transAxes,
            "color": colour,
            "fontsize": "small",
            "path_effects": outline,
        }
        ax.text(0.02, 0.5, left, ha="left", va="center", **style)
        ax.text(0.98, 0.5, right, ha="right", va="center", **style)
        ax.text(0.5, 0.02, bottom, ha="center", va="bottom", **style)
        ax.text(0.5, 0.98, top, ha="center", va="top", **style)


def common_view(
    arrays: Mapping[str, np.ndarray],
    axis: int,
    at: int | None,
    spacing: PerAxis | None,
    orientation: str | None,
    label: np.ndarray | None = None,
) -> View:
    """The slice that a figure of several panels shows of arrays of one shape.

    Where `at` is None, it is the slice that shows most of every structure of `label`, or else the middle.

    Raises:
        ValueError: there is no such axis or slice, or `spacing` or `orientation` does not fit.
    """
    shape = next(iter(arrays.values())).shape
    if len(shape) == 2:
        if at is not None:
            raise ValueError(f"a 2-D image of {shape} has no slice {at} to choose")
        return View(shape, None, None, spacing, orientation)
    if axis not in range(3):
        raise ValueError(f"axis {axis} is none of the axes 0, 1, 2 of a volume of {shape}")
    if at is None:
        at = shape[axis] // 2 if label is None else richest_slice(label, axis)
    return View(shape, axis, at, spacing, orientation)


def richest_slice(label: np.ndarray, axis: int) -> int:
    """The slice that shows most of every structure: areas, each as a share of its structure's largest, add up.

    Roots of areas, so that a little of two structures is worth more than much of one.
    """
    others = tuple(a for a in range(label.ndim) if a != axis)
    areas = [(label == value).sum(others) for value in np.unique(label) if value]
    return int(np.argmax(sum(np.sqrt(area / area.max()) for area in areas))) if areas else label.shape[axis] // 2


def figure_of_views(views: Sequence[View]) -> tuple[Figure, Sequence[Axes]]:
    """A figure with one row of slices at one scale, and its axes.

    The figure is high enough that the widths, which are in the ratio of the slices, decide the scale.
    """
    widths, tallest = [view.extent[1] for view in views], max(view.extent[0] for view in views)
    least, around = 0.4 * len(views), 0.6 * len(views)  # inches for what stands beside the slices
    width = min(WIDTH, around + 1.2 * LARGEST_PANEL / tallest * sum(widths))
    height = (width - least) / sum(widths) * tallest + 0.9
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, len(views), squeeze=False, width_ratios=widths)[0]
    return figure, list(axes)


def figure_of_panels(
    titles: Iterable[str], view: View, columns: int | None, title: str | None, light: Container[str] = ()
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with one panel per title, all of the same slice and described at the outer edges, and its axes.

    `light` are the titles of those panels in which something light will be drawn. The others are black where a grid
    reaches beyond the image, as the image is.
    """
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
        ax.set_facecolor("white" if text in light else "black")
        view.describe(ax, title=text, x=number + columns >= len(titles), y=number % columns == 0, light=text in light)
        view.frame(ax)
    for ax in axes[len(titles) :]:
        ax.remove()
    if heading:
        figure.suptitle(heading, fontsize="medium")
    return figure, list(axes[: len(titles)])
