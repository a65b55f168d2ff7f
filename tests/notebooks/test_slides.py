"""Slides hold what a lecture shows of a page, in its order, and no code."""

import re

import nbformat
import pytest

from notebooks import build, slides
from notebooks.rules import ANSWER, PLACE, QUESTION


def pictures(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)
def test_every_picture_and_question_of_a_page_is_on_a_slide_and_no_code(source):
    page = nbformat.read(build.notebook_of(source), as_version=4)
    deck = slides.deck(page)
    assert pictures(deck) == pictures(page)
    assert not any(cell.source for cell in deck.cells if cell.cell_type == "code")
    assert deck.cells[0].metadata.slideshow.slide_type == "slide" and deck.cells[0].source.startswith("# ")
    shown = [cell.source for cell in deck.cells if cell.metadata.slideshow.slide_type != "notes"]
    asked = sum(cell.source.count(QUESTION) for cell in page.cells if cell.cell_type == "markdown")
    assert sum(text.count(QUESTION) for text in shown) == asked
    assert not any(PLACE in text or "<details>" in text or "minutes |" in text for text in shown)


def test_a_question_comes_before_its_picture_and_the_answer_after():
    figure = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    told = nbformat.v4.new_output("stream", name="stdout", text="1\n" * 40)
    cells = [
        nbformat.v4.new_markdown_cell("# 99 A page\n\nA promise.\n\n| | CPU |\n|---|---|\n| minutes | 1 |"),
        nbformat.v4.new_markdown_cell(f"## Which way?\n\nLead.\n\nMore.\n\n{QUESTION}:** which?\n\n{PLACE}"),
        nbformat.v4.new_code_cell("draw()", outputs=[told, figure]),
        nbformat.v4.new_markdown_cell(f"{ANSWER}Left.\n\n</details>\n\nWhy.\n\n**Try it.** Again."),
    ]
    deck = slides.deck(nbformat.v4.new_notebook(cells=cells))
    kinds = [
        (cell.metadata.slideshow.slide_type, re.sub(r"\s*<style>.*", "", cell.source, flags=re.S))
        for cell in deck.cells
    ]
    assert kinds == [
        ("slide", "# 99 A page\n\nA promise."),
        ("notes", "| | CPU |\n|---|---|\n| minutes | 1 |"),
        ("slide", "## Which way?\n\nLead."),
        ("fragment", f"{QUESTION}:** which?"),
        ("notes", "More."),
        ("subslide", "## Which way?"),
        ("-", ""),
        ("fragment", "Left."),
        ("notes", "Why.\n\n**Try it.** Again."),
    ]
    assert [output.output_type for output in deck.cells[6].outputs] == ["display_data"]  # forty lines are for the page


def test_they_are_one_file_each(tmp_path):
    slides.main(["12"], tmp_path)
    text = (tmp_path / "12_two_directions.slides.html").read_text(encoding="utf-8")
    assert text.count("<img") >= 3 and "def trained" not in text and 'class="notes"' in text
    with pytest.raises(slides.CourseError, match="there is no page 99; there are: 00"):
        slides.main(["99"], tmp_path)
