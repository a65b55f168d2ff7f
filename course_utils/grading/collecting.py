"""The files of a class, in folders and zips: first listed, then, when it is known whose they are, read within bounds.

The bounds are a student's: however much one hands in, nobody else's work is passed over for it. Zips are read in
memory and never unpacked, so names that lead elsewhere lead nowhere. Links are not followed, for they may lead to
what another handed in.
"""

import io
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from course_utils.errors import CourseError
from course_utils.grading.names import NOTEBOOK, Place
from course_utils.grading.printable import of_path, printable

LARGEST = 30_000_000
"""Bytes of a notebook, and of a zip within a zip."""

LARGEST_OF_STUDENT, LARGEST_CLASS = 90_000_000, 1_500_000_000
"""Bytes of all notebooks of a student, as of all zips within zips, and of all notebooks of a class."""

MOST_NOTEBOOKS = 200
"""Of a student."""

MOST_FILES = 10_000
"""Files in a zip within a zip."""

DEEPEST = 100
"""Folders within folders."""

IGNORED = re.compile(r"(?:^|/)(?:\.|__MACOSX/)")

NO_NOTEBOOK = "no notebook (.ipynb) handed in"
LINK = "a link, not a file: hand in the file itself"


class Content(NamedTuple):
    """The bytes of a notebook, or what is wrong with the file."""

    content: bytes | None
    problem: str | None


