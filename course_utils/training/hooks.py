"""What looks on while a network is trained: TensorBoard, a progress bar, a line now and then."""

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from course_utils import plotting
from course_utils.errors import CourseError
from course_utils.objectives import Outcome


class Hook:
    """Called by a run at its turning points; a hook looks on and changes nothing of the run.

    Each of these methods does nothing here.
    """

    @contextlib.contextmanager
    def watching(self, out: Path, step: int) -> Generator[None]:
        """Around a run in the folder `out` that begins, or goes on after `step` steps."""
        yield

    def validated(self, step: int, batch: Mapping[str, Any], outcome: Outcome) -> None:
        """The network was measured; this is the first of the validation pairs."""

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """A step was made: its row of the history, and the share of the budget that is spent, 0 to 1."""

    def saving(self) -> None:
        """A checkpoint is about to be written: what it counts as done must not be lost by the hook."""


class TensorBoard(Hook):
    """Curves and a picture of the first validation pair, in `out/tensorboard`.

    A row's `validation_NAME` becomes the curve `validation/NAME`.
    """

    @contextlib.contextmanager
    def watching(self, out: Path, step: int) -> Generator[None]:
        """See `Hook`. What an earlier part of the run left in the folder counts up to `step`.

        Raises:
            CourseError: the disk is full. TensorBoard writes in a thread, and tells of it there and at any later call.
        """
        unraised = threading.excepthook
        threading.excepthook = lambda thread: None if isinstance(thread.exc_value, OSError) else unraised(thread)
        folder = out / "tensorboard"
        try:
            with contextlib.closing(SummaryWriter(folder, purge_step=step + 1)) as self.writer:
                yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CourseError(f"{folder} was not written (the disk is full): make room and resume") from error
        finally:
            threading.excepthook = unraised

    def validated(self, step: int, batch: Mapping[str, Any], outcome: Outcome) -> None:
        """See `Hook`."""
        if outcome.registration is not None:
            images = {"moving": batch["moving"], "fixed": batch["fixed"], "moved": outcome.registration.moved}
            self.writer.add_figure("validation/pair", plotting.panel(images), step)

    def stepped(self, row: Mapping[str, float], progress: float) -> None:
        """See `Hook`."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name.replace("validation_", "validation/"), value, int(row["step"]))

    def saving(self) -> None:
        """See `Hook`."""
        self.writer.flush()


class ProgressBar(Hook):
    """A bar on stderr, for a terminal."""

    @contextlib.contextmanager
    def watching(self, out: Path, step: int) -> Generator[None]:
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
    def watching(self, out: Path, step: int) -> Generator[None]:
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
