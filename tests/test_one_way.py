"""One way to the grid: whatever command a file reaches a network by, the network sees the same numbers, bit for bit."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import run
from torch import nn

from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.recipe import Recipe
from course_utils.evaluation import evaluate_checkpoint
from course_utils.networks import NetworkSpec, Registration, RegistrationNetwork, architecture
from course_utils.objectives import pair_objective
from course_utils.scans.export import export
from course_utils.scans.learn2reg import submit
from course_utils.scans.registration import register_files
from course_utils.training import TrainConfig, train_cohort
from tests import phantoms
from tests.checkpoints import checkpoint as checkpoint_of

pytestmark = pytest.mark.slow

SEEN: list[tuple[torch.Tensor, torch.Tensor]] = []
GRID = phantoms.grid((27, 30, 25), (2.0, 2.0, 2.0), "PIL")  # neither the network's axes nor its shape
RECIPES = {
    "brought to the network's axes": Recipe((36, 32, 32), (2.0, 2.0, 2.0)),
    "resampled": Recipe((36, 32, 32), (2.5, 2.2, 2.4)),
    "taken as stored": Recipe((27, 30, 25), (2.0, 2.0, 2.0), aligned=True),
}


@architecture("test watching")
class Watching(RegistrationNetwork):
    """Notes what it sees; moves a little where the two images differ."""

    def __init__(self):
        super().__init__()
        self.spatial_dims = 3
        self.scale = nn.Parameter(torch.full((1, 3, 1, 1, 1), 0.5))

    def forward(self, moving, fixed, condition=None):
        if not torch.compiler.is_compiling():
            SEEN.append((moving.detach().clone(), fixed.detach().clone()))
        return Registration(moving, self.scale * (fixed - moving))


@pytest.fixture(params=RECIPES, ids=str)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture
def folder(tmp_path):
    """A Learn2Reg folder of eight phantoms, each turned a little; cases 7 and 8 are its validation pair."""
    images = [f"./imagesTr/Head_{case:04d}_0000.nii.gz" for case in range(1, 9)]
    for case, name in enumerate(images, 1):
        points = phantoms.positions(GRID) * (1 + 0.02 * case)
        for part, array in (("images", phantoms.intensity(points)), ("labels", phantoms.structures(points))):
            path = tmp_path / "Head" / name.replace("images", part)
            path.parent.mkdir(parents=True, exist_ok=True)
            phantoms.save(path, array, GRID, np.float32 if part == "images" else np.uint8)
    content = {
        "name": "Head",
        "labels": {"0": {"0": "background", "1": "shell", "2": "core"}},
        "tensorImageShape": {"0": list(GRID.shape)},
        "training": [{"image": image, "label": image.replace("images", "labels")} for image in images],
        "registration_val": [{"fixed": images[6], "moving": images[7]}],
    }
    (tmp_path / "Head" / "Head_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "Head"


@pytest.fixture
def model(recipe, tmp_path):
    path = tmp_path / "best.pt"
    spec = NetworkSpec("test watching")
    made = checkpoint_of(recipe)
    replace(made, network=spec, weights=spec.build().state_dict()).save(path)
    return path


def test_every_command_shows_a_network_the_same(recipe, folder, model, tmp_path):
    cohort = load_cohort("learn2reg", folder, download=False)
    pair = cohort.official["val"][0]
    # What training loads, and what it hands to the network.
    info = replace(cohort.info, shape=recipe.shape, spacing=recipe.spacing, aligned=recipe.aligned)
    loaded = load_subjects([pair.fixed, pair.moving], recipe, strict=True)
    item = PairDataset(loaded, [pair])[0]
    expected = item["moving"][None], item["fixed"][None]
    assert all(image.std() > 0.1 for image in expected)

    def seen(what):
        SEEN.clear()
        what()
        assert SEEN
        return SEEN

    everybody = seen(
        lambda: train_cohort(
            replace(cohort, info=info),
            tmp_path / "run",
            network=NetworkSpec("test watching"),
            objective=pair_objective("ssd"),
            config=TrainConfig(steps=4, batch_size=1, validations=1, amp="off"),
            hooks=[],
        )
    )
    assert any(torch.equal(images[1], expected[1]) for images in everybody)
    commands = {
        "evaluate": lambda: evaluate_checkpoint(Checkpoint.load(model), [pair]),
        "register": lambda: register_files(
            pair.moving.image, pair.fixed.image, {"moved": tmp_path / "moved.nii.gz"}, model=model, iterations=0
        ),
        "learn2reg": lambda: submit(model, folder, tmp_path / "submission.zip"),
    }
    for name, command in commands.items():
        (moving, fixed), *others = seen(command)
        assert torch.equal(fixed, expected[1]), name
        assert torch.equal(moving, expected[0]), name
        # Evaluation shows the two in other orders too, to see whether the network contradicts itself.
        for image in (image for images in others for image in images):
            assert any(torch.equal(image, known) for known in expected), name
    # Exports: a bundle reads files by itself, a graph is given tensors.
    export(model, tmp_path / "bundle")
    files = {"moving": pair.moving.image, "fixed": pair.fixed.image}
    files |= {name: tmp_path / f"{name}.nii.gz" for name in ("moved", "warp")}
    for moving, fixed in seen(
        lambda: run(
            config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
            bundle_root=str(tmp_path / "bundle"),
            device="cpu",
            **{name: str(path) for name, path in files.items()},
        )
    ):
        assert torch.equal(fixed, expected[1]) and torch.equal(moving, expected[0])


def test_a_graph_answers_to_these_tensors_as_the_network_does(folder, tmp_path):
    recipe = RECIPES["brought to the network's axes"]
    made = checkpoint_of(recipe, "pyramid", strength=0.3)
    made.save(tmp_path / "best.pt")
    export(tmp_path / "best.pt", tmp_path / "model.onnx", "onnx")
    pair = load_cohort("learn2reg", folder, download=False).official["val"][0]
    images = {name: recipe.load(getattr(pair, name).image)["image"][None] for name in ("moving", "fixed")}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    _, displacement = session.run(None, {name: image.numpy() for name, image in images.items()})
    with torch.inference_mode():
        expected = made.model()(**images).displacement
    assert expected.abs().max() > 0.5
    np.testing.assert_allclose(displacement, expected, atol=1e-3)


def test_a_scan_of_another_field_of_view_keeps_its_voxels(recipe, model, folder, tmp_path):
    """Registration sees all of a scan larger than the training's grid; in between the numbers are the same."""
    if recipe.aligned:
        pytest.skip("volumes taken as stored have one field of view")
    large = phantoms.grid((57, 60, 55), (2.0, 2.0, 2.0), "PIL")
    for name in ("moving", "fixed"):
        points = phantoms.positions(large)
        phantoms.save(tmp_path / f"{name}.nii.gz", phantoms.intensity(points * (1.1 if name == "moving" else 1)), large)
    SEEN.clear()
    files = tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", {"moved": tmp_path / "moved.nii.gz"}
    register_files(*files, model=model, iterations=0)
    whole = SEEN[0][1]
    trained = recipe.load(tmp_path / "fixed.nii.gz")["image"]
    assert all(n > m for n, m in zip(whole.shape[2:], recipe.shape, strict=True))
    first = [n // 2 - m // 2 for n, m in zip(whole.shape[2:], recipe.shape, strict=True)]
    inside = whole[(0, slice(None), *(slice(f, f + m) for f, m in zip(first, recipe.shape, strict=True)))]
    torch.testing.assert_close(inside, trained, rtol=0, atol=1e-5)
    assert nib.load(tmp_path / "moved.nii.gz").shape == large.shape
