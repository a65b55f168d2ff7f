"""Judges of assignment 4: what VoxelMorph does with a U-Net, with known weights, against the course's own.

Every function takes the student's answer first, then what it is asked with, and raises an `AssertionError` whose
message is for the student: the mistake that explains the answer, or how it differs. `what` names the answer in it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import fields, networks
from course_utils.grading import checks


def pad(
    function: Callable[..., Any], shape: Sequence[int], divisor: int, seed: int = 0, what: str | None = None
) -> None:
    """Judge images that are padded to sizes which a number divides.

    Args:
        function: `pad_to_multiple(images, divisor)`.
        shape: of the images, `(B, C, *spatial)`.
        divisor: of every size of the result.
        seed: of the images.

    Raises:
        AssertionError: the padded images differ.
    """
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    margins = [margin for n in reversed(shape[2:]) for margin in (0, -n % divisor)]
    checks.agree(
        checks.call(function, x, divisor),
        F.pad(x, margins, mode="replicate"),
        what or f"pad_to_multiple(images {shape}, {divisor})",
        _padded_wrongly(x, divisor) if x.ndim == 4 else {},
    )


def _padded_wrongly(x: Tensor, divisor: int) -> dict[str, Tensor]:
    """What known mistakes make of images in 2-D."""
    height, width = x.shape[2:]
    low, right = -height % divisor, -width % divisor
    most = low or right

    def padded(left: int, right: int, top: int, low: int) -> Tensor:
        return F.pad(x, (left, right, top, low), mode="replicate")

    def on_both_sides(share: Callable[[int], int]) -> Tensor:
        return padded(share(right), right - share(right), share(low), low - share(low))

    return {
        "the margins are in the order of the axes: F.pad wants the last axis first": padded(0, low, 0, right),
        f"a size that divides already has got another {divisor} voxels": padded(
            0, divisor - width % divisor, 0, divisor - height % divisor
        ),
        "padded with zeros, which is an edge that nobody has: mode='replicate'": F.pad(x, (0, right, 0, low)),
        f"padded at the beginning: voxel 0 is voxel {most} now": padded(right, 0, low, 0),
        f"padded on both sides: voxel 0 is voxel {most // 2} now": on_both_sides(lambda n: n // 2),
        f"padded on both sides: voxel 0 is voxel {most - most // 2} now": on_both_sides(lambda n: n - n // 2),
        "cropped to the multiple below, and what is cut off is not registered": x[
            ..., : height - height % divisor, : width - width % divisor
        ],
    }


def forward(
    function: Callable[..., Any], shape: Sequence[int], seed: int, what: str = "register(unet, head, moving, fixed)"
) -> None:
    """Judge the way from two images to a moved one, through a VoxelMorph that deforms by voxels.

    Args:
        function: `register(unet, head, moving, fixed)`, which gives the moved image and the displacement.
        shape: of the images, 2-D or 3-D; where the network's divisor divides it, mistakes are named.
        seed: of weights and images.

    Raises:
        AssertionError: the function is not the student's own, or its answer differs.
    """
    checks.by_hand(function, {"VoxelMorph"}, "put the stages together")
    with torch.no_grad():
        model, moving, fixed = _deforming((4, 6, 6), 3, shape, seed)
        result = model(moving, fixed)
        divides = not any(n % model.unet.divisor for n in shape)
        checks.agree(
            checks.call(function, model.unet, model.velocity, moving, fixed),
            (result.moved, result.displacement),
            what,
            _registered_wrongly(model, moving, fixed) if divides else {},
        )


def _deforming(
    features: Sequence[int], times: float, shape: Sequence[int], seed: int
) -> tuple[networks.VoxelMorph, Tensor, Tensor]:
    """A VoxelMorph with known weights, its velocity this many times as long, and a moving and a fixed image."""
    model = networks.VoxelMorph(len(shape), features=features, instance_norm=False)
    checks.known_weights(model, seed, scale=0.25)
    weight, *_ = model.velocity.parameters()
    with torch.no_grad():
        weight.mul_(times)
    moving, fixed = torch.rand(2, 2, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return model, moving, fixed


def _registered_wrongly(model: networks.VoxelMorph, m: Tensor, f: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What known mistakes make of images whose size divides."""
    shape = m.shape[2:]
    velocity, other = (model.velocity(model.unet(torch.cat(both, dim=1))) for both in ([m, f], [f, m]))
    flow = fields.integrate(velocity)
    linear = {2: "bilinear", 3: "trilinear"}[len(shape)]
    right = fields.resize(flow, shape)
    displacements = {
        "the fixed image is the first channel: moving first": fields.resize(fields.integrate(other), shape),
        "the vectors are still in voxels of the coarse grid: resize scales them, F.interpolate does not": (
            F.interpolate(flow, size=shape, mode=linear, align_corners=False)
        ),
        "the velocity is not integrated": fields.resize(velocity, shape),
        "the velocity is resized before it is integrated: integrate on the coarse grid": (
            fields.integrate(fields.resize(velocity, shape))
        ),
        "the displacement is halved on its way up; in voxels of the fine grid it is twice as long": (
            F.interpolate(flow / 2, size=shape, mode=linear, align_corners=False)
        ),
        "the displacement is negated": -right,
    }
    answers = {mistake: (fields.warp(m, u), u) for mistake, u in displacements.items()}
    answers["the fixed image is warped: the moving one moves"] = fields.warp(f, right), right
    answers["the result is (displacement, moved): the image first"] = right, fields.warp(m, right)
    return answers


