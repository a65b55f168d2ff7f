"""What training minimises: image similarity, smoothness of the field, overlap of labels, penalties on folding.

Every function returns a scalar tensor, lower is better, and is a mean over voxels, so that a weight means the same for
any batch and any image size. All of them leave autocast and compute in float32: a local variance squared underflows in
float16, and loses all its digits in bfloat16.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import box_mean, turned_over


def ssd_loss(moved: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of squared differences of two images `(B, C, *spatial)`: assumes that equal tissue has equal intensity.

    `weight`, `(B, 1, *spatial)` from 0 to 1, says how much each voxel counts; None counts all alike.
    """
    _same_shape(moved, fixed)
    return _mean((moved.float() - fixed.float()).square(), weight)


def ncc_loss(
    moved: Tensor, fixed: Tensor, window: int = 9, epsilon: float = 1e-8, weight: Tensor | None = None
) -> Tensor:
    """One minus the mean local squared correlation coefficient; 0 where each window is a line `a x + b` of the other.

    In a cube of `window` voxels around each voxel, `cov(moved, fixed)**2 / (var(moved) var(fixed) + epsilon)`.
    Voxels outside the image do not count (padding with zeros would correlate any two images at their border).

    Args:
        moved, fixed: `(B, 1, *spatial)`, intensities of order one.
        window: side of the cube in voxels, odd.
        epsilon: what a product of variances must exceed to count as structure. 1e-8 is a contrast of 1 % of the
            intensity range in both images; flat background scores no correlation.
        weight: `(B, 1, *spatial)` from 0 to 1: how much each voxel counts, in the windows and in the mean; None counts
            all alike.

    Source: Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis
    12(1), 2008; Balakrishnan et al., IEEE TMI 38(8), 2019, equation 5.
    """
    _same_shape(moved, fixed)
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window is an odd number of voxels, 3 or more, not {window}")
    with torch.autocast(moved.device.type, enabled=False):
        # A correlation does not change with an offset, and small means keep E[x^2] - E[x]^2 exact.
        axes = tuple(range(1, moved.ndim))
        moved, fixed = (image.float() - image.float().mean(axes, keepdim=True) for image in (moved, fixed))
        products = torch.cat([moved, fixed, moved * moved, fixed * fixed, moved * fixed], dim=1)
        if weight is None:
            means = box_mean(products, window)
        else:
            means = box_mean(products * weight, window) / box_mean(weight.float(), window).clamp(min=1e-6)
        mean_m, mean_f, mean_mm, mean_ff, mean_mf = means.chunk(5, dim=1)
        covariance = mean_mf - mean_m * mean_f
        # Rounding can leave a flat window with a variance just below zero.
        variance_m = (mean_mm - mean_m * mean_m).clamp(min=0)
        variance_f = (mean_ff - mean_f * mean_f).clamp(min=0)
        return 1 - _mean(covariance.square() / (variance_m * variance_f + epsilon), weight)


def mi_loss(moved: Tensor, fixed: Tensor, bins: int = 32, weight: Tensor | None = None) -> Tensor:
    """Minus the mutual information of two images' intensities, in nats: how well the one foretells the other.

    It asks for no law between the intensities, only that there is one, and the same in the whole image. The joint
    histogram is filled through Parzen windows, cubic B-splines over four bins, so that it has a gradient; each pair of
    a batch has its own. A voxel takes the memory of its windows, 100 bytes or so, however many bins there are.

    Args:
        moved, fixed: `(B, 1, *spatial)`, intensities from 0 to 1; what lies outside counts as the nearer of the two.
        bins: along each side of the histogram, 5 or more. Many of them need many voxels: between `n` voxels without
            any relation, about `bins**2 / 2n` nats are found.
        weight: `(B, 1, *spatial)` from 0 to 1: how much each voxel counts; None counts all alike.

    Source: Viola and Wells, IJCV 24(2), 1997; Thevenaz and Unser, Optimization of mutual information for
    multiresolution image registration, IEEE TIP 9(12), 2000; Mattes et al., IEEE TMI 22(1), 2003 (the B-splines).
    """
    _same_shape(moved, fixed)
    if bins < 5:
        raise ValueError(f"bins is 5 or more, so that a window has its place, not {bins}")
    with torch.autocast(moved.device.type, enabled=False):
        joint = _joint_histogram(moved.float(), fixed.float(), bins, weight)
        apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        least = torch.finfo(torch.float32).tiny  # 0 log 0 is 0
        information = joint * (joint.clamp(min=least).log() - apart.clamp(min=least).log())
        return -information.sum((1, 2)).mean()


