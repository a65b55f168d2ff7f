"""Make the built-in cohort: brains from the ICBM152 template whose deformations are known. Needs no network."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.cli import run
from course_utils.datasets import DATASETS, data_root, terms
from course_utils.synthetic import make_cohort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    root: Annotated[
        Path | None, typer.Option("--data-root", help="Where data sets live; MONAI_DATA_DIRECTORY or ./data.")
    ] = None,
    subjects: Annotated[int, typer.Option(help="How many brains.")] = 40,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size in mm; 3.5 in 3-D and 1.75 in 2-D if not given.")
    ] = None,
    amplitude: Annotated[float, typer.Option(help="Strength of the deformations in mm.")] = 2.4,
    dimensions: Annotated[int, typer.Option(help="3 for volumes, 2 for slices.")] = 3,
    seed: Annotated[int, typer.Option(help="Same seed, same brains.")] = 0,
) -> None:
    info = DATASETS["synthetic"]
    typer.echo(terms(info))
    folder = make_cohort(
        (root or data_root()) / info.folder,
        subjects=subjects,
        spacing=spacing,
        amplitude=amplitude,
        dimensions=dimensions,
        seed=seed,
    )
    typer.echo(f"ready: {folder}")


if __name__ == "__main__":
    run(app)
