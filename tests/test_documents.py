"""What the documents say of each other, of the pages, and of the machines that they are to run on."""

import importlib.util
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from notebooks import build

ROOT = build.ROOT
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9][0-9]_*.ipynb"))
ANSWERS = ROOT / "notebooks" / "assignments" / "sources" / "answers.md"


@cache
def markdown(path):
    """The Markdown of a document or a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(text):
    """What GitHub makes of the headings of a document."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = sum(slug == other or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


LINK = re.compile(r"\]\(<?(?!https?://|mailto:|attachment:|data:)([^)\s>]+)>?(?: \"[^\"]*\")?\)")
ATTRIBUTE = re.compile(r'(?:href|src)="(?!https?://|mailto:|attachment:|data:)([^"]+)"')


def broken_links(path, root=None):
    """Relative links of a document that lead nowhere, or to a heading that is not there; with `root`, or out of it."""
    text = re.sub(r"^```.*?^```", "", markdown(path), flags=re.M | re.S)  # code shows links, it has none
    text = re.sub(r"`[^`\n]+`", "", text)
    for link in [*LINK.findall(text), *ATTRIBUTE.findall(text)]:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        outside = root is not None and root.resolve() not in target.parents
        if outside or not target.exists() or (anchor and target.is_file() and anchor not in anchors(markdown(target))):
            yield link


