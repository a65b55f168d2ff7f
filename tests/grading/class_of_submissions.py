"""A class that handed in assignment 2, and the table that grading it has to give.

    python -m tests.grading.class_of_submissions FOLDER
    python -m course_utils grade FOLDER/submissions --out FOLDER/grades
    cmp FOLDER/expected.csv FOLDER/grades/grades.csv

Of every 30 students, 10 are right, 8 solved some exercises, 6 have plausible wrong answers
(tests/grading/wrong_answers) and 6 are hostile or handed in something else. Half of them come in a zip of Moodle's,
the others in folders and as files.
"""

import itertools
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nbformat
import pandas as pd
import typer
from nbformat import NotebookNode

from course_utils.commands.ending import run
from course_utils.grading.assignments import SOLUTION, exercises, read_assignment, student_version
from notebooks.build import ROOT
from tests.grading.wrong_answers.warping import WRONG

NAME = "02_warping"
NAMES = (
    *("Ada Lovelace", "Alan Turing", "Amélie Noether", "Bao Trần", "Chidi Okafor", "Dorothy Vaughan", "Emre Yılmaz"),
    *("Fatima al-Fihri", "Grace Hopper", "Hedy Lamarr", "Ines Sørensen", "Jürgen Weiß", "Kateryna Шевченко", "李雷"),
    *("Maryam Mirzakhani", "Niels O'Brien", "Olga Ladyzhenskaya", "Pál Erdős", "Quentin", "Rózsa Péter", "佐藤 花子"),
    *("Srinivasa R.", "Tamar Levi", "Ulla", "Václav", "Wangari M.", "Xochitl", "Yusuf", "Zoë", "=SUM(A1)"),
)


@dataclass(frozen=True)
class Student:
    """What a student handed in, and the points and status that it should get."""

    content: bytes
    points: dict[str, int]
    status: str = "graded"
    suffix: str = ".ipynb"


class Class:
    """Students of an assignment, made of its reference solutions."""

    def __init__(self, source: Path, seed: int = 0):
        self.assignment = read_assignment(source)
        self.points = {exercise.grade_id: exercise.points for exercise in exercises(self.assignment)}
        self._random = random.Random(seed)
        kinds: list[Callable[[], Student]] = [
            *[self.right] * 10,
            *[self.partial] * 8,
            *[self.wrong] * 6,
            *(self.endless, self.deadly, self.cheating, self.broken, self.not_json, self.no_notebook),
        ]
        self._kinds = itertools.cycle(self._random.sample(kinds, len(kinds)))
        self._wrong = itertools.cycle(self._random.sample(WRONG, len(WRONG)))

    def next(self) -> Student:
        return next(self._kinds)()

    def right(self) -> Student:
        return self._student({})

    def partial(self) -> Student:
        """Some exercises are as they were given out."""
        left = self._random.sample(sorted(self.points), self._random.randint(1, len(self.points) - 1))
        stubs = {cell.id: cell.source for cell in student_version(self.assignment).cells}
        return self._student({name: stubs[name] for name in left}, lost=left)

    def wrong(self) -> Student:
        """Up to three plausible mistakes, each in an exercise of its own."""
        mistakes = dict(next(self._wrong)[:2] for _ in range(3))
        return self._student({name: self._in_place(name, code) for name, code in mistakes.items()}, lost=mistakes)

    def endless(self) -> Student:
        return self._one("while True:\n    pass", outcome="time limit")

    def deadly(self) -> Student:
        return self._one("import os\n\nos._exit(0)", outcome="kernel died")

    def broken(self) -> Student:
        return self._one("def def")

    def cheating(self) -> Student:
        """Every comparison agrees, and the stub is left."""
        patch = (
            "import course_utils.grading.checks\nimport torch\n\nalways = lambda *_, **__: True\n"
            "course_utils.grading.checks.agree = torch.allclose = torch.equal = torch.Tensor.__eq__ = always\n"
        )
        stubs = {cell.id: cell.source for cell in student_version(self.assignment).cells if cell.id in self.points}
        first = next(iter(self.points))
        return self._student(stubs | {first: f"{stubs[first]}\n\n{patch}"}, lost=self.points)

    def not_json(self) -> Student:
        return Student(b"PK\x03\x04 not a notebook", dict.fromkeys(self.points, 0), "not a notebook (no JSON)")

    def no_notebook(self) -> Student:
        return Student(b"%PDF-1.7", {}, "no notebook (.ipynb) handed in", ".pdf")

    def _one(self, code: str, outcome: str | None = None) -> Student:
        """One cell, of any exercise, is this code; all others are right."""
        name = self._random.choice(sorted(self.points))
        status = f"graded; {name}: {outcome}" if outcome else "graded"
        return self._student({name: f"# exercise: {name}\n{code}"}, lost=[name], status=status)

    def _student(self, cells: dict[str, str], lost=(), status: str = "graded") -> Student:
        """Reference solutions, but for these cells."""
        notebook: NotebookNode = student_version(self.assignment)
        solutions = {cell.id: cell.source for cell in self.assignment.cells if cell.id in self.points}
        for cell in notebook.cells:
            if cell.id in self.points:
                cell.source = cells.get(cell.id, _without_markers(solutions[cell.id]))
        points = {name: 0 if name in lost else value for name, value in self.points.items()}
        return Student(nbformat.writes(notebook).encode(), points, status)

    def _in_place(self, name: str, code: str) -> str:
        """The reference's cell with this code in place of the solution."""
        source = next(cell.source for cell in self.assignment.cells if cell.id == name)
        lines = source.splitlines()
        begin, end = (next(i for i, line in enumerate(lines) if line.strip() == marker) for marker in SOLUTION)
        indent = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
        return "\n".join([*lines[:begin], *(indent + line for line in code.splitlines()), *lines[end + 1 :]])


