"""Help is there at once, and says what the options are."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from course_utils.commands import help_pages
from course_utils.commands.app import COMMANDS
from notebooks.build import ROOT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in help_pages.PAGES.iterdir()}
LOOK = "import sys, runpy\nsys.argv = {arguments}\ntry:\n    runpy.run_module('course_utils', run_name='__main__')\n"
LOOK += "finally:\n    print(sorted({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"


LOCK = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
as_locked = pytest.mark.skipif(
    f"typer=={importlib.metadata.version('typer')}" not in LOCK, reason="another typer lays pages out in another way"
)


def help_of(*arguments, columns=None):
    """What is printed, and the names of all packages that were imported for it."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {} if columns is None else {"COLUMNS": str(columns)}
    code = LOOK.format(arguments=["course_utils", *arguments])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    return done.stdout, done.stderr.splitlines()[-1]


@as_locked
def test_the_stored_pages_are_those_that_typer_lays_out():
    # In a process of its own: other tests add architectures, which are choices of an option.
    code = "import json; from tests.help_pages import laid_out; print(json.dumps(laid_out()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == PAGES, "write them anew: python -m tests.help_pages"


@pytest.mark.parametrize("asked", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_that_computes(asked):
    page, imported = help_of(*asked)
    assert page == PAGES[f"{asked[0] if asked[0] in COMMANDS else 'program'}.txt"]
    assert "'typer'" in imported
    assert not any(f"'{name}'" in imported for name in ("torch", "numpy", "monai", "pandas", "scipy", "matplotlib"))


def test_on_a_narrow_screen_the_page_is_laid_out_for_it():
    page, _ = help_of("make-synthetic", "--help", columns=60)
    assert "--subjects" in page and max(map(len, page.splitlines())) <= 60
    assert page != PAGES["make-synthetic.txt"]


@as_locked
def test_an_option_before_the_command_goes_the_long_way_to_the_same_page():
    page, _ = help_of("--quiet", "make-synthetic", "--help")
    assert page == PAGES["make-synthetic.txt"]
