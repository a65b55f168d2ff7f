"""VoxelMorph: the scale of its velocity, its integral and its inverse."""

import torch
from torch.testing import assert_close

from course_utils.fields import compose, integrate, jacobian_determinant
from tests.networks.small import SIZES, both, images, inner, resolutions, small


def predicting(network, amplitude):
    """The network, made to predict a smooth velocity, of so many voxels of the grid that it predicts on."""

    def smooth_velocity(layer, inputs, output):
        axes = [torch.cos(torch.pi * (torch.arange(n) + 0.5) / n) for n in output.shape[2:]]
        waves = torch.meshgrid(*axes, indexing="ij")
        field = torch.stack([torch.stack(waves).prod(0) + 0.3 * waves[c - 1] ** 2 for c in range(len(axes))])
        return (amplitude * field / field.abs().max()).to(output).expand_as(output) + 0 * output

    network.velocity.register_forward_hook(smooth_velocity)
    return network


@both
@resolutions
def test_displacement_is_the_velocity_integrated(dims, half):
    """At full resolution the same numbers; at half, up to interpolation. A factor of two would be 100 % off."""
    moving, fixed = images((32,) * dims)
    result = predicting(small("voxelmorph", dims, half_resolution=half), 2.0 if half else 4.0)(moving, fixed)
    integrated = integrate(result.velocity)
    tolerance = 0.05 if half else 1e-6
    assert integrated.abs().max() > 3
    assert inner(result.displacement - integrated, 2).abs().max() <= tolerance
    assert inner(result.velocity - integrated, 2).abs().max() > 0.5  # else no integration would pass as well


@both
@resolutions
def test_the_negative_velocity_undoes_a_smooth_displacement(dims, half):
    moving, fixed = images((32,) * dims)
    result = predicting(small("voxelmorph", dims, half_resolution=half), 2.0 if half else 4.0)(moving, fixed)
    there_and_back = compose(result.displacement, integrate(-result.velocity))
    assert result.displacement.abs().max() > 3
    assert inner(there_and_back, 5).abs().max() < 0.06


@both
@resolutions
def test_a_constant_velocity_keeps_its_length_in_voxels(dims, half):
    """What the last layer says counts in voxels of its own grid: two of the image's at half resolution."""
    network = small("voxelmorph", dims, half_resolution=half)
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
    moving, fixed = images(SIZES[dims], batch=3)
    straight = small("voxelmorph", dims, amplitude=3.0, half_resolution=half, integration_steps=0)(moving, fixed)
    assert straight.moved.shape == moving.shape
    assert straight.displacement.shape == (3, dims, *SIZES[dims])
    assert straight.displacement.dtype == torch.float32
    assert straight.velocity is None
    integrated = small("voxelmorph", dims, amplitude=3.0, half_resolution=half)(moving, fixed)
    assert_close(integrated.velocity, straight.displacement, rtol=0, atol=0)
    assert (integrated.displacement - straight.displacement).abs().max() > 0.05


def test_integration_keeps_the_grid_unfolded():
    moving, fixed = images((32, 32))
    folded, unfolded = (
        predicting(small("voxelmorph", 2, integration_steps=steps), 10.0)(moving, fixed).displacement
        for steps in (0, 8)
    )
    assert jacobian_determinant(folded).min() < 0
    assert jacobian_determinant(unfolded).min() > 0


@both
def test_the_velocity_is_integrated_in_float32_under_bfloat16_autocast(dims):
    """Only the network's output differs from that in float32."""
    network = small("voxelmorph", dims, amplitude=4.0, half_resolution=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(*images(SIZES[dims], batch=2))
    assert found.displacement.abs().max() > 0.5
    assert_close(found.displacement, integrate(found.velocity), rtol=0, atol=0)
