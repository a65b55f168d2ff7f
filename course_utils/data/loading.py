"""From files to tensors: caching, and pairs as a network wants them."""

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from course_utils.data.grids import by
from course_utils.data.pairs import Pair, Subject
from course_utils.data.recipe import Recipe
from course_utils.data.synthetic import true_displacement
from course_utils.data.volumes import read_grid
from course_utils.errors import CourseError, CourseWarning
from course_utils.progress import track

# --- one subject, many subjects ---------------------------------------------------------------------------------------


def load_subject(subject: Subject, recipe: Recipe) -> dict[str, Tensor]:
    """The volumes of one subject on the grid of a recipe, see `Recipe.load`.

    Raises:
        CourseError: a file cannot be used.
    """
    try:
        return recipe.load(subject.image, subject.label)
    except (RuntimeError, MemoryError) as error:  # a volume of absurd size, say
        reason = str(error) or "no memory is left"
        raise CourseError(
            f"{subject.image} cannot be prepared ({reason}): repair it, or leave the subject out"
        ) from error


def _item(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    # What MONAI hashes for its cache on disk: a file that changes, or another recipe, is another item.
    files = {"image": subject.image, "label": subject.label}
    item: dict[str, Any] = {key: str(path) for key, path in files.items() if path is not None}
    item["stamps"] = [_stamp(path) for path in files.values()]
    item["recipe"] = recipe.to_dict()
    return item


def _stamp(path: Path | None) -> list[int]:
    if path is None or not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class _Load(Transform):
    """What MONAI's caches call: a subject's item to its volumes, or to a fault instead of an error."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        label = data.get("label")
        subject = Subject(data["image"], Path(data["image"]), None if label is None else Path(label))
        try:
            return load_subject(subject, self.recipe)
        except CourseError as error:
            return {"fault": str(error)}


class LoadedSubjects:
    """Volumes by subject, served from a cache. `failed` maps the name of each unusable subject to the reason."""

    def __init__(self, subjects: Sequence[Subject], dataset: Dataset[Any], failed: Mapping[str, str]):
        self._index = {subject: index for index, subject in enumerate(subjects)}
        self._dataset = dataset
        self.failed = dict(failed)
        self.subjects = tuple(subject for subject in subjects if subject.name not in self.failed)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, subject: Subject) -> dict[str, Tensor]:
        """`{"image": (1, *spatial) float32[, "label": (1, *spatial) int16]}`; raises `CourseError` if unusable."""
        if subject not in self._index:
            raise CourseError(f"subject '{subject.name}' was not loaded: load its split first")
        if subject.name in self.failed:
            raise CourseError(self.failed[subject.name])
        return self._dataset[self._index[subject]]


def load_subjects(
    subjects: Iterable[Subject],
    recipe: Recipe,
    cache: str | Path = "memory",
    *,
    strict: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> LoadedSubjects:
    """Read every subject once and keep the result.

    A subject that cannot be used is named in a warning and left out: go on with `cohort.without(loaded.failed)`.

    Args:
        subjects: Whom to read.
        recipe: How their images are prepared.
        cache: `"memory"` (MONAI's `CacheDataset`) or a folder (`PersistentDataset`: read once, ever; for cohorts that
            memory does not hold).
        strict: Raise for the first subject that cannot be used.
        workers: Threads that read.
        progress: Tell how far reading has got.

    Raises:
        CourseError: no subject can be used or, with `strict`, one cannot; the cache cannot be used.
    """
    subjects = tuple(dict.fromkeys(subjects))
    items = [_item(subject, recipe) for subject in subjects]
    load = _Load(recipe)
    if cache == "memory":
        bar = progress and sys.stderr.isatty()
        dataset = CacheDataset(items, load, num_workers=workers, progress=bar, copy_cache=False)
        faults = [dataset[index].get("fault") for index in range(len(items))]
    else:
        try:
            dataset = PersistentDataset(items, load, cache)
            faults = _fill(dataset, workers, progress)
        except (OSError, ValueError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CourseError(
                f"the cache {cache} cannot be used ({error}): make room, or remove it and run again"
            ) from error
    failed = {subject.name: fault for subject, fault in zip(subjects, faults, strict=True) if fault}
    if failed and (strict or len(failed) == len(subjects)):
        raise CourseError(next(iter(failed.values())))
    _warn_of_cut([subject for subject in subjects if subject.name not in failed], recipe)
    for fault in failed.values():
        warnings.warn(f"left out: {fault}", CourseWarning, stacklevel=2)
    return LoadedSubjects(subjects, dataset, failed)


def _warn_of_cut(subjects: Sequence[Subject], recipe: Recipe) -> None:
    """Unlabelled images may lose what lies beyond the grid; with labels, a structure that would be cut is a fault."""
    dims = len(recipe.shape)
    cut = [s for s in subjects if s.label is None and recipe.cuts(read_grid(s.image, dims)[0])]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(subjects)} images are larger than the grid {by(recipe.shape)}, the first is "
            f"{cut[0].image}: what lies beyond it is not seen; choose a larger grid if that matters",
            CourseWarning,
            stacklevel=3,
        )


def _fill(dataset: PersistentDataset, workers: int, progress: bool) -> list[str | None]:
    # Only the faults are kept: the volumes of a cohort on disk do not fit into memory.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        faults = pool.map(lambda index: dataset[index].get("fault"), range(len(dataset)))
        return list(track(faults, "reading", len(dataset), show=progress))


# --- pairs ------------------------------------------------------------------------------------------------------------


class PairDataset(Dataset[dict[str, Any]]):
    """Pairs of loaded subjects as a network wants them.

    An item holds `fixed` and `moving`, `(1, *spatial)` float32, `fixed_label` and `moving_label`, `(1, *spatial)`
    int16, and `name`; the labels are absent where one of the two subjects has none. With `truth` there is also
    `true_displacement`, `(N, *spatial)` float32 in voxels of the fixed grid, known for the built-in cohort only.

    Raises:
        CourseError: when an item is asked for, of a subject that is unusable or not loaded, or with a `truth` that
            nobody knows.
    """

    def __init__(self, subjects: LoadedSubjects, pairs: Sequence[Pair], *, truth: bool = False):
        self.subjects = subjects
        self.pairs = pairs
        self.truth = truth

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        fixed, moving = self.subjects[pair.fixed], self.subjects[pair.moving]
        item = {"fixed": fixed["image"], "moving": moving["image"], "name": pair.name}
        if "label" in fixed and "label" in moving:
            item |= {"fixed_label": fixed["label"], "moving_label": moving["label"]}
        if self.truth:
            item["true_displacement"] = _truth(pair, fixed["image"].shape[1:])
        return item


def _truth(pair: Pair, shape: Sequence[int]) -> Tensor:
    if pair.fixed.velocity is None or pair.moving.velocity is None:
        raise CourseError(f"pair {pair.name} has no known deformation: only the built-in cohort 'synthetic' has")
    displacement = true_displacement(pair.fixed, pair.moving)
    if displacement.shape[1:] != shape:
        raise CourseError(
            f"the true deformation of {pair.name} is on {tuple(displacement.shape[1:])} voxels, its images on "
            f"{tuple(shape)}: use the cohort's own grid"
        )
    return displacement


def loader(
    pairs: PairDataset,
    batch_size: int = 1,
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    *,
    share: slice = slice(None),
) -> DataLoader[dict[str, Any]]:
    """Batches of the pairs `start` to `stop` in order: a run that ended at pair `i` goes on at `start=i`.

    The order is the pairs' own (random pairs are random by themselves), and the global random state is not
    touched. A batch has labels where all its pairs have. `workers` processes help when the cache is on disk; from
    memory none are needed. `share` says which of the pairs from `start` on one of several processes takes.
    """
    stop = len(pairs) if stop is None else stop
    shared = share.step not in (None, 1)
    if not 0 <= start <= stop <= len(pairs):
        raise ValueError(f"pairs {start} to {stop} of {len(pairs)}")
    return DataLoader(
        pairs,
        batch_size,
        sampler=range(start, stop)[share],
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_group if shared and hasattr(os, "setpgrp") else None,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def _leave_group(worker: int) -> None:
    """In a process that loads pairs: the signals that a launcher sends to all of a run's processes are not for it."""
    os.setpgrp()


def _collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = [key for key in items[0] if all(key in item for item in items)]
    return default_collate([{key: item[key] for key in shared} for item in items])
