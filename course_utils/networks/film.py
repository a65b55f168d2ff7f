"""How a network depends on numbers beside its images: they scale and shift its normalised features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CODE = 32
"""Channels of what the numbers are made into, which every layer sees."""
USUAL = "conditioning.usual"
"""Where the weights of a `VelocityNetwork` hold what it takes the numbers for when it is told none."""


class Conditioning(nn.Module):
    """The numbers that a network depends on, made into a code that its `ConditionalNorm`s see.

    Args:
        conditions: How many numbers there are, each of them from 0 to 1.

    Attributes:
        usual: `(conditions,)`, what is taken where the network is told none: the middle at first, 0.5.
    """

    usual: Tensor

    def __init__(self, conditions: int) -> None:
        super().__init__()
        self.register_buffer("usual", torch.full((conditions,), 0.5))
        self.layers = nn.Sequential(
            nn.Linear(conditions, CODE), nn.LeakyReLU(0.2), nn.Linear(CODE, CODE), nn.LeakyReLU(0.2)
        )

    def forward(self, condition: Tensor | None, batch: int) -> Tensor:
        """The codes of a batch, `(batch, CODE)`.

        Args:
            condition: `(batch, conditions)`; None takes `usual` for all.
            batch: How many pairs there are.

        Raises:
            ValueError: the condition is of another shape.
        """
        condition = self.usual.expand(batch, -1) if condition is None else condition
        if condition.shape != (batch, len(self.usual)):
            raise ValueError(
                f"this network takes a condition of shape {(batch, len(self.usual))}, not {tuple(condition.shape)}"
            )
        return self.layers(2 * condition - 1)


class ConditionalNorm(nn.Module):
    """An instance norm whose scale and shift of each channel follow from a code. It begins as one that ignores it.

    Args:
        channels: Of the features.

    Source: Perez et al., FiLM: visual reasoning with a general conditioning layer, AAAI 2018; Mok and Chung,
    Conditional deformable image registration with convolutional neural network, MICCAI 2021 (after instance norms, for
    the weight of the smoothness).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.film = nn.Linear(CODE, 2 * channels)
        nn.init.normal_(self.film.weight, std=1e-3)
        with torch.no_grad():
            self.film.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Features `(B, C, *spatial)` and codes `(B, CODE)` to features."""
        scale, shift = self.film(code).view(*code.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return scale * F.instance_norm(x) + shift
