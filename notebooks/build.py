"""Notebooks from their sources: notebooks/sources/NN_topic.py (jupytext, py:percent) to notebooks/NN_topic.ipynb.

The source is what people edit; JupyterLab, when it saves a notebook, writes the source too. "build" executes a source
from top to bottom with the data set that suits it and the quick profile, and stores the notebook only if every cell
succeeded and every rule of the course holds; "check" proves that what is stored belongs to its source.

Assignments have sources of their own, with solutions and hidden tests (course_utils/grading/assignments.py). Of these,
"build" writes the students' notebooks, not executed; "release" and "instructor" write what a class and what nbgrader
needs.
"""

import hashlib
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from course_utils.commands.ending import run
from course_utils.data.cohorts import data_root, is_there
from course_utils.data.registry import DATASETS
from course_utils.errors import CourseError
from course_utils.grading.assignments import STUB, assignment_sources, read_assignment, student_version
from notebooks.rules import REAL, Facts, facts, people_problems, picture_problems, question_problems

ROOT = Path(__file__).resolve().parent.parent
LONGEST_CELL = 25  # lines
WIDEST_LINE = 100  # columns of code
CELL_TIMEOUT = 900  # seconds

SETUP_CELL = """\
# The same in every notebook: install the course where it is missing (Colab), begin the session.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("course_utils") is None:
    public = "git+{address}"
    repository = os.environ.get("COURSE_REPOSITORY", public)
    if "/OWNER/" in repository:
        raise SystemExit("no address yet: make address URL=https://github.com/you/fork")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", repository], check=True)
    importlib.invalidate_caches()

from course_utils.session import start

session = start()
print(session)"""

BADGES = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb) "
    "[![Open in Binder](https://mybinder.org/badge_logo.svg)]"
    "(https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/notebooks/{name}.ipynb)"
)

STUDENTS_README = """\
# Deformable medical image registration: notebooks and assignments

You need Python 3.11 or newer. In this folder:

```sh
python3 -m venv .venv
source .venv/bin/activate
pip install -e ".[notebooks,grading]"
python -m jupyterlab notebooks/00_start_here.ipynb
```

The lectures are in `notebooks`, the assignments in `notebooks/assignments`. In `docs` you find a glossary, the written
questions with the capstone (`written-work.md`), and how to install on other systems (`install.md`). Every exercise has
a cell to fill and a check below it. To see your points on the checks that you can see:

```sh
python -m course_utils check notebooks/assignments/02_warping.ipynb
```

Hand in the notebook of an assignment, nothing else.
"""

NBGRADER_CONFIG = f"""\
import os
from pathlib import Path

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "registration"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}

# One data folder for everybody, beside source/; without it, each student's notebook would fill one of its own.
data = os.environ.get("MONAI_DATA_DIRECTORY") or Path(__file__).parent / "data"
os.environ["MONAI_DATA_DIRECTORY"] = str(Path(data).resolve())
# Nor are data and results copied that somebody has made beside a notebook.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "data", "runs"]
"""

FOR_TEACHERS = {"instructor-notes.md", "teachers.md", "teaching-plan.md"}  # documents that students do not get

MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:root|home|Users|tmp|work|private|opt|usr|var|mnt|content)/[\w./-]*")
PICTURE = re.compile(r"data:image/[\w+-]+;base64,[\w+/=]*")
MACHINE_HOST = re.compile(r"\b(?:localhost|\d{1,3}(?:\.\d{1,3}){3}):\d+|Looking in (?:indexes|links)")

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def repository_address(root: Path = ROOT) -> str:
    """The repository's address, from the one place where it stands: pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def repository_slug(address: str) -> str:
    """`owner/name` of `https://github.com/owner/name`, which Colab's links need."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if match is None:
        raise CourseError(f"'{address}' is no GitHub address; Colab opens https://github.com/OWNER/NAME")
    return match[1]


def sources(root: Path = ROOT) -> list[Path]:
    """The notebooks' sources in reading order."""
    return sorted((root / "notebooks" / "sources").glob("[0-9][0-9]_*.py"))


def notebook_of(source: Path) -> Path:
    """Where the notebook of a source is stored."""
    return source.parents[1] / f"{source.stem}.ipynb"


