"""A data set by its name: downloaded or made if it is not there, its subjects found, split and paired.

One call does it all::

    cohort = load_cohort("hippocampus")                     # downloads 27 MB once
    pairs = cohort.pairs("test", "random", count=50)        # 50 pairs of unseen subjects

Nothing here reads a voxel; `course_utils.data.loading` does.
"""

import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from course_utils.data.download import download as download_file
from course_utils.data.download import in_turn
from course_utils.data.folder_facts import labels_of, read_object
from course_utils.data.learn2reg_folder import describe_2021, is_2021, learn2reg_cohort
from course_utils.data.pairs import FRACTIONS, Cohort, Pair, Subject, split_subjects
from course_utils.data.registry import DatasetInfo, dataset_info, fill_command
from course_utils.data.synthetic import make_cohort
from course_utils.data.unpacking import extract
from course_utils.errors import CourseError, CourseWarning
from course_utils.places import place

_SEG4 = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}


def data_root() -> Path:
    """The data folder: `MONAI_DATA_DIRECTORY`, or `data` in the course's folder (see `places`) where that is unset."""
    return place("MONAI_DATA_DIRECTORY", "data")


def load_cohort(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    download: bool = True,
    registry: str | Path | None = None,
    label_set: int | None = None,
) -> Cohort:
    """A data set's subjects and splits; the data is downloaded, or made, if it is not there yet.

    Args:
        name: Of the data set.
        root: The folder that holds one folder for each data set, `data_root()` by default; for `learn2reg` it may also
            be the folder with the archive's `NAME_dataset.json`.
        seed: Decides who is where: each subject's place follows from the seed and its name, so a subject that is added
            or lost moves hardly anyone else.
        fractions: Shares of train, val and test.
        download: Fetch the data where it is missing.
        registry: A user's own file, see `read_registry`.
        label_set: Chooses among the OASIS segmentations: 4 or 35 (24 for oasis2d).

    Raises:
        CourseError: an unknown name, an empty or missing folder, and whatever keeps a download from ending.
    """
    info = dataset_info(name, registry)
    if label_set is not None:
        info = _choose_labels(info, label_set)
    folder = _folder(info, root)
    if download and not folder.exists():
        fetch(info, root)
    if not folder.is_dir():
        raise CourseError(f"no {info.name} data in {folder}: run `{fill_command(info)}`")
    if not info.image and not is_2021(folder):
        return learn2reg_cohort(info, folder, seed, fractions)
    if not info.image:
        info = describe_2021(info, folder)
    subjects = _find_subjects(info, folder)
    if not subjects:
        raise CourseError(
            f"{folder} holds no {info.image.replace('{name}', '*')}: remove it, then run `{fill_command(info)}`"
        )
    info = _describe(info, folder, subjects)
    validation = [subject for subject in subjects if subject.name in info.validation]
    splits = split_subjects(subjects, seed, fractions, validation=validation)
    consecutive = tuple(Pair(fixed, moving) for fixed, moving in itertools.pairwise(validation))
    return Cohort(info, subjects, splits, {"val": consecutive} if consecutive else {})


def load_slices(dataset: str, root: str | Path | None = None) -> Cohort:
    """The cohort of a page on slices: real ones where the reader chose them, else those of 60 built-in people.

    Args:
        dataset: What the reader chose. `oasis2d` is taken; for any other the built-in slices are made in `root/slices`,
            where all pages share them.
        root: See `load_cohort`.

    Raises:
        CourseError: see `load_cohort` and `make_cohort`.
    """
    if dataset == "oasis2d":
        return load_cohort(dataset, root)
    folder = Path(data_root() if root is None else root) / "slices"
    make_cohort(folder / "synthetic", subjects=60, dimensions=2)
    cohort = load_cohort("synthetic", folder)
    return replace(cohort, info=replace(cohort.info, orientation="RS"))


def is_there(info: DatasetInfo, root: Path) -> bool:
    """Whether the folder of a data set holds something."""
    folder = root / info.folder
    return folder.is_dir() and any(folder.iterdir())


def fetch(info: DatasetInfo, root: str | Path | None = None, *, timeout: float = 30.0) -> Path:
    """Download and unpack a data set, or make the built-in one, below `root`; returns its folder.

    A folder that exists is left alone; while another process fills it, this one waits. `timeout` is how many seconds
    the server may keep silent. Raises `CourseError`, see `course_utils.data.download` and `unpacking`.
    """
    root = Path(root) if root is not None else data_root()
    folder = root / info.folder
    if is_there(info, root):
        return folder
    if info.name != "synthetic" and not info.url:
        raise CourseError(f"{info.name} has no address: put its files into {folder}")
    with in_turn(folder):
        if is_there(info, root):  # another process has filled it meanwhile
            return folder
        if info.name == "synthetic":
            make_cohort(folder)
            return folder
        archive = root / (Path(urlsplit(info.url).path).name or f"{info.folder}.tar")
        download_file(info.url, archive, info.checksum or None, size=info.bytes, timeout=timeout)
        extract(archive, folder, partial(_is_needed, info.members))
        archive.unlink()
    return folder


