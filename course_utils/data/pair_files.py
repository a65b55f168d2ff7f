"""Pairs that a user lists in a file."""

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from course_utils.data.pairs import Pair, Subject
from course_utils.errors import CourseError

COLUMNS = ("fixed_image", "moving_image", "fixed_label", "moving_label")


def pairs_from_csv(path: str | Path) -> list[Pair]:
    """The pairs of a CSV file with columns fixed_image, moving_image, fixed_label, moving_label.

    Paths are relative to the file. A subject is called after its image file, or after its path where two files have one
    name. Raises `CourseError` naming the missing column, or the line of a missing file or label.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise CourseError(
                    f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(COLUMNS)}"
                )
            rows = [_files(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} cannot be read as CSV ({error}): give a comma-separated text file") from error
    if not rows:
        raise CourseError(f"{path} lists no pair: add one line a pair below the column names")
    names = _names({row[column] for row in rows for column in COLUMNS[:2]}, path.parent)
    return [
        Pair(
            fixed=Subject(names[row["fixed_image"]], row["fixed_image"], row["fixed_label"]),
            moving=Subject(names[row["moving_image"]], row["moving_image"], row["moving_label"]),
        )
        for row in rows
    ]


def _files(path: Path, line: int, row: Mapping[str, str | None]) -> dict[str, Path]:
    files = {}
    for column in COLUMNS:
        value = (row[column] or "").strip()
        if not value:
            raise CourseError(
                f"{path}, line {line}: no {column}; both images and both labels are needed to measure a pair"
            )
        files[column] = path.parent / value
        if not files[column].is_file():
            raise CourseError(f"{path}, line {line}: {column} {files[column]} does not exist; correct the path")
    return files


def _names(images: Iterable[Path], root: Path) -> dict[Path, str]:
    stems = {image: image.name.removesuffix(".gz").removesuffix(".nii") for image in images}
    if len(set(stems.values())) == len(stems):
        return stems
    folders = {image: re.sub(r"\W+", "_", os.path.relpath(image.parent, root)).strip("_") for image in stems}
    return {image: "_".join(filter(None, (folders[image], stem))) for image, stem in stems.items()}
