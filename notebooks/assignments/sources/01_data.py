# %% [markdown]
# # Assignment 1: data and slices
#
# Notebook 01 opened a scan, brought a cohort to one scale and split it. Now you write those pieces: where a voxel
# lies, what its intensities mean, which slice to look at, how large a structure is, who may be in the test set, and
# how badly a pair needs registering. At the end they are enough to draw a cohort's pairs without ever holding a list
# of them.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 60 | 60 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/01_data.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass; a message tells what was got, what was expected and, where it is known, the likely mistake. Your
# teacher's checks ask the same questions of other data. The exercises do not build on each other: leave one out and
# go on.

# %%
# The same in every notebook: install the course where it is missing (Colab), begin the session.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("course_utils") is None:
    public = "git+https://github.com/OWNER/registration-course"
    repository = os.environ.get("COURSE_REPOSITORY", public)
    if "/OWNER/" in repository:
        raise SystemExit("no address yet: make address URL=https://github.com/you/fork")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", repository], check=True)
    importlib.invalidate_caches()

from course_utils.session import start

session = start()
print(session)

# %%
import numpy as np
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import load_subject
from course_utils.plotting import slices

cohort = load_cohort(session.dataset)
subject = cohort.splits["test"][0]
volumes = load_subject(subject, cohort.info.recipe)  # {"image", "label"}, (1, *shape) each
names, spacing = cohort.info.labels, cohort.info.spacing
slices(volumes["image"], volumes["label"], names=names, spacing=spacing)

# %% [markdown]
# ## Exercise 1: Where in the scanner is a voxel? (1 point)
#
# The affine of a NIfTI file is a 4 × 4 matrix. Its upper left 3 × 3 block $A$ holds, as columns, the steps in mm
# along each array axis; the first three numbers of its last column, $t$, are the position of voxel (0, 0, 0). Return
# the position of a voxel in mm, an array of shape (3,).
#
# <details><summary>Hint</summary>One line. NumPy multiplies matrices with <code>@</code>; <code>*</code> multiplies
# element by element.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "world-coordinates", "grade": false, "solution": true, "locked": false}
# exercise: world-coordinates
def world_coordinates(affine, voxel):
    """Position in mm, (3,) float64, of a voxel (3,) under an affine (4, 4)."""
    ### BEGIN SOLUTION
    return affine[:3, :3] @ voxel + affine[:3, 3]
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "world-coordinates-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: world-coordinates-check
import nibabel

from course_utils.grading import checks

