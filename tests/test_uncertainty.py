"""Probabilistic registration: the divergence, the samples, the bound; and what a spread is worth."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from course_utils import uncertainty
from course_utils.errors import CourseError
from course_utils.fields import integrate
from course_utils.losses import ssd_loss, velocity_divergence
from course_utils.networks import LOG_VARIANCE, MEAN, NetworkSpec
from course_utils.objectives import EvidenceBound
from tests.networks.small import both, images, small

GRIDS = pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)])


def laplacian(shape):
    """The graph Laplacian of a grid, dense, from the coordinates of its nodes."""
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, len(shape))
    adjacent = (np.abs(nodes[:, None] - nodes[None]).sum(-1) == 1).astype(float)
    return torch.from_numpy(np.diag(adjacent.sum(1)) - adjacent)


@GRIDS
def test_the_divergence_is_that_of_dense_normal_distributions_up_to_a_constant(shape):
    """Against PyTorch's divergence of multivariate normals, with a prior that is made proper by a tiny ridge."""
    precision, ridge, dims, n = 7.0, 1e-6, len(shape), math.prod(shape)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(n, dtype=torch.float64),
        precision_matrix=precision * laplacian(shape) + ridge * torch.eye(n, dtype=torch.float64),
    )
    generator = torch.Generator().manual_seed(0)
    found, wanted = [], []
    for _ in range(3):
        mean = torch.randn(1, dims, *shape, generator=generator)
        log_variance = torch.randn(1, dims, *shape, generator=generator) - 2
        found.append(velocity_divergence(mean, log_variance, precision).item() * n)
        posteriors = (
            torch.distributions.MultivariateNormal(m.flatten().double(), torch.diag(v.flatten().double().exp()))
            for m, v in zip(mean[0], log_variance[0], strict=True)
        )
        wanted.append(sum(torch.distributions.kl_divergence(each, prior).item() for each in posteriors))
    assert found[1] - found[0] == pytest.approx(wanted[1] - wanted[0], rel=1e-3)
    assert found[2] - found[0] == pytest.approx(wanted[2] - wanted[0], rel=1e-3)


