"""How long grading a class takes, and the memory of a submission: `python -m tests.benchmarks.grading --count 100`.

The class is that of tests/grading/class_of_submissions.py, hostile submissions included, and the table has to be the
expected one. Seconds depend on what else the machine does; processor seconds, which are counted over all processes,
hardly do.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from course_utils.commands.ending import run
from course_utils.errors import CourseError


def main(
    count: Annotated[int, typer.Option(help="Submissions.", min=1)] = 100,
    workers: Annotated[int, typer.Option(help="At a time.", min=1)] = 2,
) -> None:
    """Measure grading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [sys.executable, "-m", "tests.grading.class_of_submissions", name, "--count", str(count)]
        subprocess.run(made, check=True)
        command = [sys.executable, "-m", "course_utils", "grade", str(folder / "submissions")]
        command += ["--out", str(folder / "grades"), "--workers", str(workers), "--allow-unisolated"]
        began = time.perf_counter()
        processor, peak = _watch(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        seconds = time.perf_counter() - began
        if (folder / "grades" / "grades.csv").read_bytes() != (folder / "expected.csv").read_bytes():
            raise CourseError("the table is not the expected one: grade the same class by hand and compare")
    print(f"{count} submissions, {workers} workers: {seconds / 60:.1f} minutes, the table as expected")
    print(f"{processor / count:.1f} processor seconds a submission, peak memory of one {peak / 1e6:.0f} MB")


def _watch(grading: subprocess.Popen) -> tuple[float, float]:
    """Processor seconds of all processes, and the largest memory of a submission's.

    Memory (bytes) is what no other process has a part in, added up over pytest, the judge's process and the student's.
    """
    used: dict[tuple[int, float], float] = {}
    peak = 0
    while grading.poll() is None:
        try:
            top = psutil.Process(grading.pid)
            for process in (top, *top.children(recursive=True)):
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
            for server in top.children():
                for fork in server.children():
                    peak = max(peak, sum(process.memory_full_info().uss for process in _family(fork)))
        except psutil.Error:  # one has just ended
            continue
        time.sleep(0.1)
    return sum(used.values()), peak


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    run(app)
