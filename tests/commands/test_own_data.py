"""A stranger's folder of scans: trained on, measured, fine-tuned and checked with the README's lines."""

import shlex

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from course_utils.checkpoint import Checkpoint
from tests import phantoms
from tests.commands.test_command_line import refused, run  # noqa: F401, fixtures

pytestmark = pytest.mark.slow

QUICK = ("--epochs", 1, "--batch-size", 4, "--device", "cpu")


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Twelve scans in the working folder, each on another grid, and label maps of eleven of them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("scans", "my segs"):
        (tmp_path / part).mkdir()
    for n in range(12):
        shape, centre = tuple(rng.integers(14, 20, 3)), rng.uniform(-3, 3, 3)
        grid = phantoms.grid(shape, (3.0, 3.2, 3.4), ("RAS", "LAS", "PIR")[n % 3], centre=centre)
        points = phantoms.positions(grid)
        points = points + 2 * np.sin(points[[1, 2, 0]] / 9 + n)
        phantoms.save(tmp_path / f"scans/p{n:02d}.nii.gz", phantoms.intensity(points), grid)
        if n:
            phantoms.save(tmp_path / f"my segs/p{n:02d}.nii.gz", phantoms.structures(points), grid, np.uint8)
    return tmp_path


def next_command(out):
    """What train says comes next, as a shell would read it."""
    return shlex.split(out.splitlines()[-1].removeprefix("python -m course_utils "))


def test_twelve_scans_train_and_register(scans, run):  # noqa: F811
    code, out, err = run("train", "--images", "scans", *QUICK, "--out", "runs/a")
    assert code == 0, err
    assert "12 subjects (8 train, 2 val, 2 test), no labels; common grid " in err
    code, out, err = run(*next_command(out))
    assert code == 0 and "inverse_error_mm: " in out
    options = ("--moving", "scans/p00.nii.gz", "--fixed", "scans/p01.nii.gz", "--moved", "moved.nii.gz")
    assert run("register", "--model", "runs/a/best.pt", "--iterations", 2, *options)[0] == 0
    assert nib.load(scans / "moved.nii.gz").shape == nib.load(scans / "scans/p01.nii.gz").shape


def test_the_next_command_holds_all_that_was_given_and_works(scans, run):  # noqa: F811
    data = ("--images", "scans/*.nii.gz", "--labels", "my segs", "--spacing", "4,4,4", "--structures", "2")
    data += ("--atlas", "scans/p01.nii.gz", "--atlas-label", "my segs/p01.nii.gz", "--fractions", "0.5,0.25,0.25")
    code, out, err = run("train", *data, "--split-seed", 3, "--dice-weight", 1, *QUICK, "--out", "runs/a")
    assert code == 0, err
    assert "warning: 1 of 12 subjects have no label map, the first is p00: left out" in err
    command = next_command(out)
    assert [word for word in data if word not in command] == [] and "3" in command
    assert run(*command)[0] == 0
    table = pd.read_csv("runs/a/metrics.csv")
    assert set(table["structure"]) - {"whole image"} == {"label 2"} and len(table) == 3
    assert all(name.endswith("_to_atlas") for name in table["pair"])
    # Without saying where the data is: the network remembers it.
    assert run("evaluate", "--model", "runs/a/best.pt", "--out", "again.csv", "--device", "cpu")[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv("again.csv").drop(columns="seconds"), table.drop(columns="seconds"))


