"""One network for all weights of the smoothness: how they are drawn, what they weigh, and that it heeds them."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from course_utils.checkpoint import Checkpoint
from course_utils.errors import CourseError
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.model_card import describe
from course_utils.networks import NetworkSpec, SmoothnessRange
from course_utils.networks.film import ConditionalNorm
from course_utils.objectives import AnySmoothness, Consistent, InverseToo, PaintedObjective, pair_objective
from course_utils.training import TrainConfig, fit
from tests.networks.small import SIZES, both, images
from tests.networks.test_conditions import conditioned
from tests.test_two_directions import batch
from tests.training.test_loop import CARD, Discs, Repeated
from tests.training.test_seams import batch_of

WEIGHTS = SmoothnessRange(0.01, 100.0)
CONFIG = TrainConfig(steps=100, batch_size=3, learning_rate=1e-2, validations=2, amp="off")


class Recorded:
    """A network that remembers what it was told."""

    def __init__(self, network, training=True):
        self.network, self.training, self.told = network, training, []

    def __call__(self, moving, fixed, condition=None):
        self.told.append(condition)
        return self.network(moving, fixed, condition)


def test_weights_are_drawn_by_ratio_and_a_fifth_of_them_are_the_ends():
    torch.manual_seed(0)
    objective = AnySmoothness(pair_objective("ssd", smoothness=0.0), WEIGHTS)
    drawn = torch.tensor([objective._drawn() for _ in range(4000)])
    ends = [(drawn == end).float().mean().item() for end in (0.0, 1.0)]
    assert ends == pytest.approx([0.1, 0.1], abs=0.02)
    between = drawn[(drawn > 0) & (drawn < 1)]
    assert scipy.stats.kstest(between.numpy(), "uniform").pvalue > 0.01


@both
def test_the_loss_is_hypermorphs_of_the_weight_that_the_network_is_told(dims):
    torch.manual_seed(0)
    model = Recorded(conditioned("voxelmorph", dims))
    moving, fixed = images(SIZES[dims], batch=2)
    objective = AnySmoothness(pair_objective("ssd", smoothness=0.0), WEIGHTS)
    seen = set()
    for _ in range(4):
        outcome = objective(model, {"moving": moving, "fixed": fixed})
        condition = model.told[-1]
        assert condition.shape == (2, 1) and condition[0] == condition[1]
        seen.add(condition[0].item())
        weight = 0.01 * 10 ** (4 * condition[0, 0].item())
        blend = weight / (1 + weight)
        found = model.network(moving, fixed, condition)
        expected = (1 - blend) * ssd_loss(found.moved, fixed) + blend * diffusion_loss(found.velocity)
        assert_close(outcome.loss, expected)
    assert len(seen) > 2


@pytest.mark.parametrize("name", ["one way", "inverse", "icon", "painted"])
def test_it_weighs_every_objective_as_one_that_has_the_weight_of_its_own(name):
    made = {
        "one way": lambda pair: pair,
        "inverse": InverseToo,
        "icon": lambda pair: Consistent(pair, "icon", 0.3),
        "painted": PaintedObjective,
    }[name]
    shape = (28, 24)
    model, pairs = Recorded(conditioned("voxelmorph", 2)), batch(shape)
    torch.manual_seed(3)
    any_weight = AnySmoothness(made(pair_objective("ssd", smoothness=0.0)), WEIGHTS)
    outcome = any_weight(model, pairs)
    weight = WEIGHTS.weight(model.told[-1][0, 0].item())
    torch.manual_seed(3)
    torch.rand(2)  # what the weight was drawn from
    one = made(pair_objective("ssd", smoothness=weight))(model, {**pairs, "condition": model.told[-1]})
    assert one.terms["regularisation"] > 0
    assert_close(outcome.loss, one.loss / (1 + weight))
    assert any_weight.needs == made(pair_objective("ssd")).needs


def test_who_does_not_train_is_judged_with_the_middle():
    model = Recorded(conditioned("pyramid", 2), training=False)
    moving, fixed = images(SIZES[2], batch=2)
    objective = AnySmoothness(pair_objective("ssd", smoothness=0.0), WEIGHTS)
    losses = {objective(model, {"moving": moving, "fixed": fixed}).loss.item() for _ in range(3)}
    assert len(losses) == 1 and all((told == 0.5).all() for told in model.told)


def test_a_smoothness_of_its_own_would_count_twice():
    with pytest.raises(CourseError, match=r"regularisation of weight 0, not 0\.5"):
        AnySmoothness(pair_objective("ssd", smoothness=0.5), WEIGHTS)
    with pytest.raises(CourseError, match=r"weight 0, not 0\.5"):
        AnySmoothness(InverseToo(pair_objective("ssd", smoothness=0.5)), WEIGHTS)


# --- training ---------------------------------------------------------------------------------------------------------

RANGE = SmoothnessRange(0.001, 10.0)
TOLD = (0.001, 0.1, 1.0, 10.0)
PLAIN = {"spatial_dims": 2, "features": [8, 8]}


def trained(out, config=CONFIG):
    spec = NetworkSpec("voxelmorph", {**PLAIN, "conditions": 1})
    objective = AnySmoothness(pair_objective("ssd", smoothness=0.0), RANGE)
    pairs, card = Repeated(labels=False), replace(CARD, labels={})
    return fit(spec.build(), objective, pairs, Discs(2, labels=False), out, config, card=card, hooks=[])


def roughness(model, pairs, weights=TOLD):
    with torch.no_grad():
        told = [torch.full((len(pairs["fixed"]), 1), RANGE.position(weight)) for weight in weights]
        return [diffusion_loss(model(pairs["moving"], pairs["fixed"], c).velocity).item() for c in told]


def falls(values):
    return all(later < 0.9 * earlier for earlier, later in itertools.pairwise(values))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A network for all weights, after twice the steps that one for a single weight has."""
    return trained(tmp_path_factory.mktemp("one"), replace(CONFIG, steps=2 * CONFIG.steps))


