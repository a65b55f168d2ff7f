"""Judges the exercises of assignment 3: each function takes the student's, and the inputs to try it on.

`what` names the answer in the message, where the inputs do not say enough.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import fields
from course_utils.grading.checks import agree, by_hand, call, raises


def euler(function: Callable[..., Any], velocity: Tensor, steps: int, what: str = "") -> None:
    """Judge a flow by Euler's steps.

    Args:
        function: the student's, of velocity and steps.
        velocity: `(B, N, *spatial)`.
        steps: how many.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    expected = backwards = twice = torch.zeros_like(velocity)
    for _ in range(steps):
        expected = expected + fields.warp(velocity, expected) / steps
        backwards = backwards + fields.warp(velocity, -backwards) / steps
        twice = twice + fields.warp(velocity, twice)
    mistakes = {
        "the velocity is always read at the start: read it where the particle is, warp(velocity, u)": velocity,
        "a step takes 1/steps of the time: the velocity is not divided by the steps": twice,
        "the velocity is read at x - u(x)": backwards,
        "that is scaling and squaring with as many squarings; Euler takes equal steps": (
            fields.integrate(velocity, steps)
        ),
        "only one step was taken": velocity / steps,
    }
    agree(call(function, velocity, steps), expected, what or f"euler(velocity, {steps=})", mistakes)


def exponential(function: Callable[..., Any], velocity: Tensor, squarings: int, what: str = "") -> None:
    """Judge scaling and squaring.

    Args:
        function: the student's, of velocity and squarings.
        velocity: `(B, N, *spatial)`.
        squarings: how many.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"integrate", "DVF2DDF"}, "scale, then compose the displacement with itself")
    start = small = warped = velocity / 2**squarings
    for _ in range(squarings):
        small, warped = fields.compose(start, small), fields.warp(warped, warped)
    mistakes = {
        "divided by the number of squarings: K of them multiply the time by 2 ** K": (
            _squared(velocity / max(squarings, 1), squarings)
        ),
        "the displacement is added to itself: a square is a composition": velocity,
        "the velocity is not scaled before it is squared": _squared(velocity, squarings),
        "one squaring too many for its scaling": _squared(start, squarings + 1),
        "one squaring too few for its scaling": _squared(start, squarings - 1),
        f"each step adds the first, tiny displacement: that is {squarings + 1} small steps, not {2**squarings}": small,
        "squaring without the outer step: u(x) + u(x + u(x)), not u(x + u(x)) alone": warped,
    }
    expected = fields.integrate(velocity, squarings)
    agree(call(function, velocity, squarings), expected, what or f"exponential(velocity, {squarings=})", mistakes)


def backwards(function: Callable[..., Any], velocity: Tensor, what: str = "") -> None:
    """Judge the way back of a flow.

    Args:
        function: the student's, of the velocity.
        velocity: `(B, N, *spatial)`.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    mistakes = {
        "minus the displacement is not the inverse: the way back starts elsewhere": -fields.integrate(velocity),
        "that is the way there": fields.integrate(velocity),
        "minus the velocity is not integrated yet": -velocity,
    }
    agree(call(function, velocity), fields.integrate(-velocity), what or "backwards(velocity)", mistakes)


