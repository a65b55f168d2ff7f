"""From a data set to a trained network in one call."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from course_utils.data.cohorts import Cohort, data_root
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.model_card import write_card
from course_utils.networks import NetworkSpec
from course_utils.objectives import Objective
from course_utils.training.config import TrainConfig
from course_utils.training.hooks import Hook
from course_utils.training.loop import Result, fit

LOG = logging.getLogger(__name__)

LARGEST_IN_MEMORY = 4e9
"""Bytes. Larger cohorts are cached on disk."""
VALIDATION_PAIRS = 10


def train_cohort(
    cohort: Cohort,
    out: str | Path,
    *,
    network: NetworkSpec,
    objective: Objective,
    config: TrainConfig,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    resume: bool = False,
    hooks: Sequence[Hook] | None = None,
    progress: bool = False,
) -> Result:
    """Train a network on random pairs of a cohort's training subjects and describe it.

    Args:
        cohort: what `load_cohort` gives; a subject whose files cannot be used is named in a warning and left out.
        out: folder for what `fit` writes, and for the card beside `best.pt`: `model.json` and `README.md`.
        network: what to train; `config.seed` decides its first weights and the order of the pairs.
        objective: what is minimised.
        config: budget, optimiser, precision.
        root: the data folder, where a cohort that memory does not hold is cached; None is `data_root()`.
        device, workers, resume, hooks: see `fit`.
        progress: show how far reading the volumes has got.

    Raises:
        CourseError: a split is too small to pair, and whatever `fit` raises.
    """
    for split in ("train", "val"):
        cohort.pairs(split)  # raises where there are none, before anything is loaded
    size = len(cohort.subjects) * math.prod(cohort.info.shape) * 5  # float32 and uint8
    cache = "memory" if size < LARGEST_IN_MEMORY else Path(root or data_root()) / "cache" / cohort.info.name
    subjects = (*cohort.splits["train"], *cohort.splits["val"])
    loaded = load_subjects(subjects, cohort.info.recipe, cache, progress=progress)
    cohort = cohort.without(loaded.failed)
    model = network.build(config.seed)
    LOG.info(
        "%d training and %d validation subjects; %s of %d parameters on %s",
        len(cohort.splits["train"]),
        len(cohort.splits["val"]),
        network.architecture,
        sum(parameter.numel() for parameter in model.parameters()),
        device,
    )
    result = fit(
        model,
        objective,
        PairDataset(loaded, cohort.pairs("train", count=10**9, seed=config.seed)),
        PairDataset(loaded, cohort.distinct_pairs("val", VALIDATION_PAIRS)),
        out,
        config,
        card=cohort.info.card(),
        device=device,
        workers=workers,
        resume=resume,
        hooks=hooks,
    )
    write_card(result.best)
    return result
