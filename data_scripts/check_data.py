"""Check a data set on disk: read every volume as training would, and name each file that cannot be used."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from course_utils.cli import run
from course_utils.datasets import load_cohort
from course_utils.errors import CourseError
from course_utils.loading import load_subject, preprocessing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    name: Annotated[str, typer.Argument(help="The data set.")] = "hippocampus",
    data_root: Annotated[
        Path | None, typer.Option(help="Where data sets live; MONAI_DATA_DIRECTORY or ./data.")
    ] = None,
    registry: Annotated[Path | None, typer.Option(help="Your own registry file, TOML or JSON.")] = None,
) -> None:
    cohort = load_cohort(name, data_root, download=False, registry=registry)
    transform = preprocessing(**cohort.info.grid)
    faults = []
    for subject in tqdm(cohort.subjects, desc="checking", unit=" subjects"):
        try:
            load_subject(subject, transform)
        except CourseError as fault:
            faults.append(fault)
    for fault in faults:
        typer.echo(f"unusable: {fault}")
    sides = ", ".join(f"{len(part)} {side}" for side, part in cohort.splits.items())
    typer.echo(f"{cohort.info.title}: {len(cohort.subjects)} subjects ({sides})")
    if faults:
        raise CourseError(
            f"{len(faults)} of {len(cohort.subjects)} subjects of {name} cannot be used: they are listed above; "
            "mend or remove their files"
        )


if __name__ == "__main__":
    run(app)
