# %% [markdown]
# # 05 Losses
#
# A network does what its loss pays for, not what you meant. Here you build the two classic similarities by hand, SSD and
# local NCC, and look at the landscapes they make; find out which of them can be paid off with a wrong map; see what
# smoothness costs and buys; make labels differentiable; and break a loss in half precision. By the end you know which
# number to trust, and why the loss itself is not it.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/05_losses.ipynb)

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
# ## A pair whose answer is known
#
# Two slices of the built-in cohort, each with its own contrast, bias field and noise. The true map between them is known,
# so we can ask every loss the question that real data never answers: *does the right map have the lowest value?*

# %%
import math

import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subject, load_subjects
from course_utils.data.synthetic import make_cohort
from course_utils.fields import warp
from course_utils.plotting import Figure, panel

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
pair = flat.pairs("test", count=1)[0]
subjects = load_subjects((pair.fixed, pair.moving), flat.info.recipe)
item = PairDataset(subjects, [pair], truth=True)[0]
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, 96, 96)
moving_label, fixed_label = item["moving_label"][None], item["fixed_label"][None]
truth = item["true_displacement"][None]  # (1, 2, 96, 96), voxels
aligned = warp(moving, truth)
panel(
    {"moving": moving, "moving, by the true map": aligned, "fixed": fixed},
    spacing=flat.info.spacing,
)

# %% [markdown]
# ## SSD, by hand
#
# The mean squared difference (a *sum* in the name, by tradition). One line:

# %%
from course_utils.losses import ncc_loss, ssd_loss


def ssd(moved, fixed):
    return ((moved - fixed) ** 2).mean()


before, right = ssd(moving, fixed), ssd(aligned, fixed)
assert torch.isclose(before, ssd_loss(moving, fixed)) and torch.isclose(
    right, ssd_loss(aligned, fixed)
)
assert 0.1 * before < right < before
print(f"SSD: {before:.4f} before, {right:.4f} at the true map, not 0")

# %% [markdown]
# At the truth a third of the loss is still there: what two scanners see of the same tissue differs. SSD cannot know
# that. It says "equal tissue, equal number", and the rest of the difference is an invitation to deform something.
#
# ## NCC, by hand
#
# Correlation only asks that the one image be a *line* $a x + b$ of the other, and locally only within a small window, so
# that each place may have its own $a$ and $b$. Means over the window come from a box filter; then
#
# $$\text{cc}^2 = \frac{\bigl(\overline{mf} - \bar m \bar f\bigr)^2}
# {\bigl(\overline{m^2} - \bar m^2\bigr)\bigl(\overline{f^2} - \bar f^2\bigr) + \varepsilon}$$

# %%
from torch.nn import functional as F


