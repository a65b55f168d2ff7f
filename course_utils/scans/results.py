"""What a registration writes: the moved scan, the fields, the moved label map."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
from torch import Tensor

from course_utils.data.formats import ITK, NIFTI, suffix
from course_utils.data.resampling import resample, sample
from course_utils.data.volumes import Volume
from course_utils.errors import CourseError, CourseWarning
from course_utils.scans import writing
from course_utils.scans.transform import Transform

LAYOUTS = ("itk", "learn2reg")
RESULTS = ("moved", "warp", "inverse_warp", "moved_label", "spread")
"""What a registration can write."""


def results(
    names: Iterable[str],
    moving: Volume,
    fixed: Volume,
    forward: Transform,
    inverse: Transform,
    *,
    label: Volume | None = None,
    spread: Tensor | None = None,
    layout: str = "itk",
) -> dict[str, nib.Nifti1Image]:
    """The contents of the files that a registration writes, by name.

    `moved`, `warp`, `moved_label` and `spread` lie on the fixed image's own grid; `inverse_warp`, which makes images on
    the moving one's, lies there. Intensities keep the moving image's data type, labels that of their file; outside the
    moving image stands its lowest intensity.

    Args:
        names: Of those to make.
        moving: The scan that was moved.
        fixed: The scan that it was moved onto.
        forward: From fixed to moving millimetres.
        inverse: From moving to fixed millimetres.
        label: Of the moving image; moved with the nearest neighbour, 0 outside.
        spread: Standard deviation of several answers in mm, `(1, 1, *forward.grid.shape)`.
        layout: Of the fields, `"itk"` or `"learn2reg"`.
    """
    displacement = forward.between(fixed.grid, moving.grid)
    files = {}
    for name in names:
        if name == "warp":
            files[name] = _field(forward, fixed, moving, layout)
        elif name == "inverse_warp":
            files[name] = _field(inverse, moving, fixed, layout)
        elif name == "moved":
            data = moving.data.to(displacement.device)
            moved = sample(data, displacement, outside=moving.data.min().item())
            files[name] = writing.image_like(moved, moving, fixed.grid, fixed.header)
        elif name == "moved_label" and label is not None:
            moved = sample(label.data.to(displacement.device), displacement, mode="nearest")
            _warn_of_lost(label, moved)
            files[name] = writing.image_like(moved, label, fixed.grid, fixed.header)
        elif name == "spread" and spread is not None:
            files[name] = writing.values(resample(spread, forward.grid, fixed.grid), fixed.grid, fixed.header)
    return files


def _warn_of_lost(label: Volume, moved: Tensor) -> None:
    """Single voxels and thin sheets can fall between the voxels of another grid."""
    lost = sorted(set(label.data.unique().tolist()) - set(moved.unique().tolist()) - {0})
    if lost:
        warnings.warn(
            f"{label.path}: the structures {', '.join(map(str, lost))} are not in the moved label map: they are too "
            "small for its voxels, or lie outside; move their positions with the command apply instead",
            CourseWarning,
            stacklevel=3,
        )


def _field(transform: Transform, target: Volume, source: Volume, layout: str) -> nib.Nifti1Image:
    if layout == "learn2reg":
        return writing.learn2reg_field(transform.between(target.grid, source.grid), target.grid, target.header)
    return writing.itk_field(transform.between(target.grid, target.grid), target.grid, target.header)


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path], layout: str) -> None:
    """Refuse, before any work, files that could not be written: option to path.

    Raises:
        CourseError: a name that cannot be written, see `writing.check_name`; one name twice, or the name of an input.
    """
    seen = {path.resolve(): option for option, path in inputs.items()}
    for option, path in outputs.items():
        writing.check_name(path, option)
        held = (*NIFTI, *ITK) if layout == "itk" else NIFTI
        if option in ("--warp", "--inverse-warp") and suffix(path) not in held:
            raise CourseError(f"{option} {path} cannot hold a field of this layout: let it end in {', '.join(held)}")
        if path.resolve() in seen:
            raise CourseError(f"{option} and {seen[path.resolve()]} name one file, {path}: choose another name")
        seen[path.resolve()] = option