def _joint_histogram(moved: Tensor, fixed: Tensor, bins: int, weight: Tensor | None) -> Tensor:
    """Shares of the voxels by their two intensities, `(B, bins, bins)`: the moved image's along the rows."""
    (row, rows), (column, columns) = _parzen(moved.flatten(1), bins), _parzen(fixed.flatten(1), bins)
    if weight is not None:
        counts = weight.float().expand_as(moved).flatten(1)
        rows = [share * counts for share in rows]
    first = row * bins + column
    joint = moved.new_zeros(len(moved), bins, bins)
    for down, across in itertools.product(range(4), repeat=2):
        # Of each of the 16 bins as if it were the first one, then all put in their places.
        shares = torch.zeros_like(joint).flatten(1).scatter_add(1, first, rows[down] * columns[across])
        joint = joint + shares.view_as(joint).roll((down, across), (1, 2))
    return joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-6)


def _parzen(values: Tensor, bins: int) -> tuple[Tensor, list[Tensor]]:
    """The first of the four bins that intensities count in, and how much in each: a cubic B-spline, of sum 1."""
    # 0 and 1 lie a bin from the ends, so that no window leaves the histogram.
    place = values.clamp(0, 1) * (bins - 3)
    first = place.detach().floor().clamp(max=bins - 4)
    t = place - first
    inner = [2 / 3 - a.square() * (1 - a / 2) for a in (t, 1 - t)]
    return first.long(), [(1 - t) ** 3 / 6, *inner, t**3 / 6]


