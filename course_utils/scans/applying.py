"""A written displacement field, read again and applied to images, label maps and points.

Fields of `register`, ANTs and SimpleITK are read: 5-D NIfTI files `(X, Y, Z, 1, 3)`, or vector images of NRRD and
MetaImage, in millimetres along left, posterior and superior; and those of the Learn2Reg challenge, `(X, Y, Z, 3)`, in
voxels.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from course_utils.data.formats import ITK, RAS, nifti_header, open_nifti, read_itk, simpleitk, suffix, unreadable
from course_utils.data.grids import Grid, by
from course_utils.data.resampling import sample
from course_utils.data.volumes import Volume, check_place, read_labels, read_volume
from course_utils.errors import CourseError, CourseWarning
from course_utils.files import check_room, replacing
from course_utils.scans import writing
from course_utils.scans.transform import Transform

AXES = ["x", "y", "z"]
"""Columns of a table of points."""


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement field that was read from a file.

    Attributes:
        grid: Where its voxels are: the grid of the image that it makes.
        displacement: `(1, 3, *grid.shape)`: in voxels of `grid` or, of the layout learn2reg, from voxels of the grid to
            voxels of the moving array.
        layout: `"itk"` or `"learn2reg"`.
        header: The file's, whose codes say which space the millimetres belong to.
        path: Of the file, for messages.
    """

    grid: Grid
    displacement: Tensor
    layout: str
    header: nib.Nifti1Header
    path: Path

    def onto(self, moving: Volume) -> Tensor:
        """From each voxel of the field's grid to where it goes in a moving image, `(1, 3, *grid.shape)` voxels.

        Raises:
            CourseError: nobody knows where the moving image is; or the field is of the layout learn2reg, and the moving
                array has another shape.
        """
        if self.layout == "itk":
            check_place(moving)
            still = np.eye(4)
            return Transform(self.grid, self.displacement, still, still).between(self.grid, moving.grid)
        if moving.grid.shape != self.grid.shape:
            raise CourseError(
                f"{self.path} is of the layout learn2reg, for arrays of {by(self.grid.shape)} voxels, not "
                f"{by(moving.grid.shape)}: give the scan that it was made for"
            )
        return self.displacement


def read_field(path: str | Path) -> Field:
    """Read a displacement field.

    Raises:
        CourseError: no file, damaged, or no displacement field of a volume; not finite; no place in space.
    """
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"{path} does not exist: name a field that `register --warp` wrote")
    try:
        vectors, affine, header, layout = (_from_itk if suffix(path) in ITK else _from_nifti)(path)
    except CourseError:
        raise
    except Exception as error:  # nibabel, gzip, zlib and ITK each have their own words for a broken file
        raise unreadable(path, error) from error
    if not np.isfinite(vectors).all():
        raise CourseError(f"{path} holds NaN or infinity: register again")
    grid = Grid(vectors.shape[:3], affine)
    if layout == "itk":
        check_place(Volume(torch.empty(0), grid, path, header))
        to_voxels = np.linalg.inv(affine[:3, :3]) @ RAS[:3, :3]
        vectors = np.einsum("ij,...j->...i", to_voxels, vectors)
    displacement = torch.from_numpy(np.moveaxis(vectors, -1, 0).astype(np.float32))[None]
    return Field(grid, displacement, layout, header, path)


def _from_nifti(path: Path) -> tuple[NDArray, NDArray[np.float64], nib.Nifti1Header, str]:
    stored, header = open_nifti(path)
    affine = header.get_best_affine()
    if len(stored.shape) == 5 and stored.shape[3:] == (1, 3):
        return stored.read(np.float64)[:, :, :, 0], affine, header, "itk"
    if len(stored.shape) == 4 and stored.shape[3] == 3:
        return stored.read(np.float64), affine, header, "learn2reg"
    raise CourseError(
        f"{path} of shape {by(stored.shape)} is no displacement field: XxYxZx1x3 (ITK, ANTs) or XxYxZx3 (Learn2Reg) is"
    )


