"""Whose a file is, in the layouts that learning platforms, editors and people make."""

import time

import pytest

from course_utils.grading.names import Place, assignment_named, owners

ASSIGNMENTS = ["01_data", "02_warping", "03_velocity_fields"]
MOODLE = "_assignsubmission_file_"
ADA, ALAN, BOB = "ada", "alan", "bob"


def students(*wheres, root="the folder"):
    return [owner.student for owner in owners([Place(root, where) for where in wheres], ASSIGNMENTS)]


def places(*wheres):
    return [owner.place for owner in owners([Place("the folder", where) for where in wheres], ASSIGNMENTS)]


PLATFORMS = {
    "Moodle": {
        f"Ada L_123{MOODLE}/02_warping.ipynb": "Ada L_123",
        f"Alan T_124{MOODLE}/Copy of 02_warping.ipynb": "Alan T_124",
        f"Bob_125{MOODLE}/deep/er/my.ipynb": "Bob_125",
        f"Cem_126{MOODLE}02_warping.ipynb": "Cem_126",
    },
    "Canvas": {
        "lovelaceada_101_5551_02_warping.ipynb": "lovelaceada_101",
        "lovelaceada_LATE_101_5559_02_warping-1.ipynb": "lovelaceada_101",
        "lovelaceada_101_6661_03_velocity_fields.ipynb": "lovelaceada_101",
        "lovelaceada_101_6662_report.pdf": "lovelaceada_101",
        "turingalan_102_5552_work.zip/notebooks/02_warping.ipynb": "turingalan_102",
    },
    "Blackboard": {
        "Warping_ada1_attempt_2024-01-30-20-30-10_02_warping.ipynb": "ada1",
        "Warping_ada1_attempt_2024-01-30-20-30-10.txt": "ada1",
        "Warping_alan1_attempt_2024-01-30-20-31-10_02_warping.ipynb": "alan1",
    },
    "Brightspace": {
        "12345-6789 - Ada Lovelace - Jan 30, 2024 830 PM/02_warping.ipynb": "Ada Lovelace",
        "12345-6790 - Alan Turing - Jan 30, 2024 831 PM/02_warping.ipynb": "Alan Turing",
    },
    "MS Teams": {
        "Submitted files/Ada Lovelace/Warping/Version 1/02_warping.ipynb": "Ada Lovelace",
        "Submitted files/Ada Lovelace/Warping/Version 2/02_warping.ipynb": "Ada Lovelace",
        "Submitted files/Alan Turing/Warping/Version 1/02_warping.ipynb": "Alan Turing",
    },
    "ILIAS": {
        "Blatt/Submissions/Lovelace_Ada_ada1_1234/20240130203010_02_warping.ipynb": "Lovelace_Ada_ada1_1234",
        "Blatt/Submissions/Turing_Alan_alan1_1235/20240130203011_work.zip/02_warping.ipynb": "Turing_Alan_alan1_1235",
    },
    "Sakai": {
        "Warp it/Lovelace, Ada(ada1)/Submission attachment(s)/02_warping.ipynb": "Lovelace, Ada(ada1)",
        "Warp it/Turing, Alan(alan1)/Submission attachment(s)/02_warping.ipynb": "Turing, Alan(alan1)",
    },
    "GitHub Classroom": {
        "02-warping-ada/notebooks/assignments/02_warping.ipynb": ADA,
        "02-warping-alan/notebooks/assignments/02_warping.ipynb": ALAN,
    },
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platform_s_names_are_understood(platform):
    expected = PLATFORMS[platform]
    assert students(*expected) == [*expected.values()]


@pytest.mark.parametrize(
    "name",
    [
        *("02_warping.ipynb", "Copy of 02_warping.ipynb", "Copy of Copy of 02_warping.ipynb", "final_02_warping.ipynb"),
        *("Copy_of_02_warping.ipynb", "Kopie von 02_warping.ipynb", "my-02_warping.ipynb", "02_warping (1).ipynb"),
        *("02_warping(2).ipynb", "02_warping-Copy1.ipynb", "02_warping - Kopie.ipynb", "02_warping_final_v2.ipynb"),
        *("02_warping.ipynb.txt", "02_warping.ipynb.json", "02 Warping.ipynb", "Untitled1.ipynb"),
        *("try_02_warping.ipynb", "somebody_02_warping.ipynb", "02_warping_of_mine.ipynb", "anything/02_warping.ipynb"),
        *("Version 1/02_warping.ipynb", "Warping/02_warping.ipynb", "work.zip/02_warping.ipynb"),
        *("week2/02_warping.ipynb", "registration-course-main/notebooks/assignments/02_warping.ipynb"),
    ],
)  # fmt: skip
def test_differing_folders_are_differing_people_however_their_files_are_called(name):
    assert students(f"ada/{name}", f"alan/{name}", f"bob.zip/{name}") == [ADA, ALAN, BOB]
    assert students(f"week 2/ada/{name}", f"week 2/alan/{name}") == [ADA, ALAN]
    assert students(f"the class/ada/{name}", f"the class/alan/{name}") == [ADA, ALAN]


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("ada_02_warping.ipynb", ADA),
        ("ada_02_warping-Copy1.ipynb", ADA),
        ("Copy of ada_final_02_warping.ipynb", ADA),
        ("02_warping_ada.ipynb", ADA),
        ("02_warping-ada (1).ipynb", ADA),
        ("ada_l_02_warping (1).ipynb", "ada_l"),
        ("week 2/ada_02_warping-Copy1.ipynb", ADA),
        ("ada.ipynb", ADA),
        ("ada.zip", ADA),
        ("Copy of ada.ipynb", ADA),
        ("Ada Lovelace 1_02_warping.ipynb", "Ada Lovelace 1"),
        ("ada_12345_02_warping.ipynb", "ada_12345"),
        ("1815_02_warping.ipynb", "1815"),
        ("02_warping_1815.ipynb", "1815"),
        ("Srinivasa R._02_warping.ipynb", "Srinivasa R."),
        ("=SUM(A1)_02_warping.ipynb", "=SUM(A1)"),
        ("李雷_02_warping.ipynb", "李雷"),
        ("🦊_02_warping.ipynb", "🦊"),
        ("02_warping.ipynb", "the folder"),
        ("02_warping_2.ipynb", "the folder"),
        ("final version.ipynb", "the folder"),
    ],
)
def test_without_a_folder_the_file_s_name_tells(name, student):
    assert students(name) == [student]


