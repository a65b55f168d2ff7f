"""Whose a file is that came from a folder or a zip of a learning platform, and of which assignment.

A platform's own pattern decides wherever it stands on the way to the file (`PLATFORMS`): Moodle, Canvas, Blackboard,
Brightspace, ILIAS. Elsewhere a folder is a student: the outermost one whose name says more than `assignments`,
`week 2` or `Version 1`. A zip counts as a folder. Where most of these hold several people, in folders or in the names
of files (`ada_02_warping.ipynb`, `02_warping_ada.ipynb`), they are groups, such as tutorials, and all are passed by; a
single one is not, for its owner chose the names in it. Without any folder the name of the file tells or, in the end,
that of the argument.

What these rules cannot tell apart they take for one student; `Owner.place` says by what, so that grading can warn.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

NOTEBOOK = re.compile(r"\.ipynb(?:\.(?:txt|json))?$", re.IGNORECASE)
"""How a notebook's name ends; some browsers save `02_warping.ipynb.txt`."""

PLATFORMS = (
    # Moodle: Ada Lovelace_123_assignsubmission_file_
    re.compile(r"(?P<student>.+_\d+)_assignsubmission_[a-z]+_?"),
    # Blackboard: Warping_ada1_attempt_2024-01-30-20-30-10_02_warping.ipynb
    re.compile(r"(?:(?P<title>.+)_)?(?P<student>[^_]+)_attempt_\d{4}(?:-\d\d){5}"),
    # Brightspace: 12345-6789 - Ada Lovelace - Jan 30, 2024 830 PM
    re.compile(r"(?P<title>\d+-\d+) *- *(?P<student>.+?) *- *[^\W\d]+\.? \d{1,2}, \d{4}\b"),
    # Canvas: lovelaceada_LATE_101_5559_02_warping-1.ipynb, with the student's number and the attachment's
    re.compile(r"(?P<student>[^\W_]+)(?:_LATE)?_(?P<number>\d+)_\d{3,}_", re.IGNORECASE),
)
ILIAS_TIME = re.compile(r"\d{14}_")
"""ILIAS puts the time before a file's name, in a folder of the student's."""

COPY = re.compile(
    r"^(?:(?:copy of|copie de|copia de|cópia de|kopie von)[\W_])+|(?:[ _]?\(\d+\)|-copy\d*)+$", re.IGNORECASE
)
"""What Colab, browsers and JupyterLab add to the name of a copy."""

WORDS = frozenset(
    {
        *("assignment", "assignments", "aufgabe", "blatt", "exercise", "exercises", "homework", "hw", "sheet", "übung"),
        *("abgabe", "answer", "answers", "file", "files", "handin", "notebook", "notebooks", "untitled", "work"),
        *("solution", "solutions", "solved", "submission", "submissions", "submitted", "uebung"),
        *("attempt", "backup", "copia", "copie", "copy", "done", "draft", "final", "finished", "fixed", "kopie"),
        *("late", "latest", "my", "new", "of", "old", "resubmission", "the", "try", "update", "updated"),
        *("v", "ver", "version"),
    }
)
"""Words that name no person, in the names of files and folders."""

PLACES = frozenset(
    {
        *("abgaben", "attachment", "attachments", "class", "course", "desktop", "documents", "downloads", "jupyter"),
        *("main", "master", "registration", "release", "source", "sources", "src", "students", "week", "woche"),
    }
)
"""Words that name no person in the name of a folder; in a file's, one may be part of a person's name."""


LONGEST, DEEPEST = 255, 10
"""Characters of a name and folders of a path that are looked at: a name in a zip may have 65,535 characters."""


class Owner(NamedTuple):
    """Whose a file is, and the place that says so: files of one student from two places may be two people's."""

    student: str
    place: str


