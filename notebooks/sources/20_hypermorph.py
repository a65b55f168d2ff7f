# %% [markdown]
# # 20 One network for every smoothness
#
# How smooth should a deformation be? Nobody knows before having tried. So people train a network with one weight of the smoothness,
# measure it, train another with another weight, and so on, for days. **Must I train five networks to find the smoothness?**
# HyperMorph (2021) says no: let the weight be an *input* of the network. Train once, and turn the knob afterwards.
#
# Here you build the knob in two ways, train one network that has it, and compare it with networks that were trained for one weight each.
# Afterwards you can choose the weight for your own data, for each structure if you like, on validation pairs and without any new
# training, and you know what that costs. You need notebooks 04 (the network), 05 (the loss) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/20_hypermorph.ipynb)

# %%
# The same in every notebook: installs the course where it is missing (Colab), then begins the session.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("course_utils") is None:
    repository = os.environ.get("COURSE_REPOSITORY", "git+https://github.com/OWNER/registration-course")
    if "/OWNER/" in repository:
        raise SystemExit("this copy has no address yet: make address URL=https://github.com/you/fork")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", repository], check=True)
    importlib.invalidate_caches()

from course_utils.session import start

session = start()
print(session)

# %% [markdown]
# ## Two ways to write one knob
#
# The loss of this course is $L + w R$: what the images lack of being alike, plus a weight $w$ times the roughness of the field.
# HyperMorph writes $(1 - \lambda) L + \lambda R$ with $\lambda$ between 0 and 1. **Predict:** which $\lambda$ is our $w = 0.5$?


# %%
def to_lambda(w):
    return w / (1 + w)


L, R = 0.7, 0.06  # what a pair may cost
for w in (0.05, 0.5, 5.0):
    blend = to_lambda(w)
    ours, theirs = L + w * R, (1 - blend) * L + blend * R
    print(f"w = {w:<4g}  lambda = {blend:.3f}   ours {ours:.3f} = {1 + w:.2f} times theirs {theirs:.3f}")
    assert abs(ours - (1 + w) * theirs) < 1e-12

# %% [markdown]
# The two differ by the factor $1 + w$, which does not depend on the field. So for *one* weight both have the same best field. For a
# network that sees *many* weights the factor matters: a batch with $w = 5$ would push six times as hard as one with $w = 0$. The
# division by $1 + w$ makes all weights speak equally loud. The course's objective divides too.
#
# ## The knob by hand, first way: FiLM
#
# A network of this course normalises each channel of its features: mean 0 and standard deviation 1 over the voxels. Then it
# multiplies each channel by a number and adds another, both learnt. *Feature-wise linear modulation* (FiLM) lets these two numbers
# depend on the input $w$: a tiny network turns $w$ into a code, and a linear layer turns the code into a scale and a shift.

# %%
import torch
from torch import nn

torch.manual_seed(session.seed)
tiny = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2))  # where the weight lies in its range, to a code
linear = nn.Linear(32, 2 * 4)  # the code to 4 scales and 4 shifts


def film(features, position):
    """Features (B, 4, H, W), scaled and shifted as the position (B, 1) of the weight says."""
    scale, shift = linear(tiny(2 * position - 1))[..., None, None].chunk(2, dim=1)
    mean, std = features.mean((2, 3), keepdim=True), features.std((2, 3), keepdim=True, correction=0)
    return scale * (features - mean) / std + shift


features = torch.randn(2, 4, 24, 24)
with torch.no_grad():
    a, b = (film(features, torch.full((2, 1), at)) for at in (0.0, 1.0))
print(f"one input, two weights: features that differ by {(a - b).abs().mean():.2f} on average")
assert (a - b).abs().mean() > 0.05

# %% [markdown]
# The tested version is `ConditionalNorm`. It is in every block of a network that is built with `conditions=1`. It begins as a plain
# normalisation that ignores the weight, so training starts where it always starts.

# %%
from course_utils.networks import VoxelMorph
from course_utils.networks.film import ConditionalNorm

norm = ConditionalNorm(4)
norm.film = linear
with torch.no_grad():
    tested = norm(features, tiny(torch.full((2, 1), 1.0)))
print(f"by hand and tested differ by {(tested - b).abs().max():.1e}")
assert torch.allclose(tested, b, atol=1e-3)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


