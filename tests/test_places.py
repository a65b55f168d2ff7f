"""Commands and notebooks find what the other one made."""

import subprocess
import sys

import pytest

from course_utils.places import home
from notebooks.build import ROOT


@pytest.mark.parametrize("folder", ["", "notebooks", "notebooks/assignments", "tests/data"])
def test_in_a_checkout_it_is_the_root_from_anywhere(monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    assert home().resolve() == ROOT
    assert not home().is_absolute()  # what is printed of it tells nothing of the machine


def test_elsewhere_it_is_the_current_folder(monkeypatch, tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert home().resolve() == deep


@pytest.mark.parametrize("text", ['[project]\nname = "other"', "[project", "project = 3", "", "\xff"])
def test_another_project_is_not_the_course(monkeypatch, tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text, encoding="latin-1")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert home().resolve() == tmp_path / "notebooks"


def test_a_student_s_bundle_is_a_checkout_too(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "notebooks" / "assignments").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "assignments")
    assert home().resolve() == tmp_path


WHERE = """
from course_utils.session import start
session = start()
print(session.data_root.resolve(), session.runs.resolve())
"""


@pytest.mark.slow
def test_a_notebook_looks_where_the_commands_have_written(monkeypatch, tmp_path):
    """As JupyterLab runs them: the kernel in notebooks/, the command at the root."""
    for variable in ("MONAI_DATA_DIRECTORY", "COURSE_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    command = [sys.executable, "-m", "course_utils", "make-synthetic", "--dimensions", "2", "--subjects", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "ready: data/synthetic"
    seen = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=tmp_path / "notebooks", capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == [str(tmp_path / "data"), str(tmp_path / "runs")]
    assert (tmp_path / "data" / "synthetic" / "cohort.json").is_file()
    again = subprocess.run(command, cwd=tmp_path / "notebooks", capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == "ready: ../data/synthetic"
