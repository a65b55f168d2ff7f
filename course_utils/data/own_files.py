"""A cohort of a user's own files: no registry, no layout, nothing but images and perhaps label maps and an atlas."""

import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from course_utils.data.common_grid import CommonGrid, propose
from course_utils.data.file_lists import SPLITS, Entry, is_image, list_entries, match_labels, names_of
from course_utils.data.folder_facts import labels_of
from course_utils.data.formats import holds_label, open_image
from course_utils.data.grids import Grid
from course_utils.data.pairs import FRACTIONS, Cohort, Subject, split_subjects
from course_utils.data.recipe import Recipe
from course_utils.data.registry import DatasetInfo
from course_utils.data.volumes import read_grid
from course_utils.errors import CourseError, CourseWarning

PERSON = re.compile(r"(?:^|[\W_])(sub-[A-Za-z0-9]+)")
"""The part of a path that names a person in BIDS: their sessions stay on one side of a split."""


def cohort_of_files(
    images: str,
    labels: str | None = None,
    *,
    atlas: str | Path | None = None,
    atlas_label: str | Path | None = None,
    prefix: str = "",
    suffix: str = "",
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    like: Recipe | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    structures: Sequence[int] | None = None,
) -> tuple[Cohort, CommonGrid]:
    """The subjects, splits and common grid of a user's files.

    Args:
        images: A folder, a glob, a text file of paths or a CSV file, see `list_entries`; of any shape, spacing and
            orientation, all of them 2-D or all 3-D.
        labels: Label maps, named in the same ways; see `match_labels`. Images without one are unlabelled subjects.
        atlas: The one image that all others are registered to.
        atlas_label: Of its label map. An NPZ archive holds its own.
        prefix: Stands before each line of a text file.
        suffix: Stands behind it.
        shape: The common grid in voxels; None proposes one from the files.
        spacing: Its millimetres; None proposes them.
        like: Where neither is given, the grid of a network that is to be trained further, if it has as many axes.
        fractions: Shares of train, val and test, where a CSV file does not give the splits.
        seed: Decides who is where.
        structures: Values of the labels that count; None takes all that the label maps hold.

    Returns:
        The cohort, and the grid with how it came about.

    Raises:
        CourseError: files are missing, do not belong together, or are too few for the splits.
    """
    entries = list_entries(images, prefix, suffix)
    if labels is not None:
        if any(entry.label for entry in entries):
            raise CourseError(f"{images} names label maps itself: leave --labels out, or the column label")
        entries = _with_labels(entries, images, labels, prefix, suffix)
    else:
        entries = [replace(entry, label=entry.label or _own_label(entry.image)) for entry in entries]
    if len(entries) < 2 and atlas is None:
        raise CourseError(f"{images} names one image, and registration needs two: name more, or give an --atlas")
    of_atlas = None if atlas is None else _atlas(Path(atlas), atlas_label)
    names = names_of(entry.image for entry in entries)
    if len(names) < len(entries):
        raise CourseError(f"{images} names an image twice: name each once")
    subjects = {
        entry: Subject(names[entry.image], entry.image, entry.label, person=entry.person or _person(entry.image))
        for entry in entries
    }
    everyone = tuple(sorted(subjects.values(), key=lambda subject: subject.name))
    # The atlas is nobody's: it may well be one of the images.
    others = tuple(subject for subject in everyone if of_atlas is None or not _same(subject, of_atlas))
    grid = _grid([*everyone, *([of_atlas] if of_atlas else [])], shape, spacing, like)
    known = (
        labels_of([*everyone, *([of_atlas] if of_atlas else [])], len(grid.shape))
        if structures is None
        else {int(value): f"label {value}" for value in structures}
    )
    info = DatasetInfo(
        name=_title(images),
        title=f"{len(everyone)} images of {images}",
        folder="",
        labels=known,
        shape=grid.shape,
        spacing=grid.spacing,
        image="{name}",
        aligned=grid.aligned,
    )
    if any(entry.split for entry in entries):
        splits = _given_splits({subject: entry.split for entry, subject in subjects.items() if subject in others})
    else:
        splits = split_subjects(others, seed, fractions, fewest=2 if of_atlas is None else 1)
    return Cohort(info, others, splits, atlas=of_atlas), grid