plain, conditioned = VoxelMorph(2), VoxelMorph(2, conditions=1)
print(f"plain {size(plain):,} parameters, with FiLM {size(conditioned):,}")
assert size(conditioned) < 1.3 * size(plain)

# %% [markdown]
# ## The second way: a network that makes a network
#
# HyperMorph itself goes further. A *hypernetwork* takes the weight and answers with **every kernel** of the registration network.
# **Predict:** the registration network has 86,114 parameters, and the hypernetwork has one hidden layer of 32 units. How many
# parameters has it?

# %%
from torch.func import functional_call

shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
hidden = nn.Sequential(nn.Linear(1, 32), nn.ReLU())
kernels = nn.Linear(32, size(plain))
with torch.no_grad():  # begin as the plain network, whatever the weight
    kernels.weight.mul_(0.01)
    kernels.bias.copy_(nn.utils.parameters_to_vector(plain.parameters()))


def hypernetwork(moving, fixed, position):
    """The plain network's answer, with the kernels that are made for this position of the weight."""
    parts = kernels(hidden(position)).split([shape.numel() for shape in shapes.values()])
    made = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return functional_call(plain, made, (moving, fixed))


pair = torch.rand(2, 1, 1, 32, 32)
with torch.no_grad():
    ends = [hypernetwork(*pair, torch.tensor([at])).displacement for at in (0.0, 1.0)]
count = size(hidden) + size(kernels)
print(f"hypernetwork: {count:,} parameters, {count / size(plain):.0f} times the network it makes")
assert (ends[0] - ends[1]).abs().max() > 0 and count > 30 * size(plain)

# %% [markdown]
# Each kernel needs a row of 32 weights and a bias, so there are 33 times as many. In 3-D with the 128 units of the paper it would be
# tens of millions. FiLM needs a sixth more than the plain network. In our first trial at equal time the hypernetwork was behind
# FiLM, so the course ships FiLM and leaves the hypernetwork to you (exercise 4).
#
# ## One network, and three to compare it with
#
# Slices again; `COURSE_DATASET=oasis2d` takes real ones. The networks predict displacements, so that too little smoothness shows as
# folds (notebook 13).

# %%
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.data.synthetic import make_cohort

if session.dataset == "oasis2d":
    cohort = load_cohort("oasis2d")
else:
    root = session.data_root / "slices"
    make_cohort(root / "synthetic", subjects=60, dimensions=2, seed=session.seed)  # that of notebook 00
    cohort = load_cohort("synthetic", root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 20))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 20))
print(f"{cohort.info.name}: {len(val_pairs)} pairs to choose a weight on, {len(test_pairs)} to measure it on")

# %% [markdown]
# The weights run from 0.05 to 5. What counts between them is the *ratio*: from 0.05 to 0.5 is as far as from 0.5 to 5, so the
# network is told the position on a logarithmic scale, 0 to 1. `AnySmoothness` draws a position for each batch, with a probability of
# 0.2 one of the two ends (which it would otherwise never see exactly), tells it to the network, and weighs the loss with it.

# %%
import shutil

from course_utils.networks import NetworkSpec, SmoothnessRange
from course_utils.objectives import AnySmoothness, pair_objective
from course_utils.training import TrainConfig, fit

RANGE = SmoothnessRange(0.05, 5.0)
STEPS = 150  # of a network for one weight


def trained(name, objective, steps, conditions=0):
    out = session.runs / "hypermorph" / name
    shutil.rmtree(out, ignore_errors=True)
    spec = NetworkSpec("voxelmorph", {"spatial_dims": 2, "integration_steps": 0, "conditions": conditions})
    config = TrainConfig(steps=steps, batch_size=4, validations=1)
    watched = PairDataset(subjects, val_pairs.pairs[:2])
    card, where = cohort.info.card(), session.device
    network = spec.build(session.seed)
    result = fit(network, objective, train_pairs, watched, out, config, card=card, device=where, hooks=[])
    return result.model.cpu().eval(), result.history.seconds.iloc[-1]


# %%
any_weight = AnySmoothness(pair_objective("ncc", smoothness=0.0, coarseness=2), RANGE)
one, seconds_one = trained("one", any_weight, 2 * STEPS, conditions=1)

