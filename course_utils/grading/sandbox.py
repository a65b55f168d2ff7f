"""A command in a sandbox: what a student's code may see, use and reach.

On Linux the command gets namespaces of its own: it sees only the folders that it is shown, all but one read-only, no
process but its own, and no network; what it writes elsewhere goes to a small file system in memory and ends with it.
Calls of the system that could reach further are forbidden (`course_utils.grading.syscalls`).
Limits on memory, processes, file size and processor time hold on every system, and root's command runs as an ordinary
user. Where the system denies the namespaces, `denied` says so; nothing is claimed that was not tried.

`python -m course_utils.grading.sandbox JSON COMMAND...` is the launcher. It stays outside, watches the memory of all
that runs inside, and takes it along when it ends, by whatever signal. `fork` makes one of this process, for a function
instead of a command: what has been imported here need not be imported there.
"""

import contextlib
import ctypes
import json
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.grading import namespaces
from course_utils.grading.linux import call, end_with_parent, libc
from course_utils.grading.syscalls import forbid_calls

if TYPE_CHECKING:
    import psutil

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of `course_utils`."""

OUT_OF_MEMORY = 86
"""The launcher's exit code when everything inside together took more memory than it may."""

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 36, 38
_CAPABILITIES_OF_64_BITS = 0x20080522


@dataclass(frozen=True)
class Sandbox:
    """What a command may see and use.

    Attributes:
        scratch: the one folder that it shares with the outside; the same path inside.
        writable: it may write there, as much as there is room on that disk; else it writes in memory only.
        shown: files and folders that it may read, at the same paths.
        hidden: folders in those shown that it sees empty.
        environment: its whole environment, but for what names its home.
        memory: bytes of all its processes together.
        processes: how many processes and threads it may have at a time.
        disk: bytes of a file, and of everything that it writes outside `scratch`.
        seconds: processor time of a process.
        cpu: the one processor that it may use, so that a busy command slows no other; None for any.
        isolated: in namespaces of its own; see `denied`.
    """

    scratch: str
    shown: tuple[str, ...]
    environment: dict[str, str]
    memory: int
    processes: int = 96
    disk: int = 256 << 20
    seconds: int = 600
    cpu: int | None = None
    isolated: bool = True
    writable: bool = True
    hidden: tuple[str, ...] = ()

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, to be started in this sandbox."""
        return [sys.executable, "-m", "course_utils.grading.sandbox", json.dumps(asdict(self)), *command]


def python_folders() -> tuple[str, ...]:
    """What this Python and this package need to run: the interpreter, its packages and `course_utils`."""
    # Packages may also lie outside the environment, where a .pth file of it says.
    packages = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    folders = [sys.prefix, sys.base_prefix, site.getusersitepackages(), *packages, str(PACKAGE)]
    return tuple(dict.fromkeys(folder for folder in folders if Path(folder).exists()))


def denied(scratch: Path) -> str | None:
    """Why a command cannot have namespaces of its own on this system, or None: found out by giving it some."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    sandbox = Sandbox(str(scratch), python_folders(), {}, memory=1 << 30)
    trial = subprocess.run(
        sandbox.command(["/usr/bin/env", "true"]), capture_output=True, text=True, env=own_environment()
    )
    return None if trial.returncode == 0 else (trial.stderr.strip().splitlines() or ["it does not say why"])[-1]


def own_environment() -> dict[str, str]:
    """The environment in which the launcher finds this very package."""
    path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class Launcher:
    """A launcher that was forked from this process.

    Args:
        process: its number.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, as `launch` returns it, or None while it runs."""
        if self._code is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self._code = _exit_code(status)
        return self._code

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None where it has not ended after so many seconds."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.poll()

    def kill(self) -> None:
        """End it, and what it has launched."""
        if self.poll() is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self._code = 128 + signal.SIGKILL


