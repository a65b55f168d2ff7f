"""The processes of a command that grades."""

import subprocess
import time

import psutil

OF_ONE = 8
"""The fork server, pytest, and twice a launcher, the first process of a sandbox, and the judge or the student."""


def when_a_submission_runs(grading: subprocess.Popen) -> list[psutil.Process]:
    """All processes that `grading` has started, as soon as a submission is under way."""
    end = time.monotonic() + 120
    while len(family := psutil.Process(grading.pid).children(recursive=True)) < OF_ONE:
        assert grading.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    return family


def still_there(family: list[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Those that have not ended after so many seconds."""
    return psutil.wait_procs(family, timeout=seconds)[1]
