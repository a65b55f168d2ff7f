"""Sources, notebooks and outputs belong together; and the checker that says so sees each fault it is there for."""

import ast
import inspect
import shutil

import nbformat
import pytest
from nbformat.v4 import new_output

from course_utils.data.cohorts import load_slices
from course_utils.errors import CourseError
from course_utils.plotting import Figure, Slider
from notebooks import build
from notebooks.rules import Facts, facts

FOLDED = "<details>\n# <summary>Compare with your prediction</summary>\n#\n# So.\n#\n# </details>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)
def test_notebook_belongs_to_its_source(source):
    assert build.problems(source) == []


def test_no_notebook_without_a_source():
    notebooks = {path.stem for path in (build.ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {source.stem for source in build.sources()}


def is_made(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "make_cohort"


def settings_of(call):
    return tuple(sorted(ast.unparse(setting) for setting in call.keywords))


def made_cohorts(source):
    """The folders of cohorts that a page makes in the course's data folder, each with the settings."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    known = {
        ast.unparse(node.targets[0]): ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) == "load_slices":
            (made,) = (call for call in ast.walk(ast.parse(inspect.getsource(load_slices))) if is_made(call))
            yield "session.data_root / 'slices' / 'synthetic'", settings_of(made)
        if is_made(node):
            root, _, rest = ast.unparse(node.args[0]).partition(" / ")
            folder = f"{known.get(root, root)} / {rest}"
            if folder.startswith("session.data_root"):
                yield folder, settings_of(node)


def test_pages_that_make_a_cohort_in_one_folder_make_the_same():
    """A reader runs one page after the other: a second cohort of other settings has no place there."""
    made = {}
    for source in build.sources():
        for folder, settings in made_cohorts(source):
            made.setdefault(folder, {}).setdefault(settings, []).append(source.stem)
    assert len(made) >= 2 and any(len(pages) > 1 for settings in made.values() for pages in settings.values())
    assert {folder: settings for folder, settings in made.items() if len(settings) > 1} == {}


def make_source(root, name="00_first", following="01_next", body="print('hello')"):
    address = build.repository_address(root)
    badges = build.BADGES.format(slug=build.repository_slug(address), name=name)
    cells = [
        ("markdown", f"# First\n\nA promise.\n\n| | CPU | GPU |\n|---|---|---|\n| minutes | 1 | 0.5 |\n\n{badges}"),
        ("code", build.SETUP_CELL.format(address=address)),
        ("code", body),
        ("markdown", f"Next: [more]({following}.ipynb)"),
    ]
    text = ""
    for kind, cell in cells:
        if kind == "markdown":
            text += "# %% [markdown]\n" + "".join(f"# {line}".rstrip() + "\n" for line in cell.split("\n"))
        else:
            text += f"# %%\n{cell}\n"
        text += "\n"
    source = root / "notebooks" / "sources" / f"{name}.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text, encoding="utf-8")
    return source


@pytest.fixture
def source(tmp_path):
    """A course of two notebooks, of which the first is stored as if it had been executed."""
    shutil.copy(build.ROOT / "pyproject.toml", tmp_path)
    make_source(tmp_path, "01_next")
    source = make_source(tmp_path)
    store(source)
    assert build.problems(source) == []
    return source


def store(source):
    notebook = build.read_source(source)
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [picture()]
    nbformat.write(notebook, build.notebook_of(source))


def picture(**metadata):
    """A figure as a cell shows it."""
    data = {"image/png": PIXEL, "text/plain": "<Figure>"}
    return new_output("display_data", data, metadata={"image/png": {"alt": "A pixel."} | metadata})


def edit(source, old, new):
    text = source.read_text(encoding="utf-8")
    assert old in text
    source.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("print('hello')", "print('hullo')", "cells are not the source's"),
        ("A promise.", "Another promise.", "another version of the source"),
        ("# # First", "# First", "title"),
        ("# | minutes | 1 | 0.5 |\n", "", "minutes"),
        ("| 1 | 0.5 |", "| soon | 0.5 |", "minutes"),
        ("00_first.ipynb)", "07_other.ipynb)", "badges of Colab and Binder"),
        ("blob/main", "blob/draft", "badges of Colab"),
        ("/main?urlpath", "/draft?urlpath", "badges of Colab and Binder"),
        ("session = start()", "session = start(1)", "setup cell"),
        ("01_next.ipynb", "02_other.ipynb", "next notebook"),
        ("print('hello')", "\n".join(["x = 1"] * 26), "26 lines"),
        ("A promise.", "**Predict** it.", "does not end with '> *My prediction:*'"),
        ("A promise.", "**Predict** it. **Predict** that.\n#\n# > *My prediction:*", "asks 2 questions"),
        ("Next:", f"{FOLDED}\n#\n# Next:", "a folded answer to no question"),
    ],
)
def test_a_fault_in_the_source_is_seen(source, old, new, found):
    edit(source, old, new)
    assert any(found in problem for problem in build.problems(source))


QUESTION = """\
print('hello')

# %% [markdown]
# **Predict:** what is it?
#
# > *My prediction:*

# %%
x = 1

# %% [markdown]
"""


def test_a_question_is_answered_before_the_next_and_folded(source):
    asked = QUESTION + f"# {FOLDED}\n"
    edit(source, "print('hello')", asked)
    store(source)
    assert build.problems(source) == []
    edit(source, f"{FOLDED}\n", "So.\n")
    assert "a question has no folded answer: **Predict:** what is it?" in build.problems(source)
    edit(source, "# So.\n", QUESTION.removeprefix("print('hello')\n\n") + f"# {FOLDED}\n")
    assert any("before the last was answered" in problem for problem in build.problems(source))
    edit(source, "#\n# </details>", "# </details>")
    assert any("</details> below it" in problem for problem in build.problems(source))


def test_the_checklist_counts_what_is_on_a_page(source):
    edit(source, "print('hello')", "assert 1\n" + QUESTION + f"# {FOLDED}\n#\n# ## The same in MONAI\n")
    store(source)
    notebook = nbformat.read(build.notebook_of(source), as_version=4)
    notebook.cells[1].outputs.append(stream("data set  oasis2d\n"))
    notebook.cells[2].outputs = [picture(alt="")]
    html, _ = Slider({name: Figure() for name in "ab"}, "place")._repr_mimebundle_()
    notebook.cells[4].outputs[0].data["text/html"] = html["text/html"]
    setup = len(notebook.cells[1].source.splitlines())
    assert facts(notebook) == Facts("oasis2d", 3, setup, 1, 3, 2, 1, 1, 1, monai=True)


@pytest.mark.parametrize(("said", "problems"), [("oasis2d", 0), ("synthetic", 1)])
def test_a_page_that_prefers_people_is_stored_with_them(source, said, problems):
    edit(source, "session = start()", 'session = start(real="oasis2d")')
    store(source)
    target = build.notebook_of(source)
    notebook = nbformat.read(target, as_version=4)
    notebook.cells[1].outputs.append(stream(f"data set  {said}\nprofile   quick\n"))
    nbformat.write(notebook, target)
    found = build.problems(source)
    assert len(found) == problems and all("build it with --dataset oasis2d" in problem for problem in found)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (stream("saved to /root/course/runs/best.pt"), "/root/course/runs/best.pt"),
        (stream("/work/lib/python3.11/site-packages/x.py:1: UserWarning", "stderr"), "/work/lib"),
        (stream("('/home/someone/data',)"), "/home/someone/data"),
        (new_output("execute_result", {"text/html": "<td>/tmp/abc</td>"}), "/tmp/abc"),
        (stream("serving at http://127.0.0.1:8888"), "127.0.0.1:8888"),
        (stream("Looking in indexes: https://somewhere/simple"), "Looking in indexes"),
        (new_output("error", ename="ValueError", evalue="no", traceback=[]), "ends in ValueError"),
        (picture(alt=""), "a picture without a text"),
    ],
)
def test_a_fault_in_an_output_is_seen(source, output, found):
    target = build.notebook_of(source)
    notebook = nbformat.read(target, as_version=4)
    notebook.cells[2].outputs.append(output)
    nbformat.write(notebook, target)
    assert any(found in problem for problem in build.problems(source))


@pytest.mark.parametrize("text", ["ratio and/or rate, mm/voxel, 1/tmp", "https://example.org/home/page", "a/root/b"])
def test_an_innocent_output_is_not_blamed(source, text):
    target = build.notebook_of(source)
    notebook = nbformat.read(target, as_version=4)
    notebook.cells[2].outputs.append(stream(text))
    nbformat.write(notebook, target)
    assert build.problems(source) == []


def test_letters_of_a_picture_tell_of_no_machine(source, monkeypatch):
    """A page was once refused for a short host name between two signs of a picture."""
    monkeypatch.setattr(build.socket, "gethostname", lambda: "vm")
    target = build.notebook_of(source)
    notebook = nbformat.read(target, as_version=4)
    picture = '<img src="data:image/png;base64,iVBOR/vm+rw0KGgo=">'
    notebook.cells[2].outputs.append(new_output("execute_result", {"text/html": picture}))
    nbformat.write(notebook, target)
    assert build.problems(source) == []
    notebook.cells[2].outputs.append(new_output("execute_result", {"text/html": picture + " on vm"}))
    nbformat.write(notebook, target)
    assert build.problems(source) == ["an output tells of the machine: vm"]


def test_cells_not_executed_in_order_figures_and_files_missing_are_seen(source):
    target = build.notebook_of(source)
    notebook = nbformat.read(target, as_version=4)
    notebook.cells[1].execution_count, notebook.cells[2].execution_count = 2, 1
    for cell in notebook.cells[1:3]:
        cell.outputs = []
    nbformat.write(notebook, target)
    problems = " ".join(build.problems(source))
    assert "in order" in problems
    assert "no figure" in problems
    target.unlink()
    assert any("missing" in problem for problem in build.problems(source))


def test_an_exception_is_declared_or_a_fault(source):
    edit(source, "# %%\nprint('hello')", "# %% tags=[\"raises-exception\"]\nprint('hello')")
    store(source)
    assert any("raises none" in problem for problem in build.problems(source))


BODY = """\
import os, sys
from pathlib import Path
from course_utils.plotting import Figure
from tqdm.notebook import tqdm
print(Path("runs/best.pt").resolve(), os.environ["MONAI_DATA_DIRECTORY"] + "/synthetic", sep="\\n")
sys.stderr.write("\\r 10 %\\r 50 %\\r100 %\\n")
list(tqdm(range(3)))
figure = Figure()
figure.subplots().set_title("nothing")
figure"""


def test_what_is_written_was_executed_and_tells_nothing_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATASET", "oasis")  # a user's own choice must not leak into a build
    shutil.copy(build.ROOT / "pyproject.toml", tmp_path)
    source = make_source(tmp_path, body=BODY)
    work = tmp_path / "work"
    work.mkdir()
    target = build.write(source, work)
    assert build.problems(source) == []
    outputs = [cell.outputs for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    assert "synthetic" in outputs[0][0].text
    texts = {output.name: output.text for output in outputs[1] if output.output_type == "stream"}
    assert texts == {"stdout": "00_first/runs/best.pt\ndata/synthetic\n", "stderr": "100 %\n"}
    assert all("widget" not in kind for output in outputs[1] for kind in output.get("data", {}))
    assert not list(tmp_path.glob("**/*.part"))


def test_a_page_is_repeated_from_another_seed_and_the_stored_one_stays(source, tmp_path, monkeypatch):
    before = build.notebook_of(source).read_bytes()
    edit(source, "print('hello')", "print(session.seed)")
    monkeypatch.setattr(build, "sources", lambda: [source])
    build.repeat(seed=4, out=tmp_path / "repeated")
    cells = nbformat.read(tmp_path / "repeated" / "00_first_synthetic_4.ipynb", as_version=4).cells
    assert any(output.get("text") == "4\n" for cell in cells for output in cell.get("outputs", []))
    assert build.notebook_of(source).read_bytes() == before


@pytest.mark.parametrize("body", ["raise ValueError('a broken cell')", "print('no figure here')"])
def test_a_failed_build_leaves_the_old_notebook(source, tmp_path, capsys, body):
    before = build.notebook_of(source).read_bytes()
    edit(source, "print('hello')", body)
    with pytest.raises(CourseError):
        build.write(source, tmp_path)
    assert build.notebook_of(source).read_bytes() == before
    reason = capsys.readouterr().err
    assert "a broken cell" in reason or "no figure" in reason
