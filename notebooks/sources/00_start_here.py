# %% [markdown]
# # 00 Start here
#
# Two people lie in the same scanner, one after the other. *Where is each point of the one brain in the other?* An
# answer to that question is called a **registration**. Without one, nothing can be compared between two scans: not a
# tumour before and after treatment, not a patient with an atlas, not one hundred healthy people with one hundred
# others. On this page you look at two brains, train a small network to answer the question, watch it bend one brain
# into the other, and measure how far off its answers are. The rest of the course explains every line of it.
#
# **Afterwards you can** say what *fixed*, *moving*, *displacement*, *Dice* and *TRE* mean, train a small registration
# network, and measure it on people whom it has never seen. **You need** Python and an idea of what it means to train a
# network. You need no medicine.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/00_start_here.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/00_start_here.ipynb)

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

session = start(real="oasis2d")
print(session)

# %% [markdown]
# ## Two brains
#
# These are slices of MR scans of people, from the front (*coronal*): the OASIS study scanned them, and a program drew
# the structures. The first cell fetches them once (`oasis2d`, 24 MB). Where that fails, the page uses **made subjects**,
# which the course brings along: one real template, bent at random and scanned again by a simulated scanner. All of these
# have one anatomy, which makes them easier than people. The next cell prints which of the two you are looking at.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects

cohort = load_slices(session.dataset, session.data_root)
loaded = load_subjects(cohort.subjects, cohort.info.recipe)
test = PairDataset(loaded, cohort.distinct_pairs("test", 20))
pair = test[10]  # two people whose difference is easy to see
labels, view = cohort.info.labels, cohort.info.view  # names of the structures; how a slice lies

who = "made subjects" if cohort.info.name == "synthetic" else "real people"
sizes = {side: len(members) for side, members in cohort.splits.items()}
print(f"{who}: {sizes['train']} to train with, {sizes['test']} whom the network will never see")
print({key: tuple(value.shape) for key, value in pair.items() if key != "name"})  # channel, axes

# %%
import re

from course_utils.plotting import panel

INNER = ("thalamus|deep", "lateral.ventricle", "putamen", "caudate", "hippocampus")


def structures(*kinds):
    """The labels of these kinds, in this order: so each keeps its colour on this page."""
    return {v: name for kind in kinds for v, name in labels.items() if re.search(kind, name, re.I)}


drawn, inner = structures(*INNER, "white", "cort"), structures(*INNER)
sides = ("moving", "fixed")
images = {side: pair[side] for side in sides}
images |= {f"{side}, its structures": pair[side] for side in sides}
filled = {f"{side}, its structures": pair[f"{side}_label"] for side in sides}
panel(images, labels=filled, names=drawn, fill=True, columns=2, **view)

# %% [markdown]
# One image is called **moving**, because it will be deformed. The other is called **fixed**, because everything is
# drawn on its grid. Both brains have the same structures, but in other shapes and other places.
#
# ## How far apart are they?
#
# Lay the two images on each other. The **Dice score** of a structure $A$ in the one and $B$ in the other is
# $2|A \cap B| / (|A| + |B|)$: 1 if they coincide, 0 if they do not meet.
#
# **Predict before you run:** these brains have about the same position and size. What is the Dice score, averaged over
# the structures?
#
# > *My prediction:*

# %%
from course_utils.metrics import dice


def overlap(one, other):
    """The Dice score of each structure: (structures,)."""
    return dice(one[None], other[None], list(labels))[0]


before = overlap(pair["moving_label"], pair["fixed_label"])
value = next(iter(labels))
a, b = (pair[f"{side}_label"] == value for side in ("moving", "fixed"))
assert abs(2 * (a & b).sum() / (a.sum() + b.sum()) - before[0]) < 1e-5  # by hand
print(f"Dice of {labels[value]}: {before[0]:.2f}; mean of all structures: {before.nanmean():.2f}")
assert 0.35 < before.nanmean() < 0.7

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell prints it: little more than half. A structure of a few millimetres that lies a few millimetres beside its
# counterpart hardly meets it, and the folds of the cortex differ from person to person.
#
# </details>
#
# ## What is the answer to look like?
#
# The answer is a vector $u(x)$ for each point $x$ of the fixed image, the **displacement**: *the point at $x$ in the
# fixed image lies at $x + u(x)$ in the moving image.* For two people nobody knows $u$. But the middle of a structure
# should lie close to the middle of the same structure. So we know roughly what $u$ must be at a few points.

