"""The Learn2Reg challenge: from a trained network to a submission, and the challenge's own evaluation of one.

A submission holds one field for each official pair. It is an array `(X, Y, Z, 3)` in voxels of the task's own grid,
component `c` along array axis `c`, with `moved(x) = moving(x + u(x))`; affines are ignored.

Source: Hering et al., Learn2Reg: comprehensive multi-task medical image registration challenge, IEEE TMI 42(3), 2023,
and its public evaluation code, https://github.com/MDL-UzL/L2R.
"""

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import torch
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from course_utils import metrics
from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.pairs import Cohort, Pair, Subject
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.files import check_writable, replacing
from course_utils.networks import RegistrationNetwork
from course_utils.progress import track
from course_utils.scans.transform import Transform

UNREADABLE = (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile, ImageFileError)
"""What zipfile, gzip, NumPy and nibabel raise for a file that is broken or something else."""
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
    (fixed, fixed_channel), (moving, moving_channel) = _identity(pair.fixed), _identity(pair.moving)
    return f"disp_{fixed}_{moving}" if short else f"disp_{fixed}_{fixed_channel}_{moving}_{moving_channel}"


def _identity(subject: Subject) -> tuple[str, str]:
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
        split, file_format, short_names, device, progress: See `write_submission`.

    Returns:
        The names of the fields.

    Raises:
        CourseError: as `write_submission`.
    """
    check_writable(Path(out), "submission.zip")
    cohort = load_cohort("learn2reg", folder, download=False)
    return write_submission(
        Checkpoint.load(model),
        cohort,
        out,
        split=split,
        file_format=file_format,
        short_names=short_names,
        device=device,
        progress=progress,
    )


def measure(submission: str | Path, folder: str | Path, out: str | Path, *, split: str = "val") -> pd.DataFrame:
    """Measure anybody's submission as the challenge does, and write the table as a CSV file.

    Args:
        submission: A ZIP file or a folder of fields.
        folder: Of one task, with its NAME_dataset.json and labels.
        out: The CSV file.
        split: `"val"` or `"test"`.

    Returns:
        The table, see `evaluate_submission`.

    Raises:
        CourseError: as `evaluate_submission`.
    """
    check_writable(Path(out), "metrics.csv")
    table = evaluate_submission(submission, load_cohort("learn2reg", folder, download=False), split)
    with replacing(Path(out)) as partial:
        table.to_csv(partial, index=False)
    return table


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
                _encode(field, file_format, _open_nifti(pair.fixed.image, cohort.info.shape).affine),
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
        _open_nifti(subject.image, shape)
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


def _encode(field: np.ndarray, file_format: str, affine: np.ndarray) -> bytes:
    if file_format == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, field)
        return buffer.getvalue()
    image = nibabel.Nifti1Image(field, affine)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)  # noise of a mantissa hardly compresses


# --- the official evaluation ------------------------------------------------------------------------------------------


def evaluate_submission(submission: str | Path, cohort: Cohort, split: str = "val") -> pd.DataFrame:
    """Measure a submission as the challenge does, on the pairs that have labels in the folder.

    Labels are moved by the nearest neighbour, zero outside. A structure that the fixed or the moving image lacks is not
    measured; one that vanished on the way has Dice 0 and an infinite distance. The challenge's masked SDlogJ, used in
    its lung tasks, and its landmarks are not measured here.

    Args:
        submission: a ZIP file, or a folder, of fields under their full or short names, `.nii.gz` or `.npz`.

    Returns:
        One row for each pair and structure, for `course_utils.evaluation.summarise`: pair, structure, dice_before,
        dice_after, hd95_voxels_before, hd95_voxels_after, sdlogj_learn2reg, folding_percent. The mean over the
        structures of a pair, then over pairs, is what the challenge publishes, but for folding: its own count is 0
        whatever the field.

    Raises:
        CourseError: a field is missing, of another shape, not finite or unreadable; a pair has no labels.
    """
    rows: list[dict[str, Any]] = []
    pairs = official_pairs(cohort, split)
    with _opened(Path(submission)) as fields:
        for pair in pairs:
            field = _find_field(fields, pair, Path(submission))
            if field.shape != (*cohort.info.shape, len(cohort.info.shape)):
                raise CourseError(
                    f"{submission}: the field of {pair.name} has shape {field.shape}, not "
                    f"{(*cohort.info.shape, len(cohort.info.shape))}: write fields on the task's own grid"
                )
            if not np.isfinite(field).all():
                raise CourseError(f"{submission}: the field of {pair.name} holds NaN or infinity: register it again")
            rows += _measure(pair, field, cohort)
    return pd.DataFrame(rows)


def hd95_learn2reg(moved: np.ndarray, fixed: np.ndarray) -> float:
    """HD95 of two structures as Learn2Reg computes it: in voxels, every surface element weighing as much as its area.

    The surface runs between voxels, through the corners that not all of the eight voxels around them share. In each
    direction the 95th percentile of the distances of its elements to the other surface is taken; the larger one counts.

    Args:
        moved, fixed: booleans `(X, Y, Z)`.

    Returns:
        Voxels; infinite where only one of the two is empty, NaN where both are.

    Source: Nikolov et al., Clinically applicable segmentation of head and neck anatomy for radiotherapy, JMIR 23(7),
    2021 (arXiv:1809.04430), and its surface-distance package, which the challenge runs.
    """
    if not (moved.any() and fixed.any()):
        return float("inf" if moved.any() or fixed.any() else "nan")
    # Importing MONAI loads TensorBoard and matplotlib, which registering needs neither of.
    from monai.metrics.utils import get_mask_edges

    masks = (torch.from_numpy(structure) for structure in (moved, fixed))
    edges = get_mask_edges(*masks, spacing=(1,) * fixed.ndim)
    moved_edge, fixed_edge, moved_area, fixed_area = (edge.numpy() for edge in edges)

    def percentile(of: np.ndarray, area: np.ndarray, to: np.ndarray) -> float:
        distances, weights = distance_transform_edt(~to)[of], area[of]
        order = np.argsort(distances)
        below = np.cumsum(weights[order]) / weights.sum()
        return float(distances[order][min(np.searchsorted(below, 0.95), len(order) - 1)])

    return max(percentile(fixed_edge, fixed_area, moved_edge), percentile(moved_edge, moved_area, fixed_edge))


def _measure(pair: Pair, field: np.ndarray, cohort: Cohort) -> list[dict[str, Any]]:
    fixed, moving = (_read_label(subject, cohort.info.shape) for subject in (pair.fixed, pair.moving))
    positions = np.indices(fixed.shape) + np.moveaxis(field, -1, 0)
    moved = map_coordinates(moving, positions, order=0)
    displacement = torch.from_numpy(np.moveaxis(field, -1, 0)[None].astype(np.float32))
    of_pair = {
        "sdlogj_learn2reg": metrics.sdlogj_learn2reg(displacement).item(),
        "folding_percent": metrics.folding_percent(displacement).item(),
    }
    # A dataset.json need not list its labels: what the maps hold counts too.
    values = sorted({*cohort.info.labels, *np.unique(fixed).tolist(), *np.unique(moving).tolist()} - {0})
    rows = []
    for value in values:
        row: dict[str, Any] = {"pair": pair.name, "structure": cohort.info.labels.get(value, f"label {value:g}")}
        target, source = fixed == value, moving == value
        for side, label in (("before", source), ("after", moved == value)):
            there = target.any() and source.any()
            row[f"dice_{side}"] = 2 * (label & target).sum() / (label.sum() + target.sum()) if there else np.nan
            row[f"hd95_voxels_{side}"] = hd95_learn2reg(label, target) if there else np.nan
        rows.append(row | of_pair)
    return rows


def _open_nifti(path: Path, shape: Sequence[int]) -> Any:
    """An image whose voxels have not been read yet; refused if it is not of this shape."""
    try:
        image: Any = nibabel.load(path)
    except UNREADABLE as error:
        raise CourseError(f"{path} cannot be read as NIfTI ({error}): restore it from the archive") from error
    if image.shape != tuple(shape):
        raise CourseError(f"{path} has shape {image.shape} and the task {tuple(shape)}: restore it from the archive")
    return image


def _read_label(subject: Subject, shape: Sequence[int]) -> np.ndarray:
    path = subject.label
    if path is None:
        raise CourseError(f"{subject.image} has no label: only pairs with labels can be measured")
    image = _open_nifti(path, shape)
    try:
        return np.asarray(image.dataobj)
    except UNREADABLE as error:
        raise CourseError(f"{path} cannot be read as NIfTI ({error}): restore it from the archive") from error


@contextmanager
def _opened(submission: Path) -> Generator[dict[str, Any]]:
    """Names of the fields in a ZIP file or folder, each with what reads its bytes."""
    if submission.is_dir():
        yield {path.name: path.read_bytes for path in submission.rglob("disp_*")}
        return
    if not submission.exists():
        raise CourseError(f"{submission} does not exist: name a ZIP file or a folder of fields")
    try:
        archive = zipfile.ZipFile(submission)
    except (OSError, zipfile.BadZipFile) as error:
        raise CourseError(f"{submission} cannot be read as ZIP ({error}): name a ZIP file or a folder") from error
    with archive:
        yield {PurePosixPath(name).name: lambda name=name: archive.read(name) for name in archive.namelist()}


def _find_field(fields: dict[str, Any], pair: Pair, submission: Path) -> np.ndarray:
    channels = _identity(pair.fixed)[1], _identity(pair.moving)[1]
    names = [field_name(pair)]
    if channels[0] == channels[1] or channels == ("0000", "0001"):  # elsewhere it would name two pairs
        names.append(field_name(pair, short=True))
    found = next((f"{name}.{suffix}" for name in names for suffix in FORMATS if f"{name}.{suffix}" in fields), None)
    if found is None:
        raise CourseError(f"{submission} holds no {names[0]}.nii.gz: write a field for every official pair")
    try:
        content = fields[found]()
        if found.endswith(".npz"):
            return np.load(io.BytesIO(content), allow_pickle=False)["arr_0"].astype(np.float32)
        return nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()
    except UNREADABLE as error:
        raise CourseError(f"{submission}: {found} cannot be read ({error}): write it again") from error
