# %% [markdown]
# # 10 One pair at its best
#
# A network answers in a tenth of a second with what it learnt from other pairs. But what if *this* pair matters, and a few
# seconds are there to be spent? You build what a good registration pipeline has besides the network: an affine alignment, a
# coarse-to-fine pyramid, and an optimisation that goes on where the network stops. Each has to show its gain. At the end they
# meet two classical methods, SimpleITK's demons and ANTs' SyN, on the same pairs: overlap, distance, folding, seconds.
#
# Afterwards you can say what each part of a pipeline adds, keep an optimisation from losing what a network knew, and tell when a
# pair needs an alignment first. You need notebooks 03 (velocity fields) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 20 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/10_one_pair.ipynb)

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
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects

quick = session.profile == "quick"
cohort = load_cohort(session.dataset)
subjects = load_subjects(
    cohort.subjects,
    cohort.info.recipe,
    session.data_root / "cache" / "oasis" if session.dataset == "oasis" else "memory",
)
cohort = cohort.without(subjects.failed)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)

known = session.dataset == "synthetic"  # the cohort whose true deformations are known
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.pairs("val", count=2))
test_pairs = PairDataset(subjects, cohort.pairs("test", count=3 if quick else 50), truth=known)
pair = test_pairs[0]
moving, fixed = (
    pair["moving"][None].to(session.device),
    pair["fixed"][None].to(session.device),
)  # (1, 1, D, H, W)
print(
    f"{len(test_pairs)} pairs of {tuple(moving.shape[2:])} voxels; the one we look at: "
    f"{pair['name']}"
)
assert moving.ndim == 5, "this page is about volumes: choose a 3-D data set"

# %% [markdown]
# A network to start from. For the hippocampus one ships with the course (`python -m course_utils models`); for other data a small
# one is trained here for a minute, and a better one would move every line below that begins with it.

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

if session.dataset == "hippocampus":
    network = Checkpoint.load("hippocampus").model().to(session.device)
else:
    out = session.runs / "one_pair"
    shutil.rmtree(out, ignore_errors=True)
    network = fit(
        NetworkSpec("pyramid", {"spatial_dims": 3, "antisymmetric": True}).build(session.seed),
        pair_objective("ncc", coarseness=2),
        train_pairs,
        val_pairs,
        out,
        TrainConfig(steps=100 if quick else 10000, validations=2 if quick else 10),
        card=cohort.info.card(),
        device=session.device,
    ).model.eval()

# %% [markdown]
# ## Descend on one pair
#
# Training changed the weights so that the loss falls on many pairs. We may also change *the velocity itself*, so that the loss
# falls on one pair: then nothing is learnt, and we only descend. The loop is that of notebook 06, with the field in the
# place of the weights. **Predict:** from zero, how many steps until it beats the network's loss on its own pair?

# %%
import torch

from course_utils.fields import integrate, resize, warp
from course_utils.losses import diffusion_loss, ncc_loss


