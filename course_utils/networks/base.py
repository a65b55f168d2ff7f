"""What every registration network is: its answer, its interface, and how a checkpoint builds it again."""

import abc
import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.errors import CourseError
from course_utils.fields import edges, integrate
from course_utils.networks.film import Conditioning
from course_utils.networks.registration import Predicted, Registration

FINER_SQUARINGS = 3
"""The last squarings of a velocity, on the images' grid where it was predicted on a coarser one and nobody trains.

They compose the largest displacements, which a coarse grid knows least exactly: they halve what the map and the map of
the swapped images lack of being inverses, and integration takes three times as long as on the coarser grid alone.
"""


class RegistrationNetwork(nn.Module, abc.ABC):
    """A network that registers a moving to a fixed image; a subclass has arguments of its own.

    A subclass that `architecture` names can be written to a checkpoint and built again from it.

    Attributes:
        spatial_dims: 2 or 3.
        spec: The name of the architecture and the arguments that it was made with.
    """

    spatial_dims: int
    spec: "NetworkSpec"

    @abc.abstractmethod
    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """Register `moving` to `fixed`.

        Args:
            moving: `(B, 1, *spatial)`.
            fixed: of the same shape.
            condition: `(B, K)`, numbers that the answer shall depend on, such as a weight of the smoothness or an age;
                None for networks without.

        Raises:
            ValueError: the images are not of one shape and of the network's dimension, or there is a condition that the
                network does not take.
        """

    def both_orders(
        self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None
    ) -> tuple[Registration, Registration]:
        """The registrations of `moving` to `fixed` and of `fixed` to `moving`; see `forward` for the arguments.

        An architecture that describes each image by itself need not do so twice.
        """
        return self(moving, fixed, condition), self(fixed, moving, condition)

    def motionless(self, moving: Tensor) -> Registration:
        """What every network begins with: a registration of `moving`, `(B, 1, *spatial)`, that moves nothing."""
        nothing = moving.new_zeros(len(moving), moving.ndim - 2, *moving.shape[2:])
        return Registration(moving, nothing, nothing)

    def check_grid(self, shape: Sequence[int]) -> None:
        """Raise CourseError where images of `shape`, `(*spatial)` voxels, are too small for the network.

        The message says which shape it needs at least. An architecture that takes any size leaves this as it is.
        """

    def check_images(self, moving: Tensor, fixed: Tensor) -> None:
        """Raise ValueError unless both images are `(B, 1, *spatial)`, of one shape and of the network's dimension."""
        if moving.shape != fixed.shape or moving.ndim != self.spatial_dims + 2 or moving.shape[1] != 1:
            raise ValueError(
                f"moving and fixed are both (B, 1) and {self.spatial_dims} axes, on one common grid; "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )


ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {}
"""The networks that a checkpoint can name; `architecture` adds to them."""

Network = TypeVar("Network", bound=RegistrationNetwork)


