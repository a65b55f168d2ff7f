"""Trained networks for tests, without any training: their weights move things."""

import torch

from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.networks import NetworkSpec


def checkpoint(recipe, architecture="voxelmorph", *, strength=0.2, objective=None, labels=None, **arguments):
    """A checkpoint of a small network for the images that a recipe prepares.

    Args:
        strength: standard deviation of the weights of the velocity's last layers; 0 keeps a new network's.
        objective: what it says that it was trained for.
        arguments: of the network.
    """
    given = {"features": [4, 8], **arguments}
    network = NetworkSpec(architecture, {"spatial_dims": len(recipe.shape), **given}).build()
    generator = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        if strength and name.startswith("velocity") and name.endswith("weight"):
            weight.data = strength * torch.randn(weight.shape, generator=generator)
    card = DataCard("balls", labels or {1: "shell", 2: "core"}, recipe, "CC BY 4.0", "A. Author, A paper, 2020")
    return Checkpoint(network.spec, network.state_dict(), card, objective or {}, {"steps": 4}, 3, 0.75, {"dice": 0.75})


SLICES = Recipe((16, 16), (1.0, 1.0), aligned=True)
