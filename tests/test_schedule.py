"""How budgets become learning rates and steps."""

import pytest

from course_utils.schedule import half_cosine, share_out, warm_up


@pytest.mark.parametrize("steps", [0, 1, 7, 100])
@pytest.mark.parametrize("shares", [(1.0,), (0.4, 0.4, 0.2), (3, 0, 1)])
def test_the_shares_add_up_and_are_in_proportion(steps, shares):
    counts = share_out(steps, shares)
    assert sum(counts) == steps and min(counts) >= 0
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - steps * share / sum(shares)) <= 1


def test_a_half_cosine_falls_from_one_to_nothing_slowly_at_both_ends():
    assert (half_cosine(0), half_cosine(0.5), half_cosine(1)) == pytest.approx((1, 0.5, 0))
    assert half_cosine(0.01) > 0.999 and half_cosine(0.99) < 0.001


def test_the_warm_up_is_a_line_over_twenty_steps():
    assert [warm_up(step) for step in (0, 9, 19, 20, 500)] == [0.05, 0.5, 1.0, 1.0, 1.0]
