# %% [markdown]
# # 09 Learn2Reg
#
# Learn2Reg is a challenge in which registration methods meet on common data, with official pairs and one evaluation (Hering et al.,
# 2023). Its task with the smallest images, the hippocampus, can be trained on a laptop. On this page you put data into the challenge's
# layout, train on all pairs without and with labels, write a submission, and measure it as the organisers do.
#
# Then you meet a failure that a first network of one's own can run into: **the loss climbs epoch by epoch, the moved image goes
# dark, and in the end the Dice is far below that of doing nothing.** You provoke such failures in three ways, tell the causes apart by the
# curves alone, and cure each of them by one word.
#
# Afterwards you can prepare and check a submission, say what labels add to a training and what they cost, and find the cause of a
# training that goes wrong. You need notebooks 02 (warping), 04 (the network) and 07 (evaluation).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 10 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/09_learn2reg.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/09_learn2reg.ipynb)

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

session = start(real="hippocampus")
print(session)

# %% [markdown]
# ## A challenge's folder
#
# A Learn2Reg archive holds images, labels and one JSON file. The file says who is there to train with and which pairs are judged:
#
#     HippocampusMR/
#       imagesTr/HippocampusMR_0001_0000.nii.gz       case 1, channel 0
#       labelsTr/HippocampusMR_0001_0000.nii.gz
#       HippocampusMR_dataset.json                    "training", "registration_val": [{"fixed", "moving"}, ...]
#
# We write such a folder from this session's data set. With the hippocampi of the Medical Segmentation Decathlon, which the challenge's
# task was made of, these are real patients. In the quick profile each of them is padded to the smallest grid that fits all, so that the page takes a few
# minutes; the challenge's own files have 64×64×64 voxels. With slices, real or made, the same code runs in 2-D.

# %%
import json

import nibabel
import numpy as np

from course_utils.data.cohorts import load_cohort, load_slices

flat = session.profile == "quick" and session.dataset in ("synthetic", "oasis2d")
if flat:
    source = load_slices(session.dataset, session.data_root)
else:
    source = load_cohort(session.dataset, session.data_root)
grid = source.info.shape
if session.dataset == "hippocampus" and session.profile == "full":
    grid = (64, 64, 64)
TOTAL, JUDGED = (60, 12) if session.profile == "quick" else (200, 50)
real_units = session.dataset == "hippocampus"
SCANNER = (1, 1) if real_units else (1, 100)  # the unit of every second file

# %% [markdown]
# MR scanners agree on no unit of intensity. The files of the hippocampus data set differ already. The files of the other
# data sets were brought to one unit before anybody downloaded them, so the cell below stores every second of them in another unit, a
# hundred times larger.


