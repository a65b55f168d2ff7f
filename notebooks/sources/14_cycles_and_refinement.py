# %% [markdown]
# # 14 Cycles and refinement
#
# Send an image to another person's brain, and then back: if it does not come home, something is wrong. That sounds like a cure for
# folds and for contradictions at once, and two known methods are built on it. Another cure takes a trained network and puts a small one
# behind it that repairs its field. Here you write down both, find out what a picture that comes home proves and what it does not, and let all
# of them work on a network that does fold, with the same number of calls of a network: **do a cycle and a refinement reduce the
# folds, and what do they cost?**
#
# Afterwards you can read a cycle loss and say what it lets through, use `--bidirectional cycle`, `cyclemorph` and `--refine`, and
# decide whether you want to. You need notebooks 12 (two directions) and 13 (folds).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/14_cycles_and_refinement.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/14_cycles_and_refinement.ipynb)

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
# ## Home in the picture, and home on the map
#
# There are two questions that sound the same. *Does each pixel come home?* compares two maps; notebook 12 asked it. *Does the
# image come home?* compares two pictures, and this is what a cycle asks. Take a picture of stripes, three pixels from one to the next,
# and register it to itself by a map that shifts everything by three pixels; then once more.
#
# **Predict:** does the picture come home, and does each pixel?
#
# > *My prediction:*

# %%
import math

import torch

from course_utils.fields import compose, warp

stripes = torch.cos(2 * math.pi * torch.arange(120.0) / 3).view(1, 1, 120, 1).expand(1, 1, 120, 40)
shift = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 120, 40)
moved = warp(stripes, shift)
home = warp(moved, shift)
inside = (..., slice(8, -8), slice(None))  # away from the border, beyond which nothing is known
in_the_picture = (home - stripes)[inside].abs().max().item()
on_the_map = compose(shift, shift)[inside].norm(dim=1).mean().item()
print(f"largest difference of the pictures: {in_the_picture:.4f}")
print(f"distance of a pixel from home:      {on_the_map:.1f} pixels")
assert in_the_picture < 1e-3 and abs(on_the_map - 6) < 1e-3

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The picture does, and the pixels do not. A shift by three pixels puts each stripe on the next one, so no difference is left, and yet every
# pixel is six pixels from home.
#
# </details>
#
# Brains have no stripes, but white matter is flat, and a flat
# region comes home from anywhere. **A cycle of images is a weaker wish than a cycle of maps.** It has an advantage for which it was
# invented: it needs only images, so any network can be trained with it, whatever it predicts.
#
# ## The way back, by hand
#
# The Keras project that this page follows (arXiv 1907.00068) calls its network twice. First on the pair: the moving image becomes
# $y_1$, which looks like the fixed one. Then **on its own output**: $y_1$ is registered to the moving image, which must bring it
# back. Both are judged alike, by similarity and smoothness.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects

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
from course_utils.losses import diffusion_loss, ncc_loss
from course_utils.networks import NetworkSpec
from course_utils.objectives import Cycle, pair_objective

SMOOTHNESS = 0.01  # little, so that there are folds to mend
WITHIN = {"spatial_dims": 2, "integration_steps": 0, "half_resolution": False}


def untrained():
    """A network that predicts a displacement, pixel by pixel: it can fold (notebook 13)."""
    return NetworkSpec("voxelmorph", WITHIN).build(session.seed)


def judged(found, fixed):
    return ncc_loss(found.moved, fixed) + SMOOTHNESS * diffusion_loss(found.displacement)


def cycle(network, moving, fixed):
    there = network(moving, fixed)
    back = network(there.moved, moving)  # its own output, towards where it came from
    return (judged(there, fixed) + judged(back, moving)) / 2


# %%
wild = untrained().eval()
generator = torch.Generator().manual_seed(session.seed)
for parameter in wild.parameters():  # random weights that move something
    parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
judge = pair_objective("ncc", smoothness=SMOOTHNESS)
batch = {"moving": moving, "fixed": fixed}
with torch.no_grad():
    by_hand, tested = cycle(wild, moving, fixed), Cycle(judge)(wild, batch).loss
print(f"by hand {by_hand:.4f}, Cycle {tested:.4f}, one way alone {judge(wild, batch).loss:.4f}")
assert abs(by_hand - tested) < 1e-4 and abs(tested - judge(wild, batch).loss) > 1e-3

