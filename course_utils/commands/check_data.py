"""The command `check-data`."""

from typing import Annotated

import typer

from course_utils.commands.settings import DataRoot, Registry, Settings
from course_utils.data.check import check_subjects
from course_utils.data.cohorts import load_cohort
from course_utils.errors import CourseError


def check_data(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
    registry: Registry = None,
) -> None:
    """Read every volume of a data set as training would, and name each file that cannot be used.

    \b
    Example:
      python -m course_utils check-data hippocampus
    """
    cohort = load_cohort(name, data_root, download=False, registry=registry)
    faults = check_subjects(cohort, progress=not Settings.current().quiet)
    for fault in faults:
        typer.echo(f"unusable: {fault}")
    sides = ", ".join(f"{len(part)} {side}" for side, part in cohort.splits.items())
    typer.echo(f"{cohort.info.title}: {len(cohort.subjects)} subjects ({sides})")
    if faults:
        raise CourseError(
            f"{len(faults)} of {len(cohort.subjects)} subjects of {name} cannot be used: they are listed above; "
            "mend or remove their files"
        )
