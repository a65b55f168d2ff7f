"""From files to tensors: MONAI's dictionary transforms, caching, and pairs as a network wants them."""

import csv
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, NibabelReader, PersistentDataset
from monai.transforms import (
    CastToTyped,
    Compose,
    EnsureTyped,
    Lambdad,
    LoadImage,
    MapTransform,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacingd,
    Transform,
)
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from course_utils.datasets import Pair, Subject
from course_utils.errors import CourseError

# --- one volume -------------------------------------------------------------------------------------------------------


def normalise(image: torch.Tensor) -> torch.Tensor:
    """Scale intensities to [0, 1] between the volume's 0.5th and 99.5th percentiles, clipped beyond.

    Percentiles of the volume itself, because scanners share no unit: two hippocampus files differ by a factor
    of 10^4.
    """
    low, high = np.percentile(image, (0.5, 99.5))
    if low == high:
        raise CourseError(f"99 % of the voxels have the intensity {low:g}: crop the volume around its structures")
    return ((image - low) / (high - low)).clip(0, 1)


NORMALISATIONS = {"percentile": normalise}
"""What `preprocessing` accepts as its ``normalisation``: a name, so that a checkpoint can hold it."""


class ReadVolumed(MapTransform):
    """Read NIfTI files as (1, *spatial) and refuse what no registration can use.

    Singleton axes are dropped where the grid has fewer axes than the file. With ``affine`` the label must
    also have the image's affine. Raises `CourseError` for a file that is missing, truncated or no NIfTI, for
    more than one channel or time point, a wrong number of axes, NaN or infinite values, a constant image, a
    label that is not made of integers from 0 to 255, and an image and label of different shape or affine.
    """

    def __init__(self, keys: Sequence[str], spatial_dims: int, affine: bool):
        super().__init__(keys, allow_missing_keys=True)
        self.spatial_dims = spatial_dims
        self.affine = affine
        self.load = LoadImage(NibabelReader(), image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping) -> dict:
        data = dict(data)
        paths = {key: data[key] for key in self.key_iterator(data)}
        for key, path in paths.items():
            data[key] = self._read(path)
            (_check_label if key.endswith("label") else _check_image)(path, data[key])
        if len(paths) == 2:
            self._check_match(*paths.values(), *(data[key] for key in paths))
        return data

    def _read(self, path) -> torch.Tensor:
        if not Path(path).is_file():
            raise CourseError(f"{path} is missing: restore it, or leave the subject out")
        try:
            volume = self.load(path)
        except Exception as error:  # nibabel, gzip and zlib each have their own words for a broken file
            reason = " ".join(str(error).split())[:120]
            raise CourseError(
                f"{path} cannot be read as NIfTI ({reason}): truncated or another format; restore it, or leave it out"
            ) from error
        stored = "x".join(map(str, volume.shape[1:]))
        if volume.shape[0] != 1:
            raise CourseError(f"{path} is 4-D ({stored} with {volume.shape[0]} volumes): save one volume a file")
        if self.spatial_dims < volume.ndim - 1:  # a slice stored as a volume one voxel thick
            volume = volume.as_tensor().squeeze()[None]
        if volume.ndim - 1 != self.spatial_dims:
            raise CourseError(
                f"{path} of {stored} voxels is not {self.spatial_dims}-D: choose a fitting data set or model"
            )
        return volume

    def _check_match(self, image_path, label_path, image, label) -> None:
        if image.shape != label.shape:
            raise CourseError(
                f"{label_path} has {tuple(label.shape[1:])} voxels and {image_path} has {tuple(image.shape[1:])}: "
                "resample the label to its image"
            )
        if self.affine and not torch.allclose(image.affine, label.affine, rtol=0, atol=1e-2):
            raise CourseError(f"{label_path} and {image_path} have different affines: resample the label to its image")


def _check_finite(path, volume: torch.Tensor) -> None:
    bad = int((~torch.isfinite(volume)).sum())
    if bad:
        raise CourseError(f"{path} has {bad} NaN or infinite voxels: repair it, or leave the subject out")