def course_environment(folder: Path, dataset: str = "synthetic", seed: int = 0) -> dict[str, str]:
    """What a notebook is executed with here, in nbval and in a build alike, whatever the user's own settings are."""
    return {
        "COURSE_DATASET": dataset,
        "COURSE_PROFILE": "quick",
        "COURSE_REGISTRY": "",
        "COURSE_SEED": str(seed),
        "MONAI_DATA_DIRECTORY": str(folder / "data"),
        "COURSE_RUNS": str(folder / "runs"),
    }


def read_source(source: Path) -> NotebookNode:
    """The notebook of a source, not executed; a cell's id depends on nothing but what the cell holds."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        content = _without_address(cell.source, source)
        cell.id = hashlib.sha256(f"{seen[content]} {content}".encode()).hexdigest()[:12]
        seen[content] += 1
    notebook.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        language_info={"name": "python"},
        source_sha256=source_hash(source),
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def source_hash(source: Path) -> str:
    """SHA-256 of a source, the repository's address left out: moving the repository makes no output stale."""
    return hashlib.sha256(_without_address(source.read_text(encoding="utf-8"), source).encode()).hexdigest()


def _without_address(text: str, source: Path) -> str:
    return text.replace(repository_slug(repository_address(source.parents[2])), "")


def execute(source: Path, folder: Path, dataset: str = "synthetic", seed: int = 0) -> NotebookNode:
    """Run a source from top to bottom in `folder`, on a data set, and return the notebook, normalised.

    Raises:
        CourseError: a cell failed or took longer than the limit; its traceback goes to standard error.
    """
    notebook = read_source(source)
    working_folder = folder / source.stem
    working_folder.mkdir()
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(working_folder)}},
    )
    try:
        client.execute(env=os.environ | course_environment(folder, dataset, seed))
    except (CellExecutionError, CellTimeoutError) as error:
        print(error, file=sys.stderr)
        raise CourseError(f"{source.name} was not executed to its end; mend the cell shown above") from None
    notebook.metadata = read_source(source).metadata  # the client has written the interpreter's version into it
    for cell in _code_cells(notebook):
        cell.metadata.pop("execution", None)
        cell.outputs = [_normalise(output, folder) for output in cell.outputs if not _is_live(output)]
    return notebook


def _normalise(output: NotebookNode, folder: Path) -> NotebookNode:
    """Drop what differs between machines, the working folder, and a progress bar's earlier states."""

    def clean(text: str) -> str:
        text = text.replace(f"{folder}/", "")
        return re.sub(r"(?m)^[^\n]*\r(?!\n)", "", text)  # from a line's start: a slider is one line of 500 kB

    if output.output_type == "error":  # an intended one; the frames above its message are paths of this machine
        output.evalue = clean(output.evalue)
        output.traceback = [f"{output.ename}: {output.evalue}"]
    if "text" in output:
        output.text = clean(output.text)
    if "data" in output:
        for kind, value in output.data.items():
            if kind.startswith("text/"):
                output.data[kind] = clean(value)
    return output


