"""Instance optimisation: the velocity field of one pair, found by gradient descent, coarse to fine.

A network answers in one pass with what it learnt from many pairs. For a pair that matters, its velocity is a start that
a few dozen gradient steps improve; from zero the same steps register without any network.

Sources: Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (stationary velocities,
multi-resolution); Balakrishnan et al., IEEE TMI 38(8), 2019, section V-E (instance-specific optimisation).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import losses
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration
from course_utils.objectives import NCC, Batch, Objective, PairObjective, Similarity
from course_utils.schedule import half_cosine, share_out


@dataclass(frozen=True)
class Descent:
    """How `optimise` seeks the velocity of a pair.

    Attributes:
        levels: How many times coarser than the images each level is, and its share of the iterations.
        coarseness: How many times coarser than the images what is optimised is: too coarse for what a fold needs.
        rate: Adam's at the start of each level, in voxels of the velocity; it falls to 0 on a half cosine.
        window: Of the local correlation, voxels.
        smoothness: What the similarity's weight of the smoothness is multiplied with.
    """

    levels: Sequence[tuple[float, float]]
    coarseness: float
    rate: float
    window: int
    smoothness: float


FROM_ZERO = Descent(((4, 0.3), (2, 0.35), (1, 0.35)), coarseness=4, rate=0.4, window=9, smoothness=1.0)
FURTHER = Descent(((2, 0.6), (1, 0.4)), coarseness=3, rate=0.3, window=7, smoothness=1 / 3)
"""Where a network has begun: coarser levels know less than it does, and steps as large would throw its lead away.
What is left to change is finer than what it has found, and not the whole deformation."""
LARGEST_LEVEL = 2**21
"""Voxels. A step at the full resolution of a brain of 1 mm takes seconds."""
START = 2
"""How many times coarser than the images the velocity is that it begins with: what networks of half resolution give."""
STRIDE = 0.5
"""Voxels that a velocity may go in the time that squaring begins with, while it descends from a start; the result is
integrated in smaller ones. Source: Vercauteren et al., 2008."""
SMALLEST = 8
"""Voxels along an axis below which a level gets no coarser."""
PATIENCE = 20
"""Steps without gain at the finest level, or half of its steps if that is more, after which it ends: Adam's first
steps, at its highest rate, may climb before they descend."""
GAIN = 1e-4
"""What counts as a gain, of the loss."""
EPSILON = 0.1
"""Adam's: gradients far below it (of the sum over the velocity's voxels) move nothing, where Adam alone would follow
the noise of a flat background at full speed."""


@dataclass(frozen=True)
class ChangeRegularisation:
    """Diffusion loss of the change of the velocity from its start, which instance optimisation gives as an extra."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, registration: Registration, batch: Batch) -> Tensor:
        """See `objectives.Term`."""
        return losses.diffusion_loss(registration.extras["change"])


def instance_objective(similarity: Similarity | None = None, smoothness: float | None = None) -> PairObjective:
    """What `optimise` minimises, from zero and unless told otherwise: a similarity, and a smooth change.

    Args:
        similarity: a term; None is the local correlation of the images and of their edges.
        smoothness: weight of the change's diffusion loss; None takes the similarity's default for refinement.
    """
    similarity = NCC(FROM_ZERO.window, edges=1.0) if similarity is None else similarity
    weight = similarity.refinement if smoothness is None else smoothness
    return PairObjective({"similarity": (1.0, similarity), "regularisation": (weight, ChangeRegularisation())})


