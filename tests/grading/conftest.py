"""What tests of grading share."""

import pytest

from course_utils.grading.assignments import Assignment, read_assignment
from tests.grading.small_assignments import OTHER, SOURCE


@pytest.fixture(scope="session")
def assignments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "01_numbers.py").write_text(SOURCE, encoding="utf-8")
    (folder / "02_words.py").write_text(OTHER, encoding="utf-8")
    return [Assignment(name, read_assignment(folder / f"{name}.py")) for name in ("01_numbers", "02_words")]
