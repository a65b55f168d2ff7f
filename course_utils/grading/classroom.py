"""What a teacher and a student ask for: a class graded into a folder, and one's own notebook checked.

The other modules of grading know no course; here are its assignments, its cohort, and what must be installed.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from course_utils.data.cohorts import data_root, load_cohort
from course_utils.errors import CourseError
from course_utils.files import check_room
from course_utils.grading import gradebook
from course_utils.grading.assignments import Assignment, assignment_sources, read_assignment
from course_utils.grading.engine import grade, processors
from course_utils.grading.grades import ClassGrades, Grade
from course_utils.grading.names import nobody_is_known
from course_utils.grading.recognition import Roster
from course_utils.grading.roll_call import by_person, call
from course_utils.grading.roster import read_roster
from course_utils.grading.run import LIMITS, Limits
from course_utils.grading.submissions import find_submissions
from course_utils.grading.visible import visible_assignment

SOURCES = Path("notebooks/assignments/sources")
"""Of the assignments, in a clone of the course."""

NEEDED = ("ipykernel", "jupyter_client", "jupytext", "nbformat", "nbval", "psutil", "pytest")
"""What the extra `grading` installs."""


def grade_class(
    submissions: Sequence[Path],
    out: Path,
    *,
    assignments: Path = SOURCES,
    workers: int = 0,
    limits: Limits = LIMITS,
    roster: Path | None = None,
    force: bool = False,
    allow_unisolated: bool = False,
    warn: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> ClassGrades:
    """Grade a class, and write its table, its details, its histogram and a page for each student.

    What has been graded before, and has not changed since, is not run again; it is remembered in `out`.

    Args:
        submissions: notebooks, folders or zips of a learning platform.
        out: folder of the results; see `course_utils.grading.gradebook.write`.
        assignments: folder of the assignments' sources, with hidden tests.
        workers: submissions at a time; 0 is one for each processor.
        limits: of a submission.
        roster: a list of the class; see `course_utils.grading.roster`.
        force: grade again what is remembered, too.
        allow_unisolated: grade without namespaces too, where the system denies them.
        warn: told of it, before anything is graded.
        progress: tell on stderr how many are done.

    Raises:
        CourseError: something needed is not installed or not there, the roster is none, `out` cannot be written, or
            the machine lets submissions not be graded, or not in a sandbox.
    """
    _check_machine()
    check_room(out)
    of_class = None if roster is None else Roster(read_roster(roster))
    given = [Assignment(source.stem, read_assignment(source)) for source in assignment_sources(assignments)]
    is_known = nobody_is_known if of_class is None else of_class.has
    found = find_submissions(submissions, [assignment.name for assignment in given], is_known)
    who = None if of_class is None else of_class.recognise(each.student for each in found)
    if of_class is not None and who is not None:
        found = by_person(found, of_class.people, who)
    out.mkdir(parents=True, exist_ok=True)
    shown, environment = _cohort_in_view()
    graded = grade(
        found,
        given,
        limits=limits,
        workers=workers or len(processors()),
        shown=shown,
        environment=environment,
        cache=out / ".cache",
        force=force,
        allow_unisolated=allow_unisolated,
        warn=warn,
        progress=progress,
    )
    if of_class is not None and who is not None:
        graded = call(graded, of_class.people, who, given)
    gradebook.write(graded, out)
    return graded


def check_notebook(notebook: Path, *, assignments: Path = SOURCES) -> Grade:
    """The grade of a student's own notebook by the checks that students can see, as `grade_class` finds it.

    Args:
        notebook: of an assignment.
        assignments: folder of the assignments' sources; without one the checks of the notebook itself count.

    Raises:
        CourseError: the notebook is of no assignment, or something needed is not installed.
    """
    _check_machine()
    given = visible_assignment(notebook, assignments)
    shown, environment = _cohort_in_view()
    found = find_submissions([notebook], [given.name])
    # It is one's own code, on one's own machine.
    graded = grade(found, [given], shown=shown, environment=environment, allow_unisolated=True)
    own = graded.grades[0]
    if not own.exercises:
        raise CourseError(f"{notebook}: {own.status}: name a notebook of an assignment")
    return own


def _check_machine() -> None:
    """Before anything else: this system can limit processes, and what grading takes is installed."""
    if os.name != "posix":
        raise CourseError("grading limits processes as Linux and macOS can: run it there, or in WSL")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise CourseError(f'grading needs {", ".join(missing)}: pip install "course_utils[grading]"')


def _cohort_in_view() -> tuple[list[Path], dict[str, str]]:
    """The built-in cohort, made once, for sandboxed kernels to read: folders to show, and their environment."""
    root = data_root().resolve()
    cohort = load_cohort("synthetic", root)
    environment = {
        "COURSE_DATASET": "synthetic",
        "COURSE_PROFILE": "quick",
        "COURSE_RUNS": "runs",
        "MONAI_DATA_DIRECTORY": str(root),
    }
    return [root / cohort.info.folder], environment
