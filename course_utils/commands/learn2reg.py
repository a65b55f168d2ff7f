"""The command `learn2reg`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import MODEL, Device, Settings, Smoothness
from course_utils.commands.settings import device as device_of
from course_utils.errors import CourseError
from course_utils.evaluation import readable, summarise
from course_utils.scans.learn2reg import FORMATS, submit
from course_utils.scans.learn2reg_evaluation import measure

Split = StrEnum("Split", ["val", "test"])
FieldFormat = StrEnum("FieldFormat", list(FORMATS))


def learn2reg(
    data_root: Annotated[Path, typer.Option(help="Folder of one challenge task, with its NAME_dataset.json.")],
    out: Annotated[Path, typer.Option(help="The submission, a ZIP file; with --evaluate the table, a CSV file.")],
    model: Annotated[Path | None, typer.Option(help=MODEL)] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Instead of --model: measure this submission, a ZIP file or a folder of fields.")
    ] = None,
    smoothness: Smoothness = None,
    split: Annotated[Split, typer.Option(help="Which of the official pairs: registration_val or _test.")] = Split.val,
    file_format: Annotated[
        FieldFormat, typer.Option(help="Of the fields; npz holds the array as arr_0.")
    ] = FieldFormat["nii.gz"],
    short_names: Annotated[
        bool,
        typer.Option("--short-names", help="disp_FFFF_MMMM instead of disp_FFFF_CCCC_MMMM_CCCC, for older evaluators."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Write a Learn2Reg submission, or measure one as the challenge does.

    With --model, registers the official pairs of the folder and writes one displacement field for each, on the task's
    own grid: shape (X, Y, Z, 3), in voxels. With --evaluate, measures fields, anybody's, where the folder has labels:
    Dice, HD95 in voxels and SDlogJ by the challenge's own definitions, and the share of folded voxels.

    \b
    Train on the folder first:
      python -m course_utils train --dataset learn2reg --data-root DIR --minutes 15 --out runs/l2r

    \b
    Example:
      python -m course_utils learn2reg --data-root DIR --model runs/l2r/best.pt --out submission.zip
    """
    if model is not None and evaluate is None:
        names = submit(
            model,
            data_root,
            out,
            smoothness=smoothness,
            split=split.value,
            file_format=file_format.value,
            short_names=short_names,
            device=device_of(device),
            progress=not Settings.current().quiet,
        )
        again = (
            f"python -m course_utils learn2reg --data-root {data_root} --evaluate {out} --out {out.with_suffix('.csv')}"
        )
        typer.echo(
            f"{len(names)} fields, {names[0]} the first, in {out}; where the folder has labels, measure them:\n{again}"
            + ("" if split is Split.val else f" --split {split.value}")
        )
    elif evaluate is not None and model is None:
        if smoothness is not None:
            raise CourseError("--smoothness chooses an answer of a network: it goes with --model, not with --evaluate")
        typer.echo(readable(summarise(measure(evaluate, data_root, out, split=split.value))))
    else:
        raise CourseError("learn2reg needs either --model FILE-OR-NAME or --evaluate SUBMISSION.zip: give one of them")
