"""The command `serve` as a user starts it."""

import os
import re
import signal
import subprocess
import sys

import pytest

from notebooks.build import ROOT


@pytest.fixture
def serving(tmp_path):
    """`serving(*options)`: the process of the command, the address that it printed, and the folder that its files are
    in, below the system's temporary one."""
    room = tmp_path / "temporary"
    room.mkdir()
    started = []

    def start(*options):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(room)}
        command = [sys.executable, "-m", "course_utils", "serve", "--port", "0", "--device", "cpu", *map(str, options)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        started.append(process)
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, process.communicate()
        (folder,) = room.glob("course-utils-serve-*")
        return process, found[0], folder

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
