"""The algebra of fields on analytic cases, and against SciPy, MONAI and voxelmorph."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
import voxelmorph.nn.functional as vxm
from monai.networks.blocks import DVF2DDF, Warp
from torch.testing import assert_close

from course_utils.fields import (
    affine_to_field,
    compose,
    gradient,
    identity_grid,
    integrate,
    invert,
    jacobian_determinant,
    pool,
    resize,
    warp,
)

pytestmark = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")

SHAPES = {2: (12, 17), 3: (9, 12, 7)}
both = pytest.mark.parametrize("dims", [2, 3])


def noise(shape, seed, channels=1, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *shape, generator=generator)


def smooth_field(shape, seed, amplitude, sigma=2.5, margin=0):
    """A smooth random field whose longest component is `amplitude`; zero within `margin` voxels of the border."""
    values = np.random.default_rng(seed).normal(size=(len(shape), *shape))
    if margin:
        inside = np.zeros(shape)
        inside[tuple(slice(2 * margin, -2 * margin) for _ in shape)] = 1
        values *= inside
    field = np.stack(
        [scipy.ndimage.gaussian_filter(v, sigma, truncate=margin / sigma if margin else 4) for v in values]
    )
    return torch.from_numpy(field / np.abs(field).max() * amplitude).float()[None]


def constant_field(vector, shape):
    return torch.tensor(vector).view(1, -1, *[1] * len(shape)).expand(1, -1, *shape).contiguous()


def inner(field, margin):
    return field[(..., *[slice(margin, -margin)] * (field.ndim - 2))]


def sampled(image, displacement, order, padding):
    """`image(x + u(x))` by SciPy, which knows nothing of normalised coordinates."""
    u = displacement.numpy().astype(np.float64)
    positions = np.stack(np.meshgrid(*[np.arange(n) for n in u.shape[2:]], indexing="ij")) + u[0]
    mode = {"border": "nearest", "zeros": "grid-constant"}[padding]
    return scipy.ndimage.map_coordinates(image[0, 0].numpy().astype(np.float64), positions, order=order, mode=mode)


def linear_map(dims, seed=0, size=0.2):
    return np.random.default_rng(seed).uniform(-size, size, (dims, dims))


def linear_field(matrix, shape):
    """`u(x) = M (x - centre)`."""
    centre = (torch.tensor(shape) - 1).float() / 2
    x = identity_grid(shape) - centre.view(1, -1, *[1] * len(shape))
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(matrix).float(), x)


# --- identity grid ----------------------------------------------------------------------------------------------------


@both
def test_identity_grid_holds_its_own_indices(dims):
    grid = identity_grid(SHAPES[dims])
    assert grid.dtype == torch.float32
    assert_close(grid[0], torch.from_numpy(np.indices(SHAPES[dims])).float(), rtol=0, atol=0)


# --- warp -------------------------------------------------------------------------------------------------------------


@both
def test_zero_displacement_moves_nothing(dims):
    image = noise(SHAPES[dims], 0, channels=2, batch=3)
    assert_close(warp(image, torch.zeros(3, dims, *SHAPES[dims])), image, rtol=0, atol=2e-6)


@both
def test_whole_translation_reads_from_ahead(dims):
    image = noise(SHAPES[dims], 1)
    shift = (2.0, -1.0, 3.0)[:dims]
    moved = warp(image, constant_field(shift, SHAPES[dims]), padding="zeros")
    expected = torch.roll(image, tuple(-int(s) for s in shift), dims=tuple(range(2, 2 + dims)))
    for axis, s in enumerate(shift):  # what rolled in from the far side lies outside the image
        index = torch.arange(SHAPES[dims][axis]) + int(s)
        outside = (index < 0) | (index >= SHAPES[dims][axis])
        expected.index_fill_(2 + axis, outside.nonzero().flatten(), 0.0)
    assert_close(moved, expected, rtol=0, atol=1e-5)


@both
def test_fractional_translation_of_a_ramp_adds_its_slope(dims):
    slope = torch.tensor([0.3, -0.7, 1.1][:dims])
    ramp = torch.einsum("c,bc...->b...", slope, identity_grid(SHAPES[dims]))[:, None]
    shift = (0.25, -0.6, 0.4)[:dims]
    moved = warp(ramp, constant_field(shift, SHAPES[dims]))
    assert_close(
        inner(moved - ramp, 1), torch.full_like(inner(ramp, 1), slope @ torch.tensor(shift)), rtol=0, atol=2e-5
    )


@both
def test_quarter_turn(dims):
    image = noise((9,) * dims, 2)
    rotation = np.eye(dims)
    rotation[:2, :2] = [[0, -1], [1, 0]]  # fixed x reads the moving image at R x: (i, j) reads (-j, i)
    moved = warp(image, linear_field(rotation - np.eye(dims), (9,) * dims))
    assert_close(moved, torch.rot90(image, -1, dims=(2, 3)), rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_is_scipys_sampling(dims, mode, padding):
    image = noise(SHAPES[dims], 3)
    displacement = smooth_field(SHAPES[dims], 4, amplitude=5.0, sigma=1.0)
    moved = warp(image, displacement, mode=mode, padding=padding)
    order = {"bilinear": 1, "nearest": 0}[mode]
    if padding == "zeros" and order == 0:  # SciPy gives half a voxel more on either side: read from a wider image
        image = torch.nn.functional.pad(image, [6] * 2 * dims)
        displacement = torch.nn.functional.pad(displacement, [6] * 2 * dims)
        expected = inner(torch.from_numpy(sampled(image, displacement, 0, "border")[None, None]), 6)
    else:
        expected = torch.from_numpy(sampled(image, displacement, order, padding)[None, None])
    assert_close(moved.double(), expected, rtol=0, atol=2e-5)


@both
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_warp_is_voxelmorphs(dims, padding):
    image = noise(SHAPES[dims], 5, channels=2, batch=2)
    displacement = torch.cat([smooth_field(SHAPES[dims], seed, 3.0, sigma=1.0) for seed in (6, 7)])
    theirs = vxm.spatial_transform(image, displacement, padding_mode=padding)
    assert_close(warp(image, displacement, padding=padding), theirs, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_warp_is_monais(dims, padding):
    image = noise(SHAPES[dims], 8, channels=2, batch=2)
    displacement = torch.cat([smooth_field(SHAPES[dims], seed, 3.0, sigma=1.0) for seed in (9, 10)])
    theirs = Warp(mode="bilinear", padding_mode=padding)(image, displacement)
    assert_close(warp(image, displacement, padding=padding), theirs, rtol=0, atol=1e-5)


@both
def test_output_has_the_displacements_grid_and_reads_voxel_positions(dims):
    image = noise(tuple(n + 5 for n in SHAPES[dims]), 11)
    displacement = smooth_field(SHAPES[dims], 12, amplitude=2.0) + 2
    moved = warp(image, displacement)
    assert moved.shape == (1, 1, *SHAPES[dims])
    assert_close(moved[0, 0].double(), torch.from_numpy(sampled(image, displacement, 1, "border")), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_labels_keep_dtype_and_values(dtype):
    label = (noise((11, 13), 13) * 3).floor().to(dtype)
    moved = warp(label, smooth_field((11, 13), 14, 3.0), mode="nearest")
    assert moved.dtype == dtype
    assert set(moved.unique().tolist()) <= set(label.unique().tolist())
    assert not torch.equal(moved, label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_keep_their_dtype(dtype):
    image = noise((11, 13), 15).to(dtype)
    displacement = smooth_field((11, 13), 16, 3.0)
    moved = warp(image, displacement)
    assert moved.dtype == dtype
    assert_close(moved, warp(image.float(), displacement).to(dtype), rtol=0, atol=0)


def test_warp_computes_positions_in_float32():
    """At voxel 160 the coordinates that bfloat16 can hold lie one apart."""
    image, displacement = noise((8, 170), 17), constant_field((0.0, 0.3), (8, 170)).bfloat16()
    right = warp(image, displacement.float())
    assert_close(warp(image, displacement), right, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(warp(image, displacement), right, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("image", "displacement", "mode", "words"),
    [
        (torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 2, 4, 4), "bilinear", "2 components .* image of 3 dimensions"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, 2), "bilinear", r"one component an axis.*\(1, 4, 4, 2\)"),
        (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), "bilinear", "a field is"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 4, 4), "bilinear", "uint8.*mode='nearest'"),
    ],
)
def test_warp_refuses(image, displacement, mode, words):
    with pytest.raises(ValueError, match=words):
        warp(image, displacement, mode=mode)


@pytest.mark.parametrize("call", [jacobian_determinant, lambda f: resize(f, (2, 2)), integrate, invert])
def test_fields_with_channels_last_are_refused(call):
    with pytest.raises(ValueError, match=r"one component an axis.*\(1, 6, 6, 2\)"):
        call(torch.zeros(1, 6, 6, 2))


# --- compose ----------------------------------------------------------------------------------------------------------


@both
def test_compose_warps_by_first_then_second(dims):
    """A linear image and a linear map: exact away from the border, and far off when the two are swapped."""
    shape = (21,) * dims
    image = torch.einsum("c,bc...->b...", torch.arange(1.0, dims + 1), identity_grid(shape))[:, None]
    turn, shift = linear_field(linear_map(dims, 1), shape), constant_field((2.0, -1.0, 0.5)[:dims], shape)
    for first, second in [(turn, shift), (shift, turn)]:
        in_turn = warp(warp(image, first), second)
        at_once = warp(image, compose(first, second))
        swapped = warp(image, compose(second, first))
        assert_close(inner(at_once, 6), inner(in_turn, 6), rtol=0, atol=1e-4)
        assert (inner(swapped - in_turn, 6)).abs().min() > 0.1


@both
def test_compose_of_affine_maps_is_their_matrix_product(dims):
    shape = (17,) * dims
    a, b = linear_map(dims, 2), linear_map(dims, 3)
    composed = compose(linear_field(a, shape), linear_field(b, shape))
    eye = np.eye(dims)
    assert_close(inner(composed, 5), inner(linear_field((eye + a) @ (eye + b) - eye, shape), 5), rtol=0, atol=1e-4)


@both
def test_compose_is_voxelmorphs(dims):
    shape = (25,) * dims
    first, second = (smooth_field(shape, seed, 2.0, sigma=1.5, margin=3) for seed in (20, 21))
    assert_close(compose(first, second), vxm.compose([first, second]), rtol=0, atol=1e-5)


@both
def test_zero_is_neutral_in_composition(dims):
    u = smooth_field(SHAPES[dims], 22, 3.0)
    assert_close(compose(u, torch.zeros_like(u)), u, rtol=0, atol=1e-5)
    assert_close(compose(torch.zeros_like(u), u), u, rtol=0, atol=0)


# --- integrate --------------------------------------------------------------------------------------------------------


@both
def test_constant_velocity_translates(dims):
    velocity = constant_field((2.5, -1.25, 0.75)[:dims], SHAPES[dims])
    assert_close(integrate(velocity), velocity, rtol=0, atol=1e-6)


@both
def test_linear_velocity_gives_the_matrix_exponential(dims):
    shape = (25,) * dims
    matrix = linear_map(dims, 4)
    expected = linear_field(scipy.linalg.expm(matrix) - np.eye(dims), shape)
    errors = [inner(integrate(linear_field(matrix, shape), steps) - expected, 6).abs().max() for steps in (5, 6, 7, 8)]
    assert errors[2] < 5e-3
    for coarse, fine in itertools.pairwise(errors):  # first order in the step of 2**-steps
        assert 1.8 < coarse / fine < 2.2


def test_rotating_velocity_turns_by_its_angle():
    angle = math.pi / 5
    spin = np.array([[0, -angle], [angle, 0]])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    found = integrate(linear_field(spin, (41, 41)), 9)
    assert_close(inner(found, 12), inner(linear_field(turn - np.eye(2), (41, 41)), 12), rtol=0, atol=1e-2)


@both
def test_opposite_velocities_undo_each_other(dims):
    velocity = smooth_field((32,) * dims, 23, amplitude=4.0, sigma=4.0)
    forth, back = integrate(velocity), integrate(-velocity)
    assert forth.abs().max() > 2
    for there_and_back in (compose(forth, back), compose(back, forth)):
        assert inner(there_and_back, 6).abs().max() < 0.05


@both
def test_zero_steps_return_the_velocity(dims):
    velocity = smooth_field(SHAPES[dims], 24, 3.0)
    assert_close(integrate(velocity, 0), velocity, rtol=0, atol=0)


def test_one_step_is_one_composition_of_halves():
    velocity = smooth_field((12, 17), 25, 3.0)
    assert_close(integrate(velocity, 1), compose(velocity / 2, velocity / 2), rtol=0, atol=0)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="0 or more, not -1"):
        integrate(torch.zeros(1, 2, 4, 4), -1)


@both
def test_integration_is_voxelmorphs_and_monais_where_nothing_leaves_the_image(dims):
    velocity = smooth_field((25,) * dims, 26, 2.0, sigma=1.5, margin=3)
    assert_close(integrate(velocity, 6), vxm.integrate_vec(velocity, 6, non_spatial_dims=(0,)), rtol=0, atol=1e-5)
    assert_close(integrate(velocity, 6), DVF2DDF(num_steps=6)(velocity), rtol=0, atol=1e-5)


@both
def test_velocity_does_not_decay_at_the_border(dims):
    """Padding with zeros, as DVF2DDF does, would pull the displacement of a translation to zero at the border."""
    velocity = constant_field((3.0,) * dims, SHAPES[dims])
    assert (DVF2DDF()(velocity) - velocity).abs().max() > 1
    assert (integrate(velocity) - velocity).abs().max() < 1e-5


def test_integration_of_half_precision_is_float32():
    velocity = smooth_field((12, 17), 27, 3.0).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = integrate(velocity)
    assert found.dtype == torch.float32
    assert_close(found, integrate(velocity.float()), rtol=0, atol=0)


# --- invert -----------------------------------------------------------------------------------------------------------


@both
def test_inverse_of_a_translation(dims):
    u = constant_field((1.5, -0.5, 2.0)[:dims], SHAPES[dims])
    assert_close(invert(u), -u, rtol=0, atol=1e-5)


@both
def test_inverse_of_a_linear_map(dims):
    shape = (21,) * dims
    matrix = linear_map(dims, 5, size=0.12)
    inverse = np.linalg.inv(np.eye(dims) + matrix) - np.eye(dims)
    found = invert(linear_field(matrix, shape))
    assert_close(inner(found, 5), inner(linear_field(inverse, shape), 5), rtol=0, atol=1e-3)


@both
def test_inverse_on_both_sides(dims):
    u = smooth_field((24,) * dims, 28, amplitude=2.0, sigma=4.0)
    inverse = invert(u)
    assert inner(compose(u, inverse), 4).abs().max() < 1e-4  # the fixed point's own equation
    assert inner(compose(inverse, u), 4).abs().max() < 0.05  # and up to interpolation the other way round


def test_every_iteration_shrinks_the_error():
    u = smooth_field((24, 24), 29, amplitude=1.3, sigma=4.0)
    lipschitz = max(g.abs().sum(1).max().item() for g in gradient(u)) * 2
    assert lipschitz < 1
    residuals = [inner(compose(u, invert(u, n)), 4).abs().max().item() for n in (0, 2, 4, 6)]
    for before, after in itertools.pairwise(residuals):
        assert after < max(before * lipschitz**2, 1e-5)


# --- resize -----------------------------------------------------------------------------------------------------------


@both
def test_resize_by_two_is_exact_for_a_linear_field(dims):
    """The same linear map in voxels of either grid; where its centre is, and the factor, must both be right."""
    fine, coarse = (24,) * dims, (12,) * dims
    matrix = linear_map(dims, 6)
    assert_close(resize(linear_field(matrix, fine), coarse), linear_field(matrix, coarse), rtol=0, atol=1e-5)
    up = resize(linear_field(matrix, coarse), fine)
    assert_close(inner(up, 1), inner(linear_field(matrix, fine), 1), rtol=0, atol=1e-5)


@both
def test_translation_grows_by_each_axis_own_factor(dims):
    old, new = (8, 10, 6)[:dims], (12, 5, 18)[:dims]
    expected = tuple(v * n / o for v, n, o in zip((1.0, 2.0, -3.0), new, old, strict=False))
    found = resize(constant_field((1.0, 2.0, -3.0)[:dims], old), new)
    assert_close(found, constant_field(expected, new), rtol=0, atol=1e-5)


@both
def test_halved_and_doubled_field_returns(dims):
    """Up to the two interpolations: along an axis 1/8 and 3/8 of the second derivative, by Taylor's formula."""
    u = smooth_field((32,) * dims, 30, amplitude=3.0, sigma=5.0)
    back = resize(resize(u, (16,) * dims), (32,) * dims)
    bound = sum(0.5 * u.diff(n=2, dim=axis).abs().max() for axis in range(2, u.ndim))
    assert inner(back - u, 2).abs().max() < bound


