"""From a cohort to a template that was learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.data.loading import LoadedSubjects, PairDataset
from course_utils.data.pairs import ENDLESS, Cohort, Pair
from course_utils.model_card import write_card
from course_utils.networks import NetworkSpec, TemplateNetwork
from course_utils.objectives import TemplateObjective
from course_utils.templates.attributes import AttributedPairs, Attributes
from course_utils.training import Hook, TrainConfig, fit
from course_utils.training.loop import Result

VALIDATION_PAIRS = 10


def template_network(
    start: Tensor,
    *,
    names: Sequence[str] = (),
    attributes: Tensor | None = None,
    network: str = "pyramid",
    options: Mapping[str, Any] | None = None,
    rate: float = 1.0,
    seed: int = 0,
) -> TemplateNetwork:
    """An untrained `TemplateNetwork` whose template is an image that is there already.

    Args:
        start: The image, `(1, 1, *spatial)`.
        names: Of the K attributes that the template shall depend on.
        attributes: What they are, of all scans to be trained on, `(scans, K)`: the decoder sees them less their mean,
            in standard deviations.
        network, options, rate: See `TemplateNetwork`.
        seed: Of the network's first weights.
    """
    arguments = {"shape": list(start.shape[2:]), "network": network, "options": dict(options or {}), "rate": rate}
    model = NetworkSpec("template", {**arguments, "attributes": list(names)}).build(seed)
    assert isinstance(model, TemplateNetwork)
    model.start.copy_(start)
    if attributes is not None:
        model.centre.copy_(attributes.mean(0))
        model.scale.copy_(attributes.std(0))
    return model


def learn_template(
    model: TemplateNetwork,
    cohort: Cohort,
    loaded: LoadedSubjects,
    out: str | Path,
    *,
    objective: TemplateObjective,
    config: TrainConfig,
    attributes: Attributes | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    hooks: Sequence[Hook] | None = None,
) -> Result:
    """Train a template and the network that brings it to every scan on the training subjects of a cohort.

    Args:
        model: What `template_network` gives; it is changed.
        cohort: Whose subjects.
        loaded: Their images, of training and validation.
        out: Folder for what `fit` writes, and for the card beside `best.pt`.
        objective: What is minimised.
        config: Budget, optimiser, precision; its seed decides the order of the scans.
        attributes: Of training and validation subjects, where the template depends on some.
        device, resume, hooks: See `fit`.

    Raises:
        CourseError: as `fit`; a split has too few subjects.
    """

    def shown(pairs: Sequence[Pair]) -> PairDataset:
        return PairDataset(loaded, pairs) if attributes is None else AttributedPairs(loaded, pairs, attributes)

    # Random pairs have each subject once as the fixed image, the only one that the objective looks at.
    seen = {split: [subject.name for subject in cohort.splits[split]] for split in ("train", "val")}
    result = fit(
        model,
        objective,
        shown(cohort.pairs("train", count=ENDLESS, seed=config.seed)),
        shown(cohort.distinct_pairs("val", VALIDATION_PAIRS)),
        out,
        config,
        card=replace(cohort.card(), subjects=seen),
        device=device,
        resume=resume,
        hooks=hooks,
    )
    write_card(result.best)
    return result
