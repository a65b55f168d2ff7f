"""The files that a registration writes: images like those that were read, and fields for other tools.

ITK, ANTs and 3D Slicer count the first two axes of space the other way round than NIfTI does (LPS instead of RAS), and
store fields so.
"""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.formats import ITK, MGH, RAS, WRITABLE, simpleitk, suffix
from course_utils.data.grids import Grid
from course_utils.data.volumes import Volume
from course_utils.errors import CourseError
from course_utils.files import check_room

LPS = RAS[:3, :3]
MGH_TYPES = (np.uint8, np.int16, np.int32, np.float32)
"""What FreeSurfer's format holds, the smallest first."""


def image_like(data: Tensor, template: Volume, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A file's content: values on a grid, stored in the data type and the scaling of `template`.

    Args:
        data: `(1, 1, *grid.shape)`.
        codes: header whose sform and qform codes say which space the grid's millimetres belong to.
    """
    array = data[0, 0].cpu().numpy()
    dtype = template.header.get_data_dtype().newbyteorder("=")
    slope, inter = template.header.get_slope_inter()
    if array.dtype.kind in "iu":  # labels, whose header has no scale
        slope, inter = 1.0, 0.0
    elif dtype.kind in "iu":
        raw = np.round((array.astype(np.float64) - inter) / slope)
        # Of 64-bit integers the largest double that is one of them: the next one would become the smallest integer.
        limits = np.iinfo(dtype)
        highest = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
        array = raw.clip(limits.min, highest)
    else:
        slope, inter = 1.0, 0.0
    image = _on_grid(array.astype(dtype), grid, codes)
    image.header.set_slope_inter(slope, inter)
    return image


def values(data: Tensor, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A file's content: numbers of any kind on a grid, `(1, 1, *grid.shape)`, as float32. `codes`: see `image_like`."""
    return _on_grid(data[0, 0].cpu().numpy().astype(np.float32), grid, codes)


def itk_field(displacement: Tensor, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A displacement field as ITK, ANTs and 3D Slicer read it.

    5-D `(X, Y, Z, 1, 3)` float32 with the intent "vector" (1007): mm along left, posterior and superior, from each
    voxel's position.

    Args:
        displacement: `(1, 3, *grid.shape)`, voxels of the grid.
    """
    to_mm = torch.tensor(LPS @ grid.affine[:3, :3], dtype=torch.float32, device=displacement.device)
    vectors = torch.einsum("ij,j...->...i", to_mm, displacement[0].float())
    image = _on_grid(vectors[:, :, :, None].cpu().numpy(), grid, codes)
    image.header.set_intent("vector")
    return image


def learn2reg_field(displacement: Tensor, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A displacement field as the Learn2Reg challenge reads it: `(X, Y, Z, 3)` float32, voxels along array axes.

    Args:
        displacement: `(1, 3, *grid.shape)`, from voxels of the fixed array to voxels of the moving one.
    """
    return _on_grid(displacement[0].float().movedim(0, -1).cpu().numpy(), grid, codes)


def _on_grid(array: NDArray, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)  # else nibabel refuses 64-bit integers
    # Both forms are written: tools differ in which of them they prefer.
    code = int(codes["sform_code"]) or int(codes["qform_code"])
    image.set_sform(grid.affine, code)
    image.set_qform(grid.affine, code)
    image.header.set_xyzt_units("mm")
    return image


def check_name(path: Path, option: str) -> None:
    """Refuse, before any work, the name of a file that could not be written as an image.

    Raises:
        CourseError: a format that is not written, a folder that is missing or cannot be written, or a folder's name;
            a format that needs a package that is not there.
    """
    if suffix(path) not in WRITABLE:
        raise CourseError(
            f"{option} {path} is not the name of an image that can be written: let it end in {', '.join(WRITABLE)}"
        )
    if suffix(path) in ITK:
        simpleitk(path)
    if not path.parent.is_dir():
        raise CourseError(f"{path.parent} is not a folder: make it, or choose another {option}")
    if path.is_dir():
        raise CourseError(f"{path} is a folder: name a file in it for {option}")
    check_room(path.parent, option)


def save(image: nib.Nifti1Image, partial: Path, name: Path) -> None:
    """Write a file in the format of `name` to a place with another name, such as that of a file being written.

    Raises:
        CourseError: the format cannot hold the field.
    """
    kind = suffix(name)
    if kind in ITK:
        _save_itk(image, partial, kind)
        return
    content = _as_mgh(image, name) if kind in MGH else image
    with partial.open("wb") as file:
        if kind in (".mgz", ".nii.gz"):
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as packed:
                content.to_stream(packed)
        else:
            content.to_stream(file)


def _as_mgh(image: nib.Nifti1Image, name: Path) -> nib.MGHImage:
    if image.ndim != 3:
        raise CourseError(f"{name} cannot hold a field: write it as .nii.gz, .nrrd or .mha")
    array = np.asarray(image.dataobj)
    held = next((kind for kind in MGH_TYPES if np.can_cast(array.dtype, kind)), np.float32)
    if array.dtype.kind in "iu" and held is np.float32 and np.abs(array).max(initial=0) < 2**31:
        held = np.int32
    return nib.MGHImage(array.astype(held), image.affine)


def _save_itk(image: nib.Nifti1Image, partial: Path, kind: str) -> None:
    sitk = simpleitk(partial)
    array = np.asarray(image.dataobj)
    vectors = array.ndim > 3
    if array.ndim == 4:
        raise CourseError("Learn2Reg's layout is for NIfTI files: let the field's name end in .nii.gz")
    if vectors:
        array = np.moveaxis(array.reshape(*array.shape[:3], 3), -1, 0)
    # ITK's arrays have the axes in reverse order, the components last.
    written = sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=vectors)
    lps = RAS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    written.SetOrigin(lps[:3, 3].tolist())
    written.SetSpacing(spacing.tolist())
    written.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    named = partial.with_name(partial.name + kind)  # ITK knows a format by the name
    try:
        sitk.WriteImage(written, str(named), useCompression=True)
        os.replace(named, partial)
    finally:
        named.unlink(missing_ok=True)
