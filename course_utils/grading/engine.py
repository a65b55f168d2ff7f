"""A class of submissions graded: the cells of each in a sandbox, the checks in another, under pytest with nbval.

Of a submission only the solution cells count. They run in a process that knows no check
(`course_utils.grading.answering`). The assignment as it was given out runs in a second one, the judge's, in which calls
of the student's functions go to the first and plain data comes back (`course_utils.grading.standins`). So code of a
student's can change its own answers and nothing else, and verdicts are read from nbval, outside of both.

docs/teachers.md says what this guarantees and what it does not. Where the system denies namespaces nothing is graded,
unless it is allowed, and `ClassGrades.denied` says so.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from course_utils.errors import CourseError
from course_utils.files import replacing
from course_utils.grading.assignments import Assignment
from course_utils.grading.forkserver import ForkServer
from course_utils.grading.grades import (
    KERNEL_DIED,
    MISSING,
    NOT_RUN,
    TIME_LIMIT,
    ClassGrades,
    ExerciseGrade,
    Grade,
)
from course_utils.grading.merge import Understood, understand, with_hints
from course_utils.grading.printable import some
from course_utils.grading.run import LIMITS, Limits, Run, environment_of_sandboxes, scratch_folder
from course_utils.grading.sandbox import PACKAGE, Sandbox, denied, own_environment
from course_utils.grading.submissions import Submission
from course_utils.grading.verdicts import NotGraded
from course_utils.progress import track

if TYPE_CHECKING:
    from nbformat import NotebookNode

MOST_FAILURES = 3
"""Students of whom nothing could be graded, before it is given up where nobody else could be either."""


def grade(
    submissions: Sequence[Submission],
    assignments: Sequence[Assignment],
    *,
    limits: Limits = LIMITS,
    workers: int = 1,
    shown: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    cache: Path | None = None,
    force: bool = False,
    allow_unisolated: bool = False,
    warn: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> ClassGrades:
    """Grade submissions, each (student, assignment) once.

    A student who handed in an assignment several times gets the best of them, whatever their order. A submission at
    which the machine or this very program fails is not graded, which its status says; the others are.

    A kernel that died and a limit of time may be the doing of whatever ran beside: what ended so is run a second time,
    alone, before it is remembered, and the second time counts.

    Args:
        submissions: see `course_utils.grading.submissions.find_submissions`.
        assignments: what they may be submissions of.
        workers: how many are graded at a time, each on a processor of its own.
        shown: files and folders that the kernels may read.
        environment: variables that the kernels see, besides those that every sandbox has.
        cache: a folder in which grades are kept; what has not changed since is not run again. Without one nothing is
            run a second time.
        force: run again what is kept in `cache`, too.
        allow_unisolated: grade without namespaces too, where the system denies them.
        warn: told, before anything of a student's runs, that there are none.
        progress: tell on stderr how many are done.

    Raises:
        CourseError: this system lets no sandbox be made, or none with namespaces unless that is allowed, or not a
            single submission can be run.
    """
    why = _isolation()
    if why is not None and not allow_unisolated:
        raise CourseError(
            f"this system denies a sandbox ({why}), and students' code could reach the network and other files: grade "
            "in a container, as the page for teachers says, or accept that with --allow-unisolated"
        )
    if why is not None:
        warn(f"not isolated: {why}; the network and other files are in reach of the submissions")
    given = dict(environment or {})
    environment = environment_of_sandboxes() | given
    forks = ForkServer(environment)
    settings = {
        "engine": _engine_hash(),
        "limits": asdict(limits),
        "environment": given,
        "isolated": why is None,
    }
    by_name = {assignment.name: assignment for assignment in assignments}
    free: SimpleQueue[int | None] = SimpleQueue()
    for processor in _one_each(workers):
        free.put(processor)
    stop = threading.Event()
    fresh: set[str] = set()

    def outcome(understood: Understood, assignment: Assignment, alone: bool) -> tuple[_Remembered, bool]:
        """What came of a notebook, and whether that has to be seen once more before it is remembered."""
        key = _hash([settings, _content(assignment.notebook), understood.solutions])
        path = None if cache is None else cache / f"{key}.json"
        known = _remembered(path) if path is not None and (not force or key in fresh) else None
        doubtful = False
        if known is None:
            processor = free.get()
            try:
                run = Run(assignment, limits, tuple(map(str, shown)), environment, forks, processor, why is None, stop)
                known = _Remembered(*run.grade(understood.solutions))
            finally:
                free.put(processor)
            doubtful = path is not None and not alone and known.is_of_the_moment
            if path is not None and not doubtful:
                _remember(path, known)
                fresh.add(key)
        return known, doubtful

    def work(submission: Submission, alone: bool = False) -> _Worked:
        assignment = None
        try:
            understood = understand(submission, assignments)
            assignment = by_name.get(understood.assignment)
            if assignment is None or understood.problem is not None:
                return _Worked(submission, _nothing(submission, assignment, understood.problem or ""))
            known, again = outcome(understood, assignment, alone)
            exercises = with_hints(known.exercises, understood.elsewhere)
            return _Worked(submission, _grade(submission, assignment, known.status, exercises), True, again)
        except CourseError:
            raise
        except NotGraded as error:
            status = f"not graded ({error}): grade it again"
            return _Worked(submission, _nothing(submission, assignment, status, NOT_RUN), failure=str(error))
        except Exception as error:  # whatever it is, it concerns this submission and no other
            told = " ".join(f"{type(error).__name__}: {error}".split())
            status = f"not graded, for the grader failed ({told}): grade it again, or by hand"
            return _Worked(submission, _nothing(submission, assignment, status, NOT_RUN))

    done: list[_Worked] = []
    executor = ThreadPoolExecutor(workers)
    try:
        waiting = [executor.submit(work, submission) for submission in submissions]
        for future in track(as_completed(waiting), "grading", len(waiting), show=progress):
            done.append(future.result())
            if len({worked.submission.student for worked in done if worked.failure}) >= MOST_FAILURES:
                _check_that_some_succeed(done, len(submissions))
        _check_that_some_succeed(done, len(submissions))
        again = sorted((worked.submission for worked in done if worked.again), key=lambda each: each.where)
        done = [worked for worked in done if not worked.again]
        for submission in track(again, "once more, alone", len(again), show=progress and bool(again)):
            done.append(executor.submit(work, submission, alone=True).result())
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
        forks.close()
    return ClassGrades(_best([worked.grade for worked in done]), why, _remarks(done))


class _Worked(NamedTuple):
    """What came of a submission.

    Attributes:
        submission: that it is about.
        grade: of it.
        has_run: its notebook has, now or when it was remembered.
        again: how it ended may be the machine's doing: it is to be run once more, with nothing beside it.
        failure: why the machine could not grade it, or "".
    """

    submission: Submission
    grade: Grade
    has_run: bool = False
    again: bool = False
    failure: str = ""


def _check_that_some_succeed(done: Sequence[_Worked], count: int) -> None:
    """One failure is that of a submission; where there is nothing else, it is the machine's.

    Raises:
        CourseError: nothing that was to be run could be.
    """
    failures = [worked.failure for worked in done if worked.failure]
    if failures and not any(worked.has_run for worked in done):
        raise CourseError(
            f"{len(failures)} of {count} submissions were not graded ({failures[0]}): mend that and grade again"
        )


def _remarks(done: Sequence[_Worked]) -> list[str]:
    failures = [worked for worked in done if worked.failure]
    if not failures:
        return []
    students = some(sorted({worked.submission.student for worked in failures}))
    return [f"not graded, for the machine failed at it ({failures[0].failure}): {students}: grade again"]


def _best(grades: Sequence[Grade]) -> list[Grade]:
    """One grade for each student and assignment: the best, of equals the first path."""
    versions: dict[tuple[str, str], list[Grade]] = {}
    for grade in sorted(grades, key=lambda grade: (grade.student, grade.assignment, grade.where)):
        versions.setdefault((grade.student, grade.assignment), []).append(grade)
    best = []
    for handed_in in versions.values():
        chosen = max(handed_in, key=lambda grade: grade.total)
        status = f"{chosen.status}; handed in {len(handed_in)} times, best: {chosen.where}"
        places = sorted({place for grade in handed_in for place in grade.places})
        if len(places) > 1:
            status += f"; may be several people's: {some(places)}"
        best.append(replace(chosen, status=status, places=places) if len(handed_in) > 1 else chosen)
    return best


def _nothing(submission: Submission, assignment: Assignment | None, problem: str, outcome: str = MISSING) -> Grade:
    exercises = [] if assignment is None else assignment.exercises
    none = [ExerciseGrade(each.grade_id, each.title, each.points, outcome=outcome) for each in exercises]
    return _grade(submission, assignment, problem, none)


def _grade(submission: Submission, assignment: Assignment | None, status: str, exercises: list[ExerciseGrade]) -> Grade:
    name = "" if assignment is None else assignment.name
    return Grade(submission.student, submission.where, name, status, exercises, [submission.place])


def _isolation() -> str | None:
    """Why there are no namespaces here, or None.

    Raises:
        CourseError: not even an ordinary user's rights can be had.
    """
    with scratch_folder() as scratch:
        why = denied(scratch)
    if why is not None:
        with scratch_folder() as scratch:
            plain_sandbox = Sandbox(str(scratch), (), {}, memory=1 << 30, isolated=False)
            command = plain_sandbox.command([sys.executable, "-c", "import course_utils"])
            trial = subprocess.run(command, capture_output=True, text=True, env=own_environment())
        if trial.returncode != 0:
            raise CourseError(
                f"students' code cannot be run here with an ordinary user's rights ({why}): grade as a user who is not "
                "root, or where Linux allows namespaces"
            )
    return why


def processors() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _one_each(workers: int) -> list[int | None]:
    """A processor for each worker, or None where there are not enough."""
    available = processors()
    return [*available[:workers]] if workers <= len(available) else [None] * workers


def _engine_hash() -> str:
    """Of everything in `course_utils`: a check may call any of it."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _content(notebook: "NotebookNode") -> list[list[object]]:
    return [[cell.cell_type, cell.source, dict(cell.metadata.nbgrader)] for cell in notebook.cells]


def _hash(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Remembered:
    """What the cache keeps of a graded submission: all but whose it is."""

    status: str
    exercises: list[ExerciseGrade]

    @property
    def is_of_the_moment(self) -> bool:
        """Whether a machine with more to spare might have come to something else."""
        return any(exercise.outcome in (TIME_LIMIT, KERNEL_DIED, NOT_RUN) for exercise in self.exercises)


def _remembered(path: Path) -> _Remembered | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return _Remembered(known["status"], [ExerciseGrade(**fields) for fields in known["exercises"]])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remember(path: Path, graded: _Remembered) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(asdict(graded)), encoding="utf-8")
