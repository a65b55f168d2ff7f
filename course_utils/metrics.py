"""What a registration is judged by: overlap, boundary distance, regularity, and the error of the map itself.

Labels are integer tensors ``(B, 1, *spatial)``, displacements ``(B, N, *spatial)`` in voxels, in 2-D or 3-D.
Each metric gives one number for every image of the batch (and every structure), never a batch mean;
:func:`summarise` and :func:`paired_comparison` do the statistics, on the table that
:func:`course_utils.evaluation.evaluate` makes.

A structure that vanished must not improve a mean: its Dice is 0 and its Hausdorff distance infinite. Only a
structure that neither image has is not a number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import torch
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import jacobian_determinant

SMALLEST_DETERMINANT = 1e-9  # a folded voxel has no logarithm; Learn2Reg clips here too
LEARN2REG_BORDER = 2  # voxels a side that Learn2Reg leaves out


def dice(moved_label: Tensor, fixed_label: Tensor, labels: Iterable[int]) -> Tensor:
    """Overlap ``2 |A and B| / (|A| + |B|)`` of each structure, in [0, 1].

    Args:
        moved_label, fixed_label: integer ``(B, 1, *spatial)`` of one shape.
        labels: the L label values to measure.

    Returns:
        ``(B, L)`` float32: 0 where only one of the images has the structure, NaN where neither has.

    Raises:
        ValueError: the shapes differ.

    Source: Dice, Measures of the amount of ecologic association between species, Ecology 26(3), 1945.
    """
    _check_labels(moved_label, fixed_label)
    values = torch.tensor(list(labels), device=fixed_label.device)

    def voxels(label: Tensor) -> Tensor:
        """How often each value occurs: one histogram, however many structures."""
        return torch.bincount(label.flatten(), minlength=int(values.max()) + 1)[values]

    scores = []
    for moved, fixed in zip(moved_label, fixed_label, strict=True):
        shared = voxels(fixed[moved == fixed])
        scores.append(2 * shared / (voxels(moved) + voxels(fixed)))  # 0 / 0 is NaN
    return torch.stack(scores)


def hausdorff(
    moved_label: Tensor,
    fixed_label: Tensor,
    labels: Iterable[int],
    spacing: float | Sequence[float],
    percentile: float | Sequence[float] | None = None,
) -> Tensor:
    """Hausdorff distance between the boundaries of each structure, in mm: the larger of the two directions.

    The boundary of a structure is those of its voxels that have a face neighbour outside it (beyond the image
    is outside). In each direction, every boundary voxel looks for the nearest one of the other image; the
    maximum of these distances is the Hausdorff distance, their 95th percentile (linear between ranks) is
    HD95, which forgives a few stray voxels.

    Args:
        moved_label, fixed_label: integer ``(B, 1, *spatial)`` of one shape.
        labels: the L label values to measure.
        spacing: mm between voxels along each array axis, or one number for all.
        percentile: None for the maximum, else between 0 and 100. A sequence, such as ``(100, 95)``, measures
            the boundaries once and answers with a leading axis, as ``numpy.percentile`` does.

    Returns:
        ``(B, L)`` or ``(len(percentile), B, L)`` float32 on the CPU, in mm: infinite where only one of the
        images has the structure, NaN where neither has.

    Raises:
        ValueError: the shapes differ, or spacing is not one positive number an axis.

    Learn2Reg's HD95 weighs boundary voxels by their area and counts in voxels: compare with its tables only roughly.

    Sources: Huttenlocher et al., Comparing images using the Hausdorff distance, IEEE TPAMI 15(9), 1993; Taha
    and Hanbury, Metrics for evaluating 3D medical image segmentation, BMC Medical Imaging 15:29, 2015.
    """
    _check_labels(moved_label, fixed_label)
    spacing = _spacing(spacing, moved_label.ndim - 2)
    ranks = np.asarray(100.0 if percentile is None else percentile, dtype=float)
    labels = list(labels)
    moved, fixed = moved_label[:, 0].cpu().numpy(), fixed_label[:, 0].cpu().numpy()
    distances = np.empty((*ranks.shape, len(moved), len(labels)), dtype=np.float32)
    for b, column in np.ndindex(len(moved), len(labels)):
        a = _boundary(moved[b] == labels[column], spacing)
        f = _boundary(fixed[b] == labels[column], spacing)
        if len(a) and len(f):
            there = np.percentile(KDTree(f).query(a)[0], ranks)
            back = np.percentile(KDTree(a).query(f)[0], ranks)
            distances[..., b, column] = np.maximum(there, back)
        else:
            distances[..., b, column] = np.inf if len(a) or len(f) else np.nan
    return torch.from_numpy(distances)


def folding_percent(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of voxels where the map folds, ``det(I + du/dx) <= 0``, in percent.

    Args:
        displacement: ``(B, N, *spatial)``, voxels.
        mask: voxels that count, ``(B, 1, *spatial)`` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        ``(B,)`` float32 in [0, 100]; NaN where the mask is empty or a determinant in it is NaN.
    """
    percents = []
    for determinant in _inside(jacobian_determinant(displacement), mask):
        folded = (determinant <= 0).float().masked_fill(determinant.isnan(), torch.nan)
        percents.append(100 * folded.mean())
    return torch.stack(percents)


