"""What several commands share: options that all have, and values that several take."""

import sys
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import typer

from course_utils.errors import CourseError, CourseWarning


@dataclass(frozen=True)
class Settings:
    """Options that stand before the command's name.

    Attributes:
        verbose: Also tell what is being done, and show the traceback of an error.
        quiet: Tell nothing but results and errors.
    """

    verbose: bool = False
    quiet: bool = False

    def apply(self) -> None:
        """Let these be the settings of the command that runs; its warnings become a line each, `warning: ...`.

        Those of other packages speak to programmers: they are shown with `verbose` alone.
        """
        _CURRENT.set(self)
        warnings.simplefilter("default" if self.verbose else "ignore")
        warnings.simplefilter("ignore" if self.quiet else "always", CourseWarning)
        vars(warnings)["showwarning"] = _show  # whose declared type is that one function's

    @classmethod
    def current(cls) -> "Settings":
        """Those of the command that runs; the defaults where the function of a command is called by itself."""
        return _CURRENT.get(cls())


_CURRENT: ContextVar[Settings] = ContextVar("settings")


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, CourseWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


MODEL = "A checkpoint that train wrote, such as OUT/best.pt, or the name of a network that ships: see models."
Model = Annotated[Path, typer.Option(help=MODEL)]
Smoothness = Annotated[
    float | None,
    typer.Option(
        help="Weight of the smoothness that a network shall answer for which was trained with --smoothness-range.",
        show_default="the middle of the range, unless export chose another",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder with one folder a data set.", show_default="$MONAI_DATA_DIRECTORY, or data in the course's folder"
    ),
]
Registry = Annotated[
    Path | None,
    typer.Option(help="Your own file of data sets or mirrors (JSON or TOML).", show_default="$COURSE_REGISTRY"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]


def device(name: str) -> str:
    """The device that a user's word means: `auto` takes a GPU where there is one.

    Raises:
        CourseError: there is no such device.
    """
    import torch  # here, so that --help need not wait for it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).cpu()  # a "meta" tensor can be made, and holds nothing
    except Exception as error:  # every kind of device has its own way to say that it is not there
        raise CourseError(f"device '{name}' cannot be used here: choose cpu, or auto") from error
    return name
