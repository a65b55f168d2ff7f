"""The data sets of the course: where they come from, which subjects they hold, how these are split and paired.

One call does it all::

    cohort = load_cohort("hippocampus")                     # downloads 27 MB once
    pairs = cohort.pairs("test", "random", count=50)        # 50 pairs of unseen subjects

Nothing here reads a voxel; `course_utils.loading` does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import urlsplit

import nibabel
import numpy as np

from course_utils.download import download, extract
from course_utils.errors import CourseError

FRACTIONS = (0.75, 0.05, 0.20)
"""Share of the subjects in train, val and test unless told otherwise."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the course knows about a data set before it has been downloaded.

    ``image``, ``label`` and ``velocity`` are paths inside the folder with ``{name}`` where the subject's name
    stands. An empty ``image`` says that a Learn2Reg ``NAME_dataset.json`` in the folder lists the files.
    ``shape`` is the common grid in voxels and ``spacing`` its voxel size in mm. ``aligned`` volumes share one
    voxel grid already and are taken as stored: neither reoriented nor resampled, their headers' affines
    unused.
    """

    name: str
    title: str
    folder: str
    url: str = ""
    checksum: str = ""
    bytes: int = 0
    licence: str = ""
    citation: str = ""
    labels: Mapping[int, str] = field(default_factory=dict, hash=False)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    image: str = ""
    label: str = ""
    velocity: str = ""
    aligned: bool = False
    members: tuple[str, ...] = ()
    """Patterns of the archive's members that are needed; empty means all."""
    validation: tuple[str, ...] = ()
    """Subjects that a public challenge validates on: they are the val split, and never trained on."""

    @property
    def grid(self) -> dict:
        """Arguments of `course_utils.loading.preprocessing` that bring this data set to its common grid."""
        return {"shape": self.shape, "spacing": None if self.aligned else self.spacing}


@dataclass(frozen=True)
class Subject:
    """Files of one subject. ``velocity`` is the built-in cohort's true velocity field, absent elsewhere."""

    name: str
    image: Path
    label: Path | None = None
    velocity: Path | None = None


@dataclass(frozen=True)
class Pair:
    """Two subjects to register: ``moving`` is to be brought onto the grid of ``fixed``."""

    fixed: Subject
    moving: Subject

    @property
    def name(self) -> str:
        return f"{self.moving.name}_to_{self.fixed.name}"


_OASIS_TERMS = "OASIS data use agreement, https://sites.wustl.edu/oasisbrains/"
_OASIS_CITATION = (
    "Marcus et al., Open Access Series of Imaging Studies (OASIS), J. Cogn. Neurosci. 19, 2007; "
    "Hoopes et al., HyperMorph: Amortized hyperparameter learning for image registration, IPMI 2021"
)
_LEARN2REG_VALIDATION = tuple(f"OASIS_OAS1_{number:04d}_MR1" for number in range(438, 458))

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="synthetic",
            title="Built-in cohort of brains with known deformations, made from the ICBM152 template",
            folder="synthetic",
            licence="made from the ICBM152 2009 template: free to use with its copyright notice",
            citation="Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage, 2011",
            shape=(48, 64, 48),
            spacing=(3.5, 3.5, 3.5),
            image="images/{name}.nii.gz",
            label="labels/{name}.nii.gz",
            velocity="velocities/{name}.nii.gz",
            aligned=True,
        ),
        DatasetInfo(
            name="hippocampus",
            title="260 hippocampus MR volumes of the Medical Segmentation Decathlon, task 4",
            folder="Task04_Hippocampus",
            url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
            bytes=27_000_000,
            licence="CC BY-SA 4.0",
            citation="Antonelli et al., The Medical Segmentation Decathlon, Nat. Commun. 13, 2022",
            labels={1: "anterior", 2: "posterior"},
            shape=(48, 64, 48),
            spacing=(1.0, 1.0, 1.0),
            image="imagesTr/{name}.nii.gz",
            label="labelsTr/{name}.nii.gz",
            members=("*imagesTr/*.nii.gz", "*labelsTr/*.nii.gz", "*dataset.json"),
        ),
        DatasetInfo(
            name="oasis2d",
            title="414 coronal brain slices of OASIS-1, 24 structures",
            folder="oasis2d",
            url="https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.2d.v1.0.tar",
            checksum="md5:c9ae5864f250c7e4b8d83a104e51ae8e",
            bytes=24_000_000,
            licence=_OASIS_TERMS,
            citation=_OASIS_CITATION,
            shape=(160, 192),
            spacing=(1.0, 1.0),
            image="{name}/slice_norm.nii.gz",
            label="{name}/slice_seg24.nii.gz",
            aligned=True,
            members=("*slice_norm.nii.gz", "*slice_seg*.nii.gz", "*.txt"),
            validation=_LEARN2REG_VALIDATION,
        ),
        DatasetInfo(
            name="oasis",
            title="414 brain MR volumes of OASIS-1, affinely aligned and skull-stripped, 4 or 35 structures",
            folder="oasis",
            url="https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.v1.0.tar",
            checksum="sha256:86dd117dda17f736ade8a4088d7e98e066e1181950fe8b406f1a35f7fb743e78",
            bytes=6_600_000_000,
            licence=_OASIS_TERMS,
            citation=_OASIS_CITATION,
            shape=(160, 192, 224),
            spacing=(1.0, 1.0, 1.0),
            image="{name}/aligned_norm.nii.gz",
            label="{name}/aligned_seg35.nii.gz",
            aligned=True,
            members=("*aligned_norm.nii.gz", "*aligned_seg*.nii.gz", "*.txt"),
            validation=_LEARN2REG_VALIDATION,
        ),
        DatasetInfo(
            name="learn2reg",
            title="Any Learn2Reg archive with its NAME_dataset.json; by itself the OASIS validation subjects",
            folder="learn2reg",
            url="https://cloud.imi.uni-luebeck.de/s/MSkzxTJTrtfZY5e/download/L2R_2021_Task3_validation.zip",
            licence="that of the archive; for the OASIS task: " + _OASIS_TERMS,
            citation="Hering et al., Learn2Reg: comprehensive multi-task medical image registration challenge, "
            "IEEE Trans. Med. Imaging 42, 2023",
            aligned=True,
        ),
    )
}

