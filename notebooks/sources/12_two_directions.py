# %% [markdown]
# # 12 Two directions
#
# Which scan is moved onto which is your choice, and the anatomy knows nothing of it. So a registration that is asked twice, once in
# each direction, should give one answer and its inverse. A network gives two answers. Here you measure how far it contradicts
# itself, write down the four cures that people use (judge the inverse too, ICON, GradICON, an antisymmetric velocity), and let
# them meet at equal work: who becomes consistent, and what does it cost?
#
# Afterwards you can tell a symmetric *loss* from a symmetric *network*, read the options `--bidir` of voxelmorph and
# `--bidirectional` of this course, and choose one. You need notebooks 03 (the exponential of a velocity) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/12_two_directions.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/12_two_directions.ipynb)

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
# ## Slices, because five networks are to be trained
#
# This page works on real coronal slices, which its first cell fetches (`oasis2d`, 24 MB), or else on slices of the built-in cohort.
# Nothing below depends on the number of dimensions.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects

real = session.dataset == "oasis2d"
cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 4))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 20))
item = test_pairs[0]
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, H, W)
print(
    f"{cohort.info.name}: {tuple(moving.shape[2:])} pixels, {len(test_pairs)} pairs to measure on"
)

# %%
from course_utils.plotting import panel

images = {"moving": item["moving"], "fixed": item["fixed"]}
outlines = {side: item[f"{side}_label"] for side in images}
deep = ("ventric", "thal", "deep")
drawn = {v: name for v, name in labels.items() if any(part in name.lower() for part in deep)}
panel(images, labels=outlines, names=drawn, fill=True, **cohort.info.view)

# %% [markdown]
# These are two people, with some of their structures deep inside filled with colour. Which of them is the moving one was decided by the order of a
# list.

# %% [markdown]
# ## Ask twice
#
# Train a pyramid for a little while, one way: it is shown (moving, fixed) and never told of the other order. Then ask for both
# directions and compose the answers: there, and back. A second question costs nothing more: what does the network do with an image
# that is registered *to itself*, where the right answer is to move nothing?
#
# **Predict:** how many pixels from its place does a pixel end, on average, after the way there and back?
#
# > *My prediction:*

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

judge = pair_objective("ncc", smoothness=1.0, coarseness=2)
STEPS = 350


# %%
def trained(name, objective, steps, **network):
    """A pyramid of the session's seed after some steps."""
    out = session.runs / "two_directions" / name.replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    spec = NetworkSpec("pyramid", {"spatial_dims": 2, **network})
    config = TrainConfig(steps=steps, batch_size=4, validations=1)
    result = fit(
        spec.build(session.seed),
        objective,
        train_pairs,
        val_pairs,
        out,
        config,
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    )
    return result.model.cpu().eval()


# %%
one_way = trained("one way", judge, STEPS)

# %%
import torch

from course_utils.fields import compose


@torch.no_grad()
def there_and_back(model, moving=moving, fixed=fixed):
    """Where each pixel ends after both maps, less where it began: (1, 2, H, W)."""
    return compose(model(moving, fixed).displacement, model(fixed, moving).displacement)


@torch.no_grad()
def to_itself(model, image=fixed):
    return model(image, image).displacement


def length(displacement):
    return displacement.norm(dim=1).mean().item()


print(f"there and back: {length(there_and_back(one_way)):.2f} pixel from home")
print(f"an image to itself: moved by {length(to_itself(one_way)):.2f} pixel")
assert length(there_and_back(one_way)) > 0.3 and length(to_itself(one_way)) > 0.05

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It ends a good part of a pixel away from home; the number is printed above. The network has no reason to do better, because its two
# answers come from two different inputs, and nobody ever compared them. An image against itself moves for the same reason: the network
# answers with what such images *usually* need.
#
# </details>
#
# Is that the fault of the map? This network predicts a velocity $v$, and its map is $\exp(v)$. So there is another way back: not to ask
# the network a second time, but to take $\exp(-v)$ of its first answer.
#
# **Predict:** how far from home does a pixel end on this way, compared with the number above?
#
# > *My prediction:*

# %%
with torch.no_grad():
    found = one_way(moving, fixed)
    undone = compose(found.displacement, found.inverse())
print(f"there, and back by exp(-v): {length(undone):.3f} pixel")
assert length(undone) < 0.1 * length(there_and_back(one_way))

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It is nearly at home: $\exp(-v)$ is the inverse of $\exp(v)$, whatever was learnt (notebook 03), and only the integration on a grid
# leaves a few hundredths of a pixel. **An invertible map and a consistent network are two different things.**
#
# </details>
#
# ## Cure 1: judge the inverse too
#
# voxelmorph's `--bidir` does this: one velocity, two maps, two losses. The moving image goes to the fixed one by $\exp(v)$,
# the fixed one to the moving by $\exp(-v)$, and the network pays for both. By hand:

