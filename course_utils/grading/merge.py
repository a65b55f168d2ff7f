"""A student's solution cells in the assignment as it was given out: what else they changed changes nothing.

An exercise's answer is the cells of its grade_id or, where an editor has lost the metadata, of its first line. Cells
that stand next to each other are one answer in parts, for JupyterLab copies the metadata when a cell is split; one that
begins anew is another attempt, and the last attempt counts that is not the untouched stub. A cell into which two
exercises were merged is taken apart again.
"""

import builtins
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from course_utils.grading.assignments import STUB, Assignment, student_version
from course_utils.grading.bindings import begins_anew, names_of
from course_utils.grading.grades import PASSED, ExerciseGrade
from course_utils.grading.names import assignment_named
from course_utils.grading.pages import cell_before, cell_of
from course_utils.grading.submissions import Cell, Submission, notebook_cells

if TYPE_CHECKING:
    from nbformat import NotebookNode

FIRST_LINE = re.compile(r"^#+ *(exercise|check)\b *:? *([\w-]+)", re.IGNORECASE | re.MULTILINE)
"""The line by which a cell is known that has lost its metadata, however it was edited."""

NOT_DEFINED = re.compile(r"NameError: name '(\w+)' is not defined")


class Solution(NamedTuple):
    """A student's answer, and whether there were several attempts."""

    source: str
    several: bool


@dataclass(frozen=True)
class Understood:
    """What a submission is.

    Attributes:
        assignment: its name, or "" where none fits.
        solutions: by grade_id.
        problem: what is wrong with the whole, or None.
        elsewhere: names that the student's other cells define, which do not count.
    """

    assignment: str
    solutions: dict[str, Solution] = field(default_factory=dict)
    problem: str | None = None
    elsewhere: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Role:
    """What a code cell of an assembled notebook is: `locked`, or `solution` or `check` of the exercise `grade_id`."""

    kind: str
    grade_id: str = ""


def understand(submission: Submission, assignments: Sequence[Assignment]) -> Understood:
    """Which assignment a submission is of, by its name or else its exercises, and its solutions."""
    stem = PurePosixPath(submission.where).name
    name = assignment_named(stem, [assignment.name for assignment in assignments])
    if submission.content is None:
        return Understood(name, problem=submission.problem)
    try:
        cells = notebook_cells(submission.content)
    except ValueError as error:
        return Understood(name, problem=str(error))
    chosen = [assignment for assignment in assignments if name in ("", assignment.name)]
    found = {assignment.name: _solutions(cells, assignment) for assignment in chosen}
    best = max(found, key=lambda name: len(found[name]), default="")
    if not best or not found[best]:
        problem = f"wrong notebook (no exercise of {name})" if name else "wrong notebook (of no assignment)"
        return Understood(name, problem=problem)
    return Understood(best, found[best], elsewhere=_names_elsewhere(cells, found[best]))


def _solutions(cells: Sequence[Cell], assignment: Assignment) -> dict[str, Solution]:
    stubs = {name: source for name, source in _answers(student_version(assignment.notebook)) if STUB in source}
    asked = {
        name: names_of(stubs.get(name, "")).bound or names_of(source).bound
        for name, source in _answers(assignment.notebook)
    }
    solutions = {}
    for name, attempts in attempts_of(cells, asked).items():
        tried = [source for source in attempts if source.strip() != stubs.get(name, "").strip()]
        solutions[name] = Solution((tried or attempts)[-1], len(set(tried)) > 1)
    return solutions


def _answers(notebook: "NotebookNode") -> Iterator[tuple[str, str]]:
    """The solution cells of an assignment: grade_id and source."""
    for cell in notebook.cells:
        if cell.metadata.nbgrader.solution:
            yield cell.metadata.nbgrader.grade_id, cell.source


class Part(NamedTuple):
    """A part of a cell: its exercise, or "" where it is of none, and whether it begins with the exercise's line."""

    name: str
    source: str
    begins: bool


def attempts_of(cells: Sequence[Cell], asked: Mapping[str, Set[str]]) -> dict[str, list[str]]:
    """A student's attempts at each exercise, in the order of the page.

    Args:
        cells: of the student's notebook.
        asked: the names that an exercise asks to be bound, by its grade_id.
    """
    attempts: dict[str, list[str]] = {}
    open_name = ""  # the exercise whose parts may go on: no other cell of the course has come since
    for cell in cells:
        for part in parts_of(cell, asked):
            if part.name:
                sources = attempts.setdefault(part.name, [])
                new = part.name != open_name or part.begins or STUB in sources[-1].splitlines()  # nothing after it runs
                if new or begins_anew(part.source, sources[-1], asked[part.name]):
                    sources.append(part.source)
                else:
                    sources[-1] += f"\n{part.source}"
                open_name = part.name
            elif _grade_id(cell) or FIRST_LINE.search(part.source):
                open_name = ""
    return attempts


