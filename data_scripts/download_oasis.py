"""Download the OASIS-1 brains: 414 volumes (6.6 GB archive, 1.2 GB kept), or their coronal slices (24 MB)."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.cli import run
from course_utils.datasets import dataset_info, fetch, terms

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    slices: Annotated[bool, typer.Option("--slices", help="The 2-D slices instead of the volumes.")] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Where data sets live; MONAI_DATA_DIRECTORY or ./data.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Another address of the same archive.")] = None,
    registry: Annotated[Path | None, typer.Option(help="Your own registry file, TOML or JSON.")] = None,
) -> None:
    info = dataset_info("oasis2d" if slices else "oasis", registry, mirror)
    typer.echo(terms(info))
    typer.echo(f"ready: {fetch(info, data_root)}")


if __name__ == "__main__":
    run(app)
