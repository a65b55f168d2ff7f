"""A student's solution cells in the assignment as it was given out: what else they changed changes nothing."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from course_utils.grading.assignments import Assignment, student_version
from course_utils.grading.submissions import Cell, Submission, notebook_cells

if TYPE_CHECKING:
    from nbformat import NotebookNode

FIRST_LINE = re.compile(r"\s*#\s*exercise:\s*([\w-]+)\s*")


class Solution(NamedTuple):
    """A student's cell, and whether there were several: the last counts that is not the untouched stub."""

    source: str
    several: bool


@dataclass(frozen=True)
class Role:
    """What a code cell of an assembled notebook is: `locked`, or `solution` or `check` of the exercise `grade_id`."""

    kind: str
    grade_id: str = ""


def understand(
    submission: Submission, assignments: Sequence[Assignment]
) -> tuple[str, dict[str, Solution], str | None]:
    """Which assignment a submission is of, and its solutions.

    Returns:
        the assignment's name or ""; the solutions, by grade_id; what is wrong, or None.
    """
    stem = Path(submission.where).stem
    name = max((assignment.name for assignment in assignments if assignment.name in stem), key=len, default="")
    if submission.content is None:
        return name, {}, submission.problem
    try:
        cells = notebook_cells(submission.content)
    except ValueError as error:
        return name, {}, str(error)
    chosen = [assignment for assignment in assignments if name in ("", assignment.name)]
    found = {assignment.name: _solutions(cells, assignment) for assignment in chosen}
    best = max(found, key=lambda name: len(found[name]), default="")
    if not best or not found[best]:
        return name, {}, f"wrong notebook (no exercise of {name})" if name else "wrong notebook (of no assignment)"
    return best, found[best], None


def _solutions(cells: Sequence[Cell], assignment: Assignment) -> dict[str, Solution]:
    stubs = {
        cell.metadata.nbgrader.grade_id: cell.source.strip()
        for cell in student_version(assignment.notebook).cells
        if cell.metadata.nbgrader.solution
    }
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell["cell_type"] == "code" and (name := _grade_id(cell)) in stubs:
            found.setdefault(name, []).append(cell["source"])
    solutions = {}
    for name, sources in found.items():
        tried = [source for source in sources if source.strip() != stubs[name]]
        solutions[name] = Solution((tried or sources)[-1], len(set(tried)) > 1)
    return solutions


def _grade_id(cell: Cell) -> str:
    """By its metadata or, where these are lost, by its first line; "" if it has none."""
    meta = cell["metadata"].get("nbgrader")
    if isinstance(meta, dict) and isinstance(name := meta.get("grade_id"), str):
        return name
    first = FIRST_LINE.fullmatch(cell["source"].lstrip().partition("\n")[0])
    return first[1] if first else ""


def assemble(
    assignment: Assignment, sources: Mapping[str, str], waiting: set[str], seconds: float
) -> tuple["NotebookNode", list[Role]]:
    """The assignment with a student's cells in it, and what each of its code cells is.

    Args:
        assignment: as it was given out, with the checks that are to be run.
        sources: the student's cells, by grade_id; exercises without one are left out.
        waiting: grade_ids of the exercises whose checks are run.
        seconds: that a student's cell and its check may take, each.
    """
    import nbformat  # of the extra `grading`

    notebook = copy.deepcopy(assignment.notebook)
    of_check = {exercise.check_id: exercise.grade_id for exercise in assignment.exercises}
    cells, roles = [], []
    for cell in notebook.cells:
        name = cell.metadata.nbgrader.grade_id
        if cell.cell_type != "code":
            continue
        if cell.metadata.nbgrader.solution:
            if name not in sources:
                continue
            role = Role("solution", name)
            source = sources[name]
        elif name in of_check:
            if of_check[name] not in waiting:
                continue
            role, source = Role("check", of_check[name]), cell.source
        else:
            role, source = Role("locked"), cell.source
        # The assignment's own cells may take as long as they need, on a slow or busy machine too.
        limit = {} if role.kind == "locked" else {"seconds": seconds}
        cells.append(nbformat.v4.new_code_cell(source, metadata=limit))
        roles.append(role)
    return nbformat.v4.new_notebook(cells=cells), roles