@dataclass(frozen=True)
class NetworkSpec:
    """All that it takes to build a network, but for its weights.

    Attributes:
        architecture: a name out of `ARCHITECTURES`.
        arguments: of the class of that name: numbers, strings, truth values, and lists of them.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, device: str = "cpu") -> RegistrationNetwork:
        """The untrained network. The same seed gives the same weights, and the global generator is left alone.

        Args:
            seed: Of its first weights.
            device: Where; on `"meta"` it has sizes and no memory.

        Raises:
            CourseError: there is no such architecture, or it does not take these arguments.
        """
        if self.architecture not in ARCHITECTURES:
            raise CourseError(
                f"architecture={self.architecture!r} is not one of {', '.join(ARCHITECTURES)}: change it, or import "
                "the module that defines it first"
            )
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            try:
                return ARCHITECTURES[self.architecture](**self.arguments)
            except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
                raise CourseError(f"a network '{self.architecture}' cannot be built ({error}): change it") from error


def architecture(name: str) -> Callable[[type[Network]], type[Network]]:
    """Class decorator: enter a network into `ARCHITECTURES`, and let each remember the arguments it was made with.

    The arguments of the class must be plain values: numbers, strings, truth values, and sequences of them. What it
    passes on, `**options`, must be those of a base class that has entered `ARCHITECTURES` too: they are remembered
    with that one's defaults.
    """

    def enter(cls: type[Network]) -> type[Network]:
        initialise = cls.__init__
        signature = inspect.signature(initialise)
        passed_on = [key for key, value in signature.parameters.items() if value.kind is value.VAR_KEYWORD]

        @functools.wraps(initialise)
        def remembering(self: Network, *args: Any, **kwargs: Any) -> None:
            initialise(self, *args, **kwargs)
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            own = {key: _plain(its) for key, its in given.arguments.items() if key not in ("self", *passed_on)}
            self.spec = NetworkSpec(name, {**(self.spec.arguments if passed_on else {}), **own})

        setattr(cls, "__init__", remembering)  # noqa: B010, an assignment would not pass the type checker
        ARCHITECTURES[name] = cls
        return cls

    return enter


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class VelocityNetwork(RegistrationNetwork):
    """What networks share that predict a stationary velocity field.

    The velocity is integrated where it was predicted, but for the last squarings in evaluation mode (see
    `FINER_SQUARINGS`), the displacement is brought to the images' grid, and the moving image is warped. Any image size
    works: sizes that the levels do not divide are padded by repeating the edge, and cropped again.

    Args:
        spatial_dims: 2 or 3.
        levels: How many resolutions the network has; every level halves the one before.
        half_resolution: Predict and integrate the velocity on a grid of half the size, then resize the displacement.
        integration_steps: Squarings in `fields.integrate`; 0 predicts a displacement, and there is no velocity.
        instance_norm: Features are normalised over the voxels of a level, of which the coarsest must have two then.
        antisymmetric: Register inverse-consistently by construction: swapping the images changes the sign of the
            velocity, so the two maps are each other's inverse, and an image against itself does not move.
        edges: See the images' edges (`fields.edges`) in place of their intensities: an image and its negative then look
            the same, and many contrasts alike.
        conditions: How many numbers, each from 0 to 1, the answer depends on beside the images; `forward` takes them as
            its `condition`, and where it is given none, those that `Conditioning.usual` holds. They scale and shift
            normalised features, so `instance_norm` must be on.

    Attributes:
        first_stride: 1, or 2 at half resolution: what the first level reduces the images by.
        divisor: What `predict` needs the images' sizes to be multiples of.

    Source: Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Medical Image Analysis 57,
    2019 (velocity fields, integrated at half resolution).
    """

    def __init__(
        self,
        spatial_dims: int,
        levels: int,
        *,
        half_resolution: bool,
        integration_steps: int,
        instance_norm: bool = False,
        antisymmetric: bool = False,
        edges: bool = False,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is 2 or 3, not {spatial_dims}")
        if integration_steps < 0:
            raise ValueError(f"integration_steps is the number of squarings, 0 or more, not {integration_steps}")
        if conditions < 0 or (conditions and not instance_norm):
            raise ValueError(f"conditions={conditions} is 0 or more, and above 0 only with instance_norm")
        self.spatial_dims = spatial_dims
        self.integration_steps = integration_steps
        self.first_stride = 2 if half_resolution else 1
        self.divisor = self.first_stride * 2 ** (levels - 1)
        self.instance_norm = instance_norm
        self.antisymmetric = antisymmetric
        self.edges = edges
        self.conditioning = Conditioning(conditions) if conditions else None

    def code(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """What the conditional layers see of a batch's condition; None for a network without.

        Raises:
            ValueError: the condition is not of the network's shape, or it takes none.
        """
        if self.conditioning is None:
            refuse_condition(condition)
            return None
        return self.conditioning(condition, batch)

    @abc.abstractmethod
    def predict(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """What is to be integrated, `(B, N, *spatial / first_stride)` float32, voxels of that grid.

        The images' sizes are multiples of `divisor`.
        """

    def predict_antisymmetric(self, moving: Tensor, fixed: Tensor, condition: Tensor | None) -> Tensor:
        """As `predict`, with the sign changed where the images are swapped: half the difference of both orders."""
        both = self.predict(
            torch.cat([moving, fixed]),
            torch.cat([fixed, moving]),
            None if condition is None else torch.cat([condition, condition]),
        )
        there, back = both.chunk(2)
        return (there - back) / 2

    def check_grid(self, shape: Sequence[int]) -> None:
        """See `RegistrationNetwork.check_grid`."""
        if self.instance_norm and max(shape) <= self.divisor:
            raise CourseError(
                f"images of {'x'.join(map(str, shape))} voxels become a single one at the network's coarsest level, "
                f"where nothing can be normalised: take a shape of {self.divisor + 1} voxels or more along one axis at "
                "least, or a network of fewer levels"
            )

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor | None = None) -> Registration:
        """See `RegistrationNetwork.forward`; `check_grid` must have passed."""
        source, target = self.seen(moving, fixed)
        with self._trusted_precision(source):
            predict = self.predict_antisymmetric if self.antisymmetric else self.predict
            predicted = predict(source, target, condition)
        return self.answer(moving, predicted)

    def seen(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """What `predict` sees of two images: their edges if it shall, padded to multiples of `divisor`."""
        self.check_images(moving, fixed)
        self.check_grid(moving.shape[2:])
        spatial = moving.shape[2:]
        padded = [-(-n // self.divisor) * self.divisor for n in spatial]
        source, target = (edges(moving), edges(fixed)) if self.edges else (moving, fixed)
        if list(spatial) != padded:
            margins = [m for n, p in zip(reversed(spatial), reversed(padded), strict=True) for m in (0, p - n)]
            source, target = (F.pad(image, margins, mode="replicate") for image in (source, target))
        return source, target

    def answer(
        self, moving: Tensor, field: Tensor, extras: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Registration:
        """The registration that a predicted field, `(B, N, *spatial / first_stride)`, means for a moving image."""
        finer = 0 if self.training or self.first_stride == 1 else FINER_SQUARINGS
        return Predicted(moving, field, self.integration_steps, self.first_stride, finer, extras)

    def exponential(self, velocity: Tensor, most: int | None = None) -> Tensor:
        """The displacement of a predicted field, with `most` squarings at most; itself without integration."""
        steps = self.integration_steps if most is None else min(most, self.integration_steps)
        return integrate(velocity, steps) if steps else velocity

    def _trusted_precision(self, image: Tensor) -> contextlib.AbstractContextManager[Any]:
        # On CPUs, oneDNN's bfloat16 gradient of a convolution's weights is wrong, and at times not finite, where the
        # grid has fewer than 3 slices. Volumes that small gain nothing from bfloat16.
        coarsest = min(image.shape[2:]) // self.divisor
        if image.device.type == "cpu" and coarsest < 3 and torch.is_autocast_enabled("cpu"):
            return torch.autocast("cpu", enabled=False)
        return contextlib.nullcontext()


def check_levels(features: Sequence[int]) -> None:
    """Raise ValueError unless there are two levels or more."""
    if len(features) < 2:
        raise ValueError(f"a network needs at least two levels, not features={tuple(features)}")


def refuse_condition(condition: Tensor | None) -> None:
    """Raise ValueError where a network that depends on the two images alone is given a condition."""
    if condition is not None:
        raise ValueError("this network takes no condition: leave it out, or choose a conditional architecture")