# %%
separate, seconds = {}, {}
for w in (0.05, 0.5, 5.0):
    objective = pair_objective("ncc", smoothness=w, coarseness=2)
    separate[w], seconds[w] = trained(f"only_{w}", objective, STEPS)
objective = pair_objective("ncc", smoothness=0.5, coarseness=2)
as_long, _ = trained("as_long", objective, 2 * STEPS)  # for one weight, with the steps of the one network

# %% [markdown]
# ## Turn the knob
#
# **Predict:** how does the Dice of the one network run over the weight? And the folds?

# %%
import pandas as pd

from course_utils import metrics
from course_utils.fields import warp
from course_utils.losses import diffusion_loss

labels = dict(cohort.info.labels)


def stacked(pairs):
    items = [pairs[n] for n in range(len(pairs))]
    return {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "name"}


@torch.no_grad()
def measured(model, batch, weight=None):
    """Mean Dice of each structure, and of the field: folds, percent of the area, and roughness."""
    told = None if weight is None else torch.full((len(batch["fixed"]), 1), RANGE.position(weight))
    field = model(batch["moving"], batch["fixed"], told).displacement
    moved = warp(batch["moving_label"], field, mode="nearest", padding="zeros")
    dice = metrics.dice(moved, batch["fixed_label"], list(labels)).nanmean(0)
    row = dict(zip(labels.values(), dice.tolist(), strict=True))
    folds, rough = metrics.ndv_percent(field).mean().item(), diffusion_loss(field).item()
    return row | {"Dice": dice.nanmean().item(), "folds": folds, "roughness": rough}


# %%
val, test = stacked(val_pairs), stacked(test_pairs)
weights = [RANGE.weight(n / 8) for n in range(9)]
on_val = pd.DataFrame({w: measured(one, val, w) for w in weights}).T
on_test = pd.DataFrame({w: measured(one, test, w) for w in weights}).T
alone = pd.DataFrame({w: measured(network, test) for w, network in separate.items()}).T
before = metrics.dice(test["moving_label"], test["fixed_label"], list(labels)).nanmean(0).nanmean().item()
print(f"before: Dice {before:.3f}; the one network on the test pairs:")
on_test[["Dice", "folds", "roughness"]].rename_axis("weight").round(4)

# %% [markdown]
# The proof that the network listens: its field gets smoother with every turn of the knob. A network that does not listen would give
# one answer for all weights. To see that the check would notice, the knob is disconnected in a copy.

# %%
import copy
from itertools import pairwise


def falls(values):
    return all(later < 0.98 * earlier for earlier, later in pairwise(values))


deaf = copy.deepcopy(one)
for module in deaf.modules():
    if isinstance(module, ConditionalNorm):
        nn.init.zeros_(module.film.weight)
of_deaf = [measured(deaf, test, w)["roughness"] for w in weights]
print(f"roughness at both ends: {on_test.roughness.iloc[0]:.4f} and {on_test.roughness.iloc[-1]:.4f}")
print(f"the same, disconnected: {of_deaf[0]:.4f} and {of_deaf[-1]:.4f}")
assert falls(on_test.roughness) and not falls(of_deaf)
assert on_test.roughness.iloc[0] > 2 * on_test.roughness.iloc[-1]

# %% [markdown]
# Now beside the networks that were trained for one weight each.

# %%
beside = pd.DataFrame(
    {
        "one network": on_test.Dice.iloc[[0, 4, 8]].to_numpy(),
        "its own network": alone.Dice.to_numpy(),
        "folds %, one": on_test.folds.iloc[[0, 4, 8]].to_numpy(),
        "folds %, own": alone.folds.to_numpy(),
    },
    index=pd.Index(alone.index, name="weight"),
)
beside["difference"] = beside["one network"] - beside["its own network"]
equal_steps = on_test.Dice.iloc[4] - measured(as_long, test)["Dice"]
print(f"steps: one network {2 * STEPS}, three networks {3 * STEPS}, five would be {5 * STEPS}")
print(f"seconds here: {seconds_one:.0f} against {sum(seconds.values()):.0f}")
print(f"against a network for 0.5 alone that had {2 * STEPS} steps too: Dice {equal_steps:+.4f}")
beside.round(4)

