"""The U-Net, in 2-D and 3-D, and its decoder by itself for encoders of another kind."""

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.networks.blocks import convolution_block


def encoder(
    spatial_dims: int,
    features: Sequence[int],
    first_stride: int = 1,
    *,
    in_channels: int = 1,
    instance_norm: bool = False,
    conditional: bool = False,
) -> nn.ModuleList:
    """Blocks from fine to coarse, each made of the one before, of twice the resolution; `encoded` is what they find.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of each level, finest first.
        first_stride: What the first level reduces the images by, 1 or 2.
        in_channels: Of the images.
        instance_norm: Normalise each channel of each image between convolution and activation.
        conditional: The same, scaled and shifted by the code of a condition (see `film`).
    """
    block = functools.partial(convolution_block, spatial_dims, instance_norm=instance_norm, conditional=conditional)
    widths = [in_channels, *features]
    strides = [first_stride] + [2] * (len(features) - 1)
    return nn.ModuleList(block(widths[i], widths[i + 1], stride=stride) for i, stride in enumerate(strides))


def encoded(blocks: Iterable[nn.Module], images: Tensor, code: Tensor | None = None) -> list[Tensor]:
    """`(B, in_channels, *spatial)` to each level, `(B, features[i], *spatial / first_stride / 2^i)`, finest first."""
    levels = []
    for block in blocks:
        images = block(images, code)
        levels.append(images)
    return levels


class Decoder(nn.ModuleList):
    """From coarse to fine: each level sees the coarser result, and the encoder's features of its own resolution.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the encoder's levels, finest first, and of what the decoder makes of each but the last.
        instance_norm: Normalise each channel of each image between convolution and activation.
        conditional: The same, scaled and shifted by the code of a condition (see `film`).
    """

    def __init__(
        self, spatial_dims: int, features: Sequence[int], *, instance_norm: bool = False, conditional: bool = False
    ) -> None:
        block = functools.partial(convolution_block, spatial_dims, instance_norm=instance_norm, conditional=conditional)
        super().__init__(
            block(coarse + fine, fine) for fine, coarse in zip(features[-2::-1], features[:0:-1], strict=True)
        )

    def forward(self, levels: Sequence[Tensor], code: Tensor | None = None) -> Tensor:
        """What the encoder found, finest first, `(B, features[i], *spatial / 2^i)`, to `(B, features[0], *spatial)`."""
        return self.levels(levels, code)[0]

    def levels(self, levels: Sequence[Tensor], code: Tensor | None = None) -> list[Tensor]:
        """What is made of each level of the encoder, of the same shapes; the coarsest stays as it is."""
        *skips, coarsest = levels
        made = [coarsest]
        for level in self:
            x = F.interpolate(made[-1], scale_factor=2, mode="nearest")
            made.append(level(torch.cat([x, skips.pop()], dim=1), code))
        return made[::-1]


class UNet(nn.Module):
    """Encoder and decoder with skip connections; the output has the resolution of the first level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        features: Channels of each level, finest first; every level halves the resolution of the one before.
        first_stride: 1 lets the first level work at the input's resolution, 2 at half of it. At half resolution a 3-D
            network does an eighth of the work, and the finest level is where most of the time goes.
        instance_norm: Normalise each channel of each image between convolution and activation.
        conditional: The same, scaled and shifted by the code of a condition (see `film`).

    Attributes:
        divisor: What the input's sizes must be multiples of.

    Source: Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation, MICCAI 2015.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        features: Sequence[int],
        *,
        first_stride: int = 1,
        instance_norm: bool = False,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.divisor = first_stride * 2 ** (len(features) - 1)
        self.encoder = encoder(
            spatial_dims,
            features,
            first_stride,
            in_channels=in_channels,
            instance_norm=instance_norm,
            conditional=conditional,
        )
        self.decoder = Decoder(spatial_dims, features, instance_norm=instance_norm, conditional=conditional)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """`(B, in_channels, *spatial)` to `(B, features[0], *spatial / first_stride)`; `code` if it is conditional."""
        return self.decoder(encoded(self.encoder, x, code), code)