# %%
import torch


def middles(label, values):
    """The mean position of each structure, in voxels: (structures, 2)."""
    return torch.stack([(label[0] == value).nonzero().float().mean(0) for value in values])


def common(item):
    """The structures that both images of a pair show."""
    shown = (set(item[f"{side}_label"].unique().tolist()) for side in ("moving", "fixed"))
    return sorted(set.intersection(*shown) - {0})


values = [value for value in common(pair) if value in inner]
x, there = (middles(pair[f"{side}_label"], values) for side in ("fixed", "moving"))
mm = view["spacing"][0]  # millimetres between voxels
far = mm * (there - x).norm(dim=1)
print(f"middles of {len(values)} structures: {far.mean():.1f} mm apart, at most {far.max():.1f}")

# %%
import numpy as np

points = {"fixed: middles x": pair["fixed"], "moving: from x to x + u": pair["moving"]}
figure = panel(points, **view)
left, right = figure.axes
marker = {"markersize": 6, "markeredgecolor": "white", "linestyle": "none", "color": "#D55E00"}
left.plot(*x.T, "o", **marker)
right.plot(*x.T, "o", fillstyle="none", color="#D55E00", markersize=6)
right.plot(*there.T, "o", **marker)
right.plot(*np.stack([x.T, there.T], axis=1), color="#D55E00")
figure

# %% [markdown]
# On the left are the middles of the inner structures in the fixed brain. On the right, a hollow point is the same place
# $x$ in the moving image, and the filled point is where the structure really is. The lines between them are $u$.
#
# ## Would turning and stretching be enough?
#
# A **rigid** registration turns and shifts (3 numbers in 2-D, 6 in 3-D); an **affine** one also scales and shears
# (6 and 12). A **deformable** one may move every point on its own, and so has two or three numbers *per voxel*.
#
# **Predict before you run:** fit the six numbers of an affine map to the middles of all structures, for each test
# pair. How much of the missing overlap does it bring?
#
# > *My prediction:*

# %%
from course_utils.fields import affine_to_field, warp


def affine(item):
    """The displacement of the affine map that carries middles closest to middles: (1, 2, H, W)."""
    x, there = (middles(item[f"{side}_label"], common(item)) for side in ("fixed", "moving"))
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    matrix = torch.linalg.lstsq(ones, there).solution.T  # (2, 3): six numbers
    return affine_to_field(matrix[None], item["fixed"].shape[1:])


def moved_by(field, label):
    return warp(label[None], field, mode="nearest", padding="zeros")[0]


def mean_overlap(item, field):
    return overlap(moved_by(field, item["moving_label"]), item["fixed_label"]).nanmean()


pairs = [test[n] for n in range(len(test))]
nothing = torch.zeros(1, 2, *pair["fixed"].shape[1:])
start_dice = torch.stack([mean_overlap(item, nothing) for item in pairs]).mean()
affine_dice = torch.stack([mean_overlap(item, affine(item)) for item in pairs]).mean()
print(f"mean Dice of {len(pairs)} pairs: {start_dice:.3f}, after the affine map {affine_dice:.3f}")
assert affine_dice - start_dice < 0.15 * (1 - start_dice)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Little, as the two numbers say, although the map was allowed to see the structures. Six numbers bend nothing: they move
# the whole brain at once, and what differs here differs from place to place. (The people of OASIS have also been
# aligned affinely by those who published them, so an affine map has little left to do.)
#
# </details>
#
# What is left is what this course is about.
#
# ## A network that answers
#
# A **VoxelMorph** looks at both images at once and predicts the displacement of every voxel. It is trained without
# being told any answer: deform the moving image by the prediction, compare the result with the fixed image, and
# change the weights so that the next result is more alike (`ncc`) while the deformation stays smooth. The structures
# take no part in it.
#
# **Predict before you run:** what will the mean Dice be after about a minute of training, for people whom the network
# has never seen?
#
# > *My prediction:*

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

