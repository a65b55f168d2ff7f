"""The command `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.checkpoint import Checkpoint
from course_utils.commands.settings import DataRoot, Device, Model, Registry
from course_utils.commands.settings import device as device_of
from course_utils.data.cohorts import load_cohort
from course_utils.data.pair_files import pairs_from_csv
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, readable, summarise
from course_utils.files import check_writable, replacing


def evaluate(
    model: Model,
    out: Annotated[Path, typer.Option(help="The table: one row for each pair and structure.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns fixed_image, moving_image, fixed_label, moving_label; paths relative to the CSV.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of --pairs: random pairs of a data set's test subjects.")
    ] = None,
    count: Annotated[int, typer.Option(help="At most so many of them.", min=1)] = 50,
    device: Device = "auto",
    data_root: DataRoot = None,
    registry: Registry = None,
) -> None:
    """Measure a trained network on pairs of scans it has not seen.

    Both images of a pair are brought to one common grid as in training, so their shapes may differ. Writes dice, hd_mm
    and hd95_mm (before and after), folding_percent, sdlogj and seconds, and prints means and spreads. For the built-in
    cohort the true deformation is known and tre_mm is measured too.

    \b
    Example:
      python -m course_utils evaluate --model runs/ncc/best.pt --pairs pairs.csv --out metrics.csv
    """
    check_writable(out, "metrics.csv")
    where = device_of(device)
    checkpoint = Checkpoint.load(model)
    if pairs is not None and dataset is None:
        cases = pairs_from_csv(pairs)
    elif dataset is not None and pairs is None:
        cases = load_cohort(dataset, data_root, registry=registry).distinct_pairs("test", count)
    else:
        raise CourseError("evaluate needs either --pairs FILE.csv or --dataset NAME: give one of them")
    table = evaluate_checkpoint(checkpoint, cases, device=where)
    with replacing(out) as partial:
        table.to_csv(partial, index=False)
    typer.echo(readable(summarise(table)))
