"""The command `check-data`."""

from typing import Annotated

import typer

from course_utils.commands.data_options import takes_source
from course_utils.commands.settings import Settings
from course_utils.data.check import check_subjects
from course_utils.data.source import Source
from course_utils.errors import CourseError


@takes_source
def check_data(
    dataset: Annotated[str | None, typer.Argument(help="The data set, unless --images.", show_default=False)] = None,
    *,
    source: Source,
) -> None:
    """Read every volume of a data set, or of your own images, as training would, and name each that cannot be used.

    \b
    Example:
      python -m course_utils check-data hippocampus
      python -m course_utils check-data --images scans --labels segmentations
    """
    cohort, line = source.load(download=False)
    faults = check_subjects(cohort, progress=not Settings.current().quiet)
    for fault in faults:
        typer.echo(f"unusable: {fault}")
    typer.echo(line)
    if faults:
        raise CourseError(
            f"{len(faults)} of {len(cohort.everyone)} subjects of {cohort.info.name} cannot be used: they are listed "
            "above; mend or remove their files"
        )
