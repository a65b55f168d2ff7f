# %% [markdown]
# # 10 One pair at its best
#
# A network answers in a tenth of a second with what it has learnt from other pairs. But what if *this* pair matters, and you can
# spend a few seconds on it? On this page you build what a good registration pipeline has besides the network: an affine alignment,
# a coarse-to-fine descent, and an optimisation that goes on where the network stops. Each part has to show what it gains, and the
# page says so where it gains nothing. At the end all of them meet a classical method, SimpleITK's demons (and, in the
# full profile, ANTs' SyN), on the same pairs: overlap, distance, folding and seconds.
#
# Afterwards you can say what each part of a pipeline adds, choose the levels of a coarse-to-fine descent, keep an optimisation from
# losing what a network knew, and tell when a pair needs an affine alignment first. You need notebooks 03 (velocity fields) and
# 06 (training).
#
# The page is about volumes. Its first cell fetches the hippocampi of real patients (27 MB). Where that fails, or where you have
# chosen slices and the hippocampi are not there, it takes the volumes of the course's made subjects.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 20 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/10_one_pair.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/10_one_pair.ipynb)

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
# ## Eight pairs and a network

# %%
from course_utils.data.cohorts import is_there, load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.registry import dataset_info

volumes = session.dataset
if volumes == "oasis2d":  # slices: this page needs volumes, and picks them itself
    there = is_there(dataset_info("hippocampus"), session.data_root)
    volumes = "hippocampus" if there else "synthetic"
cohort = load_cohort(volumes, session.data_root)
quick, known = session.profile == "quick", volumes == "synthetic"
chosen = cohort.distinct_pairs("test", 8 if quick else 50)
needed = [subject for pair in chosen for subject in (pair.fixed, pair.moving)]
if volumes != "hippocampus":  # a network has to be trained
    needed += [*cohort.splits["train"], *cohort.splits["val"]]
cache = session.data_root / "cache" / "oasis" if volumes == "oasis" else "memory"
subjects = load_subjects(list(dict.fromkeys(needed)), cohort.info.recipe, cache)
test_pairs = PairDataset(subjects, chosen, truth=known)  # the true map is known of made subjects
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)

# %%
pair = test_pairs[0]
moving, fixed, moving_label, fixed_label = (
    pair[name][None].to(session.device)  # (1, 1, D, H, W)
    for name in ("moving", "fixed", "moving_label", "fixed_label")
)
print(f"{cohort.info.name}: {len(test_pairs)} test pairs of {tuple(moving.shape[2:])} voxels")
print(f"the one that we look at: {pair['name']}")
assert moving.ndim == 5

# %%
from course_utils.plotting import panel

look = {"names": labels, "axis": 0, "fill": True, **cohort.info.view}
panel(
    {"moving": moving, "fixed": fixed},
    labels={"moving": moving_label, "fixed": fixed_label},
    title="the pair that we look at, with its structures",
    **look,
)

# %% [markdown]
# A network to start from. For the hippocampus one ships with the course (`python -m course_utils models` lists it); it has seen the
# training subjects of this split and none of the test subjects, which the cell checks. For other data the cell trains a small one
# for a minute. It is weaker than a network that was trained for hours, so all that is said here about "the network" is about *this* one.

# %%
import shutil

from course_utils import shipped
from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit


def trained_here():
    """A small network, trained on the training subjects of this cohort."""
    out = session.runs / "one_pair"
    shutil.rmtree(out, ignore_errors=True)
    options = {"spatial_dims": 3, "antisymmetric": True}
    train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
    val_pairs = PairDataset(subjects, cohort.pairs("val", count=2))
    config = TrainConfig(steps=100 if quick else 10000, validations=2 if quick else 10)
    objective, card = pair_objective("ncc", coarseness=2), cohort.info.card()
    network = NetworkSpec("pyramid", options).build(session.seed)
    data = (train_pairs, val_pairs, out, config)
    return fit(network, objective, *data, card=card, device=session.device).model.eval()


# %%
if volumes == "hippocampus":
    network = Checkpoint.load("hippocampus").model().to(session.device).eval()
    learnt_from = set(shipped.card("hippocampus")["subjects"]["train"])
else:
    network = trained_here()
    learnt_from = {subject.name for subject in cohort.splits["train"]}
