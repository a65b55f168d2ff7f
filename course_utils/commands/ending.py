"""How every command of the course ends: with its result, or with one line that says what to do."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from course_utils.errors import CourseError

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def run(app: typer.Typer) -> None:
    """Run a typer application whose commands end as `in_one_line` says."""
    for command in (*app.registered_commands, app.registered_callback):
        if command is not None and command.callback is not None:
            command.callback = in_one_line(command.callback)
    app()


def in_one_line(
    function: Callable[Parameters, Returned], *, verbose: Callable[[], bool] = lambda: False
) -> Callable[Parameters, Returned]:
    """The function, whose `CourseError` and Ctrl-C become a line `error: ...` on stderr and exit code 2.

    Args:
        function: of a command.
        verbose: whether the traceback comes before the line.
    """

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return function(*args, **kwargs)
        except CourseError as error:
            message = str(error)
            if verbose():
                traceback.print_exc()
        except KeyboardInterrupt as stop:
            message = str(stop) or "stopped by Ctrl-C: run the command again to go on"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise typer.Exit(2)

    return wrapped
