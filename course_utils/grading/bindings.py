"""The names that a student's cell binds and uses at its top, read line by line.

It is the grader itself that reads them, outside of any sandbox: Python's parser, which text made for it can bring down,
is not asked, and a half of a cell, which is no Python, can be read too.
"""

import re
from collections.abc import Set
from typing import NamedTuple

_DEFINES = re.compile(r"(?:async +)?(?:def|class) +(\w+)")
_IMPORTS = re.compile(r"(?:from +[\w.]+ +)?import +([\w., ()*]+)")
_ASSIGNS = re.compile(r"([\w(*][\w, ()*]*)(?::[^=]*)?=(?!=)")
_NO_TARGET = re.compile(r"\w *\(|\w +\w")  # print(x=1), assert x =
_NAME = re.compile(r"[^\W\d]\w*")


class Names(NamedTuple):
    """What a cell binds by `def` and `class`, what it binds in any way, and every other word that it holds."""

    defined: set[str]
    bound: set[str]
    used: set[str]


def names_of(source: str) -> Names:
    """The names of a cell; strings and comments count as code."""
    names = Names(set(), set(), set())
    for line in source.splitlines():
        rest = line
        if match := _DEFINES.match(line):
            names.defined.add(match[1])
            names.bound.add(match[1])
            rest = line[match.end() :]
        elif match := _IMPORTS.match(line):
            imported = [part.split() for part in match[1].strip("( )").split(",")]
            names.bound.update(words[-1].partition(".")[0] for words in imported if words)
            rest = ""
        elif (match := _ASSIGNS.match(line)) and not _NO_TARGET.search(match[1]):
            names.bound.update(_NAME.findall(match[1]))
            rest = line[match.end(1) :]
        names.used.update(_NAME.findall(rest))
    return names


def begins_anew(source: str, before: str, asked: Set[str]) -> bool:
    """Whether a cell after another is a second attempt: both bind all that is asked, and it needs none of the other's.

    Where nothing is asked it is none.
    """
    earlier, own = names_of(before).bound, names_of(source)
    return bool(asked) and asked <= earlier & own.bound and not (own.used & earlier) - own.defined
