"""Terms of a loss by hand, and what settings make of them."""

import math

import pytest
import torch
from torch.testing import assert_close

from course_utils import fields, losses, metrics
from course_utils.errors import CourseError
from course_utils.networks import NetworkSpec, Registration
from course_utils.objectives import NCC, SIMILARITIES, SSD, pair_objective


def pair(shape, batch=2, seed=0):
    """Images, labels 0 and 1, a velocity and a displacement, all at random."""
    generator = torch.Generator().manual_seed(seed)
    moving, fixed = torch.rand(2, batch, 1, *shape, generator=generator)
    labels = {name: (torch.rand(batch, 1, *shape, generator=generator) > 0.5).to(torch.uint8) for name in ("m", "f")}
    velocity, displacement = 2 * torch.randn(2, batch, len(shape), *shape, generator=generator)
    names = [f"pair {index}" for index in range(batch)]
    items = {"moving": moving, "fixed": fixed, "moving_label": labels["m"], "fixed_label": labels["f"], "name": names}
    return items, Registration(fields.warp(moving, displacement), displacement, velocity)


@pytest.mark.parametrize("shape", [(12, 14), (9, 10, 8)])
@pytest.mark.parametrize("similarity", [NCC(window=5), SSD()], ids=["ncc", "ssd"])
@pytest.mark.parametrize("regulariser", ["diffusion", "bending"])
def test_the_loss_is_the_weighted_sum_of_its_terms(shape, similarity, regulariser):
    batch, registration = pair(shape)
    objective = pair_objective(
        similarity, regulariser=regulariser, smoothness=0.3, dice_weight=0.7, labels=(1,), jacobian_weight=1.9
    )
    outcome = objective.judge(registration, batch)
    moved = registration.moved
    by_hand = {
        "similarity": losses.ncc_loss(moved, batch["fixed"], 5)
        if isinstance(similarity, NCC)
        else (moved - batch["fixed"]).square().mean(),
        "regularisation": {"diffusion": losses.diffusion_loss, "bending": losses.bending_loss}[regulariser](
            registration.velocity
        ),
        "overlap": losses.soft_dice_loss(
            fields.warp((batch["moving_label"] == 1).float(), registration.displacement),
            (batch["fixed_label"] == 1).float(),
        ),
        "folding": metrics.ndv_percent(registration.displacement).mean() / 100,
    }
    assert set(outcome.terms) == set(by_hand)
    for name, value in by_hand.items():
        assert value > 0
        assert_close(outcome.terms[name], value)
    total = by_hand["similarity"] + 0.3 * by_hand["regularisation"] + 0.7 * by_hand["overlap"]
    assert_close(outcome.loss, total + 1.9 * by_hand["folding"])


def test_without_a_velocity_the_displacement_is_kept_smooth():
    batch, registration = pair((12, 14))
    alone = Registration(registration.moved, registration.displacement)
    outcome = pair_objective("ssd").judge(alone, batch)
    assert_close(outcome.terms["regularisation"], losses.diffusion_loss(registration.displacement))


def test_terms_without_weight_are_not_computed_and_ask_for_no_labels():
    objective = pair_objective()
    assert set(objective.terms) == {"similarity", "regularisation"} and objective.needs == set()
    assert pair_objective(dice_weight=0.1, labels=(1,)).needs == {"fixed_label", "moving_label"}


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_similarity_brings_its_own_weight_of_the_smoothness(name):
    assert pair_objective(name).terms["regularisation"][0] == SIMILARITIES[name](1).smoothness
    assert pair_objective(name, smoothness=0.0).terms["regularisation"][0] == 0.0


def test_an_objective_calls_the_model_itself():
    batch, registration = pair((12, 14))
    called = []

    def model(moving, fixed, condition=None):
        called.append((moving is batch["moving"], fixed is batch["fixed"], condition))
        return registration

    pair_objective("ssd")(model, batch)
    weight = torch.rand(2, 1)
    pair_objective("ssd")(model, batch | {"condition": weight})
    assert called == [(True, True, None), (True, True, weight)]


