"""The layers that the networks are made of."""

from torch import Tensor, nn

from course_utils.networks.film import ConditionalNorm

CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}


class Block(nn.Sequential):
    """Layers one after the other, of which the `ConditionalNorm`s see the code of a condition too."""

    def forward(self, input: Tensor, code: Tensor | None = None) -> Tensor:
        """Features `(B, C, *spatial)` to features; `code` is what `Conditioning` makes, None without."""
        for layer in self:
            input = layer(input, code) if isinstance(layer, ConditionalNorm) else layer(input)
        return input


def convolution_block(
    spatial_dims: int,
    inputs: int,
    outputs: int,
    *,
    stride: int = 1,
    instance_norm: bool = False,
    conditional: bool = False,
) -> Block:
    """A convolution, a norm if wanted (see `activation`), and a leaky ReLU; with stride 2 it halves the resolution."""
    # Even kernels where the resolution halves: a coarse voxel then lies in the middle of the fine ones it replaces,
    # which is what fields.resize assumes. A strided 3-kernel would shift it by half a fine voxel.
    kernel, padding = (4, 1) if stride == 2 else (3, 1)
    convolution = CONVOLUTION[spatial_dims](inputs, outputs, kernel, stride=stride, padding=padding)
    return Block(convolution, *activation(spatial_dims, outputs, instance_norm, conditional))


def activation(spatial_dims: int, channels: int, instance_norm: bool, conditional: bool = False) -> Block:
    """What follows a convolution: an instance norm if wanted, a conditional one if that, and a leaky ReLU."""
    norm: list[nn.Module] = []
    if conditional:
        norm = [ConditionalNorm(channels)]
    elif instance_norm:
        norm = [INSTANCE_NORM[spatial_dims](channels, affine=True)]
    return Block(*norm, nn.LeakyReLU(0.2, inplace=True))


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