def _with_labels(entries: Sequence[Entry], images: str, labels: str, prefix: str, suffix: str) -> list[Entry]:
    lists = [Path(words).is_file() and not is_image(Path(words)) for words in (images, labels)]
    files = [entry.image for entry in list_entries(labels, *((prefix, suffix) if lists[1] else ()))]
    pairs = match_labels([entry.image for entry in entries], files, by_order=all(lists))
    if unused := sorted(set(files) - set(pairs.values())):
        warnings.warn(
            f"{len(unused)} of {len(files)} label maps fit no image, the first is {unused[0]}: left out",
            CourseWarning,
            stacklevel=4,
        )
    return [replace(entry, label=pairs.get(entry.image)) for entry in entries]


def _own_label(image: Path) -> Path | None:
    """An archive of voxelmorph's lists holds the image and its label map."""
    return image if holds_label(image) else None


def _atlas(image: Path, label: str | Path | None) -> Subject:
    for path in filter(None, (image, label)):
        if not Path(path).is_file():
            raise CourseError(f"{path} does not exist: correct the path of the atlas")
    return Subject("atlas", image, Path(label) if label is not None else _own_label(image))


def _person(image: Path) -> str:
    found = PERSON.search(image.as_posix())
    return found[1] if found else ""


def _same(subject: Subject, atlas: Subject) -> bool:
    return subject.image.resolve() == atlas.image.resolve()


def _title(images: str) -> str:
    path = Path(images)
    while re.search(r"[*?\[]", path.name):
        path = path.parent
    return path.stem if path.suffix in (".csv", ".txt") else path.resolve().name or "own files"


def _grid(
    subjects: Sequence[Subject],
    shape: Sequence[int] | None,
    spacing: Sequence[float] | None,
    like: Recipe | None,
) -> CommonGrid:
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_place, subjects))
    readable = [place for place in found if not isinstance(place, CourseError)]
    if not readable:
        raise next(fault for fault in found if isinstance(fault, CourseError))
    dims = {len(grid.shape) for grid, _ in readable}
    if len(dims) > 1:
        of_dims = {
            len(place[0].shape): subject.image
            for subject, place in zip(subjects, found, strict=True)
            if not isinstance(place, CourseError)
        }
        raise CourseError(f"{of_dims[2]} is a slice and {of_dims[3]} a volume: give images of one kind")
    for name, values in (("--shape", shape), ("--spacing", spacing)):
        if values is not None and (len(values) != min(dims) or min(values) <= 0):
            raise CourseError(f"{name} {' '.join(map(str, values))} is not {min(dims)} numbers above 0: change it")
    if like is not None and shape is None and spacing is None and len(like.shape) == min(dims):
        aligned = min(dims) == 2 or not any(placed for _, placed in readable)
        return CommonGrid(like.shape, like.spacing, aligned, "that of the network to begin with")
    return propose(
        [grid for grid, _ in readable], placed=any(placed for _, placed in readable), shape=shape, spacing=spacing
    )


def _place(subject: Subject) -> tuple[Grid, bool] | CourseError:
    """Where an image is, or what is wrong with its file: whoever loads it will say so again."""
    try:
        dims = sum(n > 1 for n in open_image(subject.image).shape)
        return read_grid(subject.image, 2 if dims == 2 else 3)
    except CourseError as fault:
        return fault


def _given_splits(sides: dict[Subject, str]) -> dict[str, tuple[Subject, ...]]:
    left = [subject.name for subject, side in sides.items() if not side]
    if left:
        raise CourseError(f"the column split says nothing of {left[0]}: fill it in for all images, or for none")
    of_person: dict[str, str] = {}
    for subject, side in sides.items():
        if of_person.setdefault(subject.person or subject.name, side) != side:
            raise CourseError(f"{subject.person} is on two sides of the split: put all images of a person on one")
    return {
        split: tuple(sorted((s for s, side in sides.items() if side == split), key=lambda subject: subject.name))
        for split in SPLITS
    }
