# %% [markdown]
# # 05 Losses
#
# A network does what its loss pays for, not what you meant. What, then, should you pay for?
#
# Here you build the two classic similarities by hand, SSD and local NCC, and look at the landscapes they make. You find
# out which of them can be paid off with a wrong map, see what smoothness costs and buys, make labels differentiable, and
# break a loss in half precision. Afterwards you can write down a loss for your own images, choose its weight, and say
# which number to trust, and why the loss itself is not that number. You need notebook 03 (velocities and the exponential).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/05_losses.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/05_losses.ipynb)

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
# ## Two people
#
# The page works on slices: on the real ones of `oasis2d`, and with any other data set on the slices of the built-in
# cohort, which shows made subjects. Of eight test pairs we take the one whose structures overlap least.

# %%
import math

import torch

from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.fields import integrate, resize, warp
from course_utils.metrics import dice, folding_percent, target_registration_error
from course_utils.plotting import Figure, panel

cohort = load_slices(session.dataset, session.data_root)
names, view = dict(cohort.info.labels), cohort.info.view
subjects = load_subjects(cohort.splits["test"], cohort.info.recipe)
pairs = PairDataset(subjects, cohort.pairs("test", count=8, seed=session.seed))


def overlap(moved_label, fixed_label, labels):
    """Mean Dice over the structures."""
    return dice(moved_label, fixed_label, list(labels)).nanmean().item()


item = min(pairs, key=lambda p: overlap(p["moving_label"][None], p["fixed_label"][None], names))
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, H, W)
moving_label, fixed_label = item["moving_label"][None], item["fixed_label"][None]

# %% [markdown]
# To judge a loss we need a good map beside a bad one. The next cell finds one without a network: the velocity itself is
# the unknown, on a grid of half the size, and Adam moves it. It takes several weights of the regulariser at a time, as a
# batch: the regulariser is quadratic, so giving it the weight $w$ is the same as giving it the field times $\sqrt w$. Keep
# this function in mind; it comes back in the middle of the page.

# %%
from course_utils.losses import diffusion_loss, ncc_loss, ssd_loss

STEPS = 60 if session.profile == "quick" else 200


