# %% [markdown]
# # 20 One network for every smoothness
#
# How smooth should a deformation be? Nobody knows before having tried. So people train a network with one weight of the smoothness,
# measure it, train another with another weight, and so on, for days. **Must I train five networks to find the smoothness?**
# HyperMorph (2021) says no: let the weight be an *input* of the network. Train once, and turn the knob afterwards.
#
# Here you build the knob in two ways, train one network that has it, and compare it with networks that were trained for one weight
# each. Afterwards you can choose the weight for your own data, for each structure if you like, on validation pairs and without any new
# training, and you know what that costs. You need notebooks 04 (the network), 05 (the loss) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/20_hypermorph.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/20_hypermorph.ipynb)

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
# ## Two ways to write one knob
#
# The loss of this course is $L + w R$: what the images lack of being alike, plus a weight $w$ times the roughness of the field.
# HyperMorph writes $(1 - \lambda) L + \lambda R$ with $\lambda$ between 0 and 1.
#
# **Predict:** which $\lambda$ is our $w = 0.5$?
#
# > *My prediction:*


# %%
def to_lambda(w):
    return w / (1 + w)


L, R = 0.7, 0.06  # what a pair may cost
for w in (0.05, 0.5, 5.0):
    blend = to_lambda(w)
    ours, theirs = L + w * R, (1 - blend) * L + blend * R
    print(f"w = {w:<4g}  lambda = {blend:.3f}  ours {ours:.3f} = {1 + w:.2f} x theirs {theirs:.3f}")
    assert abs(ours - (1 + w) * theirs) < 1e-12

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# A third: the ratio of the two terms must be the same, $\lambda / (1 - \lambda) = w$, so $\lambda = w / (1 + w)$.
#
# </details>
#
# The two losses differ by the factor $1 + w$, which does not depend on the field. So for *one* weight both have the same best field. For a
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
tiny = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2))  # place of the weight to a code
linear = nn.Linear(32, 2 * 4)  # the code to 4 scales and 4 shifts


def film(features, position):
    """Features (B, 4, H, W), scaled and shifted as the position (B, 1) of the weight says."""
    scale, shift = linear(tiny(2 * position - 1))[..., None, None].chunk(2, dim=1)
    mean = features.mean((2, 3), keepdim=True)
    std = features.std((2, 3), keepdim=True, correction=0)
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
# HyperMorph itself goes further. A *hypernetwork* takes the weight and answers with **every kernel** of the registration network. Here the
# registration network has 86,114 parameters, and the hypernetwork has one hidden layer of 32 units.
#
# **Predict:** how many parameters does the hypernetwork have?
#
# > *My prediction:*

# %%
from torch.func import functional_call

from course_utils.networks import Hypernetwork

plain, tested = plain.eval(), Hypernetwork(2).eval()
nn.init.normal_(tested.weights.weight)  # so that it listens; a new one hardly does
own = {name: weight for name, weight in tested.named_parameters() if name in plain.state_dict()}


def hypernetwork(moving, fixed, position):
    """The plain network's answer, with weights that are made for this position, (1, 1)."""
    code = tested.conditioning(position, 1)[0]  # (32,), from a small network as above
    added = (tested.weights.weight @ code / 32).split([weight.numel() for weight in own.values()])
    parts = zip(own.items(), added, strict=True)
    made = {name: weight + part.view_as(weight) for (name, weight), part in parts}
    return functional_call(plain, made, (moving, fixed)).displacement


# %%
pair = torch.rand(2, 1, 1, 32, 32)
with torch.no_grad():
    ends = [hypernetwork(*pair, torch.tensor([[at]])) for at in (0.0, 1.0)]
    theirs = [tested(*pair, torch.tensor([[at]])).displacement for at in (0.0, 1.0)]
