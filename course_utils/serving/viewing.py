"""What the page draws of a registration: small arrays on one grid, bytes that a browser reads as they are."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.grids import Grid, covering
from course_utils.data.resampling import resample
from course_utils.data.volumes import Volume
from course_utils.fields import jacobian_determinant
from course_utils.scans.applying import Field
from course_utils.scans.transform import Transform

VOXELS = 2**21
"""That the grid of the page has at most; larger scans are drawn coarser, and written as they are."""
FINE = 64
"""Parts of a voxel that a displacement is told in."""
OCTAVES = 2.0
"""The page's scale of the Jacobian goes from a quarter of a volume to four times it."""
STRUCTURES = 255
"""That are drawn of a label map: those of the lowest values."""


@dataclass(frozen=True, eq=False)
class View:
    """Arrays on the page's grid, whose axes lead right, anterior and superior as nearly as the fixed scan's own do.

    Attributes:
        spacing: Of the grid, mm.
        arrays: By name, `(X, Y, Z)` uint8 but for the displacement. `fixed`, `moving` (where its file places it) and
            `moved` are grey values. `displacement` is `(3, X, Y, Z)` int16, in `1 / FINE` voxels of this grid.
            `jacobian` is 0 where it folds, and 1 to 255 is the logarithm to base 2 of the determinant, from
            `-OCTAVES` to `OCTAVES`. `moving_label` and `moved_label`, where there is a label map, are 0 and the rank
            of each value.
    """

    spacing: tuple[float, ...]
    arrays: dict[str, NDArray[Any]]

    def write(self, folder: Path) -> None:
        """Write `view.bin`, the arrays one after another, little-endian and in C order, and `view.json`, where each
        begins."""
        parts, places, start = [], {}, 0
        for name, array in self.arrays.items():
            start += -start % array.itemsize
            places[name] = {"start": start, "type": array.dtype.name}
            parts.append((start, array.astype(array.dtype.newbyteorder("<")).tobytes()))
            start += array.nbytes
        with (folder / "view.bin").open("wb") as file:
            for begin, part in parts:
                file.seek(begin)
                file.write(part)
        told = {
            "shape": self.arrays["fixed"].shape,
            "spacing": self.spacing,
            "fine": FINE,
            "octaves": OCTAVES,
            "arrays": places,
        }
        (folder / "view.json").write_text(json.dumps(told), encoding="utf-8")


def view_of(moving: Volume, fixed: Volume, moved: Volume, field: Field, labels: dict[str, Volume]) -> View:
    """What the page draws.

    Args:
        moving: The scan that was moved.
        fixed: The scan that it was moved onto.
        moved: What became of it.
        field: Of the layout itk, which made it.
        labels: `moving_label` and `moved_label`, or nothing.
    """
    grid = grid_for(fixed.grid)
    low, high = np.percentile(moving.data, (0.5, 99.5))
    window = (float(low), float(high))
    still = np.eye(4)
    displacement = Transform(field.grid, field.displacement, still, still).between(grid, grid)
    arrays = {
        "displacement": _fixed_point(displacement),
        "fixed": _grey(fixed, grid, tuple(float(value) for value in np.percentile(fixed.data, (0.5, 99.5)))),
        "moving": _grey(moving, grid, window),
        "moved": _grey(moved, grid, window),
        "jacobian": _octaves(jacobian_determinant(displacement)),
    }
    values = sorted(set().union(*(np.unique(label.data).tolist() for label in labels.values())) - {0})
    arrays |= {name: _ranks(label, grid, values) for name, label in labels.items()}
    return View(grid.spacing, arrays)


def grid_for(fixed: Grid) -> Grid:
    """The page's grid for a fixed scan: its voxels, their axes in the order of space; fewer where it has too many."""
    axes = nib.orientations.io_orientation(fixed.affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = fixed.spacing
    coarser = max(1.0, (math.prod(fixed.shape) / VOXELS) ** (1 / 3))
    return covering(fixed, (spacing * coarser).tolist(), orientation="RAS")


def _grey(volume: Volume, grid: Grid, window: tuple[float, ...]) -> NDArray[np.uint8]:
    low, high = window
    shown = ((volume.data - low) / max(high - low, 1e-12)).clip(0, 1)  # before, so that outside is what is lowest
    return (resample(shown, volume.grid, grid)[0, 0] * 255).round().numpy().astype(np.uint8)


def _fixed_point(displacement: Tensor) -> NDArray[np.int16]:
    limits = torch.iinfo(torch.int16)
    return (displacement[0] * FINE).round().clip(limits.min, limits.max).numpy().astype(np.int16)


def _octaves(determinant: Tensor) -> NDArray[np.uint8]:
    folded = determinant <= 0
    octaves = torch.log2(determinant.clamp_min(1e-9)).clip(-OCTAVES, OCTAVES)
    scaled = 128 + (octaves * 127 / OCTAVES).round()
    return scaled.masked_fill(folded, 0)[0, 0].numpy().astype(np.uint8)


def _ranks(label: Volume, grid: Grid, values: list[int]) -> NDArray[np.uint8]:
    shown = resample(label.data, label.grid, grid, mode="nearest")[0, 0].numpy()
    ranks = np.zeros(shown.shape, np.uint8)
    for rank, value in enumerate(values[:STRUCTURES], 1):
        ranks[shown == value] = rank
    return ranks
