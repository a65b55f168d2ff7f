"""A trained network, with all that one must know to use it, in one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from course_utils.data.card import DataCard
from course_utils.errors import CourseError
from course_utils.files import replacing, save_tensors
from course_utils.networks import NetworkSpec, RegistrationNetwork, SmoothnessRange
from course_utils.networks.film import USUAL
from course_utils.plain import LARGEST_JSON, Unfit, number, settings, table, text, whole
from course_utils.sealed import OPEN, check_safetensors, check_zip, seal_safetensors
from course_utils.shipped import card_beside, resolve

FORMAT = "course_utils 3"
SAFETENSORS = ".safetensors"
"""Ending of the files that other programs can read too, and that ship: weights in float16, the rest as JSON."""
LARGEST = 2**33
"""Bytes of a file that is taken for a checkpoint: hundreds of times those of the largest network here."""
LARGEST_ARGUMENT = 10**6
"""Of a network's arguments, which are channels, levels and sizes."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What training keeps of a network.

    Attributes:
        network: What builds the network.
        weights: Its parameters and buffers, by name.
        card: Of the data that it was trained on; how images are prepared for it is `card.recipe`.
        objective: What it was trained to minimise: see `Objective.describe`.
        config: How: the fields of `training.TrainConfig`.
        step: How many steps it has seen.
        score: What it was kept for: mean Dice of the validation pairs where there are labels, else minus their
            similarity loss. Higher is better.
        metrics: Means over the validation pairs, by name.
    """

    network: NetworkSpec
    weights: Mapping[str, Tensor]
    card: DataCard
    objective: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    score: float = float("-inf")
    metrics: Mapping[str, float] = field(default_factory=dict)

    def model(self) -> RegistrationNetwork:
        """The network with its weights, in evaluation mode, on the CPU.

        Raises:
            CourseError: the weights are those of another network, or the architecture is unknown.
        """
        # Its sizes first, without memory: what a file tells of the network may be anything.
        sizes = {name: tuple(tensor.shape) for name, tensor in self.network.build(device="meta").state_dict().items()}
        if sizes != {name: tuple(tensor.shape) for name, tensor in self.weights.items()}:
            raise CourseError(
                f"the weights are not those of a network '{self.network.architecture}': train it again with this "
                "version of course_utils"
            )
        network = self.network.build()
        network.load_state_dict(dict(self.weights))
        return network.eval()

    @property
    def knows_labels(self) -> bool:
        """Whether labels took part in its training: it then knows more than two images show."""
        maps = self.objective.get("label_maps")
        if isinstance(maps, Mapping):  # SynthMorph's: of people, or shapes without a meaning
            return maps.get("term") == "Subjects"
        return any(term in self.objective for term in ("overlap", "painting", "segmentation"))

    @property
    def smoothness_range(self) -> SmoothnessRange | None:
        """The weights of the smoothness that it was trained to answer for; None where it was for one."""
        return SmoothnessRange.of_objective(self.objective)

    @property
    def smoothness(self) -> float | None:
        """The weight out of its range that the network answers for; None where it has none."""
        weights = self.smoothness_range
        return None if weights is None else weights.weight(self.weights[USUAL].item())

    def at(self, smoothness: float | None) -> "Checkpoint":
        """The same network, answering for this weight of the smoothness; for None as it is.

        Raises:
            CourseError: the weight is outside of the network's range, or it was trained for one weight alone.
        """
        if smoothness is None:
            return self
        if self.smoothness_range is None:
            raise CourseError(
                "this network was trained for one weight of the smoothness: leave --smoothness out, or take a network "
                "that was trained with --smoothness-range"
            )
        usual = torch.tensor([self.smoothness_range.position(smoothness)])
        return replace(self, weights={**self.weights, USUAL: usual})

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which a file can hold without any code."""
        return {
            "format": FORMAT,
            "architecture": self.network.architecture,
            "arguments": dict(self.network.arguments),
            "weights": dict(self.weights),
            "card": self.card.to_dict(),
            "objective": dict(self.objective),
            "config": dict(self.config),
            "step": self.step,
            "score": self.score,
            "metrics": dict(self.metrics),
        }

    def save(self, path: str | Path, *, run: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint, whole or not at all.

        A name that ends in `.safetensors` gets a file for distribution: the weights in float16.

        Args:
            path: of the file.
            run: what only a run that goes on needs: state of the optimiser, history. `read_state` gives it back. A file
                for distribution holds none.

        Raises:
            CourseError: the file cannot be written.
        """
        path, state = Path(path), self.to_dict()
        if path.suffix == SAFETENSORS and run is not None:
            raise ValueError(f"a {SAFETENSORS} file holds a network, not a run")
        with replacing(path) as partial:
            if path.suffix == SAFETENSORS:
                weights = {name: _rounded(tensor).contiguous() for name, tensor in state.pop("weights").items()}
                told = {"course_utils": json.dumps(state), "sha256": OPEN.decode()}
                partial.write_bytes(seal_safetensors(safetensors_bytes(weights, told)))
            else:
                save_tensors(state | ({} if run is None else {"run": dict(run)}), partial)

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint, once its SHA-256 is verified.

        Only tensors and plain values are read, of the types and sizes that they must have: a file with code in it is
        refused, not run, and so is a text that a MONAI bundle would run.

        Args:
            path: a file, or the name of a network that ships with the package (see `shipped`).

        Raises:
            CourseError: no such file, damaged, or not a checkpoint of this course.
        """
        return cls.from_dict(read_state(path), path)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], path: str | Path) -> "Checkpoint":
        """A checkpoint from what `read_state` gives; `path` is for the message."""
        try:
            arguments = settings(state["arguments"], "arguments")
            _check_arguments(arguments, "arguments")
            objective = settings(state["objective"], "objective")
            SmoothnessRange.of_objective(objective)
            return cls(
                NetworkSpec(text(state["architecture"], "architecture"), arguments),
                _checked_weights(state["weights"]),
                DataCard.from_dict(table(state["card"], "card")),
                objective,
                settings(state["config"], "config"),
                whole(state["step"], "step"),
                float(number(state["score"], "score")),
                {name: number(value, name) for name, value in settings(state["metrics"], "metrics").items()},
            )
        except KeyError as error:
            raise CourseError(
                f"{path} lacks a part of a checkpoint ({error}): train it again with this version of course_utils"
            ) from error
        except (TypeError, ValueError, CourseError) as error:
            raise CourseError(
                f"{path} is no checkpoint of this course ({error}): train it again with this version of course_utils"
            ) from error


