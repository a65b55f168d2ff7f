"""Curves: distributions of intensities and the history of a training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from course_utils.plotting.arrays import Array, as_array
from course_utils.plotting.columns import describe_column
from course_utils.plotting.figure import ON_WHITE, Figure, intensity_range, looks


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
        array = as_array(image)
        values[name] = array[np.isfinite(array)]
        if not values[name].size:
            raise ValueError(f"{name} of shape {array.shape} has no finite voxel")
    low, high = intensity_range(values.values())
    high = high if high > low else low + 1
    edges = np.linspace(low, high, bins + 1)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    ax = figure.subplots()
    for (name, array), (colour, style) in zip(values.items(), looks(len(values), ON_WHITE), strict=True):
        share = np.histogram(array, edges)[0] / array.size
        ax.stairs(share, edges, label=name, color=colour, linestyle=style, linewidth=1.6)
    ax.set(xlabel="intensity", ylabel="share of voxels", yscale="log", xlim=(low, high), title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def history(table: pd.DataFrame, *, columns: int = 3, title: str | None = None) -> Figure:
    """Training curves against the step: one small panel for each column of the table.

    Every numeric column but `step` and `seconds` is drawn, rows without a value left out; `validation_x` is drawn
    in the panel of `x` where there is one. What stays positive and spans a factor of ten or more is on a logarithmic
    scale. Where there are many points, a line of running means lies over the pale single values.

    Raises:
        ValueError: the table has no `step` column, or nothing to draw.
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
        _dress(ax, table[curves], describe_column(name))
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
