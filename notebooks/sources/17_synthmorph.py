# %% [markdown]
# # 17 SynthMorph
#
# A network knows the contrast that it was trained on, and fails on the next scanner's. Notebook 16 had losses for two contrasts,
# but whoever trains with them needs images of both. SynthMorph (2022) asks for less than anybody before: **can a network learn to
# register brains without seeing one?** It is shown label maps, painted in colours that no scanner makes, and never an image.
#
# Here you watch a network fail on a contrast that it has not seen, make images out of label maps by hand, train a network on nothing
# else, and measure both on five pairs of contrasts. Then you go one step further, to shapes that mean nothing, and ask what a network
# can learn from those. Afterwards you can train a network for contrasts that you do not have, and say what that costs. You need
# notebooks 03 (velocity fields), 05 (the loss) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 5 | 4 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/17_synthmorph.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/17_synthmorph.ipynb)

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
# ## A network meets contrasts that it has not seen
#
# Slices of people again (`oasis2d`). All are T1 images, so the other contrasts are painted from them, as on page
# 16: a negative, something like T2, and one that rises and falls again, in which the darkest and the brightest tissue look alike.
# **This is a kind test**: a real second contrast also shows other things, and other noise.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 2))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 20))
print(f"{cohort.info.name}: {len(labels)} structures, {len(test_pairs)} pairs to measure on")

# %%
import numpy as np
import torch

# Background, fluid, fluid, grey matter, white matter, the brightest.
FROM = (0.0, 0.12, 0.3, 0.6, 0.9, 1.0)
TO = (0.0, 0.9, 1.0, 0.65, 0.3, 0.2)
CONTRASTS = {
    "T1": lambda image: image,
    "negative": lambda image: torch.where(image > 0, 1 - image, 0.0),
    "like T2": lambda image: torch.as_tensor(np.interp(image, FROM, TO), dtype=torch.float32),
    "rise and fall": lambda image: torch.where(image > 0, 1 - (2 * image - 1).abs(), 0.0),
}
PAIRS = [  # of the moving and of the fixed image
    ("T1", "T1"),
    ("negative", "T1"),
    ("like T2", "T1"),
    ("rise and fall", "T1"),
    ("negative", "rise and fall"),
]

# %%
from course_utils.plotting import panel

item = test_pairs[0]
seen = {name: change(item["fixed"]) for name, change in CONTRASTS.items()}
panel(seen, columns=4, **cohort.info.view)

# %% [markdown]
# What a registration is worth is the mean Dice of the structures, on pairs of people that no network has met. The line to beat is
# **doing nothing**: leave the two images as they lie.

# %%
from course_utils import metrics
from course_utils.fields import warp


def stacked(pairs):
    items = [pairs[n] for n in range(len(pairs))]
    return {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "name"}


test = stacked(test_pairs)


def dice_after(displacement):
    moved = warp(test["moving_label"], displacement, mode="nearest", padding="zeros")
    return metrics.dice(moved, test["fixed_label"], list(labels)).nanmean().item()


# %%
@torch.no_grad()
def by_contrast(model):
    """Mean Dice of the test pairs for each pair of contrasts."""
    found = {}
    for moving, fixed in PAIRS:
        seen = CONTRASTS[moving](test["moving"]), CONTRASTS[fixed](test["fixed"])
        found[f"{moving} to {fixed}"] = dice_after(model(*seen).displacement)
    return found


# %% [markdown]
# The first network is trained as in notebook 06: it sees the real images, and the local correlation of these is its loss. All
# networks of this page are antisymmetric pyramids (notebook 12), with the same number of steps.
#
# **Predict:** in the contrast that suits it least, is it better or worse than doing nothing?
#
# > *My prediction:*

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.networks import NetworkSpec
from course_utils.training import TrainConfig, fit

STEPS = 180 if session.dataset == "oasis2d" else 500  # a built-in slice has a third of the pixels


