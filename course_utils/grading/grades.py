"""What grading comes to: the grade of an exercise, of a submission, and of a class."""

from dataclasses import dataclass, field

PASSED, FAILED, MISSING, NOT_RUN = "passed", "failed", "missing", "not run"
TIME_LIMIT, MEMORY_LIMIT, KERNEL_DIED = "time limit", "memory limit", "kernel died"

TEXT, PICTURE, PICTURES = 20_000, 2_000_000, 6
"""What is kept of a cell: characters of its text, of its error and of each picture (base64), and how many pictures."""


@dataclass(frozen=True)
class ExerciseGrade:
    """What came of one exercise.

    Attributes:
        grade_id: of the exercise's cell.
        title: of the exercise.
        out_of: its points.
        points: the points it gave.
        outcome: `passed`, `failed`, `missing`, `time limit`, `memory limit`, `kernel died` or `not run`.
        message: why it gives no points: what the check says, or how the student's cell ended.
        source: the student's cell.
        text: what the student's cell wrote.
        traceback: how it failed.
        pictures: its figures (PNG, base64).
    """

    grade_id: str
    title: str
    out_of: int
    points: int = 0
    outcome: str = NOT_RUN
    message: str = ""
    source: str = ""
    text: str = ""
    traceback: str = ""
    pictures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grade:
    """The grade of a submission.

    Attributes:
        student: of the submission.
        where: of the submission; "" where nothing was handed in.
        assignment: its name, or "" where no assignment fits.
        status: `graded`, and what is to be known about it; or why there is nothing to grade, or was not graded.
        exercises: in the order of the page; empty where no assignment fits.
        places: what says whose the submission is, and the others that it is the best of; more than one may be several
            people's.
    """

    student: str
    where: str
    assignment: str
    status: str
    exercises: list[ExerciseGrade]
    places: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(exercise.points for exercise in self.exercises)

    @property
    def out_of(self) -> int:
        return sum(exercise.out_of for exercise in self.exercises)


@dataclass(frozen=True)
class ClassGrades:
    """The grades of a class.

    Attributes:
        grades: sorted by student and assignment.
        denied: what the system denied the sandbox, or None.
        remarks: on the class as a whole, a line each: who is not on its roster, who handed in nothing.
    """

    grades: list[Grade]
    denied: str | None
    remarks: list[str] = field(default_factory=list)
