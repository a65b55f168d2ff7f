"""What the benchmarks compute with: known pairs, rulers of templates, verdicts on spreads."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_utils.fields import warp
from course_utils.losses import velocity_divergence
from course_utils.networks import NetworkSpec, Registration
from tests.benchmarks.ages import OLD, YOUNG, Darkness, Setting, growth, voted
from tests.benchmarks.certainty import Known, deviations, judged, prior_deviation, sampled, verdict
from tests.benchmarks.templates import by_ants, spaced

SHAPES = pytest.mark.parametrize("shape", [(48, 40), (24, 28, 32)])


def motionless(template, scan):
    """Registers nothing."""
    nothing = torch.zeros(1, 2, *scan.shape[2:])
    return Registration(template, nothing, nothing)


# --- templates --------------------------------------------------------------------------------------------------------


def test_people_are_spaced_evenly_and_none_comes_twice():
    assert spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert len(set(spaced(range(7), 5))) == 5


def test_the_template_of_ants_lies_between_its_people():
    pytest.importorskip("ants")
    people = [disc((40, 40), row, radius=9) for row in (16.0, 20.0, 24.0)]
    # In a process of its own: there ANTs draws the same samples each time, and adds them up in the same order.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        template = alone.submit(by_ants, people, rounds=2).result()
    assert template.shape == (1, 1, 40, 40)
    assert template.min() >= 0 and template.max() <= 1
    rows = torch.arange(40.0)
    middle = (template[0, 0].sum(1) * rows).sum() / template.sum()
    assert middle.item() == pytest.approx(20, abs=1)
    overlap = ((template > 0.5) & (disc((40, 40), 20.0, radius=9) > 0.5)).sum() / (template > 0.5).sum()
    assert overlap > 0.9


def disc(shape, row, radius):
    """A soft bright disc in the middle column, `(1, 1, *shape)`."""
    places = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    centre = torch.tensor([row, (shape[1] - 1) / 2]).view(2, 1, 1)
    return torch.sigmoid(radius - (places - centre).norm(dim=0))[None, None]


def test_dark_pixels_are_counted_where_people_have_ventricles_and_nowhere_else():
    ventricles = torch.zeros(4, 1, 1, 10, 10, dtype=torch.bool)
    for person in range(4):
        ventricles[person, ..., 4:6, 4 : 6 + person] = True
    images = [torch.where(ventricle, 0.2, 0.8) for ventricle in ventricles]
    dark = Darkness.of(images, list(ventricles))
    assert dark.threshold == pytest.approx(0.5)
    assert dark.region.sum() == 10  # where anybody has one
    assert [dark(image) for image in images] == [4, 6, 8, 10]
    assert dark(torch.zeros(1, 1, 10, 10)) == 10
    assert Darkness.of(images, list(ventricles), share=0.5).region.sum() == 6  # where three of the four have


def test_the_votes_of_the_same_people_are_counted_in_the_template():
    sizes = [2, 4, 4]
    ventricles = [torch.zeros(1, 1, 8, 8, dtype=torch.bool) for _ in sizes]
    for ventricle, size in zip(ventricles, sizes, strict=True):
        ventricle[..., 4, :size] = True
    images = [ventricle.float() for ventricle in ventricles]
    assert voted(motionless, images[0], images, ventricles) == 4


def test_growth_is_a_share_of_the_line_through_people():
    years = np.array([20.0, 40.0, 60.0, 90.0])
    assert growth(100, 240, years, 50 + 4 * years) == pytest.approx(140 / (4 * (OLD - YOUNG)))


def test_a_setting_changes_one_factor_of_what_is_minimised():
    usual, smoother = Setting().objective(), Setting(smoothness=3.0).objective()
    assert (smoother.centring, smoother.anchor) == (usual.centring, usual.anchor)
    weights = [each.pair.terms["regularisation"][0] for each in (usual, smoother)]
    assert weights == [1.0, 3.0]
    assert Setting(anchor=10.0, centring=0.1).objective().describe()["template"]["anchor"] == 10.0


# --- certainty --------------------------------------------------------------------------------------------------------


@SHAPES
def test_the_truth_of_a_known_pair_registers_it(shape):
    image = smooth(shape)
    pair = Known.of(image, (image > 0.5).to(torch.int16), seed=1)
    assert_close(pair.fixed, image, rtol=0, atol=0.12)
    before = (pair.moving - pair.fixed)[pair.inside].abs().mean()
    after = (warp(pair.moving, pair.truth) - pair.fixed)[pair.inside].abs().mean()
    assert after < 0.05 and before > 2 * after
    assert 1 < pair.truth.norm(dim=1).mean() < 3
    again = Known.of(image, (image > 0.5).to(torch.int16), seed=1)
    assert_close(again.moving, pair.moving, rtol=0, atol=0)


def smooth(shape):
    """A smooth image from 0 to 1 without a gradient of 0 over wide parts, `(1, 1, *shape)`."""
    places = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    return (0.5 + 0.5 * torch.sin(places / 3).prod(0))[None, None]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_prior_s_own_deviation_makes_the_divergence_smallest(dims):
    own = prior_deviation(10.0, dims)
    costs = {}
    for factor in (0.9, 1.0, 1.1):
        # So large a grid that its border counts little.
        log_variance = torch.full((1, dims, *[60] * dims), 2 * np.log(factor * own))
        costs[factor] = velocity_divergence(torch.zeros_like(log_variance), log_variance, 10.0).item()
    assert min(costs, key=costs.get) == 1.0


@pytest.mark.parametrize("dims", [2, 3])
def test_spreads_are_judged_on_the_half_that_the_factor_was_not_fitted_on(dims):
    generator = torch.Generator().manual_seed(0)
    true = [0.5 + torch.rand(40_000, generator=generator) for _ in range(4)]
    errors = [s * torch.randn(len(s), dims, generator=generator).norm(dim=1) / dims**0.5 for s in true]
    good = verdict([s / 3 for s in true], errors, dims)
    assert good["factor"] == pytest.approx(3, rel=0.03)
    assert good["coverage"] < 0.6
    assert good["coverage with it"] == pytest.approx(0.95, abs=0.01)
    assert good["rank correlation"] > 0.3
    other = verdict([s / 3 for s in true], [*errors[:2], *(2 * e for e in errors[2:])], dims)
    assert other["factor"] == good["factor"] and other["coverage with it"] < 0.8


def test_a_method_is_judged_by_the_mean_of_its_answers():
    image = smooth((32, 32))
    pairs = [Known.of(image, torch.ones(1, 1, 32, 32, dtype=torch.int16), seed) for seed in range(4)]
    aside = 1 + torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))  # further at some pixels
    answers = [[pair.truth, pair.truth + aside] for pair in pairs]
    found = judged(answers, pairs)
    assert found["error"] == pytest.approx(0.5 * 2**0.5 * aside.mean().item(), rel=1e-4)
    assert found["spread"] == pytest.approx(aside.mean().item(), rel=1e-4)  # 0.5 ** 0.5 on both axes
    assert found["rank correlation"] == pytest.approx(1, abs=1e-3)
    assert found["factor"] == pytest.approx(0.5**0.5, rel=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_deviations_are_those_of_the_network_s_own_grid(dims):
    model = NetworkSpec("probabilistic", {"spatial_dims": dims}).build(0).eval()
    image = smooth((32,) * dims)
    pair = Known.of(image, (image > 0.5).to(torch.int16), seed=0)
    found = deviations(model, [pair, pair])
    assert len(found) == 2 * dims * 16**dims
    assert_close(found, torch.full_like(found, np.exp(-5)), rtol=1e-3, atol=0)
    answers = sampled(model, [pair], 3, seed=0)[0]
    assert len(answers) == 3 and answers[0].shape == (1, dims, *image.shape[2:])
    assert not torch.equal(answers[0], answers[1])
