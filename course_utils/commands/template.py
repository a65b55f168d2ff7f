"""The command `template`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from course_utils.checkpoint import Checkpoint
from course_utils.commands.data_options import numbers, takes_source
from course_utils.commands.launched import alone
from course_utils.commands.settings import Device, Settings
from course_utils.commands.settings import device as device_of
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.files import check_room
from course_utils.objectives import SIMILARITIES, TemplateObjective, pair_objective
from course_utils.templates import Conditions, averaged, learnt
from course_utils.training import TensorBoard, TrainConfig
from course_utils.training.hooks import progress_hook

Loss = StrEnum("Loss", list(SIMILARITIES))
MINUTES = 5.0
"""The budget where the user gives none."""


@alone
@takes_source
def template(
    out: Annotated[Path, typer.Option(help="Folder for the template, its labels, the report and the network.")],
    source: Source,
    minutes: Annotated[
        float | None, typer.Option(help="Budget as time.", show_default=f"{MINUTES:g}, unless --epochs")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Budget as work, instead: an epoch shows each training subject once.")
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            help="CSV file: the first column names each subject, every other one is a number that the template shall "
            "depend on, such as the age."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Attributes of which to write templates: age=20,50,80. Give it once for each attribute; one that is "
            "left out stays at its mean."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Learn nothing: average the images, bring each to the average by this network, and again, until "
            "nothing changes. A checkpoint, or a network that ships (see models)."
        ),
    ] = None,
    iterations: Annotated[
        int,
        typer.Option(help="The same by so many steps of instance optimisation, with --model or without.", min=0),
    ] = 0,
    loss: Annotated[Loss, typer.Option(help="Similarity of the deformed template and the scan.")] = Loss.ncc,
    smoothness: Annotated[
        float | None, typer.Option(help="Weight of the regulariser.", show_default="suits --loss")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Scans a step.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the network's first weights and of the order of the scans.", min=0)] = 0,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, begun with the same options.")
    ] = False,
) -> None:
    """Make the template of a data set, or of your own images: the one that all of them are closest to.

    It is learnt together with a network that brings it to each training subject, so that the deformations are small and
    their mean is nothing; with --attributes there is one for each age, say. Or it is averaged by a network that is
    there already. OUT gets template.nii.gz and template.json, a report; where there are labels also
    label_probabilities.nii.gz, a volume for each structure, winning_labels.nii.gz and winning_probability.nii.gz; of a
    template that was learnt also best.pt, which registers it to any scan.

    \b
    Example:
      python -m course_utils template --dataset hippocampus --minutes 10 --out runs/template
      python -m course_utils template --images scans --attributes ages.csv --at age=20,80 --out ages
    """
    if minutes is not None and epochs is not None:
        raise CourseError("--minutes and --epochs are two budgets: give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise CourseError(f"--epochs {epochs:g} is not above 0: change it")
    if source.atlas is not None:
        raise CourseError("--atlas is a template that is there already: leave it out")
    averages = model is not None or iterations > 0
    if averages and (attributes is not None or minutes is not None or epochs is not None or resume):
        raise CourseError(
            "--model and --iterations learn nothing: leave out --attributes, --minutes, --epochs and --resume, or them"
        )
    if at and attributes is None:
        raise CourseError("--at belongs to --attributes, a CSV file that knows them of each subject: add it")
    places = dict(_place(text) for text in at or ())
    where = device_of(device)
    check_room(out)
    start = None if model is None else Checkpoint.load(model)
    cohort, line = source.load(like=None if start is None else start.card.recipe)
    quiet = Settings.current().quiet
    if not quiet:
        typer.echo(line, err=True)
    shared: dict[str, Any] = {"root": source.data_root, "device": where, "progress": not quiet}
    if averages:
        results = averaged(cohort, out, checkpoint=start, iterations=iterations, **shared)
    else:
        steps = None if epochs is None else math.ceil(epochs * len(cohort.splits["train"]) / batch_size)
        results = learnt(
            cohort,
            out,
            objective=TemplateObjective(pair_objective(loss.value, smoothness=smoothness, coarseness=2)),
            config=TrainConfig(
                steps=steps,
                minutes=MINUTES if minutes is None and steps is None else minutes,
                batch_size=batch_size,
                seed=seed,
            ),
            conditions=None if attributes is None else Conditions(attributes, places),
            resume=resume,
            hooks=[TensorBoard(), *progress_hook(quiet=quiet)],
            **shared,
        )
    for ending, result in results.items():
        typer.echo(f"{out / f'template{ending}.nii.gz'}: {result}")


def _place(text: str) -> tuple[str, tuple[float, ...]]:
    """The attribute and its values of a word such as `age=20,50`."""
    name, _, values = text.partition("=")
    found = numbers(f"--at {name}=", values)
    if not name or not found:
        raise CourseError(f"--at {text} names no attribute and its values: write it as in --at age=20,50,80")
    return name, found
