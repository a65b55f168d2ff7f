"""Download Learn2Reg or Medical Segmentation Decathlon data: "hippocampus" (27 MB), "learn2reg" (the OASIS task's
validation subjects), or any data set of your own registry file."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.cli import run
from course_utils.datasets import dataset_info, fetch, terms

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    name: Annotated[str, typer.Argument(help="The data set.")] = "hippocampus",
    data_root: Annotated[
        Path | None, typer.Option(help="Where data sets live; MONAI_DATA_DIRECTORY or ./data.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Another address of the same archive.")] = None,
    registry: Annotated[Path | None, typer.Option(help="Your own registry file, TOML or JSON.")] = None,
) -> None:
    info = dataset_info(name, registry, mirror)
    typer.echo(terms(info))
    typer.echo(f"ready: {fetch(info, data_root)}")


if __name__ == "__main__":
    run(app)
