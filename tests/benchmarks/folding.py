"""What does it cost not to fold? A penalty, a cycle and a velocity at equal smoothness, three seeds."""

import time
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch
import typer

from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.source import Source
from course_utils.evaluation import evaluate, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import Cycle, Objective, pair_objective
from course_utils.training import TrainConfig
from tests.benchmarks.training import after_its_last_step

MEASURES = ["dice_before", "dice_after", "folding_percent", "ndv_percent"]
BATCH = 4
CALLS_OF_A_CYCLE = 2


@dataclass(frozen=True)
class Remedy:
    """Something against folds.

    Attributes:
        squarings: Of the velocity; 0 predicts a displacement.
        penalty: Weight of the share that is turned over.
        cycle: Whether the moved image is brought back as well.
    """

    squarings: int = 0
    penalty: float = 0.0
    cycle: bool = False

    def objective(self, weight: float) -> Objective:
        """NCC on the images' own grid, where a field folds from voxel to voxel, and `weight` of smoothness."""
        judge = pair_objective("ncc", smoothness=weight, jacobian_weight=self.penalty)
        return Cycle(judge) if self.cycle else judge

    @property
    def batch_size(self) -> int:
        """Pairs in a step, so that all call the network equally often."""
        return BATCH // CALLS_OF_A_CYCLE if self.cycle else BATCH


REMEDIES = {
    "none": Remedy(),
    "penalty": Remedy(penalty=100.0),
    "cycle": Remedy(cycle=True),
    "velocity": Remedy(squarings=7),
}


def folding(
    dataset: Annotated[str, typer.Option(help="A data set.")] = "oasis2d",
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 60,
    steps: Annotated[int, typer.Option(help="Of training; 4 pairs each, of a cycle 2.")] = 300,
    weight: Annotated[list[float] | None, typer.Option(help="Of the smoothness; may be repeated.")] = None,
    features: Annotated[str, typer.Option(help="Of VoxelMorph at full resolution.")] = "16,32,32,32",
) -> None:
    """Overlap and folds of a displacement network, of one with a penalty, of one with a cycle and of a velocity."""
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    dims, widths = len(cohort.info.shape), [int(number) for number in features.split(",")]
    pairs = PairDataset(load_subjects(cohort.subjects, cohort.info.recipe), cohort.distinct_pairs("test", count))
    rows = []
    for seed in range(seeds):
        for smoothness in weight or [0.01]:
            for name, remedy in REMEDIES.items():
                options = {"spatial_dims": dims, "features": widths, "half_resolution": False}
                spec = NetworkSpec("voxelmorph", {**options, "integration_steps": remedy.squarings})
                config = TrainConfig(steps=steps, batch_size=remedy.batch_size, validations=1, seed=seed)
                begun = time.process_time()
                model = after_its_last_step(cohort, spec, remedy.objective(smoothness), config)
                seconds = time.process_time() - begun
                table = evaluate(model, pairs, cohort.info.labels, cohort.info.spacing)
                mean = summarise(table).loc["overall"].xs("mean", level=1)
                rows.append({"smoothness": smoothness, "remedy": name, "seed": seed, **mean[MEASURES]})
                rows[-1]["processor seconds"] = seconds
                row = pd.DataFrame(rows[-1:])
                typer.echo(row.to_string(index=False, header=len(rows) == 1, float_format="%.5f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby(["smoothness", "remedy"], sort=False)
    for what in ("mean", "min", "max"):
        typer.echo(f"{what} of the seeds\n{overview.agg(what).to_string(float_format='%.5f')}")
