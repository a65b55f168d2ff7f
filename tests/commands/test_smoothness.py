"""A network for a range of smoothness weights, from the command that trains it to all that choose a weight."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.networks import SmoothnessRange
from course_utils.networks.film import USUAL, ConditionalNorm
from course_utils.scans import export, learn2reg
from tests.checkpoints import checkpoint as checkpoint_of
from tests.commands.test_command_line import made, on, refused, run  # noqa: F401, fixtures

pytestmark = pytest.mark.slow

FEW = ("--epochs", 1, "--batch-size", 4, "--features", "4,8")
RANGE = ("--smoothness-range", "0.1,10")


@pytest.fixture(scope="module")
def ranged(made, tmp_path_factory):  # noqa: F811
    """A network for weights from 0.1 to 10, not trained, that heeds them."""
    recipe = load_cohort("balls", made, registry=made / "registry.json").info.recipe
    told = {"smoothness": {"term": "AnySmoothness", "low": 0.1, "high": 10.0}}
    checkpoint = checkpoint_of(recipe, "pyramid", strength=0.3, objective=told, conditions=1, antisymmetric=True)
    network = checkpoint.model()
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, ConditionalNorm):
            torch.nn.init.normal_(module.film.weight, std=0.5)
    path = tmp_path_factory.mktemp("ranged") / "best.pt"
    replace(checkpoint, weights=network.state_dict()).save(path)
    return path


def test_every_command_answers_for_the_weight_that_it_is_told(ranged, made, run, tmp_path):  # noqa: F811
    tables = {}
    for weight in (None, 0.2):
        chosen = () if weight is None else ("--smoothness", weight)
        out = tmp_path / f"{weight}.csv"
        code, _, err = run("evaluate", "--model", ranged, *on(made), "--count", 1, *chosen, "--out", out)
        assert code == 0 and f"smoothness {weight or 1:g}, of 0.1 to 10" in err
        tables[weight] = pd.read_csv(out)["sdlogj"]
    assert not np.allclose(tables[None], tables[0.2])
    assert (
        run(
            "export",
            "--model",
            ranged,
            "--format",
            "safetensors",
            "--smoothness",
            0.2,
            "--out",
            tmp_path / "a.safetensors",
        )[0]
        == 0
    )
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["smoothness"] == pytest.approx(0.2, rel=0.01)
    out = tmp_path / "again.csv"
    assert run("evaluate", "--model", tmp_path / "a.safetensors", *on(made), "--count", 1, "--out", out)[0] == 0
    assert np.allclose(pd.read_csv(out)["sdlogj"], tables[0.2], rtol=0.02)
    scans = made / "balls" / "images"
    pair = ("--moving", scans / "case_00.nii.gz", "--fixed", scans / "case_01.nii.gz", "--iterations", 0)
    for weight in (0.2, 9):
        moved = tmp_path / f"moved_{weight}.nii.gz"
        assert run("register", *pair, "--model", ranged, "--smoothness", weight, "--moved", moved)[0] == 0
    assert (tmp_path / "moved_0.2.nii.gz").read_bytes() != (tmp_path / "moved_9.nii.gz").read_bytes()


def test_a_network_is_trained_for_a_range_and_further_for_the_same(made, run, refused, tmp_path):  # noqa: F811
    begin = ("train", *on(made), *FEW, *RANGE, "--bidirectional", "inverse", "--out", tmp_path / "run")
    code, _, err = run(*begin)
    assert code == 0, err
    first = Checkpoint.load(tmp_path / "run" / "best.pt")
    assert first.smoothness_range == SmoothnessRange(0.1, 10.0) and first.smoothness == pytest.approx(1.0)
    assert first.network.arguments["antisymmetric"] and "two_directions" in first.objective
    assert "low 0.1, high 10.0" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    further = ("train", *on(made), *FEW[:4], "--init", tmp_path / "run" / "best.pt", "--out", tmp_path / "on")
    for other in (("--smoothness", 1), ("--smoothness-range", "0.1,5")):
        assert "answers for weights of the smoothness from 0.1 to 10: leave out" in refused(*further, *other)
    assert run(*further)[0] == 0
    assert Checkpoint.load(tmp_path / "on" / "best.pt").smoothness_range == SmoothnessRange(0.1, 10.0)


def test_a_hypernetwork_is_trained_for_a_range_and_answers_for_the_weight_it_is_told(made, run, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    code, _, err = run("train", *on(made), *FEW, *RANGE, "--architecture", "hypernetwork", "--out", out)
    assert code == 0, err
    trained = Checkpoint.load(out / "best.pt")
    assert trained.network.architecture == "hypernetwork" and trained.smoothness_range == SmoothnessRange(0.1, 10.0)
    network = trained.model()
    low, high = (trained.at(weight).model().conditioning.usual.item() for weight in (0.1, 10))
    assert (low, high) == (0.0, 1.0)
    assert not torch.equal(network.weights.weight, trained.network.build(seed=0).weights.weight)
    measured = ("evaluate", "--model", out / "best.pt", *on(made), "--count", 1, "--smoothness", 0.2)
    code, _, err = run(*measured, "--out", tmp_path / "m.csv")
    assert code == 0 and "smoothness 0.2, of 0.1 to 10" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--smoothness-range", "10,0.1"), "from 10 to 0.1 is no range of weights"),
        (("--smoothness-range", "-1,1"), "from -1 to 1 is no range"),
        (("--smoothness-range", "0,1"), "from 0 to 1 is no range"),
        (("--smoothness-range", "1"), "--smoothness-range 1 is not two numbers"),
        (("--smoothness-range", "a,b"), "--smoothness-range a,b is not a list of numbers"),
        ((*RANGE, "--smoothness", 1), "--smoothness is one weight and --smoothness-range many: give one of them"),
        ((*RANGE, "--init", "hippocampus"), "answers for one weight of the smoothness: leave out"),
    ],
)
def test_a_range_that_is_none_is_refused(made, refused, tmp_path, options, message):  # noqa: F811
    assert message in refused("train", *on(made), *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_weight_that_a_network_cannot_answer_for_is_refused(ranged, made, refused, tmp_path):  # noqa: F811
    scans = made / "balls" / "images"
    pair = ("--moving", scans / "case_00.nii.gz", "--fixed", scans / "case_01.nii.gz")
    uses = {
        "evaluate": ("--out", tmp_path / "m.csv"),
        "register": (*pair, "--moved", tmp_path / "moved.nii.gz"),
        "export": ("--out", tmp_path / "bundle"),
    }
    for command, options in uses.items():
        outside = refused(command, "--model", ranged, *options, "--smoothness", 11)
        assert "smoothness 11 is outside of what the network was trained for, 0.1 to 10" in outside
        assert "trained for one weight" in refused(command, "--model", "hippocampus", *options, "--smoothness", 1)
    assert "--smoothness chooses among" in refused(
        "register", *pair, "--no-model", *uses["register"][-2:], "--smoothness", 1
    )
    measured = ("learn2reg", "--data-root", tmp_path, "--evaluate", tmp_path, "--out", tmp_path / "m.csv")
    assert "it goes with --model" in refused(*measured, "--smoothness", 1)


def test_a_submission_and_a_bundle_are_those_of_the_weight_that_was_chosen(ranged, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(learn2reg, "load_cohort", lambda *_, **__: None)
    monkeypatch.setattr(learn2reg, "write_submission", lambda checkpoint, *_, **__: given.append(checkpoint) or [])
    learn2reg.submit(ranged, tmp_path, tmp_path / "submission.zip", smoothness=0.2)
    assert given[0].smoothness == pytest.approx(0.2)
    export.export(ranged, tmp_path / "bundle", smoothness=0.2)
    weights = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert weights[f"network.{USUAL}"].item() == pytest.approx(SmoothnessRange(0.1, 10.0).position(0.2))
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["course_utils"]["smoothness"] == pytest.approx(0.2)
