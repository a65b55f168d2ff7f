"""Download the OASIS-1 brains; the same as `python -m course_utils download oasis` or `oasis2d`."""

from typing import Annotated

import typer

from course_utils.commands.download import Mirror, download
from course_utils.commands.ending import run
from course_utils.commands.settings import DataRoot, Registry

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    slices: Annotated[bool, typer.Option("--slices", help="The 2-D slices instead of the volumes.")] = False,
    data_root: DataRoot = None,
    mirror: Mirror = None,
    registry: Registry = None,
) -> None:
    """Download the OASIS-1 brains: 414 volumes (6.6 GB archive, 1.2 GB kept), or their coronal slices (24 MB)."""
    download("oasis2d" if slices else "oasis", data_root, mirror, registry)


if __name__ == "__main__":
    run(app)
