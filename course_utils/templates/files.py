"""What a template is written as: images that other tools open, and a report."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from course_utils.data.pairs import Subject
from course_utils.data.recipe import Recipe
from course_utils.data.volumes import read_grid
from course_utils.errors import CourseError
from course_utils.files import replacing
from course_utils.scans import writing

ALIGNED = 2
"""NIfTI's code for coordinates that were aligned to another image's."""


@dataclass(frozen=True, eq=False)
class Result:
    """A template with what is known of it.

    Attributes:
        template: `(1, 1, *spatial)`.
        probabilities: Of L structures, `(1, L, *spatial)`; None where there are no label maps.
        winners: The label that wins at each voxel, `(1, 1, *spatial)`.
        share: Of the scans that agree there, `(1, 1, *spatial)`.
        report: Plain values.
    """

    template: Tensor
    probabilities: Tensor | None = None
    winners: Tensor | None = None
    share: Tensor | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What the report says, in one line."""
        known = self.report
        line = (
            f"of {known['subjects']} subjects, {known['mean_displacement_voxels']:.3f} voxels from their middle, "
            f"sharpness {known['sharpness']:.4f}"
        )
        dice = list(known.get("dice_of_unseen_subjects", {}).values())
        return line + (f", Dice of its labels with unseen subjects' {sum(dice) / len(dice):.3f}" if dice else "")


def template_affine(recipe: Recipe, subjects: Sequence[Subject]) -> NDArray[np.float64]:
    """From the template's voxels to millimetres, 4 x 4: its axes are those of space, and its first voxel lies where, on
    average, those of the scans do. Where the recipe takes files as stored, at 0.
    """
    dims = len(recipe.shape)
    affine = np.diag([*recipe.spacing, *[1.0] * (4 - dims)])
    if not recipe.aligned:
        grids = [recipe.grid(read_grid(subject.image, dims)[0]) for subject in subjects]
        middle = (np.array(recipe.shape) - 1) / 2
        centres = [(grid.affine @ [*middle, 1.0])[:3] for grid in grids]
        affine[:3, 3] = np.mean(centres, axis=0) - affine[:3, :3] @ middle
    return affine


def write_results(out: Path, results: Mapping[str, Result], affine: NDArray[np.float64]) -> list[Path]:
    """Write templates into a folder, all files or, where one fails, none.

    Of each there are `template.nii.gz` and `template.json`, its report; where labels are known also
    `label_probabilities.nii.gz` (a volume for each structure), `winning_labels.nii.gz` and
    `winning_probability.nii.gz`.

    Args:
        out: The folder; it is made.
        results: By what is appended to the names of the files, such as `_age70`; nothing for a lone template.
        affine: From voxels to millimetres, 4 x 4.

    Returns:
        The files.

    Raises:
        CourseError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"{out} cannot be made ({error.strerror}): choose another folder") from error
    written = []
    with contextlib.ExitStack() as stack:
        for ending, result in results.items():
            images = {"template": result.template, "label_probabilities": result.probabilities}
            images |= {"winning_labels": result.winners, "winning_probability": result.share}
            for name, image in images.items():
                if image is not None:
                    path = out / f"{name}{ending}.nii.gz"
                    writing.save(_nifti(image, affine), stack.enter_context(replacing(path)), path)
                    written.append(path)
            path = out / f"template{ending}.json"
            partial = stack.enter_context(replacing(path))
            partial.write_text(json.dumps(dict(result.report), indent=2) + "\n", encoding="utf-8")
            written.append(path)
    return written


def _nifti(image: Tensor, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """`(1, C, *spatial)` as a file of 3 axes, and a fourth where there are several channels."""
    array = image[0].cpu().movedim(0, -1).numpy()  # (*spatial, C)
    array = array.reshape(*array.shape[:-1], *[1] * (4 - array.ndim), array.shape[-1])
    file = nib.Nifti1Image(array[..., 0] if array.shape[-1] == 1 else array, affine)
    file.set_sform(affine, ALIGNED)
    file.set_qform(affine, ALIGNED)
    file.header.set_xyzt_units("mm")
    return file
