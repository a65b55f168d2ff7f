"""What judges the answers of assignment 6: two directions, and folds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import compose, integrate, warp
from course_utils.grading.checks import agree, by_hand, call, gradient
from course_utils.networks import Registration
from course_utils.objectives.two_directions import gradient_inconsistency, inconsistency

Network = Callable[[Tensor, Tensor], Tensor]
Similarity = Callable[[Tensor, Tensor], Tensor]


def from_home(
    function: Callable[..., Any],
    network: Network,
    moving: Tensor,
    fixed: Tensor,
    what: str = "from_home(network, moving, fixed)",
) -> None:
    """Judge the mean distance from home after a network's two maps.

    Args:
        function: the student's `from_home`.
        network: takes two images and answers with a velocity `(1, N, *spatial)`.
        moving, fixed: images `(1, 1, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    v, w = network(moving, fixed), network(fixed, moving)
    u, r = integrate(v), integrate(w)
    home = compose(u, r)
    agree(
        call(function, network, moving, fixed),
        torch.linalg.vector_norm(r + warp(u, r), dim=1).mean().item(),
        what,
        {
            "the two displacements are added: maps are composed": _mean_length(u + r),
            "the velocities are not integrated": _mean_length(compose(v, w)),
            "the velocities are added and then integrated: that is not the composition": _mean_length(integrate(v + w)),
            "exp(v) and exp(-v) are inverses for any network: ask it for the swapped images": _mean_length(
                compose(u, integrate(-v))
            ),
            "first there, then back: the composition is the other way round": _mean_length(compose(r, u)),
            "the network was asked twice in the same order": _mean_length(compose(u, u)),
            "that is the largest distance, not the mean": home.norm(dim=1).max().item(),
            "that is the mean over the components: a vector has one length": home.abs().mean().item(),
            "the mean of the squares is not a distance": _mean_square(home).item(),
        },
    )


def antisymmetric(
    function: Callable[..., Any],
    network: Network,
    moving: Tensor,
    fixed: Tensor,
    what: str = "antisymmetric(network)(moving, fixed)",
) -> None:
    """Judge a network made of another, whose velocity changes its sign when the images are swapped.

    Args:
        function: the student's `antisymmetric`.
        network: takes two images and answers with a velocity `(1, N, *spatial)`.
        moving, fixed: images `(1, 1, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: it is no function, or not that network; with the mistake that explains its answer.
    """
    v, w = network(moving, fixed), network(fixed, moving)
    made = function(network)
    if not callable(made):
        raise AssertionError(
            "antisymmetric(network) should be a function of two images, and is not: define one and return it"
        )
    agree(
        call(made, moving, fixed),
        v.lerp(-w, 0.5),
        what,
        {
            "half of the sum is symmetric: swapping the images leaves it as it is": (v + w) / 2,
            "the difference is twice as long as what the network says: halve it": v - w,
            "the sign is wrong: it moves the fixed image": (w - v) / 2,
            "that is the network as it was": v,
            "that is the network for the swapped images": w,
            "only the halved answer of one order": v / 2,
        },
    )
    agree(call(made, moving, moving), torch.zeros_like(v), "an image against itself")


def both_ways(
    function: Callable[..., Any],
    similarity: Similarity,
    moving: Tensor,
    fixed: Tensor,
    velocity: Tensor,
    what: str = "both_ways(similarity, moving, fixed, velocity)",
) -> None:
    """Judge the mean similarity of a registration and of its inverse.

    Args:
        function: the student's `both_ways`.
        similarity: of (moved, target), not the same with the two exchanged; gives a scalar tensor.
        moving, fixed: images `(1, 1, *spatial)`.
        velocity: `(1, N, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    u, inverse = integrate(velocity), integrate(-velocity)
    moved = warp(moving, u)
    there = Registration(moved, u, velocity)
    one, other = similarity(there.moved, fixed), similarity(there.backwards(fixed).moved, moving)
    agree(
        call(function, similarity, moving, fixed, velocity),
        torch.stack([one, other]).mean(),
        what,
        {
            "that is the sum of the two, not their mean": one + other,
            "only the way there is judged": one,
            "only the way back is judged": other,
            "minus the displacement is not the inverse map: integrate -v": (one + similarity(warp(fixed, -u), moving))
            / 2,
            "the fixed image is moved by v, and not by -v": (one + similarity(warp(fixed, u), moving)) / 2,
            "the moving image is warped in both: backwards the fixed image is": (
                one + similarity(warp(moving, inverse), fixed)
            )
            / 2,
            "the moved image comes first, then the one that it should be like": (
                similarity(fixed, moved) + similarity(moving, warp(fixed, inverse))
            )
            / 2,
        },
    )


def icon(function: Callable[..., Any], there: Tensor, back: Tensor, what: str = "icon(there, back)") -> None:
    """Judge the mean squared distance from home, of both orders, written by hand.

    Args:
        function: the student's `icon`.
        there, back: displacements `(B, N, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong, or the course's own; with the mistake that explains it.
    """
    by_hand(function, {"inconsistency", "CONSISTENCIES", "Consistent"}, "compose the maps and measure what is left")
    first, second = compose(there, back), compose(back, there)
    distances = [each.norm(dim=1) for each in (first, second)]
    agree(
        call(function, there, back),
        inconsistency(there, back),
        what,
        {
            "begin with the way back too": _mean_square(first),
            "begin with the way there too": _mean_square(second),
            "that is the sum of the two orders, not their mean": _mean_square(first) + _mean_square(second),
            "the displacements are added: maps are composed": _mean_square(there + back),
            "the squares of a vector's components are summed, not averaged": (
                first.square().mean() + second.square().mean()
            )
            / 2,
            "the distance is squared first, and then averaged": (distances[0].mean() + distances[1].mean()) / 2,
            "that is the square of the mean distance": (distances[0].mean().square() + distances[1].mean().square())
            / 2,
            "it is summed over the voxels: take the mean": (first.square().sum() + second.square().sum()) / 2,
        },
    )


def unpunished(function: Callable[..., Any]) -> None:
    """Judge a contradiction that ICON punishes and GradICON does not.

    Args:
        function: the student's `unpunished`, which gives two displacements `(1, 2, 16, 16)`.

    Raises:
        AssertionError: these are no two fields of that shape, the first is zero, or one of the two measures is not
            what the exercise asks for.
    """
    given = function()
    if type(given) is not tuple or [tuple(getattr(field, "shape", ())) for field in given] != [(1, 2, 16, 16)] * 2:
        raise AssertionError("unpunished(): it should be two tensors (1, 2, 16, 16), there and back")
    if not given[0].any():
        raise AssertionError("unpunished(): there is zero everywhere: let it move something")
    cost, cost_of_changes = inconsistency(*given).item(), gradient_inconsistency(*given).item()
    if not cost > 1:
        raise AssertionError(f"unpunished(): ICON is {cost:.4g}, and should be above 1: the two must not be inverses")
    if not cost_of_changes < 1e-8:
        raise AssertionError(
            f"unpunished(): GradICON is {cost_of_changes:.4g}: what is left after there and back may not change"
        )


def triangles(function: Callable[..., Any], displacement: Tensor, what: str = "triangles(displacement)") -> None:
    """Judge twice the signed areas of the triangles that a field makes of each cell, written by hand.

    Args:
        function: the student's `triangles`.
        displacement: `(B, 2, H, W)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong, or the course's own; with the mistake that explains it.
    """
    by_hand(function, {"simplex_determinants", "jacobian_determinant", "turned_over"}, "compute with the corners")
    right = _determinants(displacement, torch.eye(2))
    agree(
        call(function, displacement),
        right,
        what,
        {
            "the displacement alone: each corner lies at pixel + displacement": _determinants(
                displacement, torch.zeros(2, 2)
            ),
            "the sign is wrong: what nobody moves has 1": -right,
            "component 0 is along the rows' axis: the pixel's row belongs to it, not its column": _determinants(
                displacement, torch.eye(2).flip(0)
            ),
            "those are the areas, not twice the areas": right / 2,
            "the second triangle is measured at the first corner": right[:, [0, 0]],
            "the second triangle has the wrong sign: (d, b, c) runs the same way round as (a, c, b)": right
            * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1),
            "the two triangles are exchanged": right.flip(1),
            "the areas have lost their signs": right.abs(),
        },
    )


def turned(function: Callable[..., Any], areas: Tensor, what: str = "turned(areas)") -> None:
    """Judge the share of the area that is turned over, and its gradient.

    Args:
        function: the student's `turned`.
        areas: signed, of any shape, some of them negative.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong, or its gradient, which training needs; with the mistake that explains it.
    """
    negative = areas[areas < 0]
    agree(
        call(function, areas),
        F.relu(-areas).sum() / areas.numel(),
        what,
        {
            "that is how many are turned over, not how much": (areas < 0).float().mean(),
            "the mean is over all triangles, not over those that are folded": -negative.mean(),
            "it is a sum: take the mean": -negative.sum(),
            "the sign is wrong: a penalty grows with the folds": negative.sum() / areas.numel(),
            "those are the areas that are not turned over": F.relu(areas).mean(),
            "the mean of all areas: unfolded ones outweigh the folds": -areas.mean(),
            "squared: a share of the area is meant": F.relu(-areas).square().mean(),
        },
    )
    agree(
        gradient(function, areas, what="the gradient of turned(areas), which training needs"),
        torch.where(areas < 0, -1 / areas.numel(), 0.0),
        "the gradient of turned(areas), which training needs",
    )


def determinant(
    function: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    z: Tensor,
    what: str = "determinant(x, y, z)",
    atol: float = 1e-4,
) -> None:
    """Judge the mended formula of the Jacobian determinant.

    Args:
        function: the student's `determinant`.
        x, y, z: derivatives `(..., 3)` of the displacement along the three axes.
        what: names the answer in the message.
        atol: determinants may differ by this much.

    Raises:
        AssertionError: it is not mended, or it is somebody else's; with the mistake that is left.
    """
    by_hand(function, {"det", "slogdet", "jacobian_determinant"}, "mend the formula")
    X, Y, Z = (derivative + torch.eye(3)[axis] for axis, derivative in enumerate((x, y, z)))
    right = torch.linalg.det(torch.stack([X, Y, Z], dim=-1))
    agree(
        call(function, x, y, z),
        right,
        what,
        {
            "nothing is mended yet: a letter, and what is missing before": _formula(x, y, z, x),
            "the letter is mended; the map is x + u(x), so its derivative has 1 in one place of each": _formula(
                x, y, z, z
            ),
            "the identity is there; one letter is still wrong": _formula(X, Y, Z, X),
            "another letter: compare the three lines with each other": _formula(X, Y, Z, Y),
            "1 was added to all three components of each derivative": _formula(x + 1, y + 1, z + 1, z + 1),
            "1 was added to the determinant, not to the derivatives": _formula(x, y, z, z) + 1,
            "the absolute value has no folds": right.abs(),
        },
        atol=atol,
    )


def _mean_length(field: Tensor) -> float:
    return field.norm(dim=1).mean().item()


def _mean_square(field: Tensor) -> Tensor:
    """Mean over voxels of the squared length."""
    return field.square().sum(1).mean()


def _determinants(u: Tensor, of_pixel: Tensor) -> Tensor:
    """det(of_pixel + derivatives) at the two corners where a cell's triangles have their right angle."""
    down, right = u[:, :, 1:] - u[:, :, :-1], u[:, :, :, 1:] - u[:, :, :, :-1]
    found = []
    for corner in ((down[..., :-1], right[:, :, :-1]), (down[..., 1:], right[:, :, 1:])):  # the first, the opposite
        columns = torch.stack(corner, dim=-1).movedim(1, -2)  # (B, H - 1, W - 1, 2, 2)
        found.append(torch.linalg.det(columns + of_pixel))
    return torch.stack(found, dim=1)


def _formula(x: Tensor, y: Tensor, z: Tensor, letter: Tensor) -> Tensor:
    """The formula, with a letter in the last place of its second line."""
    one = x[..., 0] * (y[..., 1] * z[..., 2] - y[..., 2] * z[..., 1])
    two = x[..., 1] * (y[..., 0] * z[..., 2] - y[..., 2] * letter[..., 0])
    three = x[..., 2] * (y[..., 0] * z[..., 1] - y[..., 1] * z[..., 0])
    return one - two + three
