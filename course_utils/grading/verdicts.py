"""What became of each cell of a run, as nbval tells it, entered into the grades of the exercises."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

from course_utils.grading.grades import FAILED, KERNEL_DIED, MEMORY_LIMIT, PASSED, TIME_LIMIT, ExerciseGrade
from course_utils.grading.merge import Role


class Output(TypedDict, total=False):
    """An output of a cell that a page for the student shows: text, a picture (PNG, base64), or how the cell failed."""

    text: str
    picture: str
    error: str
    traceback: str


class Record(TypedDict):
    """What a cell came to: its number; `passed`, `failed`, `ended` (the kernel) or `not started`; its outputs."""

    cell: int
    state: str
    outputs: list[Output]


class NotGraded(Exception):
    """The machine, not the student, is the cause; nothing of it is remembered."""


def enter(
    records: Sequence[Record], roles: Sequence[Role], exercises: dict[str, ExerciseGrade]
) -> tuple[str, str] | None:
    """Enter verdicts into `exercises`, by grade_id; returns the one that ended the run, and how, or None.

    What ended it is the end of the kernel, or of its memory: what a cell still holds after a `MemoryError` would be
    missing in the exercises after it, so that no later verdict of this run counts.

    Raises:
        NotGraded: the kernel did not start, or a cell of the assignment failed before any of the student's ran.
    """
    last: str | None = None
    for record in records:
        role = roles[record["cell"]]
        errors = [output["error"] for output in record["outputs"] if "error" in output]
        if role.kind == "solution":
            last = role.grade_id
        if record["state"] == "not started":
            raise NotGraded(f"no kernel could be started ({errors[-1] if errors else 'it does not say why'})")
        if last is None:
            if record["state"] != "passed":
                raise NotGraded(f"a cell of the assignment itself failed ({errors[-1] if errors else record['state']})")
            continue
        if role.kind == "solution":
            exercises[last] = _with_outputs(exercises[last], record["outputs"])
        if record["state"] == "ended":
            return last, errors[-1] if errors[-1] in (TIME_LIMIT, MEMORY_LIMIT) else KERNEL_DIED
        if any(plain(error).startswith("MemoryError") for error in errors):
            return last, MEMORY_LIMIT
        if role.kind == "check":
            exercises[role.grade_id] = _judged(exercises[role.grade_id], record["state"] == "passed", errors)
    return None


def _with_outputs(exercise: ExerciseGrade, outputs: Sequence[Output]) -> ExerciseGrade:
    return replace(
        exercise,
        text="".join(plain(output["text"]) for output in outputs if "text" in output),
        pictures=[output["picture"] for output in outputs if "picture" in output],
        traceback="".join(plain(output.get("traceback", "")) for output in outputs),
        message=next((plain(output["error"]) for output in outputs if "error" in output), ""),
    )


def _judged(exercise: ExerciseGrade, passed: bool, errors: Sequence[str]) -> ExerciseGrade:
    if passed:
        return replace(exercise, outcome=PASSED, points=exercise.out_of, message="")
    told = plain(errors[-1]) if errors else "the check failed"
    return replace(
        exercise, outcome=FAILED, message=f"your cell ended in {exercise.message}" if exercise.message else told
    )


def plain(text: str) -> str:
    """Text without a terminal's colours and other control characters."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(character for character in text if character in "\n\t" or character >= " ")
