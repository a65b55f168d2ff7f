# %% [markdown]
# # 08 Teaching (an appendix for teachers)
#
# **Students skip this page.** It belongs to no other page, no later page needs it, and nothing in it is asked anywhere. It is for
# those who adapt the assignments of the course and grade them.
#
# A check that gives points is a measuring instrument, and it is worth what it can tell apart. Here you write an exercise in the format
# of the course's assignments, hand it to a class of eight, and find that your check lets wrong answers pass. You sharpen it until it
# catches each known mistake by name, and grade the class again: in sandboxes, under pytest with nbval, with broken and dishonest
# notebooks among them.
#
# Afterwards you can adapt the course's assignments, judge a check by the mistakes that it catches, read the result of a class, and say
# what the grading does *not* protect you from. You need notebook 01 (the Dice overlap).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 2 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/08_teaching.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/08_teaching.ipynb)

# %%
# The same in every notebook: install the course where it is missing (Colab), begin the session.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("course_utils") is None:
    public = "git+https://github.com/OWNER/registration-course"
    repository = os.environ.get("COURSE_REPOSITORY", public)
    if "/OWNER/" in repository:
        raise SystemExit("no address yet: make address URL=https://github.com/you/fork")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", repository], check=True)
    importlib.invalidate_caches()

from course_utils.session import start

session = start()
print(session)

# %% [markdown]
# Grading runs notebooks with nbval, which the other pages do not need.

# %%
for package in ("nbval", "jupytext"):
    if importlib.util.find_spec(package) is None:  # Colab
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# ## An exercise is one script
#
# The course's assignments are scripts in `notebooks/assignments/sources`, and these are the only files that anybody edits. Each cell
# carries nbgrader's metadata in a header: a **solution** cell is filled by the student, and a **check** cell is worth points.
# What stands between `BEGIN SOLUTION` and `END SOLUTION` is yours. What stands between `BEGIN HIDDEN TESTS` and
# `END HIDDEN TESTS` is seen by no student. To adapt an assignment means to edit such a script.
#
# Ours has one exercise, the Dice overlap of notebook 01. Its check is a first draft, of the kind that one writes in a hurry.

# %%
META = {
    "solution": '"schema_version": 3, "grade": false, "solution": true, "locked": false',
    "check": '"schema_version": 3, "grade": true, "solution": false, "locked": true, "points": 4',
}
SOLUTION = """
# exercise: dice
def dice(a, b):
    \"\"\"Overlap of two masks (boolean arrays), from 0 to 1; of two empty ones, 1.\"\"\"
    ### BEGIN SOLUTION
    total = a.sum() + b.sum()
    return 2 * (a & b).sum() / total if total else 1.0
    ### END SOLUTION"""


def script(visible, hidden):
    """The script of an assignment with this one exercise and these checks."""
    cells = [
        "# % [markdown]\n# # Overlap\n#\n# ## Exercise 1: Dice (4 points)",
        "# %\nimport numpy as np",
        f'# % nbgrader={{"grade_id": "dice", {META["solution"]}}}{SOLUTION}',
        f'# % nbgrader={{"grade_id": "dice-check", {META["check"]}}}\n'
        f"# check: dice-check\n{visible}"
        f"\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS",
    ]
    return "\n\n".join(cell.replace("# %", "# %%", 1) for cell in cells)


# %%
DRAFT_VISIBLE = """
a = np.array([1, 1, 0, 0], dtype=bool)
assert dice(a, a) == 1"""
DRAFT_HIDDEN = """
assert dice(a, ~a) == 0
assert 0 <= dice(a, np.array([1, 0, 0, 0], dtype=bool)) <= 1"""

sources = session.runs / "teaching" / "sources"
sources.mkdir(parents=True, exist_ok=True)
source = sources / "01_overlap.py"
source.write_text(script(DRAFT_VISIBLE, DRAFT_HIDDEN))

from course_utils.grading.assignments import exercises, read_assignment, student_version

given_out = student_version(read_assignment(source))
for cell in given_out.cells[2:]:
    print(cell.source, end="\n\n")
assert [exercise.points for exercise in exercises(given_out)] == [4]
assert not any(
    word in cell.source
    for cell in given_out.cells
    for word in ("total", "~a", "HIDDEN", "SOLUTION")
)

# %% [markdown]
# This is what the student gets: no solution and no hidden test. For the real assignments `make release` writes the whole bundle.
#
# ## A class of eight
#
# Three of them are right, each in their own way. Ada took the overlap over union, which is not Dice. Ben divides by the larger mask.
# Cem compares all voxels, background included. Dot divides by zero on empty masks. Eve does not answer the question: her
# result claims to equal whatever it is compared with, and where she runs the check herself it does.
#
# **Predict:** whom of the last five does the draft catch?
#
# > *My prediction:*

