"""A process that has imported what every submission needs, and forks for each: the imports take longer than the work.

It holds nothing of a student's and nothing of an assignment's, for whatever is in its memory is in that of all its
forks. It ends when whoever has started it does.

`python -m course_utils.grading.forkserver NUMBER` starts it; NUMBER is of the socket to who asks.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from course_utils.grading.linux import end_with_parent
from course_utils.grading.sandbox import PACKAGE
from course_utils.grading.verdicts import NotGraded
from course_utils.lean import spare_seconds

if TYPE_CHECKING:
    import psutil

NEEDED = ("course_utils.grading.answering", "course_utils.grading.judge", "course_utils.grading.judging")
"""Without these nothing can be graded."""

OFTEN = (
    "matplotlib.pyplot",
    "monai.data",
    "monai.losses",
    "monai.networks.blocks",
    "monai.transforms",
    "nibabel",
    "course_utils.data.cohorts",
    "course_utils.data.loading",
    "course_utils.data.synthetic",
    "course_utils.fields",
    "course_utils.losses",
    "course_utils.metrics",
    "course_utils.networks",
    "course_utils.plotting",
    "course_utils.session",
)
"""What most assignments import. None of the judges: a student's process would have the right answers in its memory."""

_HEAD = struct.Struct("<Q")


class ServerGone(NotGraded):
    """The server could not be started, or has ended: no memory was left, say."""


class Fork(NamedTuple):
    """A process that a server has forked.

    Attributes:
        process: itself.
        server: from which it has come, and with which it ends.
    """

    process: "psutil.Process"
    server: "subprocess.Popen[bytes]"

    @property
    def abandoned(self) -> bool:
        """Whether the server has ended, and has ended it."""
        return self.server.poll() is not None


class ForkServer:
    """The line to a fork server, which starts when it is needed, and anew should it be gone.

    Args:
        environment: its whole environment, but for its home.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._alone = threading.Lock()
        self._open = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End it, and all its forks."""
        with self._alone:
            self._open.close()

    def fork(self, asked: Mapping[str, Any], log: int, pipe: int) -> Fork:
        """Have `course_utils.grading.judging.judge_notebook` called by a fork of its own.

        Args:
            asked: its arguments.
            log: the file where it writes what it prints.
            pipe: the file where it writes what the cells came to.

        Raises:
            ServerGone: there is no server, or it gives none.
        """
        import psutil  # of the extra `grading`

        told = json.dumps(asked).encode()
        with self._alone:
            server = self._process
            if server is None or server.poll() is not None:
                server = self._process = self._start()
            try:
                socket.send_fds(self._line, [_HEAD.pack(len(told))], [log, pipe])
                self._line.sendall(told)
                (number,) = _HEAD.unpack(_read(self._line, _HEAD.size))
                return Fork(psutil.Process(number), server)
            except (OSError, EOFError, psutil.NoSuchProcess):
                raise ServerGone(f"no process could be had ({self._said()})") from None

    def _start(self) -> "subprocess.Popen[bytes]":
        self._open.close()
        home = self._open.enter_context(tempfile.TemporaryDirectory(prefix="grade-"))
        self._log = Path(home, "log")
        self._line, theirs = socket.socketpair()
        self._open.enter_context(self._line)
        with theirs, open(self._log, "wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "course_utils.grading.forkserver", str(theirs.fileno())],
                env={**self._environment, "HOME": home, "TMPDIR": home},
                cwd=PACKAGE.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
        self._open.callback(_end, server)
        return server

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else "it told nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def main(number: int) -> None:
    """Import, then fork whenever it is asked for, until nobody can ask any more."""
    spare_seconds()
    for name in NEEDED:
        importlib.import_module(name)
    # Elsewhere a fork may not go on with what those libraries have begun: there each imports for itself.
    if sys.platform == "linux":
        for name in OFTEN:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    os.set_inheritable(number, False)
    with socket.socket(fileno=number) as line, contextlib.suppress(EOFError, OSError):
        while True:
            head, files, _, _ = socket.recv_fds(line, _HEAD.size, 2)
            told = _read(line, *_HEAD.unpack(head or _nobody()))
            if (child := os.fork()) == 0:
                line.close()
                _judge(json.loads(told), files)
            for file in files:
                os.close(file)
            line.sendall(_HEAD.pack(child))


def _judge(asked: dict[str, Any], files: Sequence[int]) -> None:
    """In the fork: judge a notebook, and end."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end_with_parent()
        log, pipe = files
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        module = importlib.import_module("course_utils.grading.judging")
        module.judge_notebook(**asked, pipe=pipe)
        sys.stdout.flush()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _read(line: socket.socket, size: int) -> bytes:
    """As many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    found = b""
    while len(found) < size:
        found += line.recv(size - len(found)) or _nobody()
    return found


def _nobody() -> bytes:
    raise EOFError


if __name__ == "__main__":
    # Under its own name: `__main__` is the page of whoever is forked.
    importlib.import_module("course_utils.grading.forkserver").main(int(sys.argv[1]))
