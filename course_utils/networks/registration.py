"""A registration: what every method answers with, and what follows from it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from course_utils.fields import compose, integrate, invert, pool, resize, warp


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration answers with; all of it lies on the fixed grid.

    A network's answer is computed when it is asked for, so that a loss on a coarse grid pays for nothing finer.

    Attributes:
        moved: The moving image, warped, `(B, C, *spatial)`.
        displacement: `(B, N, *spatial)`, voxels, float32: `moved(x) = moving(x + u(x))`.
        velocity: `(B, N, *spatial)`, voxels, float32, where the displacement is `exp(velocity)`; None where the method
            knows no velocity.
        extras: Whatever else a method gives, by name, for its own objective: a variance, a mask, an attention map.
    """

    moved: Tensor
    displacement: Tensor
    velocity: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def inverse(self) -> Tensor:
        """The displacement of the inverse map, `(B, N, *spatial)` in voxels of the same grid.

        With a velocity it is `exp(-velocity)`. Without one the displacement is inverted by fixed-point iteration, which
        is right wherever neighbouring displacements differ by less than their distance (see `fields.invert`).
        """
        return invert(self.displacement) if self.velocity is None else integrate(-self.velocity)

    def backwards(self, fixed: Tensor) -> "Registration":
        """The registration of the fixed to the moving image that the inverse map is.

        Args:
            fixed: The fixed image, `(B, C, *spatial)`.
        """
        inverse = self.inverse()
        velocity = None if self.velocity is None else -self.velocity
        return Registration(warp(fixed, inverse), inverse, velocity, self.extras)

    def of(self, moving: Tensor) -> "Registration":
        """The same map of another image `(B, C, *spatial)` on the moving image's grid."""
        return Registration(warp(moving, self.displacement), self.displacement, self.velocity, self.extras)

    def coarser(self, moving: Tensor, factor: int) -> "Registration":
        """The same map on the grid that `fields.pool` makes, in voxels of that grid.

        Args:
            moving: The moving image there, `fields.pool(image, factor)`.
            factor: Voxels along each axis that become one.
        """
        displacement = pool(self.displacement, factor) / factor
        velocity = None if self.velocity is None else pool(self.velocity, factor) / factor
        return Registration(warp(moving, displacement), displacement, velocity, self.extras)


class Predicted(Registration):
    """What a network has predicted on a grid of its own, and what follows from it, computed when it is asked for.

    Args:
        moving: The moving image, `(B, C, *spatial)`.
        field: `(B, N, *own)`, voxels of the network's grid: a velocity or, without squarings, a displacement.
        steps: How many squarings integrate it.
        stride: How many voxels of the images, which begin where it begins, one of its own is along each axis.
        finer: How many of the squarings, the last ones, are done on the images' grid.
        extras: See `Registration`.
    """

    _moving: Tensor
    _field: Tensor
    _steps: int
    _stride: int
    _finer: int

    def __init__(
        self,
        moving: Tensor,
        field: Tensor,
        steps: int,
        stride: int,
        finer: int = 0,
        extras: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        own = {"moving": moving, "field": field, "steps": steps, "stride": stride, "finer": min(finer, steps)}
        self.__dict__.update({f"_{name}": value for name, value in own.items()}, extras=extras)

    @functools.cached_property
    def moved(self) -> Tensor:  # type: ignore[override]
        return warp(self._moving, self.displacement)

    @functools.cached_property
    def displacement(self) -> Tensor:  # type: ignore[override]
        if not self._finer:
            return self._on_images(self._integrated)
        part = integrate(self._field / 2**self._finer, self._steps - self._finer)
        return self._on_images(part, squarings=self._finer)

    @functools.cached_property
    def velocity(self) -> Tensor | None:  # type: ignore[override]
        return self._on_images(self._field) if self._steps else None

    @functools.cached_property
    def _integrated(self) -> Tensor:
        return integrate(self._field, self._steps) if self._steps else self._field

    def _on_images(self, field: Tensor, squarings: int = 0) -> Tensor:
        whole = resize(field, [n * self._stride for n in field.shape[2:]])
        for _ in range(squarings):
            whole = compose(whole, whole)
        return whole[(..., *(slice(n) for n in self._moving.shape[2:]))]

    def backwards(self, fixed: Tensor) -> Registration:
        """See `Registration.backwards`; a velocity changes its sign where it was predicted, and stays lazy."""
        if not self._steps:
            return super().backwards(fixed)
        return Predicted(fixed, -self._field, self._steps, self._stride, self._finer, self.extras)

    def of(self, moving: Tensor) -> Registration:
        """See `Registration.of`."""
        return Predicted(moving, self._field, self._steps, self._stride, self._finer, self.extras)

    def coarser(self, moving: Tensor, factor: int) -> Registration:
        """See `Registration.coarser`; on the network's own grid nothing is interpolated."""
        if factor != self._stride:
            return super().coarser(moving, factor)
        inside = (..., *(slice(n) for n in moving.shape[2:]))
        displacement = self._integrated[inside]
        velocity = self._field[inside] if self._steps else None
        return Registration(warp(moving, displacement), displacement, velocity, self.extras)
