"""What a trained network is exported as: loaded by other programs, it gives the same field."""

import errno
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, load, run, verify_metadata, verify_net_in_out
from scipy import ndimage

from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.model_card import describe, write_card
from course_utils.networks import NetworkSpec
from course_utils.scans import export
from course_utils.scans.registration import register_files
from tests.checkpoints import checkpoint as checkpoint_of

pytestmark = pytest.mark.slow

SHAPES = {3: (22, 16, 13), 2: (22, 19)}  # none is a multiple of what the U-Net divides by


OBJECTIVE = {
    "similarity": {"term": "NCC", "window": 9, "weight": 1.0},
    "overlap": {"term": "Overlap", "labels": [1, 2], "weight": 0.25},
}


def save_checkpoint(folder, dims=3, architecture="voxelmorph", features=(4, 8), **changes):
    """A checkpoint as `train` writes it, of a network whose weights move things."""
    recipe = Recipe(SHAPES[dims], (2.0,) * dims, aligned=True)
    folder.mkdir(parents=True, exist_ok=True)
    made = checkpoint_of(recipe, architecture, strength=0.3, objective=OBJECTIVE, features=list(features))
    replace(made, **changes).save(folder / "best.pt")
    return folder / "best.pt"


@pytest.fixture(scope="module", params=[3, 2], ids=["3-D", "2-D"])
def checkpoint(request, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"), request.param, architecture="pyramid")


def images(path, seed=0):
    """Moving and fixed image, and what the network makes of them."""
    model = Checkpoint.load(path).model()
    shape = SHAPES[model.spatial_dims]
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    pair = [torch.from_numpy(ndimage.gaussian_filter(n, 2)).float()[None, None] for n in noise]
    moving, fixed = [(image - image.min()) / (image.max() - image.min()) for image in pair]
    with torch.inference_mode():
        registration = model(moving, fixed)
    assert registration.displacement.abs().max() > 1
    return moving, fixed, registration


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.export_onnx(checkpoint, path)
    return path


def test_onnxruntime_gives_the_same_field(checkpoint, graph):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for seed in (0, 1):  # nothing of the image that it was traced with stays in the graph
        moving, fixed, registration = images(checkpoint, seed)
        moved, displacement = session.run(None, {"moving": moving.numpy(), "fixed": fixed.numpy()})
        np.testing.assert_allclose(displacement, registration.displacement, atol=1e-3)
        np.testing.assert_allclose(moved, registration.moved, atol=1e-3)


@pytest.mark.parametrize("name", ["voxelmorph", "inception", "swin", "hypernetwork"])
def test_every_other_network_becomes_a_graph_too(name, tmp_path):
    model = save_checkpoint(tmp_path, 2, name, features=[4, 6, 8])
    export.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    moving, fixed, registration = images(model)
    _, displacement = session.run(None, {"moving": moving.numpy(), "fixed": fixed.numpy()})
    np.testing.assert_allclose(displacement, registration.displacement, atol=2e-3)


def test_a_graph_is_one_file_that_describes_itself_and_refuses_another_shape(checkpoint, graph):
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(graph), full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["course_utils"]) == describe(checkpoint)
    moving, fixed, _ = images(checkpoint)
    with pytest.raises(Exception, match=r"Got invalid dimensions for input: (moving|fixed)"):
        session.run(None, {"moving": moving[:, :, 1:].numpy(), "fixed": fixed[:, :, 1:].numpy()})


# --- MONAI bundle -----------------------------------------------------------------------------------------------------

TENSOR = {
    "type": "object",
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": {"enum": ["magnitude", "hounsfield", "kspace", "raw", "labels", "classes", "segmentation", "points"]},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "dtype": {"type": "string"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {"^[0-9]+$": {"type": "string"}}},
    },
    "required": [
        *("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def")
    ],
}
TEXT = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright")
NAMED = {"type": "object", "additionalProperties": TENSOR, "minProperties": 1}
SPECIFICATION = {  # https://docs.monai.io/en/stable/mb_specification.html as a schema: MONAI's own is on a server
    "type": "object",
    "properties": {
        **{name: {"type": "string", "minLength": 1} for name in TEXT},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {"inputs": NAMED, "outputs": NAMED},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*TEXT, "network_data_format"],
}


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "balls"
    export.export_bundle(checkpoint, path)
    return path


def test_the_metadata_follow_the_specification(bundle, tmp_path):
    schema = tmp_path / "schema.json"  # a file that is there is not downloaded
    schema.write_text(json.dumps(SPECIFICATION), encoding="utf-8")
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))
    content = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps({k: v for k, v in content.items() if k != "task"}), encoding="utf-8")
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(meta_file=str(broken), filepath=str(schema))


