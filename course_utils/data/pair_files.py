"""Pairs that a user lists in a file."""

import csv
from collections.abc import Mapping
from pathlib import Path

from course_utils.data.file_lists import names_of
from course_utils.data.pairs import Pair, Subject
from course_utils.errors import CourseError

IMAGES, LABELS = ("fixed_image", "moving_image"), ("fixed_label", "moving_label")


def pairs_from_csv(path: str | Path) -> list[Pair]:
    """The pairs of a CSV file with columns fixed_image, moving_image and, for labels, fixed_label, moving_label.

    Paths are relative to the file. A subject is called after its image file, or after its path where two files have one
    name.

    Raises:
        CourseError: a column of images is missing, or a file that a line names.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in IMAGES if column not in (reader.fieldnames or ())]
            if missing:
                raise CourseError(
                    f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(IMAGES)} and, if "
                    f"there are labels, {', '.join(LABELS)}"
                )
            rows = [_files(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} cannot be read as CSV ({error}): give a comma-separated text file") from error
    if not rows:
        raise CourseError(f"{path} lists no pair: add one line a pair below the column names")
    names = names_of({row[column] for row in rows for column in IMAGES})
    return [
        Pair(
            fixed=Subject(names[row["fixed_image"]], row["fixed_image"], row.get("fixed_label")),
            moving=Subject(names[row["moving_image"]], row["moving_image"], row.get("moving_label")),
        )
        for row in rows
    ]


def _files(path: Path, line: int, row: Mapping[str, str | None]) -> dict[str, Path]:
    files = {}
    for column in (*IMAGES, *LABELS):
        value = (row.get(column) or "").strip()
        if not value and column in LABELS:
            continue
        if not value:
            raise CourseError(f"{path}, line {line}: no {column}; a pair needs both images")
        files[column] = path.parent / value
        if not files[column].is_file():
            raise CourseError(f"{path}, line {line}: {column} {files[column]!s:.300} does not exist; correct the path")
    return files