def _check_arguments(value: Any, where: str) -> None:
    """Refuse sizes of a network that nobody could hold in memory; the values are plain already."""
    if isinstance(value, Mapping):
        for name, its in value.items():
            _check_arguments(its, f"{where}.{name}")
    elif isinstance(value, list):
        if len(value) > 100:
            raise Unfit(f"{where} has {len(value)} items, more than 100")
        for item in value:
            _check_arguments(item, where)
    elif isinstance(value, int):
        whole(int(value), where, -LARGEST_ARGUMENT, LARGEST_ARGUMENT)


def _checked_weights(values: Any) -> dict[str, Tensor]:
    weights = table(values, "weights")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Unfit(f"weights has an entry {name!r:.60} that is no tensor with a name")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise Unfit(f"the weights '{name}' are no plain tensor of real numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise Unfit(f"the weights '{name}' claim more numbers than are stored")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Unfit(f"the weights '{name}' are not finite")
    return dict(weights)


def read_state(path: str | Path) -> dict[str, Any]:
    """All that the file of a checkpoint holds; see `Checkpoint.load`."""
    path = resolve(path)
    try:
        if path.stat().st_size > LARGEST:
            raise CourseError(f"{path} is larger than any checkpoint: name one that `train` wrote, say OUT/best.pt")
        if path.suffix == SAFETENSORS:
            state = _read_safetensors(path)
        else:
            check_zip(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CourseError:
        raise
    except MemoryError as error:
        raise CourseError(f"{path} needs more memory than is left here: close other programs") from error
    except Exception as error:  # pickle, zip and torch each have their own words for a file that is none of theirs
        raise CourseError(
            f"{path} is damaged or no checkpoint of plain tensors: train again, or use another that `train` wrote"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CourseError(
            f"{path} is not a checkpoint of this version of the course: name one that `train` wrote, say OUT/best.pt"
        )
    return state


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _read_safetensors(path: Path) -> dict[str, Any]:
    check_safetensors(path, card_beside(path).get("sha256"))
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get("course_utils", "{}")
        state = json.loads(told) if len(told) < LARGEST_JSON else None
        if not isinstance(state, dict):
            raise Unfit("its metadata are no table")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return state | {"weights": {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}}
