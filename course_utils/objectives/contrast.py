"""What images painted over label maps share: a value for each structure, then a camera that is not perfect."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.fields import box_mean


@dataclass(frozen=True)
class Contrast:
    """How the contrast of an image is drawn at random; every number is drawn anew for each image.

    Attributes:
        noise: Largest standard deviation of the noise; each structure has its own.
        bias: Largest standard deviation of the logarithm of a smooth factor.
        knots: Points of that factor along each axis.
        gamma: Standard deviation of the logarithm of the exponent of all intensities.
    """

    noise: float = 0.08
    bias: float = 0.3
    knots: int = 4
    gamma: float = 0.25


def uniform(low: float, high: float, *size: int, device: torch.device) -> Tensor:
    """Numbers between two ends, all equally likely, of PyTorch's global generator."""
    return low + (high - low) * torch.rand(*size, device=device)


def of_each(numbers: Tensor, image: Tensor) -> Tensor:
    """A number for each image of a batch, `(B,)`, in a shape that multiplies the images `(B, C, *spatial)`."""
    return numbers.view(-1, *[1] * (image.ndim - 1))


def smooth_noise(
    batch: int, channels: int, knots: Sequence[int], spatial: Sequence[int], device: torch.device
) -> Tensor:
    """Normal numbers at `knots` points along each axis, linear in between: `(batch, channels, *spatial)`."""
    noise = torch.randn(batch, channels, *knots, device=device)
    return F.interpolate(noise, size=tuple(spatial), mode="trilinear" if len(spatial) == 3 else "bilinear")


class Structures:
    """Which structure of a label map each voxel belongs to, so that every structure can have a value of its own.

    Args:
        label: `(B, 1, *spatial)`, whole numbers, 0 or more.
    """

    def __init__(self, label: Tensor) -> None:
        self.shape, self.device = label.shape, label.device
        self.index = label.long().flatten(1)
        self.count = int(self.index.max()) + 1

    def drawn(self, low: float, high: float) -> Tensor:
        """A value for each structure of each image, between two ends: `(B, count)`."""
        return uniform(low, high, len(self.index), self.count, device=self.device)

    def at_voxels(self, values: Tensor) -> Tensor:
        """Each voxel's value, `(B, 1, *spatial)`, of those of the structures, `(B, count)`."""
        return values.gather(1, self.index).view(self.shape)

    def means(self, image: Tensor) -> Tensor:
        """Mean of an image `(B, 1, *spatial)` in each structure: `(B, count)`, 0 where there is none of it."""
        sums = image.new_zeros(len(image), self.count).scatter_add_(1, self.index, image.flatten(1))
        voxels = torch.zeros_like(sums).scatter_add_(1, self.index, torch.ones_like(image).flatten(1))
        return sums / voxels.clamp(min=1)

    def noise(self, most: float) -> Tensor:
        """Noise, `(B, 1, *spatial)`, whose standard deviation in each structure is drawn between 0 and `most`."""
        return self.at_voxels(self.drawn(0, most)) * torch.randn(self.shape, device=self.device)


def developed(image: Tensor, contrast: Contrast) -> Tensor:
    """The image as a scanner would give it: blurred a little, shaded, from 0 to 1, and raised to a power.

    Args:
        image: `(B, 1, *spatial)`, float32, of any range.
        contrast: `bias`, `knots` and `gamma` count.

    Returns:
        `(B, 1, *spatial)`, in [0, 1].
    """
    batch, spatial, device = len(image), image.shape[2:], image.device
    whole = tuple(range(1, image.ndim))
    image = torch.lerp(image, box_mean(image, 3), of_each(uniform(0, 1, batch, device=device), image))
    shade = smooth_noise(batch, 1, [contrast.knots] * len(spatial), spatial, device)
    shade = shade * of_each(uniform(0, contrast.bias, batch, device=device), image)
    image = (image - image.amin(whole, keepdim=True)) * shade.exp()
    image = image / image.amax(whole, keepdim=True).clamp(min=1e-6)
    return image ** of_each(torch.exp(contrast.gamma * torch.randn(batch, device=device)), image)
