"""The common grid that a set of files suggests: large enough for all, and no finer than they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from course_utils.data.grids import Grid, by, covering

LARGEST_PROPOSED = 160 * 192 * 224
"""Voxels of a brain at 1 mm. A grid that would have more is proposed with larger voxels."""


@dataclass(frozen=True)
class CommonGrid:
    """A grid on which all images of a data set are compared.

    Attributes:
        shape: Voxels along each axis.
        spacing: Millimetres between them.
        aligned: The images are taken as stored, see `Recipe`.
        why: How it came about, in words.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    aligned: bool
    why: str

    def __str__(self) -> str:
        return f"{by(self.shape)} voxels of {'x'.join(f'{mm:g}' for mm in self.spacing)} mm ({self.why})"


def propose(
    grids: Sequence[Grid],
    *,
    placed: bool,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> CommonGrid:
    """The grid for images that lie on these grids.

    Volumes with a place in space are brought to the axes right, anterior, superior; the spacing is the median of theirs
    along each axis, and the shape holds the largest of them. Slices, and volumes whose files do not say where they are,
    are taken as stored.

    Args:
        grids: Of the images, at least one.
        placed: Whether the files say where the images are.
        shape: What the user wants instead.
        spacing: Likewise.
    """
    dims = len(grids[0].shape)
    aligned = dims == 2 or not placed
    wanted = spacing is not None
    if spacing is None:
        spacings = [grid.spacing if aligned else _along_ras(grid) for grid in grids]
        spacing = [_rounded(mm) for mm in np.median(spacings, axis=0)]
    spacing = tuple(float(mm) for mm in spacing)
    why = "as you say" if wanted else "the median spacing"
    if aligned:
        largest = tuple(int(n) for n in np.max([grid.shape for grid in grids], axis=0))
        why += ", axes as they are stored"
    else:
        largest = _covering_all(grids, spacing)
        voxels = float(np.prod(largest))
        if not wanted and shape is None and voxels > LARGEST_PROPOSED:
            spacing = tuple(_rounded(mm * (voxels / LARGEST_PROPOSED) ** (1 / 3)) for mm in spacing)
            largest = _covering_all(grids, spacing)
            why = f"coarser than the files, which would need {voxels / 1e6:.0f} million voxels"
        why += ", axes right, anterior, superior"
    if shape is None:
        return CommonGrid(largest, spacing, aligned, f"{why}, large enough for all {len(grids)} images")
    return CommonGrid(tuple(int(n) for n in shape), spacing, aligned, f"{why}, shape as you say")


def _along_ras(grid: Grid) -> list[float]:
    axes = nib.orientations.io_orientation(grid.affine)[:, 0].astype(int)
    return [grid.spacing[axis] for axis in np.argsort(axes)]


def _covering_all(grids: Sequence[Grid], spacing: Sequence[float]) -> tuple[int, ...]:
    shapes = [covering(grid, spacing, orientation="RAS").shape for grid in grids]
    return tuple(int(n) for n in np.max(shapes, axis=0))


def _rounded(mm: float) -> float:
    """Three digits: what a header holds of 0.9375 need not be copied."""
    return float(f"{mm:.3g}")
