# %% [markdown]
# # 09 Learn2Reg
#
# Learn2Reg is the challenge in which registration methods meet: common data, official pairs, one evaluation. Its smallest
# task, the hippocampus, trains on a laptop, and a first network easily fails there: the loss ends above where it began,
# the moved image turns black, and in the end the Dice is below that of doing nothing. On this page you put data into the
# challenge's layout, train on all pairs without and with labels, write a submission and measure it as the organisers do.
# Then you provoke that failure in three ways, tell them apart by their curves alone, and cure each by one line.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 10 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/09_learn2reg.ipynb)

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
# ## A challenge's folder
#
# A Learn2Reg archive holds images, labels and one JSON file, which says who trains and which pairs are judged:
#
#     HippocampusMR/
#       imagesTr/HippocampusMR_0001_0000.nii.gz       case 1, channel 0
#       labelsTr/HippocampusMR_0001_0000.nii.gz
#       HippocampusMR_dataset.json                    "training", "registration_val": [{"fixed", "moving"}, ...]
#
# We write such a folder from this session's data set. With `COURSE_DATASET=hippocampus` it is the real task: the same scans,
# padded to 64×64×64. The built-in brains, in the quick profile, are 2-D slices, so that this page takes a minute or two;
# everything on it works in 3-D without a change.

# %%
import json

import nibabel
import numpy as np

from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort

# %%
flat = session.dataset == "synthetic" and session.profile == "quick"
root = session.data_root / "synthetic_slices" if flat else session.data_root
if flat:
    make_cohort(root / "synthetic", subjects=60, dimensions=2)
source = load_cohort(session.dataset, root)
grid = (64, 64, 64) if session.dataset == "hippocampus" else source.info.shape
TOTAL, JUDGED = (60, 12) if session.profile == "quick" else (200, 50)
SCANNER = (
    (1, 100) if session.dataset == "synthetic" else (1, 1)
)  # real scanners agree on no unit, these must be told


