"""From a cohort to the files of its template: learnt with a network, or averaged by one that is there already."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.checkpoint import Checkpoint
from course_utils.data.loading import LoadedSubjects, load_subjects
from course_utils.data.pairs import Cohort, Subject
from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.files import check_room
from course_utils.losses import one_hot
from course_utils.networks import Registration, TemplateNetwork
from course_utils.objectives import TemplateObjective
from course_utils.scans.optimise import optimise
from course_utils.templates.attributes import read_attributes
from course_utils.templates.averaging import Mean, Register, groupwise, mean_image, sharpness
from course_utils.templates.files import Result, template_affine, write_results
from course_utils.templates.labels import overlap, winning_labels
from course_utils.templates.learning import learn_template, template_network
from course_utils.training import Hook, TrainConfig
from course_utils.training.cohort import cache_of

SEEN = 0.05
"""Intensity above which a voxel of a template shows something."""


@dataclass(frozen=True)
class Conditions:
    """Of which subjects a template is.

    Attributes:
        table: CSV file of attributes, see `read_attributes`.
        at: By attribute, the values of which templates are written, in all combinations; an attribute that is left out
            stays at its mean.
    """

    table: Path
    at: Mapping[str, Sequence[float]]


def learnt(
    cohort: Cohort,
    out: Path,
    *,
    objective: TemplateObjective,
    config: TrainConfig,
    conditions: Conditions | None = None,
    rate: float = 1.0,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    hooks: Sequence[Hook] | None = None,
    progress: bool = False,
) -> dict[str, Result]:
    """Learn a template of the training subjects with the network that brings it to each, and write both.

    Args:
        cohort: Whose template; what its test subjects' labels say of it is measured.
        out: Folder for what `learn_template` and `write_results` write.
        objective: What is minimised.
        config: Budget, optimiser, precision.
        conditions: Attributes that the template depends on; None for one template for all.
        rate: See `TemplateNetwork`.
        root: The data folder, where a cohort that memory does not hold is cached.
        device, resume, hooks: See `training.fit`.
        progress: Show how far reading the volumes has got.

    Returns:
        By the ending of the files' names, each template: first, without any, that of all or of the mean attributes.

    Raises:
        CourseError: the table of attributes lacks something or there is no such attribute; whatever `fit` raises.
    """
    check_room(out)
    cohort.distinct_pairs("train", 1), cohort.distinct_pairs("val", 1)  # raise where there are none
    trained = (*cohort.splits["train"], *cohort.splits["val"])
    attributes = None if conditions is None else read_attributes(conditions.table, trained)
    places = {} if conditions is None or attributes is None else _combinations(attributes.names, conditions.at)
    loaded = load_subjects(cohort.subjects, cohort.info.recipe, cache_of(cohort, root), progress=progress)
    cohort = cohort.without(loaded.failed)
    model = template_network(
        mean_image(loaded[subject]["image"][None] for subject in cohort.splits["train"]),
        names=() if attributes is None else attributes.names,
        attributes=None if attributes is None else attributes.of(cohort.splits["train"]),
        rate=rate,
        seed=config.seed,
    )
    result = learn_template(
        model,
        cohort,
        loaded,
        out,
        objective=objective,
        config=config,
        attributes=attributes,
        device=device,
        resume=resume,
        hooks=hooks,
    )
    best = result.model
    assert isinstance(best, TemplateNetwork)
    results = {}
    for ending, place in {"": {}, **places}.items():
        condition = None
        if best.names:
            means = dict(zip(best.names, best.centre.tolist(), strict=True))
            condition = best.centre.new_tensor([[{**means, **place}[name] for name in best.names]])
        with torch.no_grad():
            template = best.template(condition)
        results[ending] = _measured(best, template, cohort, loaded, {"attributes": place} if place else {})
    write_results(out, results, template_affine(cohort.info.recipe, cohort.splits["train"]))
    return results


def averaged(
    cohort: Cohort,
    out: Path,
    *,
    checkpoint: Checkpoint | None = None,
    iterations: int = 0,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Result]:
    """Average the training subjects groupwise, see `groupwise`, and write the template.

    Args:
        cohort: Whose template; what its test subjects' labels say of it is measured.
        out: Folder for what `write_results` writes.
        checkpoint: A network that brings each average to the scans; of one with a template, that is the first average.
        iterations: Steps of instance optimisation for each scan in each round, from the network's velocity, or from
            zero without one.
        root, device, progress: As of `learnt`.

    Returns:
        As `learnt`, the only one.

    Raises:
        CourseError: there is neither a network nor an iteration, or the grid is too small for the network.
    """
    if checkpoint is None and not iterations:
        raise CourseError("without a network or --iterations there is nothing that registers: give one of them")
    check_room(out)
    recipe = cohort.info.recipe if checkpoint is None else checkpoint.card.recipe
    loaded = load_subjects(cohort.subjects, recipe, cache_of(cohort, root), progress=progress)
    cohort = cohort.without(loaded.failed)
    model = None if checkpoint is None else checkpoint.model().to(device)
    register = _refining(model, iterations)
    scans = _Scans(loaded, cohort.splits["train"], device)
    start = None
    if isinstance(model, TemplateNetwork):
        with torch.no_grad():
            start = model.template(model.centre[None] if model.names else None)
    rounds = list(groupwise(register, scans, start))
    about = {"rounds": len(rounds), "last_change": rounds[-1].change}
    results = {"": _measured(register, rounds[-1].template, cohort, loaded, about, device)}
    write_results(out, results, template_affine(recipe, cohort.splits["train"]))
    return results


def _refining(model: Register | None, iterations: int) -> Register:
    def register(template: Tensor, scan: Tensor) -> Registration:
        begun = None if model is None else model(template, scan)
        if not iterations and begun is not None:
            return begun
        return optimise(template, scan, start=None if begun is None else begun.velocity, iterations=iterations)

    return register


class _Scans(Sequence[Tensor]):
    """Images of subjects, each read when it is asked for."""

    def __init__(self, loaded: LoadedSubjects, subjects: Sequence[Subject], device: torch.device | str) -> None:
        self._loaded, self._subjects, self._device = loaded, subjects, device

    def __len__(self) -> int:
        return len(self._subjects)

    def __getitem__(self, index: Any) -> Any:
        return self._loaded[self._subjects[index]]["image"][None].to(self._device)


# --- what is known of a template --------------------------------------------------------------------------------------


def _measured(
    register: Register,
    template: Tensor,
    cohort: Cohort,
    loaded: LoadedSubjects,
    about: Mapping[str, Any],
    device: torch.device | str | None = None,
) -> Result:
    """The template with the labels of the training subjects, and how well these fit the test subjects."""
    values = list(cohort.info.labels)
    device = template.device if device is None else device
    displacement, probabilities = Mean(), Mean()
    for subject in cohort.splits["train"]:
        item = loaded[subject]
        with torch.no_grad():
            home = register(template, item["image"][None].to(device)).inverse()
        displacement.add(home)
        if values and "label" in item:
            probabilities.add(warp(one_hot(item["label"][None].to(device), values), home))
    shown = template > SEEN
    off_centre = displacement.value.norm(dim=1, keepdim=True)[shown].mean().item()
    report: dict[str, Any] = {
        **about,
        "subjects": len(cohort.splits["train"]),
        "mean_displacement_voxels": off_centre,
        "sharpness": sharpness(template, shown),
    }
    if not probabilities:
        return Result(template.cpu(), report=report)
    winners, share = winning_labels(probabilities.value, values)
    report["structures"] = {str(value): name for value, name in cohort.info.labels.items()}
    scores = Mean()
    for subject in cohort.splits["test"]:
        item = loaded[subject]
        if "label" in item:
            with torch.no_grad():
                registration = register(template, item["image"][None].to(device))
            found = overlap(winners, item["label"][None].to(device), registration, values)
            scores.add(found.nan_to_num(), (~found.isnan()).float())
    if scores:
        report["dice_of_unseen_subjects"] = dict(zip(report["structures"].values(), scores.value.tolist(), strict=True))
    return Result(template.cpu(), probabilities.value.cpu(), winners.cpu(), share.cpu(), report)


def _combinations(names: Sequence[str], at: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Attributes of each template that is asked for, by the ending of its files' names."""
    for name in at:
        if name not in names:
            raise CourseError(f"--at {name}: the attributes are {', '.join(names)}: name one of them")
    if not at:
        return {}
    places = [dict(zip(at, values, strict=True)) for values in itertools.product(*at.values())]
    return {"".join(f"_{re.sub(r'[^A-Za-z0-9]+', '-', n)}{v:g}" for n, v in place.items()): place for place in places}
