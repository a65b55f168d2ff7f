"""The seams carry what the course needs next: each method here is a network or an objective, and no edit of the loop.

Both directions of a pair, a network that depends on the weight of its smoothness, a template that is learnt, and a
network called on its own output. All are trained, stored, and read again.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from course_utils.checkpoint import Checkpoint
from course_utils.fields import identity_grid, integrate, warp
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import NetworkSpec, Registration, RegistrationNetwork, VoxelMorph, architecture
from course_utils.networks.base import VelocityNetwork
from course_utils.networks.blocks import velocity_head
from course_utils.networks.unet import UNet
from course_utils.objectives import Objective, Outcome, PairObjective, pair_objective
from course_utils.training import TrainConfig, fit
from tests.training.test_loop import CARD, Discs, Repeated

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(steps=120, batch_size=3, learning_rate=1e-2, validations=2, amp="off")
SHAPE = (20, 18)


def train(out, model, objective, config=CONFIG):
    card = replace(CARD, labels={})
    return fit(model, objective, Repeated(labels=False), Discs(2, labels=False), out, config, card=card, hooks=[])


def voxelmorph():
    return NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": [8, 8]}).build()


def batch_of(indices, pairs=None):
    return torch.utils.data.default_collate([(pairs or Repeated(labels=False))[index] for index in indices])


def swapped(batch):
    """The same pairs, moving and fixed exchanged."""
    other = {"moving": "fixed", "fixed": "moving"}
    return {key: batch[other.get(key, key)] for key in batch}


# --- both directions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BothDirections(Objective):
    """The mean of an objective over a pair and the pair exchanged."""

    objective: PairObjective

    def __call__(self, model, batch):
        there, back = self.objective(model, batch), self.objective(model, swapped(batch))
        terms = there.terms | {"backwards": back.terms["similarity"]}
        return Outcome((there.loss + back.loss) / 2, terms, there.registration)

    def describe(self):
        return {"both directions": self.objective.describe()}


def test_both_directions_are_trained_at_once(tmp_path):
    one_way = pair_objective("ssd", smoothness=0.001)
    batch = batch_of(range(3))
    backwards = {}
    for name, objective in (("one", one_way), ("both", BothDirections(one_way))):
        result = train(tmp_path / name, voxelmorph(), objective)
        with torch.no_grad():
            forth = one_way(result.model, batch).loss.item()
            backwards[name] = one_way(result.model, swapped(batch)).loss.item()
        assert forth < 0.6 * ssd_loss(batch["moving"], batch["fixed"]).item(), name
    assert backwards["both"] < 0.6 * backwards["one"]  # the pairs come in one order only
    history = train(tmp_path / "again", voxelmorph(), BothDirections(one_way)).history
    assert history["loss"].equals(result.history["loss"])  # as reproducible as any run
    assert {"similarity", "regularisation", "backwards", "validation_backwards"} <= set(history.columns)
    assert "both directions" in Checkpoint.load(tmp_path / "both" / "best.pt").objective


# --- a network that depends on the weight of its smoothness -----------------------------------------------------------


@architecture("test conditioned")
class Conditioned(VelocityNetwork):
    """A U-Net whose features are scaled and shifted by what a small network makes of the condition."""

    def __init__(self, spatial_dims, *, features=(8, 8), conditions=1):
        super().__init__(spatial_dims, len(features), half_resolution=True, integration_steps=5)
        self.unet = UNet(spatial_dims, 2, features, first_stride=2)
        self.scale = nn.Sequential(nn.Linear(conditions, 16), nn.Tanh(), nn.Linear(16, 2 * features[0]))
        self.velocity = velocity_head(spatial_dims, features[0])

    def predict(self, moving, fixed, condition):
        if condition is None:
            raise ValueError("this network needs a condition")
        seen = self.unet(torch.cat([moving, fixed], dim=1))
        scale, shift = self.scale(condition).view(len(moving), -1, *[1] * self.spatial_dims).chunk(2, dim=1)
        return self.velocity(seen * (1 + scale) + shift).float()


class AnySmoothness(Objective):
    """A weight of the smoothness, drawn anew for every step, is told to the network and weighs the terms."""

    def __call__(self, model, batch):
        weight = torch.rand(()).to(batch["fixed"].device)
        registration = model(batch["moving"], batch["fixed"], weight.expand(len(batch["fixed"]), 1))
        terms = {
            "similarity": ssd_loss(registration.moved, batch["fixed"]),
            "roughness": diffusion_loss(registration.velocity),
        }
        return Outcome((1 - weight) * terms["similarity"] + weight * 0.1 * terms["roughness"], terms, registration)

    def describe(self):
        return {"similarity": {"term": "SSD"}, "weight": "uniform"}


def test_one_network_answers_for_every_weight_of_the_smoothness(tmp_path):
    model = NetworkSpec("test conditioned", {"spatial_dims": 2}).build()
    result = train(tmp_path, model, AnySmoothness(), replace(CONFIG, steps=300))
    again = Checkpoint.load(result.best).model()
    batch = batch_of(range(3))
    with torch.no_grad():
        rough, smooth = (again(batch["moving"], batch["fixed"], torch.full((3, 1), weight)) for weight in (0.02, 0.98))
        assert torch.equal(
            rough.velocity, result.model(batch["moving"], batch["fixed"], torch.full((3, 1), 0.02)).velocity
        )
    assert diffusion_loss(rough.velocity) > 2 * diffusion_loss(smooth.velocity)
    assert ssd_loss(rough.moved, batch["fixed"]) < ssd_loss(smooth.moved, batch["fixed"])


def test_a_network_without_conditions_refuses_one():
    images = torch.rand(2, 1, 1, *SHAPE)
    with pytest.raises(ValueError, match="takes no condition"):
        voxelmorph()(*images, torch.zeros(1, 1))


# --- a template that is learnt ----------------------------------------------------------------------------------------


@architecture("test template")
class WithTemplate(RegistrationNetwork):
    """A network, and an image that it deforms to everybody's."""

    def __init__(self, shape):
        super().__init__()
        self.spatial_dims = len(shape)
        self.template = nn.Parameter(torch.zeros(1, 1, *shape))
        self.network = VoxelMorph(len(shape), features=(8, 8))

    def forward(self, moving, fixed, condition=None):
        return self.network(moving, fixed, condition)