print(f"by hand and tested differ by {(ends[1] - theirs[1]).abs().max():.1e}")
print(f"{size(tested):,} parameters, {size(tested) / size(plain):.0f} times the plain network")
assert torch.allclose(ends[1], theirs[1], atol=1e-3) and (ends[0] - ends[1]).abs().max() > 0.1
assert size(tested) > 30 * size(plain)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# About 33 times as many, 2.8 million: each weight is one of its own plus what a row of 32 numbers makes of the code.
#
# </details>
#
# In 3-D with the 128 units
# of the paper it would be tens of millions. FiLM needs a sixth more than the plain network, so this page goes on with it; what the
# hypernetwork gains by its size stands at the end.
#
# ## One network, and three to compare it with
#
# Slices of people again (`oasis2d`). The networks predict displacements, which nothing but the smoothness keeps
# from folding (notebook 13).

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 20))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 20))
print(f"{cohort.info.name}: {len(val_pairs)} pairs to choose on, {len(test_pairs)} to measure on")

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


# %%
def trained(name, objective, steps, conditions=0):
    out = session.runs / "hypermorph" / name
    shutil.rmtree(out, ignore_errors=True)
    options = {"spatial_dims": 2, "integration_steps": 0, "conditions": conditions}
    network = NetworkSpec("voxelmorph", options).build(session.seed)
    config = TrainConfig(steps=steps, batch_size=4, validations=1)
    watched = PairDataset(subjects, val_pairs.pairs[:2])
    result = fit(
        network,
        objective,
        train_pairs,
        watched,
        out,
        config,
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    )
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
as_long, _ = trained("as_long", objective, 2 * STEPS)  # the steps of the one network

# %% [markdown]
# ## Turn the knob
#
# Now ask the one network for nine weights, from the smallest to the largest.
#
# **Predict:** how does its Dice run over the weight?
#
# > *My prediction:*

# %%
import pandas as pd

from course_utils import metrics
from course_utils.fields import warp
from course_utils.losses import diffusion_loss, ncc_loss

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
before = metrics.dice(test["moving_label"], test["fixed_label"], list(labels)).nanmean(0)
before = before.nanmean().item()
print(f"before: Dice {before:.3f}; the one network on the test pairs:")
if session.dataset == "oasis2d":
    assert on_test.Dice.iloc[-1] < on_test.Dice.max() - 0.02
on_test[["Dice", "folds", "roughness"]].rename_axis("weight").round(4)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It changes slowly from one weight to the next. On the real slices it is flat for the smaller weights, where the field folds more and
# gains little by it, and falls towards the smooth end, where the field may hardly move. Where the best weight lies is found by looking.
#
# </details>
#
# The proof that the network listens is the roughness: its field gets smoother with every turn of the knob. A network that does not listen
# would give one answer for all weights. To see that the check would notice, the knob is disconnected in a copy.

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
heard = on_test.roughness.tolist()
print(f"roughness at both ends: {heard[0]:.4f} and {heard[-1]:.4f}")
print(f"the same, disconnected: {of_deaf[0]:.4f} and {of_deaf[-1]:.4f}")
assert falls(heard) and not falls(of_deaf)
assert heard[0] > 1.8 * heard[-1]

# %% [markdown]
# Now beside the networks that were trained for one weight each. The one network had twice the steps of each of them, and two thirds
# of all three. To be fair to the specialists, a fourth one, for the weight 0.5, had as many steps as the one network.

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
long = measured(as_long, test)
equal_steps = on_test.Dice.iloc[4] - long["Dice"]
print(f"steps: one network {2 * STEPS}, three networks {3 * STEPS}, five would be {5 * STEPS}")
print(f"seconds here: {seconds_one:.0f} against {sum(seconds.values()):.0f}")
print(f"against a network for 0.5 alone that had {2 * STEPS} steps too: Dice {equal_steps:+.4f}")
beside.round(4)

