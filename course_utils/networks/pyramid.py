"""A network that registers from coarse to fine, with VoxelMorph's interface."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.fields import resize, warp
from course_utils.networks.base import VelocityNetwork, architecture, check_levels, refuse_condition
from course_utils.networks.blocks import convolution_block, velocity_head


@architecture("pyramid")
class Pyramid(VelocityNetwork):
    """Registers from coarse to fine: each level sees features that the levels below have aligned, and adds the rest.

    One encoder describes both images. From the coarsest level up, the velocity so far is carried to the next finer
    grid, the moving image's features are warped by it, and a decoder that compares them with the fixed image's adds to
    the velocity. The finest level, where most of the detail is, does so twice with the same weights. In the same time
    it trains to a better alignment than VoxelMorph.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the levels, finest first; every level halves the resolution of the one before.
        half_resolution: Predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: Squarings in `fields.integrate`; 0 predicts a displacement directly.
        instance_norm: Normalise each channel of each image; a larger learning rate then stays stable.

    Source: Hu et al., Dual-stream pyramid registration network, Medical Image Analysis 78, 2022 (warped feature
    pyramids); Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (updates of the
    velocity); Zhao et al., Recursive cascaded networks, ICCV 2019 (a network applied to its own result).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
    ) -> None:
        check_levels(features)
        super().__init__(
            spatial_dims,
            len(features),
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
        )
        block = functools.partial(convolution_block, spatial_dims, instance_norm=instance_norm)
        widths = [1, *features]
        strides = [self.first_stride] + [2] * (len(features) - 1)
        self.encoder = nn.ModuleList(block(widths[i], widths[i + 1], stride=stride) for i, stride in enumerate(strides))
        self.decoder = nn.ModuleList(
            block(2 * width + coarse, width) for width, coarse in zip(features, [*features[1:], 0], strict=True)
        )
        self.velocity = nn.ModuleList(velocity_head(spatial_dims, width) for width in features)

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        refuse_condition(condition)
        both = torch.cat([moving, fixed])
        pyramid: list[tuple[Tensor, Tensor]] = []
        for level in self.encoder:
            both = level(both)
            of_moving, of_fixed = both.chunk(2)
            pyramid.append((of_moving, of_fixed))
        velocity = moving.new_zeros(len(moving), self.spatial_dims, *pyramid[-1][0].shape[2:], dtype=torch.float32)
        context: list[Tensor] = []
        for index in reversed(range(len(pyramid))):
            of_moving, of_fixed = pyramid[index]
            velocity = resize(velocity, of_moving.shape[2:])
            context = [F.interpolate(coarse, scale_factor=2, mode="nearest") for coarse in context]
            for _ in range(2 if index == 0 else 1):
                # Four squarings: the features of a level need not be placed as exactly as the result.
                aligned = warp(of_moving, self.exponential(velocity, 4))
                seen = self.decoder[index](torch.cat([aligned, of_fixed, *context], dim=1))
                velocity = velocity + self.velocity[index](seen).float()
            context = [seen]
        return velocity
