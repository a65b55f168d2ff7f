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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/07_templates_and_hypermorph.ipynb)
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
from course_utils import fields
from course_utils.grading import checks

u = fields_of((18, 21), 4, seed=1)
images = smooth(torch.rand(4, 1, 18, 21, generator=torch.Generator().manual_seed(1)), 3)
moved, weight = fields.warp(images, u), fields.jacobian_determinant(u)
unmoved = (weight * images).sum(0, keepdim=True) / weight.sum(0, keepdim=True)
whole = torch.einsum("sc...,sd...->c...", moved, weight / weight.sum(0, keepdim=True))[None]
checks.agree(
    checks.call(average, images, u),
    whole,
    "average(images, displacements)",
    {
        "that is the plain mean: weigh each image by its determinant": moved.mean(0, keepdim=True),
        "the images are not warped": unmoved,
        "the sum of the weights is missing below": (weight * moved).sum(0, keepdim=True),
        "it is divided by the number of people, not by the sum of the weights": (
            weight * moved
        ).mean(0, keepdim=True),
        "the image is weighted before it is warped: the determinant belongs to the template's "
        "voxels": fields.warp(images * weight, u).sum(0, keepdim=True)
        / weight.sum(0, keepdim=True),
        "divided by the determinant: where a person is squeezed they count more": (
            moved / weight
        ).sum(0, keepdim=True)
        / (1 / weight).sum(0, keepdim=True),
    },
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(14, 12), (9, 8, 11)]):
    u = fields_of(shape, 3, seed=seed + 20)
    images = torch.rand(3, 2, *shape, generator=torch.Generator().manual_seed(seed))
    weight = fields.jacobian_determinant(u)
    wanted = (weight * fields.warp(images, u)).sum(0, keepdim=True) / weight.sum(0, keepdim=True)
    checks.agree(checks.call(average, images, u), wanted, f"average of images {shape}")
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
from course_utils.grading import checks

u = fields_of((18, 21), 4, seed=2) + 1
checks.agree(
    checks.call(centred, u),
    u - u.sum(0, keepdim=True) / 4,
    "centred(displacements)",
    {
        "the mean of each person's own displacement was taken: the mean is over the people": u
        - u.flatten(2).mean(2)[..., None, None],
        "one number was taken from all: the mean is of each voxel and component": u - u.mean(),
        "the mean over the components, too: each component has its own": u
        - u.mean((0, 1), keepdim=True),
        "the mean over the components: it is over the people": u - u.mean(1, keepdim=True),
        "the first person became the middle": u - u[:1],
        "the sum was taken away, not the mean": u - u.sum(0, keepdim=True),
        "that is the common part itself": u.mean(0, keepdim=True).expand_as(u).clone(),
    },
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(14, 12), (9, 8, 11)]):
    u = fields_of(shape, 5, seed=seed + 30) + seed
    checks.agree(checks.call(centred, u), u - u.mean(0), f"centred fields {shape}")
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
from course_utils.grading import checks


def running(mean, count, u, cap):
    """The new mean and count, from weights of the single displacements."""
    seen = min(count + len(u), cap)
    each = 1 / max(seen, len(u))
    return mean * (1 - len(u) * each) + (u * each).sum(0), count + len(u)


for count, cap in ((0, 10), (6, 10), (30, 10)):
    u, mean = fields_of((9, 11), 4, seed=3), fields_of((9, 11), 1, seed=4)[0]
    new, now = running(mean, count, u, cap)
    half = min(count + 4, cap)
    checks.agree(
        checks.call(stream, mean, count, u, cap),
        (new, now),
        f"stream(mean, count={count}, 4 displacements, cap={cap})",
        {
            "the cap is of the count in the weight, not of the count that is returned": (
                new,
                min(now, cap),
            ),
            "the count is the old one": (new, count),
            "the cap does nothing": running(mean, count, u, 10**9),
            "the new people are not counted in the weight": (
                mean + (u.mean(0) - mean) * min(1.0, 4 / max(1, min(count, cap))),
                now,
            ),
            "the weight is 1 / seen: a batch of four is four people": (
                mean + (u.mean(0) - mean) / half,
                now,
            ),
            "the weights are exchanged": (u.mean(0) + (mean - u.mean(0)) * min(1.0, 4 / half), now),
            "the batch's sum enters, not its mean": (
                mean * (1 - 4 / half) + u.sum(0) * (4 / half),
                now,
            ),
            "the old mean was replaced": (u.mean(0), now),
        },
    )
### BEGIN HIDDEN TESTS
for seed, (shape, count, cap) in enumerate([((8, 7), 3, 100), ((6, 5, 7), 12, 4), ((6, 9), 0, 2)]):
    u, mean = fields_of(shape, 3, seed=seed + 40), fields_of(shape, 1, seed=seed + 50)[0]
    wanted = running(mean, count, u, cap)
    checks.agree(
        checks.call(stream, mean, count, u, cap),
        wanted,
        f"stream of fields {shape}, count {count}, cap {cap}",
    )
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
from course_utils.grading import checks


def votes(labels, values):
    """Shares, and the winners by comparing them one after the other."""
    shares = torch.cat(
        [(labels == value).to(torch.float32).sum(0) / len(labels) for value in values]
    )
    best, value_of = shares[0].clone(), torch.full(labels.shape[1:], values[0])
    for share, value in zip(shares[1:], values[1:], strict=True):
        value_of[0][share > best] = value
        best = torch.maximum(best, share)
    return shares, value_of


