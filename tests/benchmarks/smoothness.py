"""Does one network for every smoothness do what five networks do? By FiLM and by a hypernetwork, three seeds."""

import time
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch
import typer

from course_utils import metrics
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.source import Source
from course_utils.fields import warp
from course_utils.networks import NetworkSpec, RegistrationNetwork, SmoothnessRange
from course_utils.objectives import AnySmoothness, Objective, pair_objective
from course_utils.training import TrainConfig
from tests.benchmarks.training import after_its_last_step

LAMBDAS = (0.1, 0.25, 0.4, 0.55, 0.7)
"""As HyperMorph counts, `(1 - lambda) similarity + lambda roughness`: weights of `lambda / (1 - lambda)` here."""
RANGE = SmoothnessRange(LAMBDAS[0] / (1 - LAMBDAS[0]), LAMBDAS[-1] / (1 - LAMBDAS[-1]))
ONE_FOR_ALL = {"FiLM": "voxelmorph", "hypernetwork": "hypernetwork"}
OWN, AS_LONG = "one of its own", "one of its own that trains as long"


@dataclass(frozen=True)
class Training:
    """A network and its training.

    Attributes:
        name: Of the kind.
        network: What is trained.
        objective: What is minimised.
        steps: How many.
        answers_for: The lambdas that it is measured for.
        told: Whether it is told the weight.
    """

    name: str
    network: NetworkSpec
    objective: Objective
    steps: int
    answers_for: tuple[float, ...]
    told: bool = False


def smoothness(
    dataset: Annotated[str, typer.Option(help="A data set.")] = "oasis2d",
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 60,
    steps: Annotated[int, typer.Option(help="Of a network for one weight; one for all has twice as many.")] = 300,
) -> None:
    """Mean Dice for five weights: of a network for each, of one for all, and of one weight's with as many steps.

    The networks are VoxelMorph without integration, so that the smoothness alone keeps them in order; NCC, 4 pairs a
    step.
    """
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    labels = list(cohort.info.labels)
    pairs = PairDataset(load_subjects(cohort.subjects, cohort.info.recipe), cohort.distinct_pairs("test", count))
    rows = []
    for seed in range(seeds):
        for training in _trainings(len(cohort.info.shape), steps):
            begun = time.process_time()
            config = TrainConfig(steps=training.steps, batch_size=4, validations=1, seed=seed)
            model = after_its_last_step(cohort, training.network, training.objective, config)
            seconds = time.process_time() - begun
            for one in training.answers_for:
                told = RANGE.position(_weight(one)) if training.told else None
                row = {"network": training.name, "lambda": one, "seed": seed, "Dice": _dice(model, pairs, labels, told)}
                rows.append({**row, "processor seconds": seconds})
                told_row = pd.DataFrame(rows[-1:])
                typer.echo(told_row.to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    dice = pd.DataFrame(rows).pivot_table("Dice", ["lambda", "seed"], "network", sort=False)
    for name in ONE_FOR_ALL:
        for other in (OWN, AS_LONG):
            ahead = (dice[name] - dice[other]).dropna().groupby("lambda").agg(["mean", "min", "max"])
            typer.echo(f"{name} less {other}, Dice\n{ahead.to_string(float_format='%+.4f')}")
    means = pd.DataFrame(rows).groupby(["network", "lambda"], sort=False)[["Dice", "processor seconds"]].mean()
    typer.echo(f"means\n{means.to_string(float_format='%.4f')}")


def _weight(one: float) -> float:
    """The weight of the smoothness that is HyperMorph's lambda."""
    return one / (1 - one)


def _trainings(dims: int, steps: int) -> list[Training]:
    """Of networks for all weights, of one for each, and of one for the middle that takes as long as those for all."""
    options = {"spatial_dims": dims, "integration_steps": 0}
    any_weight = AnySmoothness(pair_objective("ncc", smoothness=0.0, coarseness=2), RANGE)
    plain = NetworkSpec("voxelmorph", options)
    judges = {one: pair_objective("ncc", smoothness=_weight(one), coarseness=2) for one in LAMBDAS}
    middle = LAMBDAS[len(LAMBDAS) // 2]
    return [
        *(
            Training(name, NetworkSpec(kind, {**options, "conditions": 1}), any_weight, 2 * steps, LAMBDAS, told=True)
            for name, kind in ONE_FOR_ALL.items()
        ),
        *(Training(OWN, plain, judge, steps, (one,)) for one, judge in judges.items()),
        Training(AS_LONG, plain, judges[middle], 2 * steps, (middle,)),
    ]


@torch.inference_mode()
def _dice(model: RegistrationNetwork, pairs: PairDataset, labels: list[int], told: float | None) -> float:
    """Mean over pairs and structures; a network for all weights is told the position of one."""
    found = []
    for batch in loader(pairs, 4):
        condition = None if told is None else torch.full((len(batch["fixed"]), 1), told)
        displacement = model(batch["moving"], batch["fixed"], condition).displacement
        moved = warp(batch["moving_label"], displacement, mode="nearest", padding="zeros")
        found.append(metrics.dice(moved, batch["fixed_label"], labels).nanmean(1))
    return torch.cat(found).mean().item()
