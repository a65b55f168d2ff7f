"""Registration from coarse to fine: what a network does with features of both images, whoever found them."""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.fields import resize, warp
from course_utils.networks.base import VelocityNetwork, check_levels
from course_utils.networks.blocks import CONVOLUTION, activation, velocity_head
from course_utils.networks.unet import encoded

SQUARINGS = 3
"""Of the velocity so far, to place a level's features: they need not be placed as exactly as the result."""


class CoarseToFine(VelocityNetwork):
    """Each level sees features that the levels below have aligned, and adds the rest to the velocity.

    Both images are described by themselves, with the same weights. From the coarsest level up, the velocity so far is
    carried to the next finer grid, the features are warped by it, and a decoder that compares them adds to the
    velocity.

    An antisymmetric network moves both images half of the way, compares them in the middle in both orders with the same
    weights, and adds the difference of the two answers. Swapping the images changes the sign of the velocity, exactly.

    Args:
        spatial_dims: 2 or 3.
        encoder: Makes the blocks that describe an image (see `unet.encoder`), for the stride of the first.
        described: Channels of a description's levels, finest first.
        compared: Channels of what a level finds out by comparing two descriptions, finest first.
        half_resolution: See `VelocityNetwork`, as the others.
        integration_steps: See there.
        instance_norm: See there.
        antisymmetric: See there.
        edges: See there.
        conditions: See there.

    Source: see `Pyramid`.
    """

    def __init__(
        self,
        spatial_dims: int,
        *,
        encoder: Callable[[int], nn.ModuleList],
        described: Sequence[int],
        compared: Sequence[int],
        half_resolution: bool,
        integration_steps: int,
        instance_norm: bool,
        antisymmetric: bool,
        edges: bool,
        conditions: int,
    ) -> None:
        check_levels(described)
        super().__init__(
            spatial_dims,
            len(described),
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=antisymmetric,
            edges=edges,
            conditions=conditions,
        )
        convolution = CONVOLUTION[spatial_dims]
        self.encoder = encoder(self.first_stride)
        # What a coarser level has found out, in as many channels as the finer one has.
        self.context = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in itertools.pairwise(compared))
        self.decoder = nn.ModuleList(
            convolution(2 * width + context, own, 3, padding=1)
            for width, own, context in zip(described, compared, [*compared[:-1], 0], strict=True)
        )
        self.activation = nn.ModuleList(
            activation(spatial_dims, own, instance_norm, conditional=conditions > 0) for own in compared
        )
        # A larger kernel costs as much as the decoder before it, and finds nothing that the decoder has not seen.
        self.velocity = nn.ModuleList(
            velocity_head(spatial_dims, own, kernel=1, bias=not antisymmetric) for own in compared
        )

    def describe(self, images: Tensor, code: Tensor | None) -> list[Tensor]:
        """What is compared of images, finest level first, `(B, described[i], *spatial / first_stride / 2^i)`."""
        return encoded(self.encoder, images, code)

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        code = self.code(condition, len(moving))
        return self.compare(self.describe(torch.cat([moving, fixed]), of_both(code)), code)

    def predict_antisymmetric(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict_antisymmetric`."""
        code = of_both(self.code(condition, len(moving)))
        return self.compare_half_way(self.describe(torch.cat([moving, fixed]), code), code)

    def compare(self, levels: Sequence[Tensor], code: Tensor | None) -> Tensor:
        """The velocity of moving to fixed images whose descriptions are given, `(2 B, C, *)`: of moving, then fixed."""
        velocity = seen = None
        for level, images in reversed(list(enumerate(levels))):
            of_moving, of_fixed = images.chunk(2)
            if velocity is not None:
                # The velocity so far is as coarse as the level below: integrated there, it costs an eighth.
                of_moving = warp(of_moving, resize(self.exponential(velocity, SQUARINGS), images.shape[2:]))
                velocity = resize(velocity, images.shape[2:])
            context = [] if seen is None else [self._finer(seen, level)]
            compared = self.decoder[level](torch.cat([of_moving, of_fixed, *context], dim=1))
            seen = self.activation[level](compared, code)
            update = self.velocity[level](seen).float()
            velocity = update if velocity is None else velocity + update
        assert velocity is not None  # there are two levels or more
        return velocity

    def compare_half_way(self, levels: Sequence[Tensor], code: Tensor | None) -> Tensor:
        """As `compare`, antisymmetric; the code is of moving and of fixed images."""
        velocity = seen = None
        for level, images in reversed(list(enumerate(levels))):
            if velocity is not None:
                half = 0.5 * torch.cat([velocity, -velocity])
                images = warp(images, resize(self.exponential(half, SQUARINGS), images.shape[2:]))
                velocity = resize(velocity, images.shape[2:])
            context = None if seen is None else self._finer(seen, level)
            seen = self.activation[level](self._in_both_orders(level, images, context), code)
            first, second = seen.chunk(2)
            update = self.velocity[level](first - second).float()
            velocity = update if velocity is None else velocity + update
        assert velocity is not None
        return velocity

    def _finer(self, seen: Tensor, level: int) -> Tensor:
        return F.interpolate(self.context[level](seen), scale_factor=2, mode="nearest")

    def _in_both_orders(self, level: int, images: Tensor, context: Tensor | None) -> Tensor:
        """The decoder's convolution of (moving, fixed) and of (fixed, moving), `(2 B, C, *spatial)`.

        With weights `p` and `q` for the first and the second image, `p a + q b` and `p b + q a` are the sum and the
        difference of `(p + q)(a + b) / 2` and `(p - q)(a - b) / 2`: two convolutions of half the channels, not of all.
        """
        convolution = self.decoder[level]
        assert isinstance(convolution, nn.Conv2d | nn.Conv3d)
        convolve = functools.partial(F.conv2d if self.spatial_dims == 2 else F.conv3d, padding=1)
        width = images.shape[1]
        weights = convolution.weight
        of_first, of_second, of_context = weights[:, :width], weights[:, width : 2 * width], weights[:, 2 * width :]
        moving, fixed = images.chunk(2)
        even = convolve(moving + fixed, (of_first + of_second) / 2, convolution.bias)
        odd = convolve(moving - fixed, (of_first - of_second) / 2)
        both = torch.cat([even + odd, even - odd])
        return both if context is None else both + convolve(context, of_context)


def of_both(code: Tensor | None) -> Tensor | None:
    """The code of pairs as that of their images, of the moving and then of the fixed ones."""
    return None if code is None else torch.cat([code, code])
