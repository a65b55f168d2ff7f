"""What a check says of a network that a student's function has trained: does it overlap better, without folds?"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from course_utils import fields, metrics
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.pairs import Pair
from course_utils.data.synthetic import make_cohort
from course_utils.errors import CourseError
from course_utils.grading.standins import StandIn, there
from course_utils.networks import NetworkSpec, RegistrationNetwork, VoxelMorph

MOST_FOLDED = 0.5
"""Percent of the voxels."""


class Budget(Dataset):
    """The first pairs of a dataset, and no more of them than `most`, however often they are asked for.

    Args:
        pairs: What is lent.
        most: How many items may be asked for.

    Attributes:
        left: How many may still be.
    """

    def __init__(self, pairs: Dataset, most: int) -> None:
        self.pairs, self.most, self.left = pairs, most, most

    def __len__(self) -> int:
        return len(self.pairs)  # ty: ignore[invalid-argument-type]

    def __getitem__(self, index: int) -> Any:
        """The pair.

        Raises:
            AssertionError: the budget is spent.
        """
        assert self.left > 0, (
            f"the budget of {self.most} pairs is spent: loader(pairs, batch_size=4, stop={self.most}) ends there"
        )
        self.left -= 1
        return self.pairs[index]


def trained_by(train: Callable[[Dataset, int], Any], pairs: Dataset, most: int, seed: int) -> VoxelMorph:
    """The network that `train(pairs, seed)` makes of `most` pairs, in evaluation mode.

    Raises:
        AssertionError: it makes no VoxelMorph, or has asked for hardly any of the pairs, or for too many.
    """
    budget = Budget(pairs, most)
    model = _here(train(budget, seed))
    assert isinstance(model, VoxelMorph), (
        f"it should return a VoxelMorph, and returns a {type(model).__name__}: is there a return?"
    )
    used = most - budget.left
    assert used >= most / 4, (
        f"{used} of the {most} pairs were asked for: train with the pairs that the function is given, and with most of "
        "them"
    )
    return model.eval()


def content(model: Any) -> dict[str, Any] | None:
    """A VoxelMorph as plain data; None of what is none."""
    if type(model) is not VoxelMorph:
        return None
    return {"arguments": dict(model.spec.arguments), "weights": model.state_dict()}


def _here(model: Any) -> Any:
    """The network, where the student's process has made it a copy of it in this one; what is none as it is.

    Raises:
        AssertionError: its weights do not fit it.
    """
    if not isinstance(model, StandIn) or (found := there(content, model)) is None:
        return model
    try:
        weights = found["weights"]
        spec = NetworkSpec("voxelmorph", found["arguments"])
        sizes = {name: tuple(each.shape) for name, each in spec.build(device="meta").state_dict().items()}
        # Sizes first: they are those of the message, and what the arguments claim is not asked for before.
        if {name: tuple(each.shape) for name, each in weights.items()} != sizes:
            raise ValueError("its weights are others than its arguments say")
        copy = spec.build()
        copy.load_state_dict(weights)
        return copy
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, CourseError) as error:
        raise AssertionError(f"the network cannot be read ({error}): is it a plain VoxelMorph?") from None


def strangers(seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """All pairs of six people of a built-in cohort of slices that this seed makes, and the values of its structures."""
    with tempfile.TemporaryDirectory() as folder:
        make_cohort(Path(folder, "synthetic"), subjects=6, dimensions=2, seed=seed)
        cohort = load_cohort("synthetic", folder)
        both_ways = [Pair(*two) for two in itertools.permutations(cohort.subjects, 2)]
        pairs = PairDataset(load_subjects(cohort.subjects, cohort.info.recipe), both_ways)
        return [pairs[n] for n in range(len(pairs))], list(cohort.info.labels)


def learnt(
    model: RegistrationNetwork, pairs: Iterable[Mapping[str, Tensor]], labels: Sequence[int], wanted: float
) -> tuple[float, str]:
    """Mean Dice after registration, and a line that says it with what it was before and what folds.

    Args:
        model: Registers images of the pairs' dimension.
        pairs: Items with `moving`, `fixed`, `moving_label`, `fixed_label`, each `(1, *spatial)`.
        labels: Values of the structures.
        wanted: The least Dice that will do.

    Raises:
        AssertionError: the network's weights are no numbers, it does nothing, it does harm, it folds more than
            `MOST_FOLDED` percent, or it does not reach what is wanted; the message says what to look for.
    """
    rows = [_measured(model, item, labels) for item in pairs]
    before, after, folded = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    found = f"{len(rows)} unseen pairs: Dice {before:.3f} before, {after:.3f} after, {folded:.2f} % folded"
    assert after == after and folded == folded, f"{found}; the weights are no numbers: is the learning rate too high?"
    assert abs(after - before) > 0.002, (
        f"{found}; the network does nothing: do its weights change, and is the rate above 0?"
    )
    assert after > before, f"{found}; worse than nothing: which image is warped, and is it compared with the other one?"
    assert folded < MOST_FOLDED, f"{found}; too much is folded: give the smoothness more weight"
    assert after >= wanted, f"{found}; {wanted} is asked for: use the whole budget (see the hints)"
    return after, found


@torch.no_grad()
def _measured(model: RegistrationNetwork, item: Mapping[str, Tensor], labels: Sequence[int]) -> tuple[float, ...]:
    """Dice before and after, and percent folded."""
    keys = ("moving", "fixed", "moving_label", "fixed_label")
    moving, fixed, moving_label, fixed_label = (item[key][None] for key in keys)
    displacement = model(moving, fixed).displacement
    moved = fields.warp(moving_label, displacement, mode="nearest")
    before, after = (metrics.dice(label, fixed_label, list(labels)).nanmean() for label in (moving_label, moved))
    return before.item(), after.item(), metrics.folding_percent(displacement).item()
