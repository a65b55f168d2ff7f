import base64
import json
import re
from html.parser import HTMLParser

import pytest

from course_utils.grading import gradebook
from course_utils.grading.grades import ClassGrades, ExerciseGrade, Grade
from course_utils.plotting import grades

NASTY = "<script>alert('x')</script>\"&\ud800"
PNG = base64.b64encode(gradebook.PNG + b"dots").decode()


def solved(points, grade_id="warp", **fields):
    outcome = "passed" if points else "failed"
    return ExerciseGrade(grade_id, f"Your {grade_id}", 4, points=points, outcome=outcome, **fields)


def result(student, *exercises, assignment="02_warping", status="graded"):
    return Grade(student, f"{student}/x.ipynb", assignment, status, list(exercises))


def test_the_table_has_a_column_an_exercise_and_none_for_another_assignment():
    table = gradebook.table(
        [
            result("ada", solved(4), solved(0, "jacobian")),
            result("ada", solved(4, "data"), assignment="01_data"),
            result("bob", assignment="", status="wrong notebook (of no assignment)"),
        ]
    )
    assert table.to_csv(index=False).splitlines() == [
        "student,assignment,data,warp,jacobian,total,out_of,status",
        "ada,02_warping,,4,0,4,8,graded",
        "ada,01_data,4,,,4,4,graded",
        "bob,,,,,0,0,wrong notebook (of no assignment)",
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_name_is_no_formula(name):
    assert gradebook.table([result(name)]).student[0] == f"'{name}"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_a_page_runs_nothing_of_the_student_s():
    exercise = ExerciseGrade(
        "warp", NASTY, 4, outcome="failed", message=NASTY, source=NASTY, text=NASTY, traceback=NASTY,
        pictures=[PNG, base64.b64encode(b"<svg onload='x'>").decode(), '"><script>', "\u00e9"],
    )  # fmt: skip
    tags = Tags()
    text = gradebook.page(result(NASTY, exercise, assignment=NASTY, status=NASTY))
    tags.feed(text)
    assert {tag for tag, _ in tags.seen} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "pre", "img")
    }
    assert [attrs["src"] for tag, attrs in tags.seen if tag == "img"] == [f"data:image/png;base64,{PNG}"]
    assert "default-src 'none'" in text
    text.encode("utf-8")


def test_pages_of_different_students_have_different_names():
    names = ["Ada", "ada", "a/b", "a\\b", "../a", ".a", "李雷", "x" * 300, "x" * 301, "a b", "a-b"]
    pages = [gradebook.page_name(result(name)) for name in names]
    assert len(set(pages)) == len(names)
    assert all(re.fullmatch(r"[\w-][\w.-]{0,130}\.html", page) for page in pages)
    assert gradebook.page_name(result("ada")) == "ada_02_warping.html"


def test_everything_is_written_and_an_earlier_student_s_page_goes(tmp_path):
    gradebook.write(ClassGrades([result("ada", solved(4)), result("bob", solved(0))], None), tmp_path)
    first = (tmp_path / "grades.csv").read_bytes()
    gradebook.write(ClassGrades([result("ada", solved(4))], "no namespaces"), tmp_path)
    gradebook.write(ClassGrades([result("ada", solved(4)), result("eve", solved(0, message="no"))], None), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(
        ["grades.csv", "grades.json", "histogram.png", "ada_02_warping.html", "eve_02_warping.html"]
    )
    assert (tmp_path / "grades.csv").read_bytes() == first.replace(b"bob", b"eve")
    details = json.loads((tmp_path / "grades.json").read_text(encoding="utf-8"))
    assert details["submissions"][1]["exercises"][0]["message"] == "no"


def test_the_figure_counts_submissions_and_orders_exercises_by_difficulty():
    figure = grades([0.05, 0.55, 0.5, 1.0], {"easy": 1.0, "hard": 0.25, "middling": 0.5}, hardest=2)
    left, right = figure.axes
    assert [patch.get_height() for patch in left.patches] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert [label.get_text() for label in right.get_yticklabels()] == ["hard", "middling"]
    assert [patch.get_width() for patch in right.patches] == [25, 50]
    with pytest.raises(ValueError, match="no submissions"):
        grades([], {})


def test_the_share_that_solved_an_exercise_is_of_all_who_handed_it_in():
    class_ = [result("a", solved(4)), result("b", solved(0)), result("c", solved(4)), result("d", solved(4))]
    assert gradebook.solved(class_) == {"warp": 0.75}
    assert gradebook.solved([*class_, result("a", solved(4), assignment="03_x")]) == {
        "02_warping: warp": 0.75,
        "03_x: warp": 1,
    }