def descend(start, steps, factor=1, rate=0.4, smoothness=1.0, moving=moving):
    """Adam on a velocity (1, 3, d, h, w), on images made smaller by a factor; the losses on the
    way."""
    shape = [n // factor for n in moving.shape[2:]]
    small = [
        torch.nn.functional.interpolate(image, size=shape, mode="area") for image in (moving, fixed)
    ]
    velocity = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([velocity], rate, betas=(0.9, 0.99), eps=0.1)
    curve = []
    for _ in range(steps):
        moved = warp(small[0], resize(integrate(velocity), shape))
        loss = ncc_loss(moved, small[1]) + smoothness * diffusion_loss(velocity)
        optimizer.zero_grad()
        (
            loss * velocity[0, 0].numel()
        ).backward()  # of the order of one for every voxel of the velocity
        optimizer.step()
        curve.append(loss.item())
    return velocity.detach(), curve


# %%
quarter = [
    n // 4 for n in moving.shape[2:]
]  # the velocity is smooth: a quarter of the resolution is enough
still = torch.zeros(1, 3, *quarter, device=session.device)
with torch.no_grad():
    begun = resize(network(moving, fixed).velocity, quarter)  # (1, 3, 12, 16, 12)
_, from_zero = descend(still, 50)
_, careless = descend(begun, 50)
_, from_network = descend(begun, 50, rate=0.1)

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
axes.plot(from_zero, color="#D55E00", label="from zero")
axes.plot(careless, color="#0072B2", linestyle=":", label="from the network's velocity, as fast")
axes.plot(from_network, color="#0072B2", label="from the network's velocity, a quarter as fast")
axes.set(xlabel="step on this pair", ylabel="NCC loss + smoothness")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
assert from_network[0] < from_zero[0] and from_network[-1] < from_network[0]
assert (
    max(careless) > careless[0] + 0.02 > max(from_network) + 0.01
)  # what the fast steps throw away
reached = next((step for step, loss in enumerate(from_zero) if loss < from_network[0]), None)
print(f"from zero, the loss passes the network's answer after {reached} steps")
figure

# %% [markdown]
# Three lessons. The network is a head start, and only that: the printed line says how many steps from zero it is worth. It does not end at
# the minimum: the difference has a name, the *amortisation gap*, and closing it is called **instance optimisation**. And a good
# start wants small steps: Adam's first ones are as long as its rate, whatever the gradient, and at the full rate they throw the lead away.
#
# ## Coarse to fine
#
# A gradient sees as far as the image is smooth. Move an image by more than the width of its structures, and the descent
# catches on the neighbouring one. On a small, blurred copy the same structures are wide. So: the first steps on the smallest
# copy, the rest on finer ones, each starting from the velocity before. To see it, move the moving image 5 voxels away, and give
# both ways the same 60 steps. **Predict** which ends lower, and which is faster.

# %%
import time

far = warp(
    moving,
    torch.full((1, 3, *moving.shape[2:]), 5 / 3**0.5, device=session.device),
    padding="zeros",
)


def timed(function):
    begun = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begun


def pyramid():
    velocity = still
    for factor in (4, 2, 1):
        velocity, _ = descend(velocity, 20, factor, moving=far)
    return velocity


# %%
(fine, _), seconds_fine = timed(lambda: descend(still, 60, moving=far))
coarse_to_fine, seconds_pyramid = timed(pyramid)


def ncc_of(velocity):
    """Local correlation at full resolution, where both are compared: 1 is best."""
    return 1 - ncc_loss(warp(far, resize(integrate(velocity), far.shape[2:])), fixed).item()


print(f"before {ncc_of(still):.3f}")
print(
    f"finest level only {ncc_of(fine):.3f} in {seconds_fine:.1f} s, pyramid "
    f"{ncc_of(coarse_to_fine):.3f} in {seconds_pyramid:.1f} s"
)
assert ncc_of(coarse_to_fine) > ncc_of(fine) - 0.01 and ncc_of(fine) > ncc_of(still)

# %% [markdown]
# A level of half the size costs an eighth, so the pyramid has most of its steps for almost nothing, and ends as high. The tested
# version is `course_utils.scans.optimise.optimise`. It adds a schedule for the steps and compares the images' edges too. Where it
# begins from a network's velocity it takes half the rate, leaves out the coarsest level, which knows less than the network, and
# changes the velocity on a grid of a third of the images', so that what the network drew finer than that stays. It gives back the best
# that it has met: by its own loss it is never worse than its start. By *your* measure it may be, and the last section says when.
#
# ## Affine first
#
# The brains of this cohort lie on each other already. Yours will not: another scanner, another head position. Turn and shift
# the moving image by a known map. **Predict:** does the network cope? Does the optimisation?

# %%
import numpy as np

from course_utils.data.grids import Grid
from course_utils.fields import affine_to_field
from course_utils.scans import affine

angle = np.deg2rad(14)
pose = np.eye(4)  # millimetres to millimetres, about the grid's first voxel
pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
pose[:3, 3] = np.array(moving.shape[2:]) * spacing / 2 - pose[:3, :3] @ (
    np.array(moving.shape[2:]) * spacing / 2
)
pose[:3, 3] += np.array([3, -4, 2]) * spacing

grid = Grid(tuple(moving.shape[2:]), np.diag([*spacing, 1.0]))


def as_field(millimetres):
    """The displacement in voxels of an affine map of millimetres: (1, 3, D, H, W)."""
    voxels = np.linalg.inv(grid.affine) @ millimetres @ grid.affine
    return affine_to_field(
        torch.tensor(voxels[None, :3], dtype=torch.float32, device=session.device), grid.shape
    )


posed = warp(moving, as_field(pose), padding="zeros")
posed_label = warp(
    pair["moving_label"][None].to(session.device), as_field(pose), mode="nearest", padding="zeros"
)

# %% [markdown]
# `affine.align` finds twelve numbers: three of translation, three of rotation, six of stretch and shear. It begins at three
# places (as it lies; centres of the volumes; centres of mass), improves each on a coarse copy as a rigid map, and lets the best
# go on. It compares with one correlation for the whole image, or with mutual information where contrasts differ.

# %%
from course_utils.metrics import dice
from course_utils.scans.optimise import optimise

found, seconds = timed(lambda: affine.align(posed, fixed, grid, grid))
print(f"{seconds:.1f} s; fixed mm to moving mm:\n{found.round(3)}")

first = as_field(found)
aligned = warp(posed, first, padding="zeros")
fixed_label = pair["fixed_label"][None].to(session.device)


def mean_dice(displacement):
    moved = warp(posed_label, displacement, mode="nearest", padding="zeros")
    return dice(moved, fixed_label, list(labels)).nanmean().item()


# %% [markdown]
# Two maps in a row are one map: `compose` gives the single field, so the image is interpolated once.

# %%
from course_utils.fields import compose

with torch.no_grad():
    fields = {
        "as it lies": torch.zeros_like(first),
        "network": network(posed, fixed).displacement,
        "optimised": optimise(posed, fixed).displacement,
        "affine": first,
        "affine, network": compose(first, network(aligned, fixed).displacement),
        "affine, optimised": compose(first, optimise(aligned, fixed).displacement),
    }
gain = {name: mean_dice(field) for name, field in fields.items()}
for name, value in gain.items():
    print(f"{name:<18} Dice {value:.3f}")
assert gain["affine"] > gain["as it lies"] + 0.1
assert (
    gain["affine, network"] > gain["network"] and gain["affine, optimised"] > gain["affine"] + 0.05
)
assert gain["affine, optimised"] > gain["optimised"] - 0.01

# %%
from course_utils.plotting import panel

pictures = {"moving": posed, "fixed": fixed} | {
    name: warp(posed, fields[name], padding="zeros") for name in list(fields)[1:]
}
panel({name: image[0, 0] for name, image in pictures.items()}, axis=2, spacing=spacing, columns=4)

# %% [markdown]
# A network sees what it was trained on: pairs that were aligned. A pose outside of that is not its business, and it is not a
# matter of its size. Twelve parameters are cheap and make the rest possible. `register` asks the scans' moments whether it needs them
# (how much of the field of view they share, where their centres of mass are, how their long axes lie) and says so:
#
# %%
from course_utils.scans.affine import apart

for name, image in (("as the cohort has it", moving), ("posed", posed)):
    print(f"{name}: {apart(image, fixed, grid, grid) or 'nothing says that they need it'}")
assert apart(posed, fixed, grid, grid) and not (known and apart(moving, fixed, grid, grid))

# %% [markdown]
# ## The peers
#
# Two classical methods that are used every day. **Demons** (SimpleITK) push every voxel along the gradient of the difference,
# then smooth. **SyN** (ANTs) follows the gradient of the local correlation from both ends at once. They are optional: `make lab`
# installs SimpleITK alone, `pip install antspyx` adds the other, and where a package is missing, its rows are missing. What they
# answer must become *our* displacement: ITK counts axes in the order x, y, z, the reverse of an array's.

# %%
from types import SimpleNamespace


def demons(moving, fixed):
    """SimpleITK's diffeomorphic demons, three levels, intensities matched first."""
    import SimpleITK as sitk

    images = [sitk.GetImageFromArray(image[0, 0].cpu().numpy()) for image in (fixed, moving)]
    images[1] = sitk.HistogramMatching(images[1], images[0], 256, 7)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetStandardDeviations(1.2)
    method.SetNumberOfIterations(40)
    size = images[0].GetSize()
    field = sitk.Image(size, sitk.sitkVectorFloat64)
    for factor in (4, 2, 1):
        level = [sitk.BinShrink(image, [factor] * 3) for image in images]
        field = sitk.Resample(field, level[0])
        field.CopyInformation(level[0])
        field = method.Execute(*level, field)
    field = sitk.GetArrayFromImage(sitk.Resample(field, images[0]))[
        ..., ::-1
    ]  # (D, H, W, 3), array axes
    return SimpleNamespace(displacement=torch.from_numpy(field.copy()).float().movedim(-1, 0)[None])


# %%
import tempfile

import nibabel as nib


def syn(moving, fixed):
    """ANTs' SyN with local correlation, three levels; affine and deformation composed to one
    field."""
    import ants

    images = [ants.from_numpy(image[0, 0].cpu().numpy()) for image in (fixed, moving)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "syn_metric": "CC",
            "syn_sampling": 2,
            "reg_iterations": (40, 20, 10),
            "random_seed": 1,
        }
        maps = ants.registration(*images, "SyN", outprefix=f"{folder}/", **settings)[
            "fwdtransforms"
        ]
        composed = ants.apply_transforms(*images, maps, compose=f"{folder}/")
        vectors = nib.load(composed).get_fdata()[
            :, :, :, 0
        ]  # (D, H, W, 3) mm; voxels here have 1 mm
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])


