"""One table for every registration method: run it on pairs and measure it before and after.

The table has one row for each pair and structure, so any question about it is one line of pandas; `summarise` and
`paired_comparison` answer the usual ones.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor
from torch import Tensor

from course_utils import losses, metrics
from course_utils.checkpoint import Checkpoint
from course_utils.consistency import consistency
from course_utils.data.folder_facts import labels_of
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.pairs import Pair
from course_utils.data.volumes import read_grid
from course_utils.errors import CourseError
from course_utils.fields import compose, invert, warp

WHOLE = "whole image"
"""The structure of a row that was measured without labels."""


def evaluate(
    model: Callable[[Tensor, Tensor], Any],
    pairs: Iterable[Mapping[str, Any]],
    labels: Mapping[int, str],
    spacing: float | Sequence[float],
    *,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Register every pair and measure the result against the labels or, where a pair has none, without them.

    Args:
        model: `model(moving, fixed)` on float32 `(1, 1, *spatial)`, answering with an object whose
            `displacement` is `(1, N, *spatial)` in voxels. A network is put on the device and into
            evaluation mode (and back into the mode it was in). Any callable will do: SciPy, SimpleITK, doing
            nothing. It runs under `torch.inference_mode`; one that optimises by gradients opens
            `torch.inference_mode(False)` itself.
        pairs: items as `course_utils.data.loading.PairDataset` gives them: `fixed`, `moving`, `(1, *spatial)`, `name`;
            `fixed_label` and `moving_label` where there are labels, and `true_displacement` `(N, *spatial)` where it is
            known.
        labels: the structures to measure, label value to name.
        spacing: mm between voxels along each array axis, or one number for all.
        device: where the model runs.

    Returns:
        One row for each pair and structure: pair, structure, dice_before, dice_after, hd_mm_before, hd_mm_after,
        hd95_mm_before, hd95_mm_after, folding_percent, ndv_percent, sdlogj, seconds, and tre_mm_before, tre_mm_after
        (inside the fixed labels) where the true displacement is known. The moving label is moved with the
        nearest neighbour and zero outside. `seconds` is the time of the call alone, after one call that is
        not counted.

        A pair that lacks a label map, or any pair where `labels` is empty, has one row, of the structure `WHOLE`:
        ncc_before, ncc_after (mean local squared correlation, 0 to 1), inverse_error_mm (how far, on average, a voxel
        ends from its place after the map and its inverse), folding_percent, ndv_percent, sdlogj and seconds.

    Raises:
        CourseError: there are no pairs; a pair comes twice, or has none of the labels asked for; the displacement is
            not finite or not of the pair's shape.
    """
    device = torch.device(device)
    if isinstance(model, torch.nn.Module):
        model.to(device)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    with eval_mode(model) if isinstance(model, torch.nn.Module) else nullcontext():
        for item in pairs:
            name = item["name"]
            if name in names:
                raise CourseError(f"pair {name} comes twice: give each pair once, under its own name")
            names.add(name)
            moving, fixed = (_tensor(item, key, device) for key in ("moving", "fixed"))
            if not rows:
                _timed(model, moving, fixed)  # allocates, compiles, fills caches
            registration, seconds = _timed(model, moving, fixed)
            displacement = registration.displacement.detach().to(device)
            _check_displacement(displacement, fixed, name)
            of_pair = {
                "folding_percent": metrics.folding_percent(displacement).item(),
                "ndv_percent": metrics.ndv_percent(displacement).item(),
                "sdlogj": metrics.sdlogj(displacement).item(),
                "seconds": seconds,
            }
            if not labels or item.get("moving_label") is None or item.get("fixed_label") is None:
                alike = _likeness(moving, fixed, displacement)
                error = _inverse_error(registration, displacement, spacing)
                rows.append({"pair": name, "structure": WHOLE, **alike, "inverse_error_mm": error, **of_pair})
                continue
            moving_label, fixed_label = (_tensor(item, key, device) for key in ("moving_label", "fixed_label"))
            moved_label = warp(moving_label, displacement, mode="nearest", padding="zeros")
            measured = {
                "before": _compare(moving_label, fixed_label, labels, spacing),
                "after": _compare(moved_label, fixed_label, labels, spacing),
            }
            if all(math.isnan(score) for score in measured["before"]["dice"]):
                raise CourseError(
                    f"pair {name}: none of the labels {', '.join(map(str, labels))} is in its label maps: "
                    "check the label values or leave this pair out"
                )
            if item.get("true_displacement") is not None:
                truth = convert_to_tensor(item["true_displacement"], device=device)[None]
                mask = fixed_label > 0
                for side, field in (("before", torch.zeros_like(truth)), ("after", displacement)):
                    error = metrics.target_registration_error(field, truth, spacing, mask)
                    of_pair[f"tre_mm_{side}"] = error.item()
            for index, structure in enumerate(labels.values()):
                row = {"pair": name, "structure": structure}
                for measure, side in itertools.product(("dice", "hd_mm", "hd95_mm"), ("before", "after")):
                    row[f"{measure}_{side}"] = measured[side][measure][index]
                rows.append(row | of_pair)
    if not rows:
        raise CourseError("there are no pairs to evaluate: ask for at least one")
    return pd.DataFrame(rows)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    *,
    labels: Mapping[int, str] | None = None,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Measure a trained network on pairs of scans, prepared as its training prepared them.

    Args:
        checkpoint: The network.
        pairs: What a cohort or `pairs_from_csv` gives; images of a pair may differ in shape.
        labels: The structures to measure, label value to name; None takes those of the network's data set or, where it
            had none, all that the label maps of the pairs hold.
        device: Where the network runs.

    Returns:
        The table of `evaluate`, and with each pair what `consistency` says of it: swap_voxels, self_voxels. With the
        target registration error where the true deformation of the pairs is known (of the built-in cohort) on the
        network's grid.

    Raises:
        CourseError: a file cannot be used, and whatever `evaluate` raises.
    """
    subjects = [subject for pair in pairs for subject in (pair.fixed, pair.moving)]
    loaded = load_subjects(subjects, checkpoint.card.recipe, strict=True)
    recipe = checkpoint.card.recipe
    truth = all(
        subject.velocity is not None and read_grid(subject.image, len(recipe.shape))[0].shape == recipe.shape
        for subject in subjects
    )
    dataset = PairDataset(loaded, pairs, truth=truth)
    labels = labels or checkpoint.card.labels or labels_of(subjects, len(recipe.shape))
    model = checkpoint.model()

    def items() -> Iterator[Mapping[str, Any]]:
        return (dataset[index] for index in range(len(dataset)))

    table = evaluate(model, items(), labels, recipe.spacing, device=device)
    return table.merge(consistency(model, items(), device), on="pair")


def _tensor(item: Mapping[str, Any], key: str, device: torch.device) -> Tensor:
    """An image or a label map of a pair, `(1, 1, *spatial)`, on the device."""
    if item.get(key) is None:
        raise CourseError(f"pair {item['name']} has no {key} image: add it, or leave the pair out")
    return convert_to_tensor(item[key], device=device)[None]


def _timed(model: Callable[[Tensor, Tensor], Any], moving: Tensor, fixed: Tensor) -> tuple[Any, float]:
    """The registration and the seconds it took; CUDA works in the background: wait for it on both sides."""
    wait = (lambda: torch.cuda.synchronize(moving.device)) if moving.device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    with torch.inference_mode():
        registration = model(moving, fixed)
    wait()
    return registration, time.perf_counter() - start


def _likeness(moving: Tensor, fixed: Tensor, displacement: Tensor) -> dict[str, float]:
    """How much the images are alike, before and after."""
    moved = warp(moving, displacement)
    return {
        f"ncc_{side}": 1 - losses.ncc_loss(image, fixed).item()
        for side, image in (("before", moving), ("after", moved))
    }


def _inverse_error(registration: Any, displacement: Tensor, spacing: float | Sequence[float]) -> float:
    """Mean distance, mm, between a voxel and where the map and then its inverse take it."""
    with torch.inference_mode():
        inverse = registration.inverse() if hasattr(registration, "inverse") else invert(displacement)
        back = compose(displacement, inverse.to(displacement.device))
        mm = torch.as_tensor(spacing, dtype=torch.float32, device=back.device).expand(back.shape[1])
        return (back * mm.view(1, -1, *[1] * (back.ndim - 2))).norm(dim=1).mean().item()


def _check_displacement(displacement: Tensor, fixed: Tensor, name: str) -> None:
    spatial = tuple(fixed.shape[2:])
    if tuple(displacement.shape) != (1, len(spatial), *spatial):
        raise CourseError(
            f"pair {name}: the displacement has shape {tuple(displacement.shape)}, "
            f"not {(1, len(spatial), *spatial)}: "
            "the model must answer on the fixed image's grid"
        )
    if not displacement.isfinite().all():
        raise CourseError(
            f"pair {name}: the displacement holds NaN or infinity: "
            "the model diverged or the images are not finite, check both before measuring"
        )


def _compare(
    label: Tensor, fixed_label: Tensor, labels: Mapping[int, str], spacing: float | Sequence[float]
) -> dict[str, list[float]]:
    """Overlap and distances of each structure, in the order of `labels`."""
    maximum, hd95 = metrics.hausdorff(label, fixed_label, labels, spacing, percentile=(100, 95))[:, 0]
    overlap = metrics.dice(label, fixed_label, labels)[0]
    return {"dice": overlap.tolist(), "hd_mm": maximum.tolist(), "hd95_mm": hd95.tolist()}


# --- statistics -------------------------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over pairs of an evaluation table, for each structure and overall.

    Overall, the structures of a pair are averaged first, so that every pair weighs the same and the spread is
    that between pairs. A structure that only one of the two images has is infinitely far: the `lost`
    columns count these, before and after separately, and the means of distances are over the rows that are
    finite both before and after, so that the two sides speak of the same structures. Do not quote such a mean
    without its count.

    Args:
        table: what `evaluate` returns, one row for each pair and structure.

    Returns:
        One row a structure, then `"overall"`. Columns have two levels: `("pairs", "count")`, then for
        each measure `(measure, "mean")` and `(measure, "std")` (sample standard deviation over pairs, NaN
        for a single pair), and for distances `(measure, "lost")`. What is measured once a pair
        (folding_percent, ndv_percent, sdlogj, seconds, tre_mm_*) stands in the overall row only. `summarise(table).T`
        prints best.

    Raises:
        CourseError: the table is empty or lacks a column.
    """
    _check_table(table, [])
    measures = [c for c in table.columns if c not in ("pair", "structure")]
    of_structure = [c for c in measures if c.startswith(("dice_", "hd_", "hd95_"))]
    finite = table.copy()
    for after in [c for c in of_structure if c.startswith("hd") and c.endswith("_after")]:
        before = after.removesuffix("_after") + "_before"
        _check_table(table, [before])
        apart = np.isinf(table[before]) | np.isinf(table[after])
        finite.loc[apart, [before, after]] = np.nan
    rows = {}
    for structure, its_rows in finite.groupby("structure", sort=False):
        rows[structure] = _statistics(its_rows.set_index("pair")[of_structure], table.loc[its_rows.index])
    overall = finite.groupby("pair", sort=False)[measures].mean()
    rows["overall"] = _statistics(overall, table)
    summary = pd.DataFrame.from_dict(rows, orient="index")
    # from_dict orders the columns as the first row has them; the measures keep the table's order instead.
    summary = summary.reindex(columns=list(rows["overall"]))
    summary.columns = pd.MultiIndex.from_tuples(summary.columns, names=["measure", "statistic"])
    return summary.rename_axis("structure")


