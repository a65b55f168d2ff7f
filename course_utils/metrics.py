"""What a registration is judged by: overlap, boundary distance, regularity, and the error of the map itself.

Labels are integer tensors `(B, 1, *spatial)`, displacements `(B, N, *spatial)` in voxels, in 2-D or 3-D.
Each metric gives one number for every image of the batch (and every structure), never a batch mean; statistics over
pairs are the business of `course_utils.evaluation`.

A structure that vanished must not improve a mean: its Dice is 0 and its Hausdorff distance infinite. Only a
structure that neither image has is not a number.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import jacobian_determinant, turned_over

SMALLEST_DETERMINANT = 1e-9  # a folded voxel has no logarithm; Learn2Reg clips here too
LEARN2REG_BORDER = 2  # voxels a side that Learn2Reg leaves out


def dice(moved_label: Tensor, fixed_label: Tensor, labels: Iterable[int]) -> Tensor:
    """Overlap `2 |A and B| / (|A| + |B|)` of each structure, in [0, 1].

    Args:
        moved_label, fixed_label: integer `(B, 1, *spatial)` of one shape.
        labels: the L label values to measure.

    Returns:
        `(B, L)` float32: 0 where only one of the images has the structure, NaN where neither has.

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
        moved_label, fixed_label: integer `(B, 1, *spatial)` of one shape.
        labels: the L label values to measure.
        spacing: mm between voxels along each array axis, or one number for all.
        percentile: None for the maximum, else between 0 and 100. A sequence, such as `(100, 95)`, measures
            the boundaries once and answers with a leading axis, as `numpy.percentile` does.

    Returns:
        `(B, L)` or `(len(percentile), B, L)` float32 on the CPU, in mm: infinite where only one of the
        images has the structure, NaN where neither has.

    Raises:
        ValueError: the shapes differ, or spacing is not one positive number an axis.

    Learn2Reg's HD95 weighs boundary voxels by their area and counts in voxels: compare with its tables only roughly.

    Sources: Huttenlocher et al., Comparing images using the Hausdorff distance, IEEE TPAMI 15(9), 1993; Taha
    and Hanbury, Metrics for evaluating 3D medical image segmentation, BMC Medical Imaging 15:29, 2015.
    """
    _check_labels(moved_label, fixed_label)
    millimetres = _spacing(spacing, moved_label.ndim - 2)
    ranks = np.asarray(100.0 if percentile is None else percentile, dtype=float)
    labels = list(labels)
    moved, fixed = moved_label[:, 0].cpu().numpy(), fixed_label[:, 0].cpu().numpy()
    distances = np.empty((*ranks.shape, len(moved), len(labels)), dtype=np.float32)
    for b, column in np.ndindex(len(moved), len(labels)):
        a = _boundary(moved[b] == labels[column], millimetres)
        f = _boundary(fixed[b] == labels[column], millimetres)
        if len(a) and len(f):
            there = np.percentile(KDTree(f).query(a)[0], ranks)
            back = np.percentile(KDTree(a).query(f)[0], ranks)
            distances[..., b, column] = np.maximum(there, back)
        else:
            distances[..., b, column] = np.inf if len(a) or len(f) else np.nan
    return torch.from_numpy(distances)


def folding_percent(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of voxels where the map folds, `det(I + du/dx) <= 0`, in percent.

    Args:
        displacement: `(B, N, *spatial)`, voxels.
        mask: voxels that count, `(B, 1, *spatial)` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        `(B,)` float32 in [0, 100]; NaN where the mask is empty or a determinant in it is NaN.
    """
    percents = []
    for determinant in _inside(jacobian_determinant(displacement), mask):
        folded = (determinant <= 0).float().masked_fill(determinant.isnan(), torch.nan)
        percents.append(100 * folded.mean())
    return torch.stack(percents)


