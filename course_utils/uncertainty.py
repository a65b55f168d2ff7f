"""How far apart several answers to one question lie, and whether that says how wrong they are.

The answers are samples of a distribution, or networks that were trained from different weights.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from scipy import stats
from torch import Tensor


def spread(displacements: Sequence[Tensor]) -> Tensor:
    """Standard deviation of several displacements at each voxel: the root of the variance of all components together.

    Args:
        displacements: Two or more, each `(B, N, *spatial)` in voxels.

    Returns:
        `(B, 1, *spatial)`, voxels.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(displacements) < 2:
        raise ValueError(f"{len(displacements)} displacement has no spread: give two or more")
    return torch.stack(list(displacements)).float().var(dim=0).sum(dim=1, keepdim=True).sqrt()


def temperature(spread: Tensor, error: Tensor) -> float:
    """The factor that makes spreads as large as errors on the whole; fit it on other pairs than it is used on.

    Args:
        spread: Standard deviations, of any shape, voxels.
        error: Distances from the truth, of the same shape, voxels.

    Raises:
        ValueError: the shapes differ, or all spreads are 0.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017 (one factor, for classifiers).
    """
    _check(spread, error)
    return (error.double().square().sum() / spread.double().square().sum()).sqrt().item()


def coverage(spread: Tensor, error: Tensor, dims: int, level: float = 0.95) -> float:
    """Share of the voxels whose error lies within the region that should hold `level` of them.

    Args:
        spread: As in `temperature`, of errors that are normal and alike in all directions.
        error: As in `temperature`.
        dims: Components of a displacement, 2 or 3.
        level: Between 0 and 1.

    Raises:
        ValueError: the shapes differ, or all spreads are 0.
    """
    _check(spread, error)
    radius = (stats.chi2.ppf(level, dims) / dims) ** 0.5  # in standard deviations of all components together
    return (error <= radius * spread).double().mean().item()


def reliability(spread: Tensor, error: Tensor, bins: int = 10) -> pd.DataFrame:
    """The voxels in order of their spread, in groups of equal size: what was said, and what was true.

    Args:
        spread: As in `temperature`.
        error: As in `temperature`.
        bins: Groups.

    Returns:
        A row for each group, the most certain first: `spread` and `error`, the roots of their mean squares in voxels.

    Raises:
        ValueError: the shapes differ, or all spreads are 0.
    """
    _check(spread, error)
    order = spread.flatten().argsort()
    groups = zip(spread.flatten()[order].chunk(bins), error.flatten()[order].chunk(bins), strict=True)
    return pd.DataFrame(
        [
            {
                name: values.double().square().mean().sqrt().item()
                for name, values in zip(("spread", "error"), group, strict=True)
            }
            for group in groups
        ]
    )


def _check(spread: Tensor, error: Tensor) -> None:
    if spread.shape != error.shape:
        raise ValueError(f"spread {tuple(spread.shape)} and error {tuple(error.shape)} must have one shape")
    if not spread.any():
        raise ValueError("all spreads are 0: nothing was said about how certain the answers are")
