"""The format of an assignment: one source with solutions and hidden tests, of which the student's notebook is made.

The source is a script `notebooks/assignments/sources/NN_topic.py` (jupytext's py:percent). Two kinds of code cells
carry nbgrader's metadata, schema 3, in their headers; every other cell is locked text or code:

- a *solution* cell, one an exercise: its first line is `# exercise: ID`, its metadata
  `{"schema_version": 3, "grade_id": ID, "grade": false, "solution": true, "locked": false}`, and what the student has
  to write stands between `### BEGIN SOLUTION` and `### END SOLUTION`. Over it a heading says
  `## Exercise 3: Title (2 points)`.
- its *check* cell, later on the page: first line `# check: ID-check`, metadata
  `{"schema_version": 3, "grade_id": ID-check, "grade": true, "solution": false, "locked": true, "points": 2}`;
  visible checks, then hidden ones between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`. Both are short, and
  show what is asked; what the answer has to be is in `course_utils.grading.judges`.

Nothing here runs a cell or gives a point; `course_utils.grading.engine` does.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from nbformat import NotebookNode

STUB = 'raise NotImplementedError("your code here")'
"""What stands in the student's notebook in place of a solution."""

SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
HIDDEN_TESTS = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")

GRADE_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
HEADING = re.compile(r"^#+ Exercise (\d+): (.+) \((\d+) points?\)$", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """One exercise: the cell that a student fills, the cell that checks it, and what that is worth.

    Attributes:
        grade_id: of the solution cell.
        check_id: grade_id of the check cell.
        points: for a check that passes; one that fails gives 0.
        title: from the heading over the exercise.
    """

    grade_id: str
    check_id: str
    points: int
    title: str


@dataclass(frozen=True)
class Assignment:
    """An assignment as it was given out: the notebook, with or without hidden tests, and its exercises."""

    name: str
    notebook: "NotebookNode"

    @property
    def exercises(self) -> list[Exercise]:
        return exercises(self.notebook)


def assignment_sources(folder: Path) -> list[Path]:
    """The sources `NN_topic.py` of a folder, in order.

    Raises:
        CourseError: there is none.
    """
    found = sorted(Path(folder).glob("[0-9][0-9]_*.py"))
    if not found:
        raise CourseError(f"no assignment NN_topic.py in {folder}: name the folder of the assignments' sources")
    return found


def read_assignment(source: Path) -> "NotebookNode":
    """The instructor version of an assignment, with solutions and hidden tests, not executed.

    Every cell's nbgrader metadata are complete, and its id is its grade_id. `notebook.metadata.assignment` is the
    source's name without its suffix.

    Raises:
        CourseError: the source is no readable script, or breaks the format; the message names the cell.
    """
    import jupytext
    from nbformat import NotebookNode

    try:
        notebook = jupytext.reads(Path(source).read_text(encoding="utf-8"), fmt="py:percent")
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"{source} cannot be read ({error}): name an assignment's source, NN_topic.py") from None
    for number, cell in enumerate(notebook.cells):
        default = {"grade_id": f"cell-{number:02d}", "grade": False, "solution": False, "locked": True}
        given = cell.metadata.get("nbgrader", {})
        cell.metadata = NotebookNode(nbgrader=NotebookNode(default | {"schema_version": 3, "task": False} | given))
        cell.id = cell.metadata.nbgrader.grade_id
        if cell.metadata.nbgrader.grade:  # folded: checks are to be run, and some are long
            cell.metadata.jupyter = {"source_hidden": True}
    notebook.metadata = NotebookNode(
        assignment=Path(source).stem,
        kernelspec={"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        language_info={"name": "python"},
        jupytext={"formats": "ipynb"},  # JupyterLab shall not write what a student saves over a source
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    try:
        _check(notebook)
    except ValueError as error:
        raise CourseError(f"{Path(source).name}: {error}") from None
    return notebook


def exercises(notebook: "NotebookNode") -> list[Exercise]:
    """The exercises of an instructor or a student version, in the order of the page."""
    points = {_meta(cell).grade_id: _meta(cell).points for cell in notebook.cells if _meta(cell).grade}
    found, title = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := HEADING.search(cell.source)):
            title = heading[2]
        if _meta(cell).solution:
            name = _meta(cell).grade_id
            found.append(Exercise(name, f"{name}-check", points[f"{name}-check"], title))
    return found


def student_version(notebook: "NotebookNode") -> "NotebookNode":
    """A copy without solutions, hidden tests and outputs.

    What a student must not change is read-only there.
    """
    student = copy.deepcopy(notebook)
    for cell in student.cells:
        if _meta(cell).solution:
            cell.source = _replace(cell.source, SOLUTION, STUB)
        if _meta(cell).grade:
            cell.source = _replace(cell.source, HIDDEN_TESTS, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.metadata.deletable = False
        if _meta(cell).locked:
            cell.metadata.editable = False
    return student


def regions(text: str, markers: tuple[str, str]) -> list[list[str]]:
    """The lines between each pair of markers, such as `SOLUTION`, which stand on lines of their own.

    Raises:
        ValueError: a marker without its partner.
    """
    begin, end = markers
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.strip() in markers:
            if (line.strip() == begin) == inside:
                raise ValueError(f"'{line.strip()}' without its partner")
            inside = not inside
            if inside:
                found.append([])
        elif inside:
            found[-1].append(line)
    if inside:
        raise ValueError(f"'{begin}' without '{end}'")
    return found


def _replace(text: str, markers: tuple[str, str], stub: str | None) -> str:
    """The text with `stub`, or nothing, in the place of each region."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.strip() in markers:
            inside = line.strip() == markers[0]
            if inside and stub is not None:
                lines.append(line.replace(markers[0], stub))
        elif not inside:
            lines.append(line)
    return "\n".join(lines).rstrip("\n")


def _meta(cell: "NotebookNode") -> "NotebookNode":
    return cell.metadata.nbgrader


def _check(notebook: "NotebookNode") -> None:
    """Raise ValueError, naming the cell, where the format is broken."""
    ids = [_meta(cell).grade_id for cell in notebook.cells]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"grade_id '{min(twice)}' is there twice; every cell needs its own")
    solutions = [_meta(cell).grade_id for cell in notebook.cells if _meta(cell).solution]
    checks = [_meta(cell).grade_id for cell in notebook.cells if _meta(cell).grade]
    if not solutions:
        raise ValueError('there is no exercise; mark a cell with nbgrader={... "solution": true ...}')
    for name in solutions:
        if checks.count(f"{name}-check") != 1 or ids.index(f"{name}-check") < ids.index(name):
            raise ValueError(f"exercise '{name}' needs a check cell with grade_id '{name}-check' after it")
    if stray := [name for name in checks if name.removesuffix("-check") not in solutions]:
        raise ValueError(f"check cell '{stray[0]}' belongs to no exercise")
    for cell in notebook.cells:
        try:
            _check_cell(cell)
        except ValueError as error:
            raise ValueError(f"cell '{cell.id}': {error}") from None
    headings = [match for cell in notebook.cells for match in HEADING.finditer(cell.source) if cell.cell_type != "code"]
    stated = [(int(heading[1]), int(heading[3])) for heading in headings]
    expected = [(n, exercise.points) for n, exercise in enumerate(exercises(notebook), start=1)]
    if stated != expected:
        raise ValueError(f"the headings '## Exercise N: Title (P points)' say (N, P) = {stated}, the cells {expected}")


def _check_cell(cell: "NotebookNode") -> None:
    meta, lines = _meta(cell), cell.source.splitlines()
    if (meta.grade, meta.solution, meta.locked) not in {(0, 0, 1), (0, 1, 0), (1, 0, 1)} or meta.task:
        raise ValueError("a cell is a solution (not locked), a check (grade, locked), or locked text or code")
    if not GRADE_ID.fullmatch(meta.grade_id):
        raise ValueError("a grade_id is of small letters, digits and single hyphens")
    for markers, belong in ((SOLUTION, meta.solution), (HIDDEN_TESTS, meta.grade)):
        found = regions(cell.source, markers)
        if bool(found) != belong or not all("".join(region).strip() for region in found):
            raise ValueError(
                f"'{markers[0]}' ... '{markers[1]}' with something between is for every "
                f"{'solution' if markers is SOLUTION else 'check'} cell, and for no other"
            )
    if not (meta.solution or meta.grade):
        return
    if cell.cell_type != "code":
        raise ValueError("an exercise and its check are code")
    first = f"# {'exercise' if meta.solution else 'check'}: {meta.grade_id}"
    if lines[0] != first:
        raise ValueError(f"the first line has to be '{first}'; it survives where metadata are lost")
    if meta.grade and (type(meta.get("points")) is not int or meta.points < 1):
        raise ValueError("a check cell's metadata need whole points, 1 or more")
