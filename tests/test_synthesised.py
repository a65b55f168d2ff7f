"""SynthMorph: images and label maps drawn at random, what is learnt from them, and that no real image takes part."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F
from torch.testing import assert_close

from course_utils import fields
from course_utils.errors import CourseError
from course_utils.losses import diffusion_loss, membership_loss, one_hot
from course_utils.networks import NetworkSpec, Registration
from course_utils.objectives import (
    Bending,
    Colours,
    Membership,
    Shapes,
    Subjects,
    SynthesisedObjective,
    paint_labels,
    pair_objective,
)
from course_utils.objectives.contrast import smooth_noise
from course_utils.objectives.synthesised import points
from course_utils.training.models import Motionless
from tests.test_painted import moving_network

PLAIN = Colours(noise=0, empty=0, bias=0, gamma=0)
STILL = Bending(0.0, (8,))
both = pytest.mark.parametrize("shape", [(30, 34), (18, 22, 20)], ids=["2-D", "3-D"])


def slabs(shape, batch=1):
    """A label map of two slabs in a background, and the voxels whose neighbours are all of the same structure."""
    label = torch.zeros(batch, 1, *shape, dtype=torch.int16)
    label[..., 4:-4, 4 : shape[-1] // 2] = 1
    label[..., 4:-4, shape[-1] // 2 : -4] = 3  # values may be missing
    largest = F.max_pool2d if len(shape) == 2 else F.max_pool3d
    return label, {v: largest((label != v).float(), 3, stride=1, padding=1) == 0 for v in (0, 1, 3)}


def drawn(function, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function()


def balls(shape, radius, batch=1):
    """A label map of a ball, label 2, in a shell, label 1."""
    centre = [(n - 1) / 2 for n in shape]
    grid = fields.identity_grid(shape)[0]
    distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)).sqrt()
    label = (distance < radius).long() + (distance < 0.5 * radius).long()
    return label.expand(batch, 1, *shape).contiguous()


def synthesised(maps, compared, **options):
    return SynthesisedObjective(pair_objective(Membership(compared), **options), maps)


# --- images -----------------------------------------------------------------------------------------------------------


@both
def test_without_noise_a_structure_has_one_grey_value_its_own_in_each_image(shape):
    label, inside = slabs(shape, batch=2)
    images = drawn(lambda: paint_labels(label, PLAIN))
    assert images.dtype == torch.float32 and images.min() == 0 and images.max() == 1
    means = []
    for image, places in ((images[k], {v: where[k] for v, where in inside.items()}) for k in (0, 1)):
        values = [image[where] for where in places.values()]
        assert all(value.std() < 1e-6 for value in values)
        means.append(torch.stack([value.mean() for value in values]))
    assert (means[0] - means[1]).abs().max() > 0.1


def test_the_grey_values_are_those_drawn_brought_to_the_range_from_0_to_1():
    label, inside = slabs((30, 34))
    image = drawn(lambda: paint_labels(label, PLAIN), seed=5)
    means = drawn(lambda: torch.rand(1, 4), seed=5)[0, [0, 1, 3]]  # the first numbers that are drawn
    found = torch.stack([image[where].mean() for where in inside.values()])
    assert_close(found, (means - means.min()) / (means.max() - means.min()), atol=1e-5, rtol=0)


def test_noise_has_a_standard_deviation_of_its_own_in_each_structure():
    """Of many images: uniform from 0 to the largest, and less where the image was blurred, and more by its range."""
    label, inside = slabs((60, 64), batch=40)
    images = drawn(lambda: paint_labels(label, dataclasses.replace(PLAIN, noise=0.1)))
    spreads = torch.stack(
        [torch.stack([images[k][where[k]].std() for where in inside.values()]) for k in range(len(images))]
    )
    assert spreads.max() < 0.35 and spreads.min() < 0.02 and 0.02 < spreads.mean() < 0.15
    within = (spreads.amax(1) / spreads.amin(1)).median()
    assert within > 1.5


def test_two_images_differ_and_the_global_generator_makes_them_again():
    label, _ = slabs((30, 34))
    first, second, again = (drawn(lambda: paint_labels(label, Colours()), seed) for seed in (0, 1, 0))
    assert (first - second).abs().mean() > 0.02
    assert torch.equal(first, again)


@pytest.mark.parametrize(("empty", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
def test_so_often_is_what_has_no_label_black_and_without_noise(empty, share):
    label, inside = slabs((24, 26), batch=400)
    images = drawn(lambda: paint_labels(label, Colours(empty=empty)))
    black = torch.stack([image[where].max() < 1e-6 for image, where in zip(images, inside[0], strict=True)])
    assert black.float().mean().item() == pytest.approx(share, abs=0.06)


@both
def test_an_image_shows_its_label_map_and_nothing_else(shape):
    """Two label maps of the same structures at the same places, in any integer type, give the same image."""
    label, _ = slabs(shape)
    images = [drawn(lambda made=made: paint_labels(made, Colours())) for made in (label, label.long(), label.int())]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


# --- deformations and shapes ------------------------------------------------------------------------------------------


@both
def test_a_deformation_does_not_fold_and_is_as_large_as_asked_for(shape):
    wide = [2 * n for n in shape]
    sizes = []
    for strength in (0.0, 1.0, 3.0):
        displacement = drawn(lambda s=strength: Bending(s, (16,))(6, wide, torch.device("cpu")))
        assert displacement.shape == (6, len(shape), *wide) and displacement.dtype == torch.float32
        assert fields.jacobian_determinant(displacement).min() > 0
        sizes.append(displacement.square().sum(1).mean().sqrt().item())
    assert sizes[0] == 0 and 0.2 < sizes[1] < 2 and sizes[2] == pytest.approx(3 * sizes[1], rel=0.1)


def test_a_constant_velocity_moves_everything_so_many_voxels():
    """Integrated on half the grid, and brought back to voxels of the whole one."""
    bending = Bending(1.0, (1000,))  # two points along each axis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("course_utils.objectives.synthesised.smooth_noise", lambda b, c, k, s, d: torch.ones(b, c, *s))
        patch.setattr("course_utils.objectives.synthesised.uniform", lambda *a, **k: torch.full((2,), 3.0))
        displacement = bending(2, (20, 24), torch.device("cpu"))
    assert_close(displacement, torch.full((2, 2, 20, 24), 3.0), atol=1e-4, rtol=0)


@both
def test_smooth_noise_is_that_of_its_points_and_lines_between(shape):
    noise = drawn(lambda: smooth_noise(3, 2, [5] * len(shape), shape, torch.device("cpu")))
    knots = drawn(lambda: torch.randn(3, 2, *[5] * len(shape)))
    places = np.meshgrid(*[(np.arange(n) + 0.5) * 5 / n - 0.5 for n in shape], indexing="ij")
    for k, channel in ((0, 0), (2, 1)):
        expected = ndimage.map_coordinates(knots[k, channel].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(noise[k, channel].numpy(), expected, atol=1e-5)


@both
def test_shapes_have_all_labels_in_about_equal_shares(shape):
    shapes = Shapes(count=5, scale=8)
    maps = drawn(lambda: shapes.draw(30, shape, torch.device("cpu")))
    assert maps.shape == (30, 1, *shape) and maps.dtype == torch.int16 and maps.min() == 0
    shares = torch.stack([(maps == label).float().mean() for label in range(5)])
    assert shares.sum() == pytest.approx(1) and (shares - 0.2).abs().max() < 0.06
    assert not torch.equal(maps[0], maps[1])


def test_shapes_are_as_large_as_their_scale():
    """How often two neighbours differ falls as the scale grows."""

    def borders(scale):
        maps = drawn(lambda: Shapes(count=8, scale=scale, wobble=0).draw(20, (96, 96), torch.device("cpu")))
        return (maps[..., 1:] != maps[..., :-1]).float().mean().item()

    small, middle, large = (borders(scale) for scale in (8, 16, 32))
    assert small == pytest.approx(2 * middle, rel=0.35) and middle == pytest.approx(2 * large, rel=0.5)


def test_a_shape_is_the_label_whose_image_is_brightest():
    shapes = Shapes(count=4, scale=8, wobble=0)
    label = drawn(lambda: shapes.draw(2, (24, 32), torch.device("cpu")))
    images = drawn(lambda: smooth_noise(8, 1, points((24, 32), 8), (12, 16), torch.device("cpu")))
    images = F.interpolate(images.view(2, 4, 12, 16), size=(24, 32), mode="bilinear").numpy()
    assert (images.argmax(1)[:, None] == label.numpy()).all()


@both
def test_the_two_maps_of_a_pair_of_shapes_are_deformations_of_one_map(shape):
    bending = Bending(2.0, (8, 16))
    like = {"fixed": torch.full((2, 1, *shape), torch.nan)}
    device = torch.device("cpu")
    shapes = Shapes(count=6, scale=8, bending=bending)
    moving, fixed = drawn(lambda: shapes(like, training=True))

    def one_after_the_other():
        return shapes.draw(2, shape, device), bending(2, shape, device), bending(2, shape, device)

    label, first, second = drawn(one_after_the_other)
    assert torch.equal(moving, fields.warp(label, first, mode="nearest"))
    assert torch.equal(fixed, fields.warp(label, second, mode="nearest"))
    assert not torch.equal(moving, fixed)
    # The map between them is known, so they can be registered: back along the first, on along the second.
    between = fields.compose(fields.invert(first), second)
    aligned = fields.warp(moving, between, mode="nearest")
    assert (aligned != fixed).float().mean() < 0.4 * (moving != fixed).float().mean()
    unmoved = drawn(lambda: dataclasses.replace(shapes, bending=STILL)(like, training=True))
    assert torch.equal(*unmoved)


@both
def test_the_maps_of_people_are_bent_each_in_its_own_way_and_only_in_training(shape):
    label = balls(shape, 8)
    batch = {"moving_label": label, "fixed_label": label}
    subjects = Subjects(Bending(3.0, (8,)))
    assert all(torch.equal(made, label) for made in subjects(batch, training=False))
    moving, fixed = drawn(lambda: subjects(batch, training=True))
    assert moving.dtype == label.dtype and set(moving.unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(moving, label) and not torch.equal(moving, fixed)


# --- the loss ---------------------------------------------------------------------------------------------------------


@both
def test_the_squared_error_of_one_hot_maps_by_numpy(shape):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.randint(0, 5, (2, 2, 1, *shape), generator=generator)
    displacement = 2 * torch.randn(2, len(shape), *shape, generator=generator)
    found = Membership((1, 3, 4))(
        Registration(torch.zeros(2, 1, *shape), displacement), {"moving_label": moving, "fixed_label": fixed}
    )
    expected = 0.0
    for k in range(2):
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + displacement[k].numpy()
        places = np.clip(places, 0, np.array(shape).reshape(-1, *[1] * len(shape)) - 1)
        for label in (1, 3, 4):
            one = (moving[k, 0].numpy() == label).astype(float)
            moved = ndimage.map_coordinates(one, places, order=1)
            expected += np.mean((moved - (fixed[k, 0].numpy() == label)) ** 2) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_of_hard_maps_it_is_twice_the_share_of_voxels_that_differ():
    generator = torch.Generator().manual_seed(1)
    moving, fixed = torch.randint(0, 4, (2, 3, 1, 20, 22), generator=generator)
    both_hot = [one_hot(label, range(4)) for label in (moving, fixed)]
    assert membership_loss(*both_hot).item() == pytest.approx(2 * (moving != fixed).float().mean().item())
    assert membership_loss(both_hot[0], both_hot[0]).item() == 0
    with pytest.raises(ValueError, match="must have one shape"):
        membership_loss(both_hot[0], both_hot[1][:, :2])


def test_pairs_without_labels_are_refused_by_name():
    registration = Registration(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8))
    with pytest.raises(CourseError, match="not all of a b have labels"):
        Membership((1,))(registration, {"name": ["a b"]})


# --- the objective ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["labels", "shapes"])
@pytest.mark.parametrize("coarseness", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_no_real_image_is_looked_at(shape, kind, coarseness, training):
    """With images of NaN the loss is what it is with any others, and so are its gradients: finite."""
    maps = {"labels": Subjects(), "shapes": Shapes(count=4, scale=8)}[kind]
    labels = {"labels": (1, 2), "shapes": tuple(range(4))}[kind]
    objective = synthesised(maps, labels, dice_weight=0.5, labels=labels, coarseness=coarseness)
    network = moving_network("pyramid", shape).train(training)
    label = {"moving_label": balls(shape, 7, 2), "fixed_label": balls(shape, 8, 2)} if kind == "labels" else {}
    assert objective.needs == set(label)
    found = []
    for image in (torch.full((2, 1, *shape), torch.nan), torch.rand(2, 1, *shape)):
        outcome = drawn(lambda image=image: objective(network, {"moving": image, "fixed": image, **label}))
        network.zero_grad()
        outcome.loss.backward()
        found.append([outcome.loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
        assert (outcome.registration is None) == (training or kind == "shapes")
    assert all(one.isfinite().all() for one in found[0])
    assert_close(found[0], found[1], rtol=0, atol=0)


@both
def test_the_network_sees_the_painted_maps_and_is_judged_by_the_same_maps(shape):
    label = balls(shape, 7)
    batch = {"moving": torch.zeros(1, 1, *shape), "fixed": torch.zeros(1, 1, *shape)}
    batch |= {"moving_label": label, "fixed_label": label.flip(-1)}
    displacement = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(1))
    seen = []

    def model(moving, fixed, condition=None):
        seen.append((moving, fixed))
        return Registration(fields.warp(moving, displacement), displacement, displacement)

    model.training = True
    subjects = Subjects(Bending(2.0, (8,)))
    objective = synthesised(subjects, (1, 2), smoothness=0.3)
    outcome = drawn(lambda: objective(model, batch))

    def one_after_the_other():
        maps = subjects(batch, True)
        return maps, [paint_labels(made, objective.colours) for made in maps]

    maps, images = drawn(one_after_the_other)
    assert_close(list(seen[0]), images)
    moved = fields.warp(one_hot(maps[0], (1, 2)), displacement)
    expected = membership_loss(moved, one_hot(maps[1], (1, 2)))
    assert_close(outcome.terms["similarity"], expected)
    assert_close(outcome.loss, expected + 0.3 * diffusion_loss(displacement))


def test_a_checkpoint_says_how_it_was_made():
    told = synthesised(Shapes(), (0, 1)).describe()
    assert told["label_maps"]["term"] == "Shapes" and told["label_maps"]["bending"]["scales"] == [8, 16, 32]
    assert told["colours"] == {"term": "Colours", "noise": 0.1, "bias": 0.3, "knots": 4, "gamma": 0.25, "empty": 0.2}
    assert told["similarity"]["term"] == "Membership" and told["similarity"]["labels"] == [0, 1]


def steps_of(objective, batch, count):
    """A small antisymmetric network that sees edges, after so many steps."""
    options = {"spatial_dims": 2, "features": [16, 16, 16], "edges": True, "antisymmetric": True}
    network = NetworkSpec("voxelmorph", options).build(0).train()
    adam = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(count):
        adam.zero_grad()
        objective(network, batch).loss.backward()
        adam.step()
    return network


def without_images(shape, batch, **labels):
    return {"moving": torch.full((batch, 1, *shape), torch.nan), "fixed": torch.full((batch, 1, *shape), torch.nan)} | {
        f"{side}_label": label for side, label in labels.items()
    }


def test_a_few_steps_bring_labels_closer_in_contrasts_that_were_never_shown():
    """A ball in a shell, larger in the one image than in the other; what no step has seen is any image."""
    shape = (32, 32)
    small, large = balls(shape, 8), balls(shape, 11)
    maps = {
        "moving": torch.cat([small, large]).repeat(2, 1, 1, 1),
        "fixed": torch.cat([large, small]).repeat(2, 1, 1, 1),
    }
    objective = synthesised(Subjects(Bending(1.0, (8,))), (1, 2), smoothness=0.02)
    network = drawn(lambda: steps_of(objective, without_images(shape, 4, **maps), 60)).eval()
    values = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 1.0]])  # two contrasts
    with torch.no_grad():
        field = network(values[0][small], values[1][large]).displacement
    moved = fields.warp(small, field, mode="nearest")
    assert (moved != large).sum() < 0.4 * (small != large).sum()


def test_a_few_steps_on_shapes_register_shapes_that_were_never_shown():
    shape = (32, 32)
    shapes = Shapes(count=4, scale=16, wobble=1.0, bending=Bending(2.0, (8, 16)))
    objective = synthesised(shapes, tuple(range(4)), smoothness=0.02)
    network = drawn(lambda: steps_of(objective, without_images(shape, 4), 60))
    with torch.no_grad():
        others = without_images(shape, 64)
        after, before = (
            drawn(lambda model=model: objective(model, others), seed=1).terms["similarity"].item()
            for model in (network, Motionless(network))
        )
    assert after < 0.75 * before