def test_a_network_trained_without_labels_is_measured_with_them(scans, run):  # noqa: F811
    run("train", "--images", "scans", *QUICK, "--out", "runs/a")
    model = ("--model", "runs/a/best.pt", "--device", "cpu")
    assert run("evaluate", *model, "--images", "scans", "--labels", "my segs", "--out", "m.csv")[0] == 0
    assert set(pd.read_csv("m.csv")["structure"]) >= {"label 1", "label 2"}
    lines = ["fixed_image,moving_image,fixed_label,moving_label"]
    lines += ["scans/p01.nii.gz,scans/p02.nii.gz,my segs/p01.nii.gz,my segs/p02.nii.gz"]
    (scans / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    assert run("evaluate", *model, "--pairs", "pairs.csv", "--out", "p.csv")[0] == 0
    assert pd.read_csv("p.csv")["structure"].tolist() == ["label 1", "label 2"]


def test_training_goes_on_from_trained_weights(scans, run, refused):  # noqa: F811
    network = ("--architecture", "voxelmorph", "--features", "4,8", "--full-resolution", "--integration-steps", 0)
    assert run("train", "--images", "scans", *network, *QUICK, "--out", "runs/a")[0] == 0
    first = Checkpoint.load("runs/a/best.pt")
    assert first.network.architecture == "voxelmorph"
    arguments = {"features": [4, 8], "half_resolution": False, "integration_steps": 0}
    assert {name: value for name, value in first.network.arguments.items() if name in arguments} == arguments
    # A learning rate of nothing leaves the weights where they began.
    still = ("--learning-rate", 1e-30)
    assert run("train", "--images", "scans", "--init", "runs/a/best.pt", *still, *QUICK, "--out", "runs/b")[0] == 0
    second = Checkpoint.load("runs/b/best.pt")
    assert second.network == first.network
    for name, value in first.weights.items():
        np.testing.assert_allclose(second.weights[name], value, atol=1e-6)
    line = refused("train", "--images", "scans", "--init", "runs/a/best.pt", *network, "--out", "runs/c")
    assert "--init has a network of its own" in line


def test_files_of_one_s_own_are_checked(scans, run):  # noqa: F811
    code, out, _ = run("check-data", "--images", "scans", "--labels", "my segs")
    assert code == 0 and "11 with labels of 2 structures; common grid" in out
    (scans / "scans/p04.nii.gz").write_bytes(b"broken")
    code, out, err = run("check-data", "--images", "scans")
    assert code == 2 and "unusable: scans/p04.nii.gz cannot be read" in out
    assert "1 of 12 subjects of scans cannot be used" in err.splitlines()[-1]


def test_voxelmorph_s_lists_and_atlas(tmp_path, monkeypatch, run):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for n in range(8):
        points = phantoms.positions(phantoms.grid((24, 20, 20), (2.4, 2.7, 2.7), centre=(n / 2, 0, 0)))
        np.savez(f"data/{n}.npz", vol=phantoms.intensity(points).astype(np.float32), seg=phantoms.structures(points))
    (tmp_path / "list.txt").write_text("\n".join(map(str, range(1, 8))), encoding="utf-8")
    lists = ("--images", "list.txt", "--prefix", "data/", "--suffix", ".npz", "--atlas", "data/0.npz")
    code, out, err = run("train", *lists, "--dice-weight", 0.1, *QUICK, "--out", "runs/a")
    assert code == 0, err
    assert run(*next_command(out))[0] == 0
    table = pd.read_csv("runs/a/metrics.csv")
    assert table["structure"].unique().tolist() == ["label 1", "label 2"]
    # As voxelmorph's test script: some scans onto the atlas, the Dice of the labels that a file lists.
    np.savez("labels.npz", labels=np.array([0, 2]))
    scans = (
        "--images",
        "data/[3-5].npz",
        "--atlas",
        "data/0.npz",
        "--fractions",
        "0,0,1",
        "--structures",
        "labels.npz",
    )
    code, out, err = run("evaluate", "--model", "runs/a/best.pt", *scans, "--out", "test.csv", "--device", "cpu")
    assert code == 0, err
    measured = pd.read_csv("test.csv")
    assert measured["structure"].tolist() == ["label 2"] * 3
    before = []
    for n in range(3, 6):
        moving, fixed = (np.load(f"data/{k}.npz")["seg"] == 2 for k in (n, 0))
        before.append(2 * (moving & fixed).sum() / (moving.sum() + fixed.sum()))
    np.testing.assert_allclose(measured["dice_before"], before, atol=1e-6)


def test_no_data_is_one_line_and_makes_nothing(tmp_path, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert "there is no data: name a data set" in refused("train", "--data-root", "scans", "--out", "runs")
    assert "none does not exist: name a folder" in refused("train", "--images", "none", "--out", "runs")
    assert "--spacing 1,x,1 is not a list of numbers" in refused(
        "train", "--images", ".", "--spacing", "1,x,1", "--out", "r"
    )
    assert "--fractions 1,2 is not three numbers" in refused(
        "train", "--images", ".", "--fractions", "1,2", "--out", "r"
    )
    assert list(tmp_path.iterdir()) == []
