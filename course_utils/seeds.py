"""Seeds of the random numbers that belong to one step or one pair of a run."""

import numpy as np


def seed_of(seed: int, number: int, rank: int = 0) -> int:
    """A seed that follows from a run's seed and the number of a step or a pair, 0 to 2**32 - 1.

    Of several processes that share a step, each has one of its own; the first has that of a process alone.

    PyTorch's generator on the CPU keeps the lowest 32 bits of a seed only: the two must be mixed, not put side by side.
    """
    numbers = (seed, number, rank) if rank else (seed, number)
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