def _check_image(path, image: torch.Tensor) -> None:
    _check_finite(path, image)
    if image.min() == image.max():
        raise CourseError(
            f"{path} is constant ({float(image.min()):g} everywhere): replace it, or leave the subject out"
        )


def _check_label(path, label: torch.Tensor) -> None:
    _check_finite(path, label)
    if not torch.equal(label, label.round()):
        raise CourseError(f"{path} has label values that are not integers: resample labels with nearest neighbour")
    if label.min() < 0 or label.max() > 255:
        raise CourseError(
            f"{path} has labels from {int(label.min())} to {int(label.max())}: renumber them to 0 (background) to 255"
        )


class FitGridd(ResizeWithPadOrCropd):
    """Pad and crop around the centre to the common grid, refusing to cut through a structure.

    A Dice of a structure that was cropped says nothing, so labelled voxels outside the grid raise a
    `CourseError`.
    """

    def __call__(self, data: Mapping, lazy: bool | None = None) -> dict:
        fitted = super().__call__(data, lazy)
        if "label" in data:
            lost = int((data["label"] > 0).sum()) - int((fitted["label"] > 0).sum())
            if lost:
                raise CourseError(
                    f"a volume of {tuple(data['image'].shape[1:])} voxels loses {lost} labelled ones on the grid "
                    f"{tuple(fitted['image'].shape[1:])}: crop it around its structures, or choose a larger grid"
                )
        return fitted


def preprocessing(
    shape: Sequence[int], spacing: Sequence[float] | None = None, normalisation: str = "percentile"
) -> Compose:
    """The transforms from ``{"image": path[, "label": path]}`` to tensors on a common grid.

    ``shape`` is the grid in voxels, 2-D or 3-D. With ``spacing`` (mm, 3-D only) volumes are reoriented to RAS
    and resampled to it; without, the voxel grid is taken as stored. Intensities are normalised volume by
    volume, by the function of that name in `NORMALISATIONS`, before padding with 0.

    The result maps image to (1, *shape) float32 and label to (1, *shape) uint8, both plain tensors. Its
    attribute ``recipe`` is the plain dictionary of these arguments: ``preprocessing(**recipe)`` makes it
    again from a checkpoint. Call it through `load_subject` or `load_subjects`, which turn MONAI's errors into
    a `CourseError`.
    """
    if normalisation not in NORMALISATIONS:
        raise CourseError(f"no normalisation called '{normalisation}': choose from {', '.join(NORMALISATIONS)}")
    if spacing is not None and not len(spacing) == len(shape) == 3:
        raise ValueError(f"resampling to {spacing} mm needs a 3-D grid, not {tuple(shape)}")
    keys = ("image", "label")
    steps: list[Transform] = [ReadVolumed(keys, len(shape), affine=spacing is not None)]
    if spacing is not None:
        steps += [
            Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
            Spacingd(keys, pixdim=spacing, mode=("bilinear", "nearest"), allow_missing_keys=True),
        ]
    steps += [
        Lambdad("image", NORMALISATIONS[normalisation]),
        FitGridd(keys, shape, allow_missing_keys=True),
        CastToTyped(keys, (torch.float32, torch.uint8), allow_missing_keys=True),
        EnsureTyped(keys, track_meta=False, allow_missing_keys=True),
    ]
    compose = Compose(steps)
    compose.recipe = {
        "shape": [int(n) for n in shape],
        "spacing": None if spacing is None else [float(mm) for mm in spacing],
        "normalisation": normalisation,
    }
    return compose


# --- one subject, many subjects ---------------------------------------------------------------------------------------


def load_subject(subject: Subject, transform: Compose) -> dict[str, torch.Tensor]:
    """``{"image": ..., "label": ...}`` of one subject; raises `CourseError` if a file of it cannot be used."""
    return _load(_item(subject, transform), transform)


def _item(subject: Subject, transform: Compose) -> dict:
    # What MONAI hashes for its cache on disk: a file that changes, or another recipe, is another item.
    files = {"image": subject.image, "label": subject.label}
    item = {key: str(path) for key, path in files.items() if path is not None}
    item["stamps"] = [_stamp(path) for path in files.values()]
    item["recipe"] = getattr(transform, "recipe", None)
    return item


