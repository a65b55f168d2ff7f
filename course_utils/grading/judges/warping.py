"""Judges the exercises of assignment 2: each function takes the student's, and the inputs to try it on.

`what` names the answer in the message, where the inputs do not say enough.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional as F

from course_utils import fields
from course_utils.grading.checks import agree, by_hand, call


def shift(function: Callable[..., Any], shape: Sequence[int], axis: int, voxels: float, what: str = "") -> None:
    """Judge the displacement that moves the content of an image.

    Args:
        function: the student's, of shape, axis and voxels.
        shape: of the image, two or three sizes.
        axis: along which array axis the content moves.
        voxels: how far.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    expected = _along(shape, axis, -voxels)
    mistakes = {
        "the content goes the other way: a voxel reads at x + u(x), so it must look back": _along(shape, axis, voxels)
    }
    for other in set(range(len(shape))) - {axis}:
        wrong_axis = _along(shape, other, -voxels)
        mistakes[f"this moves along axis {other}: component c belongs to array axis c"] = wrong_axis
        mistakes[f"this moves along axis {other}, and the other way"] = -wrong_axis
    mistakes |= {
        "that is a position, x + u(x), not a displacement": fields.identity_grid(shape) + expected,
        "all components move: only the one of the axis may differ from 0": torch.full_like(expected, -voxels),
    }
    agree(call(function, shape, axis, voxels), expected, what or f"shift({shape}, {axis=}, {voxels=})", mistakes)


def interpolate(function: Callable[..., Any], image: Tensor, point: tuple[float, float], what: str = "") -> None:
    """Judge a value between four voxels.

    Args:
        function: the student's, of image and point.
        image: `(H, W)`.
        point: row and column, anywhere in the image.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"grid_sample", "map_coordinates", "interpn", "warp"}, "weigh the four voxels around the point")
    what = what or f"interpolate(image, {point})"
    agree(call(function, image, point), _linear(image, point), what, _interpolation_mistakes(image, point))


def sampling_grid(function: Callable[..., Any], position: Tensor, shape: Sequence[int], what: str = "") -> None:
    """Judge positions in the language of `grid_sample`.

    Args:
        function: the student's, of position and shape.
        position: `(B, N, *out)`, voxels.
        shape: of the image, N sizes.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    starts, last = [0.0] * len(shape), [n - 1 for n in shape]
    edges = [-0.5] * len(shape), [n - 0.5 for n in shape]
    expected = _scaled(position, starts, last)
    mistakes = {
        "the components are in the order of the array axes; grid_sample wants the last axis first": expected.flip(-1),
        "divided by n; from the first centre to the last there are n - 1 voxels": _scaled(position, starts, shape),
        "that is align_corners=False: -1 and 1 are the outer edges there": _scaled(position, *edges),
        "each component is scaled by the size of another axis: scale first, then reverse": _scaled(
            position, starts, last[::-1]
        ),
        "these are still voxels: grid_sample wants -1 to 1": position.movedim(1, -1).flip(-1),
        "from 0 to 1; grid_sample wants -1 to 1": (expected + 1) / 2,
        "the components have to come last: use movedim, a reshape scrambles the numbers": (
            expected.movedim(-1, 1).reshape(expected.shape)
        ),
    }
    agree(call(function, position, shape), expected, what or f"sampling_grid(position, {shape})", mistakes)


def warp(function: Callable[..., Any], image: Tensor, displacement: Tensor, what: str = "") -> None:
    """Judge a warp, of intensities or of labels.

    Args:
        function: the student's, of image and displacement.
        image: `(B, C, *spatial)`, labels if of an integer type.
        displacement: `(B, N, *spatial)`, voxels.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"warp", "Warp", "map_coordinates"}, "call grid_sample")
    got = call(function, image, displacement)
    if image.is_floating_point():
        mistakes = _image_mistakes(image, displacement)
        agree(got, fields.warp(image, displacement), what or "my_warp(image, displacement)", mistakes)
    else:
        expected = fields.warp(image, displacement, mode="nearest")
        agree(got, expected, what or "my_warp(label, displacement)", _label_mistakes(image, displacement))


def jacobian(function: Callable[..., Any], displacement: Tensor, what: str = "", atol: float = 1e-5) -> None:
    """Judge the determinant of the Jacobian.

    Args:
        function: the student's, of the displacement.
        displacement: `(B, N, *spatial)`, voxels.
        what: names the answer.
        atol: by how much the answer may differ, beside a thousandth.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"jacobian_determinant"}, "differentiate with torch.gradient")
    agree(
        call(function, displacement),
        fields.jacobian_determinant(displacement),
        what or "my_jacobian(displacement)",
        _jacobian_mistakes(displacement) if displacement.shape[1] == 2 else {},
        rtol=1e-3,
        atol=atol,
    )


