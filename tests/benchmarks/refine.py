"""What registers a pair best: a network, the network refined, and methods that others made."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from course_utils.checkpoint import Checkpoint
from course_utils.data.loading import PairDataset, loader
from course_utils.evaluation import evaluate, summarise
from course_utils.scans.mapping import FURTHER_ITERATIONS, ITERATIONS
from course_utils.scans.optimise import optimise
from tests.benchmarks import peers
from tests.benchmarks.candidates import BATCH, CANDIDATES, as_registration, data_of, peak_of, train
from tests.benchmarks.training import chosen

MONAI = "MONAI VoxelMorph"


def refine(
    model: Annotated[Path, typer.Option(help="A checkpoint that train wrote, or the name of a network that ships.")],
    dataset: Annotated[str, typer.Option(help="Whose test pairs to measure on.")] = "hippocampus",
    count: Annotated[int, typer.Option(help="Test pairs.")] = 50,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    minutes: Annotated[float, typer.Option(help="For which MONAI's VoxelMorph is trained.", min=0.01)] = 5.0,
) -> None:
    """Dice, distances, folding, seconds and memory of a network, of optimisation, and of the peers that are installed.

    Optimised with as many steps as `register` takes. Each method has a process of its own; its memory is what it needs
    over what its packages and the scans take.
    """
    rows = {}
    for name in chosen(method, [*_methods(model), MONAI]):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            rows[name] = alone.submit(measured, name, model, dataset, count, minutes).result()
        typer.echo(f"{name}: Dice {rows[name]['dice_after']:.4f}", err=True)
    typer.echo(pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format))


def measured(method: str, model: Path, dataset: str, count: int, minutes: float) -> dict[str, float]:
    """A row of the table: means over the pairs, and the most memory in MB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cohort, subjects = data_of(dataset, ("train", "test") if method == MONAI else ("test",))
    test = PairDataset(subjects, cohort.pairs("test", count=count))
    if method == MONAI:
        pairs = PairDataset(subjects, cohort.pairs("train", count=10**9))
        candidate, end = CANDIDATES[MONAI], time.monotonic() + 60 * minutes
        steps = train(candidate, iter(loader(pairs, BATCH)), device, minutes)
        register = as_registration(candidate, next(net for net in steps if time.monotonic() > end).eval())
    else:
        register = _methods(model)[method]
    before = peak_of(device)
    table = evaluate(register, test, cohort.info.labels, cohort.info.spacing, device=device)
    return {**summarise(table).loc["overall"].xs("mean", level=1), "MB": peak_of(device) - before}


def _methods(model: Path) -> dict[str, Callable[..., Any]]:
    """All but MONAI's, which must be trained first: what registers a pair, by name."""
    network = Checkpoint.load(model).model().to("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "network": network,
        "network, optimised": lambda m, f: optimise(m, f, start=network(m, f).velocity, iterations=FURTHER_ITERATIONS),
        "affine": peers.affine_only,
        "optimised, one level": partial(optimise, iterations=ITERATIONS, levels=[(1, 1.0)]),
        "optimised": partial(optimise, iterations=ITERATIONS),
    } | {name: method for name, (package, method) in peers.PEERS.items() if find_spec(package)}
