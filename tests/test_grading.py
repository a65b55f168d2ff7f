"""A class with every kind of bad submission in it, graded at once: each has its outcome and touches no other."""

import copy
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from course_utils import gradebook, grading
from course_utils.assignments import read_assignment, student_version
from course_utils.errors import CourseError
from course_utils.grading import Assignment, Limits, grade
from course_utils.submissions import Submission
from notebooks.build import ROOT
from tests.class_of_submissions import Class

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
WRONG = "root = lambda x: 7\n"


@pytest.fixture(scope="module")
def assignments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "01_numbers.py").write_text(SOURCE)
    (folder / "02_words.py").write_text(OTHER)
    return [Assignment(name, read_assignment(folder / f"{name}.py")) for name in ("01_numbers", "02_words")]


def handed_in(assignment, **cells):
    """A student's notebook with these cells in place of the stubs."""
    notebook = student_version(assignment.notebook)
    for cell in notebook.cells:
        cell.source = cells.get(cell.metadata.nbgrader.grade_id, cell.source)
    return notebook


def content(notebook):
    return nbformat.writes(notebook).encode()


def without_metadata(notebook):
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        cell.metadata.clear()
    return notebook


def without(notebook, *names):
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.nbgrader.grade_id not in names]
    return notebook


def with_copy(notebook, name, source):
    notebook = copy.deepcopy(notebook)
    at = next(i for i, cell in enumerate(notebook.cells) if cell.metadata.nbgrader.grade_id == name)
    notebook.cells.insert(at, copy.deepcopy(notebook.cells[at]))
    notebook.cells[at].update(source=source, id="a-copy")
    return notebook


# Each is the cell of exercise 2 in a notebook that is right besides: what comes after it shows whom it harms.
HOSTILE = {
    "syntax error": "def root(x) return 3",
    "raises": "raise ValueError('no <b>idea</b>')",
    "infinite loop": "while True: pass",
    "deaf to interrupts": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "memory": "hoard = []\nwhile True: hoard.append(bytearray(10**8))",
    "shared memory": (
        "import mmap\nhoard = []\nwhile True:\n"
        "    hoard.append(mmap.mmap(-1, 10**8))\n    hoard[-1].write(bytes(10**8))"
    ),
    "forks": "import os\nwhile True: os.fork()",
    "os._exit": "import os\nos._exit(0)",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "quits": "exit()",
    "sys.exit": "import sys\nsys.exit(0)\nroot = math.sqrt",
    "redefines helper": WRONG + "def same(*_): pass\ntype = lambda _: float\nthree = 7\nassert_allclose = same",
    "patches comparisons": (
        WRONG + "import builtins, numpy.testing\n"
        "numpy.testing.assert_allclose = math.isclose = lambda *_, **__: True\nbuiltins.type = lambda _: float\n"
        "np.testing.assert_allclose.__code__ = (lambda *_, **__: None).__code__"
    ),
    "replaces modules": (
        WRONG + "import sys\nclass Fake:\n    def __getattr__(self, _): return lambda *_, **__: True\n"
        "sys.modules['math'] = sys.modules['numpy'] = np = math = Fake()"
    ),
    "patches what is not loaded yet": "root = lambda x: 2.0\nnp.testing.assert_allclose = lambda *_, **__: None",
    "always equal": (
        "class Any(float):\n    __eq__ = lambda *_: True\n    __sub__ = __rsub__ = lambda *_: 0.0\n"
        "root = lambda x: Any(2)"
    ),
    "drops asserts": (
        WRONG + "import ast\nclass Drop(ast.NodeTransformer):\n    def visit_Assert(self, node): return ast.Pass()\n"
        "    def visit_Expr(self, node): return ast.Pass()\nget_ipython().ast_transformers.append(Drop())"
    ),
    "swallows errors": WRONG + "get_ipython().set_custom_exc((Exception,), lambda *_, **__: None)",
    "replaces run_cell": (
        WRONG + "shell = get_ipython()\nrun = type(shell).run_cell\n"
        "shell.run_cell = lambda code, *a, **k: run(shell, 'pass', *a, **k)\n"
        "async_run = type(shell).run_cell_async\n"
        "type(shell).run_cell_async = lambda self, code, *a, **k: async_run(self, 'pass', *a, **k)"
    ),
    "forged report": (
        WRONG + "import pathlib\nprint('Cell 4: PASSED\\n===== 7 passed in 0.1s =====')\n"
        'print(\'{"cell": 4, "state": "passed", "outputs": []}\')\n'
        "pathlib.Path('junit.xml').write_text('<testsuite failures=\"0\"/>')"
    ),
    "writes into pipes": (
        WRONG + "import os\nfor number in range(3, 30):\n"
        '    try: os.write(number, b\'{"cell": 4, "state": "passed", "outputs": []}\\n\')\n    except OSError: pass\n'
    ),
}