# %%
from course_utils.fields import warp
from course_utils.losses import diffusion_loss, ncc_loss


def inverse_too(found, moving, fixed, smoothness=1.0):
    there = ncc_loss(warp(moving, found.displacement), fixed)
    back = ncc_loss(warp(fixed, found.inverse()), moving)
    return (there + back) / 2 + smoothness * diffusion_loss(found.velocity)


# %%
from course_utils.objectives import InverseToo

full = pair_objective("ncc", smoothness=1.0)
batch = {"moving": moving, "fixed": fixed}
with torch.no_grad():
    by_hand, tested = inverse_too(found, moving, fixed), InverseToo(full)(one_way, batch).loss
print(
    f"by hand {by_hand:.4f}, InverseToo {tested:.4f}, one direction alone "
    f"{full(one_way, batch).loss:.4f}"
)
assert abs(by_hand - tested) < 0.01

# %% [markdown]
# ## Cures 2 and 3: pay for the contradiction
#
# **ICON** runs the network in both directions and punishes what the composition lacks of being the identity,
# $\|u_{ab} \circ u_{ba}\|^2$. **GradICON** punishes only its *gradient*: a composition that is a small shift everywhere is nearly as
# good as the identity, and forcing it to zero costs accuracy. The next cell tries both losses on two maps that both shift by 3 pixels
# to the right, and on two maps that both shrink by 10 %.
#
# **Predict:** which of the two losses minds the shifts?
#
# > *My prediction:*

# %%
from course_utils.fields import identity_grid
from course_utils.objectives.two_directions import gradient_inconsistency, inconsistency