def _stamp(path: Path | None) -> list[int]:
    if path is None or not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _load(item: Mapping, transform: Compose) -> dict[str, torch.Tensor]:
    try:
        volumes = transform({key: item[key] for key in ("image", "label") if key in item})
    except Exception as error:  # MONAI wraps whatever a transform raises in a RuntimeError
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CourseError):
            cause = cause.__cause__
        if cause is None:
            raise CourseError(f"{item['image']} cannot be prepared ({error.__cause__ or error})") from error
        named = str(cause) if item["image"] in str(cause) else f"{item['image']}: {cause}"
        raise CourseError(named) from error
    return {key: volumes[key] for key in ("image", "label") if key in volumes}


class _Tolerant(Transform):
    """A transform for MONAI's caches that returns a fault instead of raising it."""

    def __init__(self, transform: Compose):
        self.transform = transform

    def __call__(self, item: Mapping) -> dict:
        try:
            return _load(item, self.transform)
        except CourseError as error:
            return {"fault": str(error)}


class LoadedSubjects:
    """Volumes by subject, served from a cache. ``failed`` maps the name of each unusable subject to the reason."""

    def __init__(self, subjects: Sequence[Subject], dataset: Dataset, failed: Mapping[str, str]):
        self._index = {subject: index for index, subject in enumerate(subjects)}
        self._dataset = dataset
        self.failed = dict(failed)
        self.subjects = tuple(subject for subject in subjects if subject.name not in self.failed)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, subject: Subject) -> dict[str, torch.Tensor]:
        """``{"image": (1, *spatial) float32[, "label": (1, *spatial) uint8]}``; raises `CourseError` if unusable."""
        if subject not in self._index:
            raise CourseError(f"subject '{subject.name}' was not loaded: load its split first")
        if subject.name in self.failed:
            raise CourseError(self.failed[subject.name])
        return self._dataset[self._index[subject]]


