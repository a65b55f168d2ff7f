"""Judges the exercises of assignment 1: each function takes the student's, and the inputs to try it on.

`what` names the answer in the message, where the inputs do not say enough.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from torch import Tensor

from course_utils.data.recipe import normalise
from course_utils.grading.checks import agree, by_hand, call, raises, there
from course_utils.grading.trials import asked_backwards

Pair = tuple[str, str]


def world_coordinates(function: Callable[..., Any], affine: np.ndarray, voxel: np.ndarray, what: str = "") -> None:
    """Judge where in the scanner a voxel is.

    Args:
        function: the student's, of affine and voxel.
        affine: `(4, 4)`.
        voxel: `(3,)`.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    linear, start = affine[:3, :3], affine[:3, 3]
    mistakes = {
        "the steps are the columns of the affine, not its rows: A @ v, not v @ A": voxel @ linear + start,
        "the position of voxel (0, 0, 0) is not added": linear @ voxel,
        "this is the way back, from mm to voxels": np.linalg.solve(linear, voxel - start),
        "* multiplies element by element; a matrix times a vector is A @ v": np.diag(linear) * voxel + start,
    }
    what = what or f"world_coordinates(affine, {voxel.tolist()})"
    agree(call(function, affine, voxel), apply_affine(affine, voxel), what, mistakes)


def voxel_size(function: Callable[..., Any], affine: np.ndarray, what: str = "") -> None:
    """Judge the lengths of a voxel.

    Args:
        function: the student's, of the affine.
        affine: `(4, 4)`.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    linear = affine[:3, :3]
    diagonal = np.diag(linear)
    mistakes = {
        "these are the lengths of the rows; a step along an array axis is a column": np.linalg.norm(linear, axis=1),
        "the diagonal is the answer for a scan that is not tilted only": diagonal,
        "the diagonal is the answer for a scan that is not tilted only, whatever its sign": abs(diagonal),
        "a length is the root of the sum of squares": (linear**2).sum(axis=0),
        "the last column is a position, not a step": np.linalg.norm(affine[:3], axis=0),
    }
    agree(call(function, affine), voxel_sizes(affine), what or "voxel_size(affine)", mistakes)


def intensities(function: Callable[..., Any], image: Tensor, what: str, atol: float = 1e-3) -> None:
    """Judge intensities on one scale.

    Args:
        function: the student's, of the image.
        image: `(1, *spatial)` float32.
        what: names the answer.
        atol: by how much the answer may differ.

    Raises:
        AssertionError: with the message for the student.
    """
    by_hand(function, {"normalise", "ScaleIntensityRangePercentiles"}, "it takes two lines")
    low, high = np.percentile(image, (0.5, 99.5))
    lower, upper = np.percentile(image, (0.005, 0.995))
    mistakes = {
        "the minimum and the maximum decide: one broken voxel spoils the contrast": (
            (image - image.min()) / (image.max() - image.min())
        ),
        "what lies beyond the percentiles is not clipped to 0 and 1": ((image - low) / (high - low)).float(),
        "only the upper end is used: the lower percentile has to become 0": (image / high).clip(0, 1).float(),
        "that is a z-score, which has no fixed range": (image - image.mean()) / image.std(),
        "np.percentile and torch.quantile count differently: 0.5 % is 0.5 for the one and 0.005 for the other": (
            ((image - lower) / (upper - lower)).clip(0, 1).float()
        ),
    }
    got = call(function, image)
    agree(got, normalise(image), what, mistakes, atol=atol)
    agree(got.dtype, torch.float32, "the type of to_unit_range(...)")


def richest_slice(function: Callable[..., Any], volume: Tensor, label: Tensor, what: str = "") -> None:
    """Judge the coronal slice with the most labelled voxels.

    Args:
        function: the student's, of volume and label.
        volume: `(1, X, Y, Z)`.
        label: `(1, X, Y, Z)`, integers.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    drawn = (label > 0)[0]
    best, most = (int(counts.sum(dim=(0, 2)).argmax()) for counts in (drawn, label[0]))
    elsewhere = volume[:, best : best + 1].squeeze(1)  # empty, and so nobody's answer, where the axis is too short
    sagittal, axial = int(drawn.sum(dim=(1, 2)).argmax()), int(drawn.sum(dim=(0, 1)).argmax())
    mistakes = {
        "label values are added, and structure 9 counts nine times: count the voxels with label > 0": (
            most,
            volume[:, :, most],
        ),
        "this is a sagittal slice (axis 0): the channel in front shifts every axis by one": (
            sagittal,
            volume[:, sagittal],
        ),
        "this is an axial slice (axis 2)": (axial, volume[..., axial]),
        "the index is right, the slice is cut along another axis": (best, elsewhere),
        "the index is right, the slice has lost its channel": (best, volume[0, :, best]),
    }
    what = what or "richest_slice(volume, label)"
    agree(call(function, volume, label), (best, volume[:, :, best]), what, mistakes)


