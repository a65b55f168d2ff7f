"""A trained network that stays as it is, and a small one behind it that corrects its displacement."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.networks.base import ARCHITECTURES, RegistrationNetwork, architecture
from course_utils.networks.blocks import CONVOLUTION
from course_utils.networks.registration import Registration


@architecture("refined")
class Refined(RegistrationNetwork):
    """Corrects the displacement of a network that is not trained any more: `u + r(u)`.

    `r` is two convolutions with a leaky ReLU between them. The last is linear, so a correction is as easily negative
    as positive, and its weights begin at zero: a new module changes nothing. It sees the displacement alone, no image.

    The network within gets no gradient and is always in evaluation mode. Whatever it predicts, the answer is a
    displacement without a velocity: a corrected exponential is not an exponential, so its inverse is found by fixed
    points, and a network that was antisymmetric within is not so any more.

    Args:
        inner: Architecture of the network within.
        arguments: Its arguments.
        channels: Between the two convolutions.

    Attributes:
        inner: The network within.
        module: `r`, on the images' grid: `(B, N, *spatial)` to the same, voxels.

    Source: Kuang, On reducing negative Jacobian determinant of the deformation predicted by deep registration networks,
    arXiv 1907.00068, 2019 (whose last layer has a leaky ReLU, too).
    """

    def __init__(self, inner: str = "voxelmorph", arguments: Mapping[str, Any] | None = None, *, channels: int = 16):
        super().__init__()
        if inner not in ARCHITECTURES or ARCHITECTURES[inner] is Refined:
            raise ValueError(f"inner={inner!r} is no network that can be refined")
        if channels < 1:
            raise ValueError(f"channels is 1 or more, not {channels}")
        self.inner = ARCHITECTURES[inner](**(arguments or {})).requires_grad_(False)
        self.spatial_dims = self.inner.spatial_dims
        # Beyond the border the displacement goes on; zeros there would be a jump that is none.
        convolution = functools.partial(
            CONVOLUTION[self.spatial_dims], kernel_size=3, padding=1, padding_mode="replicate"
        )
        last = convolution(channels, self.spatial_dims)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.module = nn.Sequential(convolution(self.spatial_dims, channels), nn.LeakyReLU(0.2), last)

    @classmethod
    def around(cls, network: RegistrationNetwork, *, channels: int = 16, seed: int = 0) -> "Refined":
        """A copy of a trained network, with a new module behind it.

        Args:
            network: Of an architecture that has a name.
            channels: See the class.
            seed: Of the module's first weights.

        Raises:
            CourseError: the network is refined already.
        """
        if isinstance(network, cls):
            raise CourseError("the network is refined already: go on with it as it is, or begin with the one within")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            refined = cls(network.spec.architecture, network.spec.arguments, channels=channels)
        refined.inner.load_state_dict(network.state_dict())
        return refined

    def train(self, mode: bool = True) -> "Refined":
        """See `torch.nn.Module.train`; the network within stays in evaluation mode."""
        super().train(mode)
        self.inner.eval()
        return self

    def check_grid(self, shape: Sequence[int]) -> None:
        """See `RegistrationNetwork.check_grid`."""
        self.inner.check_grid(shape)

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`."""
        found = self.inner(moving, fixed, condition).displacement
        displacement = found + self.module(found).float()
        return Registration(warp(moving, displacement), displacement)
