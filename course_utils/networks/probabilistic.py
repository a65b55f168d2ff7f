"""A network that answers with a distribution: a mean velocity, and how certain it is of every voxel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_utils.networks.base import architecture
from course_utils.networks.blocks import CONVOLUTION
from course_utils.networks.registration import Registration
from course_utils.networks.voxelmorph import VoxelMorph

MEAN, LOG_VARIANCE = "velocity_mean", "velocity_log_variance"
"""The extras of an answer: of the velocity's normal distribution, `(B, N, *own)`, voxels of the network's grid."""

FIRST_LOG_VARIANCE = -10.0
"""Samples begin close to their mean: a standard deviation of exp(-5) voxels, everywhere."""


@architecture("probabilistic")
class Probabilistic(VoxelMorph):
    """VoxelMorph with a normal distribution of velocities, independent from voxel to voxel.

    In training it answers with a sample, in evaluation with the mean; `sample` draws more. Both have the mean and the
    logarithm of the variance in their `extras`, under `MEAN` and `LOG_VARIANCE`.

    Args:
        spatial_dims: 2 or 3.
        features: See `VoxelMorph`, as all that follow.
        half_resolution, integration_steps, instance_norm, edges, conditions: See `VelocityNetwork`.

    Source: Dalca et al., Unsupervised learning for fast probabilistic diffeomorphic registration, MICCAI 2018.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        features: Sequence[int] = (16, 32, 32, 32),
        half_resolution: bool = True,
        integration_steps: int = 7,
        instance_norm: bool = True,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        super().__init__(
            spatial_dims,
            features=features,
            half_resolution=half_resolution,
            integration_steps=integration_steps,
            instance_norm=instance_norm,
            edges=edges,
            conditions=conditions,
        )
        self.log_variance = CONVOLUTION[spatial_dims](features[0], spatial_dims, 3, padding=1)
        nn.init.normal_(self.log_variance.weight, std=1e-10)
        if self.log_variance.bias is not None:
            nn.init.constant_(self.log_variance.bias, FIRST_LOG_VARIANCE)

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`: a sample in training, else the mean."""
        mean, log_variance = self.distribution(moving, fixed, condition)
        velocity = _drawn(mean, log_variance) if self.training else mean
        return self.answer(moving, velocity, {MEAN: mean, LOG_VARIANCE: log_variance})

    def motionless(self, moving: Tensor) -> Registration:
        """See `RegistrationNetwork.motionless`; as certain as the network begins."""
        nothing = super().motionless(moving)
        own = [-(-n // self.divisor) * self.divisor // self.first_stride for n in moving.shape[2:]]
        mean = moving.new_zeros(len(moving), len(own), *own)
        extras = {MEAN: mean, LOG_VARIANCE: torch.full_like(mean, FIRST_LOG_VARIANCE)}
        return Registration(moving, nothing.displacement, nothing.velocity, extras)

    def sample(self, moving: Tensor, fixed: Tensor, count: int, condition: Tensor | None = None) -> list[Registration]:
        """Registrations whose velocities are drawn from the distribution, from PyTorch's global generator.

        Args:
            moving: `(B, 1, *spatial)`.
            fixed: Of the same shape.
            count: How many.
            condition: See `RegistrationNetwork.forward`.
        """
        mean, log_variance = self.distribution(moving, fixed, condition)
        extras = {MEAN: mean, LOG_VARIANCE: log_variance}
        return [self.answer(moving, _drawn(mean, log_variance), extras) for _ in range(count)]

    def distribution(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the velocity, `(B, N, *own)` float32, in voxels of the network's grid."""
        source, target = self.seen(moving, fixed)
        with self._trusted_precision(source):
            features = self.unet(torch.cat([source, target], dim=1), self.code(condition, len(moving)))
            return self.velocity(features).float(), self.log_variance(features).float()


def _drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
