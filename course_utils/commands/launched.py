"""Commands under a launcher such as torchrun, which starts the same command in several processes."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from course_utils.commands.settings import Settings
from course_utils.errors import CourseError
from course_utils.training.ranks import joined, launched

Returned = TypeVar("Returned")


def together(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """A command whose processes work together; the first alone prints, but for an error, which who has it first tells.

    Started by no launcher, it is as it was.
    """

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Returned:
        with joined() as ranks:
            if not ranks.writes:
                Settings(quiet=True).apply()
            return command(**arguments)

    return wrapped


def alone(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """A command that one process carries out; several would write over each other's files.

    Raises:
        CourseError: when it is called, where a launcher has started several.
    """

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Returned:
        if launched() > 1:
            with joined():  # so that one of them says it
                raise CourseError("this command is for one process: start it without torchrun")
        return command(**arguments)

    return wrapped