# %%
MARGIN = 0.02
assert beside.difference.min() > -MARGIN  # twice the steps of one network do for all weights
assert -0.03 < equal_steps < 0.01  # at equal steps a specialist is not worse
assert on_test.Dice.max() > before + 0.05

# %%
from course_utils.plotting import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
FLOOR = 1e-4  # percent: what has less has none that a logarithm could show
figure = Figure(figsize=(9, 3.1), layout="constrained")
left, right = figure.subplots(1, 2)
for axes, what in ((left, "Dice"), (right, "folds")):
    line, points = (table[what].clip(lower=FLOOR) for table in (on_test, alone))
    axes.plot(weights, line, color=BLUE, label=f"one network, {2 * STEPS} steps")
    axes.plot(alone.index, points, "o", color=ORANGE, label=f"one each, {STEPS} steps")
    fair, told = max(long[what], FLOOR), f"one for 0.5, {2 * STEPS} steps"
    axes.plot(0.5, fair, "D", color=ORANGE, fillstyle="none", label=told)
    axes.set(xscale="log", xlabel="weight of the smoothness")
    axes.spines[["top", "right"]].set_visible(False)
left.set_ylabel("mean Dice after")
right.set(yscale="log", ylim=(FLOOR / 2, 1))
right.set_ylabel(f"area turned over, %\n(none is drawn at {FLOOR:g})")
figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
figure

# %% [markdown]
# The line is one network; each point was a training of its own. Now take the two people whose field depends most on the knob. The next
# figure shows their field for nine positions of the knob, from the smallest weight to the largest, and a slider turns it.
#
# **Predict** before you turn it: what becomes straight first, the small kinks or the large bulges?
#
# > *My prediction:*

# %%
from course_utils.plotting import deformed_grid


@torch.no_grad()
def answer(item, w):
    position = torch.tensor([[RANGE.position(w)]])
    return one(item["moving"][None], item["fixed"][None], position).displacement


def differs(item):
    return (answer(item, weights[0]) - answer(item, weights[-1])).norm(dim=1).mean().item()


item = max((test_pairs[n] for n in range(len(test_pairs))), key=differs)
print(f"{item['name']}: what the two ends of the knob do is {differs(item):.2f} pixel apart")
fields = {w: answer(item, w) for w in weights}

# %%
from course_utils.plotting import Slider


def turned(w):
    """The pair's grid, deformed by the answer for one weight."""
    step = item["fixed"].shape[1] // 20
    return deformed_grid({f"weight {w:.2g}": fields[w]}, step=step, **cohort.info.view)


Slider({f"{w:.2g}": turned(w) for w in weights}, "weight of the smoothness", start="0.05")


# %%
@torch.no_grad()
def length_scale(w):
    """Over how many pixels the test pairs' displacement changes by about its own size."""
    told = torch.full((len(test["fixed"]), 1), RANGE.position(w))
    field = one(test["moving"], test["fixed"], told).displacement
    return (field.square().mean() / diffusion_loss(field)).sqrt().item()


scale = {w: length_scale(w) for w in (weights[0], weights[4], weights[-1])}
print("length scale:", ", ".join(f"weight {w:.2g} {n:.1f} pixels" for w, n in scale.items()))
assert scale[weights[-1]] > scale[weights[0]]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The small kinks. The roughness is a squared slope, so a wiggle that is half as long costs four times as much at the same height. The
# printed length scale grows with the weight: what is left at the end are a few large bulges.
#
# </details>
#
# ## Choose, on validation pairs
#
# The best weight must not be chosen on the pairs that it is then reported on. So it is the one with the best Dice on the
# *validation* pairs, and what it is worth is read on the *test* pairs. The same is done for each structure by itself.
#
# **Predict:** how much Dice does a structure gain, on average, by a weight of its own?
#
# > *My prediction:*

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
print(f"best weight for all on validation: {best:.2g}; Dice on test pairs {on_test.Dice[best]:.3f}")
print(f"a weight for each structure: a mean gain of {choice.gain.mean():+.4f}")
if best in (weights[0], weights[-1]):
    print("that is an end of the range: a wider range may hold a better one")
