"""One student cannot become another, nor hide one: each case here once changed whose row was whose."""

import csv
import io
import os
import subprocess
import sys
import zipfile

import pytest

from course_utils.grading import collecting, gradebook
from course_utils.grading.collecting import LINK
from course_utils.grading.grades import Grade
from course_utils.grading.submissions import find_submissions

ASSIGNMENTS = ["01_data", "02_warping"]
WORK = "02_warping.ipynb"


def found(*paths):
    return [(s.student, s.where, s.problem) for s in find_submissions(paths, ASSIGNMENTS)]


def students(*paths):
    return sorted({student for student, _, _ in found(*paths)})


def tree(folder, *wheres, content="{}"):
    for where in wheres:
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).write_text(content, encoding="utf-8")
    return folder


def zipped(*wheres, content=b"{}", **files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for where, data in {**dict.fromkeys(wheres, content), **files}.items():
            archive.writestr(where, data)
    return buffer.getvalue()


@pytest.mark.parametrize("inner", [["first try", "second try"], ["one", "two", "three"], ["my folder"]])
def test_four_students_who_zipped_folders_are_four(tmp_path, inner):
    work = zipped(*(f"{folder}/{WORK}" for folder in inner))
    four = ["ada", "alan", "bob", "cem"]
    (tmp_path / "class.zip").write_bytes(zipped(**{f"{name}.zip": work for name in four}))
    (tmp_path / "in").mkdir()
    for name in four:
        (tmp_path / "in" / f"{name}.zip").write_bytes(work)
    assert students(tmp_path / "class.zip") == students(tmp_path / "in") == four
    assert students(*(tmp_path / "in").iterdir()) == four


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("hers", ["mallory", "mallory.zip"])
def test_a_folder_named_like_another_student_is_its_owner_s(tmp_path, count, hers):
    mine = ["ada", "alan", *map(str, range(38))][:count]
    tree(tmp_path, *(f"{name}/{WORK}" for name in ("ada", "alan", "bob")))
    if hers.endswith(".zip"):
        (tmp_path / hers).write_bytes(zipped(*(f"{name}/{WORK}" for name in mine)))
    else:
        tree(tmp_path / hers, *(f"{name}/{WORK}" for name in mine))
    assert students(tmp_path) == ["ada", "alan", "bob", "mallory"]
    assert [where for student, where, _ in found(tmp_path) if student == "ada"] == [f"ada/{WORK}"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "ipynb"])
@pytest.mark.parametrize("packed", [True, False])
def test_ten_thousand_empty_files_of_one_student_hide_nobody(tmp_path, suffix, packed):
    empty = [f"mallory/{number}.{suffix}" for number in range(10_001)]
    if packed:
        files = dict.fromkeys(empty, b"")
        content = zipped(**{f"ada/{WORK}": b"{}"}, **files, **{f"zoe/{WORK}": b"{}"})
        (tmp_path / "class.zip").write_bytes(content)
    else:
        tree(tmp_path, f"ada/{WORK}", f"zoe/{WORK}")
        tree(tmp_path, *empty, content="")
    handed_in = found(tmp_path / "class.zip" if packed else tmp_path)
    assert sorted({student for student, _, _ in handed_in}) == ["ada", "mallory", "zoe"]
    assert [problem for student, _, problem in handed_in if student != "mallory"] == [None, None]


def test_fifty_one_notebooks_of_zeros_hide_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "LARGEST", 300_000)
    monkeypatch.setattr(collecting, "LARGEST_OF_STUDENT", 900_000)
    monkeypatch.setattr(collecting, "LARGEST_CLASS", 15_000_000)
    zeros = {f"mallory/{number}.ipynb": bytes(300_000) for number in range(51)}
    inner = zipped(**zeros)
    (tmp_path / "class.zip").write_bytes(
        zipped(**{f"ada/{WORK}": b"{}"}, **zeros, **{"nested.zip": inner, f"zoe/{WORK}": b"{}"})
    )
    problems = {name: [] for name in ("ada", "mallory", "nested", "zoe")}
    for student, _, problem in found(tmp_path / "class.zip"):
        problems[student].append(problem)
    assert problems["ada"] == problems["zoe"] == [None]
    assert problems["mallory"].count(None) == problems["nested"].count(None) == 3
    assert "together larger than 0.9 MB" in problems["mallory"][-1]


def test_a_class_that_is_too_large_loses_nobody_s_row(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "LARGEST_CLASS", 5)
    (tmp_path / "class.zip").write_bytes(zipped(*(f"{name}/{WORK}" for name in "abcd")))
    assert [student for student, _, _ in found(tmp_path / "class.zip")] == [*"abcd"]
    assert "the class's notebooks" in found(tmp_path / "class.zip")[-1][2]