def padded(path, factor=1):
    """A file's voxels on the grid, centred."""
    array = np.asarray(nibabel.load(path).dataobj).squeeze()
    array = (
        array if factor == 1 else array.astype(np.float32) * factor
    )  # int16 times 100 would overflow without a word
    margins = [
        ((n - size) // 2, n - size - (n - size) // 2)
        for n, size in zip(grid, array.shape, strict=True)
    ]
    return np.pad(array, margins)


# %%
def write_task(folder, name, subjects, judged):
    """The layout of the challenge; the last cases are judged, each with its mirror image in the
    list."""
    cases = [
        f"./imagesTr/{name}_{number:04d}_0000.nii.gz" for number in range(1, len(subjects) + 1)
    ]
    affine = np.diag([*source.info.spacing, *[1.0] * (4 - len(grid))])
    for number, (case, subject) in enumerate(zip(cases, subjects, strict=True)):
        for path, file, factor in (
            (subject.image, folder / case, SCANNER[number % 2]),
            (subject.label, folder / case.replace("images", "labels"), 1),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(padded(path, factor), affine), file)
    last = cases[-judged:]
    content = {
        "name": name,
        "tensorImageShape": {"0": list(grid)},
        "labels": {"0": {str(value): structure for value, structure in source.info.labels.items()}},
        "training": [{"image": case, "label": case.replace("images", "labels")} for case in cases],
        "registration_val": [
            {"fixed": f, "moving": m} for f, m in zip(last, reversed(last), strict=True)
        ],
    }
    (folder / f"{name}_dataset.json").write_text(json.dumps(content, indent=2))


# %%
if session.dataset == "learn2reg":
    folder = source.subjects[0].image.parents[1]  # it is one already
else:
    folder = session.runs / "learn2reg" / "Task"
    write_task(folder, "Task", source.subjects[:TOTAL], JUDGED)

# %% [markdown]
# From here on nothing is known but the folder. `load_cohort("learn2reg", folder)` reads any of the challenge's archives: the
# judged subjects are the validation split and never trained on; of the others a fifth is kept aside, to choose a network by.
# The judged pairs must decide nothing.

# %%
task = load_cohort("learn2reg", folder, download=False)
official = task.official["val"]
train_subjects, judged = (
    task.splits["train"],
    {s for pair in official for s in (pair.fixed, pair.moving)},
)
print(
    f"{task.info.shape} voxels of {task.info.spacing} mm; structures: "
    f"{', '.join(task.info.labels.values())}"
)
print(
    f"{len(train_subjects)} subjects to train on, {len(task.splits['test'])} to watch the training "
    "by"
)
print(f"{len(official)} official pairs of {len(judged)} others")
print(f"the first: {official[0].name}, which is to be submitted as", end=" ")

from course_utils.scans.learn2reg import field_name

print(field_name(official[0]) + ".nii.gz")
assert not judged & set(train_subjects) and len({pair.name for pair in official}) == len(official)

# %% [markdown]
# ## All against all
#
# The task is *inter-patient*: any subject may be registered to any other. With $n$ training subjects that are $n(n-1)$
# ordered pairs, not $n$. **Predict:** if pairs are drawn at random, how many of the first $n(n-1)$ draws are repetitions?
#
# `pairs(kind="random")` draws without repetition: each block of $n$ pairs has every subject once as fixed and once as moving
# image, and no pair returns before all have been.

# %%
from course_utils.plotting import Figure

n = len(train_subjects)
every = task.pairs("train", count=n * (n - 1), seed=session.seed)
number = {subject: i for i, subject in enumerate(train_subjects)}
turn = np.full((n, n), np.nan)
for i, pair in enumerate(every):
    turn[number[pair.fixed], number[pair.moving]] = i
independent = np.random.default_rng(session.seed).integers(n * (n - 1), size=n * (n - 1))
print(
    f"{n} subjects, {n * (n - 1)} pairs; independent draws would repeat "
    f"{1 - len(set(independent)) / (n * (n - 1)):.0%}"
)
assert (
    np.isfinite(turn).sum() == n * (n - 1) and np.isnan(turn.diagonal()).all()
)  # every pair once, nobody with himself

figure = Figure(figsize=(4.4, 3.4), layout="constrained")
axes = figure.subplots()
picture = axes.imshow(turn, cmap="viridis")
axes.set(
    xlabel="moving subject", ylabel="fixed subject", title="when each training pair has its turn"
)
figure.colorbar(picture, ax=axes, label="pair number")
figure

# %% [markdown]
# More than a third of independent draws repeat a pair: $1/e$. It matters little for the network and much for a fair account of
# what it has seen.
#
# ## Look at the intensities first

# %%
from course_utils.data.loading import PairDataset, load_subjects

subjects = load_subjects(
    (*train_subjects, *task.splits["val"], *task.splits["test"]), task.info.recipe
)
brightest = [float(nibabel.load(s.image).get_fdata().max()) for s in subjects.subjects]

figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
axes.semilogy(sorted(brightest), ".", color="#0072B2", label="as stored")
axes.semilogy(
    [float(subjects[s]["image"].max()) for s in subjects.subjects],
    "-",
    color="#D55E00",
    label="normalised",
)
axes.set(xlabel="subject, in the order of its brightest voxel", ylabel="brightest voxel")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
ratio = max(brightest) / min(brightest)
print(f"the brightest voxel of the brightest subject is {ratio:.0f} times that of the darkest")
if session.dataset in ("synthetic", "hippocampus"):
    assert ratio > 50
figure

# %% [markdown]
# MR intensities have no unit. In the hippocampus data most files reach about a thousand, a few hundred thousand others; the
# built-in brains have got a factor of 100 for every second subject, in the cell that wrote them. The recipe maps each
# volume's own 0.5th to 99.5th percentile to [0, 1]. Remember this picture.
#
# ## Without labels, and with
#
# Two trainings that differ in one number, `dice_weight`. In the first the labels are not used. In the second the soft Dice of
# the moved labels joins the NCC; at test time neither sees a label. **Predict:** for which structures will supervision help
# most, and what will it cost?

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

STEPS = 5000 if session.profile == "full" else 300 if flat else 150
train_pairs = PairDataset(subjects, task.pairs("train", count=10**9, seed=session.seed))
watched = PairDataset(
    subjects, task.pairs("test", count=6)
)  # of subjects that neither train nor are judged


def train(name, dice_weight):
    """Train in a folder of that name: the network that did best on the watched pairs, and the
    curves."""
    out = session.runs / "learn2reg" / name
    shutil.rmtree(out, ignore_errors=True)
    network = NetworkSpec("voxelmorph", {"spatial_dims": len(task.info.shape)}).build(session.seed)
    objective = pair_objective("ncc", dice_weight=dice_weight, labels=task.info.labels)
    config = TrainConfig(steps=STEPS, batch_size=4, validations=6)
    card, device = task.info.card(), session.device
    result = fit(network, objective, train_pairs, watched, out, config, card=card, device=device)
    return Checkpoint.load(result.best), result.history


networks, histories = {}, {}
for name, weight in (("NCC", 0.0), ("NCC + labels", 1.0)):
    networks[name], histories[name] = train(name.replace(" + ", "_"), weight)

# %%
COLOURS = {"before": "#777777", "NCC": "#0072B2", "NCC + labels": "#D55E00"}
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
for name, history in histories.items():
    left.plot(history.step, history.similarity, color=COLOURS[name], linewidth=0.4, alpha=0.4)
    left.plot(
        history.step,
        history.similarity.rolling(20, center=True).mean(),
        color=COLOURS[name],
        label=name,
    )
    checked = history.dropna(subset="validation_dice")
    right.plot(
        checked.step, checked.validation_dice, "o-", markersize=4, color=COLOURS[name], label=name
    )
left.set(xlabel="step", ylabel="1 − NCC of the training pairs\n(and its mean over 20 steps)")
right.set(xlabel="step", ylabel="mean Dice, watched pairs")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
for history in histories.values():
    assert (
        history.similarity[-30:].mean() < history.similarity[:30].mean()
    )  # this is what healthy looks like
figure

# %% [markdown]
# ## A submission
#
# One file per pair: an array `(X, Y, Z, 3)`, in voxels, component $c$ along array axis $c$, with
# $\text{moved}(x) = \text{moving}(x + u(x))$, just as everywhere in this course. The zip is written as a whole, or not at all.

# %%
import zipfile

from course_utils.scans.learn2reg import write_submission
from course_utils.scans.learn2reg_evaluation import evaluate_submission

archives = {}
for name, network in networks.items():
    archives[name] = session.runs / "learn2reg" / f"{name.replace(' + ', '_')}.zip"
    files = write_submission(network, task, archives[name], device=session.device)
with zipfile.ZipFile(archives["NCC"]) as archive:
    print(
        f"{len(files)} fields, {sum(f.file_size for f in archive.infolist()) / 1e6:.1f} MB:",
        ", ".join(files[:2]),
        "...",
    )
assert len(files) == len(official)

# %% [markdown]
# How is it judged? By four numbers, computed from the files alone. Let us compute two of them by hand, for the first pair,
# and compare with `evaluate_submission`, which has them all.

# %%
import gzip

from scipy.ndimage import map_coordinates

tables = {name: evaluate_submission(archive, task) for name, archive in archives.items()}

# %%
with zipfile.ZipFile(archives["NCC"]) as archive:
    u = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(files[0]))).get_fdata()
