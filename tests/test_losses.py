"""Losses on analytic cases, against SciPy, MONAI and neurite, and in half precision."""

import neurite.nn.functional as neurite
import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.losses import BendingEnergyLoss, DiceLoss, DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from torch.testing import assert_close

from course_utils.fields import affine_to_field, identity_grid, jacobian_determinant, warp
from course_utils.losses import (
    bending_loss,
    diffusion_loss,
    jacobian_loss,
    ncc_loss,
    one_hot,
    segmentation_loss,
    soft_dice_loss,
    ssd_loss,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # inside MONAI

SHAPES = {2: (12, 17), 3: (9, 12, 7)}
both = pytest.mark.parametrize("dims", [2, 3])
SIMILARITIES = {"ncc": ncc_loss, "ssd": ssd_loss, "dice": soft_dice_loss}
REGULARISERS = {"diffusion": diffusion_loss, "bending": bending_loss, "jacobian": jacobian_loss}


def noise(shape, seed, channels=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *shape, generator=generator)


def head(shape, seed):
    """A textured object in a flat background of zeros that is wider than any window below."""
    image = torch.zeros(2, 1, *shape)
    inside = (..., *[slice(5, n - 5) for n in shape])
    image[inside] = 0.5 + noise([n - 10 for n in shape], seed)
    return image


def ncc_by_definition(moved, fixed, window, epsilon):
    """Means over the part of each window that lies in the image, in double precision by SciPy."""
    moved, fixed = (x.double().numpy() for x in (moved, fixed))

    def mean(x):
        def total(y):
            size = (1, 1, *[window] * (x.ndim - 2))
            return scipy.ndimage.uniform_filter(y, size, mode="constant")

        return total(x) / total(np.ones_like(x))

    covariance = mean(moved * fixed) - mean(moved) * mean(fixed)
    variances = [mean(x * x) - mean(x) ** 2 for x in (moved, fixed)]
    return 1 - (covariance**2 / (variances[0] * variances[1] + epsilon)).mean()


# --- similarity -------------------------------------------------------------------------------------------------------


def test_ssd_is_the_mean_of_squares():
    moved, fixed = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 4.0]]]])
    assert ssd_loss(moved, fixed).item() == (4 + 9) / 4


@both
@pytest.mark.parametrize("window", [3, 5, 9])
def test_ncc_by_definition(dims, window):
    """Windows of 9 are wider than the last axis: they are cut at both ends."""
    moved, fixed = noise(SHAPES[dims], 0), noise(SHAPES[dims], 1)
    moved = 0.5 * moved + fixed  # correlated in part
    expected = ncc_by_definition(moved, fixed, window, 1e-8)
    assert 0.1 < expected < 0.9
    assert ncc_loss(moved, fixed, window).item() == pytest.approx(expected, abs=1e-5)


@both
def test_ncc_epsilon_is_added_to_the_product_of_variances(dims):
    moved, fixed = noise(SHAPES[dims], 2), noise(SHAPES[dims], 3) * 0.1
    expected = ncc_by_definition(moved, fixed, 5, 0.01)
    assert ncc_loss(moved, fixed, 5, epsilon=0.01).item() == pytest.approx(expected, abs=1e-5)


@both
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (2.0, 3.0), (-1.5, 0.7)])
def test_ncc_ignores_gain_offset_and_sign(dims, gain, offset):
    fixed = noise(SHAPES[dims], 4)
    assert ncc_loss(gain * fixed + offset, fixed, 5, epsilon=1e-9).item() == pytest.approx(0, abs=1e-4)


def test_ncc_keeps_its_digits_under_a_large_offset():
    """The mean of squares less the square of the mean: at 100 float32 has three decimals left of 10,000."""
    moved, fixed = noise((12, 17), 29), noise((12, 17), 30)
    assert_close(ncc_loss(moved + 100, fixed + 100, 5), ncc_loss(moved, fixed, 5), rtol=0, atol=1e-4)


def test_ncc_sees_each_image_of_a_batch_by_itself():
    moved, fixed = noise((12, 17), 5), noise((12, 17), 6)
    moved[1] += 100
    alone = [ncc_loss(moved[i : i + 1], fixed[i : i + 1], 5) for i in range(2)]
    assert_close(ncc_loss(moved, fixed, 5), torch.stack(alone).mean(), rtol=0, atol=1e-6)


@both
def test_ncc_is_neurites_on_a_flat_background(dims):
    """Neurite pads with zeros, which is right where the background is zero; its epsilon is of sums, not of means."""
    moved, fixed = head((20,) * dims, 7), head((20,) * dims, 8)
    score = neurite.ncc(moved.double(), fixed.double(), window_size=5, eps=1e-8 * 5 ** (2 * dims)).item()
    assert ncc_loss(moved, fixed, 5).item() == pytest.approx(1 - score, abs=1e-5)