# %%
answers = {
    "Fay": "total = a.sum() + b.sum()\nreturn 2 * (a & b).sum() / total if total else 1.0",
    "Gil": "if not (a.any() or b.any()):\n    return 1.0\n"
    "return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))",
    "Hal": "n = np.count_nonzero\nreturn 2 * n(a & b) / (n(a) + n(b)) if n(a) + n(b) else 1.0",
    "Ada": "return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0",
    "Ben": "total = (a | b).sum()\nreturn (a & b).sum() / max(a.sum(), b.sum()) if total else 1.0",
    "Cem": "return (a == b).mean()",
    "Dot": "return 2 * (a & b).sum() / (a.sum() + b.sum())",
    "Eve": "class Agrees(float):\n    def __eq__(self, other):\n        return True\n"
    "return Agrees(0.5)",
}
right = ("Fay", "Gil", "Hal")

# %%
import textwrap

import nbformat


def hand_in(folder, student, body):
    """A notebook as the student would have saved it, in a folder of their name."""
    notebook = student_version(read_assignment(source))
    cell = next(cell for cell in notebook.cells if cell.metadata.nbgrader.solution)
    cell.source = f"# exercise: dice\ndef dice(a, b):\n{textwrap.indent(body, '    ')}"
    path = folder / student / "01_overlap.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


handed_in = session.runs / "teaching" / "submissions"
for student, body in answers.items():
    hand_in(handed_in, student, body)

# %% [markdown]
# ## The draft grades the class
#
# Only the students' solution cells count. They run in a process of their own, in a sandbox. *Our* notebook, whatever theirs
# looks like, runs in another, under pytest with nbval: a call of `dice` there is carried to the student's process, and plain
# data comes back.

# %%
from course_utils.grading import gradebook
from course_utils.grading.assignments import Assignment
from course_utils.grading.engine import grade
from course_utils.grading.run import Limits
from course_utils.grading.submissions import find_submissions


def grade_class():
    """The class, graded by the script as it stands now."""
    assignment = Assignment("01_overlap", read_assignment(source))
    submissions = find_submissions([handed_in], [assignment.name])
    limits = Limits(cell_seconds=10, memory=1_000_000_000)
    return grade(
        submissions,
        [assignment],
        limits=limits,
        workers=2,
        allow_unisolated=True,  # we wrote the answers ourselves
        cache=session.runs / "teaching" / "cache",
    )


# %%
draft = grade_class()
total = {grade.student: grade.total for grade in draft.grades}
assert all(total[student] == 4 for student in right)
fooled = sorted(student for student in total if total[student] and student not in right)
assert fooled == ["Ada", "Ben", "Cem", "Dot"]
gradebook.table(draft.grades)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Nobody but Eve: of her object only its number, 0.5, comes back to us. The seven others have full marks. The draft asks only where right and
# wrong agree: a mask with itself, and a mask with its complement.
#
# </details>
#
# Even so the draft has three assertions, the reference solution passes it, and it looks like a test.
#
# ## A check that can fail
#
# A check is as good as the mistakes that it was tried on. So list the mistakes first. Then ask of *each assertion* which of them it
# tells from the right answer. An assertion that catches nothing is decoration, and a mistake that no assertion catches is a hole. The next
# cells try five questions: the two of the draft, and three new ones.
#
# **Predict:** which of the five questions catches the most of the five wrong answers?
#
# > *My prediction:*

# %%
import numpy as np


def function(body):
    """The answer as a function, to try checks on it here; do that with code of your own only."""
    names = {"np": np}
    exec(f"def dice(a, b):\n{textwrap.indent(body, '    ')}", names)
    return names["dice"]


# %%
a, b, none = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0] * 6], dtype=bool)
questions = {
    "a with itself is 1": lambda dice: dice(a, a) == 1,
    "a with its complement is 0": lambda dice: dice(a, ~a) == 0,
    "a with b is 2/5": lambda dice: abs(dice(a, b) - 2 / 5) < 1e-6,
    "none with none is 1": lambda dice: dice(none, none) == 1,
    "the result is a number": lambda dice: type(dice(a, b)) in (float, np.float64),
}
with np.errstate(invalid="ignore"):
    passed = np.array(
        [[bool(ask(function(body))) for ask in questions.values()] for body in answers.values()]
    )
assert passed[:3].all()  # the three right answers pass every question
assert not passed[3:].all(axis=1).any()  # and no wrong one passes all
assert not passed[3:, 2:].all(axis=1).any()  # the last three questions are enough
caught = dict(zip(questions, (~passed[3:]).sum(axis=0).tolist(), strict=True))
print(*(f"{count} caught by: {question}" for question, count in caught.items()), sep="\n")
assert list(caught.values())[:3] == [0, 0, 4]