# %%
methods_of = {"SimpleITK": ("demons (SimpleITK)", demons), "ants": ("SyN (ANTs)", syn)}
peers = dict(methods_of[package] for package in methods_of if importlib.util.find_spec(package))
print("peers:", ", ".join(peers) or "none")
for package, (name, _) in methods_of.items():
    if name not in peers:
        print(
            f"{name} is not installed, so its rows are missing: pip install "
            f"{package.replace('ants', 'antspyx')}"
        )

# %% [markdown]
# Is the bridge right? Ask each peer for a known translation of two voxels along the first axis, and look at the sign and the axis.

# %%
ramp = warp(
    moving,
    torch.tensor([2.0, 0, 0], device=session.device).view(1, 3, 1, 1, 1).expand(1, 3, *grid.shape),
)
for name, method in peers.items():
    field = method(moving, ramp).displacement[0]
    inside = pair["moving_label"][0] > 0
    mean = [round(component[inside].mean().item(), 2) for component in field]
    print(f"{name}: {mean} voxels, truth [2, 0, 0]")
    assert abs(mean[0] - 2) < 0.5 and max(map(abs, mean[1:])) < 0.3, name

# %% [markdown]
# ## All of them, on the same pairs
#
# One function call per method. **Predict** the order by Dice, then by seconds.