def compose(function: Callable[..., Any], first: Tensor, second: Tensor, what: str = "") -> None:
    """Judge the displacement of two warps.

    Args:
        function: the student's, of the two displacements.
        first, second: `(B, N, *spatial)`, voxels, of the first warp and the second.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"compose"}, "it is one line with warp")
    mistakes = {
        "displacements do not add: the second step starts where the first has ended": first + second,
        "the order is exchanged: read the formula from the outside": fields.compose(second, first),
        "the outer step is missing: u(x) = u2(x) + u1(x + u2(x))": fields.warp(first, second),
        "u1 is read at x, and u2 at x + u2(x)": first + fields.warp(second, second),
    }
    expected = fields.compose(first, second)
    agree(call(function, first, second), expected, what or "my_compose(first, second)", mistakes)


def atrophy(
    function: Callable[..., Any], displacement: Tensor, label: Tensor, value: int, what: str = "", atol: float = 1e-5
) -> None:
    """Judge the change of a structure's volume.

    Args:
        function: the student's, of displacement, label and value.
        displacement: `(1, N, *spatial)`, voxels.
        label: `(1, 1, *spatial)`, integers.
        value: of the structure in the label.
        what: names the answer.
        atol: by how much the answer may differ, beside a thousandth.

    Raises:
        AssertionError: with the message for the student.
    """
    determinant, inside = fields.jacobian_determinant(displacement), label == value
    change = determinant[inside].mean().item()
    mistakes = {
        "the wrong way round: det J goes from fixed to moving volume": 100 * (1 / change - 1),
        "the wrong sign: a loss is negative": 100 * (1 - change),
        "that is a share, not percent": change - 1,
        "that is 100 % too much: a structure that keeps its volume has changed by 0": 100 * change,
        "the mean is taken over the whole image, not over the structure": 100 * (determinant.mean().item() - 1),
        "the structure is label == value; this counts everything that is labelled": (
            100 * (determinant[label > 0].mean().item() - 1)
        ),
        "log det J and det J - 1 are the same for small changes only": (
            100 * determinant[inside].clamp(min=1e-9).log().mean().item()
        ),
    }
    got = call(function, displacement, label, value)
    what = what or f"atrophy_percent(displacement, label, {value})"
    agree(got, 100 * (change - 1), what, mistakes, rtol=1e-3, atol=atol)


def atrophy_case(shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """A displacement `(1, N, *shape)` that zooms, with noise, and a label `(1, 1, *shape)` of the values 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    dims = len(shape)
    centre = (torch.tensor(shape).view(1, dims, *[1] * dims) - 1) / 2
    label = torch.randint(0, 3, (1, 1, *shape), generator=generator)
    zoom = 0.85 + 0.3 * torch.rand(1, generator=generator)
    noise = 0.3 * torch.randn(1, dims, *shape, generator=generator)
    return (zoom - 1) * (fields.identity_grid(shape) - centre) + noise, label


def repair(
    function: Callable[..., Any],
    displacement: Tensor,
    spacing: Sequence[float],
    moving_label: Tensor,
    fixed_label: Tensor,
    reverse: bool,
    negate: bool,
    scale: bool,
    what: str = "",
) -> None:
    """Judge the repair of a displacement that is sent in another convention.

    Args:
        function: the student's, of field, spacing, moving label, fixed label and structures.
        displacement: `(1, N, *spatial)`, voxels, which the student should find.
        spacing: mm along each array axis.
        moving_label, fixed_label: `(1, 1, *spatial)`, with the structures 1 to 4.
        reverse: whether the components are sent in the order (x, y, z).
        negate: whether it is sent with the wrong sign.
        scale: whether it is sent in mm.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    u, mm = displacement, _per_axis(torch.tensor(spacing))
    sent = (u * mm if scale else u) * (-1 if negate else 1)
    sent = sent.flip(1) if reverse else sent
    sent_as = ["xyz order"] * reverse + ["wrong sign"] * negate + ["mm"] * scale
    mistakes = {
        "it comes back as it was sent": sent,
        "it is still in mm": u * mm,
        "it is still in mm, and points the other way": -u * mm,
        "it is still in mm, and its components are in reverse order": (u * mm).flip(1),
        "it is still in mm, points the other way, and its components are in reverse order": -(u * mm).flip(1),
        "each component is divided by the spacing of another axis: order first, then unit": u * mm / mm.flip(1),
        "that is the possibility with the wrong sign": -u,
    }
    got = call(function, sent, spacing, moving_label, fixed_label, [1, 2, 3, 4])
    agree(got, u, what or f"repair(a field with {', '.join(sent_as) or 'nothing wrong'})", mistakes)


def repair_case(shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A moving label `(1, 1, *shape)` of four structures, a displacement, and the fixed label that it leads to."""
    generator = torch.Generator().manual_seed(seed)
    dims, places = len(shape), fields.identity_grid(shape)
    size = torch.tensor(shape, dtype=torch.float32)
    label = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    for value in range(1, 5):
        middle = _per_axis((0.3 + 0.4 * torch.rand(dims, generator=generator)) * size)
        radii = _per_axis((0.12 + 0.08 * torch.rand(dims, generator=generator)) * size)
        label[((places - middle) / radii).square().sum(1, keepdim=True) < 1] = value
    lengths = torch.tensor([3.0, -2, 1.5][:dims]) * (1 + 0.2 * torch.rand(dims, generator=generator))
    wave = 1 + 0.2 * torch.sin(places.sum(1, keepdim=True) / 7)
    displacement = _per_axis(lengths) * wave
    return label, displacement, fields.warp(label, displacement, mode="nearest", padding="zeros")