@both
def test_ncc_is_monais_on_a_flat_background(dims):
    moved, fixed = head((20,) * dims, 9), head((20,) * dims, 10)
    theirs = LocalNormalizedCrossCorrelationLoss(spatial_dims=dims, kernel_size=5, smooth_dr=1e-12)
    expected = 1 + theirs(moved.double(), fixed.double()).item()
    assert ncc_loss(moved, fixed, 5, epsilon=1e-12).item() == pytest.approx(expected, abs=1e-4)


def test_ncc_does_not_correlate_borders():
    """Two unrelated images with a mean: padded with zeros, their borders would look alike."""
    moved, fixed = noise((12, 12), 11) + 5, noise((12, 12), 12) + 5
    padded = 1 + LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)(moved, fixed).item()
    assert padded < 0.4
    assert ncc_loss(moved, fixed, 9).item() > 0.9


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
def test_ncc_of_flat_images_is_one_with_no_gradient(value):
    flat = torch.full((1, 1, 12, 12), value, requires_grad=True)
    loss = ncc_loss(flat, torch.full((1, 1, 12, 12), 0.5))
    assert loss.item() == pytest.approx(1, abs=1e-6)
    loss.backward()
    assert flat.grad.abs().max() < 1e-6


@pytest.mark.parametrize("window", [0, 1, 4, -3])
def test_ncc_refuses_a_window_without_a_centre(window):
    with pytest.raises(ValueError, match=f"odd number of voxels, 3 or more, not {window}"):
        ncc_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), window)


@pytest.mark.parametrize("loss", SIMILARITIES.values(), ids=SIMILARITIES)
def test_images_of_two_shapes_are_refused(loss):
    """Broadcasting would compare one image with a whole batch, without a word."""
    with pytest.raises(ValueError, match=r"\(2, 1, 6, 6\).*\(1, 1, 6, 6\)"):
        loss(torch.zeros(2, 1, 6, 6), torch.zeros(1, 1, 6, 6))


@both
@pytest.mark.parametrize("loss", [ssd_loss, ncc_loss], ids=["ssd", "ncc"])
def test_similarity_is_best_at_the_true_translation(dims, loss):
    fixed = torch.from_numpy(
        scipy.ndimage.gaussian_filter(noise((24,) * dims, 13, batch=1).numpy(), (0, 0, *[1] * dims))
    )
    fixed = (fixed - fixed.min()) / (fixed.max() - fixed.min())
    shift = torch.zeros(1, dims, *[24] * dims)
    losses = []
    for step in range(-3, 4):
        shift[:, 0] = step
        losses.append(loss(warp(fixed, shift), fixed).item())
    assert losses[:4] == sorted(losses[:4], reverse=True)
    assert losses[3:] == sorted(losses[3:])
    assert losses[3] < 0.5 * min(losses[2], losses[4])


# --- labels -----------------------------------------------------------------------------------------------------------


def test_one_hot_has_a_channel_for_each_listed_label():
    label = torch.tensor([[[[0, 2], [7, 2]]]], dtype=torch.uint8)
    found = one_hot(label, [2, 5, 7])
    expected = torch.tensor([[[[0, 1], [0, 1]], [[0, 0], [0, 0]], [[0, 0], [1, 0]]]]).float()
    assert_close(found, expected, rtol=0, atol=0)


@both
def test_soft_dice_of_binary_labels_is_dice(dims):
    labels = [(noise(SHAPES[dims], seed) * 4).long() for seed in (14, 15)]
    moved, fixed = (one_hot(label, [1, 2, 3]) for label in labels)
    scores = []
    for b in range(2):
        for value in (1, 2, 3):
            a, c = (label[b] == value for label in labels)
            scores.append(2 * (a & c).sum().item() / (a.sum() + c.sum()).item())
    assert soft_dice_loss(moved, fixed).item() == pytest.approx(1 - np.mean(scores), abs=1e-6)


@both
def test_soft_dice_is_monais(dims):
    moved, fixed = noise(SHAPES[dims], 16, channels=3), noise(SHAPES[dims], 17, channels=3)
    theirs = DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=0)(moved, fixed)
    assert_close(soft_dice_loss(moved, fixed), theirs, rtol=0, atol=1e-6)


