"""Two small assignments, one of numbers and one of words, and what a student hands in of them."""

from functools import partial

import nbformat

from course_utils.grading import engine
from course_utils.grading.assignments import student_version

grade = partial(engine.grade, allow_unisolated=True)
"""As the engine grades, also where the system of those who run the tests denies namespaces."""

CELL = '# %% nbgrader={{"schema_version": 3, "grade_id": "{}", "grade": {}, "solution": {}, "locked": {}{}}}'


def exercise(number, name, points, solution, visible, hidden):
    return f"""
# %% [markdown]
# ## Exercise {number}: {name.title()} ({points} points)

{CELL.format(name, "false", "true", "false", "")}
# exercise: {name}
### BEGIN SOLUTION
{solution}
### END SOLUTION

{CELL.format(f"{name}-check", "true", "false", "true", f', "points": {points}')}
# check: {name}-check
{visible}
### BEGIN HIDDEN TESTS
{hidden}
### END HIDDEN TESTS
"""


SOURCE = (
    """
# %% [markdown]
# # Numbers

# %%
import math

import numpy as np

three = 3.0


def same(a, b):
    assert math.isclose(a, b), f"{a} is not {b}"
"""
    + exercise(1, "double", 2, "def double(x): return 2 * x", "same(double(2), 4)", "same(double(three), 6)")
    + exercise(
        2,
        "root",
        3,
        "root = math.sqrt",
        "same(root(4), 2)",
        "assert type(root(9)) is float, 'a float, please'\nnp.testing.assert_allclose(root(9), three)",
    )
    + exercise(3, "mean", 5, "def mean(x): return sum(x) / len(x)", "same(mean([1, 2]), 1.5)", "same(mean([3]), three)")
)
OTHER = "# %% [markdown]\n# # Words\n" + exercise(1, "word", 1, "word = 'a'", "assert word", "assert word == 'a'")

SOLVED = {
    "double": "# exercise: double\ndef double(x):\n    return x + x",
    "root": "# exercise: root\nroot = math.sqrt",
    "mean": "# exercise: mean\ndef mean(x):\n    return sum(x) / len(x)",
}


def handed_in(assignment, **cells):
    """A student's notebook with these cells in place of the stubs."""
    notebook = student_version(assignment.notebook)
    for cell in notebook.cells:
        cell.source = cells.get(cell.metadata.nbgrader.grade_id, cell.source)
    return notebook


def content(notebook):
    return nbformat.writes(notebook).encode()


def points(result):
    return [exercise.points for exercise in result.exercises]