@both
def test_warping_and_resizing_commute(dims):
    """A ramp moved on the half grid is the ramp moved on the full grid and then halved."""
    shape, half = (32,) * dims, (16,) * dims
    slopes = torch.tensor([0.5, -1.0, 0.25][:dims])
    image = torch.einsum("c,bc...->b...", slopes, identity_grid(shape))[:, None]
    u = smooth_field(shape, 32, amplitude=4.0, sigma=5.0)

    def halved(x):
        return torch.nn.functional.avg_pool2d(x, 2) if dims == 2 else torch.nn.functional.avg_pool3d(x, 2)

    moved_then_halved, halved_then_moved = halved(warp(image, u)), warp(halved(image), resize(u, half))
    assert inner(halved(image) - moved_then_halved, 3).abs().max() > 0.5
    assert_close(inner(halved_then_moved, 3), inner(moved_then_halved, 3), rtol=0, atol=1e-4)


def test_integration_and_resizing_commute():
    velocity = smooth_field((24, 24), 33, amplitude=3.0, sigma=4.0)
    there = integrate(resize(velocity, (48, 48)))
    here = resize(integrate(velocity), (48, 48))
    assert inner(there - here, 6).abs().max() < 0.02 * here.abs().max()


def test_resize_to_the_same_grid_changes_nothing():
    u = smooth_field((12, 17), 34, 3.0)
    assert_close(resize(u, [12, 17]), u, rtol=0, atol=0)


