"""What tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no verdict from a slow machine's clock.
settings.register_profile("course", derandomize=True, deadline=None)
settings.load_profile("course")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A data folder that holds real hippocampus volumes: the user's own, or one beside the repository."""
    folder = Path(os.environ["COURSE_REAL_DATA"])
    if not (folder / "Task04_Hippocampus").is_dir():
        pytest.skip("no Task04_Hippocampus in MONAI_DATA_DIRECTORY or in shared/data beside the repository")
    return folder


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: packed ones hold the second at which they were made, which differs from worker to worker."""
    return argname if isinstance(val, bytes) else None
