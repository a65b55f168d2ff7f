"""Scans as arrays in space: reading NIfTI files, grids in millimetres, values on another grid.

A voxel index becomes a position in millimetres by the file's affine, in NIfTI's axes: right, anterior, superior (RAS).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import affine_to_field, identity_grid, warp

SUFFIXES = (".nii", ".nii.gz")
THINNEST = 4
"""Voxels along an axis of what still is a volume."""
SAME_PLACE = 1e-3
"""Voxels. Two grids whose voxels lie closer than this lie in one place: headers hold float32."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume, or the pixels of a slice, are.

    Attributes:
        shape: N voxels along each array axis, 2 or 3 of them.
        affine: `(N + 1, N + 1)` float64, from voxel indices to millimetres (RAS in 3-D).
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @classmethod
    def as_stored(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Grid":
        """The grid of an array whose place in space is unknown or of no account: its axes are those of space."""
        return cls(tuple(int(n) for n in shape), np.diag([*(float(mm) for mm in spacing), 1.0]))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each array axis."""
        return tuple(np.linalg.norm(self.affine[:-1, :-1], axis=0).tolist())


@dataclass(frozen=True, eq=False)
class Volume:
    """A file that was read.

    Attributes:
        data: `(1, 1, *shape)`, float32 of an image, int32 of a label.
        grid: Where its voxels are.
        path: Of the file, for messages.
        header: The file's, with its data type, scaling and codes, for the files that shall be like it.
    """

    data: Tensor
    grid: Grid
    path: Path
    header: nib.Nifti1Header


def affine_field(matrix: NDArray[np.float64], shape: Sequence[int], device: torch.device) -> Tensor:
    """The displacement `(1, N, *shape)`, voxels, that an affine map `(N + 1, N + 1)` of voxel indices is."""
    return affine_to_field(torch.tensor(matrix[None, :-1], dtype=torch.float32, device=device), shape)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_volume(path: str | Path, dims: int = 3) -> Volume:
    """Read a NIfTI file of one grey value a voxel.

    Args:
        path: Of the file.
        dims: 3, or 2 for a slice. Axes of one voxel are dropped where the file has more; a slice's place in space is
            of no account, only its spacing.

    Returns:
        The values as float32.

    Raises:
        CourseError: no file, no NIfTI, damaged; colours, complex numbers or several volumes; another number of axes;
            NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"{path} does not exist: correct the path, or leave the subject out")
    try:
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"it is {type(image).__name__}")
        header, stored = image.header.copy(), image.shape
        if image.get_data_dtype().kind not in "biuf":
            raise CourseError(f"{path} holds colours or complex numbers: save one grey value a voxel")
        kept = _kept_axes(path, stored, dims)
        shape = tuple(stored[axis] for axis in kept)
        array = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    except CourseError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own words for a broken file
        reason = " ".join(str(error).split())[:120]
        raise CourseError(
            f"{path} cannot be read as NIfTI ({reason}): truncated or another format; restore or convert it, or leave "
            "the subject out"
        ) from error
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise CourseError(
            f"{path} has {bad} NaN or infinite voxels: repair it, with numpy.nan_to_num for example, or leave it out"
        )
    if dims == 3:
        grid = Grid(shape, np.asarray(image.affine, dtype=np.float64))
    else:
        zooms = header.get_zooms()
        grid = Grid.as_stored(shape, [zooms[axis] for axis in kept])
    return Volume(torch.from_numpy(array)[None, None], grid, path, header)


def _kept_axes(path: Path, stored: Sequence[int], dims: int) -> list[int]:
    """Which of the file's axes are the volume's: a fourth of one voxel is no time, a slice may be one voxel thick."""
    axes = [axis for axis, n in enumerate(stored) if axis < dims or n > 1]
    if len(axes) > dims:
        axes = [axis for axis, n in enumerate(stored) if n > 1]
    if len(axes) == dims:
        return axes
    if len(axes) > 3:
        raise CourseError(f"{path} is {len(axes)}-D ({by(stored)}), not one volume: save one volume for each file")
    raise CourseError(f"{path} of {by(stored)} voxels is not {dims}-D: choose a fitting data set or model")


def check_varied(image: Volume) -> None:
    """Raise CourseError where an image shows nothing."""
    low, high = image.data.aminmax()
    if low == high:
        raise CourseError(
            f"{image.path} is constant ({float(low):g} everywhere): give a file that shows something, or leave the "
            "subject out"
        )


