"""Seeds differ where a run or a step differs, also to PyTorch's generator, which reads 32 bits of them."""

import torch

from course_utils.seeds import seed_of


def test_no_two_of_many_runs_and_steps_draw_the_same_numbers():
    seeds = [seed_of(seed, number) for seed in range(20) for number in (0, 1, 2, 1000, 2**31, 2**31 + 1)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
    drawn = {torch.rand((), generator=torch.Generator().manual_seed(seed)).item() for seed in seeds}
    assert len(drawn) == len(seeds)
    assert seed_of(3, 7) == seed_of(3, 7)
