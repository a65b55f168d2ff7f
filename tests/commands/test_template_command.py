"""The command template as a user runs it: what it writes, that others read it, and the one line of bad input."""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from course_utils.checkpoint import Checkpoint
from course_utils.networks import TemplateNetwork
from tests import phantoms
from tests.commands.test_command_line import refused, run  # noqa: F401, fixtures

pytestmark = pytest.mark.slow

QUICK = ("--epochs", 1, "--batch-size", 4, "--device", "cpu")
IMAGES = {"template", "winning_labels", "winning_probability", "label_probabilities"}


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Twelve scans with label maps, each on another grid, in the working folder, and a table of ages."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("scans", "segs"):
        (tmp_path / part).mkdir()
    lines = ["who,age,sex"]
    for n in range(12):
        grid = phantoms.grid(tuple(rng.integers(17, 20, 3)), (3.0, 3.2, 3.4), ("RAS", "LAS", "PIR")[n % 3])
        points = phantoms.positions(grid)
        points = points + np.sin(points[[1, 2, 0]] / 9 + n)
        phantoms.save(tmp_path / f"scans/p{n:02d}.nii.gz", phantoms.intensity(points), grid)
        phantoms.save(tmp_path / f"segs/p{n:02d}.nii.gz", phantoms.structures(points), grid, np.uint8)
        lines.append(f"p{n:02d},{20 + 5 * n},{n % 2}")
    (tmp_path / "ages.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


OWN = ("--images", "scans", "--labels", "segs")


def test_a_template_for_each_age_and_what_it_is_written_as(scans, run):  # noqa: F811
    options = ("--attributes", "ages.csv", "--at", "age=25,60", "--at", "sex=1", "--out", "runs/t")
    code, out, err = run("template", *OWN, *QUICK, *options)
    assert code == 0, err
    endings = ("", "_age25_sex1", "_age60_sex1")
    assert [line.partition(":")[0] for line in out.splitlines()] == [f"runs/t/template{e}.nii.gz" for e in endings]
    for ending in endings:
        files = {name: nib.load(scans / f"runs/t/{name}{ending}.nii.gz") for name in IMAGES}
        report = json.loads((scans / f"runs/t/template{ending}.json").read_text(encoding="utf-8"))
        shape = files["template"].shape
        assert files["label_probabilities"].shape == (*shape, len(report["structures"]))
        assert all(np.allclose(file.affine, files["template"].affine) for file in files.values())
        share, probabilities = (files[n].get_fdata() for n in ("winning_probability", "label_probabilities"))
        background = 1 - probabilities.sum(-1)
        np.testing.assert_allclose(share, np.maximum(background, probabilities.max(-1)), atol=1e-4)
        assert report["subjects"] == 8 and 0 <= report["mean_displacement_voxels"] < 2
        assert set(report["dice_of_unseen_subjects"]) == set(report["structures"].values())
    model = Checkpoint.load(scans / "runs/t/best.pt").model()
    assert isinstance(model, TemplateNetwork) and model.names == ("age", "sex")
    assert not list(scans.glob("runs/t/.*"))
    moved = ("--moving", "runs/t/template.nii.gz", "--fixed", "scans/p01.nii.gz", "--moved", "moved.nii.gz")
    code, _, err = run("register", "--model", "runs/t/best.pt", "--iterations", 0, *moved)
    assert code == 0 and "aligned first" not in err
    assert nib.load(scans / "moved.nii.gz").shape == nib.load(scans / "scans/p01.nii.gz").shape


def test_a_template_is_averaged_by_a_network_that_is_there(scans, run):  # noqa: F811
    code, _, err = run("template", *OWN, "--model", "hippocampus", "--device", "cpu", "--out", "avg")
    assert code == 0, err
    report = json.loads((scans / "avg/template.json").read_text(encoding="utf-8"))
    assert report["rounds"] >= 1 and not (scans / "avg/best.pt").exists()
    template = nib.load(scans / "avg/template.nii.gz").get_fdata()
    assert template.shape == (48, 64, 48) and template.max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", 1, "--epochs", 1), "two budgets"),
        (("--epochs", -1), "not above 0"),
        (("--at", "age=20"), "--at belongs to --attributes"),
        (("--attributes", "ages.csv", "--at", "age"), "write it as in --at age=20,50,80"),
        (("--attributes", "ages.csv", "--at", "age=old"), "not a list of numbers"),
        (("--attributes", "ages.csv", "--at", "height=3", "--epochs", 1), "the attributes are age, sex"),
        (("--attributes", "none.csv", "--epochs", 1), "none.csv cannot be read"),
        (("--model", "hippocampus", "--epochs", 1), "learn nothing"),
        (("--model", "nobody"), "nobody does not exist"),
        (("--atlas", "scans/p01.nii.gz"), "a template that is there already"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(scans, refused, options, message):  # noqa: F811
    assert message in refused("template", *OWN, *options, "--out", "runs/t")
    assert not (scans / "runs").exists()


def test_a_subject_without_an_attribute_is_named(scans, refused):  # noqa: F811
    text = (scans / "ages.csv").read_text(encoding="utf-8")
    (scans / "ages.csv").write_text(re.sub(r",\d+,", ",n/a,", text), encoding="utf-8")
    line = refused("template", *OWN, *QUICK, "--attributes", "ages.csv", "--out", "runs/t")
    assert re.search(r"line \d+: age of p\d\d is 'n/a', not a number: fill it in", line)