oblique = np.array(
    [[0.2, -1.2, 0.3, 90], [0.9, -0.1, 0, -126], [0, 0.4, 2.1, -72], [0, 0, 0, 1]]
)  # a tilted scan
linear, start, voxel = oblique[:3, :3], oblique[:3, 3], np.array([10, 20, 15])
checks.agree(
    checks.call(world_coordinates, oblique, voxel),
    nibabel.affines.apply_affine(oblique, voxel),
    "world_coordinates(affine, [10, 20, 15])",
    {
        "the steps are the columns of the affine, not its rows: A @ v, not v @ A": voxel @ linear
        + start,
        "the position of voxel (0, 0, 0) is not added": linear @ voxel,
        "this is the way back, from mm to voxels": np.linalg.solve(linear, voxel - start),
        "* multiplies element by element; a matrix times a vector is A @ v": np.diag(linear) * voxel
        + start,
    },
)
### BEGIN HIDDEN TESTS
for seed in range(3):
    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = generator.normal(size=(3, 4))
    at = generator.integers(0, 90, 3)
    result = checks.call(world_coordinates, affine, at)
    checks.agree(
        result, nibabel.affines.apply_affine(affine, at), "world_coordinates of another affine"
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: How large is a voxel? (1 point)
#
# A step along an array axis moves you by a column of $A$; how far is that? Return the three lengths in mm. The file's
# header repeats them as its *zooms*, but the scan may be tilted: then no single number of the affine is the answer.


# %% nbgrader={"schema_version": 3, "grade_id": "voxel-size", "grade": false, "solution": true, "locked": false}
# exercise: voxel-size
def voxel_size(affine):
    """Lengths in mm, (3,) float64, of a step along each array axis."""
    ### BEGIN SOLUTION
    return np.linalg.norm(affine[:3, :3], axis=0)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "voxel-size-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: voxel-size-check
import nibabel

from course_utils.grading import checks

oblique = np.array([[0.2, -1.2, 0.3, 90], [0.9, -0.1, 0, -126], [0, 0.4, 2.1, -72], [0, 0, 0, 1]])
linear = oblique[:3, :3]
checks.agree(
    checks.call(voxel_size, oblique),
    nibabel.affines.voxel_sizes(oblique),
    "voxel_size(affine)",
    {
        "these are the lengths of the rows; a step along an array axis is a column": np.linalg.norm(
            linear, axis=1
        ),
        "the diagonal is the answer for a scan that is not tilted only": np.diag(linear),
        "the diagonal is the answer for a scan that is not tilted only, whatever its sign": abs(
            np.diag(linear)
        ),
        "a length is the root of the sum of squares": (linear**2).sum(axis=0),
        "the last column is a position, not a step": np.linalg.norm(oblique[:3], axis=0),
    },
)
### BEGIN HIDDEN TESTS
for seed in range(3):
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(seed).normal(size=(3, 4))
    checks.agree(
        checks.call(voxel_size, affine),
        nibabel.affines.voxel_sizes(affine),
        "voxel_size of another affine",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: One scale for every scanner (2 points)
#
# MR has no unit. Stretch each volume so that its 0.5th percentile becomes 0 and its 99.5th becomes 1, and clip what
# lies beyond. The maximum would not do in place of a percentile: one bright voxel would decide the contrast of all
# others.
#
# <details><summary>Hint</summary><code>np.percentile</code> takes a tensor too; give it both percentiles at once.
# Mind the type: a tensor of float32 should come back.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "intensities", "grade": false, "solution": true, "locked": false}
# exercise: intensities
def to_unit_range(image):
    """Intensities (1, *spatial) float32 to [0, 1], by the 0.5th and 99.5th percentiles; a float32
    tensor."""
    ### BEGIN SOLUTION
    low, high = np.percentile(image, (0.5, 99.5))
    return ((image - low) / (high - low)).clip(0, 1).float()
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "intensities-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: intensities-check
from course_utils.data import recipe
from course_utils.grading import checks

checks.by_hand(to_unit_range, {"normalise", "ScaleIntensityRangePercentiles"}, "it takes two lines")
ramp = torch.arange(2000.0).view(1, 20, 100) + 300  # its percentiles are easy
spoilt = ramp.clone()
spoilt[0, 0, 0], spoilt[0, -1, -1] = -1e4, 1e5  # two broken voxels
low, high = np.percentile(spoilt, (0.5, 99.5))
checks.agree(
    checks.call(to_unit_range, spoilt),
    recipe.normalise(spoilt),
    "to_unit_range(a ramp with two broken voxels)",
    {
        "the minimum and the maximum decide: one broken voxel spoils the contrast": (spoilt + 1e4)
        / 1.1e5,
        "what lies beyond the percentiles is not clipped to 0 and 1": (
            (spoilt - low) / (high - low)
        ).float(),
        "only the upper end is used: the lower percentile has to become 0": (spoilt / high)
        .clip(0, 1)
        .float(),
        "that is a z-score, which has no fixed range": (spoilt - spoilt.mean()) / spoilt.std(),
        "np.percentile and torch.quantile count differently: 0.5 % is 0.5 for the one and 0.005 "
        "for the other": (
            (spoilt - np.percentile(spoilt, 0.005)) / np.ptp(np.percentile(spoilt, (0.005, 0.995)))
        )
        .clip(0, 1)
        .float(),
    },
    atol=1e-3,
)
checks.agree(to_unit_range(ramp).dtype, torch.float32, "the type of to_unit_range(...)")
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(1, 40, 50), (1, 12, 17, 21)]):
    other = 900 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** 3 - 200
    checks.agree(
        checks.call(to_unit_range, other),
        recipe.normalise(other),
        f"to_unit_range of {shape}",
        atol=5e-3,
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: The slice that shows most (3 points)
#
# In the arrays of this course axis 0 runs to the patient's right, axis 1 to the front, axis 2 to the top. A *coronal*
# slice has one place along axis 1. Find the coronal slice with the most labelled voxels (label > 0), and return its
# index and the image there. Both volumes have a channel in front: (1, X, Y, Z). If two slices have equally many, take
# the first.
#
# <details><summary>Hint</summary>Sum over every axis but one, then <code>argmax</code>. With the channel, array axis
# 1 is <code>dim=2</code> of the tensor.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "richest-slice", "grade": false, "solution": true, "locked": false}
# exercise: richest-slice
def richest_slice(image, label):
    """(index: int, slice: (1, X, Z)) of the coronal slice with the most labelled voxels; both
    volumes (1, X, Y, Z)."""
    ### BEGIN SOLUTION
    index = int((label > 0).sum(dim=(0, 1, 3)).argmax())
    return index, image[:, :, index]
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "richest-slice-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: richest-slice-check
from course_utils.grading import checks

volume = torch.arange(1.0, 505.0).view(1, 6, 7, 12)
drawn = torch.zeros(1, 6, 7, 12, dtype=torch.uint8)
drawn[0, 1:4, 2, 3:9] = 1  # 18 voxels of structure 1 ...
drawn[0, 3:5, 5, 1:5] = 9  # ... and 8 of structure 9, in another coronal slice
checks.agree(
    checks.call(richest_slice, volume, drawn),
    (2, volume[:, :, 2]),
    "richest_slice(volume, label)",
    {
        "label values are added, and structure 9 counts nine times: count the voxels with label > "
        "0": (
            5,
            volume[:, :, 5],
        ),
        "this is a sagittal slice (axis 0): the channel in front shifts every axis by one": (
            3,
            volume[:, 3],
        ),
        "this is an axial slice (axis 2)": (3, volume[..., 3]),
        "the index is right, the slice is cut along another axis": (2, volume[:, 2]),
        "the index is right, the slice has lost its channel": (2, volume[0, :, 2]),
    },
)
### BEGIN HIDDEN TESTS
for seed in range(3):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(1, 9, 13, 6, generator=generator)
    drawn = torch.randint(0, 4, volume.shape, generator=generator, dtype=torch.uint8)
    counts = [(int((drawn[0, :, k] > 0).sum()), -k) for k in range(13)]
    best = -max(counts)[1]
    checks.agree(
        checks.call(richest_slice, volume, drawn),
        (best, volume[:, :, best]),
        "richest_slice of another volume",
    )
empty = torch.zeros(1, 4, 5, 6, dtype=torch.uint8)
empty[0, 2, [1, 3], 2] = 1
result = checks.call(richest_slice, torch.rand(1, 4, 5, 6, generator=generator), empty)
checks.agree(result[0], 1, "richest_slice, of two equal slices the first")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: Millilitres (2 points)
#
# How large is each structure? Count its voxels and multiply by the volume of one; a millilitre is 1000 mm³. Return a
# dictionary from label value to ml. A structure that is not there has 0 ml.


# %% nbgrader={"schema_version": 3, "grade_id": "volumes", "grade": false, "solution": true, "locked": false}
# exercise: volumes
def volumes_ml(label, spacing, structures):
    """{value: ml} for each value of ``structures``; label (1, *spatial) integers, spacing in mm
    along each axis."""
    ### BEGIN SOLUTION
    voxel = float(np.prod(spacing)) / 1000
    return {value: int((label == value).sum()) * voxel for value in structures}
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "volumes-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: volumes-check
from course_utils.grading import checks

drawn = torch.zeros(1, 5, 6, 7, dtype=torch.uint8)
drawn[0, 1:4, 2:5, 1:6], drawn[0, 0, 0, :4] = 3, 7
voxels, mm = {3: 45, 7: 4, 8: 0}, (0.8, 1.5, 3.0)
checks.agree(
    checks.call(volumes_ml, drawn, mm, [3, 7, 8]),
    {value: count * 3.6 / 1000 for value, count in voxels.items()},
    "volumes_ml(label, (0.8, 1.5, 3.0), [3, 7, 8])",
    {
        "that is mm³; a millilitre is 1000 of them": {
            value: count * 3.6 for value, count in voxels.items()
        },
        "these are voxels, not ml": {value: float(count) for value, count in voxels.items()},
        "label values are added up, not voxels counted": {
            v: v * count * 3.6 / 1000 for v, count in voxels.items()
        },
        "a voxel is no cube: its volume is the product of the three sizes": {
            v: count * 0.8**3 / 1000 for v, count in voxels.items()
        },
        "the sizes are added; the volume of a voxel is their product": {
            v: count * 5.3 / 1000 for v, count in voxels.items()
        },
    },
)
### BEGIN HIDDEN TESTS
for seed in range(3):
    generator = np.random.default_rng(seed)
    values, mm = generator.integers(0, 12, (1, 7, 9, 11)), tuple(generator.uniform(0.5, 4, 3))
    expected = {
        v: np.count_nonzero(values == v) * mm[0] * mm[1] * mm[2] / 1000 for v in (1, 5, 11, 40)
    }
    checks.agree(
        checks.call(volumes_ml, torch.from_numpy(values), mm, [1, 5, 11, 40]),
        expected,
        "volumes_ml, another label",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: A test set that has met nobody (3 points)
#
# Somebody hands you a list of pairs of subjects' names, `[("a", "b"), ("b", "c"), ...]`, and the names of the test
# subjects. Which pairs may train, and which may test? A pair with one foot on each side may do neither. Return the
# two lists; each in the order of the original.


# %% nbgrader={"schema_version": 3, "grade_id": "split-pairs", "grade": false, "solution": true, "locked": false}
# exercise: split-pairs
def split_pairs(pairs, test_subjects):
    """(training pairs, test pairs), two lists: none of a training pair is in ``test_subjects``,
    both of a test pair."""
    ### BEGIN SOLUTION
    test = set(test_subjects)
    return [p for p in pairs if not test & set(p)], [p for p in pairs if test >= set(p)]
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "split-pairs-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: split-pairs-check
from course_utils.grading import checks

pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "c"), ("e", "a"), ("d", "e")]
inner, mixed, outer = [("a", "b"), ("e", "a")], [("b", "c"), ("d", "e")], [("c", "d"), ("d", "c")]
checks.agree(
    checks.call(split_pairs, pairs, ["c", "d"]),
    (inner, outer),
    "split_pairs(pairs, ['c', 'd'])",
    {
        "a pair with one test subject tests: its other subject was seen in training": (
            inner,
            [p for p in pairs if p not in inner],
        ),
        "a pair with one test subject trains: that subject is seen before it is tested": (
            [p for p in pairs if p not in outer],
            outer,
        ),
        "mixed pairs are on both sides": (
            [p for p in pairs if p not in outer],
            [p for p in pairs if p not in inner],
        ),
        "only the first of the two subjects is looked at": (
            [p for p in pairs if p[0] not in "cd"],
            [p for p in pairs if p[0] in "cd"],
        ),
        "only the second of the two subjects is looked at": (
            [p for p in pairs if p[1] not in "cd"],
            [p for p in pairs if p[1] in "cd"],
        ),
        "the two lists are exchanged: first the training pairs, then the test pairs": (
            outer,
            inner,
        ),
    },
)
### BEGIN HIDDEN TESTS
generator = np.random.default_rng(5)
people = [f"subject{n:02d}" for n in range(15)]
pairs = [
    tuple(str(name) for name in generator.choice(people, 2, replace=False)) for _ in range(120)
]
for held in (people[:4], people[3:10], [], people):
    expected = [], []
    for fixed, moving in pairs:
        sides = (fixed in held) + (moving in held)
        if sides != 1:
            expected[sides // 2].append((fixed, moving))
    checks.agree(
        checks.call(split_pairs, pairs, held),
        expected,
        f"split_pairs with {len(held)} test subjects",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: How badly does it need registering? (3 points)
#
# The overlap of structure $s$ in two label maps: $2\,|A_s \cap B_s| / (|A_s| + |B_s|)$. Return a dictionary from
# label value to Dice. What if neither map has the structure? There is nothing to measure, and 0 would be as wrong as
# 1: return `nan`.
#
# <details><summary>Hint</summary><code>&</code> of two truth-value tensors is their intersection.
# <code>float("nan")</code> is not a number.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "overlap", "grade": false, "solution": true, "locked": false}
# exercise: overlap
def overlap(moving_label, fixed_label, structures):
    """{value: Dice, a float in [0, 1], or nan where neither map has the structure}; labels (1,
    *spatial)."""
    ### BEGIN SOLUTION
    scores = {}
    for value in structures:
        a, b = moving_label == value, fixed_label == value
        size = int(a.sum() + b.sum())
        scores[value] = 2 * int((a & b).sum()) / size if size else float("nan")
    return scores
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "overlap-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: overlap-check
from course_utils import metrics
from course_utils.grading import checks

a, b = torch.zeros(2, 1, 8, 9, 10, dtype=torch.uint8)
a[0, 1:5, 2:6, 3:7], b[0, 2:7, 2:6, 3:8] = 1, 1  # overlap, of different sizes
a[0, 6, :, 0], b[0, 6, 0, :] = 2, 4
b[0, 7] = 5
(size_a, size_b), common = (int((x == 1).sum()) for x in (a, b)), int(((a == 1) & (b == 1)).sum())
nan, right = float("nan"), 2 * common / (size_a + size_b)
checks.agree(
    checks.call(overlap, a, b, [1, 2, 5, 9]),
    {1: right, 2: 0.0, 5: 0.0, 9: nan},
    "overlap(moving_label, fixed_label, [1, 2, 5, 9])",
    {
        "a factor of 2 is missing: two equal structures should score 1": {
            1: right / 2,
            2: 0.0,
            5: 0.0,
            9: nan,
        },
        "the intersection over the union is the Jaccard index; Dice divides by the sum of the two "
        "sizes": {
            1: common / (size_a + size_b - common),
            2: 0.0,
            5: 0.0,
            9: nan,
        },
        "it is divided by the fixed structure's size only": {
            1: common / size_b,
            2: 0.0,
            5: 0.0,
            9: nan,
        },
        "a structure that neither map has is no miss: nan, not 0": {
            1: right,
            2: 0.0,
            5: 0.0,
            9: 0.0,
        },
        "a structure that neither map has is no success: nan, not 1": {
            1: right,
            2: 0.0,
            5: 0.0,
            9: 1.0,
        },
        "background that agrees is counted as overlap: count where both have the structure": {
            v: 2 * int(((a == v) == (b == v)).sum()) / (int((a == v).sum() + (b == v).sum()) or nan)
            for v in (1, 2, 5, 9)
        },
    },
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(1, 21, 17), (1, 9, 8, 7)]):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 5, (2, *shape), generator=generator)
    values = [1, 4, 3, 6]
    expected = dict(zip(values, metrics.dice(a[None], b[None], values)[0].tolist(), strict=True))
    checks.agree(checks.call(overlap, a, b, values), expected, f"overlap of labels {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 8: A million pairs that cost nothing (5 points)
#
# Training draws pairs for as long as it likes. A list of them would fill the memory, and a generator that draws as it
# goes could not be resumed: pair 5000 would depend on the 4999 before. Design a class of which pair number $i$
# *follows from $i$ and the seed*:
#
# - `RandomPairs(subjects, count, seed)`; `len(pairs)` is `count`; `pairs[i]` is a tuple `(fixed, moving)` of two
#   different subjects; an index of `count` or more, or below 0, raises `IndexError`.
# - The same index gives the same pair, in any order of asking, in another object with the same seed, and whatever the
#   global random state is, which stays as it was. Another seed gives other pairs, and not the same ones later on.
# - Fair: in the pairs 0 to n − 1 of n subjects, and in n to 2n − 1, and so on, everybody is fixed once and moving
#   once.
# - But not always the same: from one such block to the next, the partners change.
#
# <details><summary>Hint 1</summary>Pair <code>i</code> is number <code>i % n</code> of block <code>i // n</code>.
# Within a block you need a random order of the subjects. <code>np.random.default_rng([seed, block])</code> is a
# generator that depends on both numbers and on nothing else.</details>
# <details><summary>Hint 2</summary>Put the shuffled subjects on a circle. Who is everybody's moving partner, so that
# nobody meets themselves and nobody is chosen twice?</details>


# %% nbgrader={"schema_version": 3, "grade_id": "random-pairs", "grade": false, "solution": true, "locked": false}
# exercise: random-pairs
class RandomPairs:
    """Pairs (fixed, moving) of different subjects, computed from their index."""

    ### BEGIN SOLUTION
    def __init__(self, subjects, count, seed):
        self.subjects, self.count, self.seed = list(subjects), count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(f"pair {index} of {self.count}")
        n = len(self.subjects)
        block, place = divmod(index, n)
        circle = np.random.default_rng([self.seed, block]).permutation(n)
        return self.subjects[circle[place]], self.subjects[circle[(place + 1) % n]]

    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "random-pairs-check", "grade": true, "solution": false, "locked": true, "points": 5}
