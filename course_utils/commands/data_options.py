"""The options by which train, evaluate and check-data are told which data to take."""

import functools
import inspect
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from course_utils.commands.settings import DataRoot, Registry
from course_utils.data.pairs import FRACTIONS
from course_utils.data.source import Source
from course_utils.data.zipped import opened_arrays
from course_utils.errors import CourseError

Returned = TypeVar("Returned")
SHARES = ",".join(map(str, FRACTIONS))

OPTIONS: dict[str, tuple[Any, Any]] = {
    "dataset": (
        Annotated[
            str | None,
            typer.Option(help="synthetic, hippocampus, oasis2d, oasis, learn2reg, or a name of your registry."),
        ],
        None,
    ),
    "data_root": (DataRoot, None),
    "registry": (Registry, None),
    "images": (
        Annotated[
            str | None,
            typer.Option(help="Your own images: a folder, a glob in quotes, a text file of paths, or a CSV file."),
        ],
        None,
    ),
    "labels": (Annotated[str | None, typer.Option(help="Their label maps, named in one of the same ways.")], None),
    "atlas": (Annotated[Path | None, typer.Option(help="An image that all others are registered to.")], None),
    "atlas_label": (Annotated[Path | None, typer.Option(help="The label map of the atlas.")], None),
    "prefix": (Annotated[str, typer.Option(help="Stands before each line of a text file of paths.")], ""),
    "suffix": (Annotated[str, typer.Option(help="Stands behind each line of a text file of paths.")], ""),
    "shape": (
        Annotated[
            str | None,
            typer.Option(help="Of your images' common grid: 96,112,96 for example.", show_default="holds all images"),
        ],
        None,
    ),
    "spacing": (
        Annotated[
            str | None,
            typer.Option(help="Of that grid in mm: 2,2,2 for example.", show_default="the median of the images"),
        ],
        None,
    ),
    "structures": (
        Annotated[
            str | None,
            typer.Option(
                help="Label values that count, 2,3,17 for example, or a file with them.",
                show_default="all that the labels hold",
            ),
        ],
        None,
    ),
    "fractions": (Annotated[str, typer.Option(help="Shares of train, val and test.")], SHARES),
    "split_seed": (
        Annotated[int, typer.Option(help="Decides which subjects train, validate and test.", min=0)],
        0,
    ),
}
"""Type and default of each option, by its name; together they make a `Source`."""


def takes_source(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """A command whose parameter `source` is made of the `OPTIONS`, which a user sees in its place."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Returned:
        given = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
        return command(source=_source(**given), **arguments)

    own = inspect.signature(command).parameters
    parameters = []
    for name, parameter in own.items():
        if name != "source":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))  # also one of the options
            continue
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (annotation, default) in OPTIONS.items()
            if option not in own
        ]
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _source(
    shape: str | None = None,
    spacing: str | None = None,
    structures: str | None = None,
    fractions: str = SHARES,
    **words: Any,
) -> Source:
    shares = numbers("--fractions", fractions)
    if shares is None or len(shares) != 3:
        raise CourseError(f"--fractions {fractions} is not three numbers: write it as in --fractions {SHARES}")
    plain: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in words.items()}
    return Source(
        **plain,
        shape=whole_numbers("--shape", shape),
        spacing=numbers("--spacing", spacing),
        structures=_structures(structures),
        fractions=(shares[0], shares[1], shares[2]),
    )


def _structures(text: str | None) -> tuple[int, ...] | None:
    """Label values, or those of a file: voxelmorph's array `labels` in an archive, or numbers in a text file."""
    if text is None or not Path(text).is_file():
        return whole_numbers("--structures", text)
    path = Path(text)
    try:
        if path.suffix != ".npz":
            return whole_numbers("--structures", ",".join(path.read_text(encoding="utf-8").split()))
        with opened_arrays(path) as arrays:
            return tuple(int(value) for value in arrays["labels"].read().ravel() if value)
    except (OSError, KeyError, ValueError, TypeError, OverflowError, zlib.error, zipfile.BadZipFile) as error:
        raise CourseError(f"--structures {path} holds no list of label values ({error}): give numbers") from error


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of an option such as `--spacing 1,1,2`; None where it was not given.

    Raises:
        CourseError: they are none.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError as error:
        raise CourseError(f"{option} {text} is not a list of numbers: write it as in {option} 1,2,3") from error


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """As `numbers`, of whole ones."""
    values = numbers(option, text)
    if values is not None and any(value != int(value) for value in values):
        raise CourseError(f"{option} {text} is not a list of whole numbers: write it as in {option} 1,2,3")
    return None if values is None else tuple(int(value) for value in values)
