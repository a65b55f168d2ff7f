"""How a notebook begins: which data set, how much of it, on what device, from which seed."""

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import monai
import torch
from monai.utils import set_determinism

import course_utils
from course_utils.data.cohorts import data_root, fetch
from course_utils.data.registry import DatasetInfo, fill_command, known_datasets
from course_utils.errors import CourseError
from course_utils.places import place

PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Session:
    """What a notebook is run with; `str()` of it names no path and no host, so that it can be published.

    Attributes:
        dataset: a name out of `course_utils.data.registry.known_datasets()`.
        profile: `"quick"` shows every idea in minutes on a CPU, `"full"` trains at full size on a GPU.
        device: the CUDA device if there is one, otherwise the CPU.
        seed: what the generators of Python, NumPy and PyTorch were seeded with.
        data_root: the folder that holds the data sets.
        runs: the folder for checkpoints, logs and tables that the notebook writes.
        versions: of the software that makes the numbers.
        note: why the data set is not the one that suits the page; empty where it is.
    """

    dataset: str
    profile: str
    device: torch.device
    seed: int
    data_root: Path
    runs: Path
    versions: dict[str, str] = field(hash=False)
    note: str = ""

    def __str__(self) -> str:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        rows = {
            "data set": self.dataset,
            "profile": self.profile,
            "device": device,
            "seed": self.seed,
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        }
        if self.note:
            rows["note"] = self.note
        return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


def start(seed: int | None = None, *, real: str | None = None) -> Session:
    """Seed every generator and read what the user chose; fetch the people that a page shows where they are missing.

    `COURSE_DATASET` names the data set, which may be one of the file `COURSE_REGISTRY` (see `read_registry`). Where it
    is unset, the page's `real` data set is taken, downloaded if the data folder does not hold it yet, and `synthetic`
    where it cannot be had. `COURSE_PROFILE` is the profile (`full` if there is a CUDA device, else `quick`),
    `MONAI_DATA_DIRECTORY` the data folder and `COURSE_RUNS` the folder for results (`data` and `runs` in the course's
    folder, see `places`). `COURSE_SEED` is the seed where none is given, 0 if unset.

    Args:
        seed: Of the generators; None reads `COURSE_SEED`.
        real: Name of the data set of people that suits the page.

    Raises:
        CourseError: a data set or a profile that does not exist, a seed that is not a whole number from 0 on, or a
            registry that cannot be read.
    """
    seed = _seed() if seed is None else seed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    root, datasets = data_root(), known_datasets()
    dataset, note = os.environ.get("COURSE_DATASET", ""), ""
    if dataset:
        _check("COURSE_DATASET", dataset, tuple(datasets))
    else:
        dataset, note = ("synthetic", "") if real is None else _at_hand(datasets[real], root)
    profile = os.environ.get("COURSE_PROFILE") or ("full" if device.type == "cuda" else "quick")
    _check("COURSE_PROFILE", profile, PROFILES)
    session = Session(
        dataset=dataset,
        profile=profile,
        device=device,
        seed=seed,
        data_root=root,
        runs=place("COURSE_RUNS", "runs"),
        versions={
            "course_utils": course_utils.__version__,
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
        note=note,
    )
    set_determinism(seed)
    return session


def _seed() -> int:
    value = os.environ.get("COURSE_SEED") or "0"
    if not value.isdecimal():
        raise CourseError(f"COURSE_SEED={value} is not a whole number, 0 or more: change it, or leave it unset")
    return int(value)


def _at_hand(info: DatasetInfo, root: Path) -> tuple[str, str]:
    """A data set of people, or the built-in one and why: a page without a network works too."""
    try:
        fetch(info, root, timeout=10)
    except CourseError as error:
        reason = str(error).split(" (")[0].split(": ")[0]
        return "synthetic", f"made subjects, for want of {info.name}: {reason}; later: {fill_command(info)}"
    return info.name, ""


def _check(variable: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise CourseError(f"{variable}={value} does not exist; set it to one of: {', '.join(valid)}")
