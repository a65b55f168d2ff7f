"""What is graded, what is remembered, and what happens where the machine or the grader itself fails."""

from dataclasses import replace

import nbformat
import pytest

from course_utils.errors import CourseError
from course_utils.grading import engine, gradebook
from course_utils.grading.assignments import Assignment, read_assignment
from course_utils.grading.grades import ExerciseGrade
from course_utils.grading.run import Limits, Run
from course_utils.grading.submissions import Submission
from course_utils.grading.verdicts import NotGraded
from course_utils.grading.visible import visible_assignment
from tests.grading.small_assignments import OTHER, SOLVED, SOURCE, content, grade, handed_in, points

pytestmark = pytest.mark.slow


def graded_as(*submissions, assignments, **options):
    report = grade([Submission(*fields) for fields in submissions], assignments, **options)
    return [(result.student, points(result)) for result in report.grades]


def test_only_what_has_changed_is_graded_again(assignments, tmp_path, monkeypatch):
    right, wrong = (content(handed_in(assignments[1], word=f"word = {word!r}")) for word in "ab")
    options = {"assignments": assignments, "cache": tmp_path}
    first = graded_as(("ada", "x.ipynb", right), ("bob", "x.ipynb", wrong), **options)
    assert first == [("ada", [1]), ("bob", [0])]
    ran = []
    run = Run.grade
    monkeypatch.setattr(Run, "grade", lambda self, solutions: ran.append(solutions) or run(self, solutions))
    assert graded_as(("ada", "x.ipynb", right), ("bob", "x.ipynb", wrong), **options) == first
    assert ran == []
    assert graded_as(("ada", "x.ipynb", wrong), ("bob", "x.ipynb", wrong), **options) == [("ada", [0]), ("bob", [0])]
    assert ran == []  # somebody else's cell was the same
    other = content(handed_in(assignments[1], word="word = 'a'  # now"))
    assert graded_as(("bob", "x.ipynb", other), **options) == [("bob", [1])]
    assert len(ran) == 1
    graded_as(("bob", "x.ipynb", other), limits=Limits(cell_seconds=30), **options)
    assert len(ran) == 2


def test_a_broken_memory_of_a_result_is_no_result(assignments, tmp_path):
    right = content(handed_in(assignments[1], word="word = 'a'"))
    graded_as(("ada", "x.ipynb", right), assignments=assignments, cache=tmp_path)
    (known,) = tmp_path.glob("*.json")
    known.write_text('{"status": "graded"}', encoding="utf-8")
    assert graded_as(("ada", "x.ipynb", right), assignments=assignments, cache=tmp_path) == [("ada", [1])]


def test_an_assignment_that_fails_by_itself_is_no_student_s_fault(tmp_path):
    (tmp_path / "02_words.py").write_text(f"# %%\nimport no_such_module\n{OTHER}", encoding="utf-8")
    broken = Assignment("02_words", read_assignment(tmp_path / "02_words.py"))
    with pytest.raises(CourseError, match=r"1 of 1 submissions were not graded .*no_such_module"):
        grade([Submission("ada", "x.ipynb", content(handed_in(broken, word="word = 'a'")))], [broken], cache=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_students_check_themselves_without_hidden_tests(assignments, tmp_path):
    own = tmp_path / "01_numbers.ipynb"
    almost = handed_in(assignments[0], **SOLVED | {"root": "# exercise: root\nroot = lambda x: 2.0"})
    almost.cells.insert(3, nbformat.v4.new_code_cell("print('a cell of my own')"))
    own.write_bytes(content(almost))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "01_numbers.py").write_text(SOURCE, encoding="utf-8")
    for sources in (tmp_path / "sources", tmp_path):  # a clone of the repository, and what students get
        visible = visible_assignment(own, sources)
        assert all("HIDDEN" not in cell.source for cell in visible.notebook.cells)
        assert graded_as(("ada", own.name, own.read_bytes()), assignments=[visible]) == [("ada", [2, 3, 5])]
    own.write_text("{}", encoding="utf-8")
    with pytest.raises(CourseError, match="no notebook of an assignment"):
        visible_assignment(own, tmp_path)


def test_the_same_submissions_give_the_same_table_to_the_byte(assignments):
    cells = {"ada": "word = 'a'", "bob": "word = 'b'", "eve": "word ="}
    class_ = [
        Submission(name, "x.ipynb", content(handed_in(assignments[1], word=cell))) for name, cell in cells.items()
    ]
    first, second = (
        gradebook.table(grade(submissions, assignments, workers=workers).grades).to_csv(index=False)
        for submissions, workers in ((class_, 1), (class_[::-1], 2))
    )
    assert first == second
    assert first.splitlines()[1] == "ada,02_words,1,1,1,graded"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_of_the_grader_is_one_submission_s_status_and_the_others_are_graded(
    assignments, tmp_path, monkeypatch, workers
):
    run = Run.grade

    def fails_at_bob(self, solutions):
        if "bob" in solutions["word"].source:
            raise SystemError("recursion depth\nmismatch")
        return run(self, solutions)

    monkeypatch.setattr(Run, "grade", fails_at_bob)
    class_ = [
        Submission(name, "x.ipynb", content(handed_in(assignments[1], word=f"word = 'a'  # {name}")))
        for name in ("ada", "bob", "eve")
    ]
    graded = grade(class_, assignments, workers=workers, cache=tmp_path)
    table = gradebook.table(graded.grades).set_index("student")
    assert table.word.to_dict() == {"ada": 1, "bob": 0, "eve": 1}
    assert table.status["bob"] == (
        "not graded, for the grader failed (SystemError: recursion depth mismatch): grade it again, or by hand"
    )
    monkeypatch.undo()
    assert [grade.total for grade in grade(class_, assignments, cache=tmp_path).grades] == [1, 1, 1]  # not remembered


