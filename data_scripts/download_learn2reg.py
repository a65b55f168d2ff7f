"""Download Learn2Reg or Medical Segmentation Decathlon data; the same as `python -m course_utils download NAME`."""

import typer

from course_utils.commands.download import download
from course_utils.commands.ending import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(download)

if __name__ == "__main__":
    run(app)