fixed, moving = (nibabel.load(s.label).get_fdata() for s in (official[0].fixed, official[0].moving))
moved = map_coordinates(
    moving, np.indices(fixed.shape) + np.moveaxis(u, -1, 0), order=0
)  # nearest, zero outside
value, structure = next(iter(task.info.labels.items()))
dice = (
    2
    * ((moved == value) & (fixed == value)).sum()
    / ((moved == value).sum() + (fixed == value).sum())
)

jacobian = np.stack(
    [np.stack(np.gradient(u[..., c]), -1) for c in range(u.shape[-1])], -2
) + np.eye(u.shape[-1])
inner = (slice(2, -2),) * fixed.ndim
sdlogj = np.log(np.clip(np.linalg.det(jacobian)[inner] + 3, 1e-9, 1e9)).std()

row = tables["NCC"].query("pair == @official[0].name and structure == @structure").iloc[0]
print(
    f"{structure}: Dice {dice:.4f} by hand, {row.dice_after:.4f}; SDlogJ {sdlogj:.4f} by hand, "
    f"{row.sdlogj_learn2reg:.4f}"
)
assert abs(dice - row.dice_after) < 1e-4 and abs(sdlogj - row.sdlogj_learn2reg) < 1e-4

# %% [markdown]
# The other two are **HD95**, in *voxels* and with each boundary element weighing as much as its area, and **folding**. The
# challenge counts folds after it has added 3 to every determinant, and finds none, whatever the field. We count
# $\det \le 0$.
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