choice.sort_values("best weight").round(3)

# %%
assert on_test.Dice[best] > on_test.Dice.max() - 0.01  # it is good on the test pairs too
assert abs(choice.gain.mean()) < 0.01  # a weight for each structure is worth little on average

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Very little: less than 0.01 on average over the structures. Around its best weight each curve is flat, so the common weight is nearly as
# good, and what looks best on the validation pairs is in part chance.
#
# </details>
#
# In the next figure each line is a structure. It shows what the structure lacks of its own best on the validation pairs. The two that
# like the least smoothness and the two that like the most are in colour.

# %%
figure = Figure(figsize=(7.5, 3.4), layout="constrained")
axes = figure.subplots()
ordered = own.sort_values(kind="stable").index
extremes = [*ordered[:2], *ordered[-2:]]
colours = dict.fromkeys(names, "#CCCCCC")
colours |= dict(zip(extremes, (BLUE, "#56B4E9", "#E69F00", ORANGE), strict=True))
for name in [*(name for name in names if name not in extremes), *extremes]:  # grey ones below
    lacks, label = on_val[name] - on_val[name].max(), name if name in extremes else None
    axes.plot(weights, lacks, color=colours[name], label=label)
    if name in extremes:
        axes.plot(own[name], 0, "o", color=colours[name], clip_on=False)
axes.set(xscale="log", xlabel="weight of the smoothness", ylabel="Dice less its best")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# ## The verdict
#
# - **No, you need not train five networks.** One network with twice the steps of one was nowhere more than 0.02 of Dice behind
#   networks for a single weight; that is asserted above. Two trainings' time pays for all weights, and for the curve.
# - **But a specialist with the same number of steps is at least as good.** The table above says by how much. Once you know
#   the weight, and the last hundredth counts, train a network for it, or go on with this one.
# - **FiLM or hypernetwork?** [Measured](../docs/results.md) with three seeds, twice as long as here, against five networks of their own:
#   FiLM is ahead of them by 0.019 at the rough end and 0.002 at the smooth one, the hypernetwork by 0.015 and 0.004. It has 29 times
#   FiLM's parameters, and needs a tenth more time. A network for one weight that trained as long as they is ahead of both, by 0.005 and
#   0.008.
# - Networks that were trained briefly flatter the comparison: whoever has more steps is ahead. Before you believe such a table, ask
#   how long each side was trained, on this page too.
# - Look at the folds too, not at Dice alone, and at equal steps: a network that was trained longer moves more, and may fold more. The
#   open diamond in the figure is the fair neighbour of the line, the filled points are not.
# - **A weight for each structure is worth little** on average: under 0.01 of Dice on the test pairs. The table says which structure
#   gains more. The curve is worth more than its maximum: where it is flat, take the smoother field, which costs nothing.
#
# ```sh
# python -m course_utils train --dataset oasis2d --smoothness-range 0.05,5 --minutes 10 --out runs/any
# python -m course_utils evaluate --model runs/any/best.pt --smoothness 0.5 --out metrics.csv
# python -m course_utils export --model runs/any/best.pt --smoothness 0.5 --format safetensors --out mine.safetensors
# ```
#
# Without `--smoothness` the answer is that for the middle of the range, by ratio. The last command writes a copy which answers for
# the weight that you chose.
#
# ## The same in MONAI
#
# MONAI has no registration network that is told a weight, neither by FiLM nor by a hypernetwork. A forward hook can add one: it scales and
# shifts what a layer of `VoxelMorphUNet` puts out. The loss that goes with it is made of MONAI's own terms:

# %%
import warnings

from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet

for message in (".*native grid_sample", "Using a non-tuple sequence"):
    warnings.filterwarnings("ignore", message=message)