@both
def test_a_segmentation_costs_what_it_costs_in_monai(dims):
    label = (3 * noise(SHAPES[dims], 0)).long()
    scores = 2 * noise(SHAPES[dims], 1, channels=3) - 1
    overlap = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=0
    )
    theirs = overlap(scores, label) + torch.nn.functional.cross_entropy(scores, label[:, 0])
    assert_close(segmentation_loss(scores, one_hot(label, (1, 2))), theirs, rtol=0, atol=1e-5)


@both
def test_a_segmentation_of_shares_is_best_where_it_gives_the_shares(dims):
    """Cross-entropy of soft memberships: no scores cost less than the logarithms of the shares."""
    shares = noise(SHAPES[dims], 2, channels=2) / 2
    whole = torch.cat([1 - shares.sum(1, keepdim=True), shares], dim=1)
    entropy = -(whole * whole.log()).sum(1).mean()
    overlap = soft_dice_loss(shares, shares)
    assert_close(segmentation_loss(whole.log(), shares), entropy + overlap, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        segmentation_loss(whole[:, :2], shares)


def test_soft_dice_leaves_out_what_neither_image_has():
    fixed = one_hot(torch.tensor([[[[1, 1], [0, 0]]]]), [1, 2])
    assert soft_dice_loss(fixed, fixed).item() == pytest.approx(0, abs=1e-6)
    gone = torch.zeros_like(fixed)
    assert soft_dice_loss(gone, fixed).item() == pytest.approx(1, abs=1e-6)  # a structure lost is not left out


def test_soft_dice_without_any_structure_is_zero_with_finite_gradient():
    moved = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = soft_dice_loss(moved, torch.zeros(1, 2, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert_close(moved.grad, torch.zeros_like(moved))


def test_soft_dice_gradient_is_finite_where_one_structure_is_absent():
    fixed = one_hot(torch.tensor([[[[1, 1], [0, 0]]]]), [1, 2])
    moved = (fixed * 0.5).requires_grad_()
    soft_dice_loss(moved, fixed).backward()
    assert moved.grad.isfinite().all()
    assert moved.grad[:, 0].abs().max() > 0
    assert moved.grad[:, 1].abs().max() == 0


# --- regularisers -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("loss", REGULARISERS.values(), ids=REGULARISERS)
def test_translations_cost_nothing(dims, loss):
    field = torch.tensor([1.0, -2.0, 3.0][:dims]).view(1, -1, *[1] * dims).expand(2, -1, *SHAPES[dims])
    assert loss(field).item() == 0


@both
def test_diffusion_of_a_linear_field_is_its_mean_squared_slope(dims):
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(1, dims, dims + 1))).float()
    slopes = matrix[0, :, :dims] - torch.eye(dims)
    loss = diffusion_loss(affine_to_field(matrix, SHAPES[dims]))
    assert_close(loss, slopes.square().mean(), rtol=1e-4, atol=0)


@both
def test_diffusion_is_neurites(dims):
    field = noise(SHAPES[dims], 18, channels=dims)
    assert_close(diffusion_loss(field), neurite.spatial_gradient(field), rtol=1e-5, atol=0)


@both
def test_diffusion_is_monais_over_the_number_of_axes_for_a_linear_field(dims):
    """MONAI sums over axes, and takes central differences: on a linear field the same as ours."""
    matrix = torch.from_numpy(np.random.default_rng(1).normal(size=(1, dims, dims + 1))).float()
    field = affine_to_field(matrix, SHAPES[dims])
    assert_close(diffusion_loss(field), DiffusionLoss()(field) / dims, rtol=1e-4, atol=0)


@both
def test_bending_of_an_affine_map_is_nothing(dims):
    matrix = torch.from_numpy(np.random.default_rng(2).normal(size=(1, dims, dims + 1))).float()
    assert bending_loss(affine_to_field(matrix, SHAPES[dims])).item() < 1e-10


@both
def test_bending_of_a_quadratic_field(dims):
    """`u_0 = 3 x^2`, `u_1 = 2 x y`: squared second derivatives 36, and twice 4, over as many components."""
    x = identity_grid(SHAPES[dims])
    field = torch.zeros_like(x)
    field[:, 0] = 3 * x[:, 0] ** 2
    field[:, 1] = 2 * x[:, 0] * x[:, 1]
    assert bending_loss(field).item() == pytest.approx((36 + 2 * 4) / dims, rel=1e-5)
    assert_close(bending_loss(field), BendingEnergyLoss()(field), rtol=1e-5, atol=0)


@both
def test_bending_is_numpys_differences(dims):
    field = noise(SHAPES[dims], 19, channels=dims)
    u = field.double().numpy()
    expected = 0
    for i in range(2, u.ndim):
        for j in range(2, u.ndim):
            expected += (np.diff(np.diff(u, axis=i), axis=j) ** 2).mean()
    assert bending_loss(field).item() == pytest.approx(expected, rel=1e-5)


@both
def test_jacobian_loss_is_the_depth_of_the_fold(dims):
    """Mirrored and doubled along the last axis, det J is -2 everywhere; stretched, nothing is to pay."""
    for factor, expected in [(-2.0, 2.0), (3.0, 0.0), (0.01, 0.0)]:
        matrix = torch.eye(dims, dims + 1)[None]
        matrix[0, -1, dims - 1] = factor
        assert jacobian_loss(affine_to_field(matrix, SHAPES[dims])).item() == pytest.approx(expected, abs=1e-4)


def test_jacobian_loss_is_a_mean_over_cells():
    """Rows of 10 voxels, turned over in one place: u falls by 3 between voxels 4 and 5, so one cell of 9 is -2 wide."""
    u = torch.zeros(1, 2, 6, 10)
    u[:, 1, :, 5:] = -3.0
    assert jacobian_loss(u).item() == pytest.approx(2 / 9, abs=1e-6)


@both
def test_jacobian_loss_sees_a_fold_that_central_differences_step_over(dims):
    """Every second voxel is thrown over its neighbour; two voxels further, everything is as it was."""
    shape = SHAPES[dims]
    u = torch.zeros(1, dims, *shape)
    u[:, -1, ..., 1::2] = 1.5
    assert jacobian_determinant(u)[..., 1:-1].min() == 1
    cells = (shape[-1] - 1) // 2
    assert jacobian_loss(u).item() == pytest.approx(0.5 * cells / (shape[-1] - 1), abs=1e-6)


# --- every loss -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", [*SIMILARITIES, *REGULARISERS])
def test_a_loss_does_not_grow_with_the_batch(dims, name):
    loss = (SIMILARITIES | REGULARISERS)[name]
    inputs = [noise(SHAPES[dims], seed, channels=dims) * 4 for seed in ((20, 21) if name in SIMILARITIES else (20,))]
    assert_close(loss(*(torch.cat([x, x, x]) for x in inputs)), loss(*inputs), rtol=1e-5, atol=0)


@both
@pytest.mark.parametrize("name", [*SIMILARITIES, *REGULARISERS])
def test_derivatives_are_those_of_finite_differences(dims, name, monkeypatch):
    """In double precision: what the code calls float32 is double here, so that differences have digits to lose."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    channels = 1 if name == "ncc" else dims
    # Tripled: random vectors that fold the grid in places, well away from the kink at det J = 0.
    inputs = [noise((4, 5, 3)[:dims], seed, channels=channels, batch=1).double() * 3 for seed in (22, 23)]
    inputs = [x.requires_grad_() for x in inputs][: 2 if name in SIMILARITIES else 1]
    loss = (SIMILARITIES | REGULARISERS)[name]
    assert loss(*inputs).item() > 0
    assert torch.autograd.gradcheck(loss, inputs)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*SIMILARITIES, *REGULARISERS])
def test_half_precision_inputs_are_computed_in_float32(dims, name, dtype):
    """The value is that of the rounded inputs in float32, with and without autocast; gradients are finite."""
    loss = (SIMILARITIES | REGULARISERS)[name]
    images = head((20,) * dims, 24), head((20,) * dims, 25)
    if name in SIMILARITIES:
        inputs = [x.to(dtype).requires_grad_() for x in images]
    else:
        inputs = [(noise((20,) * dims, 26, channels=dims) * 4).to(dtype).requires_grad_()]
    expected = loss(*(x.detach().float() for x in inputs))
    assert_close(loss(*inputs), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = loss(*inputs)
    assert under_autocast.dtype == torch.float32
    assert_close(under_autocast, expected, rtol=0, atol=0)
    under_autocast.backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_ncc_holds_under_autocast_where_monais_does_not():
    """On a flat background bfloat16 has no digits left for a variance."""
    moved, fixed = head((20, 20), 27) + 0.3, head((20, 20), 28) + 0.3
    theirs, right = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=3), ncc_loss(moved, fixed, 3)
    assert -1 <= theirs(moved, fixed).item() <= 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert theirs(moved, fixed).item() < -1000
        assert_close(ncc_loss(moved, fixed, 3), right, rtol=0, atol=0)


def test_large_half_precision_sums_do_not_overflow():
    """90,000 voxels of one: a float16 sum ends at 65,504."""
    ones = torch.ones(1, 1, 300, 300, dtype=torch.float16)
    assert soft_dice_loss(ones, ones).item() == pytest.approx(0, abs=1e-6)
    assert ssd_loss(ones * 300, ones * 0).item() == 90_000
