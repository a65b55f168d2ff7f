"""The command `download`."""

from typing import Annotated

import typer

from course_utils.commands.settings import DataRoot, Registry
from course_utils.data.cohorts import fetch
from course_utils.data.registry import dataset_info, terms

Mirror = Annotated[str | None, typer.Option(help="Another address of the same archive.")]


def download(
    name: Annotated[str, typer.Argument(help="The data set.")],
    data_root: DataRoot = None,
    mirror: Mirror = None,
    registry: Registry = None,
) -> None:
    """Download a data set: hippocampus (27 MB), oasis2d (24 MB), oasis (6.6 GB, 1.2 GB kept), learn2reg, or your own.

    Shows licence and citation, goes on where an earlier download ended, and checks the sum. The data sets named
    learn2reg are the validation subjects of the challenge's OASIS task.

    \b
    Example:
      python -m course_utils download hippocampus
    """
    info = dataset_info(name, registry, mirror)
    typer.echo(terms(info))
    typer.echo(f"ready: {fetch(info, data_root)}")
