"""What a trained network says of itself: a card for programs, and the same for people."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from course_utils import __version__
from course_utils.checkpoint import Checkpoint
from course_utils.data.card import DataCard
from course_utils.data.registry import DATASETS
from course_utils.data.source import Source
from course_utils.files import replacing, sha256
from course_utils.shipped import resolve, told_of


def passed_on(card: DataCard) -> DataCard:
    """The card for others: without the places of a user's own files and the names of their subjects.

    Those of a data set that the course knows are known to all, wherever its folder is.
    """
    if card.dataset in DATASETS:
        return replace(card, source=Source(dataset=card.dataset).to_dict())
    return replace(card, source={}, subjects={})


def describe(model: str | Path, smoothness: float | None = None) -> dict[str, Any]:
    """All that one must know to use a trained network, as plain values that JSON can hold.

    `validation` are means over the validation pairs at the step that was kept. A network that answers for a range of
    weights of the smoothness has one in `smoothness`: that which it answers for unless it is told.

    Args:
        model: A checkpoint.
        smoothness: Of a copy that answers for another weight, see `Checkpoint.at`.

    Raises:
        CourseError: `model` is not a checkpoint of this course, or does not answer for the weight.
    """
    model = resolve(model)
    checkpoint = Checkpoint.load(model).at(smoothness)
    card, recipe = checkpoint.card, checkpoint.card.recipe
    digest = sha256(model)
    measured = {name: value for name, value in checkpoint.metrics.items() if not math.isnan(value)}
    return {
        "weights": model.name,
        "sha256": digest,
        "course_utils": __version__,
        "parameters": sum(parameter.numel() for parameter in checkpoint.model().parameters()),
        "data_set": card.dataset,
        "licence": card.licence,
        "citation": card.citation,
        "labels": {str(value): name for value, name in card.labels.items()},
        "shape": list(recipe.shape),
        "spacing_mm": list(recipe.spacing),
        "orientation": "as stored" if recipe.aligned else "RAS",
        "normalisation": recipe.normalisation,
        "input": "moving and fixed, each (batch, 1, *shape) float32, intensities in [0, 1]",
        "output": "displacement, (batch, axes, *shape) float32, voxels: moved(x) = moving(x + displacement(x))",
        "architecture": checkpoint.network.architecture,
        "arguments": dict(checkpoint.network.arguments),
        "objective": dict(checkpoint.objective),
        **({} if checkpoint.smoothness is None else {"smoothness": checkpoint.smoothness}),
        "config": dict(checkpoint.config),
        "recipe": recipe.to_dict(),
        "subjects": {split: list(names) for split, names in passed_on(card).subjects.items()},
        "validation": {"step": checkpoint.step, **(measured or {"score": checkpoint.score})},
        **told_of(model, digest),
    }


def write_card(model: str | Path) -> None:
    """Write `model.json`, what `describe` returns, and `README.md`, the same for people, beside a checkpoint.

    Raises:
        CourseError: `model` is not a checkpoint, or the folder cannot be written.
    """
    model = Path(model)
    description = describe(model)
    with replacing(model.with_name("model.json")) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    with replacing(model.with_name("README.md")) as partial:
        partial.write_text(card(description, CHECKPOINT_USE.format(**description)), encoding="utf-8")


CHECKPOINT_USE = """```python
from course_utils.checkpoint import Checkpoint

checkpoint = Checkpoint.load("{weights}")   # tensors and plain values only: no code is run
model = checkpoint.model()
recipe = checkpoint.card.recipe             # recipe.load(file)["image"]: from a file to the network's grid
```

    python -m course_utils evaluate --model {weights} --pairs pairs.csv --out metrics.csv"""


def card(description: Mapping[str, Any], use: str) -> str:
    """The Markdown text of a model card.

    Args:
        description: what `describe` returns.
        use: how to load the weights, Markdown.
    """
    shape = "x".join(map(str, description["shape"]))
    spacing = "x".join(f"{mm:g}" for mm in description["spacing_mm"])
    loss = ", ".join(f"{name} ({_settings(term)})" for name, term in description["objective"].items()) or "unknown"
    validation, test = (_lines(description.get(key, {})) for key in ("validation", "figures"))
    tested = (
        f"\nMeans over pairs of test subjects, whom nobody trained on:\n\n| | |\n|---|---|\n{test}\n" if test else ""
    )
    labels = ", ".join(f"{value} {name}" for value, name in description["labels"].items()) or "none"
    return f"""# Deformable registration, trained on {description["data_set"]}

A network ({description["architecture"]}, {description["parameters"]:,} parameters) that registers a moving to a fixed
image.

| | |
|---|---|
| input | {description["input"]} |
| output | {description["output"]} |
| grid | {shape} voxels of {spacing} mm, axes {description["orientation"]} |
| normalisation | {description["normalisation"]}, volume by volume |
| structures | {labels} |
| loss | {loss} |
| data set | {description["data_set"]}, licence: {description["licence"]} |
| cite | {description["citation"]} |

Means over validation pairs, of subjects that were not trained on:

| | |
|---|---|
{validation}
{tested}
Whether the weights may be passed on follows from the licence of the data. Not a medical device.

{use}

The weights' SHA-256 is {description["sha256"]}.
"""


def _lines(numbers: Mapping[str, float]) -> str:
    return "\n".join(f"| {name} | {value:.6g} |" for name, value in numbers.items())


def _settings(term: Any) -> str:
    if not isinstance(term, Mapping):
        return str(term)
    settings = {name: value for name, value in term.items() if name != "term"}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items()]
    return ", ".join([str(term.get("term", "unnamed")), *words])