def _along(shape: Sequence[int], axis: int, voxels: float) -> Tensor:
    """A displacement `(1, N, *shape)` along one axis, the same everywhere."""
    displacement = torch.zeros(1, len(shape), *shape)
    displacement[:, axis] = voxels
    return displacement


def _per_axis(numbers: Tensor) -> Tensor:
    """One number for each component of a field `(B, N, *spatial)`."""
    return numbers.view(1, -1, *[1] * len(numbers))


def _linear(image: Tensor, point: Sequence[float]) -> float:
    return float(map_coordinates(image.double().numpy(), [[p] for p in point], order=1)[0])


def _interpolation_mistakes(image: Tensor, point: tuple[float, float]) -> dict[str, float]:
    i, j = (min(int(p), n - 2) for p, n in zip(point, image.shape, strict=True))
    a, b = point[0] - i, point[1] - j
    (upper_left, upper_right), (lower_left, lower_right) = around = image[i : i + 2, j : j + 2].tolist()
    mistakes = {
        "the weights are exchanged: the nearer voxel counts more, 1 - a at row i and a at row i + 1": (
            a * (b * upper_left + (1 - b) * upper_right) + (1 - a) * (b * lower_left + (1 - b) * lower_right)
        ),
        "that is the nearest voxel": image[round(point[0]), round(point[1])].item(),
        "that is the voxel below the point: the fractions are lost": image[int(point[0]), int(point[1])].item(),
        "all four voxels weigh the same": sum(map(sum, around)) / 4,
    }
    if all(p <= n - 1 for p, n in zip(point, image.T.shape, strict=True)):
        mistakes["the axes are exchanged: p0 belongs to the rows"] = _linear(image.T, point)
    return mistakes


def _scaled(position: Tensor, low: Sequence[float], high: Sequence[float]) -> Tensor:
    """Each component c of the position from `[low[c], high[c]]` to `[-1, 1]`, components last, in reverse."""
    parts = [2 * (p - a) / (b - a) - 1 for p, a, b in zip(position.unbind(1), low, high, strict=True)]
    return torch.stack(parts[::-1], dim=-1)


def _image_mistakes(image: Tensor, u: Tensor) -> dict[str, Tensor]:
    shape = image.shape[2:]
    grid = _scaled(fields.identity_grid(shape) + u, [0.0] * len(shape), [n - 1 for n in shape])
    return {
        "grid_sample is called without align_corners=True: each position is off by up to half a voxel": F.grid_sample(
            image, grid, padding_mode="border", align_corners=False
        ),
        "beyond the image there are zeros: padding_mode='border'": F.grid_sample(image, grid, align_corners=True),
        "the sign: it reads at x - u(x)": fields.warp(image, -u),
        "the components of the displacement are in reverse order": fields.warp(image, u.flip(1)),
        "intensities are read from the nearest voxel: interpolate them linearly": fields.warp(image, u, mode="nearest"),
        "nothing moved: is x + u(x) what you sample at?": image,
    }


def _label_mistakes(label: Tensor, u: Tensor) -> dict[str, Tensor]:
    linear = fields.warp(label.float(), u)
    return {
        "labels are interpolated linearly and cut to integers: use mode='nearest'": linear.to(label.dtype),
        "labels are interpolated linearly and rounded, which invents structures: use mode='nearest'": (
            linear.round().to(label.dtype)
        ),
        "labels have become floating point: give them back their type": fields.warp(label, u, mode="nearest").float(),
        "labels are interpolated linearly: use mode='nearest'": linear,
    }


def _jacobian_mistakes(u: Tensor) -> dict[str, Tensor]:
    """Of a field in 2-D."""
    (a, c), (b, d) = (slope.unbind(1) for slope in torch.gradient(u, dim=(2, 3)))
    wide = F.pad(u, (0, 1, 0, 1), mode="replicate")
    (e, g), (f, h) = (wide[:, :, 1:, :-1] - u).unbind(1), (wide[:, :, :-1, 1:] - u).unbind(1)
    mistakes = {
        "the identity is missing: the map is x + u(x), so J = I + the slopes of u": a * d - b * c,
        "the sign of the product off the diagonal: (1 + a)(1 + d) - bc": (1 + a) * (1 + d) + b * c,
        "only the diagonal is multiplied": (1 + a) * (1 + d),
        "that is 1 + the divergence, right for small slopes only": 1 + a + d,
        "forward differences, which are half a voxel off: torch.gradient takes central ones": (
            (1 + e) * (1 + h) - f * g
        ),
        "1 is added to every slope, not to the diagonal": (1 + a) * (1 + d) - (1 + b) * (1 + c),
        "differences of two voxels are not divided by 2": (1 + 2 * a) * (1 + 2 * d) - 4 * b * c,
    }
    return {mistake: values[:, None] for mistake, values in mistakes.items()}
