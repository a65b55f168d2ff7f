"""A notebook judged by pytest with nbval: judge and student are in sandboxes, and verdicts go where neither reaches.

`judge_notebook` is called in a process of its own, outside the sandboxes. The notebook's file is deleted as soon as it
has been read. What each cell came to is written, a line of JSON for each cell, to a pipe that no sandbox inherits. A
process that ends, or takes too long for a cell, ends the run; `course_utils.grading.run` decides what happens then.
"""

import contextlib
import json
import math
import os
import resource
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import nbval.plugin
import psutil
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from course_utils.grading import answering, judge
from course_utils.grading.grades import KERNEL_DIED, MEMORY_LIMIT, PICTURE, PICTURES, TEXT, TIME_LIMIT
from course_utils.grading.sandbox import OUT_OF_MEMORY, Launcher, Sandbox, fork
from course_utils.grading.verdicts import Output, Record

OWN_MEMORY = 2 << 30
"""Bytes that this process may take: what a kernel sends fills no more."""

NEARLY = 0.95
"""Of the memory that a submission may take: with less left, what the next cell comes to says nothing of that cell."""

SECONDS_TO_START = 60
"""How long the judge's kernel may take to be heard, on a busy machine."""

SECONDS_TO_END = 2
"""How long the launcher of a sandbox takes to end after what runs in it."""


class KernelEnded(Exception):
    """The kernel is gone, or has to go."""


class SandboxedKernel(RunningKernel):
    """nbval's kernel: the judge's process in a sandbox, beside the student's in another.

    It is reached by sockets in a folder, as it has no network.

    Args:
        student: the launcher of the student's process.
        judge: that of the kernel.
        connection: the file that says how the kernel is reached.
        memory: bytes that the student's processes may take.
    """

    def __init__(self, student: Launcher, judge: Launcher, connection: str, memory: int) -> None:
        self._student, self._judge, self._memory = student, judge, memory
        self.status = "ok"
        self.kc = BlockingKernelClient()
        self.kc.load_connection_file(connection)
        self.kc.start_channels(hb=False, stdin=False, control=False)
        self._meet()

    def _meet(self) -> None:
        """Wait until the kernel is heard: who listens too late hears nothing of the first cell."""
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            asked = self.kc.kernel_info()
            with contextlib.suppress(Empty):
                while self.kc.get_iopub_msg(timeout=0.1)["parent_header"].get("msg_id") != asked:
                    pass
                return
            if not self.is_alive():
                raise KernelEnded(self._cause())
        raise KernelEnded(TIME_LIMIT)

    def is_alive(self) -> bool:
        """Whether both processes are."""
        return self._judge.poll() is None and self._student.poll() is None

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        """As nbval's, but a dead kernel is noticed at once."""
        end = time.monotonic() + (30 if stream == "iopub" else timeout or 0)
        while True:
            try:
                return super().get_message(stream, timeout=0.2)
            except Empty:
                if not self.is_alive():
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
        codes = [self._student.wait(SECONDS_TO_END), self._judge.poll()]
        return MEMORY_LIMIT if OUT_OF_MEMORY in codes else KERNEL_DIED

    def keeps_nearly_all_memory(self) -> bool:
        """Whether a process of the student's has nearly reached its limit; not known where the system does not tell."""
        with contextlib.suppress(psutil.Error):  # it has ended, which is noticed otherwise
            inside = psutil.Process(self._student.process).children(recursive=True)
            # What the limit counts (RLIMIT_DATA): also memory that was asked for and never written to.
            return any(getattr(one.memory_info(), "data", 0) > NEARLY * self._memory for one in inside)
        return False

    def stop(self) -> None:
        """End both."""
        self.kc.stop_channels()
        self._judge.kill()
        self._student.kill()


def judge_notebook(notebook: str, cells: str, student: dict[str, Any], judges: dict[str, Any], pipe: int) -> None:
    """Run a notebook in the judge's process, beside a student's.

    Args:
        notebook: the judge's, in a folder of its own.
        cells: the file of the student's cells, in the folder that the student's sandbox sees.
        student: fields of the student's sandbox.
        judges: of the judge's.
        pipe: where what the cells came to is told; closed in the sandboxes.
    """
    for_student, for_judge = Sandbox(**student), Sandbox(**judges)
    connection = f"{for_judge.scratch}/kernel.json"
    of_judge, of_student = socket.socketpair()
    with of_judge, of_student:
        # First of all: what this process reads and makes from here on is not for the student's.
        number = of_student.fileno()
        students = fork(for_student, partial(answering.main, Path(cells), number), number)
        write_connection_file(
            connection, transport="ipc", ip=f"{for_judge.scratch}/kernel", key=os.urandom(32).hex().encode()
        )
        number = of_judge.fileno()
        kernel = fork(for_judge, partial(judge.main, number, connection), number)
    resource.setrlimit(resource.RLIMIT_DATA, (OWN_MEMORY, OWN_MEMORY))
    folder = Path(notebook).parent
    os.chdir(folder)
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", JUPYTER_RUNTIME_DIR=str(folder), IPYTHONDIR=str(folder))
    vars(nbval.plugin)["RunningKernel"] = lambda *_, **__: SandboxedKernel(
        students, kernel, connection, for_student.memory
    )
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    options = ["-q", "-p", "nbval.plugin", "-p", "no:cacheprovider", "--noconftest", "-c", str(folder / "pytest.ini")]
    pytest.main([*options, "--nbval-lax", notebook], plugins=[Verdicts(pipe)])


class Verdicts:
    """What pytest asks of a plugin: limits for each cell, and what it came to is told.

    Args:
        pipe: where it is told.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Delete the notebook: it has been read."""
        for path in {item.path for item in session.items}:
            path.unlink()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: IPyNbCell) -> Generator[None, object, object]:
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
        self, item: IPyNbCell, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if call.when == "call" or error is not None:
            ended = isinstance(error, KernelEnded)
            state = "ended" if ended else "not started" if call.when == "setup" else report.outcome
            outputs = list(_outputs(item.test_outputs or []))
            if ended or (error is not None and not any("error" in output for output in outputs)):
                outputs.append({"error": str(error)[:TEXT], "traceback": ""})
            self._tell({"cell": item.cell_num, "state": state, "outputs": outputs})
            if state in ("ended", "not started"):
                item.session.shouldstop = state
        return report

    def _tell(self, record: Record) -> None:
        line = json.dumps(record).encode() + b"\n"
        while line:
            line = line[os.write(self._pipe, line) :]


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