def _is_live(output: NotebookNode) -> bool:
    """A widget, such as tqdm's bar: without its kernel it would be a broken picture."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def write(source: Path, folder: Path, dataset: str = "synthetic") -> Path:
    """Execute a source in `folder`, on a data set, and store its notebook, whole or not at all.

    Raises:
        CourseError: a cell failed, or the notebook breaks a rule; the old notebook then stays.
    """
    notebook = execute(source, folder, dataset)
    if found := [*_source_problems(source), *_notebook_problems(source, notebook)]:
        print(*(f"{source.name}: {problem}" for problem in found), sep="\n", file=sys.stderr)
        raise CourseError(f"{source.stem}.ipynb was not written; mend what is named above")
    target = notebook_of(source)
    temporary = target.with_name(f"{target.name}.part")
    nbformat.write(notebook, temporary)
    os.replace(temporary, target)
    return target


def problems(source: Path) -> list[str]:
    """What is wrong with a source and its stored notebook; empty if they belong together and keep every rule."""
    target = notebook_of(source)
    if not target.exists():
        return [*_source_problems(source), f"{target.name} is missing; build it"]
    notebook = nbformat.read(target, as_version=4)
    return [*_source_problems(source), *_notebook_problems(source, notebook)]


def _source_problems(source: Path) -> Iterator[str]:
    root = source.parents[2]
    address = repository_address(root)
    cells = read_source(source).cells
    yield from _first_cell_problems(cells[0], address, source.stem)
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    if not code or REAL.sub("start()", code[0]) != SETUP_CELL.format(address=address):
        yield "the first code cell is not the setup cell of notebooks/build.py"
    for text in code:
        if (length := len(text.splitlines())) > LONGEST_CELL:
            yield f"a code cell of {length} lines, more than {LONGEST_CELL}: {text.splitlines()[0]}"
    yield from _width_problems(code)
    yield from question_problems(cells)
    everything = sources(root)
    following = everything[everything.index(source) + 1 :]
    if following and f"({following[0].stem}.ipynb)" not in cells[-1].source:
        yield f"the last cell does not link to the next notebook, {following[0].stem}.ipynb"


def _first_cell_problems(cell: NotebookNode, address: str, name: str) -> Iterator[str]:
    if cell.cell_type != "markdown" or not cell.source.startswith("# "):
        yield "the first cell is not Markdown with the title"
    if not re.search(r"^\|\s*minutes\s*\|\s*[\d.<]+\s*\|\s*[\d.<]+\s*\|", cell.source, re.MULTILINE):
        yield "the first cell has no table row '| minutes | CPU | GPU |' with two numbers"
    if BADGES.format(slug=repository_slug(address), name=name) not in cell.source:
        yield "the first cell's badges of Colab and Binder do not lead to this notebook at the repository's address"


def _notebook_problems(source: Path, notebook: NotebookNode) -> Iterator[str]:
    expected = read_source(source)
    if [_content(cell) for cell in notebook.cells] != [_content(cell) for cell in expected.cells]:
        yield "the notebook's cells are not the source's; build it again"
    if notebook.metadata != expected.metadata:
        yield "the notebook's outputs were made from another version of the source; build it again"
    code = _code_cells(notebook)
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "the code cells were not all executed in order"
    outputs = [(cell, output) for cell in code for output in cell.outputs]
    for cell, output in outputs:
        if output.output_type == "error" and not _may_raise(cell):
            yield f"a cell ends in {output.ename}: {cell.source.splitlines()[0]}"
    for cell in code:
        if _may_raise(cell) and not any(output.output_type == "error" for output in cell.outputs):
            yield f"a cell is tagged raises-exception and raises none: {cell.source.splitlines()[0]}"
    if not any("image/png" in output.get("data", {}) for _, output in outputs):
        yield "the notebook shows no figure"
    yield from picture_problems(outputs)
    yield from people_problems(notebook.cells)
    host = re.escape(socket.gethostname())
    for text in (text for _, output in outputs for text in _texts(output)):
        if match := MACHINE_PATH.search(text) or MACHINE_HOST.search(text) or re.search(rf"\b{host}\b", text):
            yield f"an output tells of the machine: {match[0]}"


def assignments(root: Path = ROOT) -> list[Path]:
    """The assignments' sources in order."""
    return assignment_sources(root / "notebooks" / "assignments" / "sources")


def write_student_version(source: Path) -> Path:
    """Store the student's notebook of an assignment, whole or not at all.

    Raises:
        CourseError: the source breaks the format, or a rule; the old notebook then stays.
    """
    if found := list(_assignment_problems(source)):
        print(*(f"{source.name}: {problem}" for problem in found), sep="\n", file=sys.stderr)
        raise CourseError(f"the student's {source.stem}.ipynb was not written; mend what is named above")
    target = notebook_of(source)
    temporary = target.with_name(f"{target.name}.part")
    nbformat.write(student_version(read_assignment(source)), temporary)
    os.replace(temporary, target)
    return target


def assignment_problems(source: Path) -> list[str]:
    """What is wrong with an assignment's source and its student's notebook; empty if they belong together."""
    target = notebook_of(source)
    found = list(_assignment_problems(source))
    if not target.exists():
        return [*found, f"{target.name} is missing; build it"]
    if nbformat.read(target, as_version=4) != student_version(read_assignment(source)):
        found.append("the student's notebook is not the source's; build it again")
    return found


def _assignment_problems(source: Path) -> Iterator[str]:
    address = repository_address(source.parents[3])
    cells = read_assignment(source).cells
    yield from _first_cell_problems(cells[0], address, f"assignments/{source.stem}")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    if code[0] != SETUP_CELL.format(address=address):
        yield "the first code cell is not the setup cell of notebooks/build.py"
    yield from _width_problems(code)


