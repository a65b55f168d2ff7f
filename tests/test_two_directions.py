"""Both directions of a pair: what is judged, what it costs to contradict oneself, and what training makes of it."""

import math

import pytest
import torch
from torch.testing import assert_close

from course_utils import fields
from course_utils.consistency import consistency
from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec, Registration
from course_utils.objectives import (
    CONSISTENCIES,
    BothOrders,
    Consistent,
    InverseToo,
    PairObjective,
    pair_objective,
    swapped,
)
from course_utils.objectives.two_directions import gradient_inconsistency, inconsistency
from course_utils.training import TrainConfig
from tests.test_painted import moving_network
from tests.training.test_loop import Repeated
from tests.training.test_seams import batch_of, train

both = pytest.mark.parametrize("shape", [(28, 24), (16, 20, 16)], ids=["2-D", "3-D"])


def batch(shape, count=2):
    """Smooth images, and label maps of two structures."""
    generator = torch.Generator().manual_seed(1)
    knots = [max(3, n // 5) for n in shape]
    images = [fields.resize(torch.randn(count, len(shape), *knots, generator=generator), shape) for _ in range(2)]
    images = [image[:, :1].sigmoid() for image in images]
    labels = [(image > 0.5).short() + (image > 0.7).short() for image in images]
    return dict(zip(("moving", "fixed", "moving_label", "fixed_label"), (*images, *labels), strict=True))


def always(shape, *shift):
    """A method that answers with the same velocity whatever it is shown."""
    velocity = torch.tensor(shift).view(1, -1, *[1] * len(shape))

    def model(moving, fixed, condition=None):
        velocities = velocity.expand(len(moving), -1, *shape)
        return Registration(fields.warp(moving, velocities), velocities, velocities)

    return model


def test_all_that_belongs_to_an_image_goes_with_it():
    names = ("moving", "moving_label", "moving_mask", "fixed", "fixed_label", "fixed_mask", "name", "condition")
    assert swapped(swapped({name: name for name in names})) == {name: name for name in names}
    assert swapped({name: name for name in names}) == {
        **{f"moving{of}": f"fixed{of}" for of in ("", "_label", "_mask")},
        **{f"fixed{of}": f"moving{of}" for of in ("", "_label", "_mask")},
        **{"name": "name", "condition": "condition"},
    }


# --- one map and its inverse ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("coarseness", [1, 2])
@pytest.mark.parametrize("steps", [7, 0], ids=["velocity", "displacement"])
def test_the_map_and_its_inverse_are_judged_each_on_its_image(shape, coarseness, steps):
    """Against the same written out: the inverse is integrated from the negative, or found by fixed points."""
    network, pairs = moving_network("voxelmorph", shape, integration_steps=steps).train(), batch(shape)
    pair = pair_objective("ssd", smoothness=0.3, dice_weight=0.5, labels=(1, 2), coarseness=coarseness)
    outcome = InverseToo(pair)(network, pairs)
    there = network(pairs["moving"], pairs["fixed"])
    other = swapped(pairs)
    if steps:
        own = there.coarser(fields.pool(pairs["moving"], 2), 2).velocity  # where the network predicts it
        inverse, velocity = fields.integrate(-own, steps), -own
        if coarseness == 1:
            inverse, velocity = fields.resize(inverse, shape), fields.resize(velocity, shape)
    else:
        inverse, velocity = fields.invert(there.displacement), None
        if coarseness == 2:
            inverse = fields.pool(inverse, 2) / 2
    images = {side: fields.pool(other[side], coarseness) for side in ("moving", "fixed")}
    back = Registration(fields.warp(images["moving"], inverse), inverse, velocity)
    there = pair.judge(there, pairs).loss
    back = PairObjective(pair.terms).judge(back, {**other, **images, "coarseness": coarseness}).loss
    assert abs(there - back) > 0.02 * there  # the two differ, so it matters what is averaged
    assert_close(outcome.loss, (there + back) / 2)


@both
def test_a_known_shift_is_undone_on_the_way_back(shape):
    """`moving(x) = fixed(x - s)` to the one side, so `s` brings it home and `-s` takes the fixed image there."""
    pairs, shift = batch(shape), [2.0] + [0.0] * (len(shape) - 1)
    towards = always(shape, *shift)(pairs["fixed"], pairs["fixed"])
    pairs["moving"] = towards.moved  # the fixed image as seen two voxels on
    wrong, right = (InverseToo(pair_objective("ssd"))(always(shape, *s), pairs) for s in (shift, [-s for s in shift]))
    assert right.terms["similarity"] < 0.05 * wrong.terms["similarity"]


# --- two maps that shall be inverses ----------------------------------------------------------------------------------


def field(shape, linear, *shift):
    """The displacement `linear x + shift`, where it is linear about the first voxel."""
    grid = fields.identity_grid(shape)
    return linear * grid + torch.tensor(shift).view(1, -1, *[1] * len(shape))


@both
def test_shifts_that_do_not_cancel_cost_their_square_and_no_gradient(shape):
    rest = [0.0] * (len(shape) - 2)
    there, back = field(shape, 0.0, 3.0, 1.0, *rest), field(shape, 0.0, 0.0, 3.0, *rest)
    assert_close(inconsistency(there, back), torch.tensor(3.0**2 + 4.0**2))
    assert_close(gradient_inconsistency(there, back), torch.tensor(0.0))
    assert_close(inconsistency(there, -there), torch.tensor(0.0))


@both
def test_a_shrinkage_twice_costs_what_its_jacobian_is_away_from_the_identity(shape):
    zero = [0.0] * len(shape)
    there, back = field(shape, -0.2, *zero), field(shape, -0.1, *zero)
    assert_close(gradient_inconsistency(there, back), torch.tensor(len(shape) * (0.8 * 0.9 - 1) ** 2))
    grow = field(shape, 1 / 0.8 - 1, *zero)
    assert_close(fields.compose(grow, there).abs().max(), torch.tensor(0.0), atol=1e-4, rtol=0)


@both
@pytest.mark.parametrize("consistency", CONSISTENCIES)
@pytest.mark.parametrize("coarseness", [1, 2])
def test_the_loss_is_the_mean_of_both_directions_and_the_weighted_cost(shape, consistency, coarseness):
    network, pairs = moving_network("voxelmorph", shape), batch(shape)
    pair = pair_objective("ssd", smoothness=0.3, coarseness=coarseness)
    outcome = Consistent(pair, consistency, 0.7)(network, pairs)
    there, back = pair(network, pairs), pair(network, swapped(pairs))
    maps = [pair.on_its_grid(there.registration, pairs)[0], pair.on_its_grid(back.registration, swapped(pairs))[0]]
    cost = CONSISTENCIES[consistency][0](maps[0].displacement, maps[1].displacement)
    assert outcome.terms["inconsistency"] > 0
    assert_close(outcome.terms["inconsistency"], cost)
    assert_close(outcome.loss, (there.loss + back.loss) / 2 + 0.7 * cost)
    assert maps[0].displacement.shape[2:] == tuple(-(-n // coarseness) for n in shape)
    outcome.loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@both
@pytest.mark.parametrize("coarseness", [1, 2])
def test_each_order_of_a_pair_is_judged_by_itself(shape, coarseness):
    network, pairs = moving_network("voxelmorph", shape), batch(shape)
    pair = pair_objective("ssd", smoothness=0.3, coarseness=coarseness)
    outcome = BothOrders(pair)(network, pairs)
    orders = pair(network, pairs), pair(network, swapped(pairs))
    assert orders[0].loss != orders[1].loss
    assert_close(outcome.loss, (orders[0].loss + orders[1].loss) / 2)
    assert_close(outcome.registration.displacement, orders[0].registration.displacement)


@both
def test_what_is_antisymmetric_contradicts_itself_in_nothing(shape):
    network = moving_network("pyramid", shape, antisymmetric=True)
    outcome = Consistent(pair_objective("ssd"), "icon", 1.0)(network, batch(shape))
    one_way = Consistent(pair_objective("ssd"), "icon", 1.0)(moving_network("pyramid", shape), batch(shape))
    assert outcome.terms["inconsistency"] < 0.02 * one_way.terms["inconsistency"]


def test_what_is_minimised_is_described():
    pair = pair_objective("ssd", smoothness=0.3)
    assert InverseToo(pair).describe() == {**pair.describe(), "two_directions": {"term": "InverseToo"}}
    described = Consistent(pair, "icon", 0.5).describe()["two_directions"]
    assert described == {"term": "Consistent", "consistency": "icon", "weight": 0.5}
    labelled = pair_objective("ssd", dice_weight=1.0, labels=(1,))
    several = InverseToo(labelled), BothOrders(labelled), Consistent(labelled, "icon", 1.0)
    assert all(objective.needs == {"moving_label", "fixed_label"} for objective in several)
    assert BothOrders(pair).describe() == {**pair.describe(), "two_directions": {"term": "BothOrders"}}


@pytest.mark.parametrize(
    ("consistency", "weight", "message"),
    [
        ("icno", 1.0, "'icno' is not one of icon, gradicon"),
        ("icon", -1.0, "not 0 or more"),
        ("icon", math.nan, "not 0"),
    ],
)
def test_a_wrong_name_or_weight_is_refused_at_once(consistency, weight, message):
    with pytest.raises(CourseError, match=message):
        Consistent(pair_objective("ssd"), consistency, weight)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_makes_the_two_maps_inverses(tmp_path):
    """Discs that come in one order only: who never saw the other one knows nothing of it."""
    pair = pair_objective("ssd", smoothness=0.001)
    objectives = {
        "one way": pair,
        "icon": Consistent(pair, "icon", 0.1),
        "gradicon": Consistent(pair, "gradicon", 1.0),
    }
    config = TrainConfig(steps=200, batch_size=3, learning_rate=1e-2, validations=2, amp="off")
    items = [Repeated(labels=False)[index] for index in range(6)]
    errors = {}
    for name, objective in objectives.items():
        network = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": [8, 8]}).build()
        result = train(tmp_path / name, network, objective, config)
        assert pair(result.model, batch_of(range(3))).terms["similarity"] < 0.02, name
        errors[name] = consistency(result.model, items)["swap_voxels"].mean()
    assert errors["icon"] < 0.5 * errors["one way"] and errors["gradicon"] < 0.5 * errors["one way"], errors