def readable(summary: pd.DataFrame) -> str:
    """What `summarise` returns, as text: a line for each structure, then what is measured once a pair.

    Every number is a mean and a standard deviation over pairs.
    """

    def cell(structure: str, measure: str) -> str:
        line = summary.loc[structure, measure]
        lost = f", {line['lost']:.0f} lost" if line.get("lost") else ""
        return f"{line['mean']:.3f} ± {line['std']:.3f}{lost}"

    measures = [measure for measure in summary.columns.unique(level=0) if measure != "pairs"]
    of_structure = [measure for measure in measures if measure.startswith(("dice_", "hd_", "hd95_"))]
    rows = {structure: [cell(structure, measure) for measure in of_structure] for structure in summary.index}
    once = [f"{measure}: {cell('overall', measure)}" for measure in measures if measure not in of_structure]
    pairs = f"mean ± standard deviation over {summary.loc['overall', ('pairs', 'count')]:.0f} pairs"
    table = [pd.DataFrame.from_dict(rows, "index", columns=of_structure).to_string()] if of_structure else []
    return "\n".join([pairs, *table, *once])


@dataclass(frozen=True)
class PairedComparison:
    """Method A minus method B in one column of their tables, pair by pair."""

    column: str
    n: int  # pairs compared
    mean_difference: float  # A - B, in the column's unit
    low: float  # 95 % bootstrap confidence interval of the mean difference
    high: float
    p_value: float  # two-sided Wilcoxon signed-rank test
    excluded: int  # rows (pair and structure) left out because one of the two values is not finite

    def __str__(self) -> str:
        return (
            f"{self.column}: mean difference {self.mean_difference:+.4g} "
            f"(95 % CI {self.low:+.4g} to {self.high:+.4g}), Wilcoxon p = {self.p_value:.2g}, "
            f"n = {self.n} pairs, {self.excluded} rows excluded"
        )


