"""The Learn2Reg challenge: from a trained network to a submission.

A submission holds one field for each official pair. It is an array `(X, Y, Z, 3)` in voxels of the task's own grid,
component `c` along array axis `c`, with `moved(x) = moving(x + u(x))`; affines are ignored.

Source: Hering et al., Learn2Reg: comprehensive multi-task medical image registration challenge, IEEE TMI 42(3), 2023,
and its public evaluation code, https://github.com/MDL-UzL/L2R.
"""

import gzip
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.formats import Opened, open_image
from course_utils.data.pairs import Cohort, Pair, Subject
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.files import check_writable, replacing
from course_utils.networks import RegistrationNetwork
from course_utils.progress import track
from course_utils.scans.transform import Transform

FORMATS = ("nii.gz", "npz")
"""What a field may be written as: NIfTI, or NumPy's archive with the array under its default name `arr_0`."""

# --- the pairs and their files ----------------------------------------------------------------------------------------


def official_pairs(cohort: Cohort, split: str = "val") -> tuple[Pair, ...]:
    """The pairs that the challenge wants registered; a submission without one of them is refused by its evaluator.

    Raises:
        CourseError: the folder lists no such pairs, or lacks an image of one.
    """
    if cohort.missing:
        raise CourseError(
            f"{len(cohort.missing)} of the images that the official pairs name are missing, the first is "
            f"{cohort.missing[0]}: restore them from the archive, a submission needs every pair"
        )
    pairs = cohort.official.get(split, ())
    if not pairs:
        raise CourseError(
            f"{cohort.subjects[0].image.parent.parent} lists no pairs registration_{split} in its dataset.json: "
            "nothing to submit, name the folder of an archive that has them"
        )
    return tuple(pairs)


def field_name(pair: Pair, *, short: bool = False) -> str:
    """`disp_FFFF_CCCC_MMMM_CCCC`: case and channel of the fixed image, then of the moving one; no suffix.

    The short form `disp_FFFF_MMMM` leaves the channels out. The evaluator in the challenge's repository wants it
    where both images have one channel, or the fixed one 0000 and the moving one 0001; later ones take either.
    """
    (fixed, fixed_channel), (moving, moving_channel) = case_and_channel(pair.fixed), case_and_channel(pair.moving)
    return f"disp_{fixed}_{moving}" if short else f"disp_{fixed}_{fixed_channel}_{moving}_{moving_channel}"


def case_and_channel(subject: Subject) -> tuple[str, str]:
    """The four digits of the case and of the channel that the name of a subject's image ends in.

    Raises:
        CourseError: it does not.
    """
    found = re.search(r"(\d{4})(?:_(\d{4}))?$", subject.name)
    if not found:
        raise CourseError(
            f"{subject.image} does not end in the four digits of a case and of a channel, as in NAME_0001_0000.nii.gz: "
            "name it as the challenge does"
        )
    return found[1], found[2] or "0000"


# --- from files to files ----------------------------------------------------------------------------------------------


