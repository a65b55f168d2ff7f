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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/01_data.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/01_data.ipynb)
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
from course_utils.grading.judges import data as judges

oblique = np.array(
    [[0.2, -1.2, 0.3, 90], [0.9, -0.1, 0, -126], [0, 0.4, 2.1, -72], [0, 0, 0, 1]]
)  # a tilted scan
judges.world_coordinates(world_coordinates, oblique, voxel=np.array([10, 20, 15]))
### BEGIN HIDDEN TESTS
for seed in range(3):
    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = generator.normal(size=(3, 4))
    at = generator.integers(0, 90, 3)
    what = "world_coordinates of another affine"
    judges.world_coordinates(world_coordinates, affine, at, what)
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
from course_utils.grading.judges import data as judges

oblique = np.array([[0.2, -1.2, 0.3, 90], [0.9, -0.1, 0, -126], [0, 0.4, 2.1, -72], [0, 0, 0, 1]])
judges.voxel_size(voxel_size, oblique)
### BEGIN HIDDEN TESTS
for seed in range(3):
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(seed).normal(size=(3, 4))
    judges.voxel_size(voxel_size, affine, what="voxel_size of another affine")
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
from course_utils.grading.judges import data as judges

ramp = torch.arange(2000.0).view(1, 20, 100) + 300
ramp[0, 0, 0], ramp[0, -1, -1] = -1e4, 1e5  # two broken voxels
judges.intensities(to_unit_range, ramp, what="to_unit_range(a ramp with two broken voxels)")
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(1, 40, 50), (1, 12, 17, 21)]):
    other = 900 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** 3 - 200
    judges.intensities(to_unit_range, other, what=f"to_unit_range of {shape}", atol=5e-3)
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
from course_utils.grading.judges import data as judges

volume = torch.arange(1.0, 505.0).view(1, 6, 7, 12)
drawn = torch.zeros(1, 6, 7, 12, dtype=torch.uint8)
drawn[0, 1:4, 2, 3:9] = 1  # 18 voxels of structure 1 ...
drawn[0, 3:5, 5, 1:5] = 9  # ... and 8 of structure 9, in another coronal slice
judges.richest_slice(richest_slice, volume, drawn)
### BEGIN HIDDEN TESTS
from course_utils.grading import checks

for seed in range(3):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(1, 9, 13, 6, generator=generator)
    drawn = torch.randint(0, 4, volume.shape, generator=generator, dtype=torch.uint8)
    judges.richest_slice(richest_slice, volume, drawn, what="richest_slice of another volume")
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
from course_utils.grading.judges import data as judges

drawn = torch.zeros(1, 5, 6, 7, dtype=torch.uint8)
drawn[0, 1:4, 2:5, 1:6], drawn[0, 0, 0, :4] = 3, 7
judges.volumes(volumes_ml, drawn, spacing=(0.8, 1.5, 3.0), structures=[3, 7, 8])
### BEGIN HIDDEN TESTS
for seed in range(3):
    generator = np.random.default_rng(seed)
    values, mm = generator.integers(0, 12, (1, 7, 9, 11)), tuple(generator.uniform(0.5, 4, 3))
    label = torch.from_numpy(values)
    judges.volumes(volumes_ml, label, mm, [1, 5, 11, 40], what="volumes_ml, another label")
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
from course_utils.grading.judges import data as judges

pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "c"), ("e", "a"), ("d", "e")]
judges.split_pairs(split_pairs, pairs, test_subjects=["c", "d"])
### BEGIN HIDDEN TESTS
generator = np.random.default_rng(5)
people = [f"subject{n:02d}" for n in range(15)]
pairs = [
    tuple(str(name) for name in generator.choice(people, 2, replace=False)) for _ in range(120)
]
for held in (people[:4], people[3:10], [], people):
    judges.split_pairs(split_pairs, pairs, held, what=f"split_pairs with {len(held)} test subjects")
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
from course_utils.grading.judges import data as judges

a, b = torch.zeros(2, 1, 8, 9, 10, dtype=torch.uint8)
a[0, 1:5, 2:6, 3:7], b[0, 2:7, 2:6, 3:8] = 1, 1  # overlap, of different sizes
a[0, 6, :, 0], b[0, 6, 0, :] = 2, 4
b[0, 7] = 5
judges.overlap(overlap, a, b, structures=[1, 2, 5, 9])
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(1, 21, 17), (1, 9, 8, 7)]):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 5, (2, *shape), generator=generator)
    judges.overlap(overlap, a, b, [1, 4, 3, 6], what=f"overlap of labels {shape}")
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
from course_utils.grading.judges import data as judges

judges.random_pairs(RandomPairs, list("abcdefgh"), seed=3, late=987_654_321_000)
### BEGIN HIDDEN TESTS
for seed, n in [(0, 5), (7, 12), (11, 31)]:
    judges.random_pairs(RandomPairs, [f"person {k}" for k in range(n)], seed, late=10**12 - 1)
pairs = RandomPairs([f"p{k}" for k in range(12)], 10**6, 1)
assert len({pairs[i] for i in range(12 * 40)}) > 100, (
    "forty blocks of twelve subjects show hardly any different pairs"
)
### END HIDDEN TESTS

# %% [markdown]
# That is all. You can now say of any scan where its voxels lie and what they mean, and of any experiment whether its
# test set was honest. Next: [02 Warping](02_warping.ipynb), after the lecture of that name.