_SEG4 = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}


def data_root() -> Path:
    """The data folder: ``MONAI_DATA_DIRECTORY``, or ``./data`` where that is unset."""
    return Path(os.environ.get("MONAI_DATA_DIRECTORY") or "data")


# --- pairs ------------------------------------------------------------------------------------------------------------


class PairSequence(Sequence[Pair]):
    """Pairs computed from their index: a billion of them cost no memory, and any one can be had at once."""

    def __init__(self, subjects: Sequence[Subject], count: int, indices: Callable[[int], tuple[int, int]]):
        self._subjects = tuple(subjects)
        self._count = count
        self._indices = indices

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
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


@dataclass(frozen=True)
class Cohort:
    """Subjects of a data set, split into train, val and test. No subject is on two sides."""

    info: DatasetInfo
    subjects: tuple[Subject, ...]
    splits: Mapping[str, tuple[Subject, ...]]
    official: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    missing: tuple[Path, ...] = ()
    """Images of the authors' own pairs that the folder lacks; these pairs are not in ``official``."""

    def pairs(
        self,
        split: str,
        kind: str = "random",
        count: int | None = None,
        seed: int = 0,
        atlas: str | None = None,
    ) -> Sequence[Pair]:
        """Pairs within a split, computed when asked for.

        With ``n`` subjects in the split, ``kind`` is one of

        - ``random``: every ``n`` pairs have each subject once as fixed and once as moving image, and no
          ordered pair comes back before all ``n (n - 1)`` have been; ``count`` is ``n`` by default and may be
          as large as one likes;
        - ``consecutive``: each subject with its successor as moving image, ``n - 1`` pairs;
        - ``atlas``: the fixed image is always ``atlas`` (a subject's name; by default the first training
          subject);
        - ``all``: every ordered pair, ``n (n - 1)``;
        - ``official``: the pairs that the data set's authors published for this split.

        Raises `CourseError` for an unknown split, kind or atlas, a split too small to pair, and a ``count``
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
            return pairs[: _checked(count, len(pairs), kind)]
        if kind == "atlas":
            fixed = self._atlas(atlas)
            moving = tuple(subject for subject in subjects if subject != fixed)
            return PairSequence((fixed, *moving), _checked(count, len(moving), kind), _atlas_pair)
        if n < 2:
            raise CourseError(
                f"split '{split}' of {self.info.name} has {n} subject{'s' * (n != 1)}, and a pair needs 2: "
                "change the fractions or add subjects"
            )
        if kind == "random":
            if seed < 0:
                raise CourseError(f"seed {seed} is negative: choose 0 or more")
            return PairSequence(subjects, _checked(count, None, kind) or n, partial(_random_pair, n, seed))
        if kind == "consecutive":
            return PairSequence(subjects, _checked(count, n - 1, kind), _consecutive_pair)
        return PairSequence(subjects, _checked(count, n * (n - 1), kind), partial(_every_pair, n))

    def _atlas(self, name: str | None) -> Subject:
        if name is None:
            return (self.splits.get("train") or self.subjects)[0]
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise CourseError(f"{self.info.name} has no subject '{name}': the first is '{self.subjects[0].name}'")

    def without(self, names: Iterable[str]) -> Cohort:
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


def _checked(count: int | None, available: int | None, kind: str) -> int | None:
    if count is None:
        return available
    if count < 1 or (available is not None and count > available):
        limit = "1 or more" if available is None else f"1 to {available}"
        raise CourseError(f"{count} pairs of kind '{kind}' cannot be had here: ask for {limit}")
    return count


# --- finding the subjects ---------------------------------------------------------------------------------------------


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

    ``root`` is the folder that holds one folder a data set (`data_root` by default); for ``learn2reg`` it may
    also be the folder with the archive's ``NAME_dataset.json``. ``fractions`` are the shares of train, val
    and test, and ``seed`` decides who is where: each subject's place follows from the seed and its name, so a
    subject that is added or lost moves hardly anyone else. ``label_set`` chooses among the OASIS
    segmentations: 4 or 35 (24 for oasis2d). ``registry`` is a user's own file, see `read_registry`.

    Raises `CourseError` for an unknown name, an empty or missing folder, and whatever keeps a download from
    ending.
    """
    info = dataset_info(name, registry)
    if label_set is not None:
        info = _choose_labels(info, label_set)
    folder = _folder(info, root)
    if download and not folder.exists():
        fetch(info, root)
    if not folder.is_dir():
        raise CourseError(f"no {info.name} data in {folder}: run `{fill_command(info)}`")
    if not info.image and not _is_2021(folder):
        return _learn2reg_cohort(info, folder, seed, fractions)
    if not info.image:
        info = _describe_2021(info, folder)
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


