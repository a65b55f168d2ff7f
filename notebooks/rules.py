"""What every page of the course keeps to, beside belonging to its source: questions, pictures, people."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nbformat import NotebookNode

QUESTION = "**Predict"
PLACE = "> *My prediction:*"
ANSWER = "<details>\n<summary>Compare with your prediction</summary>\n\n"
REAL = re.compile(r'start\(real="(\w+)"\)')
"""How a page says which data set of people suits it."""


def question_problems(cells: Sequence[NotebookNode]) -> Iterator[str]:
    """A question has a place for the reader's guess, and the text after the code that answers it a folded answer."""
    open_question = ""
    for cell in cells:
        if cell.cell_type != "markdown":
            continue
        if cell.source.startswith(ANSWER) and not open_question:
            yield f"a folded answer to no question: {_start(cell)}"
        elif cell.source.startswith(ANSWER):
            open_question = ""
            if "\n\n</details>" not in cell.source:
                yield f"a folded answer without an empty line and </details> below it: {_start(cell)}"
        asked = cell.source.count(QUESTION)
        if asked > 1:
            yield f"a cell asks {asked} questions at a time: {_start(cell)}"
        if asked and open_question:
            yield f"a question is asked before the last was answered: {open_question}"
        if asked and not cell.source.rstrip().endswith(f"\n{PLACE}"):
            yield f"a cell asks for a prediction and does not end with '{PLACE}': {_start(cell)}"
        if asked:
            open_question = cell.source[cell.source.index(QUESTION) :].splitlines()[0]
    if open_question:
        yield f"a question has no folded answer: {open_question}"


def picture_problems(outputs: Sequence[tuple[NotebookNode, NotebookNode]]) -> Iterator[str]:
    """Every picture says in words what it shows; given are pairs of a cell and one of its outputs."""
    for cell, output in outputs:
        if "image/png" in output.get("data", {}) and not output.metadata.get("image/png", {}).get("alt"):
            yield f"a picture without a text, which course_utils.plotting.Figure gives: {cell.source.splitlines()[-1]}"


def people_problems(cells: Sequence[NotebookNode]) -> Iterator[str]:
    """A page that prefers people was executed with them: its session says so."""
    for cell in cells:
        if cell.cell_type == "code" and (wanted := REAL.search(cell.source)):
            said = "".join(output.get("text", "") for output in cell.outputs)
            if not re.search(rf"^data set\s+{wanted[1]}$", said, re.MULTILINE):
                yield f"it was not executed with {wanted[1]}: build it with --dataset {wanted[1]}"


@dataclass(frozen=True)
class Facts:
    """What a reader's checklist counts on one page.

    Attributes:
        dataset: What it was executed with.
        cells: How many code cells.
        longest: Lines of the longest.
        asserting: Code cells that assert something.
        figures: Pictures.
        described: Pictures with a text.
        sliders: Of these, those that turn without a kernel.
        questions: Predictions that are asked for.
        answers: Folded answers.
        monai: Whether it shows the same in MONAI.
    """

    dataset: str
    cells: int
    longest: int
    asserting: int
    figures: int
    described: int
    sliders: int
    questions: int
    answers: int
    monai: bool


def facts(notebook: NotebookNode) -> Facts:
    """Count on an executed page what the reader's checklist asks for."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    said = re.search(r"^data set\s+(\w+)", "".join(output.get("text", "") for output in outputs), re.MULTILINE)
    return Facts(
        dataset=said[1] if said else "",
        cells=len(code),
        longest=max(len(cell.source.splitlines()) for cell in code),
        asserting=sum(bool(re.search(r"^\s*assert ", cell.source, re.MULTILINE)) for cell in code),
        figures=len(pictures),
        described=sum(bool(picture.metadata.get("image/png", {}).get("alt")) for picture in pictures),
        sliders=sum('type: "range"' in picture.data.get("text/html", "") for picture in pictures),
        questions=sum(source.count(QUESTION) for source in text),
        answers=sum(source.startswith(ANSWER) for source in text),
        monai=any(re.search("^## The same in MONAI", source, re.MULTILINE) for source in text),
    )


def _start(cell: NotebookNode) -> str:
    return next((line for line in cell.source.splitlines() if line), "")[:60]
