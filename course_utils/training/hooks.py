"""What looks on while a network is trained: TensorBoard, a progress bar, a line now and then."""

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from course_utils.checkpoint import Checkpoint
from course_utils.errors import CourseError
from course_utils.objectives import Outcome

DOTS = 200
"""An inch, of the pictures in TensorBoard."""


class Hook:
    """Called by a run at its turning points; a hook looks on and changes nothing of the run.

    Each of these methods does nothing here.
    """

    @contextlib.contextmanager
    def watching(self, out: Path, checkpoint: Checkpoint) -> Generator[None]:
        """Around a run in the folder `out`.

        Args:
            out: Where the run writes.
            checkpoint: What it begins with, or goes on from: network, objective, configuration, data, steps made.
        """
        yield

    def validated(self, step: int, batch: Mapping[str, Any], outcome: Outcome) -> None:
        """The network was measured; this is the first of the validation pairs."""

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """A step was made: its row of the history, and the share of the budget that is spent, 0 to 1."""

    def saving(self) -> None:
        """A checkpoint is about to be written: what it counts as done must not be lost by the hook."""


class TensorBoard(Hook):
    """Curves, pictures of the first validation pair, and what the run was begun with, in `out/tensorboard`.

    A row's `validation_NAME` becomes the curve `validation/NAME`, whose last value stands in the table HPARAMS beside
    what decides the run (see `hyperparameters`). A picture has 3 pixels or more for each voxel of a grid of 160.
    """

    @contextlib.contextmanager
    def watching(self, out: Path, checkpoint: Checkpoint) -> Generator[None]:
        """See `Hook`. What an earlier part of the run left in the folder counts up to the checkpoint's step.

        Raises:
            CourseError: the disk is full. TensorBoard writes in a thread, and tells of it there and at any later call.
        """
        from torch.utils.tensorboard import SummaryWriter  # here: a run that nobody looks at need not wait for it

        unraised = threading.excepthook
        threading.excepthook = lambda thread: None if isinstance(thread.exc_value, OSError) else unraised(thread)
        folder = out / "tensorboard"
        self.settings, self.spacing = hyperparameters(checkpoint), checkpoint.card.recipe.spacing
        try:
            with contextlib.closing(SummaryWriter(folder, purge_step=checkpoint.step + 1)) as self.writer:
                yield
                self._table(end=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CourseError(f"{folder} was not written (the disk is full): make room and resume") from error
        finally:
            threading.excepthook = unraised

    def validated(self, step: int, batch: Mapping[str, Any], outcome: Outcome) -> None:
        """See `Hook`."""
        if outcome.registration is not None:
            from course_utils import plotting

            # No run shall end for a card that does not fit its images.
            fits = len(self.spacing) == batch["fixed"].ndim - 2
            figure = plotting.registration(
                batch["moving"],
                batch["fixed"],
                outcome.registration.moved,
                outcome.registration.displacement,
                label=batch.get("fixed_label"),
                spacing=self.spacing if fits else None,
            )
            figure.set_dpi(DOTS)
            self.writer.add_figure("validation/pair", figure, step)

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """See `Hook`."""
        curves = {name.replace("validation_", "validation/"): value for name, value in row.items() if name != "step"}
        if row["step"] == 1:
            self._table([name for name in curves if name.startswith("validation/")])
        for name, value in curves.items():
            self.writer.add_scalar(name, value, int(row["step"]))

    def _table(self, measures: Sequence[str] = (), *, end: bool = False) -> None:
        """Say what decides the run, and which curves tell what it achieves; or, at its end, that it has ended."""
        from torch.utils.tensorboard.summary import hparams

        # Into the run's own file: `add_hparams` writes another, and TensorBoard follows the youngest of a folder alone.
        assert self.writer.file_writer is not None  # it is there until the writer is closed
        about, begun, ended = hparams(self.settings, dict.fromkeys(measures, 0.0))
        for summary in [ended] if end else [about, begun]:
            self.writer.file_writer.add_summary(summary)

    def saving(self) -> None:
        """See `Hook`."""
        self.writer.flush()


def hyperparameters(checkpoint: Checkpoint) -> dict[str, float | str]:
    """What decides a run, by name: network, objective, configuration and data, as numbers and short texts."""
    card = checkpoint.card
    nested = {
        "network": checkpoint.network.architecture,
        **checkpoint.network.arguments,
        **checkpoint.objective,
        **checkpoint.config,
        "data set": card.dataset,
        "structures": len(card.labels),
        "grid": "x".join(map(str, card.recipe.shape)),
        "spacing": "x".join(f"{mm:g}" for mm in card.recipe.spacing),
    }
    return dict(_flat(nested))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Generator[tuple[str, float | str]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, (int, float, str)) else str(value)


class ProgressBar(Hook):
    """A bar on stderr, for a terminal."""

    @contextlib.contextmanager
    def watching(self, out: Path, checkpoint: Checkpoint) -> Generator[None]:
        """See `Hook`."""
        self.validation = ""
        with tqdm(total=100, desc="training", unit="%") as self.bar:
            yield

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """See `Hook`."""
        self.validation = _validation(row) or self.validation
        self.bar.set_postfix_str(f"step {row['step']:.0f}, loss {row['loss']:.4f}{self.validation}", refresh=False)
        self.bar.update(round(100 * progress) - self.bar.n)


class ProgressLines(Hook):
    """A line on stderr now and then, for a file or a pipe.

    Args:
        seconds: at least so much time lies between two lines, but for the last.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds

    @contextlib.contextmanager
    def watching(self, out: Path, checkpoint: Checkpoint) -> Generator[None]:
        """See `Hook`."""
        self.validation, self.due = "", time.monotonic() + self.seconds
        yield

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """See `Hook`."""
        self.validation = _validation(row) or self.validation
        if progress >= 1 or time.monotonic() >= self.due:
            self.due = time.monotonic() + self.seconds
            line = f"training {progress:4.0%}, step {row['step']:.0f}, loss {row['loss']:.4f}{self.validation}"
            print(line, file=sys.stderr, flush=True)


def progress_hook(*, quiet: bool = False) -> list[Hook]:
    """How far a run has got: a bar on a terminal, lines elsewhere, nothing where `quiet`."""
    if quiet:
        return []
    return [ProgressBar() if sys.stderr.isatty() else ProgressLines()]


def _validation(row: Mapping[str, float]) -> str:
    for name in ("validation_dice", "validation_loss"):
        if name in row:
            return f", {name.replace('_', ' ')} {row[name]:.3f}"
    return ""
