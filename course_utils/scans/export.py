"""Copies of a trained network for other programs: an ONNX graph, and a MONAI bundle.

TorchScript is not offered: PyTorch deprecates it, and a traced `grid_sample` keeps the device of its first input.
ONNX has had `GridSample` for volumes since its operator set 20.
"""

import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.checkpoint import SAFETENSORS, Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.errors import CourseError
from course_utils.files import check_room, check_writable, replacing, save_tensors, sha256
from course_utils.model_card import card, describe, passed_on
from course_utils.networks import RegistrationNetwork
from course_utils.plain import Unfit, settings
from course_utils.scans.registration import register_files

ONNX_OPSET = 20
"""The first operator set that samples volumes."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Of a bundle's metadata; what `python -m monai.bundle verify_metadata` downloads."""

# --- ONNX -------------------------------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """What an ONNX graph answers: moved image and displacement."""

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        registration = self.network(moving, fixed)
        return registration.moved, registration.displacement


def export_onnx(model: str | Path, out: str | Path, smoothness: float | None = None) -> None:
    """Write a network as an ONNX graph: inputs `moving` and `fixed`, outputs `moved` and `displacement`.

    The graph is for one pair on the grid that the network was trained on, `(1, 1, *shape)`; a runtime refuses any
    other shape. Images must be on that grid and normalised as the graph's metadata says, key `course_utils`.

    Raises:
        CourseError: the packages onnx and onnxscript are missing, `model` is not a checkpoint, or `out` cannot be
            written.
    """
    description = describe(model, smoothness)
    try:
        import onnxscript  # noqa: F401, what torch.onnx needs and does not install
    except ImportError as error:
        raise CourseError("ONNX needs two more packages: pip install onnx onnxscript") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here uses
    pair = torch.zeros(2, 1, 1, *description["shape"])
    program = torch.onnx.export(
        _Outputs(Checkpoint.load(model).at(smoothness).model()).eval(),
        (pair[0], pair[1]),
        dynamo=True,
        opset_version=ONNX_OPSET,
        input_names=["moving", "fixed"],
        output_names=["moved", "displacement"],
        verbose=False,
    )
    assert program is not None  # it is, where dynamo is asked for
    program.model.metadata_props["course_utils"] = json.dumps(description)
    content = program.model_proto.SerializeToString()
    with replacing(Path(out)) as partial:
        partial.write_bytes(content)


# --- MONAI bundle -----------------------------------------------------------------------------------------------------