# %%
def trained(name, objective, pairs=train_pairs, watched=val_pairs, **network):
    out = session.runs / "synthmorph" / name
    shutil.rmtree(out, ignore_errors=True)
    options = {"spatial_dims": 2, "antisymmetric": True, **network}
    result = fit(
        NetworkSpec("pyramid", options).build(session.seed),
        objective,
        pairs,
        watched,
        out,
        TrainConfig(steps=STEPS, batch_size=2, validations=1),
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    )
    print(f"{name}: {STEPS} steps in {result.history.seconds.iloc[-1]:.0f} s")
    # not the best: two validation pairs would choose by chance
    return Checkpoint.load(result.last).model().eval()


# %%
from course_utils.objectives import pair_objective

before = dice_after(torch.zeros(len(test["fixed"]), 2, *test["fixed"].shape[2:]))
ncc = pair_objective("ncc", coarseness=2)
networks = {"NCC of real images": trained("ncc", ncc)}

# %%
import pandas as pd

table = pd.DataFrame({name: by_contrast(network) for name, network in networks.items()})
print(f"doing nothing: Dice {before:.3f}")
assert table.iloc[0, 0] > before + 0.05 and table.iloc[1:, 0].min() < before
table.round(3)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# **Worse than doing nothing**; the table says in which contrast. The network has learnt to bring bright to bright. Where another tissue
# is bright, it moves tissue with confidence to where it does not belong.
#
# </details>
#
# On its own contrast the network is good. On the others nothing in its answer tells you that it is wrong.
#
# ## From a label map to an image, by hand
#
# SynthMorph has a cure: if the network must not depend on the contrast, show it a new one in every step. The label map says which
# structure each pixel belongs to. Give every structure a grey value at random, as a table that is looked up:

# %%
label = item["fixed_label"][None]  # (1, 1, H, W), whole numbers
generator = torch.Generator().manual_seed(session.seed)
values = torch.rand(int(label.max()) + 1, generator=generator)  # one for each structure, and for 0
grey = values[label.long()]

# %% [markdown]
# No scanner makes such an image. So add noise, blur a little, shade it by a smooth factor, bring it to the range from 0 to 1, and
# bend the scale of grey by an exponent:

# %%
from torch.nn.functional import avg_pool2d, interpolate

noisy = grey + 0.05 * torch.randn(grey.shape, generator=generator)
blurred = avg_pool2d(noisy, 3, stride=1, padding=1, count_include_pad=False)
factor = torch.exp(0.3 * torch.randn(1, 1, 4, 4, generator=generator))  # at 4 x 4 points
shaded = blurred * interpolate(factor, size=grey.shape[2:], mode="bilinear")
ranged = (shaded - shaded.min()) / (shaded.max() - shaded.min())
image = ranged**1.2
shown = {"a grey value each": grey, "noise, blur": blurred, "shade, range, exponent": image}
panel(shown, **cohort.info.view)

# %% [markdown]
# The tested version is `paint_labels`. All its numbers are drawn anew for every image: how much noise each structure has, how much
# blur, shade and exponent. With a probability of 0.2 what has no label is black, as around a brain whose skull was removed. One
# label map, painted six ways. Left and right are two structures with two grey values: no brain looks like that, and it need not.

# %%
from course_utils.objectives import Colours, paint_labels

six = paint_labels(label.expand(6, -1, -1, -1), Colours())
panel({f"painting {n + 1}": six[n] for n in range(6)}, columns=3, **cohort.info.view)

# %%
plain = paint_labels(label, Colours(noise=0, bias=0, gamma=0))  # blur is all that is left
cores = {  # pixels with no neighbour of another structure, which no blur reaches
    value: avg_pool2d((label != value).float(), 3, 1, 1) == 0 for value in label.unique().tolist()
}
middle = [value for value, core in cores.items() if core.sum() > 20 and value > 0]
spread = [plain[cores[value]].std().item() for value in middle]
print(f"without noise and shade, the spread within a structure is {max(spread):.1e}")
assert max(spread) < 1e-5 and (six[0] - six[1]).abs().mean() > 0.02

# %% [markdown]
# ## The map is bent, too
#
# There are few label maps, and each would be met again and again. So each is deformed at random before it is painted: a velocity is
# drawn at points 16 pixels apart, made smooth between them, and integrated (notebook 03). Both maps of a pair are bent, each in its
# own way.

