"""One process at a time for a folder or a file."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Generator[bool]:
    """Hold a lock, a file beside what it is for. The system lets go of it when the process ends, however it ends.

    Where the disk knows no locks, as some of networks do, there is none, and nobody is kept waiting.

    Args:
        path: Of the lock. It is made, and removed at the end.
        wait: Until whoever holds it has ended; otherwise at once without it.

    Yields:
        Whether the lock is held.

    Raises:
        OSError: the file cannot be made.
    """
    with contextlib.ExitStack() as stack:
        file = _held(path, wait, stack)
        if file is not None:
            stack.callback(_remove, path)  # while it is held, so that nobody waits for a file that is gone
        yield file is not None


def _held(path: Path, wait: bool, stack: contextlib.ExitStack) -> BinaryIO | None:
    while True:
        file = path.open("ab")
        try:
            known = _lock(file, wait)
        except OSError:
            file.close()
            return None
        stack.enter_context(file)
        if not known or _is_still(file, path):
            return file
        # It was removed by whoever held it, between our opening and our turn: another may hold a new one.


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Lock an open file; whether the system can. Raises OSError where another process has it."""
    if os.name == "nt":
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError:  # which the patient kind raises after ten seconds, too
                if not wait:
                    raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        path.unlink()
