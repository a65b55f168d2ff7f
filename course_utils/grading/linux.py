"""Calls of Linux's C library, of which Python has no functions."""

import ctypes
import functools
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


@functools.cache
def libc() -> ctypes.CDLL:
    """The library; a call that fails leaves its number in `ctypes.get_errno`."""
    return ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it failed; the message names it.
    """
    if getattr(libc(), function)(*arguments) != 0:
        number = ctypes.get_errno()
        told = " ".join(argument.decode() for argument in arguments if isinstance(argument, bytes))
        raise OSError(number, f"{function} {told}: {os.strerror(number)}".replace(" :", ":"))


def end_with_parent() -> None:
    """Have the kernel of the system end this process as soon as its parent has ended."""
    if sys.platform == "linux":
        libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
