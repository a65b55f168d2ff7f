"""Subjects, their split into training, validation and test, and the pairs that are made of them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from course_utils.data.card import DataCard
from course_utils.data.registry import DatasetInfo
from course_utils.errors import CourseError

ENDLESS = 10**9
"""Pairs: more than any training takes."""
FRACTIONS = (0.75, 0.05, 0.20)
"""Share of the subjects in train, val and test unless told otherwise."""


@dataclass(frozen=True)
class Subject:
    """Files of one subject.

    Attributes:
        name: Of the subject, unique in its cohort.
        image: Its image.
        label: Its label map, if there is one.
        velocity: Its true velocity field, of the built-in cohort.
        person: Who is shown, where several subjects may show one person: all are on one side of a split. Empty where
            every subject is a person of its own.
    """

    name: str
    image: Path
    label: Path | None = None
    velocity: Path | None = None
    person: str = ""


@dataclass(frozen=True)
class Pair:
    """Two subjects to register: `moving` is to be brought onto the grid of `fixed`."""

    fixed: Subject
    moving: Subject

    @property
    def name(self) -> str:
        return f"{self.moving.name}_to_{self.fixed.name}"


# --- pairs ------------------------------------------------------------------------------------------------------------


class PairSequence(Sequence[Pair]):
    """Pairs computed from their index: a billion of them cost no memory, and any one can be had at once."""

    def __init__(self, subjects: Sequence[Subject], count: int, indices: Callable[[int], tuple[int, int]]):
        self._subjects = tuple(subjects)
        self._count = count
        self._indices = indices

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"pair {index} of {self._count}")
        fixed, moving = self._indices(int(index) % self._count)
        return Pair(self._subjects[fixed], self._subjects[moving])


@lru_cache(maxsize=16)
def _permutation(n: int, *key: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(key).permutation(n).tolist())


def _random_pair(n: int, seed: int, index: int) -> tuple[int, int]:
    # A block of n pairs has each subject once as fixed and once as moving image, `shift` places apart on a shuffled
    # circle; a round of n - 1 blocks goes through the shifts, so it visits every ordered pair exactly once.
    block, place = divmod(index, n)
    round_, step = divmod(block, n - 1)
    circle = _permutation(n, seed, 0, round_)
    shift = 1 + _permutation(n - 1, seed, 1, round_)[step]
    start = _permutation(n, seed, 2, block)[place]
    return circle[start], circle[(start + shift) % n]


def _consecutive_pair(index: int) -> tuple[int, int]:
    return index, index + 1


def _every_pair(n: int, index: int) -> tuple[int, int]:
    fixed, moving = divmod(index, n - 1)
    return fixed, moving + (moving >= fixed)


def _atlas_pair(index: int) -> tuple[int, int]:
    return 0, index + 1


def _random_atlas_pair(n: int, seed: int, index: int) -> tuple[int, int]:
    block, place = divmod(index, n)
    return 0, 1 + _permutation(n, seed, 3, block)[place]


@dataclass(frozen=True)
class Cohort:
    """Subjects of a data set, split into train, val and test. No subject is on two sides.

    Attributes:
        info: What is known of the data set.
        subjects: All of them, but for the atlas.
        splits: Who is on which side.
        official: Pairs that the data set's authors published, by split.
        missing: Images of the authors' own pairs that the folder lacks; these pairs are not in `official`.
        atlas: The one image that all others are registered to; None where subjects are registered to each other.
        source: Plain values from which the cohort can be had again, see `course_utils.data.source`.
    """

    info: DatasetInfo
    subjects: tuple[Subject, ...]
    splits: Mapping[str, tuple[Subject, ...]]
    official: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    missing: tuple[Path, ...] = ()
    atlas: Subject | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def card(self) -> DataCard:
        """What a network trained on this cohort must carry along."""
        return replace(self.info.card(), source=dict(self.source))

    @property
    def everyone(self) -> tuple[Subject, ...]:
        """All subjects, and the atlas if there is one."""
        return self.subjects if self.atlas is None else (self.atlas, *self.subjects)

    def pairs(
        self,
        split: str,
        kind: str = "random",
        count: int | None = None,
        seed: int = 0,
        atlas: str | None = None,
    ) -> Sequence[Pair]:
        """Pairs within a split, computed when asked for.

        With `n` subjects in the split, `kind` is one of

        - `random`: every `n` pairs have each subject once as fixed and once as moving image, and no
          ordered pair comes back before all `n (n - 1)` have been; `count` is `n` by default and may be
          as large as one likes;
        - `consecutive`: each subject with its successor as moving image, `n - 1` pairs;
        - `atlas`: the fixed image is always `atlas` (a subject's name; by default the first training
          subject);
        - `all`: every ordered pair, `n (n - 1)`;
        - `official`: the pairs that the data set's authors published for this split.

        Raises `CourseError` for an unknown split, kind or atlas, a split too small to pair, and a `count`
        beyond what the kind has.
        """
        if split not in self.splits:
            raise CourseError(f"no split called '{split}': choose from {', '.join(self.splits)}")
        subjects = self.splits[split]
        n = len(subjects)
        kinds = ("random", "consecutive", "atlas", "all", "official")
        if kind not in kinds:
            raise CourseError(f"no pairs called '{kind}': choose from {', '.join(kinds)}")
        if kind == "official":
            pairs = self.official.get(split, ())
            if not pairs:
                raise CourseError(f"{self.info.name} has no official pairs for '{split}': choose another kind")
            return pairs[: _at_most(count, len(pairs), kind)]
        if kind == "atlas":
            fixed = self._atlas(atlas)
            moving = tuple(subject for subject in subjects if subject != fixed)
            return PairSequence((fixed, *moving), _at_most(count, len(moving), kind), _atlas_pair)
        if n < 2:
            raise CourseError(
                f"split '{split}' of {self.info.name} has {n} subject{'s' * (n != 1)}, and a pair needs 2: "
                "change the fractions or add subjects"
            )
        if kind == "random":
            if seed < 0:
                raise CourseError(f"seed {seed} is negative: choose 0 or more")
            if count is not None and count < 1:
                raise _impossible(count, kind, "1 or more")
            return PairSequence(subjects, count or n, partial(_random_pair, n, seed))
        if kind == "consecutive":
            return PairSequence(subjects, _at_most(count, n - 1, kind), _consecutive_pair)
        return PairSequence(subjects, _at_most(count, n * (n - 1), kind), partial(_every_pair, n))

    def _atlas(self, name: str | None) -> Subject:
        if name is None:
            return (self.splits.get("train") or self.subjects)[0]
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise CourseError(f"{self.info.name} has no subject '{name}': the first is '{self.subjects[0].name}'")

    def training_pairs(self, seed: int = 0) -> Sequence[Pair]:
        """Random pairs of the training subjects without end; with an atlas, each of them onto it.

        Raises:
            CourseError: there are too few training subjects.
        """
        if self.atlas is None:
            return self.pairs("train", count=ENDLESS, seed=seed)
        subjects = self._onto_atlas("train")
        return PairSequence((self.atlas, *subjects), ENDLESS, partial(_random_atlas_pair, len(subjects), seed))

    def distinct_pairs(self, split: str, count: int) -> Sequence[Pair]:
        """At most `count` random pairs of a split, as many as there are without one coming twice.

        With an atlas these are the first subjects of the split, each onto the atlas.

        Raises:
            CourseError: there is no such split, or there are too few subjects in it.
        """
        if self.atlas is not None:
            subjects = self._onto_atlas(split)
            return PairSequence((self.atlas, *subjects), min(count, len(subjects)), _atlas_pair)
        n = len(self.splits.get(split, ()))
        return self.pairs(split, count=max(1, min(count, n * (n - 1))))  # with none, `pairs` says why

    def _onto_atlas(self, split: str) -> tuple[Subject, ...]:
        if not self.splits.get(split):
            raise CourseError(
                f"split '{split}' of {self.info.name} has no subjects: change the fractions or add subjects"
            )
        return self.splits[split]

    def without(self, names: Iterable[str]) -> "Cohort":
        """The same cohort and splits without the subjects of these names (files that turned out to be broken)."""
        names = set(names)
        return replace(
            self,
            subjects=tuple(s for s in self.subjects if s.name not in names),
            splits={key: tuple(s for s in part if s.name not in names) for key, part in self.splits.items()},
            official={
                key: tuple(p for p in pairs if not {p.fixed.name, p.moving.name} & names)
                for key, pairs in self.official.items()
            },
        )


def _at_most(count: int | None, available: int, kind: str) -> int:
    if count is None:
        return available
    if not 1 <= count <= available:
        raise _impossible(count, kind, f"1 to {available}")
    return count


def _impossible(count: int, kind: str, limit: str) -> CourseError:
    return CourseError(f"{count} pairs of kind '{kind}' cannot be had here: ask for {limit}")


# --- splits -----------------------------------------------------------------------------------------------------------


def split_subjects(
    subjects: Sequence[Subject],
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    *,
    validation: Sequence[Subject] = (),
    fewest: int = 2,
) -> dict[str, tuple[Subject, ...]]:
    """Disjoint splits train, val and test, each in the order of the names.

    All subjects that show one person are on one side, and the shares are those of persons. A side whose fraction is not
    zero gets at least `fewest` persons: two where a pair needs two. `validation` is put into val whatever the fractions
    say, and nobody else is then; with nobody else at all train and test are empty.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CourseError(f"fractions {fractions} are not three shares of 1: give train, val and test, say {FRACTIONS}")
    fixed = set(validation)
    # The order of a hash, not of a shuffled list: the place of one subject does not depend on who else is there.
    persons: dict[str, list[Subject]] = {}
    for subject in subjects:
        if subject not in fixed:
            persons.setdefault(subject.person or subject.name, []).append(subject)
    rest = sorted(persons, key=lambda person: hashlib.sha256(f"{seed}:{person}".encode()).digest())
    if fixed and not rest:
        return {"train": (), "val": tuple(sorted(validation, key=lambda subject: subject.name)), "test": ()}
    n_test = max(fewest, round(fractions[2] * len(rest))) if fractions[2] else 0
    n_val = max(fewest, round(fractions[1] * len(rest))) if fractions[1] and not fixed else 0
    if fractions[0] and len(rest) - n_test - n_val < fewest:
        raise CourseError(
            f"{len(subjects)} subjects are too few for train, val and test of {fewest} each: add subjects, "
            "or change the fractions"
        )
    of = partial(_of_persons, persons)
    sides = {
        "train": of(rest[n_test + n_val :]),
        "val": [*validation, *of(rest[n_test : n_test + n_val])],
        "test": of(rest[:n_test]),
    }
    return {side: tuple(sorted(part, key=lambda subject: subject.name)) for side, part in sides.items()}


def _of_persons(subjects: Mapping[str, Sequence[Subject]], persons: Iterable[str]) -> list[Subject]:
    return [subject for person in persons for subject in subjects[person]]
