"""Registration and segmentation at once: a network that registers is also judged by the structures that it sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from course_utils import losses
from course_utils.errors import CourseError
from course_utils.fields import pool
from course_utils.networks import scores_of
from course_utils.objectives.base import Batch, Model, Objective, Outcome
from course_utils.objectives.terms import LABELS


@dataclass(frozen=True)
class Segmented(Objective):
    """Adds what a network's segmentation of both images costs to what its registration of them costs.

    The segmentation of each level is compared with the labels, averaged over the voxels that one of its own is. The
    term is called `segmentation`, a mean over levels and images.

    Attributes:
        judge: What judges the registration.
        labels: Values of the structures, as many as the network tells apart.
        weight: Of the segmentation, 0 or more.

    Raises:
        CourseError: the weight is negative, or there are no labels.

    Source: Estienne et al., U-ReSNet, MICCAI 2019; Xu and Niethammer, DeepAtlas, MICCAI 2019.
    """

    judge: Objective
    labels: tuple[int, ...]
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise CourseError(f"weight={self.weight!r} is not 0 or more: change it")
        if not self.labels:
            raise CourseError("a segmentation needs labels and the data set has none: add labels, or leave it out")

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.judge.needs | LABELS

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`. Raises CourseError where the model answers with no segmentation."""
        outcome = self.judge(model, batch)
        extras = {} if outcome.registration is None else outcome.registration.extras
        costs = [cost for side in ("moving", "fixed") for cost in self._costs(extras, batch, side)]
        if not costs:
            raise CourseError("this network does not segment its images: take --architecture joint")
        cost = torch.stack(costs).mean()
        terms = {**outcome.terms, "segmentation": cost}
        return replace(outcome, loss=outcome.loss + self.weight * cost, terms=terms)

    def _costs(self, extras: Mapping[str, Tensor], batch: Batch, side: str) -> list[Tensor]:
        """Of each level, of one image."""
        memberships = losses.one_hot(batch[f"{side}_label"], self.labels)
        costs, stride = [], 1 if scores_of(side, 1) in extras else 2
        while (scores := extras.get(scores_of(side, stride))) is not None:
            costs.append(losses.segmentation_loss(scores, pool(memberships, stride)))
            stride *= 2
        return costs

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        return {**self.judge.describe(), "segmentation": {"term": "Segmented", "weight": float(self.weight)}}
