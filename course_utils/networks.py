"""The U-Net and VoxelMorph, in 2-D and 3-D.

Source: Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, IEEE TMI 38(8),
2019; Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Medical Image Analysis 57, 2019
(velocity fields, integrated at half resolution).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.fields import integrate, resize, warp


class Registration(NamedTuple):
    """What a registration returns; all on the fixed grid.

    Attributes:
        moved: the moving image, warped, ``(B, C, *spatial)``.
        displacement: ``(B, N, *spatial)``, voxels, float32: ``moved(x) = moving(x + u(x))``.
        velocity: ``(B, N, *spatial)``, voxels, float32: ``displacement`` is ``exp(velocity)``, and ``exp(-velocity)``
            undoes it.
    """

    moved: Tensor
    displacement: Tensor
    velocity: Tensor


class UNet(nn.Module):
    """Encoder and decoder with skip connections; the output has the resolution of the first level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        features: channels of each level, finest first; every level halves the resolution of the one before.
        first_stride: 1 lets the first level work at the input's resolution, 2 at half of it. At half resolution a 3-D
            network does an eighth of the work, and the finest level is where most of the time goes.
        instance_norm: normalise each channel of each image between convolution and activation.

    The input's sizes must be multiples of :attr:`divisor`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        features: Sequence[int],
        *,
        first_stride: int = 1,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[spatial_dims]

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            # Even kernels where the resolution halves: a coarse voxel then lies in the middle of the fine ones it
            # replaces, which is what fields.resize assumes. A strided 3-kernel would shift it by half a fine voxel.
            kernel, padding = (4, 1) if stride == 2 else (3, 1)
            layers = [conv(inputs, outputs, kernel, stride=stride, padding=padding)]
            if instance_norm:
                layers.append(norm(outputs, affine=True))
            return nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True))

        self.divisor = first_stride * 2 ** (len(features) - 1)
        widths = [in_channels, *features]
        strides = [first_stride] + [2] * (len(features) - 1)
        self.encoder = nn.ModuleList(block(widths[i], widths[i + 1], stride) for i, stride in enumerate(strides))
        self.decoder = nn.ModuleList(
            block(coarse + fine, fine) for fine, coarse in zip(features[-2::-1], features[:0:-1], strict=True)
        )
        self.out_channels = features[0]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *spatial)`` to ``(B, features[0], *spatial / first_stride)``."""
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = level(torch.cat([x, skips.pop()], dim=1))
        return x


class VoxelMorph(nn.Module):
    """Predicts the velocity field that aligns two images, integrates it, and warps the moving image.

    Args:
        spatial_dims: 2 or 3.
        features: channels of the U-Net's levels, finest first.
        half_resolution: predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: squarings in :func:`course_utils.fields.integrate`; 0 predicts a displacement directly.
        instance_norm: not in the paper's network; with it a larger learning rate stays stable.
        iterations: how often the network looks at the pair. After the first time it sees the image moved so far, and
            what it then predicts is added to the velocity (the log-domain update of Vercauteren et al., MICCAI 2008,
            by a network applied to its own result as in Zhao et al., ICCV 2019). One is VoxelMorph as published.

    Any image size works: sizes that the levels do not divide are padded by repeating the edge, and cropped again.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = False,
        iterations: int = 1,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is 2 or 3, not {spatial_dims}")
        if len(features) < 2:
            raise ValueError(f"a U-Net needs at least two levels, not features={tuple(features)}")
        if iterations < 1:
            raise ValueError(f"iterations is 1 or more, not {iterations}")
        self.spatial_dims = spatial_dims
        self.iterations = iterations
        self.half_resolution = half_resolution
        self.integration_steps = integration_steps
        self.unet = UNet(
            spatial_dims, 2, features, first_stride=2 if half_resolution else 1, instance_norm=instance_norm
        )
        self.velocity = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims](self.unet.out_channels, spatial_dims, 3, padding=1)
        # A network that starts at the identity: the first steps then see two images, not two images and a scramble.
        nn.init.normal_(self.velocity.weight, std=1e-5)
        nn.init.zeros_(self.velocity.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Registration:
        """Register ``moving`` to ``fixed``, both ``(B, 1, *spatial)`` of one shape."""
        if moving.shape != fixed.shape or moving.ndim != self.spatial_dims + 2 or moving.shape[1] != 1:
            raise ValueError(
                f"moving and fixed are both (B, 1) and {self.spatial_dims} axes, on one common grid; "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        spatial = moving.shape[2:]
        divisor = self.unet.divisor
        padded = [-(-n // divisor) * divisor for n in spatial]
        source, target = moving, fixed
        if list(spatial) != padded:
            margins = [m for n, p in zip(reversed(spatial), reversed(padded), strict=True) for m in (0, p - n)]
            source, target = (F.pad(image, margins, mode="replicate") for image in (moving, fixed))
        velocity = self._predict(source, target)
        displacement = self._exponential(velocity, padded)
        for _ in range(self.iterations - 1):
            velocity = velocity + self._predict(warp(source, displacement), target)
            displacement = self._exponential(velocity, padded)
        inside = (..., *(slice(n) for n in spatial))
        displacement, velocity = displacement[inside], resize(velocity, padded)[inside]
        return Registration(warp(moving, displacement), displacement, velocity)

    def _predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.velocity(self.unet(torch.cat([moving, fixed], dim=1))).float()

    def _exponential(self, velocity: Tensor, shape: Sequence[int]) -> Tensor:
        return resize(integrate(velocity, self.integration_steps) if self.integration_steps else velocity, shape)
