"""Check a data set on disk; the same as `python -m course_utils check-data`."""

import typer

from course_utils.commands.check_data import check_data
from course_utils.commands.ending import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(check_data)

if __name__ == "__main__":
    run(app)
