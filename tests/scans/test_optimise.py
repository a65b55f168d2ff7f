"""Instance optimisation: known deformations are found, from zero and from a start, without folding."""

import math

import pytest
import torch
from torch.testing import assert_close

from course_utils.fields import integrate, resize, warp
from course_utils.losses import diffusion_loss, ncc_loss, ssd_loss
from course_utils.metrics import folding_percent, target_registration_error
from course_utils.objectives import NCC, SSD, Objective, Outcome
from course_utils.scans.optimise import FROM_ZERO, instance_objective, optimise

pytestmark = pytest.mark.slow

SHAPE = (32, 28, 30)


def pair(shape=SHAPE, seed=0, amplitude=0.25, contrast=1.0):
    """A lumpy image, and the same deformed: moving, fixed and the true displacement."""
    generator = torch.Generator().manual_seed(seed)
    dims = len(shape)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    lumps = [torch.rand(1, 1, *[n // size for n in shape], generator=generator) for size in (3, 8)]
    fine, coarse = (torch.nn.functional.interpolate(lump, size=shape, mode=mode) for lump in lumps)
    moving = (fine + coarse) / 2
    truth = integrate(resize(amplitude * torch.randn(1, dims, *[4] * dims, generator=generator), shape))
    return moving, warp(moving, truth) ** contrast, truth


def error(found, truth):
    inner = torch.zeros_like(truth[:, :1])
    inner[(..., *(slice(4, -4) for _ in truth.shape[2:]))] = 1
    return target_registration_error(found, truth, 1.0, inner).item()


@pytest.mark.parametrize("shape", [SHAPE, (48, 40)], ids=["3-D", "2-D"])
@pytest.mark.parametrize(("similarity", "smoothness"), [(NCC(), 0.05), (SSD(), 0.01)], ids=["ncc", "ssd"])
def test_a_known_deformation_is_found_from_zero(shape, similarity, smoothness):
    moving, fixed, truth = pair(shape)
    found = optimise(moving, fixed, instance_objective(similarity, smoothness))
    before = error(torch.zeros_like(truth), truth)
    assert before > 1 and error(found.displacement, truth) < 0.5 * before  # voxels
    assert folding_percent(found.displacement).item() == 0


def test_local_correlation_needs_no_equal_contrast():
    moving, fixed, truth = pair(contrast=3.0)
    objectives = {"ncc": instance_objective(NCC()), "ssd": instance_objective(SSD())}
    by = {name: error(optimise(moving, fixed, made).displacement, truth) for name, made in objectives.items()}
    assert by["ncc"] < 0.8 * by["ssd"]


def test_what_it_returns_belongs_together():
    moving, fixed, _ = pair()
    found = optimise(moving, fixed, iterations=10)
    assert found.displacement.shape == found.velocity.shape == (1, 3, *SHAPE)
    assert_close(found.moved, warp(moving, found.displacement))
    assert_close(found.displacement, integrate(found.velocity), rtol=0, atol=0.1)
    assert not any(tensor.requires_grad for tensor in (found.moved, found.displacement, found.velocity))


def test_the_inverse_is_the_exponential_of_minus_the_velocity():
    moving, fixed, _ = pair()
    found = optimise(moving, fixed)
    back = found.inverse()
    round_trip = found.displacement + warp(back, found.displacement)
    inner = (..., *(slice(3, -3) for _ in SHAPE))
    assert found.displacement[inner].norm(dim=1).mean() > 1
    assert round_trip[inner].norm(dim=1).mean() < 0.05  # voxels


def test_a_good_start_is_worth_many_iterations():
    moving, fixed, truth = pair()
    begun = optimise(moving, fixed, iterations=60)
    further = optimise(moving, fixed, start=begun.velocity, iterations=4, levels=[(1, 1.0)])
    alone = optimise(moving, fixed, iterations=4, levels=[(1, 1.0)])
    assert error(further.displacement, truth) < 0.9 * error(alone.displacement, truth)


class Deceived(Objective):
    """Shows a loss that climbs with whatever changes, and a gradient that promises the opposite."""

    def __call__(self, model, batch):
        registration = model(batch["moving"], batch["fixed"])
        away = resize(self.start, registration.displacement.shape[2:])
        moved = (registration.displacement - away).square().mean()
        loss = moved.detach() - (registration.velocity.sum() - registration.velocity.sum().detach())
        return Outcome(loss, {}, registration)

    def describe(self):
        return {}


@pytest.mark.parametrize("begins", [False, True], ids=["zero", "start"])
def test_it_never_ends_at_a_higher_loss_than_it_began(begins):
    """Every step goes astray: what comes back is what it began with."""
    moving, fixed, truth = pair()
    velocity = resize(0.2 * truth, [16, 14, 15]) if begins else None  # of half resolution, as a network's
    objective = Deceived()
    objective.start = resize(integrate(velocity), SHAPE) if begins else torch.zeros_like(truth)
    found = optimise(moving, fixed, objective, velocity, iterations=12)
    expected = resize(velocity, SHAPE) if begins else torch.zeros_like(truth)
    assert_close(found.velocity, expected, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_is_never_taken():
    moving, fixed, truth = pair()

    class Broken(Deceived):
        def __call__(self, model, batch):
            outcome = super().__call__(model, batch)
            return Outcome(outcome.loss * math.nan, {}, outcome.registration)

    objective = Broken()
    objective.start = torch.zeros_like(truth)
    assert optimise(moving, fixed, objective, iterations=12).displacement.abs().max() == 0


def test_it_ends_where_nothing_is_gained_any_more():
    moving, fixed, _ = pair()
    called = []

    class Counted(Objective):
        def __call__(self, model, batch):
            called.append(1)
            registration = model(batch["moving"], batch["fixed"])
            return Outcome(registration.velocity.square().mean(), {}, registration)  # least where it begins

        def describe(self):
            return {}

    found = optimise(moving, fixed, Counted(), iterations=500, levels=[(1, 1.0)])
    assert found.displacement.abs().max() == 0 and len(called) < 260


def test_a_start_keeps_its_lead():
    """What a long optimisation has reached, a short one from there does not lose on the way."""
    moving, fixed, truth = pair()
    objective = instance_objective(smoothness=0.01)
    begun = optimise(moving, fixed, objective, iterations=150)
    for iterations in (5, 20, 50):
        further = optimise(moving, fixed, objective, begun.velocity, iterations=iterations)
        assert error(further.displacement, truth) < 1.05 * error(begun.displacement, truth)
        assert ncc_loss(further.moved, fixed) < 1.02 * ncc_loss(begun.moved, fixed)


def test_no_iterations_give_the_start_back():
    moving, fixed, _ = pair()
    velocity = resize(torch.randn(1, 3, 3, 3, 3, generator=torch.Generator().manual_seed(1)), SHAPE)
    found = optimise(moving, fixed, start=velocity, iterations=0)
    assert (found.velocity - velocity).norm() < 0.1 * velocity.norm()  # through a grid four times coarser
    assert optimise(moving, fixed, iterations=0).displacement.abs().max() == 0


def test_coarse_to_fine_reaches_further():
    """Lumps of 3 and of 8 voxels, moved by 6: on the finest level alone the small ones catch on their neighbours."""
    moving, _, _ = pair((64, 64))
    truth = torch.full((1, 2, 64, 64), 6 / 2**0.5)
    fixed = warp(moving, truth)
    reach = {
        name: error(optimise(moving, fixed, levels=levels).displacement, truth)
        for name, levels in {"one": [(1, 1.0)], "three": FROM_ZERO.levels}.items()
    }
    assert reach["three"] < 0.5 * reach["one"]


@pytest.mark.parametrize(("similarity", "compare"), [(NCC(), ncc_loss), (SSD(), ssd_loss)], ids=["ncc", "ssd"])
def test_the_loss_falls_and_smoothness_is_what_its_weight_says(similarity, compare):
    moving, fixed, _ = pair()
    rough, smooth = (optimise(moving, fixed, instance_objective(similarity, weight)) for weight in (0.01, 10.0))
    assert compare(rough.moved, fixed) < compare(smooth.moved, fixed) < compare(moving, fixed)
    assert diffusion_loss(smooth.velocity) < 0.5 * diffusion_loss(rough.velocity)


def test_equal_images_stay_where_they_are():
    moving, _, _ = pair()
    assert optimise(moving, moving).displacement.norm(dim=1).mean() < 0.1  # voxels


def test_it_runs_where_evaluation_calls_it():
    """evaluate() calls every method in inference mode, where tensors know no gradients."""
    moving, fixed, truth = pair()
    with torch.inference_mode():
        found = optimise(moving + 0, fixed + 0, start=torch.zeros_like(truth), iterations=20)
    assert found.displacement.abs().max() > 0.5


def test_a_level_too_large_for_a_cpu_is_left_out(monkeypatch):
    moving, fixed, _ = pair()
    monkeypatch.setattr("course_utils.scans.optimise.LARGEST_LEVEL", 16 * 14 * 15)  # of half resolution
    assert_close(optimise(moving, fixed).velocity, optimise(moving, fixed, levels=FROM_ZERO.levels[:2]).velocity)


@pytest.mark.parametrize("begins", [False, True], ids=["zero", "start"])
def test_an_image_of_which_every_level_is_too_large_is_optimised_at_the_coarsest(monkeypatch, begins):
    moving, fixed, truth = pair((48, 40))
    monkeypatch.setattr("course_utils.scans.optimise.LARGEST_LEVEL", 8 * 8)
    start = torch.zeros_like(truth) if begins else None
    found = optimise(moving, fixed, start=start, iterations=20)
    assert_close(found.velocity, optimise(moving, fixed, start=start, iterations=20, levels=[(4, 1.0)]).velocity)
    assert found.displacement.abs().max() > 0.1


def test_an_objective_of_ones_own_is_what_is_minimised():
    """Here the fixed image takes no part: the objective asks for a shift of two voxels, and gets it."""
    moving, fixed, _ = pair()

    class Shifted(Objective):
        def __call__(self, model, batch):
            registration = model(batch["moving"], batch["fixed"])
            scale = SHAPE[0] / batch["moving"].shape[2]
            away = scale * registration.displacement - torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
            return Outcome(away.square().mean(), {"away": away.square().mean()}, registration)

        def describe(self):
            return {}

    found = optimise(moving, fixed, Shifted())
    assert found.displacement[0].mean((1, 2, 3)).tolist() == pytest.approx([2, 0, 0], abs=0.1)


def test_progress_goes_from_nothing_to_all_as_the_work_does():
    moving, fixed, _ = pair()
    told = []
    optimise(moving, fixed, iterations=12, levels=[(2, 0.5), (1, 0.5)], progress=told.append)
    assert told[0] == 0 and told[-1] == 1 and told == sorted(told)
    coarse = [share for share in told if share <= 1 / 9 + 1e-6]  # six steps on an eighth of the voxels
    assert len(coarse) >= 6 and len(told) >= 13
