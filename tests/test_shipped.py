"""Networks that ship: their files are what their cards say, load by name, and measure as their cards promise."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open, save_file
from torch.testing import assert_close

from course_utils import shipped
from course_utils.checkpoint import Checkpoint
from course_utils.data.pairs import Cohort, Subject
from course_utils.data.recipe import Recipe
from course_utils.data.registry import DATASETS
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.files import sha256
from course_utils.model_card import card, describe
from course_utils.networks import ARCHITECTURES
from course_utils.scans.export import export
from tests.checkpoints import checkpoint as checkpoint_of

SLICES = Recipe((16, 20), (1.0, 1.0), aligned=True)
LARGEST = 2_000_000
"""Bytes of a file of weights, so that the package stays small."""
every_network = pytest.mark.parametrize("name", shipped.names())


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weights with one small network called `balls`."""
    made = checkpoint_of(SLICES, "pyramid", antisymmetric=True)
    made.save(tmp_path / "balls.safetensors")
    known = {"sha256": sha256(tmp_path / "balls.safetensors"), "about": "balls", "summary": "Dice 0.5 -> 0.6"}
    known |= {"shape": [16, 20], "spacing_mm": [1.0, 1.0], "figures": {"dice_after": 0.6}}
    (tmp_path / "balls.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    return tmp_path


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_file_for_distribution_keeps_everything_and_rounds_the_weights_to_float16(tmp_path):
    made = checkpoint_of(
        Recipe((16, 20, 12), (1.0, 2.0, 1.5)), "pyramid", objective={"coarseness": 2}, antisymmetric=True
    )
    made = replace(made, card=replace(made.card, subjects={"train": ["a"], "val": ["b"]}))
    made.save(tmp_path / "a.safetensors")
    again = Checkpoint.load(tmp_path / "a.safetensors")
    assert {**again.to_dict(), "weights": 0} == {**made.to_dict(), "weights": 0}
    for name, weight in made.weights.items():
        assert again.weights[name].dtype == torch.float32
        assert torch.equal(again.weights[name], weight.half().float())
    moving, fixed = torch.rand(2, 1, 1, 16, 20, 12)
    assert_close(again.model()(moving, fixed).displacement, made.model()(moving, fixed).displacement, atol=0.02, rtol=0)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:  # what other programs see
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_a_file_for_distribution_holds_no_run(tmp_path):
    with pytest.raises(ValueError, match="a network, not a run"):
        checkpoint_of(SLICES).save(tmp_path / "a.safetensors", run={})


@pytest.mark.parametrize("public", [True, False], ids=["data set", "own files"])
def test_what_is_passed_on_loads_by_its_path_and_tells_nobody_s_folders_or_names(tmp_path, public):
    made = checkpoint_of(SLICES, "pyramid", antisymmetric=True)
    source = Source(dataset="oasis2d", data_root="/home/me") if public else Source(images="/home/me/patients")
    card = replace(made.card, dataset="oasis2d" if public else "patients", source=source.to_dict())
    replace(made, card=replace(card, subjects={"train": ["Ms Smith"]})).save(tmp_path / "best.pt")
    export(tmp_path / "best.pt", tmp_path / "mine.safetensors", "safetensors")
    told = (tmp_path / "mine.json").read_text(encoding="utf-8")
    assert "/home" not in told and b"/home" not in (tmp_path / "mine.safetensors").read_bytes()
    assert ("Ms Smith" in told) == public  # the names of a public data set are known to all
    assert json.loads(told)["sha256"] == sha256(tmp_path / "mine.safetensors")
    assert Checkpoint.load(tmp_path / "mine.safetensors").card.source.get("dataset") == ("oasis2d" if public else None)
    with pytest.raises(CourseError, match=r"does not end in \.safetensors"):
        export(tmp_path / "best.pt", tmp_path / "mine.pt", "safetensors")


@pytest.mark.parametrize("fault", ["cut", "foreign", "empty"])
def test_another_safetensors_file_is_refused_in_one_line(tmp_path, fault):
    path = tmp_path / "a.safetensors"
    if fault == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        checkpoint_of(SLICES).save(path)
        path.write_bytes(path.read_bytes()[: 0 if fault == "empty" else 1000])
    with pytest.raises(CourseError, match=r"damaged|not a checkpoint") as caught:
        Checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_network_loads_by_its_name_and_a_file_of_that_name_comes_first(weights, tmp_path, monkeypatch):
    assert shipped.names() == ["balls"]
    assert Checkpoint.load("balls").card.recipe.shape == (16, 20)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balls").write_bytes(b"a file of the user's")
    with pytest.raises(CourseError, match="damaged"):
        Checkpoint.load("balls")


def test_a_name_that_is_none_lists_those_there_are(weights):
    with pytest.raises(CourseError, match=r"cubes does not exist: .*OUT/best.pt, or a network that ships: balls"):
        Checkpoint.load("cubes")
    with pytest.raises(CourseError, match="no network called 'cubes' ships with the package: choose from balls"):
        shipped.card("cubes")


def test_a_file_that_was_changed_is_not_used(weights):
    other = checkpoint_of(SLICES, "pyramid", strength=0.4, antisymmetric=True)
    other.save(weights / "balls.safetensors")
    with pytest.raises(CourseError, match="not the file that its card describes: install the package again"):
        Checkpoint.load("balls")
    (weights / "balls.safetensors").unlink()
    with pytest.raises(CourseError, match="not the file that its card describes: install the package again"):
        Checkpoint.load("balls")


def test_the_list_and_the_card_are_text(weights):
    assert shipped.overview().split("  ")[0] == "balls" and "Dice 0.5 -> 0.6" in shipped.overview()
    assert "16x20, 1x1 mm" in shipped.overview()
    assert "figures:\n  dice_after: 0.6" in shipped.readable(shipped.card("balls"))


# --- who is measured --------------------------------------------------------------------------------------------------


def test_who_has_trained_a_network_is_not_measured():
    source, made = Source(dataset="synthetic"), checkpoint_of(Recipe((16, 20, 12), (1.0, 1.0, 1.0)))
    everyone = tuple(Subject(name, Path(name)) for name in "abcd")
    cohort = Cohort(DATASETS["synthetic"], everyone, {"train": everyone[:2], "val": (), "test": everyone[2:]})
    of_same = replace(made.card, dataset="synthetic", subjects={"train": ["a", "c"], "val": ["x"]})
    left, seen = source.unseen(cohort, of_same)
    assert seen == 1 and [subject.name for subject in left.splits["test"]] == ["d"]
    assert source.unseen(cohort, replace(of_same, dataset="oasis2d")) == (cohort, 0)
    assert source.unseen(cohort, replace(of_same, subjects={"train": ["a"]})) == (cohort, 0)


# --- what ships -------------------------------------------------------------------------------------------------------


@every_network
def test_what_ships_is_small_and_says_what_one_must_know(name):
    path = shipped.WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size <= LARGEST
    known, checkpoint = shipped.card(name), Checkpoint.load(name)
    assert known["sha256"] == sha256(path)
    assert known["architecture"] in ARCHITECTURES
    for key in ("about", "summary", "licence", "citation", "not_for", "retrain", "budget", "log", "figures"):
        assert known[key], key
    assert known["subjects"] == {split: list(names) for split, names in checkpoint.card.subjects.items()}
    assert not set(known["test_subjects"]) & {name for names in known["subjects"].values() for name in names}
    assert "/" not in json.dumps(checkpoint.card.source)  # nobody's folders


@every_network
def test_what_is_exported_of_it_tells_its_figures_and_nothing_of_another_file(name, tmp_path):
    description = describe(name)
    assert description["figures"] == shipped.card(name)["figures"]
    assert f"| dice_after | {description['figures']['dice_after']:.6g} |" in card(description, "use")
    Checkpoint.load(name).save(tmp_path / f"{name}.safetensors")  # the same network, in a file of somebody's own
    assert "figures" not in describe(tmp_path / f"{name}.safetensors")


@every_network
def test_what_ships_does_not_contradict_itself(name):
    """Also measured in its card; here on noise, where no network has been trained to behave."""
    model = Checkpoint.load(name)
    shape = model.card.recipe.shape
    network = model.model()
    figures = shipped.card(name)["figures"]
    assert figures["folding_percent"] < 0.05
    if not model.network.arguments.get("antisymmetric"):
        assert model.knows_labels  # the one thing that a network of one direction learns faster from
        return
    moving, fixed = torch.rand(2, 1, 1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert network(fixed, fixed).displacement.abs().max() < 1e-3
        assert_close(network(moving, fixed).velocity, -network(fixed, moving).velocity, atol=1e-3, rtol=0)
    # The velocity changes its sign exactly; what is left comes from integrating it on grids.
    assert figures["swap_voxels"] <= 0.1 and figures["self_voxels"] < 0.05


def test_the_command_lists_them_and_tells_of_a_wrong_name():
    run = [sys.executable, "-m", "course_utils", "models"]
    listed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert all(name in listed for name in shipped.names())
    wrong = subprocess.run([*run, "nobody"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "no network called 'nobody'" in wrong.stderr