def fixed_point(function: Callable[..., Any], displacement: Tensor, iterations: int, what: str = "") -> None:
    """Judge the inverse of a displacement.

    Args:
        function: the student's, of displacement and iterations.
        displacement: `(B, N, *spatial)`, voxels.
        iterations: how many.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"invert"}, "put the formula into a loop")
    exchanged = positive = -displacement
    for _ in range(iterations):
        exchanged, positive = -fields.warp(exchanged, displacement), fields.warp(displacement, positive)
    mistakes = {
        "no iteration was made: that is -u": -displacement,
        "the inverse is warped by u; the formula reads u at x + w(x)": exchanged,
        "a sign is lost: w = -u(x + w(x))": positive,
        "one iteration too few, or it starts at 0": fields.invert(displacement, iterations - 1),
        "one iteration too many": fields.invert(displacement, iterations + 1),
    }
    got, expected = call(function, displacement, iterations), fields.invert(displacement, iterations)
    agree(got, expected, what or f"fixed_point(displacement, {iterations=})", mistakes, atol=1e-6)


def residual(function: Callable[..., Any], there: Tensor, back: Tensor, what: str = "") -> None:
    """Judge how much a displacement and its inverse leave.

    Args:
        function: the student's, of the two displacements.
        there, back: `(B, N, *spatial)`, voxels.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    left = fields.compose(there, back)
    mistakes = {
        "displacements are composed, not added": (there + back).norm(dim=1).mean(),
        "they are composed in the other order: first there, then back": (
            fields.compose(back, there).norm(dim=1).mean()
        ),
        "that is the mean over the components too: a vector has one length": left.abs().mean(),
        "that is the length of all numbers as one vector: the length is per voxel": left.norm(),
        "that is the largest length, not the mean": left.norm(dim=1).max(),
        "the mean of squares has no unit of length: take the root first": left.square().sum(1).mean(),
        "the root of the mean of squares is not the mean length": left.square().sum(1).mean().sqrt(),
        "the sum over the voxels, not their mean": left.norm(dim=1).sum(),
        "components that cancel are not a length": left.sum(dim=1).abs().mean(),
    }
    numbers = {mistake: number.item() for mistake, number in mistakes.items()}
    expected = left.norm(dim=1).mean().item()
    agree(call(function, there, back), expected, what or "residual(there, back)", numbers)


def resize(function: Callable[..., Any], field: Tensor, shape: Sequence[int], what: str = "") -> None:
    """Judge a field on another grid.

    Args:
        function: the student's, of field and shape.
        field: `(B, N, *spatial)`, voxels of its grid.
        shape: of the new grid, N sizes.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"resize"}, "interpolate the samples, then scale the vectors")
    shape, old = tuple(shape), field.shape[2:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    samples = F.interpolate(field, size=shape, mode=mode, align_corners=False)
    corners = F.interpolate(field, size=shape, mode=mode, align_corners=True)
    factors = [new / n for new, n in zip(shape, old, strict=True)]
    factor = torch.tensor(factors).view(1, -1, *[1] * len(shape))
    mistakes = {
        "the samples are right, the vectors are still in voxels of the old grid": samples,
        "the factor is the wrong way round: a coarse voxel is longer, so the number of voxels falls": samples / factor,
        "each component has its own factor; this takes axis 0's for all": samples * factors[0],
        "each component has its own factor; this takes the last axis's for all": samples * factors[-1],
        "the factors are exchanged between the axes": samples * factor.flip(1),
        "align_corners=True keeps the outer centres; here the outer edges of the two grids coincide": corners * factor,
        "align_corners=True, and the vectors are still in voxels of the old grid": corners,
        "the nearest samples were taken: interpolate": F.interpolate(field, size=shape) * factor,
    }
    what = what or f"resize_field(velocity {tuple(field.shape)}, {shape})"
    agree(call(function, field, shape), fields.resize(field, shape), what, mistakes)


def halfway(function: Callable[..., Any], moving: Tensor, fixed: Tensor, velocity: Tensor, what: str = "") -> None:
    """Judge two images at the point where they meet.

    Args:
        function: the student's, of moving, fixed and velocity.
        moving, fixed: `(B, C, *spatial)`.
        velocity: `(B, N, *spatial)`.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    warp, there, back = fields.warp, fields.integrate(velocity), fields.integrate(-velocity)
    half_there, half_back = fields.integrate(velocity / 2), fields.integrate(-velocity / 2)
    met_moving, met_fixed = warp(moving, half_there), warp(fixed, half_back)
    mistakes = {
        "half of the displacement is not the flow of half the time: halve the velocity, then integrate": (
            warp(moving, there / 2),
            warp(fixed, back / 2),
        ),
        "half of the displacement, and its negative: halve the velocity, then integrate": (
            warp(moving, there / 2),
            warp(fixed, -there / 2),
        ),
        "the fixed image goes backwards by the flow of -v / 2, not by minus the displacement": (
            met_moving,
            warp(fixed, -half_there),
        ),
        "both images go forwards: they pass each other": (met_moving, warp(fixed, half_there)),
        "each image goes the whole way": (warp(moving, there), warp(fixed, back)),
        "the moving image goes the whole way, the fixed one stays": (warp(moving, there), fixed),
        "the two are exchanged: the moving image follows v": (warp(moving, half_back), warp(fixed, half_there)),
    }
    what = what or "halfway(moving, fixed, velocity)"
    agree(call(function, moving, fixed, velocity), (met_moving, met_fixed), what, mistakes)


