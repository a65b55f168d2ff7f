"""A network that is refined: nothing at first, the module alone learns, and a checkpoint knows both."""

import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close

from course_utils.checkpoint import Checkpoint
from course_utils.errors import CourseError
from course_utils.fields import compose, warp
from course_utils.networks import NetworkSpec, Refined
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig
from tests.checkpoints import checkpoint as checkpoint_of
from tests.networks.small import SIZES, both, images, inner, small
from tests.training.test_loop import CARD
from tests.training.test_seams import batch_of, train


def refined(dims, strength=0.0, name="voxelmorph", **options):
    network = Refined.around(small(name, dims, amplitude=3.0, **options), channels=5).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in network.module.parameters():
        weight.data += strength * torch.randn(weight.shape, generator=generator)
    return network


@both
@pytest.mark.parametrize("name", ["voxelmorph", "pyramid"])
def test_a_new_module_changes_nothing(name, dims):
    moving, fixed = images(SIZES[dims], batch=2)
    plain = small(name, dims, amplitude=3.0)(moving, fixed)
    found = refined(dims, name=name).train()(moving, fixed)  # the network within stays in evaluation mode
    assert plain.displacement.abs().max() > 1
    assert_close(found.displacement, plain.displacement, rtol=0, atol=0)
    assert_close(found.moved, plain.moved, rtol=0, atol=0)


@both
def test_the_correction_is_two_convolutions_of_the_displacement(dims):
    """Against scipy, which correlates channel by channel; beyond the border the nearest value goes on."""
    network = refined(dims, strength=0.3)
    moving, fixed = images(SIZES[dims])

    def convolved(layer, values):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        return [
            sum(ndimage.correlate(value, w, mode="nearest") for value, w in zip(values, weight[k], strict=True))
            + bias[k]
            for k in range(len(weight))
        ]

    with torch.no_grad():
        u = network.inner(moving, fixed).displacement
        first, _, last = network.module
        hidden = [
            torch.nn.functional.leaky_relu(torch.from_numpy(h), 0.2).numpy() for h in convolved(first, u[0].numpy())
        ]
        found = network(moving, fixed)
    wanted = u[0] + torch.stack([torch.from_numpy(h) for h in convolved(last, hidden)])
    assert (wanted - u[0]).abs().max() > 0.1
    assert_close(found.displacement[0], wanted.float(), rtol=0, atol=1e-4)
    assert_close(found.moved, warp(moving, found.displacement), rtol=0, atol=0)


@both
def test_a_correction_is_as_easily_negative_as_positive(dims):
    """Of random modules; a leaky ReLU behind the last layer would make most of them positive."""
    u = torch.randn(1, dims, *SIZES[dims], generator=torch.Generator().manual_seed(0))
    means = []
    for seed in range(40):
        network = Refined("voxelmorph", {"spatial_dims": dims, "features": [2, 2]}, channels=4)
        generator = torch.Generator().manual_seed(seed)
        for weight in network.module.parameters():
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        means.append(network.module(u).mean().item())
    assert 10 < sum(mean > 0 for mean in means) < 30


@both
@pytest.mark.parametrize("steps", [7, 0], ids=["velocity", "displacement"])
def test_there_is_no_velocity_and_the_inverse_is_that_of_the_displacement(dims, steps):
    moving, fixed = images(SIZES[dims])
    network = refined(dims, strength=0.02, integration_steps=steps)
    found = network(moving, fixed)
    assert found.velocity is None
    assert (found.displacement - network.inner(moving, fixed).displacement).abs().max() > 0.01
    assert inner(compose(found.displacement, found.inverse()), 3).abs().mean() < 0.1


@both
def test_the_module_learns_and_the_network_within_does_not(dims):
    network = refined(dims).train()
    moving, fixed = images(SIZES[dims])
    pair_objective("ssd")(network, {"moving": moving, "fixed": fixed}).loss.backward()
    assert all(weight.grad is None for weight in network.inner.parameters())
    assert network.module[2].weight.grad.abs().max() > 0
    again = network.spec.build(3)  # also when it is built from what a checkpoint holds
    assert not any(weight.requires_grad for weight in again.inner.parameters())


@both
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_checkpoint_builds_it_again(dims, ending, tmp_path):
    network = refined(dims, strength=0.1, half_resolution=False)
    file = tmp_path / f"refined.{ending}"
    Checkpoint(network.spec, network.state_dict(), CARD).save(file)
    again = Checkpoint.load(file).model()
    pair = images(SIZES[dims])
    exact = ending == "pt"  # the other has rounded weights
    assert_close(again(*pair).displacement, network(*pair).displacement, rtol=0, atol=0 if exact else 0.05)
    assert again.inner.spec == network.inner.spec and not again.inner.spec.arguments["half_resolution"]


def test_what_cannot_be_refined_is_told():
    with pytest.raises(CourseError, match="refined already"):
        Refined.around(refined(2))
    for spec in ({"inner": "refined"}, {"inner": "none"}, {"channels": 0}, {"arguments": {"spatial_dims": 4}}):
        with pytest.raises(CourseError, match="a network 'refined' cannot be built"):
            NetworkSpec("refined", spec).build()
    with pytest.raises(ValueError, match="takes no condition"):
        refined(2)(*images(SIZES[2]), torch.zeros(1, 1))
    with pytest.raises(CourseError, match="a shape of"):
        Refined("pyramid", {"spatial_dims": 2}).check_grid((8, 8))


@pytest.mark.slow
def test_training_a_module_mends_what_the_network_does_wrong(tmp_path):
    """A network whose answers are much too large."""
    network = checkpoint_of(CARD.recipe).model()
    result = train(tmp_path / "first", network, pair_objective("ssd", smoothness=0.001))
    too_far = result.model
    too_far.velocity.weight.data *= 1.6
    too_far.velocity.bias.data *= 1.6
    config = TrainConfig(steps=150, batch_size=3, learning_rate=1e-2, validations=2, amp="off")
    mended = train(tmp_path / "refined", Refined.around(too_far), pair_objective("ssd", smoothness=0.001), config).model
    batch = batch_of(range(3))
    costs = [pair_objective("ssd", smoothness=0.001)(model, batch).loss.item() for model in (too_far, mended)]
    assert costs[1] < 0.8 * costs[0], costs
    assert all(
        torch.equal(a, b)
        for a, b in zip(too_far.state_dict().values(), mended.inner.state_dict().values(), strict=True)
    )