def sdlogj(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation over voxels of ``log det(I + du/dx)``: 0 for a rigid map, larger for a rougher one.

    Determinants are clipped from below at 1e-9, so every fold weighs ``log 1e-9 = -20.7``.

    Args:
        displacement: ``(B, N, *spatial)``, voxels.
        mask: voxels that count, ``(B, 1, *spatial)`` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        ``(B,)`` float32, no unit; NaN where the mask is empty or a determinant in it is NaN.

    Source: Leow et al., Statistical properties of Jacobian maps and the realization of unbiased
    large-deformation nonlinear image registration, IEEE TMI 26(6), 2007.
    """
    determinants = _inside(jacobian_determinant(displacement), mask)
    return torch.stack([_spread(d.clamp(min=SMALLEST_DETERMINANT).log()) for d in determinants])


def sdlogj_learn2reg(displacement: Tensor) -> Tensor:
    """SDlogJ as the Learn2Reg challenge computes it: for comparing with its published tables only.

    The challenge takes the standard deviation of ``log(clip(det + 3, 1e-9, 1e9))``, without 2 voxels at each
    border. Adding 3 keeps mild folds finite; it also makes the number about 4 times smaller than
    :func:`sdlogj`.

    Args:
        displacement: ``(B, N, *spatial)``, voxels; at least 5 voxels along each axis.

    Returns:
        ``(B,)`` float32, no unit.

    Raises:
        ValueError: an axis is shorter than 5 voxels.

    Source: Hering et al., Learn2Reg: comprehensive multi-task medical image registration challenge, IEEE TMI
    42(3), 2023, and its public evaluation code.
    """
    if min(displacement.shape[2:]) <= 2 * LEARN2REG_BORDER:
        raise ValueError(f"Learn2Reg's SDlogJ needs 5 voxels an axis, not {tuple(displacement.shape[2:])}")
    core = (slice(None), slice(None)) + (slice(LEARN2REG_BORDER, -LEARN2REG_BORDER),) * displacement.shape[1]
    determinants = jacobian_determinant(displacement)[core].flatten(1)
    return torch.stack([_spread((d + 3).clamp(1e-9, 1e9).log()) for d in determinants])


def target_registration_error(
    displacement: Tensor,
    true_displacement: Tensor,
    spacing: float | Sequence[float],
    mask: Tensor | None = None,
) -> Tensor:
    """Mean Euclidean distance in mm between where a displacement sends a voxel and where it belongs.

    Args:
        displacement, true_displacement: ``(B, N, *spatial)`` of one shape, voxels.
        spacing: mm between voxels along each array axis, or one number for all.
        mask: voxels that count, ``(B, 1, *spatial)`` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        ``(B,)`` float32, mm; NaN where the mask is empty.

    Raises:
        ValueError: the shapes differ, or spacing is not one positive number an axis.

    Source: Fitzpatrick and West, The distribution of target registration error in rigid-body point-based
    registration, IEEE TMI 20(9), 2001; here every voxel is a target.
    """
    if displacement.shape != true_displacement.shape:
        raise ValueError(
            f"two displacements of one shape are compared, not {tuple(displacement.shape)} and "
            f"{tuple(true_displacement.shape)}"
        )
    dims = displacement.shape[1]
    millimetres = torch.tensor(_spacing(spacing, dims), dtype=torch.float32, device=displacement.device)
    error = (displacement.float() - true_displacement.float()) * millimetres.view(1, -1, *[1] * dims)
    lengths = torch.linalg.vector_norm(error, dim=1, keepdim=True)
    return torch.stack([e.mean() for e in _inside(lengths, mask)])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over pairs of an evaluation table, for each structure and overall.

    Overall, the structures of a pair are averaged first, so that every pair weighs the same and the spread is
    that between pairs. A structure that only one of the two images has is infinitely far: the ``lost``
    columns count these, before and after separately, and the means of distances are over the rows that are
    finite both before and after, so that the two sides speak of the same structures. Do not quote such a mean
    without its count.

    Args:
        table: what :func:`course_utils.evaluation.evaluate` returns, one row a pair and structure.

    Returns:
        One row a structure, then ``"overall"``. Columns have two levels: ``("pairs", "count")``, then for
        each measure ``(measure, "mean")`` and ``(measure, "std")`` (sample standard deviation over pairs, NaN
        for a single pair), and for distances ``(measure, "lost")``. What is measured once a pair
        (folding_percent, sdlogj, seconds, tre_mm_*) stands in the overall row only. ``summarise(table).T``
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
        column: the measure, such as ``"dice_after"``.
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


def _boundary(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Positions in mm, ``(points, N)``, of a binary image's voxels that have a face neighbour outside."""
    boxes = find_objects(inside.view(np.uint8))
    if not boxes:
        return np.empty((0, inside.ndim))
    box = boxes[0]  # beyond it, all is outside: erosion within it is exact, and much cheaper
    edge = inside[box] & ~binary_erosion(inside[box])
    return (np.argwhere(edge) + [side.start for side in box]) * spacing


def _inside(values: Tensor, mask: Tensor | None) -> Iterable[Tensor]:
    """The values ``(B, 1, *spatial)`` of each image that are in the mask, flat."""
    if mask is None:
        return values.flatten(1)
    return [v[m] for v, m in zip(values, (mask != 0).expand_as(values), strict=True)]


def _spread(values: Tensor) -> Tensor:
    """Population standard deviation; NaN for no values."""
    return values.std(correction=0) if values.numel() else values.new_tensor(torch.nan)


def _statistics(values: pd.DataFrame, rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """One line of the summary: statistics of ``values`` (a line a pair), the lost counted in ``rows``."""
    line: dict[tuple[str, str], float] = {("pairs", "count"): len(values)}
    for measure in values.columns:
        line[measure, "mean"] = values[measure].mean()
        line[measure, "std"] = values[measure].std()
        if measure.startswith("hd"):
            line[measure, "lost"] = int(np.isinf(rows[measure]).sum())
    return line


def _check_labels(moved_label: Tensor, fixed_label: Tensor) -> None:
    if moved_label.shape != fixed_label.shape or moved_label.ndim not in (4, 5) or moved_label.shape[1] != 1:
        raise ValueError(
            "two label maps of one shape (B, 1, *spatial) are compared, "
            f"not {tuple(moved_label.shape)} and {tuple(fixed_label.shape)}"
        )


def _spacing(spacing: float | Sequence[float], dims: int) -> np.ndarray:
    """``(dims,)`` mm."""
    values = np.atleast_1d(np.asarray(spacing, dtype=float))
    if values.shape not in ((1,), (dims,)) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"spacing is a positive number of mm, or {dims} of them, one an axis, not {spacing}")
    return np.broadcast_to(values, (dims,))


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