def _width_problems(code: list[str]) -> Iterator[str]:
    for line in itertools.chain.from_iterable(text.splitlines() for text in code):
        if len(line) > WIDEST_LINE:
            yield f"a line of code of {len(line)} columns, more than {WIDEST_LINE}: {line.strip()}"


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _may_raise(cell: NotebookNode) -> bool:
    return "raises-exception" in cell.metadata.get("tags", [])


def _content(cell: NotebookNode) -> tuple[str, str, str, dict]:
    return cell.cell_type, cell.id, cell.source, dict(cell.metadata)


def _texts(output: NotebookNode) -> Iterator[str]:
    yield output.get("text", "")
    yield from output.get("traceback", [])
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/"):
            yield PICTURE.sub("", str(value))  # the letters of a picture say anything, a short host name too


def _chosen(numbers: list[str]) -> list[Path]:
    everything = {source.name[:2]: source for source in sources()}
    if unknown := [number for number in numbers if number not in everything]:
        raise CourseError(f"there is no notebook {', '.join(unknown)}; there are: {', '.join(everything)}")
    return [everything[number] for number in numbers] if numbers else list(everything.values())


Numbers = Annotated[list[str] | None, typer.Argument(help="Two-digit numbers of notebooks; all if none is given.")]
Dataset = Annotated[
    str | None, typer.Option(help="What they are executed with; unset: what each page prefers.", show_default=False)
]


def preferred(source: Path) -> str:
    """The data set that suits a page, by its setup cell."""
    wanted = REAL.search(source.read_text(encoding="utf-8"))
    return wanted[1] if wanted else "synthetic"


def lend_data(folder: Path) -> None:
    """Show the user's data sets to notebooks that are executed in `folder`, where they write what they make."""
    (folder / "data").mkdir()
    root = data_root().resolve()
    for info in DATASETS.values():
        if info.name != "synthetic" and is_there(info, root):  # that one is made for the page, as every reader's is
            (folder / "data" / info.folder).symlink_to(root / info.folder, target_is_directory=True)


def _make_each(numbers: list[str] | None, dataset: str | None, make: Callable[[Path, Path, str], Path]) -> None:
    """Let `make` make a file of a source, executed in a folder with a data set; print which and how long it took."""
    with tempfile.TemporaryDirectory(prefix="course-") as temporary:
        folder = Path(temporary).resolve()
        lend_data(folder)
        for source in _chosen(numbers or []):
            began = time.perf_counter()
            target = make(source, folder, dataset or preferred(source))
            print(f"{target.name}: {time.perf_counter() - began:.0f} s, {target.stat().st_size / 1e6:.1f} MB")


@app.command()
def build(numbers: Numbers = None, dataset: Dataset = None) -> None:
    """Execute sources and write their notebooks; without numbers, the assignments' students' notebooks too."""
    for source in [] if numbers else assignments():
        print(f"assignments/{write_student_version(source).name}")
    _make_each(numbers, dataset, write)


@app.command()
def repeat(
    numbers: Numbers = None,
    dataset: Dataset = None,
    seed: Annotated[int, typer.Option(help="COURSE_SEED, from which every generator of a page begins.", min=0)] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the executed pages.")] = ROOT / "runs" / "repeated",
) -> None:
    """Execute pages from another seed, beside the stored ones: do their assertions hold, and by how much?"""
    out.mkdir(parents=True, exist_ok=True)

    def executed(source: Path, folder: Path, dataset: str) -> Path:
        target = out / f"{source.stem}_{dataset}_{seed}.ipynb"
        nbformat.write(execute(source, folder, dataset, seed), target)
        return target

    _make_each(numbers, dataset, executed)


@app.command()
def check(numbers: Numbers = None) -> None:
    """Prove that the stored notebooks, the assignments' too, belong to their sources and keep the course's rules."""
    found = [f"{source.name}: {problem}" for source in _chosen(numbers or []) for problem in problems(source)]
    for source in [] if numbers else assignments():
        found += [f"assignments/{source.name}: {problem}" for problem in assignment_problems(source)]
    if found:
        print(*found, sep="\n", file=sys.stderr)
        raise CourseError(f"{len(found)} problems in the notebooks; mend the source, then build it again")


@app.command()
def checklist() -> None:
    """Print a row for each stored page: who is in it, how much of it is asserted, drawn, described, asked."""
    print(*checklist_rows(), sep="\n")


