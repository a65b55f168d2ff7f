"""A network that segments both images and registers them by what it then knows, with VoxelMorph's interface."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_utils.networks.base import architecture, check_levels
from course_utils.networks.blocks import CONVOLUTION
from course_utils.networks.coarse_to_fine import CoarseToFine, of_both
from course_utils.networks.registration import Registration
from course_utils.networks.unet import Decoder, encoded, encoder

SIDES = ("moving", "fixed")
MOST_COMPARED = 32
"""Channels of what a level finds out by comparing two images: where they are apart takes fewer than what they show."""


def scores_of(side: str, stride: int) -> str:
    """Name of a registration's extra: scores of the structures in the `"moving"` or the `"fixed"` image.

    They are `(B, structures + 1, *own)` float32, before a softmax, the background first. One of their voxels is
    `stride` of the images' along each axis: 1 or 2 on the finest level, and twice as much on each coarser one.
    The sides are those of the call of the network: `Registration.backwards` does not exchange them.
    """
    return f"{side}_scores_{stride}"


@architecture("joint")
class Joint(CoarseToFine):
    """Segments each image by itself, and registers from coarse to fine what it has then seen in both.

    A U-Net describes an image: what it makes of each level knows what coarser ones have seen, and tells the structures
    apart. A level compares these features and the probabilities of the structures. As an image is described without the
    other one, many pairs teach what a structure looks like, and to register in both orders describes nothing twice.

    The scores of the structures are extras of the registration, see `scores_of`; `objectives.Segmented` trains them.
    Without it they mean nothing, and the network is a pyramid with a larger encoder. It has no antisymmetric form.

    Args:
        spatial_dims: 2 or 3.
        structures: How many the labels tell apart, without the background; 1 or more.
        features: Channels of the U-Net's levels, finest first; every level halves the resolution of the one before.
        half_resolution: See `VelocityNetwork`, as the others.
        integration_steps: See there.
        instance_norm: See there.
        edges: See there.
        conditions: See there.

    Source: Estienne et al., U-ReSNet: Ultimate coupling of registration and segmentation with deep nets, MICCAI 2019;
    Xu and Niethammer, DeepAtlas: Joint semi-supervised learning of image registration and segmentation, MICCAI 2019.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        structures: int = 1,
        features: Sequence[int] = (8, 16, 32, 48),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        check_levels(features)
        if structures < 1:
            raise ValueError(f"structures is 1 or more, not {structures}")
        super().__init__(
            spatial_dims,
            encoder=functools.partial(
                encoder, spatial_dims, features, instance_norm=instance_norm, conditional=conditions > 0
            ),
            described=[width + structures + 1 for width in features],
            compared=[min(width, MOST_COMPARED) for width in features],
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=False,
            edges=edges,
            conditions=conditions,
        )
        self.structures = structures
        self.decoder_of_images = Decoder(
            spatial_dims, features, instance_norm=instance_norm, conditional=conditions > 0
        )
        self.scores = nn.ModuleList(CONVOLUTION[spatial_dims](width, structures + 1, 1) for width in features)

    def describe(self, images: Tensor, code: Tensor | None) -> list[Tensor]:
        """See `CoarseToFine.describe`."""
        return self._told_apart(images, code)[0]

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`."""
        source, target = self.seen(moving, fixed)
        code = self.code(condition, len(moving))
        with self._trusted_precision(source):
            levels, scores = self._told_apart(torch.cat([source, target]), of_both(code))
            velocity = self.compare(levels, code)
        return self.answer(moving, velocity, self._extras(scores, moving.shape[2:], SIDES))

    def both_orders(
        self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None
    ) -> tuple[Registration, Registration]:
        """See `RegistrationNetwork.both_orders`; each image is described once."""
        source, target = self.seen(moving, fixed)
        code = of_both(self.code(condition, len(moving)))
        with self._trusted_precision(source):
            levels, scores = self._told_apart(torch.cat([source, target]), code)
            twice = [torch.cat([level, *level.chunk(2)[::-1]]) for level in levels]
            there, back = self.compare(twice, code).chunk(2)
        extras, other = (self._extras(scores, moving.shape[2:], sides) for sides in (SIDES, SIDES[::-1]))
        return self.answer(moving, there, extras), self.answer(fixed, back, other)

    def motionless(self, moving: Tensor) -> Registration:
        """See `RegistrationNetwork.motionless`; any structure is as likely as another."""
        nothing = super().motionless(moving)
        none = [
            moving.new_zeros(2 * len(moving), self.structures + 1, *_own(moving.shape[2:], stride))
            for stride in self._strides()
        ]
        extras = self._extras(none, moving.shape[2:], SIDES)
        return Registration(moving, nothing.displacement, nothing.velocity, extras)

    def _told_apart(self, images: Tensor, code: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Features and probabilities, which are compared, and the scores of each level, finest first."""
        features = self.decoder_of_images.levels(encoded(self.encoder, images, code), code)
        scores = [head(level).float() for head, level in zip(self.scores, features, strict=True)]
        return [torch.cat([f, s.softmax(1)], dim=1) for f, s in zip(features, scores, strict=True)], scores

    def _extras(self, scores: Sequence[Tensor], spatial: Sequence[int], sides: Sequence[str]) -> dict[str, Tensor]:
        """The scores by name, each without what the images were padded by; `sides` are those of the two halves."""
        return {
            scores_of(side, stride): its[(..., *map(slice, _own(spatial, stride)))]
            for stride, both in zip(self._strides(), scores, strict=True)
            for side, its in zip(sides, both.chunk(2), strict=True)
        }

    def _strides(self) -> list[int]:
        """How many of the images' voxels one of each level is along each axis, finest level first."""
        return [self.first_stride * 2**level for level in range(len(self.scores))]


def _own(spatial: Sequence[int], stride: int) -> list[int]:
    """The shape of the grid, so many times coarser, that images of this shape need."""
    return [-(-n // stride) for n in spatial]
