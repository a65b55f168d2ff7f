"""A process that registers one pair, seen from the server: started ahead of time, told what to do, and ended."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from course_utils.serving.request import Request

COMMAND = (sys.executable, "-m", "course_utils.serving.worker")


class Worker:
    """A process that has begun to import what a registration needs.

    Args:
        root: The server's folder, which the process deletes when the server has ended.
    """

    def __init__(self, root: Path) -> None:
        # A session of its own: Ctrl-C in the server's terminal is the server's to hear.
        self._process = subprocess.Popen(
            [*COMMAND, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def run(self, request: Request, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Have the process do its work, and wait for it; see `worker.work` for `tell`.

        Returns:
            What `worker.answer` returns; `{"error": ...}`, too, where the process ended on the way; None where it had
            ended before it began.
        """
        last: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):  # it has ended: that is told below
            line = json.dumps(asdict(request)) + "\n"
            self._pipe(self._process.stdin).write(line.encode())
            self._pipe(self._process.stdin).flush()
            for said in self._pipe(self._process.stdout):
                last = json.loads(said)
                if "stage" in last:
                    tell(last)
        self.end()
        if "stage" in last:
            return {
                "error": "the process that registered was ended from outside, perhaps for want of memory: try again, "
                "or give smaller scans"
            }
        return last or None

    def kill(self) -> None:
        """End the process now, whatever it does; `run`, in another thread, returns."""
        self._process.kill()

    def end(self) -> None:
        """End the process and wait until it is gone."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # the other end is gone
                self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None  # both were asked for
        return pipe