FEATURES = [16] * 5  # channels of five levels, each of half the resolution of the one before
network = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": FEATURES}).build(session.seed)
objective = pair_objective("ncc", smoothness=1.0, coarseness=2)  # compared at half the resolution
config = TrainConfig(steps=400, batch_size=4, learning_rate=3e-3, amp="off")
run = session.runs / "00_start_here"
shutil.rmtree(run, ignore_errors=True)  # a run is never overwritten: remove the one from last time
result = fit(
    network,
    objective,
    PairDataset(loaded, cohort.pairs("train", count=10**6, seed=session.seed)),
    PairDataset(loaded, cohort.distinct_pairs("val", 6)),
    run,
    config,
    card=cohort.info.card(),
    device=session.device,
)
print(f"{sum(p.numel() for p in result.model.parameters()):,} weights, {config.steps} steps")

# %%
from course_utils.plotting import history

first, last = (result.history.loss.iloc[part].mean() for part in (slice(50), slice(-50, None)))
assert last < first
assert result.history.regularisation.iloc[-1] > 100 * result.history.regularisation.iloc[0]
history(result.history[["step", "similarity", "regularisation", "validation_dice"]])

# %% [markdown]
# Similarity is a loss: lower is better. The regularisation is what the deformation costs. It *rises* from almost
# nothing (mind its logarithmic scale), because the network finds that deforming is worth its price. The Dice of people
# outside the training rises too, although no part of the loss contains it.

# %%
model = result.model.cpu().eval()


@torch.no_grad()
def answer(item):
    """The network's displacement for a pair: (1, 2, H, W)."""
    return model(item["moving"][None], item["fixed"][None]).displacement


network_dice = torch.stack([mean_overlap(item, answer(item)) for item in pairs]).mean()
print(f"mean Dice of the test pairs: {start_dice:.3f} before, {affine_dice:.3f} affine,")
print(f"{network_dice:.3f} by the network")
assert network_dice > start_dice + 0.1 and network_dice > affine_dice + 0.05

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell prints it. The network gains more than 0.1 of Dice on people whom it has not seen, and it never saw a
# structure: grey values that match tell where structures match, as long as the deformation has to be smooth.
#
# </details>
#
# ## Before and after
#
# This is the pair from above, which the network has never seen. The registration is one pass through the network. Turn
# the slider: at 0 nothing has moved, at 1 the whole displacement is applied. Dashed lines show where the fixed brain
# has its structures.

# %%
from course_utils.plotting import Slider

displacement = answer(pair)


def at(share):
    """The moving brain on its way: a share of the displacement is applied."""
    field = share * displacement
    return panel(
        {"moving, on its way": warp(pair["moving"][None], field), "fixed": pair["fixed"]},
        labels={"moving, on its way": moved_by(field, pair["moving_label"])},
        references={"moving, on its way": pair["fixed_label"]},
        names=inner,
        fill=True,
        **view,
    )


Slider({f"{n / 8:.3g}": at(n / 8) for n in range(9)}, "share of the displacement", start="1")

# %%
from course_utils.plotting import difference

moved = warp(pair["moving"][None], displacement)
closer = [(pair["fixed"] - image).abs().mean() for image in (pair["moving"], moved[0])]
print(f"mean difference of grey values: {closer[0]:.3f} before, {closer[1]:.3f} after")
assert closer[1] < closer[0]
difference(
    {
        "moving − fixed": (pair["fixed"], pair["moving"]),
        "moved − fixed": (pair["fixed"], moved),
    },
    **view,
)

# %% [markdown]
# What is strongly coloured differs. After the registration the large differences are gone or thin; the folds of the
# cortex are not all matched. A fold that one person has and the other has not cannot be matched by any smooth map.
#
# ## Where does it send a point?
#
# Overlap does not say where a single point goes. For that one needs the truth. In a clinic it is known at a few points
# at best: two experts mark the same landmarks in both scans, and the distance that remains between them is called the
# **target registration error**, TRE (notebook 16). There is a way to know the truth at *every* point: take one person,
# deform the picture by a smooth map $u$ that is drawn at random, and ask the network for this map. Such a **made
# pair** is easier than two people, because both pictures show the same folds.

