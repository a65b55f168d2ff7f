# %% [markdown]
# # 07 NCC against SSD
#
# Two networks are equal in everything but one line: what "similar" means. Which of them registers better, by how much, and how
# sure may you be? You train both, measure them on 50 pairs of people whom neither has seen, compare them pair by pair, and let
# the page compute its verdict. On the way you meet the questions that a reviewer would ask: many measures on one data set, pairs
# that share people, a single training of each, and a Hausdorff distance that gets *worse* where the overlap gets better.
#
# Afterwards you can compare two methods fairly, test a difference with the right unit, correct for many tests, explain a
# Hausdorff distance that rises, and say for which images each of the two losses was made. You need notebooks 05 (the losses) and
# 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 20 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/07_ncc_against_ssd.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/07_ncc_against_ssd.ipynb)

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
# ## The rules, before any number
#
# A comparison is fair if only the thing that is compared differs. Both networks get the same architecture, the same first
# weights, the same pairs in the same order, the same number of steps and the same learning rate. One thing cannot be the same:
# the weight of the smoothness, because the two losses live on different scales (notebook 05). Each takes the course's default,
# which was chosen on other subjects than this page tests on.
#
# The page works on coronal slices of people, which its first cell fetches (`oasis2d`, 24 MB), and on volumes where you choose
# `hippocampus` or `oasis`. Where nothing can be fetched it takes slices of *made subjects*: one template brain, deformed at
# random. Those are no different people, but their true deformations are known.

# %%
from course_utils.data.cohorts import load_cohort, load_slices
from course_utils.data.loading import PairDataset, load_subjects

known = session.dataset == "synthetic"  # the made subjects, whose true deformations are known
if session.dataset in ("oasis2d", "synthetic"):
    cohort = load_slices(session.dataset, session.data_root)
else:
    cohort = load_cohort(session.dataset)
cache = session.data_root / "cache" / "oasis" if session.dataset == "oasis" else "memory"
subjects = load_subjects(cohort.subjects, cohort.info.recipe, cache)
cohort = cohort.without(subjects.failed)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)

train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 10))
test_pairs = PairDataset(subjects, cohort.pairs("test", count=50, seed=session.seed), truth=known)

tested = {subject for pair in test_pairs.pairs for subject in (pair.fixed, pair.moving)}
assert not tested & {*cohort.splits["train"], *cohort.splits["val"]}  # nobody on two sides
assert len({pair.name for pair in test_pairs.pairs}) == 50
sizes = {split: len(members) for split, members in cohort.splits.items()}
print(f"{cohort.info.name}: {sizes}; tested on {len(test_pairs)} pairs of {len(tested)} subjects")

# %%
from course_utils.plotting import panel

item = test_pairs[0]
images = {"moving": item["moving"], "fixed": item["fixed"]}
outlines = {side: item[f"{side}_label"] for side in images}
deep = ("ventric", "thal", "deep", "putamen", "terior")
drawn = {v: name for v, name in labels.items() if any(part in name.lower() for part in deep)}
panel(images, labels=outlines, names=drawn, fill=True, **cohort.info.view)

# %% [markdown]
# This is the first of the fifty pairs, with some of its structures. Neither network will train on these two subjects, nor be
# chosen on them.
#
# **Predict:** which of the two losses will give the higher Dice on the fifty pairs, and by how many hundredths?
#
# > *My prediction:*

# %% [markdown]
# ## Two trainings
#
# Notebook 06 explained `fit`. Each run gets a folder of its own, which is emptied first. The quick profile compares the images
# at half resolution (`coarseness=2`): a step becomes cheaper, and both losses get the same discount.

# %%
import math
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

quick, dims = session.profile == "quick", len(cohort.info.shape)
STEPS = {2: 120, 3: 60}[dims] if quick else 6000


def train(name, similarity, seed=session.seed):
    """Train a VoxelMorph from the first weights of a seed, in a folder of that name; a `Result`."""
    out = session.runs / "ncc_against_ssd" / name
    shutil.rmtree(out, ignore_errors=True)
    network = NetworkSpec("voxelmorph", {"spatial_dims": dims}).build(seed)
    objective = pair_objective(similarity, coarseness=2 if quick else 1)
    config = TrainConfig(steps=STEPS, batch_size=4 if dims == 2 else 2, validations=4)
    data = {"card": cohort.info.card(), "device": session.device, "hooks": []}
    return fit(network, objective, train_pairs, val_pairs, out, config, **data)


# %%
ncc = train("ncc", "ncc")
ssd = train("ssd", "ssd")

# %% [markdown]
# What differs between them? We do not promise it, we look into the two checkpoints.

# %%
from course_utils.checkpoint import Checkpoint

a, b = (Checkpoint.load(run.last) for run in (ncc, ssd))
assert a.network == b.network and a.config == b.config and a.card == b.card
assert a.objective.keys() == b.objective.keys()
for term in a.objective:
    print(f"{term}: {a.objective[term]} against {b.objective[term]}")

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
colours = {"before": "#777777", "NCC": "#0072B2", "SSD": "#D55E00"}
markers = {"before": "|", "NCC": "o", "SSD": "s"}
for name, run in (("NCC", ncc), ("SSD", ssd)):
    curve = run.history.dropna(subset="validation_dice")
    style = {"color": colours[name], "marker": markers[name], "markersize": 4}
    axes.plot(curve.step, curve.validation_dice, label=name, **style)
axes.set(xlabel="step", ylabel=f"mean Dice of {len(val_pairs)} validation pairs")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# The losses themselves cannot be compared: 0.6 of one is not 0.002 of the other. The labels can judge both, because neither
# network has trained with them. But these are a few validation pairs, and the best network was *chosen* on them. For the
# verdict we need subjects that decided nothing.
#
# ## Fifty pairs
#
# One call per network gives one row per pair and structure. "Before" is in the same table: what doing nothing scores.

# %%
from course_utils.evaluation import evaluate


