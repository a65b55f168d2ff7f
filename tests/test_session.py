import random
import socket

import numpy as np
import pytest
import torch

from course_utils.data.registry import DATASETS
from course_utils.errors import CourseError
from course_utils.session import start


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    for variable in ("COURSE_DATASET", "COURSE_PROFILE", "COURSE_RUNS"):
        monkeypatch.delenv(variable, raising=False)


def test_without_a_choice_it_is_the_builtin_cohort(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    session = start()
    assert (session.dataset, session.profile, session.device) == ("synthetic", "quick", torch.device("cpu"))
    assert session.runs.name == "runs"


def test_a_gpu_selects_the_full_profile_and_the_user_overrides_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (start().profile, start().device.type) == ("full", "cuda")
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    assert (start().profile, start().device.type) == ("quick", "cuda")


def test_environment_variables_choose(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATASET", "hippocampus")
    monkeypatch.setenv("COURSE_PROFILE", "full")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "results"))
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "scans"))
    session = start()
    assert (session.dataset, session.profile) == ("hippocampus", "full")
    assert (session.runs, session.data_root) == (tmp_path / "results", tmp_path / "scans")


@pytest.mark.parametrize(
    ("variable", "valid"), [("COURSE_DATASET", tuple(DATASETS)), ("COURSE_PROFILE", ("quick", "full"))]
)
def test_a_value_that_does_not_exist_is_answered_with_those_that_do(monkeypatch, variable, valid):
    monkeypatch.setenv(variable, "hipocampus")
    with pytest.raises(CourseError) as error:
        start()
    message = str(error.value)
    assert f"{variable}=hipocampus" in message
    assert "\n" not in message
    assert all(name in message for name in valid)


def test_same_seed_same_numbers():
    def draw(seed):
        start(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the global generator is meant

    assert draw(3) == draw(3)
    assert all(a != b for a, b in zip(draw(3), draw(4), strict=True))


def test_the_printed_block_can_be_published(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    text = str(start(7))
    assert str(tmp_path) not in text
    assert "/" not in text
    assert socket.gethostname() not in text
    assert f"torch {torch.__version__}" in text
    assert "synthetic" in text
    assert "7" in text
    assert len(text.splitlines()) <= 6
