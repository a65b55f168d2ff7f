"""Two brains of one's own, without their skulls, as they are and with one of them in another contrast."""

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils import metrics
from course_utils.data.volumes import Volume, read_image, read_labels
from course_utils.fields import warp
from course_utils.scans.mapping import FURTHER_ITERATIONS
from course_utils.scans.registration import register_files
from course_utils.scans.writing import image_like, save
from tests.benchmarks import peers

Row = dict[str, float]
File = Annotated[Path, typer.Option()]


def brains(
    moving: File,
    fixed: File,
    moving_label: File,
    fixed_label: File,
    model: Annotated[str, typer.Option(help="A network for whole brains.")] = "brain",
    smallest: Annotated[int, typer.Option(help="Voxels below which a structure does not count.")] = 1000,
    syn: Annotated[bool, typer.Option(help="ANTs' SyN too, which takes minutes.")] = True,
) -> None:
    """Dice of all structures, and seconds, of a network, of optimisation and of SyN; both scans on one grid.

    In a second table the fixed brain is dark where it was bright, which is about what T2 makes of T1.
    """
    label, target = read_labels(moving_label), read_labels(fixed_label).data
    values, counts = target.unique(return_counts=True)
    structures = [int(value) for value, count in zip(values, counts, strict=True) if value > 0 and count >= smallest]

    def dice(moved: Tensor) -> float:
        return metrics.dice(moved, target, structures).nanmean().item()

    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "inverted.nii.gz"
        _invert(fixed, other)
        for contrast, goal in (("as they are", fixed), ("the fixed one inverted", other)):
            methods: dict[str, dict[str, Any]] = {
                model: {"model": model, "iterations": 0},
                f"{model}, optimised": {"model": model, "iterations": FURTHER_ITERATIONS},
                "optimised": {},
            }
            rows: dict[str, Row] = {"as it lies": {"Dice": dice(label.data), "seconds": 0.0}}
            for name, settings in methods.items():
                outputs = {key: Path(folder) / f"{key}.nii.gz" for key in ("moved", "moved_label")}
                report = register_files(moving, goal, outputs, moving_label=moving_label, **settings)
                moved = read_labels(outputs["moved_label"]).data
                rows[name] = {"Dice": dice(moved), "seconds": report.seconds, "folding %": report.folding_percent}
            if syn and find_spec("ants"):
                rows["SyN (ANTs)"] = _timed(peers.syn, read_image(moving), read_image(goal), label, dice)
            typer.echo(
                f"{contrast}, {len(structures)} structures\n{pd.DataFrame(rows).T.to_string(float_format='%.3f')}"
            )


def _timed(
    method: Callable[..., Any], moving: Volume, fixed: Volume, label: Volume, dice: Callable[..., float]
) -> dict:
    images = [image.data / image.data.max() for image in (moving, fixed)]
    begun = time.monotonic()
    displacement = method(*images).displacement
    seconds = time.monotonic() - begun
    moved = warp(label.data, displacement, mode="nearest", padding="zeros")
    return {"Dice": dice(moved), "seconds": seconds, "folding %": metrics.folding_percent(displacement).item()}


def _invert(path: Path, out: Path) -> None:
    scan = read_image(path)
    inside = scan.data > 0
    inverted = torch.where(inside, scan.data.max() * 1.05 - scan.data, torch.zeros(()))
    save(image_like(inverted, scan, scan.grid, scan.header), out, out)
