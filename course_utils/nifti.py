"""NIfTI files of any shape, spacing, orientation and origin: reading them, grids in millimetres, writing the results.

A voxel index becomes a position in millimetres by the file's affine, in NIfTI's axes: right, anterior, superior (RAS).
ITK, ANTs and 3D Slicer count the first two of them the other way round (LPS), and store fields so.
"""

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from course_utils.errors import CourseError
from course_utils.fields import affine_to_field, identity_grid, warp

SUFFIXES = (".nii", ".nii.gz")
THINNEST = 4  # voxels along an axis of what still is a volume
LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume are.

    Attributes:
        shape: voxels along each array axis.
        affine: ``(4, 4)`` float64, from voxel indices to millimetres (RAS).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each array axis."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())


@dataclass(frozen=True, eq=False)
class Volume:
    """A file that was read.

    Attributes:
        data: ``(1, 1, *shape)``, float32 of an image, int32 of a label.
        grid: where its voxels are.
        path: of the file, for messages.
        header: the file's, with its data type, scaling and codes, for the files that shall be like it.
    """

    data: Tensor
    grid: Grid
    path: Path
    header: nib.Nifti1Header


@dataclass(frozen=True, eq=False)
class Transform:
    """A map from the millimetres of the image that is made to those of the image that is read.

    A position ``p`` goes to ``after(phi(before(p)))``, where ``phi(x) = x + u(x)`` in voxels of ``grid``. Outside the
    grid the displacement goes on as at its edge.

    Attributes:
        grid: where the displacement is known.
        displacement: ``(1, 3, *grid.shape)``, voxels.
        before, after: ``(4, 4)`` affine maps of millimetres.
    """

    grid: Grid
    displacement: Tensor
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    def between(self, target: Grid, source: Grid) -> Tensor:
        """From each voxel of ``target`` to where it goes in ``source``: ``(1, 3, *target.shape)``, voxels.

        What :func:`sample` takes: ``x + u(x)`` is a position in the source's array. One field holds it all.
        """
        into_grid = np.linalg.inv(self.grid.affine) @ self.before @ target.affine
        out_of_grid = np.linalg.inv(source.affine) @ self.after @ self.grid.affine
        device = self.displacement.device
        deformation = warp(self.displacement, _affine_field(into_grid, target.shape, device))
        linear = torch.tensor(out_of_grid[:3, :3], dtype=torch.float32, device=device)
        # The two affine maps are multiplied in double precision: their translations may be large, and cancel.
        moved = _affine_field(out_of_grid @ into_grid, target.shape, device)
        return moved.add_(torch.einsum("ij,bj...->bi...", linear, deformation))


def _affine_field(matrix: NDArray[np.float64], shape: Sequence[int], device: torch.device) -> Tensor:
    return affine_to_field(torch.tensor(matrix[None, :3], dtype=torch.float32, device=device), shape)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> Volume:
    """Read a scan.

    Raises:
        CourseError: no file, no NIfTI, damaged; colours, complex numbers or several volumes; too thin to be a volume;
            no affine, or a singular one; NaN or infinity; a constant image; a label map.
    """
    path = Path(path)
    volume, array = _read(path)
    if array.min() == array.max():
        raise CourseError(f"{path} is constant ({array.flat[0]:g} everywhere): give a file that shows something")
    if _is_label_map(array):
        raise CourseError(
            f"{path} looks like a label map ({len(np.unique(array))} integers in large patches): give the image here, "
            "and the label as --moving-label"
        )
    return Volume(torch.from_numpy(array)[None, None], *volume)


