"""The walls of the house: which part of the package may import which, held against the code's own imports."""

import ast
import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from notebooks.build import ROOT

FLOORS = [
    {"course_utils"},  # its version
    {"errors"},
    {"plain", "sealed", "lean"},
    {"files", "locks", "memory", "places", "progress", "fields", "schedule", "seeds"},
    {"losses", "metrics", "consistency", "uncertainty", "shipped"},
    {"networks", "plotting", "data"},
    {"objectives", "checkpoint", "session"},
    {"model_card", "evaluation"},
    {"training", "scans"},
    {"templates", "serving"},
    {"commands"},
    {"grading"},
    {"__main__"},
]
"""Parts of the package, the lowest first: an import leads to a lower floor, or stays within a part."""
PURE = {"fields", "losses", "metrics", "schedule"}
"""The mathematics: nothing of ours above them, and of others only what computes."""


def part(module):
    """The part of the package that a module belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def modules():
    """Every module of the package: its dotted name, and the tree of its code."""
    for path in sorted((ROOT / "course_utils").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree, names):
    """The modules of the package that a tree imports, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name.startswith("course_utils"):
                yield name if name in names else name.rpartition(".")[0] or name


@pytest.fixture(scope="module")
def arrows():
    """By module, the modules that it imports."""
    trees = dict(modules())
    assert len(trees) > 60
    return {name: set(imports(tree, trees)) - {name} for name, tree in trees.items()}


def test_every_part_has_its_floor(arrows):
    parts = {part(name) for name in arrows}
    assert parts == set().union(*FLOORS)


def test_arrows_run_downwards_only(arrows):
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    upwards = [
        f"{name} imports {other}"
        for name, others in arrows.items()
        for other in others
        if part(name) != part(other) and floor[part(other)] >= floor[part(name)]
    ]
    assert upwards == []


def test_no_module_imports_itself_on_a_way_round(arrows):
    # A package's own __init__ gathers its modules, which therefore do not import from it.
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_mathematics_stands_alone(arrows):
    for name, tree in modules():
        if part(name) in PURE and name != "course_utils":
            roots = {
                (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
            }
            assert roots - sys.stdlib_module_names <= {"torch", "numpy", "scipy", "course_utils"}, name
            assert {part(other) for other in arrows[name]} <= PURE, name


def test_nothing_imports_grading():
    outside = [*(ROOT / "course_utils").rglob("*.py"), *(ROOT / "data_scripts").rglob("*.py")]
    names = dict(modules())
    for path in outside:
        if "grading" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not [name for name in imports(tree, names) if part(name) == "grading"], path


@pytest.mark.parametrize("module", ["course_utils.scans.registration", "course_utils.scans.learn2reg"])
def test_registering_needs_no_plots_and_no_curves(module):
    code = f"import sys, {module}\nprint(*{{'tensorboard', 'matplotlib', 'monai'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_every_module_says_what_it_is_for():
    assert [name for name, tree in modules() if not ast.get_docstring(tree)] == []


def test_a_command_has_a_module_of_its_own():
    from course_utils.commands.app import COMMANDS

    for command, name in COMMANDS.items():
        function = getattr(importlib.import_module(name), command.replace("-", "_"))
        assert function.__module__ == name and function.__doc__
    shared = {"app", "data_options", "ending", "help_pages", "launched"}
    shared |= {"objective_options", "settings", "stopping", "__init__"}
    files = {path.stem for path in (ROOT / "course_utils" / "commands").glob("*.py")} - shared
    assert files == {command.replace("-", "_") for command in COMMANDS} - {"grade", "check"}


def test_no_module_is_long():
    long = {name: len(ast.unparse(tree).splitlines()) for name, tree in modules()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