def optimise(pair, similarity, weights, squarings=7, regulariser=diffusion_loss):
    """Displacements (W, 2, H, W) that align a pair of images, one for each weight."""
    shape, n = pair[1].shape[2:], len(weights)
    roots = torch.as_tensor(weights).sqrt().view(-1, 1, 1, 1)
    velocity = torch.zeros(n, 2, *(side // 2 for side in shape), requires_grad=True)
    moving, fixed = (image.expand(n, -1, -1, -1) for image in pair)
    optimizer = torch.optim.Adam([velocity], lr=0.15)
    for _ in range(STEPS):
        displacement = resize(integrate(velocity, squarings), shape)
        weighted = resize(velocity, shape) * roots
        loss = similarity(warp(moving, displacement), fixed) + regulariser(weighted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return displacement.detach()


# %%
found = optimise((moving, fixed), ncc_loss, [0.3])  # (1, 2, H, W), voxels
moved, moved_label = warp(moving, found), warp(moving_label, found, mode="nearest")
before, after = (overlap(label, fixed_label, names) for label in (moving_label, moved_label))
print(f"Dice {before:.3f} before, {after:.3f} after; folded {folding_percent(found).item():.2f} %")
assert after > before + 0.1

parts = ("lateral-ventricle", "lateral ventricle", "thal", "caud", "putamen", "deep")
drawn = {value: n for value, n in names.items() if any(part in n.lower() for part in parts)}
panel(
    {"moving": moving, "moved": moved, "fixed": fixed},
    labels={"moving": moving_label, "moved": moved_label, "fixed": fixed_label},
    names=drawn,
    fill=True,
    **view,
)

# %% [markdown]
# ## SSD, by hand
#
# SSD is the mean of the squared differences; the *sum* in its name is tradition. It is one line.
#
# **Predict:** the structures now overlap much better. Is the SSD about zero?
#
# > *My prediction:*


# %%
def ssd(moved, fixed):
    return ((moved - fixed) ** 2).mean()


start, left = ssd(moving, fixed), ssd(moved, fixed)
assert torch.isclose(start, ssd_loss(moving, fixed))
assert torch.isclose(left, ssd_loss(moved, fixed))
assert 0.05 * start < left < 0.5 * start
assert session.dataset != "oasis2d" or left > 0.2 * start
print(f"SSD: {start:.4f} before, {left:.4f} after: {left / start:.0%} of it is left")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No: a twentieth of it or more is left, and between real people a fifth or more. Two scans of the same tissue differ in
# contrast, bias and noise, and no smooth map can remove that. And two people's folds do not correspond everywhere.
#
# </details>
#
# SSD cannot know this. It says "equal tissue, equal number", and whatever difference is left is an invitation to deform
# something.
#
# ## NCC, by hand
#
# Correlation only asks that the one image be a *line* $a x + b$ of the other. The local one asks it only within a small
# window, so that each place may have its own $a$ and $b$. The means over the window come from a box filter; then
#
# $$\text{cc}^2 = \frac{\bigl(\overline{mf} - \bar m \bar f\bigr)^2}
# {\bigl(\overline{m^2} - \bar m^2\bigr)\bigl(\overline{f^2} - \bar f^2\bigr) + \varepsilon}$$

# %%
from torch.nn import functional as F


def local_correlation(moved, fixed, window=9, epsilon=1e-8):
    """Squared local correlation of 2-D images (B, 1, H, W), voxel by voxel."""

    def box(image):  # mean over the window, of the voxels inside the image
        return F.avg_pool2d(image, window, stride=1, padding=window // 2, count_include_pad=False)

    # An offset changes no correlation, and small numbers subtract better.
    m, f = moved - moved.mean(), fixed - fixed.mean()
    covariance = box(m * f) - box(m) * box(f)
    variance_m = (box(m * m) - box(m) ** 2).clamp(min=0)
    variance_f = (box(f * f) - box(f) ** 2).clamp(min=0)
    return covariance**2 / (variance_m * variance_f + epsilon)


for window in (5, 9, 21):
    for image in (moving, moved):
        by_hand = 1 - local_correlation(image, fixed, window).mean()
        assert torch.isclose(by_hand, ncc_loss(image, fixed, window), atol=1e-4)

# %%
generator = torch.Generator().manual_seed(session.seed)
noises = torch.rand(2, 1, 1, *fixed.shape[2:], generator=generator)
panel(
    {
        "before": local_correlation(moving, fixed),
        "after": local_correlation(moved, fixed),
        "two unrelated noises": local_correlation(*noises),
    },
    cmap="viridis",
    colourbar="squared local correlation",
    limits=(0, 1),
    **view,
)


# %%
def grown(mask, reach=4):
    return F.max_pool2d(mask, 2 * reach + 1, 1, reach)


brain = (fixed > 0.05).float()
brain = 1 - grown(1 - grown(brain))  # holes closed
inside, outside = 1 - grown(1 - brain) > 0, grown(brain) == 0
rim = ~inside & ~outside  # within four voxels of the brain's edge
for name, image in (("before", moving), ("after", moved)):
    map_of = local_correlation(image, fixed)
    print(f"{name:>6}: mean correlation {map_of[rim].mean():.2f} at the rim of the brain,")
    print(f"        {map_of[inside].mean():.2f} inside, {map_of[outside].mean():.2f} outside;")
    share = map_of[rim].sum() / map_of.sum()
    print(f"        {share:.0%} of all correlation is at the rim")
    assert map_of[rim].mean() > map_of[inside].mean() and share > 0.2

# %% [markdown]
# The numbers are those of `ncc_loss`. Aligned anatomy is bright wherever there is an edge. Flat tissue shows noise, the
# black background nothing, and even a good map does not get to 1: like SSD, NCC has no zero to reach.
#
# Look at the ring around the brain, which is already bright before the registration. It is the edge where the skull was
# removed. All images have it, bright brain against exact zeros, so on average it correlates more strongly than the anatomy
# inside. More than a fifth of all correlation is earned there. If two brains were stripped of their skulls in different
# ways, a network will align the cuts.
#
# ## A border that correlates with everything
#
# MONAI's `LocalNormalizedCrossCorrelationLoss` filters with zeros outside the image. Take two images of unrelated noise.
#
# **Predict:** what is their correlation in the middle, and at the border?
#
# > *My prediction:*

# %%
from monai.losses import LocalNormalizedCrossCorrelationLoss

generator = torch.Generator().manual_seed(session.seed)
a, b = torch.rand(2, 1, 1, 48, 64, 48, generator=generator)
lncc = LocalNormalizedCrossCorrelationLoss(3, kernel_size=9, reduction="none")
volume = lncc(a, b).neg()  # (1, 1, 48, 64, 48)
ours = 1 - ncc_loss(a, b, 9)
middle = volume[..., 4:-4, 4:-4, 4:-4].mean()
print(f"unrelated noise: MONAI {volume.mean():.4f}, of that {middle:.4f} in the middle;")
print(f"course_utils {ours:.4f}")
assert volume.mean() > 20 * ours and middle < 0.01 and ours < 0.01

figure = Figure(figsize=(6.4, 2.9), layout="constrained")
axes = figure.subplots()
profile = volume[0, 0, :, 4:-4, 4:-4].mean(dim=(1, 2))
axes.plot(profile, color="#D55E00", label="MONAI, zeros outside")
axes.axhline(ours, color="#0072B2", label="voxels inside only (mean)")
axes.set(xlabel="voxel along axis 0", ylabel="squared correlation")
axes.set_title("Two unrelated noise volumes, window 9")
axes.legend(fontsize=8)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# About zero in the middle, and high at the border. There both windows hold "image, then zeros": the same step in both,
# which is a correlation of the frame with itself.
#
# </details>
#
# A brain in a black frame has zeros there anyway, and nothing changes. But a tightly cropped organ is paid for its
# frame. That is why the course counts only the voxels inside.
#
# Away from the border one difference remains: $\varepsilon$, which decides what counts as structure. MONAI's is a floor
# under each variance (of the window's *sum*). Ours is added to the product of the two variances (of means), and damps
# windows with less than 1 % of contrast. Without it, the two agree wherever there is any structure at all. It should
# stay small: the common $10^{-5}$ is meant for sums over a window, and added to means it would silence anatomy of low
# contrast too.

# %%
inner = (..., slice(8, -8), slice(8, -8))
lncc = LocalNormalizedCrossCorrelationLoss(2, kernel_size=9, reduction="none")
theirs = -lncc(moved, fixed)[inner]
without, damped = (local_correlation(moved, fixed, epsilon=e)[inner] for e in (1e-14, 1e-5))
structure = damped > 0.05
difference = (theirs - without)[structure].abs().max().item()
assert difference < 0.01
print(f"largest difference to MONAI without ε: {difference:.0e};")
print(f"ε = 1e-5 would lower the mean by {(without - damped)[structure].mean():.2f}")

# %% [markdown]
# ## What a loss looks like from afar
#
# A network follows the slope of its loss. So we take one person's slice, move it away from itself, and plot what the
# slope would tell: translation along one axis, and rotation about the middle.
#
# **Predict:** which window of the NCC sees furthest?
#
# > *My prediction:*

# %%
from course_utils.fields import affine_to_field

centre = (torch.tensor(fixed.shape[2:]) - 1) / 2


def moved_by(image, shift=0.0, degrees=0.0, zoom=1.0):
    """The image, zoomed and rotated about its middle and shifted along axis 0 (voxels)."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    linear = zoom * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    offset = centre - linear @ centre + torch.tensor([float(shift), 0.0])
    matrix = torch.cat([linear, offset[:, None]], dim=1)[None]  # (1, 2, 3)
    return warp(image, affine_to_field(matrix, image.shape[2:]))


def nccs(window):
    return lambda m, f: ncc_loss(m, f, window)


measures = {"SSD": ssd_loss} | {f"NCC, window {w}": nccs(w) for w in (5, 9, 21)}
shifts, angles = torch.arange(-12, 12.5, 0.5).tolist(), torch.arange(-40, 41, 2.0).tolist()
shifted = [moved_by(fixed, shift=s) for s in shifts]
rotated = [moved_by(fixed, degrees=d) for d in angles]
by_shift = {n: [f(m, fixed).item() for m in shifted] for n, f in measures.items()}
by_angle = {n: [f(m, fixed).item() for m in rotated] for n, f in measures.items()}


# %%
def scaled(values):
    """To [0, 1]: losses of different units in one picture."""
    values = torch.tensor(values)
    return (values - values.min()) / (values.max() - values.min())


def basin(places, values):
    """Width over which the loss is below half of its range."""
    return len([v for v in scaled(values) if v < 0.5]) * (places[1] - places[0])


width = {name: basin(shifts, by_shift[name]) for name in measures}
assert width["NCC, window 5"] < width["NCC, window 9"] < width["NCC, window 21"]
assert all(shifts[values.index(min(values))] == 0 for values in by_shift.values())
print("width at half height (voxel):", ", ".join(f"{name} {w:g}" for name, w in width.items()))

figure = Figure(figsize=(8.6, 3), layout="constrained")
left_axes, right_axes = figure.subplots(1, 2, sharey=True)
for name, colour in zip(measures, ("#777777", "#56B4E9", "#0072B2", "#009E73"), strict=True):
    left_axes.plot(shifts, scaled(by_shift[name]), color=colour, label=name)
    right_axes.plot(angles, scaled(by_angle[name]), color=colour)
left_axes.set(xlabel="translation (voxel)", ylabel="loss, scaled to 0 … 1")
right_axes.set(xlabel="rotation (degree)")
left_axes.legend(fontsize=8)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The largest. A small window makes a needle: it is exact at the bottom, and flat a few voxels away, where there is nothing
# to follow.
#
# </details>
#
# A large window sees further, but it averages away the locality that made NCC robust. The papers compromise on 9, for
# brains that an affine registration has already put within a few voxels. You may object that a network sees further than
# this, because its receptive field is larger than the window. That is true for what it *can* predict. But the *gradient*
# that trains it comes from the window, and far away it is nearly zero. This is one reason to go from coarse to fine.
#
# ## Another contrast
#
# Now the fixed image gets another appearance: a gamma curve, a bias field, or an inverted contrast (as in T1 against
# T2). The anatomy does not move. We shift and zoom the original across it. Two more similarities enter, which are made
# for this case. *Mutual information* (MI) asks how well the intensity of the one image foretells that of the other, in
# the whole image. *MIND* compares, voxel by voxel, which neighbours of a place look like each other, and never an
# intensity of the one image with one of the other. [Page 16](16_several_contrasts.ipynb) builds both.
#
# **Predict:** whose minimum stays where it belongs in all cases?
#
# > *My prediction:*

# %%
from course_utils.losses import mi_loss, mind_loss

ramp = torch.linspace(-1, 1, fixed.shape[2]).view(1, 1, -1, 1)
bright = fixed > 0.05 * fixed.max()
appearances = {
    "as it is": fixed,
    "gamma 2.5": fixed.clamp(min=0) ** 2.5,
    "bias field": fixed * (1.2 * ramp).exp() / (1.2 * ramp).exp().max(),
    "inverted": torch.where(bright, fixed.max() - fixed, fixed),
}
ways = {
    "translation (voxel)": {s / 4: moved_by(fixed, shift=s / 4) for s in range(-24, 25)},
    "zoom (%)": {z: moved_by(fixed, zoom=1 + z / 100) for z in range(-15, 16)},
}
similarities = {"SSD": ssd_loss, "NCC, window 9": ncc_loss, "MI": mi_loss, "MIND": mind_loss}
curves = {
    (loss, way, name): [measure(m, other).item() for m in images.values()]
    for loss, measure in similarities.items()
    for way, images in ways.items()
    for name, other in appearances.items()
}
lowest = {key: list(ways[key[1]])[values.index(min(values))] for key, values in curves.items()}
panel(appearances, **view)

# %%
figure = Figure(figsize=(9.5, 4.8), layout="constrained")
grid = figure.subplots(2, 4)
looks = dict(zip(appearances, ("#777777", "#0072B2", "#009E73", "#D55E00"), strict=True))
for row, (way, images) in zip(grid, ways.items(), strict=True):
    for axes, loss in zip(row, similarities, strict=True):
        for name, colour in looks.items():
            values = scaled(curves[loss, way, name])
            axes.plot(list(images), values, color=colour, linewidth=1.2, label=name)
            axes.plot(lowest[loss, way, name], 0, "o", color=colour, clip_on=False)
        axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set(xlabel=way, title=loss, yticks=[])
    row[0].set_ylabel("loss, scaled")
handles, words = grid[0, 0].get_legend_handles_labels()
figure.legend(handles, words, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
figure

# %%
shift, zoom = ways
for loss in similarities:
    off = {way: max(abs(lowest[loss, way, name]) for name in appearances) for way in ways}
    print(f"{loss:>13}: off by up to {off[shift]:g} voxel, {off[zoom]:g} % of zoom")
    if loss != "SSD":
        assert off[zoom] <= 1 and off[shift] <= 0.25  # one step of the plot
depth = {
    name: max(v) - min(v) for (loss, way, name), v in curves.items() if (loss, way) == ("MI", shift)
}
assert depth["bias field"] < 0.5 * depth["as it is"]
assert lowest["SSD", zoom, "gamma 2.5"] != 0
assert lowest["SSD", shift, "bias field"] != 0
assert abs(lowest["SSD", shift, "inverted"]) > 1 and abs(lowest["SSD", zoom, "inverted"]) > 3

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# NCC, MI and MIND stay, to within one step of the plot. SSD does not: it changes the size of the brain to make up for a
# gamma, moves it for a bias, and runs away from an inverted contrast.
#
# </details>
#
# All of what SSD does there lowers its loss. The others pay elsewhere. NCC is costlier, sees less far, and correlates noise
# in flat regions. MI asks for *one* relation in the whole image. A bias field breaks it, and less than half of the depth
# of its basin is left. MIND keeps four numbers per pixel in a slice, and twelve per voxel in a volume, which costs memory.
#
# ## Smoothness: diffusion and bending
#
# Similarity alone does not define a map: within a flat region any displacement looks the same. The regulariser chooses.
# *Diffusion* charges first derivatives, *bending* second ones. By hand, diffusion is neighbours minus neighbours.
#
# **Predict:** a translation, a rotation, a zoom: which of them cost nothing in diffusion, which in bending?
#
# > *My prediction:*


# %%
def diffusion(field):
    along_0 = (field[:, :, 1:] - field[:, :, :-1]).square().mean()
    along_1 = (field[:, :, :, 1:] - field[:, :, :, :-1]).square().mean()
    return (along_0 + along_1) / 2


# %%
from course_utils.losses import bending_loss

angle = torch.deg2rad(torch.tensor(10.0))
rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(1, 2, 2)
noise = torch.randn(1, 2, 96, 96, generator=torch.Generator().manual_seed(session.seed))
fields = {
    "translation by 5 voxels": torch.full((1, 2, 96, 96), 5.0),
    "rotation by 10 degrees": affine_to_field(F.pad(rotation, (0, 1)), (96, 96)),
    "zoom of 10 %": affine_to_field(F.pad(1.1 * torch.eye(2)[None], (0, 1)), (96, 96)),
    "the map found above": found,
    "noise of 1 voxel": noise,
}
print(f"{'':>24} {'diffusion':>10} {'bending':>10}")
for name, field in fields.items():
    assert torch.isclose(diffusion(field), diffusion_loss(field), rtol=1e-4)
    print(f"{name:>24} {diffusion_loss(field):>10.5f} {bending_loss(field):>10.5f}")
affine = list(fields)[:3]
assert all(bending_loss(fields[name]) < 1e-6 for name in affine)
assert [bool(diffusion_loss(fields[name]) > 0.001) for name in affine] == [False, True, True]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# In diffusion only the translation is free, because it alone has no first derivatives. In bending all three are free:
# affine maps have no second derivatives.
#
# </details>
#
# So bending suits images that were not affinely aligned, while diffusion also pulls an unneeded zoom back to nothing. What
# either of them *does* to a field is its gradient. We push one voxel up and look at who is pulled where:

# %%
spike = torch.zeros(1, 2, 15, 15)
spike[0, 0, 7, 7] = 1
figure = Figure(figsize=(7.2, 3.4), layout="constrained")
stencils = {}
penalties = {"diffusion": diffusion_loss, "bending": bending_loss}
for axes, (name, penalty) in zip(figure.subplots(1, 2), penalties.items(), strict=True):
    field = spike.clone().requires_grad_()
    penalty(field).backward()
    pull = -field.grad[0, 0] / field.grad[0, 0].abs().max()  # the step of a descent, largest 1
    stencils[name] = pull
    window = pull[4:11, 4:11]
    look = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "origin": "lower"}
    axes.imshow(window.T, extent=(-3.5, 3.5, -3.5, 3.5), **look)
    for i, j in (window.abs() > 0.01).nonzero().tolist():
        colour = "white" if window[i, j] < -0.5 else "black"
        text = f"{window[i, j]:.2f}"
        axes.text(i - 3, j - 3, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set(title=f"one step of {name}", xlabel="voxel along axis 0", ylabel="voxel along axis 1")
near, far = (stencils["diffusion"][7, n] for n in (8, 9))
assert near > 0 and abs(far) < 1e-6  # neighbours only
near, far = (stencils["bending"][7, n] for n in (8, 9))
assert near > 0 > far  # reaches two voxels, and overshoots
figure

# %% [markdown]
# Diffusion is heat: the spike goes down, and its four neighbours come up. Bending is a stiff plate: it reaches two voxels
# and pushes the further ones *down*, as a ruler does that is bent over a finger.
#
# ## How much of it?
#
# Now to the question that matters most. For this one experiment we leave the real people: the true map between two people
# is not known to anybody, and we want to see the *error* of a map. So we take two made subjects of the built-in cohort,
# one template deformed in two ways, each with its own contrast, bias field and noise. Between them the truth is known.

# %%
from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
flat_pair = flat.pairs("test", count=1)[0]
flat_subjects = load_subjects((flat_pair.fixed, flat_pair.moving), flat.info.recipe)
made = PairDataset(flat_subjects, [flat_pair], truth=True)[0]
made = {key: value[None] for key, value in made.items() if isinstance(value, torch.Tensor)}
truth, mm = made["true_displacement"], flat.info.spacing  # (1, 2, 96, 96), voxels
aligned = warp(made["moving"], truth)
lying = {"spacing": mm, "orientation": "RS"}
three = {"moving": made["moving"], "moving, by the true map": aligned, "fixed": made["fixed"]}
panel(three, **lying)

# %% [markdown]
# We optimise the same pair with eight weights of the regulariser, with SSD and with NCC, as an integrated velocity and as a
# plain displacement. Then we watch what counts: overlap, the true error, folding.
#
# **Predict:** does the map with the lowest SSD have the smallest error?
#
# > *My prediction:*

# %%
import pandas as pd

WEIGHTS = torch.logspace(-3, 1, 8)
made_pair = made["moving"], made["fixed"]
tissue = made["fixed_label"] > 0


def judge(displacements, similarity):
    """One row for each displacement of the batch: loss, Dice, true error, folding."""
    rows = []
    for u in displacements.split(1):
        warped = warp(made["moving_label"], u, mode="nearest")
        rows.append(
            {
                "similarity": similarity(warp(made["moving"], u), made["fixed"]).item(),
                "dice": overlap(warped, made["fixed_label"], flat.info.labels),
                "tre_mm": target_registration_error(u, truth, mm, tissue).item(),
                "folding_percent": folding_percent(u).item(),
            }
        )
    return pd.DataFrame(rows, index=pd.Index([f"{w:.3f}" for w in WEIGHTS], name="weight"))


# %%
runs = {
    "SSD": judge(optimise(made_pair, ssd_loss, WEIGHTS), ssd_loss),
    "NCC": judge(optimise(made_pair, ncc_loss, WEIGHTS), ncc_loss),
    "SSD, displacement": judge(optimise(made_pair, ssd_loss, WEIGHTS, squarings=0), ssd_loss),
    "NCC, displacement": judge(optimise(made_pair, ncc_loss, WEIGHTS, squarings=0), ncc_loss),
}
best = {name: table["tre_mm"].idxmin() for name, table in runs.items()}
for name, weight in best.items():
    row = runs[name].loc[weight]
    print(f"{name:>17}: smallest error {row.tre_mm:.2f} mm at a weight of {weight},")
    print(f"{'':>17}  with Dice {row.dice:.3f}")

# %%
untouched = target_registration_error(torch.zeros_like(truth), truth, mm, tissue).item()
at_truth = {"SSD": ssd_loss(aligned, made["fixed"]).item()}
at_truth["NCC"] = ncc_loss(aligned, made["fixed"]).item()
columns = {
    "similarity": "loss / loss at the true map",
    "tre_mm": "true error (mm)",
    "dice": "mean Dice",
    "folding_percent": "folded (%)",
}
styles = {"SSD": ("#D55E00", "-"), "NCC": ("#0072B2", "-")}
styles |= {f"{name}, displacement": (colour, ":") for name, (colour, _) in styles.items()}
figure = Figure(figsize=(8.8, 5.7), layout="constrained")
for axes, (column, title) in zip(figure.subplots(2, 2).flat, columns.items(), strict=True):
    for name, table in runs.items():
        values = table[column]
        if column == "similarity":
            values = values / at_truth[name[:3]]
        colour, line = styles[name]
        axes.semilogx(WEIGHTS, values, line, marker=".", color=colour, label=name)
    axes.set(ylabel=title, xlabel="weight of the regulariser")

# %%
similarity, error, agreement, folded = figure.axes
similarity.axhline(1, color="#777777", linewidth=0.8)
error.axhline(untouched, color="#777777", linewidth=0.8)
note = {"va": "bottom", "fontsize": 8, "color": "#777777"}
error.text(WEIGHTS[-1], untouched, "not registered", ha="right", **note)
similarity.text(WEIGHTS[0], 1, "the true map", **note)
folded.set_yscale("symlog", linthresh=0.1)
folded.set(ylim=(0, 20), yticks=[0, 0.1, 1, 10], yticklabels=["0", "0.1", "1", "10"])
handles, words = agreement.get_legend_handles_labels()
figure.legend(handles, words, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
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
    loose, flow = runs[f"{name}, displacement"], runs[name]
    assert loose["folding_percent"].iloc[0] > 10 * flow["folding_percent"].iloc[0]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No, it has the largest error of its curve. At the smallest weight the SSD is a fraction of the true map's, and the map is
# worse than none: the loss was lowered by fitting contrast, bias and noise.
#
# </details>
#
# Read the figure from right to left. With less weight the similarity falls, as it must. The error falls too, reaches a
# minimum, and *rises* again. Dice notices only a part of this. The share of folds notices it where a displacement was
# optimised. The map of an integrated velocity hardly folds, so there the count stays clean and says nothing. We conclude:
#
# - the loss is no measure of quality, and neither is a folding of 0 %;
# - NCC helps at every weight here, and still loses most of its gain at the wrong ones;
# - the best weights of SSD and of NCC differ by a factor, since their losses have different units. They do not carry over
#   to another data set either.
#
# ## Labels in the loss
#
# Back to the two people. Dice counts voxels, so it has steps and no slope.
#
# **Predict:** what is the gradient through a label that was warped with `nearest`?
#
# > *My prediction:*

# %%
from course_utils.losses import one_hot, soft_dice_loss


def soft_dice(moved, fixed):
    """One minus the mean Dice of memberships (B, L, H, W) between 0 and 1."""
    both, axes = (moved * fixed).sum((2, 3)), (2, 3)
    return 1 - (2 * both / (moved.square().sum(axes) + fixed.square().sum(axes))).mean()


shared = [v for v in names if (moving_label == v).any() or (fixed_label == v).any()]
members_moving, members_fixed = one_hot(moving_label, shared), one_hot(fixed_label, shared)
gradients = {}
for mode in ("nearest", "bilinear"):
    u = torch.full((1, 2, *fixed.shape[2:]), 0.1, requires_grad=True)
    warped = warp(members_moving, u, mode=mode)  # (1, L, H, W)
    loss = soft_dice(warped, members_fixed)
    assert torch.isclose(loss, soft_dice_loss(warped, members_fixed), atol=1e-6)
    loss.backward()
    gradients[mode] = u.grad.norm(dim=1)[0]
    share = (gradients[mode] > 0).float().mean()
    print(f"{mode:>8}: loss {loss.item():.3f}, gradient on {share:.0%} of the voxels")
assert gradients["nearest"].max() == 0 < gradients["bilinear"].max() and share < 0.5

# %%
strongest = gradients["bilinear"].max()
panel(
    {f"gradient, {mode}": gradient / strongest for mode, gradient in gradients.items()},
    cmap="magma",
    colourbar="|gradient|, scaled",
    limits=(0, 0.08),
    **view,
)

# %%
sizes = members_fixed.sum((0, 2, 3))
edge = grown(members_fixed, 1) - members_fixed  # the voxels just outside of each structure
pull = (gradients["bilinear"] * edge[0]).sum((1, 2)) / edge[0].sum((1, 2)).clamp(min=1)
order = sizes.argsort()
third = max(1, len(order) // 3)
small, large = pull[order[:third]].mean(), pull[order[-third:]].mean()
print(f"mean gradient at the edge of the smallest structures: {small / large:.1f} times that of")
print("the largest")
assert small > 1.5 * large

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It is zero everywhere: move a voxel by a little, and `nearest` reads the same label as before.
#
# </details>
#
# Warped linearly, memberships blend at the edges, and the edges feel a force. It is stronger for small structures, because
# each structure counts the same in the mean, however few voxels it has. Only the edges feel it: inside a structure, labels
# say as little as SSD does in flat tissue. Note that labels are used in *training*; a trained network needs none.
#
# ## Paying for folds
#
# The last term looks at the map alone: the mean of $\max(0, -\det J)$, which is how much of the grid is turned over. Central
# differences look two voxels far and step over some of it, so the loss asks the triangles between neighbouring voxels
# ([notebook 13](13_price_of_folding.ipynb) shows the difference). We fold a map on purpose and descend this loss, and
# nothing else.
#
# **Predict:** on what share of the voxels is there a gradient, if a few per cent of them fold?
#
# > *My prediction:*

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

# %%
share = [folding_percent(v).item() for v in (folded_map, repaired)]
change = (repaired - folded_map).norm(dim=1).mean().item()
print(f"folded: {share[0]:.1f} % before, {share[1]:.2f} % after 100 steps;")
print(f"gradient on {touched:.0%} of the voxels; moved by {change:.2f} voxel on average")
assert share[0] > 1 and share[1] < share[0] / 5
assert share[0] / 100 < touched < 4 * share[0] / 100
jacobian({"folded": determinant, "after 100 steps": jacobian_determinant(repaired)}, spacing=1)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# On about as many as fold, and on their neighbours, which share a triangle with them. All the others feel nothing.
#
# </details>
#
# The penalty is exactly 0 on a map without folds, so it costs such a map no accuracy. It makes a map invertible, but not
# smooth, as the right picture shows. With an integrated, regularised velocity it has little to do: it is a seat belt.
#
# ## What breaks in half precision
#
# Mixed precision runs convolutions in 16 bits. A loss is made of small differences of large sums, and that is another
# matter. We compute MONAI's NCC of the two people in three types, and the course's under the same autocast. The lowest
# value that MONAI's formula can have is −1.
#
# **Predict:** which type fails, and how?
#
# > *My prediction:*

# %%
lncc = LocalNormalizedCrossCorrelationLoss(2, kernel_size=9)
values = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    low = moved.to(dtype), fixed.to(dtype)  # images as they come out of a half-precision network
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        both = {"MONAI": lncc(*low).item(), "course_utils": ncc_loss(*low).item() - 1}
        values[str(dtype)[6:]] = both
table = pd.DataFrame(values).T
print(table.to_string(float_format=lambda value: f"{value:.4g}"))
monai, course = table["MONAI"], table["course_utils"]
assert math.isnan(monai["float16"]) and not -1 <= monai["bfloat16"] <= 0
assert -1 <= monai["float32"] <= 0
assert (course - course["float32"]).abs().max() < 0.01

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Both 16-bit types. float16 gives NaN: the product of two floors of $10^{-5}$ is $10^{-10}$, less than its smallest number,
# and $0/0$ is NaN wherever there is background. bfloat16 gives a number that no correlation can have.
#
# </details>
#
# bfloat16 keeps the range of float32 and drops the digits: $\overline{m^2} - \bar m^2$ subtracts two numbers that agree in
# all the digits it has. By hand, in a window of bright tissue:

# %%
tissue_window = 0.8 + 0.02 * torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
products = torch.tensor(1e-5).half() * torch.tensor(1e-5).half()
variance = {}
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    m = tissue_window.to(dtype)
    variance[str(dtype)[6:]] = ((m * m).mean() - m.mean() * m.mean()).item()
print("1e-5 times 1e-5 in float16:", products.item())
for name, value in variance.items():
    print(f"variance in {name:>8}: {value:+.2e}")
assert products == 0 and abs(variance["float32"] / variance["float64"] - 1) < 0.01
assert abs(variance["bfloat16"] / variance["float64"] - 1) > 0.5

# %% [markdown]
# The course's losses leave autocast and compute in float32, whatever comes in. That is one line
# (`torch.autocast(..., enabled=False)`) and a `float()` beside it, and it costs next to nothing beside a convolution. With
# MONAI's loss you write these two things yourself.
#
# ## The gradient that is too small to write down
#
# One trap is left, even if the loss is computed in float32: gradients flow back into float16 layers. A mean over $n$ voxels
# gives each of them a gradient of the order $1/n$, and a volume of OASIS has 6.9 million voxels.
#
# **Predict:** what share of its gradients is lost, because a float16 makes 0 of it?
#
# > *My prediction:*

# %%
n = 160 * 192 * 224
rounds_to_zero = 2.0**-25  # half of the smallest float16
# Of the SSD of such a volume, for the differences between our two people:
gradient = 2 * (moved - fixed)[fixed > 0] / n
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
drawn_gradients = {"as it is": (gradient, "#D55E00"), "times 65536": (gradient * scale, "#0072B2")}
for name, (values, colour) in drawn_gradients.items():
    exponents = values.abs().clamp(min=1e-14).log10()
    axes.hist(exponents.numpy(), bins=60, range=(-12, 1), color=colour, alpha=0.7, label=name)
limit = math.log10(rounds_to_zero)
axes.axvline(limit, color="black", linewidth=1)
place = axes.get_xaxis_transform()
axes.set_ylim(top=1.25 * axes.get_ylim()[1])
axes.text(limit - 0.15, 0.9, "0 in float16", transform=place, fontsize=9, ha="right")
axes.set(xlabel="log₁₀ |gradient|", ylabel="voxels", title=f"SSD over {n / 1e6:.1f} million voxels")
axes.legend(fontsize=8, loc="center left")
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# More than half of them. The smallest number that a float16 can hold is $6 \cdot 10^{-8}$, and whatever is below half of it
# becomes 0.
#
# </details>
#
# So one multiplies the loss by a large number, lets everything flow back, and divides before the optimiser looks. That is
# what `GradScaler` does. If a gradient overflows instead, it skips the step and halves its factor.

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
# ## The same in MONAI
#
# MONAI has every term of this page under a name of its own. What differs is the scale, so the *weights* of a MONAI tutorial
# do not carry over. We compare them on our two people:

# %%
import warnings

from monai.losses import BendingEnergyLoss, DiceLoss, DiffusionLoss, GlobalMutualInformationLoss

warnings.filterwarnings("ignore", message="Using a non-tuple sequence")

memberships = warp(members_moving, found)
mutual = GlobalMutualInformationLoss(kernel_type="b-spline", num_bins=32)
pairs_of = {
    "SSD": (torch.nn.MSELoss()(moved, fixed), ssd_loss(moved, fixed)),
    "NCC, plus 1": (1 + lncc(moved, fixed), ncc_loss(moved, fixed)),
    "mutual information": (mutual(moved, fixed), mi_loss(moved, fixed)),
    "diffusion": (DiffusionLoss()(found), diffusion_loss(found)),
    "bending": (BendingEnergyLoss()(found), bending_loss(found)),
    "soft Dice": (
        DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=1e-9)(memberships, members_fixed),
        soft_dice_loss(memberships, members_fixed),
    ),
}
compared = pd.DataFrame(pairs_of, index=["MONAI", "course_utils"]).astype(float).T
compared["ratio"] = compared["MONAI"] / compared["course_utils"]
print(compared.round(4).to_string())
ratio = compared["ratio"]
assert (ratio[["SSD", "soft Dice"]] - 1).abs().max() < 1e-4 and abs(ratio["NCC, plus 1"] - 1) < 0.15
assert abs(ratio["mutual information"] - 1) < 0.3 and abs(ratio["bending"] - 1) < 0.3

# %% [markdown]
# `DiffusionLoss` adds the axes up where we take their mean, so in 2-D we expect a factor of 2. There is a second difference,
# which shows only on rough fields: MONAI takes *central* differences, which compare a voxel's two neighbours and skip the
# voxel itself. A field that goes up and down from voxel to voxel is the roughest that there is. What does it cost?

# %%
rows = torch.arange(96.0)
smooth = (rows / 10).sin().view(1, 1, 96, 1).expand(1, 2, 96, 96)  # voxels
zigzag = (rows % 2).view(1, 1, 96, 1).expand(1, 2, 96, 96)
for name, field in {"smooth wave": smooth, "zigzag": zigzag}.items():
    print(f"{name:>11}: MONAI {DiffusionLoss()(field):.4f}, course {diffusion_loss(field):.4f}")
assert abs(DiffusionLoss()(smooth) / diffusion_loss(smooth) - 2) < 0.1
assert DiffusionLoss()(zigzag) == 0 < diffusion_loss(zigzag)
assert BendingEnergyLoss()(zigzag) > 1  # this one sees it

# %% [markdown]
# The zigzag is free. This is no slip but the price of a formula: central differences are more exact on smooth fields, and
# blind to this one. In practice the similarity and the half-resolution grid keep such fields away. The lesson is about
# testing: a regulariser must be tried on the field that it is there to forbid, too. MONAI's `BendingEnergyLoss` compares
# each voxel with its two neighbours, and sees the zigzag.
#
# ## What you now have
#
# - SSD and local NCC by hand. SSD sees far and believes intensities; NCC believes edges and sees as far as its window.
#   MI and MIND believe neither.
# - A loss can be lower than the truth's. Only something that it never saw can judge it: labels, landmarks, a known map.
# - Diffusion charges slopes, bending charges curvature. The weight is a compromise with a best value, which you find on
#   validation data.
# - Labels teach through soft memberships. A penalty on folds acts on folds alone.
#
# **What can go wrong.** Zero padding correlates borders. A default window is 3, or huge. Somebody compares the losses of two
# trainings that differ in weight or window, or takes λ from another paper or library. A similarity is computed inside
# autocast. float16 is used without a scaler.
#
# **Try it.**
# 1. *(middle)* Call `optimise(made_pair, ncc_loss, WEIGHTS, regulariser=bending_loss)`: is there a weight at which it beats
#    diffusion?
# 2. *(hard)* Add `soft_dice_loss` to `optimise`. Dice rises; does the true error fall? Why must it be judged by other
#    structures than those it was trained on?
# 3. *(easy)* Multiply the fixed image of the two people by 0.8 and add 0.1. Which of the four similarities change, and why?
# 4. *(middle)* Set the images to zero in the rim of the brain, and compute the NCC before and after again. How much of the
#    improvement came from the rim?
#
# **References.** Avants et al., *Symmetric diffeomorphic image registration with cross-correlation*, Medical Image
# Analysis 12(1), 2008, [doi:10.1016/j.media.2007.06.004](https://doi.org/10.1016/j.media.2007.06.004). Rueckert et al.,
# *Nonrigid registration using free-form deformations*, IEEE TMI 18(8), 1999,
# [doi:10.1109/42.796284](https://doi.org/10.1109/42.796284). Rohlfing, *Image similarity and tissue overlaps as surrogates
# for image registration accuracy: widely used but unreliable*, IEEE TMI 31(2), 2012,
# [doi:10.1109/TMI.2011.2163944](https://doi.org/10.1109/TMI.2011.2163944). Viola and Wells, *Alignment by maximization of
# mutual information*, IJCV 24(2), 1997,
# [doi:10.1023/A:1007958904918](https://doi.org/10.1023/A:1007958904918). Heinrich et al., *MIND: modality independent
# neighbourhood descriptor for multi-modal deformable registration*, Medical Image Analysis 16(7), 2012,
# [doi:10.1016/j.media.2012.05.008](https://doi.org/10.1016/j.media.2012.05.008). Milletari et al., *V-Net: fully
# convolutional neural networks for volumetric medical image segmentation*, 3DV 2016,
# [doi:10.1109/3DV.2016.79](https://doi.org/10.1109/3DV.2016.79). Mok and Chung, *Fast symmetric diffeomorphic image
# registration with convolutional neural networks*, CVPR 2020,
# [doi:10.1109/CVPR42600.2020.00470](https://doi.org/10.1109/CVPR42600.2020.00470). Micikevicius et al., *Mixed precision
# training*, ICLR 2018, [doi:10.48550/arXiv.1710.03740](https://doi.org/10.48550/arXiv.1710.03740).
#
# Next: [06 Training](06_training.ipynb): all of this on many pairs.
