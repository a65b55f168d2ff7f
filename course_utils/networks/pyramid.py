"""A network that registers from coarse to fine, with VoxelMorph's interface."""

import functools
from collections.abc import Sequence

from course_utils.networks.base import architecture
from course_utils.networks.coarse_to_fine import CoarseToFine
from course_utils.networks.unet import encoder


@architecture("pyramid")
class Pyramid(CoarseToFine):
    """Registers from coarse to fine: each level sees features that the levels below have aligned, and adds the rest.

    An encoder alone describes each image, so that a level knows of a voxel's neighbourhood, and of no more. The finest
    level has few channels: it has most of the voxels, and most of the work. In the same time the pyramid trains to a
    better alignment than VoxelMorph.

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
        blocks = functools.partial(
            encoder, spatial_dims, features, instance_norm=instance_norm, conditional=conditions > 0
        )
        super().__init__(
            spatial_dims,
            encoder=blocks,
            described=features,
            compared=features,
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=antisymmetric,
            edges=edges,
            conditions=conditions,
        )
