"""Seeds of the random numbers that belong to one step or one pair of a run."""

import numpy as np


def seed_of(seed: int, number: int) -> int:
    """A seed that follows from a run's seed and the number of a step or a pair, 0 to 2**32 - 1.

    PyTorch's generator on the CPU keeps the lowest 32 bits of a seed only: the two must be mixed, not put side by side.
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