# %% [markdown]
# **CycleMorph** (2021) takes more calls. Both images are registered to each other, $A$ to $B$ and $B$ to $A$; call the moved images
# $\tilde B$ and $\tilde A$. Then these are registered to each other, and $\tilde B$ must become $A$ again: that is its cycle, a mean absolute
# difference of weight 0.1. And an image that is registered to itself must stay: the identity, weight 0.5. The original has two networks,
# one for each direction; ours has one that does both.
#
# **Predict:** how often does CycleMorph call a network for one pair?
#
# > *My prediction:*

# %%
from course_utils.objectives import CycleMorph


class Counting:
    """A network that remembers how often it was called."""

    def __init__(self, network):
        self.network, self.calls = network, 0

    def __call__(self, moving, fixed, condition=None):
        self.calls += len(moving)
        return self.network(moving, fixed, condition)


CALLS = {}
for objective in (judge, Cycle(judge), CycleMorph(judge)):
    counting = Counting(wild)
    with torch.no_grad():
        terms = objective(counting, batch).terms
    CALLS[type(objective)] = counting.calls
    print(f"{type(objective).__name__:<14} {counting.calls} calls, terms: {', '.join(terms)}")
assert list(CALLS.values()) == [1, 2, 6]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Six times: two calls for the two directions, two for the way back of the cycle, and two for each image against itself.
#
# </details>
#
# So a comparison at equal numbers of *steps* would give CycleMorph six times the work. Below, all get equal numbers of *calls*.
#
# ## A refinement, and the trap in it
#
# The same project has another idea. Train a network; freeze it, which means that its weights do not change any more; and train a
# small **refinement module** behind it that sees nothing but the displacement $u$ and adds a correction, $u + r(u)$. Here $r$ is two
# convolutions with a leaky ReLU between them, 16 channels wide. In the project's program the last convolution has a leaky ReLU behind it, too.
# A leaky ReLU passes what is positive, and a fifth of what is negative.
#
# **Predict:** what does that last activation do to the corrections, on average?
#
# > *My prediction:*

# %%
from torch import nn