class Template(Objective):
    """Deforms the template to every image; that the deformations stay small lets it become their mean shape."""

    def __call__(self, model, batch):
        template = model.template.expand_as(batch["fixed"])
        registration = model(template, batch["fixed"])
        terms = {
            "similarity": ssd_loss(registration.moved, batch["fixed"]),
            "size": registration.displacement.square().mean(),
        }
        return Outcome(terms["similarity"] + 0.003 * terms["size"], terms, None)

    def describe(self):
        return {"template": "small deformations"}


def test_a_template_is_learnt_with_the_network(tmp_path):
    model = NetworkSpec("test template", {"shape": list(SHAPE)}).build()
    result = train(tmp_path, model, Template(), replace(CONFIG, steps=200))
    template = Checkpoint.load(result.best).model().template.detach()
    distance = (identity_grid(SHAPE) - torch.tensor([10.0, 9.0]).view(1, 2, 1, 1)).norm(dim=1, keepdim=True)
    disc = torch.sigmoid(4.0 - distance)  # the mean place and the mean radius of the discs
    assert torch.corrcoef(torch.stack([template.flatten(), disc.flatten()]))[0, 1] > 0.9
    # What is no registration of the moving to the fixed image is not measured as one.
    assert "validation_folding_percent" not in result.history
    assert Checkpoint.load(result.best).score == -result.history["validation_similarity"].min()


# --- a network called on its own output -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cycle(Objective):
    """There, and from the moved image back to the moving one."""

    objective: PairObjective
    weight: float

    def __call__(self, model, batch):
        there = self.objective(model, batch)
        back = model(there.registration.moved, batch["moving"])
        cycle = ssd_loss(back.moved, batch["moving"])
        return Outcome(there.loss + self.weight * cycle, there.terms | {"cycle": cycle}, there.registration)

    def describe(self):
        return self.objective.describe() | {"cycle": {"weight": self.weight}}


def test_a_cycle_brings_the_moving_image_back(tmp_path):
    one_way = pair_objective("ssd", smoothness=0.001)
    cycles = {}
    for weight in (0.0, 1.0):
        result = train(tmp_path / str(weight), voxelmorph(), Cycle(one_way, weight))
        with torch.no_grad():
            cycles[weight] = Cycle(one_way, weight)(result.model, batch_of(range(3))).terms["cycle"].item()
    assert cycles[1.0] < 0.5 * cycles[0.0]


# --- answers ----------------------------------------------------------------------------------------------------------


def smooth(amplitude, shape=(32, 28)):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2, 5, 4, generator=generator)
    field = torch.nn.functional.interpolate(noise, size=shape, mode="bicubic", align_corners=True)
    return amplitude * field / field.abs().max()


@pytest.mark.parametrize("known", ["velocity", "displacement"])
def test_the_inverse_is_right_with_and_without_a_velocity(known):
    """`exp(-u)` in place of the inverse of a displacement would be off by many times the bound."""
    if known == "velocity":
        velocity = smooth(4.0)
        registration = Registration(velocity, integrate(velocity), velocity)
    else:
        registration = Registration(smooth(3.0), smooth(3.0))
    u, back = registration.displacement, registration.inverse()
    residual = (back + warp(u, back))[..., 6:-6, 6:-6].norm(dim=1)  # u after w: the identity
    assert u.norm(dim=1).max() > 2.5
    assert residual.max() < (0.15 if known == "velocity" else 0.01)
    if known == "displacement":
        wrong = integrate(-u)
        assert (wrong + warp(u, wrong))[..., 6:-6, 6:-6].norm(dim=1).max() > 0.3
