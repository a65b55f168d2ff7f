"""What every architecture keeps to: the identity at first, sizes, precision, gradients, batches, learning."""

import re

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from course_utils import fields
from course_utils.checkpoint import Checkpoint
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.fields import compose, integrate, warp
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import ARCHITECTURES, Registration
from tests.checkpoints import checkpoint as checkpoint_of
from tests.networks.small import (
    NORMALISED,
    OPTIONS,
    SIZES,
    UNHEARD,
    architectures,
    both,
    convolutional,
    images,
    inner,
    predicted,
    small,
    variants,
)

BORDER = {"pyramid": 26}
"""Voxels from the images' border that it still changes, where they are more than 18.

Each level of the pyramid sees features that the coarser ones have moved.
"""

# --- what a network returns -------------------------------------------------------------------------------------------


@both
@variants
def test_a_new_network_is_the_identity(name, options, dims):
    moving, fixed = images(SIZES[dims], batch=2)
    result = small(name, dims, **options)(moving, fixed)
    assert 0 < result.displacement.abs().max() < 1e-3  # not dead either
    assert_close(result.moved, moving, rtol=0, atol=1e-3)


@both
@variants
def test_everything_is_full_resolution_float32(name, options, dims):
    moving, fixed = images(SIZES[dims], batch=3)
    result = small(name, dims, **options)(moving, fixed)
    assert result.moved.shape == moving.shape
    for field in (result.displacement, predicted(result)):
        assert field.shape == (3, dims, *SIZES[dims])
        assert field.dtype == torch.float32


@both
@variants
def test_moved_is_the_moving_image_warped(name, options, dims):
    moving, fixed = images(SIZES[dims])
    result = small(name, dims, amplitude=3.0, **options)(moving, fixed)
    assert (result.moved - moving).abs().max() > 0.1
    assert_close(result.moved, warp(moving, result.displacement), rtol=0, atol=0)


@both
@variants
def test_the_inverse_undoes_the_displacement(name, options, dims):
    moving, fixed = images(SIZES[dims])
    result = small(name, dims, amplitude=2.0, **options)(moving, fixed)
    assert result.displacement.abs().max() > 0.5
    assert compose(result.displacement, result.inverse()).abs().mean() < 0.15


@both
@variants
def test_what_is_asked_for_on_a_coarser_grid_is_what_the_fine_one_averages_to(name, options, dims):
    moving, fixed = images(SIZES[dims])
    network = small(name, dims, amplitude=3.0, **options).train()
    result = network(moving, fixed)
    plain = Registration(result.moved, result.displacement, result.velocity)
    there = fields.pool(moving, 2)
    found, expected = result.coarser(there, 2), plain.coarser(there, 2)
    assert found.moved.shape == there.shape
    assert_close(found.moved, warp(there, found.displacement), rtol=0, atol=0)
    if network.first_stride == 1:
        wanted = [(found.displacement, expected.displacement), (predicted(found), predicted(expected))]
    else:  # what it predicted, from which the fine one was interpolated
        wanted = [
            (fields.resize(coarse, SIZES[dims]), fine)
            for coarse, fine in [(found.displacement, result.displacement), (predicted(found), predicted(result))]
        ]
    for mine, right in wanted:
        assert mine.abs().max() > 0.5
        assert_close(mine, right, rtol=0, atol=1e-5)


# --- antisymmetric networks -------------------------------------------------------------------------------------------

antisymmetric = pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, variants in OPTIONS.items() for options in variants if "antisymmetric" in options],
)


@both
@antisymmetric
def test_swapping_the_images_changes_the_sign_of_the_velocity_and_inverts_the_map(name, options, dims):
    moving, fixed = images(SIZES[dims], batch=2)
    network = small(name, dims, amplitude=2.0, **options)
    there, back = network(moving, fixed), network(fixed, moving)
    assert there.velocity.abs().max() > 1
    assert_close(there.velocity, -back.velocity, rtol=0, atol=1e-5)
    assert_close(there.inverse(), integrate(-there.velocity), rtol=0, atol=0)
    assert compose(there.displacement, back.displacement).abs().mean() < 0.1


