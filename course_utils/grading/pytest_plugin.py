"""A plugin of pytest, beside nbval's: judge and student are in sandboxes, and verdicts go where they cannot reach.

`pytest -p nbval.plugin -p course_utils.grading.pytest_plugin NOTEBOOK` runs in a process of its own, outside the
sandboxes. The notebook's file is deleted as soon as it has been read, before anything of the student's starts. What
each cell came to is written, a line of JSON for each cell, to the pipe `GRADING_PIPE`, which nothing inherits. A
process that ends, or takes too long for a cell, ends the run; `course_utils.grading.run` decides what happens then.
"""

import contextlib
import json
import math
import os
import resource
import socket
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from queue import Empty
from typing import Any

# ruff: noqa: E402
from course_utils.lean import spare_seconds

spare_seconds()

import nbval.plugin
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from course_utils.grading.grades import KERNEL_DIED, MEMORY_LIMIT, TIME_LIMIT
from course_utils.grading.sandbox import OUT_OF_MEMORY, end_with_parent
from course_utils.grading.verdicts import Output, Record

OWN_MEMORY = 2 << 30
"""Bytes that this process may take: what a kernel sends fills no more."""

NEARLY = 0.95
"""Of the memory that a submission may take: with less left, what the next cell comes to says nothing of that cell."""

SECONDS_TO_END = 2
"""How long the launcher of a sandbox takes to end after what runs in it."""

TEXT, PICTURE, PICTURES = 20_000, 2_000_000, 6
"""What is kept of a cell's output: characters, bytes of base64 of a picture, pictures."""


class KernelEnded(Exception):
    """The kernel is gone, or has to go."""


class _Judge(KernelSpecManager):
    """The one kernel there is: its command, in a sandbox, is given from outside.

    Args:
        number: of the socket to the student's process.
    """

    def __init__(self, number: int):
        super().__init__()
        self._number = number

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [*json.loads(os.environ["GRADING_JUDGE"]), str(self._number), "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="judge", language="python")


class SandboxedKernel(RunningKernel):
    """nbval's kernel, in a sandbox, and the student's process in another, with a socket between the two.

    The kernel is reached by sockets in a folder, as it has no network.
    """

    def __init__(self, kernel_name: str, cwd: str | None = None, startup_timeout: float = 60):
        of_judge, of_student = socket.socketpair()
        self.km = KernelManager(
            kernel_spec_manager=_Judge(of_judge.fileno()),
            transport="ipc",
            connection_file=os.environ["GRADING_CONNECTION"],
        )
        self.status = "ok"
        nothing = subprocess.DEVNULL
        with of_judge, of_student:
            command = [*json.loads(os.environ["GRADING_STUDENT"]), str(of_student.fileno())]
            self.student = subprocess.Popen(
                command, pass_fds=[of_student.fileno()], stdin=nothing, stdout=nothing, stderr=nothing
            )
            self.km.start_kernel(pass_fds=[of_judge.fileno()], stdin=nothing, stdout=nothing, stderr=nothing)
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=startup_timeout)

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        """As nbval's, but a dead kernel is noticed at once."""
        end = time.monotonic() + (30 if stream == "iopub" else timeout or 0)
        while True:
            try:
                return super().get_message(stream, timeout=0.2)
            except Empty:
                if not self.km.is_alive() or self.student.poll() is not None:
                    raise KernelEnded(self._cause()) from None
                if time.monotonic() > end:
                    raise KernelEnded(TIME_LIMIT) from None

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        end = time.monotonic() + (timeout or 0)
        while True:
            message = self.get_message("shell", timeout=end - time.monotonic())
            if message["parent_header"].get("msg_id") == msg_id:
                self.status = message["content"]["status"]
                return

    def _cause(self) -> str:
        """Of the end of the student's process, which the judge's follows, or the other way round."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.student.wait(SECONDS_TO_END)
        judge = getattr(self.km.provisioner, "process", None)
        codes = [self.student.poll(), None if judge is None else judge.poll()]
        return MEMORY_LIMIT if OUT_OF_MEMORY in codes else KERNEL_DIED

    def keeps_nearly_all_memory(self) -> bool:
        """Whether a process of the student's has nearly reached its limit; not known where the system does not tell."""
        import psutil

        with contextlib.suppress(psutil.Error):  # it has ended, which is noticed otherwise
            inside = psutil.Process(self.student.pid).children(recursive=True)
            limit = NEARLY * int(os.environ["GRADING_MEMORY"])
            # What the limit counts (RLIMIT_DATA): also memory that was asked for and never written to.
            return any(getattr(one.memory_info(), "data", 0) > limit for one in inside)
        return False

    def stop(self) -> None:
        """End both."""
        super().stop()
        self.student.kill()
        self.student.wait()


vars(nbval.plugin)["RunningKernel"] = SandboxedKernel


def pytest_configure(config: pytest.Config) -> None:
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (OWN_MEMORY, OWN_MEMORY))
    os.set_inheritable(_pipe(), False)


def pytest_collection_finish(session: pytest.Session) -> None:
    for path in {item.path for item in session.items}:
        path.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: IPyNbCell) -> Generator[None, object, object]:
    """Each cell has its own limit of time; one whose kernel replied that it failed has failed, whatever it told.

    A cell that keeps nearly all memory ends the run, also where no `MemoryError` was shown.
    """
    item.config.option.nbval_cell_timeout = item.cell.metadata.get("seconds", math.inf)
    notebook = item.getparent(IPyNbFile)
    kernel = None if notebook is None else notebook.kernel
    try:
        result = yield
    finally:
        if isinstance(kernel, SandboxedKernel) and kernel.keeps_nearly_all_memory():
            raise KernelEnded(MEMORY_LIMIT)
    if not isinstance(kernel, SandboxedKernel) or kernel.status != "ok":
        raise RuntimeError("the cell failed")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: IPyNbCell, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if call.when == "call" or error is not None:
        ended = isinstance(error, KernelEnded)
        state = "ended" if ended else "not started" if call.when == "setup" else report.outcome
        outputs = list(_outputs(item.test_outputs or []))
        if ended or (error is not None and not any("error" in output for output in outputs)):
            outputs.append({"error": str(error)[:TEXT], "traceback": ""})
        _tell({"cell": item.cell_num, "state": state, "outputs": outputs})
        if state in ("ended", "not started"):
            item.session.shouldstop = state
    return report


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Iterator[Output]:
    """What a page for the student shows of a cell's outputs: text, pictures, and how it failed."""
    text, pictures = 0, 0
    for output in outputs:
        kind = output["output_type"]
        data = output.get("data", {})
        if kind == "error":
            traceback = "\n".join(map(str, output["traceback"]))
            yield {"error": f"{output['ename']}: {output['evalue']}"[:TEXT], "traceback": traceback[-TEXT:]}
        elif "image/png" in data:
            picture = data["image/png"]
            if isinstance(picture, str) and len(picture) <= PICTURE and pictures < PICTURES:
                pictures += 1
                yield {"picture": picture}
        elif written := str(output.get("text") or data.get("text/plain") or "")[: TEXT - text]:
            text += len(written)
            yield {"text": written}


def _tell(record: Record) -> None:
    line = json.dumps(record).encode() + b"\n"
    while line:
        line = line[os.write(_pipe(), line) :]


def _pipe() -> int:
    return int(os.environ["GRADING_PIPE"])