# --- affine -----------------------------------------------------------------------------------------------------------


@both
def test_affine_field_is_the_matrix_at_every_voxel(dims):
    matrix = torch.from_numpy(np.random.default_rng(7).normal(size=(2, dims, dims + 1))).float()
    field = affine_to_field(matrix, SHAPES[dims])
    for index in [(0,) * dims, (3, 5, 2)[:dims], tuple(n - 1 for n in SHAPES[dims])]:
        x = np.array(index, dtype=float)
        expected = matrix.numpy().astype(float) @ np.append(x, 1) - x
        np.testing.assert_allclose(field[(slice(None), slice(None), *index)].numpy(), expected, rtol=0, atol=1e-4)


@both
def test_affine_warp_is_scipys(dims):
    image = noise(SHAPES[dims], 35)
    linear, offset = np.eye(dims) + linear_map(dims, 8), np.array([1.5, -0.5, 0.7][:dims])
    matrix = torch.from_numpy(np.column_stack([linear, offset]))[None]
    expected = scipy.ndimage.affine_transform(image[0, 0].numpy(), linear, offset, order=1, mode="nearest")
    moved = warp(image, affine_to_field(matrix, SHAPES[dims]))
    assert_close(moved[0, 0], torch.from_numpy(expected), rtol=0, atol=2e-5)


