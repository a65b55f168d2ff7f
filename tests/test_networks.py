"""The U-Net, VoxelMorph and the pyramid: scale, inverse, sizes, gradients, precision, learning."""

import itertools

import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from course_utils.fields import compose, integrate, jacobian_determinant, warp
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import Pyramid, UNet, VoxelMorph

both = pytest.mark.parametrize("dims", [2, 3])
resolutions = pytest.mark.parametrize("half", [True, False], ids=["half", "full"])
SIZES = {2: (24, 32), 3: (16, 24, 8)}


def images(shape, seed=0, batch=1):
    """A moving and a fixed image, smooth and between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, batch, 1, *shape, generator=generator).numpy()
    smooth = torch.from_numpy(scipy.ndimage.gaussian_filter(noise, (0, 0, 0, *[1.5] * len(shape))))
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def model(dims, *, features=(4, 6, 8), amplitude=None, seed=0, **options):
    """A small network; with an amplitude, its velocities are of that many voxels rather than next to nothing."""
    torch.manual_seed(seed)
    network = VoxelMorph(dims, features=features, **options).eval()
    if amplitude:
        with torch.no_grad():
            moving, fixed = images(SIZES[dims])
            network.velocity.weight *= amplitude / network(moving, fixed).velocity.abs().max()
    return network


def inner(field, margin):
    return field[(..., *[slice(margin, -margin)] * (field.ndim - 2))]


def predicting(network, amplitude):
    """The network, made to predict a smooth velocity, of so many voxels of the grid that it predicts on."""

    def smooth_velocity(layer, inputs, output):
        axes = [torch.cos(torch.pi * (torch.arange(n) + 0.5) / n) for n in output.shape[2:]]
        waves = torch.meshgrid(*axes, indexing="ij")
        field = torch.stack([torch.stack(waves).prod(0) + 0.3 * waves[c - 1] ** 2 for c in range(len(axes))])
        return (amplitude * field / field.abs().max()).to(output).expand_as(output) + 0 * output

    network.velocity.register_forward_hook(smooth_velocity)
    return network


# --- U-Net ------------------------------------------------------------------------------------------------------------


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


# --- VoxelMorph: what it returns --------------------------------------------------------------------------------------


@both
@resolutions
def test_a_new_network_is_the_identity(dims, half):
    moving, fixed = images(SIZES[dims], batch=2)
    result = model(dims, half_resolution=half)(moving, fixed)
    assert 0 < result.displacement.abs().max() < 1e-3  # not dead either
    assert_close(result.moved, moving, rtol=0, atol=1e-3)


@both
@resolutions
@pytest.mark.parametrize("steps", [0, 7])
def test_everything_is_full_resolution_float32(dims, half, steps):
    moving, fixed = images(SIZES[dims], batch=3)
    result = model(dims, half_resolution=half, integration_steps=steps)(moving, fixed)
    assert result._fields == ("moved", "displacement", "velocity")
    assert result.moved.shape == moving.shape
    for field in (result.displacement, result.velocity):
        assert field.shape == (3, dims, *SIZES[dims])
        assert field.dtype == torch.float32


@both
@resolutions
def test_moved_is_the_moving_image_warped(dims, half):
    moving, fixed = images(SIZES[dims])
    result = model(dims, amplitude=3.0, half_resolution=half)(moving, fixed)
    assert (result.moved - moving).abs().max() > 0.1
    assert_close(result.moved, warp(moving, result.displacement), rtol=0, atol=0)


@both
@resolutions
def test_displacement_is_the_velocity_integrated(dims, half):
    """At full resolution the same numbers; at half, up to interpolation. A factor of two would be 100 % off."""
    moving, fixed = images((32,) * dims)
    result = predicting(model(dims, half_resolution=half), 2.0 if half else 4.0)(moving, fixed)
    integrated = integrate(result.velocity)
    tolerance = 0.05 if half else 1e-6
    assert integrated.abs().max() > 3
    assert inner(result.displacement - integrated, 2).abs().max() <= tolerance
    assert inner(result.velocity - integrated, 2).abs().max() > 0.5  # else no integration would pass as well


@both
@resolutions
def test_the_negative_velocity_undoes_the_displacement(dims, half):
    moving, fixed = images((32,) * dims)
    result = predicting(model(dims, half_resolution=half), 2.0 if half else 4.0)(moving, fixed)
    there_and_back = compose(result.displacement, integrate(-result.velocity))
    assert result.displacement.abs().max() > 3
    assert inner(there_and_back, 5).abs().max() < 0.06


@both
@resolutions
def test_a_constant_velocity_keeps_its_length_in_voxels(dims, half):
    """What the last layer says counts in voxels of its own grid: two of the image's at half resolution."""
    network = model(dims, half_resolution=half)
    with torch.no_grad():
        network.velocity.weight.zero_()
        network.velocity.bias.copy_(torch.tensor([1.0, -0.5, 0.25])[:dims])
    result = network(*images(SIZES[dims]))
    expected = network.velocity.bias.view(1, -1, *[1] * dims) * (2 if half else 1)
    for field in (result.displacement, result.velocity):
        assert_close(field, expected.expand_as(field), rtol=0, atol=1e-5)