def fork(sandbox: Sandbox, run: Callable[[], object], file: int) -> Launcher:
    """Have `run` called in a sandbox, by a process that is forked from this one and keeps one open file of all.

    What this process has in its memory is in that one's, too: there must be no secret in it.
    """
    parent = os.getpid()
    if process := os.fork():
        return Launcher(process)
    try:
        end_with_parent()
        if os.getppid() != parent:  # it ended before that was said
            os._exit(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        for number in map(int, os.listdir("/dev/fd")):
            if number > 2 and number != file:
                with contextlib.suppress(OSError):  # that of the listing
                    os.close(number)
        os._exit(launch(sandbox, partial(_as_if_started, run)))
    except BaseException:
        os._exit(1)


def _as_if_started(run: Callable[[], object]) -> None:
    """Call `run`, with nothing left of what the forked process has noted about where it was started."""
    sys.path[0] = os.getcwd()
    sys.argv = [sys.argv[0]]
    tempfile.tempdir = None
    # Else all forks would draw the same from NumPy. Python's own generator sees to that itself; PyTorch's has one seed.
    if generator := sys.modules.get("numpy.random"):
        generator.seed()
    run()


def launch(sandbox: Sandbox, run: Callable[[], object]) -> int:
    """Call `run` inside, in a process of its own.

    Returns:
        That process's exit code; 128 + n if signal n ended it, or `OUT_OF_MEMORY`.
    """
    end_with_parent()
    if sandbox.cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sandbox.cpu})
    # Root's command runs as a user that owns nothing, and that no other command has: limits count by user.
    user = 60000 + os.getpid() % 5000 if os.getuid() == 0 else os.getuid()
    group = user if os.getuid() == 0 else os.getgid()
    if os.getuid() == 0:
        for path in (sandbox.scratch, *Path(sandbox.scratch).rglob("*")):
            os.chown(path, user, group)
    if sandbox.isolated:
        namespaces.leave()
    elif sys.platform == "linux":
        libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whoever detaches itself stays within reach
    if (child := os.fork()) == 0:
        _first_process(sandbox, run, user, group)
    return _watch(child, sandbox.memory)


def _first_process(sandbox: Sandbox, run: Callable[[], object], user: int, group: int) -> None:
    """Inside: enter the view, have `run` called and wait. All others of the namespace end with this process."""
    try:
        end_with_parent()
        if sys.platform == "linux":
            # The first to go when the machine is out of memory.
            Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
        home = _view(sandbox) if sandbox.isolated else _plain_home(sandbox)
        if os.getuid() != user:
            os.chown(home, user, group)
        if (child := os.fork()) == 0:
            os.chdir(home)
            _give_up_rights(user, group)
            _limit(sandbox)
            with contextlib.nullcontext() if sandbox.isolated else contextlib.suppress(OSError):
                forbid_calls()
            names = {"HOME": home, "TMPDIR": home, "PWD": home, "USER": "student", "LOGNAME": "student"}
            os.environ.clear()
            os.environ.update(sandbox.environment | names)
            run()
            os._exit(0)
        while True:
            ended, status = os.wait()
            if ended == child:
                os._exit(_exit_code(status))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _watch(child: int, memory: int) -> int:
    """Wait for `child`; end it, and all that it started, when together they take more than `memory`."""
    import psutil

    me = psutil.Process()
    code = None
    while code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = _exit_code(status)
        elif _memory(me.children(recursive=True), memory) > memory:
            code = OUT_OF_MEMORY
        else:
            time.sleep(0.1)
    for process in me.children(recursive=True):
        process.kill()
    return code


def _memory(processes: "Sequence[psutil.Process]", enough: int) -> int:
    """Bytes of memory that they take together, with a share of what they share; at most `enough` may be too many."""
    resident = sum(_of_process(process, "memory_info", "rss") for process in processes)
    # What is shared counts for each here, but this costs little, and mostly says that all is well.
    if resident <= enough:
        return resident
    return sum(_of_process(process, "memory_full_info", "pss") for process in processes)


def _of_process(process: "psutil.Process", method: str, field: str) -> int:
    import psutil

    try:
        told = getattr(process, method)()
        return getattr(told, field, told.rss)  # other systems than Linux know of no shares
    except psutil.AccessDenied:
        return process.memory_info().rss
    except psutil.Error:  # it has ended
        return 0


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _view(sandbox: Sandbox) -> str:
    return namespaces.enter(
        sandbox.scratch,
        writable=sandbox.writable,
        shown=sandbox.shown,
        hidden=sandbox.hidden,
        disk=sandbox.disk,
    )


def _plain_home(sandbox: Sandbox) -> str:
    home = f"{sandbox.scratch}/home"
    os.makedirs(home, 0o700, exist_ok=True)
    return home


def _give_up_rights(user: int, group: int) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        # Whoever is not root has every right in the namespace of users, until a command is run, or they are given up.
        head, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_OF_64_BITS, 0), (ctypes.c_uint32 * 6)()
        call("capset", head, none)
        libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self were root's


def _limit(sandbox: Sandbox) -> None:
    import resource  # not on Windows, where the other commands are to be imported all the same

    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: sandbox.seconds,
        resource.RLIMIT_DATA: sandbox.memory,  # not the address space: libraries map gigabytes that they never touch
        resource.RLIMIT_FSIZE: sandbox.disk,
        # A user of its own, or of a namespace, starts from 0; else what the user runs besides counts too.
        resource.RLIMIT_NPROC: sandbox.processes + (0 if sandbox.isolated else _threads_of_user()),
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _threads_of_user() -> int:
    import psutil

    user, threads = os.getuid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is not ours to ask
            if process.uids().real == user:
                threads += process.num_threads()
    return threads


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.exit(launch(Sandbox(**given), partial(os.execvp, sys.argv[2], sys.argv[2:])))
