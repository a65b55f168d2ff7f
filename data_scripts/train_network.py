"""Train a network that ships with the package again, or might, measure it, and write its weights and its card.

python data_scripts/train_network.py hippocampus --out runs/hippocampus
python data_scripts/train_network.py hippocampus --out runs/hippocampus --resume
python data_scripts/train_network.py hippocampus --out runs/hippocampus --only-measure

`torchrun --nproc-per-node=2` in place of `python` trains with two processes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from course_utils import shipped
from course_utils.checkpoint import Checkpoint
from course_utils.commands.ending import run
from course_utils.commands.launched import together
from course_utils.commands.settings import device as device_of
from course_utils.data.cohorts import Cohort
from course_utils.data.source import Source
from course_utils.data.synthetic import make_cohort
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.files import replacing
from course_utils.model_card import describe, passed_on
from course_utils.networks import NetworkSpec
from course_utils.objectives import BothOrders, Objective, PaintedObjective, Painting, Segmented, pair_objective
from course_utils.training import ProgressLines, TrainConfig, train_cohort
from course_utils.training.ranks import Ranks

PAIRS = 50
"""Of test subjects, that a network is measured on."""


@dataclass(frozen=True)
class Training:
    """How a network that ships is trained.

    Attributes:
        about: One line that says what it registers.
        dataset: The data set.
        objective: Arguments of `pair_objective`, without the labels' values.
        steps: The budget; so the same seed trains the same network on every machine, but for rounding.
        architecture: The network's.
        network: Its arguments, beside its dimension and the number of structures.
        both: Register each pair in both orders.
        config: Fields of `TrainConfig`, without the budget.
        painting: Of the images that the network is shown, see `PaintedObjective`; None shows the real ones.
        made: Arguments of `make_cohort`, where the data is the built-in cohort with settings of its own.
        not_for: What it must not be used for.
    """

    about: str
    dataset: str
    objective: dict[str, Any]
    steps: int
    architecture: str = "pyramid"
    both: bool = False
    network: dict[str, Any] = field(default_factory=lambda: {"antisymmetric": True})
    config: dict[str, Any] = field(default_factory=dict)
    painting: Painting | None = None
    made: dict[str, Any] | None = None
    not_for: str = "diagnosis or treatment; other organs, contrasts or resolutions than its data set has"


TRAININGS = {
    "hippocampus": Training(
        "cropped hippocampus MR, trained without labels",
        "hippocampus",
        {"similarity": "ncc-edges", "smoothness": 0.25},
        steps=6000,
        config={"augment": 0.5},
    ),
    "hippocampus-labels": Training(
        "cropped hippocampus MR, trained with labels",
        "hippocampus",
        {"similarity": "ssd", "smoothness": 0.05, "dice_weight": 0.5, "coarseness": 2},
        steps=9600,
        architecture="joint",
        network={"features": [8, 32, 48, 64]},
        both=True,
        config={"augment": 0.8},
    ),
    "brain": Training(
        "whole brains of any contrast, once the skull is removed; trained on painted images",
        "synthetic",
        {"similarity": "ncc-edges", "smoothness": 0.25, "dice_weight": 1.0, "coarseness": 2},
        steps=1600,
        network={"antisymmetric": True, "edges": True},
        config={"batch_size": 1, "augment": 0.7},
        painting=Painting(real=0.3),
        made={"subjects": 60, "spacing": 2.625},
        not_for="diagnosis or treatment; heads with their skull; lesions that only one of the two scans has",
    ),
    "oasis2d": Training(
        "coronal slices of whole brains, trained without labels",
        "oasis2d",
        {"similarity": "ncc-edges", "smoothness": 0.5},
        steps=2800,
        network={"antisymmetric": True, "features": [16, 32, 48, 64, 64]},
        config={"batch_size": 4},
    ),
}


def objective_of(training: Training, labels: Iterable[int]) -> Objective:
    """What a network is trained to minimise."""
    values = tuple(labels)
    pair = pair_objective(**training.objective, labels=values)
    if training.painting is not None:
        return PaintedObjective(pair, training.painting)
    judge = BothOrders(pair) if training.both else pair
    return Segmented(judge, values) if training.architecture == "joint" else judge


@together
def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(TRAININGS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[
        int | None, typer.Option(help="Budget.", show_default="that of the network's training", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    only_measure: Annotated[
        bool, typer.Option("--only-measure", help="Measure the weights that are there, and renew their card.")
    ] = False,
    weights: Annotated[Path, typer.Option(help="Folder for the weights and the card.")] = shipped.WEIGHTS,
) -> None:
    """Train a network that ships again: its weights and its card are written when it has been measured."""
    if name not in TRAININGS:
        raise CourseError(f"no training called '{name}': choose from {', '.join(TRAININGS)}")
    training, place, ranks = TRAININGS[name], weights / f"{name}.safetensors", Ranks.here()
    where = ranks.device(device_of(device))
    if only_measure and not place.is_file():
        raise CourseError(f"{place} does not exist: train the network first, or name another folder, --weights")
    root = None
    if training.made is not None:
        root, made = str(out / "data"), training.made
        ranks.from_first(lambda: make_cohort(Path(root) / training.dataset, **made))
    source = Source(dataset=training.dataset, data_root=root)
    cohort, line = source.load()
    if ranks.writes:
        typer.echo(line, err=True)
    if only_measure:
        if not ranks.writes:
            return
        known = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        write(known | measure(Checkpoint.load(place), cohort, where), place.with_suffix(".json"))
        return
    weights.mkdir(parents=True, exist_ok=True)  # not a thing to fail at after the training
    arguments = {"spatial_dims": len(cohort.info.shape), **training.network}
    if training.architecture == "joint":
        arguments["structures"] = len(cohort.info.labels)
    result = train_cohort(
        cohort,
        out,
        network=NetworkSpec(training.architecture, arguments),
        objective=objective_of(training, cohort.info.labels),
        config=TrainConfig(steps=steps or training.steps, validations=20, **training.config),
        device=where,
        resume=resume,
        hooks=[ProgressLines()],
    )
    if not ranks.writes:
        return
    checkpoint = Checkpoint.load(result.best)
    replace(checkpoint, card=passed_on(checkpoint.card)).save(place)
    card = describe(place) | measure(Checkpoint.load(place), cohort, where)
    validated = result.history.dropna(subset=[c for c in result.history if c.startswith("validation_loss")])
    card |= {
        "about": training.about,
        "not_for": training.not_for,
        "retrain": f"python data_scripts/train_network.py {name} --out runs/{name}",
        "budget": {
            "steps": len(result.history),
            "pairs a step": checkpoint.config["batch_size"],
            "minutes": round(result.history["seconds"].iloc[-1] / 60),
            "device": where,
            "CPU threads": torch.get_num_threads() * ranks.size,
        },
        "log": [
            {key: round(float(row[key]), 5) for key in ("step", "loss", "validation_loss", "validation_dice")}
            for _, row in validated.iterrows()
        ],
    }
    write(card, place.with_suffix(".json"))


def write(card: dict[str, Any], path: Path) -> None:
    """Write a card and print it."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    typer.echo(shipped.readable(card))


def measure(checkpoint: Checkpoint, cohort: Cohort, device: str) -> dict[str, Any]:
    """Figures on pairs of the test subjects, whom nobody trained on: `figures`, `summary` and `test_subjects`."""
    pairs = cohort.distinct_pairs("test", PAIRS)
    table = evaluate_checkpoint(checkpoint, pairs, device=device)
    mean = summarise(table).loc["overall"].xs("mean", level=1)
    figures = {key: round(float(value), 4) for key, value in mean.items()}
    return {
        "figures": {"pairs": len(pairs), **figures},
        "summary": f"Dice {mean.dice_before:.3f} -> {mean.dice_after:.3f}, HD95 {mean.hd95_mm_after:.2f} mm",
        "test_subjects": [subject.name for subject in cohort.splits["test"]],
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(help=main.__doc__)(main)

if __name__ == "__main__":
    run(app)
