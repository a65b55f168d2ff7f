"""Networks that depend on numbers beside their images: norms against a reference, batches, swaps, checkpoints."""

import pytest
import torch
from torch.testing import assert_close

from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.fields import compose
from course_utils.losses import diffusion_loss
from course_utils.networks import NetworkSpec, SmoothnessRange
from course_utils.networks.film import CODE, USUAL, ConditionalNorm, Conditioning
from tests.networks.small import SIZES, both, images, predicted, small

names = pytest.mark.parametrize("name", ["voxelmorph", "pyramid", "inception", "swin"])


def conditioned(name, dims, conditions=1, **options):
    """A small network that moves something, and more of it for one condition than for another."""
    network = small(name, dims, amplitude=3.0, instance_norm=True, conditions=conditions, **options)
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, ConditionalNorm):
            torch.nn.init.normal_(module.film.weight, std=0.3)
    return network


# --- the layers -------------------------------------------------------------------------------------------------------


@both
def test_a_conditional_norm_is_scale_and_shift_of_what_has_mean_0_and_deviation_1(dims):
    torch.manual_seed(0)
    norm, x, code = ConditionalNorm(3), torch.randn(2, 3, *SIZES[dims]) * 5 + 2, torch.randn(2, CODE)
    torch.nn.init.normal_(norm.film.weight)
    found = norm(x, code)
    for pair in range(2):
        numbers = norm.film.weight @ code[pair] + norm.film.bias
        for channel in range(3):
            values = x[pair, channel]
            expected = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            expected = numbers[channel] * expected + numbers[3 + channel]
            assert_close(found[pair, channel], expected, rtol=1e-4, atol=1e-4)


def test_a_new_conditional_norm_is_an_instance_norm_whatever_the_code():
    torch.manual_seed(0)
    x, code = torch.randn(2, 2, 9, 8), torch.rand(2, CODE)
    assert_close(ConditionalNorm(2)(x, code), torch.nn.InstanceNorm2d(2)(x), rtol=0, atol=0.1)


def test_a_condition_that_is_left_out_is_the_usual_one():
    conditioning = Conditioning(2)
    assert_close(conditioning(None, 3), conditioning(torch.full((3, 2), 0.5), 3), rtol=0, atol=0)
    conditioning.usual.copy_(torch.tensor([0.1, 0.8]))
    assert_close(conditioning(None, 1), conditioning(torch.tensor([[0.1, 0.8]]), 1), rtol=0, atol=0)


# --- networks ---------------------------------------------------------------------------------------------------------


@both
@names
@pytest.mark.parametrize("antisymmetric", [False, True], ids=["one way", "antisymmetric"])
def test_each_pair_of_a_batch_has_its_own_condition(name, dims, antisymmetric):
    network = conditioned(name, dims, conditions=2, antisymmetric=antisymmetric)
    moving, fixed = images(SIZES[dims], batch=3)
    conditions = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.9, 0.2]])
    together = predicted(network(moving, fixed, conditions))
    for i in range(3):
        alone = predicted(network(moving[i : i + 1], fixed[i : i + 1], conditions[i : i + 1]))[0]
        assert_close(together[i], alone, rtol=0, atol=1e-4)
        other = predicted(network(moving[i : i + 1], fixed[i : i + 1], 1 - conditions[i : i + 1]))[0]
        if i != 1:  # whose condition is the middle
            assert (other - alone).abs().max() > 0.05
    assert_close(together[1], predicted(network(moving, fixed))[1], rtol=0, atol=1e-4)  # the usual one


@both
@names
def test_an_antisymmetric_network_stays_so_for_every_condition(name, dims):
    network = conditioned(name, dims, antisymmetric=True)
    moving, fixed = images(SIZES[dims], batch=2)
    condition = torch.tensor([[0.1], [0.8]])
    there, back = network(moving, fixed, condition), network(fixed, moving, condition)
    largest = there.velocity.abs().max()
    assert largest > 1
    assert_close(there.velocity, -back.velocity, rtol=0, atol=1e-4)
    # What is left is of the grid, and grows with what moves; a network that moves 4 voxels has less than 0.1 of it.
    assert compose(there.displacement, back.displacement).abs().mean() < 0.025 * largest
    assert network(fixed, fixed, condition).displacement.abs().max() < 1e-4


