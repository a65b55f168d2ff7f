"""The command `models`."""

from typing import Annotated

import typer

from course_utils import shipped


def models(
    name: Annotated[
        str | None, typer.Argument(help="Of a network; without it all are listed.", show_default=False)
    ] = None,
) -> None:
    """List the trained networks that ship with the package, or show the card of one.

    Their names stand for a file wherever a command takes a checkpoint: --model NAME, and --init NAME to begin a
    training with one.

    \b
    Example:
      python -m course_utils models hippocampus
    """
    typer.echo(shipped.overview() if name is None else shipped.readable(shipped.card(name)))
