"""What judges try where the student's objects are: in a graded class, in the student's process.

None of it knows a right answer or compares anything; `course_utils.grading.judges`, which does, is hidden there.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils import networks
from course_utils.grading.checks import known_weights


def asked_backwards(
    make: Callable[..., Any], people: list[str], count: int, seed: int, wanted: int
) -> tuple[list[Any], bool]:
    """The first pairs of a new object, asked for in reverse, and whether that has left the global generators alone.

    Args:
        make: the student's class, of subjects, count and seed.
        people: names of subjects.
        count: of all pairs.
        seed: which pairs.
        wanted: how many are asked for.
    """
    np.random.seed(99)  # noqa: NPY002  the global state must not matter
    before = _global_generators()
    again = make(people, count, seed)
    backwards = [again[i] for i in reversed(range(wanted))][::-1]
    return backwards, _global_generators() == before


def _global_generators() -> tuple[Any, ...]:
    """The states of NumPy's, Python's and PyTorch's."""
    numbers = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    return numbers, random.getstate(), torch.get_rng_state().tolist()


def three_steps(
    step: Callable[..., Any], shape: Sequence[int], seed: int, smoothness: float
) -> tuple[list[Any], Tensor]:
    """The losses of three steps of training, and the weights after them.

    Args:
        step: `training_step(model, optimizer, moving, fixed, smoothness)`.
        shape: of the images, 2-D or 3-D.
        seed: of the network's weights and the images.
        smoothness: weight of the second term of the loss.
    """
    model = networks.VoxelMorph(len(shape), features=(3, 4), instance_norm=False)
    known_weights(model, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.rand(3, 2, 2, 1, *shape, generator=torch.Generator().manual_seed(seed))
    found = [step(model, optimizer, moving, fixed, smoothness) for moving, fixed in images]
    return found, torch.cat([p.detach().flatten() for p in model.parameters()])
