"""The terms of a loss: similarities with their default weights, regularisers, overlap of labels, folding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from course_utils import losses
from course_utils.errors import CourseError
from course_utils.fields import gradient_magnitude, pool, warp
from course_utils.networks import Registration
from course_utils.objectives.base import Batch, Term

NOTHING: frozenset[str] = frozenset()
LABELS = frozenset({"moving_label", "fixed_label"})

# --- similarities -----------------------------------------------------------------------------------------------------


class Similarity(Term, Protocol):
    """A term that compares the two images.

    Attributes:
        smoothness: Weight of the velocity's regulariser where the user gives none. It depends on the scale of the
            similarity and, all terms being means over voxels, on nothing else.
        refinement: The same for instance optimisation, where only a change on a coarse grid is kept smooth.
    """

    smoothness: ClassVar[float]
    refinement: ClassVar[float]


@dataclass(frozen=True)
class NCC:
    """Local correlation of moved and fixed image, see `losses.ncc_loss`.

    Attributes:
        window: Side of the cube that is compared, voxels.
        edges: Weight of the same of the images' edges, the lengths of their gradients: a boundary between two tissues
            counts although most windows lie within one. Source: Haber and Modersitzki, Intensity gradient based
            registration and fusion of multi-modal images, MICCAI 2006 (gradients as what is compared).
    """

    window: int = 9
    edges: float = 0.0
    needs: ClassVar[frozenset[str]] = NOTHING
    smoothness: ClassVar[float] = 2.0
    refinement: ClassVar[float] = 0.45

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        moved, fixed, weight = registration.moved, batch["fixed"], _weight(registration, batch)
        loss = losses.ncc_loss(moved, fixed, self.window, weight=weight)
        if not self.edges:
            return loss
        of_edges = losses.ncc_loss(gradient_magnitude(moved), gradient_magnitude(fixed), self.window, weight=weight)
        return (loss + self.edges * of_edges) / (1 + self.edges)


@dataclass(frozen=True)
class SSD:
    """Mean squared difference of moved and fixed image, see `losses.ssd_loss`."""

    needs: ClassVar[frozenset[str]] = NOTHING
    smoothness: ClassVar[float] = 0.25
    refinement: ClassVar[float] = 0.2

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        return losses.ssd_loss(registration.moved, batch["fixed"], _weight(registration, batch))


@dataclass(frozen=True)
class MI:
    """Mutual information of moved and fixed image, of any two contrasts, see `losses.mi_loss`.

    Attributes:
        bins: Along each side of the joint histogram.
    """

    bins: int = 32
    needs: ClassVar[frozenset[str]] = NOTHING
    smoothness: ClassVar[float] = 0.5
    refinement: ClassVar[float] = 2.0

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        return losses.mi_loss(registration.moved, batch["fixed"], self.bins, _weight(registration, batch))


@dataclass(frozen=True)
class MIND:
    """Difference of the self-similarities of moved and fixed image, of any two contrasts, see `losses.mind_loss`.

    Attributes:
        radius: Of the patches that are compared, voxels.
        distance: Of a voxel's neighbours, voxels.
    """

    radius: int = 1
    distance: int = 2
    needs: ClassVar[frozenset[str]] = NOTHING
    smoothness: ClassVar[float] = 0.1
    refinement: ClassVar[float] = 0.3

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        weight = _weight(registration, batch)
        return losses.mind_loss(registration.moved, batch["fixed"], self.radius, self.distance, weight)


def _weight(registration: Registration, batch: Batch) -> Tensor | None:
    """How much each voxel counts: as much as the masks let it, where the batch has any."""
    weight = batch.get("fixed_mask")
    if "moving_mask" in batch:
        moved = warp(batch["moving_mask"], registration.displacement, padding="zeros")
        weight = moved if weight is None else weight * moved
    return weight


def _smaller(window: int, coarseness: int) -> int:
    """The odd window that is about as wide on a coarser grid, 3 voxels at least."""
    return max(3, window // coarseness // 2 * 2 + 1)


SIMILARITIES: dict[str, Callable[[int], Similarity]] = {
    "ncc": lambda coarseness: NCC(_smaller(NCC.window, coarseness)),
    "ncc-edges": lambda coarseness: NCC(_smaller(NCC.window, coarseness), edges=1.0),
    "ssd": lambda coarseness: SSD(),
    "mi": lambda coarseness: MI(),
    "mind": lambda coarseness: MIND(distance=max(1, MIND.distance // coarseness)),
}
"""The one place of similarities, made for a grid that is so many times coarser; each knows its default weights."""

# --- regularisers -----------------------------------------------------------------------------------------------------

REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "diffusion": losses.diffusion_loss,
    "bending": losses.bending_loss,
}


@dataclass(frozen=True)
class Regularisation:
    """Roughness of the velocity or, where a network predicts none, of the displacement.

    Attributes:
        regulariser: a name out of `REGULARISERS`.
    """

    regulariser: str = "diffusion"
    needs: ClassVar[frozenset[str]] = NOTHING

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        field = registration.displacement if registration.velocity is None else registration.velocity
        return REGULARISERS[self.regulariser](field)


# --- labels, folding --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Soft Dice loss of the structures that a label map has, see `losses.soft_dice_loss`.

    Attributes:
        labels: Values of the structures.
    """

    labels: tuple[int, ...]
    needs: ClassVar[frozenset[str]] = LABELS

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`. Raises CourseError where a pair of the batch has no labels."""
        return losses.soft_dice_loss(*_memberships(registration, batch, self.labels))


@dataclass(frozen=True)
class Membership:
    """Squared difference of the one-hot label maps, see `losses.membership_loss`: it looks at no image.

    Attributes:
        labels: Values of the structures.
    """

    labels: tuple[int, ...]
    needs: ClassVar[frozenset[str]] = LABELS
    smoothness: ClassVar[float] = 0.1
    refinement: ClassVar[float] = 0.1

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`. Raises CourseError where a pair of the batch has no labels."""
        return losses.membership_loss(*_memberships(registration, batch, self.labels))


def _memberships(registration: Registration, batch: Batch, labels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """How much of each structure lies in each voxel, `(B, L, *spatial)`: of the moved and of the fixed label map."""
    if "fixed_label" not in batch:
        raise CourseError(
            f"not all of {', '.join(batch['name'])} have labels: leave out subjects without, or take dice_weight 0"
        )
    moving, fixed = (losses.one_hot(batch[key], labels) for key in ("moving_label", "fixed_label"))
    coarseness = batch.get("coarseness", 1)
    if coarseness > 1:
        moving, fixed = pool(moving, coarseness), pool(fixed, coarseness)
    return warp(moving, registration.displacement), fixed


@dataclass(frozen=True)
class Folding:
    """Penalty on negative Jacobian determinants, see `losses.jacobian_loss`."""

    needs: ClassVar[frozenset[str]] = NOTHING

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `Term`."""
        return losses.jacobian_loss(registration.displacement)
