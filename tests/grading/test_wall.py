"""The wing of grading: who may import it, and what it asks of those who import a part of it."""

import ast
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from notebooks.build import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def without(distributions, code):
    """Run code in a Python that has none of these."""
    hidden = sorted({name.replace("-", "_") for name in distributions})
    code = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def names(requirements):
    return {Requirement(text).name for text in requirements}


def test_nothing_outside_imports_grading():
    files = [*(ROOT / "course_utils").rglob("*.py"), *(ROOT / "data_scripts").rglob("*.py")]
    outside = [path for path in files if "grading" not in path.relative_to(ROOT).parts]
    assert len(outside) > 10
    for path in outside:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not any(name.startswith("course_utils.grading") for name in imported), path


def test_checks_need_numpy_and_torch_only():
    everything = names(PROJECT["dependencies"]).union(*map(names, PROJECT["optional-dependencies"].values()))
    done = without(everything - {"numpy", "torch", "course_utils"}, "import course_utils.grading.checks")
    assert done.returncode == 0, done.stderr


def test_the_commands_are_found_without_the_extra():
    extra = names(PROJECT["optional-dependencies"]["grading"])
    done = without(
        extra, "from course_utils.grading.commands import check, grade; print(grade.__name__, check.__name__)"
    )
    assert done.stdout == "grade check\n", done.stderr


def test_the_package_of_grading_loads_nothing_by_itself():
    done = without([], "import course_utils.grading\nprint(*{name.partition('.')[0] for name in sys.modules})")
    assert not {"numpy", "torch", "pandas", "pytest", "nbformat"} & set(done.stdout.split()), done.stderr


def test_a_grader_installs_no_browser_driver():
    assert "selenium" not in names(PROJECT["optional-dependencies"]["grading"])
