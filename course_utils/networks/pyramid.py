"""A network that registers from coarse to fine, with VoxelMorph's interface."""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.fields import resize, warp
from course_utils.networks.base import VelocityNetwork, architecture, check_levels
from course_utils.networks.blocks import CONVOLUTION, activation, convolution_block, velocity_head

SQUARINGS = 3
"""Of the velocity so far, to place a level's features: they need not be placed as exactly as the result."""


@architecture("pyramid")
class Pyramid(VelocityNetwork):
    """Registers from coarse to fine: each level sees features that the levels below have aligned, and adds the rest.

    One encoder describes both images. From the coarsest level up, the velocity so far is carried to the next finer
    grid, the features are warped by it, and a decoder that compares them adds to the velocity. The finest level has few
    channels: it has most of the voxels, and most of the work. In the same time the pyramid trains to a better alignment
    than VoxelMorph.

    An antisymmetric pyramid moves both images half of the way, compares them in the middle in both orders with the same
    weights, and adds the difference of the two answers. Swapping the images changes the sign of the velocity, exactly.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the levels, finest first; every level halves the resolution of the one before.
        half_resolution: Predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: Squarings in `fields.integrate`; 0 predicts a displacement directly.
        instance_norm: Normalise each channel of each image; a larger learning rate then stays stable.
        antisymmetric: See `VelocityNetwork`.
        edges: See `VelocityNetwork`.
        conditions: See `VelocityNetwork`.

    Source: Kang et al., Dual-stream pyramid registration network, Medical Image Analysis 78, 2022 (warped feature
    pyramids); Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (updates of the
    velocity, from both sides); Honkamaa and Marttinen, SITReg: multi-resolution architecture for symmetric, inverse
    consistent, and topology preserving image registration, MELBA 2, 2024 (levels that meet half-way).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (8, 32, 48, 64),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
        antisymmetric: bool = False,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        check_levels(features)
        super().__init__(
            spatial_dims,
            len(features),
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=antisymmetric,
            edges=edges,
            conditions=conditions,
        )
        block = functools.partial(
            convolution_block, spatial_dims, instance_norm=instance_norm, conditional=conditions > 0
        )
        convolution = CONVOLUTION[spatial_dims]
        widths = [1, *features]
        strides = [self.first_stride] + [2] * (len(features) - 1)
        self.encoder = nn.ModuleList(block(widths[i], widths[i + 1], stride=stride) for i, stride in enumerate(strides))
        # What a coarser level has found out, in as many channels as the finer one has.
        self.context = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in itertools.pairwise(features))
        contexts = [*features[:-1], 0]
        self.decoder = nn.ModuleList(
            convolution(2 * width + context, width, 3, padding=1)
            for width, context in zip(features, contexts, strict=True)
        )
        self.activation = nn.ModuleList(
            activation(spatial_dims, width, instance_norm, conditional=conditions > 0) for width in features
        )
        # A larger kernel costs as much as the decoder before it, and finds nothing that the decoder has not seen.
        self.velocity = nn.ModuleList(
            velocity_head(spatial_dims, width, kernel=1, bias=not antisymmetric) for width in features
        )

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        code = self.code(condition, len(moving))
        velocity = seen = None
        for level, images in self._levels(moving, fixed, code):
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

    def predict_antisymmetric(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict_antisymmetric`. Within, a batch holds the moving and then the fixed images."""
        code = self.code(condition, len(moving))
        in_both_orders = None if code is None else torch.cat([code, code])
        velocity = seen = None
        for level, images in self._levels(moving, fixed, code):
            if velocity is not None:
                half = 0.5 * torch.cat([velocity, -velocity])
                images = warp(images, resize(self.exponential(half, SQUARINGS), images.shape[2:]))
                velocity = resize(velocity, images.shape[2:])
            context = None if seen is None else self._finer(seen, level)
            seen = self.activation[level](self._in_both_orders(level, images, context), in_both_orders)
            first, second = seen.chunk(2)
            update = self.velocity[level](first - second).float()
            velocity = update if velocity is None else velocity + update
        assert velocity is not None
        return velocity

    def _levels(self, moving: Tensor, fixed: Tensor, code: Tensor | None) -> list[tuple[int, Tensor]]:
        """Number and features of each level, coarsest first: `(2 B, C, *spatial)`, of moving, then of fixed images."""
        images = torch.cat([moving, fixed])
        of_both = None if code is None else torch.cat([code, code])
        levels = []
        for number, level in enumerate(self.encoder):
            images = level(images, of_both)
            levels.append((number, images))
        return levels[::-1]

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