@pytest.mark.parametrize("path", [*DOCUMENTS, ANSWERS, *NOTEBOOKS], ids=lambda path: path.name)
def test_every_relative_link_and_anchor_leads_somewhere(path):
    assert list(broken_links(path)) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One, two\n\n## `x` of *y*\n\n[a](#one-two) [b](#x-of-y) [c](b.md) [d](#three)\n", encoding="utf-8"
    )
    assert list(broken_links(tmp_path / "a.md")) == ["b.md", "#three"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The students' bundle: its folder and its files' names."""
    out = tmp_path_factory.mktemp("bundle") / "release"
    return out, build.write_release(out)


def test_the_students_bundle_has_the_documents_and_no_answer(bundle):
    out, written = bundle
    assert {"docs/glossary.md", "docs/written-work.md", "docs/install.md"} <= set(written)
    assert not build.FOR_TEACHERS & {Path(name).name for name in written}
    assert not [name for name in written if "sources" in name or "answers" in name]
    lines = {line for line in ANSWERS.read_text(encoding="utf-8").splitlines() if len(line) > 60}
    assert len(lines) > 50
    texts = [path for path in out.rglob("*") if path.suffix in {".md", ".ipynb", ".py"}]
    assert not [path for path in texts if lines & set(path.read_text(encoding="utf-8").splitlines())]


def test_no_link_of_the_students_bundle_leads_out_of_it(bundle):
    out, written = bundle
    pages = [out / name for name in written if Path(name).suffix in {".md", ".ipynb"}]
    assert {path.name: broken for path in pages if (broken := list(broken_links(path, out)))} == {}


def test_teachers_get_the_answers_with_nbgrader_s_course(tmp_path):
    written = build.write_instructor_versions(tmp_path / "course")
    assert "answers.md" in written


TERM = re.compile(r"^- \*\*(.+?)\*\*: (.+) \(\[(\d\d)\]\(\.\./notebooks/(\d\d)_\w+\.ipynb\)\)$")


def test_the_glossary_is_alphabetic_without_doubles_and_every_entry_has_its_page():
    lines = markdown(ROOT / "docs" / "glossary.md").splitlines()
    entries = [TERM.match(line) for line in lines if line.startswith("- ")]
    assert all(entries) and 80 <= len(entries) <= 150
    terms = [entry[1].casefold() for entry in entries]
    assert terms == sorted(set(terms))
    assert all(entry[3] == entry[4] for entry in entries)
    assert all(entry[2].endswith((".", "!", "?")) for entry in entries)
    letter = ""
    for line in lines:
        if line.startswith("## "):
            letter = line[3]
        elif line.startswith("- "):
            assert line[4].upper() == letter, line


def test_the_instructor_notes_go_through_every_page_in_five_parts():
    text = markdown(ROOT / "docs" / "instructor-notes.md")
    sections = dict(re.findall(r"^## (\d\d) .*?\n(.*?)(?=^## |^Pages |\Z)", text, re.M | re.S))
    to_come = (
        set(re.findall(r"\b\d\d\b", text.splitlines()[-1])) if text.splitlines()[-1].startswith("Pages ") else set()
    )
    assert {source.name[:2] for source in build.sources()} <= set(sections) | to_come
    for number, section in sections.items():
        parts = re.findall(r"^- \*\*([\w ]+)\.\*\*", section, re.M)
        assert parts == ["Misconceptions", "Stuck", "Timing", "For the room", "Live"], number


PLAN = ROOT / "docs" / "teaching-plan.md"


def needs():
    """Which page needs which, by the plan's graph: page to the pages from which an arrow leads to it."""
    graph = re.search(r"```mermaid\n(.*?)```", markdown(PLAN), re.S)[1]
    arrows = re.findall(r"p(\d\d)(?:\[[^\]]*\])? --> p(\d\d)", graph)
    nodes = set(re.findall(r"\bp(\d\d)\b", graph))
    return {node: {start for start, end in arrows if end == node} for node in nodes}


def ancestors(page, graph, path=()):
    assert page not in path, f"a circle: {path}"
    return graph[page].union(*(ancestors(before, graph, (*path, page)) for before in graph[page]))


def test_a_term_can_stop_after_07():
    graph = needs()
    assert {source.name[:2] for source in build.sources()} <= set(graph)
    for page in graph:
        ancestors(page, graph)
    term = {f"{n:02}" for n in range(8)}
    assert ancestors("07", graph) | {"07"} == term
    assert set(re.findall(r"\bp(\d\d)\b", re.search(r"subgraph term.*?\n  end", markdown(PLAN), re.S)[0])) == term


def test_the_plan_s_table_says_what_its_graph_says():
    graph = needs()
    rows = re.findall(r"^\| \[?(\d\d) [A-Z][^|]*\|[^|]*\|([^|]*)\|", markdown(PLAN), re.M)
    assert {page: set(re.findall(r"\d\d", needed)) for page, needed in rows} == graph


def test_no_page_names_a_prerequisite_that_the_graph_lacks():
    graph, seen = needs(), 0
    for path in NOTEBOOKS:
        if path.parent.name == "assignments":
            continue
        first = markdown(path).partition("\n## ")[0]
        for sentence in re.findall(r"You need ([^.]*)\.", first.replace("\n", " ")):
            named = set(re.findall(r"\b\d\d\b", sentence))
            assert named <= ancestors(path.name[:2], graph), path.name
            seen += 1
    assert seen >= 5


@pytest.fixture(scope="module")
def script():
    """The module docs/study_minutes.py."""
    spec = importlib.util.spec_from_file_location("study_minutes", ROOT / "docs" / "study_minutes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_s_minutes_are_about_those_of_its_script(script):
    """Within a quarter, so that an edited sentence does not stop anybody; the script brings them up to date."""
    text = markdown(PLAN)
    new = script.brought_up_to_date(text)
    number = re.compile(r"\d+(?:\.\d+)?")
    pages = script.pages()
    compared = 0
    for old_line, new_line in zip(text.splitlines(), new.splitlines(), strict=True):
        row = script.ROW.match(old_line)
        if row is None or row[2] not in pages or "–" in old_line.rpartition("| ")[0][-5:]:
            continue
        said, found = (number.findall(line)[-2:] for line in (old_line, new_line))
        for one, other in zip(said, found, strict=True):
            assert abs(float(one) - float(other)) <= max(10, 0.25 * float(other)), (
                f"python docs/study_minutes.py: {row[2]}"
            )
        compared += 1
    assert compared >= 20


def test_minutes_count_words_figures_cells_predictions_and_exercises(script, tmp_path):
    text = (
        "| minutes | 4 | 1 |\n\n**Predict:** x\n\n**Try it.**\n1. a\n2. *(hard)* b\n\n**References.** 3\n"
        + "word " * 2000
    )
    cells = [
        {"cell_type": "markdown", "source": [text]},
        {"cell_type": "code", "source": "setup", "outputs": []},
        {"cell_type": "code", "source": "x\n" * 11, "outputs": [{"data": {"image/png": ""}}]},
    ]
    path = tmp_path / "00_x.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert script.exercise_levels(text) == [None, "hard"]
    assert script.study_minutes(path) == (20, 60)  # 10 + 1 of reading, 2 + 4 of running, 2 of predicting


def test_answers_belong_to_exercises_that_are_there(script):
    text = ANSWERS.read_text(encoding="utf-8")
    pages = script.pages()
    answered = 0
    for number, section in re.findall(r"^## (\d\d) .*?\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        numbers = [int(n) for n in re.findall(r"^(\d+)\. ", section, re.M)]
        asked = len(script.exercise_levels(markdown(pages[number])))
        assert numbers and sorted(set(numbers)) == numbers and numbers[-1] <= asked, number
        answered += len(numbers)
    assert answered >= 30


def lock():
    lines = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and ";" not in line)


def test_the_docker_image_has_the_lock_s_versions_and_a_user():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {step for step, _ in steps} <= {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "ARG", "EXPOSE", "CMD"}
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    minor = int(base.split(".")[1])
    assert 11 <= minor <= 14  # what the workflow tests
    script = "\n".join(rest for step, rest in steps if step == "RUN")
    assert "--requirement requirements-lock.txt" in script and "'^torch==' requirements-lock.txt" in script
    assert not re.search(r"==\d", script)  # no version stands in two places
    assert [rest for step, rest in steps if step == "USER"] == ["1000"]
    command = json.loads(next(rest for step, rest in steps if step == "CMD"))
    assert command[:3] == ["python", "-m", "jupyterlab"] and (ROOT / command[-1]).is_file()
    assert not any("token" in part or "password" in part for part in command)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)


def test_the_devcontainer_builds_that_image():
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    assert (folder / settings["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (folder / settings["build"]["context"]).resolve() == ROOT
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"useradd --create-home --uid 1000 {settings['remoteUser']}" in docker
    interpreter = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"VIRTUAL_ENV={interpreter.removesuffix('/bin/python')}" in docker
    assert f"EXPOSE {settings['forwardPorts'][0]}" in docker


def test_binder_takes_the_lock_and_pytorch_s_small_build():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert f"torch=={lock()['torch']}+cpu" in lines
    assert "-r ../requirements-lock.txt" in lines
    assert re.fullmatch(r"python-3\.1[1-4]\n", (folder / "runtime.txt").read_text(encoding="utf-8"))
    assert (folder / "postBuild").read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\nset -euo pipefail\n")
    assert (folder / "postBuild").stat().st_mode & 0o111


def test_conda_s_environment_allows_the_pythons_that_are_tested():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][0] == "python>=3.11,<3.15"
    pip = next(one["pip"] for one in environment["dependencies"] if isinstance(one, dict))
    extras = re.fullmatch(r"--editable \.\[([\w,]+)\]", pip[0])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])


