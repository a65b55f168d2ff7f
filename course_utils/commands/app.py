"""Finds the module of a command and runs it."""

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from course_utils import __version__
from course_utils.commands import help_pages, stopping
from course_utils.commands.ending import in_one_line
from course_utils.commands.settings import Settings

COMMANDS = {
    "train": "course_utils.commands.train",
    "template": "course_utils.commands.template",
    "evaluate": "course_utils.commands.evaluate",
    "register": "course_utils.commands.register",
    "apply": "course_utils.commands.apply",
    "serve": "course_utils.commands.serve",
    "learn2reg": "course_utils.commands.learn2reg",
    "export": "course_utils.commands.export",
    "models": "course_utils.commands.models",
    "download": "course_utils.commands.download",
    "check-data": "course_utils.commands.check_data",
    "convert-dicom": "course_utils.commands.convert_dicom",
    "make-synthetic": "course_utils.commands.make_synthetic",
    # By name, not by import: nothing outside the wing of grading depends on it.
    "grade": "course_utils.grading.commands",
    "check": "course_utils.grading.commands",
}
"""Where the function of each command is; it is called as the command, with underscores."""


class _Commands(TyperGroup):
    """Imports the module of a command when it is asked for: `register` need not wait for what `train` imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return _command(cmd_name)

    def get_help(self, ctx: Any) -> str:
        return help_pages.stored() or super().get_help(ctx)


@in_one_line
def _command(name: str) -> Any:  # of typer, which from 0.16 on has its own copy of click's classes
    function: Callable[..., Any] = getattr(importlib.import_module(COMMANDS[name]), name.replace("-", "_"))

    @functools.wraps(function)
    def begin(*args: Any, **kwargs: Any) -> Any:
        stopping.raise_at_ctrl_c()  # everything is imported
        return function(*args, **kwargs)

    single = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    whole = in_one_line(begin, verbose=lambda: Settings.current().verbose)
    single.command(name, context_settings={"help_option_names": ["-h", "--help"]})(whole)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"course_utils {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also tell what is being done, and where an error arose.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Tell nothing but results and errors.")] = False,
) -> None:
    """Deformable medical image registration with VoxelMorph: train a network, measure it, register scans with it."""
    Settings(verbose=verbose, quiet=quiet).apply()
    if verbose:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("course_utils").setLevel(logging.INFO)  # ours alone: other packages' detail helps nobody


def main() -> None:
    """Run the command that the process was started with."""
    match sys.argv[1:]:
        case [name, "-h" | "--help"] if name in COMMANDS and (page := help_pages.stored(name)):
            typer.echo(page)
            sys.exit(0)  # as typer ends
        case _:
            app(prog_name=help_pages.PROGRAM)
