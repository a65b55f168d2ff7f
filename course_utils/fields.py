"""The algebra of displacement and velocity fields, in 2-D and 3-D.

A displacement `u` is a tensor `(B, N, *spatial)` with `N = len(spatial)`, in voxels. It stands for the map
`phi(x) = x + u(x)`; its component `c` moves along array axis `c`. A velocity has the same layout; integrated over
unit time it gives a displacement. Everything is computed in float32, under autocast too: in bfloat16 the coordinate 160
is already 0.3 voxel off.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def identity_grid(shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """Voxel coordinates of every voxel, `(1, N, *shape)` float32: the map that moves nothing."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def warp(image: Tensor, displacement: Tensor, *, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Pull `image` back along a displacement: `moved(x) = image(x + u(x))`.

    Args:
        image: `(B, C, *spatial)`; any dtype. Its grid may differ in size from the displacement's: `x + u(x)` is
            read as a voxel position in the image.
        displacement: `(B, N, *out_spatial)`, voxels.
        mode: `"bilinear"` (trilinear in 3-D) for intensities, `"nearest"` for labels.
        padding: outside the image, `"border"` repeats the edge and `"zeros"` gives zero.

    Returns:
        `(B, C, *out_spatial)`. Floating point for floating-point images; integer labels keep their dtype under
        `"nearest"` and are refused under `"bilinear"`.

    Raises:
        ValueError: the number of dimensions do not agree, or a label is asked to be interpolated linearly.
    """
    _check_field(displacement)
    spatial = image.shape[2:]
    if len(spatial) != displacement.shape[1]:
        raise ValueError(
            f"a displacement with {displacement.shape[1]} components cannot warp an image of {len(spatial)} dimensions"
        )
    if mode != "nearest" and not image.is_floating_point():
        raise ValueError(f"{image.dtype} labels need mode='nearest': a blend of two labels is a third one")
    with torch.autocast(image.device.type, enabled=False):
        positions = identity_grid(displacement.shape[2:], device=image.device) + displacement.float()
        scale = torch.tensor([2.0 / max(n - 1, 1) for n in spatial], device=image.device)
        # grid_sample wants (x, y, z) order, the reverse of array axes, in [-1, 1] from centre to centre.
        grid = (positions.movedim(1, -1) * scale - 1.0).flip(-1)
        # float32 holds integers up to 2**24: larger label values would come back as others.
        wide = image.dtype in (torch.int32, torch.int64)
        values, grid = (image.double(), grid.double()) if wide else (image.float(), grid)
        moved = _sample(values, grid, mode, padding)
    return moved.to(image.dtype)


def _sample(image: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """`F.grid_sample`, on all processors where they are more than the volumes: it has one for each volume of a batch.

    The points of a volume are then shared out, as if they were a batch's that all look at one image.
    """
    threads = torch.get_num_threads()
    one_graph_for_all = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if image.device.type != "cpu" or image.ndim != 5 or len(image) >= threads or one_graph_for_all:
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)
    points = math.prod(grid.shape[1:4])
    # In the backward pass each share has a gradient of the whole image.
    most = min(threads, 4) if torch.is_grad_enabled() and image.requires_grad else threads
    shares = next(count for count in range(most, 0, -1) if points % count == 0)
    parts = [
        F.grid_sample(
            one.expand(shares, -1, -1, -1, -1),
            its.view(shares, 1, 1, points // shares, 3),
            mode=mode,
            padding_mode=padding,
            align_corners=True,
        ).transpose(0, 1)
        for one, its in zip(image.split(1), grid.contiguous().split(1), strict=True)
    ]
    return torch.stack([part.reshape(-1, *grid.shape[1:4]) for part in parts])


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The one displacement that does what warping by `first` and then by `second` does.

    `warp(warp(I, first), second) = I(x + second(x) + first(x + second(x)))`, so the result is
    `second + first o (id + second)`. Both are `(B, N, *spatial)` in voxels of the same grid.
    """
    return second.float() + warp(first.float(), second)


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Scaling and squaring: the displacement of `exp(v)` for a stationary velocity `(B, N, *spatial)`.

    The flow over time `2**-steps` is almost `v / 2**steps`; composing it with itself `steps` times gives unit
    time. For a smooth field the result is a diffeomorphism whose inverse is `exp(-v)`.

    Source: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    if steps < 0:
        raise ValueError(f"steps is the number of squarings, 0 or more, not {steps}")
    displacement = velocity.float() / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def invert(displacement: Tensor, iterations: int = 30) -> Tensor:
    """The displacement of the inverse map, by the fixed point `w(x) <- -u(x + w(x))`; `(B, N, *spatial)`.

    Converges when neighbouring displacements differ by less than their distance (the Lipschitz constant of `u` below
    one); there each iteration shrinks the error by that constant. Source: Chen et al., A simple fixed-point approach to
    invert a deformation field, Medical Physics 35(1), 2008.
    """
    inverse = -displacement.float()
    for _ in range(iterations):
        inverse = -warp(displacement.float(), inverse)
    return inverse


