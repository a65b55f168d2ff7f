"""What a student can check: an assignment without its hidden tests.

Where the assignments' sources are, it is made of these. Students get no sources; what they see is then the assignment,
in their own notebook: cells of the course are known by nbgrader's metadata or, where an editor has lost these, by their
first lines, and points by the headings.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.errors import CourseError
from course_utils.grading.assignments import HEADING, Assignment, read_assignment, student_version
from course_utils.grading.merge import FIRST_LINE, attempts_of, parts_of, understand
from course_utils.grading.submissions import Cell, Submission, notebook_cells

if TYPE_CHECKING:
    from nbformat import NotebookNode


def visible_assignment(notebook: Path, sources: Path) -> Assignment:
    """A student's assignment as they see it: its source without hidden tests or, where there is none, the file.

    Which of the sources it is, the file's name says, or else its exercises.

    Raises:
        CourseError: the file is no notebook, or holds no exercise with its check.
    """
    try:
        content = notebook.read_bytes()
        cells = notebook_cells(content)
        given = [
            Assignment(source.stem, student_version(read_assignment(source)))
            for source in sorted(sources.glob("[0-9][0-9]_*.py"))
        ]
        understood = understand(Submission("", notebook.name, content), given)
        for assignment in given:
            if assignment.name == understood.assignment:
                if understood.problem:
                    raise ValueError(understood.problem)
                return assignment
        return Assignment(notebook.stem, _own_assignment(cells))
    except (OSError, ValueError) as error:
        raise CourseError(
            f"{notebook} is no notebook of an assignment ({error}): name the one that you work on"
        ) from None


def _own_assignment(cells: Sequence[Cell]) -> "NotebookNode":
    """A student's own notebook as an assignment; cells of their own are left out where they can be told.

    Raises:
        ValueError: it holds no exercise with its check, or an exercise without points.
    """
    import nbformat  # of the extra `grading`

    names = {name for cell in cells for name in _checks_in(cell)}
    attempts = attempts_of(cells, dict.fromkeys(names, frozenset()))
    lost = not any("nbgrader" in cell["metadata"] for cell in cells)
    points, placed = 0, set()
    own = nbformat.v4.new_notebook()

    def add(cell: "NotebookNode", grade_id: str = "", **meta: bool | int) -> None:
        default = {"grade_id": grade_id, "grade": False, "solution": False, "locked": True}
        cell.metadata = nbformat.from_dict({"nbgrader": default | meta})
        own.cells.append(cell)

    def add_solution(name: str) -> None:
        if name not in placed:
            placed.add(name)
            add(nbformat.v4.new_code_cell(attempts.get(name, [""])[-1]), name, solution=True, locked=False)

    for cell in cells:
        if cell["cell_type"] != "code":
            if heading := HEADING.search(cell["source"]):
                points = int(heading[3])
            add(nbformat.v4.new_markdown_cell(cell["source"]))
            continue
        for part in parts_of(cell, names):
            check = next(_checks_in(cell | {"source": part.source}), "")
            if part.name:
                add_solution(part.name)
            elif check and f"{check}-check" not in placed:
                add_solution(check)  # where the student has lost its cell
                placed.add(f"{check}-check")
                worth = _meta(cell).get("points")
                worth = worth if type(worth) is int and worth > 0 else points
                if not worth:
                    raise ValueError(f"exercise '{check}' has lost its points: write '(N points)' into its heading")
                add(nbformat.v4.new_code_cell(part.source), f"{check}-check", grade=True, points=worth)
            elif not check and (lost or _meta(cell)) and not _meta(cell).get("solution"):
                add(nbformat.v4.new_code_cell(part.source))
    if not placed:
        raise ValueError("no exercises")
    return own


def _meta(cell: Cell) -> dict[str, object]:
    meta = cell["metadata"].get("nbgrader")
    return meta if isinstance(meta, dict) else {}


def _checks_in(cell: Cell) -> Iterator[str]:
    """The exercises whose checks begin in a cell."""
    if cell["cell_type"] != "code":
        return
    name = _meta(cell).get("grade_id")
    if _meta(cell).get("grade") and isinstance(name, str):
        yield name.removesuffix("-check")
    for line in FIRST_LINE.finditer(cell["source"]):
        if line[1].lower() == "check":
            yield line[2].lower().removesuffix("-check")
