"""Numbers that are known of each subject, such as its age: read from a table, and shown to a network with its scan."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.data.formats import stem
from course_utils.data.loading import LoadedSubjects, PairDataset
from course_utils.data.pairs import Pair, Subject
from course_utils.errors import CourseError


@dataclass(frozen=True)
class Attributes:
    """What is known of each subject.

    Attributes:
        names: Of the K numbers.
        values: K numbers by the subject's name.
    """

    names: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]

    def of(self, subjects: Sequence[Subject]) -> Tensor:
        """The numbers of these subjects, `(subjects, K)` float32."""
        return torch.tensor([self.values[subject.name] for subject in subjects])


def read_attributes(path: str | Path, subjects: Sequence[Subject]) -> Attributes:
    """The numbers of each of the subjects, out of a CSV file.

    The first column names the subject, as the cohort or as its image file does (with or without the ending); each other
    column is an attribute. Other rows may be there too.

    Args:
        path: Of the file.
        subjects: Whose numbers are needed.

    Raises:
        CourseError: no such file or no attributes in it; a subject that it lacks or names twice; a cell that is no
            number; an attribute that is the same for all.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError) as error:
        raise CourseError(
            f"{path} cannot be read as a CSV file ({error}): give one with a row for each subject"
        ) from error
    names = tuple(name.strip() for name in header[1:])
    if not names or not all(names) or len(set(names)) < len(names):
        raise CourseError(
            f"{path} has the columns {', '.join(header)}: the first names the subject, and each other one, with a name "
            "of its own, is an attribute"
        )
    by_name: dict[str, tuple[int, list[str]]] = {}
    for number, row in enumerate(rows, start=2):
        if row[0].strip() in by_name:
            raise CourseError(f"{path} names {row[0].strip()} twice: keep one of the rows")
        by_name[row[0].strip()] = number, row
    values = {}
    for subject in subjects:
        called = (subject.name, subject.image.name, stem(subject.image))
        known = next((by_name[name] for name in called if name in by_name), None)
        if known is None:
            raise CourseError(f"{path} has no row for the subject {subject.name}: add it, or leave the subject out")
        values[subject.name] = tuple(_number(path, known, column + 1, name) for column, name in enumerate(names))
    for column, name in enumerate(names):
        if len({numbers[column] for numbers in values.values()}) < 2:
            raise CourseError(f"{path}: {name} is the same for all subjects: leave the column out")
    return Attributes(names, values)


def _number(path: Path, row: tuple[int, list[str]], column: int, name: str) -> float:
    line, cells = row
    text = cells[column].strip() if column < len(cells) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CourseError(
            f"{path}, line {line}: {name} of {cells[0].strip()} is {text or 'missing'!r}, not a number: fill it in "
            "(a category as 0 and 1), or leave the subject or the column out"
        )
    return value


class AttributedPairs(PairDataset):
    """As `PairDataset`, and with each pair `condition`, `(K,)` float32: the attributes of the fixed image's subject."""

    def __init__(self, subjects: LoadedSubjects, pairs: Sequence[Pair], attributes: Attributes) -> None:
        super().__init__(subjects, pairs)
        self.attributes = attributes

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"condition": self.attributes.of([self.pairs[index].fixed])[0]}
