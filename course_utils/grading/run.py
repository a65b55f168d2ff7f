"""One submission under way: its cells and their checks are run in two sandboxes until every exercise has a verdict.

In one the student's cells run and answer calls (`course_utils.grading.answering`), in the other the checks do
(`course_utils.grading.judge`); a socket between them carries plain data. A cell that ends its process, or takes too
long, loses its own exercise: the notebook is run again without it.
"""

import contextlib
import json
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.grading.assignments import Assignment
from course_utils.grading.forkserver import ForkServer, ServerGone
from course_utils.grading.grades import (
    FAILED,
    KERNEL_DIED,
    MEMORY_LIMIT,
    MISSING,
    NOT_RUN,
    PASSED,
    TIME_LIMIT,
    ExerciseGrade,
)
from course_utils.grading.merge import Pages, Solution, assemble
from course_utils.grading.sandbox import PACKAGE, Sandbox, python_folders
from course_utils.grading.verdicts import NotGraded, Record, enter

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True)
class Limits:
    """What a submission may use.

    Attributes:
        cell_seconds: of a cell.
        seconds: of the whole notebook, however often it has to be run.
        memory: bytes of all its processes together.
    """

    cell_seconds: float = 60
    seconds: float = 600
    memory: int = 4_000_000_000


LIMITS = Limits()
"""Those of a submission for which nobody says others."""

JUDGES = str(PACKAGE / "grading" / "judges")
"""What knows the right answers; a student's process does not see it."""

ENDED = (PASSED, FAILED)
"""Outcomes of an exercise whose cell and check came to their end."""


@dataclass(frozen=True)
class Run:
    """One submission under way."""

    assignment: Assignment
    limits: Limits
    shown: tuple[str, ...]
    environment: dict[str, str]
    forks: ForkServer
    processor: int | None
    isolated: bool
    stop: threading.Event

    def grade(self, solutions: Mapping[str, Solution]) -> tuple[str, list[ExerciseGrade]]:
        """Run the notebook until every exercise has a verdict; returns the status and the exercises.

        Raises:
            NotGraded: the kernel did not start, or a cell of the assignment itself failed.
        """
        end = time.monotonic() + self.limits.seconds
        exercises = {
            exercise.grade_id: ExerciseGrade(
                exercise.grade_id, exercise.title, exercise.points, source=solutions[exercise.grade_id].source
            )
            if exercise.grade_id in solutions
            else ExerciseGrade(
                exercise.grade_id,
                exercise.title,
                exercise.points,
                outcome=MISSING,
                message="the exercise's cell is not there",
            )
            for exercise in self.assignment.exercises
        }
        sources = {name: solution.source for name, solution in solutions.items()}
        while waiting := {name for name, exercise in exercises.items() if exercise.outcome == NOT_RUN}:
            pages = assemble(self.assignment, sources, waiting, self.limits.cell_seconds)
            try:
                records = self._run(pages, end)
            except ServerGone:  # whatever has ended it: this run tells nothing of this submission
                records = self._run(pages, end)
            ended = enter(records, pages.roles, exercises)
            if ended is None:
                break
            fatal, reason = ended
            if exercises[fatal].outcome == NOT_RUN:
                exercises[fatal] = replace(exercises[fatal], outcome=reason, message=self._why(reason))
            sources.pop(fatal, None)
            if time.monotonic() > end:
                break
        graded = [
            replace(exercise, message=f"the notebook's time limit of {self.limits.seconds:g} s had passed")
            if exercise.outcome == NOT_RUN
            else exercise
            for exercise in exercises.values()
        ]
        notes = [f"{exercise.grade_id}: {exercise.outcome}" for exercise in graded if exercise.outcome not in ENDED]
        notes += [f"{name}: there twice, the last counts" for name, solution in solutions.items() if solution.several]
        return "; ".join(["graded", *notes]), graded

    def _why(self, reason: str) -> str:
        return {
            TIME_LIMIT: f"stopped: the cell or its check took more than {self.limits.cell_seconds:g} s",
            MEMORY_LIMIT: f"stopped: it took more than {self.limits.memory / 1e9:g} GB of memory",
        }.get(reason, "it ended the kernel")

    def _sandbox(self, scratch: Path, *, writable: bool, hidden: tuple[str, ...] = ()) -> Sandbox:
        return Sandbox(
            scratch=str(scratch),
            writable=writable,
            hidden=hidden,
            shown=(*python_folders(), *self.shown),
            environment=self.environment,
            memory=self.limits.memory,
            seconds=int(self.limits.seconds) + 1,
            cpu=self.processor,
            isolated=self.isolated,
        )

    def _run(self, pages: Pages, end: float) -> list[Record]:
        """Run a notebook once; what nbval told of each cell that was begun, in order."""
        import nbformat  # of the extra `grading`

        # Neither sandbox sees the other's folder, nor the notebook's. The judge's kernel has its sockets in its own.
        with scratch_folder() as outer, scratch_folder() as own, scratch_folder() as scratch:
            path = outer / "notebook.ipynb"
            nbformat.write(pages.judged, path)
            (own / "cells.json").write_text(json.dumps(pages.answering), encoding="utf-8")
            asked = {
                "notebook": str(path),
                "cells": str(own / "cells.json"),
                "student": asdict(self._sandbox(own, writable=False, hidden=(JUDGES,))),
                "judges": asdict(self._sandbox(scratch, writable=True)),
            }
            read, write = os.pipe()
            with open(outer / "log", "wb") as log, open(read, "rb", buffering=0) as pipe:
                try:
                    fork = self.forks.fork(asked, log.fileno(), write)
                finally:
                    os.close(write)
                try:
                    records, timed_out = self._listen(pipe, end)
                finally:
                    _end(fork.process)
            if fork.abandoned:
                raise ServerGone("the server that forks has ended")
            if not records:
                told = (outer / "log").read_text(errors="replace", encoding="utf-8").strip().splitlines()
                raise NotGraded(f"pytest did not run ({told[-1] if told else 'it told nothing'})")
            if len(records) < len(pages.roles) and records[-1]["state"] not in ("ended", "not started"):
                # pytest itself is gone, or was ended: by what it was running then
                error = TIME_LIMIT if timed_out else KERNEL_DIED
                records.append({"cell": len(records), "state": "ended", "outputs": [{"error": error}]})
            return records

    def _listen(self, pipe: FileIO, end: float) -> tuple[list[Record], bool]:
        """What pytest writes until it closes the pipe or the notebook's time is over; whether it was over."""
        heard = bytearray()
        timed_out = False
        while True:
            if self.stop.is_set():
                raise NotGraded("stopped")
            if timed_out := time.monotonic() > end:
                break
            if select.select([pipe], [], [], 0.2)[0]:
                part = pipe.read(1 << 16)
                if not part:
                    break
                heard += part
        whole = bytes(heard).rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()], timed_out


def environment_of_sandboxes() -> dict[str, str]:
    """What every sandbox's environment holds."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PIP_NO_INDEX": "1",  # a line `%pip install` is told at once that there is no network
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def _end(process: "psutil.Process") -> None:
    """End pytest and whatever it started."""
    import psutil  # of the extra `grading`

    ended = [process]
    with contextlib.suppress(psutil.Error):
        ended += process.children(recursive=True)
    for each in ended:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(ended, timeout=10)


@contextlib.contextmanager
def scratch_folder() -> Generator[Path, None, None]:
    """A folder for a run, with a short name: paths of sockets may have 100 characters."""
    path = Path(tempfile.mkdtemp(prefix="grade-")).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
