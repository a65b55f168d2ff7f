"""Checkpoints that were damaged or made by somebody with intentions: refused in one line, and nothing of theirs run."""

import json
import os
import struct
import zipfile
from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent, ConfigExpression
from safetensors.torch import save as safetensors_bytes

from course_utils.checkpoint import Checkpoint
from course_utils.errors import CourseError
from course_utils.model_card import describe
from course_utils.scans.export import export
from tests.checkpoints import SLICES, checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a checkpoint by the ending of its file."""
    folder = tmp_path_factory.mktemp("whole")
    for ending in ("pt", "safetensors"):
        checkpoint(SLICES).save(folder / f"best.{ending}")
    return {ending: (folder / f"best.{ending}").read_bytes() for ending in ("pt", "safetensors")}


def refused(path):
    with pytest.raises(CourseError) as caught:
        Checkpoint.load(path).model()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_flipped_byte_anywhere_is_noticed(tmp_path, whole, ending):
    """In weights, in the header, between them, in the checksum: every byte counts."""
    content = whole[ending]
    path = tmp_path / f"best.{ending}"
    step = max(1, len(content) // 60)
    places = sorted({*range(0, len(content), step), *range(8), *range(len(content) - 100, len(content), 7)})
    if ending == "safetensors":
        places += list(range(8, 8 + int.from_bytes(content[:8], "little"), 29))
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        assert "damaged" in refused(path), place
    path.write_bytes(content)
    Checkpoint.load(path).model()


def test_a_file_of_weights_without_a_sum_needs_the_card_that_tells_it(tmp_path):
    """Those that ship, and those of earlier versions."""
    path = tmp_path / "best.safetensors"
    made = checkpoint(SLICES)
    state = {name: value for name, value in made.to_dict().items() if name != "weights"}
    path.write_bytes(safetensors_bytes(dict(made.weights), {"course_utils": json.dumps(state)}))
    assert "has no SHA-256, neither in itself nor in a card" in refused(path)
    path.with_suffix(".json").write_text('{"sha256": "' + 64 * "a" + '"}', encoding="utf-8")
    assert "is damaged: its bytes are not those" in refused(path)


def test_a_file_of_torch_alone_is_held_to_the_sums_of_its_members(tmp_path):
    path = tmp_path / "best.pt"
    torch.save(checkpoint(SLICES).to_dict(), path)
    Checkpoint.load(path).model()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "damaged" in refused(path)


def test_packed_members_are_no_way_to_fill_the_memory(tmp_path, whole):
    path = tmp_path / "best.pt"
    path.write_bytes(whole["pt"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "members are packed" in refused(path)


# --- values -----------------------------------------------------------------------------------------------------------

HOSTILE = ("$__import__('os').mkdir('RAN')", " $print(1)", "@bundle_root", "%configs/metadata.json#version")


def set_at(state, place, value):
    *way, last = place.split("/")
    for name in way:
        state = state[name]
    state[last] = value


PLACES = ("architecture", "arguments/features", "arguments/new", "objective/similarity", "config/steps", "config/new")
PLACES += ("card/dataset", "card/licence", "card/citation", "card/recipe/normalisation", "card/recipe/shape")
PLACES += ("metrics/dice", "step", "score", "card/labels/1", "card/recipe", "card", "objective", "config", "metrics")
WRONG = {
    "a mapping where a list is": ("arguments/features", {"a": 1}),
    "a component": ("arguments/features", {"_target_": "os.mkdir", "path": "RAN"}),
    "a component in the configuration": ("config/new", {"_target_": "os.mkdir", "path": "RAN"}),
    "a huge network": ("arguments/features", [10**6, 10**6]),
    "a huger network": ("arguments/features", [10**9, 10**9]),
    "thousands of levels": ("arguments/features", [1] * 5000),
    "no levels": ("arguments/features", []),
    "features below 0": ("arguments/features", [-4, 8]),
    "text for a number": ("arguments/spatial_dims", "two"),
    "an argument of no network": ("arguments/attention", True),
    "an unknown architecture": ("architecture", "resnet"),
    "no text": ("architecture", 5),
    "weights that are no tensors": ("weights/velocity.weight", [1.0]),
    "weights that are no table": ("weights", torch.zeros(3)),
    "NaN": ("weights/velocity.weight", torch.full((2, 8, 3, 3), torch.nan)),
    "weights of a huge shape": ("weights/velocity.weight", torch.zeros(1).expand(10**12)),
    "a grid beyond memory": ("card/recipe/shape", [10**5, 10**5]),
    "an empty grid": ("card/recipe/shape", [0, 16]),
    "a shape of text": ("card/recipe/shape", ["16", "16"]),
    "another dimension": ("card/recipe/shape", [16]),
    "a spacing of nothing": ("card/recipe/spacing", [0.0, 1.0]),
    "a spacing that is infinite": ("card/recipe/spacing", [float("inf"), 1.0]),
    "an unknown recipe": ("card/recipe/mean", 1.0),
    "a label that is no number": ("card/labels", {"one": "shell"}),
    "labels in a list": ("card/labels", ["shell"]),
    "subjects in a list": ("card/subjects", ["me"]),
    "a source that is none": ("card/source", "here"),
    "a step below 0": ("step", -1),
    "a step of text": ("step", "3"),
    "a true score": ("score", True),
    "a metric of text": ("metrics/dice", "high"),
    "a range that is none": ("objective/smoothness", {"low": 2.0}),
    "a range of text": ("objective/smoothness", {"low": "a", "high": "b"}),
    "without end": ("config/new", None),
}


def plain_state():
    made = checkpoint(SLICES)
    state = made.to_dict()
    state["weights"] = {name: tensor.clone() for name, tensor in state["weights"].items()}
    return state | {"objective": {"similarity": {"term": "NCC", "weight": 1.0}}}


@pytest.mark.parametrize("value", HOSTILE)
def test_no_expression_of_a_bundle_gets_in(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for place in PLACES:
        state = plain_state()
        set_at(state, place, value)
        torch.save(state, "evil.pt")
        assert "evil.pt" in refused("evil.pt"), place
        with pytest.raises(CourseError):
            export("evil.pt", "bundle", "bundle")
    assert not os.path.exists("RAN") and not os.path.exists("bundle")


@pytest.mark.parametrize("what", WRONG)
def test_a_value_of_a_wrong_type_or_size_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    place, value = WRONG[what]
    if what == "without end":
        value = []
        for _ in range(200):
            value = [value]
    state = plain_state()
    set_at(state, place, value)
    torch.save(state, "evil.pt")
    refused("evil.pt")
    assert not os.path.exists("RAN")


@pytest.mark.parametrize("part", sorted(checkpoint(SLICES).to_dict()))
def test_every_part_must_be_there(tmp_path, part):
    state = plain_state()
    del state[part]
    torch.save(state, tmp_path / "evil.pt")
    assert "train it again" in refused(tmp_path / "evil.pt") or part == "format"


def test_the_same_values_are_refused_in_a_safetensors_file(tmp_path):
    path = tmp_path / "evil.safetensors"
    for header in ('{"format": "course_utils 3"}', "[1]", "[" * 10_000, '"text"', "5", ""):
        content = safetensors_bytes({"weight": torch.zeros(1)}, {"course_utils": header})
        path.write_bytes(content)
        path.with_suffix(".json").write_text(
            json.dumps({"sha256": __import__("hashlib").sha256(content).hexdigest()}), encoding="utf-8"
        )
        refused(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "damaged" in refused(path)


# --- what is exported -------------------------------------------------------------------------------------------------


def leaves(value):
    """Every mapping, text and number within."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves(item)


