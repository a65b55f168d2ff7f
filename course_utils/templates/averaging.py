"""The mean of images, as they lie and after each was brought home; how far a template is from the middle, how sharp."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import gradient_magnitude, invert, jacobian_determinant, warp
from course_utils.networks import Registration

Register = Callable[[Tensor, Tensor], Registration]
"""`register(template, scan)`, both `(1, 1, *spatial)`: the template is the moving image."""
ROUNDS = 20
"""After which averaging ends, whatever still changes."""
TOLERANCE = 0.002
"""Mean change of a template's intensities, of [0, 1], below which averaging ends."""


class Mean:
    """The weighted mean of tensors of one shape that come one by one, so that they need not be held at once."""

    def __init__(self) -> None:
        self._total: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def add(self, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Count a tensor in, as a whole or voxel by voxel."""
        self._total = self._total + weight * value.float()
        self._weight = self._weight + weight

    def __bool__(self) -> bool:
        """Whether any was counted in."""
        return isinstance(self._total, Tensor)

    @property
    def value(self) -> Tensor:
        """The mean of those that were counted in; 0 where none has any weight.

        Raises:
            CourseError: there were none.
        """
        if not isinstance(self._total, Tensor):
            raise CourseError("there are no scans to average: give at least one")
        if isinstance(self._weight, Tensor):
            return self._total / self._weight.clamp(min=1e-6)
        return self._total / self._weight


def mean_image(scans: Iterable[Tensor]) -> Tensor:
    """The voxel by voxel mean of tensors of one shape.

    Raises:
        CourseError: there are none.
    """
    mean = Mean()
    for scan in scans:
        mean.add(scan)
    return mean.value


@dataclass(frozen=True, eq=False)
class Round:
    """A template after a round of averaging.

    Attributes:
        template: `(1, 1, *spatial)`, 1 at its brightest voxel.
        change: Mean absolute difference from the round before, of intensities in [0, 1].
        displacement: Mean of the displacements from this round's beginning to the scans, `(1, N, *spatial)` voxels.
    """

    template: Tensor
    change: float
    displacement: Tensor


def average(scans: Iterable[Tensor], displacements: Iterable[Tensor]) -> Tensor:
    """The mean of images brought home, each voxel weighed by the volume that it has in its scan, and 1 at its maximum.

    Where a scan's tissue was shrunk to lie on the template, more of the scan stands behind each voxel, and it counts
    more.

    Args:
        scans: `(1, 1, *spatial)` each.
        displacements: From the template's voxels to the scans', `(1, N, *spatial)` each.

    Returns:
        `(1, 1, *spatial)`; 0 where every map folds.

    Raises:
        CourseError: there are no scans.
    """
    mean = Mean()
    for scan, displacement in zip(scans, displacements, strict=True):
        mean.add(warp(scan, displacement), jacobian_determinant(displacement).clamp(min=0))
    return mean.value / mean.value.max().clamp(min=1e-6)


def groupwise(
    register: Register,
    scans: Sequence[Tensor],
    start: Tensor | None = None,
    *,
    tolerance: float = TOLERANCE,
    rounds: int = ROUNDS,
) -> Iterator[Round]:
    """Average the scans, bring each to the average, average again, until that changes nothing.

    After each round the average is moved by the mean of the displacements, so that it stays in the middle of the scans.

    Args:
        register: A trained network, or any other method.
        scans: `(1, 1, *spatial)` each.
        start: Where to begin, `(1, 1, *spatial)`; None is the mean of the scans as they lie.
        tolerance: The last round is the first that changes the template by less, on average.
        rounds: The last round at the latest.

    Yields:
        Each round.

    Raises:
        CourseError: there are no scans.

    Source: Guimond et al., Average brain models: a convergence study, CVIU 77(2), 2000; the weights are those of
    Kuang's `Gen_temp` (github.com/dykuang/Medical-image-registration).
    """
    template = mean_image(scans) if start is None else start
    for _ in range(rounds):
        displacement = Mean()

        def homewards(template: Tensor = template, displacement: Mean = displacement) -> Iterator[Tensor]:
            for scan in scans:
                with torch.no_grad():
                    home = register(template, scan).inverse()
                displacement.add(home)
                yield home

        new = average(scans, homewards())
        # What the average shows at x belongs, on the mean of the scans, to x + displacement.
        new = warp(new, invert(displacement.value))
        new = new / new.max().clamp(min=1e-6)  # resampling took from the brightest voxel
        change = (new - template).abs().mean().item()
        template = new
        yield Round(template, change, displacement.value)
        if change < tolerance:
            return


def mean_displacement(displacements: Iterable[Tensor], mask: Tensor | None = None) -> float:
    """How far a template is from the middle: the mean length, in voxels, of the mean of its displacements to the scans.

    Args:
        displacements: On the template's grid, `(1, N, *spatial)` each.
        mask: Voxels that count, `(1, 1, *spatial)`, nonzero inside; None counts all.

    Raises:
        CourseError: there are no displacements.
    """
    length = mean_image(displacements).norm(dim=1, keepdim=True)
    return (length if mask is None else length[mask != 0]).mean().item()


def sharpness(image: Tensor, mask: Tensor | None = None) -> float:
    """The mean length of the gradient of an image `(1, 1, *spatial)`, per voxel: a blurred image has little."""
    length = gradient_magnitude(image, epsilon=0.0)
    return (length if mask is None else length[mask != 0]).mean().item()
