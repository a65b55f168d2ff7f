"""The most memory of a process is its own, whoever started it."""

import subprocess
import sys

import pytest

from course_utils.memory import most_memory
from notebooks.build import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_a_small_program_of_a_large_one_is_small():
    code = "from course_utils.memory import most_memory; {}print(most_memory())"
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])  # touched, so that it is held
    own = most_memory()
    assert own is not None and own > len(ballast)

    def of_child(before=""):
        command = [sys.executable, "-c", code.format(before)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    small = of_child()
    assert small < 100_000_000
    assert of_child("x = b'x' * 150_000_000; ") > small + 140_000_000
