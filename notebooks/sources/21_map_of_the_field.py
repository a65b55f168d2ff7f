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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/21_map_of_the_field.ipynb)

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
# Slices of whole brains. Where the data folder holds `oasis2d`, they are coronal slices of real people, and the structures were outlined by
# FreeSurfer; otherwise they are slices of the built-in cohort, which needs no download.

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
seen = {
    name for names in shipped.card("oasis2d")["subjects"].values() for name in names
}  # by the network used below
fair = cohort.without([subject.name for subject in cohort.splits["test"] if subject.name in seen])
test_pairs = PairDataset(subjects, fair.distinct_pairs("test", 10))
item = test_pairs[0]
moving, fixed = (
    item[side][None].to(session.device) for side in ("moving", "fixed")
)  # (1, 1, H, W)
panel({"moving": item["moving"], "fixed": item["fixed"]}, **cohort.info.view)

# %% [markdown]
# ## Question 1: what moves?
#
# A registration looks for a *transform*. The smaller its family, the fewer mistakes it can make, and the less it can do. Count
# the numbers that each family has on this slice:

# %%
import math

import pandas as pd

shape = tuple(moving.shape[2:])
dims = len(shape)
knots = [
    math.ceil(n / 8) + 3 for n in shape
]  # a cubic spline needs three more knots than intervals
families = {
    "rigid: turn and shift": dims * (dims + 1) // 2,
    "affine: stretch and shear too": dims * (dims + 1),
    "spline, a knot every 8 pixels (free-form deformation)": dims * math.prod(knots),
    "velocity at half resolution, integrated (VoxelMorph)": dims * math.prod(n // 2 for n in shape),
    "displacement of every pixel": dims * math.prod(shape),
}
pd.Series(families, name="numbers to find").to_frame()

# %% [markdown]
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


def affine(moving, fixed, steps=60):
    """Six numbers for this pair, optimised: the best affine map by one correlation for the whole
    image."""
    with torch.inference_mode(False), torch.enable_grad():
        moving, fixed = moving.clone(), fixed.clone()
        identity = torch.eye(2, 3, device=moving.device)[None]
        numbers = torch.zeros_like(identity, requires_grad=True)
        centre = torch.tensor(moving.shape[2:], device=moving.device) / 2
        optimizer = torch.optim.Adam([numbers], 0.02)
        for _ in range(steps):
            change = numbers * torch.tensor(
                [1.0, 1.0, 20.0], device=moving.device
            )  # a shift is in pixels
            shift = change[..., 2] - (change[..., :2] @ centre)  # turn and stretch about the centre
            field = affine_to_field(
                identity + torch.cat([change[..., :2], shift[..., None]], -1), moving.shape[2:]
            )
            pair = torch.stack([warp(moving, field).flatten(), fixed.flatten()])
            optimizer.zero_grad()
            (-torch.corrcoef(pair)[0, 1]).backward()
            optimizer.step()
    return Registration(warp(moving, field.detach()), field.detach())


# %% [markdown]
# Then a free field, optimised for the pair by the course's own instance optimisation (notebook 10); a network that learnt from images
# alone, and ships with the course (notebooks 04 to 06); this network and then optimisation; and the same network after it has
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
# **Predict** two orders of the six: by overlap, and by seconds per pair.

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


def compare(pairs):
    """The mean row of each method, by name."""
    tables = {
        name: evaluate(method, pairs, labels, spacing, device=session.device)
        for name, method in methods.items()
    }
    return tables, pd.DataFrame(
        {n: summarise(t).loc["overall"].xs("mean", level=1) for n, t in tables.items()}
    ).T


tables, overview = compare(test_pairs)
overview[["dice_before", "dice_after", "hd95_mm_after", "ndv_percent", "seconds"]].round(3)

# %%
from course_utils.plotting import Figure

COLOURS = {
    "the two images": "#0072B2",
    "other people's images": "#E69F00",
    "other people's outlines": "#009E73",
}
figure = Figure(figsize=(7.5, 3.4), layout="constrained")
axes = figure.subplots()
for what, colour in COLOURS.items():
    rows = overview.loc[[name for name in methods if known[name] == what and name != "nothing"]]
    axes.scatter(rows.seconds, rows.dice_after, color=colour, label=f"knows {what}")
    for name, row in rows.iterrows():
        place = {"xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(name, (row.seconds, row.dice_after), va="center", fontsize=8, **place)
axes.axhline(
    overview.dice_after["nothing"],
    color="0.6",
    linewidth=1,
    linestyle="--",
    zorder=0,
    label="nothing done",
)
axes.set(xscale="log", xlabel="seconds per pair", ylabel="mean Dice")
axes.margins(x=0.35)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
figure

# %%
score = overview.dice_after
assert score["nothing"] - 0.02 < score["affine"] < score["free field"] - 0.05
assert score["network that saw labels"] > score["network"] > score["affine"]
assert overview.seconds["network"] < overview.seconds["free field"] / 5
gap = score["network"] - score["free field"]
print(
    f"network against optimisation, no labels known: {gap:+.3f} Dice, in "
    f"1/{overview.seconds['free field'] / overview.seconds['network']:.0f} of the time"
)
print(
    "what labels of other people add to the network: "
    f"{score['network that saw labels'] - score['network']:+.3f} Dice"
)

# %% [markdown]
# The affine map shows how much of the difference between two people is *not* affine: most of it, and all of it where somebody has
# aligned the slices before, as in the real ones. Everything that follows a ventricle lies far above. The network is faster by an order of magnitude and more, because its descent was done beforehand. And other
# people's outlines add something that neither the network nor the optimisation finds in the images.
#
# ## "Magic or Mirage": three claims, tested
#
# Jena and colleagues (NeurIPS 2024) compared learnt with classical registration under equal conditions, and claim: **(1)** without labels,
# a network does not register better than a good optimisation of the same loss; **(2)** with labels in training it does; **(3)** this
# advantage does not survive a change of the data. Claims 1 and 2 stand in the table above. Look again: which of them holds here?

# %%
verdicts = {
    "1: without labels, no better than optimisation": score["network"] < score["free field"] + 0.01,
    "2: with labels, better than without": score["network that saw labels"]
    > score["network"] + 0.01,
    "2: with labels, better than optimisation": score["network that saw labels"]
    > score["free field"] + 0.01,
}
for claim, holds in verdicts.items():
    print(f"{claim:<48} {'holds here' if holds else 'does not hold here'}")
if session.dataset == "oasis2d":  # the data that the network was trained on
    assert score["network"] > score["free field"] - 0.02
else:
    assert score["free field"] > max(score["network"], score["network that saw labels"])

# %% [markdown]
# The answer depends on the data, and that is the point. The network that ships was trained on 267 real slices. On slices of the same
# data set (`oasis2d`) it is about as good as optimisation, or a little better; on the built-in cohort, which
# it never saw, optimisation wins clearly, even over the labels. A paper that shows one of the two tables tells half of the truth.
#
# The third claim is tested by a change that leaves the anatomy as it is: the *negative* of the same slices, bright where they were dark. The
# optimisation compares correlations and does not care. **Predict** what the networks do.


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
lost = {}
for name in ("free field", "network", "network that saw labels"):
    table = evaluate(
        methods[name],
        (negatives[n] for n in range(len(negatives))),
        labels,
        spacing,
        device=session.device,
    )
    after = table.groupby("pair").dice_after.mean()
    lost[name] = score[name] - after.mean()
pd.Series(lost, name="Dice lost on negatives").to_frame().round(3)

# %%
assert (
    lost["network"] > lost["free field"] + 0.02
    and lost["network that saw labels"] > lost["free field"] + 0.02
)
panel({"moving": turned["moving"], "fixed": turned["fixed"]}, **cohort.info.view)

# %% [markdown]
# The networks lose more than the optimisation: they had learnt *this* contrast. Pages 16 and 17 are about what helps: similarities that
# do not look at brightness, and networks that were shown every contrast. So all three claims hold in a sense that one can state: a
# network spends its training on the distribution that it saw. Inside, it is fast and, with labels, better. Outside, optimise.
#
# ## Whose pairs?
#
# One more trap, which needs no bad intention. The same method, on the easier and on the harder half of the same test pairs:

# %%
by_pair = (
    tables["network"]
    .groupby("pair")[["dice_before", "dice_after"]]
    .mean()
    .sort_values("dice_before")
)
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
# **Try it.**
# 1. *(easy)* Put three papers of your reading list into the map. Which of the three questions does the abstract not answer?
# 2. *(middle)* Give the free field a tenth of its steps (`iterations=10`). Where does it come to lie in the figure?
# 3. *(hard)* Repeat claim 3 with a change of your own: noise, a smoother image, another crop. Which change hurts optimisation more?
#
# **References.** Jena et al., *Deep learning in medical image registration: magic or mirage?*, NeurIPS 2024. Hering et al., *Learn2Reg:
# comprehensive multi-task medical image registration challenge*, IEEE TMI 42(3), 2023. Sotiras, Davatzikos and Paragios, *Deformable medical
# image registration: a survey*, IEEE TMI 32(7), 2013. Tian et al., *uniGradICON*, MICCAI 2024. Rueckert et al., *Nonrigid registration using
# free-form deformations*, IEEE TMI 18(8), 1999.
#
# If you come from 01, go on with [02 Warping](02_warping.ipynb), where a field moves an image. If you come from 20, this is the end of the
# course: begin again with another data set, [00 Start here](00_start_here.ipynb).