def load_subjects(
    subjects: Iterable[Subject],
    transform: Compose,
    cache: str | Path = "memory",
    *,
    strict: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> LoadedSubjects:
    """Read every subject once and keep the result.

    ``cache`` is ``"memory"`` (MONAI's `CacheDataset`) or a folder (`PersistentDataset`: read once, ever; for
    cohorts that memory does not hold). ``workers`` threads read. A subject that cannot be used is named in a
    warning and left out: go on with ``cohort.without(loaded.failed)``. With ``strict`` the first such subject
    raises `CourseError`; so does a cohort without any usable subject.
    """
    subjects = tuple(dict.fromkeys(subjects))
    items = [_item(subject, transform) for subject in subjects]
    tolerant = _Tolerant(transform)
    if cache == "memory":
        dataset = CacheDataset(items, tolerant, num_workers=workers, progress=progress, copy_cache=False)
        faults = [dataset[index].get("fault") for index in range(len(items))]
    else:
        try:
            dataset = PersistentDataset(items, tolerant, cache)
            faults = _fill(dataset, workers, progress)
        except (OSError, ValueError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CourseError(
                f"the cache {cache} cannot be used ({error}): make room, or remove it and run again"
            ) from error
    failed = {subject.name: fault for subject, fault in zip(subjects, faults, strict=True) if fault}
    if failed and (strict or len(failed) == len(subjects)):
        raise CourseError(next(iter(failed.values())))
    for fault in failed.values():
        warnings.warn(f"left out: {fault}", stacklevel=2)
    return LoadedSubjects(subjects, dataset, failed)


def _fill(dataset: PersistentDataset, workers: int, progress: bool) -> list[str | None]:
    # Only the faults are kept: the volumes of a cohort on disk do not fit into memory.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        faults = pool.map(lambda index: dataset[index].get("fault"), range(len(dataset)))
        return list(tqdm(faults, total=len(dataset), desc="reading", disable=not progress))


# --- pairs ------------------------------------------------------------------------------------------------------------


class PairDataset(Dataset):
    """Pairs of loaded subjects as a network wants them.

    An item is ``{"fixed", "moving": (1, *spatial) float32, "fixed_label", "moving_label": (1, *spatial)
    uint8, "name": str}``; the labels are absent where one of the two subjects has none. With ``truth`` there
    is also ``"true_displacement"`` (N, *spatial) float32 in voxels of the fixed grid, known for the built-in
    cohort only.

    Raises `CourseError` for a pair of a subject that is unusable or not loaded, and for a ``truth`` that
    nobody knows.
    """

    def __init__(self, subjects: LoadedSubjects, pairs: Sequence[Pair], *, truth: bool = False):
        self.subjects = subjects
        self.pairs = pairs
        self.truth = truth

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        pair = self.pairs[index]
        fixed, moving = self.subjects[pair.fixed], self.subjects[pair.moving]
        item = {"fixed": fixed["image"], "moving": moving["image"], "name": pair.name}
        if "label" in fixed and "label" in moving:
            item |= {"fixed_label": fixed["label"], "moving_label": moving["label"]}
        if self.truth:
            item["true_displacement"] = _truth(pair, fixed["image"].shape[1:])
        return item


def _truth(pair: Pair, shape: torch.Size) -> torch.Tensor:
    from course_utils.synthetic import true_displacement

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
    pairs: PairDataset, batch_size: int = 1, start: int = 0, stop: int | None = None, workers: int = 0
) -> DataLoader:
    """Batches of the pairs ``start`` to ``stop`` in order: a run that ended at pair ``i`` goes on at ``start=i``.

    The order is the pairs' own (random pairs are random by themselves), and the global random state is not
    touched. A batch has labels where all its pairs have. ``workers`` processes help when the cache is on disk; from
    memory none are needed.
    """
    stop = len(pairs) if stop is None else stop
    if not 0 <= start <= stop <= len(pairs):
        raise ValueError(f"pairs {start} to {stop} of {len(pairs)}")
    return DataLoader(
        pairs,
        batch_size,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def _collate(items: Sequence[Mapping]) -> dict:
    shared = [key for key in items[0] if all(key in item for item in items)]
    return default_collate([{key: item[key] for key in shared} for item in items])


COLUMNS = ("fixed_image", "moving_image", "fixed_label", "moving_label")


def pairs_from_csv(path: str | Path) -> list[Pair]:
    """The pairs of a CSV file with columns fixed_image, moving_image, fixed_label, moving_label.

    Paths are relative to the file. A subject is called after its image file, or after its path where two files have one
    name. Raises `CourseError` naming the missing column, or the line of a missing file or label.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise CourseError(
                    f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(COLUMNS)}"
                )
            rows = [_files(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} cannot be read as CSV ({error}): give a comma-separated text file") from error
    if not rows:
        raise CourseError(f"{path} lists no pair: add one line a pair below the column names")
    names = _names({row[column] for row in rows for column in COLUMNS[:2]}, path.parent)
    return [
        Pair(
            fixed=Subject(names[row["fixed_image"]], row["fixed_image"], row["fixed_label"]),
            moving=Subject(names[row["moving_image"]], row["moving_image"], row["moving_label"]),
        )
        for row in rows
    ]


def _files(path: Path, line: int, row: Mapping[str, str | None]) -> dict[str, Path]:
    files = {}
    for column in COLUMNS:
        value = (row[column] or "").strip()
        if not value:
            raise CourseError(
                f"{path}, line {line}: no {column}; both images and both labels are needed to measure a pair"
            )
        files[column] = path.parent / value
        if not files[column].is_file():
            raise CourseError(f"{path}, line {line}: {column} {files[column]} does not exist; correct the path")
    return files


def _names(images: Iterable[Path], root: Path) -> dict[Path, str]:
    stems = {image: image.name.removesuffix(".gz").removesuffix(".nii") for image in images}
    if len(set(stems.values())) == len(stems):
        return stems
    folders = {image: re.sub(r"\W+", "_", os.path.relpath(image.parent, root)).strip("_") for image in stems}
    return {image: "_".join(filter(None, (folders[image], stem))) for image, stem in stems.items()}