class PairNetwork(nn.Module):
    """A registration network as MONAI's tools expect one: one tensor in, one out.

    Args:
        network: as in `course_utils.networks.RegistrationNetwork`.
    """

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 2, *spatial)`, moving and fixed, to the displacement `(B, N, *spatial)` in voxels."""
        return self.network(image[:, :1], image[:, 1:]).displacement


def export_bundle(model: str | Path, out: str | Path, smoothness: float | None = None) -> None:
    """Write a network as a MONAI bundle: a folder with weights, metadata, an inference configuration and a card.

    Run by MONAI, it registers two files as the command `register` does and writes the moved scan and an ITK field; a
    network of slices writes the displacement as an array. It imports `course_utils`; its weights are a state dictionary
    of tensors.

    Raises:
        CourseError: `model` is not a checkpoint, or `out` exists or cannot be written; the network or its card holds a
            text that MONAI would run or replace: what comes from them are constants.

    Source: MONAI bundle specification, https://docs.monai.io/en/stable/mb_specification.html.
    """
    out = Path(out)
    if out.exists():
        raise CourseError(f"{out} exists: remove it, or choose another folder for the bundle")
    checkpoint, description = Checkpoint.load(model).at(smoothness), describe(model, smoothness)
    try:
        metadata = settings(_metadata(description), "metadata")
        own = settings(_of_network(checkpoint), "inference")
    except Unfit as error:
        raise CourseError(f"{model} cannot become a bundle ({error}): rename it, and train again") from error
    with replacing(out) as partial:
        for folder in ("configs", "models", "docs"):
            (partial / folder).mkdir(parents=True, exist_ok=True)
        weights = partial / "models" / "model.pt"
        save_tensors(PairNetwork(checkpoint.model()).state_dict(), weights)
        of_weights = {"weights": "models/model.pt", "sha256": sha256(weights)}
        description |= of_weights
        metadata["course_utils"] |= of_weights
        for name, content in (("metadata", metadata), ("inference", _inference(own))):
            (partial / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        use = BUNDLE_USE if len(checkpoint.card.recipe.shape) == 3 else SLICES_USE
        (partial / "docs" / "README.md").write_text(card(description, use), encoding="utf-8")
        (partial / "docs" / "data_license.txt").write_text(
            f"{description['data_set']}: {description['licence']}\n", encoding="utf-8"
        )


_USE = """In the bundle's folder, with MONAI, fire and `course_utils` installed:

    python -m monai.bundle run --config_file configs/inference.json \\
        --moving MOVING.nii.gz --fixed FIXED.nii.gz {outputs}

{told} All options of the training are in `configs/metadata.json`."""
BUNDLE_USE = _USE.format(
    outputs="--moved moved.nii.gz --warp warp.nii.gz",
    told="`moved.nii.gz` is the moving scan on the fixed scan's grid; `warp.nii.gz` is a displacement field in mm,\n"
    "which antsApplyTransforms, SimpleITK and 3D Slicer apply. Scans may differ in shape, spacing and orientation.",
)
SLICES_USE = _USE.format(
    outputs="--output displacement.npy", told="`displacement.npy` is (axes, *shape) on the common grid, in voxels."
)


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


def run_bundle(
    network: PairNetwork,
    recipe: Mapping[str, Any],
    moving: str | Path,
    fixed: str | Path,
    moved: str | Path,
    warp: str | Path,
) -> None:
    """Register two files with a bundle's network: what its configuration calls.

    Args:
        network: With its weights; it computes where it is.
        recipe: How images are prepared for it, as `Recipe.to_dict` gives it.
        moving, fixed: The scans.
        moved, warp: The files to write, see `registration.register_files`.
    """
    own = network.network
    card = DataCard("of the bundle", {}, Recipe.from_dict(recipe))
    weights = {name: tensor.cpu() for name, tensor in own.state_dict().items()}
    register_files(
        moving,
        fixed,
        {"moved": moved, "warp": warp},
        model=Checkpoint(own.spec, weights, card),
        iterations=0,
        device=next(own.parameters()).device,
    )


def _of_network(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that the configuration of a bundle holds of a checkpoint: constants."""
    return {
        "architecture": checkpoint.network.architecture,
        "arguments": dict(checkpoint.network.arguments),
        "recipe": checkpoint.card.recipe.to_dict(),
    }


def _inference(own: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a bundle: expressions of the course, and what `_of_network` gave, checked."""
    shared = {
        "imports": [
            "$import numpy",
            "$import torch",
            "$from course_utils.data.recipe import Recipe",
            "$from course_utils.networks import NetworkSpec",
            "$from course_utils.scans.export import run_bundle",
        ],
        "bundle_root": ".",
        "moving": "moving.nii.gz",
        "fixed": "fixed.nii.gz",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        **own,
        "network_def": {
            "_target_": "course_utils.scans.export.PairNetwork",
            "network": "$NetworkSpec(@architecture, @arguments).build()",
        },
        "network": "$@network_def.to(@device).eval().requires_grad_(False)",
    }
    load = "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', @device, weights_only=True))"
    if len(own["recipe"]["shape"]) == 3:
        return shared | {
            "moved": "$@bundle_root + '/moved.nii.gz'",
            "warp": "$@bundle_root + '/warp.nii.gz'",
            "run": [load, "$run_bundle(@network, @recipe, @moving, @fixed, @moved, @warp)"],
        }
    return shared | {
        "output": "$@bundle_root + '/displacement.npy'",
        "moving_image": "$Recipe.from_dict(@recipe).load(@moving)['image']",
        "fixed_image": "$Recipe.from_dict(@recipe).load(@fixed)['image']",
        "image": "$torch.cat([@moving_image, @fixed_image])[None].to(@device)",
        "inferer": {"_target_": "SimpleInferer"},
        "run": [load, "$numpy.save(@output, @inferer(@image, @network)[0].cpu().numpy())"],
    }


def export_safetensors(model: str | Path, out: str | Path, smoothness: float | None = None) -> None:
    """Write a network as one small file that `--model` takes, weights in float16, and beside it its card as JSON.

    Its data card is that of `model_card.passed_on`.

    Raises:
        CourseError: `model` is not a checkpoint, `out` has another ending, or the files cannot be written.
    """
    out = Path(out)
    if out.suffix != SAFETENSORS:
        raise CourseError(f"{out} does not end in {SAFETENSORS}, by which it is known: choose such a name")
    checkpoint = Checkpoint.load(model).at(smoothness)
    replace(checkpoint, card=passed_on(checkpoint.card)).save(out)
    with replacing(out.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(describe(out), indent=2) + "\n", encoding="utf-8")


FORMATS: dict[str, Callable[[str | Path, str | Path, float | None], None]] = {
    "bundle": export_bundle,
    "onnx": export_onnx,
    "safetensors": export_safetensors,
}
"""What `export` writes, by name."""


def export(model: str | Path, out: str | Path, file_format: str = "bundle", *, smoothness: float | None = None) -> None:
    """Write a trained network for other programs.

    Args:
        model: A checkpoint.
        out: The new folder of a bundle, or the file of an ONNX graph or of weights.
        file_format: A name out of `FORMATS`.
        smoothness: The weight of the smoothness that the copy answers for, see `Checkpoint.at`; a file of safetensors
            can still be asked for another.

    Raises:
        CourseError: see `export_bundle`, `export_onnx` and `export_safetensors`.
    """
    out = Path(out)
    if file_format not in FORMATS:
        raise CourseError(f"no export called '{file_format}': choose from {', '.join(FORMATS)}")
    if file_format != "bundle":
        check_writable(out, f"model.{file_format}")
    elif not out.parent.is_dir():
        raise CourseError(f"{out.parent} is not a folder: make it, or choose another --out")
    else:
        check_room(out.parent)
    FORMATS[file_format](model, out, smoothness)