# %%
from course_utils.evaluation import evaluate
from course_utils.networks import Registration


def affine_only(moving, fixed):
    with torch.inference_mode(False):
        displacement = as_field(affine.align(moving.clone(), fixed.clone(), grid, grid))
    return Registration(moving, displacement)


methods = {
    "affine": affine_only,
    "optimised, one level": lambda m, f: optimise(m, f, levels=[(1, 1.0)]),
    "optimised, pyramid": lambda m, f: optimise(m, f),
    "network": network,
    "network, optimised": lambda m, f: optimise(m, f, start=network(m, f).velocity),
    **peers,
}
tables = {
    name: evaluate(method, test_pairs, labels, spacing, device=session.device)
    for name, method in methods.items()
}

# %%
import pandas as pd

from course_utils.evaluation import summarise

measures = [
    "dice_after",
    "hd95_mm_after",
    *(["tre_mm_after"] if known else []),
    "folding_percent",
    "sdlogj",
    "seconds",
]
overview = pd.DataFrame(
    {
        name: summarise(table).loc["overall"].xs("mean", level=1)[measures]
        for name, table in tables.items()
    }
).T
before = summarise(tables["affine"]).loc["overall"].xs("mean", level=1)
overview.loc["before"] = [
    before.get(measure.replace("after", "before"), 0) if "after" in measure else 0
    for measure in measures
]
overview = overview.sort_values("dice_after")
overview.round(3)

# %%
score = overview.dice_after
assert score["optimised, pyramid"] > score["before"] + 0.1 and score["network"] > score["before"]
assert score["network, optimised"] > score["network"] + 0.02
assert abs(score["optimised, one level"] - score["optimised, pyramid"]) < 0.03
assert score["network, optimised"] > score["affine"] + 0.05
assert overview.loc["network, optimised", "folding_percent"] < 0.1