@both
@antisymmetric
def test_the_last_squarings_on_the_images_grid_bring_the_two_maps_closer_to_inverses(name, options, dims):
    moving, fixed = images(SIZES[dims], batch=2)
    network = small(name, dims, amplitude=3.0, **options)
    if network.first_stride == 1 or not network.integration_steps:
        pytest.skip("integrated on one grid")
    swapped, apart = {}, {}
    for training in (True, False):
        network.train(training)
        there, back = network(moving, fixed), network(fixed, moving)
        swapped[training] = compose(there.displacement, back.displacement).abs().mean()
        apart[training] = (there.displacement - integrate(there.velocity)).abs().mean()  # all of it on the images' grid
    assert swapped[False] < 0.8 * swapped[True]
    assert apart[False] < 0.8 * apart[True]


@both
@antisymmetric
def test_an_image_against_itself_does_not_move(name, options, dims):
    moving, fixed = images(SIZES[dims])
    network = small(name, dims, amplitude=2.0, **options)
    assert network(moving, fixed).displacement.abs().max() > 0.5
    assert network(fixed, fixed).displacement.abs().max() < 1e-5


# --- what a network is given ------------------------------------------------------------------------------------------


@both
@variants
def test_what_is_predicted_depends_on_both_images(name, options, dims):
    (moving, fixed), (other, _) = images(SIZES[dims]), images(SIZES[dims], seed=5)
    # With norms, as networks are by default: without, the first weights of many layers let little of an image through.
    network = small(name, dims, amplitude=3.0, **{**NORMALISED.get(name, {}), **options})
    right = predicted(network(moving, fixed))
    for pair in [(other, fixed), (moving, other)]:
        assert (predicted(network(*pair)) - right).abs().max() > 0.1


@both
@variants
def test_moving_and_fixed_are_not_exchangeable(name, options, dims):
    moving, fixed = images(SIZES[dims])
    network = small(name, dims, amplitude=3.0, **{**NORMALISED.get(name, {}), **options})
    forward, backward = network(moving, fixed), network(fixed, moving)
    assert (forward.displacement - backward.displacement).abs().max() > 0.1
    assert_close(backward.moved, warp(fixed, backward.displacement), rtol=0, atol=0)


