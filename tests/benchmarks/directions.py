"""Does a network contradict itself when the images are swapped, and which cure costs what? Three seeds, equal work."""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from course_utils.checkpoint import Checkpoint
from course_utils.data.source import Source
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import CONSISTENCIES, Consistent, InverseToo, Objective, pair_objective
from course_utils.training import TrainConfig, train_cohort

MEASURES = ["dice_before", "dice_after", "hd95_mm_after", "ndv_percent", "swap_voxels", "self_voxels"]


def directions(
    dataset: Annotated[str, typer.Option(help="A data set.")] = "oasis2d",
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 60,
    work: Annotated[float, typer.Option(help="What the steps of every method are multiplied with.", min=0.01)] = 1.0,
) -> None:
    """Overlap, and contradiction, of one-way networks with each kind of loss and of an antisymmetric one.

    The steps of each were chosen so that all take about the same time on one core, which is measured too.
    """
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    pairs = cohort.distinct_pairs("test", count)
    judge = pair_objective("ncc", coarseness=2)
    consistent = {name: Consistent(judge, name, weight) for name, (_, weight) in CONSISTENCIES.items()}
    methods: dict[str, tuple[int, Objective, dict[str, Any]]] = {
        "one way": (500, judge, {}),
        "inverse too": (420, InverseToo(judge), {}),
        "icon": (240, consistent["icon"], {}),
        "gradicon": (250, consistent["gradicon"], {}),
        "antisymmetric": (340, judge, {"antisymmetric": True}),
    }
    rows = []
    for seed in range(seeds):
        for name, (steps, objective, network) in methods.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.process_time()
                result = train_cohort(
                    cohort,
                    Path(folder) / "run",
                    network=NetworkSpec("pyramid", {"spatial_dims": len(cohort.info.shape), **network}),
                    objective=objective,
                    config=TrainConfig(steps=round(steps * work), batch_size=2, validations=1, seed=seed),
                    hooks=[],
                )
                seconds = time.process_time() - begun
                table = evaluate_checkpoint(Checkpoint.load(result.best), pairs)
            mean = summarise(table).loc["overall"].xs("mean", level=1)
            rows.append({"method": name, "seed": seed, **mean[MEASURES], "processor seconds": seconds})
            typer.echo(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby("method", sort=False)
    typer.echo(f"means\n{overview.mean().to_string(float_format='%.4f')}")
    typer.echo(f"ranges of Dice\n{overview['dice_after'].agg(['min', 'max']).to_string(float_format='%.4f')}")
