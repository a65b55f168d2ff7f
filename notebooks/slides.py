"""Slides for a lecture, made of the executed pages: `make slides`.

A section of a page is a slide with its first paragraph; a question comes before the picture that answers it, and the
answer after. What else the page says stands in the speaker's notes (key S), and code is left to the page.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbconvert.exporters import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.commands.ending import run
from course_utils.errors import CourseError
from notebooks.build import ROOT, notebook_of, sources
from notebooks.rules import ANSWER, PLACE, QUESTION

LINES = 12
"""A text output longer than this many lines is for the page, not for a wall."""
AFTER = ("**What can go wrong", "**Try it", "**References", "Next:")
"""How the paragraphs of a page begin that a reader takes home."""
CSS = """\
<style>
.reveal { font-size: 26px; }
.reveal section img { height: 60vh; width: auto; max-width: 100%; object-fit: contain; margin: 0; }
.reveal section p a img { height: auto; }
.reveal pre { box-shadow: none; }
.reveal .jp-OutputPrompt, .reveal .jp-InputPrompt { display: none; }
</style>"""


def deck(page: NotebookNode) -> NotebookNode:
    """The slides of an executed page, as a notebook whose cells know which slide they are on."""
    cells: list[NotebookNode] = []
    heading = ""
    for number, cell in enumerate(page.cells):
        if cell.cell_type == "markdown":
            shown = list(_paragraphs(cell.source, first=number == 0))
            heading = next((text for kind, text in shown if kind == "slide"), heading)
            cells += [_marked(new_markdown_cell(text), kind) for kind, text in shown]
        elif outputs := [output for output in cell.outputs if _is_for_a_wall(output)]:
            before = cells[-1]
            if QUESTION in before.source or (before.metadata.slideshow.slide_type != "slide" and _pictures(outputs)):
                cells.append(_marked(new_markdown_cell(heading.splitlines()[0] if heading else ""), "subslide"))
            cells.append(_marked(new_code_cell(outputs=outputs), "-"))
    cells[0].source += f"\n\n{CSS}"
    return new_notebook(cells=cells, metadata=page.metadata)


def _paragraphs(source: str, *, first: bool) -> Iterator[tuple[str, str]]:
    """The parts of a Markdown cell, each with the kind of its slide."""
    answer = ""
    if source.startswith(ANSWER):
        answer, source = source.removeprefix(ANSWER).split("</details>", 1)
        yield "fragment", answer.strip()
    blocks = [block for block in re.split(r"\n{2,}", source.strip()) if block and block != PLACE]
    notes: list[str] = []
    begun = False
    while blocks:
        block = blocks.pop(0)
        if re.match(r"#{1,2} ", block):
            lead = "" if not blocks or _is_no_lead(blocks[0]) else blocks.pop(0)
            yield "slide", f"{block}\n\n{lead.removesuffix(PLACE)}".strip()
            begun = True
        elif block.startswith(AFTER) or first:
            notes.append(block)
        elif QUESTION in block:
            yield "fragment", block.removesuffix(PLACE).strip()
        elif block.startswith(("- ", "|", "$$", "1. ")) and begun:
            yield "fragment", block
        else:
            notes.append(block)
    if notes:
        yield "notes", "\n\n".join(notes)


def _is_no_lead(block: str) -> bool:
    return block.startswith(("- ", "|", "$$", "1. ", "#", "[!["))


def _pictures(outputs: list[NotebookNode]) -> bool:
    return any(_is_picture(output) for output in outputs)


def _is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def _is_for_a_wall(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout" and len(output.text.splitlines()) <= LINES and "versions" not in output.text
    return _is_picture(output) or "text/html" in output.get("data", {})


def _marked(cell: NotebookNode, kind: str) -> NotebookNode:
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def write(page: Path, folder: Path) -> Path:
    """Write the slides of a stored page into a folder, one HTML file that needs reveal.js from the network."""
    exporter = SlidesExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.reveal_number = "c/t"
    exporter.reveal_scroll = True
    text, _ = exporter.from_notebook_node(
        deck(nbformat.read(page, as_version=4)), resources={"metadata": {"name": page.stem}}
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{page.stem}.slides.html"
    target.write_text(text, encoding="utf-8")
    return target


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    numbers: Annotated[
        list[str] | None, typer.Argument(help="Two-digit numbers of pages; all if none is given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the slides.")] = ROOT / "slides",
) -> None:
    """Make slides of the executed pages: open slides/NN_topic.slides.html in a browser, S shows the speaker's notes."""
    pages = {source.name[:2]: notebook_of(source) for source in sources()}
    if unknown := [number for number in numbers or [] if number not in pages]:
        raise CourseError(f"there is no page {', '.join(unknown)}; there are: {', '.join(pages)}")
    for number in numbers or pages:
        print(write(pages[number], out))


if __name__ == "__main__":
    run(app)
