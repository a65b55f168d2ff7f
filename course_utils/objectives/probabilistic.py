"""The evidence lower bound: images explained by a sampled velocity, and a distribution that stays near its prior."""

import math
from dataclasses import dataclass
from typing import Any

from course_utils import losses
from course_utils.errors import CourseError
from course_utils.fields import pool
from course_utils.networks import LOG_VARIANCE, MEAN
from course_utils.objectives.base import Batch, Model, Objective, Outcome


@dataclass(frozen=True)
class EvidenceBound(Objective):
    """Registers with a sample of a network's distribution; the loss is the negative evidence lower bound per voxel.

    The fixed image is the moved one plus normal noise, and the velocity has a prior that knows only that neighbours
    differ little. The bound leaves out constants, so it may be negative.

    Attributes:
        image_sigma: Standard deviation of the noise, intensities; above 0. The smaller, the more the images count.
        prior_precision: Of the difference of two neighbours' velocities, per squared voxel of the network's grid.
        coarseness: See `PairObjective`.

    Raises:
        CourseError: a number is not above 0.

    Source: Dalca et al., Unsupervised learning for fast probabilistic diffeomorphic registration, MICCAI 2018,
    equation 8.
    """

    image_sigma: float = 0.02
    prior_precision: float = 10.0
    coarseness: int = 1

    def __post_init__(self) -> None:
        for name, value in (("image_sigma", self.image_sigma), ("prior_precision", self.prior_precision)):
            if not 0 < value < math.inf:
                raise CourseError(f"{name}={value!r} is not a number above 0: change it")

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`. Raises CourseError where the model answers with no distribution."""
        registration = model(batch["moving"], batch["fixed"], batch.get("condition"))
        if LOG_VARIANCE not in registration.extras:
            raise CourseError(
                "this network answers with one field and not with a distribution: take a probabilistic one"
            )
        mean, log_variance = registration.extras[MEAN], registration.extras[LOG_VARIANCE]
        moving, fixed, judged = batch["moving"], batch["fixed"], registration
        if self.coarseness > 1:
            moving, fixed = pool(moving, self.coarseness), pool(fixed, self.coarseness)
            judged = registration.coarser(moving, self.coarseness)
        terms = {
            "reconstruction": losses.ssd_loss(judged.moved, fixed) / (2 * self.image_sigma**2),
            # Both are sums over voxels in the bound: as means, each counts by the voxels that it has.
            "divergence": losses.velocity_divergence(mean, log_variance, self.prior_precision)
            * (math.prod(mean.shape[2:]) / math.prod(fixed.shape[2:])),
        }
        return Outcome(terms["reconstruction"] + terms["divergence"], terms, registration)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        numbers = {"image_sigma": float(self.image_sigma), "prior_precision": float(self.prior_precision)}
        return {"evidence_bound": {"term": "EvidenceBound", **numbers}, "coarseness": self.coarseness}
