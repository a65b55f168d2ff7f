"""The data sets that the course knows: where they come from, what they hold, under which licence.

A user's own file adds to them, see `read_registry`. Nothing here reads a volume or a folder.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.places import place
from course_utils.plain import LARGEST_JSON, Unfit, as_it_is, flag, inside, items, number, table, whole, words


@dataclass(frozen=True)
class DatasetInfo:
    """What the course knows about a data set before it has been downloaded.

    Attributes:
        name: What commands call it.
        title: One line for people.
        folder: Its folder below the data root.
        url: Of its archive; empty where there is none to download.
        checksum: Of the archive, `"md5:..."` or `"sha256:..."`.
        bytes: Size of the archive.
        licence: Of the data.
        citation: What to cite.
        labels: Values of the structures in its label maps, with their names; empty where only the folder tells.
        shape: The common grid, voxels; empty where only the folder tells.
        spacing: Millimetres between its voxels along each axis.
        image: Path of a subject's image inside the folder, with `{name}` where the subject's name stands. Empty says
            that a Learn2Reg `NAME_dataset.json` in the folder lists the files.
        label: The same of its label map.
        velocity: The same of its true velocity field, of the built-in cohort.
        aligned: The volumes share one voxel grid already and are taken as stored: neither reoriented nor resampled,
            their headers' affines unused.
        members: Patterns of the archive's members that are needed; empty means all.
        validation: Subjects that a public challenge validates on: they are the val split, and never trained on.
        orientation: Where the array axes lead, a letter each as in nibabel's axis codes, for pictures; empty where
            volumes are brought to RAS, or nobody knows.
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
    validation: tuple[str, ...] = ()
    orientation: str = ""

    @property
    def view(self) -> dict[str, Any]:
        """What a picture of its images takes: `spacing` and `orientation`, arguments of the functions of `plotting`."""
        return {"spacing": list(self.spacing), "orientation": self.orientation or None}

    @property
    def recipe(self) -> Recipe:
        """How this data set's images are prepared for a network."""
        return Recipe(self.shape, self.spacing, aligned=self.aligned)

    def card(self) -> DataCard:
        """What a network trained on this data set must carry along."""
        return DataCard(
            self.name, dict(self.labels), self.recipe, self.licence or "unknown", self.citation or "unknown"
        )


_OASIS_TERMS = "OASIS data use agreement, https://sites.wustl.edu/oasisbrains/"
_OASIS_CITATION = (
    "Marcus et al., Open Access Series of Imaging Studies (OASIS), J. Cogn. Neurosci. 19, 2007; "
    "Hoopes et al., HyperMorph: Amortized hyperparameter learning for image registration, IPMI 2021"
)
LEARN2REG_VALIDATION = tuple(f"OASIS_OAS1_{number:04d}_MR1" for number in range(438, 458))
"""The subjects that Learn2Reg's OASIS task validates on."""

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
            validation=LEARN2REG_VALIDATION,
            orientation="LI",
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
            validation=LEARN2REG_VALIDATION,
            orientation="LIA",
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


def known_datasets(registry: str | Path | None = None) -> dict[str, DatasetInfo]:
    """Every data set by its name: `DATASETS`, and what a user's own file adds and changes.

    Args:
        registry: The file, see `read_registry`; None is the one that the environment variable `COURSE_REGISTRY` names,
            if it does.

    Raises:
        CourseError: the file cannot be used.
    """
    if registry is None and os.environ.get("COURSE_REGISTRY"):
        registry = place("COURSE_REGISTRY", "")
    return DATASETS if registry is None else read_registry(registry)


def dataset_info(name: str, registry: str | Path | None = None, mirror: str | None = None) -> DatasetInfo:
    """The entry of a data set, its address replaced by `mirror` if there is one.

    An unknown name raises a `CourseError` that lists the valid ones.
    """
    known = known_datasets(registry)
    if name not in known:
        raise CourseError(f"no data set called '{name}': choose from {', '.join(known)}")
    return replace(known[name], url=mirror) if mirror else known[name]


