"""A network for any contrast: it is shown images painted at random, and what is compared are the real ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import box_mean
from course_utils.objectives.base import Batch, Model, Objective, Outcome, describe_term
from course_utils.objectives.pair import PairObjective
from course_utils.objectives.terms import LABELS


@dataclass(frozen=True)
class Painting:
    """How an image of random contrast is painted over the structures of a label map, see `paint`.

    Attributes:
        real: Share of images that are left as they are.
        noise: Largest standard deviation of the noise; each structure has its own.
        detail: Largest factor, of either sign and for each structure its own, of the image's deviations from its mean
            there.
        bias: Largest standard deviation of the logarithm of a smooth factor.
        knots: Points of that factor along each axis.
        gamma: Standard deviation of the logarithm of the exponent of all intensities.
    """

    real: float = 0.2
    noise: float = 0.08
    detail: float = 1.5
    bias: float = 0.3
    knots: int = 4
    gamma: float = 0.25


def paint(image: Tensor, label: Tensor, painting: Painting) -> Tensor:
    """Images of the same anatomy in contrasts that nobody has measured.

    Every structure, and what has no label, gets a mean of its own out of [0, 1], the image's own detail in it times a
    factor of its own, and noise; all is blurred a little, shaded, brought to [0, 1] and raised to a power. What is 0
    and has no label, as around a brain that was extracted, stays 0.

    Args:
        image: `(B, 1, *spatial)`, in [0, 1].
        label: `(B, 1, *spatial)`, whole numbers, 0 or more.
        painting: How.

    Returns:
        `(B, 1, *spatial)` float32, in [0, 1]. Random numbers come from PyTorch's global generator.

    Source: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022 (a new contrast for every image; theirs has no detail of a
    real one).
    """
    shape, spatial = image.shape, image.shape[2:]
    batch, device = shape[0], image.device
    one_each = (-1, *[1] * (len(spatial) + 1))  # a number for each image of the batch
    whole = tuple(range(1, image.ndim))
    structure = label.long().flatten(1)
    count = int(structure.max()) + 1

    def each(values: Tensor) -> Tensor:
        """A value of each structure, `(B, count)`, at its voxels."""
        return values.gather(1, structure).view(shape)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, device=device)

    image = image.float()
    sums = image.new_zeros(batch, count).scatter_add_(1, structure, image.flatten(1))
    voxels = image.new_zeros(batch, count).scatter_add_(1, structure, torch.ones_like(image).flatten(1))
    painted = each(uniform(0, 1, batch, count)) + each(uniform(-painting.detail, painting.detail, batch, count)) * (
        image - each(sums / voxels.clamp(min=1))
    )
    painted = painted + each(uniform(0, painting.noise, batch, count)) * torch.randn(shape, device=device)
    empty = (image <= 0) & (label == 0)
    painted = torch.where(empty, painted.amin(whole, keepdim=True), painted)
    painted = torch.lerp(painted, box_mean(painted, 3), uniform(0, 1, batch).view(one_each))
    shade = torch.randn(batch, 1, *[painting.knots] * len(spatial), device=device)
    shade = shade * uniform(0, painting.bias, batch).view(one_each)
    shade = F.interpolate(shade, size=spatial, mode="trilinear" if len(spatial) == 3 else "bilinear")
    painted = (painted - painted.amin(whole, keepdim=True)) * shade.exp()
    painted = painted / painted.amax(whole, keepdim=True).clamp(min=1e-6)
    painted = painted ** torch.exp(painting.gamma * torch.randn(batch, device=device)).view(one_each)
    return torch.where(uniform(0, 1, batch).view(one_each) < painting.real, image, painted)


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
