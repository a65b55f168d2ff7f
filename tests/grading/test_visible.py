"""What a student can check where there are no sources: their own notebook, whatever became of its metadata."""

import copy
import json

import nbformat
import pytest

from course_utils.errors import CourseError
from course_utils.grading.assignments import exercises
from course_utils.grading.visible import visible_assignment
from tests.grading.small_assignments import SOLVED, SOURCE, content, handed_in

HALVES = ("# exercise: root\ndef half(x):\n    return x / 2", "root = lambda x: half(2 * x) ** 0.5")


@pytest.fixture
def notebook(assignments):
    return handed_in(assignments[0], **SOLVED)


@pytest.fixture
def seen(tmp_path):
    """The assignment that a student sees in this notebook, where there are no sources."""

    def of(notebook, name="01_numbers.ipynb"):
        (tmp_path / name).write_bytes(notebook if isinstance(notebook, bytes) else content(notebook))
        return visible_assignment(tmp_path / name, tmp_path / "none")

    return of


def without_metadata(notebook):
    for cell in notebook.cells:
        cell.metadata.clear()
    return notebook


def with_notes(notebook):
    notebook.cells[2:2] = [nbformat.v4.new_markdown_cell("## my notes"), nbformat.v4.new_code_cell("1 / 0")]
    return notebook


def split(notebook):
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "root")
    notebook.cells[at].source = HALVES[0]
    notebook.cells.insert(at + 1, copy.deepcopy(notebook.cells[at]))
    notebook.cells[at + 1].update(source=HALVES[1], id="half")
    return notebook


def nbformat_3(notebook):
    cells = [
        {"cell_type": cell.cell_type, "input" if cell.cell_type == "code" else "source": cell.source}
        for cell in notebook.cells
    ]
    return json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}).encode()


@pytest.mark.parametrize("change", [copy.deepcopy, with_notes, without_metadata, split, nbformat_3])
def test_the_exercises_are_those_of_the_assignment(notebook, seen, assignments, change):
    visible = seen(change(notebook))
    assert exercises(visible.notebook) == exercises(assignments[0].notebook)
    code = [cell.source for cell in visible.notebook.cells if cell.cell_type == "code"]
    assert "1 / 0" not in code  # a cell of one's own is no cell of the assignment
    assert any(source.startswith("import math") for source in code)
    root = next(cell.source for cell in visible.notebook.cells if cell.metadata.nbgrader.grade_id == "root")
    assert root == ("\n".join(HALVES) if change is split else SOLVED["root"])


def test_an_exercise_whose_cell_is_lost_is_still_one(notebook, seen, assignments):
    notebook.cells = [cell for cell in notebook.cells if cell.id != "root"]
    assert exercises(seen(notebook).notebook) == exercises(assignments[0].notebook)


def test_points_that_stand_nowhere_are_asked_for(notebook, seen):
    without_metadata(notebook).cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with pytest.raises(CourseError, match=r"exercise 'double' has lost its points: write '\(N points\)' into"):
        seen(notebook)


@pytest.mark.parametrize("whole", [b"{}", b"PK", b'{"cells": []}'])
def test_what_is_no_notebook_of_an_assignment_is_one_line(seen, whole):
    with pytest.raises(CourseError, match=r"01_numbers.ipynb is no notebook of an assignment \(.*\): name the one"):
        seen(whole)


@pytest.mark.parametrize("name", ["01_numbers.ipynb", "Copy of 01_numbers (1).ipynb", "mine.ipynb"])
@pytest.mark.parametrize("change", [copy.deepcopy, without_metadata])
def test_with_sources_at_hand_the_assignment_is_theirs(notebook, tmp_path, name, change):
    (tmp_path / "01_numbers.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / name).write_bytes(content(change(notebook)))
    visible = visible_assignment(tmp_path / name, tmp_path)
    assert visible.name == "01_numbers"
    assert len(visible.exercises) == 3
    assert all("HIDDEN" not in cell.source for cell in visible.notebook.cells)


def test_a_notebook_of_another_assignment_under_this_one_s_name_is_refused(assignments, tmp_path):
    (tmp_path / "01_numbers.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "01_numbers.ipynb").write_bytes(content(handed_in(assignments[1], word="word = 'a'")))
    with pytest.raises(CourseError, match=r"\(wrong notebook \(no exercise of 01_numbers\)\)"):
        visible_assignment(tmp_path / "01_numbers.ipynb", tmp_path)
