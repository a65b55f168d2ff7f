# %% [markdown]
# # 21 A map of the field
#
# There are some thousand papers on deformable registration, and dozens of tools. Most of them differ from each other in three
# decisions only: *what moves*, *what is known*, and *when the work is done*. This page asks the three questions of six methods, runs
# all six on the same pairs, and shows where every page of the course and every public tool stands. At the end you read a famous
# warning, "Magic or Mirage?", and test its three claims yourself.
#
# Read this page after notebook 01, for the words, and again at the end of the course, for the judgement. It needs nothing but
# notebook 00.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/21_map_of_the_field.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/21_map_of_the_field.ipynb)

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
# ## A pair to register
#
# Coronal slices of whole brains: of people (`oasis2d`), whose structures FreeSurfer has outlined, or, where they could not be fetched,
# of the built-in cohort.

# %%
from course_utils import shipped
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.plotting import panel

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 4))
known_to_it = shipped.card("oasis2d")["subjects"].values()  # to the network used below
seen = {name for names in known_to_it for name in names}
fair = cohort.without([subject.name for subject in cohort.splits["test"] if subject.name in seen])
test_pairs = PairDataset(subjects, fair.distinct_pairs("test", 10))
item = test_pairs[0]
images = (item[side][None].to(session.device) for side in ("moving", "fixed"))
moving, fixed = images  # (1, 1, H, W)
panel({"moving": item["moving"], "fixed": item["fixed"]}, **cohort.info.view)

# %% [markdown]
# ## Question 1: what moves?
#
# A registration looks for a *transform*. The smaller its family, the fewer mistakes it can make, and the less it can do. The next cell
# counts the numbers that each family has on this slice, from a rigid motion to a displacement of every pixel.
#
# **Predict:** how many numbers do splines have, with a knot every 8 pixels, compared with a displacement of every pixel?
#
# > *My prediction:*

# %%
import math

import pandas as pd

