"""More pairs than there are: the images of each training pair moved, bent and changed in contrast at random.

Moving and fixed image are changed separately: what is to be registered stays a pair of images of the same organ, in
other shapes and intensities than anybody's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from course_utils.data.loading import PairDataset
from course_utils.fields import affine_to_field, resize, warp
from course_utils.seeds import seed_of


@dataclass(frozen=True)
class Augmentation:
    """How much the images of a pair are changed; every number is of one image, drawn anew for each.

    Attributes:
        rotation: Degrees, standard deviation about each axis.
        scale: Standard deviation of the logarithm of the size along each axis.
        shift: Voxels, standard deviation along each axis.
        bend: Voxels, standard deviation of a smooth displacement.
        knots: Voxels between the points at which that displacement is drawn.
        contrast: Standard deviation of the logarithm of the exponent that intensities in [0, 1] are raised to.
    """

    rotation: float = 5.0
    scale: float = 0.05
    shift: float = 1.5
    bend: float = 1.0
    knots: int = 12
    contrast: float = 0.15

    def scaled(self, strength: float) -> "Augmentation":
        """The same with every standard deviation multiplied."""
        changes = {field.name: getattr(self, field.name) * strength for field in fields(self) if field.name != "knots"}
        return replace(self, **changes)

    def __call__(self, item: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A changed copy of an item of a `PairDataset`. Numbers are drawn on the CPU from the generator."""
        changed = dict(item)
        spatial = item["fixed"].shape[1:]
        for side in ("moving", "fixed"):
            displacement = self._displacement(spatial, generator)
            exponent = math.exp(self.contrast * float(torch.randn((), generator=generator)))
            image = warp(item[side][None], displacement)[0]
            changed[side] = image.clamp(0, 1) ** exponent
            if f"{side}_label" in item:
                label = warp(item[f"{side}_label"][None], displacement, mode="nearest", padding="zeros")
                changed[f"{side}_label"] = label[0]
        return changed

    def _displacement(self, spatial: tuple[int, ...], generator: torch.Generator) -> Tensor:
        dims = len(spatial)
        linear = torch.eye(dims)
        for first in range(dims):
            for second in range(first):
                angle = math.radians(self.rotation * float(torch.randn((), generator=generator)))
                turn = torch.eye(dims)
                turn[first, first] = turn[second, second] = math.cos(angle)
                turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
                linear = linear @ turn
        linear = linear * torch.exp(self.scale * torch.randn(dims, generator=generator))
        centre = torch.tensor([(n - 1) / 2 for n in spatial])
        shift = self.shift * torch.randn(dims, generator=generator) + centre - linear @ centre
        knots = [max(2, math.ceil(n / self.knots)) for n in spatial]
        bend = resize(torch.randn(1, dims, *knots, generator=generator), spatial)
        # The resized vectors have grown with the grid, and interpolation has taken some of their spread.
        return (
            affine_to_field(torch.cat([linear, shift[:, None]], dim=1)[None], spatial) + self.bend * bend / bend.std()
        )


class AugmentedPairs(PairDataset):
    """Pairs that are changed at random, each in a way that follows from the seed and its index.

    Args:
        pairs: What to change.
        augmentation: How.
        seed: Of the random numbers.
    """

    def __init__(self, pairs: PairDataset, augmentation: Augmentation, seed: int = 0) -> None:
        super().__init__(pairs.subjects, pairs.pairs)
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, index))
        return self.augmentation(super().__getitem__(index), generator)
