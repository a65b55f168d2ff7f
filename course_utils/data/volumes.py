"""Reading scans and label maps from files, and refusing what nobody could register."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.formats import Opened, open_image, unreadable
from course_utils.data.grids import Grid, by
from course_utils.data.stored import Stored, slabs
from course_utils.errors import CourseError

THINNEST = 4
"""Voxels along an axis of what still is a volume."""
FEW_VALUES = 32
"""A map of no more integers than this is a label map, whatever the shapes of its structures."""
NEAR = 0.01
"""How far a stored label may be from its integer: files with a scale hold 1.99997 for 2."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A file that was read.

    Attributes:
        data: `(1, 1, *shape)`: float32 of an image, int32 of a label map, or int64 where its values need that.
        grid: Where its voxels are.
        path: Of the file, for messages.
        header: The file's, with its data type, scaling and codes, for the files that shall be like it.
    """

    data: Tensor
    grid: Grid
    path: Path
    header: nib.Nifti1Header


# --- what a file holds ------------------------------------------------------------------------------------------------


def read_volume(path: str | Path, dims: int = 3) -> Volume:
    """Read a file of one grey value a voxel, see `course_utils.data.formats`.

    Args:
        path: Of the file.
        dims: 3, or 2 for a slice. Axes of one voxel are dropped where the file has more; a slice's place in space is
            of no account, only its spacing.

    Returns:
        The values as float32.

    Raises:
        CourseError: no file, no image, damaged; colours, complex numbers or several volumes; another number of axes;
            NaN, infinity, or more than float32 holds.
    """
    path = Path(path)
    opened = open_image(path)
    kept = _kept_axes(path, opened, dims)
    with np.errstate(over="ignore"):
        array = _values(path, opened, kept, np.float32)
    if opened.fractional:
        _check_finite(path, array)
    return Volume(torch.from_numpy(array)[None, None], _grid(opened, kept, dims), path, opened.header)


def read_labels(path: str | Path, dims: int = 3) -> Volume:
    """Read a label map, each value exactly.

    Args:
        path: Of the file.
        dims: 3, or 2 for a slice, see `read_volume`.

    Returns:
        int32, or int64 where the values need that. Values that lie within a hundredth of an integer, as a file with a
        scale stores them, are that integer; the header is then one without a scale.

    Raises:
        CourseError: as for `read_volume`; values that are no integers, or negative.
    """
    path = Path(path)
    opened = open_image(path, key="seg")
    kept = _kept_axes(path, opened, dims)
    array = _values(path, opened, kept)
    header = opened.header
    if array.dtype.kind == "f":
        _check_finite(path, array)
        _round(path, array)
        if header.get_slope_inter() not in ((1.0, 0.0), (None, None)):
            header.set_data_dtype(np.int32)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < 0 or high > np.iinfo(np.int64).max:
        raise CourseError(
            f"{path} has values that are no labels (from {low:g} to {high:g}, not 0, 1, 2 ...): give a label map, not "
            "an image, or renumber it"
        )
    header.set_slope_inter(1.0, 0.0)
    dtype = np.int32 if high <= np.iinfo(np.int32).max else np.int64
    return Volume(torch.from_numpy(array.astype(dtype))[None, None], _grid(opened, kept, dims), path, header)


def read_grid(path: str | Path, dims: int = 3) -> tuple[Grid, bool]:
    """Where the voxels of a file are, without reading them; and whether the file says so, or only nobody knows better.

    Raises:
        CourseError: no file, no image, or another number of axes.
    """
    opened = open_image(Path(path))
    return _grid(opened, _kept_axes(Path(path), opened, dims), dims), has_place(opened.header)


def has_place(header: nib.Nifti1Header) -> bool:
    """Whether a file says where its voxels are."""
    return bool(header["sform_code"] or header["qform_code"])


def _kept_axes(path: Path, opened: Opened, dims: int) -> list[int]:
    """Which of the file's axes are the volume's: a fourth of one voxel is no time, a slice may be one voxel thick."""
    if opened.header.get_data_dtype().kind not in "biuf":
        raise CourseError(f"{path} holds colours or complex numbers: save one grey value a voxel")
    stored = opened.shape
    axes = [axis for axis, n in enumerate(stored) if axis < dims or n > 1]
    if len(axes) > dims:
        axes = [axis for axis, n in enumerate(stored) if n > 1]
    if len(axes) == dims:
        return axes
    if len(axes) > 3:
        raise CourseError(f"{path} is {len(axes)}-D ({by(stored)}), not one volume: save one volume for each file")
    raise CourseError(f"{path} of {by(stored)} voxels is not {dims}-D: choose a fitting data set or model")


def read_stored(path: Path, opened: Opened, dtype: Any = None) -> NDArray:
    """The values of a file that was opened, in memory of their own; as they are stored and scaled, or of a data type.

    Raises:
        CourseError: truncated, damaged, or larger than it can be.
    """
    try:
        return opened.dataobj.read(dtype) if isinstance(opened.dataobj, Stored) else np.array(opened.dataobj, dtype)
    except CourseError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own words for a broken file
        raise unreadable(path, error) from error


def _values(path: Path, opened: Opened, kept: Sequence[int], dtype: Any = None) -> NDArray:
    """The values along the kept axes, see `read_stored`."""
    array = read_stored(path, opened, dtype)
    array = array.reshape([opened.shape[axis] for axis in kept])
    return array.astype(np.uint8) if array.dtype == bool else array.astype(array.dtype.newbyteorder("="), copy=False)


def _grid(opened: Opened, kept: Sequence[int], dims: int) -> Grid:
    shape = tuple(opened.shape[axis] for axis in kept)
    zooms = [opened.zooms[axis] if axis < len(opened.zooms) else 1.0 for axis in kept]
    if dims == 2 or opened.affine is None:
        return Grid.as_stored(shape, zooms)
    return Grid(shape, opened.affine)


def _round(path: Path, array: NDArray) -> None:
    """Round labels where they lie, slab by slab: copies of a large map would not fit beside it."""
    for slab in slabs(array.shape):
        whole = np.round(array[slab])
        if np.abs(array[slab] - whole).max(initial=0) > NEAR:
            raise CourseError(
                f"{path} has values that are no labels (0, 1, 2 ...): give a label map, not an image; one that was "
                "resampled needs the nearest neighbour"
            )
        array[slab] = whole


def _check_finite(path: Path, array: NDArray) -> None:
    bad = sum(int((~np.isfinite(array[slab])).sum()) for slab in slabs(array.shape))
    if bad:
        raise CourseError(
            f"{path} has {bad} NaN or infinite voxels: repair it, with numpy.nan_to_num for example, or leave it out "
            "(what is larger than 3.4e38 counts as infinite)"
        )


# --- what can be used -------------------------------------------------------------------------------------------------


def check_varied(image: Volume) -> None:
    """Raise CourseError where an image shows nothing."""
    low, high = image.data.aminmax()
    if low == high:
        raise CourseError(
            f"{image.path} is constant ({float(low):g} everywhere): give a file that shows something, or leave the "
            "subject out"
        )


def check_place(volume: Volume) -> None:
    """Raise CourseError where nobody knows where a volume's voxels are, or where it is no volume at all."""
    path, affine = volume.path, volume.grid.affine
    if min(volume.grid.shape) < THINNEST:
        raise CourseError(f"{path} has {by(volume.grid.shape)} voxels: a volume has {THINNEST} or more along each axis")
    if not has_place(volume.header):
        raise CourseError(
            f"{path} has no affine (sform_code and qform_code are 0), so nobody knows where its voxels are: set it, "
            "or convert the scan from DICOM again"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * sizes.prod() > 0:
        raise CourseError(f"{path} has a singular affine, voxels of no volume: set it, or convert the scan again")


def check_fits(label: Volume, image: Volume, *, affine: bool = True) -> None:
    """Raise CourseError where a label map is not on its image's grid; `affine` compares their places in space too."""
    if label.grid.shape != image.grid.shape:
        raise CourseError(
            f"{label.path} has {by(label.grid.shape)} voxels and {image.path} has {by(image.grid.shape)}: resample the "
            "label to its image"
        )
    if affine and not np.allclose(label.grid.affine, image.grid.affine, rtol=0, atol=1e-2):
        raise CourseError(f"{label.path} and {image.path} have different affines: resample the label to its image")


def read_image(path: str | Path, *, as_image: bool = False) -> Volume:
    """Read a scan that is to be registered: a volume whose place in space is known.

    Args:
        path: Of the file.
        as_image: Take the file for an image although it looks like a label map: a mask, a distance map, a phantom.

    Raises:
        CourseError: as for `read_volume`; too thin to be a volume; no affine, or a singular one; a constant image; a
            label map.
    """
    volume = read_volume(path)
    check_place(volume)
    check_varied(volume)
    array = volume.data[0, 0].numpy()
    if not as_image and _has_patches(array):
        raise CourseError(
            f"{path} looks like a label map ({len(np.unique(array))} integers in large patches): give the image here, "
            "and the label as --moving-label; if it is meant as an image, say --as-images"
        )
    return volume


def read_label(path: str | Path, image: Volume) -> Volume:
    """Read the label map of a scan that is to be registered.

    Raises:
        CourseError: as for `read_labels` and `check_place`; an image instead of a label map; another shape or affine
            than the image's.
    """
    volume = read_labels(path)
    check_place(volume)
    array = volume.data[0, 0].numpy()
    values = len(np.unique(array))
    if values > FEW_VALUES and not _has_patches(array):
        raise CourseError(f"{path} looks like an image ({values} values, few neighbours equal): give its label map")
    check_fits(volume, image)
    return volume


def _has_patches(array: NDArray) -> bool:
    """Integers, and of the neighbours that are not both background at least half are equal.

    Measured: 0.7 to 0.8 for label maps of brains and hippocampi, below 0.1 for integer images of the same, whose noise
    leaves no two neighbours equal.
    """
    if not np.array_equal(array, np.round(array)):
        return False
    values, counts = np.unique(array, return_counts=True)
    background = values[counts.argmax()]
    equal = total = 0
    for axis in range(array.ndim):
        lines = np.moveaxis(array, axis, 0)
        after, before = lines[1:], lines[:-1]
        same = after == before
        total += same.size - int((same & (after == background)).sum())
        equal += int((same & (after != background)).sum())
    return equal >= total / 2
