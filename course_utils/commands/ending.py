"""How every command of the course ends: with its result, or with one line that says what to do."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from course_utils.commands.settings import Settings
from course_utils.commands.stopping import STOPPED
from course_utils.errors import CourseError, Told

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def run(app: typer.Typer) -> None:
    """Run a typer application whose commands end as `in_one_line` says."""
    for command in (*app.registered_commands, app.registered_callback):
        if command is not None and command.callback is not None:
            command.callback = in_one_line(command.callback)
    Settings().apply()
    app()


def in_one_line(
    function: Callable[Parameters, Returned], *, verbose: Callable[[], bool] = lambda: False
) -> Callable[Parameters, Returned]:
    """The function, whose `CourseError` and Ctrl-C become a line `error: ...` on stderr and exit code 2.

    Any other exception is a fault of the program: a line too, with exit code 1.

    Args:
        function: of a command.
        verbose: whether the traceback comes before the line.
    """

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        code, cause = 2, None
        try:
            return function(*args, **kwargs)
        except Told as told:
            raise typer.Exit(code) from told
        except CourseError as error:
            message = str(error)
            if verbose():
                traceback.print_exc()
        except KeyboardInterrupt as stop:
            message, cause = str(stop) or STOPPED, stop
        except BrokenPipeError:  # nobody reads on, as where `head` has seen enough: typer ends it without a word
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):  # how these end a command
                raise
            if verbose():
                traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            message, code = f"{told} (a fault of this program; --verbose before the command shows where)", 1
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise typer.Exit(code) from cause

    return wrapped
