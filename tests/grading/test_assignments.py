"""The checks check: no work gets no points, the reference all of them, and a wrong answer loses exactly its own.

Wrong answers are in tests/grading/wrong_answers. One for each exercise is run at a time, beside the reference
solutions of the exercises that have no more of them: that an exercise spoils no other is thereby shown too.
"""

import contextlib
import importlib
import io
import itertools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions, LockCells
from traitlets.config import Config

from course_utils.data.cohorts import data_root
from course_utils.errors import CourseError
from course_utils.grading import submissions
from course_utils.grading.assignments import (
    HIDDEN_TESTS,
    SOLUTION,
    STUB,
    Assignment,
    assignment_sources,
    exercises,
    read_assignment,
    regions,
    student_version,
)
from course_utils.grading.engine import grade
from notebooks import build

pytestmark = pytest.mark.slow

SOURCES = build.assignments()
TRAININGS = {"train", "train-well"}
"""Exercises of which one run of the reference is enough."""
each_assignment = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def answers_to(source):
    """The module of answers that differ from the reference."""
    return importlib.import_module(f"tests.grading.wrong_answers.{source.stem[3:]}")


def wrong_answers(source):
    """Lists of (exercise, code, what the check says), with every exercise at most once in a list."""
    of = {exercise.grade_id: [] for exercise in exercises(read_assignment(source))}
    for exercise, code, says in answers_to(source).WRONG:
        of[exercise].append((exercise, code, says))
    return [[answer for answer in some if answer] for some in itertools.zip_longest(*of.values())]


def cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def answered(notebook, exercise, code):
    """Put code in the place of an exercise's solution."""
    cell = cells(notebook)[exercise]
    begin, end = (re.search(rf"^( *){re.escape(marker)}$", cell.source, re.MULTILINE) for marker in SOLUTION)
    cell.source = cell.source[: begin.start()] + textwrap.indent(code.rstrip(), begin[1]) + cell.source[end.end() :]


def run(notebook, folder):
    """What each check raises, or None: all cells in order in one namespace, as in a kernel."""
    names, failures = {"__name__": "__main__"}, {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), matplotlib.rc_context():
        matplotlib.use("Agg")
        for name, cell in cells(notebook).items():
            try:
                exec(compile(cell.source, name, "exec"), names)
                failure = None
            except Exception as error:
                failure = error
            if cell.metadata.nbgrader.grade:
                failures[name] = failure
            else:
                assert failure is None or isinstance(failure, NotImplementedError), f"{name}: {failure!r}"
    return failures


@pytest.fixture(scope="module")
def folder(tmp_path_factory, built_in_cohort):
    """One working folder: the cohort that assignment 5 makes there is made once."""
    return tmp_path_factory.mktemp("assignment")


def test_there_are_seven_with_five_to_eight_exercises():
    assert [source.stem for source in SOURCES] == [
        "01_data",
        "02_warping",
        "03_velocity_fields",
        "04_voxelmorph",
        "05_losses_and_training",
        "06_two_directions_and_folding",
        "07_templates_and_hypermorph",
    ]
    stored = sorted(path.stem for path in (build.ROOT / "notebooks" / "assignments").glob("*.ipynb"))
    assert stored == [source.stem for source in SOURCES]
    for source in SOURCES:
        assert 5 <= len(exercises(read_assignment(source))) <= 8


@each_assignment
def test_the_student_s_notebook_belongs_to_its_source(source):
    assert build.assignment_problems(source) == []


@each_assignment
def test_the_untouched_stub_gets_nothing(source, folder):
    failures = run(student_version(read_assignment(source)), folder)
    assert len(failures) == len(exercises(read_assignment(source)))
    # The stub of a class is in its body: the class is then not there.
    assert {type(failure) for failure in failures.values()} <= {NotImplementedError, NameError}


@each_assignment
def test_the_reference_solution_gets_full_marks(source, folder):
    assert set(run(read_assignment(source), folder).values()) == {None}


@each_assignment
def test_there_are_enough_wrong_answers(source):
    some = wrong_answers(source)
    assert sum(map(len, some)) >= 30
    assert len(some[1]) == len(exercises(read_assignment(source)))  # two or more of every exercise


@pytest.mark.parametrize(
    ("source", "number"),
    [
        pytest.param(source, number, id=f"{source.stem}-{number}")
        for source in SOURCES
        for number in range(len(wrong_answers(source)))
    ],
)
def test_a_wrong_answer_loses_its_own_points_and_hears_why(source, number, folder):
    notebook = read_assignment(source)
    wrong = wrong_answers(source)[number]
    for exercise, code, _ in wrong:
        answered(notebook, exercise, code)
    leave_out = TRAININGS - {exercise for exercise, *_ in wrong}
    notebook.cells = [cell for cell in notebook.cells if cell.id.removesuffix("-check") not in leave_out]
    failures = run(notebook, folder)
    assert {name for name, failure in failures.items() if failure is not None} == {
        f"{name}-check" for name, *_ in wrong
    }
    for exercise, _, says in wrong:
        failure = failures[f"{exercise}-check"]
        assert says in f"{type(failure).__name__}: {failure}", f"{exercise}: {failure}"