def test(model, pairs=test_pairs, info=cohort.info):
    """The table of a method: one row per pair and structure."""
    return evaluate(model, pairs, dict(info.labels), list(info.spacing), device=session.device)


tables = {"NCC": test(ncc.model), "SSD": test(ssd.model)}
tables["NCC"].head(3).round(3)

# %%
import pandas as pd

from course_utils.evaluation import summarise

MEASURES = ("dice", "hd_mm", "hd95_mm", "tre_mm", "folding_percent", "sdlogj", "seconds")


def line(table, side):
    """Mean ± spread over pairs of every measure, and how many structures were lost."""
    overall = summarise(table).loc["overall"]
    cells = {}
    for measure in MEASURES:
        column = f"{measure}_{side}" if f"{measure}_{side}" in overall else measure
        if column in overall and not (side == "before" and column == measure):
            mean, spread = overall[column]["mean"], overall[column]["std"]
            digits = 3 if mean < 1.5 else 1
            cells[measure] = f"{mean:.{digits}f} ± {spread:.{digits}f}"
    return cells | {"lost": int(overall[f"hd_mm_{side}"]["lost"])}


# %%
def overview(tables):
    """One line for doing nothing, then one per method."""
    rows = {"before": line(next(iter(tables.values())), "before")}
    rows |= {name: line(table, "after") for name, table in tables.items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


overview(tables)

# %%
mean = {name: summarise(table).loc["overall"].xs("mean", level=1) for name, table in tables.items()}
for name, of in mean.items():
    assert of.dice_after > of.dice_before + 0.03 and of.hd95_mm_after < of.hd95_mm_before, name
    assert of.folding_percent < 0.5, name
    if known:
        assert of.tre_mm_after < 0.95 * of.tre_mm_before, name
print("both beat doing nothing: Dice by more than 0.03, HD95 lower, less than 0.5 % folded")
gains = {name: of.dice_after - of.dice_before for name, of in mean.items()}
gap = gains["NCC"] - gains["SSD"]
print(f"gain of NCC {gains['NCC']:+.3f}, of SSD {gains['SSD']:+.3f}; NCC - SSD {gap:+.4f}")
assert abs(gap) < 0.5 * min(gains.values())

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The last line has the answer for your data. Whichever network leads, the two differ by less than half of what each of them
# gains. Both losses pull at the same edges of the same images, and a similar smoothness holds both of them back.
#
# </details>
#
# Read the columns of the table together, never one alone.
#
# - **Dice** is the overlap of the structures. **HD** and **HD95** are the worst and nearly the worst distance between their
#   borders, in mm.
# - **TRE** is there where the truth is known: how far the map itself is off, in mm, inside the brain. It also counts where no
#   label has a border.
# - **Folding** and **SDlogJ** (the spread of the local volume change) are what was paid for it. A field can reach any Dice if it
#   may tear.
# - **Lost** counts structures that only one of the two images has. Their distance is infinite, and a mean over the others must
#   not hide it.
#
# ### Structure by structure

# %%
import numpy as np
from IPython.display import Markdown, display


def side_by_side(measure):
    """Before, NCC and SSD; one row per pair and structure that is finite in all three."""
    keyed = {name: table.set_index(["pair", "structure"]) for name, table in tables.items()}
    sides = {"before": keyed["NCC"][f"{measure}_before"]}
    sides |= {name: table[f"{measure}_after"] for name, table in keyed.items()}
    table = pd.DataFrame(sides)
    return table[np.isfinite(table).all(axis=1)]


overlap, distance = side_by_side("dice"), side_by_side("hd95_mm")
per_structure = overlap.groupby("structure").mean().sort_values("before")
of_distance = distance.groupby("structure").mean().reindex(per_structure.index)

# %%
figure = Figure(figsize=(9, 1.3 + 0.2 * len(per_structure)), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
for axes, values in ((left, per_structure), (right, of_distance)):
    axes.hlines(values.index, values.min(axis=1), values.max(axis=1), color="#cccccc", zorder=0)
    for name in values:
        style = {"color": colours[name], "marker": markers[name], "label": name}
        axes.plot(values[name], values.index, linestyle="none", markersize=5, **style)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.5 / len(values))
    axes.grid(axis="x", color="#eeeeee")
left.set(xlabel="mean Dice", ylabel="structure", title="overlap: further right is better")
right.set(xlabel="mean HD95 (mm)", title="distance: further left is better")
figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
figure

# %% [markdown]
# Each line is one structure, in the order of the overlap before. The grey stroke is where it began, and the two coloured marks
# are where the networks took it.
#
# Means of distances hide something. **Predict:** count the *different* values that the Hausdorff distance takes over all pairs and
# structures. Are they as many as those of Dice, about half as many, or far fewer?
#
# > *My prediction:*

# %%
figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
for name in distance:
    column = "hd95_mm_before" if name == "before" else "hd95_mm_after"
    values = np.sort(tables["SSD" if name == "SSD" else "NCC"][column].dropna())
    share = 100 * np.arange(1, len(values) + 1) / len(values)
    axes.step(values, share, where="post", color=colours[name], label=name)
most = 1.4 * distance.quantile(0.9).max()
axes.set(xlabel="HD95 (mm)", ylabel="structures at most\nthat far off (%)", xlim=(0, most))
axes.set(ylim=(0, 102))
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)
each = {"HD": side_by_side("hd_mm"), "HD95": distance, "Dice": overlap}
different = {measure: values["NCC"].round(4).nunique() for measure, values in each.items()}
print(f"different values in {len(distance)} rows: {different}")
assert different["HD"] < 0.5 * different["Dice"]
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Far fewer. HD is the distance between two border voxels, so it can only be the length of a step on the voxel grid: 1, $\sqrt{2}$,
# 2, $\sqrt{5}$ … voxels. HD95, a percentile, lies between two neighbouring lengths, and is often one of them. That is why the curve
# climbs in steps.
#
# </details>
#
# Box plots of such values degenerate to lines, and two methods can have the same median although one is better. A cumulative
# curve shows all of it, and the higher curve is better. A lost structure is infinitely far, so its curve never counts it.
#
# ## Pair by pair
#
# Now look at the pairs. **Predict:** take the spread of Dice between the pairs, and the spread of the *difference* NCC − SSD
# between the same pairs. Which is larger, and how many times?
#
# > *My prediction:*