def submit(
    model: str | Path,
    folder: str | Path,
    out: str | Path,
    *,
    smoothness: float | None = None,
    split: str = "val",
    file_format: str = "nii.gz",
    short_names: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[str]:
    """Register the official pairs of a challenge's folder with a network, and write the submission.

    Args:
        model: A checkpoint.
        folder: Of one task, with its NAME_dataset.json.
        out: The ZIP file.
        smoothness: The weight of the smoothness that the network shall answer for, see `Checkpoint.at`.
        split, file_format, short_names, device, progress: See `write_submission`.

    Returns:
        The names of the fields.

    Raises:
        CourseError: as `write_submission`.
    """
    check_writable(Path(out), "submission.zip")
    cohort = load_cohort("learn2reg", folder, download=False)
    return write_submission(
        Checkpoint.load(model).at(smoothness),
        cohort,
        out,
        split=split,
        file_format=file_format,
        short_names=short_names,
        device=device,
        progress=progress,
    )


# --- from a network to a submission -----------------------------------------------------------------------------------


def write_submission(
    checkpoint: Checkpoint,
    cohort: Cohort,
    out: str | Path,
    *,
    split: str = "val",
    file_format: str = "nii.gz",
    short_names: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[str]:
    """Register the official pairs of a Learn2Reg folder and write the ZIP file of their fields, whole or not at all.

    Args:
        checkpoint: a trained network; see `predict` on grids that differ.
        cohort: `load_cohort("learn2reg", folder)`.
        out: the ZIP file.
        split: `"val"` or `"test"`.
        file_format: one of `FORMATS`.
        short_names: see `field_name`.

    Returns:
        The names of the fields, in the order of the pairs.

    Raises:
        CourseError: a pair, an image or the disk is not as it must be, or the network does not suit the task.
    """
    pairs = official_pairs(cohort, split)
    check_suitable(checkpoint, cohort)
    names = [f"{field_name(pair, short=short_names)}.{file_format}" for pair in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise CourseError(f"two pairs would be called {twice}: write the full names, with the channels")
    network, recipe = checkpoint.model().to(device), checkpoint.card.recipe
    with replacing(Path(out)) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, pair in zip(names, track(pairs, "registering", len(pairs), show=progress), strict=True):
            field = predict(network, recipe, pair, cohort.info.shape)
            archive.writestr(
                zipfile.ZipInfo(name),
                _encode(field, file_format, open_on_grid(pair.fixed.image, cohort.info.shape).affine),
            )
    return names


def check_suitable(checkpoint: Checkpoint, cohort: Cohort) -> None:
    """Refuse a network that cannot be applied to the images of a task.

    Raises:
        CourseError: they differ in dimension, or the network was trained on aligned volumes of another grid.
    """
    recipe, info = checkpoint.card.recipe, cohort.info
    again = f"train one on this folder: python -m course_utils train --dataset {info.name} --data-root FOLDER --out RUN"
    if len(recipe.shape) != len(info.shape):
        raise CourseError(f"the model is {len(recipe.shape)}-D and the task is {len(info.shape)}-D: {again}")
    if not recipe.aligned:
        return
    # Nothing is known of how these volumes lie in space, so no grid but their own has a meaning for the network.
    grids = [(recipe.shape, recipe.spacing), (tuple(info.shape), info.spacing)]
    (shape, spacing), (task_shape, task_spacing) = grids
    if shape != task_shape or not np.allclose(spacing, task_spacing, rtol=1e-2):
        model, task = (f"{'x'.join(map(str, s))} voxels of {'x'.join(f'{mm:g}' for mm in z)} mm" for s, z in grids)
        raise CourseError(f"the model is for aligned volumes of {model}, the task has {task}: {again}")


@torch.inference_mode()
def predict(network: RegistrationNetwork, recipe: Recipe, pair: Pair, shape: Sequence[int]) -> NDArray[np.float32]:
    """The displacement of a pair on the task's own grid, `(*shape, 3)` float32, voxels.

    The whole grid is given to the network, however large the grid of its training was: nothing is cropped. A network
    that was trained on volumes brought to RAS axes and a spacing sees the pair in these, and its field comes back along
    the task's axes, in the task's voxels. As in the challenge's evaluation, the moving image lies on the fixed one's
    grid, whatever its affine says.

    Args:
        network: In evaluation mode; it computes where it is.
        recipe: How images are prepared for it.
        pair: To be registered.
        shape: Of the task's grid, voxels.

    Raises:
        CourseError: an image cannot be used or is not of `shape`, or the network fails on it.
    """
    device = next(network.parameters()).device
    for subject in (pair.fixed, pair.moving):
        open_on_grid(subject.image, shape)
    fixed, moving = (recipe.read_image(subject.image) for subject in (pair.fixed, pair.moving))
    moving = replace(moving, grid=fixed.grid)
    grid = recipe.grid(fixed.grid, whole=True)
    inputs = [recipe.prepare(volume, grid).to(device) for volume in (moving, fixed)]
    try:
        displacement = network(*inputs).displacement.cpu()
    except RuntimeError as error:
        raise CourseError(
            f"pair {pair.name}: the network cannot register {'x'.join(map(str, grid.shape))} voxels ({error}): "
            "use a device with more memory, or a smaller model"
        ) from error
    still = np.eye(len(grid.affine))
    field = Transform(grid, displacement, before=still, after=still).between(fixed.grid, fixed.grid)[0]
    if not field.isfinite().all():
        raise CourseError(f"pair {pair.name}: the field holds NaN or infinity: the model diverged, train it again")
    return field.movedim(0, -1).numpy()


def _encode(field: np.ndarray, file_format: str, affine: np.ndarray | None) -> bytes:
    if file_format == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, field)
        return buffer.getvalue()
    image = nibabel.Nifti1Image(field, affine)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)  # noise of a mantissa hardly compresses


def open_on_grid(path: Path, shape: Sequence[int]) -> Opened:
    """An image whose voxels have not been read yet; refused if it cannot be read, or is not of this shape."""
    image = open_image(path)
    if image.shape != tuple(shape):
        raise CourseError(f"{path} has shape {image.shape} and the task {tuple(shape)}: restore it from the archive")
    return image