@pytest.mark.slow
def test_the_field_gets_smoother_as_the_weight_rises_and_a_network_that_does_not_listen_is_seen(one):
    pairs = batch_of(range(3))
    assert falls(roughness(one.model, pairs))
    moved = [Checkpoint.load(one.best).at(weight).model()(pairs["moving"], pairs["fixed"]).moved for weight in TOLD]
    likeness = [ssd_loss(image, pairs["fixed"]).item() for image in moved]
    assert likeness == sorted(likeness)
    assert likeness[0] < 0.3 * ssd_loss(pairs["moving"], pairs["fixed"]).item()
    deaf = Checkpoint.load(one.best).model()
    for module in deaf.modules():
        if isinstance(module, ConditionalNorm):
            torch.nn.init.zeros_(module.film.weight)
    assert not falls(roughness(deaf, pairs))


@pytest.mark.slow
@pytest.mark.parametrize("weight", [TOLD[0], TOLD[-1]])
def test_one_network_is_about_as_good_as_one_for_each_weight(one, weight, tmp_path):
    """By the loss that each was trained for, on the pairs that all have seen."""
    pairs = batch_of(range(3))
    own, spec = pair_objective("ssd", smoothness=weight), NetworkSpec("voxelmorph", PLAIN)
    card = replace(CARD, labels={})
    separate = fit(
        spec.build(), own, Repeated(labels=False), Discs(2, labels=False), tmp_path, CONFIG, card=card, hooks=[]
    )
    condition = torch.full((3, 1), RANGE.position(weight))
    with torch.no_grad():
        of_one = own(one.model, pairs | {"condition": condition}).loss.item()
        of_own = own(separate.model, pairs).loss.item()
    assert of_one < of_own + 0.1 * ssd_loss(pairs["moving"], pairs["fixed"]).item()


@pytest.mark.slow
def test_a_run_is_reproducible_and_its_card_says_the_range_and_what_is_answered_by_itself(tmp_path):
    config = replace(CONFIG, steps=20)
    first, second = (trained(tmp_path / name, config) for name in "ab")
    assert first.history["loss"].equals(second.history["loss"])
    described = json.loads(json.dumps(describe(first.best)))
    assert described["objective"]["smoothness"] == {"term": "AnySmoothness", "low": 0.001, "high": 10.0}
    assert described["smoothness"] == pytest.approx(math.sqrt(0.001 * 10))
    assert describe(first.best, 0.05)["smoothness"] == pytest.approx(0.05)


@pytest.mark.slow
def test_a_run_that_was_begun_before_networks_knew_conditions_goes_on(tmp_path):
    out, card = tmp_path / "run", replace(CARD, labels={})
    parts = pair_objective("ssd"), Repeated(labels=False), Discs(2, labels=False), out
    spec = NetworkSpec("voxelmorph", PLAIN)
    fit(spec.build(), *parts, replace(CONFIG, steps=5), card=card, hooks=[])
    state = torch.load(out / "last.pt", weights_only=True)
    assert state["arguments"].pop("conditions") == 0
    torch.save(state, out / "last.pt")
    fit(spec.build(), *parts, replace(CONFIG, steps=5), card=card, hooks=[], resume=True)
