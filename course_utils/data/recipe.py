"""The one way from a file to a network's grid, and what is needed for the way back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.data.grids import Grid, by, covering
from course_utils.data.resampling import resample
from course_utils.data.volumes import Volume, check_fits, check_place, check_varied, read_labels, read_volume
from course_utils.errors import CourseError
from course_utils.plain import Unfit, flag, items, number, text, whole

LARGEST_GRID = 2**27
"""Voxels, 512 x 512 x 512: a few dozen numbers for each must fit into memory."""
LARGEST_LABEL = 2**15 - 1
"""The values of FreeSurfer's label maps, which go beyond 12000, fit into int16."""


def normalise(image: Tensor) -> Tensor:
    """Scale intensities to [0, 1] between the volume's 0.5th and 99.5th percentiles, clipped beyond.

    Percentiles of the volume itself, because scanners share no unit: two hippocampus files differ by a factor of 10^4.
    """
    low, high = np.percentile(image.cpu(), (0.5, 99.5))
    if low == high:
        raise CourseError(f"99 % of the voxels have the intensity {low:g}: crop the volume around its structures")
    return ((image - low) / (high - low)).clip(0, 1).float()


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {"percentile": normalise}
"""What a recipe's `normalisation` can be: a name, so that a checkpoint can hold it."""