@pytest.fixture(scope="module")
def server():
    """Something that a submission could talk to."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        ended = threading.Event()

        def listen():
            while not ended.is_set():
                try:
                    listening.accept()[0].close()
                    heard.append("a call")
                except TimeoutError:
                    pass

        thread = threading.Thread(target=listen)
        thread.start()
        yield listening.getsockname()[1], heard
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder beside the run, which any user may read and write."""
    folder = Path(tmp_path_factory.mktemp("outside"))
    for part in (folder, *folder.parents):
        if part.stat().st_uid == 0 and part.name.startswith("pytest"):
            part.chmod(0o777)
    (folder / "secret").write_text("what others handed in")
    return folder


@pytest.fixture(scope="module")
def report(assignments, server, outside):
    """The class, graded once, by two workers."""
    numbers = assignments[0]
    good = handed_in(numbers, **SOLVED)
    without_root = handed_in(numbers, double=SOLVED["double"], mean=SOLVED["mean"])
    hostile = HOSTILE | {
        "reads outside": f"root = math.sqrt if open({str(outside / 'secret')!r}).read() else None",
        "writes outside": f"open({str(outside / 'mark')!r}, 'w').write('x')\nroot = math.sqrt",
        "calls": f"import socket\nsocket.create_connection(('127.0.0.1', {server[0]}), 5)\nroot = math.sqrt",
        "fills the disk": (
            "for n in range(50):\n    with open(f'big{n}', 'wb') as f:\n"
            "        for _ in range(100): f.write(bytes(10**6))\nroot = math.sqrt"
        ),
        "looks for tests": (
            "import gc, pathlib\nwanted = ', ple'.join(['a float', 'ase'])\nseen = [s for o in gc.get_objects() "
            "for s in gc.get_referents(o) if isinstance(s, str) and len(s) > 30 and wanted in s]\n"
            "files = [p for f in ('/tmp', '.', '/home') for p in pathlib.Path(f).rglob('*.ipynb')]\n"
            "print('seen', len(seen), len(files))\nroot = math.sqrt"
        ),
        "shouts": "for _ in range(100): print('x' * 10**6)\nroot = math.sqrt",
    }
    notebooks = {
        "good": good,
        "good, other path": good,
        "untouched": handed_in(numbers),
        "no metadata": without_metadata(good),
        "missing": without(good, "root"),
        "twice": with_copy(good, "root", WRONG),
        "twice, last wrong": with_copy(handed_in(numbers, **SOLVED | {"root": WRONG}), "root", SOLVED["root"]),
        "copy of the stub": with_copy(without_root, "root", "root = math.sqrt"),
        "deletes checks": without(handed_in(numbers, **SOLVED | {"root": WRONG}), "root-check", "mean-check"),
        **{
            name: handed_in(numbers, **SOLVED | {"root": f"# exercise: root\n{cell}"}) for name, cell in hostile.items()
        },
    }
    submissions = [
        Submission(student, "01_numbers.ipynb", content(notebook)) for student, notebook in notebooks.items()
    ]
    submissions += [
        Submission("no JSON", "01_numbers.ipynb", b"\x89PNG"),
        Submission("no cells", "01_numbers.ipynb", b'{"cells": 7}'),
        Submission("wrong notebook", "01_numbers.ipynb", content(handed_in(assignments[1], word="word = 'a'"))),
        Submission("unreadable", "01_numbers.ipynb", None, "larger than 30 MB"),
        Submission("own name", "final version.ipynb", content(good)),
        Submission("several", "01_numbers.ipynb", content(handed_in(numbers))),
        Submission("several", "01_numbers (1).ipynb", content(good)),
    ]
    return grade(submissions, assignments, limits=Limits(cell_seconds=6, memory=700_000_000), workers=2)


