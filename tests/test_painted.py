"""Images painted over label maps: what is random, what is kept, and which images judge the network."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from course_utils import fields
from course_utils.networks import NetworkSpec, Registration
from course_utils.objectives import PaintedObjective, Painting, paint, pair_objective

PLAIN = Painting(real=0, noise=0, detail=0, bias=0, gamma=0)
both = pytest.mark.parametrize("shape", [(30, 34), (18, 22, 20)], ids=["2-D", "3-D"])


def scene(shape, batch=1):
    """An image with some texture, a label map of two slabs in a background, and the voxels deep inside of each."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 1, *shape, generator=generator)
    label = torch.zeros(batch, 1, *shape, dtype=torch.int16)
    label[..., 4:-4, 4 : shape[-1] // 2] = 1
    label[..., 4:-4, shape[-1] // 2 : -4] = 3  # values may be missing
    largest = F.max_pool2d if len(shape) == 2 else F.max_pool3d
    inside = {
        value: largest((label != value).float(), 3, stride=1, padding=1) == 0 for value in (0, 1, 3)
    }  # no neighbour of another structure: not blurred
    return image, label, inside


def painted(shape, painting, seed=0, batch=1):
    image, label, inside = scene(shape, batch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return image, paint(image, label, painting), inside


def moving_network(name, shape, **options):
    """A network of random weights that moves things."""
    network = NetworkSpec(name, {"spatial_dims": len(shape), "features": [4, 4], **options}).build(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@both
def test_every_structure_has_one_brightness_of_its_own_in_each_image(shape):
    _, pictures, inside = painted(shape, PLAIN, batch=2)
    assert pictures.dtype == torch.float32 and pictures.min() == 0 and pictures.max() == 1
    means = []
    for picture in range(2):
        values = [pictures[picture][inside[value][picture]] for value in inside]
        assert all(value.std() < 1e-6 for value in values)
        means.append(torch.stack([value.mean() for value in values]))
    assert (means[0] - means[1]).abs().max() > 0.1


def test_which_structure_is_brighter_is_chance():
    brighter = 0
    for seed in range(60):
        _, picture, inside = painted((30, 34), PLAIN, seed)
        brighter += bool(picture[inside[1]].mean() > picture[inside[3]].mean())
    assert 15 < brighter < 45


def test_detail_follows_the_image_with_either_sign():
    signs = set()
    for seed in range(12):
        image, picture, _ = painted((40, 44), dataclasses.replace(PLAIN, detail=1.5), seed)
        _, label, _ = scene((40, 44))
        for value in (1, 3):
            there = label == value
            correlation = torch.corrcoef(torch.stack([image[there], picture[there]]))[0, 1].item()
            signs.add(correlation > 0)
            assert abs(correlation) > 0.3  # blurred, some more and some less
    assert signs == {True, False}


@both
def test_an_empty_background_stays_empty_and_another_is_painted(shape):
    image, label, inside = scene(shape)
    for emptied in (True, False):
        picture = paint(image * (label > 0) if emptied else image, label, Painting(real=0))
        assert picture.min() >= 0 and picture.max() <= 1
        assert (picture[inside[0]].abs().max() < 1e-4) == emptied


def test_a_real_image_is_left_alone():
    image, picture, _ = painted((18, 22, 20), Painting(real=1))
    assert_close(picture, image, rtol=0, atol=0)


def test_as_many_images_are_left_as_they_are_as_was_asked_for():
    _, pictures, _ = painted((30, 34), dataclasses.replace(Painting(), real=0.5), batch=64)
    image, _, _ = scene((30, 34), batch=64)
    real = (pictures == image).flatten(1).all(1)
    assert 16 < real.sum() < 48


@both
@pytest.mark.parametrize("coarseness", [1, 2])
def test_the_network_sees_painted_images_and_the_real_ones_judge_its_answer(shape, coarseness):
    image, label, _ = scene(shape, batch=2)
    batch = {"moving": image, "fixed": image.flip(-1), "moving_label": label, "fixed_label": label.flip(-1)}
    displacement = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(1))
    seen = []

    def model(moving, fixed, condition=None):
        seen.extend([moving, fixed])
        return Registration(fields.warp(moving, displacement), displacement, displacement)

    pair = pair_objective("ssd", dice_weight=0.5, labels=(1, 3), coarseness=coarseness)
    objective = PaintedObjective(pair, dataclasses.replace(Painting(), real=0))
    outcome = objective(model, batch)
    assert objective.needs == {"moving_label", "fixed_label"}
    assert [(a == b).all().item() for a, b in zip(seen, (batch["moving"], batch["fixed"]), strict=True)] == [False] * 2
    real = Registration(fields.warp(image, displacement), displacement, displacement)
    assert_close(outcome.loss, pair.judge(real, batch).loss)
    assert objective.describe()["painting"]["detail"] == Painting.detail


@both
def test_the_edges_of_an_image_are_those_of_its_negative_and_of_a_brighter_one(shape):
    image = F.interpolate(torch.rand(2, 1, *[n // 3 for n in shape], generator=torch.Generator().manual_seed(0)), shape)
    found = fields.edges(image)
    assert found.shape == image.shape and found.max() > 1
    for same in (1 - image, 0.2 + 0.5 * image, 7 * image):
        assert_close(fields.edges(same), found, rtol=1e-3, atol=1e-3)
    assert fields.edges(torch.ones_like(image)).max() < 0.01
    # One by one: an image does not count for another of its batch.
    assert_close(fields.edges(image[1:]), found[1:])


@both
def test_an_edge_is_bright_however_weak_it_is_beside_others_far_away_and_noise_is_none(shape):
    image = torch.zeros(1, 1, *shape)
    image[..., 4:] = 1.0
    image[..., 14:] = 1.3  # a weak edge, 10 voxels from the strong one
    image += 1e-3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    line = fields.edges(image).flatten(0, -2).mean(0)
    assert line[13:15].min() > 0.7 * line[3:5].max()
    assert line[18:].max() < 0.1


@both
@pytest.mark.parametrize("name", ["voxelmorph", "pyramid"])
def test_a_network_that_sees_edges_answers_the_same_to_a_negative(shape, name):
    network = moving_network(name, shape, edges=True)
    moving, fixed = torch.rand(2, 1, 1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, negative = network(moving, fixed), network(moving, 1 - fixed)
        assert answer.displacement.abs().max() > 0.05
        assert_close(negative.displacement, answer.displacement, rtol=0, atol=1e-3)
        assert_close(answer.moved, fields.warp(moving, answer.displacement))  # the image moves, not its edges
        intensities = moving_network(name, shape)
        difference = intensities(moving, 1 - fixed).displacement - intensities(moving, fixed).displacement
    assert difference.abs().max() > 0.01


@both
@pytest.mark.parametrize("name", ["voxelmorph", "pyramid"])
@pytest.mark.parametrize("training", [True, False])
def test_a_registration_of_another_image_is_the_same_map(shape, name, training):
    network = moving_network(name, shape).train(training)
    moving, fixed, other = torch.rand(3, 1, 1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = network(moving, fixed)
        second = first.of(other)
    assert first.displacement.abs().max() > 0.05
    assert_close(second.displacement, first.displacement)
    assert_close(second.velocity, first.velocity)
    assert_close(second.moved, fields.warp(other, first.displacement))
