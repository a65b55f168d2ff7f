"""What students handed in: notebooks from files, folders and zips of a learning platform, each with its student's name.

Whose a notebook is, `course_utils.grading.names` says. Which assignment it is, its name says, or else the ids of its
exercises. Zips are read in memory and never unpacked, so names that lead elsewhere lead nowhere; what is too large to
be a notebook is not read to its end.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from course_utils.errors import CourseError
from course_utils.grading.names import NOTEBOOK, Place, owners

LARGEST = 30_000_000
"""Bytes of a notebook, and of a zip within a zip."""

LARGEST_CLASS, LARGEST_FOLDER = 1_500_000_000, 90_000_000
"""Bytes of all notebooks in the zip of a class, and in that of a student."""

MOST_FILES = 10_000
"""Files in a zip."""

IGNORED = re.compile(r"(?:^|/)(?:\.|__MACOSX/)")


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


class _Found(NamedTuple):
    """A file, before anybody knows whose it is."""

    where: str
    content: bytes | None
    problem: str | None = None


def find_submissions(paths: Sequence[Path], assignments: Sequence[str]) -> list[Submission]:
    """The notebooks in files, folders and zips, sorted by student and path.

    A student of whom there are only other files comes with the first of these, as a problem.

    Args:
        assignments: names such as `02_warping`, by which a file's name is understood.

    Raises:
        CourseError: a path that is not there, or holds nothing.
    """
    files, places = [], []
    for path in map(Path, paths):
        for file in _read(path, several=len(paths) > 1):
            files.append(file)
            places.append(Place(_root(path), file.where))
    if not files:
        raise CourseError(f"no submission in {', '.join(map(str, paths))}: name notebooks, folders or zips")
    found = [
        Submission(owner.student, *file, owner.place)
        for file, owner in zip(files, owners(places, assignments), strict=True)
    ]
    found.sort(key=lambda submission: (submission.student, submission.where))
    notebooks = {submission.student for submission in found if submission.problem != NO_NOTEBOOK}
    others: dict[str, Submission] = {}
    for submission in found:
        if submission.problem == NO_NOTEBOOK and submission.student not in notebooks:
            others.setdefault(submission.student, submission)
    return sorted(
        [*(submission for submission in found if submission.problem != NO_NOTEBOOK), *others.values()],
        key=lambda submission: (submission.student, submission.where),
    )


NO_NOTEBOOK = "no notebook (.ipynb) handed in"


def _root(path: Path) -> str:
    """The name of the folder or zip that is given; of a notebook, of the folder around it."""
    path = path.resolve()
    if path.is_dir():
        return _readable(Path(path.name))
    return _readable(Path(path.stem if _is_zip(path.name) else path.parent.name))


def _read(path: Path, *, several: bool) -> Iterator[_Found]:
    name = _readable(Path(path.resolve().name))
    if path.is_dir():
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            where = _readable(file.relative_to(path))
            yield from _file(f"{name}/{where}" if several else where, file, of_class="/" not in where)
    elif path.is_file() and _is_zip(name):
        yield from _zip(f"{name}/" if several else "", name, path, LARGEST_CLASS)
    elif path.is_file():
        yield from _file(name, path)
    else:
        raise CourseError(f"{path} is not there: name notebooks, folders or zips of submissions")


def _file(where: str, file: Path, *, of_class: bool = True) -> Iterator[_Found]:
    if IGNORED.search(where):
        return
    if _is_zip(where):
        yield from _zip(f"{where}/", where, file, LARGEST_CLASS if of_class else LARGEST_FOLDER)
    elif not NOTEBOOK.search(where):
        yield _Found(where, None, NO_NOTEBOOK)
    elif file.stat().st_size > LARGEST:
        yield _Found(where, None, _too_large())
    else:
        yield _Found(where, file.read_bytes())


def _zip(inside: str, where: str, file: Path | io.BytesIO, left: int, depth: int = 0) -> Iterator[_Found]:
    """The notebooks in a zip, whose paths begin with `inside`, of together `left` bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES:
                raise zipfile.BadZipFile(f"{len(entries)} files")
            for entry in entries:
                for found in _entry(archive, entry, inside, depth):
                    left -= len(found.content or b"")
                    if left < 0:
                        raise zipfile.BadZipFile("too large when unpacked")
                    yield found
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        yield _Found(where, None, f"not a zip that can be read ({error})")


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, inside: str, depth: int) -> Iterator[_Found]:
    # ".." and absolute paths would only name another student; what they lead to is never opened.
    parts = [part for part in _zip_name(entry).replace("\\", "/").split("/") if part not in ("", ".", "..")]
    where = inside + "/".join(parts)
    if IGNORED.search(where):
        return
    if not _is_zip(where) and not NOTEBOOK.search(where):
        yield _Found(where, None, NO_NOTEBOOK)
        return
    try:
        with archive.open(entry) as member:
            content = member.read(LARGEST + 1)  # the header may lie about the size
    except Exception as error:  # a broken or encrypted member: each kind of compression has errors of its own
        yield _Found(where, None, f"cannot be read from the zip ({error})")
        return
    if len(content) > LARGEST:
        yield _Found(where, None, _too_large())
    elif _is_zip(where) and depth > 0:
        yield _Found(where, None, "a zip in a zip in a zip")
    elif _is_zip(where):
        yield from _zip(f"{where}/", where, io.BytesIO(content), LARGEST_FOLDER, depth + 1)
    else:
        yield _Found(where, content)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _too_large() -> str:
    return f"larger than {LARGEST / 1e6:.0f} MB: hand it in again without the outputs of its cells"


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name in a zip; many programs write UTF-8 and do not say so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _readable(path: Path) -> str:
    """The path as text; bytes that are no UTF-8 are written as `\\xff`, so that two names stay two."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


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