@both
@variants
def test_odd_sizes_are_padded_by_their_edge_and_cropped(name, options, dims):
    """Also sizes below the divisor, 8 here. What lies inside is what the padded images give."""
    network = small(name, dims, amplitude=3.0, **options)
    for size in [(23, 30, 9), (21, 29, 5), (5, 3, 6), (16, 25, 8), (1, 9, 2)]:
        size = size[:dims]
        padded = [-(-n // network.divisor) * network.divisor for n in size]
        margins = [m for n, p in zip(reversed(size), reversed(padded), strict=True) for m in (0, p - n)]
        moving, fixed = images(size, seed=2, batch=2)
        found = network(moving, fixed)
        whole = network(*(F.pad(x, margins, mode="replicate") for x in (moving, fixed)))
        inside = (..., *[slice(n) for n in size])
        assert found.displacement.shape == (2, dims, *size)
        assert_close(found.displacement, whole.displacement[inside], rtol=0, atol=1e-6)
        assert_close(predicted(found), predicted(whole)[inside], rtol=0, atol=1e-6)
        assert_close(found.moved, warp(moving, found.displacement), rtol=0, atol=0)


@both
@convolutional
def test_translated_images_give_a_translated_prediction(name, options, dims):
    """By a multiple of the divisor, away from the border: the network has no sense of place."""
    network = small(name, dims, features=(4, 6), amplitude=3.0, **options)
    step, margin = 4, BORDER.get(name, 18)
    size = 12 + 2 * margin
    moving, fixed = images((size,) * dims, seed=3)
    here = predicted(network(moving, fixed))
    there = predicted(network(*(x.roll(step, 2) for x in (moving, fixed))))
    assert inner(here - there, margin).abs().max() > 0.01
    assert_close(inner(there, margin), inner(here.roll(step, 2), margin), rtol=0, atol=1e-4)


@architectures
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
def test_images_it_cannot_register_are_named(name, moving, fixed):
    with pytest.raises(ValueError, match=r"\(B, 1\) and 3 axes") as caught:
        small(name, 3)(torch.zeros(moving), torch.zeros(fixed))
    assert str(moving) in str(caught.value) and str(fixed) in str(caught.value)


@architectures
def test_networks_that_cannot_be_built_are_refused(name):
    with pytest.raises(ValueError, match="spatial_dims is 2 or 3, not 4"):
        ARCHITECTURES[name](4)
    with pytest.raises(ValueError, match=r"at least two levels, not features=\(16,\)"):
        ARCHITECTURES[name](3, features=(16,))


def learns_from(network, shape):
    """A training step and an answer on images of this shape."""
    moving, fixed = images(shape, batch=2)
    result = network.train()(moving, fixed)
    (ssd_loss(result.moved, fixed) + diffusion_loss(predicted(result))).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert network.eval()(moving, fixed).displacement.isfinite().all()


@both
@architectures
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 8, 8), (16, 16, 16), (16, 17, 16), (3, 5, 40), (32, 16, 16)])
def test_images_are_large_enough_or_the_least_shape_is_told(name, dims, normalised, shape):
    options = NORMALISED.get(name, {}) if normalised else dict.fromkeys(NORMALISED.get(name, {}), False)
    network = ARCHITECTURES[name](dims, features=(4, 4, 4, 4), **options)
    shape = shape[:dims]
    try:
        network.check_grid(shape)
    except CourseError as error:
        message = str(error)
        assert "x".join(map(str, shape)) in message and "\n" not in message
        least = int(re.search(r"a shape of (\d+) voxels or more along one axis", message)[1])
        with pytest.raises(CourseError):  # it is the least
            network.check_grid((least - 1, *shape[1:]))
        with pytest.raises(CourseError, match="a shape of"):
            network(*images(shape))
        shape = (least, *shape[1:])
        network.check_grid(shape)
    learns_from(network, shape)


# --- training ---------------------------------------------------------------------------------------------------------


def whole_loss(registration, fixed):
    """A loss of all that a network answers with."""
    extras = sum(extra.square().mean() for extra in registration.extras.values())
    return ssd_loss(registration.moved, fixed) + diffusion_loss(predicted(registration)) + extras


@both
@variants
def test_every_parameter_receives_a_gradient(name, options, dims):
    network = small(name, dims, **options)
    moving, fixed = images(SIZES[dims], batch=2)
    whole_loss(network(moving, fixed), fixed).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        if key in UNHEARD.get(name, ()):
            continue
        assert parameter.grad.flatten(1 if parameter.ndim > 1 else 0).abs().max() > 0, key


