"""The objective of VoxelMorph: one registration of each pair, and a weighted sum of what it costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError
from course_utils.fields import pool
from course_utils.networks import Registration
from course_utils.objectives.base import Batch, Model, Objective, Outcome, Term, describe_term
from course_utils.objectives.terms import REGULARISERS, SIMILARITIES, Folding, Overlap, Regularisation, Similarity

IMAGES = ("moving", "fixed", "moving_mask", "fixed_mask")
"""What of a batch is averaged where the loss is computed on a coarser grid."""


@dataclass(frozen=True)
class PairObjective(Objective):
    """Registers the moving to the fixed image of each pair, once; the loss is the weighted sum of its terms.

    Attributes:
        terms: By name, a weight and a term.
        coarseness: Voxels along each axis that become one before anything is compared: 1 compares on the images' grid,
            2 on one of half the size, which costs an eighth in 3-D.

    Source: Balakrishnan et al., IEEE TMI 38(8), 2019, equations 2 and 10.
    """

    terms: Mapping[str, tuple[float, Term]]
    coarseness: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return frozenset().union(*(term.needs for _, term in self.terms.values()))

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`; `batch["condition"]`, if there is one, is handed to the model."""
        return self.judge(model(batch["moving"], batch["fixed"], batch.get("condition")), batch)

    def judge(self, registration: Registration, batch: Batch) -> Outcome:
        """The outcome of a registration that is there already; objectives of several registrations build on it."""
        judged, seen = self.on_its_grid(registration, batch)
        terms = {name: term(judged, seen) for name, (_, term) in self.terms.items()}
        loss = sum((self.terms[name][0] * value for name, value in terms.items()), start=batch["fixed"].new_zeros(()))
        return Outcome(loss, terms, registration)

    def on_its_grid(self, registration: Registration, batch: Batch) -> tuple[Registration, Batch]:
        """The registration and the batch as the terms see them: both `coarseness` times coarser."""
        if self.coarseness == 1:
            return registration, batch
        # Labels stay as they are: a term that needs them makes memberships first, which can be averaged.
        pooled = {key: pool(batch[key], self.coarseness) for key in IMAGES if key in batch}
        seen = {**batch, **pooled, "coarseness": self.coarseness}
        return registration.coarser(pooled["moving"], self.coarseness), seen

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        terms = {name: {**describe_term(term), "weight": float(weight)} for name, (weight, term) in self.terms.items()}
        return {**terms, "coarseness": self.coarseness}


def pair_objective(
    similarity: str | Similarity = "ncc",
    *,
    regulariser: str = "diffusion",
    smoothness: float | None = None,
    dice_weight: float = 0.0,
    labels: Iterable[int] = (),
    jacobian_weight: float = 0.0,
    coarseness: int = 1,
) -> PairObjective:
    """The loss of VoxelMorph, from the numbers that a user chooses.

    Its terms are called `similarity`, `regularisation` and, where their weight is above 0, `overlap` (of labels) and
    `folding`.

    Args:
        similarity: a name out of `SIMILARITIES`, or a term such as `NCC(window=5)`.
        regulariser: `"diffusion"` or `"bending"`, of the velocity.
        smoothness: weight of the regulariser; None takes the similarity's default.
        dice_weight: weight of the soft Dice of the labels; 0 trains without labels.
        labels: values of the structures that the Dice is of.
        jacobian_weight: weight of the penalty on folding.
        coarseness: see `PairObjective`. A window of a similarity that is given by its name shrinks with the grid.

    Raises:
        CourseError: a name does not exist, a weight is negative, or the Dice has no labels.
    """

    def require(condition: bool, name: str, value: object, what: str) -> None:
        if not condition:
            raise CourseError(f"{name}={value!r} is not {what}: change it")

    require(coarseness >= 1, "coarseness", coarseness, "1 or more")
    if isinstance(similarity, str):
        require(similarity in SIMILARITIES, "similarity", similarity, f"one of {', '.join(SIMILARITIES)}")
        similarity = SIMILARITIES[similarity](coarseness)
    require(regulariser in REGULARISERS, "regulariser", regulariser, f"one of {', '.join(REGULARISERS)}")
    weights = {"smoothness": smoothness, "dice_weight": dice_weight, "jacobian_weight": jacobian_weight}
    for name, weight in weights.items():
        require(weight is None or weight >= 0, name, weight, "0 or more")
    labels = tuple(labels)
    if dice_weight and not labels:
        raise CourseError("dice_weight needs labels and the data set has none: add labels or set it to 0")
    terms: dict[str, tuple[float, Term]] = {
        "similarity": (1.0, similarity),
        "regularisation": (similarity.smoothness if smoothness is None else smoothness, Regularisation(regulariser)),
    }
    if dice_weight:
        terms["overlap"] = dice_weight, Overlap(labels)
    if jacobian_weight:
        terms["folding"] = jacobian_weight, Folding()
    return PairObjective(terms, coarseness)
