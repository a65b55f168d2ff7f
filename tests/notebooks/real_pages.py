"""Every page on real people, from top to bottom with all that it asserts: `make test-real`.

Not among the tests that run everywhere: it needs data that somebody has downloaded.
"""

import os
from pathlib import Path

import pytest

from course_utils.data.cohorts import is_there
from course_utils.data.registry import DATASETS
from notebooks import build

REAL = ("oasis2d", "hippocampus")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("dataset", REAL)
@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)
def test_a_page_holds_on_real_people(source, dataset, tmp_path, monkeypatch):
    root = Path(os.environ["COURSE_REAL_DATA"])
    if not is_there(DATASETS[dataset], root):
        pytest.skip(f"no {dataset} in MONAI_DATA_DIRECTORY or in shared/data beside the repository")
    if source.stem >= "12" and dataset != "oasis2d":
        pytest.skip("a page of slices: on other data sets it takes the built-in ones, as every run of the tests does")
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(root))
    build.lend_data(tmp_path)
    build.execute(source, tmp_path.resolve(), dataset)