def check_fits(label: Volume, image: Volume, *, affine: bool = True) -> None:
    """Raise CourseError where a label map is not on its image's grid; `affine` compares their places in space too."""
    if label.grid.shape != image.grid.shape:
        raise CourseError(
            f"{label.path} has {by(label.grid.shape)} voxels and {image.path} has {by(image.grid.shape)}: resample the "
            "label to its image"
        )
    if affine and not np.allclose(label.grid.affine, image.grid.affine, rtol=0, atol=1e-2):
        raise CourseError(f"{label.path} and {image.path} have different affines: resample the label to its image")


def read_image(path: str | Path) -> Volume:
    """Read a scan that is to be registered: a volume whose place in space is known.

    Raises:
        CourseError: as for `read_volume`; too thin to be a volume; no affine, or a singular one; a constant image; a
            label map.
    """
    volume = read_volume(path)
    _check_place(volume)
    check_varied(volume)
    array = volume.data[0, 0].numpy()
    if _is_label_map(array):
        raise CourseError(
            f"{path} looks like a label map ({len(np.unique(array))} integers in large patches): give the image here, "
            "and the label as --moving-label"
        )
    return volume


def read_label(path: str | Path, image: Volume) -> Volume:
    """Read the label map of a scan that is to be registered.

    Raises:
        CourseError: as for `read_image`; values that are no integers, or negative; an image instead of a label map;
            another shape or affine than the image's.
    """
    volume = read_volume(path)
    _check_place(volume)
    array = volume.data[0, 0].numpy()
    if not np.array_equal(array, np.round(array)) or array.min() < 0:
        raise CourseError(f"{path} has values that are no labels (0, 1, 2 ...): give a label map, not an image")
    if array.any() and not _is_label_map(array):
        raise CourseError(
            f"{path} looks like an image ({len(np.unique(array))} values, few neighbours equal): give its label map"
        )
    check_fits(volume, image)
    return Volume(volume.data.int(), volume.grid, volume.path, volume.header)


