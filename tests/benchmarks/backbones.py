"""Does the block matter, or what is built of blocks? Equal parameters, equal time, several seeds, paired tests."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils.data.loading import LoadedSubjects, PairDataset, load_subjects
from course_utils.data.pairs import Cohort
from course_utils.data.source import Source
from course_utils.evaluation import evaluate, paired_comparison, summarise
from course_utils.networks import NetworkSpec, Pyramid, architecture
from course_utils.objectives import pair_objective
from course_utils.training import Result, TrainConfig, fit
from course_utils.training.cohort import VALIDATION_PAIRS

MEASURES = ["dice_before", "dice_after", "hd95_mm_after", "folding_percent"]
BATCH = 2
JUDGE = pair_objective("ncc", coarseness=2)
RATES = (1e-3, 2e-3, 4e-3)
"""Learning rates of which each network gets what is best for it on validation pairs."""
TRIED = 0.3
"""The share of the time that each of them is tried for."""
STEPS, ROUNDS = 6, 4
"""So many steps are timed, so often, of one network after the other."""


@architecture("benchmark pyramid without warping")
class Unwarped(Pyramid):
    """A pyramid whose levels see the features where they lie, at the same price: they are warped by nothing."""

    def exponential(self, velocity: Tensor, most: int | None = None) -> Tensor:
        """No displacement, for the warp between the levels; the answer is integrated as ever."""
        return torch.zeros_like(velocity)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "U-Net": ("voxelmorph", {"features": (16, 32, 32, 32)}),
    "inception": ("inception", {"features": (16, 32, 32, 32)}),
    "Swin": ("swin", {"features": (16, 18, 24, 32)}),
    "pyramid": ("pyramid", {"features": (8, 20, 28, 36)}),
    "pyramid, nothing warped": ("benchmark pyramid without warping", {"features": (8, 20, 28, 36)}),
}
"""Of about as many parameters as the first one has in 2-D, within 4 %."""

COMPARED = [*((name, "U-Net") for name in NETWORKS if name != "U-Net"), ("pyramid", "pyramid, nothing warped")]


def seconds_a_step(specs: Mapping[str, NetworkSpec], shape: Sequence[int]) -> dict[str, float]:
    """Processor seconds of a training step of each network, the median of rounds in which they take turns."""
    moving, fixed = torch.rand(2, BATCH, 1, *shape)
    networks = {name: spec.build().train() for name, spec in specs.items()}
    times: dict[str, list[float]] = {name: [] for name in specs}
    for _, (name, network) in itertools.product(range(ROUNDS), networks.items()):
        optimiser = torch.optim.Adam(network.parameters())
        for _ in range(STEPS):
            begun = time.process_time()
            optimiser.zero_grad()
            JUDGE(network, {"moving": moving, "fixed": fixed}).loss.backward()
            optimiser.step()
            times[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def trained(cohort: Cohort, subjects: LoadedSubjects, spec: NetworkSpec, config: TrainConfig) -> Result:
    """A network after a training from the first weights, and in the order of pairs, of the configuration's seed."""
    pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=config.seed))
    validation = PairDataset(subjects, cohort.distinct_pairs("val", VALIDATION_PAIRS))
    with tempfile.TemporaryDirectory() as folder:
        network, out, card = spec.build(config.seed), Path(folder) / "run", cohort.info.card()
        return fit(network, JUDGE, pairs, validation, out, config, card=card, hooks=[])


def backbones(
    dataset: Annotated[str, typer.Option(help="A data set of slices.")] = "oasis2d",
    minutes: Annotated[float, typer.Option(help="Of one core, for each network and seed.", min=0.01)] = 0.75,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 60,
) -> None:
    """Overlap after equal time of a U-Net, two other kinds of block, and a pyramid, of equal size.

    A step of each is timed first, on one core and in turns, and each gets as many steps as fit into the minutes. So a
    busy machine changes nothing. Each gets the learning rate that is best for it on validation pairs.
    """
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    subjects = load_subjects(cohort.subjects, cohort.info.recipe)
    pairs = PairDataset(subjects, cohort.distinct_pairs("test", count))
    dims = len(cohort.info.shape)
    specs = {name: NetworkSpec(kind, {"spatial_dims": dims, **rest}) for name, (kind, rest) in NETWORKS.items()}
    seconds = seconds_a_step(specs, cohort.info.shape)
    steps = {name: round(60 * minutes / one) for name, one in seconds.items()}
    usual = TrainConfig(steps=1, batch_size=BATCH, validations=1, amp="off")
    configs = {}
    for name, spec in specs.items():
        tried = {}
        for rate in RATES:
            config = replace(usual, steps=round(TRIED * steps[name]), learning_rate=rate)
            tried[rate] = trained(cohort, subjects, spec, config).history["validation_dice"].iloc[-1]
        configs[name] = replace(usual, steps=steps[name], learning_rate=max(tried, key=tried.__getitem__))
        size = sum(parameter.numel() for parameter in spec.build().parameters())
        told = ", ".join(f"{rate:g}: {dice:.4f}" for rate, dice in tried.items())
        typer.echo(f"{name}: {size} parameters, {seconds[name]:.3f} s a step, {steps[name]} steps; validation {told}")
    rows, tables = [], {name: [] for name in specs}
    for seed in range(seeds):
        for name, spec in specs.items():
            begun = time.process_time()
            model = trained(cohort, subjects, spec, replace(configs[name], seed=seed)).model
            spent = time.process_time() - begun
            tables[name].append(evaluate(model.eval(), pairs, cohort.info.labels, cohort.info.spacing))
            mean = summarise(tables[name][-1]).loc["overall"].xs("mean", level=1)
            rows.append({"network": name, "seed": seed, **mean[MEASURES], "processor seconds": spent})
            typer.echo(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby("network", sort=False)
    typer.echo(f"means\n{overview.mean().to_string(float_format='%.4f')}")
    typer.echo(f"ranges of Dice\n{overview['dice_after'].agg(['min', 'max']).to_string(float_format='%.4f')}")
    means = {
        name: pd.concat(its).groupby(["pair", "structure"], as_index=False)["dice_after"].mean()
        for name, its in tables.items()
    }
    for one, other in COMPARED:
        typer.echo(
            f"{one} - {other}, means over the seeds: {paired_comparison(means[one], means[other], 'dice_after')}"
        )
