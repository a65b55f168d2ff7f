"""Forgers win nothing, read no check and harm nobody; unlucky people who did the work keep every point."""

import json

import pytest

from course_utils.grading.assignments import Assignment, read_assignment
from course_utils.grading.run import Limits
from course_utils.grading.submissions import Submission
from notebooks.build import ROOT
from tests.grading.judged_assignment import FORGERS, HIDDEN_TEXT, IN_PLACE_OF, RIGHT, SOLVED, SOURCE, UNLUCKY
from tests.grading.small_assignments import content, grade, handed_in, points

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HONEST = {f"unlucky, {name}": f"{line}{RIGHT.get(name, RIGHT['default'])}" for name, line in UNLUCKY.items()}
HONEST |= {f"right, {name}": cell for name, cell in RIGHT.items() if name not in UNLUCKY}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    source = tmp_path_factory.mktemp("sources") / "01_fields.py"
    source.write_text(SOURCE, encoding="utf-8")
    assignment = Assignment("01_fields", read_assignment(source))
    notebooks = {
        f"forger, {name}": handed_in(assignment, **{IN_PLACE_OF.get(name, "negate"): cell})
        for name, cell in FORGERS.items()
    }
    notebooks |= {name: handed_in(assignment, **SOLVED | {"negate": cell}) for name, cell in HONEST.items()}
    class_ = [Submission(name, "01_fields.ipynb", content(notebook)) for name, notebook in notebooks.items()]
    return grade(class_, [assignment], limits=Limits(cell_seconds=40, memory=1_500_000_000), workers=2)


@pytest.fixture
def graded(report):
    return {each.student: each for each in report.grades}.__getitem__


@pytest.mark.parametrize("name", FORGERS)
def test_a_forger_wins_nothing(graded, name):
    assert points(graded(f"forger, {name}")) == [0, 0, 0]
    assert all(exercise.message for exercise in graded(f"forger, {name}").exercises)


@pytest.mark.parametrize("name", HONEST)
def test_who_did_the_work_keeps_the_points(graded, name):
    got = graded(name)
    assert points(got) == [2, 3, 5], [exercise.message for exercise in got.exercises]


def test_the_page_for_teachers_tells_how_many_there_are():
    told = " ".join((ROOT / "docs" / "teachers.md").read_text(encoding="utf-8").split())
    assert (
        f"hands in {len(FORGERS)} notebooks of forgers, none of whom wins a point, and {len(HONEST)} of people" in told
    )


def test_no_page_tells_a_hidden_test(report):
    told = json.dumps([[vars(exercise) for exercise in each.exercises] for each in report.grades])
    assert "nothing" in told
    assert HIDDEN_TEXT not in told


def test_no_hidden_test_is_in_the_memory_of_a_student_s_process(graded):
    assert graded("forger, searches its memory").exercises[0].message == "ValueError: nothing in memory"


def test_calls_that_reach_further_are_refused(report, graded):
    if report.denied:
        pytest.skip(f"this system denies namespaces: {report.denied}")
    told = {name: graded(f"forger, {name}").exercises[0].text for name in FORGERS}
    assert told["leaves a key"] == "key -1 -1\n"
    assert told["new namespaces"] == "unshare -1\n"
    assert "memfd [Errno" in told["memory without a process"]
    assert told["reads memory of others"] == "read 0\n"
    assert told["asks the judges"] == "judges []\n"


def test_messages_teach_as_in_a_notebook(graded):
    assert graded("forger, abs is 0").exercises[0].message == "AssertionError: negate(field): the sign"
    assert graded("forger, abs is 0").exercises[1].message.startswith("your cell ended in NotImplementedError")
