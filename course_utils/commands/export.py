"""The command `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import Model
from course_utils.scans import export as exporting

Format = StrEnum("Format", list(exporting.FORMATS))


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file (onnx) or the new folder (bundle) to write.")],
    format: Annotated[
        Format, typer.Option(help="A MONAI bundle, or an ONNX graph for the grid of the training.")
    ] = Format.bundle,
) -> None:
    """Write a trained network for other programs, as a MONAI bundle or as an ONNX graph.

    A bundle holds weights, metadata, a model card and a configuration that registers two files. A graph takes the two
    images on the common grid, intensities in [0, 1], and answers with the moved image and the displacement in voxels.

    \b
    Example:
      python -m course_utils export --model runs/ncc/best.pt --format onnx --out model.onnx
    """
    exporting.export(model, out, format.value)
    typer.echo(f"{out} written")
