"""VoxelMorph: a U-Net that sees both images as channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from course_utils.networks.base import VelocityNetwork, architecture, check_levels
from course_utils.networks.blocks import velocity_head
from course_utils.networks.unet import UNet


@architecture("voxelmorph")
class VoxelMorph(VelocityNetwork):
    """A U-Net sees the two images as channels and predicts the velocity.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the levels, finest first; every level halves the resolution of the one before.
        half_resolution: Predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: Squarings in `fields.integrate`; 0 predicts a displacement directly.
        instance_norm: Normalise each channel of each image. It is not in the paper; with it a larger learning rate
            stays stable.
        antisymmetric: See `VelocityNetwork`; here it takes two passes.
        edges: See `VelocityNetwork`.
        conditions: See `VelocityNetwork`.

    Source: Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, IEEE TMI
    38(8), 2019.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
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
        self.unet = UNet(
            spatial_dims,
            2,
            features,
            first_stride=self.first_stride,
            instance_norm=instance_norm,
            conditional=conditions > 0,
        )
        self.velocity = velocity_head(spatial_dims, features[0], bias=not antisymmetric)

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        code = self.code(condition, len(moving))
        return self.velocity(self.unet(torch.cat([moving, fixed], dim=1), code)).float()
