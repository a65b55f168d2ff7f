"""Stand-ins for a network that training hands to an objective; their other attributes are the network's."""

from typing import Any

import torch
from torch import Tensor

from course_utils.networks import Registration, RegistrationNetwork


class _StandIn:
    def __init__(self, network: RegistrationNetwork) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class MixedPrecision(_StandIn):
    """The network, its forward pass under autocast; what an objective computes beside it stays in float32.

    Args:
        network: The network.
        device: Where it is.
        dtype: Of the autocast; None for float32.
    """

    def __init__(self, network: RegistrationNetwork, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__(network)
        self._device_type, self._dtype = device.type, dtype

    def __call__(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`."""
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._network(moving, fixed, condition)


class Motionless(_StandIn):
    """In place of the network, what every network begins with: a registration that moves nothing."""

    def __call__(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`."""
        return self._network.motionless(moving)
