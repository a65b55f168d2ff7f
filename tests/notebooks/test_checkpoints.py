"""A network that a notebook has trained is one that every command takes."""

import json
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from course_utils.checkpoint import Checkpoint
from course_utils.commands.app import main
from course_utils.data.cohorts import load_cohort
from tests.notebooks.cells import run_cells

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a session reads and writes."""
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "data"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("evaluate", ...)`: the exit code and stderr of a command."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["course_utils", "--quiet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return command


def evaluated(run, model, folder, *options):
    code, err = run(
        "evaluate", "--model", model, "--out", folder / "metrics.csv", "--device", "cpu", "--count", 2, *options
    )
    assert code == 0, err
    return pd.read_csv(folder / "metrics.csv")


def exported(run, model, folder):
    code, err = run("export", "--model", model, "--out", folder / "bundle")
    assert code == 0, err
    assert json.loads((folder / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))[
        "network_data_format"
    ]
    pytest.importorskip("onnxscript")
    code, err = run("export", "--model", model, "--format", "onnx", "--out", folder / "model.onnx")
    assert code == 0, err
    assert (folder / "model.onnx").stat().st_size > 10_000


def registered(run, model, folder, moving, fixed):
    files = ("--moving", moving, "--fixed", fixed, "--moved", folder / "moved.nii.gz")
    return run("register", *files, "--model", model, "--iterations", 1, "--device", "cpu")


def test_the_first_network_of_the_course(folder, run):
    run_cells(
        "00_start_here",
        ["session = start(", "load_slices(", "result = fit("],
        {"steps=400": "steps=3"},
    )
    model = folder / "runs" / "00_start_here" / "best.pt"
    assert Checkpoint.load(model).card.recipe.shape == (96, 96)
    table = evaluated(run, model, folder, "--dataset", "synthetic", "--data-root", folder / "data" / "slices")
    assert table.pair.nunique() == 2
    assert {"dice_after", "tre_mm_after", "folding_percent"} <= set(table)
    exported(run, model, folder)
    # Its images are slices, and register takes volumes: one line says so, of slices and of volumes.
    slices = [subject.image for subject in load_cohort("synthetic", folder / "data" / "slices").subjects[:2]]
    code, err = registered(run, model, folder, *slices)
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "is not 3-D: choose a fitting" in err
    for number in range(2):
        values = np.random.default_rng(number).random((12, 12, 12), np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{number}.nii.gz")
    code, err = registered(run, model, folder, folder / "0.nii.gz", folder / "1.nii.gz")
    assert (code, err) == (
        2,
        "error: the model is a 2-D network and the scans are volumes: choose a model trained in 3-D\n",
    )
    assert not (folder / "moved.nii.gz").exists()


def test_the_network_of_the_page_on_training(folder, run):
    names = run_cells(
        "06_training",
        [
            'session = start(real="hippocampus")',
            "cohort = load_cohort(session.dataset",
            "def new_network",
            "result = fit(",
        ],
        {"steps=160": "steps=2", "validations=4": "validations=1"},
    )
    model = folder / "runs" / "training" / "first" / "best.pt"
    assert names["result"].best == model
    checkpoint = Checkpoint.load(model)
    assert (checkpoint.network.architecture, checkpoint.card.recipe.shape) == ("voxelmorph", (48, 64, 48))
    assert evaluated(run, model, folder, "--dataset", "synthetic").pair.nunique() == 2
    exported(run, model, folder)
    moving, fixed = (subject.image for subject in load_cohort("synthetic").subjects[:2])
    code, err = registered(run, model, folder, moving, fixed)
    assert code == 0, err
    assert nib.load(folder / "moved.nii.gz").shape == nib.load(fixed).shape