@both
@resolutions
def test_without_integration_the_displacement_is_what_was_predicted(dims, half):
    moving, fixed = images(SIZES[dims])
    straight = model(dims, amplitude=3.0, half_resolution=half, integration_steps=0)(moving, fixed)
    assert_close(straight.displacement, straight.velocity, rtol=0, atol=0)
    integrated = model(dims, amplitude=3.0, half_resolution=half)(moving, fixed)
    assert_close(integrated.velocity, straight.velocity, rtol=0, atol=0)
    assert (integrated.displacement - straight.displacement).abs().max() > 0.05


def test_integration_keeps_the_grid_unfolded():
    moving, fixed = images((32, 32))
    folded, unfolded = (
        predicting(model(2, integration_steps=steps), 10.0)(moving, fixed).displacement for steps in (0, 8)
    )
    assert jacobian_determinant(folded).min() < 0
    assert jacobian_determinant(unfolded).min() > 0


# --- VoxelMorph: what it is given -------------------------------------------------------------------------------------


@resolutions
def test_the_velocity_depends_on_both_images(half):
    (moving, fixed), (other, _) = images(SIZES[2]), images(SIZES[2], seed=5)
    network = model(2, amplitude=3.0, half_resolution=half)
    right = network(moving, fixed).velocity
    for pair in [(other, fixed), (moving, other)]:
        assert (network(*pair).velocity - right).abs().max() > 0.1


@both
@resolutions
def test_moving_and_fixed_are_not_exchangeable(dims, half):
    moving, fixed = images(SIZES[dims])
    network = model(dims, amplitude=3.0, half_resolution=half)
    forward, backward = network(moving, fixed), network(fixed, moving)
    assert (forward.displacement - backward.displacement).abs().max() > 0.1
    assert_close(backward.moved, warp(fixed, backward.displacement), rtol=0, atol=0)