@dataclass(frozen=True)
class Source:
    """Where a file's bytes are: in a file, or in that zip's member, or in the member of a zip that is its member."""

    path: Path
    members: tuple[zipfile.ZipInfo, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A file that has not been read yet.

    Attributes:
        place: where it was found.
        source: of its bytes.
        size: bytes that it has, or says that it has; it is never read further.
        problem: why it is not to be read, or None.
    """

    place: Place
    source: Source
    size: int = 0
    problem: str | None = None


Whose = Callable[[Sequence[Place]], Sequence[str]]
"""The student of each of the files that were found in these places."""


def list_files(paths: Sequence[Path], whose: Whose) -> list[Listed]:
    """Every file in notebooks, folders and zips that may be somebody's; none of them is read.

    Args:
        paths: that a teacher named.
        whose: tells the student of each file; a student's zips within zips have a bound together.

    Raises:
        CourseError: a path is not there.
    """
    found = [file for path in map(Path, paths) for file in _of_argument(path, several=len(paths) > 1)]
    files: list[Listed] = []
    unpacked: Counter[str] = Counter()
    with _Zips() as zips:
        for file, student in zip(found, whose([file.place for file in found]), strict=True):
            if file.problem is not None or not _is_zip(file.place.where):
                files.append(file)
                continue
            unpacked[student] += file.size
            if unpacked[student] > LARGEST_OF_STUDENT:
                files.append(_bad(file.place, f"a student's zips are together larger than {_mb(LARGEST_OF_STUDENT)}"))
            else:
                files += _members(file, zips, f"{file.place.where}/", MOST_FILES)
    return files


def read_files(files: Sequence[Listed], students: Sequence[str]) -> Iterator[Content]:
    """The content of each file, in the same order; `students` says whose each is."""
    of_student: Counter[str] = Counter()
    bytes_of: Counter[str] = Counter()
    of_class = 0
    with _Zips() as zips:
        for file, student in zip(files, students, strict=True):
            problem = file.problem
            if problem is None:
                of_student[student] += 1
                if of_student[student] > MOST_NOTEBOOKS:
                    problem = f"not read: one student's, beyond the first {MOST_NOTEBOOKS} notebooks"
                elif bytes_of[student] + file.size > LARGEST_OF_STUDENT:
                    problem = f"not read: one student's notebooks are together larger than {_mb(LARGEST_OF_STUDENT)}"
                elif of_class + file.size > LARGEST_CLASS:
                    problem = f"not read: the class's notebooks are larger than {_mb(LARGEST_CLASS)}: grade it in parts"
            if problem is not None:
                yield Content(None, problem)
                continue
            read = _read(file, zips)
            size = len(read.content or b"")
            bytes_of[student] += size
            of_class += size
            yield read


def _of_argument(path: Path, *, several: bool) -> Iterator[Listed]:
    name = of_path(Path(path.resolve().name))
    root = _root(path.resolve())
    if path.is_dir():
        yield from _of_folder(path, root, f"{name}/" if several else "")
    elif path.is_file() and _is_zip(name):
        yield from _of_zip(Place(root, name), path, f"{name}/" if several else "")
    elif path.is_file():
        yield _checked(Place(root, name), Source(path), path.stat().st_size)
    else:
        raise CourseError(f"{path} is not there: name notebooks, folders or zips of submissions")


def _root(path: Path) -> str:
    """The name of the folder or zip that is given; of a notebook, of the folder around it."""
    if path.is_dir():
        return of_path(Path(path.name))
    return of_path(Path(path.stem if _is_zip(path.name) else path.parent.name))


def _of_folder(top: Path, root: str, prefix: str) -> Iterator[Listed]:
    waiting = [(top, 0)]  # a list, for folders may be nested deeper than functions
    while waiting:
        folder, depth = waiting.pop()
        here = Place(root, f"{prefix}{of_path(folder.relative_to(top))}")
        if depth > DEEPEST:
            yield _bad(here, f"more than {DEEPEST} folders within each other: hand in the notebook alone")
            continue
        try:
            with os.scandir(folder) as inside:
                entries = sorted(inside, key=lambda entry: entry.name)
        except OSError as error:
            yield _bad(here, f"cannot be read ({error.strerror})")
            continue
        for entry in entries:
            path = folder / entry.name
            where = of_path(path.relative_to(top))
            place = Place(root, prefix + where)
            if IGNORED.search(f"{where}/"):
                continue
            if entry.is_symlink():
                yield _bad(place, LINK)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((path, depth + 1))
            elif entry.is_file(follow_symlinks=False):
                if _is_zip(where):
                    yield from _of_zip(place, path, f"{place.where}/")
                else:
                    yield _checked(place, Source(path), entry.stat(follow_symlinks=False).st_size)


def _of_zip(place: Place, path: Path, inside: str) -> Iterator[Listed]:
    """The files of a zip on the disk. It may be the whole class's, so that no number of files is too large."""
    with _Zips() as zips:
        yield from _members(Listed(place, Source(path)), zips, inside, None)


def _members(file: Listed, zips: "_Zips", inside: str, most: int | None) -> list[Listed]:
    """What is in a zip, at paths that begin with `inside`; a zip that cannot be read is a problem of its own."""
    if len(file.source.members) > 1:
        return [_bad(file.place, "a zip in a zip in a zip")]
    if file.size > LARGEST:
        return [_bad(file.place, _too_large())]
    try:
        entries = [entry for entry in zips.archive(file.source).infolist() if not entry.is_dir()]
    except Exception as error:  # each way of being broken has an error of its own
        return [_bad(file.place, f"not a zip that can be read ({error})")]
    if most is not None and len(entries) > most:
        return [_bad(file.place, f"not a zip that can be read ({len(entries)} files)")]
    files = []
    for entry in entries:
        # ".." and absolute paths would only name another student; what they lead to is never opened.
        parts = [part for part in _zip_name(entry).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        place = Place(file.place.root, inside + printable("/".join(parts)))
        if IGNORED.search(place.where.removeprefix(inside)):
            continue
        source = Source(file.source.path, (*file.source.members, entry))
        files.append(
            _bad(place, LINK)
            if stat.S_ISLNK(entry.external_attr >> 16)
            else Listed(place, source, entry.file_size)
            if _is_zip(place.where) and not file.source.members
            else _checked(place, source, entry.file_size)
        )
    return files


def _checked(place: Place, source: Source, size: int) -> Listed:
    """A file that is no zip to be looked into."""
    if _is_zip(place.where):
        return _bad(place, "a zip in a zip in a zip")
    if not NOTEBOOK.search(place.where):
        return _bad(place, NO_NOTEBOOK)
    return _bad(place, _too_large()) if size > LARGEST else Listed(place, source, size)


def _bad(place: Place, problem: str) -> Listed:
    return Listed(place, Source(Path()), problem=printable(problem))


def _read(file: Listed, zips: "_Zips") -> Content:
    try:
        return Content(zips.content(file.source, file.size), None)
    except OSError as error:
        told = error.strerror or error
    except Exception as error:  # a broken or encrypted member: each kind of compression has errors of its own
        told = error
    return Content(None, printable(f"cannot be read{' from the zip' if file.source.members else ''} ({told})"))


class _Zips:
    """The zips that are open: the last of each depth, as files are read in the order in which they were listed."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Source, zipfile.ZipFile]] = {}

    def __enter__(self) -> "_Zips":
        return self

    def __exit__(self, *_: object) -> None:
        for _source, archive in self._open.values():
            archive.close()

    def archive(self, source: Source) -> zipfile.ZipFile:
        """The zip at `source`."""
        depth = len(source.members)
        if depth in self._open:
            known, archive = self._open[depth]
            if known == source:
                return archive
            archive.close()
            del self._open[depth]
        archive = zipfile.ZipFile(io.BytesIO(self.content(source, LARGEST)) if depth else source.path)
        self._open[depth] = (source, archive)
        return archive

    def content(self, source: Source, most: int) -> bytes:
        """The bytes of a file; no more than `most`, and of a member no more than its zip says that it has."""
        if not source.members:
            with source.path.open("rb") as file:
                return file.read(most)
        *outer, member = source.members
        with self.archive(Source(source.path, tuple(outer))).open(member) as packed:
            return packed.read(most)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _too_large() -> str:
    return f"larger than {_mb(LARGEST)}: hand it in again without the outputs of its cells"


def _mb(size: int) -> str:
    return f"{size / 1e6:g} MB"


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name in a zip; many programs write UTF-8 and do not say so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename
