"""Names that students chose, in a line, a table and a spreadsheet: they end no line and are no formula."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

FORMULA = tuple("=+-@＝＋－＠")
"""A spreadsheet takes a cell that begins with one of these for a formula; after blanks, some do."""

JOINERS = "\u200c\u200d"
"""Format characters that belong to names, in Persian and in emoji; the others turn text round, or are not seen."""


def printable(text: str) -> str:
    """The text in NFC, where whatever ends a line, turns it round or is no character is written as an escape, `\\r`."""
    return "".join(map(_escaped, unicodedata.normalize("NFC", text)))


def of_path(path: Path) -> str:
    """A path as printable text; bytes that are no UTF-8 become `\\xff`, so that two names stay two."""
    # A backslash of the name's own is doubled: an escape is never the name of another file.
    name = os.fsencode(path.as_posix()).replace(b"\\", b"\\\\")
    return printable(name.decode("utf-8", "backslashreplace"))


def cell(text: str) -> str:
    """The text for a cell of a spreadsheet: printable, and quoted where it would be a formula."""
    shown = printable(text)
    return f"'{shown}" if re.sub(r"^(?:\s|\\[a-z0-9]+)+", "", shown).startswith(FORMULA) else shown


def some(names: Sequence[str], most: int = 20) -> str:
    """Names in a line, with commas; how many more there are, where they are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _escaped(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in JOINERS):
        return character.encode("unicode_escape").decode()
    return character