def test_affine_field_is_exact_under_autocast():
    matrix = torch.tensor([[[1.01, 0.03, 0.4], [-0.02, 0.99, 1.7]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = affine_to_field(matrix, (200, 200))
    assert_close(found, affine_to_field(matrix, (200, 200)), rtol=0, atol=0)


def test_affine_matrix_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, 4\), not \(1, 4, 4\)"):
        affine_to_field(torch.eye(4)[None], (4, 4, 4))


# --- derivatives ------------------------------------------------------------------------------------------------------


@both
def test_gradient_is_numpys(dims):
    field = noise(SHAPES[dims], 36, channels=dims, batch=2)
    expected = np.gradient(field.numpy(), axis=tuple(range(2, 2 + dims)))
    for ours, theirs in zip(gradient(field), expected, strict=True):
        assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-6)


@both
def test_jacobian_of_the_identity_and_of_a_translation_is_one(dims):
    for vector in [(0.0,) * dims, (3.0, -2.0, 1.0)[:dims]]:
        determinant = jacobian_determinant(constant_field(vector, SHAPES[dims]))
        assert_close(determinant, torch.ones(1, 1, *SHAPES[dims]), rtol=0, atol=0)


@both
def test_jacobian_of_a_linear_map_is_its_determinant(dims):
    matrix = linear_map(dims, 9, size=0.6)
    expected = np.linalg.det(np.eye(dims) + matrix)
    determinant = jacobian_determinant(linear_field(matrix, SHAPES[dims]))
    assert_close(determinant, torch.full_like(determinant, expected), rtol=0, atol=1e-4)


@both
def test_jacobian_is_numpys_determinant_at_every_voxel(dims):
    u = smooth_field(SHAPES[dims], 37, amplitude=3.0, sigma=1.0)
    derivatives = np.stack([np.gradient(c, axis=tuple(range(dims))) for c in u[0].double().numpy()])
    matrices = np.moveaxis(derivatives, (0, 1), (-2, -1)) + np.eye(dims)
    found = jacobian_determinant(u)
    assert found.min() < 0 < 1 < found.max()
    assert_close(found[0, 0].double(), torch.from_numpy(np.linalg.det(matrices)), rtol=0, atol=1e-4)


@both
def test_a_mirrored_axis_folds_everywhere(dims):
    mirror = np.zeros((dims, dims))
    mirror[-1, -1] = -2.0
    assert_close(
        jacobian_determinant(linear_field(mirror, SHAPES[dims])), -torch.ones(1, 1, *SHAPES[dims]), rtol=0, atol=1e-5
    )


@both
def test_an_integrated_velocity_does_not_fold_where_its_sum_does(dims):
    velocity = smooth_field((24,) * dims, 38, amplitude=6.0, sigma=2.5)
    assert jacobian_determinant(velocity).min() < 0
    assert jacobian_determinant(integrate(velocity)).min() > 0


# --- gradients --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["warp", "compose", "integrate", "invert", "resize", "jacobian"])
def test_derivatives_are_those_of_finite_differences(dims, name, monkeypatch):
    """In double precision: what the code calls float32 is double here, so that differences have digits to lose."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    shape = (4, 5, 3)[:dims]
    first, second = (smooth_field(shape, seed, 0.8, sigma=1.0).double().requires_grad_() for seed in (39, 40))
    image = noise(shape, 41).double().requires_grad_()
    function, inputs = {
        "warp": (warp, (image, first)),
        "compose": (compose, (first, second)),
        "integrate": (lambda v: integrate(v, 2), (first,)),
        "invert": (lambda u: invert(u, 2), (first,)),
        "resize": (lambda u: resize(u, (7, 3, 5)[:dims]), (first,)),
        "jacobian": (jacobian_determinant, (first,)),
    }[name]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("shape", [(6, 7, 8), (5, 7, 9)], ids=["even", "odd"])
@pytest.mark.parametrize(("batch", "threads"), [(1, 4), (2, 3), (1, 1), (3, 2)])
def test_a_volume_shared_out_to_processors_is_warped_as_by_one(monkeypatch, shape, batch, threads):
    generator = torch.Generator().manual_seed(batch)
    image = torch.rand(batch, 2, 9, 8, 7, generator=generator)
    displacement = 2 * torch.randn(batch, 3, *shape, generator=generator)
    asked = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda *a, **k: asked.append(len(a[0])) or sample(*a, **k))

    def warped(count):
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
        leaves = image.clone().requires_grad_(), displacement.clone().requires_grad_()
        moved = warp(*leaves)
        moved.square().sum().backward()
        return moved.detach(), *(leaf.grad for leaf in leaves)

    plain, shared = warped(1), warped(threads)
    assert torch.equal(shared[0], plain[0])
    for one, other in zip(shared[1:], plain[1:], strict=True):
        assert_close(one, other)
    # 6 * 7 * 8 points are shared by 4 or 3, 5 * 7 * 9 by 3.
    parts = {4: 4 if shape[0] == 6 else 3, 3: 3}.get(threads)
    assert asked[1:] == ([batch] if parts is None else [parts] * batch)
    labels = (10 * image).int()
    moved = warp(labels, displacement, mode="nearest")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(moved, warp(labels, displacement, mode="nearest"))


@pytest.mark.parametrize("shape", [(13, 40), (15, 19, 40), (1, 16, 32)])
def test_what_is_pooled_is_the_mean_of_each_block_however_few_voxels_it_has(shape):
    image = torch.rand(2, 3, *shape)
    pooled = pool(image, 16)
    assert pooled.shape == (2, 3, *(-(-n // 16) for n in shape))
    for place in itertools.product(*map(range, pooled.shape[2:])):
        block = image[(..., *(slice(16 * at, 16 * at + 16) for at in place))]
        assert_close(pooled[(..., *place)], block.flatten(2).mean(2))
