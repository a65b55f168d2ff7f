"""Does one network for every smoothness do what five networks do? By FiLM and by a hypernetwork, three seeds."""

import time
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils import metrics
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.source import Source
from course_utils.fields import warp
from course_utils.networks import NetworkSpec, RegistrationNetwork, SmoothnessRange
from course_utils.objectives import AnySmoothness, pair_objective
from course_utils.training import TrainConfig
from tests.benchmarks.training import after_its_last_step

LAMBDAS = (0.1, 0.25, 0.4, 0.55, 0.7)
"""As HyperMorph counts, `(1 - lambda) similarity + lambda roughness`: weights of `lambda / (1 - lambda)` here."""
WEIGHTS = tuple(one / (1 - one) for one in LAMBDAS)
RANGE = SmoothnessRange(WEIGHTS[0], WEIGHTS[-1])
ONE_FOR_ALL = {"FiLM": "voxelmorph", "hypernetwork": "hypernetwork"}


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
    dims, labels = len(cohort.info.shape), list(cohort.info.labels)
    pairs = PairDataset(load_subjects(cohort.subjects, cohort.info.recipe), cohort.distinct_pairs("test", count))
    any_weight = AnySmoothness(pair_objective("ncc", smoothness=0.0, coarseness=2), RANGE)
    options = {"spatial_dims": dims, "integration_steps": 0}
    rows = []
    for seed in range(seeds):
        trainings = {
            name: (NetworkSpec(kind, {**options, "conditions": 1}), any_weight, 2 * steps)
            for name, kind in ONE_FOR_ALL.items()
        }
        plain = NetworkSpec("voxelmorph", options)
        judges = [pair_objective("ncc", smoothness=weight, coarseness=2) for weight in WEIGHTS]
        trainings |= {f"own {n}": (plain, judge, steps) for n, judge in enumerate(judges)}
        trainings["own 2, as long"] = (plain, judges[2], 2 * steps)
        row = {}
        for name, (spec, objective, length) in trainings.items():
            begun = time.process_time()
            config = TrainConfig(steps=length, batch_size=4, validations=1, seed=seed)
            model = after_its_last_step(cohort, spec, objective, config)
            row[f"{name}: seconds"] = time.process_time() - begun
            for n, weight in enumerate(WEIGHTS) if name in ONE_FOR_ALL else [(int(name.split()[1][0]), None)]:
                row[name if weight is None else f"{name} {n}"] = _dice(model, pairs, labels, weight)
        rows.append(row)
        typer.echo(f"seed {seed}: {', '.join(f'{name} {value:.4f}' for name, value in row.items())}")
    table = pd.DataFrame(rows)
    for name in ONE_FOR_ALL:
        ahead = pd.DataFrame({one: table[f"{name} {n}"] - table[f"own {n}"] for n, one in enumerate(LAMBDAS)})
        typer.echo(f"{name} less a network of its own, Dice, by lambda")
        typer.echo(ahead.agg(["mean", "min", "max"]).to_string(float_format="%+.4f"))
        longer = table[f"{name} 2"] - table["own 2, as long"]
        typer.echo(f"{name} less one for lambda {LAMBDAS[2]} that has as many steps: {longer.mean():+.4f}")
    typer.echo(f"means\n{table.mean().to_string(float_format='%.4f')}")


@torch.inference_mode()
def _dice(model: RegistrationNetwork, pairs: PairDataset, labels: list[int], weight: float | None) -> float:
    """Mean over pairs and structures; a network for all weights is told `weight`."""
    found = []
    for batch in loader(pairs, 4):
        told: Tensor | None = None
        if weight is not None:
            told = torch.full((len(batch["fixed"]), 1), RANGE.position(weight))
        displacement = model(batch["moving"], batch["fixed"], told).displacement
        moved = warp(batch["moving_label"], displacement, mode="nearest", padding="zeros")
        found.append(metrics.dice(moved, batch["fixed_label"], labels).nanmean(1))
    return torch.cat(found).mean().item()
