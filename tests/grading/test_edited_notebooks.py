"""Honest notebooks as editors and platforms leave them, graded at once: what ran for the student is what is graded."""

import copy

import nbformat
import pytest

from course_utils.grading.submissions import Submission
from tests.grading.small_assignments import SOLVED, content, grade, handed_in, points
from tests.grading.test_visible import nbformat_3, split, with_notes, without_metadata

pytestmark = pytest.mark.slow

# A line of IPython's in the right solution of exercise 2, and the text that the cell shows.
LINES = {
    "!echo one; echo two >&2; pwd": "one\ntwo\n/home/student\n",
    "!no-such-program": "not found",
    "!printf '\\033[31mred\\033[0m'": "red",
    "files = !echo here\nprint(files)": "['here']",
    "who = 'ada'\n!echo {who}": "ada\n",
    "%pip install einops-of-nowhere": "No matching distribution found for einops-of-nowhere",
    "%matplotlib inline": "",
    "%timeit -n1 -r1 1 + 1": "per loop",
    "%system echo here": "",
}


def above(line):
    def change(notebook):
        for cell in without_metadata(notebook).cells:
            if cell.cell_type == "code" and cell.source.startswith("# exercise:"):
                cell.source = f"{line}{cell.source}"
        return notebook

    return change


def utf_16(notebook):
    return content(notebook).decode().encode("utf-16")


def merged(notebook):
    cells = {cell.id: cell for cell in notebook.cells}
    cells["double"].source += f"\n\n{cells['root'].source}"
    notebook.cells = [cell for cell in notebook.cells if cell.id != "root"]
    return notebook


RIGHT = {
    "split": split,
    "notes": with_notes,
    "merged": merged,
    "no metadata": without_metadata,
    "%%time above": above("%%time\n"),
    "title above": above("#@title My answer\n"),
    "nbformat 3": nbformat_3,
    "UTF-16": utf_16,
}


def with_helper(notebook):
    """A helper in a cell of the student's own; one exercise uses it at once, the other when it is checked."""
    cells = {cell.id: cell for cell in notebook.cells}
    cells["root"].source = "# exercise: root\nroot = my_root()"
    cells["mean"].source = "# exercise: mean\ndef mean(x):\n    return my_root()(sum(x) / len(x)) ** 2"
    notebook.cells.insert(2, nbformat.v4.new_code_cell("def my_root():\n    return math.sqrt"))
    return notebook


@pytest.fixture(scope="module")
def report(assignments):
    """The class, graded once, by two workers."""
    numbers = assignments[0]
    right = handed_in(numbers, **SOLVED)
    changed = {name: change(copy.deepcopy(right)) for name, change in RIGHT.items()} | {"helper": with_helper(right)}
    for line in LINES:
        changed[line] = handed_in(numbers, **SOLVED | {"root": f"# exercise: root\n{line}\nroot = math.sqrt"})
    wrong, partly = handed_in(numbers), handed_in(numbers, double=SOLVED["double"])
    submissions = [
        Submission(name, "01_numbers.ipynb", whole if isinstance(whole, bytes) else content(whole))
        for name, whole in changed.items()
    ]
    submissions += [
        Submission("one place", "late/x.ipynb", content(wrong), place="one place"),
        Submission("one place", "x.ipynb", content(partly), place="one place"),
        Submission("two places", "A/x/01_numbers.ipynb", content(partly), place="A/x"),
        Submission("two places", "B/x/01_numbers.ipynb", content(wrong), place="B/x"),
    ]
    return {each.student: each for each in grade(submissions, assignments, workers=2).grades}


@pytest.mark.parametrize("student", RIGHT)
def test_an_editor_s_changes_cost_nothing(report, student):
    assert points(report[student]) == [2, 3, 5]
    assert report[student].status == "graded"


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_shell_fails_softly_and_the_exercise_is_judged(report, line):
    assert points(report[line]) == [2, 3, 5]
    assert report[line].status == "graded"
    assert LINES[line] in report[line].exercises[1].text


def test_a_helper_outside_the_exercise_s_cell_is_named(report):
    assert points(report["helper"]) == [2, 0, 0]
    explained = "'my_root' is defined in another cell, and only the exercise's own cell counts: define it there"
    for exercise, begin in zip(report["helper"].exercises[1:], ("your cell ended in ", ""), strict=True):
        assert exercise.message == f"{begin}NameError: name 'my_root' is not defined; {explained}"


def test_files_that_may_be_several_people_s_are_told(report):
    assert report["one place"].status == "graded; handed in 2 times, best: x.ipynb"
    assert report["one place"].places == ["one place"]
    assert report["two places"].status == (
        "graded; handed in 2 times, best: A/x/01_numbers.ipynb; may be several people's: A/x, B/x"
    )
    assert report["two places"].places == ["A/x", "B/x"]
