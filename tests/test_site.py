"""The web site holds every page and document, and hands on what a figure says."""

import fnmatch
import importlib.util
import json

import pytest

from notebooks.build import ROOT, SETUP_CELL


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("site_conf", ROOT / "docs" / "site" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_and_page_is_in_a_list_of_the_first_page():
    index = (ROOT / "docs" / "site" / "index.md").read_text(encoding="utf-8")
    patterns = [line.removeprefix("../../") for line in index.splitlines() if line.startswith("../../")]
    patterns = [pattern if "*" in pattern else f"{pattern}.md" for pattern in patterns]
    assert "\n../*\n" in index and "\napi\n" in index  # the documents beside this one
    for path in (*(ROOT / "notebooks").glob("*.ipynb"), *ROOT.glob("*.md")):
        name = path.relative_to(ROOT).as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_the_modules_that_are_described_are_there():
    text = (ROOT / "docs" / "site" / "api.md").read_text(encoding="utf-8")
    named = [line.split("::")[1].strip() for line in text.splitlines() if line.startswith(".. automodule::")]
    assert len(named) > 20 and all(importlib.util.find_spec(name) for name in named)


def test_a_figure_keeps_its_text_has_a_caption_and_the_first_cell_is_folded(conf):
    figure = {
        "output_type": "display_data",
        "data": {"image/png": ""},
        "metadata": {"image/png": {"alt": "a  *brain* − 1"}},
    }
    cells = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": [figure], "execution_count": 1, "id": name}
        for name, source in (("a", SETUP_CELL), ("b", "panel()"))
    ]
    page = conf.read_page(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert [cell.metadata.get("tags") for cell in page.cells] == [["hide-input"], None]
    caption = r"**Figure 2.** a \*brain\* − 1"
    assert page.cells[1].metadata["mystnb"] == {"image": {"alt": "a *brain* − 1"}, "figure": {"caption": caption}}


def test_a_cell_has_one_figure_at_most():
    """The site gives a cell's pictures one number and one caption."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
            assert len(pictures) <= 1, f"{path.name}: {''.join(cell['source'])[:80]}"
