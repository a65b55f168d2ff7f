"""What judges the answers of assignment 7: a template, and a dial for smoothness."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import jacobian_determinant, warp
from course_utils.grading.checks import agree, call
from course_utils.metrics import dice


def average(
    function: Callable[..., Any], images: Tensor, displacements: Tensor, what: str = "average(images, displacements)"
) -> None:
    """Judge the average of warped images, each weighted by its determinant.

    Args:
        function: the student's `average`.
        images: `(S, C, *spatial)`.
        displacements: `(S, N, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    moved, weight = warp(images, displacements), jacobian_determinant(displacements)
    whole = weight.sum(0, keepdim=True)
    agree(
        call(function, images, displacements),
        torch.einsum("sc...,sd...->c...", moved, weight / whole)[None],
        what,
        {
            "that is the plain mean: weigh each image by its determinant": moved.mean(0, keepdim=True),
            "the images are not warped": (weight * images).sum(0, keepdim=True) / whole,
            "the sum of the weights is missing below": (weight * moved).sum(0, keepdim=True),
            "it is divided by the number of people, not by the sum of the weights": (weight * moved).mean(
                0, keepdim=True
            ),
            "the image is weighted before it is warped: the determinant belongs to the template's voxels": warp(
                images * weight, displacements
            ).sum(0, keepdim=True)
            / whole,
            "divided by the determinant: where a person is squeezed they count more": (moved / weight).sum(
                0, keepdim=True
            )
            / (1 / weight).sum(0, keepdim=True),
        },
    )


def centred(function: Callable[..., Any], displacements: Tensor, what: str = "centred(displacements)") -> None:
    """Judge displacements without their common part.

    Args:
        function: the student's `centred`.
        displacements: `(S, N, *spatial)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    u = displacements
    common = u.sum(0, keepdim=True) / len(u)
    agree(
        call(function, u),
        u - common,
        what,
        {
            "the mean of each person's own displacement was taken: the mean is over the people": u
            - u.mean(tuple(range(2, u.ndim)), keepdim=True),
            "one number was taken from all: the mean is of each voxel and component": u - u.mean(),
            "the mean over the components, too: each component has its own": u - u.mean((0, 1), keepdim=True),
            "the mean over the components: it is over the people": u - u.mean(1, keepdim=True),
            "the first person became the middle": u - u[:1],
            "the sum was taken away, not the mean": u - u.sum(0, keepdim=True),
            "that is the common part itself": common.expand_as(u).clone(),
        },
    )


def stream(
    function: Callable[..., Any],
    mean: Tensor,
    count: int,
    displacements: Tensor,
    cap: int,
    what: str | None = None,
) -> None:
    """Judge the running mean, and its count, after a batch.

    Args:
        function: the student's `stream`.
        mean: `(N, *spatial)`, before the batch.
        count: of people, before the batch.
        displacements: the batch `(B, N, *spatial)`.
        cap: the count beyond which the weight of a batch falls no more.
        what: names the answer in the message; None: after the numbers.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    u, batch, now = displacements, len(displacements), count + len(displacements)
    new, seen = _running(mean, count, u, cap), min(now, cap)
    agree(
        call(function, mean, count, u, cap),
        (new, now),
        what or f"stream(mean, count={count}, {batch} displacements, cap={cap})",
        {
            "the cap is of the count in the weight, not of the count that is returned": (new, seen),
            "the count is the old one": (new, count),
            "the cap does nothing": (_running(mean, count, u, 10**9), now),
            "the new people are not counted in the weight": (
                mean + (u.mean(0) - mean) * min(1.0, batch / max(1, min(count, cap))),
                now,
            ),
            "the weight is 1 / seen: a batch of four is four people": (
                mean + (u.mean(0) - mean) / seen,
                now,
            ),
            "the weights are exchanged": (u.mean(0) + (mean - u.mean(0)) * min(1.0, batch / seen), now),
            "the batch's sum enters, not its mean": (mean * (1 - batch / seen) + u.sum(0) * (batch / seen), now),
            "the old mean was replaced": (u.mean(0), now),
        },
    )


def winner(function: Callable[..., Any], labels: Tensor, values: Sequence[int], what: str | None = None) -> None:
    """Judge label probabilities, and the values that win.

    Args:
        function: the student's `winner`.
        labels: maps `(S, 1, *spatial)` of integers.
        values: those that are counted; at a tie the first wins.
        what: names the answer in the message; None: after the values.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    shares, best = _votes(labels, values)
    agree(
        call(function, labels, values),
        (shares, best),
        what or f"winner(labels, {values})",
        {
            "the winners are places in `values`: return the values themselves": (shares, shares.argmax(0)[None]),
            "those are counts: a probability is a share": (shares * len(labels), best),
            "the mean of label values is no label": (shares, labels.float().mean(0).round().long()),
            "the probabilities are in the order of the values' size, not of `values`": (
                _votes(labels, sorted(values))[0],
                best,
            ),
            "that is the largest value that anybody has": (shares, labels.amax(0)),
            "that is the first person's map": (shares, labels[0]),
            "at a tie the first in `values` wins": (shares, _votes(labels, values[::-1])[1]),
            "the probabilities of the winner alone: keep those of all values": (shares.amax(0, keepdim=True), best),
        },
    )


