"""One table for every registration method: run it on pairs and measure it before and after.

The table has one row a pair and structure, so any question about it is one line of pandas;
:func:`course_utils.metrics.summarise` and :func:`course_utils.metrics.paired_comparison` answer the usual
ones.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor
from torch import Tensor

from course_utils import metrics
from course_utils.errors import CourseError
from course_utils.fields import warp


def evaluate(
    model: Callable[[Tensor, Tensor], Any],
    pairs: Iterable[Mapping[str, Any]],
    labels: Mapping[int, str],
    spacing: float | Sequence[float],
    *,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Register every pair and measure the result against the labels.

    Args:
        model: ``model(moving, fixed)`` on float32 ``(1, 1, *spatial)``, answering with an object whose
            ``displacement`` is ``(1, N, *spatial)`` in voxels. A network is put on the device and into
            evaluation mode (and back into the mode it was in). Any callable will do: SciPy, SimpleITK, doing
            nothing. It runs under ``torch.inference_mode``; one that optimises by gradients opens
            ``torch.inference_mode(False)`` itself.
        pairs: items as :class:`course_utils.loading.PairDataset` gives them: ``fixed``, ``moving``,
            ``fixed_label`` and ``moving_label`` ``(1, *spatial)``, ``name``, and ``true_displacement`` ``(N,
            *spatial)`` where it is known.
        labels: the structures to measure, label value to name.
        spacing: mm between voxels along each array axis, or one number for all.
        device: where the model runs.

    Returns:
        One row a pair and structure: pair, structure, dice_before, dice_after, hd_mm_before, hd_mm_after,
        hd95_mm_before, hd95_mm_after, folding_percent, sdlogj, seconds, and tre_mm_before, tre_mm_after
        (inside the fixed labels) where the true displacement is known. The moving label is moved with the
        nearest neighbour and zero outside. ``seconds`` is the time of the call alone, after one call that is
        not counted.

    Raises:
        CourseError: there are no pairs; a pair comes twice, has no labels, or none of those asked for; the
            displacement is not finite or not of the pair's shape.
    """
    device = torch.device(device)
    if isinstance(model, torch.nn.Module):
        model.to(device)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    with eval_mode(model) if isinstance(model, torch.nn.Module) else nullcontext():
        for item in pairs:
            name = item["name"]
            if name in names:
                raise CourseError(f"pair {name} comes twice: give each pair once, under its own name")
            names.add(name)
            moving, fixed, moving_label, fixed_label = _inputs(item, device)
            if not rows:
                _timed(model, moving, fixed)  # allocates, compiles, fills caches
            displacement, seconds = _timed(model, moving, fixed)
            _check_displacement(displacement, fixed, name)
            moved_label = warp(moving_label, displacement, mode="nearest", padding="zeros")
            measured = {
                "before": _compare(moving_label, fixed_label, labels, spacing),
                "after": _compare(moved_label, fixed_label, labels, spacing),
            }
            if all(math.isnan(score) for score in measured["before"]["dice"]):
                raise CourseError(
                    f"pair {name}: none of the labels {', '.join(map(str, labels))} is in its label maps: "
                    "check the label values or leave this pair out"
                )
            of_pair = {
                "folding_percent": metrics.folding_percent(displacement).item(),
                "sdlogj": metrics.sdlogj(displacement).item(),
                "seconds": seconds,
            }
            if item.get("true_displacement") is not None:
                truth = convert_to_tensor(item["true_displacement"], device=device)[None]
                mask = fixed_label > 0
                for side, field in (("before", torch.zeros_like(truth)), ("after", displacement)):
                    error = metrics.target_registration_error(field, truth, spacing, mask)
                    of_pair[f"tre_mm_{side}"] = error.item()
            for index, structure in enumerate(labels.values()):
                row = {"pair": name, "structure": structure}
                for measure, side in itertools.product(("dice", "hd_mm", "hd95_mm"), ("before", "after")):
                    row[f"{measure}_{side}"] = measured[side][measure][index]
                rows.append(row | of_pair)
    if not rows:
        raise CourseError("there are no pairs to evaluate: ask for at least one")
    return pd.DataFrame(rows)


def _inputs(item: Mapping[str, Any], device: torch.device) -> list[Tensor]:
    """moving, fixed, moving_label, fixed_label as ``(1, 1, *spatial)`` on the device."""
    keys = ("moving", "fixed", "moving_label", "fixed_label")
    missing = [key for key in keys if item.get(key) is None]
    if missing:
        raise CourseError(
            f"pair {item['name']} has no {' and no '.join(missing)}: "
            "evaluation needs both images and both labels, add them or leave the pair out"
        )
    return [convert_to_tensor(item[key], device=device)[None] for key in keys]


def _timed(model: Callable[[Tensor, Tensor], Any], moving: Tensor, fixed: Tensor) -> tuple[Tensor, float]:
    """The displacement and the seconds it took; CUDA works in the background: wait for it on both sides."""
    wait = (lambda: torch.cuda.synchronize(moving.device)) if moving.device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    with torch.inference_mode():
        displacement = model(moving, fixed).displacement
    wait()
    seconds = time.perf_counter() - start
    return displacement.detach().to(moving.device), seconds


def _check_displacement(displacement: Tensor, fixed: Tensor, name: str) -> None:
    spatial = tuple(fixed.shape[2:])
    if tuple(displacement.shape) != (1, len(spatial), *spatial):
        raise CourseError(
            f"pair {name}: the displacement has shape {tuple(displacement.shape)}, "
            f"not {(1, len(spatial), *spatial)}: "
            "the model must answer on the fixed image's grid"
        )
    if not displacement.isfinite().all():
        raise CourseError(
            f"pair {name}: the displacement holds NaN or infinity: "
            "the model diverged or the images are not finite, check both before measuring"
        )


def _compare(
    label: Tensor, fixed_label: Tensor, labels: Mapping[int, str], spacing: float | Sequence[float]
) -> dict[str, list[float]]:
    """Overlap and distances of each structure, in the order of ``labels``."""
    maximum, hd95 = metrics.hausdorff(label, fixed_label, labels, spacing, percentile=(100, 95))[:, 0]
    overlap = metrics.dice(label, fixed_label, labels)[0]
    return {"dice": overlap.tolist(), "hd_mm": maximum.tolist(), "hd95_mm": hd95.tolist()}
