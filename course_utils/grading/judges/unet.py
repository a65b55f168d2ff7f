"""Judges of assignment 4: the parts of a U-Net, with known weights, against the course's own.

Every function takes the student's answer first, then what it is asked with, and raises an `AssertionError` whose
message is for the student: the mistake that explains the answer, or how it differs. `what` names the answer in it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import networks
from course_utils.grading import checks


def block(function: Callable[..., Any], dims: int, inputs: int, outputs: int, stride: int, size: Sequence[int]) -> None:
    """Judge the shapes of a block's weights, and what it computes.

    Args:
        function: `block(dims, inputs, outputs, stride)`, which makes an `nn.Sequential`.
        dims: 2 or 3.
        inputs, outputs: channels.
        stride: 1 or 2.
        size: of the images that the block sees, `(2, inputs, *size)`.

    Raises:
        AssertionError: the shapes or the values differ.
    """
    what = f"block({dims}, {inputs}, {outputs}, stride={stride})"
    brick = checks.call(function, dims, inputs, outputs, stride)
    shapes = [tuple(p.shape) for p in checks.parameters(brick, what)]
    _block_shapes(shapes, dims, inputs, outputs, stride, what)
    weight, bias = checks.fill(brick, shapes)
    x = torch.randn(2, inputs, *size, generator=torch.Generator().manual_seed(1))
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    plain = convolve(x, weight, bias, stride, 1)
    checks.agree(
        brick(x),
        F.leaky_relu(plain, 0.2),
        f"{what}(x)",
        {
            "the activation is missing": plain,
            "a plain ReLU: negative values should be multiplied by 0.2": F.relu(plain),
            "the slope of the leaky ReLU is 0.2; PyTorch's default is 0.01": F.leaky_relu(plain, 0.01),
            "the stride is not used": F.leaky_relu(convolve(x, weight, bias, 1, 1), 0.2),
        },
    )


def _block_shapes(shapes: list[Any], dims: int, inputs: int, outputs: int, stride: int, what: str) -> None:
    width = 4 if stride == 2 else 3
    checks.agree(
        shapes,
        [(outputs, inputs, *[width] * dims), (outputs,)],
        f"{what}: the shapes of weights and bias",
        {
            "a strided convolution of width 3 shifts what it sees by half a voxel: width 4": [
                (outputs, inputs, *[3] * dims),
                (outputs,),
            ],
            "width 4 is for stride 2; a block that keeps the size has width 3": [
                (outputs, inputs, *[4] * dims),
                (outputs,),
            ],
            "inputs and outputs are exchanged": [(inputs, outputs, *[width] * dims), (inputs,)],
            "dims is not looked at: a convolution of the other dimension": [
                (outputs, inputs, *[width] * (5 - dims)),
                (outputs,),
            ],
        },
    )


def encode(
    function: Callable[..., Any],
    features: Sequence[int],
    first_stride: int,
    shape: Sequence[int],
    seed: int,
    what: str = "encode(levels, x)",
) -> None:
    """Judge what comes out of every level of a U-Net's encoder.

    Args:
        function: `encode(levels, x)`, which gives a list of `(2, features[i], *spatial)`.
        features: channels of the levels, finest first.
        first_stride: of the finest level.
        shape: of the two images, 2-D or 3-D.
        seed: of weights and images.

    Raises:
        AssertionError: the list differs.
    """
    # `with`, and no decorator: what a decorator wraps, the kernel of grading does not put back.
    with torch.no_grad():
        unet, x, found = _encoded(features, first_stride, shape, seed)
        checks.agree(
            checks.call(function, unet.encoder, x),
            found,
            what,
            {
                "the list runs from coarse to fine: finest first": found[::-1],
                "the images themselves are no result of a level": [x, *found],
                "the last level is missing": found[:-1],
                "only the last level comes back: the decoder needs all of them": found[-1:],
            },
        )


def decode(
    function: Callable[..., Any],
    features: Sequence[int],
    shape: Sequence[int],
    seed: int,
    what: str = "decode(levels, features)",
) -> None:
    """Judge what a U-Net's decoder makes of its encoder's results.

    Args:
        function: `decode(levels, features)`, which gives `(2, features[0], *shape)`.
        features: channels of the levels, finest first; where all are the same, mistakes are named.
        shape: of the two images, 2-D or 3-D.
        seed: of weights and images.

    Raises:
        AssertionError: the result differs.
    """
    with torch.no_grad():
        unet, x, found = _encoded(features, 1, shape, seed)
        result = unet(x)
        # With other widths a level refuses what most mistakes lead to.
        mistakes = _decoded_wrongly(unet, found) if len(set(features)) == 1 else {}
        checks.agree(checks.call(function, unet.decoder, found), result, what, mistakes)


def _encoded(
    features: Sequence[int], first_stride: int, shape: Sequence[int], seed: int
) -> tuple[networks.UNet, Tensor, list[Tensor]]:
    """A U-Net with known weights, two pairs of images, and what each level of the encoder makes of them."""
    unet = networks.UNet(len(shape), 2, features, first_stride=first_stride)
    checks.known_weights(unet, seed)
    x = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(seed))
    found = [unet.encoder[0](x)]
    for level in unet.encoder[1:]:
        found.append(level(found[-1]))
    return unet, x, found


def _decoded_wrongly(unet: networks.UNet, features: Sequence[Tensor]) -> dict[str, Tensor]:
    linear = {4: "bilinear", 5: "trilinear"}[features[0].ndim]

    def decoded(join: Callable[[Tensor, Tensor], Tensor], mode: str = "nearest") -> Tensor:
        *skips, x = features
        for level in unet.decoder:
            x = level(join(F.interpolate(x, scale_factor=2, mode=mode), skips.pop()))
        return x

    return {
        "the encoder's features go behind what comes from below, not before it": decoded(
            lambda x, skip: torch.cat([skip, x], dim=1)
        ),
        "the resolution is doubled by interpolation: repeat the voxels, mode='nearest'": decoded(
            lambda x, skip: torch.cat([x, skip], dim=1), linear
        ),
        "the encoder's features are not used: without skips the edges are lost": decoded(
            lambda x, skip: torch.cat([x, x], dim=1)
        ),
        "the encoder's features are added and doubled, not put behind": decoded(
            lambda x, skip: torch.cat([x + skip, x + skip], dim=1)
        ),
    }


def head(function: Callable[..., Any], dims: int, features: int) -> None:
    """Judge the last layer: its kind, its shapes, and how near to the identity it starts.

    Args:
        function: `velocity_head(dims, features)`, which makes a convolution.
        dims: 2 or 3.
        features: channels that it sees.

    Raises:
        AssertionError: it is no such convolution, or its weights and its bias are not drawn as asked for.
    """
    layer, what = checks.call(function, dims, features), f"velocity_head({dims}, {features})"
    first, shapes = checks.parameters(layer, what), [(dims, features, *[3] * dims), (dims,)]
    checks.agree(
        [tuple(p.shape) for p in first],
        shapes,
        f"{what}: shapes",
        {"one channel: a velocity has a component an axis": [(1, features, *[3] * dims), (1,)]},
    )
    checks.agree(first[1], torch.zeros(dims), f"{what}: the bias", atol=0)
    spread = first[0].std().item()
    assert spread > 0, f"{what}: with weights of exactly 0 the network in front of the head gets no gradient at first"
    assert spread < 1e-3, f"{what}: the weights have PyTorch's default spread ({spread:.2g}); the start is no identity"
    checks.agree(spread, 1e-5, f"{what}: standard deviation of the weights", rtol=0.2, atol=0)
    x = torch.rand(1, features, *[6] * dims, generator=torch.Generator().manual_seed(0))
    weight, bias = checks.fill(layer, shapes)
    convolved = {2: F.conv2d, 3: F.conv3d}[dims](x, weight, bias, padding=1)
    checks.agree(layer(x), convolved, f"{what}(x), a convolution that keeps the size")