shape = tuple(moving.shape[2:])
dims = len(shape)
knots = [math.ceil(n / 8) + 3 for n in shape]  # cubic: three more knots than intervals
families = {
    "rigid: turn and shift": dims * (dims + 1) // 2,
    "affine: stretch and shear too": dims * (dims + 1),
    "spline, a knot every 8 pixels (free-form deformation)": dims * math.prod(knots),
    "velocity at half resolution, integrated (VoxelMorph)": dims * math.prod(n // 2 for n in shape),
    "displacement of every pixel": dims * math.prod(shape),
}
splines, displacement = list(families.values())[2], list(families.values())[-1]
assert displacement / 64 < splines < displacement / 40  # a few knots lie outside of the image
pd.Series(families, name="numbers to find").to_frame()

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# One fortieth or less: one knot stands for 8 x 8 pixels, and a few more knots lie outside of the image.
#
# </details>
#
# Rigid suits one person scanned twice, affine suits the first step between two people, and only the last three follow a
# ventricle. A velocity has as many numbers as a displacement of its grid, but its map can be inverted (notebook 03).
#
# ## Question 2: what is known?
#
# Something must say which answer is good. What it may use divides the field more deeply than any network does:
#
# - **The two images.** Their likeness after warping, by a formula that a person wrote: SSD, NCC, mutual information, MIND.
# - **Other people's images.** A network learns on them what deformations are plausible. It still minimises the formula.
# - **Other people's outlines** (labels, or landmarks). The formula says *put hippocampus on hippocampus*. The outlines are needed
#   in training only; a new pair comes without.
# - **The true field.** Nobody has it for two people. It is known where the pair was simulated.
# - **Nothing but shapes.** Images are painted over label maps, in contrasts that no scanner makes (SynthMorph).
#
# ## Question 3: when is the work done?
#
# Either for each pair anew, by **optimisation**; or once, in **training**, after which a pair costs one pass of a network; or both. Six
# answers to the three questions, each in a few lines. First, the affine map of two images, found by descent on one correlation:

# %%
import torch

from course_utils.fields import affine_to_field, warp
from course_utils.networks import Registration


def affine_map(numbers, shape):
    """The displacement of six numbers (1, 2, 3): turn and stretch about the centre, and a shift."""
    linear, shift = numbers[..., :2], 20 * numbers[..., 2]  # a shift is in pixels
    shift = shift - linear @ (torch.tensor(shape, device=numbers.device) / 2)
    identity = torch.eye(2, 3, device=numbers.device)[None]
    return affine_to_field(identity + torch.cat([linear, shift[..., None]], -1), shape)


# %%
def affine(moving, fixed, steps=60):
    """Six numbers for this pair, optimised by one correlation for the whole image."""
    with torch.inference_mode(False), torch.enable_grad():
        moving, fixed = moving.clone(), fixed.clone()
        numbers = torch.zeros(1, 2, 3, device=moving.device, requires_grad=True)
        optimizer = torch.optim.Adam([numbers], 0.02)
        for _ in range(steps):
            field = affine_map(numbers, moving.shape[2:])
            pair = torch.stack([warp(moving, field).flatten(), fixed.flatten()])
            optimizer.zero_grad()
            (-torch.corrcoef(pair)[0, 1]).backward()
            optimizer.step()
    return Registration(warp(moving, field.detach()), field.detach())


# %% [markdown]
# The other answers are a free field, optimised for the pair by the course's own instance optimisation (notebook 10); a network that learnt
# from images alone, and ships with the course (notebooks 04 to 06); this network and then optimisation; and the same network after it has
# seen the outlines of training subjects for a minute:

# %%
import shutil

from course_utils.checkpoint import Checkpoint
from course_utils.objectives import pair_objective
from course_utils.scans.optimise import optimise
from course_utils.training import TrainConfig, fit

network = Checkpoint.load("oasis2d").model().to(session.device).eval()

out = session.runs / "map_of_the_field"
shutil.rmtree(out, ignore_errors=True)
with_labels = fit(
    Checkpoint.load("oasis2d").model(),
    pair_objective("ncc", smoothness=0.5, dice_weight=2.0, labels=labels, coarseness=2),
    train_pairs,
    val_pairs,
    out,
    TrainConfig(steps=120, batch_size=4, learning_rate=5e-4, validations=1),
    card=cohort.info.card(),
    device=session.device,
    hooks=[],
).model.eval()

# %% [markdown]
# The six are now compared on the same pairs, by overlap and by seconds per pair.
#
# **Predict** the order of the six by overlap.
#
# > *My prediction:*

# %%
from course_utils.evaluation import evaluate, summarise

methods = {
    "nothing": lambda m, f: Registration(m, torch.zeros_like(m).expand(-1, 2, -1, -1)),
    "affine": affine,
    "free field": lambda m, f: optimise(m, f),
    "network": network,
    "network, then free field": lambda m, f: optimise(m, f, start=network(m, f).velocity),
    "network that saw labels": with_labels,
}
known = dict.fromkeys(methods, "the two images")
known |= {"network": "other people's images", "network, then free field": "other people's images"}
known |= {"network that saw labels": "other people's outlines"}

# %%
tables = {
    name: evaluate(method, test_pairs, labels, spacing, device=session.device)
    for name, method in methods.items()
}
means = {n: summarise(t).loc["overall"].xs("mean", level=1) for n, t in tables.items()}
overview = pd.DataFrame(means).T
overview[["dice_before", "dice_after", "hd95_mm_after", "ndv_percent", "seconds"]].round(3)

# %%
from course_utils.plotting import Figure

what_is_known = ("the two images", "other people's images", "other people's outlines")
COLOURS = dict(zip(what_is_known, ("#0072B2", "#E69F00", "#009E73"), strict=True))
figure = Figure(figsize=(7.5, 3.4), layout="constrained")
axes = figure.subplots()
for what, colour in COLOURS.items():
    rows = overview.loc[[name for name in methods if known[name] == what and name != "nothing"]]
    axes.scatter(rows.seconds, rows.dice_after, color=colour, label=f"knows {what}")
    for name, row in rows.iterrows():
        place = {"xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(name, (row.seconds, row.dice_after), va="center", fontsize=8, **place)
nothing = {"color": "0.6", "linewidth": 1, "linestyle": "--", "zorder": 0}
axes.axhline(overview.dice_after["nothing"], label="nothing done", **nothing)
axes.set(xscale="log", xlabel="seconds per pair", ylabel="mean Dice")
axes.margins(x=0.35)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
figure

# %%
score = overview.dice_after
assert score["nothing"] - 0.02 < score["affine"] < score["free field"] - 0.05
assert score["network that saw labels"] > score["network"] > score["affine"]
assert score["affine"] == score.drop("nothing").min()
assert overview.seconds["network"] < overview.seconds["free field"] / 5
gap = score["network"] - score["free field"]
faster = overview.seconds["free field"] / overview.seconds["network"]
added = score["network that saw labels"] - score["network"]
print(
    f"network against optimisation, no labels known: {gap:+.3f} Dice, in 1/{faster:.0f} of the time"
)
print(f"what labels of other people add to the network: {added:+.3f} Dice")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The affine map comes last of those that move anything, far below all that can follow a ventricle, and the network that saw labels is above
# the network that did not. Where the free field stands among them depends on the data; the next section asks why.
#
# </details>
#
# The affine map shows how much of the difference between two people is *not* affine: most of it, and all of it where somebody has
# aligned the slices before, as in the real ones. The network is faster by an order of magnitude, because its descent was done
# beforehand. And other people's outlines add something that neither the network nor the optimisation finds in the images.
#
# ## "Magic or Mirage": three claims, tested
#
# Jena and colleagues (NeurIPS 2024) compared learnt with classical registration under equal conditions, and claim: **(1)** without labels,
# a network does not register better than a good optimisation of the same loss; **(2)** with labels in training it does; **(3)** this
# advantage does not survive a change of the data. Claims 1 and 2 can be read off the table above.
#
# **Predict:** does the first claim hold on these slices?
#
# > *My prediction:*

# %%
plain, taught, free = (score[m] for m in ("network", "network that saw labels", "free field"))
verdicts = {
    "1: without labels, no better than optimisation": plain < free + 0.01,
    "2: with labels, better than without": taught > plain + 0.01,
    "2: with labels, better than optimisation": taught > free + 0.01,
}
for claim, holds in verdicts.items():
    print(f"{claim:<48} {'holds here' if holds else 'does not hold here'}")
if session.dataset == "oasis2d":  # the data that the network was trained on
    assert score["network"] > score["free field"] - 0.02
else:
    assert score["free field"] > max(score["network"], score["network that saw labels"])

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell above says it for your data, and the answer depends on the data: a network is good where it was trained.
#
# </details>
#
# The network that ships was trained on 267 real slices. On slices of the same
# data set (`oasis2d`) it is about as good as optimisation, or a little better; on the built-in cohort, which
# it never saw, optimisation wins clearly, even over the labels. A paper that shows one of the two tables tells half of the truth.
#
# The third claim is tested by a change that leaves the anatomy as it is: the *negative* of the same slices, bright where they were dark. The
# optimisation compares squared correlations, which a negative does not change.
#
# **Predict:** do the networks lose more than the optimisation on negatives?
#
# > *My prediction:*


# %%
class Negatives:
    """The same pairs as photographic negatives: bright where they were dark."""

    def __len__(self):
        return len(test_pairs)

    def __getitem__(self, number):
        pair = test_pairs[number]
        return {**pair, **{side: 1 - pair[side] for side in ("moving", "fixed")}}


negatives = Negatives()
turned = negatives[0]
panel({"moving": turned["moving"], "fixed": turned["fixed"]}, **cohort.info.view)

# %%
lost = {}
for name in ("free field", "network", "network that saw labels"):
    pairs = (negatives[n] for n in range(len(negatives)))
    table = evaluate(methods[name], pairs, labels, spacing, device=session.device)
    after = table.groupby("pair").dice_after.mean()
    lost[name] = score[name] - after.mean()
pd.Series(lost, name="Dice lost on negatives").to_frame().round(3)

# %%
assert lost["network"] > lost["free field"] + 0.02
assert lost["network that saw labels"] > lost["free field"] + 0.02
# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Yes, both of them: they had learnt *this* contrast. The labels do not protect the second network, because it saw them together with images
# of one contrast only.
#
# </details>
#
# Pages 16 and 17 are about what helps: similarities that
# do not look at brightness, and networks that were shown every contrast. So all three claims hold in a sense that one can state: a
# network spends its training on the distribution that it saw. Inside, it is fast and, with labels, better. Outside, optimise.
#
# ## Whose pairs?
#
# There is one more trap, which needs no bad intention. The next cell measures the same network on the easier and on the harder half of the
# same test pairs:

# %%
by_pair = tables["network"].groupby("pair")[["dice_before", "dice_after"]].mean()
by_pair = by_pair.sort_values("dice_before")
half = len(by_pair) // 2
harder, easier = by_pair.iloc[:half].mean(), by_pair.iloc[half:].mean()
print(f"the harder half: {harder.dice_before:.3f} before, {harder.dice_after:.3f} after")
print(f"the easier half: {easier.dice_before:.3f} before, {easier.dice_after:.3f} after")
assert easier.dice_after > harder.dice_after
rank = by_pair.corr("spearman").iloc[0, 1]
print(f"rank correlation of before and after: {rank:.2f}")

# %% [markdown]
# Where pairs that begin closer also end closer, a score *after* says little without the score *before*. Two papers that report the two
# halves, each with its own number for one and the same network, do not disagree.
#
# **Seven questions to ask of a table of results.**
#
# 1. What is the score before, on the same pairs?
# 2. Were labels of the *scored structures* used in training? Then it is another sport.
# 3. Was the classical method tuned, or run with its defaults? For the network somebody tuned the smoothness for a month.
# 4. Were settings chosen on the pairs that are reported?
# 5. How many subjects (not pairs), and how large is the spread between them?
# 6. Overlap can be bought with folds. What is the share of the volume that is turned over (notebook 13)?
# 7. Would it work on *your* scanner? Trained and tested on one data set, nobody knows.
#
# Practise on two published tables. On IXI (atlas to subject) SyN has 0.645 and VoxelMorph 0.729; on LUMIR (subject to subject, 2024) SyN
# has 0.703 and VoxelMorph 0.714, with 1.2 % of the volume turned over. The first table has been quoted for years as "deep learning
# wins by 8 points". Which of the seven questions would you ask?
#
# ## The same in MONAI
#
# MONAI has networks for three of the families: `GlobalNet` answers with an affine map, `RegUNet` (and `LocalNet`) with a displacement,
# and `VoxelMorph` with the exponential of a velocity. Their families show without any training, if the weights are stirred a little. The
# bending energy, the mean of squared second derivatives, is zero for every affine map, whatever its six numbers are:

# %%
import warnings

from monai.losses import BendingEnergyLoss
from monai.networks.nets import GlobalNet, RegUNet, VoxelMorphUNet
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph

for message in (".*native grid_sample", "Using a non-tuple sequence"):
    warnings.filterwarnings("ignore", message=message)
torch.manual_seed(session.seed)
both = torch.cat([item["moving"], item["fixed"]])[None]  # (1, 2, H, W)
narrow = VoxelMorphUNet(2, 2, 16, channels=(16, 16, 16, 16), final_conv_channels=(16, 16))
monais = {
    "GlobalNet": GlobalNet(
        image_size=list(shape), spatial_dims=2, in_channels=2, num_channel_initial=8, depth=3
    ),
    "RegUNet": RegUNet(2, 2, 8, depth=3, out_channels=2),
    "VoxelMorph": MonaiVoxelMorph(narrow, spatial_dims=2),
}

# %%
bending = {}
for name, net in monais.items():
    with torch.no_grad():
        for weights in net.parameters():  # a new GlobalNet moves nothing
            weights += 0.01 * torch.randn_like(weights)
        answer = net(both[:, :1], both[:, 1:])[1] if name == "VoxelMorph" else net(both)
    scale = answer.square().mean()  # so that it does not matter how far each of them moves
    bending[name] = (BendingEnergyLoss()(answer) / scale).item()
    print(f"{name:<11} {tuple(answer.shape)}, bending {bending[name]:.1e} of its mean square")
assert bending["GlobalNet"] < 1e-6 < min(bending["RegUNet"], bending["VoxelMorph"])

# %% [markdown]
# What is known is a matter of the loss: MONAI's similarities take the images, and its `DiceLoss` the outlines. It has nothing for the third
# question's other answer, the optimisation of a single pair.
#
# ## The map
#
# | what moves | optimised for each pair | learnt once, without labels | learnt with labels, or from shapes |
# |---|---|---|---|
# | affine (10) | ANTs, FLIRT, elastix, `--affine` | | EasyReg, SynthMorph's affine part |
# | splines | elastix, NiftyReg, DeformableReg of Slicer | | |
# | displacement | demons (16), ConvexAdam (discrete first, then Adam), greedy | VoxelMorph of 2018, FAIM (14, 15), TransMorph (15) | weakly supervised networks (DeepReg) |
# | velocity, stationary | SyN's symmetric relatives, log-demons, our `optimise` (10) | VoxelMorph of 2019 (03, 04), SYMNet, antisymmetric (12), GradICON (12) | this page's last method; SynthMorph (17) |
# | velocity, in time | LDDMM, FireANTs | neural ODEs (NODEO) | |
# | the reference image too | ANTs' template construction | templates (18), AtlasMorph, MultiMorph | |
#
# And across the table: *how certain is it?* (probabilistic, 19), *how smooth should it be?* (HyperMorph, 20), *for every organ and contrast
# at once* (the foundation models: uniGradICON and multiGradICON, trained on many data sets, then refined for each pair). Numbers in brackets are
# pages of this course.
#
# | tool | is | choose it when |
# |---|---|---|
# | ANTs, greedy, elastix, NiftyReg, SimpleITK | optimisation on a CPU | you have a handful of scans, or no training data |
# | FireANTs, ConvexAdam | optimisation on a GPU | you have hundreds, and a GPU |
# | voxelmorph, MONAI, this course | networks to train | you have many scans of one kind |
# | SynthMorph, EasyReg, uniGradICON | networks that are trained already | you cannot train, and your contrast is unusual |
# | Learn2Reg, LUMIR | challenges | you want to know where you stand |
#
# **The same elsewhere.** DeepReg's documentation has the best such map that we know (types of output, types of supervision); "A survey
# on deep learning in medical image registration: new technologies, uncertainty, evaluation metrics, and beyond" (Chen et al., Medical
# Image Analysis 100, 2025) is the long version.
#
# **What you now have.** Three questions that place any method, and seven that question any table of results.
#
# **What can go wrong.** Two methods are compared on two sets of pairs. A network is tested on the data set that it was trained on, and the
# result is taken for a property of the method. A classical method runs with its defaults beside a network that was tuned.
#
# **Try it.**
# 1. *(easy)* Put three papers of your reading list into the map. Which of the three questions does the abstract not answer?
# 2. *(middle)* Give the free field a tenth of its steps (`iterations=10`). Where does it come to lie in the figure?
# 3. *(hard)* Repeat claim 3 with a change of your own: noise, a smoother image, another crop. Which change hurts optimisation more?
#
# **References.** Jena et al., *Deep learning in medical image registration: magic or mirage?*, NeurIPS 2024. Hering et al., *Learn2Reg:
# comprehensive multi-task medical image registration challenge*, IEEE TMI 42(3), 2023,
# https://doi.org/10.1109/TMI.2022.3213983. Sotiras, Davatzikos and Paragios, *Deformable medical
# image registration: a survey*, IEEE TMI 32(7), 2013, https://doi.org/10.1109/TMI.2013.2265603. Tian et al., *uniGradICON*, MICCAI 2024. Rueckert et al., *Nonrigid registration using
# free-form deformations*, IEEE TMI 18(8), 1999, https://doi.org/10.1109/42.796284.
#
# If you come from 01, go on with [02 Warping](02_warping.ipynb), where a field moves an image. If you come from 20, this is the end of the
# course: begin again with another data set, [00 Start here](00_start_here.ipynb).
