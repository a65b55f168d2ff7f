"""The way back: what is judged on it, what it lets through, and what training makes of it."""

import math

import pytest
import torch
from torch.testing import assert_close

from course_utils import fields
from course_utils.errors import CourseError
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import NetworkSpec, Registration
from course_utils.objectives import Cycle, CycleMorph, pair_objective
from course_utils.objectives.cycle import homewards
from course_utils.training import TrainConfig
from tests.test_painted import moving_network
from tests.test_two_directions import batch, both
from tests.training.test_seams import batch_of, train


def shifting(*shift):
    """A method that answers with the same displacement whatever it is shown."""
    u = torch.tensor(shift)

    def model(moving, fixed, condition=None):
        displacement = u.view(1, -1, *[1] * len(shift)).expand(len(moving), -1, *moving.shape[2:])
        return Registration(fields.warp(moving, displacement), displacement)

    return model


@both
def test_what_belongs_to_the_images_goes_home_with_them(shape):
    pairs = batch(shape)
    pairs |= {"moving_mask": pairs["moving"] * 0.5, "fixed_mask": pairs["fixed"] * 0.5, "name": ["a", "b"]}
    there = shifting(2.0, *[0.0] * (len(shape) - 1))(pairs["moving"], pairs["fixed"])
    back = homewards(there, pairs)
    assert back.keys() == pairs.keys() and back["name"] == ["a", "b"]
    for of in ("", "_label", "_mask"):
        assert back[f"fixed{of}"] is pairs[f"moving{of}"]
        # moved(x) = moving(x + 2): all but the last two rows are known
        assert_close(back[f"moving{of}"][:, :, :-2], pairs[f"moving{of}"][:, :, 2:], check_dtype=False)
    assert (back["moving_label"][:, :, -2:] == 0).all() and (back["moving_mask"][:, :, -2:] == 0).all()
    assert not any(
        key.endswith(("label", "mask")) for key in homewards(there, {k: pairs[k] for k in ("moving", "fixed")})
    )


@both
@pytest.mark.parametrize("coarseness", [1, 2])
def test_the_network_is_judged_on_its_own_output_too(shape, coarseness):
    """Against the same written out; the gradient reaches the first registration through the second."""
    network, pairs = moving_network("voxelmorph", shape, integration_steps=0).train(), batch(shape)
    outcome = Cycle(pair_objective("ssd", smoothness=0.3, coarseness=coarseness))(network, pairs)
    there = network(pairs["moving"], pairs["fixed"])
    back = network(there.moved, pairs["moving"])
    costs = []
    for found, moving, fixed in ((there, pairs["moving"], pairs["fixed"]), (back, there.moved, pairs["moving"])):
        u = found.displacement
        if coarseness == 2:
            u = found.coarser(fields.pool(moving, 2), 2).displacement
            moving, fixed = fields.pool(moving, 2), fields.pool(fixed, 2)
        costs.append(ssd_loss(fields.warp(moving, u), fixed) + 0.3 * diffusion_loss(u))
    assert abs(costs[0] - costs[1]) > 0.02 * costs[0]
    assert_close(outcome.loss, (costs[0] + costs[1]) / 2)
    assert_close(outcome.registration.displacement, there.displacement)
    wanted = torch.autograd.grad((costs[0] + costs[1]) / 2, list(network.parameters()))
    for mine, right in zip(torch.autograd.grad(outcome.loss, list(network.parameters())), wanted, strict=True):
        assert_close(mine, right, rtol=1e-3, atol=1e-6)


@both
def test_labels_are_carried_back(shape):
    """Where one shift undoes the other, the labels overlap at home; by the wrong labels they would not."""
    pairs = batch(shape)
    shift = [3.0] + [0.0] * (len(shape) - 1)
    pair = pair_objective("ssd", smoothness=0.0, dice_weight=1.0, labels=(1, 2))
    there = shifting(*shift)(pairs["moving"], pairs["fixed"])
    back = homewards(there, pairs)
    overlaps = [pair.judge(shifting(sign * 3.0, *shift[1:])(back["moving"], back["fixed"]), back) for sign in (-1, 1)]
    assert overlaps[0].terms["overlap"] < 0.1 < overlaps[1].terms["overlap"]
    assert Cycle(pair).needs == CycleMorph(pair).needs == {"moving_label", "fixed_label"}


