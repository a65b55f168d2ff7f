"""Ctrl-C in the first seconds of a command, while Python imports what it computes with, is one line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from course_utils.commands import stopping
from notebooks.build import ROOT

LINE = "error: stopped by Ctrl-C: run the command again to go on\n"

# Python runs a module of this name when it starts: here one that presses Ctrl-C when a module is first looked for.
PRESS = """
import os, signal, sys

class Press:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(Press)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press)
"""
TRAIN = [sys.executable, "-m", "course_utils", "train", "--dataset", "synthetic", "--minutes", "5", "--out"]


@pytest.mark.parametrize(
    "moment",
    [
        *("course_utils.commands.app", "typer", "course_utils.commands.train", "numpy", "torch", "torch._C"),
        *("torch.nn.functional", "scipy", "nibabel", "monai", "pandas", "tensorboard", "course_utils.training.loop"),
    ],
)
def test_ctrl_c_while_a_module_is_imported(tmp_path, moment):
    (tmp_path / "sitecustomize.py").write_text(PRESS.format(name=moment), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([*TRAIN, tmp_path / "run"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", LINE)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.2, 2, 3, 4.5, 6, 9])
def test_ctrl_c_at_any_moment(tmp_path, seconds):
    process = subprocess.Popen([*TRAIN, tmp_path / "run"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert "top" in err.splitlines()[-1]  # stopped, or training stopped at a step


def test_after_ctrl_c_nothing_is_waited_for(tmp_path):
    """What aborts a process as Python ends, as a library's thread may, has no part in it any more."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen([*TRAIN, tmp_path / "run"], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stderr is not None and process.stderr.readline().startswith("Built-in cohort")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.splitlines()[-1].startswith("error: ") and "top" in err


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_what_a_program_in_the_background_ignores_stays_ignored(before):
    own = signal.signal(signal.SIGINT, before)
    try:
        stopping.end_at_ctrl_c()
        assert (signal.getsignal(signal.SIGINT) is before) == (before is signal.SIG_IGN)
        stopping.raise_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, own)


MANY_LINES = """\
import typer
from course_utils.commands.ending import run

app = typer.Typer()

@app.command()
def count():
    for n in range(10**6):
        typer.echo(f"line {n}")

run(app)
"""


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    process = subprocess.Popen([sys.executable, "-c", MANY_LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