torch.manual_seed(session.seed)
narrow = VoxelMorphUNet(2, 2, 16, channels=(16, 16, 16, 16), final_conv_channels=(4, 4)).eval()
theirs = MonaiVoxelMorph(narrow, integration_steps=0, spatial_dims=2)
told = {"position": torch.zeros(1, 1)}


def modulated(layer, inputs, output):
    """The layer's 4 channels, with the scales and shifts of `linear` above."""
    return film(output, told["position"])


convolutions = [layer for layer in narrow.modules() if isinstance(layer, nn.Conv2d)]
listening = [layer for layer in convolutions if layer.out_channels == 4]
for layer in listening:
    layer.register_forward_hook(modulated)

# %%
unlike = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)  # from -1 to 0
rough = DiffusionLoss()  # adds the axes up, where ours takes their mean: half the weight in 2-D
pair = item["moving"][None], item["fixed"][None]
answers = {}
for w in (weights[0], weights[-1]):
    told["position"] = torch.tensor([[RANGE.position(w)]])
    with torch.no_grad():
        moved, answers[w] = theirs(*pair)
        loss = 1 + unlike(moved, pair[1]) + w / 2 * rough(answers[w])
        ours = ncc_loss(moved, pair[1]) + w * diffusion_loss(answers[w])
    print(f"weight {w:<4g}: loss {loss / (1 + w):.4f}, ours {ours / (1 + w):.4f}")
    assert abs(loss - ours) / (1 + w) < 0.02
apart = (answers[weights[0]] - answers[weights[-1]]).norm(dim=1).mean()
print(f"{len(listening)} layers are told the weight; the two answers are {apart:.3f} pixel apart")
assert apart > 0

# %% [markdown]
# **The same elsewhere.** voxelmorph has HyperMorph as `train_hypermorph.py` (TensorFlow): a hypernetwork of six layers of 128 units,
# $\lambda$ uniform in [0, 1], 0.2 of the draws at the ends. cLapIRN of Mok and Chung has conditional instance norms, as here.
#
# **What you now have.** One network that answers for every smoothness, a curve of Dice and folds over the weight, and a way to choose on
# validation pairs that costs no training.
#
# **What can go wrong.** The weight is chosen on the test pairs. Weights are drawn uniformly from 0.05 to 5: then nine of ten are above
# 0.5, and the network hardly sees the others. The factor $1 + w$ is forgotten. Two losses with two weights are compared, although they
# are different losses; compare Dice, folds, errors. The knob is trusted outside of the range that was trained: the commands refuse that.
#
# **Try it.**
# 1. *(easy)* Ask `RANGE.position` for a weight of 50. Then ask the network for the position 1.5, which nobody has trained: what does
#    the roughness do?
# 2. *(middle)* Train the one network with as many steps as one for a single weight (`STEPS`). Where is it furthest behind, and why
#    there?
# 3. *(middle)* Write an objective without the division by $1 + w$. Which end of the range gains, and which loses?
# 4. *(hard)* Train the hypernetwork, `NetworkSpec("hypernetwork", options)`, in place of FiLM. Is it better at equal steps? Then take
#    the division by 32 out of `Hypernetwork` and train again: what happens, and why?
#
# **References.** Hoopes et al., *HyperMorph: amortized hyperparameter learning for image registration*, IPMI 2021,
# https://doi.org/10.48550/arXiv.2101.01035. Mok and Chung, *Conditional deformable image registration with convolutional neural network*,
# MICCAI 2021, https://doi.org/10.48550/arXiv.2106.12673. Perez et al., *FiLM: visual reasoning with a general conditioning layer*, AAAI
# 2018, https://doi.org/10.48550/arXiv.1709.07871. Ha et al., *HyperNetworks*, ICLR 2017, https://doi.org/10.48550/arXiv.1609.09106.
#
# Next: [21 A map of the field](21_map_of_the_field.ipynb): where all of this stands.
