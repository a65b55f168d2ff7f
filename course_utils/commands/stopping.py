"""What stops a command: Ctrl-C, from its first second on, and SIGTERM; imports next to nothing, to be there first."""

import contextlib
import os
import signal
from collections.abc import Generator
from types import FrameType

STOPPED = "stopped by Ctrl-C: run the command again to go on"


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, with its line, while modules are imported and nothing is half done.

    An exception will not do: it would be raised inside whatever is being imported, which may take it for a fault of its
    own. Where Ctrl-C is ignored, as in a job in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_at_ctrl_c() -> None:
    """Take back what `end_at_ctrl_c` did: a command that has begun may have to save its work."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stopping_at_sigterm() -> Generator[None]:
    """Let SIGTERM, within the block, end it as Ctrl-C does: what has been begun is taken back, and a line says so."""

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the taking back
        raise KeyboardInterrupt("stopped by SIGTERM: run the command again to go on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_of_ctrl_c(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came of, is Ctrl-C's."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"error: {STOPPED}\n".encode())
    os._exit(2)