def optimise(
    moving: Tensor,
    fixed: Tensor,
    objective: Objective | None = None,
    start: Tensor | None = None,
    *,
    similarity: Similarity | None = None,
    masks: Mapping[str, Tensor] | None = None,
    iterations: int = 100,
    levels: Sequence[tuple[float, float]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Registration:
    """Improve the velocity of one pair by Adam on an objective, never to a higher loss at the finest level.

    What is optimised is the change of the velocity from its start, at a quarter of the resolution or, with a start, at
    a third: a coarse grid is itself a regulariser, and what a network knows beyond it (from labels, say) stays.

    Args:
        moving: `(1, 1, *spatial)`, 2-D or 3-D, intensities from 0 to 1.
        fixed: on the same grid.
        objective: what is minimised; None is `instance_objective()`, less smooth and finer with a start. At every level
            it is called with a model that answers with the registration as it stands, whose extra `change` is the
            optimised field.
        similarity: what is compared where there is no objective; None is the local correlation of the images and of
            their edges, which asks for one contrast. `MI()` and `MIND()` ask for none.
        start: velocity where to begin, `(1, N, *spatial)` voxels; None begins with zero.
        masks: `moving_mask` and `fixed_mask`, either or both, of the images' shape: 1 where a voxel counts in the
            similarity, 0 where not.
        iterations: steps at most, shared out to the levels; the finest ends where nothing is gained any more.
        levels: as `Descent.levels`; `[(1, 1.0)]` is a single one. None takes those of `FROM_ZERO`, or of `FURTHER` with
            a start, without those that would have more than `LARGEST_LEVEL` voxels; where none is left, the coarsest.
        progress: called before each step and at the end with the share of the work that is done, 0 to 1: a step counts
            as its level's voxels do, and the finest level may end early.

    Returns:
        The registration, without gradients.
    """
    spatial = moving.shape[2:]
    descent = FROM_ZERO if start is None else FURTHER
    if objective is None:
        similarity = NCC(descent.window, edges=1.0) if similarity is None else similarity
        objective = instance_objective(similarity, descent.smoothness * similarity.refinement)
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors born in inference mode know no gradients, their copies do.
        moving, fixed = moving.clone(), fixed.clone()
        # Without a start the velocity is what its change is, and need not be finer.
        begun = None if start is None else resize(start.clone(), _coarser(spatial, START))
        change = moving.new_zeros(1, len(spatial), *_coarser(spatial, descent.coarseness)).requires_grad_()

        def current() -> Tensor:
            return change if begun is None else begun + resize(change, begun.shape[2:])

        def register(moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
            velocity = current()
            # On the coarse grid of a change alone squarings cost nothing that is worth sparing.
            found = integrate(velocity) if begun is None else integrate(velocity, _squarings(velocity))
            displacement = resize(found, moving.shape[2:])
            return Registration(warp(moving, displacement), displacement, velocity, {"change": change})

        if levels is None:
            fitting = [level for level in descent.levels if math.prod(_coarser(spatial, level[0])) <= LARGEST_LEVEL]
            levels = fitting or FROM_ZERO.levels[:1]

        def loss_at(factor: float) -> Callable[[], Tensor]:
            batch = {
                name: F.interpolate(image, size=_coarser(spatial, factor), mode="area")
                for name, image in {"moving": moving, "fixed": fixed, **(masks or {})}.items()
            }
            return lambda: objective(register, batch).loss

        counts = share_out(iterations, [share for _, share in levels])
        work = [steps * math.prod(_coarser(spatial, factor)) for (factor, _), steps in zip(levels, counts, strict=True)]

        def tell(level: int, step: int) -> None:
            if progress is not None:
                progress((sum(work[:level]) + work[level] * step / max(counts[level], 1)) / max(sum(work), 1))

        for level, ((factor, _), steps) in enumerate(zip(levels[:-1], counts[:-1], strict=True)):
            for step, _ in enumerate(_descend(loss_at(factor), change, steps, descent.rate)):
                tell(level, step)
        if iterations:
            last = len(levels) - 1
            change = _least(loss_at(levels[-1][0]), change, counts[-1], descent.rate, partial(tell, last))
            tell(last, counts[-1])
    with torch.no_grad():
        # Integrated again at full resolution, where exp(-v) undoes exp(v) best.
        velocity = resize(current(), spatial)
        displacement = integrate(velocity)
        return Registration(warp(moving, displacement), displacement, velocity)


def _squarings(velocity: Tensor) -> int:
    """How often the time is halved until nothing goes further than `STRIDE` in it."""
    furthest = velocity.detach().square().sum(1).max().sqrt().item()
    # What is not finite has a loss that is not, however it is integrated.
    return math.ceil(math.log2(max(furthest, STRIDE) / STRIDE)) if math.isfinite(furthest) else 0


def _coarser(spatial: Sequence[int], factor: float) -> list[int]:
    return [min(n, max(SMALLEST, math.ceil(n / factor))) for n in spatial]


def _descend(loss: Callable[[], Tensor], change: Tensor, steps: int, rate: float) -> Iterator[float]:
    """Adam's steps on `change`, in place; the loss before each of them and after the last."""
    voxels = change[0, 0].numel()
    optimizer = torch.optim.Adam([change], rate, betas=(0.9, 0.99), eps=EPSILON)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * half_cosine(step / steps)
        optimizer.zero_grad()
        value = loss()
        yield value.item()
        (value * voxels).backward()
        optimizer.step()
    with torch.no_grad():
        last = loss().item()
    yield last


def _least(loss: Callable[[], Tensor], change: Tensor, steps: int, rate: float, tell: Callable[[int], None]) -> Tensor:
    """The change of the least loss that a descent from `change` meets, or no change where that has less.

    `tell` is called with the number of each step.
    """
    best = torch.zeros_like(change)
    with torch.no_grad():
        reached = change.clone()
        change.copy_(best)
        least = loss().item()
        change.copy_(reached)
    gained = 0
    for step, value in enumerate(_descend(loss, change, steps, rate)):
        tell(step)
        if value < least - GAIN * abs(least):
            gained = step
        if value < least:
            best, least = change.detach().clone(), value
        if step - gained >= max(PATIENCE, steps // 2):
            break
    return best