def mind_loss(moved: Tensor, fixed: Tensor, radius: int = 1, distance: int = 1, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference of two images' self-similarities, see `mind`: neither has to be like the other anywhere.

    `weight`, `(B, 1, *spatial)` from 0 to 1, says how much each voxel counts; None counts all alike.
    """
    _same_shape(moved, fixed)
    with torch.autocast(moved.device.type, enabled=False):
        difference = mind(moved, radius, distance) - mind(fixed, radius, distance)
        return _mean(difference.square(), weight)


def mind(image: Tensor, radius: int = 1, distance: int = 1) -> Tensor:
    """Self-similarity context of an image: which places around each voxel look like which.

    The neighbours of a voxel are those at `distance` along each axis, in either direction: 6 in a volume, 4 in a slice.
    Each two of them that lie on different axes are compared: 12 pairs in a volume, 4 in a slice. A channel holds
    `exp(-d / v)`, where `d` is the mean squared difference of the patches around the two, less the smallest of all
    pairs, and `v` the mean of `d` over the pairs before that. So the image `a x + b`, for any `a` but 0, has the same.

    Args:
        image: `(B, 1, *spatial)`, 2-D or 3-D.
        radius: of a patch, `2 radius + 1` voxels wide.
        distance: of the neighbours, voxels. Beyond the image its edge is repeated.

    Returns:
        `(B, 12, D, H, W)` or `(B, 4, H, W)`, float32, from 0 to 1: 1 in the channel of the two that are most alike.

    Source: Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities,
    MICCAI 2013 (in 3-D; the 4 neighbours of a slice are the same rule in 2-D).
    """
    if radius < 0 or distance < 1:
        raise ValueError(f"radius is 0 or more and distance 1 or more, not {radius} and {distance}")
    image = image.float()
    dims = image.ndim - 2
    padded = F.pad(image, [distance] * (2 * dims), mode="replicate")

    def neighbour(axis: int, side: int) -> Tensor:
        """The image's values one neighbour further, at each voxel."""
        starts = [distance * (1 + side * (other == axis)) for other in range(dims)]
        return padded[(..., *(slice(at, at + n) for at, n in zip(starts, image.shape[2:], strict=True)))]

    neighbours = [[neighbour(axis, side) for side in (-1, 1)] for axis in range(dims)]
    pairs = [
        (neighbours[first][one], neighbours[second][other])
        for first, second in itertools.combinations(range(dims), 2)
        for one, other in itertools.product((0, 1), repeat=2)
    ]
    squares = torch.cat([(one - other).square() for one, other in pairs], dim=1)
    apart = box_mean(squares, 2 * radius + 1)
    scale = apart.mean(1, keepdim=True)
    whole = scale.detach().mean(tuple(range(1, scale.ndim)), keepdim=True)
    # Neither noise in a flat place nor the strongest edge decides alone; what is flat everywhere is 1 everywhere.
    scale = scale.clamp(min=1e-3 * whole, max=1e3 * whole).clamp(min=1e-12)
    return torch.exp(-(apart - apart.amin(1, keepdim=True)) / scale)


def diffusion_loss(field: Tensor) -> Tensor:
    """Mean squared first derivative of a field `(B, N, *spatial)`, averaged over components and axes.

    Differences between neighbours, per voxel. Source: Balakrishnan et al., IEEE TMI 38(8), 2019, equation 8.
    """
    field = field.float()
    return torch.stack([F.mse_loss(*_neighbours(field, axis)) for axis in range(2, field.ndim)]).mean()


def bending_loss(field: Tensor) -> Tensor:
    """Mean squared second derivative of a field `(B, N, *spatial)`, summed over axes, mixed ones counted twice.

    An affine map costs nothing. Source: Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI
    18(8), 1999, equation 6.
    """
    field = field.float()
    total = field.new_zeros(())
    for i in range(2, field.ndim):
        after, before = _neighbours(field, i)
        derivative = after - before
        for j in range(i, field.ndim):
            total = total + (1 if i == j else 2) * F.mse_loss(*_neighbours(derivative, j))
    return total


def jacobian_loss(displacement: Tensor) -> Tensor:
    """Share of the grid's volume that is turned over: mean of `relu(-det)` over the simplices of its cells.

    It is 0 without folding and grows with how far cells are turned inside out. `metrics.ndv_percent` is a hundred times
    this.

    Source: Kuang, On reducing negative Jacobian determinant of the deformation predicted by deep registration networks,
    arXiv 1907.00068, 2019; Mok and Chung, Fast symmetric diffeomorphic image registration, CVPR 2020, equation 5 (both
    of one difference a voxel, which misses folds); Liu et al., IJCV 132, 2024 (the simplices).
    """
    return turned_over(displacement).mean()


def velocity_divergence(mean: Tensor, log_variance: Tensor, precision: float) -> Tensor:
    """Kullback-Leibler divergence of a distribution of velocities from a smooth prior, a mean over voxels.

    The distribution is normal and independent from voxel to voxel. The prior is normal too; its precision matrix is
    `precision` times the Laplacian of the grid, so only differences of neighbours cost. Constants are left out.

    Args:
        mean: `(B, N, *spatial)`, voxels.
        log_variance: Of the same shape.
        precision: Above 0, per squared voxel.

    Source: Dalca et al., Unsupervised learning for fast probabilistic diffeomorphic registration, MICCAI 2018.
    """
    mean, log_variance = mean.float(), log_variance.float()
    neighbours = torch.zeros_like(mean[:1, :1])
    roughness = mean.new_zeros(())
    for axis in range(2, mean.ndim):
        after, before = _neighbours(mean, axis)
        roughness = roughness + (after - before).square().sum() / mean[:, :1].numel()
        counted = _neighbours(neighbours, axis)
        for side in counted:
            side += 1
    spread = (precision * neighbours * log_variance.exp() - log_variance).sum(dim=1).mean()
    return (spread + precision * roughness) / 2


def one_hot(label: Tensor, labels: Sequence[int]) -> Tensor:
    """`(B, 1, *spatial)` integers to float32 `(B, L, *spatial)`, a channel for each of `labels`."""
    values = torch.as_tensor(list(labels), device=label.device, dtype=label.dtype)
    return (label == values.view(1, -1, *[1] * (label.ndim - 2))).float()


def soft_dice_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """One minus the mean Dice of memberships `(B, L, *spatial)` in [0, 1].

    Warp one-hot labels linearly to get `moved`: unlike nearest-neighbour labels they have a gradient. A structure
    that neither image has is left out of the mean. Source: Milletari et al., V-Net, 3DV 2016, section 3.
    """
    _same_shape(moved, fixed)
    axes = tuple(range(2, moved.ndim))
    moved, fixed = moved.float(), fixed.float()
    sizes = moved.square().sum(axes) + fixed.square().sum(axes)
    present = sizes > 0
    dice = 2 * (moved * fixed).sum(axes) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    return 1 - dice[present].mean() if present.any() else sizes.sum()


def segmentation_loss(scores: Tensor, memberships: Tensor) -> Tensor:
    """Cross-entropy and soft Dice loss, added: how far a segmentation is from the labels.

    Args:
        scores: `(B, L + 1, *spatial)`, before a softmax, the background first.
        memberships: `(B, L, *spatial)` in [0, 1], of the structures; what they leave of a voxel is background.

    Source: Isensee et al., nnU-Net, Nature Methods 18, 2021 (the sum, unweighted).
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores, memberships = scores.float(), memberships.float()
        whole = torch.cat([1 - memberships.sum(1, keepdim=True), memberships], dim=1)
        _same_shape(scores, whole)
        return F.cross_entropy(scores, whole) + soft_dice_loss(scores.softmax(1)[:, 1:], memberships)


def membership_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """Mean over voxels of the squared differences of memberships `(B, L, *spatial)` in [0, 1], summed over structures.

    Of one-hot labels it is twice the share of voxels with different labels, if each voxel has one of the L. As with
    `soft_dice_loss`, warp them linearly; but a large structure counts more than a small one.
    """
    _same_shape(moved, fixed)
    return (moved.float() - fixed.float()).square().sum(1).mean()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over batch, channels and voxels, weighted; 0 where no voxel counts."""
    if weight is None:
        return values.mean()
    weight = weight.float().expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def _neighbours(field: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Every voxel but the first along an axis, and beside it the voxel before."""
    n = field.shape[axis] - 1
    return field.narrow(axis, 1, n), field.narrow(axis, 0, n)


def _same_shape(moved: Tensor, fixed: Tensor) -> None:
    if moved.shape != fixed.shape:
        raise ValueError(f"moved {tuple(moved.shape)} and fixed {tuple(fixed.shape)} must have one shape")