RIGHT = [
    pytest.param(source, exercise, code, id=f"{source.stem}-{exercise}-{number}")
    for source in SOURCES
    for number, (exercise, code) in enumerate(getattr(answers_to(source), "RIGHT", []))
]


@pytest.mark.parametrize(("source", "exercise", "code"), RIGHT)
def test_another_right_answer_gets_its_points(source, exercise, code, folder):
    notebook = read_assignment(source)
    answered(notebook, exercise, code)
    notebook.cells = [cell for cell in notebook.cells if cell.id.removesuffix("-check") not in TRAININGS]
    assert run(notebook, folder)[f"{exercise}-check"] is None


# --- the grading engine gives the same ------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_the_engine_gives_nothing_for_stubs_and_full_marks_for_references(tmp_path, built_in_cohort):
    given = [Assignment(source.stem, read_assignment(source)) for source in SOURCES]
    for assignment in given:
        for student, notebook in (("ada", assignment.notebook), ("bob", student_version(assignment.notebook))):
            nbformat.write(notebook, tmp_path / f"{student}_{assignment.name}.ipynb")
    found = submissions.find_submissions([tmp_path], [assignment.name for assignment in given])
    root = data_root().resolve()
    graded = grade(
        found,
        given,
        workers=2,
        shown=[root / "synthetic"],
        allow_unisolated=True,
        environment=build.course_environment(tmp_path) | {"MONAI_DATA_DIRECTORY": str(root), "COURSE_RUNS": "runs"},
    )
    points = {(each.student, each.assignment): (each.total, each.status) for each in graded.grades}
    for assignment in given:
        everything = sum(exercise.points for exercise in assignment.exercises)
        assert points["ada", assignment.name] == (everything, "graded")
        assert points["bob", assignment.name] == (0, "graded")


# --- what a student gets ----------------------------------------------------------------------------------------------


def secret_lines(source):
    """Lines of solutions and hidden tests, without those that also stand in the open part of the same notebook."""
    notebook = read_assignment(source)
    secret = [
        line.strip()
        for cell in notebook.cells
        for markers in (SOLUTION, HIDDEN_TESTS)
        for region in regions(cell.source, markers)
        for line in region
    ]
    shown = {line.strip() for cell in student_version(notebook).cells for line in cell.source.splitlines()}
    return {line for line in secret if line and not line.startswith("#")} - shown


@each_assignment
def test_no_line_of_a_solution_or_hidden_test_is_released(source, tmp_path):
    out = tmp_path / "release"
    written = build.write_release(out)
    own = f"notebooks/assignments/{source.stem}.ipynb"
    assert own in written
    lines = secret_lines(source)
    assert len(lines) > 30
    for path in sorted(out.rglob("*")):
        if path.is_dir():
            continue
        text = path.read_text(encoding="utf-8") if path.suffix in (".ipynb", ".md", ".py", ".toml") else ""
        original = build.ROOT / path.relative_to(out)
        if path.suffix != ".ipynb":  # the package and its papers, as everybody has them
            assert path.name == "README.md" or path.read_bytes() == original.read_bytes()
            assert path.suffix != ".py" or "course_utils" in path.parts
            continue
        released = nbformat.reads(text, as_version=4)
        if "assignments" not in path.parts:  # a lecture may say the same: it is there for all to read
            assert text == original.read_text(encoding="utf-8")
            continue
        assert not any(marker in text for marker in (*SOLUTION, *HIDDEN_TESTS)), path
        found = {line.strip() for cell in released.cells for line in cell.source.splitlines()} & lines
        assert not found or path.name != f"{source.stem}.ipynb", found
        assert all(not cell.get("outputs") for cell in released.cells)


