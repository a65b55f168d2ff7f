"""What the kernel has to know about a notebook; nothing of it tells a hidden test."""

import ast
import hashlib
import symtable
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_PARSER = threading.Lock()
# Python 3.11 counts the depth of a syntax tree once for all threads: two that build one at a time end in a SystemError.


@dataclass(frozen=True)
class Plan:
    """What the kernel has to know about the notebook.

    Attributes:
        answers: SHA-256 of each student's cell, and the names that the exercise asks to be bound.
        imports: what the notebook imports, modules and names in them; the modules are imported before the first
            student's cell runs, so that they are still what they were.
    """

    answers: dict[str, list[str]]
    imports: list[str]


def make_plan(answers: Mapping[str, str], asked: Mapping[str, str], code: Sequence[str]) -> Plan:
    """The plan of a notebook.

    Args:
        answers: the student's cells, by grade_id.
        asked: the solution cells of the assignment, by grade_id.
        code: all code cells of the assignment.
    """
    names: dict[str, list[str]] = {}
    for grade_id, source in answers.items():
        names.setdefault(cell_hash(source), []).extend(bound(asked[grade_id]))
    return Plan(names, sorted({name for source in code for name in imported(source)}))


def cell_hash(source: str) -> str:
    """How a `Plan` names a cell."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell; every thread of grading parses by this function, one at a time.

    Raises:
        SyntaxError: it is no Python, or holds a magic of IPython's.
    """
    with _PARSER:
        return ast.parse(source)


def bound(source: str) -> list[str]:
    """The names that a cell binds."""
    try:
        with _PARSER:
            table = symtable.symtable(source, "cell", "exec")
    except SyntaxError:
        return []
    return [symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()]


def imported(source: str) -> Iterator[str]:
    """The modules that a cell imports, and further names that may be modules."""
    try:
        tree = parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # it may be a module
