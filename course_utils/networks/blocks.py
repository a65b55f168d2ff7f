"""The layers that the networks are made of."""

from torch import nn

CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}


def convolution_block(
    spatial_dims: int, inputs: int, outputs: int, *, stride: int = 1, instance_norm: bool = False
) -> nn.Sequential:
    """A convolution, an instance norm if wanted, and a leaky ReLU; with stride 2 it halves the resolution."""
    # Even kernels where the resolution halves: a coarse voxel then lies in the middle of the fine ones it replaces,
    # which is what fields.resize assumes. A strided 3-kernel would shift it by half a fine voxel.
    kernel, padding = (4, 1) if stride == 2 else (3, 1)
    convolution = CONVOLUTION[spatial_dims](inputs, outputs, kernel, stride=stride, padding=padding)
    return nn.Sequential(convolution, *activation(spatial_dims, outputs, instance_norm))


def activation(spatial_dims: int, channels: int, instance_norm: bool) -> nn.Sequential:
    """What follows a convolution: an instance norm if wanted, and a leaky ReLU."""
    norm = [INSTANCE_NORM[spatial_dims](channels, affine=True)] if instance_norm else []
    return nn.Sequential(*norm, nn.LeakyReLU(0.2, inplace=True))


def velocity_head(spatial_dims: int, inputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    """The last convolution, from features to a vector field that is nearly zero.

    A network so begins at the identity: its first steps see two images, not two images and a scramble. VoxelMorph draws
    these weights from N(0, 1e-5) too. A bias is of no use where the answers of both orders are subtracted.
    """
    head = CONVOLUTION[spatial_dims](inputs, spatial_dims, kernel, padding=kernel // 2, bias=bias)
    nn.init.normal_(head.weight, std=1e-5)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head
