"""Which template carries labels best to people whom nobody trained on: learnt, the mean image, a subject, ANTs' own?"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils.data.loading import LoadedSubjects, load_subjects
from course_utils.data.pairs import Cohort, Subject
from course_utils.data.source import Source
from course_utils.networks import TemplateNetwork
from course_utils.objectives import TemplateObjective, pair_objective
from course_utils.templates import (
    Attributes,
    learn_template,
    leave_one_out,
    mean_displacement,
    mean_image,
    sharpness,
    template_network,
)
from course_utils.training import TrainConfig
from tests.benchmarks.training import chosen

OBJECTIVE = TemplateObjective(pair_objective("ncc", smoothness=1.0, coarseness=2))
BATCH = 4
SHOWN = 0.05
"""Intensity of the mean image above which a pixel belongs to the brain."""


def images_of(loaded: LoadedSubjects, subjects: Sequence[Subject]) -> list[Tensor]:
    """Their images, `(1, 1, *spatial)` each."""
    return [loaded[subject]["image"][None] for subject in subjects]


def spaced(subjects: Sequence[Subject], count: int) -> list[Subject]:
    """So many of them, evenly from first to last."""
    return [subjects[n * len(subjects) // count] for n in range(count)]


def trained(
    model: TemplateNetwork,
    objective: TemplateObjective,
    cohort: Cohort,
    loaded: LoadedSubjects,
    steps: int,
    seed: int,
    attributes: Attributes | None = None,
) -> TemplateNetwork:
    """The model after so many steps of `BATCH` scans; the seed is that of their order."""
    config = TrainConfig(steps=steps, batch_size=BATCH, validations=1, amp="off", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        learn_template(
            model,
            cohort,
            loaded,
            Path(folder) / "run",
            objective=objective,
            config=config,
            attributes=attributes,
            hooks=[],
        )
    return model.eval()


def by_ants(scans: Sequence[Tensor], rounds: int) -> Tensor:
    """ANTs' template of scans `(1, 1, *spatial)`, begun with their mean, of the same shape and from 0 to 1.

    Each process that has not used ANTs before makes the same one: the samples are seeded, and there is one thread.

    Source: Avants et al., The optimal template effect in hippocampus studies of diseased populations, NeuroImage 49,
    2010; `ants.build_template`.
    """
    import ants

    ants.config.set_ants_deterministic(True, seed_value=1)
    arrays = [ants.from_numpy(scan[0, 0].numpy()) for scan in scans]
    start = ants.from_numpy(mean_image(scans)[0, 0].numpy())
    settings = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (40, 20, 10)}
    with tempfile.TemporaryDirectory() as folder:
        built = ants.build_template(start, arrays, rounds, type_of_transform="SyN", output_dir=folder, **settings)
    return torch.from_numpy(built.numpy()).float().clamp(0, 1)[None, None]


@torch.no_grad()
def measured(model: TemplateNetwork, cohort: Cohort, loaded: LoadedSubjects, brain: Tensor) -> dict[str, float]:
    """Dice of the test people, mean displacement to the training people in voxels, and sharpness, within the brain."""
    template, test = model.template(), cohort.splits["test"]
    labels = [loaded[subject]["label"][None] for subject in test]
    there = [model(template, scan) for scan in images_of(loaded, test)]
    homes = (model(template, scan).inverse() for scan in images_of(loaded, cohort.splits["train"]))
    return {
        "Dice": leave_one_out(labels, there, list(cohort.info.labels)).nanmean(dim=1).mean().item(),
        "mean displacement": mean_displacement(homes, brain),
        "sharpness": sharpness(template, brain),
    }


def templates(
    dataset: Annotated[str, typer.Option(help="A data set of slices.")] = "oasis2d",
    steps: Annotated[int, typer.Option(help="Of training, 4 scans each.", min=1)] = 200,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    people: Annotated[int, typer.Option(help="Training people that ANTs' template is of; 0 leaves it out.")] = 20,
    rounds: Annotated[int, typer.Option(help="Of ANTs.", min=1)] = 3,
    rate: Annotated[float, typer.Option(help="Of the learnt template, see TemplateNetwork.")] = 1.0,
    method: Annotated[list[str] | None, typer.Option(help="Some of the templates; may be repeated.")] = None,
) -> None:
    """Leave-one-out Dice of winning labels, mean displacement and sharpness of a learnt template and of fixed images.

    The same network and the same steps for all; a fixed image is a template whose rate is 0. The one subject is
    another one for each seed. ANTs' template is built once, of some people; ANTs prints its matrices meanwhile.
    """
    torch.set_num_threads(1)
    cohort, _ = Source(dataset=dataset).load()
    loaded = load_subjects(cohort.subjects, cohort.info.recipe)
    train = cohort.splits["train"]
    mean = mean_image(images_of(loaded, train))
    fixed = {"mean image": mean}
    methods = chosen(method, ("learnt", "mean image", *(["ANTs"] if people else []), "one subject"))
    if people:
        begun = time.process_time()
        fixed["ANTs"] = by_ants(images_of(loaded, spaced(train, people)), rounds)
        typer.echo(f"ANTs' template of {people} people: {time.process_time() - begun:.0f} processor seconds")
    rows = []
    for seed, subject in enumerate(spaced(train, seeds)):
        starts = {"learnt": mean, **fixed, "one subject": loaded[subject]["image"][None]}
        for name in methods:
            begun = time.process_time()
            model = template_network(starts[name], rate=rate if name == "learnt" else 0.0, seed=seed)
            model = trained(model, OBJECTIVE, cohort, loaded, steps, seed)
            spent = time.process_time() - begun
            row = {"template": name, "seed": seed, **measured(model, cohort, loaded, mean > SHOWN)}
            rows.append({**row, "processor seconds": spent})
            typer.echo(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.4f"))
    overview = pd.DataFrame(rows).drop(columns="seed").groupby("template", sort=False)
    typer.echo(f"means\n{overview.mean().to_string(float_format='%.4f')}")
    typer.echo(f"ranges of Dice\n{overview['Dice'].agg(['min', 'max']).to_string(float_format='%.4f')}")
