"""The U-Net, VoxelMorph, and a coarse-to-fine network with VoxelMorph's interface, in 2-D and 3-D.

Source: Balakrishnan et al., VoxelMorph: a learning framework for deformable medical image registration, IEEE TMI 38(8),
2019; Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Medical Image Analysis 57, 2019
(velocity fields, integrated at half resolution).
"""

import abc
import contextlib
import functools
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
        block = functools.partial(_block, spatial_dims, instance_norm=instance_norm)
        self.divisor = first_stride * 2 ** (len(features) - 1)
        widths = [in_channels, *features]
        strides = [first_stride] + [2] * (len(features) - 1)
        self.encoder = nn.ModuleList(block(widths[i], widths[i + 1], stride=stride) for i, stride in enumerate(strides))
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


class RegistrationNetwork(nn.Module, abc.ABC):
    """What every registration network of the course shares; a subclass predicts the velocity.

    The velocity is integrated where it was predicted, the displacement is brought to the images' grid, and the moving
    image is warped. Any image size works: sizes that the levels do not divide are padded by repeating the edge, and
    cropped again.

    Args:
        spatial_dims: 2 or 3.
        features: channels of the levels, finest first; every level halves the resolution of the one before.
        half_resolution: predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: squarings in :func:`course_utils.fields.integrate`; 0 predicts a displacement directly.
        instance_norm: not in VoxelMorph's paper; with it a larger learning rate stays stable.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is 2 or 3, not {spatial_dims}")
        if len(features) < 2:
            raise ValueError(f"a network needs at least two levels, not features={tuple(features)}")
        self.spatial_dims = spatial_dims
        self.half_resolution = half_resolution
        self.integration_steps = integration_steps
        self.first_stride = 2 if half_resolution else 1
        self.divisor = self.first_stride * 2 ** (len(features) - 1)
        self._build(features, instance_norm)

    @abc.abstractmethod
    def _build(self, features: Sequence[int], instance_norm: bool) -> None:
        """Make the layers."""

    @abc.abstractmethod
    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The velocity ``(B, N, *spatial / first_stride)`` for images whose sizes are multiples of ``divisor``."""

    def forward(self, moving: Tensor, fixed: Tensor) -> Registration:
        """Register ``moving`` to ``fixed``, both ``(B, 1, *spatial)`` of one shape."""
        if moving.shape != fixed.shape or moving.ndim != self.spatial_dims + 2 or moving.shape[1] != 1:
            raise ValueError(
                f"moving and fixed are both (B, 1) and {self.spatial_dims} axes, on one common grid; "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        spatial = moving.shape[2:]
        padded = [-(-n // self.divisor) * self.divisor for n in spatial]
        source, target = moving, fixed
        if list(spatial) != padded:
            margins = [m for n, p in zip(reversed(spatial), reversed(padded), strict=True) for m in (0, p - n)]
            source, target = (F.pad(image, margins, mode="replicate") for image in (moving, fixed))
        with self._precision(source):
            velocity = self.predict(source, target)
        inside = (..., *(slice(n) for n in spatial))
        displacement = resize(self._exponential(velocity), padded)[inside]
        return Registration(warp(moving, displacement), displacement, resize(velocity, padded)[inside])

    def _precision(self, image: Tensor) -> contextlib.AbstractContextManager[None]:
        # On CPUs, oneDNN's bfloat16 gradient of a convolution's weights is wrong, and at times not finite, where the
        # grid has fewer than 3 slices. Volumes that small gain nothing from bfloat16.
        coarsest = min(image.shape[2:]) // self.divisor
        if image.device.type == "cpu" and coarsest < 3 and torch.is_autocast_enabled("cpu"):
            return torch.autocast("cpu", enabled=False)
        return contextlib.nullcontext()

    def _exponential(self, velocity: Tensor, steps: int | None = None) -> Tensor:
        steps = self.integration_steps if steps is None else min(steps, self.integration_steps)
        return integrate(velocity, steps) if steps else velocity


class VoxelMorph(RegistrationNetwork):
    """A U-Net sees the two images as channels and predicts the velocity; see :class:`RegistrationNetwork`."""

    def _build(self, features: Sequence[int], instance_norm: bool) -> None:
        self.unet = UNet(self.spatial_dims, 2, features, first_stride=self.first_stride, instance_norm=instance_norm)
        self.velocity = _velocity_head(self.spatial_dims, features[0])

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """See :meth:`RegistrationNetwork.predict`."""
        return self.velocity(self.unet(torch.cat([moving, fixed], dim=1))).float()


class Pyramid(RegistrationNetwork):
    """Registers from coarse to fine: each level sees features that the levels below have aligned, and adds the rest.

    One encoder describes both images. From the coarsest level up, the velocity so far is carried to the next finer
    grid, the moving image's features are warped by it, and a decoder that compares them with the fixed image's adds to
    the velocity. The finest level, where most of the detail is, does so twice with the same weights. In the same time
    it trains to a better alignment than VoxelMorph. Arguments: see :class:`RegistrationNetwork`.

    Source: Hu et al., Dual-stream pyramid registration network, Medical Image Analysis 78, 2022 (warped feature
    pyramids); Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (updates of the
    velocity); Zhao et al., Recursive cascaded networks, ICCV 2019 (a network applied to its own result).
    """

    def _build(self, features: Sequence[int], instance_norm: bool) -> None:
        block = functools.partial(_block, self.spatial_dims, instance_norm=instance_norm)
        widths = [1, *features]
        strides = [self.first_stride] + [2] * (len(features) - 1)
        self.encoder = nn.ModuleList(block(widths[i], widths[i + 1], stride=stride) for i, stride in enumerate(strides))
        self.decoder = nn.ModuleList(
            block(2 * width + coarse, width) for width, coarse in zip(features, [*features[1:], 0], strict=True)
        )
        self.velocity = nn.ModuleList(_velocity_head(self.spatial_dims, width) for width in features)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """See :meth:`RegistrationNetwork.predict`."""
        both = torch.cat([moving, fixed])
        pyramid = []
        for level in self.encoder:
            both = level(both)
            pyramid.append(both.chunk(2))
        velocity = moving.new_zeros(len(moving), self.spatial_dims, *pyramid[-1][0].shape[2:], dtype=torch.float32)
        context: list[Tensor] = []
        for level in reversed(range(len(pyramid))):
            moving, fixed = pyramid[level]
            velocity = resize(velocity, moving.shape[2:])
            context = [F.interpolate(coarse, scale_factor=2, mode="nearest") for coarse in context]
            for _ in range(2 if level == 0 else 1):
                # Four squarings: the features of a level need not be placed as exactly as the result.
                aligned = warp(moving, self._exponential(velocity, 4))
                seen = self.decoder[level](torch.cat([aligned, fixed, *context], dim=1))
                velocity = velocity + self.velocity[level](seen).float()
            context = [seen]
        return velocity


def _block(spatial_dims: int, inputs: int, outputs: int, *, stride: int = 1, instance_norm: bool) -> nn.Module:
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[spatial_dims]
    # Even kernels where the resolution halves: a coarse voxel then lies in the middle of the fine ones it replaces,
    # which is what fields.resize assumes. A strided 3-kernel would shift it by half a fine voxel.
    kernel, padding = (4, 1) if stride == 2 else (3, 1)
    layers = [conv(inputs, outputs, kernel, stride=stride, padding=padding)]
    if instance_norm:
        layers.append(norm(outputs, affine=True))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True))


def _velocity_head(spatial_dims: int, features: int) -> nn.Module:
    head = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims](features, spatial_dims, 3, padding=1)
    # A network that starts at the identity: the first steps then see two images, not two images and a scramble.
    nn.init.normal_(head.weight, std=1e-5)
    nn.init.zeros_(head.bias)
    return head


ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {"voxelmorph": VoxelMorph, "pyramid": Pyramid}