def _check_place(volume: Volume) -> None:
    path, affine, header = volume.path, volume.grid.affine, volume.header
    if min(volume.grid.shape) < THINNEST:
        raise CourseError(f"{path} has {by(volume.grid.shape)} voxels: a volume has {THINNEST} or more along each axis")
    if not header["sform_code"] and not header["qform_code"]:
        raise CourseError(
            f"{path} has no affine (sform_code and qform_code are 0), so nobody knows where its voxels are: set it, "
            "or convert the scan from DICOM again"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * sizes.prod() > 0:
        raise CourseError(f"{path} has a singular affine, voxels of no volume: set it, or convert the scan again")


def _is_label_map(array: NDArray[np.float32]) -> bool:
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


def by(shape: Sequence[int]) -> str:
    """A shape in words: 160x192x224."""
    return "x".join(map(str, shape))


# --- grids ------------------------------------------------------------------------------------------------------------


def covering(
    grid: Grid, spacing: Sequence[float], *, at_least: Sequence[int] | None = None, orientation: str | None = None
) -> Grid:
    """The grid over the same field of view, and along the same directions, with another spacing.

    Args:
        grid: of a scan.
        spacing: mm along each array axis of the result.
        at_least: voxels along each axis; a smaller field of view is padded evenly, as in training.
        orientation: axis codes such as `"RAS"`, of a volume: its array axes are permuted and flipped to come closest.
            None keeps them.
    """
    if orientation is not None:
        start = nib.orientations.io_orientation(grid.affine)
        change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
        affine = grid.affine @ nib.orientations.inv_ornt_aff(change, grid.shape)
        grid = Grid(tuple(grid.shape[int(axis)] for axis in np.argsort(change[:, 0])), affine)
    factors = np.asarray(spacing) / grid.spacing
    # Rounded up, but not for the sake of rounding errors in the affine.
    needed = [math.ceil(n / factor - 1e-3) for n, factor in zip(grid.shape, factors, strict=True)]
    shape = tuple(max(n, least) for n, least in zip(needed, at_least or needed, strict=True))
    # The first voxel, such that the two fields of view share their centre; odd padding has more behind, as in MONAI.
    first = [
        (old - 1) / 2 - factor * ((n - 1) / 2 + (wide - n) // 2)
        for old, factor, n, wide in zip(grid.shape, factors, needed, shape, strict=True)
    ]
    step = np.diag([*factors, 1.0])
    step[:-1, -1] = first
    return Grid(shape, grid.affine @ step)


def overlap(moving: Grid, fixed: Grid) -> float:
    """Share of the fixed grid's field of view that lies inside the moving one, 0 to 1, as their affines have it."""
    points = np.stack(np.meshgrid(*[np.linspace(-0.5, n - 0.5, 33) for n in fixed.shape], indexing="ij"))
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    there = np.tensordot(matrix[:3, :3], points, 1) + matrix[:3, 3, None, None, None]
    # Two fields of view that end at one place must not be told apart by rounding errors.
    there = there.round(6)
    sizes = np.array(moving.shape)[:, None, None, None]
    return float(((there >= -0.5) & (there <= sizes - 0.5)).all(0).mean())


# --- values on another grid -------------------------------------------------------------------------------------------


def sample(image: Tensor, displacement: Tensor, *, mode: str = "bilinear", outside: float = 0.0) -> Tensor:
    """Like `course_utils.fields.warp`, with the edge of the image where ITK has it.

    A voxel reaches half its size beyond its centre. There the nearest values are repeated; further out the result is
    `outside`.

    Args:
        image: `(1, C, *shape)`.
        displacement: `(1, 3, *out_shape)`, voxels: `x + u(x)` is a position in the image's array.
    """
    moved = warp(image, displacement, mode=mode, padding="border")
    positions = identity_grid(displacement.shape[2:], device=displacement.device) + displacement
    beyond = torch.zeros_like(moved[:, :1], dtype=torch.bool)
    for axis, n in enumerate(image.shape[2:]):
        beyond |= (positions[:, axis : axis + 1] < -0.5) | (positions[:, axis : axis + 1] > n - 0.5)
    return moved.masked_fill_(beyond, outside)


def resample(image: Tensor, source: Grid, target: Grid, *, mode: str = "bilinear") -> Tensor:
    """Values on another grid, zero outside.

    Where the two grids share their voxels (they differ in the order and direction of axes, and in whole voxels at the
    border), the values are copied. Elsewhere they are interpolated, after smoothing where voxels become larger.

    Args:
        image: `(1, C, *source.shape)`.
        source: Where it is.
        target: Where it shall be.
        mode: `"bilinear"` (trilinear in 3-D) for intensities, `"nearest"`, without smoothing, for labels.

    Returns:
        `(1, C, *target.shape)`, of the image's data type.
    """
    matrix = np.linalg.inv(source.affine) @ target.affine
    copied = _copied(image, matrix, target.shape)
    if copied is not None:
        return copied
    # Along each axis of the source, the distance between neighbours of the target in source voxels.
    ratios = np.abs(matrix[:-1, :-1]).max(1)
    if mode != "nearest" and ratios.max() > 1 + SAME_PLACE:
        # Importing MONAI loads TensorBoard and matplotlib, which registering needs neither of.
        from monai.networks.layers import gaussian_1d, separable_filtering

        sigmas = 0.5 * np.sqrt(np.maximum(ratios**2 - 1, 0))
        kernels = [
            gaussian_1d(torch.tensor(sigma), truncated=3, approx="sampled", normalize=True) if sigma else torch.ones(1)
            for sigma in sigmas
        ]
        image = separable_filtering(image, kernels, mode="replicate")
    return sample(image, affine_field(matrix, target.shape, image.device), mode=mode)


def _copied(image: Tensor, matrix: NDArray[np.float64], shape: Sequence[int]) -> Tensor | None:
    """The values on a grid that shares the image's voxels; None where it does not.

    Args:
        matrix: from the target's voxel indices to the image's.
        shape: of the target.
    """
    whole = matrix.round()
    # How far rounding moves the target's outermost voxels.
    moved = np.abs(matrix - whole)[:-1] @ np.array([*(max(n - 1, 1) for n in shape), 1.0])
    linear = whole[:-1, :-1]
    if moved.max() > SAME_PLACE or not np.array_equal(np.abs(linear) @ np.ones(len(shape)), np.ones(len(shape))):
        return None
    if not np.array_equal(np.abs(linear).sum(0), np.ones(len(shape))):
        return None
    axes = np.abs(linear).argmax(0)  # for each axis of the target, that of the image which runs along it
    turned = image.permute(0, 1, *(2 + int(axis) for axis in axes))
    result = image.new_zeros(*image.shape[:2], *shape)
    read, written = [], []
    for i, axis in enumerate(axes):
        sign, first, n = int(linear[axis, i]), int(whole[axis, -1]), image.shape[2 + int(axis)]
        if sign < 0:
            turned, first = turned.flip(2 + i), n - 1 - first
        begin, end = max(0, -first), min(shape[i], n - first)
        if begin >= end:
            return result
        written.append(slice(begin, end))
        read.append(slice(begin + first, end + first))
    result[(..., *written)] = turned[(..., *read)]
    return result
