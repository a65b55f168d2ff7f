"""Commands under torchrun: two processes with a pair each, as a user starts them."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from course_utils.checkpoint import Checkpoint
from course_utils.data.synthetic import make_cohort

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
OPTIONS = ["--dataset", "synthetic", "--architecture", "voxelmorph", "--features", "4,8", "--amp", "off", "--epochs"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_cohort(folder / "synthetic", subjects=12, spacing=6.0)
    return folder


def environment(data):
    launched = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return kept | {"MONAI_DATA_DIRECTORY": str(data), "OMP_NUM_THREADS": "1"}


def python(data, *words, **variables):
    started = [sys.executable, *map(str, words)]
    return subprocess.run(started, env=environment(data) | variables, capture_output=True, text=True, timeout=600)


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_a_process_that_does_not_know_the_others_is_told_how_to_start(data, tmp_path):
    done = python(data, "-m", "course_utils", "train", *OPTIONS, 1, "--out", tmp_path / "run", WORLD_SIZE="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: WORLD_SIZE=2 is set and RANK, MASTER_ADDR, MASTER_PORT is not: start the processes by torchrun, or "
        "unset WORLD_SIZE\n"
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_of_them_speaks(data, tmp_path):
    train = ["-m", "course_utils", "train", *OPTIONS, 1, "--out"]
    one = python(data, *train, tmp_path / "one")
    two = python(data, *TORCHRUN, *train, tmp_path / "two")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout.count("steps in") == 1 and two.stderr.count("Built-in cohort") == 1
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    curves = [pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*curves, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", *OPTIONS, 1, "--batch-size", 3], "error: a step of 3 pairs cannot be shared by 2 processes"),
        (["template", "--dataset", "synthetic"], "error: this command is for one process: start it without torchrun"),
    ],
)
def test_what_several_cannot_do_is_said_once(data, tmp_path, words, line):
    done = python(data, *TORCHRUN, "-m", "course_utils", *words, "--out", tmp_path / "run")
    assert done.returncode == 1  # torchrun's own
    (said,) = errors(done.stderr)
    assert said.startswith(line)
    assert "exitcode  : 2 " in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_to_torchrun_saves_and_says_so_once(data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    words = [*TORCHRUN, "-m", "course_utils", "train", *OPTIONS, 1000, "--out", out]
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [sys.executable, *map(str, words)], env=environment(data), stderr=file, stdout=subprocess.DEVNULL
        )
        while not (out / "best.pt").exists():
            assert launcher.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(120) != 0
    (said,) = errors(log.read_text(encoding="utf-8"))
    step = Checkpoint.load(out / "last.pt").step
    assert step > 0 and said.startswith(f"error: stopped by a signal and saved at step {step}: go on with --resume")