def volumes(
    function: Callable[..., Any], label: Tensor, spacing: tuple[float, ...], structures: list[int], what: str = ""
) -> None:
    """Judge the volumes of structures.

    Args:
        function: the student's, of label, spacing and structures.
        label: `(1, *spatial)`, integers.
        spacing: mm along each axis.
        structures: values of the label, also such as are not there.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    counts = {value: int((label == value).sum()) for value in structures}
    voxel = float(np.prod(spacing))
    mistakes = {
        "that is mm³; a millilitre is 1000 of them": {v: count * voxel for v, count in counts.items()},
        "these are voxels, not ml": {v: float(count) for v, count in counts.items()},
        "label values are added up, not voxels counted": {v: v * count * voxel / 1000 for v, count in counts.items()},
        "a voxel is no cube: its volume is the product of the three sizes": {
            v: count * spacing[0] ** 3 / 1000 for v, count in counts.items()
        },
        "the sizes are added; the volume of a voxel is their product": {
            v: count * sum(spacing) / 1000 for v, count in counts.items()
        },
    }
    expected = {v: count * voxel / 1000 for v, count in counts.items()}
    what = what or f"volumes_ml(label, {spacing}, {structures})"
    agree(call(function, label, spacing, structures), expected, what, mistakes)


def split_pairs(function: Callable[..., Any], pairs: list[Pair], test_subjects: list[str], what: str = "") -> None:
    """Judge the pairs that may train and the pairs that may test.

    Args:
        function: the student's, of pairs and test subjects.
        pairs: the names of two subjects each.
        test_subjects: names.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    test = set(test_subjects)
    inner, outer = [p for p in pairs if not test & set(p)], [p for p in pairs if test >= set(p)]
    not_inner, not_outer = [p for p in pairs if p not in inner], [p for p in pairs if p not in outer]
    by_side = [([p for p in pairs if p[k] not in test], [p for p in pairs if p[k] in test]) for k in (0, 1)]
    mistakes = {
        "a pair with one test subject tests: its other subject was seen in training": (inner, not_inner),
        "a pair with one test subject trains: that subject is seen before it is tested": (not_outer, outer),
        "mixed pairs are on both sides": (not_outer, not_inner),
        "only the first of the two subjects is looked at": by_side[0],
        "only the second of the two subjects is looked at": by_side[1],
        "the two lists are exchanged: first the training pairs, then the test pairs": (outer, inner),
    }
    what = what or f"split_pairs(pairs, {test_subjects})"
    agree(call(function, pairs, test_subjects), (inner, outer), what, mistakes)


