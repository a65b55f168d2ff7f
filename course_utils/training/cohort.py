"""From a data set to a trained network in one call."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from course_utils.checkpoint import Checkpoint
from course_utils.data.augmentation import Augmentation, AugmentedPairs
from course_utils.data.cohorts import Cohort, data_root
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.errors import CourseError, CourseWarning
from course_utils.files import check_room
from course_utils.model_card import write_card
from course_utils.networks import NetworkSpec
from course_utils.objectives import Objective
from course_utils.training.config import TrainConfig
from course_utils.training.hooks import Hook
from course_utils.training.loop import Result, fit
from course_utils.training.ranks import Ranks

LOG = logging.getLogger(__name__)

LARGEST_IN_MEMORY = 4e9
"""Bytes, of all processes of a machine that train together. Larger cohorts are cached on disk."""
VALIDATION_PAIRS = 10


def train_cohort(
    cohort: Cohort,
    out: str | Path,
    *,
    network: NetworkSpec,
    objective: Objective,
    config: TrainConfig,
    start: Checkpoint | None = None,
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
        start: A trained network to go on with, in place of `network` (fine-tuning).
        objective: what is minimised.
        config: budget, optimiser, precision.
        root: the data folder, where a cohort that memory does not hold is cached; None is `data_root()`.
        device, workers, resume, hooks: see `fit`.
        progress: show how far reading the volumes has got.

    Raises:
        CourseError: a split is too small to pair, the start is a network of another dimension, the grid is too
            small for the network, and whatever `fit` raises.
    """
    check_room(Path(out))
    cohort = _with_what_it_needs(cohort, objective)
    # These raise where there are none, before anything is loaded.
    cohort.training_pairs(), cohort.distinct_pairs("val", VALIDATION_PAIRS)
    model = network.build(config.seed) if start is None else start.model()
    dims = len(cohort.info.shape)
    if model.spatial_dims != dims:
        raise CourseError(
            f"the network to start from is {model.spatial_dims}-D, and the data is {dims}-D: choose another"
        )
    model.check_grid(cohort.info.shape)
    subjects = (*cohort.splits["train"], *cohort.splits["val"], *([cohort.atlas] if cohort.atlas else []))
    loaded = load_subjects(subjects, cohort.info.recipe, cache_of(cohort, root), progress=progress)
    if cohort.atlas is not None and cohort.atlas.name in loaded.failed:
        raise CourseError(loaded.failed[cohort.atlas.name])
    cohort = cohort.without(loaded.failed)
    LOG.info(
        "%d training and %d validation subjects; %s of %d parameters on %s",
        len(cohort.splits["train"]),
        len(cohort.splits["val"]),
        model.spec.architecture,
        sum(parameter.numel() for parameter in model.parameters()),
        device,
    )
    seen = {split: [subject.name for subject in cohort.splits[split]] for split in ("train", "val")}
    if start is not None and start.card.dataset == cohort.info.name:  # what it has learnt from them is still in it
        seen = {split: sorted({*names, *start.card.subjects.get(split, ())}) for split, names in seen.items()}
    pairs = PairDataset(loaded, cohort.training_pairs(config.seed))
    result = fit(
        model,
        objective,
        AugmentedPairs(pairs, Augmentation().scaled(config.augment), config.seed) if config.augment else pairs,
        PairDataset(loaded, cohort.distinct_pairs("val", VALIDATION_PAIRS)),
        out,
        config,
        card=replace(cohort.card(), subjects=seen),
        device=device,
        workers=workers,
        resume=resume,
        hooks=hooks,
    )
    if Ranks.here().writes:
        write_card(result.best)
    return result


def cache_of(cohort: Cohort, root: str | Path | None = None) -> str | Path:
    """Where `load_subjects` keeps the volumes of a cohort: in memory, or on disk below `root` where they are many."""
    size = len(cohort.subjects) * math.prod(cohort.info.shape) * 6  # float32 and int16
    # Each process has the whole: its pairs are of all subjects.
    fits = size * Ranks.here().of_this_machine < LARGEST_IN_MEMORY
    return "memory" if fits else Path(root or data_root()) / "cache" / cohort.info.name


def _with_what_it_needs(cohort: Cohort, objective: Objective) -> Cohort:
    """The cohort without the subjects that lack a label, where the objective needs labels."""
    if not {"fixed_label", "moving_label"} & objective.needs:
        return cohort
    unlabelled = [subject.name for subject in cohort.everyone if subject.label is None]
    if unlabelled:
        warnings.warn(
            f"{len(unlabelled)} of {len(cohort.everyone)} subjects have no label map, the first is {unlabelled[0]}: "
            "left out, because the loss needs labels",
            CourseWarning,
            stacklevel=3,
        )
    return cohort.without(unlabelled)
