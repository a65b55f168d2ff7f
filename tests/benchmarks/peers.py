"""Classical methods as `evaluate` calls them: moving and fixed `(1, 1, D, H, W)` in, a displacement in voxels out.

Voxels are taken as cubes of 1 mm. ITK counts axes in the reverse order of an array's; ANTsPy's images do not.
"""

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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
    return SimpleNamespace(displacement=_of_itk(sitk.Resample(field, target)))


def syn(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """ANTs' affine and SyN with local correlation, three levels, composed to one field."""
    import ants

    target, source = (ants.from_numpy(image[0, 0].cpu().numpy()) for image in (fixed, moving))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (40, 20, 10)}
        maps = ants.registration(target, source, "SyN", outprefix=f"{folder}/", **settings)["fwdtransforms"]
        composed = ants.apply_transforms(target, source, maps, compose=f"{folder}/")
        vectors = nib.load(composed).get_fdata()[:, :, :, 0]
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])


def dipy_syn(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """DIPY's SyN with local correlation, three levels; the images as they lie."""
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    target, source = (image[0, 0].cpu().numpy().astype(np.float64) for image in (fixed, moving))
    method = SymmetricDiffeomorphicRegistration(CCMetric(3), level_iters=[40, 20, 10])
    # Pulled back to the target's grid: forward is from there to the source.
    field = method.optimize(target, source).get_forward_field()
    return SimpleNamespace(displacement=torch.from_numpy(np.asarray(field)).float().movedim(-1, 0)[None])


def greedy(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """PICSL's greedy: affine, then diffeomorphic, local correlation, three levels; composed to one field."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    target, source = (sitk.GetImageFromArray(image[0, 0].cpu().numpy()) for image in (fixed, moving))
    method = Greedy3D()
    common = "-V 0 -i target source -m NCC 2x2x2 -n 40x20x10"
    method.execute(f"{common} -a -dof 12 -ia-identity -o affine", target=target, source=source, affine=None)
    method.execute(f"{common} -it affine -o field", field=None)
    method.execute("-V 0 -rf target -r field affine -rc composed", composed=None)
    return SimpleNamespace(displacement=_of_itk(method["composed"]))


def convex_adam(moving: Tensor, fixed: Tensor) -> SimpleNamespace:
    """ConvexAdam with its default settings: discrete search on MIND features, then Adam."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    with torch.inference_mode(False), torch.enable_grad():
        vectors = convex_adam_pt(fixed[0, 0].clone(), moving[0, 0].clone(), dtype=torch.float32)
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])


def _of_itk(field: Any) -> Tensor:
    import SimpleITK as sitk

    vectors = sitk.GetArrayFromImage(field)[..., ::-1]
    return torch.from_numpy(vectors.copy()).float().movedim(-1, 0)[None]


PEERS: dict[str, tuple[str, Callable[[Tensor, Tensor], SimpleNamespace]]] = {
    "demons (SimpleITK)": ("SimpleITK", demons),
    "SyN (ANTs)": ("ants", syn),
    "SyN (DIPY)": ("dipy", dipy_syn),
    "greedy": ("picsl_greedy", greedy),
    "ConvexAdam": ("convexAdam", convex_adam),
}
"""Methods by name, each with the package that it needs."""
