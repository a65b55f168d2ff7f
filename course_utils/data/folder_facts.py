"""What only the files of a folder tell: their JSON, their headers, their label values."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from course_utils.data.formats import open_image
from course_utils.data.pairs import Subject
from course_utils.data.stored import MOST_VOXELS
from course_utils.data.volumes import read_labels
from course_utils.errors import CourseError
from course_utils.plain import read_json


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CourseError where there is none."""
    content = read_json(path, "restore it from the archive")
    if not isinstance(content, dict):
        raise CourseError(f"{path} is not a JSON object: restore it from the archive")
    return content


def stored_grid(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Of an image, the voxels along its first three axes, and the mm between them.

    Raises:
        CourseError: it cannot be read, or nothing could be on such a grid.
    """
    opened = open_image(path)
    shape, spacing = opened.shape[:3], tuple(float(mm) for mm in opened.zooms[:3])
    if len(shape) < 2 or not all(0 < mm < math.inf for mm in spacing) or math.prod(shape) > MOST_VOXELS:
        raise CourseError(f"{path} has {shape} voxels of {spacing} mm by its header: restore it from the archive")
    return shape, spacing


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
