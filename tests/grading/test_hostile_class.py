"""A class with every kind of bad submission in it, graded at once: each has its outcome and touches no other."""

import copy
import socket
import sys
import threading
from pathlib import Path

import pytest

from course_utils.grading.run import Limits
from course_utils.grading.submissions import Submission
from notebooks.build import ROOT
from tests.grading.small_assignments import SOLVED, content, grade, handed_in, points

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WRONG = "root = lambda x: 7\n"


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
    "memory to the last byte": (
        "hoard, size = [], 10**8\nwhile size > 999:\n"
        "    try: hoard.append(bytearray(size))\n    except MemoryError: size //= 10\nraise MemoryError"
    ),
    "memory in the check": ("hoard = []\ndef root(x):\n    while True: hoard.append(bytearray(10**7))"),
    "memory in the check, every error caught": (
        "hoard, size = [], 10**8\ndef root(x):\n    global size\n    while size > 999:\n"
        "        try: hoard.append(bytearray(size))\n        except MemoryError: size //= 10\n    return 7.0"
    ),
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


# Neither text may stand in this cell, which would find itself. The environment is shown, and packages have notebooks.
LOOKS_FOR_TESTS = f"""
import gc, os, pathlib
hidden, of_course = ', ple'.join(['a float', 'ase']), ['# ' + kind + ': root' for kind in ('check', 'exercise')]
seen = [s for o in gc.get_objects() for s in gc.get_referents(o) if type(s) is str and len(s) > 30 and hidden in s]
texts = []
for top in ('/tmp', '/home', '.', {str(ROOT)!r}):
    for folder, inner, files in os.walk(top):
        inner[:] = [name for name in inner if os.path.join(folder, name) not in {(sys.prefix, sys.base_prefix)!r}]
        for name in files:
            if name.endswith('.ipynb'):
                try:
                    texts.append(pathlib.Path(folder, name).read_text(errors='replace'))
                except OSError:
                    pass
print('seen', len(seen), sum(hidden in t for t in texts), sum(any(mark in t for mark in of_course) for t in texts))
"""


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
    (folder / "secret").write_text("what others handed in", encoding="utf-8")
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
        "looks for tests": f"{LOOKS_FOR_TESTS}\nroot = math.sqrt",
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
    return grade(submissions, assignments, limits=Limits(cell_seconds=15, memory=700_000_000), workers=2)


@pytest.fixture
def graded(report):
    def of(student):
        (result,) = (result for result in report.grades if result.student == student)
        return result

    return of


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
    "memory": "memory limit",
    "memory in the check": "memory limit",
    "memory in the check, every error caught": "memory limit",
    "shared memory": "memory limit",
    "os._exit": "kernel died",
    "kills itself": "kernel died",
}


ITS_OWN_SESSION = ("patches comparisons", "replaces modules", "drops asserts", "replaces run_cell", "forks")
"""Cells that break what the student's later cells run in, and may lose these too."""


@pytest.mark.parametrize("student", HOSTILE)
def test_a_hostile_cell_loses_its_own_exercise_and_no_other(graded, student):
    assert points(graded(student)) == [2, 0, 0 if student in ITS_OWN_SESSION and not points(graded(student))[2] else 5]
    if student in ("forks", "writes into pipes", "memory to the last byte"):  # what breaks first is not defined
        return
    assert graded(student).exercises[1].outcome == STOPPED.get(student, "failed")
    assert graded(student).status == (f"graded; root: {STOPPED[student]}" if student in STOPPED else "graded")


def test_the_message_tells_how_the_student_s_own_cell_ended(graded):
    assert "SyntaxError" in graded("syntax error").exercises[1].message
    hoarder = graded("memory").exercises[1]
    assert hoarder.message.startswith("stopped: it took more than 0.7 GB of memory")
    # The kernel keeps the hoard. A traceback, where something is left to write one with, names the cause.
    assert not hoarder.traceback or "MemoryError" in hoarder.traceback
    assert "Not equal to tolerance" in graded("always equal").exercises[1].message


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
    words = graded("looks for tests").exercises[1].text.split()
    assert words[:3] == ["seen", "0", "0"]


def test_no_notebook_of_an_assignment_or_a_submission_is_in_sight(report, graded):
    if report.denied:
        pytest.skip(f"this system denies namespaces: {report.denied}")
    assert graded("looks for tests").exercises[1].text == "seen 0 0 0\n"


def test_much_output_is_cut_and_costs_nothing(graded):
    assert points(graded("shouts")) == [2, 3, 5]
    text = graded("shouts").exercises[1].text
    assert 10_000 < len(text) < 200_000


def test_of_several_submissions_the_best_counts(graded):
    assert graded("several").status == "graded; handed in 2 times, best: 01_numbers (1).ipynb"
