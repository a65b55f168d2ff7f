"""Both directions of a pair at once: the inverse of the one map is judged too, or both maps ask to be inverses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import compose
from course_utils.losses import diffusion_loss
from course_utils.networks import Registration
from course_utils.objectives.base import Batch, Model, Objective, Outcome
from course_utils.objectives.pair import PairObjective


def swapped(batch: Batch) -> Batch:
    """The same pairs, moving and fixed exchanged, with all that belongs to either."""
    other = {"moving": "fixed", "fixed": "moving"}
    parts = {key: key.partition("_") for key in batch}
    return {other.get(side, side) + rest + of: batch[key] for key, (side, rest, of) in parts.items()}


def mean_of(there: Outcome, back: Outcome) -> Outcome:
    """The mean of two outcomes of the same terms; the registration is the first's."""
    terms = {name: (there.terms[name] + back.terms[name]) / 2 for name in there.terms}
    return Outcome((there.loss + back.loss) / 2, terms, there.registration)


@dataclass(frozen=True)
class InverseToo(Objective):
    """Registers the moving to the fixed image, once; the map and its inverse are judged, each on its own image.

    Attributes:
        pair: What judges either direction; the loss is the mean of the two.

    Source: the option `--bidir` of voxelmorph; Dalca et al., Unsupervised learning of probabilistic diffeomorphic
    registration, Medical Image Analysis 57, 2019 (both directions from one velocity).
    """

    pair: PairObjective

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        registration = model(batch["moving"], batch["fixed"], batch.get("condition"))
        there = self.pair.judge(registration, batch)
        back = self.pair.judge(registration.backwards(batch["fixed"]), swapped(batch))
        return mean_of(there, back)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        return {**self.pair.describe(), "two_directions": {"term": "InverseToo"}}


@dataclass(frozen=True)
class BothOrders(Objective):
    """Registers the moving to the fixed image and the fixed to the moving one; each map is judged by itself.

    It is twice as many pairs a step from the same images, whose labels and changes are made once. Nothing asks the two
    maps to be each other's inverse.

    Attributes:
        pair: What judges either map; the loss is the mean of the two.

    Source: Estienne et al., Deep learning based registration using spatial gradients and noisy segmentation labels,
    MICCAI challenges 2020 (symmetric training, worth 0.034 of Dice there).
    """

    pair: PairObjective

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        there, back = self.registered(model, batch)
        return mean_of(self.pair.judge(there, batch), self.pair.judge(back, swapped(batch)))

    def registered(self, model: Model, batch: Batch) -> tuple[Registration, Registration]:
        """The registrations of the moving to the fixed images, and of the fixed to the moving ones."""
        moving, fixed, condition = batch["moving"], batch["fixed"], batch.get("condition")
        both_orders = getattr(model, "both_orders", None)  # of a network; what is none is asked twice
        if both_orders is not None:
            return both_orders(moving, fixed, condition)
        return model(moving, fixed, condition), model(fixed, moving, condition)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        return {**self.pair.describe(), "two_directions": {"term": "BothOrders"}}


def inconsistency(there: Tensor, back: Tensor) -> Tensor:
    """Mean squared distance, in voxels, between a voxel and where the two maps bring it, `(B, N, *spatial)` each.

    Source: Greer et al., ICON: Learning regular maps through inverse consistency, ICCV 2021, equation 4 (there of
    coordinates in [0, 1], at places drawn at random).
    """
    return (compose(there, back).square().sum(dim=1).mean() + compose(back, there).square().sum(dim=1).mean()) / 2


def gradient_inconsistency(there: Tensor, back: Tensor) -> Tensor:
    """Mean squared Frobenius norm of the Jacobian of what `inconsistency` measures: a shift of all costs nothing.

    Source: Tian et al., GradICON: Approximate diffeomorphisms via gradient inverse consistency, CVPR 2023, equation 4.
    """
    entries = there.shape[1] ** 2  # of a Jacobian, whose mean the diffusion loss is
    return entries * (diffusion_loss(compose(there, back)) + diffusion_loss(compose(back, there))) / 2


CONSISTENCIES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "icon": (inconsistency, 0.03),
    "gradicon": (gradient_inconsistency, 0.3),
}
"""What two displacements lack of being inverses, and the weight of it that a run has where the user gives none."""


@dataclass(frozen=True)
class Consistent(BothOrders):
    """Registers each pair in both orders; what the two maps lack of being inverses costs too.

    It is for networks that do not answer with inverses by construction.

    Attributes:
        pair: What judges either map; the loss has the mean of the two.
        consistency: A name out of `CONSISTENCIES`.
        weight: Of the inconsistency, which is computed in voxels of the grid that the loss is computed on, 0 or more.

    Raises:
        CourseError: there is no such consistency, or the weight is negative.
    """

    consistency: str
    weight: float

    def __post_init__(self) -> None:
        if self.consistency not in CONSISTENCIES:
            raise CourseError(f"consistency={self.consistency!r} is not one of {', '.join(CONSISTENCIES)}: change it")
        if not self.weight >= 0:
            raise CourseError(f"weight={self.weight!r} is not 0 or more: change it")

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        other = swapped(batch)
        there, back = self.registered(model, batch)
        both = [self.pair.on_its_grid(*judged)[0].displacement for judged in ((there, batch), (back, other))]
        cost = CONSISTENCIES[self.consistency][0](*both)
        mean = mean_of(self.pair.judge(there, batch), self.pair.judge(back, other))
        return Outcome(mean.loss + self.weight * cost, {**mean.terms, "inconsistency": cost}, there)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        how = {"term": "Consistent", "consistency": self.consistency, "weight": float(self.weight)}
        return {**self.pair.describe(), "two_directions": how}
