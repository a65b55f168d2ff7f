"""What the commands `grade` and `check` do."""

import subprocess
import sys

import pandas as pd
import pytest

from course_utils.errors import CourseError
from course_utils.grading.classroom import NEEDED, check_notebook, grade_class
from notebooks.build import ROOT
from tests.grading.class_of_submissions import Class

pytestmark = pytest.mark.slow

SOURCES = ROOT / "notebooks" / "assignments" / "sources"


@pytest.fixture(scope="module")
def of_class():
    return Class(SOURCES / "02_warping.py")


def graded(folder):
    """The command's end, which grades `in` of a folder into `out`."""
    places = [str(folder / "in"), "--out", str(folder / "out"), "--allow-unisolated"]
    command = [sys.executable, "-m", "course_utils", "grade", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_the_command_grades_a_folder(of_class, tmp_path, built_in_cohort):
    """An assignment of the course: a plausible mistake, and a student who patched the checks before they were used."""
    students = {"bob": of_class.wrong(), "eve": of_class.cheating()}
    for name, student in students.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "02_warping.ipynb").write_bytes(student.content)
    graded(tmp_path)
    table = pd.read_csv(tmp_path / "out" / "grades.csv", index_col="student")
    for name, student in students.items():
        assert table.loc[name, list(student.points)].to_dict() == student.points
        assert table.loc[name, "status"] == "graded"
        assert (tmp_path / "out" / "feedback" / f"{name}_02_warping.html").is_file()


def test_the_command_warns_of_files_that_may_be_several_people_s(of_class, tmp_path, built_in_cohort):
    students = {"week 2/ada": of_class.right(), "late/ada": of_class.partial(), "late/alan": of_class.partial()}
    for name, student in students.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "Copy of 02_warping.ipynb").write_bytes(student.content)
    done = graded(tmp_path)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "one student's, ada (02_warping; late/ada, week 2/ada): if they are several people's, put each" in warning
    table = pd.read_csv(tmp_path / "out" / "grades.csv", index_col="student")
    assert table.loc["ada", "status"] == (
        "graded; handed in 2 times, best: week 2/ada/Copy of 02_warping.ipynb; may be several people's: "
        "late/ada, week 2/ada"
    )
    assert table.loc["alan", "status"] == "graded"


def test_the_command_checks_one_s_own_notebook(of_class, tmp_path, built_in_cohort):
    mine = of_class.partial()
    (tmp_path / "02_warping.ipynb").write_bytes(mine.content)
    command = [sys.executable, "-m", "course_utils", "check", str(tmp_path / "02_warping.ipynb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, out_of = sum(mine.points.values()), sum(of_class.points.values())
    assert done.stdout.splitlines()[-1] == f"{total} of {out_of} points on the visible checks"


def test_what_is_missing_is_said_in_one_line_before_anything_is_done(of_class, tmp_path):
    (tmp_path / "ada_02_warping.ipynb").write_bytes(of_class.right().content)
    hidden = "import sys; sys.modules.update(nbval=None, psutil=None); import runpy\n"
    for arguments in (["grade", str(tmp_path), "--out", str(tmp_path / "out")], ["check", str(tmp_path / "x.ipynb")]):
        code = f"{hidden}sys.argv[1:] = {arguments}; runpy.run_module('course_utils', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == 'error: grading needs nbval, psutil: pip install "course_utils[grading]"\n'
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NEEDED)
def test_everything_that_grading_imports_is_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CourseError, match=f"grading needs {name}:"):
        grade_class([tmp_path], tmp_path / "out", assignments=SOURCES)
    with pytest.raises(CourseError, match=f"grading needs {name}:"):
        check_notebook(tmp_path / "x.ipynb", assignments=SOURCES)


def test_a_file_is_no_folder_for_results(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(CourseError, match="out is a file"):
        grade_class([tmp_path], tmp_path / "out", assignments=SOURCES)
