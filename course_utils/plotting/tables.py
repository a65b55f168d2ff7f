"""Figures of tables: a measure of several methods, and the grades of a class."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from course_utils.plotting.columns import describe_column
from course_utils.plotting.figure import GREY, ON_WHITE, WIDTH, Figure, legend_outside

STRUCTURES_IN_A_ROW = 12
"""How many structures a row of box plots holds."""


def boxes(
    tables: Mapping[str, pd.DataFrame], column: str, *, label: str | None = None, title: str | None = None
) -> Figure:
    """Box plots of a measure for several methods, structure by structure, with every pair as a dot.

    Boxes go from the first to the third quartile with a line at the median, whiskers to the furthest value within 1.5
    box lengths. An infinite distance (a structure that only one image has) is a triangle at the upper edge, counted in
    a note; boxes are of the finite values.

    Args:
        tables: method to a table as `course_utils.evaluation.evaluate` gives it. `{"before": table, "VoxelMorph":
            table}` draws the same table's two sides.
        column: a column of all tables ("dice_after"), or a measure ("dice"), of which the method called "before" shows
            `dice_before` and all others `dice_after`. A measure taken once per pair, such as `folding_percent`,
            gives one box per method.
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
    for method, offset in zip(values, _offsets(len(values)), strict=True):
        jitter = np.random.default_rng(0)
        for ax, row in zip(axes, rows, strict=True):
            _draw_boxes(ax, values[method], row, offset, 0.8 / len(values), colours[method], jitter)
    for ax, row in zip(axes, rows, strict=True):
        ax.set_xticks(range(len(row)), row)
        if len(row) > 1 and sum(map(len, row)) > 11 * width:
            ax.tick_params(axis="x", rotation=30)
            for text in ax.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        for boundary in np.arange(len(row) - 1) + 0.5:
            ax.axvline(boundary, color="#dddddd", linewidth=0.8, zorder=0)
        ax.set(xlim=(-0.5, in_a_row - 0.5), ylabel=label or describe_column(column))
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        axes[0].set_title(title, fontsize="medium")
    handles = [Patch(facecolor=f"{colours[m]}66", edgecolor=colours[m], label=m) for m in values]
    legend_outside(figure, handles, "outside upper center")
    infinite = {method: int(np.isinf(v["value"].to_numpy(float)).sum()) for method, v in values.items()}
    if any(infinite.values()):
        counts = ", ".join(f"{method} {count}" for method, count in infinite.items() if count)
        figure.supxlabel(f"▲ infinite (structure lost): {counts}. Boxes are of the finite values.", fontsize="small")
    return figure


def grades(shares: Sequence[float], solved: Mapping[str, float], *, hardest: int = 12) -> Figure:
    """How a class did: a histogram of the students' shares of all points, and the exercises that fewest solved.

    Args:
        shares: of the points, one number from 0 to 1 per submission.
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
    right.set_ylim(max(len(order), 5) - 0.5, -0.5)  # the hardest on top; a few bars do not become thick
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _measure(method: str, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The columns pair, structure and value of one method.

    Raises:
        ValueError: the table lacks one of them.
    """
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


def _draw_boxes(
    ax: Axes,
    values: pd.DataFrame,
    structures: Sequence[str],
    offset: float,
    width: float,
    colour: str,
    jitter: np.random.Generator,
) -> None:
    """Draw one method's boxes and dots, `offset` beside the places of the structures; infinite values at the edge."""
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
