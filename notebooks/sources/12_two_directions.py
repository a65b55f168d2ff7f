# %% [markdown]
# # 12 Two directions
#
# Which scan is moved onto which is your choice, and the anatomy knows nothing of it. So a registration that is asked twice, once in
# either direction, should give one answer and its inverse. A network gives two answers. Here you measure how far it contradicts
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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/12_two_directions.ipynb)

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
# Where the data folder holds `oasis2d` (`python -m course_utils download oasis2d`, 24 MB), this page works on real coronal slices;
# otherwise on slices of the built-in cohort, which need no download. Nothing below depends on the number of dimensions.

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
panel(images, labels=outlines, names=drawn, **cohort.info.view)

# %% [markdown]
# Two people, and the outlines of some structures deep inside. Which of them is the moving one was decided by the order of a list.

# %% [markdown]
# ## Ask twice
#
# Train a pyramid for a little while, one way: it is shown (moving, fixed) and never told of the other order. Then ask for both
# directions and compose the answers: there, and back. **Predict:** how far from its place does a pixel end? And how far does the
# network move an image that is registered *to itself*?

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

judge = pair_objective("ncc", smoothness=1.0, coarseness=2)


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
STEPS = 350
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
# The network has no reason to know better. Its two answers come from two different inputs, and nobody ever compared them. An image
# against itself moves because the network answers with what such images *usually* need.
#
# Is that the fault of the map? No: this network predicts a velocity, and $\exp(-v)$ is the inverse of $\exp(v)$ whatever
# was learnt (notebook 03). **An invertible map and a consistent network are two different things.**

# %%
with torch.no_grad():
    found = one_way(moving, fixed)
    undone = compose(found.displacement, found.inverse())
print(f"there, and back by exp(-v): {length(undone):.3f} pixel")
assert length(undone) < 0.1 * length(there_and_back(one_way))

# %% [markdown]
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
# good as the identity, and forcing it to zero costs accuracy. **Predict:** two maps that both shift by 3 pixels to the right.
# What does each of them pay? And two that both shrink by 10 %?

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
# Both cures work for any network, also for one that predicts a displacement and knows no inverse. Both run it twice for each
# pair, and both are *penalties*: consistency is bought, pair by pair of the training set, and never complete.
#
# ## Cure 4: antisymmetric by construction
#
# Take the difference of the network's two answers, half of it: $v(m, f) = \tfrac12\bigl(g(m, f) - g(f, m)\bigr)$. Swap the images,
# and the sign changes. Put one image in twice, and it is zero. No training is needed for that, no data, no weight to choose:

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
# What remains comes from integrating on a grid, not from the network. The course's pyramid does it level by level: both images move
# half of the way, are compared in the middle in both orders with the same weights, and the difference is what is added. It is
# `NetworkSpec("pyramid", {"antisymmetric": True})`, and what `train` builds when there are no labels.
#
# ## All five, at equal work
#
# ICON and GradICON run the network twice for each pair, so they get half the steps; the antisymmetric network compares twice at each
# level, and gets two thirds. **Predict** two orders: by Dice, and by the distance from home.

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
# The antisymmetric network is the only one whose answers are each other's inverse, and no image moves against itself. Judging
# the inverse too makes each *map* right in both directions; that the network's two answers contradict each other less is a side
# effect, and it stops far from zero. The penalties push the contradiction down, and leave some of it. The antisymmetric network
# has not paid for its consistency with overlap. The picture of a straight grid sent there and back says it faster:

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
# **The same elsewhere.** voxelmorph: `--bidir` (its TensorFlow `train.py`; weights 0.5 and 0.5) is cure 1. ICON and GradICON are
# `icon_registration`'s losses of that name, there in coordinates from 0 to 1, so their weights are not ours: 1 there is $1/n^2$ of a
# squared pixel here on a grid of $n$ (the gradient's has no unit, and carries over). MONAI has none of them.
#
# **What can go wrong.** To call a network symmetric because its loss is. To measure $\exp(v)$ against $\exp(-v)$ and report it as
# inverse consistency: it holds for random weights. To compose in the wrong order, or to forget that a pixel near the border is
# sent out of the image, where nobody knows the way back. To weigh ICON so much that the safest answer is not to move at all.
#
# **Try it.**
# 1. *(easy)* Multiply the weight of ICON by 100. What happens to Dice, and why?
# 2. *(middle)* Train all networks with `integration_steps=0`, so they predict displacements. Which cures still work? What does
#    `Registration.inverse` do then?
# 3. *(middle)* Draw `there_and_back` of three *different* images, a to b to c and home to a. Does an antisymmetric network come home?
# 4. *(hard)* An antisymmetric network cannot learn that "the moving image is always the older patient". Make such pairs, and find
#    out whether it loses.
#
# **References.** Christensen and Johnson, *Consistent image registration*, IEEE TMI 20(7), 2001. Dalca et al., *Unsupervised learning
# of probabilistic diffeomorphic registration*, Medical Image Analysis 57, 2019. Greer et al., *ICON: Learning regular maps through
# inverse consistency*, ICCV 2021. Tian et al., *GradICON*, CVPR 2023. Duan et al., *Towards saner deep image registration*, ICCV 2023.
# Honkamaa and Marttinen, *SITReg*, MELBA 2, 2024.
#
# Next: [13 The price of folding](13_price_of_folding.ipynb): a map that is no map, and what it costs to prevent it.
