"""Make the built-in cohort; the same as `python -m course_utils make-synthetic`."""

import typer

from course_utils.commands.ending import run
from course_utils.commands.make_synthetic import make_synthetic

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(make_synthetic)

if __name__ == "__main__":
    run(app)
