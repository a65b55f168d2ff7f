"""Where a cohort comes from: a data set's name, or a user's own files. A checkpoint remembers it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from course_utils.data.card import DataCard
from course_utils.data.cohorts import load_cohort
from course_utils.data.own_files import cohort_of_files
from course_utils.data.pairs import FRACTIONS, Cohort
from course_utils.data.recipe import Recipe
from course_utils.data.registry import DATASETS
from course_utils.errors import CourseError
from course_utils.plain import Unfit, items, number, whole, words

OF_FILES = ("labels", "atlas", "atlas_label", "prefix", "suffix", "shape", "spacing")
"""What only goes with images of one's own."""
NUMBERS = ("shape", "spacing", "structures", "fractions")
PATHS = ("data_root", "registry", "images", "labels", "atlas", "atlas_label")


@dataclass(frozen=True)
class Source:
    """All that it takes to load a cohort; either `dataset` or `images` is given.

    Attributes:
        dataset: The name of a data set.
        data_root: The folder with its folder; None is the data folder of the course.
        registry: A user's own file of data sets.
        images: A user's own files; these, and all that goes with them, are as in `cohort_of_files`.
        labels, atlas, atlas_label, prefix, suffix, shape, spacing: See there.
        structures: Values of the labels that count; None is all.
        fractions: Shares of train, val and test.
        split_seed: Decides who is where.
    """

    dataset: str | None = None
    data_root: str | None = None
    registry: str | None = None
    images: str | None = None
    labels: str | None = None
    atlas: str | None = None
    atlas_label: str | None = None
    prefix: str = ""
    suffix: str = ""
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    structures: tuple[int, ...] | None = None
    fractions: tuple[float, float, float] = FRACTIONS
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset is not None and self.images is not None:
            raise CourseError("--dataset and --images are two sources of data: give one of them")
        lone = [name for name in OF_FILES if getattr(self, name)]
        if self.images is None and lone:
            raise CourseError(f"--{lone[0].replace('_', '-')} belongs to --images, which names your own files: add it")

    @property
    def given(self) -> bool:
        """Whether it names any data."""
        return self.dataset is not None or self.images is not None

    def load(self, *, download: bool = True, like: Recipe | None = None) -> tuple[Cohort, str]:
        """The cohort, and a line for people that says what it is: subjects, splits, labels and the common grid.

        Args:
            download: Fetch a data set that is not there.
            like: See `cohort_of_files`.

        Raises:
            CourseError: neither a data set nor images are named; whatever `load_cohort` or `cohort_of_files` raises.
        """
        if not self.given:
            raise CourseError(
                f"there is no data: name a data set, --dataset {' or '.join(DATASETS)}, or your own files, --images "
                "FOLDER"
            )
        source = self
        if self.images is not None:
            cohort, grid = cohort_of_files(
                self.images,
                self.labels,
                atlas=self.atlas,
                atlas_label=self.atlas_label,
                prefix=self.prefix,
                suffix=self.suffix,
                shape=self.shape,
                spacing=self.spacing,
                like=like,
                fractions=self.fractions,
                seed=self.split_seed,
                structures=self.structures,
            )
            line = f"{_summary(cohort)}; common grid {grid}"
            if like is not None:  # remembered, so that the same grid is told of when the network is measured
                source = replace(self, shape=grid.shape, spacing=grid.spacing)
        else:
            assert self.dataset is not None  # one of the two is given
            cohort = load_cohort(
                self.dataset,
                self.data_root,
                seed=self.split_seed,
                fractions=self.fractions,
                registry=self.registry,
                download=download,
            )
            line = _summary(cohort)
        if self.structures:
            labels = {value: cohort.info.labels.get(value, f"label {value}") for value in self.structures}
            cohort = replace(cohort, info=replace(cohort.info, labels=labels))
        return replace(cohort, source=source.to_dict()), line

    def options(self) -> list[str]:
        """The command line's options that name this source, as they were given."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = ",".join(f"{n:g}" for n in value) if isinstance(value, tuple) else str(value)
                words += [f"--{field.name.replace('_', '-')}", text]
        return words

    def to_dict(self) -> dict[str, Any]:
        """Plain values; paths are absolute, so that they hold in any folder."""
        values: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return values | {name: str(Path(values[name]).absolute()) for name in PATHS if values[name] is not None}

    def or_that_of(self, card: DataCard) -> "Source":
        """This source or, where it names no data, the one that a network was trained on.

        The same data is looked for where it was in training, and split as it was there, unless this source says
        otherwise: else subjects that trained would test.
        """
        known = Source.from_dict(card.source) if card.source else Source(dataset=card.dataset)
        if not self.given:
            return replace(known, structures=self.structures or known.structures)
        absolute = Source.from_dict(self.to_dict())
        if (absolute.dataset, absolute.images) != (known.dataset, known.images):
            return self
        adopted = {
            name: getattr(known, name)
            for name in ("data_root", "registry", "fractions", "split_seed")
            if getattr(self, name) == Source.__dataclass_fields__[name].default
        }
        return replace(self, **adopted)

    def unseen(self, cohort: Cohort, card: DataCard) -> tuple[Cohort, int]:
        """The cohort without the test subjects that a network has seen in its training, and how many those were.

        The split of a folder follows from the names in it: where others have more of a data set's subjects, or split it
        in another way, some of their test subjects have trained the network.

        Args:
            cohort: Loaded from this source.
            card: Of the data that the network was trained on; names count only where it is the same data.
        """
        known = Source.from_dict(card.source) if card.source else Source(dataset=card.dataset)
        mine = Source.from_dict(self.to_dict())
        if (mine.dataset, mine.images) != (known.dataset, known.images):
            return cohort, 0
        seen = {name for names in card.subjects.values() for name in names}
        tested = [subject.name for subject in cohort.splits["test"] if subject.name in seen]
        return cohort.without(tested), len(tested)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Source":
        """The source that `to_dict` gave the values of.

        Raises:
            CourseError: they are none.
        """
        try:
            unknown = set(values) - {each.name for each in fields(cls)}
            if unknown:
                raise Unfit(f"source has '{min(unknown)}', which is unknown")
            return cls(**{name: _typed(name, value) for name, value in values.items() if value is not None})
        except ValueError as error:
            raise CourseError(f"what the network tells of its data is damaged ({error}): name the data") from error


def _typed(name: str, value: Any) -> Any:
    """A value of a source as its type demands, from plain values."""
    where = f"source.{name}"
    if name in NUMBERS:
        found = tuple(items(value, where, number, 10_000))
        if name == "fractions" and len(found) != 3:
            raise Unfit(f"{where} is not three shares")
        return found
    return whole(value, where) if name == "split_seed" else words(value, where)


def _summary(cohort: Cohort) -> str:
    sides = ", ".join(f"{len(part)} {side}" for side, part in cohort.splits.items())
    labelled = sum(subject.label is not None for subject in cohort.subjects)
    of_labels = f"{labelled} with labels of {len(cohort.info.labels)} structures" if labelled else "no labels"
    onto = "" if cohort.atlas is None else f", all onto the atlas {cohort.atlas.image}"
    return f"{cohort.info.title}: {len(cohort.subjects)} subjects ({sides}), {of_labels}{onto}"
