"""Instance optimisation: the velocity field of one pair, found by gradient descent, coarse to fine.

A network answers in one pass with what it learnt from many pairs. For a pair that matters, its velocity is a start that
a few dozen gradient steps improve; from zero the same steps register without any network.

Sources: Vercauteren et al., Symmetric log-domain diffeomorphic registration, MICCAI 2008 (stationary velocities,
multi-resolution); Balakrishnan et al., IEEE TMI 38(8), 2019, section V-E (instance-specific optimisation).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import losses
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration

SIMILARITIES = {"ncc": losses.ncc_loss, "ssd": losses.ssd_loss}
SMOOTHNESS = {"ncc": 1.0, "ssd": 0.2}
"""Weight of the diffusion loss where the user gives none."""
LEVELS = ((4, 0.4), (2, 0.4), (1, 0.2))
"""How many times coarser than the images each level is, and its share of the iterations."""
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
EPSILON = 0.1
"""Adam's: gradients far below it (of the sum over the velocity's voxels) move nothing, where Adam alone would follow
the noise of a flat background at full speed."""


def optimise(
    moving: Tensor,
    fixed: Tensor,
    velocity: Tensor | None = None,
    *,
    iterations: int = 100,
    similarity: str = "ncc",
    smoothness: float | None = None,
    levels: Sequence[tuple[float, float]] | None = None,
) -> Registration:
    """Improve the velocity of one pair by Adam on the similarity, with a smooth change.

    What is optimised is the change of the velocity from its start, at a quarter of the images' resolution: a coarse
    grid is itself a regulariser, and what a network knows beyond it (from labels, say) stays.

    Args:
        moving, fixed: ``(1, 1, *spatial)``, 2-D or 3-D, on one grid, intensities from 0 to 1.
        velocity: where to begin, ``(1, N, *spatial)`` voxels; None begins with zero.
        iterations: steps, shared out to the levels.
        similarity: ``"ncc"`` or ``"ssd"``.
        smoothness: weight of the change's diffusion loss; None takes the similarity's default (:data:`SMOOTHNESS`).
        levels: as :data:`LEVELS`; ``[(1, 1.0)]`` is a single one. None takes :data:`LEVELS` without those that would
            have more than :data:`LARGEST_LEVEL` voxels.

    Returns:
        The registration, without gradients.
    """
    spatial = moving.shape[2:]
    compare = SIMILARITIES[similarity]
    weight = SMOOTHNESS[similarity] if smoothness is None else smoothness
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors born in inference mode know no gradients, their copies do.
        moving, fixed = moving.clone(), fixed.clone()
        # Without a start the velocity is what its change is, and need not be finer.
        begun = None if velocity is None else resize(velocity.clone(), _coarser(spatial, START))
        change = moving.new_zeros(1, len(spatial), *_coarser(spatial, VELOCITY)).requires_grad_()
        voxels = change[0, 0].numel()

        def current() -> Tensor:
            return change if begun is None else begun + resize(change, begun.shape[2:])

        if levels is None:
            levels = [level for level in LEVELS if math.prod(_coarser(spatial, level[0])) <= LARGEST_LEVEL]
        for factor, steps in _schedule(levels, iterations):
            shape = _coarser(spatial, factor)
            source, target = (F.interpolate(image, size=shape, mode="area") for image in (moving, fixed))
            optimizer = torch.optim.Adam([change], LEARNING_RATE, betas=(0.9, 0.99), eps=EPSILON)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
                moved = warp(source, resize(integrate(current()), shape))
                loss = compare(moved, target) + weight * losses.diffusion_loss(change)
                optimizer.zero_grad()
                (loss * voxels).backward()
                optimizer.step()
    with torch.no_grad():
        # Integrated again at full resolution, where exp(-v) undoes exp(v) best.
        velocity = resize(current(), spatial)
        displacement = integrate(velocity)
        return Registration(warp(moving, displacement), displacement, velocity)


def _coarser(spatial: Sequence[int], factor: float) -> list[int]:
    return [min(n, max(SMALLEST, math.ceil(n / factor))) for n in spatial]


def _schedule(levels: Sequence[tuple[float, float]], iterations: int) -> list[tuple[float, int]]:
    """Whole steps for every level that add up."""
    factors, shares = zip(*levels, strict=True)
    ends = [round(iterations * done / sum(shares)) for done in itertools.accumulate(shares, initial=0)]
    return [(factor, end - begin) for factor, (begin, end) in zip(factors, itertools.pairwise(ends), strict=True)]
