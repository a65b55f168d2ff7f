"""The pyramid: what its levels predict and see, and displacements larger than what moves."""

import pytest
import torch
from torch.testing import assert_close

from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import Pyramid
from tests.networks.small import SIZES, both, images, inner, small


@both
@pytest.mark.parametrize(("half", "finest"), [(True, 2), (False, 1)], ids=["half", "full"])
def test_what_a_level_predicts_counts_in_its_own_voxels(dims, half, finest):
    for level in range(3):
        network = small("pyramid", dims, half_resolution=half)
        with torch.no_grad():
            for head in network.velocity:
                head.weight.zero_()
            network.velocity[level].bias[1] = 0.25
        result = network(*images(SIZES[dims]))
        expected = torch.zeros_like(result.velocity)
        expected[:, 1] = 0.25 * finest * 2**level
        assert_close(result.velocity, expected)
        assert_close(inner(result.displacement, 3), inner(expected, 3), rtol=0, atol=1e-3)


def test_a_finer_level_sees_what_the_coarser_ones_have_aligned():
    network = small("pyramid", 2)
    moving, _ = images((64, 64), seed=3)
    fixed = moving.roll(-16, dims=2)  # fixed(x) = moving(x + 16): eight voxels on the half grid, two on the coarsest
    with torch.no_grad():
        network.velocity[2].bias[0] = 2
    seen = []
    network.decoder[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    network(moving, fixed)
    aligned, wanted = seen[0][:, :4, 6:18, 6:-6], seen[0][:, 4:8, 6:18, 6:-6]
    unaligned = network.encoder[0](moving)[:, :, 6:18, 6:-6]
    assert (aligned - wanted).abs().mean() < 0.05 * (unaligned - wanted).abs().mean()


@both
def test_both_orders_at_the_price_of_one_are_what_each_order_gives(dims):
    network = small("pyramid", dims, antisymmetric=True)
    torch.manual_seed(0)
    for level, width in [(2, 8), (0, 4)]:
        features = torch.randn(4, width, *SIZES[dims])
        context = None if level == 2 else torch.randn(4, width, *SIZES[dims])
        found = network._in_both_orders(level, features, context)
        first, second = features.chunk(2)
        both = torch.cat([torch.cat([first, second], 1), torch.cat([second, first], 1)])
        expected = network.decoder[level](both if context is None else torch.cat([both, context], 1))
        assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_pyramid_learns_to_move_a_blob_farther_than_it_is_wide():
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    moving, fixed = (torch.exp(-((x - cx) ** 2 + (y - 32) ** 2) / 32)[None, None] for cx in (40, 24))
    torch.manual_seed(0)
    network = Pyramid(2, features=(8, 16, 16), instance_norm=False)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = ssd_loss(moving, fixed).item()
    for _ in range(120):
        result = network(moving, fixed)
        loss = ssd_loss(result.moved, fixed) + 1e-4 * diffusion_loss(result.velocity)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < before / 10
    assert result.displacement[0, 0, 24, 32].item() == pytest.approx(16, abs=1.5)