def resize(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Carry a displacement or a velocity `(B, N, *spatial)` to a grid `shape` over the same field of view.

    The samples are interpolated linearly and the vectors, being in voxels, grow by `new / old` along each axis. Voxel
    *edges* of the two grids coincide (`align_corners=False` in PyTorch's words): halving a grid makes one voxel of
    every two, so the factor is 0.5 going down and 2 coming up, exactly.
    """
    _check_field(field)
    shape = tuple(shape)
    old = tuple(field.shape[2:])
    if shape == old:
        return field.float()
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    with torch.autocast(field.device.type, enabled=False):
        resampled = F.interpolate(field.float(), size=shape, mode=mode, align_corners=False)
    factor = torch.tensor([new / n for new, n in zip(shape, old, strict=True)], device=field.device)
    return resampled * factor.view(1, -1, *[1] * len(shape))


def pool(image: Tensor, factor: int) -> Tensor:
    """Means over blocks of `factor` voxels along each axis: `(B, C, *spatial)` to `(B, C, *ceil(spatial / factor))`.

    The last block of an axis may be smaller, and be its only one. Vectors keep their unit, voxels of the grid that they
    came from.
    """
    pooling = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pooling(image.float(), [min(factor, n) for n in image.shape[2:]], ceil_mode=True)


def affine_to_field(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The displacement `A x + t - x` on a grid, `(B, N, *shape)`.

    Args:
        matrix: `(B, N, N + 1)`, the linear part beside the translation, from fixed voxels to moving voxels.
        shape: the fixed grid.
    """
    dims = len(shape)
    if matrix.shape[1:] != (dims, dims + 1):
        raise ValueError(f"an affine map of {dims} dimensions is (B, {dims}, {dims + 1}), not {tuple(matrix.shape)}")
    matrix = matrix.float()
    grid = identity_grid(shape, device=matrix.device)
    with torch.autocast(matrix.device.type, enabled=False):
        moved = torch.einsum("bij,j...->bi...", matrix[:, :, :dims], grid[0])
    return moved + matrix[:, :, dims].view(-1, dims, *[1] * dims) - grid


def gradient(field: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of `(B, C, *spatial)` along each array axis, per voxel: central inside, one-sided at the border."""
    field = field.float()
    derivatives = []
    for axis in range(2, field.ndim):
        n = field.shape[axis]
        # With its edges repeated, one subtraction serves the whole axis: fewer big temporaries than torch.gradient has.
        wide = torch.cat([field.narrow(axis, 0, 1), field, field.narrow(axis, n - 1, 1)], dim=axis)
        weight = torch.full((n,), 0.5, device=field.device)
        weight[0] = weight[-1] = 1.0
        difference = wide.narrow(axis, 2, n) - wide.narrow(axis, 0, n)
        derivatives.append(difference * weight.view(-1, *[1] * (field.ndim - 1 - axis)))
    return tuple(derivatives)


def gradient_magnitude(image: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Length of the gradient of each channel of `(B, C, *spatial)`, per voxel, of the same shape: bright at edges.

    `epsilon` is the length that a flat place has, where the length alone would have no derivative.
    """
    squares = [derivative.square() for derivative in gradient(image)]
    return torch.sqrt(torch.stack(squares).sum(0) + epsilon**2)


def box_mean(image: Tensor, window: int) -> Tensor:
    """Mean over a cube of `window` voxels around each voxel, of the voxels that lie in the image `(B, C, *spatial)`."""
    for axis in range(2, image.ndim):
        position = torch.arange(image.shape[axis], device=image.device)
        band = ((position[:, None] - position).abs() <= window // 2).float()
        # A product with a banded matrix: on the axes of a volume far faster than a convolution or a running sum.
        means = torch.einsum("ij,...j->...i", band / band.sum(1, keepdim=True), image.movedim(axis, -1))
        image = means.movedim(-1, axis)
    return image


def edges(image: Tensor, window: int = 9, floor: float = 0.2) -> Tensor:
    """Where the edges of an image `(B, C, *spatial)` are, not how strong: the same of the image, of its negative and of
    either at another brightness.

    The length of the gradient is divided by its root mean square in a cube of `window` voxels around each voxel, and
    `floor` is the share of the whole image's that is added to it, so that noise in a flat place is no edge.
    """
    with torch.autocast(image.device.type, enabled=False):
        squares = torch.stack([derivative.square() for derivative in gradient(image)]).sum(0)
        whole = squares.mean(tuple(range(2, image.ndim)), keepdim=True)
        around = box_mean(squares, window) + floor**2 * whole
        return torch.sqrt(squares / around.clamp(min=1e-12))


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """`det(I + du/dx)` of `(B, N, *spatial)`, as `(B, 1, *spatial)`.

    It is the local change of volume from fixed to moving space: 1 keeps it, below 1 the moving tissue at this place is
    smaller, and 0 or less means that the map folds. Finite differences as in `gradient`.
    """
    _check_field(displacement)
    dims = displacement.shape[1]
    unit = torch.eye(dims, device=displacement.device).view(dims, 1, dims, *[1] * dims)
    return _determinant([derivative + unit[axis] for axis, derivative in enumerate(gradient(displacement))]).unsqueeze(
        1
    )


def simplex_determinants(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """How much each triangle or tetrahedron of the grid's cells changes its size; 0 or less where it is turned over.

    A cell between neighbouring voxels is cut into simplices in both ways that there are: in 2-D along either diagonal
    (four triangles, one at each corner), in 3-D into a tetrahedron at every second corner and one in the middle (ten in
    all). Moved by the map and filled linearly, they see the folds between two voxels that central differences, which
    look two voxels far, step over.

    Args:
        displacement: `(B, N, *spatial)`, voxels; two voxels or more along each axis.

    Returns:
        Determinants `(B, K, *(spatial - 1))` float32 with `K` 4 or 10, 1 where nothing moves, and the share of the cell
        that each simplex counts for, `(K,)`; the shares add up to 1.

    Source: Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 132, 2024.
    """
    _check_field(displacement)
    field = displacement.float()
    dims = field.shape[1]
    corners = list(itertools.product((0, 1), repeat=dims))
    moved = {
        corner: field[(..., *(slice(bit, n - 1 + bit) for bit, n in zip(corner, field.shape[2:], strict=True)))]
        + torch.tensor(corner, dtype=field.dtype, device=field.device).view(1, dims, *[1] * dims)
        for corner in corners
    }
    determinants = []
    for corner in corners:
        ends = [[(*corner[:axis], bit, *corner[axis + 1 :]) for bit in (0, 1)] for axis in range(dims)]
        determinants.append(_determinant([moved[end] - moved[begin] for begin, end in ends]))
    shares = [1 / 4] * 4 if dims == 2 else [1 / 12] * 8 + [1 / 6] * 2
    if dims == 3:
        for first in (0, 1):
            peak = (first,) * 3
            ends = [tuple(first if axis == other else 1 - first for axis in range(3)) for other in range(3)]
            # The three edges from the peak span twice the volume of a corner's, and to the other side point backwards.
            determinants.append(_determinant([moved[end] - moved[peak] for end in ends]) / (2 if first == 0 else -2))
    return torch.stack(determinants, dim=1), torch.tensor(shares, device=field.device)


def turned_over(displacement: Tensor) -> Tensor:
    """How much of each cell's volume is turned over, `(B, 1, *(spatial - 1))`: 0 where it does not fold, 1 where all of
    it is mirrored. See `simplex_determinants`.
    """
    determinants, shares = simplex_determinants(displacement)
    return (torch.relu(-determinants) * shares.view(1, -1, *[1] * displacement.shape[1])).sum(1, keepdim=True)


def _determinant(columns: Sequence[Tensor]) -> Tensor:
    """Of the matrices whose columns are given, `(B, N, *spatial)` each: `(B, *spatial)`."""
    if len(columns) == 2:
        (a, c), (b, d) = (column.unbind(1) for column in columns)
        return a * d - b * c
    # Written out: three times faster than torch.linalg.cross, and exacter than a general LU factorisation.
    (a, d, g), (b, e, h), (c, f, i) = (column.unbind(1) for column in columns)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _check_field(field: Tensor) -> None:
    dims = field.ndim - 2
    if dims not in (2, 3) or field.shape[1] != dims:
        raise ValueError(
            f"a field is (B, 2, H, W) or (B, 3, D, H, W), one component an axis; this has shape {tuple(field.shape)}"
        )
