"""What the teacher and the students get of a graded class: a table, a file of details, and a page a student."""

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

from course_utils.grading import PASSED, Report, Result
from course_utils.plotting import Figure, grades
from course_utils.training import replacing

PNG = b"\x89PNG\r\n\x1a\n"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { border-top: 1px solid #ccc; padding-top: 1rem } img { max-width: 100% }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
.message { border-left: 4px solid #D55E00; padding-left: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
.passed { color: #007A5A } .failed { color: #B34A00 }
"""


def table(results: Sequence[Result]) -> pd.DataFrame:
    """One row a student and assignment: points of every exercise, ``total``, ``out_of`` and ``status``.

    An exercise of another assignment is empty. A student's name that a spreadsheet would take for a formula is quoted.
    """
    rows = []
    for result in results:
        points = {exercise.grade_id: exercise.points for exercise in result.exercises}
        student = f"'{result.student}" if result.student[:1] in ("=", "+", "-", "@") else result.student
        rows.append({"student": student, "assignment": result.assignment} | points)
    exercises = list(dict.fromkeys(e.grade_id for result in sorted(results, key=_order) for e in result.exercises))
    frame = pd.DataFrame(rows, columns=["student", "assignment", *exercises])
    frame[exercises] = frame[exercises].astype("Int64")
    frame["total"] = [result.total for result in results]
    frame["out_of"] = [result.out_of for result in results]
    frame["status"] = [result.status for result in results]
    return frame


def _order(result: Result) -> str:
    return result.assignment


def solved(results: Sequence[Result]) -> dict[str, float]:
    """The share of submissions, 0 to 1, that solved each exercise; of several assignments, ``ASSIGNMENT: ID``."""
    several = len({result.assignment for result in results if result.exercises}) > 1
    passed: dict[str, list[bool]] = {}
    for result in results:
        for exercise in result.exercises:
            name = f"{result.assignment}: {exercise.grade_id}" if several else exercise.grade_id
            passed.setdefault(name, []).append(exercise.outcome == PASSED)
    return {name: sum(outcomes) / len(outcomes) for name, outcomes in passed.items()}


def histogram(results: Sequence[Result]) -> Figure:
    """How the class did; see `course_utils.plotting.grades`."""
    return grades([result.total / result.out_of for result in results if result.out_of], solved(results))


def write(report: Report, out: Path) -> None:
    """Write grades.csv, grades.json, histogram.png and feedback/STUDENT_ASSIGNMENT.html.

    Pages of an earlier time, of students who are not in the report, go.

    Raises:
        CourseError: the disk is full.
    """
    folder = out / "feedback"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {page_name(result): page(result) for result in report.results}
    for name, text in pages.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for path in folder.glob("*.html"):
        if path.name not in pages:
            path.unlink()
    with replacing(out / "grades.json") as partial:
        partial.write_text(_details(report), encoding="utf-8")
    if any(result.out_of for result in report.results):
        with replacing(out / "histogram.png") as partial:
            histogram(report.results).savefig(partial, format="png", dpi=120)
    with replacing(out / "grades.csv") as partial:
        table(report.results).to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")


def _details(report: Report) -> str:
    submissions = []
    for result in report.results:
        exercises = []
        for exercise in result.exercises:
            fields = asdict(exercise)
            exercises.append(
                {name: fields[name] for name in ("grade_id", "title", "points", "out_of", "outcome", "message")}
            )
        fields = {"student": result.student, "assignment": result.assignment, "file": result.where}
        totals = {"total": result.total, "out_of": result.out_of, "status": result.status}
        submissions.append({**fields, **totals, "exercises": exercises, "feedback": f"feedback/{page_name(result)}"})
    return json.dumps({"denied": report.denied, "submissions": submissions}, indent=1, ensure_ascii=False)


def page_name(result: Result) -> str:
    """The name of a student's page; what no file system minds."""
    name = re.sub(r"[^\w.-]+", "-", f"{result.student}_{result.assignment or 'unknown'}")
    if name == f"{result.student}_{result.assignment}" and re.fullmatch(r"\w.{,100}", name):
        return f"{name}.html"
    told_apart = hashlib.sha256(f"{result.student}/{result.assignment}".encode()).hexdigest()[:8]
    return f"{name[:100].lstrip('.')}-{told_apart}.html"


def page(result: Result) -> str:
    """A student's page: every cell, what became of it, its output and figures; nothing of theirs is markup."""
    title = _text(f"{result.student}: {result.assignment or result.where}")
    body = [f"<h1>{title}</h1>", f"<p><strong>{result.total} of {result.out_of} points</strong></p>"]
    body.append(f"<p>{_text(result.status)}</p>")
    for number, exercise in enumerate(result.exercises, start=1):
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