def dataset_info(name: str, registry: str | Path | None = None, mirror: str | None = None) -> DatasetInfo:
    """The entry of a data set, its address replaced by ``mirror`` if there is one.

    An unknown name raises a `CourseError` that lists the valid ones.
    """
    known = read_registry(registry) if registry else DATASETS
    if name not in known:
        raise CourseError(f"no data set called '{name}': choose from {', '.join(known)}")
    return replace(known[name], url=mirror) if mirror else known[name]


def terms(info: DatasetInfo) -> str:
    """Title, size, licence and citation: what a user should read before a download."""
    size = f" ({info.bytes / 1e6:,.0f} MB)" if info.bytes else ""
    return f"{info.title}{size}\nlicence: {info.licence or 'unknown'}\ncite: {info.citation or 'unknown'}"


def fill_command(info: DatasetInfo) -> str:
    """The command that fills a data set's folder."""
    script = {
        "synthetic": "make_synthetic.py",
        "oasis": "download_oasis.py",
        "oasis2d": "download_oasis.py --slices",
        "learn2reg": "download_learn2reg.py learn2reg",
    }.get(info.name, f"download_learn2reg.py {info.name}" + " --registry FILE" * (info.name not in DATASETS))
    return f"python data_scripts/{script}"


def fetch(info: DatasetInfo, root: str | Path | None = None) -> Path:
    """Download and unpack a data set, or make the built-in one, below ``root``; returns its folder.

    A folder that exists is left alone. Raises `CourseError`, see `course_utils.download`.
    """
    root = Path(root) if root is not None else data_root()
    folder = root / info.folder
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    if info.name == "synthetic":
        from course_utils.synthetic import make_cohort

        make_cohort(folder)
        return folder
    if not info.url:
        raise CourseError(f"{info.name} has no address: put its files into {folder}")
    archive = root / (Path(urlsplit(info.url).path).name or f"{info.folder}.tar")
    download(info.url, archive, info.checksum or None, size=info.bytes)
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
    return tuple(subjects)


