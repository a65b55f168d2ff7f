"""The downloads of learning platforms, as folders and as zips: whose each notebook is, and who that is on a roster."""

import io
import zipfile

import pytest

from course_utils.grading.recognition import Roster
from course_utils.grading.roster import read_roster
from course_utils.grading.submissions import find_submissions

ASSIGNMENTS = ["01_data", "02_warping"]
ROSTER = """\
Last name,First name,ID number,Username,Email address
Lovelace,Ada,7001815,alove,ada.lovelace@uni.example
Turing,Alan,7001912,aturi-42,alan.turing@uni.example
Nöther,Emmy,7001882,enoet,emmy.noether@uni.example
Smith,Ada,7001900,asmit,ada.smith@uni.example
"""
ADA, ALAN, EMMY, SMITH = "Ada Lovelace", "Alan Turing", "Emmy Nöther", "Ada Smith"
WORK, COPY = "02_warping.ipynb", "Copy of 02_warping (1).ipynb"
ZIP = {"registration-course-main/notebooks/assignments/02_warping.ipynb": b"{}"}

# Of each file: whose it is by the rule of identity, and who that is on the roster.
LAYOUTS = {
    "Moodle": {
        f"Ada Lovelace_88123_assignsubmission_file_/{WORK}": ("Ada Lovelace_88123", ADA),
        f"Alan Turing_88124_assignsubmission_file_/{COPY}": ("Alan Turing_88124", ALAN),
        "Emmy Nöther_88125_assignsubmission_file_/work.zip": ("Emmy Nöther_88125", EMMY),
    },
    "Moodle, with ID numbers for names": {
        f"7001815_88123_assignsubmission_file_/{WORK}": ("7001815_88123", ADA),
        f"7001912_88124_assignsubmission_file_/{WORK}": ("7001912_88124", ALAN),
    },
    "Canvas": {
        f"lovelaceada_10101_55501_{WORK}": ("lovelaceada_10101", ADA),
        "turingalan_LATE_10102_55502_02_warping-2.ipynb": ("turingalan_10102", ALAN),
        "nöthermmy_10103_55503_work.zip": ("nöthermmy_10103", None),
        f"smithada_10104_55504_{WORK}": ("smithada_10104", SMITH),
    },
    "Canvas, with ids of the roster": {
        f"adal_7001815_55501_{WORK}": ("adal_7001815", ADA),
        f"turingalan_7001912_55502_{WORK}": ("turingalan_7001912", ALAN),
    },
    "Blackboard": {
        f"Warp it_alove_attempt_2024-01-30-20-30-10_{WORK}": ("alove", ADA),
        f"Warp it_aturi-42_attempt_2024-01-30-20-31-10_{COPY}": ("aturi-42", ALAN),
        "Warp it_aturi-42_attempt_2024-01-30-20-31-10.txt": ("aturi-42", ALAN),
    },
    "MS Teams": {
        f"Submitted files/Ada Lovelace/Warp it/Version 1/{WORK}": ("Ada Lovelace", ADA),
        f"Submitted files/Ada Lovelace/Warp it/Version 2/{COPY}": ("Ada Lovelace", ADA),
        f"Submitted files/Alan Turing/Warp it/Version 1/{WORK}": ("Alan Turing", ALAN),
    },
    "ILIAS": {
        f"Warp it/Abgaben/Lovelace_Ada_alove_301/20240130203010_{WORK}": ("Lovelace_Ada_alove_301", ADA),
        "Warp it/Abgaben/Turing_Alan_aturi-42_302/20240130203010_work.zip": ("Turing_Alan_aturi-42_302", ALAN),
    },
    "Sakai": {
        f"Warp it/Lovelace, Ada(alove)/Submission attachment(s)/{WORK}": ("Lovelace, Ada(alove)", ADA),
        f"Warp it/Turing, Alan(aturi-42)/Submission attachment(s)/{WORK}": ("Turing, Alan(aturi-42)", ALAN),
    },
    "Brightspace": {
        f"12345-6789 - Ada Lovelace - Jan 30, 2024 830 PM/{WORK}": ("Ada Lovelace", ADA),
        f"12345-6790 - Alan Turing - Jan 30, 2024 831 PM/{WORK}": ("Alan Turing", ALAN),
    },
    "nbgrader": {
        f"alove/02_warping/{WORK}": ("alove", ADA),
        f"aturi-42/02_warping/{WORK}": ("aturi-42", ALAN),
        "aturi-42/02_warping/timestamp.txt": ("aturi-42", ALAN),
    },
    "GitHub Classroom, by the assignment's name": {
        f"02-warping-alove/notebooks/assignments/{WORK}": ("alove", ADA),
        f"02-warping-aturi-42/notebooks/assignments/{WORK}": ("aturi-42", ALAN),
    },
    "GitHub Classroom, by a name of its own": {
        f"registration-lab-2-alove/notebooks/assignments/{WORK}": ("registration-lab-2-alove", ADA),
        f"registration-lab-2-aturi-42/notebooks/assignments/{WORK}": ("registration-lab-2-aturi-42", ALAN),
        f"registration-lab-2-visitor/notebooks/assignments/{WORK}": ("registration-lab-2-visitor", None),
    },
    "zips by mail": {
        "Lovelace Ada.zip": ("Lovelace Ada", ADA),
        "7001912.zip": ("7001912", ALAN),
        "emmy.noether@uni.example.zip": ("emmy.noether@uni.example", EMMY),
    },
    "one folder of files": {
        f"Ada Lovelace_{WORK}": ("Ada Lovelace", ADA),
        "02_warping_aturi-42.ipynb": ("aturi-42", ALAN),
        "Copy of enoet_02_warping.ipynb": ("enoet", EMMY),
    },
    "tutorials": {
        f"Tutorial A/alove/{WORK}": ("alove", ADA),
        f"Tutorial A/aturi-42/{WORK}": ("aturi-42", ALAN),
        f"Tutorial B/enoet/{WORK}": ("enoet", EMMY),
        f"Tutorial B/asmit/{WORK}": ("asmit", SMITH),
        f"Tutorial C/visitor/{WORK}": ("visitor", None),
    },
}  # fmt: skip


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(params=["folder", "zip"])
def download(request, tmp_path):
    """A layout, as the folder or the zip that a teacher has."""

    def download(layout):
        files = {name: packed(ZIP) if name.endswith(".zip") else b"{}" for name in layout}
        if request.param == "zip":
            (tmp_path / "download.zip").write_bytes(packed(files))
            return tmp_path / "download.zip"
        for name, content in files.items():
            (tmp_path / "download" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "download" / name).write_bytes(content)
        return tmp_path / "download"

    return download


@pytest.fixture
def roster(tmp_path):
    (tmp_path / "roster.csv").write_text(ROSTER, encoding="utf-8")
    return Roster(read_roster(tmp_path / "roster.csv"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_roster", [False, True])
def test_whose_each_notebook_is_and_who_that_is(layout, download, roster, with_roster):
    expected = LAYOUTS[layout]
    found = find_submissions([download(expected)], ASSIGNMENTS, *([roster.has] if with_roster else []))
    notebooks = {name for name in expected if not name.endswith(".txt")}
    assert {each.where.partition(".zip/")[0] + ".zip" * (".zip/" in each.where): each.student for each in found} == {
        name: expected[name][0] for name in notebooks
    }
    assert {each.content for each in found} == {b"{}"}
    who = roster.recognise(each.student for each in found)
    for name in notebooks:
        student, person = expected[name]
        assert (who.people[student].label if student in who.people else None) == person
    assert who.doubtful == {}
    assert {*who.strangers} == {student for student, person in expected.values() if person is None}