def enough(function: Callable[..., Any], velocity: Tensor, tolerance: float, what: str) -> None:
    """Judge the number of squarings that is enough.

    Args:
        function: the student's, of velocity and tolerance.
        velocity: `(B, N, *spatial)`.
        tolerance: voxels.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    expected, mistakes = _enough_squarings(velocity, tolerance)
    agree(call(function, velocity, tolerance), expected, what, mistakes)


def enough_limit(function: Callable[..., Any], velocity: Tensor, tolerance: float) -> None:
    """Judge whether `most` squarings that are just enough are, and one less is refused.

    Args:
        function: the student's, of velocity, tolerance and most.
        velocity: `(B, N, *spatial)`.
        tolerance: voxels.

    Raises:
        AssertionError: with the message for the student.
    """
    most, _ = _enough_squarings(velocity, tolerance)
    agree(call(function, velocity, tolerance, most), most, f"enough_squarings with {most=}")
    if most:
        too_rough(function, velocity, tolerance, most - 1, f"enough_squarings with most={most - 1}")


def too_rough(function: Callable[..., Any], velocity: Tensor, tolerance: float, most: int, what: str = "") -> None:
    """Judge whether a velocity of which not even `most` squarings are enough is refused.

    Args:
        function: the student's, of velocity, tolerance and most.
        velocity: `(B, N, *spatial)`.
        tolerance: voxels.
        most: squarings.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    what = what or f"enough_squarings(noise, {tolerance}, {most=})"
    raises(ValueError, function, velocity, tolerance, most, what=what)


def critical(velocity: Tensor, squarings: int) -> float:
    """A tolerance between the largest component and the longest vector of what one more squaring changes."""
    change = fields.integrate(velocity, squarings + 1) - fields.integrate(velocity, squarings)
    return (change.norm(dim=1).max() + change.abs().max()).item() / 2


def _squared(start: Tensor, times: int) -> Tensor:
    for _ in range(times):
        start = fields.compose(start, start)
    return start


def _enough_squarings(velocity: Tensor, tolerance: float) -> tuple[int, dict[str, int]]:
    """The right number, and the numbers to which known mistakes lead."""
    flows = [fields.integrate(velocity, k) for k in range(14)]
    changes = [finer - coarser for coarser, finer in itertools.pairwise(flows)]

    def first(measure: Callable[[Tensor], Tensor]) -> int:
        return next(k for k, change in enumerate(changes) if measure(change) <= tolerance)

    right = first(lambda change: change.norm(dim=1).max())
    return right, {
        "that is K + 1: the coarser of the two is good enough already": right + 1,
        "on average it is good enough; it should be so at every voxel": first(lambda change: change.norm(dim=1).mean()),
        "in each component it is good enough; the length of the vector counts": first(
            lambda change: change.abs().max()
        ),
        "one too few: the change from this K to K + 1 is above the tolerance": right - 1,
    }
