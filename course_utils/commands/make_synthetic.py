"""The command `make-synthetic`."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import DataRoot
from course_utils.data.cohorts import data_root as default_root
from course_utils.data.registry import DATASETS, terms
from course_utils.data.synthetic import AMPLITUDE, make_cohort


def make_synthetic(
    data_root: DataRoot = None,
    subjects: Annotated[int, typer.Option(help="How many brains.")] = 40,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size in mm.", show_default="3.5 in 3-D and 1.75 in 2-D")
    ] = None,
    amplitude: Annotated[float, typer.Option(help="Strength of the deformations in mm.")] = AMPLITUDE,
    dimensions: Annotated[int, typer.Option(help="3 for volumes, 2 for slices.")] = 3,
    seed: Annotated[int, typer.Option(help="Same seed, same brains.")] = 0,
) -> None:
    """Make the built-in cohort: brains from the ICBM152 template whose deformations are known. Needs no network.

    \b
    Example:
      python -m course_utils make-synthetic --dimensions 2
    """
    info = DATASETS["synthetic"]
    typer.echo(terms(info))
    folder = make_cohort(
        Path(data_root or default_root()) / info.folder,
        subjects=subjects,
        spacing=spacing,
        amplitude=amplitude,
        dimensions=dimensions,
        seed=seed,
    )
    typer.echo(f"ready: {folder}")