# %%
from torch.nn import functional as F

generator = torch.Generator().manual_seed(session.seed)
SIZE = 3.0  # mm that a point is displaced, on average


def made(item):
    """The moving person twice; the fixed picture is deformed by a map that we know."""
    label, shape = item["moving_label"], item["moving"].shape[1:]
    knots = torch.randn(1, 2, 6, 7, generator=generator)  # one vector every few centimetres
    truth = F.interpolate(knots, shape, mode="bicubic", align_corners=True)
    truth = SIZE / mm * truth / truth.norm(dim=1).mean()
    fixed = warp(item["moving"][None], truth)[0]
    made_pair = {"moving": item["moving"], "fixed": fixed, "fixed_label": moved_by(truth, label)}
    return made_pair | {"true_displacement": truth[0], "moving_label": label}


trials = [made(item) for item in pairs]
trial = trials[10]
print({key: tuple(value.shape) for key, value in trial.items()})

# %% [markdown]
# **Predict before you run:** the network has never seen such a pair. Of 3 mm, how many will be left?
#
# > *My prediction:*

# %%
from course_utils.metrics import folding_percent, sdlogj, target_registration_error
from course_utils.plotting import deformed_grid


def tre(item, field):
    """Distance to the true point in mm, averaged over the brain."""
    truth, brain = item["true_displacement"][None], item["fixed_label"][None] > 0
    return target_registration_error(field, truth, view["spacing"], brain).mean()