def read_label(path: str | Path, image: Volume) -> Volume:
    """Read the label map of an image.

    Raises:
        CourseError: as for :func:`read_image`; values that are no integers, or negative; an image instead of a label
            map; another shape or affine than the image's.
    """
    path = Path(path)
    volume, array = _read(path)
    if not np.array_equal(array, np.round(array)) or array.min() < 0:
        raise CourseError(f"{path} has values that are no labels (0, 1, 2 ...): give a label map, not an image")
    if array.any() and not _is_label_map(array):
        raise CourseError(
            f"{path} looks like an image ({len(np.unique(array))} values, few neighbours equal): give its label map"
        )
    grid = volume[0]
    if grid.shape != image.grid.shape:
        raise CourseError(
            f"{path} has {_by(grid.shape)} voxels and {image.path} has {_by(image.grid.shape)}: resample the label "
            "to its image"
        )
    if not np.allclose(grid.affine, image.grid.affine, rtol=0, atol=1e-2):
        raise CourseError(f"{path} and {image.path} have different affines: resample the label to its image")
    return Volume(torch.from_numpy(array.astype(np.int32))[None, None], *volume)


def _read(path: Path) -> tuple[tuple[Grid, Path, nib.Nifti1Header], NDArray[np.float32]]:
    if not path.is_file():
        raise CourseError(f"{path} does not exist: correct the path")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"it is {type(image).__name__}")
        header, stored = image.header.copy(), image.shape
        if image.get_data_dtype().kind not in "biuf":
            raise CourseError(f"{path} holds colours or complex numbers: save one grey value a voxel")
        shape = stored[:3] + tuple(n for n in stored[3:] if n != 1)
        if len(shape) != 3:
            raise CourseError(f"{path} is {len(shape)}-D ({_by(stored)}), not one volume: save one volume a file")
        array = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    except CourseError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own words for a broken file
        reason = " ".join(str(error).split())[:120]
        raise CourseError(
            f"{path} cannot be read as NIfTI ({reason}): truncated or another format; restore or convert it"
        ) from error
    if min(shape) < THINNEST:
        raise CourseError(f"{path} has {_by(shape)} voxels: a volume has {THINNEST} or more along each axis")
    if not header["sform_code"] and not header["qform_code"]:
        raise CourseError(
            f"{path} has no affine (sform_code and qform_code are 0), so nobody knows where its voxels are: set it, "
            "or convert the scan from DICOM again"
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * sizes.prod() > 0:
        raise CourseError(f"{path} has a singular affine, voxels of no volume: set it, or convert the scan again")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise CourseError(f"{path} has {bad} NaN or infinite voxels: repair it, with numpy.nan_to_num for example")
    return (Grid(shape, affine), path, header), array


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


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# --- grids ------------------------------------------------------------------------------------------------------------


def covering(
    grid: Grid, spacing: Sequence[float], *, at_least: Sequence[int] = (0, 0, 0), orientation: str | None = None
) -> Grid:
    """The grid over the same field of view, and along the same directions, with another spacing.

    Args:
        grid: of a scan.
        spacing: mm along each array axis of the result.
        at_least: voxels an axis; a smaller field of view is padded evenly, as in training.
        orientation: axis codes such as ``"RAS"``: the array axes are permuted and flipped to come closest. None keeps
            them.
    """
    if orientation is not None:
        start = nib.orientations.io_orientation(grid.affine)
        change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
        affine = grid.affine @ nib.orientations.inv_ornt_aff(change, grid.shape)
        grid = Grid(tuple(grid.shape[int(axis)] for axis in np.argsort(change[:, 0])), affine)
    factors = np.asarray(spacing) / grid.spacing
    # Rounded up, but not for the sake of rounding errors in the affine.
    needed = [math.ceil(n / factor - 1e-3) for n, factor in zip(grid.shape, factors, strict=True)]
    shape = tuple(max(n, least) for n, least in zip(needed, at_least, strict=True))
    # The first voxel, such that the two fields of view share their centre; odd padding has more behind, as in MONAI.
    first = [
        (old - 1) / 2 - factor * ((n - 1) / 2 + (wide - n) // 2)
        for old, factor, n, wide in zip(grid.shape, factors, needed, shape, strict=True)
    ]
    step = np.diag([*factors, 1.0])
    step[:3, 3] = first
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
    """Like :func:`course_utils.fields.warp`, with the edge of the image where ITK has it.

    A voxel reaches half its size beyond its centre. There the nearest values are repeated; further out the result is
    ``outside``.

    Args:
        image: ``(1, C, *shape)``.
        displacement: ``(1, 3, *out_shape)``, voxels: ``x + u(x)`` is a position in the image's array.
    """
    moved = warp(image, displacement, mode=mode, padding="border")
    positions = identity_grid(displacement.shape[2:], device=displacement.device) + displacement
    beyond = torch.zeros_like(moved[:, :1], dtype=torch.bool)
    for axis, n in enumerate(image.shape[2:]):
        beyond |= (positions[:, axis : axis + 1] < -0.5) | (positions[:, axis : axis + 1] > n - 0.5)
    return moved.masked_fill_(beyond, outside)


def resample(image: Tensor, source: Grid, target: Grid) -> Tensor:
    """An image ``(1, C, *source.shape)`` on another grid, zero outside; smoothed first where voxels become larger."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    # Along each axis of the source, the distance between neighbours of the target in source voxels.
    ratios = np.abs(matrix[:3, :3]).max(1)
    for axis, ratio in enumerate(ratios):
        if ratio > 1:
            image = _blur(image, axis + 2, 0.5 * math.sqrt(ratio**2 - 1))
    return sample(image, _affine_field(matrix, target.shape, image.device))


def _blur(image: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian along one axis, the edges repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma) ** 2)
    lines = image.movedim(axis, -1)
    flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
    return F.conv1d(flat, (kernel / kernel.sum())[None, None]).reshape(lines.shape).movedim(-1, axis)


# --- writing ----------------------------------------------------------------------------------------------------------


def image_like(data: Tensor, template: Volume, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A file's content: values on a grid, stored in the data type and the scaling of ``template``.

    Args:
        data: ``(1, 1, *grid.shape)``.
        codes: header whose sform and qform codes say which space the grid's millimetres belong to.
    """
    array = data[0, 0].cpu().numpy()
    dtype = template.header.get_data_dtype()
    slope, inter = template.header.get_slope_inter()
    if dtype.kind in "iu":
        raw = np.round((array.astype(np.float64) - inter) / slope)
        limits = np.iinfo(dtype)
        array = raw.clip(limits.min, limits.max).astype(dtype)
    else:
        slope, inter = 1.0, 0.0
    image = _on_grid(array.astype(dtype), grid, codes)
    image.header.set_slope_inter(slope, inter)
    return image


def itk_field(displacement: Tensor, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A displacement field as ITK, ANTs and 3D Slicer read it.

    5-D ``(X, Y, Z, 1, 3)`` float32 with the intent "vector" (1007): mm along left, posterior and superior, from each
    voxel's position.

    Args:
        displacement: ``(1, 3, *grid.shape)``, voxels of the grid.
    """
    to_mm = torch.tensor(LPS @ grid.affine[:3, :3], dtype=torch.float32, device=displacement.device)
    vectors = torch.einsum("ij,j...->...i", to_mm, displacement[0].float())
    image = _on_grid(vectors[:, :, :, None].cpu().numpy(), grid, codes)
    image.header.set_intent("vector")
    return image


def learn2reg_field(displacement: Tensor, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A displacement field as the Learn2Reg challenge reads it: ``(X, Y, Z, 3)`` float32, voxels along array axes.

    Args:
        displacement: ``(1, 3, *grid.shape)``, from voxels of the fixed array to voxels of the moving one.
    """
    return _on_grid(displacement[0].float().movedim(0, -1).cpu().numpy(), grid, codes)


def _on_grid(array: NDArray, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, grid.affine)
    # Both forms are written: tools differ in which of them they prefer.
    code = int(codes["sform_code"]) or int(codes["qform_code"])
    image.set_sform(grid.affine, code)
    image.set_qform(grid.affine, code)
    image.header.set_xyzt_units("mm")
    return image


def save(image: nib.Nifti1Image, partial: Path, *, compress: bool) -> None:
    """Write a file under a name that need not end in .nii or .nii.gz, such as that of a file being written."""
    with partial.open("wb") as file:
        if compress:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)