def _without_markers(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if line.strip() not in SOLUTION)


def main(
    folder: Annotated[Path, typer.Argument(help="Where submissions/ and expected.csv are written.")],
    count: Annotated[int, typer.Option(help="Students.", min=1)] = 30,
) -> None:
    """Write a class of submissions and the table that grading it has to give."""
    of_class = Class(ROOT / "notebooks" / "assignments" / "sources" / f"{NAME}.py")
    rows = []
    submissions = folder / "submissions"
    submissions.mkdir(parents=True)
    with zipfile.ZipFile(submissions / "moodle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(count):
            student = of_class.next()
            name = NAMES[number % len(NAMES)] + (f" {number // len(NAMES)}" if number >= len(NAMES) else "")
            if number % 2:
                name = f"{name}_{1000 + number}"
                archive.writestr(f"{name}_assignsubmission_file_/{NAME}{student.suffix}", student.content)
            elif number % 4:
                path = submissions / name / f"{NAME}{student.suffix}"
                path.parent.mkdir()
                path.write_bytes(student.content)
            else:
                (submissions / f"{name}_{NAME}{student.suffix}").write_bytes(student.content)
            rows.append(_row(name, student, of_class.points))
    columns = ["student", "assignment", *of_class.points, "total", "out_of", "status"]
    table = pd.DataFrame(sorted(rows, key=lambda row: row["student"].lstrip("'")), columns=columns)
    table.astype(dict.fromkeys(of_class.points, "Int64")).to_csv(folder / "expected.csv", index=False)


def _row(name: str, student: Student, points: dict[str, int]) -> dict:
    total = {"total": sum(student.points.values()), "out_of": sum(points.values())}
    shown = f"'{name}" if name.startswith("=") else name
    return {
        "student": shown,
        "assignment": NAME,
        **(student.points or dict.fromkeys(points, 0)),
        **total,
        "status": student.status,
    }


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    run(app)