def correction(ends_linear, seed):
    """What a module of random weights adds, on average, to a displacement of random numbers: two
    components."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 2, 3, padding=1)]
    layers += [] if ends_linear else [nn.LeakyReLU(0.2)]
    for layer in layers[::2]:
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        return nn.Sequential(*layers)(torch.randn(1, 2, 40, 40)).mean((0, 2, 3))


for name, linear in (("linear at its end", True), ("leaky ReLU at its end", False)):
    means = torch.stack([correction(linear, seed) for seed in range(50)])
    share = (means > 0).float().mean().item()
    print(f"{name:<22} mean {means.mean():+.3f} pixel, positive in {share:.0%} of the cases")
    assert abs(share - 0.5) < 0.15 if linear else share > 0.65
    assert linear or means.mean() > 0.01

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It pushes everything towards larger coordinates: the positive corrections stay, the negative ones become five times smaller. Such a module
# also learns a correction to the one side five times as fast as to the other.
#
# </details>
#
# A module that corrects
# must end in a linear layer, as every layer must that predicts a signed number. A second detail: if its last weights begin at zero, a new module
# changes nothing, and it can only get better from there. The tested version, `Refined`, has both:

# %%
from course_utils.networks import Refined

refined = Refined.around(wild)
with torch.no_grad():
    same = torch.equal(refined(moving, fixed).displacement, wild(moving, fixed).displacement)
trains = sum(p.numel() for p in refined.parameters() if p.requires_grad)
everything = sum(p.numel() for p in refined.parameters())
print(f"a new module changes nothing: {same}; {trains} weights are trained, of {everything}")
assert same and trains == 2 * 16 * 9 + 16 + 16 * 2 * 9 + 2
assert refined(moving, fixed).velocity is None  # a corrected exponential is not an exponential

# %% [markdown]
# Its answer is a displacement, whatever is within: the correction of a velocity's exponential is not the exponential of anything.
#
# ## All of them, at equal numbers of calls
#
# The same network, one that folds, is trained in several ways. Each calls a network 360 times on a pair; a way that calls it more
# often for each pair sees fewer pairs in a step. So the work is nearly equal, and the steps are alike.
#
# - **plain**: one way, little smoothness;
# - **half the pairs**: the same with as many pairs as the cycle sees, so with half of the calls. What the cycle changes, it changes
#   against this one;
# - **penalty**: notebook 13's, 100 times the share of the area that is turned over;
# - **cycle**: the moved image back to the moving one;
# - **CycleMorph**: both directions, cycle and identity;
# - **refined**: the network for two thirds of the calls, then a module behind it, with four times the smoothness as in the original;
# - **refined, penalty**: another module behind the same network, which pays for folds as well.
#
# The original takes turns, three times: the network, the module, the network. The network never sees the module, so turns change nothing
# for it, and one is enough here.
#
# **Predict:** which of the seven folds least?
#
# > *My prediction:*

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.training import TrainConfig, fit

CALLS_EACH = 360


def trained(network, objective, share=1.0, batch_size=4):
    """The network after its share of the calls: the last, not the one of the highest Dice."""
    steps = int(share * CALLS_EACH / batch_size / CALLS[type(objective)])
    out = session.runs / "cycles"
    shutil.rmtree(out, ignore_errors=True)
    result = fit(
        network,
        objective,
        train_pairs,
        val_pairs,
        out,
        TrainConfig(steps=steps, batch_size=batch_size, validations=1),
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    )
    return Checkpoint.load(result.last).model()


# %%
penalised = pair_objective("ncc", smoothness=SMOOTHNESS, jacobian_weight=100.0)
networks = {
    "plain": trained(untrained(), judge),
    "half the pairs": trained(untrained(), judge, 1 / 2, batch_size=2),
    "penalty": trained(untrained(), penalised),
    "cycle": trained(untrained(), Cycle(judge), batch_size=2),
    "CycleMorph": trained(untrained(), CycleMorph(judge), batch_size=1),
}

# %%
frozen = trained(untrained(), judge, 2 / 3)
smoother = pair_objective("ncc", smoothness=4 * SMOOTHNESS)
both = pair_objective("ncc", smoothness=4 * SMOOTHNESS, jacobian_weight=100.0)
networks |= {
    "frozen": frozen,
    "refined": trained(Refined.around(frozen), smoother, 1 / 3),
    "refined, penalty": trained(Refined.around(frozen), both, 1 / 3),
}
for network in networks.values():
    network.eval()
inside = networks["refined"].inner.state_dict()
assert all(torch.equal(weight, inside[name]) for name, weight in frozen.state_dict().items())

# %%
import pandas as pd

from course_utils.consistency import consistency
from course_utils.evaluation import evaluate, summarise

rows = {}
for name, network in networks.items():
    table = summarise(evaluate(network, test_pairs, labels, spacing))
    mean = table.loc["overall"].xs("mean", level=1)
    sanity = consistency(network, (test_pairs[n] for n in range(len(test_pairs))))
    rows[name] = {
        "Dice": mean["dice_after"],
        "NDV %": mean["ndv_percent"],
        "there and back, pixels": sanity["swap_voxels"].mean(),
        "to itself, pixels": sanity["self_voxels"].mean(),
    }
overview = pd.DataFrame(rows).T
print(f"before: Dice {mean['dice_before']:.3f}")
overview.round(3)

# %%
ndv, dice = overview["NDV %"], overview["Dice"]
home, itself = overview["there and back, pixels"], overview["to itself, pixels"]
AGAINST = dict.fromkeys(("penalty", "cycle", "CycleMorph"), "plain")
AGAINST |= {"refined": "frozen", "refined, penalty": "frozen"}
for name, other in AGAINST.items():
    change = dice[name] - dice[other]
    print(f"{name:<16} against {other}: folds x {ndv[name] / ndv[other]:.3f}, Dice {change:+.3f}")
assert min(ndv["plain"], ndv["half the pairs"], ndv["frozen"]) > 0.02  # they fold
assert ndv["cycle"] < min(ndv["half the pairs"], ndv["plain"]) / 2  # the cycle mends folds
assert ndv["penalty"] < ndv["cycle"] / 3  # and the penalty mends more
assert ndv["CycleMorph"] > 0.8 * ndv["cycle"]  # that of CycleMorph mends no more than it,
assert home["CycleMorph"] > 1.4 * home["cycle"]  # and less comes home
assert ndv["refined"] > ndv["frozen"] / 2  # and a module that is not asked to, nothing
assert ndv["refined, penalty"] < ndv["frozen"] / 4  # where it is asked to, it does
assert ndv.idxmin() in ("penalty", "refined, penalty")
assert home["cycle"] < 0.7 * home["plain"] and itself["cycle"] < 0.7 * itself["plain"]
assert itself["CycleMorph"] < 0.8 * itself["plain"]
assert dice.min() > mean["dice_before"] + 0.05  # nobody got there by standing still
assert dice["penalty"] > dice["plain"] - 0.03 and dice["cycle"] > dice["plain"] - 0.08

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# One of the two that pay for folds, the network or the module with the penalty: it asks for the folds directly and needs no second call. All
# others ask for something that has to do with folds, and mend some of them on the way, or none.
#
# </details>
#
# Begin with *plain* and *half the pairs*. Who has trained less moves less, and **who moves less folds less**: a small number of folds
# alone proves nothing.
#
# - **The cycle** of the network's own output does reduce the folds, against *plain* and against *half the pairs*. A map that
#   folds puts two pieces of tissue in one place, and no second map can take them apart again: what was lost does not come home. The
#   network also contradicts itself less, and moves an image less that is registered to itself.
# - **CycleMorph**, with the same number of calls, mends no more folds than that cycle, and brings fewer pixels home; it has also made
#   the fewest steps of all. A published table of brain registrations finds no fewer folds with it at all: 1.72 % with CycleMorph,
#   1.59 % with VoxelMorph, at nearly the same Dice. Its identity term does what it says: an image moves less against itself.
# - **A refinement** by the same loss leaves the folds. It is trained to make the images more alike, and where likeness asks for a
#   fold it helps to make one. *Refined, penalty* is the same module, asked for something else: now it mends what a network does that it
#   must not touch. **What a module does is decided by what it is asked for**, not by where it stands.
#
# All of it holds for [three seeds](../docs/results.md) on real slices. The price is overlap, and the lines above have it. Part of the
# price is the training that the calls would have paid for: compare with *half the pairs*, which has nothing else to pay for.
#
# The next figure shows the same numbers: folds on the left, contradiction on the right, and overlap upwards in both.

# %%
COLOURS = {
    "plain": "#000000",
    "half the pairs": "#999999",
    "penalty": "#D55E00",
    "cycle": "#0072B2",
    "CycleMorph": "#56B4E9",
    "frozen": "#F0E442",
    "refined": "#E69F00",
    "refined, penalty": "#009E73",
}

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(8.6, 3.6), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
for (name, row), marker in zip(overview.iterrows(), "osDv^Pp*", strict=True):
    at = {"color": COLOURS[name], "marker": marker, "linestyle": ""}
    at |= {"markersize": 9, "markeredgecolor": "#444444"}
    left.plot(row["NDV %"], row["Dice"], label=name, **at)
    right.plot(row["there and back, pixels"], row["Dice"], **at)
left.set(xscale="log", xlabel="area turned over (NDV), %", ylabel="mean Dice after")
right.set(xlim=(0, None), xlabel="there and back: distance from home, pixels")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside right center", frameon=False)
figure

# %% [markdown]
# The next picture shows in red where they fold, on the pair in whose labelled structures the plain network folds most:

# %%
from course_utils.fields import simplex_determinants
from course_utils.metrics import ndv_percent
from course_utils.plotting import folds


@torch.no_grad()
def field_of(name, pair):
    return networks[name](pair["moving"][None], pair["fixed"][None]).displacement


def folded_inside(pair):
    return ndv_percent(field_of("plain", pair), pair["fixed_label"][None] > 0).item()


pair = max((test_pairs[n] for n in range(len(test_pairs))), key=folded_inside)
shown = ["plain", "penalty", "cycle", "CycleMorph", "refined", "refined, penalty"]
worst = {name: simplex_determinants(field_of(name, pair))[0].amin(1) for name in shown}
folds(worst, pair["fixed"], **cohort.info.view, columns=3)

# %% [markdown]
# ## When to take what
#
# - Folds are the problem: a **velocity**, or the **penalty** (notebook 13). Neither calls the network twice.
# - The network is given and must stay as it is, and it folds: a **refinement with the penalty**,
#   `train --init NET.pt --refine --jacobian-weight 100`. The loss is computed on half the images' grid by default, where folds of one
#   pixel are not seen: add `--loss-grid full`.
# - The two answers contradict each other: **antisymmetric**, or GradICON (notebook 12). They ask for the map to come home, not
#   only the picture.
# - The only thing that you have are images, also of several contrasts, and a network whose inside you cannot change: a **cycle**,
#   `train --one-way --bidirectional cycle` or `cyclemorph`. Count its calls when you compare it.
#
# ## The same in MONAI
#
# MONAI has no cycle, but a cycle needs no more than a network that can be called twice. Its `VoxelMorph` answers with the moved image and
# the displacement, so the loss of this page is written down in a few lines. One trap: `DiffusionLoss` adds up the axes where ours takes
# their mean, so in 2-D half the weight is the same smoothness.

# %%
import warnings

from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet

for message in (".*native grid_sample", "Using a non-tuple sequence"):
    warnings.filterwarnings("ignore", message=message)
torch.manual_seed(session.seed)
narrow = VoxelMorphUNet(2, 2, 16, channels=(16, 16, 16, 16), final_conv_channels=(16, 16))
theirs = MonaiVoxelMorph(narrow, integration_steps=0, spatial_dims=2)  # a displacement
unlike = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)  # from -1 to 0
rough = DiffusionLoss()


def monai_cycle(moving, fixed):
    moved, there = theirs(moving, fixed)
    home, back = theirs(moved, moving)
    similarity = 1 + (unlike(moved, fixed) + unlike(home, moving)) / 2
    return similarity + SMOOTHNESS / 2 * (rough(there) + rough(back)) / 2


# %% [markdown]
# To let the tested `Cycle` judge the same network, an adapter puts MONAI's answer into a `Registration`. Then a few steps of descent on
# one pair, in plain PyTorch:

# %%
from course_utils.networks import Registration


def adapted(moving, fixed, condition=None):
    return Registration(*theirs(moving, fixed))


with torch.no_grad():
    by_hand, tested = monai_cycle(moving, fixed), Cycle(judge)(adapted, batch).loss
print(f"cycle loss of MONAI's network: MONAI's losses {by_hand:.4f}, ours {tested:.4f}")
assert abs(by_hand - tested) < 0.02

adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
for _ in range(8):
    adam.zero_grad()
    loss = monai_cycle(moving, fixed)
    loss.backward()
    adam.step()
print(f"after 7 steps on this pair: {loss:.4f}")
assert loss < by_hand

# %% [markdown]
# **The same elsewhere.** The Keras project trains with the cycle in one program and alternates network and module in another. CycleMorph
# is among the baselines that come with TransMorph. voxelmorph has neither.
#
# **What you now have.** A loss that can be put around any network, and you know what it lets through; a module that mends a network
# without touching it; and a comparison that counts calls and not steps.
#
# **What can go wrong.** A picture that came home is called an inverse. Methods that call the network once and six times are compared at
# equal steps. A module of signed numbers ends in an activation. A network is refined by the loss that made the fault. A refined network is
# exported as a diffeomorphic one, because the network within predicts a velocity.
#
# **Try it.**
# 1. *(easy)* Multiply CycleMorph's `cycle_weight` by 10 and by 100. Do the folds notice? Does Dice?
# 2. *(middle)* Let network and module take turns three times. `refined.inner.load_state_dict(...)` puts a newer network in. What changes?
# 3. *(middle)* Take the gradient through the first call away, `there.moved.detach()`. What does the cycle then still teach, and to whom?
# 4. *(hard)* Add the cycle to the penalty. Is there a pair of weights that is better than the penalty alone in any column?
#
# **References.** Zhu et al., *Unpaired image-to-image translation using cycle-consistent adversarial networks*, ICCV 2017,
# https://doi.org/10.1109/ICCV.2017.244. Kuang, *On reducing negative Jacobian determinant of the deformation predicted by deep
# registration networks*, 2019, https://doi.org/10.48550/arXiv.1907.00068. Kuang and Schmah, *FAIM*, 2018,
# https://doi.org/10.48550/arXiv.1811.09243. Kim et al., *CycleMorph: Cycle consistent unsupervised deformable image registration*, Medical
# Image Analysis 71, 2021, https://doi.org/10.1016/j.media.2021.102036. Chen et al., *TransMorph*, Medical Image Analysis 82, 2022,
# https://doi.org/10.1016/j.media.2022.102615 (the published table).
#
# Next: [15 Backbones](15_backbones.ipynb): does it matter what the network is built of?
