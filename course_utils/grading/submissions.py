"""What students handed in: notebooks from files, folders and zips of a learning platform, each with its student's name.

Whose a notebook is, the first of these that fits:

1. Moodle's `NAME_ID_assignsubmission_file_`, as a folder or as the beginning of a file's name: `NAME_ID`.
2. A file `STUDENT_02_warping.ipynb`, named after its assignment: `STUDENT`.
3. A file in a folder of a student, `STUDENT/02_warping.ipynb`: that folder, the last one on the way to the file.
4. A file `STUDENT.ipynb` of its own.

Which assignment it is, its name says, or else the ids of its exercises. Zips are read in memory and never unpacked, so
names that lead elsewhere lead nowhere; what is too large to be a notebook is not read to its end.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict

from course_utils.errors import CourseError

LARGEST = 30_000_000
"""Bytes of a notebook, and of a zip within a zip."""

LARGEST_CLASS, LARGEST_FOLDER = 1_500_000_000, 90_000_000
"""Bytes of all notebooks in the zip of a class, and in that of a student."""

MOST_FILES = 10_000
"""Files in a zip."""

MOODLE = re.compile(r"(?P<student>.+_\d+)_assignsubmission_[a-z]+_?")
IGNORED = re.compile(r"(?:^|/)(?:\.|__MACOSX/)")


@dataclass(frozen=True)
class Submission:
    """A file that a student handed in.

    Attributes:
        student: by the rules of this module.
        where: path of the file, within the argument that it came from.
        content: the file's bytes; None where `problem` says why there are none.
        problem: what is wrong with the file, or None.
    """

    student: str
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
    found = [submission for path in paths for submission in _read(Path(path), assignments)]
    if not found:
        raise CourseError(f"no submission in {', '.join(map(str, paths))}: name notebooks, folders or zips")
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


def _read(path: Path, assignments: Sequence[str]) -> Iterator[Submission]:
    if path.is_dir():
        root = path.resolve().name
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            yield from _file(_readable(file.relative_to(path)), file, root, assignments)
    elif path.is_file():
        yield from _file(_readable(Path(path.name)), path, _readable(Path(path.resolve().parent.name)), assignments)
    else:
        raise CourseError(f"{path} is not there: name notebooks, folders or zips of submissions")


def _file(name: str, file: Path, root: str, assignments: Sequence[str]) -> Iterator[Submission]:
    if IGNORED.search(name):
        return
    if name.lower().endswith(".zip"):
        yield from _zip(name.rpartition("/")[0], file, PurePosixPath(name).stem, root, assignments)
    elif not name.lower().endswith(".ipynb"):
        yield Submission(student_of(name, root, assignments), name, None, NO_NOTEBOOK)
    elif file.stat().st_size > LARGEST:
        yield Submission(student_of(name, root, assignments), name, None, _too_large())
    else:
        yield Submission(student_of(name, root, assignments), name, file.read_bytes())


def _zip(
    folder: str, file: Path | io.BytesIO, stem: str, root: str, assignments: Sequence[str], depth: int = 0
) -> Iterator[Submission]:
    """The notebooks in a zip; a zip in a student's folder counts as the folder, one on its own is the class's."""
    inside = f"{folder}/" if folder else ""
    root = root if folder else stem
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES:
                raise zipfile.BadZipFile(f"{len(entries)} files")
            left = LARGEST_FOLDER if folder else LARGEST_CLASS
            for entry in entries:
                for submission in _entry(archive, entry, inside, root, assignments, depth):
                    left -= len(submission.content or b"")
                    if left < 0:
                        raise zipfile.BadZipFile("too large when unpacked")
                    yield submission
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        where = f"{inside}{stem}.zip"
        yield Submission(student_of(where, root, assignments), where, None, f"not a zip that can be read ({error})")


def _entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, inside: str, root: str, assignments: Sequence[str], depth: int
) -> Iterator[Submission]:
    # ".." and absolute paths would only name another student; what they lead to is never opened.
    parts = [part for part in _zip_name(entry).replace("\\", "/").split("/") if part not in ("", ".", "..")]
    name = inside + "/".join(parts)
    if IGNORED.search(name):
        return
    student = student_of(name, root, assignments)
    is_zip = name.lower().endswith(".zip")
    if not is_zip and not name.lower().endswith(".ipynb"):
        yield Submission(student, name, None, NO_NOTEBOOK)
        return
    try:
        with archive.open(entry) as member:
            content = member.read(LARGEST + 1)  # the header may lie about the size
    except Exception as error:  # a broken or encrypted member: each kind of compression has errors of its own
        yield Submission(student, name, None, f"cannot be read from the zip ({error})")
        return
    if len(content) > LARGEST:
        yield Submission(student, name, None, _too_large())
    elif is_zip and depth > 0:
        yield Submission(student, name, None, "a zip in a zip in a zip")
    elif is_zip:
        path = PurePosixPath(name)
        folder = str(path.parent) if str(path.parent) != "." else path.stem
        yield from _zip(folder, io.BytesIO(content), path.stem, root, assignments, depth + 1)
    else:
        yield Submission(student, name, content)


def _too_large() -> str:
    return f"larger than {LARGEST / 1e6:.0f} MB"


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


def student_of(where: str, root: str, assignments: Sequence[str]) -> str:
    """Whose a file is; see this module's rules. `root` names the folder or zip that holds it."""
    path = PurePosixPath(where)
    for part in path.parts:
        if match := MOODLE.match(part):
            return match["student"]
    for name in assignments:
        if match := re.fullmatch(rf"(.+?)[_\- ]+{re.escape(name)}.*", path.stem):
            return match[1]
    if path.parent.name:
        return path.parent.name
    return root if any(path.stem.startswith(name) for name in assignments) else path.stem


class Cell(TypedDict):
    """A cell that a student handed in; nothing but its source and its metadata's kind has been checked."""

    cell_type: object
    source: str
    metadata: dict[str, object]


def notebook_cells(content: bytes) -> list[Cell]:
    """The cells of a notebook, each with its source as one text.

    Raises:
        ValueError: this is no notebook; the message says why.
    """
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise ValueError("not a notebook (no JSON)") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("not a notebook (no cells)")
    return [cell for cell in map(_cell, cells) if cell is not None]


def _cell(cell: object) -> Cell | None:
    if not isinstance(cell, dict):
        return None
    source, metadata = cell.get("source"), cell.get("metadata")
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