def test_what_a_bundle_holds_of_a_checkpoint_are_constants(tmp_path):
    made = checkpoint(SLICES)
    made.save(tmp_path / "best.pt")
    export(tmp_path / "best.pt", tmp_path / "bundle", "bundle")
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
    parser.read_meta(tmp_path / "bundle" / "configs" / "metadata.json")
    parser.parse()
    told = [parser["_meta_"], *(parser[name] for name in ("architecture", "arguments", "recipe"))]
    for value in leaves(told):
        assert not ConfigExpression.is_expression(value) and not ConfigComponent.is_instantiable(value)
        assert not (isinstance(value, str) and value.startswith(("@", "%")))
    assert parser.get_parsed_content("architecture") == made.network.architecture
    assert parser.get_parsed_content("arguments") == dict(made.network.arguments)
    assert parser.get_parsed_content("recipe") == made.card.recipe.to_dict()


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_subjects_that_a_bundle_would_run_are_not_exported(tmp_path, monkeypatch, name):
    """A person's name or folder may begin with any sign: the checkpoint loads, and becomes no bundle."""
    monkeypatch.chdir(tmp_path)
    made = checkpoint(SLICES)
    card = replace(made.card, dataset="oasis2d", subjects={"train": [name]}, source={"dataset": "oasis2d"})
    replace(made, card=card).save("best.pt")
    assert describe("best.pt")["subjects"] == {"train": [name]}
    with pytest.raises(CourseError, match="cannot become a bundle"):
        export("best.pt", "bundle", "bundle")
    assert not os.path.exists("bundle") and not os.path.exists("RAN")
