"""Instance optimisation: the velocity field of one pair, found by gradient descent, coarse to fine.

A network answers in one pass with what it learnt from many pairs. For a pair that matters, its velocity is a start that
a few dozen gradient steps improve; from zero the same steps register without any network.

Sources: Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (stationary velocities,
multi-resolution); Balakrishnan et al., IEEE TMI 38(8), 2019, section V-E (instance-specific optimisation).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import losses
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration
from course_utils.objectives import NCC, Batch, Model, Objective, PairObjective, Similarity
from course_utils.schedule import half_cosine, share_out

RESOLUTIONS = ((4, 0.3), (2, 0.35), (1, 0.35))
"""How many times coarser than the images each level is, and its share of the iterations."""
FURTHER = ((2, 0.6), (1, 0.4))
"""The same where a network has begun: coarser levels know less than it does, and would throw its lead away."""
LARGEST_LEVEL = 2**21
"""Voxels. A step at the full resolution of a brain of 1 mm takes seconds."""
VELOCITY = 4
"""How many times coarser than the images the optimised velocity is: a grid too coarse for what a fold needs."""
START = 2
"""How many times coarser than the images the velocity is that it begins with: what networks of half resolution give."""
SMALLEST = 8
"""Voxels along an axis below which a level gets no coarser."""
LEARNING_RATE = 0.4
"""Adam's at the start of each level, in voxels of the velocity; it falls to 0 on a half cosine."""
FURTHER_RATE = 0.1
"""The same where a network has begun."""
FROM_ZERO = 3.0
"""How many times the weight of the change's smoothness is where nothing has begun: it is the whole deformation then."""
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
    """What `optimise` minimises unless told otherwise: a similarity, and a smooth change.

    Args:
        similarity: a term; None is the local correlation of the images and of their edges.
        smoothness: weight of the change's diffusion loss; None takes the similarity's default for refinement.
    """
    similarity = NCC(edges=1.0) if similarity is None else similarity
    weight = similarity.refinement if smoothness is None else smoothness
    return PairObjective({"similarity": (1.0, similarity), "regularisation": (weight, ChangeRegularisation())})


def optimise(
    moving: Tensor,
    fixed: Tensor,
    objective: Objective | None = None,
    start: Tensor | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    iterations: int = 100,
    levels: Sequence[tuple[float, float]] | None = None,
) -> Registration:
    """Improve the velocity of one pair by Adam on an objective, never to a higher loss at the finest level.

    What is optimised is the change of the velocity from its start, at a quarter of the images' resolution: a coarse
    grid is itself a regulariser, and what a network knows beyond it (from labels, say) stays.

    Args:
        moving: `(1, 1, *spatial)`, 2-D or 3-D, intensities from 0 to 1.
        fixed: on the same grid.
        objective: what is minimised; None is `instance_objective()`, smoother where there is no start. At every level
            it is called with a model that answers with the registration as it stands, whose extra `change` is the
            optimised field.
        start: velocity where to begin, `(1, N, *spatial)` voxels; None begins with zero.
        masks: `moving_mask` and `fixed_mask`, either or both, of the images' shape: 1 where a voxel counts in the
            similarity, 0 where not.
        iterations: steps at most, shared out to the levels; the finest ends where nothing is gained any more.
        levels: as `RESOLUTIONS`; `[(1, 1.0)]` is a single one. None takes `RESOLUTIONS`, or `FURTHER` with a start,
            without those that would have more than `LARGEST_LEVEL` voxels.

    Returns:
        The registration, without gradients.
    """
    spatial = moving.shape[2:]
    if objective is None:
        smoothness = None if start is not None else FROM_ZERO * NCC.refinement
        objective = instance_objective(smoothness=smoothness)
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors born in inference mode know no gradients, their copies do.
        moving, fixed = moving.clone(), fixed.clone()
        # Without a start the velocity is what its change is, and need not be finer.
        begun = None if start is None else resize(start.clone(), _coarser(spatial, START))
        change = moving.new_zeros(1, len(spatial), *_coarser(spatial, VELOCITY)).requires_grad_()
        voxels = change[0, 0].numel()

        def current() -> Tensor:
            return change if begun is None else begun + resize(change, begun.shape[2:])

        def register(moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
            velocity = current()
            displacement = resize(integrate(velocity), moving.shape[2:])
            return Registration(warp(moving, displacement), displacement, velocity, {"change": change})

        rate = LEARNING_RATE if start is None else FURTHER_RATE
        if levels is None:
            choice = RESOLUTIONS if start is None else FURTHER
            levels = [level for level in choice if math.prod(_coarser(spatial, level[0])) <= LARGEST_LEVEL]
        counts = share_out(iterations, [share for _, share in levels])
        best, lowest = torch.zeros_like(change), math.inf
        for level, ((factor, _), steps) in enumerate(zip(levels, counts, strict=True), start=1):
            if not iterations:
                break
            shape = _coarser(spatial, factor)
            batch = {
                name: F.interpolate(image, size=shape, mode="area")
                for name, image in {"moving": moving, "fixed": fixed, **(masks or {})}.items()
            }
            optimizer = torch.optim.Adam([change], rate, betas=(0.9, 0.99), eps=EPSILON)
            gained = 0
            # Losses of two levels are of different images: only those of the finest are compared, its start included.
            if level == len(levels):
                lowest = _loss_of(objective, register, batch, change, best)
            for step in range(steps + 1):
                loss = objective(register, batch).loss
                if level == len(levels) and loss.item() < lowest:
                    gained = step if loss.item() < lowest - GAIN * abs(lowest) else gained
                    best, lowest = change.detach().clone(), loss.item()
                if step == steps or (level == len(levels) and step - gained >= max(PATIENCE, steps // 2)):
                    break
                optimizer.param_groups[0]["lr"] = rate * half_cosine(step / steps)
                optimizer.zero_grad()
                (loss * voxels).backward()
                optimizer.step()
        change = best
    with torch.no_grad():
        # Integrated again at full resolution, where exp(-v) undoes exp(v) best.
        velocity = resize(current(), spatial)
        displacement = integrate(velocity)
        return Registration(warp(moving, displacement), displacement, velocity)


def _coarser(spatial: Sequence[int], factor: float) -> list[int]:
    return [min(n, max(SMALLEST, math.ceil(n / factor))) for n in spatial]


def _loss_of(objective: Objective, model: Model, batch: Batch, change: Tensor, value: Tensor) -> float:
    """The loss that a value of the change has; the change is left as it was."""
    with torch.no_grad():
        kept = change.clone()
        change.copy_(value)
        loss = objective(model, batch).loss.item()
        change.copy_(kept)
    return loss