def checklist_rows() -> Iterator[str]:
    """A Markdown table of what a reader's checklist counts."""
    columns = ("page", *(column.name for column in fields(Facts)))
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for source in sources():
        found = facts(nbformat.read(notebook_of(source), as_version=4))
        yield f"| {' | '.join(map(str, (source.stem[:2], *astuple(found))))} |"


Out = Annotated[Path, typer.Option(help="A folder; what the same command has written there before is replaced.")]


@app.command()
def release(out: Out = ROOT / "release") -> None:
    """Write what students get: lectures, assignments without solutions and hidden tests, documents, the package."""
    for path in write_release(out):
        print(path)


def write_release(out: Path, root: Path = ROOT) -> list[str]:
    """Write the students' bundle, whole or not at all; returns its files' paths, relative to `out`.

    Raises:
        CourseError: a stored notebook does not belong to its source, or `out` holds something else.
    """
    for source in assignments(root):
        if found := assignment_problems(source):
            raise CourseError(f"assignments/{source.name}: {found[0]}")
    stored = [path for path in map(notebook_of, sources(root)) if path.exists()]
    students = [notebook_of(source) for source in assignments(root)]
    package = [
        path
        for path in sorted((root / "course_utils").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    documents = [path for path in sorted((root / "docs").glob("*.md")) if path.name not in FOR_TEACHERS]
    files = {
        path.relative_to(root): path.read_bytes()
        for path in (*stored, *students, *package, *documents, root / "pyproject.toml", root / "LICENSE")
    }
    return _write_folder(out, {Path("README.md"): STUDENTS_README.encode()} | files)


@app.command()
def instructor(out: Out = ROOT / "nbgrader") -> None:
    """Write the assignments with solutions as nbgrader wants them, source/NN_topic/NN_topic.ipynb, and answers.md."""
    for path in write_instructor_versions(out):
        print(path)


def write_instructor_versions(out: Path, root: Path = ROOT) -> list[str]:
    """Write nbgrader's course folder, whole or not at all; returns its files' paths, relative to `out`.

    Raises:
        CourseError: a source breaks the format, or `out` holds something else.
    """
    files = {Path("nbgrader_config.py"): NBGRADER_CONFIG.encode()}
    answers = root / "notebooks" / "assignments" / "sources" / "answers.md"
    files[Path(answers.name)] = answers.read_bytes()
    for source in assignments(root):
        name = Path("source", source.stem, f"{source.stem}.ipynb")
        files[name] = f"{nbformat.writes(read_assignment(source))}\n".encode()
    return _write_folder(out, files)


def _write_folder(out: Path, files: dict[Path, bytes]) -> list[str]:
    """Write files into a folder that is new, or whose first file says that the same command has written it."""
    mark, text = next(iter(files.items()))
    out = out.resolve()
    if out.exists():
        empty = out.is_dir() and not any(out.iterdir())
        if not empty and not ((out / mark).is_file() and (out / mark).read_bytes() == text):
            raise CourseError(f"{out} holds something else; name a new folder with --out")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for path, content in files.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_bytes(content)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return [path.as_posix() for path in files]


@app.command()
def address(url: Annotated[str, typer.Argument(help="https://github.com/OWNER/NAME")]) -> None:
    """Carry the repository's address to every file that names it."""
    for path in carry_address(url):
        print(path)


def carry_address(url: str, root: Path = ROOT) -> list[str]:
    """Replace the repository's address in pyproject.toml, environment.yml, README.md, sources and notebooks.

    Returns the paths of the changed files, relative to `root`.
    """
    new = repository_slug(url)
    old = repository_slug(repository_address(root))
    mention = re.compile(rf"(github(?:\.com)?/|mybinder\.org/v2/gh/){re.escape(old)}(?![\w-])")
    changed = []
    for pattern in (
        "*.md",
        "docs/*.md",
        "*.toml",
        "*.yml",
        "notebooks/**/*.md",
        "notebooks/**/*.py",
        "notebooks/**/*.ipynb",
    ):
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if (replaced := mention.sub(rf"\g<1>{new}", text)) != text:
                temporary = path.with_name(f"{path.name}.part")
                temporary.write_text(replaced, encoding="utf-8")
                os.replace(temporary, path)
                changed.append(path.relative_to(root).as_posix())
    return changed


if __name__ == "__main__":
    run(app)