def split_subjects(
    subjects: Sequence[Subject],
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    *,
    validation: Sequence[Subject] = (),
) -> dict[str, tuple[Subject, ...]]:
    """Disjoint splits train, val and test, each in the order of the names.

    A side whose fraction is not zero gets at least the two subjects that a pair needs. ``validation`` is put
    into val whatever the fractions say, and nobody else is then; with nobody else at all train and test are empty.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CourseError(f"fractions {fractions} are not three shares of 1: give train, val and test, say {FRACTIONS}")
    fixed = set(validation)
    # The order of a hash, not of a shuffled list: the place of one subject does not depend on who else is there.
    rest = sorted(
        (subject for subject in subjects if subject not in fixed),
        key=lambda subject: hashlib.sha256(f"{seed}:{subject.name}".encode()).digest(),
    )
    if fixed and not rest:
        return {"train": (), "val": tuple(sorted(validation, key=lambda subject: subject.name)), "test": ()}
    n_test = max(2, round(fractions[2] * len(rest))) if fractions[2] else 0
    n_val = max(2, round(fractions[1] * len(rest))) if fractions[1] and not fixed else 0
    if fractions[0] and len(rest) - n_test - n_val < 2:
        raise CourseError(
            f"{len(subjects)} subjects are too few for train, val and test of 2 each: add subjects, "
            "or change the fractions"
        )
    sides = {
        "train": rest[n_test + n_val :],
        "val": [*validation, *rest[n_test : n_test + n_val]],
        "test": rest[:n_test],
    }
    return {side: tuple(sorted(part, key=lambda subject: subject.name)) for side, part in sides.items()}


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
        facts = _read_json(folder / "cohort.json")
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
                r"^[ \t]*(\d+)[ \t,:]+([^\s,]+(?: [^\s\d,]+)*)", table.read_text(errors="replace"), re.MULTILINE
            )
            names = {int(value): name for value, name in rows if int(value) > 0}
            if names:
                return names
        if segmentation[1] == "4":
            return dict(_SEG4)
        return {value: f"label {value}" for value in range(1, int(segmentation[1]) + 1)}
    return _labels_of(subjects)


def _labels_of(subjects: Sequence[Subject]) -> dict[int, str]:
    for subject in subjects:
        if subject.label is not None and subject.label.is_file():
            try:
                values = np.unique(np.asarray(nibabel.load(subject.label).dataobj))
            except Exception:  # a broken file is reported by whoever loads it; the next one will do
                continue
            return {int(value): f"label {int(value)}" for value in values if value > 0}
    return {}


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read as JSON ({error}): restore it from the archive") from error
    if not isinstance(content, dict):
        raise CourseError(f"{path} is not a JSON object: restore it from the archive")
    return content


def _is_2021(folder: Path) -> bool:
    """Whether a Learn2Reg archive is of the year whose OASIS task came as imgNNNN and segNNNN, without a JSON file."""
    return any(folder.glob("img*.nii.gz")) and not any(folder.glob("*_dataset.json"))


def _describe_2021(info: DatasetInfo, folder: Path) -> DatasetInfo:
    header = _header(min(folder.glob("img*.nii.gz")))
    return replace(
        info,
        image="img{name}.nii.gz",
        label="seg{name}.nii.gz",
        shape=header.get_data_shape()[:3],
        spacing=tuple(float(mm) for mm in header.get_zooms()[:3]),
        validation=tuple(name.split("_")[2] for name in _LEARN2REG_VALIDATION),
    )


def _learn2reg_cohort(info: DatasetInfo, folder: Path, seed: int, fractions: tuple[float, float, float]) -> Cohort:
    """Subjects, splits and official pairs of a Learn2Reg folder, as its ``NAME_dataset.json`` lists them.

    The challenge's validation and test subjects are val and test here. Where the archive has no test pairs,
    test is drawn from the training subjects, like everywhere else.
    """
    found = sorted(folder.glob("*_dataset.json")) or sorted(folder.glob("*/*_dataset.json"))
    if len(found) != 1:
        what = "no NAME_dataset.json" if not found else f"{len(found)} files NAME_dataset.json"
        raise CourseError(f"{folder} holds {what}: name the folder of one Learn2Reg archive as the data root")
    facts, folder = _read_json(found[0]), found[0].parent
    subjects: dict[str, Subject] = {}

    def subject(image: str) -> Subject:
        path = folder / image
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        if name not in subjects:
            label = path.parent.with_name(path.parent.name.replace("images", "labels")) / path.name
            subjects[name] = Subject(name, path, label if label.is_file() else None)
        return subjects[name]

    try:
        training = facts.get("training", [])
        for entry in itertools.chain(*training.values()) if isinstance(training, dict) else training:
            subject(entry["image"] if isinstance(entry, dict) else entry)
        official, absent = {}, []
        for side in ("train", "val", "test"):
            pairs = [Pair(subject(p["fixed"]), subject(p["moving"])) for p in facts.get(f"registration_{side}", [])]
            there = tuple(pair for pair in pairs if pair.fixed.image.is_file() and pair.moving.image.is_file())
            absent += [pair for pair in pairs if pair not in there]
            if there:
                official[side] = there
        shape = facts.get("tensorImageShape", {})
        shape = tuple(int(n) for n in (next(iter(shape.values()), ()) if isinstance(shape, dict) else shape))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CourseError(
            f"{found[0]} is not in the Learn2Reg layout ({error!r}): restore it from the archive"
        ) from error
    if absent:
        warnings.warn(f"{found[0]} lists {len(absent)} pairs whose images are not in {folder}: left out", stacklevel=3)
    everyone = tuple(sorted((s for s in subjects.values() if s.image.is_file()), key=lambda s: s.name))
    if not everyone:
        raise CourseError(f"{folder} holds none of the images that {found[0].name} lists: unpack the whole archive")
    header = _header(everyone[0].image)
    info = replace(
        info,
        folder=folder.name,
        labels=info.labels or _learn2reg_labels(facts) or _labels_of(everyone),
        shape=info.shape or shape or header.get_data_shape()[:3],
        spacing=info.spacing or tuple(float(mm) for mm in header.get_zooms()[:3]),
    )
    images = dict.fromkeys(s.image for pair in absent for s in (pair.fixed, pair.moving) if not s.image.is_file())
    return Cohort(info, everyone, _learn2reg_splits(everyone, official, seed, fractions), official, tuple(images))


def _learn2reg_splits(
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


def _learn2reg_labels(facts: dict) -> dict[int, str]:
    labels = facts.get("labels") or {}
    while isinstance(labels, dict) and labels and all(isinstance(value, dict) for value in labels.values()):
        labels = next(iter(labels.values()))  # one table a modality: take the first
    if not isinstance(labels, dict):
        return {}
    return {int(value): str(name) for value, name in labels.items() if str(value).isdigit() and int(value) > 0}


def _header(path: Path):
    try:
        return nibabel.load(path).header
    except Exception as error:
        raise CourseError(f"{path} cannot be read as an image ({error}): restore it from the archive") from error


# --- a user's own registry --------------------------------------------------------------------------------------------


def read_registry(path: str | Path) -> dict[str, DatasetInfo]:
    """`DATASETS` with the additions and changes of a user's file.

    The file is TOML or JSON with one table a data set whose keys are the fields of `DatasetInfo`. A table of
    a known name changes only the fields it names (``[oasis]`` with ``url = "https://mirror/..."`` is a
    mirror); a new name needs title, folder, shape, spacing, image and usually label and labels. Raises
    `CourseError` naming what is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise CourseError(f"registry {path} cannot be read ({error}): give a TOML or JSON file") from error
    if not isinstance(tables, dict):
        raise CourseError(f"registry {path} is not a table of data sets: write one table a data set")
    known = dict(DATASETS)
    for name, table in tables.items():
        try:
            known[name] = _info(name, table, known.get(name))
        except (TypeError, ValueError, AttributeError) as error:
            raise CourseError(f"registry {path}, data set '{name}': {error}") from error
    return known


