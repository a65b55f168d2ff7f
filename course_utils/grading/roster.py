"""The list of a class, a CSV file of a learning platform or one's own: who should have handed in.

Its first line names the columns; those of names, of ids and of addresses are known by what platforms call them, and
others are left alone. The columns stand apart by commas, semicolons or tabs; the text is UTF-8, UTF-16 as spreadsheets
mark it, or the Windows encoding cp1252.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from course_utils.errors import CourseError

LARGEST = 10_000_000
"""Bytes of a roster."""

HEADERS = {
    "name": ("name", "full name", "fullname", "student", "student name", "display name", "teilnehmer"),
    "first": ("first name", "firstname", "given name", "vorname", "prénom", "nombre"),
    "last": ("last name", "lastname", "surname", "family name", "nachname", "nom", "apellidos"),
    "id": (
        *("id", "id number", "student id", "student number", "sis id", "sis user id", "sis login id", "identifier"),
        *("login", "login id", "user", "username", "user name", "github username", "github", "org defined id"),
        *("matriculation", "matriculation number", "matrikelnummer", "matrikel", "number", "kennung", "benutzername"),
    ),
    "email": ("email", "e mail", "mail", "email address", "e mail address", "e mail adresse"),
}
"""What the columns are called, in small letters, with blanks for whatever is no letter."""


@dataclass(frozen=True)
class Person:
    """Somebody on the roster.

    Attributes:
        label: what the tables call this person; no other person's.
        name: words of the name in the order of the roster; empty where it has no names.
        ids: ids, logins and addresses, in small letters.
        line: of the roster.
    """

    label: str
    name: tuple[str, ...]
    ids: frozenset[str]
    line: int


def read_roster(path: Path) -> list[Person]:
    """Who is on a roster, in its order.

    Raises:
        CourseError: the file cannot be read, is no such table, or names a person twice; the message names the line.
    """
    text = _text(path)
    try:
        rows = list(_rows(text))
    except csv.Error as error:
        raise CourseError(f"{path} is no table that can be read ({error}): save it as CSV again") from None
    if not rows:
        raise CourseError(f"{path} is empty: give a table with a column name, id or email")
    (first, header), people = rows[0], rows[1:]
    kinds = _kinds(path, first, header)
    found = []
    for line, cells in people:
        if any(cells[len(kinds) :]):
            raise CourseError(
                f"{path}, line {line} has {len(cells)} cells, and the first line {len(kinds)}: put a text that holds "
                "what stands between columns into double quotes"
            )
        if (person := _person(path, line, kinds, cells)) is not None:
            found.append(person)
    if not found:
        raise CourseError(f"{path} names nobody: give a line for each student below the columns' names")
    return _told_apart(path, found)


def words(text: str) -> tuple[str, ...]:
    """The words of a name as they are compared: in small letters, without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return tuple(re.findall(r"[^\W_]+", plain.replace("'", "").replace("’", "")))


def _text(path: Path) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise CourseError(f"{path} cannot be read ({error.strerror}): name the roster, a CSV file") from None
    if len(content) > LARGEST:
        raise CourseError(f"{path} is larger than {LARGEST / 1e6:g} MB: name the roster, a CSV file")
    encodings = ["utf-16"] if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeError:
            continue
        # As of Windows and of old Macs. What is left of control characters, no spreadsheet writes.
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in text):
            return unicodedata.normalize("NFC", text)
    raise CourseError(f"{path} is no text: save the roster as CSV in UTF-8")


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    header = next(filter(str.strip, text.split("\n")), "")
    between = max(",;\t", key=header.count)
    if between not in header:
        between = "\x1f"  # a single column: whatever else stands in a line belongs to it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True, skipinitialspace=True)
    line = 1
    for cells in reader:
        cells = [" ".join(each.split()) for each in cells]
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _kinds(path: Path, line: int, header: Sequence[str]) -> list[str]:
    """What each column holds: a kind of `HEADERS`, or "" for another."""
    named = [re.sub(r"[\W_]+", " ", each).strip().casefold() for each in header]
    kinds = [next((kind for kind, known in HEADERS.items() if name in known), "") for name in named]
    if not any(kinds):
        raise CourseError(
            f"{path}, line {line} names no column name, id or email, but {', '.join(header)[:100]!r}: put a line with "
            "such names over the students"
        )
    for kind in ("name", "first", "last"):
        if kinds.count(kind) > 1:
            raise CourseError(f"{path}, line {line} has two columns of names ({kind}): leave one of them out")
    return kinds


def _person(path: Path, line: int, kinds: Sequence[str], cells: Sequence[str]) -> Person | None:
    told: dict[str, list[str]] = {kind: [] for kind in HEADERS}
    for kind, value in zip(kinds, cells, strict=False):
        if kind and value:
            told[kind].append(value)
    name = " ".join(told["name"] or [*told["first"], *told["last"]])
    if name.casefold() == "points possible":  # the second line of a gradebook that Canvas exports
        return None
    ids = [*told["id"], *told["email"]]
    if not words(name) and not ids:
        raise CourseError(f"{path}, line {line} names nobody: fill in a name, an id or an address, or leave it out")
    return Person(name or ids[0], words(name), frozenset(value.casefold() for value in ids), line)


def _told_apart(path: Path, people: Sequence[Person]) -> list[Person]:
    """The people, each with a label of its own.

    Raises:
        CourseError: two of them cannot be told apart.
    """
    names = Counter(person.label.casefold() for person in people)
    labelled = []
    seen: dict[str, int] = {}
    for person in people:
        label = person.label
        if names[label.casefold()] > 1 and person.name and person.ids:
            label = f"{label} ({min(person.ids)})"
        for mark in {label.casefold(), *person.ids}:
            if mark in seen:
                raise CourseError(
                    f"{path}, line {person.line} and line {seen[mark]} are both '{mark}': leave one out, or give each "
                    "an id of its own"
                )
            seen[mark] = person.line
        labelled.append(replace(person, label=label))
    return labelled