def parts_of(cell: Cell, names: Collection[str]) -> Iterator[Part]:
    """A code cell, taken apart where the first line of another exercise, or of a check, stands in it."""
    source = cell["source"]
    if cell["cell_type"] != "code":
        yield Part("", source, False)
        return
    lines = list(_first_lines(source, names))
    name = _grade_id(cell)
    if name not in names:
        name = lines[0][1] if lines else ""
    start, begins = 0, False
    for at, new in lines:
        if new == name:
            begins = True
            continue
        if source[start:at].strip():
            yield Part(name, source[start:at], begins)
        name, start, begins = new, at, True
    yield Part(name, source[start:], begins)


def _first_lines(source: str, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """Where the lines stand that begin an exercise, and its name; "" for a check."""
    for line in FIRST_LINE.finditer(source):
        kind, name = line[1].lower(), line[2].lower()
        if kind == "exercise" and name in names:
            yield line.start(), name
        elif kind == "check" and name.removesuffix("-check") in names:
            yield line.start(), ""


def _grade_id(cell: Cell) -> str:
    meta = cell["metadata"].get("nbgrader")
    name = meta.get("grade_id") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else ""


def _names_elsewhere(cells: Sequence[Cell], exercises: Collection[str]) -> frozenset[str]:
    """The names that a student's cells define which are no exercise's."""
    parts = [part for cell in cells if cell["cell_type"] == "code" for part in parts_of(cell, exercises)]
    return frozenset(name for part in parts if not part.name for name in names_of(part.source).bound)


def with_hints(exercises: Sequence[ExerciseGrade], elsewhere: frozenset[str]) -> list[ExerciseGrade]:
    """The grades, with a word where a name was missing that another of the student's cells defines."""
    return [
        replace(
            exercise,
            message=f"{exercise.message}; '{name[1]}' is defined in another cell, and only the exercise's own cell "
            "counts: define it there",
        )
        if exercise.outcome != PASSED
        and (name := NOT_DEFINED.search(exercise.message)) is not None
        and name[1] in elsewhere
        else exercise
        for exercise in exercises
    ]


class Pages(NamedTuple):
    """The two sides of a submission.

    Attributes:
        judged: the judge's notebook: the assignment, in which cells that ask stand in the place of the student's.
        roles: what each of its cells is.
        answering: the cells of the student's process: the student's and the assignment's own, without checks.
    """

    judged: "NotebookNode"
    roles: list[Role]
    answering: list[str]


def assemble(assignment: Assignment, sources: Mapping[str, str], waiting: set[str], seconds: float) -> Pages:
    """The assignment with a student's cells in it.

    Args:
        assignment: as it was given out, with the checks that are to be run.
        sources: the student's cells, by grade_id; exercises without one are left out.
        waiting: grade_ids of the exercises whose checks are run.
        seconds: that a student's cell and its check may take, each.
    """
    import nbformat  # of the extra `grading`

    of_check = {exercise.check_id: exercise.grade_id for exercise in assignment.exercises}
    cells, roles, answering = [], [], []

    def add(role: Role, source: str) -> None:
        # The assignment's own cells may take as long as they need, on a slow or busy machine too.
        limit = {} if role.kind == "locked" else {"seconds": seconds}
        cells.append(nbformat.v4.new_code_cell(source, metadata=limit))
        roles.append(role)

    for cell in assignment.notebook.cells:
        name = cell.metadata.nbgrader.grade_id
        if cell.cell_type != "code":
            continue
        if cell.metadata.nbgrader.solution:
            if name in sources:
                # A stub may bind nothing. No answer's name hides one that checks have from Python.
                asked = (names_of(cell.source).bound or names_of(sources[name]).bound) - set(dir(builtins))
                add(Role("locked"), cell_before(len(answering)))
                add(Role("solution", name), cell_of(len(answering), sorted(asked)))
                answering.append(sources[name])
        elif name in of_check:
            if of_check[name] in waiting:
                add(Role("check", of_check[name]), cell.source)
        else:
            add(Role("locked"), cell.source)
            answering.append(cell.source)
    return Pages(nbformat.v4.new_notebook(cells=cells), roles, answering)