@both
@pytest.mark.parametrize("name", NORMALISED)
def test_every_parameter_of_a_normalised_network_receives_a_gradient(name, dims):
    network = small(name, dims, amplitude=1.0, **NORMALISED[name])
    moving, fixed = images(SIZES[dims])
    whole_loss(network(moving, fixed), fixed).backward()
    # A norm takes the mean away that the convolution before it has added.
    silent = {key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert all(key.endswith(".0.bias") for key in silent - UNHEARD.get(name, set())), silent


@both
@variants
def test_bfloat16_autocast_gives_float32_fields_close_to_float32s(name, options, dims):
    network = small(name, dims, amplitude=4.0, **options)
    moving, fixed = images(SIZES[dims], batch=2)
    right = network(moving, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(moving, fixed)
    size = right.displacement.abs().max()
    assert size > 0.5
    assert {found.moved.dtype, found.displacement.dtype, predicted(found).dtype} == {torch.float32}
    # An antisymmetric network's answer is a difference of two that are nearly equal: digits that they share are lost.
    lost = 0.08 if "antisymmetric" in options else 0.03
    assert (found.displacement - right.displacement).abs().max() < lost * size
    whole_loss(found, fixed).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.slow
@architectures
@pytest.mark.parametrize("shape", [(16, 16, 32), (32, 32, 32), (48, 48, 64)])
def test_bfloat16_gives_float32_s_gradients_on_small_volumes_too(name, shape):
    """oneDNN's bfloat16 gradients are wrong where the coarsest grid has 2 slices or 1, as those of the first two have.

    Freed memory full of NaN stands where they read what they never wrote.
    """
    torch.manual_seed(0)
    model = ARCHITECTURES[name](3, features=(16, 32, 32, 32), **NORMALISED.get(name, {}))
    moving, fixed = images(shape, batch=2)

    def gradients(enabled):
        model.zero_grad()
        torch.manual_seed(0)  # of a network that answers with a sample
        spoiled = [torch.full((4**n,), torch.nan) for n in range(4, 11) for _ in range(4)]
        del spoiled
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            registration = model(moving, fixed)
        ssd_loss(registration.moved, fixed).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    for _ in range(3):
        assert torch.cosine_similarity(gradients(True), gradients(False), dim=0) > 0.99


@both
@variants
def test_weights_survive_saving(name, options, dims, tmp_path):
    network, other = small(name, dims, amplitude=3.0, **options), small(name, dims, seed=1, **options)
    moving, fixed = images(SIZES[dims])
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    ours, theirs = network(moving, fixed), other(moving, fixed)
    assert_close(ours.moved, theirs.moved, rtol=0, atol=0)
    assert_close(ours.displacement, theirs.displacement, rtol=0, atol=0)
    assert_close(predicted(ours), predicted(theirs), rtol=0, atol=0)


@architectures
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_checkpoint_builds_it_again(name, ending, tmp_path):
    recipe = Recipe((22, 19), (1.0, 1.0), aligned=True)
    made = checkpoint_of(recipe, name, strength=0.3, features=[4, 6, 8])
    made.save(tmp_path / f"network.{ending}")
    again = Checkpoint.load(tmp_path / f"network.{ending}")
    assert again.network == made.network
    pair = images(recipe.shape)
    found, expected = (network.model()(*pair).displacement for network in (again, made))
    assert expected.abs().max() > 0.5
    assert_close(found, expected, rtol=0, atol=0 if ending == "pt" else 0.05)  # the other rounds the weights


@both
@architectures
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
def test_pairs_of_a_batch_do_not_mix(name, dims, normalised):
    network = small(name, dims, amplitude=3.0, **(NORMALISED.get(name, {}) if normalised else {}))
    moving, fixed = images(SIZES[dims], seed=4, batch=3)
    together = network(moving, fixed)
    for i, (m, f) in enumerate(zip(moving, fixed, strict=True)):
        assert_close(together.displacement[i], network(m[None], f[None]).displacement[0], rtol=0, atol=1e-5)


@variants
def test_it_learns_to_move_a_blob(name, options):
    """One pair, three voxels apart: the loss falls by a factor of ten, and the field points the right way."""
    x, y = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    moving, fixed = (torch.exp(-((x - cx) ** 2 + (y - 16) ** 2) / 18)[None, None] for cx in (17.5, 14.5))
    torch.manual_seed(0)
    network = ARCHITECTURES[name](2, features=(8, 16, 16), **options)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = ssd_loss(moving, fixed).item()
    for _ in range(80):
        result = network(moving, fixed)
        loss = ssd_loss(result.moved, fixed) + 1e-4 * diffusion_loss(predicted(result))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < before / 10
    # moved(14, 16) = moving(14 + u, 16) reads the blob, which lies three voxels further along axis 0.
    assert result.displacement[0, 0, 14, 16].item() == pytest.approx(3, abs=0.75)
    assert abs(result.displacement[0, 1, 14, 16].item()) < 0.75
