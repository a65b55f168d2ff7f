"""Is a probabilistic network's spread more than its prior, and does any spread know where the field is wrong?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import pandas as pd
import torch
import typer
from scipy.stats import spearmanr
from torch import Tensor

from course_utils.data.loading import LoadedSubjects, load_subjects
from course_utils.data.pairs import Cohort
from course_utils.data.source import Source
from course_utils.fields import box_mean, integrate, resize, warp
from course_utils.networks import NetworkSpec, Probabilistic, RegistrationNetwork
from course_utils.objectives import EvidenceBound, pair_objective
from course_utils.training import TrainConfig
from course_utils.uncertainty import coverage, spread, temperature
from tests.benchmarks.training import after_its_last_step

PUBLISHED = ((0.02, 10.0), (0.01, 25.0))
"""Standard deviation of the images' noise, and precision of the prior."""
PLAIN = pair_objective("ssd", smoothness=0.05, coarseness=2)
"""What the members of an ensemble minimise."""
STEPS = {"oasis2d": (600, 2), "hippocampus": (300, 1)}
"""Of training, and pairs each, by the data set."""
Dataset = StrEnum("Dataset", list(STEPS))
SAMPLES = (12, 50)
MEMBERS = (3, 5)
WINDOW = {2: 9, 3: 5}
"""Side of the residual's window by the number of axes: about a hundred voxels."""
KNOT, FEWEST_KNOTS = 24, 4
"""Voxels between two knots of a known map, and the fewest along an axis."""
DISTANCE, NOISE = 2.5, 0.02
"""Mean length of a known velocity in voxels, and the noise of both images: those of notebook 19."""


