"""Who a student is: what is certain is found, and what is not is never guessed."""

import pytest

from course_utils.grading.recognition import Roster
from course_utils.grading.roster import read_roster

ROSTER = """\
name,id,login,email
Ada Lovelace,7001,ada,ada.l@uni.example
Ada Smith,7002,asmith,ada.s@uni.example
Ada Smith,7003,smith2,ada.s2@uni.example
Mary Ann Müller,7004,mary-ann,mm@uni.example
Ann Bell,7005,ann,ab@uni.example
Zoë,7,zoe,
"""


@pytest.fixture
def roster(tmp_path):
    def roster(text=ROSTER):
        (tmp_path / "class.csv").write_text(text, encoding="utf-8")
        return Roster(read_roster(tmp_path / "class.csv"))

    return roster


@pytest.mark.parametrize(
    ("student", "person"),
    [
        *[(name, "Ada Lovelace") for name in ("7001", "ADA", "ada.l@uni.example", "ada.l", "Lovelace, Ada")],
        *[(name, "Ada Lovelace") for name in ("7001 Ada L.", "Group 3_7001", "lovelaceada_555", "Ada Byron_7001")],
        *[(name, "Ada Lovelace") for name in ("Byron, Anna(7001)", "ADA LOVELACE_99", "Lovelace_Ada_xyz_12")],
        *[(name, "Ada Smith (7002)") for name in ("Ada Smith_7002", "smithada_7002", "Ada Smith (7002)", "asmith")],
        *[(name, "Mary Ann Müller") for name in ("mary-ann", "Muller Mary Ann", "müllermaryann_12", "MARY ANN MÜLLER")],
        *[("ann", "Ann Bell"), ("Zoe", "Zoë"), ("Zoë_12", "Zoë"), ("zoe_7", "Zoë")],
    ],
)
def test_an_id_or_a_whole_name_tells(roster, student, person):
    who = roster().recognise([student])
    assert [found.label for found in who.people.values()] == [person]
    assert (who.doubtful, who.strangers) == ({}, [])
    assert roster().has(student) or student == "zoe_7"


@pytest.mark.parametrize(
    "student",
    [
        *("Ada", "Ada Byron", "Byron_Ada", "Byron_Ada_8", "ada lovelace byron", "Lovelace", "Ada L", "mary"),
        *("70011", "Group 7", "Group_7", "Tutorial Ada", "AdaLovelace", "x", "", "=1", "_", "7001x"),
    ],
)  # fmt: skip
def test_half_a_name_or_a_part_of_a_word_is_nobody(roster, student):
    text = ROSTER.replace(",ada,", ",alove,").replace(",ann,", ",abell,") if student in ("Ada", "mary") else ROSTER
    who = roster(text).recognise([student])
    assert (who.people, who.doubtful, who.strangers) == ({}, {}, [student])
    assert not roster(text).has(student)


@pytest.mark.parametrize(
    ("student", "lines"),
    [("Ada Smith", [3, 4]), ("smithada_555", [3, 4]), ("Ada Lovelace_7005", [2, 6]), ("7001 and 7002", [2, 3])],
)
def test_what_speaks_of_several_people_is_nobody_s(roster, student, lines):
    who = roster().recognise([student])
    assert (who.people, who.strangers) == ({}, [])
    assert sorted(person.line for person in who.doubtful[student]) == lines


def test_two_accounts_of_one_name_are_not_taken_for_one_person(roster):
    who = roster().recognise(["Ada Lovelace_88", "Ada Lovelace_99"])
    assert who.people == {}
    assert [*who.doubtful] == ["Ada Lovelace_88", "Ada Lovelace_99"]


def test_a_borrowed_name_takes_nothing_from_whom_an_id_shows(roster):
    who = roster().recognise(["ada", "Ada Lovelace"])
    assert {student: person.label for student, person in who.people.items()} == {"ada": "Ada Lovelace"}
    assert [*who.doubtful] == ["Ada Lovelace"]


def test_two_places_with_one_person_s_ids_are_that_person_s(roster):
    who = roster().recognise(["ada", "lovelaceada_7001"])
    assert {person.label for person in who.people.values()} == {"Ada Lovelace"} and len(who.people) == 2


def test_what_follows_the_class_s_own_beginning_is_a_login(roster):
    who = roster().recognise(["lab-x-ann", "lab-x-mary-ann", "lab-x-ada", "lab-x-stranger"])
    assert {student: person.label for student, person in who.people.items()} == {
        "lab-x-ann": "Ann Bell",
        "lab-x-mary-ann": "Mary Ann Müller",
        "lab-x-ada": "Ada Lovelace",
    }
    assert who.strangers == ["lab-x-stranger"]
    # Nothing that the others do not begin with as well
    assert roster().recognise(["lab-x-ada", "hers-ann", "his-zoe"]).strangers == ["hers-ann", "his-zoe", "lab-x-ada"]


def test_one_login_at_two_places_is_nobody_s(roster):
    who = roster("name,email\nAda B,ada@one.example\nAda C,ada@two.example\n").recognise(["ada"])
    assert [person.line for person in who.doubtful["ada"]] == [2, 3]
