"""A template that is learnt: every scan is registered with it, and it becomes the middle of all of them."""

from dataclasses import dataclass
from typing import Any

from course_utils.losses import ssd_loss
from course_utils.objectives.base import Batch, Model, Objective, Outcome
from course_utils.objectives.pair import PairObjective


@dataclass(frozen=True)
class TemplateObjective(Objective):
    """Deforms the template of a `TemplateNetwork` to the fixed images of a batch; its moving images are not looked at.

    Attributes:
        pair: What judges each registration.
        centring: Weight of the squared mean displacement, in voxels: without it a template may come to lie anywhere,
            since a network can bring it back. With attributes also of how displacements depend on them, without which
            a network can deform one template to all ages.
        anchor: Weight of the squared difference of the deformed template and the scan. A correlation lets intensities
            free, wherever nothing is: a little of this keeps the template's those of the scans.
        memory: About how many scans the mean displacement is of.

    Source: Dalca et al., Learning conditional deformable templates with convolutional networks, NeurIPS 2019.
    """

    pair: PairObjective
    centring: float = 0.01
    anchor: float = 1.0
    memory: int = 48

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`; `model` has what a `TemplateNetwork` has, and `batch["condition"]` are its attributes."""
        condition, scans = batch.get("condition"), batch["fixed"]
        network: Any = model
        template = network.template(condition).expand_as(scans)
        registration = model(template, scans)
        pairs = {key: value for key, value in batch.items() if not key.startswith("moving")} | {"moving": template}
        judged = self.pair.judge(registration, pairs)
        there, seen = self.pair.on_its_grid(registration, pairs)
        back, _ = self.pair.on_its_grid(registration.backwards(scans), {**pairs, "moving": scans})
        drift = network.drift(back.displacement * self.pair.coarseness, condition, self.memory)
        terms = {
            **judged.terms,
            "off_centre": drift.square().sum(1).mean(tuple(range(1, drift.ndim - 1))).sum(),
            "anchor": ssd_loss(there.moved, seen["fixed"]),
        }
        loss = judged.loss + self.centring * terms["off_centre"] + self.anchor * terms["anchor"]
        return Outcome(loss, terms, None)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        settings = {"centring": float(self.centring), "anchor": float(self.anchor), "memory": self.memory}
        return {**self.pair.describe(), "template": {"term": "TemplateObjective", **settings}}
