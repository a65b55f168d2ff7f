"""How well does a network register contrasts that it was never shown, by what it was trained on and for how long?"""

import math
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils import metrics
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.source import Source
from course_utils.fields import warp
from course_utils.networks import NetworkSpec, RegistrationNetwork
from course_utils.objectives import (
    Membership,
    Objective,
    PaintedObjective,
    Shapes,
    Subjects,
    SynthesisedObjective,
    pair_objective,
)
from course_utils.training import TrainConfig
from course_utils.training.models import Motionless
from tests.benchmarks.training import after_its_last_step, chosen

T1, T2 = (0.0, 0.12, 0.3, 0.6, 0.9, 1.0), (0.0, 0.9, 1.0, 0.65, 0.3, 0.2)
CONTRASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "T1": lambda image: image,
    "negative": lambda image: torch.where(image > 0, 1 - image, 0.0),
    "like T2": lambda image: torch.as_tensor(np.interp(image.numpy(), T1, T2), dtype=torch.float32),
    "rise and fall": lambda image: torch.where(image > 0, 1 - (2 * image - 1).abs(), 0.0),
}
PAIRS = [(moving, "T1") for moving in CONTRASTS] + [("negative", "rise and fall")]
"""Of the moving and of the fixed image; those of notebook 17."""


def contrasts(
    dataset: Annotated[str, typer.Option(help="A data set of slices.")] = "oasis2d",
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Pairs to measure on.")] = 30,
    split: Annotated[str, typer.Option(help="Of whom: val, or test.")] = "test",
    steps: Annotated[list[int] | None, typer.Option(help="Of training, 2 pairs each; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Some of the methods; may be repeated.")] = None,
) -> None:
    """Mean Dice in each pair of contrasts, of networks trained on real images, paintings or shapes.

    The networks are antisymmetric pyramids, but for pyramids of one way and VoxelMorph. Straight shapes lack the warp
    of each label.
    """
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    labels = tuple(cohort.info.labels)
    pairs = PairDataset(load_subjects(cohort.subjects, cohort.info.recipe), cohort.distinct_pairs(split, count))
    methods = _methods(labels)
    rows = []
    for seed in range(seeds):
        for length in steps or [200]:
            for name in chosen(method, methods):
                objective, network = methods[name]
                begun = time.process_time()
                config = TrainConfig(steps=length, batch_size=2, validations=1, seed=seed)
                model = after_its_last_step(cohort, network, objective, config)
                seconds = time.process_time() - begun
                rows.append({"method": name, "steps": length, "seed": seed, **_dice(model, pairs, labels)})
                rows[-1] |= {"own task": _own_task(objective, model, pairs), "processor seconds": seconds}
                row = pd.DataFrame(rows[-1:])
                typer.echo(row.to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby(["method", "steps"], sort=False)
    typer.echo(f"before: {_dice(None, pairs, labels)['T1 to T1']:.4f}")
    for what in ("mean", "min", "max"):
        typer.echo(f"{what} of the seeds\n{overview.agg(what).to_string(float_format='%.4f')}")


def _methods(labels: tuple[int, ...]) -> dict[str, tuple[Objective, NetworkSpec]]:
    """What is minimised, and the network, by name."""
    ncc = pair_objective("ncc", coarseness=2)
    brains = SynthesisedObjective(pair_objective(Membership(labels), coarseness=2), Subjects())
    any_label = pair_objective(Membership(tuple(range(Shapes.count))), coarseness=2)
    shapes, straight = (SynthesisedObjective(any_label, maps) for maps in (Shapes(), Shapes(wobble=0.0)))
    plain = NetworkSpec("pyramid", {"spatial_dims": 2, "antisymmetric": True})
    edges = NetworkSpec("pyramid", {**plain.arguments, "edges": True})
    one_way, voxelmorph = (NetworkSpec(name, {"spatial_dims": 2}) for name in ("pyramid", "voxelmorph"))
    return {
        "real images": (ncc, plain),
        "real images, edges": (ncc, edges),
        "painted images": (PaintedObjective(ncc), plain),
        "painted images, edges": (PaintedObjective(ncc), edges),
        "painted labels": (brains, plain),
        "painted labels, edges": (brains, edges),
        "painted labels, VoxelMorph": (brains, voxelmorph),
        "painted shapes": (shapes, plain),
        "painted shapes, edges": (shapes, edges),
        "painted shapes, one way": (shapes, one_way),
        "painted shapes, VoxelMorph": (shapes, voxelmorph),
        "straight shapes, VoxelMorph": (straight, voxelmorph),
    }


@torch.inference_mode()
def _own_task(objective: Objective, model: RegistrationNetwork, pairs: PairDataset) -> float:
    """Share of the label maps' squared difference that is left in new paintings; not a number for other objectives."""
    if not isinstance(objective, SynthesisedObjective):
        return math.nan
    left = {}
    for name, network in (("after", model.train()), ("before", Motionless(model))):
        torch.manual_seed(0)
        left[name] = sum(objective(network, batch).terms["similarity"].item() for batch in loader(pairs, 1))
    model.eval()
    return left["after"] / left["before"]


@torch.inference_mode()
def _dice(model: RegistrationNetwork | None, pairs: PairDataset, labels: tuple[int, ...]) -> dict[str, float]:
    """Mean Dice of the structures and the pairs for each pair of contrasts; without a model, of images left alone."""
    found: dict[str, list[float]] = {f"{moving} to {fixed}": [] for moving, fixed in PAIRS}
    for batch in loader(pairs, 1):
        for moving, fixed in PAIRS:
            images = CONTRASTS[moving](batch["moving"]), CONTRASTS[fixed](batch["fixed"])
            nothing = torch.zeros(1, 2, *images[0].shape[2:])
            displacement = nothing if model is None else model(*images).displacement
            moved = warp(batch["moving_label"], displacement, mode="nearest", padding="zeros")
            dice = metrics.dice(moved, batch["fixed_label"], list(labels)).nanmean().item()
            found[f"{moving} to {fixed}"].append(dice)
    return {name: float(np.mean(values)) for name, values in found.items()}
