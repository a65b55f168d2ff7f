"""The grades of a class beside its roster: everybody on it has a row, and who is not on it is told."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from course_utils.grading.assignments import Assignment
from course_utils.grading.grades import MISSING, ClassGrades, ExerciseGrade, Grade
from course_utils.grading.printable import some
from course_utils.grading.recognition import Recognised
from course_utils.grading.roster import Person
from course_utils.grading.submissions import Submission

NOTHING = "nothing handed in"
STRANGER = "not on the roster"


def by_person(submissions: Sequence[Submission], people: Sequence[Person], who: Recognised) -> list[Submission]:
    """The submissions, each by the roster's name of its student; others keep theirs, and take nobody's."""
    shown = _shown({each.student for each in submissions}, people, who)
    return [replace(each, student=shown[each.student]) for each in submissions]


def call(
    graded: ClassGrades, people: Sequence[Person], who: Recognised, assignments: Sequence[Assignment]
) -> ClassGrades:
    """The grades with a row for everybody on the roster, for each assignment that anybody handed in.

    Args:
        graded: of submissions as `by_person` names them.
        people: on the roster.
        who: its students are.
        assignments: that were graded.
    """
    shown = _shown([*who.strangers, *who.doubtful], people, who)
    told = {shown[student]: STRANGER for student in who.strangers}
    told |= {shown[student]: f"on the roster this may be {_either(found)}" for student, found in who.doubtful.items()}
    grades = [
        replace(grade, status=f"{grade.status}; {told[grade.student]}") if grade.student in told else grade
        for grade in graded.grades
    ]
    handed_in = {grade.assignment for grade in grades} - {""}
    wanted: list[Assignment | None] = [each for each in assignments if each.name in handed_in]
    there = {(grade.student, grade.assignment) for grade in grades}
    maybe = {
        person.line: [shown[student] for student, found in who.doubtful.items() if person in found]
        for person in {person for found in who.doubtful.values() for person in found}
    }
    for person in people:
        for assignment in wanted or [None]:
            name = "" if assignment is None else assignment.name
            if (person.label, name) not in there:
                grades.append(_absent(person, assignment, maybe.get(person.line, [])))
    grades.sort(key=lambda grade: (grade.student, grade.assignment))
    return replace(graded, grades=grades, remarks=[*graded.remarks, *_remarks(people, who)])


def _remarks(people: Sequence[Person], who: Recognised) -> list[str]:
    remarks = []
    if who.strangers:
        remarks.append(
            f"not on the roster: {some(who.strangers)}: where one of them is, give the folder the id or the name "
            "of the roster and grade again"
        )
    for student, found in who.doubtful.items():
        remarks.append(
            f"{student} may be {_either(found)} of the roster, and counts for nobody: give the folder the id of that "
            "person and grade again"
        )
    here = {person.line for person in who.people.values()}
    if absent := [person.label for person in people if person.line not in here]:
        remarks.append(f"{len(absent)} of {len(people)} on the roster handed in nothing: {some(absent)}")
    return remarks


def _shown(students: Iterable[str], people: Sequence[Person], who: Recognised) -> dict[str, str]:
    """What the tables call each student: nobody but the person is called by a name of the roster."""
    taken = {person.label for person in people}
    return {
        student: who.people[student].label
        if student in who.people
        else f"{student} (uncertain)"
        if student in taken
        else student
        for student in students
    }


def _either(people: Sequence[Person]) -> str:
    """Several people in words."""
    return " or ".join(f"{person.label} (line {person.line})" for person in people)


def _absent(person: Person, assignment: Assignment | None, maybe: Sequence[str]) -> Grade:
    exercises = [] if assignment is None else assignment.exercises
    none = [ExerciseGrade(each.grade_id, each.title, each.points, outcome=MISSING) for each in exercises]
    status = f"{NOTHING}, unless one of these is theirs: {some(maybe)}" if maybe else NOTHING
    return Grade(person.label, "", "" if assignment is None else assignment.name, status, none)
