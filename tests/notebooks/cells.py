"""Cells of a notebook's source, run as a script: what a page writes, without its hours."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from notebooks.build import ROOT, read_source


def code_cells(name: str) -> list[str]:
    """The code of a notebook's source, cell by cell."""
    notebook = read_source(ROOT / "notebooks" / "sources" / f"{name}.py")
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def run_cells(name: str, wanted: Sequence[str], smaller: Mapping[str, str]) -> dict[str, Any]:
    """Run the cells that contain one of the texts `wanted`, and of the others what they import.

    Args:
        name: Of the source, such as 06_training.
        wanted: Each must be in a cell.
        smaller: What is replaced in the code, and by what; each must be there.

    Returns:
        The names that the cells leave.
    """
    cells = code_cells(name)
    missing = [text for text in (*wanted, *smaller) if not any(text in code for code in cells)]
    assert not missing, f"{name} has no cell with {missing}"
    names: dict[str, Any] = {"display": print}
    for code in cells:
        if any(text in code for text in wanted):
            for old, new in smaller.items():
                code = code.replace(old, new)
        else:
            code = "\n".join(
                ast.unparse(one) for one in ast.parse(code).body if isinstance(one, ast.Import | ast.ImportFrom)
            )
        exec(compile(code, name, "exec"), names)
    return names
