"""Values that a file tells, held to their types and sizes before anything is built from them.

A value is plain if it is None, a truth value, a number, a text, or a list or a mapping of such. Nothing that MONAI
would read as more than a constant in a bundle's configuration is taken for plain: see `text` and `key`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from course_utils.errors import CourseError

EXPRESSIONS = ("$", "@", "%")
"""How texts begin that a MONAI bundle evaluates: code, a reference, another file's content."""
KEY = re.compile(r"[A-Za-z0-9][\w .-]*")
"""Names in a mapping: `_target_` and its like, `+name` and `a::b` mean something to a bundle."""
LONGEST = 10_000
"""Characters of a text."""
DEEPEST = 8
"""Lists and mappings within each other."""
MOST = 200_000
"""Values in all."""
LARGEST_JSON = 2**26
"""Bytes of a file of plain values: the names of a million files."""


class Unfit(ValueError):
    """A value that is not what it must be. The message says which and why; whoever knows the file adds its name."""


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def text(value: Any, where: str) -> str:
    """The value, a text that is no expression.

    Raises:
        Unfit: it is no text, too long, or begins as one of `EXPRESSIONS`, after spaces or at once.
    """
    if words(value, where).lstrip().startswith(EXPRESSIONS):
        raise Unfit(f"{where} is {_shown(value)}, which a MONAI bundle would run or replace")
    return value


def words(value: Any, where: str) -> str:
    """The value, a text of any beginning, as names of files and subjects are; raises Unfit where it is none."""
    if not isinstance(value, str):
        raise Unfit(f"{where} is {_shown(value)}, not a text")
    if len(value) > LONGEST:
        raise Unfit(f"{where} is a text of {len(value)} characters, more than {LONGEST}")
    return value


def as_it_is(value: Any, where: str) -> Any:
    """The value, whatever it is, for items that are checked later."""
    return value


def inside(value: str, where: str) -> str:
    """The value, a path that stays below the folder that it is relative to, on any system.

    Raises:
        Unfit: it is absolute, names a drive, goes up, or holds a sign that no path has.
    """
    path = PureWindowsPath(value)  # both kinds of slashes, drives, and roots
    if path.drive or path.root or ".." in path.parts or "\0" in value:
        raise Unfit(f"{where} is {_shown(value)}: give one below its folder, not a path out of it")
    return value


def key(value: Any, where: str) -> str:
    """The value, a name in a mapping; raises Unfit where it is none, or means something to a MONAI bundle."""
    if not isinstance(value, str) or len(value) > LONGEST or not KEY.fullmatch(value):
        raise Unfit(f"{where} has the name {_shown(value)}, which is not one of letters, digits, '_', '-' and '.'")
    return value


def number(value: Any, where: str) -> float:
    """The value, a number, perhaps NaN or infinite; raises Unfit where it is none, or a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"{where} is {_shown(value)}, not a number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise Unfit(f"{where} is a whole number beyond 64 bits")
    return value


def whole(value: Any, where: str, low: int = 0, high: int = 2**63 - 1) -> int:
    """The value, a whole number from `low` to `high`; raises Unfit where it is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unfit(f"{where} is {_shown(value)}, not a whole number")
    if not low <= value <= high:
        raise Unfit(f"{where} is {_shown(value)}, not from {low} to {high}")
    return value


def flag(value: Any, where: str) -> bool:
    """The value, true or false; raises Unfit where it is neither."""
    if not isinstance(value, bool):
        raise Unfit(f"{where} is {_shown(value)}, not true or false")
    return value


def items(value: Any, where: str, of: Callable[[Any, str], Any], most: int = MOST) -> list[Any]:
    """The value, a list, each of its items what `of` returns for it.

    Raises:
        Unfit: it is no list, has more than `most` items, or one of them is unfit.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Unfit(f"{where} is {_shown(value)}, not a list")
    if len(value) > most:
        raise Unfit(f"{where} has {len(value)} items, more than {most}")
    return [of(item, f"{where}[{index}]") for index, item in enumerate(value)]


def table(value: Any, where: str) -> Mapping[Any, Any]:
    """The value, a mapping; raises Unfit where it is none, or has too many names."""
    if not isinstance(value, Mapping):
        raise Unfit(f"{where} is {_shown(value)}, not a table of names and values")
    if len(value) > MOST:
        raise Unfit(f"{where} has {len(value)} names, more than {MOST}")
    return value


def settings(value: Any, where: str, of_texts: Callable[[Any, str], str] = text) -> dict[str, Any]:
    """A copy of a mapping of plain values.

    Args:
        value: To be checked.
        where: What it is called, for messages.
        of_texts: What a text must be: `text` or `words`.

    Raises:
        Unfit: it is no mapping, or holds something that is not plain; too many values, or too deep.
    """
    counted = [0]

    def plain(value: Any, where: str, depth: int) -> Any:
        counted[0] += 1
        if counted[0] > MOST or depth > DEEPEST:
            raise Unfit(f"{where} is deeper than {DEEPEST} levels, or one of more than {MOST} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return of_texts(value, where)
        if isinstance(value, int | float):
            return number(value, where)
        if isinstance(value, Mapping):
            return {key(name, where): plain(its, f"{where}.{name}", depth + 1) for name, its in value.items()}
        return items(value, where, lambda item, place: plain(item, place, depth + 1))

    return plain(table(value, where), where, 0)


def read_json(path: Path, advice: str) -> Any:
    """What a JSON file holds.

    Args:
        path: Of the file.
        advice: What to do where it cannot be read, for the message.

    Raises:
        CourseError: no such file, no JSON, or larger or deeper than such a file ever is.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise Unfit(f"larger than {LARGEST_JSON} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise CourseError(f"{path} cannot be read as JSON (lists within lists without end): {advice}") from error
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read as JSON ({error}): {advice}") from error
