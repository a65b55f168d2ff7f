# %% [markdown]
# # 13 The price of folding
#
# A deformation that folds puts two pieces of tissue in one place. Nobody wants that, and there are three ways to prevent it: pay for
# each fold, keep the field smooth, or predict a velocity, whose exponential cannot fold. Each has a price. Here you count folds
# in two ways (one of them steps over some), find the bug in a published penalty, and let the three meet *at equal smoothness*, which is
# the only fair way: overlap on one axis, folds on the other.
#
# Afterwards you can read a table that says "0.00 % folding", say what it hides, and choose a remedy by its cost. You need notebooks
# 02 (the Jacobian), 03 (velocities) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/13_price_of_folding.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/13_price_of_folding.ipynb)

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
# ## What a fold is, on a strip of five pixels
#
# Number the pixels of a strip 0 to 4 and throw every second one over its neighbour. Then take, at each pixel, the difference of its two
# neighbours (central differences, as `np.gradient` does inside).
#
# **Predict:** which of the three pixels in the middle fold by this measure?
#
# > *My prediction:*

# %%
import torch

from course_utils.fields import jacobian_determinant, simplex_determinants

position = torch.tensor([0.0, 2.5, 2.0, 4.5, 4.0])  # where pixels 0 to 4 end
displacement = torch.zeros(1, 2, 3, 5)
displacement[:, 1] = position - torch.arange(5)
central = jacobian_determinant(displacement)[0, 0, 1]  # (5,), of the pixels
between = simplex_determinants(displacement)[0][0].amin(0)[1]  # (4,), of the cells between them
print("end:              ", position.tolist())
print("central:          ", central.tolist())
print("between neighbours:", [round(value, 2) for value in between.tolist()])
assert (central[1:-1] > 0).all() and (between < 0).sum() == 2

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# None of them. Pixel 1 ends to the right of pixel 2, so the strip is turned over between them, and once more between 3 and 4. But central
# differences look from pixel 0 to pixel 2, where all is in order, and **see nothing**.
#
# </details>
#
# So ask the grid's own cells instead. Each is cut into triangles (in 3-D: tetrahedra), and a
# triangle that is turned over is a fold, wherever it lies. Its size says how much: the *non-diffeomorphic volume* (NDV) is the
# volume that is turned over, as a share of all. By hand, in 2-D, where a cell has four triangles, two for each diagonal:

# %%
from course_utils.metrics import ndv_percent


def ndv_by_hand(displacement):
    """Percent of the area that is turned over, of a field (1, 2, H, W)."""
    rows, columns = torch.meshgrid(
        *[torch.arange(float(n)) for n in displacement.shape[2:]], indexing="ij"
    )
    p = displacement[0] + torch.stack([rows, columns])  # where each pixel ends, (2, H, W)
    upper, lower = p[:, :-1], p[:, 1:]
    # the four corners of each cell
    a, b, c, d = upper[..., :-1], upper[..., 1:], lower[..., :-1], lower[..., 1:]

    def area(at, down, right):  # signed, 1/2 where nothing moves
        e, f = down - at, right - at
        return (e[0] * f[1] - e[1] * f[0]) / 2

    triangles = [area(a, c, b), area(d, b, c), area(b, d, a).neg(), area(c, a, d).neg()]
    turned_over = sum(t.neg().clamp(min=0) for t in triangles).mean().item()
    return 100 * turned_over / 2  # each diagonal's two triangles cover the cell once


# %% [markdown]
# The next cell compares this with the tested version. Then it moves every pixel by about half a pixel of noise, and counts the folds in
# both ways.
#
# **Predict:** which of the two counts finds more folds, and by which factor?
#
# > *My prediction:*

# %%
noise = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(session.seed))
print(f"by hand {ndv_by_hand(noise):.4f} %, tested {ndv_percent(noise).item():.4f} %")
assert abs(ndv_by_hand(noise) - ndv_percent(noise).item()) < 1e-3

rough = 0.5 * noise
seen = (jacobian_determinant(rough) <= 0).float().mean().item()
there = (simplex_determinants(rough)[0].amin(1) <= 0).float().mean().item()
print(
    f"half a pixel of noise: folds at {seen:.1%} of the pixels by central differences, in "
    f"{there:.1%} of the cells"
)
assert there > 1.5 * seen

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cells find many times more; both shares are printed above. Noise differs from pixel to pixel, which is the case that central
# differences step over.
#
# </details>
#
# ## Find the bug
#
# The Keras project that this page follows (arXiv 1811.09243) trains with a penalty on negative determinants. Its loss and its
# measure should be the same determinant. The next cell is written after its formula, with the same slip. Read it before you run it.
#
# **Predict:** in which of its lines is the slip?
#
# > *My prediction:*