@pytest.fixture
def flaky(monkeypatch):
    """Runs that come to what is given, student by student and time by time, else to full marks; what was run."""

    def flaky(outcomes):
        ran = []

        def grade_(self, solutions):
            name = solutions["word"].source.rpartition("# ")[2]
            ran.append(name)
            outcome = outcomes[name].pop(0) if outcomes.get(name) else "passed"
            if outcome == "machine":
                raise NotGraded("no kernel could be started")
            status = "graded" if outcome == "passed" else f"graded; word: {outcome}"
            return status, [ExerciseGrade("word", "Word", 1, points=int(outcome == "passed"), outcome=outcome)]

        monkeypatch.setattr(Run, "grade", grade_)
        return ran

    return flaky


@pytest.fixture
def of_three(assignments):
    return [
        Submission(name, f"{name}/x.ipynb", content(handed_in(assignments[1], word=f"word = 'a'  # {name}")))
        for name in ("ada", "bob", "eve")
    ]


def points_of(report):
    return {result.student: result.total for result in report.grades}


def test_one_failing_run_is_a_row_and_never_the_batch_s_end(assignments, of_three, tmp_path, flaky):
    flaky({"bob": ["machine"] * 6})
    again = [
        replace(of_three[1], where=f"bob/{n}.ipynb") for n in range(4)
    ]  # bob's alone are more than `MOST_FAILURES`
    for class_ in ([*again, *of_three], [of_three[0], of_three[2], of_three[1]]):
        graded = grade(class_, assignments, cache=tmp_path)
        assert points_of(graded) == {"ada": 1, "bob": 0, "eve": 1}
        assert "not graded (no kernel could be started): grade it again" in graded.grades[1].status
        assert graded.remarks == [
            "not graded, for the machine failed at it (no kernel could be started): bob: grade again"
        ]
    assert points_of(grade(of_three, assignments, cache=tmp_path)) == {"ada": 1, "bob": 1, "eve": 1}  # not remembered


def test_a_machine_that_runs_nothing_is_given_up(assignments, of_three, tmp_path, flaky):
    ran = flaky({name: ["machine"] * 9 for name in ("ada", "bob", "eve", "x")})
    more = [replace(of_three[0], student=f"{n}") for n in range(30)]
    with pytest.raises(CourseError, match=r"were not graded \(no kernel could be started\): mend that and grade again"):
        grade([*of_three, *more], assignments, cache=tmp_path)
    assert len(ran) < 30


@pytest.mark.parametrize("outcome", ["kernel died", "time limit", "not run"])
def test_what_may_be_the_machine_s_doing_is_run_again_alone_before_it_is_remembered(
    assignments, of_three, tmp_path, flaky, outcome
):
    ran = flaky({"ada": [outcome], "bob": [outcome, outcome]})
    first = grade(of_three, assignments, workers=2, cache=tmp_path)
    assert sorted(ran[:3]) == ["ada", "bob", "eve"] and ran[3:] == ["ada", "bob"]
    assert points_of(first) == {"ada": 1, "bob": 0, "eve": 1}
    assert first.grades[1].status == f"graded; word: {outcome}"
    assert grade(of_three, assignments, workers=2, cache=tmp_path) == first
    assert len(ran) == 5  # twice is enough
    grade(of_three, assignments, workers=2)
    assert len(ran) == 8  # nothing is remembered, and nothing run again


def test_what_was_stopped_before_its_second_run_is_not_remembered(assignments, of_three, tmp_path, flaky, monkeypatch):
    flaky({"ada": ["time limit"]})
    monkeypatch.setattr(engine, "_check_that_some_succeed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        grade(of_three[:1], assignments, cache=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_without_namespaces_nothing_is_graded_unless_it_is_allowed(assignments, of_three, flaky, monkeypatch):
    ran = flaky({})
    monkeypatch.setattr(engine, "_isolation", lambda: "no namespaces today")
    with pytest.raises(CourseError, match=r"no namespaces today.*--allow-unisolated"):
        engine.grade(of_three, assignments)
    assert ran == []
    told = []
    graded = engine.grade(
        of_three, assignments, allow_unisolated=True, warn=lambda line: told.append((line, list(ran)))
    )
    assert points_of(graded) == {"ada": 1, "bob": 1, "eve": 1} and graded.denied == "no namespaces today"
    assert told == [
        ("not isolated: no namespaces today; the network and other files are in reach of the submissions", [])
    ]


def test_force_grades_again_whatever_was_remembered(assignments, of_three, tmp_path, flaky):
    flaky({})
    grade(of_three, assignments, cache=tmp_path)
    ran = flaky({"bob": ["failed"], "eve": ["time limit", "time limit"]})
    forced = grade(of_three, assignments, cache=tmp_path, force=True)
    assert points_of(forced) == {"ada": 1, "bob": 0, "eve": 0}
    assert ran == ["ada", "bob", "eve", "eve"]
    assert grade(of_three, assignments, cache=tmp_path) == forced
    assert len(ran) == 4


def test_a_submission_that_cannot_even_be_understood_is_named_and_the_others_are_graded(assignments, monkeypatch):
    understand = engine.understand

    def fails_at_bob(submission, given):
        if submission.student == "bob":
            raise RecursionError("too deep")
        return understand(submission, given)

    monkeypatch.setattr(engine, "understand", fails_at_bob)
    right = content(handed_in(assignments[1], word="word = 'a'"))
    graded = grade([Submission(name, "x.ipynb", right) for name in ("ada", "bob")], assignments)
    (ada, bob) = graded.grades
    assert (ada.student, ada.total) == ("ada", 1)
    assert (bob.student, bob.total) == ("bob", 0)
    assert "(RecursionError: too deep)" in bob.status