def _info(name: str, table: dict, base: DatasetInfo | None) -> DatasetInfo:
    names = {f.name for f in fields(DatasetInfo)} - {"name"}
    unknown = set(table) - names
    if unknown:
        raise ValueError(f"no field called '{sorted(unknown)[0]}': choose from {', '.join(sorted(names))}")
    values = dict(table)
    if "labels" in values:
        values["labels"] = {int(value): str(label) for value, label in values["labels"].items()}
    if "shape" in values:
        values["shape"] = tuple(int(n) for n in values["shape"])
    if "spacing" in values:
        values["spacing"] = tuple(float(mm) for mm in values["spacing"])
    for key in {"members", "validation"} & set(values):
        values[key] = tuple(map(str, values[key]))
    info = replace(base, **values) if base else DatasetInfo(name=name, **{"title": name, "folder": name, **values})
    if len(info.shape) != len(info.spacing) or len(info.shape) not in ((2, 3) if info.image else (0, 2, 3)):
        raise ValueError("shape and spacing need 2 or 3 numbers each: the common grid in voxels, its voxels in mm")
    if info.image and "{name}" not in info.image:
        raise ValueError("image needs {name} where the subject's name stands, say images/{name}.nii.gz")
    if Path(info.folder).is_absolute() or ".." in Path(info.folder).parts:
        raise ValueError("folder is a name below the data root, not a path out of it")
    return info
