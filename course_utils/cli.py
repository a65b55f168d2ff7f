"""How every command of the course ends: with its result, or with one line that says what to do."""

import functools
import sys
from collections.abc import Callable

import typer

from course_utils.errors import CourseError


def run(app: typer.Typer) -> None:
    """Run a typer application; a `CourseError` and Ctrl-C become one line ``error: ...`` on stderr and exit code 2."""
    for command in (*app.registered_commands, app.registered_callback):
        if command is not None:
            command.callback = _in_one_line(command.callback)
    app()


def _in_one_line(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except CourseError as error:
            message = str(error)
        except KeyboardInterrupt as stop:
            message = str(stop) or "stopped by Ctrl-C: run the command again to go on"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise typer.Exit(2)

    return wrapped
