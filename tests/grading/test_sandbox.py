"""A command in a sandbox, with and without namespaces; every bomb is within small limits."""

import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from course_utils.grading.namespaces import HOME
from course_utils.grading.sandbox import OUT_OF_MEMORY, PACKAGE, Sandbox, denied, own_environment, python_folders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def why(tmp_path_factory):
    return denied(tmp_path_factory.mktemp("trial"))


@pytest.fixture(params=[True, False], ids=["namespaces", "plain"])
def run(request, why):
    if request.param and why:
        pytest.skip(f"this system denies namespaces: {why}")
    with tempfile.TemporaryDirectory() as folder:
        options = {"memory": 300_000_000, "isolated": request.param, "disk": 20_000_000, "processes": 20}

        def run(code, **changed):
            sandbox = Sandbox(folder, python_folders(), {"PATH": "/usr/bin:/bin"}, **options | changed)
            command = sandbox.command([sys.executable, "-I", "-c", code])
            return subprocess.run(command, capture_output=True, text=True, timeout=60, env=own_environment())

        if not request.param and run("").returncode != 0:
            pytest.skip("another user than root cannot read this Python")
        run.isolated, run.folder = request.param, folder
        yield run


def test_the_exit_code_is_the_command_s(run):
    assert run("raise SystemExit(7)").returncode == 7
    assert run("import os; os.kill(os.getpid(), 9)").returncode == 128 + 9


def test_it_has_a_home_of_its_own_and_no_rights(run):
    done = run("import os; open('mine', 'w').write('x'); print(os.environ['HOME'] == os.getcwd(), os.getuid() != 0)")
    assert done.stdout == "True True\n"


def test_a_folder_can_be_hidden_and_stays_so(run):
    hidden = f"{PACKAGE}/grading"
    code = f"import ctypes, os\nfolder = {hidden!r}\nctypes.CDLL(None).umount2(folder.encode(), 2)\n"
    code += "print(os.listdir(folder), len(os.listdir(folder + '/..')) > 10)\nopen(folder + '/here', 'w')"
    done = run(code, hidden=(hidden,))
    if run.isolated:
        assert done.stdout == "[] True\n" and "Error" in done.stderr


def test_memory_is_limited_for_one_process_and_for_all_together(run):
    assert "MemoryError" in run("bytearray(10**9)").stderr
    shared = "import mmap, time\nm = [mmap.mmap(-1, 10**7) for _ in range(60)]\nfor p in m: p.write(bytes(10**7))\n"
    assert run(f"{shared}time.sleep(9)").returncode == OUT_OF_MEMORY


def test_processes_and_files_are_limited(run):
    forks = "import os, time\ntry:\n    while True:\n        if not os.fork(): time.sleep(2); os._exit(0)\n"
    assert "Resource temporarily unavailable" in run(forks + "except OSError as error: print(error)").stdout
    assert "File too large" in run("open('big', 'wb').write(bytes(10**8))").stderr


def test_what_it_leaves_behind_ends_with_it(run):
    began = time.time()
    run("import os, time\nfor _ in range(2):\n    if os.fork(): os._exit(0)\n    os.setsid()\ntime.sleep(1000)")
    time.sleep(0.3)
    left = [p for p in psutil.process_iter(["cmdline", "create_time"]) if "time.sleep(1000)" in str(p.info["cmdline"])]
    assert not [p for p in left if p.info["create_time"] > began and p.status() != psutil.STATUS_ZOMBIE]


def test_in_namespaces_there_is_nothing_else(run):
    if not run.isolated:
        pytest.skip("that takes namespaces")
    here = Path(__file__).resolve()
    processes = "sorted(int(name) for name in os.listdir('/proc') if name.isdigit())"
    seen = run(f"import os; print(os.path.exists({str(here)!r}), os.getcwd(), {processes})")
    assert seen.stdout == f"False {HOME} [1, 2]\n"
    package = python_folders()[-1]
    assert "Read-only file system" in run(f"open({package + '/x'!r}, 'w')").stderr
    assert "unreachable" in run("import socket; socket.create_connection(('192.0.2.1', 9), 5)").stderr
    filling = "for n in range(9): open(f'{n}', 'wb').write(bytes(10**7))"
    assert "No space left" in run(filling).stderr


def test_calls_that_reach_further_are_forbidden(run):
    calls = {"keyctl": (250, 219), "unshare": (272, 97), "mount": (165, 40), "ptrace": (101, 117), "shmget": (29, 194)}
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    asked = {name: numbers[column] for name, numbers in calls.items()}
    code = (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {asked}.items():\n"
        "    libc.syscall(number, 0, 0, 0, 0, 0)\n    print(name, errno.errorcode[ctypes.get_errno()])\n"
        "import multiprocessing, os, threading\nmultiprocessing.get_context('fork').RLock()\n"
        "threading.Thread(target=print, args=['a thread']).start()\n"
        "if os.fork() == 0: os._exit(0)\nprint('a process', os.wait()[1])\n"
        "try: os.memfd_create('x')\nexcept OSError as error: print('memfd', error.errno == errno.ENOSYS)"
    )
    told = run(code).stdout.split("\n")
    assert told[:5] == [f"{name} EPERM" for name in calls]
    assert sorted(told[5:]) == ["", "a process 0", "a thread", "memfd True"]


def test_a_folder_that_is_shown_may_be_read_only(run):
    if not run.isolated:
        pytest.skip("that takes namespaces")
    assert run(f"open({run.folder!r} + '/x', 'w')").returncode == 0
    assert "Read-only file system" in run(f"open({run.folder!r} + '/x', 'w')", writable=False).stderr
