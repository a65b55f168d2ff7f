"""How Sphinx makes the course's site of the executed pages, the documents and the docstrings: `make site`."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

SETUP = "# The same in every notebook"
"""How the first code cell of every page begins."""
REPOSITORY = _PROJECT["urls"]["Repository"]

project = "Deformable medical image registration, hands on"
author = "the course's authors"
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/site/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "notebooks/**.ipynb"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_copy_source = False

nb_execution_mode = "off"  # the pages are stored as they were executed
nb_custom_formats = {".ipynb": ["docs.site.conf.read_page", {}]}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # a slider without its kernel; the picture beside it is shown
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_mock_imports = ["ants", "SimpleITK", "voxelmorph"]
napoleon_google_docstring = True
napoleon_use_ivar = True  # a field of a dataclass is described once


def setup(app: Sphinx) -> None:
    """What Sphinx calls first."""
    app.connect("source-read", _link_to_code)


def _link_to_code(app: Sphinx, name: str, source: list[str]) -> None:
    """A document may lead to a file of the package, which is in the repository and not on the site."""
    source[0] = re.sub(r"\]\((\.\./)*(course_utils|data_scripts|tests)/", rf"]({REPOSITORY}/blob/main/\2/", source[0])
    source[0] = source[0].replace("```mermaid", "```text")  # GitHub draws it; here it is read


def read_page(text: str) -> nbformat.NotebookNode:
    """A stored page as the site shows it: the cell that all begin with is folded, figures have numbers and texts.

    MyST-NB looks for a figure's text in the cell, and not in the output, where nbconvert does. A cell has one figure.
    """
    page = nbformat.reads(text, as_version=4)
    number = 0
    for cell in page.cells:
        if cell.source.startswith(SETUP):
            cell.metadata["tags"] = ["hide-input"]
        for output in cell.get("outputs", []):
            if "alt" in (picture := output.get("metadata", {}).get("image/png", {})):
                number += 1
                said = re.sub(r"\s+", " ", picture["alt"])
                plain = re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", said)  # none of it is Markdown
                cell.metadata["mystnb"] = {
                    "image": {"alt": said},
                    "figure": {"caption": f"**Figure {number}.** {plain}"},
                }
    return page