# %%
by_pair = overlap[["NCC", "SSD"]].groupby("pair", sort=False).mean()
difference = by_pair.NCC - by_pair.SSD
print(f"spread between pairs: NCC {by_pair.NCC.std():.4f}, SSD {by_pair.SSD.std():.4f}")
print(f"spread of NCC - SSD:  {difference.std():.4f}")
print(f"that is {by_pair.NCC.std() / difference.std():.1f} times smaller")
assert difference.std() < by_pair.NCC.std()

# %%
figure = Figure(figsize=(8.4, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
limits = (by_pair.min().min() - 0.01, by_pair.max().max() + 0.01)
left.plot(limits, limits, color="#777777", linewidth=1)
left.plot(by_pair.SSD, by_pair.NCC, ".", color="#009E73")
left.set(xlabel="Dice, SSD", ylabel="Dice, NCC", aspect="equal", xlim=limits, ylim=limits)
left.set_title("each pair is a dot; on the line both are equal", fontsize="medium")
ordered = difference.sort_values().to_numpy()
right.vlines(range(len(ordered)), 0, ordered, color="#009E73")
right.axhline(0, color="#777777", linewidth=1)
right.set(xlabel="pairs, in order of the difference", ylabel="Dice, NCC − SSD")
right.set_title("the same pairs, as differences", fontsize="medium")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The difference spreads less; the lines above the figure say how many times less. Some pairs are hard for everybody, say because
# one of the two people has large ventricles. That part is in both numbers and cancels in their difference.
#
# </details>
#
# So the test must be *paired*. The Wilcoxon signed-rank test asks whether the differences lean to one side. It ranks them by
# size, adds the ranks of the positive ones, and assumes no normal distribution. By hand:

# %%
from scipy.stats import rankdata, wilcoxon

from course_utils.evaluation import paired_comparison

ranks = rankdata(difference.abs())
positive, negative = ranks[difference > 0].sum(), ranks[difference < 0].sum()
assert min(positive, negative) == wilcoxon(difference).statistic
print(f"ranks for NCC {positive:.0f}, for SSD {negative:.0f}")
print(f"without a difference, about {ranks.sum() / 2:.0f} each")
print(paired_comparison(tables["NCC"], tables["SSD"], "dice_after"))

# %% [markdown]
# The structures of a pair were averaged first: twenty structures of one deformation are one observation, not twenty. And the
# confidence interval says more than p does, namely *how large* the difference is. With enough pairs, anything is significant.
#
# ## Three ways to fool yourself with these numbers
#
# **1. Many measures.** We look at Dice, HD, HD95, folding and more. **Predict:** six independent tests are made at the 5 % level,
# and there is nothing to find. How likely is it that at least one of them "finds" something?
#
# > *My prediction:*

# %%
generator = np.random.default_rng(session.seed)
nothing_there = generator.uniform(size=(100_000, 6))  # a p-value without an effect is uniform
uncorrected = (nothing_there.min(axis=1) < 0.05).mean()
corrected = (6 * nothing_there.min(axis=1) < 0.05).mean()  # Holm's first step
print(f"at least one p < 0.05: {uncorrected:.1%} of 100 000 imaginary studies")
print(f"by calculation, 1 - 0.95^6 = {1 - 0.95**6:.1%}")
print(f"after Holm's correction: {corrected:.1%}")
assert abs(uncorrected - (1 - 0.95**6)) < 0.01 and corrected < 0.055

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# About a quarter of such studies find something where nothing is: the chance that all six stay silent is only $0.95^6$.
# **Holm's correction** multiplies the smallest p by the number of tests, the next one by one less, and so on, which brings the
# quarter back to 5 %.
#
# </details>
#
# **2. Pairs that share people.** Somebody who is hard to register makes several pairs hard, as the fixed image *and* as the
# moving one. Such pairs are not independent, and p comes out too small. To take the mean over each fixed subject does not cure
# it, because two fixed subjects can still share a moving one. What does cure it is to keep only pairs of which no two
# share anybody:


# %%
def independent(pairs):
    """The names of pairs, taken in their order, of which no two share a subject."""
    seen, chosen = set(), []
    for pair in pairs:
        both_of_them = {pair.fixed.name, pair.moving.name}
        if not both_of_them & seen:
            chosen.append(pair.name)
            seen |= both_of_them
    return chosen


def holm(p):
    """Holm's correction of a column of p-values; they come back in their order."""
    order = p.sort_values().index
    corrected = (p[order] * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
    return corrected[p.index]


alone = independent(test_pairs.pairs)
floor = 2 / 2 ** len(alone)
print(f"{len(alone)} of {len(test_pairs)} pairs share nobody; their p cannot be below {floor:.1g}")

# %%
higher = {"dice_after": True, "hd_mm_after": False, "hd95_mm_after": False}
higher |= {"tre_mm_after": False} if known else {}
higher |= {"folding_percent": False, "sdlogj": False}  # is a higher value better?
kept = {name: table[table.pair.isin(alone)] for name, table in tables.items()}
rows = {}
for column in higher:
    c = paired_comparison(tables["NCC"], tables["SSD"], column)
    strict = paired_comparison(kept["NCC"], kept["SSD"], column)
    row = {"NCC - SSD": c.mean_difference, "low": c.low, "high": c.high, "p": c.p_value}
    rows[column] = row | {"p alone": strict.p_value, "alone": strict.mean_difference}
tests = pd.DataFrame.from_dict(rows, orient="index")
tests["p Holm"], tests["p alone Holm"] = holm(tests.p), holm(tests["p alone"])
tests = tests[[*row, "p Holm", "alone", "p alone", "p alone Holm"]]
assert (tests["p Holm"] >= tests.p).all() and (tests["p alone Holm"] >= tests["p alone"]).all()
with pd.option_context("display.float_format", "{:.2g}".format):
    display(tests)

# %% [markdown]
# The columns called "alone" are of the independent pairs, with a Holm's correction of their own: whoever corrects one column of
# p-values corrects the other one too. Fewer pairs find less. With very few people, no difference could be large enough: the
# printed floor times the number of tests then lies above 0.05, and the honest answer is "too few people to tell".
#
# **3. One training.** All of this compares *these two networks*. A claim about the two *losses* needs several trainings of each.
# **Predict:** train both again from other first weights. Will the difference NCC − SSD change by more than its own size, or by
# less?
#
# > *My prediction:*

# %%
seeds = [session.seed + n for n in ([1] if quick else [1, 2])]
networks = {session.seed: {"NCC": ncc.model, "SSD": ssd.model}}
for seed in seeds:
    again = {"NCC": train(f"ncc_{seed}", "ncc", seed), "SSD": train(f"ssd_{seed}", "ssd", seed)}
    networks[seed] = {name: run.model for name, run in again.items()}
scores = {session.seed: tables} | {
    seed: {name: test(model) for name, model in networks[seed].items()} for seed in seeds
}
reached = {
    seed: {name: summarise(t).loc["overall", ("dice_after", "mean")] for name, t in of.items()}
    for seed, of in scores.items()
}
by_seed = pd.DataFrame(reached).T.rename_axis("seed")
by_seed["NCC - SSD"] = by_seed.NCC - by_seed.SSD
by_seed.round(4)

# %%
losses_apart = by_seed["NCC - SSD"].abs().min()
seeds_apart = (by_seed[["NCC", "SSD"]].max() - by_seed[["NCC", "SSD"]].min()).max()
same_sign = by_seed["NCC - SSD"].gt(0).nunique() == 1
text = f"One loss, another seed: Dice changes by up to {seeds_apart:.4f}. "
text += f"The losses differ by {losses_apart:.4f} at least. "
if same_sign and losses_apart > seeds_apart:
    text += "So the losses differ by more than the seeds do."
elif same_sign:
    text += "The same loss leads with every seed, but by no more than what a seed can do."
else:
    text += "Which loss leads depends on the seed: this difference is none."
display(Markdown(text))

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The sentence above says it for your data. No number of test pairs could have told it, because the p-values treat the two networks
# as given. Only when the losses are further apart than the seeds may one begin to speak of the losses.
#
# </details>
#
# ## When Dice rises and Hausdorff rises too
#
# Student projects report it with surprise: after registration the overlap is better, and the largest distance between the
# borders is *larger* than before. Is that a mistake? **Predict:** take a perfect result and put a single voxel astray, in the
# corner of the image. What are Dice, HD and HD95?
#
# > *My prediction:*

# %%
from course_utils.metrics import dice, hausdorff

truth_label = item["fixed_label"][None].clone()  # (1, 1, *spatial)
value = max(labels, key=lambda v: int((truth_label == v).sum()))  # the largest structure
spoilt = truth_label.clone()
spoilt.view(-1)[0] = value  # one voxel, in the corner of the image
print(f"{labels[value]}, {int((truth_label == value).sum())} voxels, one of them astray")
print(f"Dice {dice(spoilt, truth_label, [value]).item():.4f}")
for percentile in (100, 95):
    far = hausdorff(spoilt, truth_label, [value], spacing, percentile).item()
    print(f"HD{percentile} {far:.1f} mm")
assert dice(spoilt, truth_label, [value]) > 0.998 and far == 0
assert hausdorff(spoilt, truth_label, [value], spacing) > 10

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Dice is still above 0.998 and HD95 is 0, but HD is as far as the corner. Dice is an average over all voxels, and the Hausdorff
# distance is a maximum over the border: *one voxel decides it*, whatever the others do. HD95 forgives the worst twentieth.
#
# </details>
#
# Now the same on our data. Of all pairs and structures, how many gained in Dice and lost in HD?


# %%
def both(table):
    """Rows that gained at least 0.02 Dice while their HD rose by a voxel or more."""
    gained = table.dice_after > table.dice_before + 0.02
    worse = table.hd_mm_after >= table.hd_mm_before + min(spacing)
    return table[gained & worse & np.isfinite(table.hd_mm_after)]


# %%
changes = {}
for name, table in tables.items():
    table = table[np.isfinite(table.hd_mm_before) & np.isfinite(table.hd_mm_after)]
    changes[name] = pd.DataFrame(
        {
            "Dice": table.dice_after - table.dice_before,
            "HD": table.hd_mm_after - table.hd_mm_before,
        }
    )
    count = len(both(table))
    print(f"{name}: both rose in {count} of {len(table)} rows, {count / len(table):.1%}", end="; ")
    print(f"the mean HD changed by {changes[name].HD.mean():+.2f} mm")

# %%
right = max(change.Dice.max() for change in changes.values())
top = 1.3 * max(max(change.HD.max() for change in changes.values()), min(spacing))
figure = Figure(figsize=(8.4, 3.2), layout="constrained")
for axes, (name, change) in zip(figure.subplots(1, 2, sharey=True), changes.items(), strict=True):
    axes.fill_between([0.02, right], min(spacing), top, color="#F0E442", alpha=0.3, linewidth=0)
    axes.plot(change.Dice, change.HD, ".", color=colours[name], markersize=3, alpha=0.6)
    axes.axhline(0, color="#777777", linewidth=1)
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yscale("symlog", linthresh=4)
    axes.set(xlabel="change of Dice", yticks=[-10, -4, -2, 0, 2, 4, 10, 40])
    axes.set(ylim=(min(c.HD.min() for c in changes.values()) - 1, top))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{name}: yellow is where both rose", fontsize="medium")
figure.axes[0].set(ylabel="change of HD (mm)")
figure

# %% [markdown]
# ### Find the voxel
#
# We take the row where HD rose most although Dice rose, and look for the border voxel that is furthest from the other border. Two
# distance maps find it; their maximum is what `metrics.hausdorff` reports.

# %%
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as components

from course_utils.fields import warp


def furthest(a, b):
    """The border voxel of one structure that is furthest from the other's border; its distance in
    mm; and whose it is."""
    borders = [s & ~binary_erosion(s) for s in (a, b)]
    far = [distance_transform_edt(~borders[1 - i], sampling=spacing) * borders[i] for i in (0, 1)]
    side = int(far[1].max() > far[0].max())
    return np.unravel_index(far[side].argmax(), a.shape), far[side].max(), ("moved", "fixed")[side]


def move_label(model, item):
    """moving_label, moved_label and fixed_label of a pair, (*spatial)."""
    keys = ("moving", "fixed", "moving_label", "fixed_label")
    moving, fixed, moving_label, fixed_label = (item[k][None].to(session.device) for k in keys)
    with torch.inference_mode():
        u = model.to(session.device).eval()(moving, fixed).displacement
    moved_label = warp(moving_label, u, mode="nearest", padding="zeros")
    return [x[0, 0].cpu().numpy() for x in (moving_label, moved_label, fixed_label)]


# %%
models = {"NCC": ncc.model, "SSD": ssd.model}
value_of = {name: value for value, name in labels.items()}
number_of = {pair.name: index for index, pair in enumerate(test_pairs.pairs)}


def worst(table):
    """The row whose HD rose most, of those whose Dice rose too if there are any."""
    finite = table[np.isfinite(table.hd_mm_before) & np.isfinite(table.hd_mm_after)]
    rows = both(table) if len(both(table)) else finite
    return rows.loc[(rows.hd_mm_after - rows.hd_mm_before).idxmax()]


worst_rows = {name: worst(table) for name, table in tables.items()}
chosen = max(worst_rows, key=lambda n: worst_rows[n].hd_mm_after - worst_rows[n].hd_mm_before)
row = worst_rows[chosen]
number, value = number_of[row.pair], value_of[row.structure]
before, after, target = (x == value for x in move_label(models[chosen], test_pairs[number]))
voxel, far, owner = furthest(after, target)
assert math.isclose(far, row.hd_mm_after, rel_tol=1e-4)  # the tested version agrees
print(f"{chosen}, {row.structure}: Dice {row.dice_before:.3f} -> {row.dice_after:.3f}")
print(f"HD {row.hd_mm_before:.1f} -> {far:.1f} mm, HD95 {row.hd95_mm_before:.1f} -> ", end="")
print(f"{row.hd95_mm_after:.1f} mm; decided by one voxel of the {owner} border")

# %%
REACH = 48 if dims == 2 else 16  # voxels to each side


def around(volume):
    """What surrounds that voxel, which comes to lie in the middle."""
    padded = np.pad(volume, REACH)
    return padded[tuple(slice(v, v + 2 * REACH + 1) for v in voxel)]


background = around(test_pairs[number]["fixed"][0].numpy())
figure = panel(
    {"before": background, "after": background},
    labels={"before": around(before * value), "after": around(after * value)},
    references={"before": around(target * value), "after": around(target * value)},
    names={value: row.structure},
    at=REACH if dims == 3 else None,
    fill=True,
    title=f"{chosen}: filled the moving structure, dashed the fixed one",
    **cohort.info.view,
)
ring = {"markersize": 26, "markerfacecolor": "none", "markeredgecolor": "white"}
figure.axes[1].plot(REACH, REACH, "o", **ring)
figure

# %% [markdown]
# The ring marks the voxel that makes the number; everything else in the picture could be perfect. What kinds of such voxels are
# there, over all rows in which both rose? Each belongs to the moved or to the fixed structure. And there it belongs either to the
# *main body* (a tip that sticks out, or one that nothing reached) or to an *island*, a piece that is separate from it.


# %%
def bodies(structure):
    """The largest connected piece of a structure."""
    pieces, count = components(structure, np.ones([3] * structure.ndim))
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1 if count else structure


def reason(before, after, target):
    """To what the furthest voxel belongs, and whether HD would rise without islands, too."""
    voxel, _, owner = furthest(after, target)
    main = bodies(after if owner == "moved" else target)[tuple(voxel)]
    mains = [bodies(structure) for structure in (before, after, target)]
    rise = furthest(mains[1], mains[2])[1] - furthest(mains[0], mains[2])[1]
    return f"{owner}, {'main body' if main else 'island'}", rise >= min(spacing)


# %%
KINDS = [f"{owner}, {part}" for owner in ("moved", "fixed") for part in ("main body", "island")]
counted = {name: dict.fromkeys([*KINDS, "of these, also without islands"], 0) for name in tables}
for name, table in tables.items():
    for pair, rows_of_pair in both(table).groupby("pair"):
        volumes = move_label(models[name], test_pairs[number_of[pair]])
        for structure in rows_of_pair.structure:
            kind, still = reason(*(volume == value_of[structure] for volume in volumes))
            counted[name][kind] += 1
            counted[name]["of these, also without islands"] += still
counted = pd.DataFrame.from_dict(counted, orient="index")
counted

# %%
total = int(counted[KINDS].to_numpy().sum())
assert total == sum(len(both(table)) for table in tables.values())
islands = counted[["moved, island", "fixed, island"]].to_numpy().sum()
still = counted["of these, also without islands"].sum()
text = f"Of {total} rows in which both rose, {islands} are decided by a voxel of an island, "
text += f"{counted['fixed, island'].sum()} of them in the *fixed* label map. "
text += f"With the main bodies alone, HD still rises by a voxel or more in {still} rows."
display(Markdown(text))

# %% [markdown]
# The reasons need different answers. A *tip* of the moved structure is the registration's own doing. An island in the *fixed*
# label map often is not: it is noise of the labels, or a piece that the slice cuts from a structure which is connected in space.
# Where the moving person has no such piece, no smoothness of the field helps. And a thin structure loses whole pieces when its
# label map is warped with the nearest neighbour. Label maps must then be cleaned, for both methods and before any result is known,
# or HD95 be quoted beside HD.
#
# ### Make it worse, on purpose
#
# What is the registration's own doing can be provoked. We drop the network and let Adam optimise the field of one pair directly,
# as classical registration does: with and without a penalty on roughness, and either as a free displacement of every voxel or as
# the integral of a velocity (notebook 03). This part needs the true error, so it uses the made subjects on every data set.


# %%
from types import SimpleNamespace

from course_utils.fields import integrate, resize
from course_utils.losses import diffusion_loss, ncc_loss, ssd_loss


def optimise(loss, weight, diffeomorphic=True, steps=40):
    """Registration without a network: the field of one pair, by Adam; a method for `evaluate`."""

    def register(moving, fixed):
        with torch.inference_mode(False), torch.enable_grad():
            moving, fixed, shape = moving.clone(), fixed.clone(), moving.shape[2:]
            size = [n // 2 for n in shape] if diffeomorphic else shape
            v = torch.zeros(1, len(shape), *size, device=moving.device, requires_grad=True)
            adam = torch.optim.Adam([v], lr=0.1 if diffeomorphic else 0.3)
            for _ in range(steps):
                u = resize(integrate(v, 5), shape) if diffeomorphic else v
                energy = loss(warp(moving, u), fixed) + weight * diffusion_loss(v)
                adam.zero_grad()
                energy.backward()
                adam.step()
        return SimpleNamespace(displacement=u.detach())

    return register


# %% [markdown]
# **Predict:** the freest of the four, which has neither penalty nor integral, raises Dice. Does the true error fall as well?
#
# > *My prediction:*

# %%
made = cohort if known else load_slices("synthetic", session.data_root)
made_subjects = subjects if known else load_subjects(made.splits["test"], made.info.recipe)
some = PairDataset(made_subjects, made.pairs("test", count=8), truth=True)
gentle = b.objective["regularisation"]["weight"]
ways = {
    "free": optimise(ssd_loss, 0, diffeomorphic=False),
    "integrated": optimise(ssd_loss, 0),
    "smooth": optimise(ssd_loss, gentle, diffeomorphic=False),
    "smooth, integrated": optimise(ssd_loss, gentle),
}
optimised = {name: test(way, some, made.info) for name, way in ways.items()}
overview(optimised).drop(columns="seconds")

# %%
rows = {}
for name, table in optimised.items():
    overall = summarise(table).loc["overall"].xs("mean", level=1)
    change = {m: overall[f"{m}_after"] - overall[f"{m}_before"] for m in MEASURES[:4]}
    rows[name] = change | {"folded (%)": overall.folding_percent}
effect = pd.DataFrame.from_dict(rows, orient="index")
free, good = effect.loc["free"], effect.loc["smooth, integrated"]
assert free.dice > 0 and free.tre_mm > 0 > good.tre_mm  # more Dice, and a map worse than none
assert free.hd_mm > 1 and free.hd95_mm < 0.6 * free.hd_mm  # HD rises, HD95 much less
assert good.dice > free.dice and good.hd_mm < free.hd_mm and good.hd95_mm < 0
assert max(effect.hd_mm["integrated"], effect.hd_mm["smooth"]) < free.hd_mm  # either helps
assert free["folded (%)"] > 2 > 0.2 > good["folded (%)"]
effect.rename(columns={"tre_mm": "true error (mm)"}).round(2)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No: with *more* Dice than before, the map is *worse than none*. The free field moves each voxel to wherever the grey value
# fits, and tears the structures apart on the way. Dice gains on average, while the largest distance grows by millimetres.
#
# </details>
#
# Either brake helps, and the two together do best. So, in the order in which they should be given, three answers:
#
# 1. **Prevent it** with enough smoothness and a diffeomorphic map. An invertible continuous map cannot cut a piece off; what is
#    left comes from the voxel grid. Islands that were in the labels before remain: clean them.
# 2. **Measure it robustly**, with HD95 beside the maximum.
# 3. **Never hide it.** For a surgeon the worst voxel may be the one that counts, so look at it.
#
# ## What NCC is for
#
# SSD assumes that equal tissue has equal intensity, NCC that it is *locally linear* in it. So let us change the intensities of
# the moving images, as another scanner or sequence would: with a gamma curve, and with the negative, which swaps bright and
# dark.

# %%
contrasts = {
    "as trained": lambda x: x,
    "gamma 0.5": lambda x: x.clamp(min=0) ** 0.5,
    "gamma 2": lambda x: x.clamp(min=0) ** 2,
    "negative": lambda x: torch.where(x > 0, 1 - x, x),
}


def mean_dice(method, change, count):
    """Over the first test pairs, their moving images changed."""
    scores = []
    for item in (test_pairs[index] for index in range(count)):
        keys = ("moving", "fixed", "moving_label", "fixed_label")
        moving, fixed, *maps = (item[key][None].to(session.device) for key in keys)
        with torch.inference_mode():
            u = method(change(moving), fixed).displacement
        moved_label = warp(maps[0], u, mode="nearest", padding="zeros")
        scores.append(dice(moved_label, maps[1], list(labels)).nanmean().item())
    return sum(scores) / count


def identity(moving, fixed):
    return SimpleNamespace(displacement=moving.new_zeros(1, dims, *moving.shape[2:]))


# %%
changed = {f"moving, {name}": change(item["moving"]) for name, change in contrasts.items()}
panel({"fixed": item["fixed"]} | changed, columns=3, **cohort.info.view)

# %% [markdown]
# **Predict:** which of the two *trained networks* copes with the negative? Think twice, because the loss is not there any more.
#
# > *My prediction:*

# %%
COUNT = 20
robust = pd.DataFrame(
    {
        name: {key: mean_dice(net, change, COUNT) for key, change in contrasts.items()}
        for name, net in models.items()
    }
)
nothing = mean_dice(identity, contrasts["as trained"], COUNT)

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
axes.axhline(nothing, color="#777777", linestyle="--", label="before")
for name in models:
    style = {"color": colours[name], "marker": markers[name], "linestyle": "none"}
    axes.plot(robust.index, robust[name], markersize=7, label=name, **style)
axes.set(ylabel=f"mean Dice of {COUNT} pairs", xlabel="intensities of the moving image")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
assert (robust.loc["negative"] < robust.loc["as trained"] - 0.02).all()  # both networks fail
figure

# %%
drop = robust.loc["as trained"] - robust.loc[["gamma 0.5", "gamma 2"]].mean()
text = f"A gamma curve costs the NCC network {drop.NCC:.3f} Dice and the SSD network "
text += f"{drop.SSD:.3f} (means of the two curves). The negative takes them to "
text += f"{robust.NCC['negative']:.3f} and {robust.SSD['negative']:.3f}, where doing nothing has "
text += f"{nothing:.3f}."
display(Markdown(text))

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Neither does; both lose Dice. **A loss makes no network invariant**: it was computed in training, on images of one kind, and the convolutions
# have never met another kind.
#
# </details>
#
# What the loss decides is what can be learnt, or optimised, when the two images do differ. To see that, we use the losses
# themselves: the optimiser from above, smooth and integrated, on the negative.

# %%
few = 4
weights = {name: c.objective["regularisation"]["weight"] for name, c in (("NCC", a), ("SSD", b))}
losses = {"NCC": (ncc_loss, weights["NCC"]), "SSD": (ssd_loss, weights["SSD"])}
shown = pd.DataFrame(
    {
        name: {
            key: mean_dice(optimise(*losses[name]), contrasts[key], few)
            for key in ("as trained", "negative")
        }
        for name in losses
    }
)
shown["before"] = mean_dice(identity, contrasts["as trained"], few)
gain = shown[["NCC", "SSD"]].sub(shown.before, axis=0)
assert gain.NCC.min() > 0.03 and gain.SSD["as trained"] > 0.03
assert gain.SSD["negative"] < 0
shown.round(3)

# %% [markdown]
# There it is. NCC squares the correlation, so bright to dark is as good a line as bright to bright, and the negative can still be
# registered. Only the brain's rim, where the negative meets the black background, misleads it. SSD destroys what alignment there
# was. So use **NCC when the contrast differs between the two images of a pair, and SSD when it does not and every bit of the
# intensity is information.** And if a *network* is to cope with other contrasts, train it on them, with a loss that can tell right
# from wrong there.
#
# ## The same in MONAI
#
# MONAI measures with the same two metrics. They want one channel per structure, and the spacing belongs to the call. Do they
# agree with our table?

# %%
import warnings

from monai.metrics import DiceMetric, HausdorffDistanceMetric
from monai.networks.utils import one_hot

warnings.filterwarnings("ignore", module="monai")  # it warns of empty structures, see below
_, moved, fixed = (torch.as_tensor(x)[None, None] for x in move_label(ncc.model, test_pairs[0]))
classes = max(labels) + 1
channels = [one_hot(x, classes) for x in (moved, fixed)]  # (1, classes, *spatial)
overlaps = DiceMetric(include_background=False, reduction="none")(*channels)[0]
options = {"include_background": False, "reduction": "none"}
farthest = HausdorffDistanceMetric(**options)(*channels, spacing=spacing)[0]

ours = tables["NCC"][tables["NCC"].pair == test_pairs[0]["name"]].set_index("structure")
values = [v - 1 for v in labels]
theirs = pd.DataFrame(
    {"Dice": overlaps[values], "HD": farthest[values]}, index=list(labels.values())
)
there = np.isfinite(ours.hd_mm_after)  # in both images
assert np.allclose(theirs.Dice[there], ours.dice_after[there], atol=1e-5)
assert np.allclose(theirs.HD[there], ours.hd_mm_after[there], atol=1e-3)
print(f"{there.sum()} structures: the same Dice, and the same HD in mm")

# %% [markdown]
# They agree to the last digits. Now let a structure vanish from the moved image, which is the worst that can happen to it.
# **Predict:** what does that do to MONAI's mean HD95 of this pair?
#
# > *My prediction:*

# %%
far95 = ours.hd95_mm_after.where(there, 0)
gone = value_of[far95.idxmax()]  # the structure that was furthest off
lost = channels[0].clone()
lost[:, gone] = 0
means = {}
for percentile in (95, None):
    for name, prediction in (("all there", channels[0]), ("one lost", lost)):
        options = {"include_background": False, "percentile": percentile, "reduction": "mean"}
        metric = HausdorffDistanceMetric(**options)
        metric(prediction, channels[1], spacing=spacing)
        means[percentile, name] = metric.aggregate().item()
        print(f"percentile {percentile}, {name}: mean {means[percentile, name]:.2f} mm")
assert means[95, "one lost"] < means[95, "all there"]
assert means[None, "one lost"] == math.inf

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The mean HD95 gets *better*. With a percentile, MONAI answers "not a number" for a structure that one image lacks, and its mean
# leaves that out. Without a percentile the distance is infinite, and the mean says so.
#
# </details>
#
# To be fair, MONAI warns that the prediction of a class is empty; this page has silenced it, as many a long run does. It is a
# choice, and the documentation of any metric should make you look for it: what does it say of a structure that is lost? Test a
# metric with such a case before you trust its mean. The course's table keeps the infinity and counts it as *lost*.
#
# ## The verdict
#
# It is computed, not written. For each measure, a network is better if the interval excludes zero and Holm's p is below 0.05. The
# last column says whether the independent pairs alone, with Holm's correction, say so too.

# %%
UNITS = dict.fromkeys(("hd_mm_after", "hd95_mm_after", "tre_mm_after"), "mm")
UNITS["folding_percent"] = "% of voxels"


def winner(column):
    """NCC, SSD or nobody."""
    t = tests.loc[column]
    if t["p Holm"] >= 0.05 or t.low <= 0 <= t.high:
        return "nobody"
    return "NCC" if (t["NCC - SSD"] > 0) == higher[column] else "SSD"


def confirmed(column):
    """What the independent pairs say of a winner."""
    t = tests.loc[column]
    if winner(column) == "nobody":
        return ""
    if floor * len(tests) >= 0.05:
        return f"{len(alone)} pairs are too few"
    agrees = t["p alone Holm"] < 0.05 and (t.alone > 0) == (t["NCC - SSD"] > 0)
    return "yes" if agrees else "no"


# %%
head = ["measure", "better", "NCC − SSD", "95 % interval", f"the {len(alone)} independent pairs"]
lines = [head, ["---"] * len(head)]
for column, t in tests.iterrows():
    apart = f"{t['NCC - SSD']:+.3f} {UNITS.get(column, '')}"
    interval = f"{t.low:+.3f} to {t.high:+.3f}"
    lines.append(
        [column.removesuffix("_after"), winner(column), apart, interval, confirmed(column)]
    )
display(Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines)))

# %%
judges = ["dice_after"] + (["tre_mm_after"] if known else [])
winners = {column.removesuffix("_after"): winner(column) for column in judges}
text = "On this data, after this training, "
if set(winners.values()) == {"nobody"}:
    text += "neither network is shown to be better. "
elif len(set(winners.values())) == 1:
    text += f"the network trained with **{winners['dice']}** registers better. "
else:
    text += f"the judges disagree: {' and '.join(f'{j} for {w}' for j, w in winners.items())}. "
text += f"The Dice of the two differs by {abs(tests['NCC - SSD'].dice_after):.3f}; over doing "
text += f"nothing, NCC gains {gains['NCC']:.3f} and SSD {gains['SSD']:.3f}. "
rougher = max(mean, key=lambda name: mean[name].sdlogj)
ratio = mean[rougher].sdlogj / min(of.sdlogj for of in mean.values())
text += f"The fields of {rougher} are rougher, by a factor of {ratio:.2f} in SDlogJ. "
if ratio > 1.05 and rougher == winners["dice"]:
    text += "A rougher field reaches overlap more easily, so a part of its lead may be owed to its "
    text += "weight of the smoothness. "
text += "The second training agrees." if same_sign else "The second training does not agree."
display(Markdown(f"**Verdict.** {text}"))

# %% [markdown]
# What is the verdict worth? It holds for *this* data, these steps and these weights of the smoothness. The images of `oasis2d`
# and the made subjects have been brought to one intensity scale, which is what SSD needs; NCC would be ahead where scanners
# differ. Now you know how to find out.
#
# ## What you now have
#
# - Two networks, a fair comparison, and a verdict that follows from a table.
# - A habit: paired tests on pair means, an interval beside every p, Holm for many measures, people counted, seeds counted.
# - An explanation of the Hausdorff distance that rises: one voxel decides it. You know what prevents, measures and shows it.
# - What NCC is for: it makes no robust network, but it is a loss that knows right from wrong when contrasts differ.
#
# **What can go wrong.** Choosing the network on the test pairs. Tuning one method more than the other. Averaging over
# structures that vanished. Ten structures counted as ten observations. Pairs that share people counted as independent. A
# significant difference that is too small to matter. A difference between two runs taken for one between two losses.
#
# **Try it.**
# 1. *(easy)* Run this page on other data: `COURSE_DATASET=hippocampus`, or `synthetic`. Is the verdict the same? Predict it
#    first, from what NCC forgives.
# 2. *(middle)* The weights of the smoothness are defaults. Train each loss with a third and with three times its weight, and
#    choose each weight on the validation pairs. Does the verdict survive?
# 3. *(middle)* Give both networks the labels (`dice_weight=0.5`, `labels=list(labels)`). What is left of the difference?
# 4. *(hard)* Train both with the moving images' contrast drawn at random: write a data set around `train_pairs` that applies a
#    random gamma, or the negative. Repeat the contrast experiment. Which network copes with the negative now, and why?
#
# **References.** Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical image registration*, IEEE TMI
# 38(8), 2019, [doi:10.1109/TMI.2019.2897538](https://doi.org/10.1109/TMI.2019.2897538). Avants et al., *Symmetric diffeomorphic
# image registration with cross-correlation*, Medical Image Analysis 12(1), 2008,
# [doi:10.1016/j.media.2007.06.004](https://doi.org/10.1016/j.media.2007.06.004). Wilcoxon, *Individual comparisons by ranking
# methods*, Biometrics Bulletin 1(6), 1945, [doi:10.2307/3001968](https://doi.org/10.2307/3001968). Holm, *A simple sequentially
# rejective multiple test procedure*, Scandinavian Journal of Statistics 6(2), 1979. Huttenlocher et al., *Comparing images using
# the Hausdorff distance*, IEEE TPAMI 15(9), 1993, [doi:10.1109/34.232073](https://doi.org/10.1109/34.232073). Maier-Hein et al.,
# *Metrics reloaded: recommendations for image analysis validation*, Nature Methods 21, 2024,
# [doi:10.1038/s41592-023-02151-z](https://doi.org/10.1038/s41592-023-02151-z). Marcus et al., *Open Access Series of Imaging
# Studies (OASIS)*, Journal of Cognitive Neuroscience 19(9), 2007,
# [doi:10.1162/jocn.2007.19.9.1498](https://doi.org/10.1162/jocn.2007.19.9.1498).
#
# This is the end of the first part: you can build, train, measure and judge. Next: [08 Teaching](08_teaching.ipynb), for
# those who give assignments. Or go straight to the data of a challenge, [09 Learn2Reg](09_learn2reg.ipynb).
