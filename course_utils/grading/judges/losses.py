"""Judges of assignment 5: losses, a schedule and a step of training, against the course's own.

Every function takes the student's answer first, then what it is asked with, and raises an `AssertionError` whose
message is for the student: the mistake that explains the answer, or how it differs. `what` names the answer in it. The
two trainings are judged by `course_utils.grading.trained`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import losses
from course_utils.grading import checks
from course_utils.grading.trials import three_steps


def ssd(function: Callable[..., Any], shape: Sequence[int], seed: int, what: str = "ssd(moved, fixed)") -> None:
    """Judge a mean squared difference, and whether gradients flow through it.

    Args:
        function: `ssd(moved, fixed)`.
        shape: of both images, `(B, 1, *spatial)`.
        seed: of the images.

    Raises:
        AssertionError: it is not the student's own, or its value differs, or no gradient flows.
    """
    checks.by_hand(function, {"ssd_loss"}, "it is one line")
    a, b = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    difference, axes = a - b, tuple(range(1, a.ndim))
    checks.agree(
        checks.call(function, a, b),
        losses.ssd_loss(a, b),
        what,
        {
            "a sum in place of a mean: it grows with the size of the image": difference.square().sum(),
            "a sum over each image and a mean over the batch: take the mean over all voxels": (
                difference.square().sum(axes).mean()
            ),
            "the difference is not squared": difference.abs().mean(),
            "the difference is not squared: what is too dark here and too bright there cancels": difference.mean(),
            "the root makes it a distance; the loss is without": difference.square().mean().sqrt(),
            "the mean is squared, not the difference": difference.mean().square(),
            "one number for each image of the batch": difference.square().mean(axes),
            "a plain number has no gradient: leave it a tensor": difference.square().mean().detach(),
        },
    )
    checks.gradient(function, a, b, what="ssd")


def ncc(
    function: Callable[..., Any],
    shape: Sequence[int],
    window: int,
    seed: int,
    flat: int = 0,
    what: str | None = None,
) -> None:
    """Judge one minus a mean squared local correlation, and whether gradients flow through it.

    Args:
        function: `ncc(moved, fixed, window)`.
        shape: of both images, `(B, 1, *spatial)`, with an inverted contrast in a half of them.
        window: odd.
        seed: of the images.
        flat: rows of the fixed image, along its last axis but one, that have one value.

    Raises:
        AssertionError: it is not the student's own, or its value differs, or no gradient flows.
    """
    checks.by_hand(function, {"ncc_loss", "LocalNormalizedCrossCorrelationLoss"}, "the formula is above")
    a, b = _texture(shape, seed)
    b[..., :flat, :] = 0.25
    checks.agree(
        checks.call(function, a, b, window),
        losses.ncc_loss(a, b, window),
        what or f"ncc(moved, fixed, window={window})",
        _ncc_wrongly(a, b, window),
        atol=1e-4,
    )
    checks.gradient(function, a, b, window, what="ncc")


def _texture(shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Two related images with an inverted contrast in a half of them."""
    a, noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    sign = torch.where(torch.arange(shape[-1]) < shape[-1] // 2, 1.0, -0.7)
    return a, 0.5 + 0.4 * sign * a + 0.2 * noise


def _ncc_wrongly(a: Tensor, b: Tensor, window: int) -> dict[str, Tensor]:
    signed = _correlation(a, b, window)
    of_zeros_too = _correlation(a, b, window, inside=False).square().mean()
    of_products = _correlation(a, b, window, means=False).square().mean()
    whole = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    return {
        "the correlation is not squared: inverted contrast counts against the match": 1 - signed.mean(),
        "the correlation is not squared, only its sign is dropped": 1 - signed.abs().mean(),
        "that is a similarity, higher for a better match; a loss is 1 minus it": signed.square().mean(),
        "1 is missing: the loss of a perfect match is 0": -signed.square().mean(),
        "zeros outside of the image count: the border then correlates with everything (count_include_pad=False)": (
            1 - of_zeros_too
        ),
        "the means over the window are not subtracted: a product of means is part of each term": 1 - of_products,
        "the mean is squared, not the correlation": 1 - signed.mean().square(),
        f"the window is not used: 9 in place of {window}": 1 - _correlation(a, b, 9).square().mean(),
        "one correlation for the whole image: NCC is local here": 1 - whole**2,
        "a sum in place of a mean": 1 - signed.square().sum(),
    }


def _correlation(a: Tensor, b: Tensor, window: int, inside: bool = True, means: bool = True) -> Tensor:
    """Local correlation with its sign; `inside`: outer voxels do not count; `means`: they are subtracted."""
    pool = F.avg_pool2d if a.ndim == 4 else F.avg_pool3d

    def box(x: Tensor) -> Tensor:
        return pool(x, window, 1, window // 2, count_include_pad=not inside)

    a, b = a - a.mean(), b - b.mean()
    ab, aa, bb = (box(x * y) - means * box(x) * box(y) for x, y in ((a, b), (a, a), (b, b)))
    return ab / (aa.clamp(min=0) * bb.clamp(min=0) + 1e-8).sqrt()


def diffusion(
    function: Callable[..., Any],
    shape: Sequence[int],
    seed: int,
    offset: float = 0,
    what: str = "diffusion(field)",
) -> None:
    """Judge what is charged for differences between neighbours, and whether gradients flow through it.

    Args:
        function: `diffusion(field)`.
        shape: of the field, `(B, N, *spatial)`; in 2-D, mistakes are named.
        seed: of the field, whose components are normal numbers around `offset`.

    Raises:
        AssertionError: it is not the student's own, or its value differs, or no gradient flows.
    """
    checks.by_hand(function, {"diffusion_loss", "DiffusionLoss", "BendingEnergyLoss"}, "differences, squares, means")
    v = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
    mistakes = _diffusion_wrongly(v) if v.ndim == 4 else {}
    checks.agree(checks.call(function, v), losses.diffusion_loss(v), what, mistakes)
    checks.gradient(function, v, what="diffusion")


def _diffusion_wrongly(v: Tensor) -> dict[str, Tensor]:
    """What known mistakes make of a field in 2-D."""
    first, second = v.diff(dim=2), v.diff(dim=3)
    central = torch.gradient(v, dim=(2, 3))
    return {
        "the axes are added: the mean over the axes is half of that": first.square().mean() + second.square().mean(),
        "a sum in place of a mean": first.square().sum() + second.square().sum(),
        "a sum in place of a mean over the voxels": (first.square().sum() + second.square().sum()) / 2,
        "the differences are not squared": (first.abs().mean() + second.abs().mean()) / 2,
        "only the first axis is charged": first.square().mean(),
        "only the last axis is charged": second.square().mean(),
        "that charges the length of the vectors, not their differences": v.square().mean(),
        "differences between components and images of the batch are none between neighbours: the axes start at 2": (
            (v.diff(dim=0).square().mean() + v.diff(dim=1).square().mean()) / 2
        ),
        "second differences are the bending energy's": (
            (first.diff(dim=2).square().mean() + second.diff(dim=3).square().mean()) / 2
        ),
        "central differences see nothing of a field that alternates: take neighbours": (
            torch.stack([slope.square().mean() for slope in central]).mean()
        ),
    }


def soft_dice(
    function: Callable[..., Any], shape: Sequence[int], seed: int, what: str = "soft_dice(moved, fixed)"
) -> None:
    """Judge one minus a mean soft Dice, and whether gradients flow through it.

    Args:
        function: `soft_dice(moved, fixed)`.
        shape: of both memberships, `(B, L, *spatial)`; the last structure is in the first image of the batch only.
        seed: of the memberships.

    Raises:
        AssertionError: it is not the student's own, or its value differs, or no gradient flows.
    """
    checks.by_hand(function, {"soft_dice_loss", "DiceLoss", "GeneralizedDiceLoss"}, "the formula is above")
    a, b = _memberships(shape, seed)
    checks.agree(checks.call(function, a, b), losses.soft_dice_loss(a, b), what, _soft_dice_wrongly(a, b))
    checks.gradient(function, a, b, what="soft_dice")


def _memberships(shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Two of them; the last structure is in the first image of the batch only."""
    a, b = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)) ** 3
    a[1:, -1] = b[1:, -1] = 0
    a[:, 0] *= 0.3
    return a, b


def _soft_dice_wrongly(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    axes = tuple(range(2, a.ndim))
    both, sizes = (a * b).sum(axes), (a * a + b * b).sum(axes)
    scores = 2 * both / sizes
    plain = 2 * both / (a + b).sum(axes)
    return {
        "a factor of 2 is missing: two equal images should cost 0": 1 - scores.nanmean() / 2,
        "that is a score, higher for a better match; a loss is 1 minus it": scores.nanmean(),
        "the memberships in the denominator are not squared": 1 - plain.nanmean(),
        "a structure that neither image has counts as a miss: leave it out": 1 - scores.nan_to_num(0).mean(),
        "a structure that neither image has counts as a full match: leave it out": 1 - scores.nan_to_num(1).mean(),
        "a structure that neither image has is 0 / 0, and one nan spoils the mean: leave it out": 1 - scores.mean(),
        "all structures are added up before the division: small ones then count for nothing": (
            1 - 2 * both.sum() / sizes.sum()
        ),
        "the batch is added up before the division": 1 - (2 * both.sum(0) / sizes.sum(0)).mean(),
        "the sum over structures, not their mean": 1 - scores.nansum(),
        "one number for each image of the batch": 1 - scores.nanmean(dim=1),
    }


def schedule(function: Callable[..., Any], steps: int, warmup: int, highest: float, what: str | None = None) -> None:
    """Judge the learning rate of every step.

    Args:
        function: `learning_rate(step, steps, warmup, highest)`.
        steps: of the training.
        warmup: steps of these.
        highest: what both shares, of the warm-up and of the cosine, are multiplied by.

    Raises:
        AssertionError: the rates differ.
    """
    curve = [(1 + math.cos(math.pi * s / steps)) / 2 for s in range(steps)]
    rise = [min(1, (s + 1) / warmup) for s in range(steps)]
    checks.agree(
        [checks.call(function, s, steps, warmup, highest) for s in range(steps)],
        [highest * up * c for up, c in zip(rise, curve, strict=True)],
        what or f"learning_rate(step, {steps}, warmup={warmup}, highest={highest}) for every step",
        {
            mistake: [highest * wrong(s, rise[s], curve[s]) for s in range(steps)]
            for mistake, wrong in _wrong_rates(steps, warmup).items()
        },
        atol=1e-9,
    )


def _wrong_rates(steps: int, warmup: int) -> dict[str, Callable[[int, float, float], float]]:
    """By mistake, what it makes of a step, its share of the warm-up and its height on the curve."""
    left = max(1, steps - warmup)
    return {
        "the first step has a rate of 0, and is lost: (step + 1) / warmup": lambda s, up, c: min(1, s / warmup) * c,
        "the warm-up is missing": lambda s, up, c: c,
        "the warm-up does not end: no more than 1": lambda s, up, c: (s + 1) / warmup * c,
        "the half is missing: 1 + cos starts at 2": lambda s, up, c: up * 2 * c,
        "a cosine alone becomes negative, and the training climbs": lambda s, up, c: up * (2 * c - 1),
        "a whole period of the cosine: the rate rises again": lambda s, up, c: (
            up * (1 + math.cos(2 * math.pi * s / steps)) / 2
        ),
        "no cosine: the rate stays at its highest": lambda s, up, c: up,
        "the cosine should begin with the first step, not after the warm-up": lambda s, up, c: (
            up * (1 + math.cos(math.pi * max(0, s - warmup) / left)) / 2
        ),
    }


def step(
    function: Callable[..., Any],
    shape: Sequence[int],
    seed: int,
    smoothness: float,
    what: str = "(losses, weights) of three calls of training_step",
) -> None:
    """Judge three steps of training: their losses, and the weights after them.

    Args:
        function: `training_step(model, optimizer, moving, fixed, smoothness)`.
        shape: of the images, 2-D or 3-D.
        seed: of the network's weights and the images.
        smoothness: weight of the second term of the loss.

    Raises:
        AssertionError: the losses or the weights differ.
    """
    # s is the squared difference, v and u are the roughness of velocity and displacement, w is the weight.
    mistakes: dict[str, Callable[..., Any]] = {
        "the gradients of earlier steps are still there: zero_grad() before backward()": _training_step(
            _loss, clear=False
        ),
        "the weights do not change: optimizer.step()": _training_step(_loss, update=False),
        "the smoothness is not part of the loss": _training_step(lambda s, v, u, w: s),
        "the smoothness is not weighted": _training_step(lambda s, v, u, w: s + v),
        "the weight belongs to the smoothness, not to the similarity": _training_step(lambda s, v, u, w: w * s + v),
        "the displacement is smoothed; the loss names the velocity": _training_step(lambda s, v, u, w: s + w * u),
        "smoothness is rewarded: the sign of the second term": _training_step(lambda s, v, u, w: s - w * v),
    }
    checks.agree(
        checks.there(three_steps, function, shape, seed, smoothness),
        three_steps(_training_step(_loss), shape, seed, smoothness),
        what,
        {mistake: three_steps(wrong, shape, seed, smoothness) for mistake, wrong in mistakes.items()},
    )


def _loss(difference: Tensor, of_velocity: Tensor, of_displacement: Tensor, weight: float) -> Tensor:
    return difference + weight * of_velocity


def _training_step(
    loss: Callable[[Tensor, Tensor, Tensor, float], Tensor], *, clear: bool = True, update: bool = True
) -> Callable[..., float]:
    """A step whose loss is made of the squared difference, the roughness of velocity and displacement, and a weight."""

    def one(
        model: nn.Module, optimizer: torch.optim.Optimizer, moving: Tensor, fixed: Tensor, smoothness: float
    ) -> float:
        found = model(moving, fixed)
        rough, bent = losses.diffusion_loss(found.velocity), losses.diffusion_loss(found.displacement)
        value = loss(losses.ssd_loss(found.moved, fixed), rough, bent, smoothness)
        if clear:
            optimizer.zero_grad()
        value.backward()
        if update:
            optimizer.step()
        return value.item()

    return one