def local_correlation(moved, fixed, window=9, epsilon=1e-8):
    """Squared local correlation of 2-D images (B, 1, H, W), voxel by voxel."""

    def box(image):  # mean over the window, of the voxels inside the image
        return F.avg_pool2d(image, window, stride=1, padding=window // 2, count_include_pad=False)

    m, f = (
        moved - moved.mean(),
        fixed - fixed.mean(),
    )  # an offset changes nothing, and small numbers subtract better
    covariance = box(m * f) - box(m) * box(f)
    variance_m = (box(m * m) - box(m) ** 2).clamp(min=0)
    variance_f = (box(f * f) - box(f) ** 2).clamp(min=0)
    return covariance**2 / (variance_m * variance_f + epsilon)


# %%
for window in (5, 9, 21):
    for image in (moving, aligned):
        by_hand = 1 - local_correlation(image, fixed, window).mean()
        assert torch.isclose(by_hand, ncc_loss(image, fixed, window), atol=1e-4)
panel(
    {
        "before": local_correlation(moving, fixed),
        "by the true map": local_correlation(aligned, fixed),
        "two unrelated noises": local_correlation(*torch.rand(2, 1, 1, 96, 96)),
    },
    spacing=flat.info.spacing,
    cmap="viridis",
    colourbar="squared local correlation",
    limits=(0, 1),
)

# %% [markdown]
# The same numbers as `ncc_loss`. Aligned anatomy is bright wherever there is an edge; flat tissue and background show
# noise, or nothing, and even a perfect map does not get to 1. NCC too has no zero to reach.
#
# ## A border that correlates with everything
#
# MONAI's `LocalNormalizedCrossCorrelationLoss` filters with zeros outside the image. **Predict:** two images of unrelated
# noise. What is their correlation, in the middle and at the border?

# %%
from monai.losses import LocalNormalizedCrossCorrelationLoss

generator = torch.Generator().manual_seed(session.seed)
a, b = torch.rand(2, 1, 1, 48, 64, 48, generator=generator)
volume = LocalNormalizedCrossCorrelationLoss(3, kernel_size=9, reduction="none")(
    a, b
).neg()  # (1, 1, 48, 64, 48)
ours = 1 - ncc_loss(a, b, 9)
middle = volume[..., 4:-4, 4:-4, 4:-4].mean()
print(
    f"unrelated noise: MONAI {volume.mean():.4f}, of that {middle:.4f} in the middle; course_utils "
    f"{ours:.4f}"
)
assert volume.mean() > 20 * ours and middle < 0.01 and ours < 0.01

figure = Figure(figsize=(6.4, 2.8), layout="constrained")
axes = figure.subplots()
axes.plot(
    volume[0, 0, :, 4:-4, 4:-4].mean(dim=(1, 2)), color="#D55E00", label="MONAI, zeros outside"
)
axes.axhline(ours, color="#0072B2", label="voxels inside only (mean)")
axes.set(
    xlabel="voxel along axis 0",
    ylabel="squared correlation",
    title="Two unrelated noise volumes, window 9",
)
axes.legend(fontsize=8)
figure

# %% [markdown]
# At the border both windows hold "image, then zeros": the same step in both, which is correlation, of the frame with
# itself. A brain in a black frame has zeros there anyway and nothing changes. A tightly cropped organ is paid for its
# frame. That is why the course counts only the voxels inside.
#
# Away from the border one difference remains: $\varepsilon$, which decides what counts as structure. MONAI's is a floor
# under each variance (of the window's *sum*); ours is added to the product of the two, and damps windows with less than
# 1 % of contrast. Without it, the two agree wherever there is any structure at all. It should stay small: the common
# $10^{-5}$ is meant for sums over a window, and added to means it would silence low-contrast anatomy too.

# %%
inner = (..., slice(8, -8), slice(8, -8))
theirs = -LocalNormalizedCrossCorrelationLoss(2, kernel_size=9, reduction="none")(aligned, fixed)[
    inner
]
without, damped = (local_correlation(aligned, fixed, epsilon=e)[inner] for e in (1e-14, 1e-5))
structure = damped > 0.05
difference = (theirs - without)[structure].abs().max().item()
assert difference < 1e-3
print(
    f"largest difference to MONAI without ε: {difference:.0e}; "
    f"ε = 1e-5 would lower the mean by {(without - damped)[structure].mean():.2f}"
)

# %% [markdown]
# ## What a loss looks like from afar
#
# A network follows the slope of its loss. So we take one subject, move it away from itself, and plot what the slope
# would tell: translation along one axis, and rotation about the middle. **Predict:** which window sees furthest?

# %%
from course_utils.fields import affine_to_field

cohort = load_cohort(session.dataset)
one = load_subject(cohort.splits["test"][0], cohort.info.recipe)
image = one["image"][None]  # (1, 1, *spatial)
if image.ndim == 5:  # of a volume, the coronal slice in the middle
    image = image[:, :, :, image.shape[3] // 2]
shape = tuple(image.shape[2:])
centre = (torch.tensor(shape) - 1) / 2


def moved_by(image, shift=0.0, degrees=0.0):
    """The image, rotated about its middle and shifted along axis 0 (voxels)."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    linear = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    offset = centre - linear @ centre + torch.tensor([float(shift), 0.0])
    return warp(image, affine_to_field(torch.cat([linear, offset[:, None]], dim=1)[None], shape))


measures = {"SSD": ssd_loss} | {
    f"NCC, window {w}": lambda m, f, w=w: ncc_loss(m, f, w) for w in (5, 9, 21)
}
shifts, angles = torch.arange(-12, 12.5, 0.5).tolist(), torch.arange(-40, 41, 2.0).tolist()
by_shift = {
    n: [f(moved_by(image, shift=s), image).item() for s in shifts] for n, f in measures.items()
}
by_angle = {
    n: [f(moved_by(image, degrees=d), image).item() for d in angles] for n, f in measures.items()
}


# %%
def scaled(values):
    """To [0, 1]: losses of different units in one picture."""
    values = torch.tensor(values)
    return (values - values.min()) / (values.max() - values.min())


def basin(places, values):
    """Width over which the loss is below half of its range."""
    return len([v for v in scaled(values) if v < 0.5]) * (places[1] - places[0])


colours = dict(zip(measures, ("#777777", "#56B4E9", "#0072B2", "#009E73"), strict=True))
figure = Figure(figsize=(8.6, 3), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
for name, colour in colours.items():
    left.plot(shifts, scaled(by_shift[name]), color=colour, label=name)
    right.plot(angles, scaled(by_angle[name]), color=colour)
left.set(xlabel="translation (voxel)", ylabel="loss, scaled to 0 … 1")
right.set(xlabel="rotation (degree)")
left.legend(fontsize=8)

width = {name: basin(shifts, by_shift[name]) for name in measures}
assert width["NCC, window 5"] < width["NCC, window 9"] < width["NCC, window 21"]
assert all(shifts[values.index(min(values))] == 0 for values in by_shift.values())
print("width at half height (voxel):", ", ".join(f"{name} {w:g}" for name, w in width.items()))
figure

# %% [markdown]
# A small window makes a needle: exact at the bottom, and flat a few voxels away, where there is nothing to follow. A
# large window sees further and averages away the locality that made NCC robust. 9 is the compromise of the papers, for
# brains that an affine registration has already put within a few voxels. A network sees further than this, because its
# receptive field is larger than the window. But the *gradient* that trains it comes from the window, and far away it is
# nearly zero. That is one reason to go from coarse to fine.
#
# ## Another contrast
#
# Now the fixed image gets another appearance: a gamma curve, a bias field, an inverted contrast (as T1 against T2). The
# anatomy does not move. We shift and zoom the original across it. **Predict:** whose minimum stays where it belongs?


# %%
def zoomed(image, shift=0.0, zoom=1.0):
    middle = (torch.tensor(image.shape[2:]) - 1) / 2
    offset = (1 - zoom) * middle + torch.tensor([float(shift), 0.0])
    matrix = torch.cat([zoom * torch.eye(2), offset[:, None]], dim=1)[None]  # (1, 2, 3)
    return warp(image, affine_to_field(matrix, image.shape[2:]))


ramp = torch.linspace(-1, 1, fixed.shape[2]).view(1, 1, -1, 1)
brain = fixed > 0.05 * fixed.max()
appearances = {
    "as it is": fixed,
    "gamma 2.5": fixed.clamp(min=0) ** 2.5,
    "bias field": fixed * (1.2 * ramp).exp(),
    "inverted": torch.where(brain, fixed.max() - fixed, fixed),
}
ways = {
    "translation (voxel)": {s / 4: zoomed(fixed, shift=s / 4) for s in range(-24, 25)},
    "zoom (%)": {z: zoomed(fixed, zoom=1 + z / 100) for z in range(-15, 16)},
}
similarities = {"SSD": ssd_loss, "NCC, window 9": ncc_loss}
curves = {
    (loss, way, name): [similarities[loss](m, other).item() for m in images.values()]
    for loss in similarities
    for way, images in ways.items()
    for name, other in appearances.items()
}
lowest = {key: list(ways[key[1]])[values.index(min(values))] for key, values in curves.items()}

# %%
figure = Figure(figsize=(8.6, 5), layout="constrained")
grid = figure.subplots(2, 2, sharey="row")
for row, loss in zip(grid, similarities, strict=True):
    for axes, (way, images) in zip(row, ways.items(), strict=True):
        for name, colour in zip(
            appearances, ("#777777", "#0072B2", "#009E73", "#D55E00"), strict=True
        ):
            axes.plot(list(images), curves[loss, way, name], color=colour, label=name)
            axes.plot(lowest[loss, way, name], min(curves[loss, way, name]), "o", color=colour)
        axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set(xlabel=way, title=loss)
    row[0].set_ylabel("loss")
grid[1, 0].legend(fontsize=8, loc="lower left")

assert all(
    abs(at) <= 1 for (loss, _, _), at in lowest.items() if loss != "SSD"
)  # 1 %, a quarter of a voxel
assert all(
    abs(at) <= 0.25 for (loss, way, _), at in lowest.items() if loss != "SSD" and way != "zoom (%)"
)
assert (
    lowest["SSD", "zoom (%)", "gamma 2.5"] >= 1
    and lowest["SSD", "translation (voxel)", "bias field"] <= -0.25
)
assert (
    abs(lowest["SSD", "translation (voxel)", "inverted"]) > 1
    and abs(lowest["SSD", "zoom (%)", "inverted"]) > 10
)
figure

# %% [markdown]
# SSD shrinks or grows the brain to make up for a gamma, moves it for a bias, and runs away from an inverted contrast. All
# of it lowers its loss. NCC does not move by more than one step of the plot. It pays elsewhere: it is costlier, it sees
# less far, and in flat regions it correlates noise.
#
# ## Smoothness: diffusion and bending
#
# Similarity alone does not define a map: within a flat region any displacement looks the same. The regulariser chooses.
# *Diffusion* charges first derivatives, *bending* second ones. By hand, diffusion is neighbours minus neighbours:

# %%
from course_utils.losses import bending_loss, diffusion_loss


def diffusion(field):
    along_0 = (field[:, :, 1:] - field[:, :, :-1]).square().mean()
    along_1 = (field[:, :, :, 1:] - field[:, :, :, :-1]).square().mean()
    return (along_0 + along_1) / 2


angle = torch.deg2rad(torch.tensor(10.0))
rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
noise = torch.randn(1, 2, 96, 96, generator=torch.Generator().manual_seed(session.seed))
fields = {
    "translation by 5 voxels": torch.full((1, 2, 96, 96), 5.0),
    "rotation by 10 degrees": affine_to_field(F.pad(rotation, (0, 1)), (96, 96)),
    "zoom of 10 %": affine_to_field(F.pad(1.1 * torch.eye(2)[None], (0, 1)), (96, 96)),
    "the true map": truth,
    "noise of 1 voxel": noise,
}
print(f"{'':>24} {'diffusion':>10} {'bending':>10}")
for name, field in fields.items():
    assert torch.isclose(diffusion(field), diffusion_loss(field), rtol=1e-4)
    print(f"{name:>24} {diffusion_loss(field):>10.5f} {bending_loss(field):>10.5f}")
for name in list(fields)[:3]:
    assert bending_loss(fields[name]) < 1e-6
assert diffusion_loss(fields["rotation by 10 degrees"]) > 0.01

# %% [markdown]
# A translation is free in both. A rotation or a zoom costs nothing in bending and something in diffusion: bending
# suits images that were not affinely aligned; diffusion also pulls an unneeded zoom back to nothing. What either *does*
# to a field is its gradient. We push one voxel up and look at who is pulled where:

# %%
spike = torch.zeros(1, 2, 15, 15)
spike[0, 0, 7, 7] = 1
figure = Figure(figsize=(7.2, 3.2), layout="constrained")
stencils = {}
losses_of = {"diffusion": diffusion_loss, "bending": bending_loss}
for axes, (name, loss) in zip(figure.subplots(1, 2), losses_of.items(), strict=True):
    field = spike.clone().requires_grad_()
    loss(field).backward()
    pull = -field.grad[0, 0] / field.grad[0, 0].abs().max()  # the step of a descent, largest 1
    stencils[name] = pull
    window = pull[4:11, 4:11]
    axes.imshow(
        window.T, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", extent=(-3.5, 3.5, -3.5, 3.5)
    )
    for i, j in (window.abs() > 0.01).nonzero().tolist():
        look = {"ha": "center", "va": "center", "fontsize": 8}
        look["color"] = "w" if window[i, j] < -0.5 else "k"
        axes.text(i - 3, j - 3, f"{window[i, j]:.2f}", look)
    axes.set(title=f"one step of {name}", xlabel="voxel along axis 0", ylabel="voxel along axis 1")
near, far = (stencils["diffusion"][7, n] for n in (8, 9))
assert near > 0 and abs(far) < 1e-6  # neighbours only
near, far = (stencils["bending"][7, n] for n in (8, 9))
assert near > 0 > far  # reaches two voxels, and overshoots
figure

# %% [markdown]
# Diffusion is heat: the spike goes down, its four neighbours come up. Bending is a stiff plate: it reaches two voxels and
# pushes the further ones *down*, as a ruler does that is bent over a finger.
#
# ## How much of it?
#
# No network now: the velocity itself is the unknown, on the half-resolution grid, and Adam moves it. Eight weights at a
# time, as a batch (the regulariser is quadratic, so a weight $w$ is a field times $\sqrt w$). We watch what counts:
# overlap, the true error, folding. **Predict:** does the lowest SSD give the smallest error?

# %%
from course_utils.fields import integrate, resize
from course_utils.metrics import dice, folding_percent, target_registration_error

WEIGHTS = torch.logspace(-3, 1, 8)
STEPS = 60 if session.profile == "quick" else 200
labels, mm, inside = list(flat.info.labels), flat.info.spacing, fixed_label > 0


def optimise(similarity, weights=WEIGHTS, squarings=7, regulariser=diffusion_loss):
    """Displacements (W, 2, 96, 96) that align the pair, one for each weight of the regulariser."""
    n = len(weights)
    velocity = torch.zeros(n, 2, 48, 48, requires_grad=True)
    images = [image.expand(n, -1, -1, -1) for image in (moving, fixed)]
    optimizer = torch.optim.Adam([velocity], lr=0.15)
    for _ in range(STEPS):
        displacement = resize(integrate(velocity, squarings), fixed.shape[2:])
        weighted = resize(velocity, fixed.shape[2:]) * weights.sqrt().view(-1, 1, 1, 1)
        loss = similarity(warp(images[0], displacement), images[1]) + regulariser(weighted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return displacement.detach()


# %%
import pandas as pd


def judge(displacement, similarity):
    """One row for each displacement of the batch: loss, Dice, true error, folding."""
    rows = []
    for u in displacement.split(1):
        moved_label = warp(moving_label, u, mode="nearest")
        rows.append(
            {
                "similarity": similarity(warp(moving, u), fixed).item(),
                "dice": dice(moved_label, fixed_label, labels).nanmean().item(),
                "tre_mm": target_registration_error(u, truth, mm, inside).item(),
                "folding_percent": folding_percent(u).item(),
            }
        )
    return pd.DataFrame(rows, index=pd.Index([f"{w:.3f}" for w in WEIGHTS], name="weight"))


# %%
runs = {
    "SSD": judge(optimise(ssd_loss), ssd_loss),
    "NCC": judge(optimise(ncc_loss), ncc_loss),
    "SSD, displacement": judge(optimise(ssd_loss, squarings=0), ssd_loss),
    "NCC, displacement": judge(optimise(ncc_loss, squarings=0), ncc_loss),
}
best = {name: table["tre_mm"].idxmin() for name, table in runs.items()}
for name, weight in best.items():
    row = runs[name].loc[weight]
    print(
        f"{name:>17}: smallest error {row.tre_mm:.2f} mm, Dice {row.dice:.3f}, at a weight of "
        f"{weight}"
    )

# %%
untouched = target_registration_error(torch.zeros_like(truth), truth, mm, inside).item()
columns = {
    "similarity": "similarity loss",
    "tre_mm": "true error (mm)",
    "dice": "mean Dice",
    "folding_percent": "folded (%)",
}
styles = {"SSD": ("#D55E00", "-"), "NCC": ("#0072B2", "-")}
styles |= {f"{name}, displacement": (colour, ":") for name, (colour, _) in styles.items()}
at_truth = {"SSD": ssd_loss(aligned, fixed).item(), "NCC": ncc_loss(aligned, fixed).item()}
figure = Figure(figsize=(8.8, 5.2), layout="constrained")

# %%
for axes, (column, title) in zip(figure.subplots(2, 2).flat, columns.items(), strict=True):
    for name, table in runs.items():
        values = table[column]
        if column == "similarity":
            values = values / at_truth[name[:3]]
        axes.semilogx(
            WEIGHTS, values, styles[name][1], marker=".", color=styles[name][0], label=name
        )
    axes.set(title=title, xlabel="weight of the regulariser")
similarity, error, overlap, folded = figure.axes
similarity.set(title="similarity loss, the true map's = 1")
similarity.axhline(1, color="#777777", linewidth=0.8)
error.axhline(untouched, color="#777777", linewidth=0.8)
error.text(
    WEIGHTS[-1], untouched, "not registered", ha="right", va="bottom", fontsize=8, color="#777777"
)
folded.set_yscale("symlog", linthresh=0.1)
folded.set(ylim=(0, 20), yticks=[0, 0.1, 1, 10], yticklabels=["0", "0.1", "1", "10"])
overlap.legend(fontsize=8)
figure

# %%
ssd_run, ncc_run = runs["SSD"], runs["NCC"]
assert ssd_run["similarity"].is_monotonic_increasing  # less weight, less loss ...
assert ssd_run["similarity"].iloc[0] < 0.5 * at_truth["SSD"]  # ... far below that of the truth ...
assert ssd_run["tre_mm"].iloc[0] > untouched  # ... and worse than no registration at all
assert ncc_run["tre_mm"].max() < untouched  # NCC helps at every weight
assert ncc_run["tre_mm"].min() < 0.7 * ssd_run["tre_mm"].min() < 0.5 * untouched
for table in (ssd_run, ncc_run):
    assert 0 < table["tre_mm"].argmin() < len(WEIGHTS) - 1  # best in between
for name in ("SSD", "NCC"):
    assert (
        runs[f"{name}, displacement"]["folding_percent"].iloc[0]
        > 10 * runs[name]["folding_percent"].iloc[0]
    )

# %% [markdown]
# Read it from right to left. Lower the weight and the similarity falls, as it must. The error falls too, has a minimum,
# and *rises* again: with SSD at the smallest weight, the loss is a fraction of the true map's, and the map is worse than
# none. SSD was lowered by fitting contrast, bias and noise. Dice notices only a part of this. The share of folds notices it where a
# displacement was optimised; the map of an integrated velocity hardly folds, so there the count stays clean and says
# nothing. So:
#
# - the loss is no measure of quality, and neither is a folding of 0 %;
# - NCC helps at every weight here, and still loses most of its gain at the wrong ones;
# - the best weights of SSD and of NCC differ by a factor, since their losses have different units. They do not carry
#   over to another data set either.
#
# ## Labels in the loss
#
# Dice counts voxels, so it has steps and no slope. **Predict:** what is the gradient through a label that was warped with
# `nearest`?

# %%
from course_utils.losses import one_hot, soft_dice_loss


def soft_dice(moved, fixed):
    """One minus the mean Dice of memberships (B, L, H, W) between 0 and 1."""
    both, axes = (moved * fixed).sum((2, 3)), (2, 3)
    return 1 - (2 * both / (moved.square().sum(axes) + fixed.square().sum(axes))).mean()


# %%
members_moving, members_fixed = (
    one_hot(moving_label, labels),
    one_hot(fixed_label, labels),
)  # (1, 10, 96, 96)
gradients = {}
for mode in ("nearest", "bilinear"):
    u = torch.full((1, 2, 96, 96), 0.1, requires_grad=True)
    loss = soft_dice(warp(members_moving, u, mode=mode), members_fixed)
    assert torch.isclose(
        loss, soft_dice_loss(warp(members_moving, u, mode=mode), members_fixed), atol=1e-6
    )
    loss.backward()
    gradients[mode] = u.grad.norm(dim=1)[0]
    print(
        f"{mode:>8}: loss {loss.item():.3f}, gradient on "
        f"{(gradients[mode] > 0).float().mean():.0%} of the voxels"
    )
assert gradients["nearest"].max() == 0 < gradients["bilinear"].max()
panel(
    {
        f"gradient, {mode}": gradient / gradients["bilinear"].max()
        for mode, gradient in gradients.items()
    },
    spacing=mm,
    cmap="magma",
    colourbar="|gradient|, scaled",
    limits=(0, 0.3),
)

# %% [markdown]
# Nothing: move a voxel by a little and `nearest` reads the same label. Warped linearly, memberships blend at the edges,
# and the edges feel a force, the stronger the smaller the structure (the ventricles shine). Only the edges: inside a structure labels say as little as SSD does in flat tissue. (Labels
# are used in *training*; a trained network needs none.)
#
# ## Paying for folds
#
# The last term looks at the map alone: the mean of $\max(0, -\det J)$, which is how much of the grid is turned over. Central
# differences look two voxels far and step over some of it, so the loss asks the triangles between neighbouring voxels
# ([notebook 13](13_price_of_folding.ipynb) shows the difference). We fold a map on purpose and descend this loss and nothing else.
# **Predict:** what happens to the voxels that were not folded?

# %%
from course_utils.fields import jacobian_determinant
from course_utils.losses import jacobian_loss
from course_utils.plotting import jacobian

folded_map = noise
for _ in range(3):
    folded_map = F.avg_pool2d(folded_map, 11, 1, 5, count_include_pad=False)
folded_map = 0.45 * folded_map / folded_map.diff(dim=-1).std()  # (1, 2, 96, 96)
determinant = jacobian_determinant(folded_map)
assert jacobian_loss(folded_map) > determinant.neg().clamp(min=0).mean() > 0

u = folded_map.clone().requires_grad_()
jacobian_loss(u).backward()
touched = (u.grad.norm(dim=1) > 0).float().mean().item()
optimizer = torch.optim.Adam([u], lr=0.05)
for _ in range(100):
    optimizer.zero_grad()
    jacobian_loss(u).backward()
    optimizer.step()
repaired = u.detach()
share = [folding_percent(v).item() for v in (folded_map, repaired)]
change = (repaired - folded_map).norm(dim=1).mean().item()
print(
    f"folded: {share[0]:.1f} % before, {share[1]:.2f} % after; moved by {change:.2f} voxel on "
    f"average; gradient on {touched:.0%}"
)
assert share[0] > 1 and share[1] < share[0] / 5 and touched < 0.5
jacobian({"folded": determinant, "after 100 steps": jacobian_determinant(repaired)}, spacing=mm)

# %% [markdown]
# Most voxels feel nothing: the gradient is zero except at the folds and at their neighbours. The penalty is exactly 0 on a map
# without folds, so it costs such a map no accuracy. It makes a map invertible, and not smooth. With an integrated, regularised velocity it has little to do: it is a seat belt.
#
# ## What breaks in half precision
#
# Mixed precision runs convolutions in 16 bits. A loss is made of small differences of large sums, and that is another
# matter. MONAI's NCC on our pair, in three types, and the course's under the same autocast. **Predict:** which one fails,
# and how?

# %%
lncc = LocalNormalizedCrossCorrelationLoss(2, kernel_size=9)
values = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    low = aligned.to(dtype), fixed.to(dtype)  # images as they come out of a half-precision network
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        values[str(dtype)[6:]] = {
            "MONAI": lncc(*low).item(),
            "course_utils": ncc_loss(*low).item() - 1,
        }
print(pd.DataFrame(values).T.to_string(float_format=lambda value: f"{value:.4g}"))

monai, course = (
    pd.Series({name: row[who] for name, row in values.items()}) for who in ("MONAI", "course_utils")
)
assert math.isnan(monai["float16"]) and monai["bfloat16"] < -1.5 and -1 <= monai["float32"] <= 0
assert (course - course["float32"]).abs().max() < 0.01

# %% [markdown]
# Minus one is the lowest value that the formula can have. In float16 the product of two floors of $10^{-5}$ is $10^{-10}$,
# less than the type's smallest number: 0, and $0/0$ is NaN wherever there is background. bfloat16 keeps the range and
# drops the digits: $\overline{m^2} - \bar m^2$ subtracts two numbers that agree in all the digits it has. By hand, in a
# window of bright tissue:

# %%
tissue = 0.8 + 0.02 * torch.randn(9, 9, generator=torch.Generator().manual_seed(session.seed))
products = torch.tensor(1e-5).half() * torch.tensor(1e-5).half()
variance = {}
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    m = tissue.to(dtype)
    variance[str(dtype)[6:]] = ((m * m).mean() - m.mean() * m.mean()).item()
print("1e-5 times 1e-5 in float16:", products.item())
for name, value in variance.items():
    print(f"variance in {name:>8}: {value:+.2e}")
assert products == 0 and abs(variance["float32"] / variance["float64"] - 1) < 0.01
assert abs(variance["bfloat16"] / variance["float64"] - 1) > 0.5

# %% [markdown]
# The course's losses leave autocast and compute in float32, whatever comes in; that is one line
# (`torch.autocast(..., enabled=False)`) and the `float()` beside it. They cost next to nothing beside a convolution.
#
# ## The gradient that is too small to write down
#
# One trap is left, even with a loss in float32: gradients flow back into float16 layers. A mean over $n$ voxels gives
# each of them a gradient of the order $1/n$, and a volume of OASIS has 6.9 million. **Predict:** how many of its
# gradients survive as float16?

# %%
n = 160 * 192 * 224
rounds_to_zero = 2.0**-25  # half of the smallest float16
gradient = (
    2 * (aligned - fixed)[fixed > 0] / n
)  # of the SSD of such a volume, for the differences of our pair
scale = 2.0**16  # GradScaler's first
lost = {
    "as it is": (gradient.half() == 0).float().mean(),
    "scaled": ((gradient * scale).half() == 0).float().mean(),
}
for name, share in lost.items():
    print(f"{name:>8}: {share:.0%} of the gradients are 0 in float16")
restored = (gradient * scale).half().float() / scale
assert lost["as it is"] > 0.5 and lost["scaled"] < 0.02
assert torch.allclose(restored, gradient, rtol=1e-3, atol=1e-12)

# %%
figure = Figure(figsize=(7.4, 2.8), layout="constrained")
axes = figure.subplots()
for name, values, colour in (
    ("as it is", gradient, "#D55E00"),
    ("times 65536", gradient * scale, "#0072B2"),
):
    exponents = values.abs().clamp(min=1e-14).log10()
    axes.hist(exponents.numpy(), bins=60, range=(-12, 1), color=colour, alpha=0.7, label=name)
axes.axvline(math.log10(rounds_to_zero), color="black", linewidth=1)
axes.text(
    math.log10(rounds_to_zero) + 0.15,
    0.9,
    "← 0 in float16",
    transform=axes.get_xaxis_transform(),
    fontsize=9,
)
axes.set(xlabel="log₁₀ |gradient|", ylabel="voxels", title=f"SSD over {n / 1e6:.1f} million voxels")
axes.legend(fontsize=8, loc="upper left")
figure

# %% [markdown]
# So one multiplies the loss by a large number, lets everything flow back, and divides before the optimiser looks:
# `GradScaler`. If a gradient overflows instead, it skips the step and halves its factor.

# %%
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([weight], lr=1e9)
scaler = torch.amp.GradScaler("cpu", init_scale=scale)
log = []
for slope in (1e-9, math.inf, 1e-9):
    optimizer.zero_grad()
    scaler.scale(weight.sum() * slope).backward()
    scaler.step(optimizer)  # divides by the factor; does nothing if a gradient is not finite
    scaler.update()
    log.append((weight.item(), scaler.get_scale()))
    print(f"slope {slope:g}: weight {weight.item():.2f}, factor now {scaler.get_scale():g}")
assert [round(value) for value, _ in log] == [0, 0, -1] and log[1][1] == scale / 2

# %% [markdown]
# bfloat16 has float32's range and needs none of this; its price is digits. The next notebook trains with both.
#
# ## What you now have
#
# - SSD and local NCC by hand. SSD sees far and believes intensities; NCC believes edges and sees as far as its window.
# - A loss can be lower than the truth's. Only something it never saw can judge it: labels, landmarks, a known map.
# - Diffusion charges slopes, bending curvature; the weight is a compromise with a best value, found on validation data.
# - Labels teach through soft memberships; a penalty on folds acts on folds alone.
#
# **What can go wrong.** Zero padding that correlates borders; a window of 3 or a huge one by default; comparing the losses of
# two trainings that differ in weight or window; taking λ from another paper; a similarity inside autocast; float16 without
# a scaler.
#
# **Try it.**
# 1. `optimise(ncc_loss, regulariser=bending_loss)`: is there a weight at which it beats diffusion?
# 2. Add `soft_dice_loss` to `optimise`. Dice rises; does the true error fall? Why must it be judged by other structures
#    than those it was trained on?
#
# **References.** Avants et al., *Symmetric diffeomorphic image registration with cross-correlation*, Medical Image
# Analysis 12(1), 2008. Rueckert et al., *Nonrigid registration using free-form deformations*, IEEE TMI 18(8), 1999. Rohlfing,
# *Image similarity and tissue overlaps as surrogates for image registration accuracy: widely used but unreliable*, IEEE TMI
# 31(2), 2012. Milletari et al., *V-Net*, 3DV 2016. Mok and Chung, *Fast symmetric diffeomorphic image registration with
# convolutional neural networks*, CVPR 2020. Micikevicius et al., *Mixed precision training*, ICLR 2018.
#
# Next: [06 Training](06_training.ipynb): all of this on many pairs.
