"""The command `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import Model, Smoothness
from course_utils.scans import export as exporting

Format = StrEnum("Format", list(exporting.FORMATS))


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file (onnx, safetensors) or the new folder (bundle) to write.")],
    format: Annotated[
        Format,
        typer.Option(
            help="A MONAI bundle, an ONNX graph for the grid of the training, or a small file that --model takes."
        ),
    ] = Format.bundle,
    smoothness: Smoothness = None,
) -> None:
    """Write a trained network for others: as a MONAI bundle, as an ONNX graph, or as a small file for this package.

    A bundle holds weights, metadata, a model card and a configuration that registers two files. A graph takes the two
    images on the common grid, intensities in [0, 1], and answers with the moved image and the displacement in voxels. A
    file of safetensors holds the weights in float16, and all that --model needs; its card is written beside it.

    \b
    Example:
      python -m course_utils export --model runs/ncc/best.pt --format onnx --out model.onnx
    """
    exporting.export(model, out, format.value, smoothness=smoothness)
    typer.echo(f"{out} written")