def test_the_workflow_tries_the_commands_that_install_md_gives_for_windows():
    install = markdown(ROOT / "docs" / "install.md")
    commands = re.search(r"```powershell\n(py -3.*?)```", install, re.S)[1].splitlines()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    done = "\n".join(step.get("run", "").replace("--quiet ", "") for step in jobs["windows"]["steps"])
    assert commands[0].removeprefix("py -3.13 ") in done
    assert all(command in done for command in commands[1:3])
    systems = {system for job in jobs.values() for system in job.get("strategy", {}).get("matrix", {}).get("os", [])}
    assert {"ubuntu-latest", "macos-latest", "windows-latest"} <= systems


def test_lint_checks_the_spelling_with_the_words_that_are_ours():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\t$(PY) -m codespell_lib\n" in makefile
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["codespell"]
    words = settings["ignore-words-list"].split(",")
    sources = [path for part in ("course_utils", "notebooks", "tests") for path in (ROOT / part).rglob("*.py")]
    texts = " ".join(path.read_text(encoding="utf-8") for path in sources)
    assert all(
        re.search(rf"\b{word}\b", texts, re.IGNORECASE) for word in words
    )  # a word that is gone is ignored no more


def test_the_readme_has_a_row_for_every_page_with_the_minutes_that_the_page_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for source in build.sources():
        page = re.search(r"^# \| minutes \| (\S+) \| (\S+) \|$", source.read_text(encoding="utf-8"), re.M)
        row = re.search(rf"\(notebooks/{source.stem}\.ipynb\).*\| (\S+) min \| (\S+) min \|$", readme, re.M)
        assert page and row and page.groups() == row.groups(), source.stem
