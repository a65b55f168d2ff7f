"""Affine registration of two scans: 12 parameters by gradient descent, from coarse to fine.

Sources: Jenkinson and Smith, A global optimisation method for robust affine registration of brain images, Medical
Image Analysis 5(2), 2001 (several starts, multi-resolution); Viola and Wells, Alignment by maximization of mutual
information, IJCV 24(2), 1997; Collignon et al., Automated multi-modality image registration based on information
theory, IPMI 1995.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from course_utils.data.grids import Grid, covering, overlap
from course_utils.data.resampling import resample, sample
from course_utils.errors import CourseError
from course_utils.fields import affine_to_field
from course_utils.losses import mi_loss

SAMPLES = 250_000
"""At most about so many voxels on the finest level: 12 parameters do not need more."""
SPACINGS = (4, 2, 1)
"""Spacings, in those of the finest level."""
COARSEST = 16
"""Voxels along the shortest axis below which a level gets no coarser."""
STEPS = 60
"""Of Adam, on each level."""
LEAST_OVERLAP = 0.05
"""Share of the fixed image that the moving one must cover at the end."""
HISTOGRAM = 32, 20_000
"""Bins along each side of the joint histogram, and the most voxels that fill it."""
LITTLE_OVERLAP = 0.3
"""Share of the fixed image's field of view below which scans rarely lie on each other as their affines have it."""
FAR = 0.12
"""Distance of two centres of mass, in radii of gyration, that no two aligned brains have."""
TURNED = 12
"""Degrees between two long axes, likewise."""
LONG = 1.15
"""How many times the spread along the second axis an object must have along its first for that to be its long axis."""
FAINT = 0.05
"""Intensity on the faces of a volume, 0 to 1, below which its object ends before the volume does."""


def correlation_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """One minus Pearson's correlation coefficient of two lists of intensities `(n,)`; 0 to 2."""
    moved, fixed = moved - moved.mean(), fixed - fixed.mean()
    return 1 - (moved * fixed).sum() / (moved.norm() * fixed.norm()).clamp(min=1e-12)


def mutual_information_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """Minus the mutual information of two lists of intensities `(n,)` in [0, 1], in nats.

    It asks only that one image foretells the other, see `losses.mi_loss`; of many voxels, some are enough.
    """
    bins, most = HISTOGRAM
    some = slice(None, None, math.ceil(len(moved) / most))
    return mi_loss(moved[None, None, some], fixed[None, None, some], bins)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "correlation": correlation_loss,
    "mi": mutual_information_loss,
}
"""What an affine alignment compares, over the whole image: not the local terms of `course_utils.objectives`."""


def align(
    moving: Tensor,
    fixed: Tensor,
    moving_grid: Grid,
    fixed_grid: Grid,
    *,
    similarity: str = "correlation",
    moving_mask: Tensor | None = None,
    fixed_mask: Tensor | None = None,
) -> NDArray[np.float64]:
    """The affine map that best aligns two volumes.

    Three starts compete: the positions that the files state, centres of the fields of view made to agree, and centres
    of mass made to agree. Each is improved on the coarsest level as a rigid map; the best of them goes on with 12
    parameters. Rotations of up to about 30 degrees are found.

    Args:
        moving, fixed: `(1, 1, *shape)`, intensities from 0 to 1, 0 the background, on their grids.
        similarity: `"correlation"` for images of one contrast, `"mi"` for others.
        moving_mask, fixed_mask: Of the images' shapes: where they are 0, a voxel does not count.

    Returns:
        `(4, 4)`, from the fixed image's millimetres to the moving image's.

    Raises:
        CourseError: what is left of the overlap is less than a twentieth of the fixed image.
    """
    compare = SIMILARITIES[similarity]
    extent = np.multiply(fixed_grid.shape, fixed_grid.spacing)
    finest = max((extent.prod() / SAMPLES) ** (1 / 3), min(fixed_grid.spacing))
    centre = _centre(fixed_grid)
    # A millimetre of a parameter moves the image's outer parts by about a millimetre, whatever the parameter.
    scale = torch.tensor([1.0] * 3 + [4 / extent.mean()] * 9, dtype=torch.float64)
    rigid = torch.tensor([1.0] * 6 + [0.0] * 6, dtype=torch.float64)
    with torch.inference_mode(False), torch.enable_grad():
        # A mask is a second channel of its image.
        seen = [
            image if mask is None else torch.cat([image, mask], dim=1)
            for image, mask in ((moving, moving_mask), (fixed, fixed_mask))
        ]
        coarsest, *finer = _pyramid(*seen, moving_grid, fixed_grid, finest)
        candidates = []
        for start in _starts(*(image.prod(dim=1, keepdim=True) for image in seen), moving_grid, fixed_grid):
            parameters = torch.zeros(12, dtype=torch.float64)
            parameters[:3] = torch.from_numpy(start)
            candidates.append(_descend(parameters, centre, scale * rigid, coarsest, compare))
        parameters, best = min(candidates, key=lambda candidate: candidate[1])
        if not math.isfinite(best):
            raise CourseError("the two images cannot be brought to overlap: check that they show the same part")
        for level in (coarsest, *finer):
            parameters, _ = _descend(parameters, centre, scale, level, compare)
    matrix = _matrix(parameters, centre, scale).numpy()
    moved_grid = Grid(moving_grid.shape, np.linalg.inv(matrix) @ moving_grid.affine)
    if overlap(moved_grid, fixed_grid) < LEAST_OVERLAP:
        raise CourseError("the affine alignment lost the overlap of the two images: check that they show the same part")
    return matrix


