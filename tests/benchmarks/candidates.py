"""Networks that others made, beside ours: how each is built, called and trained, and what it takes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from course_utils import losses
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import LoadedSubjects, load_subjects
from course_utils.data.pairs import Cohort
from course_utils.memory import most_memory
from course_utils.networks import Registration, VoxelMorph
from course_utils.training import precision

BATCH = 4
LEARNING_RATE = 2e-3
SMOOTHNESS = 0.25


def monai(half_resolution: bool) -> torch.nn.Module:
    from monai.networks.nets import VoxelMorph as MonaiVoxelMorph

    return MonaiVoxelMorph(half_res=half_resolution)


def pairwise() -> torch.nn.Module:
    from voxelmorph.nn.models import VxmPairwise

    return VxmPairwise(ndim=3, source_channels=1, target_channels=1)


@dataclass(frozen=True)
class Candidate:
    """A network, how to call it, and whether it runs under autocast."""

    build: Callable[[], torch.nn.Module]
    call: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    amp: str = "off"


def _ours(model: VoxelMorph, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    registration = model(moving, fixed)
    return registration.moved, registration.displacement


def _monai(model: torch.nn.Module, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model(moving, fixed)


def _pairwise(model: torch.nn.Module, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # It takes multiples of 32 only, so it gets them, and what is measured of it is the part without the padding.
    spatial = moving.shape[2:]
    margins = [m for n in reversed(spatial) for m in (0, -n % 32)]
    displacement, moved = model(F.pad(moving, margins), F.pad(fixed, margins), return_warped_source=True)
    inside = (..., *(slice(n) for n in spatial))
    return moved[inside], displacement[inside]


CANDIDATES = {
    "course_utils": Candidate(lambda: VoxelMorph(3), _ours, amp="auto"),
    "course_utils, float32": Candidate(lambda: VoxelMorph(3), _ours),
    "course_utils, float32, full resolution": Candidate(lambda: VoxelMorph(3, half_resolution=False), _ours),
    "MONAI VoxelMorph": Candidate(lambda: monai(False), _monai),
    "MONAI VoxelMorph, half_res": Candidate(lambda: monai(True), _monai),
    "MONAI VoxelMorph, autocast": Candidate(lambda: monai(False), _monai, amp="auto"),
    "voxelmorph VxmPairwise": Candidate(pairwise, _pairwise),
}


def train(
    candidate: Candidate, batches: Iterator[dict[str, Any]], device: torch.device, minutes: float = math.inf
) -> Iterator[torch.nn.Module]:
    """Yield the network after every step of Adam on SSD and diffusion, with the learning rate of `training.fit`."""
    torch.manual_seed(0)
    model = candidate.build().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    dtype = precision(candidate.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    begun = time.monotonic()
    for batch in batches:
        progress = min((time.monotonic() - begun) / 60 / minutes, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
        moving, fixed = batch["moving"].to(device), batch["fixed"].to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            moved, displacement = candidate.call(model, moving, fixed)
        loss = losses.ssd_loss(moved, fixed) + SMOOTHNESS * losses.diffusion_loss(displacement)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield model


def data_of(dataset: str, splits: tuple[str, ...]) -> tuple[Cohort, LoadedSubjects]:
    """A cohort, and its subjects of these splits in memory."""
    cohort = load_cohort(dataset)
    subjects = [subject for split in splits for subject in cohort.splits[split]]
    return cohort, load_subjects(subjects, cohort.info.recipe)


def peak_of(device: torch.device) -> float:
    """MB that this process has held at most, on its GPU where it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return (most_memory() or math.nan) / 1e6


def as_registration(candidate: Candidate, model: torch.nn.Module) -> Callable[..., Registration]:
    """What `evaluate` calls, of a candidate's network."""

    def register(moving: torch.Tensor, fixed: torch.Tensor) -> Registration:
        moved, displacement = candidate.call(model, moving, fixed)
        return Registration(moved, displacement)

    return register
