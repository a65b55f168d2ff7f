# %% [markdown]
# # Assignment 7: a template, and a dial for smoothness
#
# Two ideas that followed VoxelMorph. A *template* is the image that everybody is registered to, and it can be computed or learnt
# (notebook 18). *HyperMorph* is one network for every weight of the smoothness (notebook 20). Here you write the pieces that both are
# made of, and the measure that says whether a template is good.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 70 | 70 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/07_templates_and_hypermorph.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/07_templates_and_hypermorph.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass. Your teacher's checks ask the same questions of other images, in 2-D and 3-D. The exercises do not
# build on each other.

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
import torch
from torch.nn import functional as F

from course_utils.fields import jacobian_determinant, warp
from course_utils.metrics import dice
from course_utils.plotting import panel


def smooth(noise, window=5):
    """A smoother copy of (B, C, *spatial), of the same size."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[noise.ndim - 2]
    for _ in range(3):
        noise = pool(noise, window, 1, window // 2)
    return noise


def fields_of(shape, people, length=2.0, seed=0):
    """Smooth displacements (people, N, *shape), the longest vector of each ``length`` voxels."""
    noise = smooth(
        torch.randn(people, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    )
    longest = noise.norm(dim=1).flatten(1).amax(1).view(-1, 1, *[1] * len(shape))
    return length * noise / longest


# %%
def labels_of(shape, people, seed=0):
    """Label maps (people, 1, *shape) of the values 0, 1, 2 and 3: the same structures, differently
    placed."""
    noise = smooth(torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(seed)))
    own = smooth(torch.randn(people, 4, *shape, generator=torch.Generator().manual_seed(seed + 1)))
    return (noise + 0.5 * own).argmax(dim=1, keepdim=True)


people = labels_of((32, 32), 3)
panel({f"person {n}": label[0] for n, label in enumerate(people)})

# %% [markdown]
# ## Exercise 1: The average image (3 points)
#
# Each person's image is warped to the template by a displacement. The plain mean lets a person count most where they were *squeezed*. So
# each warped image is weighted, at each voxel, by the Jacobian determinant of its map (how much of the person lies there), and the sum
# is divided by the sum of the weights. Return the average, `(1, C, *spatial)`. The course's `warp` and `jacobian_determinant` may be used.


# %% nbgrader={"schema_version": 3, "grade_id": "average", "grade": false, "solution": true, "locked": false}
# exercise: average
def average(images, displacements):
    """Average (1, C, *spatial) of images (S, C, *spatial) moved by displacements (S, N,
    *spatial)."""
    ### BEGIN SOLUTION
    weight = jacobian_determinant(displacements)
    return (weight * warp(images, displacements)).sum(0, keepdim=True) / weight.sum(0, keepdim=True)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "average-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: average-check
from course_utils.grading.judges import templates as judges

u = fields_of((18, 21), 4, seed=1)
images = smooth(torch.rand(4, 1, 18, 21, generator=torch.Generator().manual_seed(1)), 3)
judges.average(average, images, u)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(14, 12), (9, 8, 11)]):
    u = fields_of(shape, 3, seed=seed + 20)
    images = torch.rand(3, 2, *shape, generator=torch.Generator().manual_seed(seed))
    judges.average(average, images, u, what=f"average of images {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: In the middle of all (2 points)
#
# A template that lies far from most people makes every registration harder. It is in the middle where the *mean* displacement of all
# people is zero at each voxel. Return the displacements with their common part taken away.


# %% nbgrader={"schema_version": 3, "grade_id": "centred", "grade": false, "solution": true, "locked": false}
# exercise: centred
def centred(displacements):
    """Displacements (S, N, *spatial) whose mean over the S people is zero at every voxel."""
    ### BEGIN SOLUTION
    return displacements - displacements.mean(0, keepdim=True)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "centred-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: centred-check
from course_utils.grading.judges import templates as judges

judges.centred(centred, fields_of((18, 21), 4, seed=2) + 1)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(14, 12), (9, 8, 11)]):
    u = fields_of(shape, 5, seed=seed + 30) + seed
    judges.centred(centred, u, what=f"centred fields {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: The mean that a network can afford (4 points)
#
# In training nobody can register all people at every step. So a running mean is kept. Before a step it is `mean`, of `count` people; the
# step brings a batch of B new displacements. They enter with the weight `B / seen`, where `seen` counts the people so far *with* these,
# but never more than `cap`: after that, the oldest are slowly forgotten. The old mean has the rest of the weight. Return the new mean
# and the new count (of all people, without the cap).


# %% nbgrader={"schema_version": 3, "grade_id": "stream", "grade": false, "solution": true, "locked": false}
# exercise: stream
def stream(mean, count, displacements, cap):
    """The running mean (N, *spatial) and its count after a batch (B, N, *spatial) of
    displacements."""
    ### BEGIN SOLUTION
    batch = len(displacements)
    count = count + batch
    share = min(1.0, batch / min(count, cap))
    return (1 - share) * mean + share * displacements.mean(0), count
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "stream-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: stream-check
from course_utils.grading.judges import templates as judges

u, mean = fields_of((9, 11), 4, seed=3), fields_of((9, 11), 1, seed=4)[0]
for count, cap in ((0, 10), (6, 10), (30, 10)):
    judges.stream(stream, mean, count, u, cap)
### BEGIN HIDDEN TESTS
for seed, (shape, count, cap) in enumerate([((8, 7), 3, 100), ((6, 5, 7), 12, 4), ((6, 9), 0, 2)]):
    u, mean = fields_of(shape, 3, seed=seed + 40), fields_of(shape, 1, seed=seed + 50)[0]
    what = f"stream of fields {shape}, count {count}, cap {cap}"
    judges.stream(stream, mean, count, u, cap, what)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: The label that wins (4 points)
#
# All people's label maps lie on the template now. At each voxel, count which share of them has each of `values`: these are label
# *probabilities*. The value with the largest share wins; where two have the same, the one that comes first in `values`. Return the
# probabilities and the winning values, as an integer map.


# %% nbgrader={"schema_version": 3, "grade_id": "winner", "grade": false, "solution": true, "locked": false}
# exercise: winner
def winner(labels, values):
    """(probabilities (L, *spatial) float32, winning values (1, *spatial) int64) of maps (S, 1,
    *spatial).

    Args:
        values: L integers, in any order.
    """
    ### BEGIN SOLUTION
    shares = torch.stack([(labels[:, 0] == value).float().mean(0) for value in values])
    return shares, torch.tensor(list(values))[shares.argmax(0)][None]
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "winner-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: winner-check
from course_utils.grading.judges import templates as judges

judges.winner(winner, labels_of((17, 19), 4, seed=5), values=[3, 0, 2, 1])
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 9), (7, 8, 6)]):
    maps = labels_of(shape, 5, seed=seed + 60) * 7
    judges.winner(winner, maps, [7, 21, 0, 14], what=f"winner of maps {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: Leave one out (4 points)
#
# Is the template good? Then the labels that the *others* vote for are those that a person really has. For each person, let the others
# vote (the winners of Exercise 4; here they are computed for you by `vote(labels, values)`), and take the Dice of the winners with the
# person's own map, of the values other than 0, with the course's `dice`; then its mean over the values (`nanmean`). Return the list of
# these numbers, one for each person.


# %% nbgrader={"schema_version": 3, "grade_id": "left-out", "grade": false, "solution": true, "locked": false}
# exercise: left-out
def left_out(labels, values, vote):
    """Mean Dice of each person's map with what the others vote for: a list of S floats.

    Args:
        labels: (S, 1, *spatial) integers.
        values: integers, 0 among them.
        vote: vote(labels, values) gives the winning values (1, *spatial) of some label maps.
    """
    ### BEGIN SOLUTION
    structures = [value for value in values if value]
    scores = []
    for person in range(len(labels)):
        others = torch.cat([labels[:person], labels[person + 1 :]])
        scores.append(
            dice(vote(others, values)[None], labels[person : person + 1], structures)
            .nanmean()
            .item()
        )
    return scores
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "left-out-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: left-out-check
from course_utils.grading.judges import templates as judges

judges.left_out(left_out, labels_of((17, 19), 5, seed=7), values=[0, 1, 2, 3])
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 9), (7, 8, 6)]):
    maps = labels_of(shape, 4, seed=seed + 70) * 5
    judges.left_out(left_out, maps, [5, 0, 15, 10], what=f"left_out of maps {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: Two ways to write a weight (1 point)
#
# HyperMorph minimises $(1-\lambda)\,S+\lambda\,R$, with $\lambda$ from 0 to 1. We minimise $S+w\,R$. Both have their minimum in the same place if
# the *ratio* of the two weights is the same. Return $w$.


# %% nbgrader={"schema_version": 3, "grade_id": "weight", "grade": false, "solution": true, "locked": false}
# exercise: weight
def weight_of(share):
    """The weight w of the roughness that belongs to HyperMorph's lambda, ``share``, from 0 up to
    but not 1."""
    ### BEGIN SOLUTION
    return share / (1 - share)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "weight-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: weight-check
from course_utils.grading.judges import templates as judges

for share in (0.0, 0.2, 0.75):
    judges.weight_of(weight_of, share)
### BEGIN HIDDEN TESTS
for share in (0.01, 0.5, 0.99):
    judges.weight_of(weight_of, share)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: A dial on the features (4 points)
#
# How does a number reach a network? FiLM normalises each channel of each image to mean 0 and standard deviation 1 over its voxels,
# and then multiplies it by $1+\gamma$ and adds $\beta$; both come from the number, one pair for each channel of each image. Use the
# standard deviation that divides by the number of voxels, and add `1e-5` to the *variance*.


# %% nbgrader={"schema_version": 3, "grade_id": "film", "grade": false, "solution": true, "locked": false}
# exercise: film
def film(features, gamma, beta):
    """Features (B, C, *spatial) normalised, then scaled by 1 + gamma and shifted by beta, each (B,
    C)."""
    ### BEGIN SOLUTION
    axes = tuple(range(2, features.ndim))
    variance, mean = torch.var_mean(features, axes, correction=0, keepdim=True)
    normal = (features - mean) / (variance + 1e-5).sqrt()
    gamma, beta = (each.view(*each.shape, *[1] * len(axes)) for each in (gamma, beta))
    return normal * (1 + gamma) + beta
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "film-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: film-check
from course_utils.grading.judges import templates as judges

generator = torch.Generator().manual_seed(8)
x = 3 + 0.5 * torch.randn(2, 3, 9, 8, generator=generator)
gamma, beta = torch.randn(2, 2, 3, generator=generator)
judges.film(film, x, gamma, beta)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(7, 9), (5, 6, 4)]):
    generator = torch.Generator().manual_seed(seed + 80)
    x, gamma, beta = (
        torch.randn(*size, generator=generator) for size in ((3, 2, *shape), (3, 2), (3, 2))
    )
    judges.film(film, x, gamma, beta, what=f"film of features {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## A question to answer in words (for your teacher; no points from the checks)
#
# Somebody learns a template for each age, warps people *of that age* to it, and finds that the ventricles grow with age, as they
# should. Why does this not show that the template depends on the age? What would you do instead? Write five sentences at most.

# %% [markdown]
# *Your answer:*

# %% [markdown]
# This was the last assignment. What is left is to take scans of your own: [11 Your own scans](../11_your_own_scans.ipynb).
