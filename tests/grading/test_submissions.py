import io
import json
import os
import zipfile

import pytest

from course_utils.errors import CourseError
from course_utils.grading import collecting
from course_utils.grading.collecting import NO_NOTEBOOK
from course_utils.grading.submissions import find_submissions, notebook_cells

ASSIGNMENTS = ["01_data", "02_warping"]


def found(*paths):
    return [(s.student, s.where, s.problem) for s in find_submissions(paths, ASSIGNMENTS)]


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_folder_a_zip_and_a_file_are_read_alike(tmp_path):
    (tmp_path / "in" / "ada").mkdir(parents=True)
    (tmp_path / "in" / "ada" / "02_warping.ipynb").write_text("a", encoding="utf-8")
    (tmp_path / "in" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "in" / ".ipynb_checkpoints" / "02_warping-checkpoint.ipynb").write_text("old", encoding="utf-8")
    (tmp_path / "class.zip").write_bytes(
        zipped(**{"ada/02_warping.ipynb": "a", "__MACOSX/ada/._02_warping.ipynb": "?"})
    )
    expected = [("ada", "ada/02_warping.ipynb", None)]
    assert found(tmp_path / "in") == found(tmp_path / "class.zip") == expected
    assert found(tmp_path / "in" / "ada" / "02_warping.ipynb") == [("ada", "02_warping.ipynb", None)]


def test_a_zip_that_a_student_handed_in_is_the_student_s(tmp_path):
    inner = zipped(**{"work/02_warping.ipynb": "a"})
    (tmp_path / "class.zip").write_bytes(zipped(**{"Ada_1_assignsubmission_file_/mine.zip": inner, "bob.zip": inner}))
    assert [student for student, _, problem in found(tmp_path / "class.zip") if not problem] == ["Ada_1", "bob"]


def test_every_student_zipped_the_course_s_folder(tmp_path):
    inner = zipped(**{"registration-course-main/notebooks/assignments/02_warping.ipynb": "a"})
    (tmp_path / "class.zip").write_bytes(zipped(**{"ada.zip": inner, "alan.zip": inner}))
    assert [student for student, _, _ in found(tmp_path / "class.zip")] == ["ada", "alan"]
    (tmp_path / "in").mkdir()
    for name in ("ada", "alan"):
        (tmp_path / "in" / f"{name}.zip").write_bytes(inner)
    assert [student for student, _, _ in found(tmp_path / "in")] == ["ada", "alan"]
    assert [student for student, _, _ in found(*(tmp_path / "in").iterdir())] == ["ada", "alan"]
    assert [student for student, _, _ in found(tmp_path / "in" / "ada.zip")] == ["ada"]


def test_several_arguments_are_told_apart(tmp_path):
    for name in ("ada", "alan"):
        (tmp_path / name / "mine").mkdir(parents=True)
        (tmp_path / name / "mine" / "02_warping.ipynb").write_text("a", encoding="utf-8")
    assert found(tmp_path / "ada", tmp_path / "alan") == [
        ("ada", "ada/mine/02_warping.ipynb", None),
        ("alan", "alan/mine/02_warping.ipynb", None),
    ]
    files = sorted(tmp_path.rglob("*.ipynb"))
    for file in files:
        file.rename(file.parents[1] / file.name)
    assert [student for student, _, _ in found(*tmp_path.rglob("*.ipynb"))] == ["ada", "alan"]


def test_names_that_lead_out_of_a_zip_lead_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "class.zip").write_bytes(
        zipped(**{"../../eve/02_warping.ipynb": "e", "/etc/02_warping.ipynb": "f"})
    )
    assert found(tmp_path / "in" / "class.zip") == [
        ("etc", "etc/02_warping.ipynb", None),
        ("eve", "eve/02_warping.ipynb", None),
    ]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "class.zip"]


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "LARGEST", 1_000_000)
    bomb = zipped(**{"ada/02_warping.ipynb": bytes(20_000_000), "bob/02_warping.ipynb": "b"})
    (tmp_path / "class.zip").write_bytes(bomb)
    assert len(bomb) < 50_000
    assert found(tmp_path / "class.zip") == [
        ("ada", "ada/02_warping.ipynb", "larger than 1 MB: hand it in again without the outputs of its cells"),
        ("bob", "bob/02_warping.ipynb", None),
    ]


