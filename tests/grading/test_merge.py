"""Which of a student's cells are an exercise's answer, whatever an editor made of the notebook."""

import json

import pytest

from course_utils.grading.grades import FAILED, PASSED, ExerciseGrade
from course_utils.grading.merge import understand, with_hints
from course_utils.grading.submissions import Submission
from tests.grading.small_assignments import SOLVED, handed_in

ROOT = SOLVED["root"]


def cell(source, name=None, cell_type="code"):
    metadata = {} if name is None else {"nbgrader": {"grade_id": name, "solution": not name.endswith("-check")}}
    return {"cell_type": cell_type, "source": source, "metadata": metadata}


@pytest.fixture
def understood(assignments):
    def of(*cells, where="01_numbers.ipynb"):
        return understand(Submission("ada", where, json.dumps({"cells": cells}).encode()), assignments)

    return of


@pytest.fixture
def answer(understood):
    """The answer to exercise `root`, and whether there were several attempts."""
    return lambda *cells: understood(*cells).solutions["root"]


@pytest.mark.parametrize("name", ["root", None])
def test_a_split_cell_is_one_answer(answer, name):
    """With metadata, which JupyterLab copies; without, the second half is nobody's."""
    first, second = "# exercise: root\ndef helper(x):\n    return x", "def root(x):\n    return helper(x) ** 0.5"
    whole, several = answer(cell(first, name), cell(second, name), cell("# check: root-check", "root-check"))
    assert (whole, several) == (f"{first}\n{second}" if name else first, False)


def test_a_cell_split_within_a_function_is_one_answer(answer):
    first, second = "# exercise: root\ndef root(x):\n    y = x", "    return y ** 0.5"
    assert answer(cell(first, "root"), cell(second, "root")) == (f"{first}\n{second}", False)
    between = [cell("print('what have I got so far?')"), cell("a note", cell_type="markdown")]
    assert answer(cell(first, "root"), *between, cell(second, "root")) == (f"{first}\n{second}", False)


def test_values_that_go_on_are_one_answer(answer):
    first, second = "# exercise: root\nroot = 3", "root = root + 1"
    assert answer(cell(first, "root"), cell(second, "root")) == (f"{first}\n{second}", False)


@pytest.mark.parametrize("second", [ROOT, "root = math.sqrt", "import math\n\ndef root(x):\n    return math.sqrt(x)"])
def test_another_attempt_is_not_a_part(answer, second):
    wrong = "# exercise: root\nroot = abs"
    assert answer(cell(wrong, "root"), cell(second, "root")) == (second, True)


def test_parts_do_not_reach_over_a_cell_of_the_course(answer):
    wrong, check, far = (
        cell("root = 1 / 0", "root"),
        cell("# check: root-check", "root-check"),
        cell("half = 2", "root"),
    )
    assert answer(wrong, check, far) == ("half = 2", True)
    lost = cell("# check: root-check")
    assert answer(wrong, lost, far) == ("half = 2", True)


def test_an_untouched_stub_counts_only_where_there_is_nothing_else(answer, assignments):
    stub = next(each.source for each in handed_in(assignments[0]).cells if each.id == "root")
    assert answer(cell(ROOT, "root"), cell(stub, "root")) == (ROOT, False)
    assert answer(cell(stub, "root"), cell("root = math.sqrt", "root")) == ("root = math.sqrt", False)
    assert answer(cell(stub, "root")) == (stub, False)


@pytest.mark.parametrize(
    "line",
    [
        *("# exercise: root", "#exercise:root", "# Exercise: root", "# EXERCISE: Root", "## exercise : root"),
        *("# exercise: root (done!)", "# exercise root", "#  exercise: root, 3 points", "# exercise: root "),
        *("%%time\n# exercise: root", "#@title My answer\n# exercise: root", "\n\n# exercise: root"),
        *("import math\n# exercise: root", "# my answer\n\n# exercise: root"),
    ],
)
def test_the_first_line_is_known_without_metadata_however_it_was_edited(understood, line):
    source = f"{line}\nroot = math.sqrt"
    assert understood(cell("# Numbers", cell_type="markdown"), cell(source)).solutions == {"root": (source, False)}


@pytest.mark.parametrize(
    "source",
    ["# exercise: roots\nx", "# exercise: root-check\nx", "# exercises: root\nx", "print('# exercise: root')", "x"],
)
def test_what_only_resembles_a_first_line_is_none(understood, source):
    assert understood(cell(source)).problem == "wrong notebook (no exercise of 01_numbers)"


def test_metadata_of_another_notebook_do_not_hide_the_first_line(understood):
    assert understood(cell(ROOT, "cell-17")).solutions == {"root": (ROOT, False)}


@pytest.mark.parametrize("name", ["double", None])
def test_merged_cells_are_taken_apart(understood, name):
    merged = f"{SOLVED['double']}\n\n{ROOT}\n# check: root-check\nassert root(4) == 2"
    solutions = understood(cell(merged, name)).solutions
    assert {name: solution.source.strip() for name, solution in solutions.items()} == {
        "double": SOLVED["double"],
        "root": ROOT,
    }


def test_the_assignment_is_known_by_its_exercises_where_the_name_does_not_tell(understood):
    assert understood(cell(ROOT, "root"), where="Untitled1.ipynb").assignment == "01_numbers"
    assert understood(cell(ROOT, "root"), where="Copy of 01-Numbers (1).ipynb").assignment == "01_numbers"


def test_a_missing_name_that_another_cell_defines_is_explained(understood):
    found = understood(
        cell("!pip install einops\nfrom einops import rearrange\ndef my_zeros(n):\n    inner = n"),
        cell("# exercise: root\nown = my_zeros(3)", "root"),
        cell("my_zeros is explained here", cell_type="markdown"),
    )
    assert found.elsewhere == {"rearrange", "my_zeros"}

    def told(message, outcome=FAILED):
        (exercise,) = with_hints([ExerciseGrade("root", "Root", 3, message=message, outcome=outcome)], found.elsewhere)
        return exercise.message

    message = "your cell ended in NameError: name 'my_zeros' is not defined"
    assert told(message) == (
        f"{message}; 'my_zeros' is defined in another cell, and only the exercise's own cell counts: define it there"
    )
    for other in ("NameError: name 'own' is not defined", "ValueError: my_zeros", ""):
        assert told(other) == other
    assert told(message, PASSED) == message