def left_out(
    function: Callable[..., Any], labels: Tensor, values: Sequence[int], what: str = "left_out(labels, values, vote)"
) -> None:
    """Judge the mean Dice of each person's map with what the others vote for; the vote is given to the student.

    Args:
        function: the student's `left_out`.
        labels: maps `(S, 1, *spatial)` of integers.
        values: of the maps, 0 among them.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    people, structures = range(len(labels)), [value for value in values if value]

    def scores(voters: Callable[[int], list[int]], judged: Sequence[int] = structures) -> list[float]:
        votes = [_majority(labels[voters(n)], values)[None] for n in people]
        return [dice(vote, labels[[n]], judged).nanmean().item() for n, vote in enumerate(votes)]

    def others(person: int) -> list[int]:
        return [other for other in people if other != person]

    right = scores(others)
    agree(
        call(function, labels, values, _majority),
        right,
        what,
        {
            "the person votes too: leave them out": scores(lambda n: list(people)),
            "the background is not a structure: leave 0 out of the Dice": scores(others, values),
            "the person alone votes": [1.0] * len(labels),
            "that is one number: each person has one": sum(right) / len(labels),
            "only the next person votes": scores(lambda n: [(n + 1) % len(labels)]),
            "the first of the others alone votes": scores(lambda n: [0 if n else 1]),
        },
    )


def weight_of(function: Callable[..., Any], share: float) -> None:
    """Judge the weight of the roughness that belongs to HyperMorph's lambda.

    Args:
        function: the student's `weight_of`.
        share: lambda, from 0 up to but not 1.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    agree(
        call(function, share),
        1 / (1 - share) - 1,
        f"weight_of({share})",
        {
            "that is HyperMorph's lambda itself": share,
            "that is the weight of the similarity": 1 - share,
            "the ratio is the other way round": (1 - share) / max(share, 1e-9),
            "divided by lambda + 1, not by 1 - lambda": share / (1 + share),
        },
    )


def film(
    function: Callable[..., Any],
    features: Tensor,
    gamma: Tensor,
    beta: Tensor,
    what: str = "film(features, gamma, beta)",
) -> None:
    """Judge features that are normalised, scaled and shifted.

    Args:
        function: the student's `film`.
        features: `(B, C, *spatial)`.
        gamma, beta: `(B, C)`.
        what: names the answer in the message.

    Raises:
        AssertionError: the answer is wrong; with the mistake that explains it.
    """
    axes = tuple(range(2, features.ndim))
    place = (..., *[None] * len(axes))
    normal, scale, shift = F.instance_norm(features), 1 + gamma[place], beta[place]
    over_batch = F.batch_norm(features, None, None, training=True)
    over_channels = F.layer_norm(features, list(features.shape[1:]))
    agree(
        call(function, features, gamma, beta),
        normal * scale + shift,
        what,
        {
            "the scale is 1 + gamma: a gamma of 0 changes nothing": normal * gamma[place] + shift,
            "the features are not normalised": features * scale + shift,
            "gamma and beta are exchanged": normal * (1 + shift) + gamma[place],
            "each image is normalised by itself, not the whole batch": over_batch * scale + shift,
            "each channel is normalised by itself, not all of an image": over_channels * scale + shift,
            "beta is missing": normal * scale,
            "shifted first and scaled after": (normal + shift) * scale,
            "the mean was taken away, the deviation is still there": (features - features.mean(axes, keepdim=True))
            * scale
            + shift,
            "the first image's gamma and beta were given to all": normal * scale[:1] + shift[:1],
        },
        atol=1e-4,
    )


def _running(mean: Tensor, count: int, u: Tensor, cap: int) -> Tensor:
    """The new mean, from weights of the single displacements."""
    each = 1 / max(min(count + len(u), cap), len(u))
    return mean * (1 - len(u) * each) + (u * each).sum(0)


def _votes(labels: Tensor, values: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Shares, and the winners by comparing them one after the other."""
    shares = torch.cat([(labels == value).to(torch.float32).sum(0) / len(labels) for value in values])
    best, value_of = shares[0].clone(), torch.full(labels.shape[1:], values[0])
    for share, value in zip(shares[1:], values[1:], strict=True):
        value_of[0][share > best] = value
        best = torch.maximum(best, share)
    return shares, value_of


def _majority(labels: Tensor, values: Sequence[int]) -> Tensor:
    """The winning values `(1, *spatial)`."""
    counts = torch.stack([(labels == value).sum(0) for value in values])
    return torch.tensor(values)[counts.argmax(0)]
