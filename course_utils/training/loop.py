"""One loop that trains every network on every objective, for the notebooks and the command line.

Everything that happens at a step follows from the configuration and the step's number (the pairs come by index, the
learning rate by progress, random numbers from a seed of the step), so a run that was killed and resumed gives the
numbers of one that was not.

Where a launcher has started several processes, each calls `fit` and takes its share of every step's pairs: see `ranks`.
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

from course_utils.checkpoint import Checkpoint, read_state
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

    Several processes that were `joined` train one network: each calls this with the same arguments but its own device,
    and gets the same result. The first writes; `out` and what it holds need be there for that one alone.

    Args:
        model: The network to train, of an architecture that has a name (see `networks.architecture`). It is moved to
            the device and changed.
        objective: What is minimised.
        train: The training pairs, taken in their order; as many as the budget may need (pairs are lazy, so
            `cohort.pairs("train", count=10**9)` costs nothing). Of N processes, number r takes each N-th from r on.
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
            disk is full; the batch cannot be shared equally by the processes, or one of them has gone. The checkpoints
            written until then stay.
        KeyboardInterrupt: Ctrl-C, after the current step has been finished and `last.pt` written; with several
            processes, SIGTERM too, in one of them.
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
    run.ranks.batch(config.batch_size)
    model.check_grid(first["fixed"].shape[1:])
    if not run.ranks.writes:
        return _run_to_its_end(run, train, validation, stop, workers, resume)
    run.check_folder(resume)
    with only_run_in(run.out):
        return _run_to_its_end(run, train, validation, stop, workers, resume)


def _run_to_its_end(
    run: TrainingRun, train: PairDataset, validation: PairDataset, stop: int, workers: int, resume: bool
) -> Result:
    run.share(train, validation)
    run.resume() if resume else run.begin()
    size, ranks = run.config.batch_size, run.ranks
    if not ranks.alone:
        stop -= stop % size  # of a step that not all have pairs for, none takes any
    with run.watched(), _stop_asked(run.interrupted, together=not ranks.alone):
        # Within _stop_asked, so that processes that load pairs leave Ctrl-C to this one.
        batches = iter(loader(train, ranks.batch(size), run.step * size, stop, workers, share=ranks.share))
        while run.progress < 1:
            batch = next(batches, None)
            if batch is None:
                run.save("last.pt")
                raise CourseError(f"the {len(train)} training pairs ended before the minutes did: give more pairs")
            row = run.train_step(batch)
            if run.step == 1 or run.progress >= run.next_validation:
                row |= run.validate(validation)
            run.note(row)
            if run.progress >= 1 or run.stopping or time.monotonic() - run.saved_at > CHECKPOINT_SECONDS:
                run.save("last.pt")
            if run.stopping:
                stopped = "Ctrl-C" if ranks.alone else "a signal"
                raise KeyboardInterrupt(
                    f"stopped by {stopped} and saved at step {run.step}: go on with --resume, or resume=True"
                )
    history, best = pd.DataFrame(run.history), run.out / "best.pt"
    if ranks.writes:
        with replacing(run.out / "history.csv") as partial:
            history.to_csv(partial, index=False)
    model = Checkpoint.from_dict(ranks.from_first(lambda: read_state(best)), best).model().to(run.device)
    return Result(model, history, best, run.out / "last.pt")


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
def _stop_asked(event: threading.Event, *, together: bool) -> Generator[None]:
    """Let Ctrl-C set the event, so that a step is finished and saved before the run ends; a second ends it at once.

    Several processes must end together, and none at once: a launcher hands on the Ctrl-C that they had already. What
    it sends them where a machine is wanted back, or one of them has ended, is SIGTERM: it counts as the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; elsewhere Ctrl-C stays what it is
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set() and not together:
            raise KeyboardInterrupt
        event.set()

    numbers = (signal.SIGINT, signal.SIGTERM) if together else (signal.SIGINT,)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