unmoved = torch.stack([tre(item, nothing) for item in trials]).mean()
left_over = torch.stack([tre(item, answer(item)) for item in trials]).mean()
print(f"mean distance to the true point: {unmoved:.1f} mm before, {left_over:.1f} mm after")
assert left_over < 0.75 * unmoved
truth, field = trial["true_displacement"], answer(trial)
assert folding_percent(field).item() == 0
assert sdlogj(field) < 1.5 * sdlogj(truth[None])
deformed_grid({"the truth": truth, "the network's answer": field}, trial["moving"], step=8, **view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Half of it or a little more, as the cell prints. The network has to see an edge to know where a point went. Between the
# edges, inside the white matter for instance, one place looks like the next, and there only the smoothness decides.
#
# </details>
#
# The grids show where the lines of a square grid on the fixed image come to lie in the moving one. Outside the brain
# there is nothing to see, so the network leaves the grid as it is. No lines of its grid cross: the map does not
# *fold*. Why not is the subject of notebook 03.
#
# ## How good is it?
#
# One pair can be luck, and one mean hides much. So here are all test pairs, structure by structure.
#
# **Predict before you run:** which structures will have the lowest Dice after the registration?
#
# > *My prediction:*

# %%
import pandas as pd

from course_utils.evaluation import evaluate

table = evaluate(model, test, labels, view["spacing"])  # one row per pair and structure
table["kind"] = table.structure.str.replace(r"^(left|right)[- ]", "", regex=True, case=False)
by_kind = table.groupby("kind")[["dice_before", "dice_after"]].mean().sort_values("dice_after")
counts = {v: sum((item["fixed_label"] == v).sum().item() for item in pairs) for v in labels}
size = pd.Series({labels[v]: n * mm**2 / len(pairs) for v, n in counts.items()})
kind_of = dict(zip(table.structure, table.kind, strict=True))
by_kind["mm2"] = size.groupby(size.index.map(kind_of)).mean()
rank = by_kind.corr("spearman").loc["mm2", "dice_after"]
by_pair = table.groupby("pair")[["dice_before", "dice_after", "folding_percent"]].mean()
better = (by_pair.dice_after > by_pair.dice_before).mean()

print(f"{better:.0%} of the pairs overlap better than before")
print(f"lowest: {', '.join(by_kind.index[:2])}; rank correlation of size and Dice {rank:.2f}")
assert rank > 0.3 and better > 0.9 and by_pair.folding_percent.mean() < 0.1

# %%
from course_utils.plotting import Figure

okabe_ito = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
kinds = dict.fromkeys(kind_of[name] for name in drawn.values())
known = dict(zip(kinds, okabe_ito, strict=False))
fills = [known.get(kind, "#BBBBBB") for kind in by_kind.index]  # the colours of the figures above

figure = Figure(figsize=(7, 0.6 + 0.3 * len(by_kind)), layout="constrained")
axes = figure.subplots()
axes.hlines(by_kind.index, by_kind.dice_before, by_kind.dice_after, color="#999999", zorder=1)
dots = {"edgecolor": "black", "s": 45, "zorder": 2}
axes.scatter(by_kind.dice_before, by_kind.index, c="white", label="before", **dots)
axes.scatter(by_kind.dice_after, by_kind.index, c=fills, label="after", **dots)
axes.set(xlabel="mean Dice of the test pairs", ylabel="structure", xlim=(0, 1))
axes.legend(frameon=False, loc="upper left")
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell prints them. Thin and small structures are at the bottom: where a structure is two voxels wide, half a voxel
# beside the mark costs a quarter of the overlap. Dice says as much about a structure's shape as about the registration.
#
# </details>
#
# ## Why does a slice get further than a volume?
#
# Notebooks 06 and 07 train for about as long as this page does, on volumes, and gain less. The network is not to blame.
#
# **Predict before you run:** how many times longer does one training step take for a volume of 48 × 64 × 48 voxels than
# for one of these slices?
#
# > *My prediction:*

# %%
import time


def step_seconds(shape):
    """Of one pair: the network's answer, the loss and its gradient. The shortest of three tries."""
    options = {"spatial_dims": len(shape), "features": FEATURES}
    net, times = NetworkSpec("voxelmorph", options).build(session.seed), []
    moving, fixed = torch.rand(2, 1, 1, *shape)
    for _ in range(3):
        began = time.perf_counter()
        objective(net, {"moving": moving, "fixed": fixed}).loss.backward()
        times.append(time.perf_counter() - began)
    return min(times)


flat, solid = step_seconds(pair["fixed"].shape[1:]), step_seconds((48, 64, 48))
print(
    f"steps per minute: {60 / flat:.0f} with one slice each, {60 / solid:.0f} with one volume each"
)
assert solid > 3 * flat

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# At least three times, and usually far more: there are more voxels, and each kernel has 27 weights instead of 9. So a
# minute buys fewer steps.
#
# </details>
#
# A volume is also harder: a point may leave in three directions instead of two, and far more possible places look alike.
# A slice is simpler than reality in one more way. A head does not move within one plane, so a slice of the one person
# may show what the same slice of the other does not. No map in the plane can mend that. The numbers that count are those
# of volumes, in [Results](../docs/results.md).
#
# ## The same in MONAI
#
# The course stands on MONAI, and each page ends with the same thing in MONAI's own words. Here they are the last two
# steps: warp the labels, and measure the overlap. MONAI's `DiceMetric` wants one channel per label, background first.

# %%
import warnings

from monai.metrics import DiceMetric
from monai.networks.blocks import Warp
from monai.networks.utils import one_hot

warnings.filterwarnings("ignore", message=".*native grid_sample")
carry = Warp(mode="nearest", padding_mode="zeros")
moved_label = carry(pair["moving_label"][None].float(), displacement)
channels = max(labels) + 1
metric = DiceMetric(include_background=False, reduction="none")
monai_dice = metric(one_hot(moved_label, channels), one_hot(pair["fixed_label"][None], channels))[0]
ours = overlap(moved_by(displacement, pair["moving_label"]), pair["fixed_label"])

there = torch.tensor([(pair["fixed_label"] == v).any().item() for v in labels])
print(f"mean Dice: MONAI {monai_dice[there].mean():.4f}, ours {ours[there].mean():.4f}")
assert torch.allclose(monai_dice[there], ours[there], atol=1e-4)

# %% [markdown]
# The two agree. They differ on one question only: what is the score of a structure that the fixed image does not show? MONAI
# leaves it out, and the course gives 0 if the registration invents it. `VoxelMorph` is in MONAI too (notebook 04), and so
# are the losses (notebook 05).
#
# ## What is missing
#
# Everything you had to take on trust. The course takes it apart, in this order:
#
# | notebook | question |
# |---|---|
# | 01 Data | What is in a scan, and what must happen to it before a network may see it? |
# | 02 Warping | How is an image deformed, and which mistakes leave no error message? |
# | 03 Velocity fields | How can a deformation be kept from folding? |
# | 04 VoxelMorph | What does the network look like, layer by layer? |
# | 05 Losses | What exactly is "alike", what is "smooth", and what breaks in half precision? |
# | 06 Training | How is it trained fast, watched, stopped and resumed? |
# | 07 NCC against SSD | Which loss is better, and how would one prove that? |
# | 09 to 11 | How does it work on a challenge, on one pair, and on your own scans? |
# | 12 to 21 | What came after VoxelMorph? |
#
# ## How to use the notebooks
#
# - **Run them from top to bottom.** Each stands alone. At *Predict before you run*, write your guess down: double-click
#   the cell. A wrong guess is worth more than a right answer read.
# - **No GPU is needed.** With one, the session picks the profile `full`, larger and longer; `COURSE_PROFILE=quick` or
#   `full` overrides it. In Colab, the badge on top of each page opens it; *Runtime → Change runtime type* gives a GPU.
# - **Data.** A page fetches the real data set that suits it into the data folder (`MONAI_DATA_DIRECTORY`), once.
#   `COURSE_DATASET`, set before the first cell, chooses another one: `synthetic` (the made subjects), `hippocampus`,
#   `oasis2d` or `oasis`. Notebook 01 says what you agree to when you use them.
# - **Break things.** Results go to `runs` in the course's folder (or `COURSE_RUNS`), where the commands of the README
#   look too. Nothing you do in a cell can harm the data.
#
# ## What you now have
#
# - The words: fixed, moving, moved, displacement, Dice, TRE, folding.
# - A trained registration network, in `runs/00_start_here/best.pt`, measured on people it had not seen.
#
# **What can go wrong.** A good-looking picture proves nothing: a free map can make two images alike that show different
# anatomies, as long as the same grey values occur in both. A high Dice only speaks of the structures that were drawn.
# That is why later pages also measure distances, folding and, where it is known, the truth.
#
# **Try it.**
# 1. *(easy)* Register a brain to itself: `model(fixed, fixed)` with `fixed = pair["fixed"][None]`. How large is the
#    displacement, and how large should it be?
# 2. *(middle)* Give the training a tenth of the steps, or `smoothness=0`. Which of the measures notices first?
# 3. *(hard)* Show the network the pair turned by 20 degrees (both images). Is the answer the old one, turned? Where does it fail,
#    and what would have to change in the training?
#
# **References.** Sotiras, Davatzikos and Paragios, *Deformable medical image registration: a survey*, IEEE TMI 32(7),
# 2013, [doi](https://doi.org/10.1109/TMI.2013.2265603). Balakrishnan et al., *VoxelMorph: a learning framework for
# deformable medical image registration*, IEEE TMI 38(8), 2019, [doi](https://doi.org/10.1109/TMI.2019.2897538).
# Rohlfing, *Image similarity and tissue overlaps as surrogates for image registration accuracy: widely used but
# unreliable*, IEEE TMI 31(2), 2012, [doi](https://doi.org/10.1109/TMI.2011.2163944). Marcus et al., *Open Access Series
# of Imaging Studies (OASIS)*, Journal of Cognitive Neuroscience 19(9), 2007,
# [doi](https://doi.org/10.1162/jocn.2007.19.9.1498). Hoopes et al., *HyperMorph*, IPMI 2021 (the slices),
# [doi](https://doi.org/10.1007/978-3-030-78191-0_1). Fonov et al., *Unbiased average age-appropriate atlases for
# pediatric studies*, NeuroImage 54(1), 2011 (the made subjects),
# [doi](https://doi.org/10.1016/j.neuroimage.2010.07.033).
#
# Next: [01 Data](01_data.ipynb): what is in a scan.
