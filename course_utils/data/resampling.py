"""Values on another grid."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.grids import Grid
from course_utils.fields import affine_to_field, identity_grid, warp

SAME_PLACE = 1e-3
"""Voxels. Two grids whose voxels lie closer than this lie in one place: headers hold float32."""


def affine_field(matrix: NDArray[np.float64], shape: Sequence[int], device: torch.device) -> Tensor:
    """The displacement `(1, N, *shape)`, voxels, that an affine map `(N + 1, N + 1)` of voxel indices is."""
    return affine_to_field(torch.tensor(matrix[None, :-1], dtype=torch.float32, device=device), shape)


def sample(image: Tensor, displacement: Tensor, *, mode: str = "bilinear", outside: float = 0.0) -> Tensor:
    """Like `course_utils.fields.warp`, with the edge of the image where ITK has it.

    A voxel reaches half its size beyond its centre. There the nearest values are repeated; further out the result is
    `outside`.

    Args:
        image: `(1, C, *shape)`.
        displacement: `(1, 3, *out_shape)`, voxels: `x + u(x)` is a position in the image's array.
    """
    moved = warp(image, displacement, mode=mode, padding="border")
    positions = identity_grid(displacement.shape[2:], device=displacement.device) + displacement
    beyond = torch.zeros_like(moved[:, :1], dtype=torch.bool)
    for axis, n in enumerate(image.shape[2:]):
        beyond |= (positions[:, axis : axis + 1] < -0.5) | (positions[:, axis : axis + 1] > n - 0.5)
    return moved.masked_fill_(beyond, outside)


def resample(image: Tensor, source: Grid, target: Grid, *, mode: str = "bilinear") -> Tensor:
    """Values on another grid, zero outside.

    Where the two grids share their voxels (they differ in the order and direction of axes, and in whole voxels at the
    border), the values are copied. Elsewhere they are interpolated, after smoothing where voxels become larger.

    Args:
        image: `(1, C, *source.shape)`.
        source: Where it is.
        target: Where it shall be.
        mode: `"bilinear"` (trilinear in 3-D) for intensities, `"nearest"`, without smoothing, for labels.

    Returns:
        `(1, C, *target.shape)`, of the image's data type.
    """
    matrix = np.linalg.inv(source.affine) @ target.affine
    copied = _copied(image, matrix, target.shape)
    if copied is not None:
        return copied
    # Along each axis of the source, the distance between neighbours of the target in source voxels.
    ratios = np.abs(matrix[:-1, :-1]).max(1)
    if mode != "nearest" and ratios.max() > 1 + SAME_PLACE:
        # Importing MONAI loads TensorBoard and matplotlib, which registering needs neither of.
        from monai.networks.layers import gaussian_1d, separable_filtering

        sigmas = 0.5 * np.sqrt(np.maximum(ratios**2 - 1, 0))
        kernels = [
            gaussian_1d(torch.tensor(sigma), truncated=3, approx="sampled", normalize=True) if sigma else torch.ones(1)
            for sigma in sigmas
        ]
        image = separable_filtering(image, kernels, mode="replicate")
    return sample(image, affine_field(matrix, target.shape, image.device), mode=mode)


def _copied(image: Tensor, matrix: NDArray[np.float64], shape: Sequence[int]) -> Tensor | None:
    """The values on a grid that shares the image's voxels; None where it does not.

    Args:
        matrix: from the target's voxel indices to the image's.
        shape: of the target.
    """
    whole = matrix.round()
    # How far rounding moves the target's outermost voxels.
    moved = np.abs(matrix - whole)[:-1] @ np.array([*(max(n - 1, 1) for n in shape), 1.0])
    linear = whole[:-1, :-1]
    if moved.max() > SAME_PLACE or not np.array_equal(np.abs(linear) @ np.ones(len(shape)), np.ones(len(shape))):
        return None
    if not np.array_equal(np.abs(linear).sum(0), np.ones(len(shape))):
        return None
    axes = np.abs(linear).argmax(0)  # for each axis of the target, that of the image which runs along it
    turned = image.permute(0, 1, *(2 + int(axis) for axis in axes))
    result = image.new_zeros(*image.shape[:2], *shape)
    read, written = [], []
    for i, axis in enumerate(axes):
        sign, first, n = int(linear[axis, i]), int(whole[axis, -1]), image.shape[2 + int(axis)]
        if sign < 0:
            turned, first = turned.flip(2 + i), n - 1 - first
        begin, end = max(0, -first), min(shape[i], n - first)
        if begin >= end:
            return result
        written.append(slice(begin, end))
        read.append(slice(begin + first, end + first))
    result[(..., *written)] = turned[(..., *read)]
    return result