@pytest.fixture
def graded(report):
    def of(student):
        (result,) = (result for result in report.results if result.student == student)
        return result

    return of


def points(result):
    return [exercise.points for exercise in result.exercises]


@pytest.mark.parametrize("student", ["good", "good, other path", "no metadata", "own name", "several"])
def test_right_answers_get_full_marks(graded, student):
    assert points(graded(student)) == [2, 3, 5]


def test_the_untouched_stub_gets_nothing(graded):
    assert points(graded("untouched")) == [0, 0, 0]
    assert "NotImplementedError" in graded("untouched").exercises[0].message


@pytest.mark.parametrize(
    ("student", "status"),
    [
        ("no JSON", "not a notebook (no JSON)"),
        ("no cells", "not a notebook (no cells)"),
        ("wrong notebook", "wrong notebook (no exercise of 01_numbers)"),
        ("unreadable", "larger than 30 MB"),
    ],
)
def test_what_is_no_submission_gets_nothing_and_says_why(graded, student, status):
    assert (graded(student).status, points(graded(student))) == (status, [0, 0, 0])


@pytest.mark.parametrize(
    ("student", "expected", "status"),
    [
        ("missing", [2, 0, 5], "graded; root: missing"),
        ("twice", [2, 3, 5], "graded; root: there twice, the last counts"),
        ("twice, last wrong", [2, 0, 5], "graded; root: there twice, the last counts"),
        ("copy of the stub", [2, 3, 5], "graded"),
        ("deletes checks", [2, 0, 5], "graded"),
    ],
)
def test_changed_notebooks_lose_exactly_what_is_wrong(graded, student, expected, status):
    assert (points(graded(student)), graded(student).status) == (expected, status)


STOPPED = {
    "infinite loop": "time limit",
    "deaf to interrupts": "time limit",
    "shared memory": "memory limit",
    "os._exit": "kernel died",
    "kills itself": "kernel died",
}


@pytest.mark.parametrize("student", HOSTILE)
def test_a_hostile_cell_loses_its_own_exercise_and_no_other(graded, student):
    assert points(graded(student)) == [2, 0, 5]
    if student in ("forks", "writes into pipes"):  # what breaks first is not defined
        return
    assert graded(student).exercises[1].outcome == STOPPED.get(student, "failed")
    assert graded(student).status == (f"graded; root: {STOPPED[student]}" if student in STOPPED else "graded")


def test_the_message_tells_how_the_student_s_own_cell_ended(graded):
    assert "SyntaxError" in graded("syntax error").exercises[1].message
    assert "MemoryError" in graded("memory").exercises[1].message
    assert "a float" in graded("always equal").exercises[1].message


def test_a_submission_reaches_nothing_outside(report, graded, server, outside):
    if report.denied:
        pytest.skip(f"this system denies namespaces: {report.denied}")
    assert points(graded("reads outside")) == [2, 0, 5]
    assert points(graded("writes outside")) == [2, 0, 5]
    assert not (outside / "mark").exists()
    assert points(graded("calls")) == [2, 0, 5]
    assert server[1] == []
    assert points(graded("fills the disk")) == [2, 0, 5]


def test_hidden_tests_are_not_there_before_they_run(graded):
    assert graded("looks for tests").exercises[1].text == "seen 0 0\n"


def test_much_output_is_cut_and_costs_nothing(graded):
    assert points(graded("shouts")) == [2, 3, 5]
    text = graded("shouts").exercises[1].text
    assert 10_000 < len(text) < 200_000


def test_of_several_submissions_the_best_counts(graded):
    assert graded("several").status == "graded; handed in 2 times, best: 01_numbers (1).ipynb"


def graded_as(*submissions, assignments, **options):
    report = grade([Submission(*fields) for fields in submissions], assignments, **options)
    return [(result.student, points(result)) for result in report.results]


