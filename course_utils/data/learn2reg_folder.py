"""A Learn2Reg archive: the subjects, splits and official pairs that its `NAME_dataset.json` lists."""

import itertools
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from course_utils.data.folder_facts import labels_of, read_object, stored_grid
from course_utils.data.pairs import Cohort, Pair, Subject, split_subjects
from course_utils.data.registry import LEARN2REG_VALIDATION, DatasetInfo
from course_utils.errors import CourseError, CourseWarning
from course_utils.plain import as_it_is, inside, items, table, whole, words


def is_2021(folder: Path) -> bool:
    """Whether a Learn2Reg archive is of the year whose OASIS task came as imgNNNN and segNNNN, without a JSON file."""
    return any(folder.glob("img*.nii.gz")) and not any(folder.glob("*_dataset.json"))


def describe_2021(info: DatasetInfo, folder: Path) -> DatasetInfo:
    shape, spacing = stored_grid(min(folder.glob("img*.nii.gz")))
    return replace(
        info,
        image="img{name}.nii.gz",
        label="seg{name}.nii.gz",
        shape=shape,
        spacing=spacing,
        validation=tuple(name.split("_")[2] for name in LEARN2REG_VALIDATION),
    )


def learn2reg_cohort(info: DatasetInfo, folder: Path, seed: int, fractions: tuple[float, float, float]) -> Cohort:
    """Subjects, splits and official pairs of a Learn2Reg folder, as its `NAME_dataset.json` lists them.

    The challenge's validation and test subjects are val and test here. Where the archive has no test pairs,
    test is drawn from the training subjects, like everywhere else.
    """
    found = sorted(folder.glob("*_dataset.json")) or sorted(folder.glob("*/*_dataset.json"))
    if len(found) != 1:
        what = "no NAME_dataset.json" if not found else f"{len(found)} files NAME_dataset.json"
        raise CourseError(f"{folder} holds {what}: name the folder of one Learn2Reg archive as the data root")
    facts, folder = read_object(found[0]), found[0].parent
    subjects: dict[str, Subject] = {}

    def subject(image: Any) -> Subject:
        path = folder / inside(words(image, "an image"), "an image")
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        if name not in subjects:
            label = path.parent.with_name(path.parent.name.replace("images", "labels")) / path.name
            subjects[name] = Subject(name, path, label if label.is_file() else None)
        return subjects[name]

    try:
        training = facts.get("training", [])
        training = table(training, "training").values() if isinstance(training, dict) else [training]
        for entry in itertools.chain(*(items(entries, "training", as_it_is) for entries in training)):
            subject(entry["image"] if isinstance(entry, dict) else entry)
        official, absent = {}, []
        for side in ("train", "val", "test"):
            listed = items(facts.get(f"registration_{side}", []), f"registration_{side}", table)
            pairs = [Pair(subject(p["fixed"]), subject(p["moving"])) for p in listed]
            there = tuple(pair for pair in pairs if pair.fixed.image.is_file() and pair.moving.image.is_file())
            absent += [pair for pair in pairs if pair not in there]
            if there:
                official[side] = there
        shape = facts.get("tensorImageShape", {})
        shape = next(iter(shape.values()), ()) if isinstance(shape, dict) else shape
        shape = tuple(items(shape, "tensorImageShape", lambda n, where: whole(n, where, 1), 3))
        names = _labels(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CourseError(
            f"{found[0]} is not in the Learn2Reg layout ({error!r}): restore it from the archive"
        ) from error
    if absent:
        warnings.warn(
            f"{found[0]} lists {len(absent)} pairs whose images are not in {folder}: left out",
            CourseWarning,
            stacklevel=3,
        )
    everyone = tuple(sorted((s for s in subjects.values() if s.image.is_file()), key=lambda s: s.name))
    if not everyone:
        raise CourseError(f"{folder} holds none of the images that {found[0].name} lists: unpack the whole archive")
    stored, spacing = stored_grid(everyone[0].image)
    shape = info.shape or shape or stored
    info = replace(
        info,
        folder=folder.name,
        labels=info.labels or names or labels_of(everyone, len(shape)),
        shape=shape,
        spacing=info.spacing or spacing[: len(shape)],
    )
    images = dict.fromkeys(s.image for pair in absent for s in (pair.fixed, pair.moving) if not s.image.is_file())
    return Cohort(info, everyone, _splits(everyone, official, seed, fractions), official, tuple(images))


def _splits(
    subjects: tuple[Subject, ...],
    official: Mapping[str, tuple[Pair, ...]],
    seed: int,
    fractions: tuple[float, float, float],
) -> dict[str, tuple[Subject, ...]]:
    paired = {side: {s for p in official.get(side, ()) for s in (p.fixed, p.moving)} for side in ("val", "test")}
    test = tuple(s for s in subjects if s in paired["test"])
    val = tuple(s for s in subjects if s in paired["val"] - paired["test"])
    rest = tuple(s for s in subjects if s not in paired["test"] | paired["val"])
    if len(rest) < 6:  # too few to draw a split from: they train, if there are any
        return {"train": rest, "val": val, "test": test}
    if test:
        share = fractions[0] + fractions[1] or 1.0
        fractions = (fractions[0] / share, fractions[1] / share, 0.0)
    splits = split_subjects((*val, *rest), seed, fractions, validation=val)
    return {**splits, "test": test or splits["test"]}


def _labels(facts: Mapping[str, Any]) -> dict[int, str]:
    labels = facts.get("labels") or {}
    while isinstance(labels, dict) and labels and all(isinstance(value, dict) for value in labels.values()):
        labels = next(iter(labels.values()))  # one table a modality: take the first
    if not isinstance(labels, dict):
        return {}
    numbers = {value: name for value, name in labels.items() if re.fullmatch(r"[0-9]{1,9}", str(value))}
    return {int(value): words(name, "labels") for value, name in numbers.items() if int(value) > 0}
