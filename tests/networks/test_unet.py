"""The U-Net: its sizes, its skips, and that no level shifts the image."""

import pytest
import torch
from torch.testing import assert_close

from course_utils.networks import UNet
from tests.networks.small import both, resolutions


@both
@pytest.mark.parametrize(("stride", "features"), [(1, (4, 6)), (2, (4, 6, 8)), (2, (4, 6, 8, 10))])
def test_unet_works_at_the_resolution_of_its_first_level(dims, stride, features):
    net = UNet(dims, 2, features, first_stride=stride)
    assert net.divisor == stride * 2 ** (len(features) - 1)
    size = [2 * net.divisor, net.divisor, 3 * net.divisor][:dims]
    assert net(torch.rand(2, 2, *size)).shape == (2, features[0], *[n // stride for n in size])


@both
def test_every_level_and_every_skip_reaches_the_output(dims):
    net = UNet(dims, 1, (4, 6, 8), first_stride=2)
    x = torch.rand(1, 1, *[16] * dims)
    right = net(x)
    for level in [*net.encoder, *net.decoder]:
        weight = level[0].weight
        for channel in range(weight.shape[1]):  # each input of each level, so the skip's channels too
            saved = weight.detach().clone()
            with torch.no_grad():
                weight[:, channel] += 0.5
                assert not torch.allclose(net(x), right, rtol=0, atol=1e-6)
                weight.copy_(saved)


@resolutions
def test_a_mirrored_input_gives_a_mirrored_output_with_mirrored_weights(half):
    """No level may shift the image by part of a voxel: strides and upsampling are centred."""
    torch.manual_seed(0)
    net = UNet(2, 1, (4, 6, 8), first_stride=2 if half else 1)
    x = torch.rand(1, 1, 32, 32)
    right = net(x)
    with torch.no_grad():
        for level in [*net.encoder, *net.decoder]:
            level[0].weight.copy_(level[0].weight.flip(-1))
    assert_close(net(x.flip(-1)), right.flip(-1), rtol=0, atol=1e-5)