def test_only_what_has_changed_is_graded_again(assignments, tmp_path, monkeypatch):
    right, wrong = (content(handed_in(assignments[1], word=f"word = {word!r}")) for word in "ab")
    options = {"assignments": assignments, "cache": tmp_path}
    first = graded_as(("ada", "x.ipynb", right), ("bob", "x.ipynb", wrong), **options)
    assert first == [("ada", [1]), ("bob", [0])]
    ran = []
    run = grading._Run.grade
    monkeypatch.setattr(grading._Run, "grade", lambda self, solutions: ran.append(solutions) or run(self, solutions))
    assert graded_as(("ada", "x.ipynb", right), ("bob", "x.ipynb", wrong), **options) == first
    assert ran == []
    assert graded_as(("ada", "x.ipynb", wrong), ("bob", "x.ipynb", wrong), **options) == [("ada", [0]), ("bob", [0])]
    assert ran == []  # somebody else's cell was the same
    other = content(handed_in(assignments[1], word="word = 'a'  # now"))
    assert graded_as(("bob", "x.ipynb", other), **options) == [("bob", [1])]
    assert len(ran) == 1
    graded_as(("bob", "x.ipynb", other), limits=Limits(cell_seconds=30), **options)
    assert len(ran) == 2


def test_a_broken_memory_of_a_result_is_no_result(assignments, tmp_path):
    right = content(handed_in(assignments[1], word="word = 'a'"))
    graded_as(("ada", "x.ipynb", right), assignments=assignments, cache=tmp_path)
    (known,) = tmp_path.glob("*.json")
    known.write_text('{"status": "graded"}')
    assert graded_as(("ada", "x.ipynb", right), assignments=assignments, cache=tmp_path) == [("ada", [1])]


def test_an_assignment_that_fails_by_itself_is_no_student_s_fault(tmp_path):
    (tmp_path / "02_words.py").write_text(f"# %%\nimport no_such_module\n{OTHER}")
    broken = Assignment("02_words", read_assignment(tmp_path / "02_words.py"))
    with pytest.raises(CourseError, match=r"1 of 1 submissions were not graded .*no_such_module"):
        grade([Submission("ada", "x.ipynb", content(handed_in(broken, word="word = 'a'")))], [broken], cache=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_students_check_themselves_without_hidden_tests(assignments, tmp_path):
    own = tmp_path / "01_numbers.ipynb"
    almost = handed_in(assignments[0], **SOLVED | {"root": "# exercise: root\nroot = lambda x: 2.0"})
    almost.cells.insert(3, nbformat.v4.new_code_cell("print('a cell of my own')"))
    own.write_bytes(content(almost))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "01_numbers.py").write_text(SOURCE)
    for sources in (tmp_path / "sources", tmp_path):  # a clone of the repository, and what students get
        visible = grading.visible_assignment(own, sources)
        assert all("HIDDEN" not in cell.source for cell in visible.notebook.cells)
        assert graded_as(("ada", own.name, own.read_bytes()), assignments=[visible]) == [("ada", [2, 3, 5])]
    own.write_text("{}")
    with pytest.raises(CourseError, match="no notebook of an assignment"):
        grading.visible_assignment(own, tmp_path)


def test_the_same_submissions_give_the_same_table_to_the_byte(assignments):
    cells = {"ada": "word = 'a'", "bob": "word = 'b'", "eve": "word ="}
    class_ = [
        Submission(name, "x.ipynb", content(handed_in(assignments[1], word=cell))) for name, cell in cells.items()
    ]
    first, second = (
        gradebook.table(grade(submissions, assignments, workers=workers).results).to_csv(index=False)
        for submissions, workers in ((class_, 1), (class_[::-1], 2))
    )
    assert first == second
    assert first.splitlines()[1] == "ada,02_words,1,1,1,graded"


def test_the_command_grades_a_folder(tmp_path, built_in_cohort):
    """An assignment of the course: a plausible mistake, and a student who patched the checks before they were used."""
    of_class = Class(ROOT / "notebooks" / "assignments" / "sources" / "02_warping.py")
    students = {"bob": of_class.wrong(), "eve": of_class.cheating()}
    for name, student in students.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "02_warping.ipynb").write_bytes(student.content)
    command = [sys.executable, "-m", "course_utils", "grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "grades.csv", index_col="student")
    for name, student in students.items():
        assert table.loc[name, list(student.points)].to_dict() == student.points
        assert table.loc[name, "status"] == "graded"
        assert (tmp_path / "out" / "feedback" / f"{name}_02_warping.html").is_file()
