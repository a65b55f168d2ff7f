"""What training and instance optimisation minimise: an objective owns the call of the model."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from course_utils.networks import Registration

Model = Callable[..., Registration]
"""`model(moving, fixed, condition=None)`; in training its attributes are those of the network."""
Batch = Mapping[str, Any]
"""What a loader gives: `moving` and `fixed` `(B, 1, *spatial)`, `moving_label` and `fixed_label` where there are
labels, `name`, and whatever else a data set adds. `moving_mask` and `fixed_mask`, `(B, 1, *spatial)` from 0 to 1, say
how much the voxels of each image count in a similarity. `coarseness`, 1 where it is missing, says how many of the
labels' voxels along each axis one of the images' is."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an objective makes of a batch.

    Attributes:
        loss: Scalar; what is minimised.
        terms: The parts that it is made of, scalars without their weights, by name.
        registration: Of the batch's moving to its fixed images, for validation to measure; None where the objective
            registers something else, such as a template.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    registration: Registration | None


class Objective(abc.ABC):
    """Something to minimise. It calls the model as often as it likes: in both directions, on its own output, ...

    What it draws at random comes from PyTorch's global generator, which training seeds for every step.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Keys of a batch, beside the two images, without which there is nothing to minimise."""
        return frozenset()

    @abc.abstractmethod
    def __call__(self, model: Model, batch: Batch) -> Outcome:
        """The loss of the model on a batch."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values that say what is minimised; a checkpoint stores them, and a resumed run compares them."""


class Term(Protocol):
    """A scalar that one registration of a batch costs, a mean over voxels and pairs; lower is better."""

    needs: ClassVar[frozenset[str]]
    """As `Objective.needs`."""

    def __call__(self, registration: Registration, batch: Batch) -> Tensor: ...


def describe_term(term: object) -> dict[str, Any]:
    """The name of a term's class and its fields, as plain values; also of a setting that is no term."""
    settings = dataclasses.asdict(term) if dataclasses.is_dataclass(term) and not isinstance(term, type) else {}
    return {"term": type(term).__name__, **_plain(settings)}


def _plain(value: Any) -> Any:
    """Tuples as lists, however deep, as a card written as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value