@pytest.mark.parametrize("name", ["mallory\rada", "mallory\nada", "mallory\x85ada", "mallory\u2028ada", "\tada"])
def test_what_ends_a_line_in_a_name_makes_no_second_row(tmp_path, name):
    tree(tmp_path / "in", f"{name}/{WORK}", f"ada/{WORK}")
    (tmp_path / "class.zip").write_bytes(zipped(f"{name}/{WORK}", f"ada/{WORK}"))
    for given in (tmp_path / "in", tmp_path / "class.zip"):
        handed_in = found(given)
        assert len({student for student, _, _ in handed_in}) == 2
        assert all(student.isprintable() and where.isprintable() for student, where, _ in handed_in)
        grades = [Grade(student, where, "02_warping", "graded", []) for student, where, _ in handed_in]
        text = gradebook.table(grades).to_csv(index=False)
        assert len(text.splitlines()) == 1 + 2
        assert [row[0] for row in csv.reader(io.StringIO(text))].count("ada") == 1


def test_the_table_shows_what_cannot_be_printed_wherever_it_comes_from():
    (row,) = gradebook.table([Grade("x\rada", "", "02_warping", "graded;\nbest: \rb", [])]).itertuples()
    assert (row.student, row.status) == ("x\\rada", "graded;\\nbest: \\rb")


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t=", "\r=", " =", "＝", "＋", "－", "＠"])
def test_no_name_is_a_formula(begin):
    name = gradebook.table([Grade(f"{begin}SUM(A1)", "x", "02_warping", "graded", [])]).student[0]
    assert name.startswith(("'", "\\"))
    assert name.endswith("SUM(A1)")


def test_a_link_hands_in_nobody_s_notebook(tmp_path):
    tree(tmp_path, f"ada/{WORK}", content='{"cells": "of ada"}')
    tree(tmp_path, "secret.ipynb")
    (tmp_path / "mallory").mkdir()
    (tmp_path / "mallory" / WORK).symlink_to(tmp_path / "ada" / WORK)
    (tmp_path / "mallory" / "all").symlink_to(tmp_path / "ada")
    (tmp_path / "eve").symlink_to(tmp_path / "ada")
    of = {}
    for submission in find_submissions([tmp_path], ASSIGNMENTS):
        of.setdefault(submission.student, []).append(submission)
    assert [(s.content, s.problem) for s in of["mallory"]] == [(None, LINK)]
    assert [(s.content, s.problem) for s in of["eve"]] == [(None, LINK)]
    assert [s.problem for s in of["ada"]] == [None]


def test_a_link_in_a_zip_is_named(tmp_path):
    link = zipfile.ZipInfo(f"mallory/{WORK}")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr(link, f"../ada/{WORK}")
        archive.writestr(f"ada/{WORK}", "{}")
    assert [(student, problem) for student, _, problem in found(tmp_path / "class.zip")] == [
        ("ada", None),
        ("mallory", LINK),
    ]


@pytest.fixture
def nested(tmp_path):
    """Makes folders within folders, deeper than any path may be long; Python could not remove them."""
    yield _nest
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def _nest(folder, depth):
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open(WORK, os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="grading is for Linux")
@pytest.mark.parametrize("depth", [1500, 3000])
def test_folders_nested_deeper_than_python_recurses_end_no_batch(tmp_path, depth, nested):
    tree(tmp_path, f"ada/{WORK}", f"mallory/{WORK}", f"zoe/{WORK}")
    nested(tmp_path / "mallory", depth)
    handed_in = found(tmp_path)
    assert [student for student, _, _ in handed_in] == ["ada", "mallory", "mallory", "zoe"]
    assert [problem for student, _, problem in handed_in if student != "mallory"] == [None, None]


def test_a_zip_that_breaks_the_reader_itself_is_one_student_s_problem(tmp_path):
    content = zipped("zoe/x.ipynb").replace(b"zoe", b"\xff\xff\xff")
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flagged as UTF-8, and none
        at = content.index(signature) + offset
        content = content[:at] + b"\x00\x08" + content[at + 2 :]
    (tmp_path / "mallory.zip").write_bytes(content)
    tree(tmp_path, f"ada/{WORK}")
    ada, mallory = found(tmp_path)
    assert ada == ("ada", f"ada/{WORK}", None)
    assert mallory[0] == "mallory"
    assert mallory[2].startswith("not a zip that can be read")


def test_a_file_that_cannot_be_read_is_one_student_s_problem(tmp_path, monkeypatch):
    tree(tmp_path, f"ada/{WORK}", f"mallory/{WORK}")
    opened = collecting.Path.open

    def refuses(path, *args, **kwargs):
        if "mallory" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(collecting.Path, "open", refuses)
    assert found(tmp_path) == [
        ("ada", f"ada/{WORK}", None),
        ("mallory", f"mallory/{WORK}", "cannot be read (Permission denied)"),
    ]
