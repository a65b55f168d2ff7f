"""The way back: from what a network has made of an image to the image itself."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.networks import Registration
from course_utils.objectives.base import Batch, Model, Objective, Outcome
from course_utils.objectives.pair import PairObjective
from course_utils.objectives.two_directions import mean_of, swapped


def homewards(registration: Registration, batch: Batch) -> Batch:
    """Pairs of the moved image, as the moving one, and of the moving image, as the fixed one.

    Labels and masks go with their images. A label map is carried by nearest neighbours, which have no gradient: what
    is learnt from it on the way back is the second map.
    """
    u = registration.displacement
    carried = {
        "moving": lambda values: registration.moved,
        "moving_label": lambda values: warp(values, u, mode="nearest", padding="zeros"),
        "moving_mask": lambda values: warp(values, u, padding="zeros"),
    }
    back = {key: value for key, value in batch.items() if not key.startswith("fixed")}
    back |= {key.replace("moving", "fixed"): batch[key] for key in carried if key in batch}
    return back | {key: carry(batch[key]) for key, carry in carried.items() if key in batch}


@dataclass(frozen=True)
class Cycle(Objective):
    """Registers the moving to the fixed image, and the moved image back to the moving one; both are judged.

    The network sees its own output. It is not asked that the two maps be inverses, only that the image comes home.

    Attributes:
        pair: What judges either way; the loss is the mean of the two.

    Source: Kuang, On reducing negative Jacobian determinant of the deformation predicted by deep registration networks,
    arXiv 1907.00068, 2019 (theirs is the sum).
    """

    pair: PairObjective

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        there = self.pair(model, batch)
        assert there.registration is not None  # a pair objective always has one
        return mean_of(there, self.pair(model, homewards(there.registration, batch)))

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        return {**self.pair.describe(), "two_directions": {"term": "Cycle"}}


@dataclass(frozen=True)
class CycleMorph(Objective):
    """Registers each pair in both directions, the two moved images to each other, and each image to itself.

    The moved images, registered to each other, must give the images that they were made of (the term `cycle`, a mean
    absolute difference on the images' grid); an image that is registered to itself must stay (the term `identity`, what
    `pair` says of it). It takes six registrations of each pair.

    Attributes:
        pair: What judges the two directions, and an image against itself; the loss has the mean of the two.
        cycle_weight: Of the cycle, 0 or more.
        identity_weight: Of the identity, 0 or more.

    Raises:
        CourseError: a weight is negative.

    Source: Kim et al., CycleMorph: Cycle consistent unsupervised deformable image registration, Medical Image Analysis
    71, 2021, equations 2 to 7. Theirs are two networks, one for each direction; this is one network for both. Their
    identity has the similarity alone.
    """

    pair: PairObjective
    cycle_weight: float = 0.1
    identity_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cycle_weight", "identity_weight"):
            if not getattr(self, name) >= 0:
                raise CourseError(f"{name}={getattr(self, name)!r} is not 0 or more: change it")

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        condition, other = batch.get("condition"), swapped(batch)
        there, back = self.pair(model, batch), self.pair(model, other)
        assert there.registration is not None and back.registration is not None
        like_fixed, like_moving = there.registration.moved, back.registration.moved
        home = (
            _difference(model(like_fixed, like_moving, condition).moved, batch["moving"])
            + _difference(model(like_moving, like_fixed, condition).moved, batch["fixed"])
        ) / 2
        stays = mean_of(*(self.pair(model, _to_itself(pairs)) for pairs in (batch, other))).loss
        mean = mean_of(there, back)
        loss = mean.loss + self.cycle_weight * home + self.identity_weight * stays
        return Outcome(loss, {**mean.terms, "cycle": home, "identity": stays}, there.registration)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        weights = {"cycle_weight": float(self.cycle_weight), "identity_weight": float(self.identity_weight)}
        return {**self.pair.describe(), "two_directions": {"term": "CycleMorph", **weights}}


def _difference(found: Tensor, image: Tensor) -> Tensor:
    return (found.float() - image.float()).abs().mean()


def _to_itself(batch: Batch) -> Batch:
    """Each fixed image as both images of a pair, with all that belongs to it."""
    itself = {key.replace("fixed", "moving"): batch[key] for key in batch if key.startswith("fixed")}
    return {**{key: value for key, value in batch.items() if not key.startswith("moving")}, **itself}