def test_what_is_minimised_is_described_in_plain_values():
    objective = pair_objective(NCC(window=5), smoothness=0.5, dice_weight=0.25, labels=(1, 2))
    assert objective.describe() == {
        "similarity": {"term": "NCC", "window": 5, "edges": 0.0, "weight": 1.0},
        "regularisation": {"term": "Regularisation", "regulariser": "diffusion", "weight": 0.5},
        "overlap": {"term": "Overlap", "labels": [1, 2], "weight": 0.25},
        "coarseness": 1,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"similarity": "mse"}, "similarity='mse' is not one of ncc, ncc-edges, ssd"),
        ({"regulariser": "elastic"}, "regulariser='elastic' is not one of diffusion, bending"),
        ({"smoothness": -1.0}, "smoothness=-1.0 is not 0 or more"),
        ({"dice_weight": math.nan}, "dice_weight=nan is not 0 or more"),
        ({"jacobian_weight": -0.5}, "jacobian_weight=-0.5 is not 0 or more"),
        ({"dice_weight": 0.5}, "dice_weight needs labels"),
        ({"coarseness": 0}, "coarseness=0 is not 1 or more"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(CourseError, match=f"^{message}"):
        pair_objective(**wrong)


@pytest.mark.parametrize("shape", [(12, 14), (9, 11, 7)])
def test_a_coarse_loss_is_the_loss_of_averaged_images_labels_and_maps(shape):
    batch, registration = pair(shape)
    batch["fixed_mask"] = torch.rand(batch["fixed"].shape)
    settings = {"similarity": "ssd", "smoothness": 0.3, "dice_weight": 0.7, "labels": (1,)}
    found = pair_objective(**settings, coarseness=2).judge(registration, batch)
    assert found.registration is registration  # validation measures it on the images' grid
    moving, fixed, mask = (fields.pool(batch[key], 2) for key in ("moving", "fixed", "fixed_mask"))
    assert fixed.shape[2:] == tuple(-(-n // 2) for n in shape)
    displacement = fields.pool(registration.displacement, 2) / 2
    moved = fields.warp(moving, displacement)
    assert_close(found.terms["similarity"], losses.ssd_loss(moved, fixed, mask))
    assert_close(found.terms["regularisation"], losses.diffusion_loss(fields.pool(registration.velocity, 2) / 2))
    members = [fields.pool(batch[f"{side}_label"].float(), 2) for side in ("moving", "fixed")]
    assert_close(found.terms["overlap"], losses.soft_dice_loss(fields.warp(members[0], displacement), members[1]))


@pytest.mark.parametrize("shape", [(16, 18), (12, 11, 13)])
def test_edges_count_as_much_as_their_weight_says(shape):
    batch, registration = pair(shape)
    moved, fixed = registration.moved, batch["fixed"]

    def length(image):
        return torch.stack(fields.gradient(image)).square().sum(0).add(1e-6).sqrt()

    of_images, of_edges = losses.ncc_loss(moved, fixed, 5), losses.ncc_loss(length(moved), length(fixed), 5)
    assert (of_images - of_edges).abs() > 0.005
    assert_close(NCC(5, edges=3.0)(registration, batch), (of_images + 3 * of_edges) / 4)
    assert_close(NCC(5)(registration, batch), of_images)
    assert pair_objective("ncc-edges").terms["similarity"][1] == NCC(9, edges=1.0)


def test_the_window_of_a_named_similarity_shrinks_with_the_grid():
    windows = [pair_objective("ncc", coarseness=n).terms["similarity"][1].window for n in (1, 2, 3, 4)]
    assert windows == [9, 5, 3, 3]
    assert pair_objective(NCC(7), coarseness=2).terms["similarity"][1].window == 7


def test_a_window_must_have_a_middle():
    batch, registration = pair((12, 14))
    with pytest.raises(ValueError, match="window is an odd number of voxels"):
        NCC(window=4)(registration, batch)


def test_the_same_seed_gives_the_same_first_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    spec = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": [4, 8]})
    a, b, other = (spec.build(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], other[key]) for key in a)
