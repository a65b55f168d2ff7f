"""One loop that trains every network on every objective, for the notebooks and the command line.

Everything that happens at a step follows from the configuration and the step's number (the pairs come by index, the
learning rate by progress, random numbers from a seed of the step), so a run that was killed and resumed gives the
numbers of one that was not.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.loading import PairDataset, loader
from course_utils.errors import CourseError
from course_utils.files import replacing
from course_utils.locks import locked
from course_utils.networks import RegistrationNetwork
from course_utils.objectives import Objective
from course_utils.training.config import TrainConfig
from course_utils.training.hooks import Hook
from course_utils.training.run import TrainingRun

CHECKPOINT_SECONDS = 30
"""At most this much work is lost when a run is killed."""


class Result(NamedTuple):
    """What `fit` returns.

    Attributes:
        model: The best network, in evaluation mode, on the device.
        history: A row a step: `step`, `loss`, the terms of the objective, `learning_rate`, `seconds` and, where the
            network was validated, `validation_*`.
        best: File of the network that did best on the validation pairs.
        last: File that the run can be resumed from.
    """

    model: RegistrationNetwork
    history: pd.DataFrame
    best: Path
    last: Path


def fit(
    model: RegistrationNetwork,
    objective: Objective,
    train: PairDataset,
    validation: PairDataset,
    out: str | Path,
    config: TrainConfig,
    *,
    card: DataCard,
    device: torch.device | str = "cpu",
    workers: int = 0,
    resume: bool = False,
    hooks: Sequence[Hook] | None = None,
) -> Result:
    """Train a registration network and keep the best of it.

    Args:
        model: The network to train, of an architecture that has a name (see `networks.architecture`). It is moved to
            the device and changed.
        objective: What is minimised.
        train: The training pairs, taken in their order; as many as the budget may need (pairs are lazy, so
            `cohort.pairs("train", count=10**9)` costs nothing).
        validation: A few pairs of other subjects. The network with the highest mean Dice on them is the best; without
            labels, the one with the lowest similarity loss (the lowest loss, where no term is called `similarity`).
        out: Folder for `best.pt`, `last.pt`, `history.csv` and TensorBoard's files.
        config: The budget, the optimiser, the precision.
        card: Of the data; stored with the weights.
        device: Where to train.
        workers: Processes that load pairs.
        resume: Go on from `out/last.pt`.
        hooks: What looks on; None is `TensorBoard` alone.

    Raises:
        CourseError: `out` holds a run already, or none to resume, or one of another configuration; the pairs lack what
            the objective needs, or their images are too small for the network; the loss is not finite, or climbs; the
            disk is full. The checkpoints written until then stay.
        KeyboardInterrupt: Ctrl-C, after the current step has been finished and `last.pt` written.
    """
    stop = len(train) if config.steps is None else config.steps * config.batch_size
    if stop > len(train):
        raise CourseError(
            f"{config.steps} steps of {config.batch_size} need {stop} training pairs, not {len(train)}: ask for more"
        )
    first = train[0]
    missing = sorted(objective.needs - first.keys())
    if missing:
        raise CourseError(f"the objective needs {', '.join(missing)} and the training pairs have none: add them")
    run = TrainingRun(model, objective, config, Path(out), card, torch.device(device), hooks)
    model.check_grid(first["fixed"].shape[1:])
    run.check_folder(resume)
    with only_run_in(run.out):
        return _run_to_its_end(run, train, validation, stop, workers, resume)


def _run_to_its_end(
    run: TrainingRun, train: PairDataset, validation: PairDataset, stop: int, workers: int, resume: bool
) -> Result:
    run.resume() if resume else run.begin()
    with run.watched(), _ctrl_c() as interrupted:
        # Within _ctrl_c, so that processes that load pairs leave Ctrl-C to this one.
        batches = iter(loader(train, run.config.batch_size, run.step * run.config.batch_size, stop, workers))
        while run.progress < 1:
            batch = next(batches, None)
            if batch is None:
                run.save("last.pt")
                raise CourseError(f"the {len(train)} training pairs ended before the minutes did: give more pairs")
            row = run.train_step(batch)
            if run.step == 1 or run.progress >= run.next_validation:
                row |= run.validate(validation)
            run.note(row)
            if run.progress >= 1 or interrupted.is_set() or time.monotonic() - run.saved_at > CHECKPOINT_SECONDS:
                run.save("last.pt")
            if interrupted.is_set():
                raise KeyboardInterrupt(
                    f"stopped by Ctrl-C and saved at step {run.step}: go on with --resume, or resume=True"
                )
    with replacing(run.out / "history.csv") as partial:
        pd.DataFrame(run.history).to_csv(partial, index=False)
    best = Checkpoint.load(run.out / "best.pt").model().to(run.device)
    return Result(best, pd.DataFrame(run.history), run.out / "best.pt", run.out / "last.pt")


@contextlib.contextmanager
def only_run_in(out: Path) -> Generator[None]:
    """Two runs in one folder would write their steps over each other's: the second ends in CourseError."""
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(locked(out / ".running", wait=False))
        except OSError as error:
            raise CourseError(f"{out} cannot be written ({error.strerror}): choose another folder") from error
        if not mine:
            raise CourseError(f"another process trains in {out}: wait for its end, or choose another folder")
        yield


@contextlib.contextmanager
def _ctrl_c() -> Generator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is finished and saved before the run ends; a second ends it at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals; elsewhere Ctrl-C stays what it is
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
