"""One network for every weight of the smoothness: it is told the weight that its answer is judged with."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from course_utils.errors import CourseError
from course_utils.networks import SmoothnessRange
from course_utils.objectives.base import Batch, Model, Objective, Outcome

ENDS = 0.2
"""Share of the batches whose weight is one of the two ends, which a network would otherwise never see exactly."""


@dataclass(frozen=True)
class AnySmoothness(Objective):
    """Draws the weight of the smoothness anew for each batch in training, and tells it to the network.

    The network gets it as its `condition`, `(B, 1)`: the position of the weight in the range, from 0 to 1. A network
    that does not train, as in validation, is judged with the middle of the range.

    With a similarity L, a roughness R and a weight w, the loss is `(L + w R) / (1 + w)`. For each w it has the least
    value where `L + w R` has; the division keeps the gradients of large weights from drowning those of small ones. With
    `lambda = w / (1 + w)` it is HyperMorph's `(1 - lambda) L + lambda R`.

    Attributes:
        judge: What judges but for the smoothness: its term `regularisation` has the weight 0. It may be a
            `PairObjective`, or one of both directions.
        weights: The range that weights are drawn from, so that equal ratios are equally likely.

    Raises:
        CourseError: the term `regularisation` has a weight of its own, or there is none.

    Source: Hoopes et al., HyperMorph: amortized hyperparameter learning for image registration, IPMI 2021 (the weight
    as an input, and the two ends); Mok and Chung, MICCAI 2021 (the same by conditional instance norms).
    """

    judge: Objective
    weights: SmoothnessRange

    def __post_init__(self) -> None:
        own = self.judge.describe().get("regularisation", {}).get("weight")
        if own != 0:
            raise CourseError(f"what judges for any smoothness has a regularisation of weight 0, not {own}: change it")

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.judge.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        like = batch["fixed"]
        position = self._drawn() if getattr(model, "training", False) else 0.5
        weight = self.weights.weight(position)
        outcome = self.judge(model, {**batch, "condition": like.new_full((len(like), 1), position)})
        loss = (outcome.loss + weight * outcome.terms["regularisation"]) / (1 + weight)
        return replace(outcome, loss=loss)

    def _drawn(self) -> float:
        """A position in the range, at random."""
        chance, position = torch.rand(2).tolist()
        return float(round(position)) if chance < ENDS else position

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        told = {"term": "AnySmoothness", "low": self.weights.low, "high": self.weights.high}
        return {**self.judge.describe(), "smoothness": told}