@both
@names
def test_all_of_a_conditioned_network_learns_and_the_condition_gets_a_gradient(name, dims):
    network = conditioned(name, dims).train()
    moving, fixed = images(SIZES[dims], batch=2)
    condition = torch.tensor([[0.2], [0.7]], requires_grad=True)
    diffusion_loss(predicted(network(moving, fixed, condition))).backward()
    assert (condition.grad.abs() > 0).all()
    learnt = [p for key, p in network.named_parameters() if key.startswith("conditioning") or ".film." in key]
    assert len(learnt) > 6 and all(p.grad.abs().max() > 0 for p in learnt)


@names
def test_without_conditions_nothing_of_a_network_has_changed(name):
    plain, conditional = (NetworkSpec(name, {"spatial_dims": 2, "conditions": n}).build() for n in (0, 1))
    assert not [key for key in plain.state_dict() if "film" in key or "conditioning" in key]
    assert USUAL in conditional.state_dict()
    norms = [key for key in plain.state_dict() if key.endswith("1.weight") and plain.state_dict()[key].ndim == 1]
    assert norms  # the instance norms of its blocks are where they were


@names
def test_a_condition_that_does_not_fit_is_refused(name):
    moving, fixed = images(SIZES[2], batch=2)
    with pytest.raises(ValueError, match=r"of shape \(2, 1\), not \(1, 2\)"):
        conditioned(name, 2)(moving, fixed, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="takes no condition"):
        small(name, 2)(moving, fixed, torch.zeros(2, 1))
    with pytest.raises(CourseError, match="above 0 only with instance_norm"):
        NetworkSpec(name, {"spatial_dims": 2, "conditions": 1, "instance_norm": False}).build()


# --- weights of the smoothness ----------------------------------------------------------------------------------------


def test_equal_steps_in_a_range_are_equal_ratios():
    weights = SmoothnessRange(0.1, 10.0)
    assert [weights.position(w) for w in (0.1, 1.0, 10.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert weights.middle == pytest.approx(1.0) and weights.weight(0.75) == pytest.approx(10**0.5)
    assert weights.position(weights.weight(0.3)) == pytest.approx(0.3)
    for low in torch.linspace(0.1, 0.9, 30).tolist():  # rounding leads out of no range
        assert SmoothnessRange(low, 7.3).position(SmoothnessRange(low, 7.3).weight(1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)])
def test_what_is_no_range_is_refused(low, high):
    with pytest.raises(CourseError, match="no range of weights: give the smaller one, above 0"):
        SmoothnessRange(low, high)


@pytest.mark.parametrize("weight", [0.09, 11.0, -1.0, float("nan")])
def test_a_weight_outside_of_the_range_is_refused(weight):
    with pytest.raises(CourseError, match=r"smoothness .* is outside of what .* trained for, 0.1 to 10"):
        SmoothnessRange(0.1, 10.0).position(weight)


def stored(name="pyramid", told={"term": "AnySmoothness", "low": 0.1, "high": 10.0}):  # noqa: B006, never changed
    network = conditioned(name, 2)
    card = DataCard("none", {}, Recipe(SIZES[2], (1.0, 1.0), aligned=True))
    return Checkpoint(network.spec, network.state_dict(), card, {} if told is None else {"smoothness": told})


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_checkpoint_remembers_its_range_and_the_weight_that_was_chosen(ending, tmp_path):
    checkpoint = stored()
    assert checkpoint.smoothness == pytest.approx(1.0) and checkpoint.smoothness_range == SmoothnessRange(0.1, 10.0)
    assert checkpoint.at(None) is checkpoint
    checkpoint.at(0.3).save(tmp_path / f"network.{ending}")
    again = Checkpoint.load(tmp_path / f"network.{ending}")
    assert again.smoothness == pytest.approx(0.3, rel=1e-2)
    assert checkpoint.smoothness == pytest.approx(1.0)  # the other is a copy
    moving, fixed = images(SIZES[2])
    told = checkpoint.model()(moving, fixed, torch.tensor([[SmoothnessRange(0.1, 10.0).position(0.3)]]))
    assert_close(again.model()(moving, fixed).displacement, told.displacement, rtol=0, atol=0.05)
    assert (again.at(9.0).model()(moving, fixed).displacement - told.displacement).abs().max() > 0.1


def test_a_network_for_one_weight_answers_for_no_other():
    assert stored(told=None).smoothness is None
    with pytest.raises(CourseError, match="trained for one weight of the smoothness: leave --smoothness out"):
        stored(told=None).at(1.0)
    with pytest.raises(CourseError, match="outside"):
        stored().at(20.0)