# %%
from matplotlib.colors import ListedColormap

from course_utils.plotting import Figure

figure = Figure(figsize=(7.5, 3.6), layout="constrained")
axes = figure.subplots()
axes.imshow(passed, cmap=ListedColormap(["#E69F00", "#BFE3F7"]), vmin=0, vmax=1, aspect="auto")
for row, column in np.ndindex(*passed.shape):
    text = "pass" if passed[row, column] else "CAUGHT"
    axes.text(column, row, text, ha="center", va="center", fontsize=9)
axes.set_xticks(range(len(questions)), [textwrap.fill(question, 14) for question in questions])
axes.set_yticks(range(len(answers)), answers)
axes.axhline(2.5, color="black", linewidth=1.5)
axes.set(ylabel="wrong        right".center(40), title="which question catches which answer")
axes.spines[:].set_visible(False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# "a with b is 2/5" catches four of the five: one honest case, worked out by hand, in which the known mistakes give other numbers. The first two
# questions are those of the draft, and they catch nobody.
#
# </details>
#
# Dot is caught by the empty masks alone. Here, in one process with her code, Eve's object equals everything, so `==` never
# catches it. Subtraction does, until she redefines that too, and the type catches her for good.
#
# A good check also *teaches*. Its message says what came and what was expected and, where the number betrays the mistake,
# names it. The visible part lets the student see the format and the main case. The hidden part asks the same about other
# numbers, so that nobody can write the answer down.
#
# **Predict:** Ben divides by the larger mask and gets 1/3 instead of 2/5. What should the message tell him?
#
# > *My prediction:*

# %%
VISIBLE = """
a, b = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=bool)
got = dice(a, b)
assert type(got) in (float, np.float64), f"a float, not {type(got).__name__}"
likely = {1 / 4: "that is overlap over union", 1 / 3: "divide by both masks"}
likely[1 / 2] = "the background does not count"
close = (text for value, text in likely.items() if abs(got - value) < 1e-6)
hint = next(close, "2 |A and B| / (|A| + |B|)")
assert abs(got - 2 / 5) < 1e-6, f"dice(a, b) is {got:.3f}, expected 0.400: {hint}"
assert dice(a, a) == 1, "a mask overlaps with itself completely" """
HIDDEN = """
none = np.zeros(6, dtype=bool)
with np.errstate(invalid="ignore"):
    assert dice(none, none) == 1, "two empty masks agree: 1, and no division by zero"
for seed in range(5):
    a, b = np.random.default_rng(seed).random((2, 40)) < 0.3
    wanted = 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())
    found = float(dice(a, b))
    assert abs(found - wanted) < 1e-6, f"{found:.3f} instead of {wanted:.3f} on other masks"
"""
# %%
source.write_text(script(VISIBLE, HIDDEN))

final = grade_class()
total = {grade.student: grade.total for grade in final.grades}
assert {student for student in total if total[student] == 4} == set(right)
gradebook.table(final.grades)

# %% [markdown]
# The three right answers have their points, and the five wrong ones have none. Each of the five is told why:

# %%
messages = {grade.student: grade.exercises[0].message for grade in final.grades if not grade.total}
for student, message in messages.items():
    print(f"{student}: {message}")
assert "union" in messages["Ada"] and "both" in messages["Ben"] and "background" in messages["Cem"]
assert "empty" in messages["Dot"] and "0.500" in messages["Eve"]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# What came, what was expected, and the cause, "divide by both masks". Only the first two are certain. The cause is a guess from
# the number, and it is worth to be made where few other mistakes give this number.
#
# </details>
#
# ## Broken, slow, dishonest
#
# Five more hand something in. Ivy's loop never ends, and Jon's cell ends the kernel. Kim has deleted the check. Lou has replaced
# Python's `abs` and `type`. Max has sent no notebook at all.
#
# **Predict:** how many points does each of them get, and how many do the eight others lose?
#
# > *My prediction:*

# %%
hand_in(handed_in, "Ivy", "while True:\n    pass")
hand_in(handed_in, "Jon", "import os\nos._exit(0)")
hand_in(handed_in, "Kim", answers["Ada"])
patch = "builtins.abs, builtins.type = (lambda x: 0), (lambda x: float)"
hand_in(handed_in, "Lou", f"import builtins\n{patch}\nreturn 0.0")
kim = handed_in / "Kim" / "01_overlap.ipynb"
notebook = nbformat.read(kim, as_version=4)
notebook.cells = [cell for cell in notebook.cells if not cell.metadata.nbgrader.grade]
nbformat.write(notebook, kim)
(handed_in / "Max").mkdir(exist_ok=True)
(handed_in / "Max" / "01_overlap.ipynb").write_text("I was ill on Monday.")

everybody = grade_class()
total = {grade.student: grade.total for grade in everybody.grades}
won = {student for student in total if total[student]}
assert won == set(right)  # nobody lost, or won, by what others did
gradebook.table(everybody.grades).tail(5)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# They get none, and the others lose none. A cell that never ends has a limit of time, a kernel that dies has died alone, our check replaces
# the one that Kim deleted, and the verdict on Lou's cell is read outside of the kernel whose functions Lou has replaced.
#
# </details>
#
# The eight were not run again. A grade is remembered by the content of the student's cells, of the assignment and of the course's
# code. If one of them changes, exactly that is graded anew.
#
# ## Reading the result

# %%
gradebook.histogram(everybody.grades)

# %% [markdown]
# An exercise that few have solved asks a question back: is it hard, badly worded, or checked wrongly? Read the messages on the
# feedback pages before you read the mean. `gradebook.write` puts everything into a folder: `grades.csv` for your records, a page
# for each student, on which nothing of theirs can run as a script, `grades.json`, and this figure.

# %%
out = session.runs / "teaching" / "grades"
gradebook.write(everybody, out)
written = [path.relative_to(out) for path in out.rglob("*.*") if ".cache" not in path.parts]
print(*sorted(path.as_posix() for path in written), sep="\n")
assert len(list((out / "feedback").glob("*.html"))) == 13

# %% [markdown]
# For the course's own assignments one command does all of that. It takes files, folders and zips as Moodle makes them:
#
# ```sh
# python -m course_utils grade submissions.zip --out grades
# ```
#
# To whom a notebook belongs is read from Moodle's folder, from a name such as `STUDENT_02_warping.ipynb`, or from the folder that it
# is in. A student who hands in twice gets the better of the two. Students ask the same engine for the visible checks: `make check-assignment N=2`.
#
# ## What the sandbox is, and what it is not
#
# A submission's process has no network, sees no file but Python, the course and its data, no other process, and has limits on
# time, memory, processes, files and output. Checks and expected values are not in it: whatever a cell patches, traces or
# leaves running changes its own answers and nothing else, and nbval's verdict is read outside. Most Linux systems grant all
# that; macOS and some containers do not, and there `grade` refuses unless it is told to go on.

# %%
open_doors = "no namespaces here: other files and the network were in reach"
print("isolated" if everybody.denied is None else open_doors)

# %% [markdown]
# What no sandbox can see is who wrote an answer, and whether a right number was computed or looked up: a function that asks
# the library for the result in a roundabout way is a right function. What a hidden test *asks* reaches the student's code,
# too, which may tell it in an error; what it *expects* does not. So **read the cells of those who scored high**, which the
# feedback pages show. No autograder replaces that.
#
# ## What you now have
#
# - The format: one script with solutions, visible checks and hidden checks, of which the students' notebooks are made.
# - A habit: first the list of mistakes, then the check. Each assertion has to catch one, and each mistake has to be caught.
# - A graded class, with a table, feedback pages, and a figure to read.
#
# **What can go wrong.** A check compares with `==` what should be close. It fails right answers in another style, so try at least three.
# A hidden test asks what the text has never promised. A time limit was measured on your machine alone. Points depend on an earlier
# exercise. Namespaces are denied, and nobody reads that line.
#
# **Try it.**
# 1. *(easy)* Write a sixth mistake: the Dice of the *background*. Which question catches it?
# 2. *(middle)* Add a second exercise to the script, the Dice of several labels, independent of the first. Its check uses
#    `course_utils.metrics.dice`.
# 3. *(hard)* Take exercise 4 of `notebooks/assignments/sources/02_warping.py`, and find a wrong warp that passes. Then send us the check
#    that catches it.
#
# **References.** Jupyter et al., *nbgrader: a tool for creating and grading assignments in the Jupyter Notebook*, Journal of Open
# Source Education 2(11), 2019, [doi:10.21105/jose.00032](https://doi.org/10.21105/jose.00032). Fangohr et al., *Testing with Jupyter
# notebooks: NoteBook VALidation (nbval) plug-in for pytest*, [arXiv:2001.04808](https://arxiv.org/abs/2001.04808), 2020. Dice, *Measures
# of the amount of ecologic association between species*, Ecology 26(3), 1945,
# [doi:10.2307/1932409](https://doi.org/10.2307/1932409).
#
# Next: [09 Learn2Reg](09_learn2reg.ipynb), where a training goes wrong in three ways; or [00 Start here](00_start_here.ipynb), as a student of
# your own course.
