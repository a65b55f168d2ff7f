"""What students handed in: notebooks from files, folders and zips of a learning platform, each with its student's name.

Whose a notebook is, `course_utils.grading.names` says; how files are found and read, `course_utils.grading.collecting`.
Which assignment a notebook is of, its name says, or else the ids of its exercises.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from course_utils.errors import CourseError
from course_utils.grading.collecting import LINK, NO_NOTEBOOK, list_files, read_files
from course_utils.grading.names import NOTEBOOK, Place, nobody_is_known, owners


@dataclass(frozen=True)
class Submission:
    """A file that a student handed in.

    Attributes:
        student: by the rules of `course_utils.grading.names`.
        where: path of the file, within the argument that it came from; of several arguments, with that one's name.
        content: the file's bytes; None where `problem` says why there are none.
        problem: what is wrong with the file, or None.
        place: what says whose it is; files of one student from two places may be two people's.
    """

    student: str
    where: str
    content: bytes | None
    problem: str | None = None
    place: str = ""


def find_submissions(
    paths: Sequence[Path], assignments: Sequence[str], is_known: Callable[[str], bool] = nobody_is_known
) -> list[Submission]:
    """The notebooks in files, folders and zips, sorted by student and path.

    A student of whom there are only other files comes with the first of these, as a problem.

    Args:
        paths: of a class.
        assignments: names such as `02_warping`, by which a file's name is understood.
        is_known: whether a folder's name is that of somebody on the roster.

    Raises:
        CourseError: a path that is not there, or holds nothing.
    """

    def whose(places: Sequence[Place]) -> list[str]:
        return [owner.student for owner in owners(places, assignments, is_known)]

    files = list_files(paths, whose)
    if not files:
        raise CourseError(f"no submission in {', '.join(map(str, paths))}: name notebooks, folders or zips")
    of = owners([file.place for file in files], assignments, is_known)
    contents = read_files(files, [owner.student for owner in of])
    found = [
        Submission(owner.student, file.place.where, *content, owner.place)
        for owner, file, content in zip(of, files, contents, strict=True)
    ]
    found.sort(key=_order)
    work = [submission for submission in found if not _is_other(submission)]
    students = {submission.student for submission in work}
    others: dict[str, Submission] = {}
    for submission in found:
        if submission.student not in students:
            others.setdefault(submission.student, submission)
    return sorted([*work, *others.values()], key=_order)


def _order(submission: Submission) -> tuple[str, str]:
    return submission.student, submission.where


def _is_other(submission: Submission) -> bool:
    """Whether it is no notebook, and none that could not be read."""
    if submission.problem == LINK:
        return not NOTEBOOK.search(submission.where)
    return submission.problem == NO_NOTEBOOK


class Cell(TypedDict):
    """A cell that a student handed in; nothing but its source and its metadata's kind has been checked."""

    cell_type: object
    source: str
    metadata: dict[str, object]


def notebook_cells(content: bytes) -> list[Cell]:
    """The cells of a notebook of any nbformat, in UTF-8, UTF-16 or UTF-32, each with its source as one text.

    Raises:
        ValueError: this is no notebook; the message says why.
    """
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError):
        conflict = " but an unresolved merge conflict of git" if b"<<<<<<< " in content else " (no JSON)"
        raise ValueError(f"not a notebook{conflict}") from None
    cells = _raw_cells(notebook) if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("not a notebook (no cells)")
    return [cell for cell in map(_cell, cells) if cell is not None]


def _raw_cells(notebook: dict[str, object]) -> object:
    """The list of cells, which nbformat 3 has in worksheets; anything may stand in its place."""
    worksheets = notebook.get("worksheets")
    if "cells" in notebook or not isinstance(worksheets, list):
        return notebook.get("cells")
    sheets = [sheet.get("cells") for sheet in worksheets if isinstance(sheet, dict)]
    return [cell for cells in sheets if isinstance(cells, list) for cell in cells]


def _cell(cell: object) -> Cell | None:
    if not isinstance(cell, dict):
        return None
    source, metadata = cell.get("source", cell.get("input")), cell.get("metadata")  # nbformat 3: a code cell's input
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    source = source.encode("utf-8", "replace").decode()  # a lone surrogate can be written in JSON, and nowhere else
    return {
        "cell_type": cell.get("cell_type"),
        "source": source,
        "metadata": metadata if isinstance(metadata, dict) else {},
    }
