# %% [markdown]
# # 00 Start here
#
# Two people lie in the same scanner, one after the other. *Where is each point of the one brain in the other?* An
# answer to that question is called a **registration**. Without one, nothing can be compared between two scans: not a
# tumour before and after treatment, not a patient with an atlas, not one hundred healthy people with one hundred
# others. On this page you look at two brains, train a small network to answer the question, and measure how far off
# its answers are, in millimetres. The rest of the course explains every line of it.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/00_start_here.ipynb)

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

# %% [markdown]
# ## Two brains
#
# The course brings its own brains. Each is made from one real template by a random smooth deformation, seen by a
# scanner with its own contrast, shading and noise. Because we made the deformations, we know the true answer to the
# question, which for real patients nobody does. It also means that all of these people have one anatomy, bent in many ways: a network
# finds them easier than real people, who have other folds. The figures that count come from real data, on later pages and in
# [Results](../docs/results.md). This page uses flat brains, coronal slices deformed within
# their plane, so that nothing happens behind your back; from the next page on everything is 3-D, or whatever data
# set you chose.

# %%
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.synthetic import make_cohort

make_cohort(session.data_root / "slices" / "synthetic", subjects=60, dimensions=2)
cohort = load_cohort("synthetic", session.data_root / "slices")
loaded = load_subjects(cohort.subjects, cohort.info.recipe)
test = PairDataset(loaded, cohort.pairs("test"), truth=True)  # as many pairs as people
names, spacing = cohort.info.labels, cohort.info.spacing

print(
    f"{len(cohort.splits['train'])} people to train with, {len(cohort.splits['test'])} the network "
    "will never see"
)
print({key: tuple(value.shape) for key, value in test[0].items() if key != "name"})

# %%
from course_utils.plotting import panel

pair = test[0]
panel(
    {"moving": pair["moving"], "fixed": pair["fixed"]},
    labels={"moving": pair["moving_label"], "fixed": pair["fixed_label"]},
    names=names,
    spacing=spacing,
)

# %% [markdown]
# One is called **moving**, because it will be deformed; the other **fixed**, because everything is drawn on its grid.
# The outlined structures are the same in both, but not their shapes, and the grey values differ too.
#
# Now the question, at six points of the fixed brain. The true answer is a vector $u(x)$ for each point $x$, the
# **displacement**: *the point at $x$ in the fixed image lies at $x + u(x)$ in the moving image.*

# %%
import matplotlib.pyplot as plt
import torch

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
INNER = {
    value: name for value, name in names.items() if "cortical" not in name and "CSF" not in name
}
truth, label = pair["true_displacement"], pair["fixed_label"][0]  # (2, H, W) voxels, (H, W)
points = []
for value in INNER:  # of each structure, the voxel nearest to its centre
    inside = (label == value).nonzero()
    centre = inside.float().mean(0)
    points.append(inside[(inside - centre).norm(dim=1).argmin()])
there = [point + truth[:, point[0], point[1]] for point in points]  # x + u(x)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
for ax, name in zip(axes, ("fixed", "moving"), strict=True):
    ax.imshow(pair[name][0].T, cmap="gray", origin="lower")
    ax.set(title=name, xlabel="array axis 0, voxels", ylabel="array axis 1, voxels", ylim=(25, 75))
for colour, here, answer in zip(COLOURS, points, there, strict=True):
    axes[0].plot(*here, "o", color=colour, markeredgecolor="white", markersize=8)
    axes[1].plot(*here, "o", color=colour, fillstyle="none", markeredgewidth=1.5, markersize=8)
    axes[1].plot(*torch.stack([here, answer]).T, color=colour)
    axes[1].plot(*answer, "o", color=colour, markeredgecolor="white", markersize=8)
axes[0].set_title("fixed: six points x")
axes[1].set_title("moving: x (hollow) and x + u(x) (filled)")
plt.show()

# %% [markdown]
# ## Would turning and stretching be enough?
#
# A **rigid** registration turns and shifts (3 numbers in 2-D, 6 in 3-D); an **affine** one also scales and shears
# (6 and 12). A **deformable** one may move every point on its own, and so has two or three numbers *per voxel*.
#
# **Predict before you run:** fit the best affine map there can be to the true displacement. How much of the
# distance between these two brains does it explain?