@both
@pytest.mark.parametrize("coarseness", [1, 2])
def test_cyclemorph_is_the_sum_of_six_registrations(shape, coarseness):
    network, pairs = moving_network("voxelmorph", shape), batch(shape)
    pair = pair_objective("ssd", smoothness=0.3, coarseness=coarseness)
    outcome = CycleMorph(pair, 0.2, 0.7)(network, pairs)
    a, b = pairs["moving"], pairs["fixed"]

    def cost(moving, fixed):
        return pair(network, {"moving": moving, "fixed": fixed}).loss

    b_like, a_like = network(a, b).moved, network(b, a).moved
    home = (network(b_like, a_like).moved - a).abs().mean(), (network(a_like, b_like).moved - b).abs().mean()
    cycle, identity = sum(home) / 2, (cost(a, a) + cost(b, b)) / 2
    assert abs(home[0] - home[1]) > 0.01 * home[0] and identity > 0
    assert_close(outcome.terms["cycle"], cycle)
    assert_close(outcome.terms["identity"], identity)
    assert_close(outcome.loss, (cost(a, b) + cost(b, a)) / 2 + 0.2 * cycle + 0.7 * identity)
    outcome.loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_comes_home_in_a_picture_need_not_come_home_on_the_map():
    """Stripes, and two shifts by their period: the images are what they were, and each map is three pixels off."""
    stripes = torch.cos(2 * math.pi * torch.arange(120.0) / 3).view(1, 1, 120, 1).expand(1, 1, 120, 4).contiguous()
    pairs = {"moving": stripes, "fixed": stripes}
    shifted = Cycle(pair_objective("ssd", smoothness=1.0))(shifting(3.0, 0.0), pairs)
    assert shifted.loss < 0.15 * stripes.var()  # what leaves at the border does not come home
    away = fields.compose(*[shifting(3.0, 0.0)(stripes, stripes).displacement] * 2)
    assert_close(away.norm(dim=1).max(), torch.tensor(6.0))


def test_what_is_minimised_is_described():
    pair = pair_objective("ssd", smoothness=0.3)
    assert Cycle(pair).describe() == {**pair.describe(), "two_directions": {"term": "Cycle"}}
    described = CycleMorph(pair, identity_weight=1).describe()["two_directions"]
    assert described == {"term": "CycleMorph", "cycle_weight": 0.1, "identity_weight": 1.0}


@pytest.mark.parametrize("weights", [(-1.0, 0.5), (0.1, -0.5), (math.nan, 0.5)])
def test_a_wrong_weight_is_refused_at_once(weights):
    with pytest.raises(CourseError, match=r"_weight=.* is not 0 or more"):
        CycleMorph(pair_objective("ssd"), *weights)


@pytest.mark.slow
def test_training_brings_the_image_home_and_leaves_equal_images_alone(tmp_path):
    """Discs that come in one order only: who never went home does not know the way."""
    pair = pair_objective("ssd", smoothness=0.001)
    config = TrainConfig(steps=100, batch_size=3, learning_rate=1e-2, validations=2, amp="off")
    home, stays = {}, {}
    for name, objective in {"one way": pair, "cycle": Cycle(pair), "cyclemorph": CycleMorph(pair, 1.0)}.items():
        network = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": [8, 8]}).build()
        model = train(tmp_path / name, network, objective, config).model
        pairs = batch_of(range(3))
        with torch.no_grad():
            there = model(pairs["moving"], pairs["fixed"])
            assert ssd_loss(there.moved, pairs["fixed"]) < 0.02, name
            home[name] = ssd_loss(model(there.moved, pairs["moving"]).moved, pairs["moving"]).item()
            stays[name] = model(pairs["fixed"], pairs["fixed"]).displacement.norm(dim=1).mean().item()
    assert home["cycle"] < 0.5 * home["one way"] and home["cyclemorph"] < 0.5 * home["one way"], home
    assert stays["cyclemorph"] < 0.5 * stays["one way"], stays
