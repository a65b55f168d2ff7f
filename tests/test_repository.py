"""What must agree across the repository's files."""

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import course_utils
from course_utils.errors import CourseError
from notebooks import build
from tests.lowest import lowest

ROOT = build.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# An extra may ask for another, as "course_utils[grading]".
EXTRAS = {
    name: [text for text in wanted if Requirement(text).name != PROJECT["name"]]
    for name, wanted in PROJECT["optional-dependencies"].items()
}


def tracked_texts():
    """Every text file that git tracks: path and content."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".gif", ".gz", ".safetensors"}:
            yield name, path.read_text(encoding="utf-8")


RUNNING, TOOLS = "requirements-lock.txt", "requirements-tools-lock.txt"


def locked(name, python="3.11", machine="x86_64"):
    """Version of each package that a lock file names, for a Python and a machine."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    exact = r"[a-z0-9-]+==[a-z0-9.]+(; .+)?"
    assert all(re.fullmatch(exact, line) for line in lines), "only exact versions of packages"
    environment = {"python_version": python, "platform_machine": machine}
    wanted = [Requirement(line) for line in lines]
    here = [one for one in wanted if one.marker is None or one.marker.evaluate(environment)]
    versions = {one.name: next(iter(one.specifier)).version for one in here}
    assert len(versions) == len(here), "a package has one version"
    return versions


def test_texts_are_written_and_read_in_an_encoding_that_is_named():
    """A locale, and Windows, would choose another than UTF-8, and a student's name is not written, or another one."""
    for name, text in tracked_texts():
        if name.endswith(".py") and "/sources/" not in name:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    first = {"read_text": 0, "write_text": 1}.get(node.func.attr, len(node.args))
                    given = len(node.args) > first or any(one.arg == "encoding" for one in node.keywords)
                    assert given or node.func.attr not in {"read_text", "write_text"}, f"{name}:{node.lineno}"


@pytest.fixture(scope="module")
def lock():
    return locked(RUNNING) | locked(TOOLS)


@pytest.mark.parametrize("wanted", [*PROJECT["dependencies"], *chain(*EXTRAS.values())])
def test_the_lock_satisfies_every_declared_requirement(lock, wanted):
    requirement = Requirement(wanted)
    assert lock[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "arm64", "aarch64"])
def test_the_first_lock_is_enough_for_commands_and_notebooks(python, machine):
    """On every system; antspyx, which has no wheel for each of them, stands in the second file."""
    lock = locked(RUNNING, python, machine)
    for wanted in (*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["grading"]):
        requirement = Requirement(wanted)
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_second_lock_adds_and_changes_nothing():
    assert not set(locked(RUNNING)) & set(locked(TOOLS))


def test_those_who_run_and_study_get_no_test_tools_no_peers_and_no_teacher_s_menu():
    teams = {"nbgrader", "antspyx", "voxelmorph", "selenium", "onnxruntime", "pytest-xdist", "nilearn", "ruff"}
    assert teams <= set(locked(TOOLS))


def installs(requirements):
    """Names of what pip installs for some requirements, by the metadata of what is installed here."""
    names, left = set(), [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in names and not requirement.extras:
            continue
        names.add(name)
        extras = [{"extra": extra} for extra in requirement.extras or {""}]
        for wanted in map(Requirement, importlib.metadata.requires(name) or []):
            if wanted.marker is None or any(wanted.marker.evaluate(extra) for extra in extras):
                left.append(wanted)
    return names


def test_the_first_lock_names_whatever_its_packages_ask_for():
    wanted = [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["grading"]]
    assert installs(wanted) == set(locked(RUNNING))


def test_the_tests_run_on_the_locked_versions_of_the_numbers_makers(lock):
    for name in ("torch", "monai", "numpy", "scipy"):
        assert importlib.metadata.version(name).split("+")[0] == lock[name]


def test_the_lowest_versions_are_those_declared(tmp_path):
    text = (
        "[project]\ndependencies = ['a>=1.2', 'b<4,>=3', 'c']\n[project.optional-dependencies]\nx = ['d[e]>=0.5.1']\n"
    )
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    assert list(lowest(tmp_path / "pyproject.toml")) == ["a==1.2", "b==3", "d==0.5.1"]
    names = {line.partition("==")[0] for line in lowest()}
    assert names == {Requirement(text).name for text in (*PROJECT["dependencies"], *chain(*EXTRAS.values()))}


def imported(tree):
    """Top-level names of the modules that a piece of code imports."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        yield from (name.split(".")[0] for name in names)


PACKAGE = sorted((ROOT / "course_utils").rglob("*.py"))


def test_the_package_imports_only_what_it_declares():
    declared = {Requirement(text).name for text in (*PROJECT["dependencies"], *chain(*EXTRAS.values()))}
    for path in PACKAGE:
        undeclared = (
            set(imported(ast.parse(path.read_text(encoding="utf-8"))))
            - declared
            - {"course_utils"}
            - sys.stdlib_module_names
        )
        assert not undeclared, f"{path} imports {undeclared}, which pyproject.toml does not ask for"


def test_the_package_is_imported_without_any_extra():
    """All of it but what has an extra of its own: grading (tests/grading/test_wall.py), and the page's server."""
    own = ("grading", "serving.access", "serving.notebook", "serving.server", "serving.web")
    needed = {Requirement(text).name for text in PROJECT["dependencies"]}
    extras = sorted({Requirement(text).name for text in chain(*EXTRAS.values())} - needed)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE]
    wanted = [name for name in names if not any(part in name for part in own) and not name.endswith("__main__")]
    assert len(wanted) > 40
    code = blocked + "\n".join(f"import {name.removesuffix('.__init__')}" for name in wanted)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_installed_version_is_the_package_s():
    assert importlib.metadata.version("course_utils") == course_utils.__version__


