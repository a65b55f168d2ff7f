"""Registration and segmentation at once: what a segmentation costs, on which grids, and for which networks."""

import math

import pytest
import torch

from course_utils import fields, losses
from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec, Registration, scores_of
from course_utils.objectives import BothOrders, PaintedObjective, Segmented, pair_objective
from course_utils.training.models import Motionless
from tests.test_painted import moving_network
from tests.test_two_directions import batch, both

LABELS = (1, 2)


def saying(pairs, scores_at, strides=(2, 4)):
    """A method that moves nothing, and whose scores of a side at a stride are those that a function gives."""

    def model(moving, fixed, condition=None):
        nothing = torch.zeros(len(moving), moving.ndim - 2, *moving.shape[2:])
        extras = {
            scores_of(side, stride): scores_at(pairs[f"{side}_label"], stride)
            for stride in strides
            for side in ("moving", "fixed")
        }
        return Registration(moving, nothing, nothing, extras)

    return model


def right(label, stride):
    """Scores whose softmax is the share of each structure in the voxels of a coarser grid."""
    shares = fields.pool(losses.one_hot(label, LABELS), stride)
    return torch.cat([1 - shares.sum(1, keepdim=True), shares], dim=1).clamp(min=1e-9).log()


def unknown(label, stride):
    return torch.zeros_like(right(label, stride))


@both
def test_the_loss_is_the_judges_and_the_weighted_mean_over_levels_and_images(shape):
    pairs = batch(shape) | {"name": ["a", "b"]}
    judge = pair_objective("ssd", dice_weight=1.0, labels=LABELS)
    model = saying(pairs, unknown)
    outcome = Segmented(judge, LABELS, 0.3)(model, pairs)
    costs = []
    for side in ("moving", "fixed"):
        for stride in (2, 4):
            shares = fields.pool(losses.one_hot(pairs[f"{side}_label"], LABELS), stride)
            overlap = losses.soft_dice_loss(torch.full_like(shares, 1 / 3), shares).item()
            costs.append(math.log(3) + overlap)
    assert outcome.terms["segmentation"].item() == pytest.approx(sum(costs) / 4, abs=1e-5)
    assert outcome.loss.item() == pytest.approx(judge(model, pairs).loss.item() + 0.3 * sum(costs) / 4, abs=1e-5)


@pytest.mark.parametrize("shape", [(28, 24), (27, 21), (16, 20, 16), (15, 19, 13)])
@pytest.mark.parametrize("strides", [(1, 2, 4), (2, 4, 8, 16)])
def test_nothing_costs_less_than_the_share_of_each_structure_in_each_voxel(shape, strides):
    pairs = batch(shape)
    objective = Segmented(pair_objective("ssd"), LABELS)

    def shifted(label, stride):
        return right(label, stride).roll(1, 2)

    best, worse = (objective(saying(pairs, said, strides), pairs).terms["segmentation"] for said in (right, shifted))
    nothing = objective(saying(pairs, unknown, strides), pairs).terms["segmentation"]
    assert best < 0.5 * nothing and best < 0.5 * worse


@both
@pytest.mark.parametrize("wrapped", [lambda pair: pair, BothOrders, PaintedObjective], ids=["pair", "both", "painted"])
def test_a_network_that_segments_is_trained_by_it_around_any_objective(shape, wrapped):
    pairs = batch(shape) | {"name": ["a", "b"]}
    judge = wrapped(pair_objective("ssd", smoothness=0.1))
    objective = Segmented(judge, LABELS)
    assert objective.needs == {"moving_label", "fixed_label"}
    assert objective.describe() == {**judge.describe(), "segmentation": {"term": "Segmented", "weight": 0.5}}
    network = moving_network("joint", shape, structures=2)
    outcome = objective(network, pairs)
    outcome.loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    said = Motionless(network)
    assert 1 < objective(said, pairs).terms["segmentation"] < math.log(3) + 1


@pytest.mark.parametrize("shape", [(53, 50), (35, 37, 50)])
def test_any_size_is_compared_with_the_labels_of_the_same_places(shape):
    """The coarsest voxels of four levels are 16 wide, and the last ones of an axis hold what is left."""
    pairs = batch(shape) | {"name": ["a", "b"]}
    network = NetworkSpec("joint", {"spatial_dims": len(shape), "structures": 2, "features": [2, 2, 2, 2]}).build()
    assert Segmented(pair_objective("ssd"), LABELS)(network, pairs).terms["segmentation"].isfinite()


@both
def test_a_network_that_does_not_segment_is_refused(shape):
    pairs = batch(shape)
    for judge in (pair_objective("ssd"), BothOrders(pair_objective("ssd"))):
        with pytest.raises(CourseError, match="does not segment its images: take --architecture joint"):
            Segmented(judge, LABELS)(moving_network("pyramid", shape), pairs)


def test_what_cannot_be_trained_is_named():
    pair = pair_objective("ssd")
    with pytest.raises(CourseError, match=r"weight=-0.1 is not 0 or more"):
        Segmented(pair, LABELS, -0.1)
    with pytest.raises(CourseError, match="weight=nan is not 0 or more"):
        Segmented(pair, LABELS, math.nan)
    with pytest.raises(CourseError, match="needs labels and the data set has none"):
        Segmented(pair, ())
