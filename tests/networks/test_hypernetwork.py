"""The network that makes another's weights: against that other with the weights put in by hand."""

import copy

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

from course_utils.errors import CourseError
from course_utils.networks import Hypernetwork, NetworkSpec, SmoothnessRange, VoxelMorph
from course_utils.networks.film import CODE
from course_utils.objectives import AnySmoothness, pair_objective
from tests.networks.small import SIZES, both, images, predicted, small


def listening(dims, **options):
    """A small hypernetwork whose answer depends on what it is told."""
    network = small("hypernetwork", dims, amplitude=3.0, instance_norm=True, **options)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.weights.weight, std=1.0)
    return network


def plain_with_its_weights(network, condition):
    """The VoxelMorph that a hypernetwork is for one condition `(1, K)`."""
    plain = small("voxelmorph", network.spatial_dims, instance_norm=True)
    code = network.conditioning(condition, 1)[0]
    own = parameters_to_vector([*network.unet.parameters(), *network.velocity.parameters()])
    vector_to_parameters(own + network.weights.weight @ code / CODE, plain.parameters())
    return plain


@both
def test_it_is_the_voxelmorph_whose_weights_it_makes(dims):
    network, (moving, fixed) = listening(dims), images(SIZES[dims], batch=3)
    conditions = torch.tensor([[0.0], [0.5], [0.9]])
    together = predicted(network(moving, fixed, conditions))
    for i in range(3):
        plain = plain_with_its_weights(network, conditions[i : i + 1])
        expected = predicted(plain(moving[i : i + 1], fixed[i : i + 1]))[0]
        assert expected.abs().max() > 0.5
        assert_close(together[i], expected, rtol=0, atol=1e-4)
    assert (together[0] - predicted(network(moving, fixed, conditions.flip(0)))[0]).abs().max() > 0.05


@both
def test_one_condition_for_all_is_the_same_as_one_for_each(dims):
    network, (moving, fixed) = listening(dims), images(SIZES[dims], batch=2)
    together = predicted(network(moving, fixed, torch.full((2, 1), 0.3)))
    alone = [predicted(network(m[None], f[None], torch.tensor([[0.3]]))) for m, f in zip(moving, fixed, strict=True)]
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    usual = predicted(network(moving, fixed))
    assert_close(usual, predicted(network(moving, fixed, torch.full((2, 1), 0.5))), rtol=0, atol=1e-5)


def test_a_new_one_is_nearly_the_plain_network_of_its_seed_whatever_it_is_told():
    hyper, plain = (
        NetworkSpec(name, {"spatial_dims": 2, "features": [4, 8]}).build(seed=3)
        for name in ("hypernetwork", "voxelmorph")
    )
    assert isinstance(hyper, Hypernetwork) and isinstance(plain, VoxelMorph)
    own = {key: value for key, value in hyper.state_dict().items() if key in plain.state_dict()}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in plain.state_dict().items())
    pair = images(SIZES[2])
    for told in (0.0, 1.0):
        found, expected = hyper(*pair, torch.tensor([[told]])), plain(*pair)
        assert_close(found.displacement, expected.displacement, rtol=0, atol=1e-3)


def test_it_has_one_row_of_numbers_for_each_weight_of_the_plain_network():
    plain = VoxelMorph(2)
    size = sum(weight.numel() for weight in plain.parameters())
    assert Hypernetwork(2).weights.weight.shape == (size, CODE)


@both
def test_all_of_it_learns_and_what_it_is_told_gets_a_gradient(dims):
    network, (moving, fixed) = listening(dims).train(), images(SIZES[dims], batch=2)
    condition = torch.tensor([[0.2], [0.7]], requires_grad=True)
    predicted(network(moving, fixed, condition)).square().mean().backward()
    assert (condition.grad.abs() > 0).all()
    # A convolution's bias does nothing before an instance norm.
    norms = {name for name, weight in network.named_parameters() if name.endswith("0.bias")}
    dead = {name for name, weight in network.named_parameters() if weight.grad.abs().max() == 0}
    assert dead <= norms


def test_trained_for_a_range_its_field_is_rougher_at_the_low_end():
    """Steps of one pair: the roughness falls from one end to the other, and does not where the code is cut off."""
    torch.manual_seed(0)
    network = Hypernetwork(2, features=(8, 16), integration_steps=0).train()
    moving, fixed = images(SIZES[2], seed=2)
    objective = AnySmoothness(pair_objective("ssd", smoothness=0.0), SmoothnessRange(0.0005, 0.5))
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    for _ in range(150):
        optimiser.zero_grad()
        objective(network, {"moving": moving, "fixed": fixed}).loss.backward()
        optimiser.step()

    @torch.no_grad()
    def roughness(model):
        fields = (model(moving, fixed, torch.tensor([[at]])).displacement for at in (0.0, 0.5, 1.0))
        return [field.diff(dim=2).square().mean().item() for field in fields]

    heard = roughness(network)
    assert heard[0] > 1.5 * heard[1] > 1.5**2 * heard[2]
    deaf = copy.deepcopy(network)
    torch.nn.init.zeros_(deaf.weights.weight)
    unheard = roughness(deaf)
    assert unheard[0] == unheard[1] == unheard[2]


def test_a_checkpoint_could_build_it_again_whatever_becomes_of_the_defaults():
    """All arguments are remembered, those that it passes on with their defaults, and the conditions are its own."""
    plain = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": [4, 8]}).build()
    hyper = NetworkSpec("hypernetwork", {"spatial_dims": 2, "features": (4, 8)}).build()
    assert hyper.spec == NetworkSpec("hypernetwork", {**plain.spec.arguments, "conditions": 1})
    with pytest.raises(CourseError, match=r"cannot be built .*unexpected keyword argument 'window'"):
        NetworkSpec("hypernetwork", {"window": 3}).build()


def test_without_anything_to_depend_on_it_is_refused():
    with pytest.raises(CourseError, match="needs something to depend on: conditions=0 is not 1 or more"):
        NetworkSpec("hypernetwork", {"spatial_dims": 2, "conditions": 0}).build()
    with pytest.raises(ValueError, match=r"of shape \(2, 1\), not \(1, 2\)"):
        listening(2)(*images(SIZES[2], batch=2), torch.zeros(1, 2))