rows = {"before": line(tables["NCC"], "before")} | {
    name: line(table, "after") for name, table in tables.items()
}
mean = {name: table.mean(numeric_only=True) for name, table in tables.items()}
for name, of in mean.items():
    assert of.dice_after > of.dice_before + 0.05 and of.folding_percent < 0.5, name
    finite = tables[name].replace(np.inf, np.nan).dropna()
    assert finite.hd95_voxels_after.mean() < finite.hd95_voxels_before.mean(), name
pd.DataFrame.from_dict(rows, orient="index").fillna("")

# %%
from course_utils.plotting import boxes

boxes({"before": tables["NCC"], **tables}, "dice")

# %%
boxes({"before": tables["NCC"], **tables}, "hd95_voxels", label="HD95 (voxels)")

# %%
comparison = {
    c: paired_comparison(tables["NCC + labels"], tables["NCC"], c)
    for c in ("dice_after", "hd95_voxels_after")
}
for result in comparison.values():
    print(result)
by_structure = {
    name: table.groupby("structure", sort=False).dice_after.mean() for name, table in tables.items()
}
gain = (by_structure["NCC + labels"] - by_structure["NCC"]).sort_values(ascending=False)
print(
    f"supervision gains most in {gain.index[0]} ({gain.iloc[0]:+.3f}), least in {gain.index[-1]} "
    f"({gain.iloc[-1]:+.3f})"
)
rougher = mean["NCC + labels"].sdlogj_learn2reg / mean["NCC"].sdlogj_learn2reg
print(f"and its fields are {rougher:.2f} times as rough (SDlogJ)")
dice_gain = comparison["dice_after"]
better = (
    "better"
    if dice_gain.low > 0
    else "worse"
    if dice_gain.high < 0
    else "not shown to be better or worse"
)
print(
    f"verdict, by Dice over {dice_gain.n} pairs after {STEPS} steps: the network with labels is "
    f"{better}"
)
if session.dataset == "synthetic":
    assert abs(dice_gain.mean_difference) < 0.05  # little either way

# %% [markdown]
# On the built-in brains the labels are worth little, and early in a training they may even cost: two goals share one gradient.
# Every border of these brains shows in the image, so the NCC knows what the labels know. In a real hippocampus the border
# between its anterior and its posterior part is an expert's convention that no intensity shows, and there supervision gains
# a lot (run this page on it: exercise 1). **Labels help as far as they say what the images do not.**
#
# Two warnings for a case in which they help. The structures that are measured are the ones that were trained for: elsewhere
# the map may be no better, and labels cannot tell. And what supervision adds it pays for in roughness; the SDlogJ column is
# there for that reason.
#
# ## A failure worth knowing
#
# Now to the run that goes wrong. We write what a first attempt looks like: a small network, a sampler made of `grid_sample`,
# Adam; and, like most first attempts, no small first weights in the last layer. Nothing in it is exotic, and it works, as you
# will see at the end. To be quick, every second voxel along each axis.

# %%
import torch
from torch import nn
from torch.nn import functional as F