def test_monai_finds_shapes_and_types_as_the_metadata_say(bundle):
    configs = {
        "meta_file": str(bundle / "configs/metadata.json"),
        "config_file": str(bundle / "configs/inference.json"),
    }
    verify_net_in_out("network_def", **configs, device="cpu")


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_monai_loads_a_bundle_and_it_gives_the_same_field(checkpoint, bundle):
    network = load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference", device="cpu").eval()
    moving, fixed, registration = images(checkpoint)
    with torch.inference_mode():
        displacement = network(torch.cat([moving, fixed], dim=1))
    torch.testing.assert_close(displacement, registration.displacement, rtol=0, atol=1e-5)
    # The parts of the configuration, without the network's class from the course's own hand.
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.inference_mode():
        again = network.eval()(torch.cat([moving, fixed], dim=1))
    torch.testing.assert_close(again, displacement, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_bundle_runs_from_its_own_configuration_wherever_it_lies(checkpoint, bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "elsewhere")
    files = {}
    rng = np.random.default_rng(3)
    for name in ("moving", "fixed"):
        array = ndimage.gaussian_filter(rng.normal(size=SHAPES[len(Checkpoint.load(checkpoint).card.recipe.shape)]), 2)
        files[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(1000 * array.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])), files[name])
    monkeypatch.chdir(tmp_path / "elsewhere")
    trained = Checkpoint.load(checkpoint)
    if len(trained.card.recipe.shape) == 2:
        run(config_file="configs/inference.json", output=str(tmp_path / "u.npy"), device="cpu", **files)
        with torch.inference_mode():
            expected = trained.model()(*(trained.card.recipe.load(files[name])["image"][None] for name in files))
        np.testing.assert_allclose(np.load(tmp_path / "u.npy"), expected.displacement[0], atol=1e-5)
        return
    theirs = {name: str(tmp_path / f"{name}.nii.gz") for name in ("moved", "warp")}
    run(config_file="configs/inference.json", device="cpu", **files, **theirs)
    ours = {name: tmp_path / f"our_{name}.nii.gz" for name in theirs}
    register_files(files["moving"], files["fixed"], ours, model=checkpoint, iterations=0)
    for name, path in ours.items():
        np.testing.assert_array_equal(nib.load(theirs[name]).get_fdata(), nib.load(path).get_fdata())
    # Another program places the field: it makes the moved scan.
    scans = [sitk.ReadImage(files[name], sitk.sitkFloat32) for name in ("moving", "fixed")]
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(theirs["warp"], sitk.sitkVectorFloat64))
    lowest = float(sitk.GetArrayFromImage(scans[0]).min())
    moved = sitk.GetArrayFromImage(sitk.Resample(*scans, field, sitk.sitkLinear, lowest)).T
    inside = (slice(3, -3),) * 3
    difference = np.abs(moved - nib.load(theirs["moved"]).get_fdata())[inside]
    still = np.abs(sitk.GetArrayFromImage(scans[0]).T - moved)[inside]
    assert difference.mean() < 0.05 * still.mean()


def test_a_bundle_carries_what_its_card_promises(bundle):
    described = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["course_utils"]
    weights = bundle / described["weights"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == described["sha256"]
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert described["sha256"] in text and "--config_file configs/inference.json" in text
    assert "CC BY 4.0" in (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root)/", text + json.dumps(described))  # no path of this machine


def test_a_bundle_is_written_whole_or_not_at_all(checkpoint, bundle, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(CourseError, match="balls exists: remove it"):
        export.export_bundle(checkpoint, bundle)
    assert before == {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CourseError, match=r"was not written .the disk is full"):
        export.export_bundle(checkpoint, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# --- the card ---------------------------------------------------------------------------------------------------------


def test_a_trained_folder_describes_itself(tmp_path):
    model = save_checkpoint(tmp_path, metrics={"dice": 0.75, "folding_percent": 0.125, "jaccard": float("nan")})
    write_card(model)
    described = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert described["validation"] == {"step": 3, "dice": 0.75, "folding_percent": 0.125}
    assert described["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert described["parameters"] == sum(p.numel() for p in Checkpoint.load(model).model().parameters())
    again = NetworkSpec(described["architecture"], described["arguments"])
    assert again == Checkpoint.load(model).network
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for expected in (
        *("22x16x13 voxels of 2x2x2 mm", "percentile, volume by volume", "1 shell, 2 core", "CC BY 4.0"),
        *("similarity (NCC, window 9, weight 1.0)", "overlap (Overlap, labels [1, 2], weight 0.25)"),
        *("A. Author, A paper, 2020", "| dice | 0.75 |"),
    ):
        assert expected in text
    # What the card says to run does run, from the folder that it lies in.
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace('"best.pt"', repr(str(model)))
    names = {}
    exec(code, names)
    assert names["recipe"] == Recipe(SHAPES[3], (2.0, 2.0, 2.0), aligned=True)
    assert names["model"].spec == again


def test_a_checkpoint_without_metrics_licence_or_labels(tmp_path):
    card = DataCard("balls", {}, Recipe(SHAPES[3], (2.0, 2.0, 2.0), aligned=True))
    model = save_checkpoint(tmp_path, metrics={}, card=card)
    write_card(model)
    described = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert described["validation"] == {"step": 3, "score": 0.75}
    assert described["licence"] == described["citation"] == "unknown"
    assert "| structures | none |" in (tmp_path / "README.md").read_text(encoding="utf-8")
