"""A trained network for others: a card that says what it is, and copies of it as an ONNX graph and as a MONAI bundle.

TorchScript is not offered: PyTorch deprecates it, and a traced ``grid_sample`` keeps the device of its first input.
ONNX has had ``GridSample`` for volumes since its operator set 20.
"""

import hashlib
import importlib.metadata
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from course_utils import __version__
from course_utils.errors import CourseError
from course_utils.networks import RegistrationNetwork
from course_utils.training import Trained, load_model, replacing

ONNX_OPSET = 20
"""The first operator set that samples volumes."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Of a bundle's metadata; what ``python -m monai.bundle verify_metadata`` downloads."""

# --- what a trained folder says of itself -----------------------------------------------------------------------------


def describe(model: str | Path) -> dict[str, Any]:
    """All that one must know to use a trained network, as plain values that JSON can hold.

    ``validation`` are means over the validation pairs at the step that was kept, from the ``history.csv`` beside the
    checkpoint; without that file there is only the ``score`` by which it was kept.

    Raises:
        CourseError: ``model`` is not a checkpoint of this course.
    """
    model = Path(model)
    trained = load_model(model)
    about, recipe = trained.about, trained.about["recipe"]
    return {
        "weights": model.name,
        "sha256": _sha256(model),
        "course_utils": __version__,
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "data_set": about["dataset"],
        "licence": about.get("licence") or "unknown",
        "citation": about.get("citation") or "unknown",
        "labels": {str(value): name for value, name in about["labels"].items()},
        "shape": list(recipe["shape"]),
        "spacing_mm": list(about["spacing"]),
        "orientation": "as stored" if recipe["spacing"] is None else "RAS",
        "normalisation": recipe["normalisation"],
        "input": "moving and fixed, each (batch, 1, *shape) float32, intensities in [0, 1]",
        "output": "displacement, (batch, axes, *shape) float32, voxels: moved(x) = moving(x + displacement(x))",
        "config": json.loads(json.dumps(asdict(trained.config))),  # its tuples are lists after any reading
        "validation": {"step": trained.step, **_validation(trained, model.with_name("history.csv"))},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _validation(trained: Trained, history: Path) -> dict[str, float]:
    rows = pd.read_csv(history) if history.is_file() else pd.DataFrame({"step": []})
    rows = rows[rows["step"] == trained.step].filter(like="validation_")
    if rows.empty:
        return {"score": trained.score}
    values = rows.iloc[-1].to_dict().items()
    return {name.removeprefix("validation_"): value for name, value in values if not math.isnan(value)}


def write_card(model: str | Path) -> None:
    """Write ``model.json``, what :func:`describe` returns, and ``README.md``, the same for people, beside a checkpoint.

    Raises:
        CourseError: ``model`` is not a checkpoint, or the folder cannot be written.
    """
    model = Path(model)
    description = describe(model)
    with replacing(model.with_name("model.json")) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n")
    with replacing(model.with_name("README.md")) as partial:
        partial.write_text(card(description, CHECKPOINT_USE.format(**description)))


CHECKPOINT_USE = """```python
from course_utils.loading import load_subject, preprocessing
from course_utils.training import load_model

trained = load_model("{weights}")                      # tensors and plain values only: no code is run
transform = preprocessing(**trained.about["recipe"])   # from files to the network's grid
```

    python -m course_utils evaluate --model {weights} --pairs pairs.csv --out metrics.csv"""


def card(description: Mapping[str, Any], use: str) -> str:
    """The Markdown text of a model card.

    Args:
        description: what :func:`describe` returns.
        use: how to load the weights, Markdown.
    """
    config = description["config"]
    shape = "x".join(map(str, description["shape"]))
    spacing = "x".join(f"{mm:g}" for mm in description["spacing_mm"])
    supervision = f", soft Dice of weight {config['dice_weight']:g}" if config["dice_weight"] else ", no labels"
    validation = "\n".join(f"| {name} | {value:.6g} |" for name, value in description["validation"].items())
    labels = ", ".join(f"{value} {name}" for value, name in description["labels"].items()) or "none"
    return f"""# Deformable registration, trained on {description["data_set"]}

A network of {description["parameters"]:,} parameters that registers a moving to a fixed image: it predicts
a stationary velocity field and integrates it to a displacement.

| | |
|---|---|
| input | {description["input"]} |
| output | {description["output"]} |
| grid | {shape} voxels of {spacing} mm, axes {description["orientation"]} |
| normalisation | {description["normalisation"]}, volume by volume |
| structures | {labels} |
| loss | {config["similarity"]}, {config["regulariser"]} of weight {config["smoothness"]:g}{supervision} |
| data set | {description["data_set"]}, licence: {description["licence"]} |
| cite | {description["citation"]} |

Means over validation pairs, of subjects that were not trained on:

| | |
|---|---|
{validation}

Whether the weights may be passed on follows from the licence of the data. Not a medical device.

{use}

The weights' SHA-256 is {description["sha256"]}.
"""


# --- ONNX -------------------------------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """What an ONNX graph answers: moved image and displacement."""

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        registration = self.network(moving, fixed)
        return registration.moved, registration.displacement


def export_onnx(model: str | Path, out: str | Path) -> None:
    """Write a network as an ONNX graph: inputs ``moving`` and ``fixed``, outputs ``moved`` and ``displacement``.

    The graph is for one pair on the grid that the network was trained on, ``(1, 1, *shape)``; a runtime refuses any
    other shape. Images must be on that grid and normalised as the graph's metadata says, key ``course_utils``.

    Raises:
        CourseError: the packages onnx and onnxscript are missing, ``model`` is not a checkpoint, or ``out`` cannot be
            written.
    """
    description = describe(model)
    try:
        import onnxscript  # noqa: F401, what torch.onnx needs and does not install
    except ImportError as error:
        raise CourseError("ONNX needs two more packages: pip install onnx onnxscript") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here uses
    pair = torch.zeros(2, 1, 1, *description["shape"])
    program = torch.onnx.export(
        _Outputs(load_model(model).model).eval(),
        (pair[0], pair[1]),
        dynamo=True,
        opset_version=ONNX_OPSET,
        input_names=["moving", "fixed"],
        output_names=["moved", "displacement"],
        verbose=False,
    )
    program.model.metadata_props["course_utils"] = json.dumps(description)
    with replacing(Path(out)) as partial:
        program.save(partial, external_data=False)


# --- MONAI bundle -----------------------------------------------------------------------------------------------------


class PairNetwork(nn.Module):
    """A registration network as MONAI's tools expect one: one tensor in, one out.

    Args:
        network: as in :class:`course_utils.networks.RegistrationNetwork`.
    """

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 2, *spatial)``, moving and fixed, to the displacement ``(B, N, *spatial)`` in voxels."""
        return self.network(image[:, :1], image[:, 1:]).displacement


def export_bundle(model: str | Path, out: str | Path) -> None:
    """Write a network as a MONAI bundle: a folder with weights, metadata, an inference configuration and a card.

    Run by MONAI, it brings two files to the common grid and writes the displacement, as its README says. It imports
    ``course_utils``; its weights are a state dictionary of tensors.

    Raises:
        CourseError: ``model`` is not a checkpoint, or ``out`` exists or cannot be written.

    Source: MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html.
    """
    out = Path(out)
    if out.exists():
        raise CourseError(f"{out} exists: remove it, or choose another folder for the bundle")
    trained, description = load_model(model), describe(model)
    with replacing(out) as partial:
        for folder in ("configs", "models", "docs"):
            (partial / folder).mkdir(parents=True, exist_ok=True)
        weights = partial / "models" / "model.pt"
        torch.save(PairNetwork(trained.model).state_dict(), weights)
        description |= {"weights": "models/model.pt", "sha256": _sha256(weights)}
        for name, content in (("metadata", _metadata(description)), ("inference", _inference(trained))):
            (partial / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        (partial / "docs" / "README.md").write_text(card(description, BUNDLE_USE))
        (partial / "docs" / "data_license.txt").write_text(f"{description['data_set']}: {description['licence']}\n")


BUNDLE_USE = """In the bundle's folder, with MONAI, fire and `course_utils` installed:

    python -m monai.bundle run --config_file configs/inference.json \\
        --moving MOVING.nii.gz --fixed FIXED.nii.gz --output displacement.npy

