"""What the teacher and the students get of a graded class: a table, a file of details, and a page for each student."""

import base64
import binascii
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from course_utils.files import replacing
from course_utils.grading.grades import PASSED, ClassGrades, Grade
from course_utils.grading.printable import cell
from course_utils.plotting import Figure
from course_utils.plotting import grades as figure_of_grades

PNG = b"\x89PNG\r\n\x1a\n"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { border-top: 1px solid #ccc; padding-top: 1rem } img { max-width: 100% }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
.message { border-left: 4px solid #D55E00; padding-left: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
.passed { color: #007A5A } .failed { color: #B34A00 }
"""


def table(grades: Sequence[Grade]) -> pd.DataFrame:
    """One row for each student and assignment: points of every exercise, `total`, `out_of` and `status`.

    An exercise of another assignment is empty. No text ends a line or is a formula; see `printable.cell`.
    """
    rows = []
    for grade in grades:
        points = {exercise.grade_id: exercise.points for exercise in grade.exercises}
        rows.append({"student": cell(grade.student), "assignment": grade.assignment} | points)
    exercises = list(dict.fromkeys(e.grade_id for grade in sorted(grades, key=_order) for e in grade.exercises))
    frame = pd.DataFrame(rows, columns=["student", "assignment", *exercises])
    frame[exercises] = frame[exercises].astype("Int64")
    frame["total"] = [grade.total for grade in grades]
    frame["out_of"] = [grade.out_of for grade in grades]
    frame["status"] = [cell(grade.status) for grade in grades]
    return frame


def _order(grade: Grade) -> str:
    return grade.assignment


def solved(grades: Sequence[Grade]) -> dict[str, float]:
    """The share of submissions, 0 to 1, that solved each exercise; of several assignments, `ASSIGNMENT: ID`."""
    several = len({grade.assignment for grade in grades if grade.exercises}) > 1
    passed: dict[str, list[bool]] = {}
    for grade in grades:
        for exercise in grade.exercises:
            name = f"{grade.assignment}: {exercise.grade_id}" if several else exercise.grade_id
            passed.setdefault(name, []).append(exercise.outcome == PASSED)
    return {name: sum(outcomes) / len(outcomes) for name, outcomes in passed.items()}


def histogram(grades: Sequence[Grade]) -> Figure:
    """How those did who handed in; see `course_utils.plotting.grades`."""
    handed_in = [grade for grade in grades if grade.where]
    return figure_of_grades([grade.total / grade.out_of for grade in handed_in if grade.out_of], solved(handed_in))


def write(graded: ClassGrades, out: Path) -> None:
    """Write grades.csv, grades.json, histogram.png and feedback/STUDENT_ASSIGNMENT.html.

    Pages of an earlier time, of students who are not in the class, go.

    Raises:
        CourseError: the disk is full.
    """
    folder = out / "feedback"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {page_name(grade): page(grade) for grade in graded.grades}
    for name, text in pages.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for path in folder.glob("*.html"):
        if path.name not in pages:
            path.unlink()
    with replacing(out / "grades.json") as partial:
        partial.write_text(_details(graded), encoding="utf-8")
    if any(grade.where and grade.out_of for grade in graded.grades):
        with replacing(out / "histogram.png") as partial:
            histogram(graded.grades).savefig(partial, format="png", dpi=120)
    with replacing(out / "grades.csv") as partial:
        table(graded.grades).to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")


def _details(graded: ClassGrades) -> str:
    submissions = []
    for grade in graded.grades:
        exercises = []
        for exercise in grade.exercises:
            fields = asdict(exercise)
            exercises.append(
                {name: fields[name] for name in ("grade_id", "title", "points", "out_of", "outcome", "message")}
            )
        fields = {"student": grade.student, "assignment": grade.assignment, "file": grade.where}
        totals = {"total": grade.total, "out_of": grade.out_of, "status": grade.status}
        submissions.append({**fields, **totals, "exercises": exercises, "feedback": f"feedback/{page_name(grade)}"})
    whole = {"denied": graded.denied, "remarks": graded.remarks, "submissions": submissions}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def page_name(grade: Grade) -> str:
    """The name of a student's page; what no file system minds."""
    name = re.sub(r"[^\w.-]+", "-", f"{grade.student}_{grade.assignment or 'unknown'}")
    if name == f"{grade.student}_{grade.assignment}" and re.fullmatch(r"\w.{,100}", name):
        return f"{name}.html"
    told_apart = hashlib.sha256(f"{grade.student}/{grade.assignment}".encode()).hexdigest()[:8]
    return f"{name[:100].lstrip('.')}-{told_apart}.html"


def page(grade: Grade) -> str:
    """A student's page: every cell, what became of it, its output and figures; nothing of theirs is markup."""
    title = _text(f"{grade.student}: {grade.assignment or grade.where}")
    body = [f"<h1>{title}</h1>", f"<p><strong>{grade.total} of {grade.out_of} points</strong></p>"]
    body.append(f"<p>{_text(grade.status)}</p>")
    for number, exercise in enumerate(grade.exercises, start=1):
        kind = "passed" if exercise.outcome == PASSED else "failed"
        body.append(f"<h2>Exercise {number}: {_text(exercise.title)}</h2>")
        points = f"{exercise.points} of {exercise.out_of} points"
        body.append(f'<p class="{kind}"><strong>{points}</strong>, {_text(exercise.outcome)}</p>')
        if exercise.message:
            body.append(f'<p class="message">{_text(exercise.message)}</p>')
        for heading, text in (("", exercise.source), ("Output", exercise.text), ("Traceback", exercise.traceback)):
            if text.strip():
                body.append((f"<p>{heading}</p>" if heading else "") + f"<pre>{_text(text)}</pre>")
        body += [
            f'<img alt="figure" src="data:image/png;base64,{picture}">' for picture in _pictures(exercise.pictures)
        ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}"><title>{title}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _pictures(pictures: Sequence[str]) -> list[str]:
    """Those that are PNG, in base64 of our own making."""
    whole = []
    for picture in pictures:
        try:
            content = base64.b64decode(picture)
        except (binascii.Error, ValueError):
            continue
        if content.startswith(PNG):
            whole.append(base64.b64encode(content).decode())
    return whole


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
