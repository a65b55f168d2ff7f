"""The files that a registration writes: images like those that were read, and fields for other tools.

ITK, ANTs and 3D Slicer count the first two axes of space the other way round than NIfTI does (LPS instead of RAS), and
store fields so.
"""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.volumes import Grid, Volume

LPS = np.diag([-1.0, -1.0, 1.0])


def image_like(data: Tensor, template: Volume, grid: Grid, codes: nib.Nifti1Header) -> nib.Nifti1Image:
    """A file's content: values on a grid, stored in the data type and the scaling of `template`.

    Args:
        data: `(1, 1, *grid.shape)`.
        codes: header whose sform and qform codes say which space the grid's millimetres belong to.
    """
    array = data[0, 0].cpu().numpy()
    dtype = template.header.get_data_dtype()
    slope, inter = template.header.get_slope_inter()
    if dtype.kind in "iu":
        raw = np.round((array.astype(np.float64) - inter) / slope)
        limits = np.iinfo(dtype)
        array = raw.clip(limits.min, limits.max)
    else:
        slope, inter = 1.0, 0.0
    image = _on_grid(array.astype(dtype), grid, codes)
    image.header.set_slope_inter(slope, inter)
    return image


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