@both
def test_alone_the_divergence_leads_to_the_prior_s_own_variance(dims):
    """Without images nothing is learnt but 1 / (precision x neighbours): inside, 4 in 2-D and 6 in 3-D."""
    log_variance = torch.full((1, dims, *[6] * dims), -3.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (1000 * velocity_divergence(torch.zeros_like(log_variance), log_variance, 10.0)).backward()
        optimizer.step()
    inside = log_variance.detach()[(..., *[slice(1, -1)] * dims)]
    assert_close(inside.exp(), torch.full_like(inside, 1 / (10 * 2 * dims)), rtol=0.01, atol=0)


@both
def test_it_answers_with_the_mean_when_used_and_with_samples_in_training(dims):
    network = small("probabilistic", dims, amplitude=2.0)
    torch.nn.init.zeros_(network.log_variance.weight)
    torch.nn.init.constant_(network.log_variance.bias, math.log(0.09))
    moving, fixed = images((32,) * dims)
    with torch.no_grad():
        used, again = network(moving, fixed), network(moving, fixed)
        assert_close(used.displacement, again.displacement, rtol=0, atol=0)
        samples = network.sample(moving, fixed, 60)
        coarse = moving[(..., *[slice(None, None, 2)] * dims)]  # of the network's own grid
        fields = torch.stack([each.coarser(coarse, 2).velocity for each in samples])
        assert_close(fields.mean(0), used.extras[MEAN], rtol=0, atol=0.25)
        assert fields.std(0).mean().item() == pytest.approx(0.3, rel=0.05)
        network.train()
        torch.manual_seed(1)
        one, other = (network(moving, fixed).displacement for _ in range(2))
        assert (one - other).abs().max() > 0.05
        torch.manual_seed(1)
        assert_close(network(moving, fixed).displacement, one, rtol=0, atol=0)


@both
@pytest.mark.parametrize("coarseness", [1, 2])
def test_the_bound_is_the_sum_over_voxels_that_the_paper_has(dims, coarseness):
    """On the images' grid: reconstruction of all its voxels, and divergence of the velocity's fewer ones."""
    network = small("probabilistic", dims, amplitude=1.0)
    moving, fixed = images((16,) * dims)
    outcome = EvidenceBound(0.1, 5.0, coarseness)(network, {"moving": moving, "fixed": fixed})
    judged, voxels = outcome.registration, 16**dims
    moved, seen = judged.moved, fixed
    if coarseness == 2:
        pool = {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[dims]
        seen, voxels = pool(fixed, 2), 8**dims
        moved = judged.coarser(pool(moving, 2), 2).moved
    mean, log_variance = judged.extras[MEAN], judged.extras[LOG_VARIANCE]
    assert mean.shape == (1, dims, *[8] * dims)  # half resolution
    total = (moved - seen).square().sum() / (2 * 0.1**2) + velocity_divergence(mean, log_variance, 5.0) * 8**dims
    assert_close(outcome.loss, total / voxels)
    assert set(outcome.terms) == {"reconstruction", "divergence"}


@both
def test_doing_nothing_costs_what_the_untrained_network_costs(dims):
    network = NetworkSpec("probabilistic", {"spatial_dims": dims}).build(0).eval()
    moving, fixed = images((34,) * dims)
    batch, bound = {"moving": moving, "fixed": fixed}, EvidenceBound(0.1)
    began = bound(network, batch)
    nothing = bound(lambda moving, fixed, condition: network.motionless(moving), batch)
    assert nothing.registration.extras[MEAN].shape == began.registration.extras[MEAN].shape
    assert_close(nothing.loss, began.loss, rtol=1e-3, atol=0)


def test_the_extras_follow_every_way_of_using_an_answer():
    network = small("probabilistic", 2)
    moving, fixed = images((16, 16))
    answer = network(moving, fixed)
    ways = [answer, answer.of(fixed), answer.backwards(fixed), answer.coarser(moving[..., ::2, ::2], 2)]
    assert all(LOG_VARIANCE in way.extras for way in ways)
    assert_close(answer.backwards(fixed).displacement, integrate(-answer.velocity), rtol=0, atol=0.05)


@pytest.mark.parametrize("numbers", [{"image_sigma": 0.0}, {"prior_precision": -1.0}, {"image_sigma": math.nan}])
def test_numbers_that_mean_nothing_are_refused(numbers):
    with pytest.raises(CourseError, match="above 0"):
        EvidenceBound(**numbers)


def test_a_network_without_a_distribution_is_refused():
    moving, fixed = images((16, 16))
    with pytest.raises(CourseError, match="take a probabilistic one"):
        EvidenceBound()(small("voxelmorph", 2), {"moving": moving, "fixed": fixed})


def test_a_smaller_image_noise_lets_the_images_count_more():
    network = NetworkSpec("probabilistic", {"spatial_dims": 2}).build(0)
    moving, fixed = images((32, 32))
    batch = {"moving": moving, "fixed": fixed}
    strong, weak = (EvidenceBound(sigma)(network.eval(), batch).terms["reconstruction"].item() for sigma in (0.01, 0.1))
    assert strong == pytest.approx(100 * weak, rel=1e-4)
    assert weak == pytest.approx(ssd_loss(moving, fixed).item() / 0.02, rel=0.05)


# --- what a spread is worth -------------------------------------------------------------------------------------------


@both
def test_the_spread_is_numpys_standard_deviation_of_vectors(dims):
    fields = torch.randn(5, 2, dims, *[4] * dims, generator=torch.Generator().manual_seed(0))
    wanted = np.sqrt(np.var(fields.numpy(), axis=0, ddof=1).sum(axis=1, keepdims=True))
    assert_close(uncertainty.spread(list(fields)), torch.from_numpy(wanted))
    with pytest.raises(ValueError, match="two or more"):
        uncertainty.spread([fields[0]])


@pytest.mark.parametrize("dims", [2, 3])
def test_true_spreads_have_temperature_one_and_cover_what_they_promise(dims):
    generator = torch.Generator().manual_seed(0)
    said = 0.5 + torch.rand(200_000, generator=generator, dtype=torch.float64)
    vectors = torch.randn(200_000, dims, generator=generator, dtype=torch.float64) / dims**0.5
    error = said * vectors.norm(dim=1)
    assert uncertainty.temperature(said, error) == pytest.approx(1, abs=0.01)
    for level in (0.5, 0.95):
        assert uncertainty.coverage(said, error, dims, level) == pytest.approx(level, abs=0.005)
    overconfident = said / 3
    assert uncertainty.temperature(overconfident, error) == pytest.approx(3, abs=0.03)
    assert uncertainty.coverage(overconfident, error, dims) < 0.6
    table = uncertainty.reliability(said, error, 8)
    assert len(table) == 8 and table.spread.is_monotonic_increasing
    assert table.error.to_numpy() == pytest.approx(table.spread.to_numpy(), rel=0.03)
    assert stats.spearmanr(said, error).statistic > 0.3


def test_spreads_of_nothing_are_refused():
    zeros = torch.zeros(4)
    for use in (uncertainty.temperature, uncertainty.reliability):
        with pytest.raises(ValueError, match="all spreads are 0"):
            use(zeros, zeros)
    with pytest.raises(ValueError, match="one shape"):
        uncertainty.coverage(torch.ones(3), torch.ones(4), 2)