# %%
MARGIN = 0.02
assert beside.difference.min() > -MARGIN
assert on_test.Dice.max() > before + 0.05

# %%
from course_utils.plotting import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
FLOOR = 1e-5  # percent: what has less has none that a logarithm could show
figure = Figure(figsize=(8, 3.1), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(weights, on_test.Dice, color=BLUE, label=f"one network, {2 * STEPS} steps")
left.plot(alone.index, alone.Dice, "o", color=ORANGE, label=f"one each, {STEPS} steps")
right.plot(weights, on_test.folds.clip(lower=FLOOR), color=BLUE)
right.plot(alone.index, alone.folds.clip(lower=FLOOR), "o", color=ORANGE)
left.set(xscale="log", xlabel="weight of the smoothness", ylabel="mean Dice after")
right.set(xscale="log", yscale="log", xlabel="weight of the smoothness", ylabel="area turned over, %")
left.legend(frameon=False, loc="lower left")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# The line is one network; each point was a training of its own. And the same two people at five positions of the knob:

# %%
from course_utils.plotting import deformed_grid

item = test_pairs[0]
moving, fixed = item["moving"][None], item["fixed"][None]
fields = {}
for w in weights[::2]:
    with torch.no_grad():
        fields[f"weight {w:.2g}"] = one(moving, fixed, torch.tensor([[RANGE.position(w)]])).displacement
deformed_grid(fields, moving, step=moving.shape[2] // 24, columns=5, spacing=list(cohort.info.spacing))

# %% [markdown]
# ## Choose, on validation pairs
#
# The best weight must not be chosen on the pairs that it is then reported on. So it is the one with the best Dice on the
# *validation* pairs, and what it is worth is read on the *test* pairs. The same for each structure by itself. **Predict:** how
# much Dice does a structure gain by a weight of its own?

# %%
names = list(labels.values())
best = on_val.Dice.idxmax()
own = on_val[names].idxmax()  # the best weight of each structure
choice = pd.DataFrame(
    {
        "best weight": own,
        "Dice with it": [on_test.loc[own[name], name] for name in names],
        f"Dice with {best:.2g}": on_test.loc[best, names],
    }
)
choice["gain"] = choice.iloc[:, 1] - choice.iloc[:, 2]
print(f"best weight for all on validation: {best:.2g}; on the test pairs Dice {on_test.Dice[best]:.3f}")
print(f"a weight for each structure: {choice.iloc[:, 1].mean():.3f}, a mean gain of {choice.gain.mean():+.4f}")
choice.sort_values("best weight").round(3)

# %%
assert on_test.Dice[best] > on_test.Dice.max() - 0.01  # what validation chose is good on the test pairs too
assert choice.gain.mean() < 0.01

# %% [markdown]
# Each line is a structure, as what it lacks of its own best on the validation pairs. The two that like the least smoothness and the
# two that like the most are in colour.

# %%
figure = Figure(figsize=(7.5, 3.4), layout="constrained")
axes = figure.subplots()
ordered = own.sort_values(kind="stable").index
coloured = dict(zip([*ordered[:2], *ordered[-2:]], (BLUE, "#56B4E9", "#E69F00", ORANGE), strict=False))
for name in sorted(names, key=lambda name: name in coloured):  # grey lines first, below the others
    lacks = on_val[name] - on_val[name].max()
    axes.plot(weights, lacks, color=coloured.get(name, "#CCCCCC"), label=name if name in coloured else None)
    axes.plot(own[name], 0, ".", color=coloured.get(name, "#CCCCCC"))
axes.set(xscale="log", xlabel="weight of the smoothness", ylabel="Dice less its best")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# Where Jupyter has sliders, this one turns the knob for you.

# %%
if importlib.util.find_spec("ipywidgets"):
    from ipywidgets import FloatLogSlider, interact

    def look(weight):
        with torch.no_grad():
            field = one(moving, fixed, torch.tensor([[RANGE.position(weight)]])).displacement
        return deformed_grid(field, moving, step=moving.shape[2] // 24, spacing=list(cohort.info.spacing))

    interact(look, weight=FloatLogSlider(value=0.5, min=-1.3, max=0.69, step=0.01))