@dataclass(frozen=True)
class Place:
    """Where a file was found.

    Attributes:
        root: name of the folder, or of the zip without `.zip`, that was given.
        where: the file's path in it; a zip on the way is written as a folder with its whole name.
    """

    root: str
    where: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders, and zips without `.zip`, on the way to the file, and its name; none longer than `LONGEST`."""
        *folders, name = self.where.split("/")
        folders = [re.sub(r"\.zip$", "", folder, flags=re.IGNORECASE) for folder in folders[:DEEPEST]]
        return (*(folder[:LONGEST] for folder in folders), name[-LONGEST:])


def assignment_named(text: str, assignments: Iterable[str]) -> str:
    """The assignment that a name speaks of, `02_warping` in `Copy of 02-Warping (1)`: the longest, or ""."""
    return max((name for name in assignments if _mention(name).search(text)), key=len, default="")


def nobody_is_known(name: str) -> bool:
    """Of a folder's name, where there is no roster."""
    return False


def owners(
    places: Sequence[Place], assignments: Sequence[str], is_known: Callable[[str], bool] = nobody_is_known
) -> list[Owner]:
    """Whose each file is, in the same order.

    Args:
        places: of all files of a class: what a folder is follows from what lies beside it.
        assignments: names such as `02_warping`.
        is_known: whether a folder's name is that of somebody on the roster; such a folder is never passed by.
    """
    clues = [_clues(place, assignments) for place in places]
    known = {number: owner for number, place in enumerate(places) if (owner := _by_platform(place)) is not None}
    students = _students({number: clue for number, clue in enumerate(clues) if number not in known}, 0, "", is_known)
    return [known.get(number) or _owner(place, students[number], clues[number]) for number, place in enumerate(places)]


def _by_platform(place: Place) -> Owner | None:
    parts = place.parts
    for number, part in enumerate(parts):
        for pattern in PLATFORMS:
            if match := pattern.match(part):
                told = match.groupdict()
                student = "_".join(filter(None, (told["student"], told.get("number"))))
                # What stands before a name may belong to it, `Warping_b_smith_attempt_...`, or tell namesakes apart.
                return Owner(student, "_".join(filter(None, (told.get("title"), student))))
        if number and ILIAS_TIME.match(part):
            return Owner(parts[number - 1], parts[number - 1])
    return None


class _Clues(NamedTuple):
    """What the way to a file tells.

    Attributes:
        folders: those whose names may be people's, the outermost first.
        person: whom the file's own name speaks of, or "".
        assignment: of a notebook, by its name, or ""; None of another file.
    """

    folders: tuple[str, ...]
    person: str
    assignment: str | None


def _clues(place: Place, assignments: Sequence[str]) -> _Clues:
    *folders, name = place.parts
    words = WORDS | {token for assignment in assignments for token in _tokens(assignment) if not token.isdigit()}
    people = [_person_of_folder(folder, assignments, words) for folder in folders]
    return _Clues(
        tuple(filter(None, people)),
        _person_of_file(name, assignments, words),
        assignment_named(name, assignments) if NOTEBOOK.search(name) else None,
    )


def _students(clues: Mapping[int, _Clues], depth: int, around: str, is_known: Callable[[str], bool]) -> dict[int, str]:
    """The student of each file, by its number: a folder at this depth or, where most hold several people, in these.

    `around` is the folder that holds them all; "" is the student of whom nothing tells.
    """
    students: dict[int, str] = {}
    tops: dict[str, dict[int, _Clues]] = defaultdict(dict)
    for number, clue in clues.items():
        if len(clue.folders) > depth:
            tops[clue.folders[depth]][number] = clue
        else:
            students[number] = clue.person or around
    are_groups = _are_groups(tops, depth, is_known)
    for top, inside in tops.items():
        if not are_groups or is_known(top):
            students |= dict.fromkeys(inside, top)
        elif any(len(clue.folders) > depth + 1 for clue in inside.values()):
            students |= _students(inside, depth + 1, top, is_known)
        else:
            students |= {number: clue.person or top for number, clue in inside.items()}
    return students


