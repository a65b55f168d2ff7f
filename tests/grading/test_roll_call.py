"""A class beside its roster: everybody on it has a row, whatever others handed in."""

import json

import pytest

from course_utils.grading import gradebook
from course_utils.grading.grades import ClassGrades, ExerciseGrade, Grade
from course_utils.grading.recognition import Roster
from course_utils.grading.roll_call import by_person, call
from course_utils.grading.roster import read_roster
from course_utils.grading.submissions import NO_NOTEBOOK, Submission
from tests.grading.small_assignments import content, grade, handed_in

ROSTER = "name,id\nAda L,1001\nBob,1002\nEve,1003\nAda Smith,1004\nAda Smith,1005\n=SUM(A1),1006\n"


@pytest.fixture
def called(assignments, tmp_path):
    """Grades without running anything: everybody's first exercise is right."""
    (tmp_path / "class.csv").write_text(ROSTER, encoding="utf-8")
    roster = Roster(read_roster(tmp_path / "class.csv"))

    def called(*students, of=0):
        found = [Submission(student, f"{student}/x.ipynb", b"") for student in students]
        who = roster.recognise(each.student for each in found)
        name = assignments[of].name if of is not None else ""
        grades = [
            Grade(each.student, each.where, name, "graded", [ExerciseGrade("double", "Double", 2, 2, "passed")])
            for each in by_person(found, roster.people, who)
        ]
        return call(ClassGrades(sorted(grades, key=lambda each: each.student), None), roster.people, who, assignments)

    return called


def statuses(graded):
    return {each.student: each.status for each in graded.grades}


def test_everybody_on_the_roster_has_a_row_and_strangers_keep_theirs(called):
    graded = called("1001", "mallory")
    nothing = "nothing handed in"
    assert statuses(graded) == {
        "=SUM(A1)": nothing,
        "Ada L": "graded",
        "Ada Smith (1004)": nothing,
        "Ada Smith (1005)": nothing,
        "Bob": nothing,
        "Eve": nothing,
        "mallory": "graded; not on the roster",
    }
    absent = next(each for each in graded.grades if each.student == "Bob")
    assert (absent.assignment, absent.total, absent.out_of, absent.where) == ("01_numbers", 0, 10, "")
    assert [each.outcome for each in absent.exercises] == ["missing"] * 3
    assert graded.remarks == [
        "not on the roster: mallory: where one of them is, give the folder the id or the name of the roster and grade "
        "again",
        "5 of 6 on the roster handed in nothing: Bob, Eve, Ada Smith (1004), Ada Smith (1005), =SUM(A1)",
    ]


def test_what_may_be_two_people_s_counts_for_neither_and_both_are_told(called):
    graded = called("Ada Smith", "Bob_1", "Bob_2")
    assert statuses(graded)["Ada Smith"] == (
        "graded; on the roster this may be Ada Smith (1004) (line 5) or Ada Smith (1005) (line 6)"
    )
    assert statuses(graded)["Ada Smith (1005)"] == "nothing handed in, unless one of these is theirs: Ada Smith"
    assert statuses(graded)["Bob"] == "nothing handed in, unless one of these is theirs: Bob_1, Bob_2"
    assert [remark for remark in graded.remarks if "counts for nobody" in remark][1] == (
        "Bob_1 may be Bob (line 3) of the roster, and counts for nobody: give the folder the id of that person and "
        "grade again"
    )


def test_a_name_that_is_not_certain_takes_no_row_of_the_roster_s(called):
    graded = called("Bob", "Bob_1")
    assert statuses(graded)["Bob (uncertain)"].startswith("graded; on the roster this may be Bob")
    assert next(each.total for each in graded.grades if each.student == "Bob") == 0


def test_where_nobody_handed_in_an_assignment_each_has_a_row_all_the_same(called):
    graded = called("mallory", of=None)
    assert len(graded.grades) == 7
    assert {each.assignment for each in graded.grades} == {""}


def test_of_two_assignments_the_one_that_is_missing_has_a_row(assignments, tmp_path):
    (tmp_path / "class.csv").write_text("id\nada\nbob\n", encoding="utf-8")
    roster = Roster(read_roster(tmp_path / "class.csv"))
    grades = [Grade("ada", "ada/1", "01_numbers", "graded", []), Grade("bob", "bob/2", "02_words", "graded", [])]
    graded = call(ClassGrades(grades, None), roster.people, roster.recognise(["ada", "bob"]), assignments)
    assert [(each.student, each.assignment, each.status) for each in graded.grades] == [
        ("ada", "01_numbers", "graded"),
        ("ada", "02_words", "nothing handed in"),
        ("bob", "01_numbers", "nothing handed in"),
        ("bob", "02_words", "graded"),
    ]


def test_who_handed_in_nothing_has_a_page_and_is_not_in_the_figure(called, tmp_path):
    graded = called("1001", "1002")
    gradebook.write(graded, tmp_path)
    assert len(list((tmp_path / "feedback").iterdir())) == 6
    assert "nothing handed in" in (tmp_path / "feedback" / "Eve_01_numbers.html").read_text(encoding="utf-8")
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8").splitlines()[1].startswith("'=SUM(A1),01_numbers,0,")
    assert json.loads((tmp_path / "grades.json").read_text(encoding="utf-8"))["remarks"] == graded.remarks
    assert sum(bar.get_height() for bar in gradebook.histogram(graded.grades).axes[0].patches) == 2


@pytest.mark.slow
def test_two_places_of_one_person_are_one_row_the_better(assignments, tmp_path):
    (tmp_path / "class.csv").write_text("name,id\nAda,1001\n", encoding="utf-8")
    roster = Roster(read_roster(tmp_path / "class.csv"))
    wrong, right = (content(handed_in(assignments[1], word=f"word = {word!r}")) for word in "ba")
    found = [
        Submission("1001", "1001/02_words.ipynb", wrong, place="1001"),
        Submission("ada_1001", "ada_1001/02_words.ipynb", right, place="ada_1001"),
        Submission("mallory", "mallory/x.pdf", None, NO_NOTEBOOK, "mallory"),
    ]
    who = roster.recognise(each.student for each in found)
    graded = call(grade(by_person(found, roster.people, who), assignments), roster.people, who, assignments)
    assert [(each.student, each.assignment, each.total) for each in graded.grades] == [
        ("Ada", "02_words", 1),
        ("mallory", "", 0),
    ]
    assert "may be several people's: 1001, ada_1001" in graded.grades[0].status