def test_readme_names_the_commands_and_links_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^\s*make run\b", readme, re.MULTILINE)
    assert "make test" in readme and "make check" in readme
    first = next(n for n, line in enumerate(readme.splitlines()) if line.startswith("make run"))
    assert first < 80  # at most two screens before the first command
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    for source in build.sources():
        assert any(f"(notebooks/{source.stem}.ipynb)" in row for row in rows), f"no syllabus row for {source.stem}"


def test_ci_calls_the_readme_s_test_command():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()[-1] == "make test"


def test_every_target_of_the_makefile_exists_and_is_explained():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    help_text = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in help_text.splitlines()} == set(phony)
    assert all(len(line.split()) > 2 for line in help_text.splitlines())


def test_an_old_python_is_refused_with_a_clear_line(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements-lock.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    old = tmp_path / "python3.10"
    old.write_text(
        f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 10, 1, None, 0); $1"\n',
        encoding="utf-8",
    )
    old.chmod(0o755)
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: the course needs Python 3.11 or newer, this is 3.10" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_nothing_committed_names_this_checkout_s_folder():
    assert [name for name, text in tracked_texts() if f"{ROOT}/" in text] == []


ADDRESSES = re.compile(
    r"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/([\w.-]+/[\w.-]+)"
    r"|git\+https://github\.com/([\w.-]+/[\w.-]+)"
)


def test_every_mention_of_the_repository_s_address_agrees():
    slug = build.repository_slug(build.repository_address())
    mentions = [(name, "".join(pair)) for name, text in tracked_texts() for pair in ADDRESSES.findall(text)]
    assert len(mentions) >= 2 * len(build.sources())
    assert [mention for mention in mentions if mention[1] != slug] == []


@pytest.fixture
def copy(tmp_path):
    """The files that name the address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("runs", "data"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml")]:
        shutil.copy(path, tmp_path)
    return tmp_path


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_one_command_carries_the_address_everywhere_and_makes_no_notebook_stale(copy):
    before = contents(copy)
    old = build.repository_slug(build.repository_address())
    changed = build.carry_address("https://github.com/me/my-fork.git", copy)
    assert build.repository_address(copy) == "https://github.com/me/my-fork"
    assert "pyproject.toml" in changed
    for place in ("github.com", "mybinder.org/v2/gh"):
        assert not any(f"{place}/{old}".encode() in content for content in contents(copy).values())
    for source in build.sources(copy):
        assert f"notebooks/sources/{source.name}" in changed
        assert build.problems(source) == build.problems(ROOT / "notebooks" / "sources" / source.name)
    assert build.carry_address("https://github.com/me/my-fork/", copy) == []
    build.carry_address(build.repository_address(), copy)
    assert contents(copy) == before


@pytest.mark.parametrize("owner", ["OWNER", "me"])
def test_the_first_cell_says_what_to_do_where_the_address_was_never_set(owner):
    """Before it asks pip for a repository that does not exist."""
    address = f"https://github.com/{owner}/registration-course"
    cell = build.SETUP_CELL.format(address=address)
    absent = "import importlib.util, subprocess\nimportlib.util.find_spec = lambda name: None\n"
    pip = "subprocess.run = lambda command, **_: exit(f'pip gets {command[-1]}')\n"
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_REPOSITORY"}
    command = [sys.executable, "-c", absent + pip + cell]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    said = "no address yet: make address URL=https://github.com/you/fork\n"
    assert done.stderr == (said if owner == "OWNER" else f"pip gets git+{address}\n")


@pytest.mark.parametrize("url", ["", "me/fork", "https://example.org/me/fork", "https://github.com/me"])
def test_an_address_that_colab_cannot_open_is_refused(copy, url):
    before = contents(copy)
    with pytest.raises(CourseError, match="GitHub"):
        build.carry_address(url, copy)
    assert contents(copy) == before


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


COMMAND = re.compile(r"^(?:python -m course_utils|course-utils) (?:--\w+ )?([a-z0-9-]+)(.*)$", re.MULTILINE)


def test_every_command_in_the_documents_exists_and_takes_its_options():
    from course_utils.commands.app import COMMANDS

    helps = {}
    seen = 0
    for page in PAGES:
        for name, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
            if name == "COMMAND":
                continue
            assert name in COMMANDS, f"{page.name}: {name}"
            if name not in helps:
                command = [sys.executable, "-m", "course_utils", name, "--help"]
                helps[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for option in re.findall(r"--[a-z0-9-]+", rest.partition("#")[0]):
                assert re.search(rf"^ +(?:-h, )?{option}(?![\w-])", helps[name], re.MULTILINE), (
                    f"{page.name}: {name} {option}"
                )
                seen += 1
    assert seen > 20


def test_the_python_of_the_command_line_s_page_imports_what_exists():
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    for node in ast.parse(code).body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