def apart(moving: Tensor, fixed: Tensor, moving_grid: Grid, fixed_grid: Grid) -> str:
    """Why two volumes do not lie on each other as their affines have it; empty where nothing says so.

    It asks the volumes' moments, which takes no time: how much of the field of view they share, how far their centres
    of mass are from each other and, where both show a whole object with a long axis, how much that is turned. A
    rotation about the long axis leaves no trace in them.

    Args:
        moving, fixed: As in `align`.
    """
    share = overlap(moving_grid, fixed_grid)
    if share < LITTLE_OVERLAP:
        return f"they share {share:.0%} of the fixed field of view"
    (centre, spread), (target, wanted) = (
        _moments(image, grid) for image, grid in ((moving, moving_grid), (fixed, fixed_grid))
    )
    distance = float(np.linalg.norm(centre - target))
    if distance > FAR * math.sqrt(np.trace(wanted)):
        return f"their centres are {distance:.0f} mm apart"
    if _ends_inside(moving) and _ends_inside(fixed):
        axes = [_long_axis(covariance) for covariance in (spread, wanted)]
        if axes[0] is not None and axes[1] is not None:
            angle = math.degrees(math.acos(min(1.0, abs(float(axes[0] @ axes[1])))))
            if angle > TURNED:
                return f"their long axes differ by {angle:.0f} degrees"
    return ""


