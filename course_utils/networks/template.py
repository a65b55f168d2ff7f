"""A template that is learnt with the network that deforms it to everybody's image, of one kind or for each age."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.networks.base import ARCHITECTURES, RegistrationNetwork, architecture
from course_utils.networks.blocks import CONVOLUTION
from course_utils.networks.registration import Registration

COARSEST = 16
"""How many voxels of the template, along each axis, one of the decoder's first grid is."""
CHANNELS = (32, 24, 16, 8)
"""Of the decoder's grids, the coarsest first."""
CENTRED = 4
"""How many voxels along each axis one is of the grid that mean displacements are kept on."""
HIDDEN = 32
"""Units of the layer that sees the attributes."""


class AttributeDecoder(nn.Module):
    """From a few numbers to an image: a small network fills a coarse grid, and convolutions make it finer.

    A layer from the numbers to every voxel would have more weights than memory holds; this one has as many as the
    coarse grid needs.

    Args:
        shape: Of the image, `(*spatial)`.
        attributes: How many numbers.
    """

    def __init__(self, shape: Sequence[int], attributes: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.coarse = tuple(math.ceil(n / COARSEST) for n in shape)
        convolution = CONVOLUTION[len(shape)]
        self.fill = nn.Sequential(
            nn.Linear(attributes, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CHANNELS[0] * math.prod(self.coarse))
        )
        self.finer = nn.ModuleList(
            convolution(inputs, outputs, 3, padding=1)
            for inputs, outputs in zip(CHANNELS, (*CHANNELS[1:], CHANNELS[-1]), strict=True)
        )
        self.last = convolution(CHANNELS[-1], 1, 3, padding=1, bias=False)
        nn.init.normal_(self.last.weight, std=1e-3)

    def forward(self, attributes: Tensor) -> Tensor:
        """`(B, K)` to `(B, 1, *shape)`."""
        seen = self.fill(attributes).view(len(attributes), CHANNELS[0], *self.coarse)
        for convolution in self.finer:
            seen = F.leaky_relu(convolution(F.interpolate(seen, scale_factor=2, mode="nearest")), 0.2)
        return self.last(seen)[(..., *(slice(n) for n in self.shape))]


@architecture("template")
class TemplateNetwork(RegistrationNetwork):
    """A registration network, and the image that it deforms to every scan.

    The template is an image to begin with, such as the mean of all scans, and what training adds to it. With attributes
    it is one for each age, say: a decoder makes what is added of the numbers, too. As a registration network it is the
    one inside: the template, once written to a file, is the moving image of whoever uses it.

    Args:
        shape: Of the template, `(*spatial)`.
        network: Name of the architecture that registers.
        options: Its arguments, but for `spatial_dims`.
        attributes: Names of the numbers that the template depends on; none for one template for all.
        rate: How many times faster than the network's weights the template learns: Adam's steps have the size of the
            learning rate, and what they change is multiplied. 0 keeps the image that it begins with.

    Attributes:
        start: The image to begin with, `(1, 1, *shape)`.
        centre: Of each attribute, `(K,)`: what `scale` measures from.
        scale: Of each attribute, `(K,)`: its standard deviation. The decoder sees how many of them a number lies from
            the centre.
        off_centre: The mean of the displacements on the template's grid, lately, and that of their products with each
            attribute as the decoder sees it, `(1 + K, N, *spatial / 4)` voxels; see `drift`.
        seen: How many scans training has shown, `()`.

    Raises:
        ValueError: the shape has not 2 or 3 axes, the rate is negative, or the network inside cannot be built.

    Source: Dalca et al., Learning conditional deformable templates with convolutional networks, NeurIPS 2019 (there a
    layer leads from the attributes to every voxel).
    """

    start: Tensor
    centre: Tensor
    scale: Tensor
    off_centre: Tensor
    seen: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        network: str = "pyramid",
        options: Mapping[str, Any] | None = None,
        attributes: Sequence[str] = (),
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise ValueError(f"a template has 2 or 3 axes, not shape {tuple(shape)}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate is 0 or more, not {rate}")
        if network not in ARCHITECTURES or issubclass(ARCHITECTURES[network], TemplateNetwork):
            raise ValueError(f"network={network!r} is no architecture that registers")
        self.spatial_dims = len(shape)
        self.rate = rate
        self.names = tuple(attributes)
        self.network = ARCHITECTURES[network](len(shape), **(options or {}))
        self.register_buffer("start", torch.zeros(1, 1, *shape))
        self.register_buffer("centre", torch.zeros(len(self.names)))
        self.register_buffer("scale", torch.ones(len(self.names)))
        grid = [math.ceil(n / CENTRED) for n in shape]
        self.register_buffer("off_centre", torch.zeros(1 + len(self.names), len(shape), *grid))
        self.register_buffer("seen", torch.zeros(()))
        self.change = nn.Parameter(torch.zeros(1, 1, *shape))
        self.decoder = AttributeDecoder(shape, len(self.names)) if self.names else None

    def standardised(self, condition: Tensor | None) -> Tensor:
        """Attributes `(B, K)` in the units of a user, as the decoder sees them; `(1, 0)` without any.

        Raises:
            ValueError: there are none where the template depends on some, too few or too many, or some where it
                depends on none.
        """
        if condition is None and not self.names:
            return self.centre.new_zeros(1, 0)
        if condition is None or not self.names or condition.shape[1:] != self.centre.shape:
            raise ValueError(
                f"the template depends on {len(self.names)} attributes ({', '.join(self.names) or 'none'}); got "
                f"{'none' if condition is None else tuple(condition.shape)}"
            )
        return (condition.float() - self.centre) / self.scale

    def template(self, condition: Tensor | None = None) -> Tensor:
        """The template `(1, 1, *shape)`, or with attributes `(B, K)` one for each row, `(B, 1, *shape)`.

        Raises:
            ValueError: as `standardised`.
        """
        seen = self.standardised(condition)
        change = self.change if self.decoder is None else self.change + self.decoder(seen)
        return self.start + self.rate * change

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`; attributes are those of the template, and the network needs none."""
        return self.network(moving, fixed)

    def check_grid(self, shape: Sequence[int]) -> None:
        """See `RegistrationNetwork.check_grid`."""
        self.network.check_grid(shape)

    def drift(self, displacement: Tensor, condition: Tensor | None, memory: int) -> Tensor:
        """How far the template is from the middle of the scans: `(1 + K, N, *spatial / 4)` voxels.

        The first is the running mean of the displacements, each other one that of their products with an attribute, as
        many standard deviations as it is from the centre: 0 where the displacements do not depend on it, so that what
        does depend on it is in the template. In training, the answer is the running mean before the displacements given
        are counted in, and its gradient that of their own mean: they are drawn towards what the others lack, and are
        not kept small themselves.

        Args:
            displacement: On the template's grid or a coarser one, in the template's voxels, `(B, N, *any)`: where each
                of its voxels is in a scan.
            condition: Attributes of the scans, `(B, K)`.
            memory: About how many scans the running mean is of.

        Source: Dalca et al., NeurIPS 2019, equation 7 (the mean alone, and with the displacements given in
        it).
        """
        count = len(displacement)
        grid = list(self.off_centre.shape[2:])
        pool: Any = F.adaptive_avg_pool2d if self.spatial_dims == 2 else F.adaptive_avg_pool3d
        small = pool(displacement.float(), grid)
        numbers = self.standardised(condition).expand(count, -1)
        weights = torch.cat([numbers.new_ones(count, 1), numbers], dim=1)
        mean = torch.einsum("bk,b...->k...", weights, small) / count
        if not (self.training and torch.is_grad_enabled()):
            return self.off_centre if self.seen else mean
        known = self.off_centre.clone()
        with torch.no_grad():
            self.seen += count
            self.off_centre.lerp_(mean, count / self.seen.clamp(min=count, max=memory))
        return known + (mean - mean.detach())