def _is_needed(patterns: tuple[str, ...], member: str) -> bool:
    return not patterns or any(fnmatch(member, pattern) for pattern in patterns)


def _folder(info: DatasetInfo, root: str | Path | None) -> Path:
    root = Path(root) if root is not None else data_root()
    if not info.image and any(root.glob("*_dataset.json")):
        return root
    return root / info.folder


def _find_subjects(info: DatasetInfo, folder: Path) -> tuple[Subject, ...]:
    before, *after = (re.escape(part) for part in info.image.split("{name}"))
    pattern = re.compile(f"{before}(?P<name>[^/.][^/]*){'(?P=name)'.join(after)}")
    subjects = []
    for path in sorted(folder.glob(info.image.replace("{name}", "*"))):
        match = pattern.fullmatch(path.relative_to(folder).as_posix())
        if match:  # not one of the hidden ._ files that macOS leaves in archives
            label, velocity = (
                folder / template.replace("{name}", match["name"]) if template else None
                for template in (info.label, info.velocity)
            )
            subjects.append(Subject(match["name"], path, label, velocity))
    return _unlabelled_where_there_is_none(info, subjects)


def _unlabelled_where_there_is_none(info: DatasetInfo, subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """The subjects, those whose label map is not there without one."""
    lacking = [subject for subject in subjects if subject.label is not None and not subject.label.is_file()]
    if lacking and len(lacking) == len(subjects):
        raise CourseError(
            f"{lacking[0].label} does not exist, nor does any other label map of {info.name}: correct `label` in the "
            "registry, leave it out, or restore the files"
        )
    if lacking:
        warnings.warn(
            f"{len(lacking)} of {len(subjects)} subjects of {info.name} have no label map, the first is "
            f"{lacking[0].label}: they are unlabelled",
            CourseWarning,
            stacklevel=4,
        )
    return tuple(replace(subject, label=None) if subject in lacking else subject for subject in subjects)


# --- what only the folder knows ---------------------------------------------------------------------------------------


def _choose_labels(info: DatasetInfo, label_set: int) -> DatasetInfo:
    sets = {"oasis": (4, 35), "oasis2d": (4, 24)}.get(info.name)
    if sets is None or label_set not in sets:
        valid = f"choose from {', '.join(map(str, sets))}" if sets else "leave it out"
        raise CourseError(f"{info.name} has no label set {label_set}: {valid}")
    return replace(info, label=re.sub(r"seg\d+", f"seg{label_set}", info.label), labels={})


def _describe(info: DatasetInfo, folder: Path, subjects: Sequence[Subject]) -> DatasetInfo:
    """Fill in the labels, shape and spacing that are written in the folder rather than in the registry."""
    if (folder / "cohort.json").is_file():
        facts = read_object(folder / "cohort.json")
        try:
            return replace(
                info,
                labels={int(value): str(name) for value, name in facts["labels"].items()},
                shape=tuple(int(n) for n in facts["shape"]),
                spacing=tuple(float(mm) for mm in facts["spacing"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CourseError(
                f"{folder / 'cohort.json'} lacks labels, shape or spacing: remove {folder}, "
                f"then run `{fill_command(info)}`"
            ) from error
    if info.labels or not info.label:
        return info
    return replace(info, labels=_label_names(info, folder, subjects))


def _label_names(info: DatasetInfo, folder: Path, subjects: Sequence[Subject]) -> dict[int, str]:
    segmentation = re.search(r"seg(\d+)", info.label)
    if segmentation:
        table = folder / f"seg{segmentation[1]}_labels.txt"
        if table.is_file():  # lines of value, name and perhaps a colour, as in FreeSurfer's tables
            rows = re.findall(
                r"^[ \t]*(\d+)[ \t,:]+([^\s,]+(?: [^\s\d,]+)*)",
                table.read_text(errors="replace", encoding="utf-8"),
                re.MULTILINE,
            )
            names = {int(value): name for value, name in rows if int(value) > 0}
            if names:
                return names
        if segmentation[1] == "4":
            return dict(_SEG4)
        return {value: f"label {value}" for value in range(1, int(segmentation[1]) + 1)}
    return labels_of(subjects, len(info.shape))
