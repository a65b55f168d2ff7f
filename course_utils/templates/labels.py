"""What a template's voxels are called: how often each structure lies there, and which of them wins."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.fields import warp
from course_utils.losses import one_hot
from course_utils.metrics import dice
from course_utils.networks import Registration
from course_utils.templates.averaging import Mean


def label_probabilities(labels: Iterable[Tensor], displacements: Iterable[Tensor], values: Sequence[int]) -> Tensor:
    """In which share of the scans each structure lies at each voxel of the template.

    Args:
        labels: Label maps of the scans, `(1, 1, *spatial)` each.
        displacements: From the template's voxels to the scans', `(1, N, *spatial)` each.
        values: Of the L structures.

    Returns:
        `(1, L, *spatial)`, from 0 to 1; what is missing to a sum of 1 is background.

    Raises:
        CourseError: there are no label maps, or no structures.
    """
    if not len(values):
        raise CourseError("there are no structures whose probabilities were to be had: give label maps")
    mean = Mean()
    for label, displacement in zip(labels, displacements, strict=True):
        mean.add(warp(one_hot(label, values), displacement))
    return mean.value


def winning_labels(probabilities: Tensor, values: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The structure that lies at each voxel most often, or 0, the background, where that does; and how often it does.

    Args:
        probabilities: `(1, L, *spatial)`, see `label_probabilities`.
        values: Of the L structures.

    Returns:
        The labels, `(1, 1, *spatial)` int16, and the share of the scans that agree, `(1, 1, *spatial)`.
    """
    background = 1 - probabilities.sum(dim=1, keepdim=True)
    share, winner = torch.cat([background, probabilities], dim=1).max(dim=1, keepdim=True)
    table = torch.tensor([0, *values], dtype=torch.int16, device=probabilities.device)
    return table[winner], share


def overlap(winners: Tensor, label: Tensor, registration: Registration, values: Sequence[int]) -> Tensor:
    """Dice of each structure, `(L,)`, of a template's labels brought to a scan with the scan's own.

    Args:
        winners: Of the template, `(1, 1, *spatial)`.
        label: Of the scan, `(1, 1, *spatial)`.
        registration: Of the template to the scan.
        values: Of the L structures.
    """
    there = warp(winners, registration.displacement, mode="nearest", padding="zeros")
    return dice(there, label.to(there.dtype), values)[0]


def leave_one_out(labels: Sequence[Tensor], registrations: Sequence[Registration], values: Sequence[int]) -> Tensor:
    """How well the winning labels of all others fit each scan: Dice, `(scans, L)`; NaN where a scan lacks a structure
    and the template does, too.

    Args:
        labels: Label maps of the scans, `(1, 1, *spatial)` each.
        registrations: Of the template to each scan.
        values: Of the L structures.

    Raises:
        CourseError: there are fewer than two scans.
    """
    if len(labels) < 2:
        raise CourseError(f"leaving one of {len(labels)} scans out leaves nobody: give two or more")
    homewards = [registration.inverse() for registration in registrations]
    mean = label_probabilities(labels, homewards, values)
    scores = []
    for label, home, registration in zip(labels, homewards, registrations, strict=True):
        own = label_probabilities([label], [home], values)
        others = (mean * len(labels) - own) / (len(labels) - 1)
        scores.append(overlap(winning_labels(others, values)[0], label, registration, values))
    return torch.stack(scores)