@dataclass(frozen=True, eq=False)
class Known:
    """A pair of images whose registration is known.

    Attributes:
        moving, fixed: `(1, 1, *spatial)`.
        truth: The displacement that registers them, `(1, N, *spatial)` voxels.
        inside: Voxels of labelled structures, the ones that count, `(1, 1, *spatial)` bool.
    """

    moving: Tensor
    fixed: Tensor
    truth: Tensor
    inside: Tensor

    @classmethod
    def of(cls, fixed: Tensor, label: Tensor, seed: int) -> "Known":
        """An image and its label map `(1, 1, *spatial)`, the image deformed by a smooth map, and noise on both."""
        generator = torch.Generator().manual_seed(seed)
        shape = fixed.shape[2:]
        knots = [max(FEWEST_KNOTS, n // KNOT) for n in shape]
        velocity = resize(torch.randn(1, len(shape), *knots, generator=generator), shape)
        velocity = DISTANCE * velocity / velocity.norm(dim=1).mean()
        deformed = warp(fixed, integrate(velocity))
        noisy = [
            (image + NOISE * torch.randn(image.shape, generator=generator)).clamp(0, 1) for image in (deformed, fixed)
        ]
        return cls(*noisy, integrate(-velocity), label > 0)


def prior_deviation(precision: float, dims: int) -> float:
    """Standard deviation, in voxels of the network's grid, that the prior alone gives each voxel inside an image."""
    return (2 * dims * precision) ** -0.5


def verdict(said: Sequence[Tensor], wrong: Sequence[Tensor], dims: int) -> dict[str, float]:
    """What spreads are worth: the factor is fitted on the first half of the pairs, all is measured on the second.

    Args:
        said: Of each pair the spread of each voxel that counts, `(voxels,)`.
        wrong: Of each pair the error of each, `(voxels,)` voxels.
        dims: Components of a displacement.
    """
    half = len(said) // 2
    factor = temperature(torch.cat(list(said[:half])), torch.cat(list(wrong[:half])))
    spreads, errors = torch.cat(list(said[half:])), torch.cat(list(wrong[half:]))
    return {
        "rank correlation": spearmanr(spreads, errors).statistic,
        "coverage": coverage(spreads, errors, dims),
        "factor": factor,
        "coverage with it": coverage(factor * spreads, errors, dims),
    }


def judged(displacements: Sequence[Sequence[Tensor]], pairs: Sequence[Known]) -> dict[str, float]:
    """A method by its answers to each pair, two or more displacements `(1, N, *spatial)` each: its mean's error, its
    spread, what that is worth, and the rank correlation of its residual with its error."""
    dims = pairs[0].fixed.ndim - 2
    said, wrong, left = [], [], []
    for answers, pair in zip(displacements, pairs, strict=True):
        mean = torch.stack(list(answers)).mean(0)
        residual = box_mean((warp(pair.moving, mean) - pair.fixed).abs(), WINDOW[dims])
        said.append(spread(answers)[pair.inside])
        wrong.append((mean - pair.truth).norm(dim=1, keepdim=True)[pair.inside])
        left.append(residual[pair.inside])
    return {
        "error": torch.cat(wrong).mean().item(),
        "spread": torch.cat(said).mean().item(),
        **verdict(said, wrong, dims),
        "residual's rank correlation": verdict(left, wrong, dims)["rank correlation"],
    }


@torch.no_grad()
def deviations(model: Probabilistic, pairs: Sequence[Known]) -> Tensor:
    """All standard deviations that the network gives, in voxels of its own grid."""
    found = (model.distribution(pair.moving, pair.fixed)[1] for pair in pairs)
    return torch.cat([log_variance.div(2).exp().flatten() for log_variance in found])


@torch.no_grad()
def sampled(model: Probabilistic, pairs: Sequence[Known], count: int, seed: int) -> list[list[Tensor]]:
    """For each pair the displacements of so many samples."""
    torch.manual_seed(seed)
    return [[answer.displacement for answer in model.sample(pair.moving, pair.fixed, count)] for pair in pairs]


@torch.no_grad()
def answered(models: Sequence[RegistrationNetwork], pairs: Sequence[Known]) -> list[list[Tensor]]:
    """For each pair the displacement of each network."""
    return [[model(pair.moving, pair.fixed).displacement for model in models] for pair in pairs]


def known_pairs(cohort: Cohort, loaded: LoadedSubjects, count: int) -> list[Known]:
    """Pairs whose truth is known, each of another test person as far as there are enough."""
    people = cohort.splits["test"]
    loaded_of = [loaded[people[n % len(people)]] for n in range(count)]
    return [Known.of(item["image"][None], item["label"][None], 100 + n) for n, item in enumerate(loaded_of)]


def certainty(
    dataset: Annotated[list[Dataset] | None, typer.Option(help="May be repeated.", show_default="both")] = None,
    work: Annotated[float, typer.Option(help="What the steps are multiplied with.", min=0.01)] = 1.0,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    count: Annotated[int, typer.Option(help="Pairs to measure on.", min=2)] = 6,
    ensembles: Annotated[bool, typer.Option(help="Ensembles too.")] = True,
) -> None:
    """Spreads of a probabilistic network and of ensembles, beside the true errors on pairs deformed by known maps.

    On slices of brains, oasis2d, and on volumes, hippocampus. All networks of a data set train for the same steps. The
    ensemble of a seed begins with the network of that seed, and so shares members with that of the seed before.
    """
    torch.set_num_threads(1)
    rows = []
    for name in map(str, dataset or Dataset):
        cohort, _ = Source(dataset=name).load()
        loaded = load_subjects(cohort.subjects, cohort.info.recipe)
        dims, (steps, batch) = len(cohort.info.shape), STEPS[name]
        pairs = known_pairs(cohort, loaded, count)
        before = torch.cat([pair.truth.norm(dim=1, keepdim=True)[pair.inside] for pair in pairs]).mean()
        typer.echo(f"{name}: {round(steps * work)} steps of {batch} pairs; {before:.3f} voxels before registration")
        config = TrainConfig(steps=round(steps * work), batch_size=batch, validations=1, amp="off")
        plain, own_spread = (NetworkSpec(kind, {"spatial_dims": dims}) for kind in ("voxelmorph", "probabilistic"))
        begun = time.process_time()
        networks = seeds + max(MEMBERS) - 1 if ensembles else 0
        members = [after_its_last_step(cohort, plain, PLAIN, replace(config, seed=seed)) for seed in range(networks)]
        each = (time.process_time() - begun) / max(1, len(members))
        for seed in range(seeds):
            for sigma, precision in PUBLISHED:
                begun = time.process_time()
                bound = EvidenceBound(sigma, precision, coarseness=2)
                model = after_its_last_step(cohort, own_spread, bound, replace(config, seed=seed))
                spent, own = time.process_time() - begun, deviations(model, pairs)
                low, high = (own.quantile(q).item() for q in (0.05, 0.95))
                told = {"deviation": own.mean().item(), "5 %": low, "95 %": high, "processor seconds": spent}
                prior = prior_deviation(precision, dims)
                for samples in SAMPLES:
                    found = judged(sampled(model, pairs, samples, seed), pairs)
                    method = f"{sigma:g}, {precision:g}, {samples} samples"
                    rows.append({"data": name, "method": method, "seed": seed, **found, "prior": prior, **told})
            for size in MEMBERS if ensembles else ():
                found = judged(answered(members[seed : seed + size], pairs), pairs)
                method = f"ensemble of {size}"
                rows.append({"data": name, "method": method, "seed": seed, **found, "processor seconds": each * size})
            typer.echo(pd.DataFrame(rows).query("data == @name and seed == @seed").to_string(float_format="%.3f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby(["data", "method"], sort=False)
    for what in ("mean", "min", "max"):
        typer.echo(f"{what} of the seeds\n{overview.agg(what).to_string(float_format='%.3f')}")