def overlap(
    function: Callable[..., Any], moving_label: Tensor, fixed_label: Tensor, structures: list[int], what: str = ""
) -> None:
    """Judge the overlap of structures in two label maps.

    Args:
        function: the student's, of moving label, fixed label and structures.
        moving_label, fixed_label: `(1, *spatial)`, integers.
        structures: values of the labels, also such as are not there.
        what: names the answer.

    Raises:
        AssertionError: with the message for the student.
    """
    counted = {value: _counted(moving_label == value, fixed_label == value) for value in structures}
    expected = {v: _share(2 * both, a + b) for v, (a, b, both, _) in counted.items()}
    mistakes = {
        "a factor of 2 is missing: two equal structures should score 1": {
            v: _share(both, a + b) for v, (a, b, both, _) in counted.items()
        },
        "the intersection over the union is the Jaccard index; Dice divides by the sum of the two sizes": {
            v: _share(both, a + b - both) for v, (a, b, both, _) in counted.items()
        },
        "it is divided by the fixed structure's size only": {
            v: 0.0 if a and not b else _share(both, b) for v, (a, b, both, _) in counted.items()
        },
        "a structure that neither map has is no miss: nan, not 0": {
            v: score if any(counted[v][:2]) else 0.0 for v, score in expected.items()
        },
        "a structure that neither map has is no success: nan, not 1": {
            v: score if any(counted[v][:2]) else 1.0 for v, score in expected.items()
        },
        "background that agrees is counted as overlap: count where both have the structure": {
            v: _share(2 * alike, a + b) for v, (a, b, _, alike) in counted.items()
        },
    }
    what = what or f"overlap(moving_label, fixed_label, {structures})"
    agree(call(function, moving_label, fixed_label, structures), expected, what, mistakes)


def random_pairs(make: Callable[..., Any], people: list[str], seed: int, late: int) -> None:
    """Judge pairs that follow from their index, a million millions of them.

    Args:
        make: the student's class, of subjects, count and seed.
        people: names of subjects.
        seed: which pairs.
        late: index of a pair that is compared too.

    Raises:
        AssertionError: with the message for the student.
    """
    count, n = 10**12, len(people)
    pairs = make(people, count, seed)
    agree(len(pairs), count, "len(pairs)")
    first = [pairs[i] for i in range(3 * n)]
    _are_pairs(first, people)
    backwards, untouched = there(asked_backwards, make, people, count, seed, len(first))
    _require(
        backwards == first,
        "asked backwards, from a second object, the pairs are others: pair i must follow from i and the seed",
    )
    _require(
        untouched,
        "asking for a pair changes the global random state, on which other people's draws depend: make a generator of "
        "your own",
    )
    _are_fair(first, people)
    _change(first, n)
    again, other = make(people, count, seed), make(people, count, seed + 1)
    _differ(first, [other[i] for i in range(n)], seed)
    _require(pairs[late] == again[late], "a late pair differs between two objects")
    for outside in (count, -1):
        raises(IndexError, pairs.__getitem__, outside, what=f"pairs[{outside}] of 10**12")


def _counted(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Voxels of a structure in the one map, in the other, in both, and those where the maps agree on it."""
    return tuple(int(where.sum()) for where in (a, b, a & b, a == b))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _are_pairs(pairs: list[Any], people: list[str]) -> None:
    for i, pair in enumerate(pairs):
        is_pair = type(pair) is tuple and len(pair) == 2
        _require(is_pair, f"pairs[{i}] should be a tuple (fixed, moving) and is {pair!r}")
        known = all(isinstance(name, str) and name in people for name in pair)
        _require(known, f"pairs[{i}] is {pair!r}, not two subjects")
        _require(pair[0] != pair[1], f"pairs[{i}] is {pair!r}: a subject is paired with itself")


def _are_fair(first: list[Pair], people: list[str]) -> None:
    n = len(people)
    for start in range(0, len(first), n):
        for side, role in enumerate(("fixed", "moving")):
            drawn = sorted(pair[side] for pair in first[start : start + n])
            everybody = drawn == sorted(people)
            _require(everybody, f"pairs {start} to {start + n - 1}: not everybody is {role} exactly once")


def _change(first: list[Pair], n: int) -> None:
    block, following = first[:n], first[n : 2 * n]
    _require(block != following, "the second block repeats the first: the order must depend on the block too")
    _require(
        set(block) != set(following),
        "the second block has the first one's pairs in another order: partners must change",
    )


def _differ(first: list[Pair], theirs: list[Pair], seed: int) -> None:
    """From the pairs of the next seed."""
    n = len(theirs)
    _require(theirs != first[:n], "another seed gives the same pairs")
    if n > 7:  # of fewer people, two orders may be equal by chance
        _require(
            theirs != first[n : 2 * n],
            f"the second block of seed {seed} is the first of seed {seed + 1}: draw from both numbers, not from their "
            "sum",
        )
