"""A network as training and an objective see it: stand-ins, whose other attributes are the network's, and a module."""

from typing import Any

import torch
from torch import Tensor, nn

from course_utils.networks import Registration, RegistrationNetwork
from course_utils.objectives import Batch, Model, Objective


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
        with self._autocast():
            return self._network(moving, fixed, condition)

    def both_orders(
        self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None
    ) -> tuple[Registration, Registration]:
        """See `RegistrationNetwork.both_orders`."""
        with self._autocast():
            return self._network.both_orders(moving, fixed, condition)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None)


class Motionless(_StandIn):
    """In place of the network, what every network begins with: a registration that moves nothing."""

    def __call__(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`."""
        return self._network.motionless(moving)

    def both_orders(
        self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None
    ) -> tuple[Registration, Registration]:
        """See `RegistrationNetwork.both_orders`."""
        return self._network.motionless(moving), self._network.motionless(fixed)


class Minimised(nn.Module):
    """What a step minimises, with the network's parameters: a module, whose one call PyTorch can make parallel.

    An objective may call the network several times, or look at its parameters; in here that is all one call.

    Args:
        network: The network, whose parameters are the module's.
        model: What the objective is handed in its place.
        objective: The objective.
    """

    def __init__(self, network: RegistrationNetwork, model: Model, objective: Objective) -> None:
        super().__init__()
        self.network, self.model, self.objective = network, model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and the terms that it is made of, by name and without gradients."""
        outcome = self.objective(self.model, batch)
        return outcome.loss, {name: term.detach() for name, term in outcome.terms.items()}