def test_a_release_is_whole_and_replaces_only_a_release(tmp_path, monkeypatch):
    out = tmp_path / "release"
    written = build.write_release(out)
    assert sorted(written) == sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert {f"notebooks/{source.stem}.ipynb" for source in build.sources()} <= set(written)
    assert not [name for name in written if name.endswith(".py") and not name.startswith("course_utils/")]
    package = (build.ROOT / "course_utils").rglob("*.py")
    assert {path.relative_to(build.ROOT).as_posix() for path in package} <= set(written)
    (out / "notebooks" / "old.ipynb").touch()
    build.write_release(out)
    assert not (out / "notebooks" / "old.ipynb").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(CourseError, match="something else"):
        build.write_release(mine)
    assert os.listdir(mine) == ["thesis.tex"]
    monkeypatch.setattr(build, "assignment_problems", lambda source: ["is stale"])
    with pytest.raises(CourseError, match="is stale"):
        build.write_release(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["mine", "release"]


@pytest.mark.parametrize("lost", [False, True], ids=["with metadata", "without"])
def test_a_release_tells_students_their_points(tmp_path, built_in_cohort, lost):
    """In the bundle, without sources; the notebook holds a note of the student's, and may have lost its metadata."""
    out = tmp_path / "release"
    build.write_release(out)
    path = out / "notebooks" / "assignments" / "02_warping.ipynb"
    whole = nbformat.read(path, as_version=4)
    answers = cells(read_assignment(SOURCES[1]))
    for name in ("shift", "warp"):
        cells(whole)[name].source = answers[name].source
    whole.cells.insert(4, nbformat.v4.new_markdown_cell("What I do not understand yet"))
    if lost:
        for cell in whole.cells:
            cell.metadata.clear()
    nbformat.write(whole, path)
    command = [sys.executable, "-m", "course_utils", "check", "notebooks/assignments/02_warping.ipynb"]
    done = subprocess.run(command, cwd=out, env=os.environ | {"PYTHONPATH": str(out)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    worth = {exercise.grade_id: exercise.points for exercise in exercises(read_assignment(SOURCES[1]))}
    assert done.stdout.splitlines()[-1] == (
        f"{worth['shift'] + worth['warp']} of {sum(worth.values())} points on the visible checks"
    )


# --- nbgrader is the independent reference ----------------------------------------------------------------------------


@each_assignment
def test_nbgrader_makes_the_same_student_version(source, tmp_path):
    written = build.write_instructor_versions(tmp_path / "course")
    path = tmp_path / "course" / "source" / source.stem / f"{source.stem}.ipynb"
    assert path.relative_to(tmp_path / "course").as_posix() in written
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)
    config = Config()
    code = (tmp_path / "course" / "nbgrader_config.py").read_text(encoding="utf-8")
    exec(compile(code, "nbgrader_config.py", "exec"), {"get_config": lambda: config, "__file__": str(tmp_path / "x")})
    assert config.ClearSolutions.code_stub == {"python": STUB}
    for step in (LockCells, ClearSolutions, ClearHiddenTests):
        notebook, _ = step(config=config).preprocess(notebook, {})
    ours = student_version(read_assignment(source))
    theirs = [(cell.source.strip(), cell.metadata) for cell in notebook.cells]
    assert theirs == [(cell.source.strip(), cell.metadata) for cell in ours.cells]
    points = [cell.metadata.nbgrader.points for cell in notebook.cells if cell.metadata.nbgrader.grade]
    assert points == [exercise.points for exercise in exercises(ours)]


def nbgrader(course, *arguments):
    """Call nbgrader in its course folder, on this Python's programs, with the course's own settings alone."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HOME": str(course), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment = {name: value for name, value in environment.items() if name != "MONAI_DATA_DIRECTORY"}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    return subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)


def test_nbgrader_releases_and_validates_an_assignment(tmp_path, built_in_cohort):
    source = SOURCES[2]
    build.write_instructor_versions(tmp_path / "course")
    done = nbgrader(tmp_path / "course", "generate_assignment", source.stem, "--create")
    assert done.returncode == 0, done.stderr
    name = Path(source.stem, f"{source.stem}.ipynb")
    released = nbformat.read(tmp_path / "course" / "release" / name, as_version=4)
    ours = nbformat.read(build.notebook_of(source), as_version=4)
    assert [cell.source for cell in released.cells] == [cell.source for cell in ours.cells]
    solved = nbgrader(tmp_path / "course", "validate", str(Path("source", name)))
    assert "Success! Your notebook passes all the tests" in solved.stdout, solved.stdout


def test_nbgrader_grades_a_class_on_one_data_folder(tmp_path, built_in_cohort):
    source, course = SOURCES[1], tmp_path / "course"
    build.write_instructor_versions(course)
    (course / "data").symlink_to(data_root(), target_is_directory=True)  # as if nbgrader had made the cohort there
    done = nbgrader(course, "generate_assignment", source.stem, "--create")
    assert done.returncode == 0, done.stderr
    for student in ("ada", "alan"):
        folder = course / "submitted" / student / source.stem
        folder.mkdir(parents=True)
        nbformat.write(read_assignment(source), folder / f"{source.stem}.ipynb")
        (folder / "data" / "synthetic").mkdir(parents=True)
        (folder / "data" / "synthetic" / "scan.nii.gz").write_bytes(bytes(10**6))  # a student's own, handed in too
    done = nbgrader(course, "autograde", source.stem)
    assert done.returncode == 0, done.stderr
    graded = sorted(path for path in (course / "autograded").rglob("*") if path.is_file())
    assert [path.relative_to(course / "autograded").as_posix() for path in graded] == [
        f"{student}/{source.stem}/{source.stem}.ipynb" for student in ("ada", "alan")
    ]
    for path in graded:
        checks = [cell for cell in nbformat.read(path, as_version=4).cells if cell.metadata.nbgrader.grade]
        assert not [output for cell in checks for output in cell.outputs if output.output_type == "error"]


# --- the format -------------------------------------------------------------------------------------------------------

TOY = """\
# %% [markdown]
# # Toy
#
# ## Exercise 1: Add (2 points)

# %% nbgrader={"grade_id": "add", "grade": false, "solution": true, "locked": false}
# exercise: add
def add(a, b):
    ### BEGIN SOLUTION
    return a + b
    ### END SOLUTION

# %% nbgrader={"grade_id": "add-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: add-check
assert add(1, 2) == 3
### BEGIN HIDDEN TESTS
assert add(3, 2) == 5
### END HIDDEN TESTS
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "01_toy.py"
    path.write_text(TOY, encoding="utf-8")
    return path


def test_an_assignment_is_read(toy):
    notebook = read_assignment(toy)
    (exercise,) = exercises(notebook)
    assert (exercise.grade_id, exercise.check_id, exercise.points, exercise.title) == ("add", "add-check", 2, "Add")
    student = student_version(notebook)
    assert exercises(student) == [exercise]
    assert cells(student)["add"].source == f"# exercise: add\ndef add(a, b):\n    {STUB}"
    assert cells(student)["add-check"].source == "# check: add-check\nassert add(1, 2) == 3"
    assert "return a + b" in cells(notebook)["add"].source  # a copy
    assert cells(student)["add-check"].metadata.editable is False
    assert [name for name, cell in cells(student).items() if "jupyter" in cell.metadata] == ["add-check"]  # folded
    assert "editable" not in cells(student)["add"].metadata
    assert notebook.metadata.assignment == "01_toy"
    assert assignment_sources(toy.parent) == [toy]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("### END SOLUTION", "", "'### BEGIN SOLUTION' without '### END SOLUTION'"),
        ("    ### BEGIN SOLUTION\n", "", "without its partner"),
        ("    return a + b\n", "", "with something between"),
        ("### BEGIN HIDDEN TESTS\nassert add(3, 2) == 5\n### END HIDDEN TESTS\n", "", "BEGIN HIDDEN TESTS"),
        ("# # Toy", "# # Toy\n# ### BEGIN SOLUTION", "without"),
        ("# exercise: add", "# exercise: sum", "first line has to be '# exercise: add'"),
        ("# check: add-check\n", "", "first line has to be '# check: add-check'"),
        ('"grade_id": "add-check"', '"grade_id": "other-check"', "needs a check cell"),
        ('"grade_id": "add-check"', '"grade_id": "add"', "twice"),
        ('"grade_id": "add"', '"grade_id": "Add it"', "needs a check cell"),
        ('"points": 2', '"points": 3', "headings"),
        ('"points": 2', '"points": 0', "whole points"),
        ("(2 points)", "(two points)", "headings"),
        ('"solution": true, "locked": false', '"solution": true, "locked": true', "a cell is a solution"),
        ('"solution": true', '"solution": false', "there is no exercise"),
    ],
)
def test_a_broken_format_is_named(toy, old, new, found):
    text = toy.read_text(encoding="utf-8")
    assert old in text
    toy.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CourseError) as error:
        read_assignment(toy)
    assert found in str(error.value)
    assert str(error.value).startswith("01_toy.py: ")
    assert "\n" not in str(error.value)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(CourseError, match="cannot be read"):
        read_assignment(tmp_path / "01_none.py")
    with pytest.raises(CourseError, match="no assignment"):
        assignment_sources(tmp_path)


def test_a_stale_student_s_notebook_is_seen(tmp_path):
    for name in ("pyproject.toml", "notebooks/assignments/sources/03_velocity_fields.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((build.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    source = tmp_path / "notebooks/assignments/sources/03_velocity_fields.py"
    assert any("missing" in problem for problem in build.assignment_problems(source))
    build.write_student_version(source)
    assert build.assignment_problems(source) == []
    before = source.read_text(encoding="utf-8")
    for old, new, found in [
        ("A displacement jumps", "A displacement runs", "not the source's"),
        ("| minutes | 70 |", "| minutes | long |", "minutes"),
        ("blob/main/notebooks/assignments", "blob/main/notebooks", "badges of Colab and Binder"),
        ("session = start()", "session = start(1)", "setup cell"),
    ]:
        assert old in before
        source.write_text(before.replace(old, new, 1), encoding="utf-8")
        assert any(found in problem for problem in build.assignment_problems(source)), found