@pytest.mark.parametrize(
    "folder", ["s1", "7", "5551", "submission_123456", "Main Street", "Jan Final", "Gruppe 3", "[x]"]
)
def test_a_folder_that_says_more_than_a_course_s_words_is_a_student(folder):
    assert students(f"{folder}/02_warping.ipynb") == [folder]


def test_folders_of_folders_of_students_are_passed_by():
    groups = ["A/ada/02_warping.ipynb", "A/alan/02_warping.ipynb", "B/bob/02_warping.ipynb", "B/cem/02_warping.ipynb"]
    assert students(*groups) == [ADA, ALAN, BOB, "cem"]
    assert students("A/ada_02_warping.ipynb", "A/alan_02_warping.ipynb", "A/01_data.ipynb") == [ADA, ALAN, "A"]
    assert students("class.zip/ada/02_warping.ipynb", "class.zip/alan/02_warping.ipynb", "bob/02_warping.ipynb") == [
        *(ADA, ALAN, BOB)
    ]


def test_a_student_s_old_version_in_a_folder_of_its_own_is_the_student_s():
    others = ("alan/02_warping.ipynb", "bob/02_warping.ipynb")
    kept = ("ada/02_warping.ipynb", "ada/before monday/02_warping.ipynb", "ada/before easter/02_warping.ipynb")
    assert students(*kept, *others) == [ADA, ADA, ADA, ALAN, BOB]
    assert students("ada/one/01_data.ipynb", "ada/two/02_warping.ipynb") == [ADA, ADA]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("week 2/ada/02_warping.ipynb", "late/ada/02_warping.ipynb"),
        ("A/ada_02_warping.ipynb", "B/ada_02_warping.ipynb"),
        ("HW_b_smith_attempt_2024-01-30-20-30-10_x.ipynb", "HW_c_smith_attempt_2024-01-30-20-30-10_x.ipynb"),
        ("1-1 - J Smith - Jan 30, 2024 830 PM/x.ipynb", "1-2 - J Smith - Jan 30, 2024 830 PM/x.ipynb"),
        ("02_warping.ipynb", "02_warping (1).ipynb"),
    ],
)
def test_what_may_be_two_people_s_has_two_places(first, second):
    crowd = ["week 2/x/02_warping.ipynb", "late/x/02_warping.ipynb", "A/x_02_warping.ipynb", "B/y_02_warping.ipynb"]
    one, other = students(first, second, *crowd)[:2]
    assert one == other
    assert len(set(places(first, second, *crowd)[:2])) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada/02_warping.ipynb", "ada/02_warping-Copy1.ipynb"),
        ("ada/02_warping.ipynb", "ada/week2/final_02_warping.ipynb"),
        ("ada_02_warping.ipynb", "ada_02_warping (1).ipynb"),
        (f"Ada_1{MOODLE}/02_warping.ipynb", "Ada_1_assignsubmission_onlinetext_/x.ipynb"),
        ("lovelaceada_101_5551_02_warping.ipynb", "lovelaceada_LATE_101_5559_02_warping-1.ipynb"),
        ("Submitted files/Ada/HW/Version 1/02_warping.ipynb", "Submitted files/Ada/HW/Version 2/02_warping.ipynb"),
    ],
)
def test_what_one_person_handed_in_twice_has_one_place(first, second):
    one, other = owners([Place("the folder", first), Place("the folder", second)], ASSIGNMENTS)
    assert one == other


@pytest.mark.parametrize("part", ["a_", "1_", "a-1", " (1)", "copy of ", "-copy", "_1_1_", "é "])
def test_endless_names_take_no_time(part):
    endless = part * (65_000 // len(part))
    began = time.process_time()
    students(f"{endless}/02_warping.ipynb", f"{endless}02_warping.ipynb", f"02_warping{endless}.ipynb", endless)
    assert time.process_time() - began < 1


def test_folders_that_branch_without_end_are_read_all_the_same():
    wheres = [f"{'a/' * depth}{name}/02_warping.ipynb" for depth in range(1500) for name in ("b", "c")]
    assert len(students(*wheres)) == len(wheres)


@pytest.mark.parametrize(
    ("name", "assignment"),
    [
        ("Copy of 02_Warping (1).ipynb", "02_warping"),
        ("ada-03-velocity fields.ipynb", "03_velocity_fields"),
        ("102_warping.ipynb", ""),
        ("warping.ipynb", ""),
    ],
)
def test_the_assignment_s_name_is_known_as_people_write_it(name, assignment):
    assert assignment_named(name, ASSIGNMENTS) == assignment
