"""The commands `grade` and `check`; `course_utils.commands.app` finds them by the name of this module."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import Settings
from course_utils.commands.stopping import stopping_at_sigterm
from course_utils.grading import gradebook
from course_utils.grading.classroom import SOURCES, check_notebook, grade_class
from course_utils.grading.printable import some
from course_utils.grading.run import Limits


def grade(
    submissions: Annotated[
        list[Path], typer.Argument(help="Notebooks, folders or zips of a learning platform.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for grades.csv, grades.json, histogram.png and feedback/.")],
    assignments: Annotated[Path, typer.Option(help="Folder of the assignments' sources, with hidden tests.")] = SOURCES,
    workers: Annotated[int, typer.Option(help="Submissions at a time; 0 is one a processor.", min=0)] = 0,
    cell_timeout: Annotated[float, typer.Option(help="Seconds for a cell.", min=1)] = Limits.cell_seconds,
    timeout: Annotated[float, typer.Option(help="Seconds for a submission.", min=1)] = Limits.seconds,
    memory: Annotated[float, typer.Option(help="GB for a submission.", min=0.5)] = Limits.memory / 1e9,
    roster: Annotated[
        Path | None, typer.Option(help="CSV file of the class: everybody on it gets a row.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Grade again what was graded before, too.")] = False,
    allow_unisolated: Annotated[
        bool, typer.Option("--allow-unisolated", help="Grade also where the system denies a sandbox its namespaces.")
    ] = False,
) -> None:
    """Grade a class of submissions, each in a sandbox, and write a table and a page for each student.

    Run again, it grades only what has changed. A student's name comes from Moodle's, Canvas's, Blackboard's,
    Brightspace's or ILIAS's names, from the folder STUDENT or from STUDENT_02_topic.ipynb. Of several notebooks of
    one assignment the best counts; where these may be of several people, a warning says so. A roster has a column
    name, id or email; who is not on it, or may be several of it, is told.

    \b
    Examples:
      python -m course_utils grade submissions.zip --out grades
      python -m course_utils grade submissions.zip --roster class.csv --out grades
    """
    with stopping_at_sigterm():
        graded = grade_class(
            submissions,
            out,
            assignments=assignments,
            workers=workers,
            limits=Limits(cell_timeout, timeout, int(memory * 1e9)),
            roster=roster,
            force=force,
            allow_unisolated=allow_unisolated,
            warn=lambda line: typer.echo(f"warning: {line}", err=True),
            progress=not Settings.current().quiet,
        )
    typer.echo(gradebook.table(graded.grades).to_string(index=False, na_rep=""))
    for each in graded.grades:
        if len(each.places) > 1:
            typer.echo(
                f"warning: files from several places were taken for one student's, {each.student} "
                f"({each.assignment or 'no assignment'}; {some(each.places)}): if they are several people's, put "
                "each into a folder with the person's name and grade again",
                err=True,
            )
    for remark in graded.remarks:
        typer.echo(f"warning: {remark}", err=True)
    handed_in = sum(bool(each.where) for each in graded.grades)
    typer.echo(f"{handed_in} submissions; see {out / 'grades.csv'} and {out / 'feedback'}")


def check(
    notebook: Annotated[Path, typer.Argument(help="Your notebook of an assignment.", show_default=False)],
    assignments: Annotated[
        Path, typer.Option(help="Folder of the assignments' sources, where there is one.")
    ] = SOURCES,
) -> None:
    """Check your own solutions: points for each exercise, by the checks that you can see.

    It is what `grade` does, in the same sandbox, without the hidden tests.

    \b
    Example:
      python -m course_utils check notebooks/assignments/02_warping.ipynb
    """
    own = check_notebook(notebook, assignments=assignments)
    for exercise in own.exercises:
        typer.echo(f"{exercise.points} of {exercise.out_of}  {exercise.title}")
        if exercise.message:
            typer.echo(f"        {exercise.message}")
    typer.echo(f"{own.total} of {own.out_of} points on the visible checks")
