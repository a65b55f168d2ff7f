"""The command `grade` as a process: with a roster, with one that is none, and ended from outside."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from course_utils.grading.assignments import Assignment, read_assignment
from notebooks.build import ROOT
from tests.grading.processes import still_there, when_a_submission_runs
from tests.grading.small_assignments import OTHER, content, handed_in

pytestmark = pytest.mark.slow

ENDLESS = "while True:\n    pass  # {}"


@pytest.fixture
def course(tmp_path, built_in_cohort):
    """A course of one small assignment; `hand_in(STUDENT, CELL)`, and `command(...)` grades into `out`."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "02_words.py").write_text(OTHER, encoding="utf-8")
    words = Assignment("02_words", read_assignment(sources / "02_words.py"))

    class Course:
        out = tmp_path / "out"
        roster = tmp_path / "class.csv"

        def hand_in(self, student, cell):
            folder = tmp_path / "in" / student
            folder.mkdir(parents=True)
            (folder / "02_words.ipynb").write_bytes(content(handed_in(words, word=cell)))

        def command(self, *options):
            given = [str(tmp_path / "in"), "--assignments", str(sources), "--out", str(self.out)]
            given += ["--allow-unisolated", *map(str, options)]
            return [sys.executable, "-m", "course_utils", "grade", *given]

        def grade(self, *options):
            return subprocess.run(self.command(*options), cwd=ROOT, capture_output=True, text=True)

        def rows(self):
            with (self.out / "grades.csv").open(encoding="utf-8", newline="") as file:
                return {row["student"]: row for row in csv.DictReader(file)}

    return Course()


def test_everybody_on_the_roster_has_a_row_and_grading_twice_is_the_same_to_the_byte(course):
    course.roster.write_text(
        "\ufeffLast name;First name;ID number\r\nLovelace;Ada;7001\r\nTuring;Alan;7002\r\n", encoding="utf-8"
    )
    course.hand_in("7001_88_assignsubmission_file_", "word = 'a'")
    course.hand_in("mallory", "word = 'a'  # too")
    done = course.grade("--roster", course.roster)
    assert done.returncode == 0, done.stderr
    assert {name: (row["total"], row["status"]) for name, row in course.rows().items()} == {
        "Ada Lovelace": ("1", "graded"),
        "Alan Turing": ("0", "nothing handed in"),
        "mallory": ("1", "graded; not on the roster"),
    }
    assert [line[:31] for line in done.stderr.splitlines() if line.startswith("warning")] == [
        "warning: not on the roster: mal",
        "warning: 1 of 2 on the roster h",
    ]
    assert done.stdout.splitlines()[-1].startswith("2 submissions; see ")
    files = {path: path.read_bytes() for path in course.out.rglob("*") if path.is_file()}
    assert course.grade("--roster", course.roster).returncode == 0
    assert {path: path.read_bytes() for path in course.out.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("content_", ["Ada Lovelace\n", "name,id\nA,1\nB,1\n", b"\x00\x01\x02", None])
def test_a_roster_that_is_none_is_one_line_before_anything_is_done(course, content_):
    course.hand_in("ada", "word = 'a'")
    if content_ is not None:
        course.roster.write_bytes(content_ if isinstance(content_, bytes) else content_.encode())
    done = course.grade("--roster", course.roster)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {course.roster}")
    assert not course.out.exists()


@pytest.mark.parametrize(("workers", "graded_before"), [(1, False), (2, True)])
def test_sigterm_leaves_no_process_no_scratch_and_no_half_table(course, workers, graded_before):
    course.hand_in("ada", "word = 'a'")
    if graded_before:
        assert course.grade().returncode == 0
    before = (course.out / "grades.csv").read_bytes() if graded_before else None
    for name in ("bob", "eve", "zoe"):
        course.hand_in(name, ENDLESS.format(name))
    scratch = Path(tempfile.mkdtemp(prefix="t"))  # a short name: sockets are in it
    try:
        environment = os.environ | {"TMPDIR": str(scratch)}
        command = course.command("--workers", workers, "--cell-timeout", 100)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        family = when_a_submission_runs(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert err.splitlines()[-1] == "error: stopped by SIGTERM: run the command again to go on"
        assert "Traceback" not in err
        assert still_there(family) == []
        assert list(scratch.iterdir()) == []
        left = [path.name for path in course.out.rglob("*") if ".cache" not in path.parts]
        assert ("grades.csv" in left) == graded_before
        assert not [name for name in left if name.endswith(".partial")]
        if graded_before:
            assert (course.out / "grades.csv").read_bytes() == before
    finally:
        shutil.rmtree(scratch)