maps, values = labels_of((17, 19), 4, seed=5), [3, 0, 2, 1]
shares, best = votes(maps, values)
checks.agree(
    checks.call(winner, maps, values),
    (shares, best),
    "winner(labels, [3, 0, 2, 1])",
    {
        "the winners are places in `values`: return the values themselves": (
            shares,
            shares.argmax(0)[None],
        ),
        "those are counts: a probability is a share": (shares * 4, best),
        "the mean of label values is no label": (shares, maps.float().mean(0).round().long()),
        "the probabilities are in the order of the values' size, not of `values`": (
            votes(maps, [0, 1, 2, 3])[0],
            best,
        ),
        "that is the largest value that anybody has": (shares, maps.amax(0)),
        "that is the first person's map": (shares, maps[0]),
        "at a tie the first in `values` wins": (shares, votes(maps, values[::-1])[1]),
        "the probabilities of the winner alone: keep those of all values": (
            shares.amax(0, keepdim=True),
            best,
        ),
    },
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 9), (7, 8, 6)]):
    maps = labels_of(shape, 5, seed=seed + 60) * 7
    values = [7, 21, 0, 14]
    checks.agree(checks.call(winner, maps, values), votes(maps, values), f"winner of maps {shape}")
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
from course_utils import metrics
from course_utils.grading import checks


def majority(labels, values):
    """The winning values (1, *spatial)."""
    counts = torch.stack([(labels == value).sum(0) for value in values])
    return torch.tensor(values)[counts.argmax(0)]


def scores_of(maps, values, others):
    """Mean Dice of each person, voted on by the people that ``others(person)`` names."""
    return [
        metrics.dice(majority(maps[others(n)], values)[None], maps[[n]], [v for v in values if v])
        .nanmean()
        .item()
        for n in range(len(maps))
    ]


def but(n, people=5):
    return [other for other in range(people) if other != n]


maps, values = labels_of((17, 19), 5, seed=7), [0, 1, 2, 3]
right = scores_of(maps, values, but)
of_all = [
    metrics.dice(majority(maps[but(n)], values)[None], maps[[n]], values).nanmean().item()
    for n in range(len(maps))
]
checks.agree(
    checks.call(left_out, maps, values, majority),
    right,
    "left_out(labels, values, vote)",
    {
        "the person votes too: leave them out": scores_of(maps, values, lambda n: list(range(5))),
        "the background is not a structure: leave 0 out of the Dice": of_all,
        "the person alone votes": [1.0] * 5,
        "that is one number: each person has one": sum(right) / 5,
        "only the next person votes": scores_of(maps, values, lambda n: [(n + 1) % 5]),
        "the first of the others alone votes": scores_of(maps, values, lambda n: [0 if n else 1]),
    },
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 9), (7, 8, 6)]):
    maps, values = labels_of(shape, 4, seed=seed + 70) * 5, [5, 0, 15, 10]
    wanted = scores_of(maps, values, lambda n: but(n, 4))
    checks.agree(checks.call(left_out, maps, values, majority), wanted, f"left_out of maps {shape}")
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
from course_utils.grading import checks

for share in (0.0, 0.2, 0.75):
    checks.agree(
        checks.call(weight_of, share),
        1 / (1 - share) - 1,
        f"weight_of({share})",
        {
            "that is HyperMorph's lambda itself": share,
            "that is the weight of the similarity": 1 - share,
            "the ratio is the other way round": (1 - share) / max(share, 1e-9),
            "divided by lambda + 1, not by 1 - lambda": share / (1 + share),
        },
    )
### BEGIN HIDDEN TESTS
for share in (0.01, 0.5, 0.99):
    checks.agree(checks.call(weight_of, share), 1 / (1 - share) - 1, f"weight_of({share})")
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
from course_utils.grading import checks

generator = torch.Generator().manual_seed(8)
x = 3 + 0.5 * torch.randn(2, 3, 9, 8, generator=generator)
gamma, beta = torch.randn(2, 2, 3, generator=generator)


def modulated(features, gamma, beta, scale=1.0, **options):
    """FiLM, from PyTorch's instance norm."""
    place = (..., *[None] * (features.ndim - 2))
    return F.instance_norm(features, **options) * (scale + gamma[place]) + beta[place]


over_batch = F.batch_norm(x, None, None, training=True)
over_channels = F.layer_norm(x, x.shape[1:])
place = (..., None, None)
checks.agree(
    checks.call(film, x, gamma, beta),
    modulated(x, gamma, beta),
    "film(features, gamma, beta)",
    {
        "the scale is 1 + gamma: a gamma of 0 changes nothing": modulated(x, gamma, beta, 0.0),
        "the features are not normalised": x * (1 + gamma[place]) + beta[place],
        "gamma and beta are exchanged": modulated(x, beta, gamma),
        "each image is normalised by itself, not the whole batch": over_batch * (1 + gamma[place])
        + beta[place],
        "each channel is normalised by itself, not all of an image": over_channels
        * (1 + gamma[place])
        + beta[place],
        "beta is missing": modulated(x, gamma, torch.zeros_like(beta)),
        "shifted first and scaled after": (F.instance_norm(x) + beta[place]) * (1 + gamma[place]),
        "the mean was taken away, the deviation is still there": (x - x.mean((2, 3), keepdim=True))
        * (1 + gamma[place])
        + beta[place],
        "the first image's gamma and beta were given to all": modulated(x, gamma[:1], beta[:1]),
    },
    atol=1e-4,
)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(7, 9), (5, 6, 4)]):
    generator = torch.Generator().manual_seed(seed + 80)
    x, gamma, beta = (
        torch.randn(*size, generator=generator) for size in ((3, 2, *shape), (3, 2), (3, 2))
    )
    checks.agree(
        checks.call(film, x, gamma, beta),
        modulated(x, gamma, beta),
        f"film of features {shape}",
        atol=1e-4,
    )
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
