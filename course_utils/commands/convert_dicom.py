"""The command `convert-dicom`."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.data.dicom import convert_series, list_series
from course_utils.errors import CourseError


def convert_dicom(
    folder: Annotated[Path, typer.Argument(help="Of a DICOM export; the folders in it are searched too.")],
    out: Annotated[Path | None, typer.Option(help="The NIfTI file, .nii.gz or .nii.")] = None,
    series: Annotated[str | None, typer.Option(help="Where there are several: its number in the list, or uid.")] = None,
    list: Annotated[bool, typer.Option("--list", help="Only list the series.")] = False,
) -> None:
    """Write a DICOM series as a NIfTI file, in the order and at the place that its headers say.

    What a NIfTI file cannot hold is refused: missing or doubled slices, unequal steps, a tilted gantry, files without
    positions. Needs SimpleITK (pip install SimpleITK).

    \b
    Example:
      python -m course_utils convert-dicom EXPORT --list
      python -m course_utils convert-dicom EXPORT --series 2 --out scan.nii.gz
    """
    if (out is None) != list:
        raise CourseError("convert-dicom needs either --out FILE.nii.gz or --list: give one of them")
    if out is None:
        for number, one in enumerate(list_series(folder), start=1):
            typer.echo(f"{number}: {one}, {one.uid}" + (f"; cannot be converted: {one.fault}" if one.fault else ""))
        return
    typer.echo(f"{out}: {convert_series(folder, out, series)}")
