"""Assertions that teach: nothing but the right answer passes, and a known mistake is called by its name."""

import numpy as np
import pytest
import torch
from torch import nn

from course_utils import fields
from course_utils.grading import checks

FIELD = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))


class Agreeable:
    """Equals everything, is close to everything, has every attribute."""

    def __eq__(self, other):
        return True

    def __getattr__(self, name):
        return self

    def __call__(self, *arguments, **options):
        return self

    __hash__ = None


class Flattering(torch.Tensor):
    def __eq__(self, other):
        return torch.ones(self.shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (FIELD, FIELD + 1e-6),
        (FIELD, FIELD.double()),
        (np.ones(3), np.ones(3, dtype=np.float32)),
        (torch.tensor([True, False]), torch.tensor([True, False])),
        (np.arange(3.0), np.arange(3.0) + 1e-7),
        (0.5, np.float64(0.500001)),
        (3, 3.0),
        (float("nan"), float("nan")),
        ({1: 0.5, 2: float("nan")}, {2: float("nan"), 1: 0.5}),
        ([("a", "b")], [("a", "b")]),
        ((1, FIELD), (1, FIELD.clone())),
        (None, None),
        (torch.tensor([np.inf, np.nan]), torch.tensor([np.inf, np.nan])),
    ],
)
def test_the_right_answer_passes(value, same):
    checks.agree(same, value, "it")


@pytest.mark.parametrize(
    ("got", "expected", "says"),
    [
        (Agreeable(), FIELD, "should be a Tensor and is a Agreeable"),
        (Agreeable(), 1.0, "plain number"),
        ([Agreeable()], [1.0], "at [0] it should be a plain number"),
        (Agreeable(), "text", "should be a str"),
        ({1: Agreeable()}, {1: 0.5}, "at [1]"),
        (FIELD.as_subclass(Flattering), FIELD, "is a Flattering"),
        (nn.Parameter(FIELD), FIELD, "is a Parameter"),
        (None, FIELD, "is there a return?"),
        (None, 2.0, "is there a return?"),
        (torch.tensor(2.0), 2.0, ".item()"),
        (True, 1, "plain number and is a bool"),
        (FIELD.half(), FIELD, "should be torch.float32 and are torch.float16"),
        (torch.ones(3), torch.ones(3, dtype=torch.uint8), "should be torch.uint8 and are torch.float32"),
        (FIELD[0], FIELD, "should be (1, 2, 5, 5) and is (2, 5, 5): an axis of length 1"),
        (torch.ones(4, 3), torch.ones(3, 4), "the axes are in another order"),
        (torch.ones(4, 3, 2), torch.ones(3, 4), "2 axes are expected, not 3"),
        (torch.ones(()), torch.ones(3, 4), "shape"),
        (torch.ones(1), torch.ones(1, 1), "an axis of length 1"),
        (FIELD.flip(1), FIELD, "in reverse order"),
        (FIELD.mT.contiguous(), FIELD, "the last two axes are exchanged"),
        (-FIELD, FIELD, "the sign is the wrong way round"),
        (2 * FIELD, FIELD, "twice"),
        (FIELD / 2, FIELD, "half"),
        (50 * FIELD, FIELD, "a sum in place of a mean"),
        (3 * FIELD, FIELD, "3 times"),
        (FIELD / 0, FIELD, "NaN or infinite"),
        (0.25, 0.5, "half"),
        (FIELD + torch.eye(5)[0], FIELD, "10 of its 50 values differ; the furthest, at (0, "),
        ([1, 2], [1, 2, 3], "should have 3 items and has 2"),
        ((1, 2), [1, 2], "should be a list and is a tuple"),
        ({1: 2.0}, {1: 2.0, 3: 1.0}, "keys"),
        ("a", "b", "'b' and is 'a'"),
        (float("nan"), 1.0, "should be 1"),
        (1.0, float("nan"), "should be nan"),
        (FIELD[:, :1], FIELD, "shape"),  # would broadcast
    ],
)
def test_a_wrong_answer_is_described(got, expected, says):
    with pytest.raises(AssertionError) as error:
        checks.agree(got, expected, "the answer")
    assert str(error.value).startswith("the answer: ")
    assert says in str(error.value)