def _from_itk(path: Path) -> tuple[NDArray, NDArray[np.float64], nib.Nifti1Header, str]:
    image = read_itk(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise CourseError(f"{path} is no displacement field: a volume of vectors of three numbers is one")
    array = np.moveaxis(simpleitk(path).GetArrayFromImage(image), -1, 0).T  # z, y, x, c to x, y, z, c
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return array.astype(np.float64), RAS @ lps, nifti_header(array.dtype, array.shape, placed=True), "itk"


# --- what it moves ----------------------------------------------------------------------------------------------------


def apply_to_image(field: Field, image: Volume) -> nib.Nifti1Image:
    """The content of a file: an image moved by a field, trilinear, in its own data type, its lowest value outside."""
    moved = sample(image.data, field.onto(image), outside=image.data.min().item())
    return writing.image_like(moved, image, field.grid, field.header)


def apply_to_label(field: Field, label: Volume) -> nib.Nifti1Image:
    """The same of a label map, with the nearest neighbour: each value exactly, 0 outside."""
    moved = sample(label.data, field.onto(label), mode="nearest")
    return writing.image_like(moved, label, field.grid, field.header)


def apply_to_points(field: Field, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a field takes points of the space that its grid lies in.

    Args:
        field: Of the layout itk. The one that makes the moved image takes points of the *fixed* image to the moving
            one; to carry points of the moving image along with it, take the inverse field.
        points: `(n, 3)`, mm in NIfTI's axes (right, anterior, superior). Beyond the grid the displacement goes on as at
            its edge.

    Returns:
        `(n, 3)`.

    Raises:
        CourseError: the field is of the layout learn2reg, which knows no millimetres.
    """
    if field.layout != "itk":
        raise CourseError(f"{field.path} is of the layout learn2reg, in voxels: points need a field of the layout itk")
    homogeneous = np.c_[points, np.ones(len(points))]
    voxels = homogeneous @ np.linalg.inv(field.grid.affine).T[:, :3]
    outside = int(((voxels < -0.5) | (voxels > np.array(field.grid.shape) - 0.5)).any(1).sum())
    if outside:
        warnings.warn(
            f"{outside} of {len(points)} points lie outside the grid of {field.path}: they move as its edge does",
            CourseWarning,
            stacklevel=3,
        )
    parts = field.displacement[0].double().numpy()
    moved = [map_coordinates(part, voxels.T, order=1, mode="nearest") for part in parts]
    return points + (field.grid.affine[:3, :3] @ np.stack(moved)).T


def apply_files(
    field: str | Path,
    out: str | Path,
    *,
    image: str | Path | None = None,
    label: str | Path | None = None,
    points: str | Path | None = None,
    lps: bool = False,
) -> str:
    """Apply a written field to one file and write the result, whole or not at all.

    Args:
        field: See `read_field`.
        out: The file to write: an image, or a CSV file where points are moved.
        image: A scan; or
        label: a label map; or
        points: a CSV file with the columns x, y and z, see `apply_to_points`; its other columns are kept.
        lps: The points are in ITK's and ANTs' axes, left, posterior, superior.

    Returns:
        What was written, in words.

    Raises:
        CourseError: not one of the three is given, or a file cannot be read or written.
    """
    given = {"--image": image, "--label": label, "--points": points}
    if sum(path is not None for path in given.values()) != 1:
        raise CourseError(f"apply needs one of {', '.join(given)}: give one of them")
    out = Path(out)
    for path in (field, *given.values()):
        if path is not None and Path(path).resolve() == out.resolve():
            raise CourseError(f"{out} is also the name of an input: choose another --out")
    if points is None:
        writing.check_name(out, "--out")
    elif not out.parent.is_dir() or out.suffix != ".csv":
        raise CourseError(f"--out {out} is not the name of a CSV file in a folder that exists: change it")
    else:
        check_room(out.parent)
    moving = read_field(field)
    if points is not None:
        table = _read_points(Path(points))
        signs = np.array([-1.0, -1.0, 1.0]) if lps else np.ones(3)
        table[AXES] = apply_to_points(moving, table[AXES].to_numpy(np.float64) * signs) * signs
        with replacing(out) as partial:
            table.to_csv(partial, index=False)
        return f"{len(table)} points written to {out}"
    if image is not None:
        content = apply_to_image(moving, read_volume(image))
    else:
        assert label is not None  # one of the three is given
        content = apply_to_label(moving, read_labels(label))
    with replacing(out) as partial:
        writing.save(content, partial, out)
    return f"{by(moving.grid.shape)} voxels written to {out}"


def _read_points(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas derives its own from ValueError
        raise CourseError(f"{path} cannot be read as CSV ({error}): give a table with the columns x, y, z") from error
    missing = [axis for axis in AXES if axis not in table.columns]
    if missing:
        raise CourseError(f"{path} has no column {', '.join(missing)}: its first line must name x, y and z, in mm")
    numbers = table[AXES].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(numbers.to_numpy()).all():
        line = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 2
        raise CourseError(f"{path}, line {line}: x, y and z are not three numbers; correct them")
    return table.astype(dict.fromkeys(AXES, float))
