"""A network for any contrast: it is shown images painted at random, and what is compared are the real ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.objectives.base import Batch, Model, Objective, Outcome, describe_term
from course_utils.objectives.contrast import Contrast, Structures, developed, of_each, uniform
from course_utils.objectives.pair import PairObjective
from course_utils.objectives.terms import LABELS


@dataclass(frozen=True)
class Painting(Contrast):
    """How an image of random contrast is painted over a real image and its label map, see `paint`.

    Attributes:
        real: Share of images that are left as they are.
        detail: Largest factor, of either sign and for each structure its own, of the image's deviations from its mean
            there.
    """

    real: float = 0.2
    detail: float = 1.5


def paint(image: Tensor, label: Tensor, painting: Painting) -> Tensor:
    """Images of the same anatomy in contrasts that nobody has measured.

    Every structure, and what has no label, gets a mean of its own out of [0, 1], the image's own detail in it times a
    factor of its own, and noise; then see `developed`. What is 0 and has no label, as around a brain that was
    extracted, stays 0.

    Args:
        image: `(B, 1, *spatial)`, in [0, 1].
        label: `(B, 1, *spatial)`, whole numbers, 0 or more.
        painting: How.

    Returns:
        `(B, 1, *spatial)` float32, in [0, 1]. Random numbers come from PyTorch's global generator.

    Source: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022 (a new contrast for every image; theirs has no detail of a
    real one, see `paint_labels`).
    """
    image = image.float()
    structures = Structures(label)
    means, factors = structures.drawn(0, 1), structures.drawn(-painting.detail, painting.detail)
    detail = image - structures.at_voxels(structures.means(image))
    painted = structures.at_voxels(means) + structures.at_voxels(factors) * detail + structures.noise(painting.noise)
    empty = (image <= 0) & (label == 0)
    painted = torch.where(empty, painted.amin(tuple(range(1, image.ndim)), keepdim=True), painted)
    painted = developed(painted, painting)
    left = uniform(0, 1, len(image), device=image.device) < painting.real
    return torch.where(of_each(left, image), image, painted)


@dataclass(frozen=True)
class PaintedObjective(Objective):
    """Shows the network painted images and judges its answer by the real ones: it learns shapes in any contrast.

    The pairs need real images of one contrast, and labels of whatever structures; at the end the network registers
    contrasts that it was never shown.

    Attributes:
        pair: What judges.
        painting: How images are painted.

    Source: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022 (random contrasts, a loss that does not see them); Demir
    et al., multiGradICON, WBIR 2024 (a loss on images of one contrast while the network is shown others).
    """

    pair: PairObjective
    painting: Painting = Painting()

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.pair.needs | LABELS

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`."""
        moving, fixed = (paint(batch[side], batch[f"{side}_label"], self.painting) for side in ("moving", "fixed"))
        registration = model(moving, fixed, batch.get("condition"))
        return self.pair.judge(registration.of(batch["moving"]), batch)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        return {**self.pair.describe(), "painting": describe_term(self.painting)}
