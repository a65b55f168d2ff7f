"""The command `register`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import Device
from course_utils.commands.settings import device as device_of
from course_utils.errors import CourseError
from course_utils.scans.affine import SIMILARITIES
from course_utils.scans.registration import ITERATIONS, LAYOUTS, register_files

AffineSimilarity = StrEnum("AffineSimilarity", list(SIMILARITIES))
Layout = StrEnum("Layout", list(LAYOUTS))


def register(
    moving: Annotated[Path, typer.Option(help="The scan to be moved (NIfTI).")],
    fixed: Annotated[Path, typer.Option(help="The scan it is moved onto (NIfTI).")],
    moved: Annotated[Path, typer.Option(help="Result: the moved scan on the fixed scan's grid.")],
    warp: Annotated[Path | None, typer.Option(help="Result: the displacement field that made it.")] = None,
    inverse_warp: Annotated[
        Path | None, typer.Option(help="Result: the field that moves the fixed scan; on the moving scan's grid.")
    ] = None,
    moving_label: Annotated[Path | None, typer.Option(help="Label map of the moving scan.")] = None,
    moved_label: Annotated[Path | None, typer.Option(help="Result: that label map, moved (nearest neighbour).")] = None,
    model: Annotated[Path | None, typer.Option(help="A checkpoint that train wrote, such as OUT/best.pt.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Register by optimisation alone.")] = False,
    affine: Annotated[bool, typer.Option("--affine", help="Align with 12 parameters first.")] = False,
    affine_similarity: Annotated[
        AffineSimilarity,
        typer.Option(help="What --affine compares: correlation, or mi for scans of different contrast."),
    ] = AffineSimilarity.correlation,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps that refine the field for this pair; 0 for the network alone.",
            min=0,
            show_default=f"{ITERATIONS}; 0 for a network trained with labels, which knows more than a pair's images "
            "show",
        ),
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="Of the fields: itk for ITK, ANTs and 3D Slicer; learn2reg for the challenge.")
    ] = Layout.itk,
    device: Device = "auto",
) -> None:
    """Register two scans, with a network, by optimisation, or both.

    Shapes, spacings, orientations and origins may differ; the affines say where the scans are. --affine is for scans
    that do not lie on each other yet. Results lie on the fixed scan's grid and keep the moving scan's data type. Fields
    of the layout itk hold affine and deformation in one, and antsApplyTransforms or SimpleITK apply them alone.

    \b
    Example:
      python -m course_utils register --moving M.nii.gz --fixed F.nii.gz --moved OUT.nii.gz --no-model
    """
    if (model is None) != no_model:
        raise CourseError("register needs either --model FILE.pt or --no-model: give one of them")
    outputs = {"moved": moved, "warp": warp, "inverse_warp": inverse_warp, "moved_label": moved_label}
    report = register_files(
        moving,
        fixed,
        {name: path for name, path in outputs.items() if path is not None},
        model=model,
        affine=affine_similarity.value if affine else None,
        iterations=iterations,
        moving_label=moving_label,
        layout=layout.value,
        device=device_of(device),
    )
    typer.echo(report)
