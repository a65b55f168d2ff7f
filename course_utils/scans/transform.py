"""A map between two scans, in millimetres."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.grids import Grid
from course_utils.data.resampling import affine_field
from course_utils.fields import warp


@dataclass(frozen=True, eq=False)
class Transform:
    """A map from the millimetres of the image that is made to those of the image that is read.

    A position `p` goes to `after(phi(before(p)))`, where `phi(x) = x + u(x)` in voxels of `grid`. Outside the
    grid the displacement goes on as at its edge.

    Attributes:
        grid: where the displacement is known.
        displacement: `(1, N, *grid.shape)`, voxels.
        before, after: `(N + 1, N + 1)` affine maps of millimetres.
    """

    grid: Grid
    displacement: Tensor
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    def between(self, target: Grid, source: Grid) -> Tensor:
        """From each voxel of `target` to where it goes in `source`: `(1, N, *target.shape)`, voxels.

        What `sample` takes: `x + u(x)` is a position in the source's array. One field holds it all.
        """
        into_grid = np.linalg.inv(self.grid.affine) @ self.before @ target.affine
        out_of_grid = np.linalg.inv(source.affine) @ self.after @ self.grid.affine
        device = self.displacement.device
        deformation = warp(self.displacement, affine_field(into_grid, target.shape, device))
        linear = torch.tensor(out_of_grid[:-1, :-1], dtype=torch.float32, device=device)
        # The two affine maps are multiplied in double precision: their translations may be large, and cancel.
        moved = affine_field(out_of_grid @ into_grid, target.shape, device)
        return moved.add_(torch.einsum("ij,bj...->bi...", linear, deformation))
