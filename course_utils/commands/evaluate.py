"""The command `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from course_utils.checkpoint import Checkpoint
from course_utils.commands.data_options import takes_source
from course_utils.commands.settings import Device, Model, Settings, Smoothness
from course_utils.commands.settings import device as device_of
from course_utils.data.pair_files import pairs_from_csv
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, readable, summarise
from course_utils.files import check_writable, replacing


@takes_source
def evaluate(
    model: Model,
    out: Annotated[Path, typer.Option(help="The table: one row for each pair and structure.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Instead: CSV with the columns fixed_image, moving_image and, for labels, fixed_label, moving_label; "
            "paths relative to it.",
        ),
    ] = None,
    *,
    source: Source,
    count: Annotated[int, typer.Option(help="At most so many pairs of the test subjects.", min=1)] = 50,
    smoothness: Smoothness = None,
    device: Device = "auto",
) -> None:
    """Measure a trained network on pairs of scans it has not seen.

    The pairs are random ones of the test subjects, of the data that the network was trained on unless you name another;
    with an atlas, every test subject onto it. Both images of a pair are brought to one common grid as in training.
    Writes dice, hd_mm and hd95_mm (before and after), and of the map folding_percent, ndv_percent (the volume that is
    turned over), sdlogj, seconds, swap_voxels (how far a voxel ends from its place after the map and the map of the
    swapped images) and self_voxels (how far an image moves against itself), and prints means and spreads. Without
    labels the similarity (ncc) and the error of the inverse (inverse_error_mm) stand in the place of the first. For the
    built-in cohort the true deformation is known and tre_mm is measured too.

    \b
    Example:
      python -m course_utils evaluate --model runs/ncc/best.pt --pairs pairs.csv --out metrics.csv
    """
    if pairs is not None and source.given:
        raise CourseError("--pairs, --dataset and --images name pairs in three ways: give one of them")
    check_writable(out, "metrics.csv")
    where = device_of(device)
    checkpoint = Checkpoint.load(model).at(smoothness)
    labels = {value: checkpoint.card.labels.get(value, f"label {value}") for value in source.structures or ()}
    if pairs is not None:
        cases = pairs_from_csv(pairs)
    else:
        source = source.or_that_of(checkpoint.card)
        cohort, line = source.load()
        cohort, seen = source.unseen(cohort, checkpoint.card)
        if not Settings.current().quiet:
            typer.echo(line, err=True)
            if seen:
                typer.echo(f"left out: {seen} of the test subjects have trained or validated this network", err=True)
        if seen and not cohort.splits["test"]:
            raise CourseError("every test subject has trained or validated this network: give others, or --pairs")
        cases = cohort.distinct_pairs("test", count)
        labels = labels or cohort.info.labels
    if checkpoint.smoothness_range is not None and not Settings.current().quiet:
        typer.echo(f"smoothness {checkpoint.smoothness:g}, of {checkpoint.smoothness_range}", err=True)
    table = evaluate_checkpoint(checkpoint, cases, labels=labels, device=where)
    with replacing(out) as partial:
        table.to_csv(partial, index=False)
    typer.echo(readable(summarise(table)))
