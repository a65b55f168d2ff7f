"""The Learn2Reg challenge's own evaluation of a submission: anybody's fields, measured as the challenge measures them.

Source: Hering et al., Learn2Reg: comprehensive multi-task medical image registration challenge, IEEE TMI 42(3), 2023,
and its public evaluation code, https://github.com/MDL-UzL/L2R.
"""

import tempfile
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates

from course_utils import metrics
from course_utils.data.cohorts import load_cohort
from course_utils.data.formats import open_nifti
from course_utils.data.pairs import Cohort, Pair, Subject
from course_utils.data.volumes import read_stored
from course_utils.data.zipped import member_file, opened_arrays, opened_zip
from course_utils.errors import CourseError
from course_utils.files import check_writable, replacing
from course_utils.scans.learn2reg import (
    FORMATS,
    case_and_channel,
    field_name,
    official_pairs,
    open_on_grid,
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
    shape = (*cohort.info.shape, len(cohort.info.shape))
    with _opened(Path(submission)) as fields:
        for pair in pairs:
            field = _find_field(fields, pair, Path(submission), shape)
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


def _read_label(subject: Subject, shape: Sequence[int]) -> np.ndarray:
    path = subject.label
    if path is None:
        raise CourseError(f"{subject.image} has no label: only pairs with labels can be measured")
    return read_stored(path, open_on_grid(path, shape))


@contextmanager
def _opened(submission: Path) -> Generator[dict[str, Callable[[Path], Path]]]:
    """Names of the fields in a ZIP file or folder, each with what brings its file into a folder, or says where it is.

    Raises:
        CourseError: there is no such file, or none of ZIP; two fields of one name.
    """
    if submission.is_dir():
        files = [path for path in sorted(submission.rglob("disp_*")) if path.is_file()]
        _check_names(submission, [path.name for path in files])
        yield {path.name: lambda scratch, path=path: path for path in files}
        return
    if not submission.exists():
        raise CourseError(f"{submission} does not exist: name a ZIP file or a folder of fields")
    try:
        with opened_zip(submission) as (archive, members):
            names = {name: PurePosixPath(name).name for name in members if "__MACOSX" not in name}
            _check_names(submission, [name for name in names.values() if name.startswith("disp_")])

            def unpack(scratch: Path, full: str) -> Path:
                path = scratch / f"field{''.join(PurePosixPath(full).suffixes[-2:])}"
                with path.open("wb") as file:
                    member_file(archive, submission, members[full], file)
                return path

            yield {name: lambda scratch, full=full: unpack(scratch, full) for full, name in names.items()}
    except (OSError, zipfile.BadZipFile) as error:
        raise CourseError(f"{submission} cannot be read as ZIP ({error}): name a ZIP file or a folder") from error


def _check_names(submission: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise CourseError(f"{submission} holds two files called {twice}: leave one of them out")


def _find_field(
    fields: dict[str, Callable[[Path], Path]], pair: Pair, submission: Path, shape: tuple[int, ...]
) -> np.ndarray:
    channels = case_and_channel(pair.fixed)[1], case_and_channel(pair.moving)[1]
    names = [field_name(pair)]
    if channels[0] == channels[1] or channels == ("0000", "0001"):  # elsewhere it would name two pairs
        names.append(field_name(pair, short=True))
    found = next((f"{name}.{suffix}" for name in names for suffix in FORMATS if f"{name}.{suffix}" in fields), None)
    if found is None:
        raise CourseError(f"{submission} holds no {names[0]}.nii.gz: write a field for every official pair")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = fields[found](Path(scratch))
            if found.endswith(".npz"):
                with opened_arrays(path) as arrays:
                    field = arrays["arr_0"].read().astype(np.float32)
                stored = field.shape
            else:
                voxels = open_nifti(path)[0]
                stored = voxels.shape
                field = voxels.read(np.float64) if stored == shape else None
        except CourseError as error:
            raise CourseError(f"{submission}: {found} cannot be read ({error}): write it again") from error
        except Exception as error:  # zipfile, gzip, NumPy and nibabel each have their own words for a broken file
            raise CourseError(f"{submission}: {found} cannot be read ({error!s:.120}): write it again") from error
    if field is None or stored != shape:
        raise CourseError(
            f"{submission}: the field of {pair.name} has shape {stored}, not {shape}: write fields on the task's own "
            "grid"
        )
    return field