# %%
def determinant(x, y, z):
    """Of the Jacobian with the columns x, y, z: derivatives along each axis, (D, H, W, 3), the
    identity included."""
    one = x[..., 0] * (y[..., 1] * z[..., 2] - y[..., 2] * z[..., 1])
    two = x[..., 1] * (y[..., 0] * z[..., 2] - y[..., 2] * x[..., 0])
    three = x[..., 2] * (y[..., 0] * z[..., 1] - y[..., 1] * z[..., 0])
    return one - two + three


smooth = torch.nn.functional.interpolate(
    torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1)),
    size=(30, 30, 30),
    mode="trilinear",
)
field = 4.5 * smooth[0].movedim(0, -1)  # (30, 30, 30, 3) voxels
columns = [torch.gradient(field, dim=axis)[0] + torch.eye(3)[axis] for axis in range(3)]
wrong, right = determinant(*columns), torch.linalg.det(torch.stack(columns, dim=-1))
missed = ((wrong > 0) & (right <= 0)).sum() / (right <= 0).sum()
print(
    f"{(right <= 0).float().mean():.1%} of the voxels fold; the formula misses {missed:.0%} of "
    "these"
)
assert 0.02 < missed < 0.5

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It is in the line of `two`: the last factor is `x[..., 0]` where the determinant has `z[..., 0]`. On a map that hardly moves, both are
# nearly right, so no small test notices.
#
# </details>
#
# A test against an independent determinant on a *large* random field finds the slip in one line. The
# published figures of folding came from the other, correct formula; the training saw this one.
#
# ## Three remedies at equal smoothness
#
# Slices of people again (`oasis2d`), so that six networks train in minutes. Three kinds of network, each with two
# weights of the smoothness; all of them predict at full resolution, where a field can fold from pixel to pixel:
#
# - a **displacement** network (`integration_steps=0`), kept in order by smoothness alone;
# - the same with a **penalty**, 100 times the share of the area that is turned over;
# - a **velocity** network: what it predicts is integrated.
#
# **Predict:** which of the three folds most at equal smoothness, and does it gain overlap by that?
#
# > *My prediction:*

# %%
import shutil

from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 4))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 20))

# %%
from course_utils.plotting import panel

item = test_pairs[0]
panel({"moving": item["moving"], "fixed": item["fixed"]}, **cohort.info.view)

# %%
# Squarings, and the weight of the penalty.
KINDS = {"displacement": (0, 0.0), "penalty": (0, 100.0), "velocity": (7, 0.0)}
SMOOTHNESS = (0.03, 0.3)


def trained(kind, smoothness, steps=150):
    squarings, weight = KINDS[kind]
    out = session.runs / "folding" / f"{kind}_{smoothness}"
    shutil.rmtree(out, ignore_errors=True)
    return fit(
        NetworkSpec(
            "voxelmorph",
            {"spatial_dims": 2, "integration_steps": squarings, "half_resolution": False},
        ).build(session.seed),
        pair_objective("ncc", smoothness=smoothness, jacobian_weight=weight),
        train_pairs,
        val_pairs,
        out,
        TrainConfig(steps=steps, batch_size=4, validations=1),
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    ).model.eval()


# %%
networks = {(kind, weight): trained(kind, weight) for weight in SMOOTHNESS for kind in KINDS}

# %%
import pandas as pd

from course_utils.evaluation import evaluate, summarise

labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)
measures = ["dice_after", "folding_percent", "ndv_percent", "sdlogj"]
rows = {}
for key, network in networks.items():
    table = evaluate(network, test_pairs, labels, spacing, device=session.device)
    rows[key] = summarise(table).loc["overall"].xs("mean", level=1)
overview = pd.DataFrame(rows).T.rename_axis(["kind", "smoothness"])[measures]
print(f"before: Dice {rows['velocity', SMOOTHNESS[0]]['dice_before']:.3f}")
overview.round(4)

