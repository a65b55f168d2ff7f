"""The inception stem: how far each kernel sees, what it computes, that none shifts the image."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.testing import assert_close

from course_utils.errors import CourseError
from course_utils.networks import InceptionStem, NetworkSpec
from tests.networks.small import SIZES, both, images, small

strides = pytest.mark.parametrize(("stride", "kernels"), [(1, (1, 3, 7)), (2, (2, 4, 8))], ids=["stride 1", "stride 2"])


def linear_stem(dims, stride, kernels, outputs=5):
    """A stem of random weights without its activation."""
    torch.manual_seed(0)
    stem = InceptionStem(dims, 2, outputs, kernels, stride=stride)
    stem.activation = nn.Sequential()
    stem.activation.forward = lambda x, code: x
    return stem


@both
@strides
def test_each_output_sees_exactly_its_kernel(dims, stride, kernels):
    stem = linear_stem(dims, stride, kernels)
    assert [branch.out_channels for branch in stem.branches] == [2, 2, 1]  # what is left over goes to the first
    image = torch.zeros(1, 2, *[16] * dims, requires_grad=True)
    place = 8 // stride
    out = stem(image)[(0, slice(None), *[place] * dims)]
    for channel, kernel in zip((0, 2, 4), kernels, strict=True):
        (gradient,) = torch.autograd.grad(out[channel], image, retain_graph=True)
        touched = gradient[0].abs().sum(0).nonzero()
        first = stride * place - (kernel - stride) // 2
        assert touched.amin(0).tolist() == [first] * dims
        assert touched.amax(0).tolist() == [first + kernel - 1] * dims
        assert len(touched) == kernel**dims


@both
@strides
def test_all_kernels_but_one_zeroed_leave_a_convolution(dims, stride, kernels):
    """Against scipy, at the places that the stride keeps."""
    stem, image = linear_stem(dims, stride, kernels), torch.randn(1, 2, *SIZES[dims])
    for kept, branch in enumerate(stem.branches):
        alone = linear_stem(dims, stride, kernels)
        for number, other in enumerate(alone.branches):
            if number != kept:
                nn.init.zeros_(other.weight)
                nn.init.zeros_(other.bias)
        found = alone(image)[0].detach().numpy()
        weight, bias = branch.weight.detach().numpy(), branch.bias.detach().numpy()
        begin = 2 * kept
        for channel in range(branch.out_channels):
            # An even kernel's middle, as scipy takes it, lies behind the middle of what the stride keeps.
            wanted = bias[channel] + sum(
                ndimage.correlate(image[0, n].numpy(), weight[channel, n], mode="constant", origin=0) for n in range(2)
            )
            shifted = wanted[tuple([slice(stride - 1, None, stride)] * dims)]
            np.testing.assert_allclose(found[begin + channel], shifted, atol=1e-4)
        assert not np.delete(found, [begin + n for n in range(branch.out_channels)], axis=0).any()


@strides
def test_a_mirrored_image_gives_mirrored_features_with_mirrored_kernels(stride, kernels):
    stem, image = linear_stem(2, stride, kernels), torch.rand(1, 2, 32, 24)
    right = stem(image)
    with torch.no_grad():
        for branch in stem.branches:
            branch.weight.copy_(branch.weight.flip(-1))
    assert_close(stem(image.flip(-1)), right.flip(-1), rtol=0, atol=1e-5)


@both
def test_one_kernel_is_voxelmorph(dims):
    """All but the stem is VoxelMorph's, and a stem of one kernel of its width is its first level."""
    plain, one = small("voxelmorph", dims, amplitude=3.0), small("inception", dims, seed=1, kernels=(4,))
    names = {"unet.encoder.0.0": "unet.encoder.0.branches.0"}
    one.load_state_dict(
        {f"{names.get(key[: key.rindex('.')], key[: key.rindex('.')])}{key[key.rindex('.') :]}": value
         for key, value in plain.state_dict().items()}
    )  # fmt: skip
    pair = images(SIZES[dims])
    assert plain(*pair).displacement.abs().max() > 1
    assert_close(one(*pair).displacement, plain(*pair).displacement, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": [3, 5]}, r"kernels=\(3, 5\) are one or more even widths where the stride is 2"),
        ({"kernels": [2, 4], "half_resolution": False}, r"kernels=\(2, 4\) are one or more odd widths"),
        ({"kernels": []}, r"kernels=\(\) are one or more"),
        ({"kernels": [0]}, r"kernels=\(0,\) are one or more"),
        ({"features": [3, 4]}, r"4 kernels need as many channels or more, not features\[0\]=3"),
    ],
)
def test_a_stem_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(CourseError, match=f"a network 'inception' cannot be built .*{message}"):
        NetworkSpec("inception", {"spatial_dims": 2, **options}).build()