def terms(info: DatasetInfo) -> str:
    """Title, size, licence and citation: what a user should read before a download."""
    size = f" ({info.bytes / 1e6:,.0f} MB)" if info.bytes else ""
    return f"{info.title}{size}\nlicence: {info.licence or 'unknown'}\ncite: {info.citation or 'unknown'}"


def fill_command(info: DatasetInfo) -> str:
    """The command that fills a data set's folder."""
    if info.name == "synthetic":
        return "python -m course_utils make-synthetic"
    return f"python -m course_utils download {info.name}" + " --registry FILE" * (info.name not in DATASETS)


# --- a user's own registry --------------------------------------------------------------------------------------------


def read_registry(path: str | Path) -> dict[str, DatasetInfo]:
    """`DATASETS` with the additions and changes of a user's file.

    The file is TOML or JSON with one table a data set whose keys are the fields of `DatasetInfo`. A table of
    a known name changes only the fields it names (`[oasis]` with `url = "https://mirror/..."` is a
    mirror); a new name needs title, folder, shape, spacing, image and usually label and labels. Raises
    `CourseError` naming what is wrong.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise Unfit(f"larger than {LARGEST_JSON} bytes")
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except RecursionError as error:
        raise CourseError(f"registry {path} cannot be read (lists without end): give a TOML or JSON file") from error
    except (OSError, ValueError) as error:
        raise CourseError(f"registry {path} cannot be read ({error}): give a TOML or JSON file") from error
    if not isinstance(tables, dict):
        raise CourseError(f"registry {path} is not a table of data sets: write one table a data set")
    known = dict(DATASETS)
    for name, values in tables.items():
        try:
            known[name] = _info(inside(name, "its name"), table(values, "it"), known.get(name))
        except ValueError as error:
            raise CourseError(f"registry {path}, data set '{name:.100}': {error}; correct it") from error
    return known


def _path(value: Any, where: str) -> str:
    return inside(words(value, where), where)


def _labels(value: Any, where: str) -> dict[int, str]:
    found = {}
    for number_of, name in table(value, where).items():
        if not re.fullmatch(r"[0-9]{1,9}", str(number_of)):
            raise Unfit(
                f"{where} has an invalid literal {str(number_of)!r:.60}: values of a label map are whole numbers"
            )
        found[int(number_of)] = words(name, where)
    return found


def _shape(value: Any, where: str) -> tuple[int, ...]:
    return tuple(items(value, where, lambda n, place: whole(n, place, 1, 2**20)))


def _spacing(value: Any, where: str) -> tuple[float, ...]:
    found = tuple(float(number(mm, where)) for mm in items(value, where, as_it_is))
    if not all(0 < mm < math.inf for mm in found):
        raise Unfit(f"{where} is {found}: millimetres above 0")
    return found


def _names(value: Any, where: str) -> tuple[str, ...]:
    return tuple(items(value, where, words))


TYPES: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("title", "url", "checksum", "licence", "citation"), words),
    **dict.fromkeys(("folder", "image", "label", "velocity"), _path),
    **dict.fromkeys(("members", "validation"), _names),
    "bytes": whole,
    "labels": _labels,
    "shape": _shape,
    "spacing": _spacing,
    "aligned": flag,
}
"""What checks each field of a user's table, all but the name."""


def _info(name: str, given: Mapping[str, Any], base: DatasetInfo | None) -> DatasetInfo:
    unknown = set(given) - set(TYPES)
    if unknown:
        raise Unfit(f"no field called '{min(unknown):.100}': choose from {', '.join(sorted(TYPES))}")
    values = {field: TYPES[field](value, field) for field, value in given.items()}
    new: dict[str, Any] = {"title": name, "folder": name, **values}
    info = replace(base, **values) if base else DatasetInfo(name=name, **new)
    if len(info.shape) != len(info.spacing) or len(info.shape) not in ((2, 3) if info.image else (0, 2, 3)):
        raise ValueError("shape and spacing need 2 or 3 numbers each: the common grid in voxels, its voxels in mm")
    if info.image and "{name}" not in info.image:
        raise ValueError("image needs {name} where the subject's name stands, say images/{name}.nii.gz")
    return info
