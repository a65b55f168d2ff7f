"""Who on a roster a student is, by the name that the layout of the class gives.

An id, a login or an address tells, where it is that name or stands in it so that it cannot be part of a person's name;
and so does the name as a whole, its words in any order or, as Canvas writes them, as one. Where these speak of several
people, or where a name without an id stands for a person for whom something else does too, nobody is chosen: a teacher
can tell, and a guess might give one student's points to another.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from course_utils.grading.roster import Person, words

NUMBERED = re.compile(r"^(?P<name>.+)_(?P<id>\d+)$")
"""Moodle's and Canvas's names end in a number of the platform's own."""

WITH_LOGIN = (
    re.compile(r"^(?P<name>.+)_(?P<id>[^_]+)_\d+$"),  # ILIAS: Lovelace_Ada_ada1_1234
    re.compile(r"^(?P<name>.+)\((?P<id>[^()]+)\)$"),  # Sakai: Lovelace, Ada(ada1)
)

SHORTEST_ID = 4
"""Characters of an id, with a digit, that is known in the midst of a name; a shorter one may be a group's number."""


@dataclass(frozen=True)
class Recognised:
    """Who is who.

    Attributes:
        people: the person that a student is, by the student's name in the layout.
        doubtful: the people that a student may be, of whom none was chosen.
        strangers: students who are nobody on the roster.
    """

    people: Mapping[str, Person]
    doubtful: Mapping[str, Sequence[Person]]
    strangers: Sequence[str]


class Roster:
    """The people of a class, to be found by the names that a layout gives them."""

    def __init__(self, people: Sequence[Person]):
        self.people = people
        self._by_id: dict[str, list[Person]] = {}
        self._by_label: dict[str, list[Person]] = {}
        self._by_words: dict[tuple[str, ...], list[Person]] = {}
        self._by_one_word: dict[str, list[Person]] = {}
        for person in people:
            for mark in _marks(person):
                self._by_id.setdefault(mark, []).append(person)
            if person.name:
                self._by_label.setdefault(person.label.casefold(), []).append(person)
                self._by_words.setdefault(tuple(sorted(person.name)), []).append(person)
                turned = (person.name[at:] + person.name[:at] for at in range(len(person.name)))
                for one in {"".join(order) for order in turned}:
                    self._by_one_word.setdefault(one, []).append(person)

    def has(self, name: str) -> bool:
        """Whether a folder's name speaks of somebody."""
        return bool(self._by_ids(name) or self._by_name(name))

    def recognise(self, students: Iterable[str]) -> Recognised:
        """Who each student is."""
        names_of = {student: self._by_name(student) for student in sorted(set(students))}
        ids_of = {student: self._by_ids(student) or self._placed(student, names_of[student]) for student in names_of}
        for student, people in self._after_what_all_begin_with(names_of).items():
            ids_of[student] = ids_of[student] or people
        certain = {
            student: ids[0]
            for student, ids in ids_of.items()
            if len(ids) == 1 and (not names_of[student] or ids[0] in names_of[student])
        }
        by_name = {student: names[0] for student, names in names_of.items() if len(names) == 1 and not ids_of[student]}
        claims = Counter(person.line for person in (*certain.values(), *by_name.values()))
        # Of two accounts of one name neither has an id to show: they may be namesakes, or one a borrowed name.
        people = certain | {student: person for student, person in by_name.items() if claims[person.line] == 1}
        candidates = {student: _each_once([*ids_of[student], *names_of[student]]) for student in names_of}
        return Recognised(
            people,
            {student: found for student, found in candidates.items() if found and student not in people},
            [student for student, found in candidates.items() if not found],
        )

    def _by_ids(self, student: str) -> list[Person]:
        """Those whose id it is or, where there is none, whose id with a digit stands in it."""
        text = student.casefold()
        telling = (mark for mark in _runs(text) if len(mark) >= SHORTEST_ID and re.search(r"\d", mark))
        return self._by_id.get(text) or _each_once(person for mark in telling for person in self._by_id.get(mark, ()))

    def _placed(self, student: str, named: Sequence[Person]) -> list[Person]:
        """Those whose id stands where a platform writes ids, unless the name is another's: `Byron_Ada_7`."""
        matches = filter(None, (pattern.match(student.casefold()) for pattern in (NUMBERED, *WITH_LOGIN)))
        found = (person for match in matches for person in self._by_id.get(match["id"], ()))
        return _each_once(person for person in found if not person.name or person in named)

    def _after_what_all_begin_with(self, students: Iterable[str]) -> dict[str, list[Person]]:
        """GitHub Classroom's `assignment-login`: those whose id follows what most of the class begin with."""
        cuts = {
            student: [(student[: at.start()], student[at.end() :]) for at in re.finditer("-", student)]
            for student in students
        }
        shared = Counter(begin for parts in cuts.values() for begin, _ in parts)
        return {
            student: _each_once(
                person
                for begin, end in parts
                if shared[begin] > 1 and 2 * shared[begin] >= len(cuts)
                for person in self._by_id.get(end.casefold(), ())
            )
            for student, parts in cuts.items()
        }

    def _by_name(self, student: str) -> list[Person]:
        """Those whose name it is: as it stands, or else its words."""
        if exact := self._by_label.get(student.casefold()):
            return exact
        numbered = NUMBERED.match(student)
        readings = [student, *(match["name"] for each in (NUMBERED, *WITH_LOGIN) if (match := each.match(student)))]
        found = [person for each in readings for person in self._by_words.get(tuple(sorted(words(each))), ())]
        if numbered and len(told := words(numbered["name"])) == 1:
            found += self._by_one_word.get(told[0], [])
        return _each_once(found)


def _marks(person: Person) -> set[str]:
    """The ids of a person, with the part of an address before the @, which often is the login."""
    return {*person.ids, *(mark.partition("@")[0] for mark in person.ids)} - {""}


def _runs(text: str) -> Iterator[str]:
    """Every part of the text that begins where a word begins, and ends where one ends."""
    tokens = list(re.finditer(r"[^\W_]+", text))[:40]
    for first, begin in enumerate(tokens):
        for last in tokens[first:]:
            yield text[begin.start() : last.end()]


def _each_once(people: Iterable[Person]) -> list[Person]:
    return list({person.line: person for person in people}.values())
