"""What docs/coming-from.md says of fields and losses, held against the packages that people come from."""

import neurite as ne
import pytest
import SimpleITK as sitk
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from torch.nn import functional as F
from torch.testing import assert_close
from voxelmorph.nn.models import VxmPairwise

from course_utils import losses
from course_utils.fields import integrate, warp
from course_utils.objectives import Colours, paint_labels

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # in MONAI's losses
BOTH = pytest.mark.parametrize("dims", [2, 3])


def smooth_field(dims, size=40):
    """A field (1, N, ...) in voxels of its grid: the same map of the same picture, whatever the grid's size."""
    axes = torch.meshgrid(*[(torch.arange(size) + 0.5) / size for _ in range(dims)], indexing="ij")
    waves = [torch.cos(6.0 * axes[n] + n) * torch.sin(5.0 * axes[n - 1]) for n in range(dims)]
    return 0.1 * size * torch.stack(waves)[None]


def images(dims, size=32):
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 1, *[9] * dims, generator=generator)
    both = F.interpolate(rough, size=[size] * dims, mode={2: "bilinear", 3: "trilinear"}[dims])
    return both[:1], both[1:]


@BOTH
def test_the_diffusion_loss_is_neurites_and_monais_by_the_number_of_axes(dims):
    field = smooth_field(dims)
    ours = losses.diffusion_loss(field)
    assert_close(ours, ne.nn.functional.spatial_gradient(field), rtol=1e-5, atol=0)
    assert DiffusionLoss()(field).item() == pytest.approx(dims * ours.item(), rel=0.1)


@BOTH
def test_the_bending_loss_is_monais_and_four_times_as_large_on_half_the_grid(dims):
    field = smooth_field(dims)
    ours = losses.bending_loss(field)
    assert BendingEnergyLoss()(field).item() == pytest.approx(ours.item(), rel=0.15)
    half = smooth_field(dims, 20)
    assert losses.bending_loss(half).item() == pytest.approx(4 * ours.item(), rel=0.15)
    assert losses.diffusion_loss(half).item() == pytest.approx(losses.diffusion_loss(field).item(), rel=0.1)


@BOTH
def test_the_ncc_loss_is_one_more_than_theirs(dims):
    moved, fixed = (F.pad(image, [4] * 2 * dims) for image in images(dims))  # they pad with zeros, so give them some
    ours = losses.ncc_loss(moved, fixed, 5).item()
    theirs = LocalNormalizedCrossCorrelationLoss(spatial_dims=dims, kernel_size=5)(moved, fixed).item()
    assert ours == pytest.approx(1 + theirs, abs=0.01)
    assert ours == pytest.approx(1 - ne.nn.functional.ncc(moved, fixed, 5).item(), abs=0.01)


@BOTH
def test_a_voxelmorph_network_means_the_same_by_its_fields(dims):
    torch.manual_seed(0)
    network = VxmPairwise(dims, 1, 1, nb_features=(4, 4, 4), integration_steps=5, flow_initializer=0.5).eval()
    moving, fixed = images(dims)
    with torch.no_grad():
        velocity = network(moving, fixed, return_field_type="velocity")
        displacement, moved, back = network(moving, fixed, return_warped_source=True, return_warped_target=True)
        inside = (..., *[slice(6, -6)] * dims)
        assert displacement.abs().max() > 0.3
        assert_close(integrate(velocity, 5)[inside], displacement[inside], rtol=0, atol=0.02)
        assert_close(warp(moving, displacement, padding="zeros"), moved, rtol=0, atol=1e-5)
        returned = warp(fixed, integrate(-velocity, 5), padding="zeros")
        assert_close(returned[inside], back[inside], rtol=0, atol=0.01)


@BOTH
def test_the_squared_error_of_one_hot_maps_is_the_usual_mean_times_the_number_of_structures(dims):
    moved, fixed = (
        F.softmax(torch.randn(2, 5, *[12] * dims, generator=torch.Generator().manual_seed(k)), 1) for k in (0, 1)
    )
    assert_close(losses.membership_loss(moved, fixed), 5 * F.mse_loss(moved, fixed))


@BOTH
def test_neurite_makes_an_image_of_labels_with_a_grey_value_each_and_one_noise_for_all(dims):
    """The first step of ours, which has a noise for each structure; `paint_labels` has the other steps too."""
    label = (
        torch.arange(4).view(4, *[1] * (dims - 1)).repeat_interleave(30, 0).expand(-1, *[30] * (dims - 1))[None, None]
    )
    torch.manual_seed(0)
    plain = ne.sample_image_from_labels(label, mean_range=(0, 1), noise_std=0.0)
    noisy = ne.sample_image_from_labels(label, mean_range=(0, 1), noise_std=0.1)
    ours = paint_labels(label, Colours(noise=0.2, empty=0, bias=0, gamma=0))
    inner = [(..., slice(30 * k + 2, 30 * k + 28), *[slice(2, -2)] * (dims - 1)) for k in range(4)]
    assert all(plain[where].std() < 1e-4 for where in inner) and plain.unique().numel() == 4
    spreads, own = ([image[where].std().item() for where in inner] for image in (noisy, ours))
    assert max(spreads) < 1.1 * min(spreads) and max(own) > 1.3 * min(own)


def test_simpleitk_moves_an_image_by_our_vectors_in_reverse_order():
    """What the page says of x, y, z: the last axis of an array is ITK's first."""
    image = images(3)[0]
    shift = torch.tensor([2.0, 0.0, -1.0])
    ours = warp(image, shift.view(1, 3, 1, 1, 1).expand(1, 3, *image.shape[2:]), padding="zeros")
    vectors = shift.flip(0).expand(*image.shape[2:], 3).double().numpy()
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors.copy(), isVector=True))
    theirs = sitk.GetArrayFromImage(sitk.Resample(sitk.GetImageFromArray(image[0, 0].numpy()), transform))
    assert_close(ours[0, 0, 3:-3, 3:-3, 3:-3], torch.from_numpy(theirs)[3:-3, 3:-3, 3:-3], rtol=0, atol=1e-5)
