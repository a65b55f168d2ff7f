"""Train a network that ships with the package again, measure it, and write its weights and its card.

python data_scripts/train_network.py hippocampus --out runs/hippocampus
python data_scripts/train_network.py hippocampus --out runs/hippocampus --resume
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course_utils import shipped
from course_utils.checkpoint import Checkpoint
from course_utils.commands.ending import run
from course_utils.commands.settings import device as device_of
from course_utils.consistency import consistency
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.files import replacing
from course_utils.model_card import describe
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import ProgressLines, TrainConfig, train_cohort

PAIRS = 50
"""Of test subjects, that a network is measured on."""


@dataclass(frozen=True)
class Recipe:
    """How a network that ships is trained.

    Attributes:
        about: One line that says what it registers.
        dataset: The data set.
        objective: Arguments of `pair_objective`, without the labels' values.
        steps: The budget; so the same seed trains the same network on every machine, but for rounding.
        network: Arguments of the pyramid, beside its dimension.
        config: Fields of `TrainConfig`, without the budget.
        not_for: What it must not be used for.
    """

    about: str
    dataset: str
    objective: dict[str, Any]
    steps: int
    network: dict[str, Any] = field(default_factory=lambda: {"antisymmetric": True})
    config: dict[str, Any] = field(default_factory=dict)
    not_for: str = "diagnosis or treatment; other organs, contrasts or resolutions than its data set has"


RECIPES = {
    "hippocampus": Recipe(
        "cropped hippocampus MR, trained without labels",
        "hippocampus",
        {"similarity": "ncc-edges", "smoothness": 0.25, "coarseness": 2},
        steps=3600,
    ),
    "hippocampus-labels": Recipe(
        "cropped hippocampus MR, trained with labels of its two parts",
        "hippocampus",
        {"similarity": "ssd", "smoothness": 0.05, "dice_weight": 0.5, "coarseness": 2},
        steps=10000,
        config={"augment": True},
    ),
    "oasis2d": Recipe(
        "coronal slices of whole brains, trained without labels",
        "oasis2d",
        {"similarity": "ncc-edges", "smoothness": 0.5},
        steps=2800,
        network={"antisymmetric": True, "features": [16, 32, 48, 64, 64]},
        config={"batch_size": 4},
    ),
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(help="Budget.", show_default="the recipe's")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    weights: Annotated[Path, typer.Option(help="Folder for the weights and the card.")] = shipped.WEIGHTS,
) -> None:
    """Train a network that ships again: its weights and its card are written when it has been measured."""
    if name not in RECIPES:
        raise CourseError(f"no recipe called '{name}': choose from {', '.join(RECIPES)}")
    recipe, where = RECIPES[name], device_of(device)
    source = Source(dataset=recipe.dataset)
    cohort, line = source.load()
    typer.echo(line, err=True)
    result = train_cohort(
        cohort,
        out,
        network=NetworkSpec("pyramid", {"spatial_dims": len(cohort.info.shape), **recipe.network}),
        objective=pair_objective(**recipe.objective, labels=cohort.info.labels),
        config=TrainConfig(steps=steps or recipe.steps, validations=20, **recipe.config),
        device=where,
        resume=resume,
        hooks=[ProgressLines()],
    )
    checkpoint, shipped_file = Checkpoint.load(result.best), weights / f"{name}.safetensors"
    checkpoint.save(shipped_file)
    card = describe(shipped_file) | measure(Checkpoint.load(shipped_file), recipe.dataset, where)
    validated = result.history.dropna(subset=[c for c in result.history if c.startswith("validation_loss")])
    card |= {
        "about": recipe.about,
        "not_for": recipe.not_for,
        "retrain": f"python data_scripts/train_network.py {name} --out runs/{name}",
        "budget": f"{len(result.history)} steps of {checkpoint.config['batch_size']} pairs, "
        f"{result.history['seconds'].iloc[-1] / 60:.0f} minutes on {torch.get_num_threads()} threads of a processor"
        if where == "cpu"
        else f"{len(result.history)} steps, {result.history['seconds'].iloc[-1] / 60:.0f} minutes on a GPU",
        "log": [
            {key: round(float(row[key]), 5) for key in ("step", "loss", "validation_loss", "validation_dice")}
            for _, row in validated.iterrows()
        ],
    }
    with replacing(weights / f"{name}.json") as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    typer.echo(shipped.readable(card))


def measure(checkpoint: Checkpoint, dataset: str, device: str) -> dict[str, Any]:
    """Figures on pairs of the test subjects, whom nobody trained on: `figures`, `summary` and `test_subjects`."""
    cohort = load_cohort(dataset)
    pairs = cohort.distinct_pairs("test", PAIRS)
    table = evaluate_checkpoint(checkpoint, pairs, device=device)
    mean = summarise(table).loc["overall"].xs("mean", level=1)
    few = pairs[:10]
    loaded = load_subjects([subject for pair in few for subject in (pair.fixed, pair.moving)], checkpoint.card.recipe)
    items = PairDataset(loaded, few)
    sane = consistency(checkpoint.model(), (items[index] for index in range(len(items)))).mean(numeric_only=True)
    figures = {key: round(float(value), 4) for key, value in {**mean, **sane}.items()}
    return {
        "figures": {"pairs": len(pairs), **figures},
        "summary": f"Dice {mean.dice_before:.3f} -> {mean.dice_after:.3f}, HD95 {mean.hd95_mm_after:.2f} mm",
        "test_subjects": [subject.name for subject in cohort.splits["test"]],
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(help=main.__doc__)(main)

if __name__ == "__main__":
    run(app)
