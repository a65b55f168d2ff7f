"""What only the files of a folder tell: their JSON, their headers, their label values."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel

from course_utils.data.pairs import Subject
from course_utils.data.volumes import read_labels
from course_utils.errors import CourseError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CourseError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read as JSON ({error}): restore it from the archive") from error
    if not isinstance(content, dict):
        raise CourseError(f"{path} is not a JSON object: restore it from the archive")
    return content


def file_header(path: Path) -> Any:
    """The header of an image; raises CourseError where it cannot be read."""
    try:
        image: Any = nibabel.load(path)  # of one of nibabel's many classes, each with a header
        return image.header
    except Exception as error:
        raise CourseError(f"{path} cannot be read as an image ({error}): restore it from the archive") from error


def labels_of(subjects: Sequence[Subject], dims: int = 3) -> dict[int, str]:
    """Values of all label maps that can be read, background left out, each called after itself.

    One subject may lack a structure that others have. A file that cannot be read is reported by whoever loads it.
    """
    paths = {subject.label for subject in subjects if subject.label is not None}
    with ThreadPoolExecutor() as pool:
        values = set().union(*pool.map(lambda path: _values(path, dims), paths))
    return {value: f"label {value}" for value in sorted(values)}


def _values(path: Path, dims: int) -> set[int]:
    try:
        return {value for value in read_labels(path, dims).data.unique().tolist() if value}
    except CourseError:
        return set()