grid = identity_grid((40, 40))
shift = torch.tensor([0.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 40, 40)
shrink = -0.1 * grid
print(f"{'':>8} {'ICON':>8} {'GradICON':>8}")
for name, u in (("shift", shift), ("shrink", shrink)):
    print(f"{name:>8} {inconsistency(u, u):8.3f} {gradient_inconsistency(u, u):8.3f}")
assert torch.isclose(inconsistency(shift, shift), torch.tensor(36.0))  # 6 pixels from home, squared
assert gradient_inconsistency(shift, shift) < 1e-6
assert torch.isclose(gradient_inconsistency(shrink, shrink), torch.tensor(2 * (0.9**2 - 1) ** 2))

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Only ICON does. There and back, each pixel ends 6 pixels to the right, and ICON pays the square of that, 36. The composition is the same
# shift everywhere, so its gradient is zero and GradICON pays nothing. The shrinking maps cost something under both.
#
# </details>
#
# Both cures work for any network, also for one that predicts a displacement and knows no inverse. Both run it twice for each
# pair, and both are *penalties*: consistency is bought, pair by pair of the training set, and never complete.
#
# ## Cure 4: antisymmetric by construction
#
# Take the difference of the network's two answers, half of it: $v(m, f) = \tfrac12\bigl(g(m, f) - g(f, m)\bigr)$. Swap the images,
# and the sign changes. No training is needed for that, no data, no weight to choose. The next cell tries it with random weights.
#
# **Predict:** how far does such a network move an image that is registered to itself?
#
# > *My prediction:*

# %%
from course_utils.fields import integrate
from course_utils.networks import VoxelMorph


def antisymmetric(g, moving, fixed):
    """The displacement of half the difference of a network's two velocities."""
    return integrate((g(moving, fixed).velocity - g(fixed, moving).velocity) / 2)


g = VoxelMorph(2).eval()
torch.manual_seed(session.seed)
for parameter in g.parameters():
    parameter.data += 0.1 * torch.randn_like(parameter)  # random weights that move something
with torch.no_grad():
    contradiction = length(there_and_back(g))
    there, back = antisymmetric(g, moving, fixed), antisymmetric(g, fixed, moving)
print(f"random weights, as they are:    {contradiction:.3f} pixel from home")
itself = length(antisymmetric(g, fixed, fixed))
print(
    f"random weights, antisymmetric:  {length(compose(there, back)):.3f} pixel, itself {itself:.3f}"
)
assert length(compose(there, back)) < 0.1 * contradiction and itself == 0

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Not at all, and that is exact: if both images are the same, the difference is a number minus itself. It needs no training.
#
# </details>
#
# What remains of the way there and back comes from integrating on a grid, not from the network. The course's pyramid does it level by level: both images move
# half of the way, are compared in the middle in both orders with the same weights, and the difference is what is added. It is
# `NetworkSpec("pyramid", {"antisymmetric": True})`, and what `train` builds when there are no labels.
#
# ## All five, at equal work
#
# ICON and GradICON run the network twice for each pair, so they get half the steps; the antisymmetric network compares twice at each
# level, and gets two thirds.
#
# **Predict** the order of the five by the distance from home, from far to near. Does the last one pay for it with overlap?
#
# > *My prediction:*

# %%
from course_utils.objectives import Consistent

methods = {"one way": one_way}
methods["inverse too"] = trained("inverse too", InverseToo(judge), STEPS)
methods["ICON"] = trained("ICON", Consistent(judge, "icon", 0.1), STEPS // 2)
methods["GradICON"] = trained("GradICON", Consistent(judge, "gradicon", 1.0), STEPS // 2)
methods["antisymmetric"] = trained("antisymmetric", judge, STEPS * 2 // 3, antisymmetric=True)

# %%
import pandas as pd

from course_utils.consistency import consistency
from course_utils.evaluation import evaluate, summarise

tables = {name: evaluate(model, test_pairs, labels, spacing) for name, model in methods.items()}
sanity = {
    name: consistency(model, (test_pairs[n] for n in range(len(test_pairs))))
    for name, model in methods.items()
}
rows = {}
for name in methods:
    mean = summarise(tables[name]).loc["overall"].xs("mean", level=1)
    rows[name] = {
        "Dice": mean["dice_after"],
        "folding %": mean["folding_percent"],
        "there and back, pixels": sanity[name]["swap_voxels"].mean(),
        "to itself, pixels": sanity[name]["self_voxels"].mean(),
    }
overview = pd.DataFrame(rows).T
print(f"before: Dice {mean['dice_before']:.3f}")
overview.round(3)

# %%
swap, itself, overlap = (
    overview[c] for c in ("there and back, pixels", "to itself, pixels", "Dice")
)
assert swap["antisymmetric"] < 0.1 and itself["antisymmetric"] < 1e-4
assert swap["inverse too"] > 0.3 * swap["one way"]  # the loss alone does not get there
assert max(swap["ICON"], swap["GradICON"]) < 0.7 * swap["one way"]
assert (
    overlap["antisymmetric"] > overlap["one way"] - 0.01
    and overlap.min() > mean["dice_before"] + 0.05
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# One way is furthest from home. Judging the inverse too makes each *map* right in both directions; that the network's two answers
# contradict each other less is a side effect, and it stops far from zero. The penalties of ICON and GradICON push the contradiction
# further down, and leave some of it. Only the antisymmetric network's answers are each other's inverse, and it has not paid for that with
# overlap.
#
# </details>
#
# A picture says it faster: a straight grid, sent there and back by each of the five. The number above each grid is the mean distance from
# home in pixels.

# %%
from course_utils.plotting import deformed_grid

deformed_grid(
    {f"{name}: {swap[name]:.2f}": there_and_back(model) for name, model in methods.items()},
    step=moving.shape[2] // 16,
    columns=3,
    **cohort.info.view,
)

# %% [markdown]
# Is it a matter of a few pairs? Each point is one pair of people, measured for its overlap and its distance from home.

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(7.5, 3.2), layout="constrained")
axes = figure.subplots()
colours = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00")
for (name, table), colour, marker in zip(tables.items(), colours, "osd^v", strict=True):
    dice = table.groupby("pair")["dice_after"].mean()
    home = sanity[name].set_index("pair")["swap_voxels"].loc[dice.index]
    axes.scatter(home, dice, 14, color=colour, marker=marker, label=name)
axes.set(xscale="log", ylabel="mean Dice after")
axes.set_xlabel("there and back: mean distance from home, pixels")
ticks = [0.01, 0.03, 0.1, 0.3, 1.0]
axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
axes.minorticks_off()
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# ## When to take what
#
# - **Antisymmetric** where you can change the network, and nothing but images to learn from. On real slices, with three seeds
#   and equal time, it has the best overlap of the five ([measured](../docs/results.md)). `python -m course_utils train` does it unasked.
# - **One way** when labels are the goal and minutes are few: there it learns faster ([measured](../docs/results.md)).
# - **ICON or GradICON** where the network predicts a displacement and must stay as it is: `--bidirectional gradicon --one-way`.
# - **Inverse too** when the loss itself has a direction: `--bidirectional inverse`. A local window over the moved image sees what
#   the moving image shows there; with both directions neither image is the reference.
# - And always: `python -m course_utils evaluate` prints `swap_voxels` and `self_voxels`. They need no labels, so you can measure
#   them on your own patients.
#
# ## The same in MONAI
#
# MONAI has none of the four cures ready-made, but it has the parts. `DVF2DDF` is our `integrate`: it turns a velocity field into a
# displacement field, and with $-v$ into the way back. `Warp` moves an image, and also one field by another, which is how two
# displacements are composed. With its local correlation, cure 1 takes four lines:

# %%
import warnings

from monai.losses import LocalNormalizedCrossCorrelationLoss
from monai.networks.blocks import DVF2DDF, Warp

warnings.filterwarnings("ignore", message=".*native grid_sample")
exponential, move = DVF2DDF(num_steps=7), Warp(padding_mode="border")
unlike = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)  # from -1 to 0
with torch.no_grad():
    there, back = exponential(found.velocity), exponential(-found.velocity)
    moved, moved_back = move(moving, there), move(fixed, back)
    theirs = 1 + (unlike(moved, fixed) + unlike(moved_back, moving)) / 2
    home = back + move(there, back)  # (1, 2, H, W): there, and back
ours = inverse_too(found, moving, fixed, smoothness=0)
inside = (..., slice(8, -8), slice(8, -8))  # away from the border
apart = (there - integrate(found.velocity))[inside].abs().max()
print(f"both directions: MONAI {theirs:.4f}, ours {ours:.4f}; home again: {length(home):.3f} pixel")
print(f"DVF2DDF and integrate differ by {apart:.1e} pixel away from the border")
assert abs(theirs - ours) < 0.02 and apart < 0.02
assert length(home) < 0.3 * length(there_and_back(one_way))

# %% [markdown]
# At the border the two differ, because `DVF2DDF` reads zeros outside of the image where `integrate` repeats the edge (notebook 03).
#
# Cure 4 needs a network that answers with a velocity. The network within MONAI's `VoxelMorph` is called `backbone`, and it can be asked
# in both orders:

# %%
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet

torch.manual_seed(session.seed)
narrow = VoxelMorphUNet(  # the default has more channels and one more level
    spatial_dims=2,
    in_channels=2,
    unet_out_channels=16,
    channels=(16, 16, 16, 16),
    final_conv_channels=(16, 16),
)
network = MonaiVoxelMorph(narrow, spatial_dims=2).eval()


def velocity(a, b):
    """Half the difference of the backbone's two answers, (B, 2, H, W)."""
    one, other = (network.backbone(torch.cat(pair, dim=1)) for pair in ((a, b), (b, a)))
    return (one - other) / 2


with torch.no_grad():
    forwards, backwards = velocity(moving, fixed), velocity(fixed, moving)
    itself = velocity(fixed, fixed).abs().max()
print(f"v(m, f) + v(f, m): at most {(forwards + backwards).abs().max():.1e}; itself {itself:.1e}")
assert torch.equal(forwards, -backwards) and itself == 0 and forwards.abs().max() > 0

# %% [markdown]
# **The same elsewhere.** voxelmorph: `--bidir` (its TensorFlow `train.py`; weights 0.5 and 0.5) is cure 1. ICON and GradICON are
# `icon_registration`'s losses of that name, there in coordinates from 0 to 1, so their weights are not ours: 1 there is $1/n^2$ of a
# squared pixel here on a grid of $n$ (the gradient's has no unit, and carries over).
#
# **What you now have.** A number for how far any method contradicts itself, which needs no labels; four cures, each of them written by
# hand; and a table of what each costs.
#
# **What can go wrong.** You call a network symmetric because its loss is. You measure $\exp(v)$ against $\exp(-v)$ and report the result as
# inverse consistency, although it holds for random weights. You compose in the wrong order, or forget that a pixel near the border is
# sent out of the image, where nobody knows the way back. You weigh ICON so much that the safest answer is not to move at all.
#
# **Try it.**
# 1. *(easy)* Multiply the weight of ICON by 100. What happens to Dice, and why?
# 2. *(middle)* Train all networks with `integration_steps=0`, so they predict displacements. Which cures still work? What does
#    `Registration.inverse` do then?
# 3. *(middle)* Draw `there_and_back` of three *different* images, a to b to c and home to a. Does an antisymmetric network come home?
# 4. *(hard)* An antisymmetric network cannot learn that "the moving image is always the older patient". Make such pairs, and find
#    out whether it loses.
#
# **References.** Christensen and Johnson, *Consistent image registration*, IEEE TMI 20(7), 2001,
# https://doi.org/10.1109/42.932742. Dalca et al., *Unsupervised learning of probabilistic diffeomorphic registration for images and
# surfaces*, Medical Image Analysis 57, 2019, https://doi.org/10.1016/j.media.2019.07.006. Greer et al., *ICON: Learning regular maps
# through inverse consistency*, ICCV 2021, https://doi.org/10.48550/arXiv.2105.04459. Tian et al., *GradICON*, CVPR 2023,
# https://doi.org/10.48550/arXiv.2206.05897. Duan et al., *Towards saner deep image registration*, ICCV 2023. Honkamaa and Marttinen,
# *SITReg*, MELBA 2, 2024.
#
# Next: [13 The price of folding](13_price_of_folding.ipynb): a map that is no map, and what it costs to prevent it.
