"""A network that makes the weights of a VoxelMorph from the numbers that the answer shall depend on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from course_utils.networks.base import architecture
from course_utils.networks.film import CODE, Conditioning
from course_utils.networks.voxelmorph import VoxelMorph


@architecture("hypernetwork")
class Hypernetwork(VoxelMorph):
    """A VoxelMorph of which every weight is a linear function of the condition's code.

    A weight is one of its own, as in `VoxelMorph`, plus what the code adds to it, which is next to nothing at first: so
    a new network is nearly the plain one, whatever the condition. It has `CODE` + 1 times the plain network's
    parameters, and where all pairs of a batch have one condition, as in training, next to no more work.

    Args:
        spatial_dims: 2 or 3.
        conditions: See `VelocityNetwork`; one or more. They do not need `instance_norm`.
        options: Of `VoxelMorph`.

    Source: Ha et al., HyperNetworks, ICLR 2017; Hoopes et al., HyperMorph: amortized hyperparameter learning for image
    registration, IPMI 2021.
    """

    conditioning: Conditioning

    def __init__(self, spatial_dims: int = 3, *, conditions: int = 1, **options: Any) -> None:
        if conditions < 1:
            raise ValueError(f"a hypernetwork needs something to depend on: conditions={conditions} is not 1 or more")
        super().__init__(spatial_dims, **options)
        self.conditioning = Conditioning(conditions)
        size = sum(weight.numel() for part in (self.unet, self.velocity) for weight in part.parameters())
        self.weights = nn.Linear(CODE, size, bias=False)
        nn.init.normal_(self.weights.weight, std=1e-4)  # nearly deaf, but the code gets a gradient

    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """See `VelocityNetwork.predict`."""
        images = torch.cat([moving, fixed], dim=1)
        codes = self.conditioning(condition, len(images))
        if condition is None or (condition == condition[:1]).all():
            return self._made(codes[0], images)
        return torch.cat([self._made(code, pair[None]) for code, pair in zip(codes, images, strict=True)])

    def _made(self, code: Tensor, images: Tensor) -> Tensor:
        """What the network answers for `(B, 2, *spatial)` whose weights a code `(CODE,)` makes."""
        # Adam moves all of a row at once; the division lets a weight follow its code no faster than its own part.
        changes = self.weights(code) / CODE
        found, begin = images, 0
        for part in (self.unet, self.velocity):
            made = {}
            for name, weight in part.named_parameters():
                made[name] = weight + changes[begin : begin + weight.numel()].view_as(weight)
                begin += weight.numel()
            found = functional_call(part, made, (found,))
        return found.float()