def reach(function: Callable[..., Any], network: nn.Module, channels: int, size: int, what: str) -> None:
    """Judge how many rows of the input the middle voxel of a network's output depends on.

    Args:
        function: `reach(network, channels, size)`, which gives an int.
        network: in 2-D; it is given known weights.
        channels: of its input.
        size: of its input, along both axes.
        what: names the network in the message.

    Raises:
        AssertionError: the number differs.
    """
    checks.known_weights(network)
    image = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output = network(image)
    middle = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
    (slope,) = torch.autograd.grad(middle, image)
    touched = (slope != 0)[0].any(0)
    rows, columns = (touched.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    right = rows[-1] - rows[0] + 1
    checks.agree(
        checks.call(function, network, channels, size),
        right,
        f"reach({what})",
        {
            "these are columns (axis 1), not rows": columns[-1] - columns[0] + 1,
            "one less than there are: the first and the last both count": right - 1,
            "that is the whole image: ask about one output voxel, not about their sum": size,
            "rows in between that do not count are within the reach, too": len(rows),
        },
    )


def symmetric(wrapper: Callable[..., Any], shape: Sequence[int], seed: int) -> None:
    """Judge a network that agrees with itself: its parameters, its answer, and the one to the exchanged images.

    Args:
        wrapper: `Symmetric(model)`, an `nn.Module` whose `forward(moving, fixed)` gives a `Registration`.
        shape: of the images, 2-D or 3-D.
        seed: of weights and images.

    Raises:
        AssertionError: it is no such module, or something that it answers differs.
    """
    model, moving, fixed = _deforming((4, 6), 2, shape, seed)
    with torch.no_grad():
        expected, mistakes = _both_ways(model, moving, fixed)
    module = wrapper(model)
    checks.agree(
        sum(p.numel() for p in checks.parameters(module, "Symmetric(model)")),
        sum(p.numel() for p in model.parameters()),
        "number of parameters of Symmetric(model)",
        {"the model's parameters are not found: keep the model in an attribute, after super().__init__()": 0},
    )
    with torch.no_grad():
        result = checks.call(module, moving, fixed)
        assert isinstance(result, networks.Registration), (
            f"it should return a Registration, and returns a {type(result).__name__}"
        )
        checks.agree(
            [result.moved, result.displacement, result.velocity],
            expected,
            f"Symmetric(model)(moving, fixed) of images {shape}: [moved, displacement, velocity]",
            mistakes,
        )
        checks.agree(
            checks.call(module, fixed, moving).velocity,
            -result.velocity,
            "the velocity after exchanging the images, which should change its sign",
        )


def _both_ways(model: nn.Module, moving: Tensor, fixed: Tensor) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The right answer, [moved, displacement, velocity], and those of known mistakes."""
    there, back = model(moving, fixed), model(fixed, moving)
    v, w = there.velocity, back.velocity

    def answer(velocity: Tensor, displacement: Tensor | None = None) -> list[Tensor]:
        u = fields.integrate(velocity) if displacement is None else displacement
        return [fields.warp(moving, u), u, velocity]

    half = (v - w) / 2
    return answer(half), {
        "the two velocities are added: they point in opposite directions, so subtract": answer((v + w) / 2),
        "the half is missing: two answers of one length, and the mean is meant": answer(v - w),
        "that is the model's own answer, asked one way only": [there.moved, there.displacement, there.velocity],
        "that is the flow of the model's own velocity, asked one way only": answer(v),
        "the sign is the wrong way round: v(moving, fixed) counts positive": answer(-half),
        "the displacements are averaged; their mean is not the flow of the mean velocity": answer(
            half, (there.displacement - back.displacement) / 2
        ),
        "the velocity is not integrated: its displacement is exp(w)": answer(half, half),
        "the displacement is still the model's own": answer(half, there.displacement),
    }