`displacement.npy` is (axes, *shape) on the common grid. All options of the training are in `configs/metadata.json`."""


def _metadata(description: Mapping[str, Any]) -> dict[str, Any]:
    shape, dims = description["shape"], len(description["shape"])
    tensor = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        **{
            f"{name}_version": importlib.metadata.version(package).split("+")[0]
            for name, package in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy"))
        },
        "required_packages_version": {"course_utils": description["course_utils"], "nibabel": "5.2.0"},
        "task": "Deformable registration of two images",
        "description": f"Trained on {description['data_set']}: two images to a displacement field",
        "authors": "the user who trained it",
        "copyright": f"data: {description['licence']}",
        "data_source": description["data_set"],
        "data_type": "nifti",
        "references": [description["citation"]],
        "intended_use": "Research and teaching; not a medical device",
        "eval_metrics": description["validation"],
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": 2,
                    "value_range": [0, 1],
                    "channel_def": {"0": "moving", "1": "fixed"},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "raw",
                    "num_channels": dims,
                    "value_range": [],
                    "channel_def": {str(axis): f"displacement along axis {axis}, voxels" for axis in range(dims)},
                }
            },
        },
        "course_utils": dict(description),
    }


def _inference(trained: Trained) -> dict[str, Any]:
    recipe = trained.about["recipe"]
    return {
        "imports": ["$import numpy", "$import torch", "$from course_utils.training import TrainConfig"],
        "bundle_root": ".",
        "moving": "moving.nii.gz",
        "fixed": "fixed.nii.gz",
        "output": "$@bundle_root + '/displacement.npy'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "training": asdict(trained.config),
        "network_def": {
            "_target_": "course_utils.export.PairNetwork",
            "network": f"$TrainConfig(**@training).network({len(recipe['shape'])})",
        },
        "network": "$@network_def.to(@device).eval().requires_grad_(False)",
        "preprocessing": {"_target_": "course_utils.loading.preprocessing", **recipe},
        "moving_image": "$@preprocessing({'image': @moving})['image']",
        "fixed_image": "$@preprocessing({'image': @fixed})['image']",
        "image": "$torch.cat([@moving_image, @fixed_image])[None].to(@device)",
        "inferer": {"_target_": "SimpleInferer"},
        "run": [
            "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', @device, weights_only=True))",
            "$numpy.save(@output, @inferer(@image, @network)[0].cpu().numpy())",
        ],
    }