# %%
rough = overview.xs(SMOOTHNESS[0], level="smoothness")
assert rough.ndv_percent["displacement"] > 0.02 and rough.folding_percent["displacement"] > 0.1
assert rough.ndv_percent["penalty"] < rough.ndv_percent["displacement"] / 20
assert rough.folding_percent["velocity"] < rough.folding_percent["displacement"] / 20
assert rough.ndv_percent["velocity"] < rough.ndv_percent["displacement"] / 5
assert rough.folding_percent["velocity"] <= rough.ndv_percent["velocity"] / 4  # they hide
assert rough.dice_after["velocity"] > rough.dice_after["displacement"] - 0.02
assert rough.dice_after["penalty"] > rough.dice_after["displacement"] - 0.04
smooth = overview.xs(SMOOTHNESS[1], level="smoothness").ndv_percent
assert max(smooth["penalty"], smooth["velocity"]) < smooth["displacement"] / 20
of_displacement = overview.xs("displacement", level="kind").ndv_percent
assert of_displacement.iloc[-1] < of_displacement.iloc[0] / 2  # smoothness alone helps too
best = overview.dice_after.groupby("kind").max()
assert best.max() - best.min() < 0.05 and best["velocity"] > best.max() - 0.01

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The displacement folds most, and it gains nothing by that: the best overlap of the three kinds differs by a few hundredths at most, and
# the velocity's is the best or within a hundredth of it. Nothing but smoothness keeps a displacement in order, while the penalty asks for
# the folds directly and the integration turns rough numbers into a map.
#
# </details>
#
# Read the table by rows of equal smoothness. With little smoothness, the penalty mends nearly all folds of the displacement, and
# integration mends most of them without a weight to choose. Central differences hardly see what integration leaves: on real slices,
# compare its two columns. With more smoothness it leaves next to nothing. Then read the table by columns: more smoothness alone removes
# folds as well. **Folding is rarely a matter of accuracy; it is a matter of whether the answer is a map.** The next picture shows in red
# where the three fold, on one pair:

# %%
from course_utils.plotting import folds

pairs = [test_pairs[n] for n in range(len(test_pairs))]


@torch.no_grad()
def field_of(kind, pair):
    images = (pair[side][None].to(session.device) for side in ("moving", "fixed"))
    return networks[kind, SMOOTHNESS[0]](*images).displacement.cpu()


def folded_inside(pair):
    return ndv_percent(field_of("displacement", pair), pair["fixed_label"][None] > 0).item()


pair = max(pairs, key=folded_inside)  # where the labelled structures fold most
print(f"{pair['name']}: {folded_inside(pair):.2f} % of the labelled area is turned over")
fields = {kind: field_of(kind, pair) for kind in KINDS}
worst = {kind: simplex_determinants(field)[0].amin(1) for kind, field in fields.items()}
folds(worst, pair["fixed"], **cohort.info.view)

# %% [markdown]
# Now the same displacement is counted twice: by central differences, and between the neighbours.

# %%
field = fields["displacement"]
counted = {
    "central differences": jacobian_determinant(field)[..., :-1, :-1],
    "between neighbours": worst["displacement"],
}
share = {way: 100 * (values <= 0).float().mean().item() for way, values in counted.items()}
for way, percent in share.items():
    print(f"{way:<20} {percent:.2f} % folded")
assert share["between neighbours"] > 1.2 * share["central differences"]
folds(counted, pair["fixed"], **cohort.info.view)

# %% [markdown]
# Central differences step over many of them. (A network of half resolution, the course's default, folds less, and where it does its
# folds are two pixels wide and hard to step over: the two counts then nearly agree.)
#
# Overlap against folds, for every smoothness. The further to the upper left, the better; from right to left along each line the
# smoothness grows.

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(6.5, 3.4), layout="constrained")
axes = figure.subplots()
FLOOR = 1e-4  # percent: what has less has none that a logarithm could show
for (kind, points), colour, marker in zip(
    overview.groupby("kind"), ("#0072B2", "#D55E00", "#009E73"), "osd", strict=True
):
    axes.plot(
        points.ndv_percent.clip(lower=FLOOR),
        points.dice_after,
        marker,
        color=colour,
        linestyle="-",
        label=kind,
    )
axes.set(
    xscale="log",
    xlabel=f"area turned over, % (none is drawn at {FLOOR:g})",
    ylabel="mean Dice after",
)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# ## What it costs, and what it does not buy
#
# - A **penalty** works on the folds and on nothing else; it needs a weight, and the weight needs a unit. Ours is of a *share*: the
#   Keras project's 0.001 times a *sum* over 3.7 million voxels would be 3,700 here. Too much of it costs overlap: the safest way not
#   to fold is not to move. `python -m course_utils train --jacobian-weight 100 --integration-steps 0`.
# - A **velocity** needs no weight. It too folds a little where the field is rough and the grid coarse: "diffeomorphic" is a
#   property of the differential equation, and a computer integrates on a grid.
# - **Smoothness** is needed anyway. Compare methods at *equal* smoothness, or as curves over it; a table in which one method was given
#   more of it shows nothing.
# - 0.00 % folding by central differences is half an answer. `evaluate` prints `folding_percent` for comparison with the
#   literature, and `ndv_percent`.
#
# ## The same in MONAI
#
# MONAI has two of the three remedies. Its `VoxelMorph` predicts a displacement with `integration_steps=0` and a velocity otherwise. For
# the smoothness it has `DiffusionLoss`, of first derivatives, and `BendingEnergyLoss`, of second ones, which lets any affine map go free.
# It has neither a penalty on folds nor a measure of them. The strip of five pixels now comes back as an image: every second column is
# thrown over its neighbour. `DiffusionLoss` takes central differences.
#
# **Predict:** what does `DiffusionLoss` say to this field?
#
# > *My prediction:*

