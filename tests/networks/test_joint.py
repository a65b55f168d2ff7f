"""The network that segments: what it says of an image, in which order, and what it learns."""

import pytest
import torch
from torch.testing import assert_close

from course_utils import fields, losses
from course_utils.networks import Joint, scores_of
from course_utils.objectives import BothOrders, Segmented, pair_objective
from tests.networks.small import SIZES, both, images, resolutions, small

SIDES = ("moving", "fixed")


def network_of(dims, **options):
    return small("joint", dims, amplitude=2.0, structures=2, instance_norm=True, **options)


@both
@resolutions
def test_both_orders_at_once_are_what_each_order_gives(dims, half):
    network = network_of(dims, half_resolution=half)
    moving, fixed = images(SIZES[dims], batch=2)
    orders = network(moving, fixed), network(fixed, moving)
    assert (orders[0].displacement - orders[1].displacement).abs().max() > 0.1
    for found, expected in zip(network.both_orders(moving, fixed), orders, strict=True):
        assert_close(found.displacement, expected.displacement, rtol=0, atol=1e-5)
        assert_close(found.moved, expected.moved, rtol=0, atol=1e-5)
        assert found.extras.keys() == expected.extras.keys()
        for name, scores in expected.extras.items():
            assert_close(found.extras[name], scores, rtol=0, atol=1e-5)


@both
def test_both_orders_of_a_conditional_network_have_the_condition_of_their_pair(dims):
    network = network_of(dims, conditions=1)
    moving, fixed = images(SIZES[dims], batch=2)
    with torch.no_grad():  # which begin where a condition changes nothing
        for name, parameter in network.named_parameters():
            if "norm" in name or "conditioning" in name or parameter.abs().max() == 0:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    condition = torch.tensor([[0.1], [0.9]])
    there, back = network.both_orders(moving, fixed, condition)
    alike = network(moving, fixed, condition.flip(0)).displacement
    assert (there.displacement - alike).abs().max() > 1e-2
    assert_close(there.displacement, network(moving, fixed, condition).displacement, rtol=0, atol=1e-5)
    assert_close(back.displacement, network(fixed, moving, condition).displacement, rtol=0, atol=1e-5)


@both
@resolutions
def test_an_image_has_the_same_scores_whatever_it_is_registered_to(dims, half):
    network = network_of(dims, half_resolution=half)
    moving, fixed = images(SIZES[dims])
    other, _ = images(SIZES[dims], seed=5)
    finest = 2 if half else 1
    found, of_other, back = network(moving, fixed), network(other, fixed), network(fixed, moving)
    for stride in (finest, 2 * finest, 4 * finest):
        name = scores_of("fixed", stride)
        shape = tuple(n // stride for n in SIZES[dims])
        assert found.extras[name].shape == (1, 3, *shape) and found.extras[name].dtype == torch.float32
        assert_close(of_other.extras[name], found.extras[name], rtol=0, atol=1e-5)
        assert_close(back.extras[scores_of("moving", stride)], found.extras[name], rtol=0, atol=1e-5)
    assert not torch.allclose(found.extras[scores_of("moving", 4)], found.extras[scores_of("fixed", 4)], atol=1e-2)
    assert len(found.extras) == 6


@both
def test_scores_cover_images_that_were_padded_and_those_of_a_motionless_answer_say_nothing(dims):
    network = network_of(dims)
    size = (21, 29, 13)[:dims]
    moving, fixed = images(size)
    found, nothing = network(moving, fixed), network.motionless(moving)
    assert nothing.displacement.abs().max() == 0
    assert found.extras.keys() == nothing.extras.keys()
    for stride in (2, 4, 8):
        for side in SIDES:
            scores = found.extras[scores_of(side, stride)]
            assert scores.shape[2:] == tuple(-(-n // stride) for n in size)
            assert nothing.extras[scores_of(side, stride)].shape == scores.shape
            assert nothing.extras[scores_of(side, stride)].abs().max() == 0


def test_what_a_level_compares_are_features_and_probabilities():
    network = network_of(2)
    seen = []
    network.decoder[2].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    answer = network(*images(SIZES[2]))
    of_moving, of_fixed = seen[0].split(8 + 3, dim=1)
    for side, features in zip(SIDES, (of_moving, of_fixed), strict=True):
        assert_close(features[:, 8:], answer.extras[scores_of(side, 8)].softmax(1), rtol=0, atol=1e-6)


def test_it_learns_to_register_and_to_tell_apart():
    """Two discs of equal brightness, told apart by their sizes alone, in a new place in each image."""
    torch.manual_seed(0)
    network = Joint(2, structures=2, features=(8, 16, 16))
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    objective = Segmented(BothOrders(pair_objective("ssd", smoothness=0.05, dice_weight=0.5, labels=(1, 2))), (1, 2))
    place = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))

    def drawn(count):
        labels = []
        for _ in range(count):
            small_disc, large_disc = torch.tensor([9.0, 16.0]), torch.tensor([22.0, 16.0])
            centres = [centre + 4 * torch.rand(2) - 2 for centre in (small_disc, large_disc)]
            if torch.rand(()) < 0.5:
                centres = centres[::-1]
            inside = [(place - c.view(2, 1, 1)).norm(dim=0) < r for c, r in zip(centres, (3, 6), strict=True)]
            labels.append(inside[0] + 2 * inside[1].int())
        return torch.stack(labels)[:, None].short()

    def batch(count):
        maps = dict(zip(("moving_label", "fixed_label"), (drawn(count), drawn(count)), strict=True))
        return maps | {side: (maps[f"{side}_label"] > 0).float() for side in SIDES} | {"name": ["a pair"] * count}

    for _ in range(150):
        loss = objective(network.train(), batch(4)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pairs = batch(8)
    with torch.no_grad():
        answer = network.eval()(pairs["moving"], pairs["fixed"])
    said = answer.extras[scores_of("fixed", 2)].argmax(1, keepdim=True)
    wanted = losses.one_hot(pairs["fixed_label"], (1, 2))[:, :, ::2, ::2]
    assert losses.soft_dice_loss(losses.one_hot(said, (1, 2)), wanted) < 0.2
    moving, fixed = (losses.one_hot(pairs[f"{side}_label"], (1, 2)) for side in SIDES)
    moved = fields.warp(moving, answer.displacement)
    # Half of the pairs have exchanged their discs, which nothing this smooth can do.
    assert losses.soft_dice_loss(moved, fixed) < 0.9 * losses.soft_dice_loss(moving, fixed)


@pytest.mark.parametrize("structures", [0, -1])
def test_a_network_that_tells_nothing_apart_is_refused(structures):
    with pytest.raises(ValueError, match=f"structures is 1 or more, not {structures}"):
        Joint(3, structures=structures)