# %%
def padded(path, factor=1):
    """A file's voxels on the grid, centred."""
    array = np.asarray(nibabel.load(path).dataobj).squeeze()
    if factor != 1:
        array = array.astype(np.float32) * factor  # an int16 would overflow without a word
    lacking = [n - size for n, size in zip(grid, array.shape, strict=True)]
    return np.pad(array, [(n // 2, n - n // 2) for n in lacking])


def write_images(folder, name, subjects):
    """Images and label maps in the layout of the challenge; returns the images' names."""
    affine = np.diag([*source.info.spacing, *[1.0] * (4 - len(grid))])
    cases = [f"./imagesTr/{name}_{one:04d}_0000.nii.gz" for one in range(1, len(subjects) + 1)]
    for number, (case, subject) in enumerate(zip(cases, subjects, strict=True)):
        image, label = folder / case, folder / case.replace("images", "labels")
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        values = padded(subject.image, SCANNER[number % 2])
        nibabel.save(nibabel.Nifti1Image(values, affine), image)
        nibabel.save(nibabel.Nifti1Image(padded(subject.label), affine), label)
    return cases


# %%
def write_task(folder, name, subjects, judged):
    """A whole task; the last cases are judged, each with its mirror image in the list."""
    cases = write_images(folder, name, subjects)
    last = cases[-judged:]
    content = {
        "name": name,
        "tensorImageShape": {"0": list(grid)},
        "labels": {"0": {str(value): what for value, what in source.info.labels.items()}},
        "training": [{"image": case, "label": case.replace("images", "labels")} for case in cases],
        "registration_val": [
            {"fixed": f, "moving": m} for f, m in zip(last, reversed(last), strict=True)
        ],
    }
    (folder / f"{name}_dataset.json").write_text(json.dumps(content, indent=2))


if session.dataset == "learn2reg":
    folder = source.subjects[0].image.parents[1]  # it is one already
else:
    folder = session.runs / "learn2reg" / "Task"
    write_task(folder, "Task", source.subjects[:TOTAL], JUDGED)

# %% [markdown]
# From here on nothing is known but the folder. `load_cohort("learn2reg", folder)` reads any of the challenge's archives. The
# judged subjects are the validation split, and nobody trains on them. Of the others a fifth is kept aside to choose a network by,
# because the judged pairs must decide nothing.

# %%
from course_utils.scans.learn2reg import field_name

task = load_cohort("learn2reg", folder, download=False)
official = task.official["val"]
train_subjects = task.splits["train"]
judged = {subject for pair in official for subject in (pair.fixed, pair.moving)}
print(f"{task.info.shape} voxels of {task.info.spacing} mm, {len(task.info.labels)} structures")
print(f"{len(train_subjects)} subjects to train on, {len(task.splits['test'])} to watch it by")
print(f"{len(official)} official pairs of {len(judged)} others")
print(
    f"the first: {official[0].name}, which is to be submitted as {field_name(official[0])}.nii.gz"
)
assert not judged & set(train_subjects) and len({pair.name for pair in official}) == len(official)

# %%
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.plotting import panel

subjects = load_subjects(
    (*train_subjects, *task.splits["val"], *task.splits["test"]), task.info.recipe
)
VIEW = {
    "axis": 0,
    "spacing": list(task.info.spacing),
    "orientation": source.info.orientation or None,
}
first = PairDataset(subjects, official)[0]
panel(
    {side: first[side] for side in ("moving", "fixed")},
    labels={side: first[f"{side}_label"] for side in ("moving", "fixed")},
    names=task.info.labels if len(task.info.labels) < 8 else None,
    fill=True,
    title=f"the first official pair, with its {len(task.info.labels)} structures",
    **VIEW,
)

# %% [markdown]
# ## All against all
#
# The task is *inter-patient*: any subject may be registered to any other. With $n$ training subjects there are $n(n-1)$ ordered
# pairs and not $n$. `pairs(kind="random")` draws them without repetition: each block of $n$ pairs has every subject once as fixed and
# once as moving image, and no pair returns before all have had their turn.
#
# **Predict:** if one draws $n(n-1)$ times at random instead, which share of the draws repeats an earlier one?
#
# > *My prediction:*

# %%
from course_utils.plotting import Figure

n = len(train_subjects)
every = task.pairs("train", count=n * (n - 1), seed=session.seed)
number = {subject: i for i, subject in enumerate(train_subjects)}
turn = np.full((n, n), np.nan)
for i, pair in enumerate(every):
    turn[number[pair.fixed], number[pair.moving]] = i
independent = np.random.default_rng(session.seed).integers(n * (n - 1), size=n * (n - 1))
repeated = 1 - len(set(independent)) / (n * (n - 1))
print(f"{n} subjects, {n * (n - 1)} pairs; of independent draws {repeated:.0%} are repetitions")
assert np.isfinite(turn).sum() == n * (n - 1) and np.isnan(turn.diagonal()).all()
assert abs(repeated - np.exp(-1)) < 0.03

figure = Figure(figsize=(4.4, 3.4), layout="constrained")
axes = figure.subplots()
picture = axes.imshow(turn, cmap="viridis")
axes.set(xlabel="moving subject", ylabel="fixed subject", title="when each pair has its turn")
figure.colorbar(picture, ax=axes, label="number of the draw")
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# More than a third, about $1/e = 37$ %. With $N$ pairs and $N$ draws, a pair is never drawn with the probability $(1 - 1/N)^N \approx 1/e$, and
# each pair that is left out stands for one draw that was a repetition.
#
# </details>
#
# It matters little for the network. It matters much for a fair account of what the network has seen.
#
# ## Look at the intensities first
#
# **Predict:** by which factor does the brightest voxel of the brightest file exceed the brightest voxel of the darkest file?
#
# > *My prediction:*

# %%
brightest = [float(nibabel.load(s.image).get_fdata().max()) for s in subjects.subjects]
normal = [float(subjects[s]["image"].max()) for s in subjects.subjects]

figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
axes.semilogy(sorted(brightest), ".", color="#0072B2", label="as stored")
axes.semilogy(normal, "-", color="#D55E00", label="normalised")
axes.set(xlabel="subject, in the order of its brightest voxel", ylabel="brightest voxel")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
ratio = max(brightest) / min(brightest)
print(f"the brightest voxel of the brightest subject is {ratio:.0f} times that of the darkest")
if session.dataset != "learn2reg":
    assert ratio > 50
assert max(normal) <= 1
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# By more than 50, here. The intensities of MR images have no unit: a file's numbers depend on the scanner and on the software that wrote
# it. Two files look alike in a viewer all the same, because a viewer fits its grey scale to each of them.
#
# </details>
#
# The course's recipe maps each volume's own 0.5th to 99.5th percentile to [0, 1]. Remember this picture.
#
# ## Without labels, and with
#
# Two trainings differ in one number, `dice_weight`. The first does not use the labels. In the second the soft Dice of the moved labels
# joins the local correlation (NCC). At test time neither of the networks sees a label.
#
# **Predict:** by how much does the mean Dice of the judged pairs rise through the labels?
#
# > *My prediction:*

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

STEPS = 5000 if session.profile == "full" else 160
train_pairs = PairDataset(subjects, task.pairs("train", count=10**9, seed=session.seed))
watched = PairDataset(subjects, task.pairs("test", count=4))  # nobody trains on them


def train(name, dice_weight):
    """The network that did best on the watched pairs, and the curves."""
    out = session.runs / "learn2reg" / name
    shutil.rmtree(out, ignore_errors=True)
    network = NetworkSpec("pyramid", {"spatial_dims": len(task.info.shape)}).build(session.seed)
    labels, card = task.info.labels, task.info.card()
    objective = pair_objective("ncc", dice_weight=dice_weight, labels=labels, coarseness=2)
    config = TrainConfig(steps=STEPS, batch_size=2 if len(grid) == 3 else 4, validations=4)
    device = session.device
    result = fit(network, objective, train_pairs, watched, out, config, card=card, device=device)
    return Checkpoint.load(result.best), result.history


# %%
networks, histories = {}, {}
for name, weight in (("NCC", 0.0), ("NCC + labels", 1.0)):
    networks[name], histories[name] = train(name.replace(" + ", "_"), weight)

# %%
COLOURS = {"before": "#777777", "NCC": "#0072B2", "NCC + labels": "#D55E00"}
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
for name, history in histories.items():
    look = {"color": COLOURS[name], "label": name}
    mean = history.similarity.rolling(20, center=True).mean()
    left.plot(history.step, history.similarity, color=COLOURS[name], linewidth=0.4, alpha=0.4)
    left.plot(history.step, mean, **look)
    checked = history.dropna(subset="validation_dice")
    right.plot(checked.step, checked.validation_dice, "o-", markersize=4, **look)
    assert history.similarity[-30:].mean() < history.similarity[:30].mean()  # this is healthy
left.set(xlabel="step", ylabel="1 − NCC of the training pairs\n(and its mean over 20 steps)")
right.set(xlabel="step", ylabel="mean Dice, watched pairs")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# ## A submission
#
# A submission holds one file for each pair: an array `(X, Y, Z, 3)` in voxels. Its component $c$ moves along array axis $c$, and
# $\text{moved}(x) = \text{moving}(x + u(x))$, as everywhere in this course. The function writes the whole zip or, if anything fails, none.

# %%
import zipfile

from course_utils.scans.learn2reg import write_submission
from course_utils.scans.learn2reg_evaluation import evaluate_submission

archives = {}
for name, network in networks.items():
    archives[name] = session.runs / "learn2reg" / f"{name.replace(' + ', '_')}.zip"
    files = write_submission(network, task, archives[name], device=session.device)
with zipfile.ZipFile(archives["NCC"]) as archive:
    size = sum(file.file_size for file in archive.infolist()) / 1e6
    print(f"{len(files)} fields, {size:.1f} MB:", ", ".join(files[:2]), "...")
assert len(files) == len(official)
tables = {name: evaluate_submission(archive, task) for name, archive in archives.items()}

# %% [markdown]
# How is it judged? By four numbers that are computed from the files alone. Let us compute two of them by hand for the first pair, and
# compare them with `evaluate_submission`, which computes all four.

# %%
import gzip

from scipy.ndimage import map_coordinates

with zipfile.ZipFile(archives["NCC"]) as archive:
    stored = gzip.decompress(archive.read(files[0]))
u = nibabel.Nifti1Image.from_bytes(stored).get_fdata()  # (*grid, axes)
fixed, moving = (nibabel.load(s.label).get_fdata() for s in (official[0].fixed, official[0].moving))
positions = np.indices(fixed.shape) + np.moveaxis(u, -1, 0)
moved = map_coordinates(moving, positions, order=0)  # nearest neighbour, zero outside
value, structure = next(iter(task.info.labels.items()))
a, b = moved == value, fixed == value
dice = 2 * (a & b).sum() / (a.sum() + b.sum())

gradients = [np.stack(np.gradient(u[..., c]), -1) for c in range(u.shape[-1])]
jacobian = np.stack(gradients, -2) + np.eye(u.shape[-1])
inner = (slice(2, -2),) * fixed.ndim
sdlogj = np.log(np.clip(np.linalg.det(jacobian)[inner] + 3, 1e-9, 1e9)).std()

row = tables["NCC"].query("pair == @official[0].name and structure == @structure").iloc[0]
print(f"{structure}: Dice by hand {dice:.4f}, by the function {row.dice_after:.4f}")
print(f"SDlogJ by hand {sdlogj:.4f}, by the function {row.sdlogj_learn2reg:.4f}")
assert abs(dice - row.dice_after) < 1e-4 and abs(sdlogj - row.sdlogj_learn2reg) < 1e-4

# %% [markdown]
# The other two are **HD95**, in *voxels*, with each boundary element weighing as much as its area, and **folding**. The challenge's
# [evaluation code](https://github.com/MDL-UzL/L2R) adds 3 to every determinant before it takes the logarithm, as you have just done. A fold
# is a determinant of zero or below, so folds have to be counted *before* the 3 is added; the column `folding_percent` does so.
#
# ## Who is better, where, and at what cost?

# %%
import pandas as pd

from course_utils.evaluation import paired_comparison, summarise

COLUMNS = {"dice": "Dice", "hd95_voxels": "HD95 (voxels)"}


def line(table, side):
    overall = summarise(table).loc["overall"]
    cells = {
        text: f"{overall[f'{c}_{side}']['mean']:.3f} ± {overall[f'{c}_{side}']['std']:.3f}"
        for c, text in COLUMNS.items()
    }
    if side == "after":
        cells |= {c: f"{overall[c]['mean']:.3f}" for c in ("sdlogj_learn2reg", "folding_percent")}
    return cells | {"lost": int(overall[f"hd95_voxels_{side}"]["lost"])}


rows = {"before": line(tables["NCC"], "before")}
rows |= {name: line(table, "after") for name, table in tables.items()}
mean = {name: table.mean(numeric_only=True) for name, table in tables.items()}
for name, of in mean.items():
    assert of.dice_after > of.dice_before + 0.01 and of.folding_percent < 0.5, name
pd.DataFrame.from_dict(rows, orient="index").fillna("")

# %%
by_pair = {"before": tables["NCC"].groupby("pair").dice_before.mean()}
by_pair |= {name: table.groupby("pair").dice_after.mean() for name, table in tables.items()}
figure = Figure(figsize=(8.4, 3), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
for one in zip(*by_pair.values(), strict=True):  # a line for each pair
    left.plot(range(3), one, color="#BBBBBB", linewidth=0.8, zorder=1)
for place, (name, values) in enumerate(by_pair.items()):
    left.scatter([place] * len(values), values, s=16, color=COLOURS[name], zorder=2)
left.set_xticks(range(3), by_pair)
left.set(ylabel="mean Dice of a pair", xlim=(-0.4, 2.4))
for name, table in tables.items():
    far = np.sort(table.hd95_voxels_after.replace(np.inf, np.nan).dropna())
    right.step(far, np.arange(1, len(far) + 1) / len(far), color=COLOURS[name], label=name)
far = np.sort(tables["NCC"].hd95_voxels_before.replace(np.inf, np.nan).dropna())
right.step(far, np.arange(1, len(far) + 1) / len(far), color=COLOURS["before"], label="before")
right.set(xlabel="HD95 in voxels", ylabel="share of structures\nat most so far off")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure

# %%
dice_gain = paired_comparison(tables["NCC + labels"], tables["NCC"], "dice_after")
print(dice_gain)
of_structure = {
    name: table.groupby("structure", sort=False).dice_after.mean() for name, table in tables.items()
}
gain = (of_structure["NCC + labels"] - of_structure["NCC"]).sort_values(ascending=False)
print(f"labels gain most in {gain.index[0]} ({gain.iloc[0]:+.3f}),", end=" ")
print(f"least in {gain.index[-1]} ({gain.iloc[-1]:+.3f})")
rougher = mean["NCC + labels"].sdlogj_learn2reg / mean["NCC"].sdlogj_learn2reg
print(f"and the fields are {rougher:.2f} times as rough (SDlogJ)")
clear = dice_gain.low > 0 or dice_gain.high < 0
word = "not told apart" if not clear else "better" if dice_gain.low > 0 else "worse"
print(f"{dice_gain.n} pairs, {STEPS} steps: with labels against without: {word}")
if session.dataset == "hippocampus":
    assert dice_gain.low > 0.005  # borders that no intensity shows

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The first line says by how much, with an interval. In a real hippocampus the labels help within a few minutes of training, and the cell
# asserts it: the border between its anterior and its posterior part is an expert's convention, which no intensity shows. Where every
# border shows in the image, the correlation knows already what the labels know, and they help less.
#
# </details>
#
# **Labels help as far as they say what the images do not.** Two warnings where they help. The structures that are measured are the
# ones that were trained for: elsewhere the map may be no better, and labels cannot tell. And what labels add may cost smoothness,
# so look at the column SDlogJ too.
#
# ## A training that goes wrong
#
# Now to the failure. We write what a first attempt may look like: a small network, a sampler made of `grid_sample`, Adam, and no small
# first weights in the last layer. Nothing in it is exotic, and it works, as you will see at the end. To be quick, it takes every
# second voxel along each axis. One *epoch* is one pass over the same twenty training pairs, two at a time, so the mean loss
# of an epoch can be compared with the mean of any other.

# %%
import torch
from torch import nn
from torch.nn import functional as F

members = [*train_subjects[:20], *sorted(judged, key=lambda s: s.name)[:6]]
LEARN = len(members) - 6
CHECK = [(LEARN + i, LEARN + (i + 1) % 6) for i in range(6)]  # of others, to check on
rng = np.random.default_rng(session.seed)
PAIRS = [rng.choice(LEARN, 2, replace=False) for _ in range(20)]  # to learn from
EPOCHS, BATCH, DIMS = 12, 2, len(task.info.shape)

small = (..., *(slice(0, n // 8 * 8, 2) for n in task.info.shape))
normalised = [subjects[s]["image"][small][None].to(session.device) for s in members]
label_maps = [subjects[s]["label"][small][None].to(session.device) for s in members]
stored = [nibabel.load(s.image).get_fdata(dtype=np.float32) for s in members]
raw = [torch.from_numpy(array)[small][None, None].to(session.device) for array in stored]
assert normalised[0].shape == raw[0].shape == label_maps[0].shape
print(f"{LEARN} subjects to learn from, {len(CHECK)} pairs of others to check on")


# %%
def student_network():
    """Two levels, no skip connection, PyTorch's own first weights."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[DIMS]
    wide, leak = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)
    down = (conv(2, 16, 4, stride=2, padding=1), leak, conv(16, 32, 4, stride=2, padding=1), leak)
    up = (conv(32, 32, 3, padding=1), leak, wide, conv(32, 16, 3, padding=1), leak)
    mode = "bilinear" if DIMS == 2 else "trilinear"
    last = (conv(16, DIMS, 3, padding=1), nn.Upsample(scale_factor=2, mode=mode))
    return nn.Sequential(*down, *up, *last).to(session.device)


# %%
from course_utils.losses import diffusion_loss, ncc_loss, one_hot, soft_dice_loss, ssd_loss


def sample(image, u, units="voxels"):
    """`image(x + u(x))`, zero outside. `grid_sample` counts from -1 to 1 across the image."""
    sizes = image.shape[2:]
    ticks = [torch.linspace(-1, 1, n, device=image.device) for n in sizes]
    identity = torch.stack(torch.meshgrid(*ticks, indexing="ij"), dim=-1)
    per_voxel = torch.tensor([2 / (n - 1) for n in sizes], device=image.device)
    positions = identity + u.movedim(1, -1) * (per_voxel if units == "voxels" else 1)
    return F.grid_sample(image, positions.flip(-1), padding_mode="zeros", align_corners=True)


# %%
def check(network, images, units):
    """Means over the check pairs, and the last pair's moved image."""
    rows, labels = [], list(task.info.labels)
    with torch.no_grad():
        for m, f in CHECK:
            u = network(torch.cat([images[m], images[f]], dim=1))
            moved = sample(normalised[m], u, units)
            maps = sample(one_hot(label_maps[m], labels), u, units)
            overlap = 1 - soft_dice_loss(maps, one_hot(label_maps[f], labels))
            bright = moved.mean() / normalised[m].mean()
            rows.append([ncc_loss(moved, normalised[f]).item(), overlap.item(), bright.item()])
    names = ("dissimilarity", "dice", "brightness")
    return dict(zip(names, np.mean(rows, axis=0), strict=True)), moved[0, 0].cpu()


def nothing_done(pair):
    return torch.zeros(len(pair), DIMS, *pair.shape[2:], device=pair.device)


apart, nothing, _ = check(nothing_done, normalised, "voxels")[0].values()
print(f"doing nothing: 1 - NCC {apart:.3f}, Dice {nothing:.3f}")

# %% [markdown]
# `check` is honest: whatever the network was fed or minimised, it judges the field on normalised images by 1 − NCC and by the labels.
# The training below keeps two kinds of curves. One is its **own loss**, the similarity term that it prints. The other is what `check`
# says before each epoch.

# %%
LENGTH = EPOCHS * len(PAIRS) // BATCH  # in steps


def attempt(images, loss, units="voxels", sign=1, smoothness=0.02, learning_rate=None):
    """A first training: its own loss for each step, what `check` says, and moved images."""
    torch.manual_seed(session.seed)
    network = student_network()
    adam = torch.optim.Adam(network.parameters(), learning_rate or RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, LENGTH)
    rows, checks, film = [], [], []
    for step in range(LENGTH):
        if step % (len(PAIRS) // BATCH) == 0:
            for kept, new in zip((checks, film), check(network, images, units), strict=True):
                kept.append(new)
        pairs = [PAIRS[(BATCH * step + i) % len(PAIRS)] for i in range(BATCH)]
        moving, fixed = (torch.cat([images[pair[side]] for pair in pairs]) for side in (0, 1))
        u = network(torch.cat([moving, fixed], dim=1))
        own = loss(sample(moving, u, units), fixed)
        adam.zero_grad()
        (sign * own + smoothness * diffusion_loss(u)).backward()
        adam.step()
        cosine.step()
        rows.append({"epoch": step * BATCH // len(PAIRS), "loss": own.item()})
    measured, picture = check(network, images, units)
    return pd.DataFrame(rows), pd.DataFrame([*checks, measured]), [*film, picture]


# %% [markdown]
# Three mistakes, each a word in the call:
#
# - **A, raw intensities**: the images come as the files hold them, and the loss is the SSD.
# - **B, a loss taken for a score**: in some libraries `NCC` is a score, high where images agree, and has to be negated before it is
#   minimised. Ours is a loss already. Here it is negated all the same.
# - **C, voxels taken for half images**: the field is meant in voxels and goes to `grid_sample` as it is. There 1 is half the image.
#   (The learning rate is one at which the right code trains well.)
#
# **Predict:** in which of them does the own loss climb from epoch to epoch?
#
# > *My prediction:*

# %%
RATE, BOLD = (1e-2, 2e-2) if DIMS == 2 else (3e-3, 7e-3)  # usual, and as high as works
MISTAKES = {
    "A raw intensities": {"images": raw, "loss": ssd_loss},
    "B loss taken for a score": {"images": normalised, "loss": ncc_loss, "sign": -1},
    "C voxels taken for half images": {
        "images": normalised,
        "loss": ssd_loss,
        "units": "half images",
        "learning_rate": BOLD,
    },
}
failed = {name: attempt(**settings) for name, settings in MISTAKES.items()}


def idle(images, loss, **_):
    """The own loss of doing nothing, on the training pairs."""
    return np.mean([loss(images[m], images[f]).item() for m, f in PAIRS])


# %%
CHECKED = {
    "dissimilarity": ("1 − NCC\n(check)", apart, (0.2, 1.05)),
    "dice": ("Dice\n(check)", nothing, (-0.03, 0.9)),
    "brightness": ("brightness\n(check)", 1.0, (-0.05, 1.3)),
}


# %%
def draw(runs, settings, colour):
    """A column for each run, a row for each curve; dashed is doing nothing."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    grid = figure.subplots(1 + len(CHECKED), len(runs), sharex=True, squeeze=False)
    for (top, *rest), (name, (own, checked, _)) in zip(grid.T, runs.items(), strict=True):
        epochs = own.groupby("epoch").loss.mean()
        top.plot(
            1 + np.arange(len(own)) * BATCH / len(PAIRS), own.loss, color="#BBBBBB", linewidth=1
        )
        top.plot(epochs.index + 1.5, epochs, "o-", color=colour, markersize=4)
        top.axhline(idle(**settings[name]), color="#777777", linestyle="--", linewidth=1)
        top.set(title=name, yscale="log" if own.loss.max() > 20 * own.loss.min() else "linear")
        for axes, (key, (text, still, limits)) in zip(rest, CHECKED.items(), strict=True):
            axes.plot(1 + checked.index, checked[key], "o-", color=colour, markersize=3)
            axes.axhline(still, color="#777777", linestyle="--", linewidth=1)
            axes.set(ylim=limits, ylabel=text if top is grid[0, 0] else "")
        rest[-1].set_xlabel("epoch")
    grid[0, 0].set_ylabel("own loss\n(steps; mean of the epoch)")
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# %%
draw(failed, MISTAKES, "#D55E00")


# %%
def by_epoch(own):
    return own.groupby("epoch").loss.mean().to_numpy()


climb = by_epoch(failed["B loss taken for a score"][0])
start = idle(**MISTAKES["B loss taken for a score"])
print(f"B: doing nothing {start:.3f}, epochs {', '.join(f'{value:.3f}' for value in climb)}")
assert (climb[1:] > climb[0]).all() and climb[6:].mean() > climb[:6].mean()  # it climbs
assert climb[-1] > start + 0.5 * (1 - start)  # 1 is the worst there is
ends = {name: checked.iloc[-1] for name, (_, checked, _) in failed.items()}
for name, last in ends.items():
    assert last.dissimilarity > apart + 0.3 * (1 - apart), name  # worse than doing nothing
    assert last.dice < nothing - 0.15, name  # far below doing nothing
    assert last.brightness < 0.8, name  # the image has gone darker
pd.DataFrame({"doing nothing": [apart, nothing, 1.0]} | ends, index=list(CHECKED)).T.round(3)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# In B. Its steps are small and follow the gradient, but uphill: one epoch may be a little better than the one before, but every later epoch
# is worse than the first, and the second six are worse than the first six, close to the worst that there is. In A and C one of
# the first steps is so large that the image is lost at once, and the loss has no way left to climb.
#
# </details>
#
# All three end alike: the honest loss is above that of doing nothing, the image is darker, and the Dice is far below
# doing nothing. Turn the slider to see the moved image of one check pair after each epoch.

# %%
from course_utils.plotting import Slider

SHOWN = {"limits": (0, 1), **VIEW, "spacing": [2 * mm for mm in task.info.spacing]}
frames = {}
for epoch in (0, 1, 2, 3, 4, 6, 8, 10, 12):
    pictures = {name: film[epoch] for name, (_, _, film) in failed.items()}
    frames[str(epoch)] = panel({"fixed": normalised[CHECK[-1][1]]} | pictures, columns=2, **SHOWN)
Slider(frames, "epochs", start="4")

# %% [markdown]
# Where the image is black, the picture cannot tell the cause. Why *black*, of all things? It takes two facts about the sampler to see it.
#
# **Predict:** a field points out of the image everywhere, so that the moved image is black. How large is the gradient of the loss with respect to the
# field?
#
# > *My prediction:*

# %%
m, f = CHECK[0]
away = torch.full((1, DIMS, *raw[m].shape[2:]), 1000.0, device=session.device, requires_grad=True)
black = sample(normalised[m], away)
ssd_loss(black, normalised[f]).backward()
steepest = away.grad.abs().max().item()
print(f"brightness {black.mean().item():.1f}, largest gradient {steepest:.1f}")
assert black.abs().max() == 0 and steepest == 0

order = sorted(range(len(members)), key=lambda i: float(raw[i].max()))
dark, bright = order[0], order[-1]
kinds = {"raw": raw, "normalised": normalised}
prices = pd.DataFrame(
    {
        "do nothing": {k: ssd_loss(i[bright], i[dark]).item() for k, i in kinds.items()},
        "all black": {k: i[dark].square().mean().item() for k, i in kinds.items()},
    }
)
if session.dataset != "learn2reg":
    assert prices.loc["raw", "all black"] < 0.1 * prices.loc["raw", "do nothing"]
prices

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Exactly 0. Outside of the image the sampler gives 0 everywhere, and a constant has no slope. A field that has thrown everything out gets no
# signal to come back: black is a trap door.
#
# </details>
#
# In A a single bright pair is enough: its loss is larger by powers of ten, and so is the network's answer to it, which points far out
# of the image. And with raw
# intensities black may even be *the right answer*: the table says that for a bright moving image and a dark fixed one, the SSD of a
# black image is a small fraction of that of doing nothing. The network did what it was asked to do.
#
# ## Diagnosis from the curves
#
# Three questions, in this order, to curves that any training can log:
#
# 1. Does the honest dissimilarity, on normalised check pairs, end below that of doing nothing? Then the training is **healthy**.
# 2. Does the own loss jump by factors from step to step? Then pairs weigh differently: **intensities**.
# 3. Did the loss still climb after the first epoch? Then the steps are fine and lead uphill: **the sign**.
#
# What remains is a loss that leaps in the first steps and stays there: **the steps are too large**, by their units or by the
# learning rate.


# %%
def diagnose(own, checked, idle_loss):
    """The cause, from curves alone."""
    if checked.dissimilarity.iloc[-1] < apart:
        return "healthy"
    jump = np.log10(own.loss).diff().abs().mean()  # 0.15: a factor of 1.4 in every step
    if jump > 0.15:
        return "intensities"
    epochs = by_epoch(own)
    if epochs[0] - idle_loss < 0.8 * (epochs[-1] - idle_loss):  # much was still to come
        return "the sign"
    return "steps too large"


found = {
    name: diagnose(own, checked, idle(**MISTAKES[name]))
    for name, (own, checked, _) in failed.items()
}
for name, cause in found.items():
    print(f"{name}: {cause}")
assert list(found.values()) == ["intensities", "the sign", "steps too large"]

# %% [markdown]
# ## The cures
#
# One change in each call. Everything else is as it was: the network, its first weights, the pairs, the learning rate, the number of
# steps.
#
# **Predict:** the network has no skip connections and trains for 120 steps. Will its Dice end above that of doing nothing?
#
# > *My prediction:*

# %%
CURES = {
    "A normalised": MISTAKES["A raw intensities"] | {"images": normalised},
    "B the loss as it is": MISTAKES["B loss taken for a score"] | {"sign": 1},
    "C voxels": MISTAKES["C voxels taken for half images"] | {"units": "voxels"},
}
cured = {name: attempt(**settings) for name, settings in CURES.items()}
draw(cured, CURES, "#0072B2")

# %%
for mistake, (name, (own, checked, _)) in zip(failed, cured.items(), strict=True):
    last = checked.iloc[-1]
    assert diagnose(own, checked, idle(**CURES[name])) == "healthy", name
    assert last.dice > nothing + 0.01 and 0.8 < last.brightness < 1.2, name
    print(f"{mistake}: Dice {ends[mistake].dice:.3f}; {name}: {last.dice:.3f}")
print(f"doing nothing: {nothing:.3f}")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Yes, in all three, by more than 0.01. It is no registration to be proud of, but every step now goes the right way. But for the
# learning rate, A and C are cured by the same training: what was wrong differs, and what is right does not.
#
# </details>
#
# | symptom | cause | cure |
# |---|---|---|
# | The own loss jumps by powers of ten between steps; the image is black after the first epoch. | Intensities have no unit. | Normalise volume by volume. |
# | The own loss climbs epoch by epoch, and Dice falls with it. | The sign is wrong. | Try the loss on two equal images: there it must have its minimum. |
# | The own loss leaps in the first steps and stays; gradients vanish. | The field has other units than the sampler, the learning rate is too high, or the last layer does not start small. | One unit, named in the docstring; small first weights; a warm-up. |
#
# The course's own `fit` looks out for this: every ten steps it compares the loss with that of doing nothing on the same pairs, and it
# stops a run that loses to it (notebook 06).
#
# ## Five checks before any training
#
# All of them are cheaper than one epoch. The second would have caught C, the third B, and the fourth A. The fifth is for a network
# whose first answer already throws the image out, be it by bright images or by large first weights.

# %%
zero = torch.zeros(1, DIMS, *normalised[m].shape[2:], device=session.device)
one = zero.clone()
one[:, 0] = 1.0
here, by_one = normalised[m], normalised[m][:, :, 1:]
a_voxel = {
    units: torch.allclose(sample(here, one, units)[:, :, :-1], by_one, atol=1e-3)
    for units in ("voxels", "half images")
}
same = ncc_loss(normalised[f], normalised[f])
other = ncc_loss(normalised[m], normalised[f])


def one_range(images):
    return all(image.min() >= 0 and image.max() <= 1 for image in images)


def first_field(images):
    """The longest component of a new network's first answer."""
    torch.manual_seed(session.seed)
    return student_network()(torch.cat([images[bright], images[dark]], dim=1)).abs().max().item()


# %%
checks = {
    "a zero field moves nothing": torch.allclose(sample(here, zero), here, atol=1e-4),
    "a displacement of 1 moves by one voxel": a_voxel["voxels"],
    "the loss is lowest for equal images": same < other,
    "all images have one range": one_range(normalised),
    "the first field is less than a voxel": first_field(normalised) < 1,
}
for text, passed in checks.items():
    print(f"{'yes' if passed else 'NO '}  {text}")
assert all(bool(passed) for passed in checks.values())
assert not a_voxel["half images"] and not -same < -other and not one_range(raw)  # C, B, A fail
print(f"first field on raw images: {first_field(raw):.2f} voxels at most")

# %% [markdown]
# ## The same in MONAI
#
# A challenge's folder needs nothing but MONAI to be read. Its dictionary transforms load and normalise the files, `CacheDataset` keeps
# the result, `DataLoader` makes batches, and `DiceMetric` measures. The images must be those of the course's recipe, and the Dice before
# registration must be that of the official table.

# %%
from monai.data import CacheDataset, DataLoader
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot as monai_one_hot
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    ScaleIntensityRangePercentilesd,
)

IMAGES, LABELS = ("fixed", "moving"), ("fixed_label", "moving_label")
prepare = Compose(
    [
        LoadImaged((*IMAGES, *LABELS)),
        EnsureChannelFirstd((*IMAGES, *LABELS), channel_dim="no_channel"),
        ScaleIntensityRangePercentilesd(IMAGES, 0.5, 99.5, 0, 1, clip=True),
    ]
)
listed = [
    {"fixed": p.fixed.image, "moving": p.moving.image}
    | {"fixed_label": p.fixed.label, "moving_label": p.moving.label}
    for p in official
]
loader = DataLoader(CacheDataset(listed, prepare, progress=False), batch_size=4)

# %%
metric, most = DiceMetric(include_background=False, reduction="none"), max(task.info.labels) + 1
for batch in loader:
    moving_map, fixed_map = (monai_one_hot(batch[name], most) for name in LABELS[::-1])
    metric(moving_map, fixed_map)
theirs = metric.aggregate()[:, [value - 1 for value in task.info.labels]]  # (pairs, structures)
ours = tables["NCC"].pivot(index="pair", columns="structure", values="dice_before")
ours = ours.loc[[p.name for p in official], list(task.info.labels.values())]
image = prepare(listed[0])["fixed"]
worst = (image.as_tensor() - subjects[official[0].fixed]["image"]).abs().max().item()
print(
    f"{theirs.shape[0]} pairs x {theirs.shape[1]} structures; images differ by {worst:.1e} at most"
)
assert np.allclose(theirs.numpy(), ours.to_numpy(), atol=1e-5, equal_nan=True)
assert worst < 1e-3

# %% [markdown]
# `one_hot` is needed because `DiceMetric` takes a label map of one channel too, and then measures label 1 alone. For the original
# data there is `monai.apps.DecathlonDataset`, which downloads task 4 and splits it.
#
# ## The same from the command line

# %%
from typer.main import get_command

from course_utils.commands.app import app

FOLDER = "--data-root HippocampusMR"
commands = {
    "train on the folder": f"train --dataset learn2reg {FOLDER} --dice-weight 1 --minutes 15 "
    "--out runs/l2r",
    "write the submission": f"learn2reg {FOLDER} --model runs/l2r/best.pt --out submission.zip",
    "measure it": f"learn2reg {FOLDER} --evaluate submission.zip --out submission.csv",
    "export the network": "export --model runs/l2r/best.pt --format bundle --out runs/l2r/bundle",
}
for what, command in commands.items():
    name, *arguments = command.split()
    get_command(app).get_command(None, name).make_context(name, arguments)  # are the options right?
    print(f"# {what}\npython -m course_utils {command}\n")

# %% [markdown]
# ## What you now have
#
# - A challenge's folder that was read, trained on all against all, submitted, and measured by the challenge's own definitions.
# - What labels add to a training, structure by structure, with an interval, and what they cost in roughness.
# - The loss that climbs epoch by epoch, and two other failures that end alike; a diagnosis that needs only the curves; three cures of
#   one word.
#
# **What can go wrong.** The network is chosen on the pairs that are judged. HD95 in voxels is compared with HD95 in mm. A folding
# count of zero was never computed. Somebody reads only the training's own loss. The fields are on the network's grid where the
# task's grid is asked for.
#
# **Try it.**
# 1. *(easy)* Make failure C without its mistake: keep the units, and raise the learning rate until `diagnose` finds it.
# 2. *(easy)* Run the page on slices, `COURSE_DATASET=oasis2d`. Which structures gain by labels, and which lose?
# 3. *(middle)* Let the sampler repeat the border instead of zero (`padding_mode="border"`). What replaces black? Does `diagnose` still work?
# 4. *(middle)* Leave one structure out of the training with labels. Does its Dice gain as much as before?
# 5. *(hard)* In a fourth failure two mistakes come together, B and C. Which of the three questions finds which of the two? Write a
#    `diagnose` that names both.
#
# **References.** Hering et al., *Learn2Reg: comprehensive multi-task medical image registration challenge, dataset and
# evaluation in the era of deep learning*, IEEE TMI 42(3), 2023, [doi:10.1109/TMI.2022.3213983](https://doi.org/10.1109/TMI.2022.3213983).
# Antonelli et al., *The Medical Segmentation Decathlon*, Nature Communications 13, 2022 (the hippocampus data),
# [doi:10.1038/s41467-022-30695-9](https://doi.org/10.1038/s41467-022-30695-9). Balakrishnan et al., *VoxelMorph: a learning framework
# for deformable medical image registration*, IEEE TMI 38(8), 2019 (supervision by labels),
# [doi:10.1109/TMI.2019.2897538](https://doi.org/10.1109/TMI.2019.2897538). Nikolov et al., *Clinically applicable segmentation of head
# and neck anatomy for radiotherapy*, JMIR 23(7), 2021 (surface distances), [doi:10.2196/26151](https://doi.org/10.2196/26151). Nyúl and
# Udupa, *On standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42(6), 1999.
#
# Next: [10 One pair](10_one_pair.ipynb): affine, network and optimisation, for one pair at its best.