def _moments(image: Tensor, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of mass in mm, `(3,)`, and covariance about it in mm^2, `(3, 3)`."""
    weights = image[0, 0].double()
    total = weights.sum().clamp(min=1e-12)
    positions = [torch.arange(n, dtype=torch.float64, device=image.device) for n in weights.shape]
    sides = [weights.sum(dim=[other for other in range(3) if other != axis]) / total for axis in range(3)]
    middle = torch.stack([(side * at).sum() for side, at in zip(sides, positions, strict=True)])
    covariance = torch.zeros(3, 3, dtype=torch.float64)
    for first in range(3):
        for second in range(first + 1):
            ours = positions[first] - middle[first]
            if first == second:
                covariance[first, first] = (sides[first] * ours**2).sum()
            else:
                plane = weights.sum(dim=3 - first - second) / total  # (second, first): the smaller axis comes first
                theirs = positions[second] - middle[second]
                covariance[first, second] = covariance[second, first] = theirs @ plane @ ours
    linear, origin = grid.affine[:3, :3], grid.affine[:3, 3]
    return linear @ middle.cpu().numpy() + origin, linear @ covariance.numpy() @ linear.T


def _ends_inside(image: Tensor) -> bool:
    """Whether the faces of a volume are nearly empty."""
    faces = [image.select(axis, end) for axis in (2, 3, 4) for end in (0, -1)]
    return all(float(face.float().mean()) < FAINT for face in faces)


def _long_axis(covariance: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Its direction in mm, of length 1; None where no axis is clearly longest."""
    variances, directions = np.linalg.eigh(covariance)
    return directions[:, 2] if variances[2] > LONG**2 * variances[1] else None


Level = tuple[Tensor, Tensor, Grid, Grid]


def _pyramid(moving: Tensor, fixed: Tensor, moving_grid: Grid, fixed_grid: Grid, finest: float) -> Iterator[Level]:
    coarsest = min(np.multiply(fixed_grid.shape, fixed_grid.spacing)) / COARSEST
    for factor in SPACINGS:
        spacing = max(finest, min(factor * finest, coarsest))
        coarse_moving, coarse_fixed = (
            covering(grid, np.maximum(spacing, grid.spacing).tolist()) for grid in (moving_grid, fixed_grid)
        )
        images = resample(moving, moving_grid, coarse_moving), resample(fixed, fixed_grid, coarse_fixed)
        yield (*images, coarse_moving, coarse_fixed)


def _starts(moving: Tensor, fixed: Tensor, moving_grid: Grid, fixed_grid: Grid) -> Iterator[NDArray[np.float64]]:
    """Translations in mm from fixed to moving."""
    yield np.zeros(3)
    yield _centre(moving_grid) - _centre(fixed_grid)
    yield _mass_centre(moving, moving_grid) - _mass_centre(fixed, fixed_grid)


def _centre(grid: Grid) -> NDArray[np.float64]:
    return (grid.affine @ [*((n - 1) / 2 for n in grid.shape), 1.0])[:3]


def _mass_centre(image: Tensor, grid: Grid) -> NDArray[np.float64]:
    return (grid.affine @ [*ndimage.center_of_mass(image[0, 0].cpu().numpy()), 1.0])[:3]


def _matrix(parameters: Tensor, centre: NDArray[np.float64], scale: Tensor) -> Tensor:
    """Translation, rotation and stretch about a centre; the last two through the matrix exponential."""
    translation, (a, b, c), (d, e, f, g, h, i) = (parameters * scale).split((3, 3, 6))
    generator = torch.stack([d, g - c, h + b, g + c, e, i - a, h - b, i + a, f]).view(3, 3)
    linear = torch.linalg.matrix_exp(generator)
    middle = torch.from_numpy(centre)
    top = torch.cat([linear, (middle + translation - linear @ middle)[:, None]], dim=1)
    return torch.cat([top, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _descend(
    parameters: Tensor,
    centre: NDArray[np.float64],
    scale: Tensor,
    level: Level,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, float]:
    """Adam on one level: the parameters, and a loss in which what left the overlap counts as unlike."""
    moving, target, moving_grid, fixed_grid = level
    fixed, counts = target[:, :1], target[:, 1:].gt(0.5).all(dim=1, keepdim=True)
    to_voxels, from_voxels = torch.from_numpy(np.linalg.inv(moving_grid.affine)), torch.from_numpy(fixed_grid.affine)

    def look(parameters: Tensor) -> tuple[Tensor, float]:
        """The loss where the images overlap, and the share of the fixed image that does."""
        matrix = to_voxels @ _matrix(parameters, centre, scale) @ from_voxels
        moved = sample(moving, affine_to_field(matrix[None, :3].to(moving.device), fixed.shape[2:]), outside=math.nan)
        inside = ~moved[:, :1].isnan() & moved[:, 1:].gt(0.5).all(dim=1, keepdim=True) & counts
        share = inside[counts].float().mean().item()
        return compare(moved[:, :1][inside], fixed[inside]) if share > LEAST_OVERLAP else fixed.new_tensor(
            math.inf
        ), share

    parameters = parameters.clone().requires_grad_()
    rate = 0.25 * max(fixed_grid.spacing)  # millimetres a step
    optimizer = torch.optim.Adam([parameters], rate)
    for step in range(STEPS):
        loss, _ = look(parameters)
        if loss.isinf():
            return parameters.detach(), math.inf
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss, share = look(parameters)
        unlike = compare(torch.zeros_like(fixed[counts]), fixed[counts])
    return parameters.detach(), (share * loss + (1 - share) * unlike).item()