figure = Figure(figsize=(8, 3.2), layout="constrained")
panels = figure.subplots(1, 2, sharey=True)
ranked = overview.drop("before")
colours = ["#D55E00" if name in peers else "#0072B2" for name in ranked.index]
for axes, measure, name in zip(
    panels, ["dice_after", "seconds"], ["mean Dice", "seconds a pair"], strict=True
):
    axes.scatter(ranked[measure], range(len(ranked)), c=colours)
    axes.set_xlabel(f"{name}, {len(test_pairs)} pairs")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_yticks(range(len(ranked)), ranked.index)
panels[0].axvline(score["before"], color="#777777", linestyle="--", linewidth=1)
panels[0].annotate(
    "before",
    (score["before"], len(ranked) - 1),
    (4, 0),
    textcoords="offset points",
    color="#777777",
)
panels[1].set_xscale("log")
figure

# %% [markdown]
# Left, to the right is better; right, to the left is faster. The network alone takes a blink, and the descent carries it most of
# the way. All steps on the finest level end within 0.03 of the pyramid, and cost more seconds. Orange are the peers. They run
# with their usual settings, on this machine, and ours were tuned for the course's data: do not read a verdict on a method from a few
# pairs. [Results](../docs/results.md) has fifty pairs of real hippocampi and three more peers, ConvexAdam, greedy and DIPY's SyN,
# by `python -m tests.benchmarks refine --model hippocampus`. Structure by structure:

# %%
from course_utils.plotting import boxes

shown = ["network", "optimised, pyramid", "network, optimised", *peers]
boxes({"before": tables["network"], **{name: tables[name] for name in shown}}, "dice")

# %% [markdown]
# And the fields themselves, where all the price is paid: how much each voxel grew or shrank.

# %%
from course_utils.fields import jacobian_determinant
from course_utils.plotting import jacobian

with torch.no_grad():
    maps = {
        name: methods[name](moving, fixed).displacement
        for name in ("network", "network, optimised", *peers)
    }
jacobian(
    {name: jacobian_determinant(field.float())[0, 0].cpu() for name, field in maps.items()},
    axis=2,
    spacing=spacing,
)

# %% [markdown]
# ## What you now have
#
# - **Instance optimisation**: the answer of a network that was trained on images is a start, not an end. `register` goes on from it
#   with 50 steps. The answer of one that was trained with *labels* is an end: it knows where structures are, and the descent sees
#   intensities only, so it would lower its loss and the overlap with it. There `register` adds nothing unless `--iterations` asks.
# - **Coarse to fine**: nearly the same answer in a fraction of the time.
# - **Affine first**, where the scans do not lie on each other: `register` notices, `--affine` and `--no-affine` decide. A network
#   knows only the poses that it has met.
# - A fair table with classical peers, through a bridge that you have tested with a known translation.
#
# **What can go wrong.** A field whose axes are reversed gives a plausible picture and a wrong Dice: test the bridge. Too many
# steps with too little smoothness drive the similarity up and the anatomy away: watch SDlogJ. Timing methods on a busy machine.
# Two interpolations where one would do.
#
# **Try it.**
# 1. Give the optimisation 20 steps and 500. From where on does Dice no longer follow the NCC?
# 2. Set `smoothness=0.1`. What do NCC, Dice and folding say?
# 3. Posed by 40 degrees: does the affine alignment still find home? What would a fourth start have to be?
# 4. Let the network train longer. How much of its lead survives the optimisation?
#
# **References.** Balakrishnan et al., *VoxelMorph*, IEEE TMI 38(8), 2019, section V-E. Vercauteren et al., *Diffeomorphic
# demons*, NeuroImage 45(1), 2009. Avants et al., *Symmetric diffeomorphic image registration with cross-correlation*, Medical
# Image Analysis 12(1), 2008. Jenkinson and Smith, *A global optimisation method for robust affine registration of brain images*,
# Medical Image Analysis 5(2), 2001. Siebert et al., *Fast 3D registration with accurate optimisation and little learning for
# Learn2Reg 2021*, MICCAI 2021.
#
# Next: [11 Your own scans](11_your_own_scans.ipynb), from DICOM to a registered pair.