@both
@resolutions
def test_odd_sizes_are_padded_by_their_edge_and_cropped(dims, half):
    """Also sizes below the divisor, 8 here. What lies inside is what the padded images give."""
    network = model(dims, amplitude=3.0, half_resolution=half)
    for size in [(23, 30, 9), (5, 3, 6), (16, 25, 8), (1, 9, 2)]:
        size = size[:dims]
        padded = [-(-n // network.unet.divisor) * network.unet.divisor for n in size]
        margins = [m for n, p in zip(reversed(size), reversed(padded), strict=True) for m in (0, p - n)]
        moving, fixed = images(size, seed=2, batch=2)
        found = network(moving, fixed)
        whole = network(*(F.pad(x, margins, mode="replicate") for x in (moving, fixed)))
        inside = (..., *[slice(n) for n in size])
        assert found.displacement.shape == (2, dims, *size)
        assert_close(found.displacement, whole.displacement[inside], rtol=0, atol=1e-6)
        assert_close(found.velocity, whole.velocity[inside], rtol=0, atol=1e-6)
        assert_close(found.moved, warp(moving, found.displacement), rtol=0, atol=0)


@both
@resolutions
def test_translated_images_give_a_translated_displacement(dims, half):
    """By a multiple of the divisor, away from the border: the network has no sense of place."""
    network = model(dims, features=(4, 6), amplitude=3.0, half_resolution=half, integration_steps=0)
    size, step, margin = 48, 4, 18
    moving, fixed = images((size,) * dims, seed=3)
    here = network(moving, fixed).displacement
    there = network(*(x.roll(step, 2) for x in (moving, fixed))).displacement
    assert (here - there)[(..., *[slice(margin, -margin)] * dims)].abs().max() > 0.01
    assert_close(inner(there, margin), inner(here.roll(step, 2), margin), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("moving", "fixed"),
    [
        ((1, 1, 8, 8, 8), (1, 1, 8, 8, 16)),
        ((1, 1, 8, 8), (1, 1, 8, 8)),
        ((1, 2, 8, 8, 8), (1, 2, 8, 8, 8)),
        ((2, 1, 8, 8, 8), (1, 1, 8, 8, 8)),
        ((1, 8, 8, 8), (1, 8, 8, 8)),
    ],
)
def test_images_it_cannot_register_are_named(moving, fixed):
    with pytest.raises(ValueError, match=r"\(B, 1\) and 3 axes") as caught:
        model(3)(torch.zeros(moving), torch.zeros(fixed))
    assert str(moving) in str(caught.value) and str(fixed) in str(caught.value)


def test_networks_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="spatial_dims is 2 or 3, not 4"):
        VoxelMorph(4)
    with pytest.raises(ValueError, match=r"at least two levels, not features=\(16,\)"):
        VoxelMorph(3, features=(16,))


# --- training ---------------------------------------------------------------------------------------------------------


@both
@resolutions
def test_every_parameter_receives_a_gradient(dims, half):
    network = model(dims, half_resolution=half)
    moving, fixed = images(SIZES[dims], batch=2)
    result = network(moving, fixed)
    (ssd_loss(result.moved, fixed) + diffusion_loss(result.velocity)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.flatten(1 if parameter.ndim > 1 else 0).abs().max() > 0, name


@both
@resolutions
def test_bfloat16_autocast_gives_float32_fields_close_to_float32s(dims, half):
    network = model(dims, amplitude=4.0, half_resolution=half)
    moving, fixed = images(SIZES[dims], batch=2)
    right = network(moving, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(moving, fixed)
    size = right.displacement.abs().max()
    assert size > 0.5
    assert {found.moved.dtype, found.displacement.dtype, found.velocity.dtype} == {torch.float32}
    assert (found.displacement - right.displacement).abs().max() < 0.03 * size
    if not half:  # the field algebra itself runs in float32: only the network's output differs
        assert_close(found.displacement, integrate(found.velocity), rtol=0, atol=0)
    (ssd_loss(found.moved, fixed) + diffusion_loss(found.velocity)).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_weights_survive_saving(tmp_path):
    network, other = model(2, amplitude=3.0), model(2, seed=1)
    moving, fixed = images(SIZES[2])
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for ours, theirs in zip(network(moving, fixed), other(moving, fixed), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)


@resolutions
def test_it_learns_to_move_a_blob(half):
    """One pair, three voxels apart: the loss falls by a factor of ten, and the field points the right way."""
    x, y = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    moving, fixed = (torch.exp(-((x - cx) ** 2 + (y - 16) ** 2) / 18)[None, None] for cx in (17.5, 14.5))
    torch.manual_seed(0)
    network = VoxelMorph(2, features=(8, 16, 16), half_resolution=half)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = ssd_loss(moving, fixed).item()
    for _ in range(80):
        result = network(moving, fixed)
        loss = ssd_loss(result.moved, fixed) + 1e-4 * diffusion_loss(result.velocity)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < before / 10
    # moved(14, 16) = moving(14 + u, 16) reads the blob, which lies three voxels further along axis 0.
    assert result.displacement[0, 0, 14, 16].item() == pytest.approx(3, abs=0.75)
    assert abs(result.displacement[0, 1, 14, 16].item()) < 0.75


def test_pairs_of_a_batch_do_not_mix():
    network = model(2, amplitude=3.0)
    moving, fixed = images(SIZES[2], seed=4, batch=3)
    together = network(moving, fixed)
    for i, (m, f) in enumerate(itertools.zip_longest(moving, fixed)):
        assert_close(together.displacement[i], network(m[None], f[None]).displacement[0], rtol=0, atol=1e-5)


# --- the pyramid ---


def pyramid(dims, *, amplitude=None, seed=0, **options):
    torch.manual_seed(seed)
    network = Pyramid(dims, features=(4, 6, 8), **options).eval()
    if amplitude:
        with torch.no_grad():
            for head in network.velocity:
                head.weight.normal_(std=0.1)
            largest = network(*images(SIZES[dims])).velocity.abs().max()
            for head in network.velocity:
                head.weight *= amplitude / largest
    return network


@both
@resolutions
def test_a_new_pyramid_is_the_identity(dims, half):
    moving, fixed = images(SIZES[dims])
    result = pyramid(dims, half_resolution=half)(moving, fixed)
    assert result.displacement.abs().max() < 1e-2
    assert_close(result.moved, moving, rtol=0, atol=1e-2)


@both
@pytest.mark.parametrize(("half", "finest"), [(True, 2), (False, 1)], ids=["half", "full"])
def test_what_a_level_predicts_counts_in_its_own_voxels(dims, half, finest):
    for level, times in [(0, 2), (1, 1), (2, 1)]:  # the finest level adds twice
        network = pyramid(dims, half_resolution=half)
        with torch.no_grad():
            for head in network.velocity:
                head.weight.zero_()
            network.velocity[level].bias[1] = 0.25
        result = network(*images(SIZES[dims]))
        expected = torch.zeros_like(result.velocity)
        expected[:, 1] = 0.25 * times * finest * 2**level
        assert_close(result.velocity, expected)
        assert_close(inner(result.displacement, 3), inner(expected, 3), rtol=0, atol=1e-3)


def test_a_finer_level_sees_what_the_coarser_ones_have_aligned():
    network = pyramid(2)
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
@resolutions
def test_a_pyramid_s_fields_belong_together(dims, half):
    moving, fixed = images(SIZES[dims])
    result = pyramid(dims, half_resolution=half, amplitude=2.0)(moving, fixed)
    assert result.displacement.dtype == result.velocity.dtype == torch.float32
    assert_close(result.moved, warp(moving, result.displacement))
    assert result.displacement.abs().max() > 0.5
    assert compose(result.displacement, integrate(-result.velocity)).abs().mean() < 0.15


@both
def test_a_pyramid_pads_odd_sizes_by_their_edge(dims):
    network = pyramid(dims, amplitude=2.0)
    moving, fixed = images(tuple(n - 3 for n in SIZES[dims]))
    padded = [F.pad(image, (0, 3) * dims, mode="replicate") for image in (moving, fixed)]
    inside = (..., *[slice(n - 3) for n in SIZES[dims]])
    assert_close(network(moving, fixed).displacement, network(*padded).displacement[inside])


@both
def test_every_parameter_of_a_pyramid_receives_a_gradient(dims):
    network = pyramid(dims, amplitude=1.0, instance_norm=True)
    moving, fixed = images(SIZES[dims])
    ssd_loss(network(moving, fixed).moved, fixed).backward()
    # A norm takes the mean away that the convolution before it has added.
    silent = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert all(name.endswith(".0.bias") for name in silent), silent


@both
def test_a_pyramid_under_bfloat16_is_close_to_float32(dims):
    network = pyramid(dims, amplitude=4.0)
    moving, fixed = images(SIZES[dims])
    full = network(moving, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(moving, fixed)
    assert half.displacement.dtype == half.velocity.dtype == torch.float32
    assert (half.displacement - full.displacement).abs().mean() < 0.05 * full.displacement.abs().max()


@pytest.mark.parametrize("network", [VoxelMorph, Pyramid])
@pytest.mark.parametrize("shape", [(16, 16, 32), (32, 32, 32), (48, 48, 64)])
def test_bfloat16_gives_float32_s_gradients_on_small_volumes_too(network, shape):
    """oneDNN's bfloat16 gradients are wrong where the coarsest grid has 2 slices or 1, as those of the first two have.

    Freed memory full of NaN stands where they read what they never wrote.
    """
    torch.manual_seed(0)
    model = network(3, features=(16, 32, 32, 32), instance_norm=True)
    moving, fixed = images(shape, batch=2)

    def gradients(enabled):
        model.zero_grad()
        spoiled = [torch.full((4**n,), torch.nan) for n in range(4, 11) for _ in range(4)]
        del spoiled
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            registration = model(moving, fixed)
        ssd_loss(registration.moved, fixed).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    for _ in range(3):
        assert torch.cosine_similarity(gradients(True), gradients(False), dim=0) > 0.99


def test_pairs_of_a_batch_do_not_mix_in_a_pyramid():
    network = pyramid(2, amplitude=3.0, instance_norm=True)
    moving, fixed = images(SIZES[2], seed=4, batch=3)
    together = network(moving, fixed)
    for i, (m, f) in enumerate(zip(moving, fixed, strict=True)):
        assert_close(together.displacement[i], network(m[None], f[None]).displacement[0], rtol=0, atol=1e-4)


def test_a_pyramid_learns_to_move_a_blob_farther_than_it_is_wide():
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    moving, fixed = (torch.exp(-((x - cx) ** 2 + (y - 32) ** 2) / 32)[None, None] for cx in (40, 24))
    torch.manual_seed(0)
    network = Pyramid(2, features=(8, 16, 16))
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