@dataclass(frozen=True)
class Recipe:
    """How images are prepared for a network: intensities, axes, spacing, and a grid of one shape.

    Training, evaluation, registration, a challenge's submission and exported networks all prepare images by it.

    Attributes:
        shape: The grid, voxels, 2-D or 3-D.
        spacing: Millimetres between its voxels along each axis.
        aligned: The volumes of the data set share one voxel grid already and are taken as stored, whatever their
            headers say. Otherwise they are brought to the axes right, anterior, superior, and to the spacing; only
            volumes can be.
        normalisation: Of intensities, volume by volume; a name out of `NORMALISATIONS`.

    Raises:
        CourseError: no such normalisation; more voxels than `LARGEST_GRID`, or of no size.
        ValueError: shape and spacing do not belong together, or slices are to be resampled.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    aligned: bool = False
    normalisation: str = "percentile"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing", tuple(float(mm) for mm in self.spacing))
        if self.normalisation not in NORMALISATIONS:
            raise CourseError(
                f"no normalisation called '{self.normalisation}': choose from {', '.join(NORMALISATIONS)}"
            )
        if len(self.shape) != len(self.spacing) or len(self.shape) not in (2, 3):
            raise ValueError(f"a grid has 2 or 3 axes, and as many spacings; got {self.shape} and {self.spacing}")
        if not self.aligned and len(self.shape) != 3:
            raise ValueError(f"only volumes are brought to a spacing, not slices of {by(self.shape)}: say aligned=True")
        if min(self.shape) < 1 or math.prod(self.shape) > LARGEST_GRID:
            raise CourseError(f"a grid of {by(self.shape)} voxels cannot be had: take 1 to {LARGEST_GRID} in all")
        if not all(0 < mm < math.inf for mm in self.spacing):
            raise CourseError(f"a spacing of {self.spacing} mm is none: take numbers above 0")

    # --- from a file to an array in space ---

    def read_image(self, path: str | Path) -> Volume:
        """Read an image file, where it lies in space as the recipe sees it.

        Raises:
            CourseError: as for `volumes.read_volume`; the image is constant; unless volumes are taken as stored,
                nobody knows where it is.
        """
        image = self._placed(read_volume(path, len(self.shape)))
        check_varied(image)
        return image

    def read_label(self, path: str | Path, image: Volume) -> Volume:
        """Read the label map of an image, int32 from 0 to 32767.

        Raises:
            CourseError: as for `volumes.read_labels`; values beyond 32767; another shape (or, unless volumes are taken
                as stored, another affine) than the image's.
        """
        label = self._placed(read_labels(path, len(self.shape)))
        highest = int(label.data.max())
        if highest > LARGEST_LABEL:
            raise CourseError(
                f"{path} has labels up to {highest}: renumber them to 0 (background) to {LARGEST_LABEL} at most"
            )
        check_fits(label, image, affine=not self.aligned)
        return label

    def _placed(self, volume: Volume) -> Volume:
        if not self.aligned:
            check_place(volume)
            return volume
        return Volume(volume.data, Grid.as_stored(volume.grid.shape, self.spacing), volume.path, volume.header)

    # --- from an array in space to the network's grid ---

    def grid(self, stored: Grid, *, whole: bool = False) -> Grid:
        """The network's grid for an image that lies on the grid `stored`; both share their centre.

        Args:
            stored: Of the image.
            whole: Keep the whole field of view, on a grid of at least `shape`: a network of convolutions can work on a
                larger one than it was trained on. Otherwise the grid has exactly `shape`, and what lies outside is cut.

        Raises:
            CourseError: the grid would have more than 2**27 voxels.
        """
        orientation = None if self.aligned else "RAS"
        grid = covering(stored, self.spacing, at_least=self.shape, orientation=orientation)
        if not whole:
            # MONAI's centre of a crop, so that its transforms cut in the same place.
            first = [n // 2 - kept // 2 for n, kept in zip(grid.shape, self.shape, strict=True)]
            affine = grid.affine.copy()
            affine[:-1, -1] += affine[:-1, :-1] @ first
            return Grid(self.shape, affine)
        if np.prod(grid.shape, dtype=float) > LARGEST_GRID:
            raise CourseError(
                f"the fixed image's field of view is {by(grid.shape)} voxels of the common grid, more than "
                f"{LARGEST_GRID}: crop or resample it"
            )
        return grid

    def cuts(self, stored: Grid) -> bool:
        """Whether an image that lies on the grid `stored` reaches beyond the grid of exactly `shape`."""
        placed = Grid.as_stored(stored.shape, self.spacing) if self.aligned else stored
        return self.grid(placed, whole=True).shape != self.shape

    def normalised(self, image: Volume) -> Tensor:
        """Its intensities in [0, 1], `(1, 1, *shape)` float32, on its own grid.

        Raises:
            CourseError: nearly all voxels have one intensity.
        """
        try:
            return NORMALISATIONS[self.normalisation](image.data)
        except CourseError as error:
            raise CourseError(f"{image.path}: {error}") from error

    def prepare(self, image: Volume, grid: Grid | None = None) -> Tensor:
        """What a network sees of an image: `(1, 1, *grid.shape)` float32 in [0, 1], zero outside the image.

        Args:
            image: The image.
            grid: Where; None is `grid(image.grid)`.

        Raises:
            CourseError: nearly all voxels have one intensity.
        """
        return resample(self.normalised(image), image.grid, self.grid(image.grid) if grid is None else grid)

    def prepare_label(self, label: Volume, grid: Grid | None = None) -> Tensor:
        """The label map `(1, 1, *grid.shape)` on the same grid as its image, nearest neighbour."""
        target = self.grid(label.grid) if grid is None else grid
        return resample(label.data, label.grid, target, mode="nearest")

    def load(self, image: str | Path, label: str | Path | None = None) -> dict[str, Tensor]:
        """From files to tensors on the grid of exactly `shape`.

        Args:
            image: NIfTI file.
            label: Of its label map, if there is one.

        Returns:
            `image`, `(1, *shape)` float32 in [0, 1], and `label`, `(1, *shape)` int16.

        Raises:
            CourseError: a file cannot be used, or the grid is too small for the labelled structures. A Dice of a
                structure that was cut says nothing.
        """
        volume = self.read_image(image)
        grid = self.grid(volume.grid)
        tensors = {"image": self.prepare(volume, grid)[0]}
        if label is not None:
            structures = self.read_label(label, volume)
            whole = self.prepare_label(structures, self.grid(volume.grid, whole=True))
            tensors["label"] = self.prepare_label(structures, grid)[0].to(torch.int16)
            lost = int((whole > 0).sum()) - int((tensors["label"] > 0).sum())
            if lost:
                raise CourseError(
                    f"{image} of {by(volume.grid.shape)} voxels loses {lost} labelled ones on the grid "
                    f"{by(self.shape)}: crop it around its structures, or choose a larger grid"
                )
        return tensors

    # --- plain values ---

    def to_dict(self) -> dict[str, Any]:
        """Plain values for checkpoints and JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` gave the values of.

        Raises:
            KeyError: shape or spacing is missing.
            ValueError: a value has a wrong type, or there is one that no recipe has.
            CourseError: see the class.
        """
        unknown = sorted(str(name) for name in set(values) - {each.name for each in fields(cls)})
        if unknown:
            raise Unfit(f"recipe has '{unknown[0]:.60}', which is unknown")
        return cls(
            tuple(items(values["shape"], "recipe.shape", lambda n, where: whole(n, where, 1), 3)),
            tuple(items(values["spacing"], "recipe.spacing", number, 3)),
            flag(values.get("aligned", cls.aligned), "recipe.aligned"),
            text(values.get("normalisation", cls.normalisation), "recipe.normalisation"),
        )
