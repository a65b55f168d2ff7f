"""What helps a network to learn from labels, in the same minutes? Three seeds."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from course_utils.checkpoint import Checkpoint
from course_utils.data.source import Source
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import BothOrders, Segmented, pair_objective
from course_utils.training import TrainConfig, train_cohort
from tests.benchmarks.training import chosen

MEASURES = ["dice_before", "dice_after", "hd95_mm_after", "folding_percent"]
METHODS: dict[str, tuple[str, bool, float]] = {
    "pyramid": ("pyramid", False, 0.0),
    "pyramid, both orders": ("pyramid", True, 0.0),
    "pyramid, augmented": ("pyramid", False, 0.5),
    "pyramid, both": ("pyramid", True, 0.5),
    "joint, both": ("joint", True, 0.5),
}
"""By name: the architecture, whether both orders of a pair are registered, and how much its images are changed."""


def labels(
    dataset: Annotated[str, typer.Option(help="A data set with labels.")] = "hippocampus",
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    minutes: Annotated[float, typer.Option(help="Of one processor, for each.", min=0.01)] = 4.0,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 50,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    processes: Annotated[int, typer.Option(help="Methods at a time, a processor each.", min=1)] = 2,
) -> None:
    """Overlap of test pairs after equal minutes of training with labels: orders, augmentation, and segmentation."""
    asked = [(name, seed) for seed in range(seeds) for name in chosen(method, list(METHODS))]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        running = [pool.submit(trained, name, seed, dataset, minutes, count) for name, seed in asked]
        rows = []
        for one in running:
            rows.append(one.result())
            typer.echo(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby("method", sort=False)
    typer.echo(f"means\n{overview.mean().to_string(float_format='%.4f')}")
    typer.echo(f"ranges of Dice\n{overview['dice_after'].agg(['min', 'max']).to_string(float_format='%.4f')}")


def trained(name: str, seed: int, dataset: str, minutes: float, count: int) -> dict[str, Any]:
    """A row of the table: a method is trained on one processor, and measured."""
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    architecture, both, augment = METHODS[name]
    values = tuple(cohort.info.labels)
    pair = pair_objective("ssd", smoothness=0.05, dice_weight=0.5, labels=values, coarseness=2)
    objective = BothOrders(pair) if both else pair
    arguments = {"spatial_dims": len(cohort.info.shape)}
    if architecture == "joint":
        objective, arguments = Segmented(objective, values), arguments | {"structures": len(values)}
    with tempfile.TemporaryDirectory() as folder:
        result = train_cohort(
            cohort,
            Path(folder) / "run",
            network=NetworkSpec(architecture, arguments),
            objective=objective,
            config=TrainConfig(minutes=minutes, augment=augment, validations=4, seed=seed),
            hooks=[],
        )
        table = evaluate_checkpoint(Checkpoint.load(result.best), cohort.distinct_pairs("test", count))
    mean = summarise(table).loc["overall"].xs("mean", level=1)
    return {"method": name, "seed": seed, **mean[MEASURES], "steps": len(result.history)}