# check: random-pairs-check
import random

from course_utils.grading import checks


def global_generators():
    """The states of NumPy's, Python's and PyTorch's."""
    numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
    return numbers, random.getstate(), torch.get_rng_state().tolist()


def asked_backwards(make, people, seed, count):
    """Pairs of a new object, and the states of the global generators before and after."""
    np.random.seed(99)  # noqa: NPY002  the global state must not matter
    before = global_generators()
    again = make(people, 10**12, seed)
    backwards = [again[i] for i in reversed(range(count))][::-1]
    return backwards, before, global_generators()


def judge_pairs(make, people, seed, late):
    pairs, n = make(people, 10**12, seed), len(people)
    checks.agree(len(pairs), 10**12, "len(pairs)")
    first = [pairs[i] for i in range(3 * n)]
    for i, pair in enumerate(first):
        assert type(pair) is tuple and len(pair) == 2, (
            f"pairs[{i}] should be a tuple (fixed, moving) and is {pair!r}"
        )
        assert all(isinstance(name, str) and name in people for name in pair), (
            f"pairs[{i}] is {pair!r}, not two subjects"
        )
        assert pair[0] != pair[1], f"pairs[{i}] is {pair!r}: a subject is paired with itself"
    backwards, before, after = checks.there(asked_backwards, make, people, seed, 3 * n)
    assert backwards == first, (
        "asked backwards, from a second object, the pairs are others: pair i must follow from i "
        "and the seed"
    )
    assert after == before, (
        "asking for a pair changes the global random state, on which other people's draws depend: "
        "make a generator of your own"
    )
    for block in range(3):
        for side, role in enumerate(("fixed", "moving")):
            drawn = sorted(pair[side] for pair in first[block * n : (block + 1) * n])
            assert drawn == sorted(people), (
                f"pairs {block * n} to {(block + 1) * n - 1}: not everybody is {role} exactly once"
            )
    assert first[:n] != first[n : 2 * n], (
        "the second block repeats the first: the order must depend on the block too"
    )
    assert set(first[:n]) != set(first[n : 2 * n]), (
        "the second block has the first one's pairs in another order: partners must change"
    )
    again, other = make(people, 10**12, seed), make(people, 10**12, seed + 1)
    theirs = [other[i] for i in range(n)]
    assert theirs != first[:n], "another seed gives the same pairs"
    if n > 7:  # of fewer people, two orders may be equal by chance
        assert theirs != first[n : 2 * n], (
            f"the second block of seed {seed} is the first of seed {seed + 1}: draw from both "
            "numbers, not from their sum"
        )
    assert pairs[late] == again[late], "a late pair differs between two objects"
    for outside in (10**12, -1):
        checks.raises(IndexError, pairs.__getitem__, outside, what=f"pairs[{outside}] of 10**12")


judge_pairs(RandomPairs, list("abcdefgh"), 3, 987_654_321_000)
### BEGIN HIDDEN TESTS
for seed, n in [(0, 5), (7, 12), (11, 31)]:
    judge_pairs(RandomPairs, [f"person {k}" for k in range(n)], seed, 10**12 - 1)
pairs = RandomPairs([f"p{k}" for k in range(12)], 10**6, 1)
assert len({pairs[i] for i in range(12 * 40)}) > 100, (
    "forty blocks of twelve subjects show hardly any different pairs"
)
### END HIDDEN TESTS

# %% [markdown]
# That is all. You can now say of any scan where its voxels lie and what they mean, and of any experiment whether its
# test set was honest. Next: [02 Warping](02_warping.ipynb), after the lecture of that name.
