"""What only the files of a folder tell: their JSON, their headers, their label values."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from course_utils.data.pairs import Subject
from course_utils.errors import CourseError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CourseError where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read as JSON ({error}): restore it from the archive") from error
    if not isinstance(content, dict):
        raise CourseError(f"{path} is not a JSON object: restore it from the archive")
    return content


def file_header(path: Path) -> Any:
    """The header of an image; raises CourseError where it cannot be read."""
    try:
        return _open(path).header
    except Exception as error:
        raise CourseError(f"{path} cannot be read as an image ({error}): restore it from the archive") from error


def labels_of(subjects: Sequence[Subject]) -> dict[int, str]:
    """Values of the first label map that can be read, background left out, each called after itself."""
    for subject in subjects:
        if subject.label is not None and subject.label.is_file():
            try:
                values = np.unique(np.asarray(_open(subject.label).dataobj))
            except Exception:  # a broken file is reported by whoever loads it; the next one will do
                continue
            return {int(value): f"label {int(value)}" for value in values if value > 0}
    return {}


def _open(path: Path) -> Any:
    return nibabel.load(path)  # of one of nibabel's many classes, each with header and dataobj
