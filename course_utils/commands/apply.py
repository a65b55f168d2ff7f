"""The command `apply`."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.scans.applying import apply_files


def apply(
    warp: Annotated[Path, typer.Option(help="A displacement field, of register, ANTs, SimpleITK or Learn2Reg.")],
    out: Annotated[Path, typer.Option(help="Result: an image on the field's grid, or a CSV file of points.")],
    image: Annotated[Path | None, typer.Option(help="A scan to be moved.")] = None,
    label: Annotated[Path | None, typer.Option(help="Or a label map (nearest neighbour).")] = None,
    points: Annotated[Path | None, typer.Option(help="Or a CSV file with columns x, y, z in mm.")] = None,
    lps: Annotated[
        bool, typer.Option("--lps", help="The points are in ITK's and ANTs' axes, not in NIfTI's (RAS).")
    ] = False,
) -> None:
    """Carry an image, a label map or points through a written field.

    Images and label maps of the moving scan come to the field's grid, as register would have written them. A point goes
    from the fixed scan's space to the moving scan's, as in ANTs: points of the moving scan are carried along by the
    inverse field, which register --inverse-warp writes.

    \b
    Example:
      python -m course_utils apply --warp W.nii.gz --image M.nii.gz --out MOVED.nii.gz
    """
    typer.echo(apply_files(warp, out, image=image, label=label, points=points, lps=lps))
