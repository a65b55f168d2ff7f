"""Grids in space: where the voxels of a volume are.

A voxel index becomes a position in millimetres by an affine, in NIfTI's axes: right, anterior, superior (RAS).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume, or the pixels of a slice, are.

    Attributes:
        shape: N voxels along each array axis, 2 or 3 of them.
        affine: `(N + 1, N + 1)` float64, from voxel indices to millimetres (RAS in 3-D).
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @classmethod
    def as_stored(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Grid":
        """The grid of an array whose place in space is unknown or of no account: its axes are those of space."""
        return cls(tuple(int(n) for n in shape), np.diag([*(float(mm) for mm in spacing), 1.0]))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each array axis."""
        return tuple(np.linalg.norm(self.affine[:-1, :-1], axis=0).tolist())


def covering(
    grid: Grid, spacing: Sequence[float], *, at_least: Sequence[int] | None = None, orientation: str | None = None
) -> Grid:
    """The grid over the same field of view, and along the same directions, with another spacing.

    Args:
        grid: of a scan.
        spacing: mm along each array axis of the result.
        at_least: voxels along each axis; a smaller field of view is padded evenly, as in training.
        orientation: axis codes such as `"RAS"`, of a volume: its array axes are permuted and flipped to come closest.
            None keeps them.
    """
    if orientation is not None:
        start = nib.orientations.io_orientation(grid.affine)
        change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
        affine = grid.affine @ nib.orientations.inv_ornt_aff(change, grid.shape)
        grid = Grid(tuple(grid.shape[int(axis)] for axis in np.argsort(change[:, 0])), affine)
    factors = np.asarray(spacing) / grid.spacing
    # Rounded up, but not for the sake of rounding errors in the affine.
    needed = [math.ceil(n / factor - 1e-3) for n, factor in zip(grid.shape, factors, strict=True)]
    shape = tuple(max(n, least) for n, least in zip(needed, at_least or needed, strict=True))
    # The first voxel, such that the two fields of view share their centre; odd padding has more behind, as in MONAI.
    first = [
        (old - 1) / 2 - factor * ((n - 1) / 2 + (wide - n) // 2)
        for old, factor, n, wide in zip(grid.shape, factors, needed, shape, strict=True)
    ]
    step = np.diag([*factors, 1.0])
    step[:-1, -1] = first
    return Grid(shape, grid.affine @ step)


def overlap(moving: Grid, fixed: Grid) -> float:
    """Share of the fixed grid's field of view that lies inside the moving one, 0 to 1, as their affines have it."""
    points = np.stack(np.meshgrid(*[np.linspace(-0.5, n - 0.5, 33) for n in fixed.shape], indexing="ij"))
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    there = np.tensordot(matrix[:3, :3], points, 1) + matrix[:3, 3, None, None, None]
    # Two fields of view that end at one place must not be told apart by rounding errors.
    there = there.round(6)
    sizes = np.array(moving.shape)[:, None, None, None]
    return float(((there >= -0.5) & (there <= sizes - 0.5)).all(0).mean())


def by(shape: Sequence[int]) -> str:
    """A shape in words: 160x192x224."""
    return "x".join(map(str, shape))


def sheared(grid: Grid) -> bool:
    """Whether the axes of a volume are not at right angles, by more than a thousandth: a tilted gantry leaves that."""
    directions = grid.affine[:-1, :-1] / np.linalg.norm(grid.affine[:-1, :-1], axis=0)
    angles = directions.T @ directions - np.eye(len(directions))
    return bool(np.abs(angles).max() > 1e-3)
