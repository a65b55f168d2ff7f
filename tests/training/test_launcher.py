"""What a launcher says to each process of a run, and what of it is refused in one line."""

import socket
from datetime import timedelta

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.training import TrainConfig, ranks
from course_utils.training.ranks import Ranks, joined, launched

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets what a launcher would, and nothing else of it."""

    def launch(**variables):
        for name in (*LAUNCHED, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    launch()
    return launch


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}])
def test_without_a_launcher_or_with_one_process_nothing_is_joined(environment, variables):
    environment(**variables)
    with joined() as here:
        assert here == Ranks(0, 1) == Ranks.here() and here.share == slice(0, None, 1)
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MASTER_ADDR": ""}, "^WORLD_SIZE=2 is set and MASTER_ADDR is not: start the processes by torchrun, or unset"),
        ({"RANK": "", "MASTER_PORT": ""}, "^WORLD_SIZE=2 is set and RANK, MASTER_PORT is not"),
        ({"RANK": "2"}, "^RANK=2 is no number from 0 to 1"),
        ({"WORLD_SIZE": "-3"}, "^WORLD_SIZE=-3 is no number from 1 to"),
        ({"WORLD_SIZE": "0"}, "^WORLD_SIZE=0 is no number from 1 to"),
        ({"MASTER_PORT": "http"}, "^MASTER_PORT=http is no number from 0 to 65535"),
        ({"LOCAL_RANK": "x"}, "^LOCAL_RANK=x is no number from 0 to 1"),
        ({"LOCAL_WORLD_SIZE": "0"}, "^LOCAL_WORLD_SIZE=0 is no number from 1 to 2"),
        ({"LOCAL_WORLD_SIZE": "3"}, "^LOCAL_WORLD_SIZE=3 is no number from 1 to 2"),
    ],
)
def test_what_a_launcher_must_say(environment, changes, line):
    environment(**LAUNCHED | changes)
    with pytest.raises(CourseError, match=line):
        launched()


def test_processes_that_do_not_come(environment, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment(**LAUNCHED | {"MASTER_PORT": str(port)})
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(
        CourseError, match=rf"^the 2 processes did not meet at 127.0.0.1:{port} \(.*start all"
    ) as failure:
        joined().__enter__()
    assert "\n" not in str(failure.value)


def test_a_pytorch_without_gloo(environment, monkeypatch):
    environment(**LAUNCHED)
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(CourseError, match="has no gloo, by which processes speak"):
        joined().__enter__()


@pytest.mark.parametrize(
    ("name", "local", "gpus", "nccl", "found"),
    [
        ("cpu", "1", 0, False, "cpu"),
        ("cuda", "1", 2, True, "cuda:1"),
        ("cuda", None, 2, True, "cuda:1"),  # of rank 3, on machines of two
        ("cuda", "2", 2, True, CourseError("process 3 is number 3 of its machine, which has 2 GPUs: start at most 2")),
        (
            "cuda:0",
            "1",
            2,
            True,
            CourseError("device cuda:0 is not for 4 processes: take cuda, a GPU for each, or cpu"),
        ),
        ("mps", "1", 0, True, CourseError("device mps is not for 4 processes")),
        ("cuda", "1", 2, False, CourseError("this PyTorch has no NCCL")),
    ],
)
def test_each_process_has_a_gpu_of_its_own(environment, monkeypatch, name, local, gpus, nccl, found):
    environment(**{} if local is None else {"LOCAL_RANK": local})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    if isinstance(found, CourseError):
        with pytest.raises(CourseError, match=f"^{found}"):
            Ranks(3, 4).device(name)
    else:
        assert Ranks(3, 4).device(name) == found
    assert Ranks().device(name) == name


def test_a_share_of_a_step():
    assert [Ranks(2, 4).batch(8), Ranks().batch(3)] == [2, 3]
    assert list(range(10))[Ranks(2, 4).share] == [2, 6]
    assert TrainConfig(steps=1).batch_size == 2
