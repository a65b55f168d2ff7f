"""Many pairs of scans, registered one after the other with the same options."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils.data.pairs import Pair
from course_utils.errors import CourseError
from course_utils.files import check_room, replacing
from course_utils.progress import track
from course_utils.scans.registration import network_of, register_files
from course_utils.scans.results import RESULTS

TABLE = "registrations.csv"
"""In the folder of the results: one row for each pair, what `Report` says of it."""


def register_pairs(
    pairs: Sequence[Pair],
    folder: str | Path,
    *,
    write: Iterable[str] = ("moved", "moved_label"),
    model: str | Path | None = None,
    smoothness: float | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Register pairs of scans and write `NAME_moved.nii.gz` and so on, and `TABLE`, into a new folder.

    Args:
        pairs: What `pairs_from_csv` gives; with a label map of the moving image, that is moved along.
        folder: For the results; it may be there, but must be empty.
        write: Which results, see `results.RESULTS`.
        model: A checkpoint; it is read once.
        smoothness: See `register_files`.
        progress: Tell how far it has got.
        options: Of `register_files`.

    Returns:
        The table: pair, all that `Report` says, and `fault`, which is empty where the pair was registered. A pair that
        cannot be is named on stderr, and the others go on.

    Raises:
        CourseError: the folder is not empty or cannot be made, no such result, two pairs of one name, or no pair at all
            could be registered.
    """
    folder, write = Path(folder), list(write)
    if unknown := [name for name in write if name not in RESULTS]:
        raise CourseError(f"no result called '{unknown[0]}': choose from {', '.join(RESULTS)}")
    names = [pair.name for pair in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CourseError(f"pair {twice} comes twice: give each pair once")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CourseError(f"{folder} is not an empty folder: choose another for the results, or empty it")
    checkpoint = network_of(model, smoothness)
    check_room(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for pair in track(pairs, "registering", len(pairs), show=progress):
        wanted = [name for name in write if name != "moved_label" or pair.moving.label is not None]
        row: dict[str, Any] = {"pair": pair.name}
        try:
            report = register_files(
                pair.moving.image,
                pair.fixed.image,
                {name: folder / f"{pair.name}_{name}.nii.gz" for name in wanted},
                model=checkpoint,
                moving_label=pair.moving.label if "moved_label" in wanted else None,
                **options,
            )
            row |= {**asdict(report), "fault": ""}
        except CourseError as fault:
            print(f"pair {pair.name}: {fault}", file=sys.stderr)
            row["fault"] = str(fault)
        rows.append(row)
    table = pd.DataFrame(rows)
    if table["fault"].all():
        folder.rmdir()
        raise CourseError(f"none of {len(pairs)} pairs could be registered: the reasons are above")
    with replacing(folder / TABLE) as partial:
        table.to_csv(partial, index=False)
    return table
