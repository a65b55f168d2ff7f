"""A class of submissions graded: each in a kernel of its own, in a sandbox, under pytest with nbval.

Of a submission only the solution cells count. They are put into the assignment as it was given out, so what a student
did to other cells changes nothing. Verdicts are read from nbval, outside the sandbox; what a cell prints decides
nothing.

What this cannot stop: the check runs in one process with the student's code. Code written against
`course_utils.grading.kernel` itself, which patches it through the garbage collector, say, or answers its messages by
hand, can still forge a pass, and can hand a hidden test's text on in the message of an exception. It cannot touch
another student's grade, for that is another process, in another sandbox; where the system denies one,
`ClassGrades.denied` says so. Whoever gives grades that matter reads the cells of the best, which feedback pages show.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from course_utils.errors import CourseError
from course_utils.files import replacing
from course_utils.grading.assignments import Assignment
from course_utils.grading.grades import MISSING, NOT_RUN, ClassGrades, ExerciseGrade, Grade
from course_utils.grading.merge import understand, with_hints
from course_utils.grading.run import LIMITS, Limits, Run, scratch_folder
from course_utils.grading.sandbox import PACKAGE, Sandbox, denied, own_environment
from course_utils.grading.submissions import Submission
from course_utils.grading.verdicts import NotGraded
from course_utils.progress import track

if TYPE_CHECKING:
    from nbformat import NotebookNode

MOST_FAILURES = 3
"""So many submissions that the machine fails to grade end the whole."""


def grade(
    submissions: Sequence[Submission],
    assignments: Sequence[Assignment],
    *,
    limits: Limits = LIMITS,
    workers: int = 1,
    shown: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> ClassGrades:
    """Grade submissions, each (student, assignment) once.

    A student who handed in an assignment several times gets the best of them, whatever their order. A submission at
    which this very program fails is not graded, which its status says; the others are.

    Args:
        submissions: see `course_utils.grading.submissions.find_submissions`.
        assignments: what they may be submissions of.
        workers: how many are graded at a time, each on a processor of its own.
        shown: files and folders that the kernels may read.
        environment: variables that the kernels see, besides those that every sandbox has.
        cache: a folder in which grades are kept; what has not changed since is not run again.
        progress: tell on stderr how many are done.

    Raises:
        CourseError: this system lets no sandbox of any kind be made, or a submission was not graded for a reason that
            is not its own; what was graded until then is in `cache`.
    """
    why = _isolation()
    environment = dict(environment or {})
    settings = {
        "engine": _engine_hash(),
        "limits": asdict(limits),
        "environment": environment,
        "isolated": why is None,
    }
    by_name = {assignment.name: assignment for assignment in assignments}
    free: SimpleQueue[int | None] = SimpleQueue()
    for processor in _one_each(workers):
        free.put(processor)
    stop = threading.Event()

    def work(submission: Submission) -> Grade:
        assignment = None
        try:
            understood = understand(submission, assignments)
            assignment = by_name.get(understood.assignment)
            if assignment is None or understood.problem is not None:
                return _nothing(submission, assignment, understood.problem or "")
            key = _hash([settings, _content(assignment.notebook), understood.solutions])
            known = None if cache is None else _remembered(cache / f"{key}.json")
            if known is None:
                processor = free.get()
                try:
                    run = Run(assignment, limits, tuple(map(str, shown)), environment, processor, why is None, stop)
                    known = _Remembered(*run.grade(understood.solutions))
                finally:
                    free.put(processor)
                if cache is not None:
                    _remember(cache / f"{key}.json", known)
            exercises = with_hints(known.exercises, understood.elsewhere)
            return _grade(submission, assignment, known.status, exercises)
        except (NotGraded, CourseError):
            raise
        except Exception as error:  # whatever it is, it concerns this submission and no other
            told = " ".join(f"{type(error).__name__}: {error}".split())
            status = f"not graded, for the grader failed ({told}): grade it again, or by hand"
            return _nothing(submission, assignment, status, NOT_RUN)

    grades: list[Grade] = []
    failures: list[NotGraded] = []
    executor = ThreadPoolExecutor(workers)
    try:
        waiting = [executor.submit(work, submission) for submission in submissions]
        for done in track(as_completed(waiting), "grading", len(waiting), show=progress):
            try:
                grades.append(done.result())
            except NotGraded as error:
                failures.append(error)
                if len(failures) == MOST_FAILURES:
                    break
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
    if failures:
        raise CourseError(
            f"{len(failures)} of {len(submissions)} submissions were not graded ({failures[0]}): mend that and grade "
            "again, the others are kept"
        ) from failures[0]
    return ClassGrades(_best(grades), why)


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
            status += f"; may be several people's: {', '.join(places)}"
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