def test_a_broken_or_encrypted_member_is_the_student_s_problem_alone(tmp_path):
    content = zipped(**{"ada/02_warping.ipynb": "a" * 1000, "bob/02_warping.ipynb": "b"})
    at = content.index(b"ada/02_warping.ipynb") + 22
    (tmp_path / "class.zip").write_bytes(content[:at] + b"\xff\xff" + content[at + 2 :])
    (ada, bob) = found(tmp_path / "class.zip")
    assert ada[2].startswith("cannot be read from the zip")
    assert bob == ("bob", "bob/02_warping.ipynb", None)


def test_a_student_without_a_notebook_is_listed_once(tmp_path):
    for name in ("ada/report.pdf", "ada/notes.txt", "bob/report.pdf", "bob/02_warping.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert found(tmp_path) == [("ada", "ada/notes.txt", NO_NOTEBOOK), ("bob", "bob/02_warping.ipynb", None)]


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    for name in (b"\xe9a", b"\xe8a"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        (tmp_path / os.fsdecode(name) / "02_warping.ipynb").write_text("", encoding="utf-8")
    assert [student for student, _, _ in found(tmp_path)] == ["\\xe8a", "\\xe9a"]


@pytest.mark.parametrize("flagged", [True, False])
def test_a_zip_s_utf8_names_are_read_even_unflagged(tmp_path, flagged):
    content = zipped(**{"Zoë/02_warping.ipynb": "a"})
    if not flagged:
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = content.index(signature) + offset
            content = content[:at] + b"\x00\x00" + content[at + 2 :]
    (tmp_path / "class.zip").write_bytes(content)
    assert found(tmp_path / "class.zip") == [("Zoë", "Zoë/02_warping.ipynb", None)]


def test_nothing_to_grade_is_an_error(tmp_path):
    with pytest.raises(CourseError, match="no submission in"):
        find_submissions([tmp_path], ASSIGNMENTS)
    with pytest.raises(CourseError, match="is not there"):
        find_submissions([tmp_path / "none"], ASSIGNMENTS)


def test_a_notebook_s_cells_are_read_whatever_else_it_holds():
    whole = b'\xef\xbb\xbf{"cells": [7, {"cell_type": "code", "source": ["a\\n", "b"], "metadata": 3}, {"source": 4}]}'
    assert notebook_cells(whole) == [{"cell_type": "code", "source": "a\nb", "metadata": {}}]
    assert notebook_cells(b'{"cells": [{"source": "\\ud800"}]}')[0]["source"] == "?"


def test_a_notebook_of_nbformat_3_is_read():
    cells = [{"cell_type": "code", "input": ["a\n", "b"]}, {"cell_type": "markdown", "source": "c"}]
    whole = json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}, 7, {"cells": 8}]}).encode()
    assert [(cell["cell_type"], cell["source"]) for cell in notebook_cells(whole)] == [
        ("code", "a\nb"),
        ("markdown", "c"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_notebook_is_read_in_any_encoding_of_unicode(encoding):
    whole = '{"cells": [{"cell_type": "code", "source": "ä"}]}'.encode(encoding)
    assert notebook_cells(whole)[0]["source"] == "ä"


def test_a_merge_conflict_is_named():
    with pytest.raises(ValueError, match="not a notebook but an unresolved merge conflict of git"):
        notebook_cells(b'<<<<<<< HEAD\n{"cells": []}\n=======\n')


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{}", b'{"worksheets": 3}', b'{"cells": {}}', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_notebook_says_so(content):
    with pytest.raises(ValueError, match="not a notebook"):
        notebook_cells(content)