# %%
brain = pair["fixed_label"][0] > 0
x = brain.nonzero().float()  # (voxels, 2)
u = truth[:, brain].T  # (voxels, 2)
ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
affine = torch.linalg.lstsq(ones, u).solution  # (3, 2): six numbers
mm = spacing[0]
without, left = (mm * error.norm(dim=1).mean().item() for error in (u, u - ones @ affine))
print(
    f"mean distance to the true point: {without:.1f} mm doing nothing, {left:.1f} mm after the "
    "best affine map"
)
assert left > 0.5 * without

# %% [markdown]
# Less than half of it. What is left is the part that differs from place to place, and that is what the course is
# about.
#
# ## A network that answers
#
# A **VoxelMorph** looks at both images at once and predicts the displacement of every voxel. It is trained without
# being told any answer: deform the moving image by the prediction, compare the result with the fixed image, and
# change the weights so that the next result is more alike (`ncc`) while the deformation stays smooth. Neither the true
# displacement nor the outlines take part.
#
# **Predict before you run:** the outlines of a structure in the two images overlap by little more than half (that is
# the Dice score, 1 if they coincide). What will it be after a minute of training, for people the network never saw?

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

# %%
features = (
    16,
    16,
    16,
    16,
    16,
)  # channels: half as many as usual, but five levels, which see further
network = NetworkSpec("voxelmorph", {"spatial_dims": 2, "features": features}).build(session.seed)
objective = pair_objective("ncc", smoothness=1.0)
config = TrainConfig(steps=800, batch_size=8, learning_rate=3e-3, amp="off")
run = session.runs / "00_start_here"
shutil.rmtree(run, ignore_errors=True)  # a run is never overwritten: remove the one from last time
result = fit(
    network,
    objective,
    PairDataset(
        loaded, cohort.pairs("train", count=config.steps * config.batch_size, seed=session.seed)
    ),
    PairDataset(loaded, cohort.pairs("val")),
    run,
    config,
    card=cohort.info.card(),
    device=session.device,
)
print(f"{sum(p.numel() for p in result.model.parameters()):,} weights, {config.steps} steps")

# %%
from course_utils.plotting import history

first, last = (result.history.loss.iloc[part].mean() for part in (slice(50), slice(-50, None)))
assert last < 0.95 * first
assert result.history.regularisation.iloc[-1] > 100 * result.history.regularisation.iloc[0]
history(result.history[["step", "similarity", "regularisation", "validation_dice"]])

# %% [markdown]
# Similarity is a loss: lower is better. The regularisation (mind its logarithmic scale) *rises* from almost zero, which is
# what it costs to leave the image as it is: deforming has a price, and the network has found that it is worth paying. The Dice of
# people outside the training rises too, although no part of the loss contains it.
#
# ## Before and after
#
# A pair of people the network has never seen. The registration is one pass through it.

# %%
import time

from course_utils.plotting import checkerboard

moving, fixed = (
    pair[name][None].to(session.device) for name in ("moving", "fixed")
)  # (1, 1, H, W)
began = time.perf_counter()
with torch.inference_mode():
    registration = result.model.eval()(moving, fixed)
seconds = time.perf_counter() - began
moved, displacement = (
    registration.moved.cpu(),
    registration.displacement.cpu(),
)  # (1, 1, H, W), (1, 2, H, W)
print("faster than a blink" if seconds < 0.3 else f"{seconds:.1f} s")
checkerboard(
    {
        "before: fixed and moving": (fixed.cpu(), moving.cpu()),
        "after: fixed and moved": (fixed.cpu(), moved),
    },
    tiles=6,
    spacing=spacing,
)

# %% [markdown]
# Tiles come from the two images in turn, the second tinted. Follow an edge from tile to tile: before, it jumps; after,
# most edges run on. The outlines tell the same story. Dashed is where the fixed brain has its structures.

# %%
from course_utils.fields import warp

moved_label = warp(
    pair["moving_label"][None], displacement, mode="nearest", padding="zeros"
)  # (1, 1, H, W)
panel(
    {"before": moving.cpu(), "after": moved},
    labels={"before": pair["moving_label"], "after": moved_label},
    references={"before": pair["fixed_label"], "after": pair["fixed_label"]},
    names=INNER,
    spacing=spacing,
)

# %% [markdown]
# Not everything meets. A structure that lay far off is easily missed: an edge near by looks like a match, and to get
# further the images would first have to become less alike.
#
# And this is the answer itself: where the lines of a square grid on the fixed image come to lie in the moving one,
# as the network says, and as it truly is.

# %%
from course_utils.metrics import folding_percent, sdlogj
from course_utils.plotting import deformed_grid

