"""Classical methods as `evaluate` calls them: moving and fixed `(1, 1, D, H, W)` in, a displacement in voxels out.

Voxels are taken as cubes of 1 mm. ITK counts axes in the reverse order of an array's; ANTsPy's images do not.
"""

import tempfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from course_utils.data.grids import Grid
from course_utils.fields import affine_to_field
from course_utils.scans import affine


def affine_only(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """The course's own affine alignment, 12 parameters."""
    grid = Grid(tuple(fixed.shape[2:]), np.eye(4))
    with torch.inference_mode(False):
        matrix = affine.align(moving.clone(), fixed.clone(), grid, grid)
    return SimpleNamespace(displacement=affine_to_field(torch.from_numpy(matrix[None, :3]), grid.shape))


def demons(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """SimpleITK's diffeomorphic demons, three levels, intensities matched first."""
    import SimpleITK as sitk

    target, source = (sitk.GetImageFromArray(image[0, 0].cpu().numpy()) for image in (fixed, moving))
    source = sitk.HistogramMatching(source, target, 256, 7)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetStandardDeviations(1.2)
    method.SetNumberOfIterations(40)
    field = sitk.Image(target.GetSize(), sitk.sitkVectorFloat64)
    for factor in (4, 2, 1):
        level = [sitk.BinShrink(image, [factor] * 3) for image in (target, source)]
        field = sitk.Resample(field, level[0])
        field.CopyInformation(level[0])
        field = method.Execute(*level, field)
    vectors = sitk.GetArrayFromImage(sitk.Resample(field, target))[..., ::-1]
    return SimpleNamespace(displacement=torch.from_numpy(vectors.copy()).float().movedim(-1, 0)[None])


def syn(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """ANTs' affine and SyN with local correlation, three levels, composed to one field."""
    import ants

    target, source = (ants.from_numpy(image[0, 0].cpu().numpy()) for image in (fixed, moving))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (40, 20, 10), "random_seed": 1}
        maps = ants.registration(target, source, "SyN", outprefix=f"{folder}/", **settings)["fwdtransforms"]
        composed = ants.apply_transforms(target, source, maps, compose=f"{folder}/")
        vectors = nib.load(composed).get_fdata()[:, :, :, 0]
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])
