"""FAIM's network: VoxelMorph, of which the first level looks at the images through kernels of several sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_utils.networks.base import architecture
from course_utils.networks.blocks import CONVOLUTION, activation
from course_utils.networks.voxelmorph import VoxelMorph

KERNELS = {1: (1, 3, 5, 11), 2: (2, 4, 6, 10)}
"""Of a stem, by its stride: the nearest to FAIM's 2, 5, 7 and 11 that are centred where the stride is."""


class InceptionStem(nn.Module):
    """Convolutions of several kernel sizes side by side, whose channels are put one behind the other.

    A strided kernel is even, an unstrided one odd, so that all are centred on the same point and none shifts the image.
    The channels are shared out evenly; what is left over goes to the first kernels.

    Args:
        spatial_dims: 2 or 3.
        inputs: Channels of the input.
        outputs: Channels of the output, one or more for each kernel.
        kernels: Widths of the kernels, voxels, all even where `stride` is 2, all odd where it is 1.
        stride: 1, or 2 to halve the resolution.
        instance_norm: See `convolution_block`.
        conditional: See `convolution_block`.

    Raises:
        ValueError: a kernel is not centred, or there are more kernels than channels.

    Source: Szegedy et al., Going deeper with convolutions, CVPR 2015 (parallel kernels); Kuang and Schmah, FAIM,
    arXiv 1811.09243, 2018 (as the first layer, 8 channels each of 2, 5, 7 and 11 voxels, on the images' grid).
    """

    def __init__(
        self,
        spatial_dims: int,
        inputs: int,
        outputs: int,
        kernels: Sequence[int],
        *,
        stride: int = 1,
        instance_norm: bool = False,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if not kernels or any(kernel < stride or (kernel - stride) % 2 for kernel in kernels):
            kind = "even" if stride == 2 else "odd"
            raise ValueError(f"kernels={tuple(kernels)} are one or more {kind} widths where the stride is {stride}")
        if outputs < len(kernels):
            raise ValueError(f"{len(kernels)} kernels need as many channels or more, not features[0]={outputs}")
        shares = [outputs // len(kernels) + (number < outputs % len(kernels)) for number in range(len(kernels))]
        self.branches = nn.ModuleList(
            CONVOLUTION[spatial_dims](inputs, share, kernel, stride=stride, padding=(kernel - stride) // 2)
            for share, kernel in zip(shares, kernels, strict=True)
        )
        self.activation = activation(spatial_dims, outputs, instance_norm, conditional)

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """`(B, inputs, *spatial)` to `(B, outputs, *spatial / stride)`; `code` if it is conditional."""
        return self.activation(torch.cat([branch(x) for branch in self.branches], dim=1), code)


@architecture("inception")
class Inception(VoxelMorph):
    """VoxelMorph with FAIM's first level: kernels of several sizes see both images side by side.

    All but the first level is VoxelMorph's, so that what is compared is the block. FAIM itself has its stem on the
    images' grid, 32 channels of it, and skips that are added.

    Args:
        spatial_dims: 2 or 3.
        features: Channels of the levels, finest first; those of the finest are shared out among the kernels.
        kernels: Widths of the stem's kernels, voxels: even at half resolution, else odd. None takes `KERNELS`.
        half_resolution, integration_steps, instance_norm, antisymmetric, edges, conditions: See `VelocityNetwork`.

    Source: Kuang and Schmah, FAIM: a ConvNet method for unsupervised 3D medical image registration, arXiv 1811.09243,
    2018.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
        kernels: Sequence[int] | None = None,
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
        antisymmetric: bool = False,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        super().__init__(
            spatial_dims,
            features=features,
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            antisymmetric=antisymmetric,
            edges=edges,
            conditions=conditions,
        )
        self.unet.encoder[0] = InceptionStem(
            spatial_dims,
            2,
            features[0],
            KERNELS[self.first_stride] if kernels is None else kernels,
            stride=self.first_stride,
            instance_norm=instance_norm,
            conditional=conditions > 0,
        )
