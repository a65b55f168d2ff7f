"""What stands in the judge's notebook in the place of a student's cell."""

from collections.abc import Sequence

NAME = "_student_"
"""What the student's process is called in the judge's page."""


def cell_of(number: int, names: Sequence[str]) -> str:
    """The judge's cell in the place of a student's.

    Args:
        number: of the student's cell, among those of the student's process.
        names: that the exercise asks to be bound.
    """
    return f"{NAME}.answer({number}, {list(names)!r})"


def cell_before(number: int) -> str:
    """The judge's cell that has the assignment's own cells run in the student's process, before a cell there."""
    return f"{NAME}.prepare({number})"