assert not learnt_from & {s.name for one in chosen for s in (one.fixed, one.moving)}

# %% [markdown]
# ## Descend on one pair
#
# Training changes the weights of a network so that the loss falls on many pairs. We may also change *the velocity itself*, so that
# the loss falls on one pair. Then nothing is learnt for other pairs: we only descend. The loop is that of notebook 06, with the
# field in the place of the weights.
#
# The descent may begin with a velocity of zero or with the velocity that the network answers.
#
# **Predict:** beginning with zero, how many steps does the descent need until its loss is below the network's?
#
# > *My prediction:*

# %%
import torch
from torch.nn import functional as F

from course_utils.fields import integrate, resize, warp
from course_utils.losses import diffusion_loss, ncc_loss


def descend(moving, fixed, velocity, steps, factor=1, rate=0.4):
    """Adam on a velocity (1, 3, d, h, w), on images made smaller by a factor."""
    shape = [n // factor for n in moving.shape[2:]]
    moving, fixed = (F.interpolate(image, size=shape, mode="area") for image in (moving, fixed))
    velocity = velocity.clone().requires_grad_()
    optimizer = torch.optim.Adam([velocity], rate, betas=(0.9, 0.99), eps=0.1)
    curve = []
    for _ in range(steps):
        moved = warp(moving, resize(integrate(velocity), shape))
        loss = ncc_loss(moved, fixed) + diffusion_loss(velocity)
        optimizer.zero_grad()
        (loss * velocity[0, 0].numel()).backward()  # a gradient of order one in every voxel
        optimizer.step()
        curve.append(loss.item())
    return velocity.detach(), curve


# %%
quarter = [n // 4 for n in moving.shape[2:]]  # a smooth velocity needs no more
still = torch.zeros(1, 3, *quarter, device=session.device)
with torch.no_grad():
    begun = resize(network(moving, fixed).velocity, quarter)  # (1, 3, 12, 16, 12)
from_zero, curve_zero = descend(moving, fixed, still, 30)
_, careless = descend(moving, fixed, begun, 30)
_, careful = descend(moving, fixed, begun, 30, rate=0.1)

# %%
from course_utils.plotting import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
axes.plot(curve_zero, color=ORANGE, label="from zero")
axes.plot(careless, color=BLUE, linestyle=":", label="from the network, rate 0.4")
axes.plot(careful, color=BLUE, label="from the network, rate 0.1")
axes.axhline(careful[0], color=GREY, linestyle="--", linewidth=1, label="the network's answer")
axes.set(xlabel="step on this pair", ylabel="1 − NCC + smoothness")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
reached = next(step for step, loss in enumerate(curve_zero) if loss < careful[0])
print(f"from zero, the loss passes the network's answer after {reached} steps")
assert careful[0] < curve_zero[0] - 0.05  # the network is a head start
assert 1 < reached < 25  # but no more than some steps
assert careful[-1] < careful[0] - 0.02  # and not the minimum
assert max(careless) > careless[0] + 0.02 > max(careful) + 0.01  # the first fast steps lose it
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Fewer than 25: the line above the figure says how many. A descent sees the gradient of *this* pair, so its first steps are the best
# informed ones, while a network has to answer for pairs that it has never seen.
#
# </details>
#
# The figure holds two more lessons. The network's answer is not the minimum of the loss. The difference has a name, the
# *amortisation gap*, and to close it by a descent is called **instance optimisation**. And a good start asks for small steps:
# Adam's first steps are as long as its rate, however small the gradient is. At the rate 0.4 they throw the lead away and have to
# find it again.
#
# ## Coarse to fine
#
# A gradient sees as far as the images and the field are smooth. If a structure lies further away than its own width, the descent
# finds nothing that it could follow, or it catches on a neighbour. On a small copy of the images the same structures are only a few
# voxels wide and the same shift is only a few voxels long. So we first descend on a small copy, with few voxels of velocity, and go on
# with finer images *and* finer velocities, each of which begins where the coarser one ended.
#
# To know the truth also for a real person, we move the fixed image itself: 12 voxels along one axis. The answer has to
# bring it back by 12 voxels. Both ways get three times twenty steps, and both end with a velocity of half the images' resolution.
#
# **Predict:** the first way works at full resolution all the time, the second on a quarter, a half and the whole of the resolution.
# How many of the 12 voxels does each of them bring the image back?
#
# > *My prediction:*

# %%
import time

shift = torch.zeros(1, 3, *moving.shape[2:], device=session.device)
shift[:, 1] = 12
far = warp(fixed, shift, padding="zeros")  # far(x) = fixed(x + 12)
inside = fixed_label > 0


def stages(factors):
    """The displacements before and after each of the stages, and the seconds of all of them."""
    begun, found = time.perf_counter(), [torch.zeros_like(shift)]
    velocity = still
    for factor in factors:
        velocity = resize(velocity, [n // (2 * factor) for n in far.shape[2:]])
        velocity, _ = descend(far, fixed, velocity, 20, factor)
        found.append(resize(integrate(velocity), far.shape[2:]))
    return found, time.perf_counter() - begun


def error(displacement):
    """How far the structures are from home, in voxels; the truth is minus the shift."""
    return (displacement + shift).norm(dim=1, keepdim=True)[inside].mean().item()


# %%
import pandas as pd

ways = {"full resolution": stages((1, 1, 1)), "coarse to fine": stages((4, 2, 1))}
home = pd.DataFrame(
    {name: [error(one) for one in found] for name, (found, _) in ways.items()},
    index=pd.Index((0, 20, 40, 60), name="steps"),
)
for name, (_, seconds) in ways.items():
    print(f"{name}: {home[name].iloc[-1]:.1f} voxels from home, after {seconds:.1f} s")
assert home["coarse to fine"].iloc[-1] < 2  # at home
assert home["full resolution"].iloc[-1] > home["coarse to fine"].iloc[-1] + 4  # still far away
home.round(1)

# %%
from course_utils.plotting import Slider

frames = {}
for steps, *of_each in zip(home.index, *(found for found, _ in ways.values()), strict=True):
    pictures, contours = {"fixed": fixed}, {"fixed": fixed_label}
    for name, displacement in zip(ways, of_each, strict=True):
        title = f"{name}: {home[name][steps]:.1f} voxels off"
        pictures[title] = warp(far, displacement, padding="zeros")
        contours[title] = warp(
            warp(fixed_label, shift, mode="nearest", padding="zeros"),
            displacement,
            mode="nearest",
            padding="zeros",
        )
    references = dict.fromkeys(pictures, fixed_label)
    frames[str(steps)] = panel(pictures, labels=contours, references=references, **look)
Slider(frames, "steps", start="60")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Coarse to fine brings the image home to less than 2 voxels. At full resolution it stays at least 4 voxels further away: most voxels see
# nothing of the structure that should be there, so their gradient says nothing about the way.
#
# </details>
#
# Turn the slider: the coarse stage alone does most of the way. (Where the slider does not turn, read the table.) It is also the
# cheapest stage, because a level of half the size has an eighth of the voxels.
#
# A coarse level has its price, too: it knows nothing of small structures. For pairs that lie on each other already,
# as in the table at the end, there is little to gain. There coarse to fine saves time, and no more is claimed here.
#
# The tested version is `course_utils.scans.optimise.optimise`. It lets the length of the steps fall on each level, and it compares the
# images' edges too. Where it begins with a network's velocity it takes half the rate, leaves out the coarsest level, and changes
# the velocity on a grid of a third of the images', so that what the network drew finer than that stays. It returns the best
# velocity that it has met: by its own loss it is never worse than its start. By *your* measure it may be.
#
# ## Affine first
#
# The scans of this cohort lie almost on each other. Yours may not: another scanner, another position of the head. So the next cell
# turns the moving image by 25 degrees and shifts it.
#
# **Predict:** which of these brings the posed image back best: the network, the optimisation, or an affine alignment and then one
# of the two?
#
# > *My prediction:*

# %%
import numpy as np

from course_utils.data.grids import Grid
from course_utils.fields import affine_to_field

angle = np.deg2rad(25)
pose = np.eye(4)  # millimetres to millimetres, from the grid's first voxel
pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
centre = np.array(moving.shape[2:]) * spacing / 2
pose[:3, 3] = centre - pose[:3, :3] @ centre + np.array([3, -4, 2]) * spacing

grid = Grid(tuple(moving.shape[2:]), np.diag([*spacing, 1.0]))


def as_field(millimetres):
    """The displacement in voxels of an affine map of millimetres: (1, 3, D, H, W)."""
    voxels = np.linalg.inv(grid.affine) @ millimetres @ grid.affine
    matrix = torch.tensor(voxels[None, :3], dtype=torch.float32, device=session.device)
    return affine_to_field(matrix, grid.shape)


posed = warp(moving, as_field(pose), padding="zeros")
posed_label = warp(moving_label, as_field(pose), mode="nearest", padding="zeros")

# %% [markdown]
# `affine.align` finds twelve numbers: three of translation, three of rotation, six of stretch and shear. It begins at three places
# (as the images lie; with the centres of the volumes on each other; with the centres of mass on each other), improves each start on
# a coarse copy as a rigid map, and goes on with the best. It compares the images by one correlation over the whole image, or by their
# mutual information where the contrasts differ.

# %%
from course_utils.metrics import dice
from course_utils.scans import affine
from course_utils.scans.optimise import optimise

begun = time.perf_counter()
found = affine.align(posed, fixed, grid, grid)
shown = np.array2string(found, precision=2, suppress_small=True)
print(f"{time.perf_counter() - begun:.1f} s; fixed mm to moving mm:\n{shown}")

first = as_field(found)
aligned = warp(posed, first, padding="zeros")


def mean_dice(displacement, label=posed_label):
    moved = warp(label, displacement, mode="nearest", padding="zeros")
    return dice(moved, fixed_label, list(labels)).nanmean().item()


# %% [markdown]
# Two maps in a row are one map: `compose` gives the single field, so the image is interpolated only once.

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
assert gain["affine, network"] > gain["network"] + 0.02
assert gain["affine, optimised"] > gain["affine"] + 0.02
assert gain["affine, optimised"] > max(gain["network"], gain["optimised"]) + 0.02

# %%
pictures = {"moving": posed, "fixed": fixed} | {
    f"{name}, Dice {gain[name]:.2f}": warp(posed, field, padding="zeros")
    for name, field in list(fields.items())[1:]
}
moved_labels = [posed_label, fixed_label] + [
    warp(posed_label, field, mode="nearest", padding="zeros") for field in list(fields.values())[1:]
]
filled = dict(zip(pictures, moved_labels, strict=True))
panel(pictures, labels=filled, references=dict.fromkeys(pictures, fixed_label), columns=4, **look)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The affine alignment first. Each of the two gains by it. A network knows the poses that it was trained on. The optimisation pays for
# every difference between neighbouring vectors, so a turn, which deforms nothing, costs it much. Twelve parameters turn for nothing.
#
# </details>
#
# `register` asks the moments of the scans whether they need an alignment: how much of the field of view they share, how far their
# centres of mass are from each other, how their long axes lie. It says what it found:

# %%
from course_utils.scans.affine import apart

for name, image in (("as the cohort has it", moving), ("posed", posed)):
    print(f"{name}: {apart(image, fixed, grid, grid) or 'nothing says that they need it'}")
assert apart(posed, fixed, grid, grid)

# %% [markdown]
# ## The peers
#
# Two classical methods are used every day. **Demons** (SimpleITK) push every voxel along the gradient of the difference, then smooth
# the field. **SyN** (ANTs) follows the gradient of the local correlation from both images at once. Both packages are optional: `make lab`
# installs SimpleITK, `pip install antspyx` installs the other, and the rows of a package that is missing are missing. SyN is the
# slowest method here, so only the full profile runs it. What these methods answer must become *our* displacement: ITK counts axes in the order x, y, z, which is the reverse of an array's order.

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
    field = sitk.Image(images[0].GetSize(), sitk.sitkVectorFloat64)
    for factor in (4, 2, 1):
        level = [sitk.BinShrink(image, [factor] * 3) for image in images]
        field = sitk.Resample(field, level[0])
        field.CopyInformation(level[0])
        field = method.Execute(*level, field)
    vectors = sitk.GetArrayFromImage(sitk.Resample(field, images[0]))
    vectors = vectors[..., ::-1].copy()  # (D, H, W, 3), in the order of the array's axes
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])


# %%
import tempfile

import nibabel as nib


def syn(moving, fixed):
    """ANTs' SyN with local correlation; affine and deformation composed to one field."""
    import ants

    images = [ants.from_numpy(image[0, 0].cpu().numpy()) for image in (fixed, moving)]
    settings = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (40, 20, 10)}
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/"
        maps = ants.registration(*images, "SyN", outprefix=prefix, **settings)["fwdtransforms"]
        composed = ants.apply_transforms(*images, maps, compose=prefix)
        vectors = nib.load(composed).get_fdata()[:, :, :, 0]  # (D, H, W, 3), voxels of 1 mm
    return SimpleNamespace(displacement=torch.from_numpy(vectors).float().movedim(-1, 0)[None])


# %%
methods_of = {"SimpleITK": ("demons (SimpleITK)", demons), "ants": ("SyN (ANTs)", syn)}
peers = {}
for package, (name, method) in methods_of.items():
    if importlib.util.find_spec(package) is None:
        wanted = package.replace("ants", "antspyx")
        print(f"{name} is not installed, so its rows are missing: pip install {wanted}")
    elif package == "ants" and quick:
        print(f"{name} takes half of the page's minutes: COURSE_PROFILE=full runs it")
    else:
        peers[name] = method
print("peers:", ", ".join(peers) or "none")

# %% [markdown]
# Is the bridge right? A picture cannot tell, because a field whose axes are reversed looks as smooth as any other. So we ask each
# peer for a translation that we know, two voxels along the first axis, and read sign and axis from its answer.

# %%
truth = torch.zeros(1, 3, *grid.shape, device=session.device)
truth[:, 0] = 2.0
shifted = warp(moving, truth)
for name, method in peers.items():
    field = method(moving, shifted).displacement[0]
    within = moving_label[0, 0].cpu() > 0
    mean = [round(component[within].mean().item(), 2) for component in field]
    print(f"{name}: {mean} voxels, truth [2, 0, 0]")
    assert abs(mean[0] - 2) < 0.5 and max(map(abs, mean[1:])) < 0.3, name

# %% [markdown]
# ## All of them, on the same pairs
#
# One call per method and pair. Each method gets the same two images and answers with one displacement. It is measured by what it has
# not seen: the labels.
#
# **Predict:** which of the methods will have the best mean Dice?
#
# > *My prediction:*

# %%
from course_utils.evaluation import evaluate
from course_utils.networks import Registration


def affine_only(moving, fixed):
    with torch.inference_mode(False):
        displacement = as_field(affine.align(moving.clone(), fixed.clone(), grid, grid))
    return Registration(moving, displacement)


methods = {
    "affine": affine_only,
    "network": network,
    "optimised": lambda m, f: optimise(m, f),
    "network, optimised": lambda m, f: optimise(m, f, start=network(m, f).velocity, iterations=50),
    **peers,
}
tables = {
    name: evaluate(method, test_pairs, labels, spacing, device=session.device)
    for name, method in methods.items()
}

# %%
from course_utils.evaluation import summarise

measures = ["dice_after", "hd95_mm_after", "folding_percent", "sdlogj", "seconds"]
if known:
    measures.insert(2, "tre_mm_after")
means = {
    name: summarise(table).loc["overall"].xs("mean", level=1) for name, table in tables.items()
}
overview = pd.DataFrame({name: of[measures] for name, of in means.items()}).T
before = means["affine"]
overview.loc["before"] = [
    before.get(one.replace("after", "before"), 0) if "after" in one else 0 for one in measures
]
overview = overview.sort_values("dice_after")
overview.round(3)


# %%
def by_pair(table, column="dice_after"):
    return table.groupby("pair", sort=False)[column].mean()


scores = {"before": by_pair(tables["affine"], "dice_before")}
scores |= {name: by_pair(tables[name]) for name in overview.index if name != "before"}
scores = dict(sorted(scores.items(), key=lambda item: item[1].mean()))
figure = Figure(figsize=(9, 3.4), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
for one in zip(*scores.values(), strict=True):  # a line for each pair
    left.plot(one, range(len(scores)), color="#BBBBBB", linewidth=0.8, zorder=1)
for row, (name, values) in enumerate(scores.items()):
    colour = GREY if name == "before" else ORANGE if name in peers else BLUE
    left.scatter(values, [row] * len(values), s=14, color=colour, zorder=2)
    left.plot(values.mean(), row, "|", color="black", markersize=18, zorder=3)
    if name != "before":
        right.scatter(by_pair(tables[name], "seconds"), [row] * len(values), s=14, color=colour)
left.set(xlabel="mean Dice of a pair; the black bar is the mean", ylabel="method")
right.set(xlabel="seconds per pair", xscale="log")
left.set_yticks(range(len(scores)), scores)
for axes in (left, right):
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
figure

# %%
from course_utils.evaluation import paired_comparison

score = overview.dice_after
assert score["optimised"] > score["before"] + 0.05 and score["network"] > score["before"] + 0.01
assert score["network, optimised"] > score["affine"] + 0.02
assert overview.loc[["optimised", "network, optimised"], "folding_percent"].max() < 0.5


def verdict(a, b):
    """What the pairs say of A against B: in words, from the interval of the mean difference."""
    of = paired_comparison(tables[a], tables[b], "dice_after")
    word = "better than" if of.low > 0 else "worse than" if of.high < 0 else "not told apart from"
    print(f"{a} is {word} {b}: {of.mean_difference:+.3f} ({of.low:+.3f} to {of.high:+.3f})")
    return of.mean_difference


verdict("network", "affine")
verdict("network, optimised", "network")
little = verdict("network, optimised", "optimised")
for name in peers:
    verdict("network, optimised", name)
assert abs(little) < 0.05  # to descend matters more than where one begins

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The last row of the table has the best mean, and the printed lines say which differences eight pairs can tell from
# chance. The two optimised rows end within 0.05 of each other, which the cell asserts: they minimise the same kind of loss, and
# the start is soon forgotten.
#
# </details>
#
# So what is the network good for? Where its row is fast and high enough, it is all that you need. Where it is followed by a
# descent, it saves steps. It does *not* make the end much better, and on this page no sentence claims that it does.
#
# Each grey line is one pair. Read the figure along the lines: a pair that is hard for one method is mostly hard for the others, which
# is why methods have to be compared pair by pair (notebook 07). The peers are orange. They run with their usual settings, and ours
# were tuned on the course's data: do not read a verdict on a method from eight pairs. The seconds are those of the machine that ran the
# page; compare them with each other and not with a paper's.
# [Results](../docs/results.md) has fifty pairs and three more peers, by `python -m tests.benchmarks refine --model hippocampus`.
#
# ## What a field costs
#
# Dice does not see what happens inside of a structure. The Jacobian determinant does: it says how much each voxel grows or shrinks.
#
# **Predict:** after the network, the optimisation raises the overlap. Does it make the field rougher or smoother?
#
# > *My prediction:*

# %%
from course_utils.fields import jacobian_determinant
from course_utils.plotting import jacobian

with torch.no_grad():
    maps = {
        name: methods[name](moving, fixed).displacement
        for name in ("network", "optimised", "network, optimised")
    }
determinants = {name: jacobian_determinant(field.float()).cpu() for name, field in maps.items()}
rough = overview.sdlogj
print(f"SDlogJ: network {rough['network']:.3f}, then optimised {rough['network, optimised']:.3f}")
assert rough["network, optimised"] > rough["network"]
jacobian(determinants, axis=0, **cohort.info.view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Rougher: SDlogJ rises. The change of the velocity is added to what the network has answered, and what is left to gain is finer than
# what the network has found.
#
# </details>
#
# ## The same in MONAI
#
# MONAI has no function for instance optimisation, but it has all the parts: `DVF2DDF` integrates a velocity, `Warp` moves an image,
# `LocalNormalizedCrossCorrelationLoss` and `DiffusionLoss` make the loss, and `DiceMetric` measures. Twelve lines put them together.

# %%
import warnings

from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from monai.metrics import DiceMetric
from monai.networks import one_hot
from monai.networks.blocks import DVF2DDF, Warp

warnings.filterwarnings("ignore", module="monai")
similarity = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=9)
integral, mover, smooth = DVF2DDF(num_steps=7), Warp(), DiffusionLoss()
velocity = still.clone().requires_grad_()  # (1, 3, D/4, H/4, W/4)
optimizer = torch.optim.Adam([velocity], 0.4, betas=(0.9, 0.99), eps=0.1)
for _ in range(30):
    whole = F.interpolate(integral(velocity), moving.shape[2:], mode="trilinear") * 4  # voxels
    loss = similarity(mover(moving, whole), fixed) + smooth(velocity)
    optimizer.zero_grad()
    (loss * velocity[0, 0].numel()).backward()
    optimizer.step()


# %%
def monai_dice(displacement):
    moved = Warp(mode="nearest", padding_mode="zeros")(moving_label.float(), displacement)
    encoded = [one_hot(image.round(), max(labels) + 1) for image in (moved, fixed_label)]
    return DiceMetric(include_background=False)(*encoded)[0, [value - 1 for value in labels]]


ours = resize(integrate(from_zero), moving.shape[2:])
theirs = whole.detach()
both = {"ours": ours, "MONAI's": theirs}
values = {name: monai_dice(field).nanmean().item() for name, field in both.items()}
print("mean Dice by DiceMetric:", {name: round(value, 3) for name, value in values.items()})
assert abs(values["ours"] - mean_dice(ours, moving_label)) < 1e-4  # one measure
assert abs(values["MONAI's"] - values["ours"]) < 0.05  # and nearly one answer
assert values["MONAI's"] > mean_dice(torch.zeros_like(ours), moving_label) + 0.03

# %% [markdown]
# The two loops end within 0.05 of Dice of each other, but not at the same field: MONAI's correlation pads its windows with zeros
# and counts flat windows in another way, and its `DVF2DDF` lets the velocity fall to zero outside of the image. Note what `one_hot`
# is there for: `DiceMetric` takes a label map of one channel as well, and then it measures nothing but label 1.
#
# ## What you now have
#
# - **Instance optimisation**: the answer of a network that was trained on images alone is a start and not an end. `register` goes on
#   from it with a few dozen steps. The answer of a network that was trained with *labels* is an end. Such a network knows where structures are,
#   while the descent sees intensities only, so it would lower its loss and the overlap with it. There `register` adds nothing unless
#   you ask for it with `--iterations`.
# - **Coarse to fine**: the way home from 12 voxels, where full resolution gets lost. For pairs that lie on each other it saves
#   time.
# - **Affine first**, where scans do not lie on each other: `register` notices, `--affine` and `--no-affine` decide.
# - A fair table with a classical peer, through a bridge that you have tested with a known translation.
#
# **What can go wrong.** A field whose axes are reversed gives a plausible picture and a wrong Dice, so test the bridge. Too many
# steps with too little smoothness raise the similarity and spoil the anatomy, so watch SDlogJ. Seconds that were measured on a busy
# machine say little. Two interpolations blur where one would do.
#
# **Try it.**
# 1. *(easy)* Shift the image by 4, 8 and 16 voxels instead of 12. From which shift on does full resolution get lost? When does coarse to
#    fine?
# 2. *(easy)* Pose the image by 40 degrees. Does the affine alignment still find home? What would a fourth start have to be?
# 3. *(middle)* Give the optimisation 20 steps, and then 500. From where on does Dice no longer follow the loss?
# 4. *(middle)* Multiply the smoothness in `descend` by 0.1. What do the loss, Dice and the folding say?
# 5. *(hard)* Take the network `hippocampus-labels`, which was trained with labels, on the hippocampi. What does the optimisation do to its
#    Dice, and what to its loss? Explain both with one sentence.
#
# **References.** Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical image registration*, IEEE TMI 38(8),
# 2019, section V-E, [doi:10.1109/TMI.2019.2897538](https://doi.org/10.1109/TMI.2019.2897538). Vercauteren et al., *Diffeomorphic
# demons*, NeuroImage 45(1), 2009, [doi:10.1016/j.neuroimage.2008.10.040](https://doi.org/10.1016/j.neuroimage.2008.10.040). Avants et
# al., *Symmetric diffeomorphic image registration with cross-correlation*, Medical Image Analysis 12(1), 2008,
# [doi:10.1016/j.media.2007.06.004](https://doi.org/10.1016/j.media.2007.06.004). Jenkinson and Smith, *A global optimisation method
# for robust affine registration of brain images*, Medical Image Analysis 5(2), 2001,
# [doi:10.1016/S1361-8415(01)00036-6](https://doi.org/10.1016/S1361-8415(01)00036-6). Siebert et al., *Fast 3D registration with accurate
# optimisation and little learning for Learn2Reg 2021*, MICCAI 2021.
#
# Next: [11 Your own scans](11_your_own_scans.ipynb), from DICOM to a registered pair.
