"""The command `train`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import DataRoot, Device, Registry, Settings
from course_utils.commands.settings import device as device_of
from course_utils.data.cohorts import load_cohort
from course_utils.errors import CourseError
from course_utils.networks import ARCHITECTURES, NetworkSpec
from course_utils.objectives import REGULARISERS, SIMILARITIES, pair_objective
from course_utils.training import TensorBoard, TrainConfig, train_cohort
from course_utils.training.config import AMP
from course_utils.training.hooks import progress_hook

Loss = StrEnum("Loss", list(SIMILARITIES))
Architecture = StrEnum("Architecture", list(ARCHITECTURES))
Regulariser = StrEnum("Regulariser", list(REGULARISERS))
Amp = StrEnum("Amp", {name: name for name in ("auto", *AMP)})
MINUTES = 5.0
"""The budget where the user gives none."""


def train(
    out: Annotated[
        Path, typer.Option(help="Folder for best.pt and its card, last.pt, history.csv and TensorBoard's files.")
    ],
    dataset: Annotated[
        str, typer.Option(help="synthetic, hippocampus, oasis2d, oasis, learn2reg, or a name of your registry.")
    ] = "synthetic",
    loss: Annotated[Loss, typer.Option(help="Similarity of moved and fixed image.")] = Loss.ncc,
    minutes: Annotated[
        float | None, typer.Option(help="Budget as time.", show_default=f"{MINUTES:g}, unless --epochs")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Budget as work, instead: an epoch has each training subject once as the fixed image."),
    ] = None,
    dice_weight: Annotated[float, typer.Option(help="Weight of the labels' soft Dice; 0 trains without labels.")] = 0.0,
    regulariser: Annotated[
        Regulariser, typer.Option(help="What keeps the velocity smooth: its first or its second derivatives.")
    ] = Regulariser.diffusion,
    smoothness: Annotated[
        float | None, typer.Option(help="Weight of the regulariser.", show_default="suits --loss")
    ] = None,
    jacobian_weight: Annotated[float, typer.Option(help="Weight of the penalty on folding.")] = 0.0,
    architecture: Annotated[
        Architecture, typer.Option(help="VoxelMorph, or a coarse-to-fine network that learns more in the same time.")
    ] = Architecture.pyramid,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = TrainConfig.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at its highest.")] = TrainConfig.learning_rate,
    amp: Annotated[
        Amp, typer.Option(help="Mixed precision; auto is bf16 where the device has it, fp16 on older GPUs.")
    ] = Amp.auto,
    seed: Annotated[int, typer.Option(help="Of the network's first weights and of the training pairs.", min=0)] = 0,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that load pairs, for cohorts cached on disk.", min=0)] = 0,
    data_root: DataRoot = None,
    registry: Registry = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, begun with the same options.")
    ] = False,
) -> None:
    """Train a registration network on a data set.

    The data is downloaded, or made, if it is not there. Subjects are split once into training, validation and test;
    the network that does best on the validation pairs is kept as OUT/best.pt. A run that was stopped goes on with
    --resume.

    \b
    Example:
      python -m course_utils train --dataset hippocampus --minutes 5 --out runs/ncc
    """
    if minutes is not None and epochs is not None:
        raise CourseError("--minutes and --epochs are two budgets: give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise CourseError(f"--epochs {epochs:g} is not above 0: change it")
    where = device_of(device)
    cohort = load_cohort(dataset, data_root, registry=registry)
    steps = None if epochs is None else math.ceil(epochs * len(cohort.splits["train"]) / batch_size)
    quiet = Settings.current().quiet
    result = train_cohort(
        cohort,
        out,
        network=NetworkSpec(architecture.value, {"spatial_dims": len(cohort.info.shape)}),
        objective=pair_objective(
            loss.value,
            regulariser=regulariser.value,
            smoothness=smoothness,
            dice_weight=dice_weight,
            labels=cohort.info.labels,
            jacobian_weight=jacobian_weight,
        ),
        config=TrainConfig(
            steps=steps,
            minutes=MINUTES if minutes is None and steps is None else minutes,
            batch_size=batch_size,
            learning_rate=learning_rate,
            amp=amp.value,
            seed=seed,
        ),
        root=data_root,
        device=where,
        workers=workers,
        resume=resume,
        hooks=[TensorBoard(), *progress_hook(quiet=quiet)],
        progress=not quiet,
    )
    last = result.history.iloc[-1]
    typer.echo(
        f"{int(last.step)} steps in {last.seconds / 60:.1f} minutes, loss {last.loss:.4f}; measure it:\n"
        f"python -m course_utils evaluate --model {result.best} --dataset {dataset} --out {out / 'metrics.csv'}"
    )
