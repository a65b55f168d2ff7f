"""How much memory this process has held."""

import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def most_memory() -> int | None:
    """Bytes that this process has held at most; None on Windows, which does not tell.

    Linux has two figures. That of `getrusage` begins with what the parent held as it started the process, so a small
    program that a large one starts would seem large; that of `/proc` is the process's own.
    """
    if sys.platform == "win32":
        return None
    if STATUS.exists() and (
        found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii", errors="replace"))
    ):
        return int(found[1]) * 1024
    import resource  # Windows has no such module

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