# %%
from course_utils.fields import integrate, jacobian_determinant
from course_utils.plotting import deformed_grid

points = [n // 16 for n in label.shape[2:]]
velocity = 1.5 * interpolate(
    torch.randn(1, 2, *points, generator=generator), size=label.shape[2:], mode="bilinear"
)
field = integrate(velocity)
bent = warp(label, field, mode="nearest")
print(f"moved by {field.norm(dim=1).mean():.1f} pixels on average")
assert jacobian_determinant(field).min() > 0  # nothing folds
deformed_grid({"by hand": field}, step=8, **cohort.info.view)

# %%
panel({"the map": grey, "bent, in the same colours": values[bent.long()]}, **cohort.info.view)

# %% [markdown]
# ## The loss, by hand
#
# What shall judge the answer? Not the images: their colours have nothing to do with each other. The label maps that they were
# painted from. Each structure becomes a picture of zeros and ones (*one-hot*), the moving one is warped, and squared differences
# are summed over the structures.
#
# **Predict:** what is this loss where every pixel has a wrong label, and no structure is left out?
#
# > *My prediction:*


# %%
def squared_error(moving_label, fixed_label, displacement, structures):
    loss = 0.0
    for value in structures:
        one, other = ((side == value).float() for side in (moving_label, fixed_label))
        loss += (warp(one, displacement) - other).square().mean()
    return loss


still = torch.zeros_like(field)
everything = range(int(label.max()) + 1)
wrong = (bent != label).float().mean().item()
ours = squared_error(bent, label, still, everything).item()
print(f"{100 * wrong:.1f} % of the pixels have another label, the loss is {ours:.4f}")
assert abs(ours - 2 * wrong) < 1e-6
assert squared_error(label, label, still, everything) < 1e-6

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It is 2: each wrong pixel lacks one structure and has another. In general the loss is twice the share of the pixels with a wrong label,
# and 0 where both maps are equal.
#
# </details>
#
# The
# tested version is the term `Membership`. The soft Dice of notebook 05 would do too, and counts small structures as much as large
# ones; the authors of voxelmorph found that the squared error trains better.

# %%
from course_utils.networks import Registration
from course_utils.objectives import Membership

maps = {"moving_label": bent, "fixed_label": label}
tested = Membership(tuple(labels))(Registration(grey, field), maps)
by_hand = squared_error(bent, label, field, labels)
print(f"by hand {by_hand:.5f}, tested {tested:.5f}")
assert abs(by_hand - tested) < 1e-5

# %% [markdown]
# ## Training without an image
#
# `SynthesisedObjective` does all of this in each step: it bends both label maps, paints them, shows the paintings to the network, and
# compares the maps. To be sure that no real image takes part, every image in the training pairs is replaced by *not a number*. A
# single look at one of them, and the loss would be no number either.

# %%
from course_utils.objectives import Subjects, SynthesisedObjective


class WithoutImages(PairDataset):
    """The same pairs, but that nobody can see them."""

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return pair | {side: torch.full_like(pair[side], torch.nan) for side in ("moving", "fixed")}


blind = WithoutImages(subjects, train_pairs.pairs)
blind_val = WithoutImages(subjects, val_pairs.pairs)
assert blind[0]["moving"].isnan().all() and blind[0]["fixed"].isnan().all()
brains = SynthesisedObjective(pair_objective(Membership(tuple(labels)), coarseness=2), Subjects())
networks["painted labels"] = trained("labels", brains, blind, blind_val)

# %% [markdown]
# Now the network meets real images for the first time.
#
# **Predict:** on how many of the five pairs of contrasts is it better than doing nothing?
#
# > *My prediction:*

# %%
table["painted labels"] = by_contrast(networks["painted labels"])
spread = table.max() - table.min()
print(f"doing nothing: Dice {before:.3f}; spread over the contrasts:")
print(", ".join(f"{name} {value:.3f}" for name, value in spread.items()))
assert table["painted labels"].min() > before and spread["painted labels"] < 0.05
assert spread["NCC of real images"] > 2 * spread["painted labels"]
assert table.iloc[0, 0] > table.iloc[0, 1]  # on its own contrast the specialist is ahead
table.round(3)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# On all five, and nearly equally well. In its training the contrast was another one in every step, so nothing that it has learnt depends on
# one.
#
# </details>
#
# **Yes, a network can learn to register brains without seeing one.** The price stands in the first row: on T1 with T1 the specialist, which
# trained on exactly that, is ahead.
#
# ## Shapes that mean nothing
#
# Somebody had to outline those brains. SynthMorph goes one step further: draw the label map at random, too. Every one of 16 labels
# has a smooth random picture, and each pixel gets the label whose picture is brightest there:

# %%
many = torch.randn(1, 16, 5, 6, generator=generator)
pictures = interpolate(many, size=label.shape[2:], mode="bilinear")
shape_map = pictures.argmax(1, keepdim=True)  # (1, 1, H, W)
print(f"{len(shape_map.unique())} labels, from {pictures.shape[1]} pictures")

# %% [markdown]
# The tested version is `Shapes`. It warps each picture before the brightest is taken, so that the borders are not straight, and bends
# the map in **two** ways: these are the moving and the fixed map of a pair. It needs no image and no label. All it takes from a batch
# is the size of the grid.

# %%
from course_utils.objectives import Shapes

shapes = Shapes()
grid_only = {"fixed": torch.full((1, 1, *label.shape[2:]), torch.nan)}
one, other = shapes(grid_only, training=True)
shown = {"by hand": shape_map, "moving map": one, "fixed map": other}
panel({name: paint_labels(drawn, Colours())[0] for name, drawn in shown.items()}, spacing=spacing)


# %%
class NothingAtAll(WithoutImages):
    """Neither images nor labels: a grid."""

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return {key: value for key, value in pair.items() if not key.endswith("_label")}


empty = NothingAtAll(subjects, train_pairs.pairs)
empty_val = NothingAtAll(subjects, val_pairs.pairs)
assert set(empty[0]) == {"moving", "fixed", "name"}
pair = pair_objective(Membership(tuple(range(shapes.count))), coarseness=2)
from_shapes = SynthesisedObjective(pair, shapes)
networks["painted shapes"] = trained("shapes", from_shapes, empty, empty_val)

# %% [markdown]
# Before you ask what that is worth on brains, ask whether the network has learnt its own task. Draw new pairs of shapes: which share
# of the pixels has a wrong label before, and after?


# %%
@torch.no_grad()
def on_shapes(model, count=20):
    """Share of pixels with another label in new pairs of shapes: left alone, and registered."""
    torch.manual_seed(session.seed)
    like = {"fixed": torch.zeros(count, 1, *label.shape[2:])}
    moving, fixed = shapes(like, training=True)
    field = model(*(paint_labels(drawn, Colours()) for drawn in (moving, fixed))).displacement
    moved = warp(moving, field, mode="nearest")
    return [(drawn != fixed).float().mean().item() for drawn in (moving, moved)]


alone, registered = on_shapes(networks["painted shapes"])
print(f"wrong labels in new pairs of shapes: {100 * alone:.1f} %, then {100 * registered:.1f} %")
assert registered < 0.8 * alone

# %%
table["painted shapes"] = by_contrast(networks["painted shapes"])
print(f"doing nothing: Dice {before:.3f}")
assert table["painted shapes"].min() > before
assert table["painted shapes"].max() - table["painted shapes"].min() < 0.05
table.round(3)

# %% [markdown]
# It has learnt its task, and what it has learnt carries over to brains: better than doing nothing on every contrast, from shapes that
# no anatomy has.
#
# Is that a matter of course? In a first trial a network for shapes had ended *below* doing nothing, and nobody had looked whether it
# had learnt its own task. [Results](../docs/results.md) has the search, with three seeds: after 40 steps networks of one way *are* below
# doing nothing, with most of their own task left, and after 200 they are above it. A network learns to move things before it learns to move
# them to the right place, and equal ones not at all. The networks of this page have the last part built in: they are antisymmetric (notebook
# 12), so an image against itself stays where it is, in whatever colour, and that need not be learnt again for every painting.

# %%
with torch.no_grad():
    equal = networks["painted shapes"](test["fixed"], test["fixed"]).displacement.abs().max().item()
print(f"equal images: nothing moves by more than {equal:.1e} pixels")
assert equal < 1e-3

# %% [markdown]
# ## A cheaper answer
#
# A fair page names the competitor. It needs no painting: show the network the images' **edges** (`fields.edges`) instead of their
# intensities, each as bright as its neighbours let it be. An edge is an edge in a negative too. Train both kinds of network once more,
# on edges.
#
# **Predict:** is the network of real images still lost in its worst contrast?
#
# > *My prediction:*

# %%
networks["NCC of real images, edges"] = trained("ncc_edges", ncc, edges=True)

# %%
networks["painted labels, edges"] = trained("labels_edges", brains, blind, blind_val, edges=True)
for name in ("NCC of real images, edges", "painted labels, edges"):
    table[name] = by_contrast(networks[name])

# %%
summary = pd.DataFrame(
    {
        "T1 to T1": table.iloc[0],
        "mean of all": table.mean(),
        "worst": table.min(),
        "spread": table.max() - table.min(),
    }
)
print(f"doing nothing: Dice {before:.3f}")
summary.round(3)

# %%
from course_utils.plotting import Figure

COLOURS = dict(
    zip(table.index, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00"), strict=True)
)
figure = Figure(figsize=(9, 3.4), layout="constrained")
axes = figure.subplots()
for contrast, colour in COLOURS.items():
    axes.plot(table.loc[contrast], range(len(table.columns)), "o", color=colour, label=contrast)
axes.axvline(before, color="#777777", linestyle="--", linewidth=1, label="doing nothing")
axes.set(yticks=range(len(table.columns)), yticklabels=table.columns, xlabel="mean Dice after")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="moving to fixed")
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No. With edges it is above doing nothing in every contrast, although it was never shown another one than T1: a negative has the same edges.
#
# </details>
#
# Each row is a network, each dot a pair of contrasts; what matters is where the *leftmost* dot lies.

# %%
worst = summary["worst"]
print(f"lifted by edges in the worst contrast: {worst.iloc[3] - worst.iloc[0]:+.3f} real images,")
print(f"{worst.iloc[4] - worst.iloc[1]:+.3f} painted labels; the best of all: {worst.idxmax()}")
assert worst["painted labels, edges"] > worst["painted labels"]
assert worst["NCC of real images, edges"] > worst["NCC of real images"] + 0.05
assert (worst.drop("NCC of real images") > before).all()

# %% [markdown]
# **Edges do much of the work.** They lift both kinds of network in the worst contrast. Our four contrasts favour them: each was computed
# from T1, so each has T1's edges, with little noise. A real second contrast need not be so kind.
#
# A third way lies between: paint over the real image *and* its label map, so that its detail stays, and let the real images judge
# (`PaintedObjective`, `train --painted images`).
#
# ## The same in MONAI
#
# MONAI has no SynthMorph, but all the brushes. A painter of one label map, composed of its transforms; the first one is our table
# that is looked up:

# %%
from monai.transforms import (
    Compose,
    Lambda,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    ScaleIntensity,
)

painter = Compose(
    [
        Lambda(lambda drawn: torch.rand(int(drawn.max()) + 1)[drawn.long()]),
        RandGaussianNoise(prob=1, std=0.1),  # the same in all structures
        RandGaussianSmooth(sigma_x=(0.01, 1), sigma_y=(0.01, 1), prob=1),
        RandBiasField(degree=3, coeff_range=(0, 0.1), prob=1),
        ScaleIntensity(0, 1),
        RandAdjustContrast(prob=1, gamma=(0.7, 1.5)),
    ]
).set_random_state(session.seed)
monai = {f"MONAI, {n + 1}": painter(label[0]) for n in range(3)}
assert all(image.min() >= 0 and image.max() <= 1 for image in monai.values())
panel(monai, **cohort.info.view)

# %% [markdown]
# **The same in voxelmorph.** SynthMorph comes from there: `train_synthmorph.py` of the TensorFlow version, whose generator is
# neurite's `labels_to_image`. There each label has a mean between 25 and 225 of 255 and a noise between 5 and 25, the background is
# black with a probability of 0.2, the blur's standard deviation is up to 1 voxel, the logarithm of the shade's up to 0.3, that of the
# exponent 0.25; the map is bent by a velocity drawn at every 16th voxel. Ours has the same parts and about the same numbers. Three
# things differ: the published shapes have 26 labels, the networks 256 channels and days on a GPU, and one direction. The PyTorch
# version of neurite (0.3.4) has the first step of the painter, with one noise for all structures and without the rest:

# %%
if importlib.util.find_spec("neurite"):
    import neurite

    first_step = neurite.sample_image_from_labels(label, mean_range=(0, 1), noise_std=0.05)
    spread = [first_step[label == value].std().item() for value in middle]
    print(f"neurite's noise in {len(spread)} structures: {min(spread):.3f} to {max(spread):.3f}")
    assert all(abs(value - 0.05) < 0.02 for value in spread)
else:
    print("neurite is not installed here: pip install neurite")

# %% [markdown]
# ## The verdict
#
# - **Yes: a network learns to register brains without seeing one**, from outlines of brains and even from shapes without a meaning. It
#   is nearly as good in one contrast as in another, where a network of real images falls below doing nothing.
# - **The price is on the home ground.** On T1 with T1 the network that trained on T1 is ahead. If your scanner does not change, train on
#   its images. [Results](../docs/results.md) has three seeds of each network, and how far longer training closes the gap.
# - **Ask what the architecture already knows.** That equal images stay where they are, and that an edge is an edge in a negative too:
#   what is built in need not be painted. Edges lift both kinds of network in the worst contrast; the specialist pays for them on its
#   home ground, as the first column of the summary says.
# - **Our contrasts are kind.** All were computed from T1. A real T2 image shows fluid that T1 hides, other noise, another field of view,
#   and perhaps a skull. What is not in the label map is not in the paintings: pathologies, vessels, the scalp.
#
# ```sh
# python -m course_utils train --dataset oasis2d --painted labels --edges --minutes 10 --out runs/labels
# python -m course_utils train --images scans --painted shapes --edges --minutes 10 --out runs/shapes
# python -m course_utils register --moving T1.nii.gz --fixed T2.nii.gz --moved OUT.nii.gz --model runs/labels/best.pt
# ```
#
# **What you now have.** A painter of label maps, a loss that needs no image, and a network for contrasts that nobody has shown it, with its
# price.
#
# **What can go wrong.** The label map has few structures: then the paintings are flat where real images have borders, and the network
# ignores these. One validates on painted images alone: choose with labels of real ones, if there are any. `--bidirectional` or `--loss`
# stands beside `--painted labels`: the command refuses what has no part in it. One believes that invariance is free: look at
# the row of T1 to T1.
#
# **Try it.**
# 1. *(easy)* Paint with `Colours(noise=0, bias=0, gamma=0)` in training. Which of the five contrasts suffers most, and why?
# 2. *(easy)* Put `dice_weight=1.0, labels=labels` into the objective of the painted labels. Do small structures gain?
# 3. *(middle)* Shapes half as large (`Shapes(scale=16)`), or bent half as much (`bending=Bending(1.5, (8, 16, 32))`). Judge on
#    *validation* pairs, with three seeds. Is the difference larger than that between seeds?
# 4. *(middle)* Only four of the structures as the label map to be painted (merge the others). What is lost?
# 5. *(hard)* Train on paintings and real images in turn, each with its own loss. Can one network have both rows of the table?
#
# **References.** Hoffmann et al., *SynthMorph: learning contrast-invariant registration without acquired images*, IEEE TMI 41(3),
# 2022, https://doi.org/10.1109/TMI.2021.3116879. Billot et al., *A learning strategy for contrast-agnostic MRI segmentation*, MIDL
# 2020. Demir et al., *multiGradICON: a foundation model for multimodal medical image registration*, WBIR 2024. Haber and
# Modersitzki, *Intensity gradient based registration and fusion of multi-modal images*, MICCAI 2006.
#
# Next: [18 Templates](18_templates.ipynb): which brain is everybody registered to?