members = [*train_subjects[:20], *sorted(judged, key=lambda s: s.name)[:6]]
LEARN, CHECK = (
    len(members) - 6,
    [(len(members) - 6 + i, len(members) - 6 + (i + 1) % 6) for i in range(6)],
)
small = (..., *(slice(0, n // 8 * 8, 2) for n in task.info.shape))
normalised = [subjects[s]["image"][small][None].to(session.device) for s in members]
raw = [
    torch.from_numpy(nibabel.load(s.image).get_fdata(dtype=np.float32))[small][None, None]
    for s in members
]
raw = [image.to(session.device) for image in raw]
label_maps = [subjects[s]["label"][small][None].to(session.device) for s in members]

# %%
DIMS = len(task.info.shape)
assert normalised[0].shape == raw[0].shape == label_maps[0].shape
print(
    f"{LEARN} subjects to learn from, {len(CHECK)} pairs of others to check on, "
    f"{tuple(raw[0].shape[2:])} voxels"
)


def student_network():
    """Two levels, no skip connection, PyTorch's own first weights."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[DIMS]
    wide, leak = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)
    down = (conv(2, 16, 4, stride=2, padding=1), leak, conv(16, 32, 4, stride=2, padding=1), leak)
    up = (conv(32, 32, 3, padding=1), leak, wide, conv(32, 16, 3, padding=1), leak)
    last = conv(16, DIMS, 3, padding=1)
    return nn.Sequential(
        *down, *up, last, nn.Upsample(scale_factor=2, mode="bilinear" if DIMS == 2 else "trilinear")
    )


# %%
from course_utils.losses import diffusion_loss, ncc_loss, one_hot, soft_dice_loss, ssd_loss


def sample(image, u, units="voxels"):
    """``image(x + u(x))``, zero outside. `grid_sample` counts from -1 to 1 across the image; ``u``
    is in ``units``."""
    sizes = image.shape[2:]
    ticks = [torch.linspace(-1, 1, n, device=image.device) for n in sizes]
    identity = torch.stack(torch.meshgrid(*ticks, indexing="ij"), dim=-1)
    scale = (
        torch.tensor([2 / (n - 1) for n in sizes], device=image.device) if units == "voxels" else 1
    )
    positions = identity + u.movedim(1, -1) * scale
    return F.grid_sample(image, positions.flip(-1), padding_mode="zeros", align_corners=True)


# %%
def check(network, images, units):
    """Means over the check pairs: 1 − NCC, Dice, and the moved image's brightness relative to the
    moving one's."""
    rows, labels = [], list(task.info.labels)
    with torch.no_grad():
        for m, f in CHECK:
            u = network(torch.cat([images[m], images[f]], dim=1))
            moved = sample(normalised[m], u, units)
            maps = sample(one_hot(label_maps[m], labels), u, units)
            overlap = 1 - soft_dice_loss(maps, one_hot(label_maps[f], labels))
            bright = moved.mean() / normalised[m].mean()
            rows.append([ncc_loss(moved, normalised[f]).item(), overlap.item(), bright.item()])
    return dict(
        zip(("dissimilarity", "dice", "brightness"), np.mean(rows, axis=0), strict=True)
    ), moved[0, 0].cpu()


# %%
class Nothing(nn.Module):
    def forward(self, pair):
        return torch.zeros(len(pair), DIMS, *pair.shape[2:], device=pair.device)


apart, nothing, _ = check(Nothing(), normalised, "voxels")[0].values()
print(f"doing nothing: 1 - NCC {apart:.3f}, Dice {nothing:.3f}")

# %% [markdown]
# `check` is honest: whatever the network was fed or minimised, it judges the field on normalised images by 1 − NCC and by
# the labels. The training below keeps two kinds of curves: its **own loss**, which is what one watches, and what `check` says.

# %%
LENGTH = 120
RATE, BOLD = (
    (1e-2, 2e-2) if DIMS == 2 else (3e-3, 7e-3)
)  # learning rates: usual, and as high as the right code stands


def attempt(images, loss, units="voxels", smoothness=0.02, learning_rate=RATE):
    """A training of the first kind: curves, and the moved image of one check pair now and then."""
    torch.manual_seed(session.seed)
    rng = np.random.default_rng(session.seed)
    network = student_network().to(session.device)
    adam = torch.optim.Adam(network.parameters(), learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, LENGTH)
    rows, film = [], {}
    for step in range(LENGTH + 1):
        measured = {}
        if step % 10 == 0:
            measured, film[step] = check(network, images, units)
        pairs = [rng.choice(LEARN, 2, replace=False) for _ in range(2)]
        moving, fixed = (torch.cat([images[pair[side]] for pair in pairs]) for side in (0, 1))
        u = network(torch.cat([moving, fixed], dim=1))
        value = loss(sample(moving, u, units), fixed) + smoothness * diffusion_loss(u)
        adam.zero_grad()
        value.backward()
        adam.step()
        cosine.step()
        rows.append({"step": step, "loss": value.item()} | measured)
    return pd.DataFrame(rows), film


# %% [markdown]
# Three mistakes, each a single word in the call:
#
# - **A, raw intensities**: the images as the files hold them, with the SSD.
# - **B, a score for a loss**: several libraries' `NCC` is high where images agree. Here it is minimised.
# - **C, voxels for half images**: the field is meant in voxels and goes to `grid_sample` as it is, where 1 is half the image.
#   (With a learning rate at which the right code trains well.)
#
# **Predict:** draw the curve of the training's own loss for A, B and C. In which of them does it fall?


# %%
def score(moved, fixed):
    """The mean squared local correlation: 1 for images that agree."""
    return 1 - ncc_loss(moved, fixed)


MISTAKES = {
    "A raw intensities": {"images": raw, "loss": ssd_loss},
    "B score for a loss": {"images": normalised, "loss": score},
    "C voxels for half images": {
        "images": normalised,
        "loss": ssd_loss,
        "units": "half images",
        "learning_rate": BOLD,
    },
}
failed = {name: attempt(**settings) for name, settings in MISTAKES.items()}

# %%
from matplotlib.ticker import LogLocator, NullFormatter

ROWS = {
    "loss": "own loss",
    "dissimilarity": "1 − NCC (check)",
    "dice": "Dice (check)",
    "brightness": "brightness",
}
IDLE = {"dissimilarity": apart, "dice": nothing, "brightness": 1.0}
LIMITS = {"dissimilarity": (0.3, 1.05), "dice": (-0.03, 0.8), "brightness": (-0.05, 1.3)}


# %%
def draw(runs, colour):
    """A column a run, a row a curve; dashed is doing nothing."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    grid_of_axes = figure.subplots(len(ROWS), len(runs), sharex=True, squeeze=False)
    for column, (name, (curves, _)) in enumerate(runs.items()):
        for axes, (key, text) in zip(grid_of_axes[:, column], ROWS.items(), strict=True):
            points = curves.dropna(subset=key)
            axes.plot(
                points.step,
                points[key],
                "-" if key == "loss" else "o-",
                color=colour,
                markersize=3,
                linewidth=1,
            )
            if key == "loss":
                axes.set(yscale="log", title=name)
                subs = (1,) if points[key].max() > 1000 * points[key].min() else (1, 2, 5)
                axes.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter="{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.axhline(IDLE[key], color="#777777", linestyle="--", linewidth=1)
                axes.set_ylim(LIMITS[key])
            if column == 0:
                axes.set_ylabel(text)
            axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step")
    return figure


# %%
draw(failed, "#D55E00")

# %%
from course_utils.plotting import panel

shown = {}
for name, (_, film) in failed.items():
    shown |= {f"{name[0]}, step {step}": film[step] for step in (0, 10, 20, 40, LENGTH)}
panel(shown, columns=5, limits=(0, 1), title="the moved image of one pair that is checked")

# %%
summary = pd.DataFrame(
    {
        name: {
            "dice before": nothing,
            **curves.dropna().iloc[-1][["dice", "brightness", "dissimilarity"]],
        }
        for name, (curves, _) in failed.items()
    }
).T
for name, (curves, _) in failed.items():
    last = curves.dropna().iloc[-1]
    assert last.dissimilarity > 1.2 * apart, name  # and so is the honest loss
    assert last.dice < nothing - 0.2, name  # far below doing nothing
    assert last.brightness < 0.7, name  # the image goes dark
for name in ("A raw intensities", "C voxels for half images"):
    assert failed[name][0].brightness.dropna().iloc[-1] < 0.05, name  # black
summary.astype(float).round(3)

# %% [markdown]
# All three fail in the same way: the honest loss ends far above doing nothing, the image turns dark, and the Dice ends far below doing nothing. The pictures are
# alike for A and C, both black, so the picture alone does not tell the cause. Why *black*, of all things? Because of two facts about the sampler.

# %%
m, f = CHECK[0]
away = torch.full((1, DIMS, *raw[m].shape[2:]), 1000.0, device=session.device, requires_grad=True)
black = sample(normalised[m], away)
ssd_loss(black, normalised[f]).backward()
print(
    f"a field that points out of the image: brightness {black.mean().item():.1f}, largest gradient "
    f"{away.grad.abs().max().item():.1f}"
)
assert black.abs().max() == 0 and away.grad.abs().max() == 0

order = sorted(range(len(members)), key=lambda i: float(raw[i].max()))
dark, bright = order[0], order[-1]
prices = pd.DataFrame(
    {
        "do nothing": {
            k: ssd_loss(i[bright], i[dark]).item()
            for k, i in (("raw", raw), ("normalised", normalised))
        },
        "all black": {
            k: i[dark].square().mean().item() for k, i in (("raw", raw), ("normalised", normalised))
        },
    }
)
if session.dataset in ("synthetic", "hippocampus"):
    assert prices.loc["raw", "all black"] < 0.1 * prices.loc["raw", "do nothing"]
    assert prices.loc["normalised", "all black"] > prices.loc["normalised", "do nothing"]
prices

# %% [markdown]
# In A the image is black before the first step: what a network answers grows with its input, and its first answer
# already points out of the image. **And outside the image there is no gradient.** A field that has thrown everything out gets no signal to come back: black is a
# trap door. And with raw intensities it is even *the right answer*: for a bright moving image and a dark fixed one, the SSD of
# a black image is a small fraction of that of the aligned one. The network did what it was asked to.
#
# ## Diagnosis from the curves
#
# Three questions, in this order, to curves that any training can log:
#
# 1. Does the honest dissimilarity, on normalised check pairs, end below doing nothing? Then it is **healthy**.
# 2. Does the own loss jump by factors from step to step? Pairs weigh differently: **intensities**.
# 3. Does the own loss *fall* while the honest one climbs? They disagree about what is good: **the sign**.
#
# What remains is an own loss that leaps up in the first steps and stays: **the steps are too large**, by their units or by
# the learning rate.


# %%
def diagnose(curves):
    """The cause, from curves alone."""
    jump = np.log10(curves.loss.abs()).diff().abs().mean()  # 0.3: a factor of two at every step
    if curves.dissimilarity.dropna().iloc[-1] < apart:
        return "healthy"
    if jump > 0.3:
        return "intensities"
    if curves.loss.tail(20).mean() < 0.5 * curves.loss.iloc[0]:
        return "the sign"
    return "steps too large"


found = {name: diagnose(curves) for name, (curves, _) in failed.items()}
for name, cause in found.items():
    print(f"{name}: {cause}")
assert list(found.values()) == ["intensities", "the sign", "steps too large"]

# %% [markdown]
# ## The cures
#
# One change in each call, everything else as it was: network, first weights, pairs, learning rate, number of steps.

# %%
CURES = {
    "A normalised": MISTAKES["A raw intensities"] | {"images": normalised},
    "B 1 − score": MISTAKES["B score for a loss"]
    | {"loss": lambda moved, fixed: 1 - score(moved, fixed)},
    "C voxels to half images": MISTAKES["C voxels for half images"] | {"units": "voxels"},
}
cured = {name: attempt(**settings) for name, settings in CURES.items()}
draw(cured, "#0072B2")

# %%
for (mistake, (wrong, _)), (name, (right, _)) in zip(failed.items(), cured.items(), strict=True):
    after = right.dice.dropna().iloc[-1]
    assert diagnose(right) == "healthy", name
    assert after > nothing + 0.01 and 0.8 < right.dropna().brightness.iloc[-1] < 1.2, name
    print(
        f"{mistake}: Dice {wrong.dice.dropna().iloc[-1]:.3f}; {name}: {after:.3f} ({nothing:.3f} "
        "before)"
    )

# %% [markdown]
# A few dozen steps of a small network are no registration to be proud of, but every one of them now goes the right way.
#
# But for the learning rate, A and C are cured by the same training: what was wrong differs, what is right does not.
#
# | symptom | cause | cure |
# |---|---|---|
# | own loss jumps by powers of ten between steps; black within 20 steps | intensities without a unit | normalise volume by volume |
# | own loss falls beautifully, Dice falls with it | a score minimised | `1 - score`; try the loss on equal images: it must be at its minimum |
# | own loss leaps in the first steps and stays; gradients vanish | field in other units than the sampler's; learning rate too high; last layer not started small | one unit, named in the docstring; small first weights; warm-up |
#
# The course's own `fit` looks out for this: every ten steps it compares the loss with that of doing nothing on the same pairs,
# and stops a run that loses to it (notebook 06).
#
# ## Five checks before any training
#
# All of them are cheaper than one epoch, and each would have caught one of the failures.

# %%
m, f = CHECK[0]
zero = torch.zeros(1, DIMS, *normalised[m].shape[2:], device=session.device)
one = zero.clone()
one[:, 0] = 1.0
moved = sample(normalised[m], one)


def first_field(images):
    torch.manual_seed(session.seed)
    return (
        student_network()
        .to(session.device)(torch.cat([images[bright], images[dark]], dim=1))
        .abs()
        .max()
        .item()
    )


# %%
checks = {
    "a zero field moves nothing": torch.allclose(
        sample(normalised[m], zero), normalised[m], atol=1e-4
    ),
    "a displacement of 1 moves by one voxel": torch.allclose(
        moved[:, :, :-1], normalised[m][:, :, 1:], atol=1e-3
    ),
    "the loss is lowest for equal images": ncc_loss(normalised[f], normalised[f])
    < ncc_loss(normalised[m], normalised[f]),
    "all images have one range": max(i.max().item() for i in normalised) <= 1
    and min(i.min().item() for i in normalised) >= 0,
    "the first field is less than a voxel": first_field(normalised) < 1,
}
for text, passed in checks.items():
    print(f"{'yes' if passed else 'NO '}  {text}")
assert all(bool(passed) for passed in checks.values())
# And the mistakes fail them:
assert not torch.allclose(
    sample(normalised[m], one, units="half images")[:, :, :-1], normalised[m][:, :, 1:], atol=1e-3
)
assert score(normalised[f], normalised[f]) > score(normalised[m], normalised[f])
assert first_field(raw) > 10

# %% [markdown]
# ## The same from the command line

# %%
from typer.main import get_command

from course_utils.commands.app import app

commands = {
    "train on the folder": "train --dataset learn2reg --data-root HippocampusMR --dice-weight 1 "
    "--minutes 15 --out runs/l2r",
    "write the submission": "learn2reg --data-root HippocampusMR --model runs/l2r/best.pt --out "
    "submission.zip",
    "measure it": "learn2reg --data-root HippocampusMR --evaluate submission.zip --out "
    "submission.csv",
    "export the network": "export --model runs/l2r/best.pt --format bundle --out runs/l2r/bundle",
}
for what, command in commands.items():
    name, *arguments = command.split()
    get_command(app).get_command(None, name).make_context(
        name, arguments
    )  # an error where it takes no such options
    print(f"# {what}\npython -m course_utils {command}\n")

# %% [markdown]
# ## What you now have
#
# - A challenge's folder read, trained on all against all, submitted, and measured by the challenge's own definitions.
# - What labels add in training, structure by structure, with an interval, and what it costs in roughness.
# - That failure, three times, a diagnosis that needs only the curves, and three cures of one line.
#
# **What can go wrong.** Choosing the network on the pairs that are judged. Comparing HD95 in voxels with HD95 in mm. A folding
# count of zero that was never computed. Reading only one's own loss. Fields in the network's grid where the task's grid is
# asked for.
#
# **Try it.**
# 1. Run the page on the real task, `COURSE_DATASET=hippocampus`. How much more does supervision gain?
# 2. Make failure C without its mistake: keep the units and raise the learning rate until `diagnose` finds it.
# 3. Let the sampler repeat the border instead of zero (`padding_mode="border"`). What replaces black? Does `diagnose` still work?
# 4. Leave one structure out of the supervised training. Does its Dice gain as much as before?
#
# **References.** Hering et al., *Learn2Reg: comprehensive multi-task medical image registration challenge, dataset and
# evaluation in the era of deep learning*, IEEE TMI 42(3), 2023. Antonelli et al., *The Medical Segmentation Decathlon*, Nature
# Communications 13, 2022 (the hippocampus data). Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical
# image registration*, IEEE TMI 38(8), 2019 (supervision by labels). Nikolov et al., *Clinically applicable segmentation of head
# and neck anatomy for radiotherapy*, JMIR 23(7), 2021 (surface distances). Nyúl and Udupa, *On standardizing the MR image
# intensity scale*, Magnetic Resonance in Medicine 42(6), 1999.
#
# Next: [10 One pair](10_one_pair.ipynb): affine, network and optimisation, for one pair at its best.