def ndv_percent(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Non-diffeomorphic volume: how much of the grid's volume is turned over, in percent of it.

    Unlike `folding_percent` it sees folds between neighbouring voxels, and weighs each by its depth.

    Args:
        displacement: `(B, N, *spatial)`, voxels.
        mask: voxels that count, as there; a cell counts where all its corners do.

    Returns:
        `(B,)` float32; NaN where no cell counts or a determinant is NaN.

    Source: Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 132, 2024.
    """
    depth = turned_over(displacement)
    if mask is not None:
        corners = mask.ne(0).float()
        smallest = F.max_pool2d if corners.ndim == 4 else F.max_pool3d
        mask = -smallest(-corners, 2, stride=1)
    return torch.stack([100 * values.mean() for values in _inside(depth, mask)])


def sdlogj(displacement: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation over voxels of `log det(I + du/dx)`: 0 for a rigid map, larger for a rougher one.

    Determinants are clipped from below at 1e-9, so every fold weighs `log 1e-9 = -20.7`.

    Args:
        displacement: `(B, N, *spatial)`, voxels.
        mask: voxels that count, `(B, 1, *spatial)` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        `(B,)` float32, no unit; NaN where the mask is empty or a determinant in it is NaN.

    Source: Leow et al., Statistical properties of Jacobian maps and the realization of unbiased
    large-deformation nonlinear image registration, IEEE TMI 26(6), 2007.
    """
    determinants = _inside(jacobian_determinant(displacement), mask)
    return torch.stack([_spread(d.clamp(min=SMALLEST_DETERMINANT).log()) for d in determinants])


def sdlogj_learn2reg(displacement: Tensor) -> Tensor:
    """SDlogJ as the Learn2Reg challenge computes it: for comparing with its published tables only.

    The challenge takes the standard deviation of `log(clip(det + 3, 1e-9, 1e9))`, without 2 voxels at each
    border. Adding 3 keeps mild folds finite; it also makes the number about 4 times smaller than
    `sdlogj`.

    Args:
        displacement: `(B, N, *spatial)`, voxels; at least 5 voxels along each axis.

    Returns:
        `(B,)` float32, no unit.

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
        displacement, true_displacement: `(B, N, *spatial)` of one shape, voxels.
        spacing: mm between voxels along each array axis, or one number for all.
        mask: voxels that count, `(B, 1, *spatial)` (or batch 1 for all), nonzero inside; None counts all.

    Returns:
        `(B,)` float32, mm; NaN where the mask is empty.

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


def _boundary(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Positions in mm, `(points, N)`, of a binary image's voxels that have a face neighbour outside."""
    boxes = find_objects(inside.view(np.uint8))
    if not boxes:
        return np.empty((0, inside.ndim))
    box = boxes[0]  # beyond it, all is outside: erosion within it is exact, and much cheaper
    edge = inside[box] & ~binary_erosion(inside[box])
    return (np.argwhere(edge) + [side.start for side in box]) * spacing


def _inside(values: Tensor, mask: Tensor | None) -> Iterable[Tensor]:
    """The values `(B, 1, *spatial)` of each image that are in the mask, flat."""
    if mask is None:
        return values.flatten(1)
    return [v[m] for v, m in zip(values, (mask != 0).expand_as(values), strict=True)]


def _spread(values: Tensor) -> Tensor:
    """Population standard deviation; NaN for no values."""
    return values.std(correction=0) if values.numel() else values.new_tensor(torch.nan)


def _check_labels(moved_label: Tensor, fixed_label: Tensor) -> None:
    if moved_label.shape != fixed_label.shape or moved_label.ndim not in (4, 5) or moved_label.shape[1] != 1:
        raise ValueError(
            "two label maps of one shape (B, 1, *spatial) are compared, "
            f"not {tuple(moved_label.shape)} and {tuple(fixed_label.shape)}"
        )


def _spacing(spacing: float | Sequence[float], dims: int) -> np.ndarray:
    """`(dims,)` mm."""
    values = np.atleast_1d(np.asarray(spacing, dtype=float))
    if values.shape not in ((1,), (dims,)) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"spacing is a positive number of mm, or {dims} of them, one an axis, not {spacing}")
    return np.broadcast_to(values, (dims,))
