"""Forks for submissions: what they have of the process that forks, and what becomes of them when it ends."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from course_utils.grading import engine, run
from course_utils.grading.forkserver import ForkServer, ServerGone
from course_utils.grading.namespaces import HOME
from course_utils.grading.run import environment_of_sandboxes
from course_utils.grading.sandbox import denied, own_environment
from course_utils.grading.submissions import Submission
from tests.grading.processes import still_there, when_a_submission_runs
from tests.grading.small_assignments import SOLVED, content, grade, handed_in, points

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# `encodings.ascii`: another user may not be able to read where this Python lies, and import anything more.
IN_A_FORK = """
import ctypes, encodings.ascii, json, os, random, resource, socket, sys, tempfile
import numpy.random, psutil
from course_utils.grading.sandbox import Sandbox, fork

user, folder = int(sys.argv[1]), sys.argv[2]
tempfile.gettempdir()
line, other = socket.socketpair()
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as in a process that was started by this user

def run():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    files = {int(name): os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    known = [1, 2, line.fileno()]
    told = {
        "rights": [status[name].split() for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")],
        "open": sorted(number - line.fileno() for number in files if os.path.exists(f"/proc/self/fd/{number}")),
        "environment": dict(os.environ),
        "folders": [os.getcwd(), sys.path[0], tempfile.gettempdir()],
        "memory": os.access("/proc/self/mem", os.R_OK),
        "host": ctypes.CDLL(None).sethostname(b"x", 1),
        "drawn": [random.random(), float(numpy.random.random())],
    }
    line.sendall(json.dumps(told).encode() + b"\\n")

for _ in range(2):
    assert fork(Sandbox(folder, (), {"A": "b"}, memory=300_000_000), run, line.fileno()).wait(30) == 0
line.close()
print(other.makefile().read(), end='')
"""


@pytest.mark.parametrize("user", [0, 61234], ids=["the same user", "another user"])
def test_a_fork_has_nothing_but_what_it_is_given(user, tmp_path):
    if why := denied(tmp_path):
        pytest.skip(f"this system denies namespaces: {why}")
    if user and os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if user:
            os.chown(folder, user, user)
        command = [sys.executable, "-c", IN_A_FORK, str(user), folder]
        done = subprocess.run(command, capture_output=True, text=True, env=own_environment())
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["rights"] == 4 * [["0" * 16]] and first["host"] == -1
    assert first["open"][-1] == 0 and len(first["open"]) == 4  # 0, 1, 2 and the one that it keeps
    names = {"HOME": HOME, "TMPDIR": HOME, "PWD": HOME, "USER": "student", "LOGNAME": "student"}
    assert first["environment"] == {"A": "b"} | names
    assert first["folders"] == [HOME] * 3
    assert first["memory"]
    assert not set(first["drawn"]) & set(second["drawn"])


@pytest.fixture
def server():
    server = ForkServer(environment_of_sandboxes())
    yield server
    server.close()


@pytest.fixture
def ask(server, tmp_path):
    """Ask the server for a fork that ends at once, for its arguments are wrong; returns what it said."""

    def ask():
        log = tmp_path / "log"
        with open(log, "wb") as file:
            fork = server.fork({"no such": 1}, file.fileno(), file.fileno())
        psutil.wait_procs([fork.process], timeout=30)
        assert not fork.process.is_running() and not fork.abandoned
        return log.read_text(encoding="utf-8")

    return ask


def test_a_server_that_is_gone_starts_anew(server, ask):
    assert "unexpected keyword argument 'no such'" in ask()
    first = server._process
    first.kill()
    first.wait()
    assert "unexpected keyword argument 'no such'" in ask()
    assert server._process.pid != first.pid
    server.close()
    assert server._process.poll() is not None


def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "nbval.py").write_text("raise ImportError('it is broken')", encoding="utf-8")
    environment = environment_of_sandboxes()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    server = ForkServer(environment)
    with pytest.raises(ServerGone, match=r"^no process could be had \(ImportError: it is broken\)$"):
        server.fork({}, 1, 1)
    server.close()


def test_the_server_has_imported_no_judge_and_no_back_end_for_figures():
    code = (
        "import importlib, sys\nfrom course_utils.grading import forkserver\n"
        "for name in forkserver.NEEDED + forkserver.OFTEN: importlib.import_module(name)\n"
        "print([name for name in sys.modules if 'grading.judges' in name or name.endswith('backend_inline')])"
    )
    environment = own_environment() | environment_of_sandboxes()
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "[]\n"


@pytest.mark.parametrize("when", ["at once", "in a cell"])
def test_a_server_that_is_killed_costs_nobody_a_point(assignments, monkeypatch, when):
    """The run in which it happens is repeated, on a new server."""
    killed = []

    def kill_once(self, pipe, end, listen=run.Run._listen):
        if not killed and (when == "at once" or select.select([pipe], [], [])[0]):
            killed.append(self.forks._process.pid)
            os.kill(killed[0], signal.SIGKILL)
        return listen(self, pipe, end)

    monkeypatch.setattr(run.Run, "_listen", kill_once)
    solved = content(handed_in(assignments[0], **SOLVED))
    (graded,) = grade([Submission("ada", "x.ipynb", solved)], assignments).grades
    assert killed and points(graded) == [2, 3, 5]


def test_nothing_goes_on_when_who_grades_is_killed(assignments, tmp_path):
    endless = handed_in(assignments[0], double="# exercise: double\nimport time\ntime.sleep(1000)")
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "01_numbers.ipynb").write_bytes(content(endless))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from course_utils.grading.assignments import Assignment, read_assignment\n"
        "from course_utils.grading.engine import grade\nfrom course_utils.grading.submissions import Submission\n"
        "from tests.grading.small_assignments import SOURCE\n"
        "here = Path(sys.argv[1])\n(here / '01_numbers.py').write_text(SOURCE, encoding='utf-8')\n"
        "one = Submission('ada', 'x.ipynb', (here / 'ada/01_numbers.ipynb').read_bytes())\n"
        "grade([one], [Assignment('01_numbers', read_assignment(here / '01_numbers.py'))], allow_unisolated=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    grading = subprocess.Popen(command, cwd=Path(engine.PACKAGE).parent, env=os.environ | {"TMPDIR": str(tmp_path)})
    family = when_a_submission_runs(grading)
    grading.kill()
    grading.wait()
    assert still_there(family) == []