def paired_comparison(table_a: pd.DataFrame, table_b: pd.DataFrame, column: str, *, seed: int = 0) -> PairedComparison:
    """Is A better than B on the same pairs? The spread between pairs, which hides small effects, cancels.

    The structures of a pair are averaged first: they are not independent, pairs are the sample. A row whose
    value is not finite in either table (a lost or absent structure) is left out of both and counted.

    Args:
        table_a, table_b: two evaluation tables of the same pairs and structures, in any order.
        column: the measure, such as `"dice_after"`.
        seed: of the bootstrap (9999 resamples, percentile interval).

    Raises:
        CourseError: a column is missing, the tables are of different pairs, or fewer than two pairs are left.

    Sources: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1(6), 1945; Efron and
    Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    key = ["pair", "structure"]
    for table in (table_a, table_b):
        _check_table(table, [column])
    joined = table_a[[*key, column]].merge(table_b[[*key, column]], on=key, how="outer", indicator=True)
    alone = joined[joined["_merge"] != "both"]
    if len(alone):
        first = alone.iloc[0]
        raise CourseError(
            f"{len(alone)} rows are in one table only, the first is pair {first['pair']}, structure "
            f"{first['structure']}: evaluate both methods on the same pairs"
        )
    both = np.isfinite(joined[[f"{column}_x", f"{column}_y"]]).all(axis=1)
    difference = joined[f"{column}_x"] - joined[f"{column}_y"]
    by_pair = difference[both].groupby(joined["pair"][both]).mean().to_numpy()
    if len(by_pair) < 2:
        raise CourseError(f"{len(by_pair)} pairs have a finite {column} in both tables: compare at least two")
    interval = scipy.stats.bootstrap(
        (by_pair,), np.mean, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    # Where no pair differs SciPy has nothing to rank; such data speak for no difference at all.
    p_value = scipy.stats.wilcoxon(by_pair).pvalue if by_pair.any() else 1.0
    return PairedComparison(
        column=column,
        n=len(by_pair),
        mean_difference=float(by_pair.mean()),
        low=float(interval.low),
        high=float(interval.high),
        p_value=float(p_value),
        excluded=int((~both).sum()),
    )


def _statistics(values: pd.DataFrame, rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """One line of the summary: statistics of `values` (a line a pair), the lost counted in `rows`."""
    line: dict[tuple[str, str], float] = {("pairs", "count"): len(values)}
    for measure in values.columns:
        line[measure, "mean"] = values[measure].mean()
        line[measure, "std"] = values[measure].std()
        if measure.startswith("hd"):
            line[measure, "lost"] = int(np.isinf(rows[measure]).sum())
    return line


def _check_table(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in ("pair", "structure", *columns) if c not in table.columns]
    if missing:
        raise CourseError(f"the table has no column {', '.join(missing)}: give one that evaluate made")
    if table.empty:
        raise CourseError("the table has no rows: evaluate at least one pair first")
    twice = table[table.duplicated(["pair", "structure"])]
    if len(twice):
        first = twice.iloc[0]
        raise CourseError(
            f"pair {first['pair']}, structure {first['structure']} stands twice in the table: "
            "give each pair its own name"
        )
