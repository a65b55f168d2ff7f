"""Figures of deformations: a registration, the deformed grid, arrows, and the map of the Jacobian determinant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Patch

from course_utils.plotting.arrays import Array, PerAxis, as_array, same_shape
from course_utils.plotting.figure import COLOURS, GREY, Figure, colour_bar, intensity_range, legend_outside
from course_utils.plotting.view import View, common_view, figure_of_panels

FOLDED = "#F0E442"
"""Colour of folded voxels: not in the diverging map, so that none is taken for a strong compression."""
FOLDED_ON_GREY = "#E6001A"
"""The same over an image in grey, where red is what papers take."""


def registration(
    moving: Array,
    fixed: Array,
    moved: Array,
    displacement: Array,
    *,
    label: Array | None = None,
    step: int | None = None,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    title: str | None = None,
) -> Figure:
    """A pair before and after: both images, the moved one, what differs, and the grid that was moved along.

    The grid lies over the moved image: a square grid on the moving image, deformed as it was, and drawn where it comes
    to lie. A line is where a component of `x + u(x)` is a multiple of `step`. The components in the slice's plane are
    drawn.

    Args:
        moving, fixed, moved: `(*spatial)`; grey values of the three are on one scale, those of the differences on one.
        displacement: `(N, *spatial)` in voxels, which made `moved` of `moving`.
        label: `(*spatial)`; where `at` is None, the slice shows most of every structure of it.
        step: voxels between lines; None draws about 16 along the longer side.

    Raises:
        ValueError: shapes differ or are no displacement's; `step` is below 1.
    """
    images = same_shape({"moving": moving, "fixed": fixed, "moved": moved, "label": label})
    structures = images.pop("label", None)
    fields, _, _ = _fields(displacement, images["fixed"], 1 if step is None else step, axis, at, spacing, orientation)
    view = common_view(images, axis, at, spacing, orientation, label=structures)
    (field,) = fields.values()
    before, after = (images[key].astype(float) - images["fixed"] for key in ("moving", "moved"))
    limit = max(float(np.nanmax(np.abs(view.cut(array)))) for array in (before, after)) or 1.0
    titles = ("moving", "fixed", "moved", "moving − fixed", "moved − fixed", "moved, and the grid")
    figure, axes = figure_of_panels(titles, view, 3, title, light=titles[3:5])
    grey = intensity_range(images.values())
    for ax, image in zip((*axes[:3], axes[5]), (*images.values(), images["moved"]), strict=True):
        view.show(ax, image, cmap="gray", limits=grey)
    for ax, array in zip(axes[3:5], (before, after), strict=True):
        picture = view.show(ax, array, cmap="RdBu_r", limits=(-limit, limit))
    step = step or max(1, round(max(view.shape) / 16))
    rows, columns = np.mgrid[: view.shape[0], : view.shape[1]].astype(float)
    for start, component in ((columns, view.horizontal), (rows, view.vertical)):
        position = start + view.cut(field[component])
        levels = np.arange(0, field.shape[1 + component], step)
        levels = levels[(levels > position.min()) & (levels < position.max())]
        if len(levels):
            axes[5].contour(position, levels=levels, colors=COLOURS[0], linewidths=0.7)
    view.frame(axes[5])
    colour_bar(figure, axes, picture, "intensity difference")
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
    """Where the lines of the fixed grid come to lie in the moving image: the curves `x + u(x)` of a slice.

    The components in the slice's plane are drawn; a displacement out of the plane is not. Where lines cross over, the
    field folds.

    Args:
        displacement: `(N, *spatial)` in voxels, or title to such for several panels.
        image: the moving image `(*spatial)`, drawn under the grid.
        step: voxels between lines; along a line every voxel is a vertex.

    Raises:
        ValueError: shapes differ or are no displacement's; `step` is below 1.
    """
    fields, image, view = _fields(displacement, image, step, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(fields, view, columns, title, light=fields if image is None else ())
    rows, columns_ = np.mgrid[: view.shape[0], : view.shape[1]].astype(float)
    vertices = [  # of each field (rows, columns, 2): x and y on the page
        np.stack([columns_ + view.cut(field[view.horizontal]), rows + view.cut(field[view.vertical])], axis=-1)
        for field in fields.values()
    ]
    for ax, points in zip(axes, vertices, strict=True):
        if image is not None:
            view.show(ax, image, cmap="gray", limits=intensity_range([image]))
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
    """Arrows from x to `x + u(x)`, true to scale: the components of the displacement in a slice's plane.

    Args:
        displacement: `(N, *spatial)` in voxels, or title to such for several panels.
        image: the fixed image `(*spatial)`, drawn under the arrows.
        step: voxels between arrows.

    Raises:
        ValueError: shapes differ or are no displacement's; `step` is below 1.
    """
    fields, image, view = _fields(displacement, image, step, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(fields, view, columns, title, light=fields if image is None else ())
    rows, columns_ = np.mgrid[step // 2 : view.shape[0] : step, step // 2 : view.shape[1] : step]
    for ax, field in zip(axes, fields.values(), strict=True):
        if image is not None:
            view.show(ax, image, cmap="gray", limits=intensity_range([image]))
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
        determinant: `(*spatial)`, or title to such for several panels on one scale.
        image: `(*spatial)`, drawn as outlines for orientation.
        limit: the scale runs from `1 / limit` to `limit`; None takes what the slices drawn need, at most 4. Voxels
            at or below 0 have a colour of their own.

    Raises:
        ValueError: shapes differ or are neither 2-D nor 3-D; `limit` is not above 1.
    """
    if limit is not None and limit <= 1:
        raise ValueError(f"the scale runs from 1 / limit to limit: {limit} is not above 1")
    maps = determinant if isinstance(determinant, Mapping) else {"": determinant}
    named = {f"determinant {key}".strip(): value for key, value in maps.items()}
    checked = same_shape({**named, "image": image})
    arrays = {key: checked[name] for key, name in zip(maps, named, strict=True)}
    outlined = checked.get("image")
    view = common_view(arrays, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(arrays, view, columns, title, light=arrays)
    cuts = [view.cut(array).astype(float) for array in arrays.values()]
    positive = np.concatenate([cut[cut > 0] for cut in cuts] + [[0.99]])
    limit = limit or min(4.0, max(positive.max(), 1 / positive.min()))
    for ax, cut in zip(axes, cuts, strict=True):
        shown = np.ma.masked_array(cut, cut <= 0)
        picture = view.show_cut(ax, shown, cmap="RdBu_r", norm=LogNorm(1 / limit, limit))
        view.show_cut(ax, np.ma.masked_array(cut, ~(cut <= 0)), cmap=ListedColormap([FOLDED]))
        if outlined is not None:
            ax.contour(view.cut(outlined), levels=[float(np.nanmean(outlined))], colors="#333333", linewidths=0.6)
    beyond = (positive.min() < 1 / limit, positive.max() > limit)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[beyond]
    bar = colour_bar(figure, axes, picture, "Jacobian determinant", extend=extend)
    ticks = limit ** np.array([-1, -0.5, 0, 0.5, 1])
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.set_ticks([], minor=True)
    if any((cut <= 0).any() for cut in cuts):
        legend_outside(figure, [Patch(facecolor=FOLDED, edgecolor=GREY, label="folded (determinant ≤ 0)")])
    return figure


def folds(
    determinant: Array | Mapping[str, Array],
    image: Array,
    *,
    axis: int = 1,
    at: int | None = None,
    spacing: PerAxis | None = None,
    orientation: str | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Where a map folds, in red over the image in grey.

    Args:
        determinant: `(*spatial)`, or title to such for several panels; what is 0 or less is red. The smallest of a
            cell's simplices (`fields.simplex_determinants`) shows folds between neighbouring voxels too; it has a value
            less along each axis than the image, and the image's last slice, row and column are then left out.
        image: `(*spatial)`.

    Raises:
        ValueError: shapes do not fit or are neither 2-D nor 3-D.
    """
    maps = determinant if isinstance(determinant, Mapping) else {"": determinant}
    named = {f"determinant {key}".strip(): value for key, value in maps.items()}
    checked, picture = same_shape(named), same_shape({"image": image})["image"]
    arrays = {key: checked[name] for key, name in zip(maps, named, strict=True)}
    shape = next(iter(arrays.values())).shape
    if shape not in (picture.shape, tuple(n - 1 for n in picture.shape)):
        raise ValueError(f"a determinant {shape} is neither of the voxels nor of the cells of an image {picture.shape}")
    picture = picture[tuple(slice(n) for n in shape)]
    view = common_view(arrays, axis, at, spacing, orientation)
    figure, axes = figure_of_panels(arrays, view, columns, title)
    for ax, array in zip(axes, arrays.values(), strict=True):
        view.show(ax, picture, cmap="gray", limits=intensity_range([picture]))
        cut = view.cut(array)
        view.show_cut(ax, np.ma.masked_array(cut, ~(cut <= 0)), cmap=ListedColormap([FOLDED_ON_GREY]))
    legend_outside(figure, [Patch(facecolor=FOLDED_ON_GREY, edgecolor=GREY, label="folded (determinant ≤ 0)")])
    return figure


def _fields(
    displacement: Array | Mapping[str, Array],
    image: Array | None,
    step: int,
    axis: int,
    at: int | None,
    spacing: PerAxis | None,
    orientation: str | None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None, View]:
    """Displacements `(N, *spatial)` by title, the image under them, and the slice."""
    if step < 1:
        raise ValueError(f"a step of {step} voxels draws nothing: take 1 or more")
    given = displacement if isinstance(displacement, Mapping) else {"": displacement}
    if not given:
        raise ValueError("there are no displacements to draw")
    fields = {}
    for key, value in given.items():
        array = as_array(value)
        field = array[0] if array.ndim > 3 and array.shape[0] == 1 else array
        if field.ndim not in (3, 4) or field.shape[0] != field.ndim - 1:
            what = f"displacement {key}".strip()
            raise ValueError(f"{what} of shape {array.shape} is not (1, N, *spatial) with N = 2 or 3 components")
        fields[key] = field
    components = {f"displacement {key}".strip(): field[0] for key, field in fields.items()}
    checked = same_shape({**components, "image": image})
    return fields, checked.get("image"), common_view(checked, axis, at, spacing, orientation)


def _every(step: int, count: int) -> list[int]:
    """Each `step`-th of `count` grid lines, and the last, so that the grid is closed."""
    return sorted({*range(0, count, step), count - 1})
