"""How a run's budget becomes learning rates and steps."""

import itertools
import math
from collections.abc import Sequence

WARM_UP = 20
"""Steps over which the learning rate rises from next to nothing."""


def half_cosine(progress: float) -> float:
    """From 1 at the beginning to 0 at the end of a budget, slowly at both; `progress` is 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warm_up(step: int) -> float:
    """What the learning rate of a step (the first is 0) is multiplied with: a line up to 1 over `WARM_UP` steps."""
    return min(1.0, (step + 1) / WARM_UP)


def share_out(steps: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of steps, in proportion to `shares`, that add up to `steps`."""
    total = sum(shares)
    ends = [round(steps * done / total) for done in itertools.accumulate(shares, initial=0)]
    return [end - begin for begin, end in itertools.pairwise(ends)]