# %%
import warnings

from monai.losses import BendingEnergyLoss, DiffusionLoss

from course_utils.losses import bending_loss, diffusion_loss

warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
zigzag = torch.zeros(1, 2, 12, 12)
zigzag[:, 1, :, ::2] = 1.5  # pixels; the column to its right stays
print(f"{ndv_percent(zigzag).item():.0f} % of the area is turned over")
print(f"first derivatives:  MONAI {DiffusionLoss()(zigzag):.3f}, ours {diffusion_loss(zigzag):.3f}")
print(f"second derivatives: MONAI {BendingEnergyLoss()(zigzag):.2f}, ", end="")
print(f"ours {bending_loss(zigzag):.2f}")
assert ndv_percent(zigzag) > 10 and DiffusionLoss()(zigzag) < 1e-9
assert diffusion_loss(zigzag) > 0.5 and BendingEnergyLoss()(zigzag) > 1

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Nothing: it is zero. From one column to the next but one nothing changes, and central differences ask for no more. Ours takes the
# difference of neighbours, and the second derivatives of both look at three columns in a row, so these notice.
#
# </details>
#
# So whoever trains a displacement in MONAI takes `BendingEnergyLoss`, or both. On a smooth field each pair of losses agrees (up to a
# factor: MONAI adds the axes up where our `diffusion_loss` takes their mean). The next cell gives MONAI's `VoxelMorph` a rough field that
# is drawn at random, once as a displacement and once as a velocity:

# %%
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from torch import nn

warnings.filterwarnings("ignore", message=".*native grid_sample")
images = [item[side][None] for side in ("moving", "fixed")]  # (1, 1, H, W)
knots = [n // 4 for n in images[0].shape[2:]]
drawn = torch.randn(1, 2, *knots, generator=torch.Generator().manual_seed(session.seed))
rough_field = 2.5 * torch.nn.functional.interpolate(drawn, images[0].shape[2:], mode="bilinear")


class Given(nn.Module):
    """A backbone that answers with the field which was drawn."""

    def forward(self, both):
        return rough_field


theirs = {steps: MonaiVoxelMorph(Given(), steps, spatial_dims=2)(*images)[1] for steps in (0, 7)}
turned = {steps: ndv_percent(field).item() for steps, field in theirs.items()}
for steps, field in theirs.items():
    energy = BendingEnergyLoss()(field), bending_loss(field)
    print(f"{steps} squarings: {turned[steps]:.3f} % turned over, bending {energy[0]:.4f} (MONAI)")
    assert abs(energy[0] - energy[1]) < 0.5 * energy[1]
assert turned[7] < turned[0] / 5

# %%
from course_utils.fields import integrate

inside = (..., slice(8, -8), slice(8, -8))  # MONAI integrates with zeros outside of the image
apart = (theirs[7] - integrate(rough_field))[inside].abs().mean().item()
print(f"MONAI's displacement and ours differ by {apart:.1e} pixel on average, away from the border")
assert apart < 0.02

# %% [markdown]
# **The same elsewhere.** voxelmorph has no such penalty; SYMNet and LapIRN have `antifold`, in units of their own. The LUMIR challenge of
# 2024 measures NDV.
#
# **What you now have.** Two ways to count folds, of which one can be trusted; a table of three remedies at equal smoothness; and a test that
# finds a wrong letter in a determinant.
#
# **What can go wrong.** A determinant has one wrong letter. Somebody forgets the identity: $\det(\nabla u)$ is not
# $\det(I + \nabla u)$. Folds are counted on the half-resolution field that the network predicted, and not on the one that moves the
# image. A penalty is taken for a guarantee, although it was bought on the training pairs.
#
# **Try it.**
# 1. *(easy)* Which is the smallest weight of the penalty that halves the folds? Does Dice notice?
# 2. *(middle)* Give the velocity network 0, 2, 4 and 7 squarings. How many does it need?
# 3. *(hard)* Write the penalty with central differences. Train with it and measure with the simplices: where do the folds hide?
#
# **References.** Kuang and Schmah, *FAIM: a ConvNet method for unsupervised 3D medical image registration*, arXiv 1811.09243, 2018,
# https://doi.org/10.48550/arXiv.1811.09243.
# Kuang, *On reducing negative Jacobian determinant of the deformation predicted by deep registration networks*, arXiv 1907.00068, 2019,
# https://doi.org/10.48550/arXiv.1907.00068. Liu
# et al., *On finite difference Jacobian computation in deformable image registration*, IJCV 132, 2024. Mok and Chung, *Fast symmetric
# diffeomorphic image registration with convolutional neural networks*, CVPR 2020.
#
# Next: [14 Cycles and refinement](14_cycles_and_refinement.ipynb): what is left of a fold when the image must come home.
