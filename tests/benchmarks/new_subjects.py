"""A few subjects of one's own: is it better to go on with a network that ships, or to begin anew?"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from course_utils.checkpoint import Checkpoint
from course_utils.data.pairs import Cohort
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import BothOrders, Segmented, pair_objective
from course_utils.training import TrainConfig, train_cohort

MEASURES = ["dice_before", "dice_after", "hd95_mm_after", "folding_percent"]


def new_subjects(
    model: Annotated[Path, typer.Option(help="The network to go on with.")] = Path("hippocampus-labels"),
    dataset: Annotated[str, typer.Option(help="Whose test subjects, unknown to the network, are new.")] = "hippocampus",
    subjects: Annotated[int, typer.Option(help="New ones with labels, a fifth of them for validation.", min=10)] = 20,
    minutes: Annotated[float, typer.Option(help="Going on with the network.", min=0.01)] = 2.0,
    scratch: Annotated[float, typer.Option(help="Minutes of a new network.", min=0.01)] = 15.0,
    count: Annotated[int, typer.Option(help="Pairs of the other test subjects.")] = 50,
) -> None:
    """Overlap of pairs of subjects that nobody trained on: as the network ships, after going on with it, and anew.

    Each is trained as `train --dice-weight 0.5 --bidirectional both --augment 0.5` does.
    """
    start = Checkpoint.load(model)
    cohort, _ = Source(dataset=dataset).load()
    new, others = cohort.splits["test"][:subjects], cohort.splits["test"][subjects:]
    if len(others) < 2:
        raise CourseError(f"--subjects {subjects} leaves nobody of {dataset}'s test subjects to measure on: take fewer")
    known = set(start.card.subjects.get("train", ())) & {subject.name for subject in (*new, *others)}
    if known:
        raise CourseError(f"{model} was trained on {len(known)} of the test subjects of {dataset}: name another")
    validation = max(2, subjects // 5)
    cohort = dataclasses.replace(cohort, splits={"train": new[validation:], "val": new[:validation], "test": others})
    values = tuple(cohort.info.labels)
    pair = BothOrders(pair_objective("ssd", smoothness=0.05, dice_weight=0.5, labels=values, coarseness=2))
    segments = start.network.architecture == "joint"
    objective = Segmented(pair, values) if segments else pair
    rows = {"as it ships": measured(start, cohort, count)}
    for name, begin, budget in (("going on with it", start, minutes), ("anew", None, scratch)):
        with tempfile.TemporaryDirectory() as folder:
            result = train_cohort(
                cohort,
                Path(folder) / "run",
                network=NetworkSpec(start.network.architecture, start.network.arguments),
                start=begin,
                objective=objective,
                config=TrainConfig(minutes=budget, augment=0.5),
                hooks=[],
            )
            rows[name] = measured(Checkpoint.load(result.best), cohort, count)
        rows[name]["steps"], rows[name]["minutes"] = len(result.history), budget
        typer.echo(f"{name}: Dice {rows[name]['dice_after']:.4f}", err=True)
    typer.echo(pd.DataFrame(rows).T.to_string(float_format="{:.4f}".format))


def measured(checkpoint: Checkpoint, cohort: Cohort, count: int) -> dict[str, float]:
    """A row of the table: means over pairs of the test subjects."""
    table = evaluate_checkpoint(checkpoint, cohort.distinct_pairs("test", count))
    return dict(summarise(table).loc["overall"].xs("mean", level=1)[MEASURES])
