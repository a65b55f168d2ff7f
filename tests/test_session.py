import io
import random
import shutil
import socket
import tarfile

import nibabel as nib
import numpy as np
import pytest
import torch

from course_utils.data import cohorts
from course_utils.data.cohorts import load_cohort
from course_utils.data.registry import DATASETS
from course_utils.errors import CourseError
from course_utils.session import start
from notebooks.build import ROOT
from tests.notebooks.cells import code_cells


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    for variable in ("COURSE_DATASET", "COURSE_PROFILE", "COURSE_REGISTRY", "COURSE_RUNS", "COURSE_SEED"):
        monkeypatch.delenv(variable, raising=False)


def test_without_a_choice_it_is_the_builtin_cohort(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    session = start()
    assert (session.dataset, session.profile, session.device) == ("synthetic", "quick", torch.device("cpu"))
    assert session.runs.name == "runs"


def test_a_page_that_prefers_real_people_gets_them_where_they_are_and_the_user_overrides_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(cohorts, "download_file", unreachable)
    (tmp_path / "oasis2d" / "OASIS_OAS1_0001_MR1").mkdir(parents=True)
    session = start(real="oasis2d")
    assert session.dataset == "oasis2d" and not session.note
    assert start().dataset == "synthetic" and not start().note
    monkeypatch.setenv("COURSE_DATASET", "synthetic")
    session = start(real="oasis2d")
    assert session.dataset == "synthetic" and not session.note  # chosen, so nothing is to be explained


def unreachable(url, *_, **settings):
    assert settings["timeout"] == 10  # a lecture does not wait for half a minute
    raise CourseError("no connection to example.org (Failed to resolve (it all))): look whether it is up")


def test_people_are_fetched_for_the_page_that_shows_them(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("OASIS_OAS1_0001_MR1", "OASIS_OAS1_0002_MR1"):
            archive.addfile(tarfile.TarInfo(f"{name}/slice_norm.nii.gz"))
    monkeypatch.setattr(cohorts, "download_file", lambda url, file, *_, **__: file.write_bytes(content.getvalue()))
    (tmp_path / "oasis2d").mkdir()  # as a download that was stopped leaves it
    session = start(real="oasis2d")
    assert session.dataset == "oasis2d" and not session.note
    assert (tmp_path / "oasis2d" / "OASIS_OAS1_0001_MR1" / "slice_norm.nii.gz").is_file()


def test_without_a_network_a_page_says_what_it_shows_instead_and_how_that_is_mended(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(cohorts, "download_file", unreachable)
    session = start(real="oasis2d")
    assert session.dataset == "synthetic"
    assert str(session).splitlines()[-1] == (
        "note      made subjects, for want of oasis2d: no connection to example.org; "
        "later: python -m course_utils download oasis2d"
    )


def test_a_gpu_selects_the_full_profile_and_the_user_overrides_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (start().profile, start().device.type) == ("full", "cuda")
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    assert (start().profile, start().device.type) == ("quick", "cuda")


def test_environment_variables_choose(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATASET", "hippocampus")
    monkeypatch.setenv("COURSE_PROFILE", "full")
    monkeypatch.setenv("COURSE_SEED", "3")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "results"))
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "scans"))
    session = start()
    assert (session.dataset, session.profile, session.seed) == ("hippocampus", "full", 3)
    assert start(seed=5).seed == 5
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


@pytest.mark.parametrize("seed", ["one", "-1", "1.5"])
def test_a_seed_that_is_none_is_answered_in_one_line(monkeypatch, seed):
    monkeypatch.setenv("COURSE_SEED", seed)
    with pytest.raises(CourseError) as error:
        start()
    assert str(error.value).startswith(f"COURSE_SEED={seed} is not a whole number")
    assert "\n" not in str(error.value)


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


# --- a data set of one's own ------------------------------------------------------------------------------------------

OWN = """
[knees]
folder = "knees"
image = "images/{name}.nii.gz"
label = "labels/{name}.nii.gz"
labels = { 1 = "femur", 2 = "tibia" }
shape = [12, 12, 8]
spacing = [1.5, 1.5, 2.0]
"""


@pytest.fixture
def knees(monkeypatch, tmp_path):
    """Eight scans below a data folder, a registry beside it, and the environment that names both."""
    rng = np.random.default_rng(0)
    label = np.zeros((12, 12, 8), np.uint8)
    label[2:6], label[7:10] = 1, 2
    for kind in ("images", "labels"):
        (tmp_path / "data" / "knees" / kind).mkdir(parents=True)
    for number in range(8):
        for kind, array in (("images", rng.random(label.shape, np.float32)), ("labels", label)):
            image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 2.0, 1.0]))
            nib.save(image, tmp_path / "data" / "knees" / kind / f"knee_{number}.nii.gz")
    (tmp_path / "mine.toml").write_text(OWN, encoding="utf-8")
    monkeypatch.setenv("COURSE_REGISTRY", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("COURSE_DATASET", "knees")
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "data"))
    return tmp_path


def test_a_notebook_works_on_an_own_data_set(knees, capsys):
    """The first cells of notebook 01, as they stand: session, terms, subjects, a slice."""
    names = {"display": print}
    for code in code_cells("01_data")[:3]:
        exec(compile(code, "01_data", "exec"), names)
    assert names["session"].dataset == "knees"
    assert names["cohort"].info.labels == {1: "femur", 2: "tibia"}
    assert len(names["cohort"].subjects) == 8
    assert "8 subjects, 2 structures, common grid (12, 12, 8) at (1.5, 1.5, 2.0) mm" in capsys.readouterr().out


def test_commands_know_the_own_data_set_too(knees):
    from course_utils.commands.check_data import check_data

    check_data(dataset="knees")


def test_a_relative_registry_is_meant_from_the_course_s_folder(knees, monkeypatch):
    shutil.copy(ROOT / "pyproject.toml", knees)
    (knees / "notebooks").mkdir()
    monkeypatch.chdir(knees / "notebooks")
    for variable, value in (("COURSE_REGISTRY", "mine.toml"), ("MONAI_DATA_DIRECTORY", "data"), ("COURSE_RUNS", "out")):
        monkeypatch.setenv(variable, value)
    session = start()
    assert session.dataset == "knees"
    assert (session.data_root.resolve(), session.runs.resolve()) == (knees / "data", knees / "out")
    assert len(load_cohort("knees").subjects) == 8


def test_a_registry_that_is_not_there_is_named(knees, monkeypatch):
    monkeypatch.setenv("COURSE_REGISTRY", str(knees / "none.toml"))
    with pytest.raises(CourseError, match=r"registry .*none\.toml cannot be read"):
        start()


def test_an_own_name_is_offered_where_another_is_asked_for(knees, monkeypatch):
    monkeypatch.setenv("COURSE_DATASET", "hips")
    with pytest.raises(CourseError, match=r"COURSE_DATASET=hips does not exist; .*synthetic, .*knees"):
        start()