assert folding_percent(displacement).item() < 0.5
assert sdlogj(displacement) < sdlogj(truth[None])  # how unevenly the map shrinks and grows
deformed_grid(
    {"the network's answer": displacement, "the truth": truth},
    pair["moving"],
    step=3,
    spacing=spacing,
)

# %% [markdown]
# The network's answer is calmer than the truth. An image only tells where edges are: inside the white matter one
# place looks like the next, so smoothness decides, and outside the brain there is nothing to see at all. No lines
# cross: the map does not *fold*. Why not is the subject of notebook 03.
#
# ## How good is it?
#
# One pair can be luck. So: all test pairs, and two measures. **Dice** says how much the structures overlap.
# **TRE** (target registration error) is the distance between where the network sends a point and where it belongs,
# averaged over the brain. Dice can be had for any labelled data. This TRE needs the
# true map, which we have because we made it. In a clinic the truth is known at a few points at best: two experts mark the
# same landmarks in both scans, and the TRE is the distance that is left between them (notebook 16).

# %%
from course_utils.evaluation import evaluate, summarise

table = evaluate(
    result.model, test, names, spacing, device=session.device
)  # a row a pair and structure
measures = ["dice_before", "dice_after", "tre_mm_before", "tre_mm_after", "folding_percent"]
overall = summarise(table).loc["overall", measures].unstack().round(2)
by_pair = table.groupby("pair")[measures].mean()
better = (by_pair.dice_after > by_pair.dice_before).mean()

assert better > 0.9
assert by_pair.dice_after.mean() > by_pair.dice_before.mean() + 0.1
assert by_pair.tre_mm_after.mean() < 0.7 * by_pair.tre_mm_before.mean()
assert 0.45 < by_pair.dice_before.mean() < 0.7
assert by_pair.folding_percent.mean() < 0.1
print(f"{better:.0%} of the pairs overlap better than before")
overall

# %%
from course_utils.plotting import boxes

worst = table.groupby("structure").dice_after.mean().nsmallest(2).index
assert set(worst) == {"left CSF", "right CSF"}
boxes({"before": table, "VoxelMorph": table}, "dice", label="Dice")

# %% [markdown]
# Brains have been matched in one pass each, by a network that was trained in about a minute without a single label.
# The sheets of CSF between the gyri stay the worst: they are about two voxels thick, and half a voxel beside the mark
# then costs a quarter of the overlap. Dice says as much about a structure's shape as about the registration.
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
#
# ## How to use the notebooks
#
# - **Run them from top to bottom.** Each stands alone. At *Predict before you run*, do: a wrong guess is worth more
#   than a right answer read.
# - **No GPU is needed.** With one, the session picks the profile `full`, larger and longer; `COURSE_PROFILE=quick` or
#   `full` overrides it. In Colab, the badge on top of each page opens it; *Runtime → Change runtime type* gives a GPU.
# - **Real brains.** Set `COURSE_DATASET` before the first cell to `hippocampus` (real MR, 27 MB, downloaded by
#   itself), `oasis2d` or `oasis` (notebook 01 says how to get them); `MONAI_DATA_DIRECTORY` is where they lie. The
#   pages are written for any of them; the numbers in them are of the built-in cohort.
# - **Break things.** Results go to `runs` in the course's folder (or `COURSE_RUNS`), where the commands of the README look too;
#   nothing you do in a cell can harm the data.
#
# ## What you now have
#
# - The words: fixed, moving, moved, displacement, Dice, TRE, folding.
# - A trained registration network, in `runs/00_start_here/best.pt`, measured on people it had not seen.
#
# **What can go wrong.** A good-looking checkerboard proves nothing: a free map can make two images alike that show different
# anatomies, as long as the same grey values occur in both, and a high Dice only speaks of what was outlined. That is why later pages also measure
# distances, folding and, where it is known, the truth.
#
# **Try it.**
# 1. Give the training a tenth of the steps, or `smoothness=0`. Which of the measures notices first?
# 2. Register a brain to itself: `result.model(fixed, fixed)`. How large is the displacement, and how large should it be?
#
# **References.** Sotiras, Davatzikos and Paragios, *Deformable medical image registration: a survey*, IEEE TMI 32(7),
# 2013. Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical image registration*, IEEE TMI
# 38(8), 2019. Rohlfing, *Image similarity and tissue overlaps as surrogates for image registration accuracy: widely
# used but unreliable*, IEEE TMI 31(2), 2012.
#
# Next: [01 Data](01_data.ipynb): what is in a scan.
