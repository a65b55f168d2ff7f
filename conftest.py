"""Tests and notebooks run on the built-in cohort, made once a run, whatever the user has chosen."""

import os
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from notebooks.build import ROOT, course_environment

# Their exercises are unsolved. Named on the command line, a student's own notebook is run all the same.
collect_ignore_glob = ["notebooks/assignments/*.ipynb"]


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with Ctrl-C ignored, and every process that a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist: it inherits what its parent has set below
        return
    os.environ["COURSE_REAL_DATA"] = os.environ.get("MONAI_DATA_DIRECTORY") or str(ROOT.parent / "shared" / "data")
    folder = Path(tempfile.mkdtemp(prefix="course-tests-")).resolve()
    os.environ.update(course_environment(folder))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.suffix == ".ipynb":
        _make_cohort()


@pytest.fixture(scope="session")
def built_in_cohort() -> None:
    """For tests that run notebooks' cells by themselves."""
    _make_cohort()


@cache
def _make_cohort() -> None:
    """Before the first notebook: two workers must not fill one folder at a time."""
    from course_utils.data.cohorts import data_root, load_cohort

    data_root().mkdir(parents=True, exist_ok=True)
    with FileLock(data_root() / ".lock"):
        load_cohort("synthetic")