def test_a_known_mistake_is_named_before_anything_else():
    with pytest.raises(AssertionError, match=r"^u: the sign of u$"):
        checks.agree(-FIELD, FIELD, "u", {"another": FIELD + 1, "the sign of u": -FIELD})


def test_a_mistake_that_makes_no_difference_is_not_named():
    with pytest.raises(AssertionError) as error:
        checks.agree(FIELD + 1e-4 * torch.eye(5), FIELD, "u", {"no mistake here": FIELD}, atol=1e-5)
    assert "no mistake here" not in str(error.value)


def test_patched_comparisons_change_nothing(monkeypatch):
    agree = lambda *arguments, **options: True  # noqa: E731
    for name in ("allclose", "equal", "isclose"):
        monkeypatch.setattr(torch, name, agree)
    monkeypatch.setattr(np, "allclose", agree)
    monkeypatch.setattr(np, "isfinite", agree)
    monkeypatch.setattr(np, "asarray", lambda *arguments, **options: np.zeros(1))
    monkeypatch.setattr(torch.Tensor, "__eq__", agree)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.zeros(1))
    with pytest.raises(AssertionError):
        checks.agree(FIELD + 1, FIELD, "u")


def test_a_function_cannot_change_the_input_that_it_is_compared_on():
    def erase(image, options):
        options.clear()
        return image.zero_()

    image, options = torch.ones(3), {"keep": 1}
    assert checks.call(erase, image, options).sum() == 0
    assert image.sum() == 3
    assert options == {"keep": 1}


def warp(image, displacement):
    return image


def own(image, displacement):
    return image + displacement


def own_helper(image, displacement):
    return warp(image, displacement)


def through_the_library(image, displacement):
    return fields.warp(image, displacement)


def helper(image, displacement):
    return through_the_library(image, displacement)


def nested(image, displacement):
    return [fields.warp(i, displacement) for i in image]


alias = fields.warp


def through_an_alias(image, displacement):
    return alias(image, displacement)


def through_a_helper_of_that_name(image, displacement):
    return [warp(image, displacement), fields.warp(image, displacement)]


class Holder(nn.Module):
    def forward(self, image, displacement):
        return fields.warp(image, displacement)


@pytest.mark.parametrize(
    "function",
    [
        through_the_library,
        helper,
        nested,
        fields.warp,
        through_an_alias,
        through_a_helper_of_that_name,
        Holder,
    ],
)
def test_the_library_s_function_is_found_where_own_code_is_asked_for(function):
    with pytest.raises(AssertionError, match=r"your own code.*write it"):
        checks.by_hand(function, {"warp"}, "write it")


def test_own_code_is_let_through():
    checks.by_hand(own, {"warp"}, "write it")
    checks.by_hand(warp, {"warp"}, "write it")  # the student may call it so
    checks.by_hand(own_helper, {"warp"}, "write it")


def test_a_refusal_is_asked_for():
    def refuse(n):
        raise IndexError(n)

    checks.raises(IndexError, refuse, 3, what="refuse(3)")
    with pytest.raises(AssertionError, match="refused with a ValueError"):
        checks.raises(ValueError, abs, 3, what="abs(3)")
    with pytest.raises(IndexError):
        checks.raises(ValueError, refuse, 3, what="refuse(3)")


def test_known_weights_follow_from_the_seed_alone():
    torch.manual_seed(0)
    first = checks.known_weights(nn.Conv2d(2, 3, 3), seed=4)
    torch.manual_seed(9)
    second, other = checks.known_weights(nn.Conv2d(2, 3, 3), seed=4), checks.known_weights(nn.Conv2d(2, 3, 3), seed=5)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, other.weight)
