"""SynthMorph: a network that learns from label maps alone, and sees no image that a scanner has made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import integrate, resize, warp
from course_utils.objectives.base import Batch, Model, Objective, Outcome, describe_term
from course_utils.objectives.contrast import Contrast, Structures, developed, of_each, smooth_noise, uniform
from course_utils.objectives.terms import LABELS, NOTHING

# --- from a label map to an image -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colours(Contrast):
    """How an image is made of nothing but a label map, see `paint_labels`.

    Attributes:
        empty: Probability that what has no label is black and without noise.
    """

    noise: float = 0.1
    empty: float = 0.2


def paint_labels(label: Tensor, colours: Colours) -> Tensor:
    """Images that nobody has measured: every structure, and what has no label, has a mean and a noise of its own.

    Then see `developed`. There is no detail within a structure but the noise.

    Args:
        label: `(B, 1, *spatial)`, whole numbers, 0 or more.
        colours: How.

    Returns:
        `(B, 1, *spatial)` float32, in [0, 1]. Random numbers come from PyTorch's global generator.

    Source: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022; Billot et al., A learning strategy for contrast-agnostic
    MRI segmentation, MIDL 2020.
    """
    structures = Structures(label)
    image = structures.at_voxels(structures.drawn(0, 1)) + structures.noise(colours.noise)
    black = of_each(uniform(0, 1, len(label), device=label.device) < colours.empty, label)
    darkest = image.amin(tuple(range(1, image.ndim)), keepdim=True)
    return developed(torch.where(black & (label == 0), darkest, image), colours)


# --- label maps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bending:
    """Deformations drawn at random, smooth and, but for the grid, without folds.

    A stationary velocity is drawn at points on several scales, all are added, and it is integrated on a grid of half
    the size.

    Attributes:
        strength: Largest standard deviation of the velocity at the points of a scale, voxels; each map has its own.
        scales: Voxels between the points of each.
        steps: Squarings, see `fields.integrate`.
    """

    strength: float
    scales: tuple[int, ...]
    steps: int = 5

    def __call__(self, batch: int, spatial: Sequence[int], device: torch.device) -> Tensor:
        """Displacements `(batch, N, *spatial)`, voxels. Random numbers come from PyTorch's global generator."""
        dims, coarse = len(spatial), half(spatial)
        velocity = torch.zeros(batch, dims, *coarse, device=device)
        for scale in self.scales:
            drawn = smooth_noise(batch, dims, points(spatial, scale), coarse, device)
            velocity = velocity + of_each(uniform(0, self.strength, batch, device=device), drawn) * drawn
        return resize(integrate(velocity / 2, self.steps), spatial)


def half(spatial: Sequence[int]) -> list[int]:
    """The size of a grid of half the voxels along each axis."""
    return [-(-n // 2) for n in spatial]


def points(spatial: Sequence[int], scale: int) -> list[int]:
    """How many points there are along each axis, `scale` voxels apart."""
    return [max(2, -(-n // scale)) for n in spatial]


class LabelMaps(Protocol):
    """Where the two label maps of a pair come from."""

    needs: ClassVar[frozenset[str]]
    """As `Objective.needs`."""
    real: ClassVar[bool]
    """Whether the maps are those of the batch where nobody trains, so that its registration can be measured."""

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Of the moving and of the fixed images, `(B, 1, *spatial)`, whole numbers."""


@dataclass(frozen=True)
class Subjects:
    """The label maps of two people, each bent at random in training: SynthMorph's brains.

    Attributes:
        bending: How.
    """

    bending: Bending = Bending(1.0, (16,))
    needs: ClassVar[frozenset[str]] = LABELS
    real: ClassVar[bool] = True

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """See `LabelMaps`."""
        moving, fixed = batch["moving_label"], batch["fixed_label"]
        if not training:
            return moving, fixed
        return bent(moving, self.bending), bent(fixed, self.bending)


@dataclass(frozen=True)
class Shapes:
    """One label map without any meaning, bent at random in two ways: SynthMorph's shapes.

    Each label has a smooth random image, warped by a displacement of its own, and each voxel the label whose image is
    brightest there.

    Attributes:
        count: Of labels, 0 among them.
        scale: Voxels between the points at which these images are drawn.
        wobble: Standard deviation of these displacements, voxels, at points half as far apart. They may fold: nothing
            is in the images yet that could be torn.
        bending: Of the whole map.
    """

    count: int = 16
    scale: int = 32
    wobble: float = 3.0
    bending: Bending = Bending(3.0, (8, 16, 32))
    needs: ClassVar[frozenset[str]] = NOTHING
    real: ClassVar[bool] = False

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """See `LabelMaps`; only the shape and the device of the batch's images count."""
        like = batch["fixed"]
        label = self.draw(len(like), like.shape[2:], like.device)
        return bent(label, self.bending), bent(label, self.bending)

    def draw(self, batch: int, spatial: Sequence[int], device: torch.device) -> Tensor:
        """Label maps `(batch, 1, *spatial)` int16, from 0 to `count - 1`."""
        coarse, many = half(spatial), batch * self.count
        images = smooth_noise(many, 1, points(spatial, self.scale), coarse, device)
        wobble = smooth_noise(many, len(spatial), points(spatial, self.scale // 2), coarse, device)
        images = warp(images, self.wobble / 2 * wobble).view(batch, self.count, *coarse)
        mode = "trilinear" if len(spatial) == 3 else "bilinear"
        return F.interpolate(images, size=tuple(spatial), mode=mode).argmax(1, keepdim=True).to(torch.int16)


def bent(label: Tensor, bending: Bending) -> Tensor:
    """Label maps `(B, 1, *spatial)`, each deformed at random."""
    return warp(label, bending(len(label), label.shape[2:], label.device), mode="nearest")


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SynthesisedObjective(Objective):
    """Shows the network images made of label maps, and judges its answer by these maps. No real image is looked at.

    Attributes:
        judge: What judges a pair, such as a `PairObjective` of the term `Membership`.
        maps: Where the label maps come from.
        colours: How images are painted over them.

    Source: Hoffmann et al., SynthMorph: learning contrast-invariant registration without acquired images, IEEE TMI
    41(3), 2022.
    """

    judge: Objective
    maps: LabelMaps
    colours: Colours = Colours()

    @property
    def needs(self) -> frozenset[str]:
        """See `Objective.needs`."""
        return self.maps.needs

    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """See `Objective`. The outcome has a registration where it is one of the batch's own label maps."""
        training = getattr(model, "training", False)
        moving_label, fixed_label = self.maps(batch, training)
        made = {
            "moving": paint_labels(moving_label, self.colours),
            "fixed": paint_labels(fixed_label, self.colours),
            "moving_label": moving_label,
            "fixed_label": fixed_label,
        }
        carried = {key: value for key, value in batch.items() if key in ("condition", "name")}
        outcome = self.judge(model, {**carried, **made})
        return outcome if self.maps.real and not training else Outcome(outcome.loss, outcome.terms, None)

    def describe(self) -> dict[str, Any]:
        """See `Objective`."""
        maps = describe_term(self.maps)
        return {**self.judge.describe(), "label_maps": maps, "colours": describe_term(self.colours)}