def _are_groups(tops: Mapping[str, Mapping[int, _Clues]], depth: int, is_known: Callable[[str], bool]) -> bool:
    """Whether the folders at this depth are groups of a class, whose students are in them.

    It takes most of them, so that no student, whatever is in hers, becomes several, or another.
    """
    with_work = [top for top, inside in tops.items() if any(clue.assignment is not None for clue in inside.values())]
    several = [
        names
        for top in with_work
        if not is_known(top) and len(names := max(_beside(tops[top], depth + 1), _beside(tops[top], None), key=len)) > 1
    ]
    # Folders of one name in everybody's are versions of their work, for a student is in one group.
    groups = Counter(name for names in several for name in names)
    versions = len(several) > 1 and 2 * sum(count == 1 for count in groups.values()) <= len(groups)
    return 2 * len(several) > len(with_work) and not versions


def _beside(inside: Mapping[int, _Clues], depth: int | None) -> set[str]:
    """The names that stand beside one assignment, of that which has most: of folders at a depth, or in files' names."""
    beside: dict[str, set[str]] = defaultdict(set)
    for clue in inside.values():
        name = clue.person if depth is None else clue.folders[depth] if len(clue.folders) > depth else ""
        if clue.assignment is not None and name:
            beside[clue.assignment].add(name)
    return max(beside.values(), key=len, default=set())


def _owner(place: Place, student: str, clues: _Clues) -> Owner:
    if not student:
        return Owner(place.root, place.where)
    *folders, _ = place.parts
    return Owner(student, "/".join(dict.fromkeys(filter(None, (*folders[:1], *clues.folders, clues.person)))))


def _person_of_folder(folder: str, assignments: Sequence[str], words: frozenset[str]) -> str:
    """The folder's name or, where the assignment's is in it, what it says besides; "" where it names no person."""
    if assignment_named(folder, assignments):
        return _person_of_file(folder, assignments, words)
    tokens = _tokens(folder.replace("(s)", "s"))  # Sakai: Submission attachment(s)
    if not any(_is_word(token, words | PLACES) for token in tokens):
        return folder
    telling = [token for token in tokens if not re.fullmatch(r"\d{1,3}|20\d\d", token)]
    return "" if all(_is_word(token, words | PLACES) for token in telling) else folder


def _person_of_file(name: str, assignments: Sequence[str], words: frozenset[str]) -> str:
    """The person of whom a file's name speaks, before or after the assignment's name, or ""."""
    stem = NOTEBOOK.sub("", name)
    stem = COPY.sub("", stem if stem != name else PurePosixPath(name).stem)
    assignment = assignment_named(stem, assignments)
    if not assignment:
        return _trimmed(stem, words)
    before, after = (_trimmed(part, words) for part in _mention(assignment).split(stem, maxsplit=1))
    return before or ("" if re.fullmatch(r"\d{0,3}", after) else after)


def _trimmed(text: str, words: frozenset[str]) -> str:
    """The text without words at its ends that name no person, and without a small number after one of these."""
    tokens = list(re.finditer(r"[^\W_]+", text))
    begin, end = 0, len(tokens)
    while begin < end and _is_word(tokens[begin][0], words):
        begin += 1
    while end > begin:
        numbered = end - begin > 1 and re.fullmatch(r"\d{1,3}", tokens[end - 1][0]) is not None
        if not _is_word(tokens[end - 1 - numbered][0], words):
            break
        end -= 1 + numbered
    if begin == end:
        return "" if tokens else text.strip(" _-")
    # What is no letter belongs to the name where no word was taken away: `Srinivasa R.`, `=SUM(A1)`
    first = tokens[begin].start() if begin else 0
    last = tokens[end - 1].end() if end < len(tokens) else len(text)
    return text[first:last].strip(" _-")


def _is_word(token: str, words: frozenset[str]) -> bool:
    """Whether it is one of the words, with or without a small number: `week`, `week2`."""
    return token.lower() in words or re.sub(r"\d{1,3}$", "", token.lower()) in words


def _tokens(text: str) -> list[str]:
    return [token.lower() for token in re.findall(r"[^\W_]+", text)]


def _mention(assignment: str) -> re.Pattern[str]:
    """An assignment's name as people and programs write it."""
    words = [re.escape(word) for word in re.split(r"[_\- ]+", assignment)]
    return re.compile(rf"(?<!\d){'[_ -]+'.join(words)}", re.IGNORECASE)
