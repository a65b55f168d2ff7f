# %% [markdown]
# # 07 NCC against SSD
#
# Two networks, equal in everything but one line: what "similar" means. Which one registers better, by how much, and how
# sure may one be? You train both, measure them on 50 pairs of subjects that neither has seen, compare them pair by pair,
# and let the page compute its verdict. On the way you meet the questions a reviewer would ask: the spread between pairs,
# six tests on one data set, pairs that share subjects, a single seed, and a Hausdorff distance that gets *worse* where
# the overlap gets better.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 5 | 30 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/07_ncc_against_ssd.ipynb)

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

session = start()
print(session)

# %% [markdown]
# ## The rules, before any number
#
# A comparison is fair if only the thing compared differs. Same network, same first weights, same pairs in the same order,
# same number of steps, same learning rate. One thing cannot be the same: the weight of the smoothness, because the two
# losses live on different scales (notebook 05). Each has the default that was tuned for it, on other subjects than those
# we test on.
#
# **Predict before you run,** and write it down: which of the two has the higher Dice? Which the lower true error? Which
# folds more?

# %%
from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects

cohort = load_cohort(session.dataset)
cache = session.data_root / "cache" / "oasis" if session.dataset == "oasis" else "memory"
subjects = load_subjects(cohort.subjects, cohort.info.recipe, cache)
cohort = cohort.without(subjects.failed)

known = session.dataset == "synthetic"  # the cohort whose true deformations are known
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.pairs("val", count=min(10, len(cohort.splits["val"]))))
test_pairs = PairDataset(subjects, cohort.pairs("test", count=50, seed=session.seed), truth=known)

tested = {subject for pair in test_pairs.pairs for subject in (pair.fixed, pair.moving)}
assert not tested & {*cohort.splits["train"], *cohort.splits["val"]}  # nobody on two sides
assert len({pair.name for pair in test_pairs.pairs}) == 50
sizes = {split: len(members) for split, members in cohort.splits.items()}
print(f"subjects: {sizes}; tested on {len(test_pairs)} pairs of {len(tested)} subjects")

# %% [markdown]
# ## Two trainings
#
# Notebook 06 explained `fit`. Each run gets a folder of its own, emptied first.

# %%
import math
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

STEPS = 400 if session.profile == "quick" else 10000


def train(name, similarity, seed=session.seed):
    """Train a VoxelMorph from the first weights of a seed, in a folder of that name; a `Result`."""
    out = session.runs / "ncc_against_ssd" / name
    shutil.rmtree(out, ignore_errors=True)
    network = NetworkSpec("voxelmorph", {"spatial_dims": len(cohort.info.shape)}).build(seed)
    objective, config = pair_objective(similarity), TrainConfig(steps=STEPS)
    card, device = cohort.info.card(), session.device
    return fit(network, objective, train_pairs, val_pairs, out, config, card=card, device=device)


ncc = train("ncc", "ncc")
ssd = train("ssd", "ssd")

# %% [markdown]
# What differs? We do not promise it, we look.

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
for name, run in (("NCC", ncc), ("SSD", ssd)):
    curve = run.history.dropna(subset="validation_dice")
    axes.plot(
        curve.step, curve.validation_dice, "o-", color=colours[name], markersize=4, label=name
    )
axes.set(xlabel="step", ylabel="mean Dice of the validation pairs")
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
# One call per network, one row per pair and structure. "Before" is in the same table: what doing nothing scores.

# %%
from course_utils.evaluation import evaluate

labels, spacing = dict(cohort.info.labels), cohort.info.spacing


def test(model, pairs=test_pairs):
    return evaluate(model, pairs, labels, spacing, device=session.device)


tables = {"NCC": test(ncc.model), "SSD": test(ssd.model)}
tables["NCC"].head(3).round(3)

# %%
import pandas as pd

from course_utils.evaluation import summarise


def line(table, side):
    """Mean ± spread over pairs of every measure, and how many structures were lost."""
    overall = summarise(table).loc["overall"]
    cells = {}
    for measure in ("dice", "hd_mm", "hd95_mm", "tre_mm", "folding_percent", "sdlogj", "seconds"):
        column = f"{measure}_{side}" if f"{measure}_{side}" in overall else measure
        if column in overall and not (side == "before" and column == measure):
            mean, spread = overall[column]["mean"], overall[column]["std"]
            cells[measure] = (
                f"{mean:.3f} ± {spread:.3f}" if mean < 1.5 else f"{mean:.1f} ± {spread:.1f}"
            )
    return cells | {"lost": int(overall[f"hd_mm_{side}"]["lost"])}


def overview(tables):
    first = next(iter(tables.values()))
    rows = {"before": line(first, "before")} | {
        name: line(table, "after") for name, table in tables.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


overview(tables)

# %% [markdown]
# Read the columns together, never one alone.
#
# - **Dice**: overlap of the structures. **HD, HD95**: the worst and nearly the worst distance between their borders, mm.
# - **TRE**, where the truth is known: how far the map itself is off, mm, inside the brain. It also counts where no label
#   has a border.
# - **Folding, SDlogJ**: what was paid for it. A field can reach any Dice if it may tear.
# - **Lost**: structures that vanished. Their distance is infinite; a mean over the others must not hide it.

# %%
mean = {name: table.mean(numeric_only=True) for name, table in tables.items()}
for name, of in mean.items():
    assert of.dice_after > of.dice_before + 0.03 and of.hd95_mm_after < of.hd95_mm_before, name
    assert of.folding_percent < 0.5, name
    if known:
        assert of.tre_mm_after < 0.95 * of.tre_mm_before, name
print(
    "both are better than nothing: Dice by more than 0.03, HD95 lower, under 0.5 % of voxels folded"
)

# %% [markdown]
# Structure by structure, every pair a dot:

# %%
from course_utils.plotting import boxes

boxes({"before": tables["NCC"], **tables}, "dice")

# %%
boxes({"before": tables["NCC"], **tables}, "hd95_mm")

# %% [markdown]
# The boxes of the two networks overlap widely. Does that mean there is no difference?
#
# ## Pair by pair
#
# **Predict:** the spread of Dice between pairs, and the spread of the *difference* NCC − SSD between the same pairs. Which
# is larger, and how many times?

# %%
by_pair = pd.DataFrame(
    {name: table.groupby("pair").dice_after.mean() for name, table in tables.items()}
)
difference = by_pair.NCC - by_pair.SSD
print(
    f"spread between pairs: NCC {by_pair.NCC.std():.3f}, SSD {by_pair.SSD.std():.3f}; of NCC - SSD "
    f"{difference.std():.3f}"
)
assert difference.std() < by_pair.NCC.std()

figure = Figure(figsize=(8.4, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
left.axline((0.6, 0.6), slope=1, color="#777777", linewidth=1)
left.plot(by_pair.SSD, by_pair.NCC, ".", color="#009E73")
left.set(
    xlabel="Dice, SSD",
    ylabel="Dice, NCC",
    aspect="equal",
    title="each pair a dot, equal on the line",
)
left.set(xlim=(by_pair.min().min() - 0.01, by_pair.max().max() + 0.01))
left.set(ylim=left.get_xlim())
right.hist(difference, bins=15, color="#009E73")
right.axvline(0, color="#777777", linewidth=1)
right.set(xlabel="Dice, NCC − SSD", ylabel="pairs", title="the same, as differences")
figure

# %% [markdown]
# Some pairs are hard for everybody. That part cancels in the difference, and a small effect shows. So the test is
# *paired*: the Wilcoxon signed-rank test asks whether the differences lean to one side. It ranks them by size and adds the
# ranks of the positive ones; no normal distribution is assumed. By hand:

# %%
from scipy.stats import rankdata, wilcoxon

from course_utils.evaluation import paired_comparison

ranks = rankdata(difference.abs())
positive, negative = ranks[difference > 0].sum(), ranks[difference < 0].sum()
assert min(positive, negative) == wilcoxon(difference).statistic
print(
    f"ranks for NCC {positive:.0f}, for SSD {negative:.0f}; without a difference about "
    f"{ranks.sum() / 2:.0f} each"
)
print(paired_comparison(tables["NCC"], tables["SSD"], "dice_after"))

# %% [markdown]
# The structures of a pair were averaged first: ten structures of one deformation are one observation, not ten. And the
# confidence interval says more than p: *how large* the difference is. With enough pairs anything is significant.
#
# ### Three ways to fool yourself with these numbers
#
# **1. Many measures.** Six tests at 5 % find something in about a quarter of all cases where nothing is. Holm's correction
# multiplies the smallest p by the number of tests, the next by one less, and so on.
#
# **2. Pairs that share subjects.** A subject that is hard to register is in several pairs; they are not independent, and p
# comes out too small. A stricter count takes each *fixed subject* as one observation.

# %%
import numpy as np
from IPython.display import Markdown, display

higher = {"dice_after": True, "hd_mm_after": False, "hd95_mm_after": False}
higher |= {"tre_mm_after": False} if known else {}
higher |= {"folding_percent": False, "sdlogj": False}  # is a higher value better?


def by_subject(table, column):
    """Means over the pairs of each fixed subject."""
    finite = table[~table[column].isin([math.inf])]
    return finite.groupby(finite.pair.str.split("_to_").str[1])[column].mean()


# %%
rows = {}
for column in higher:
    c = paired_comparison(tables["NCC"], tables["SSD"], column)
    of_subjects = by_subject(tables["NCC"], column) - by_subject(tables["SSD"], column)
    p_subjects = wilcoxon(of_subjects).pvalue if of_subjects.any() else 1.0
    rows[column] = {
        "NCC - SSD": c.mean_difference,
        "low": c.low,
        "high": c.high,
        "p": c.p_value,
        "p subjects": p_subjects,
    }
tests = pd.DataFrame.from_dict(rows, orient="index")
order = tests.p.sort_values().index
tests["p Holm"] = (
    (tests.p[order] * np.arange(len(order), 0, -1)).cummax().clip(upper=1)
)  # by the index
tests["subjects"] = len(of_subjects)
print(
    f"chance of at least one p < 0.05 in {len(tests)} independent tests of nothing: "
    f"{1 - 0.95 ** len(tests):.0%}"
)
print(
    f"with {len(of_subjects)} subjects, 'p subjects' cannot be below "
    f"{2 / 2 ** len(of_subjects):.2g}"
)
with pd.option_context("display.float_format", "{:.2g}".format):
    display(tests)

# %% [markdown]
# **3. One seed.** Everything above compares *these two networks*. Trained again from other first weights, each would come out
# a little different, and no number of test pairs tells by how much. A claim about the two *losses* needs several trainings
# of each; the full profile makes three. In the quick profile, run this yourself with another seed:

# %%
seeds = [] if session.profile == "quick" else [1, 2]
differences = {session.seed: difference.mean()}
for seed in seeds:
    again = {s: test(train(f"{s}_seed{seed}", s, seed).model) for s in ("ncc", "ssd")}
    differences[seed] = paired_comparison(again["ncc"], again["ssd"], "dice_after").mean_difference
for seed, value in differences.items():
    print(f"seed {seed}: Dice of NCC - SSD {value:+.4f}")
if not seeds:
    print("one training of each: this page says which network is better, not yet which loss")

# %% [markdown]
# ## When Dice rises and Hausdorff rises too
#
# Student projects report it with surprise: after registration the overlap is better, and the largest distance between the
# borders is *larger* than before. A mistake? Take a perfect result and spoil a single voxel. **Predict:** Dice, HD and HD95.

# %%
from course_utils.metrics import dice, hausdorff

item = test_pairs[0]
truth_label = item["fixed_label"][None]  # (1, 1, *spatial)
value = max(labels, key=lambda v: int((truth_label == v).sum()))  # the largest structure
spoilt = truth_label.clone()
spoilt.view(-1)[0] = value  # one voxel, in the corner of the image
print(f"{labels[value]}, {int((truth_label == value).sum())} voxels, one of them astray")
print(f"Dice {dice(spoilt, truth_label, [value]).item():.4f}")
for percentile in (100, 95):
    distance = hausdorff(spoilt, truth_label, [value], spacing, percentile).item()
    print(f"HD{percentile} {distance:.1f} mm")
assert dice(spoilt, truth_label, [value]) > 0.998 and distance == 0
assert hausdorff(spoilt, truth_label, [value], spacing) > 10

# %% [markdown]
# Dice is an average over all voxels, the Hausdorff distance a maximum over the border: *one voxel decides it*, whatever the
# others do. HD95 forgives the worst twentieth. Now the same on our data: of all pairs and structures, how many gained in
# Dice and lost in HD?


# %%
def both(table):
    """Rows that gained at least 0.02 Dice while their HD rose by a voxel or more."""
    gained = table.dice_after > table.dice_before + 0.02
    return table[
        gained
        & (table.hd_mm_after >= table.hd_mm_before + min(spacing))
        & (table.hd_mm_after < math.inf)
    ]


# %%
figure = Figure(figsize=(8.4, 3.2), layout="constrained")
for axes, (name, table) in zip(figure.subplots(1, 2, sharey=True), tables.items(), strict=True):
    gain, worse = table.dice_after - table.dice_before, table.hd_mm_after - table.hd_mm_before
    axes.axhspan(0, 100, color="#F0E442", alpha=0.25, linewidth=0)
    axes.plot(gain, worse, ".", color=colours[name], markersize=3, alpha=0.6)
    axes.axhline(0, color="#777777", linewidth=1)
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set(
        xlabel="change of Dice",
        title=f"{name}: both rose in {len(both(table)) / len(table):.1%} of the rows",
    )
    print(
        f"{name}: {len(both(table))} of {len(table)} pairs and structures; mean HD "
        f"{worse.mean():+.2f} mm"
    )
low, high = (
    f(t.hd_mm_after.sub(t.hd_mm_before).agg(f.__name__) for t in tables.values())
    for f in (min, max)
)
axes.set(ylim=(low - 1, high + 1))
figure.axes[0].set(ylabel="change of HD (mm)")
figure

# %% [markdown]
# ### Find the voxel
#
# We take the row where HD rose most, and look for the border voxel that is furthest from the other border. Two distance
# maps do it; their maximum is what `metrics.hausdorff` reports.

# %%
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.ndimage import label as components

from course_utils.fields import warp


def furthest(a, b):
    """The border voxel of either structure that is furthest from the other's border, and that
    distance in mm."""
    borders = [s & ~binary_erosion(s) for s in (a, b)]
    far = [distance_transform_edt(~borders[1 - i], sampling=spacing) * borders[i] for i in (0, 1)]
    side = int(far[1].max() > far[0].max())
    return np.unravel_index(far[side].argmax(), a.shape), far[side].max(), ("moved", "fixed")[side]


def move_label(model, item):
    """moving_label, moved_label and fixed_label of a pair, (*spatial)."""
    moving, fixed, moving_label, fixed_label = (
        item[key][None].to(session.device)
        for key in ("moving", "fixed", "moving_label", "fixed_label")
    )
    with torch.inference_mode():
        u = model.to(session.device).eval()(moving, fixed).displacement
    moved_label = warp(moving_label, u, mode="nearest", padding="zeros")
    return [x[0, 0].cpu().numpy() for x in (moving_label, moved_label, fixed_label)]


# %%
models = {"NCC": ncc.model, "SSD": ssd.model}
value_of = {name: value for value, name in labels.items()}
pair_items = {pair.name: index for index, pair in enumerate(test_pairs.pairs)}


def worst(name, table):
    """The row whose HD rose most although its Dice rose, and its labels as three masks."""
    rows = both(table) if len(both(table)) else table
    row = rows.loc[(rows.hd_mm_after - rows.hd_mm_before).idxmax()]
    volumes = move_label(models[name], test_pairs[pair_items[row.pair]])
    return row, [volume == value_of[row.structure] for volume in volumes]


chosen = max(
    tables,
    key=lambda name: (both(tables[name]).hd_mm_after - both(tables[name]).hd_mm_before).max(),
)
row, (before, after, target) = worst(chosen, tables[chosen])
voxel, distance, owner = furthest(after, target)
assert math.isclose(distance, row.hd_mm_after, rel_tol=1e-4)  # the tested version agrees
print(f"{chosen}, {row.structure}: Dice {row.dice_before:.3f} -> {row.dice_after:.3f}", end=", ")
print(
    f"HD {row.hd_mm_before:.1f} -> {row.hd_mm_after:.1f} mm, HD95 {row.hd95_mm_before:.1f} -> "
    f"{row.hd95_mm_after:.1f} mm"
)
print(f"decided by one voxel of the {owner} border, {tuple(map(int, voxel))}")

# %%
from course_utils.plotting import panel

k = int(voxel[1]) if target.ndim == 3 else None  # the coronal slice through that voxel
background = test_pairs[pair_items[row.pair]]["fixed"]
value = value_of[row.structure]
figure = panel(
    {"before": background, "after": background},
    labels={"before": before * value, "after": after * value},
    references={"before": target * value, "after": target * value},
    names={value: row.structure},
    at=k,
    spacing=spacing,
    title=f"{chosen}: solid the moving structure, dashed the fixed one",
)
for axes in figure.axes[:2]:
    axes.set(xlim=(voxel[0] - 14, voxel[0] + 14), ylim=(voxel[-1] - 14, voxel[-1] + 14))
figure.axes[1].plot(
    voxel[0], voxel[-1], "o", markersize=28, markerfacecolor="none", markeredgecolor="white"
)
figure

# %% [markdown]
# The circle marks the voxel that makes the number; everything else in the picture could be perfect. What kinds of such
# voxels are there, over all the rows in which both rose? It belongs to the moved or to the fixed structure, and there either
# to the *main body* (a tip that hangs out, or that nothing reached) or to an *island*, a piece apart from it. Thin structures
# break into islands on a coarse grid, and a warp with the nearest neighbour makes and loses some.


# %%
def reason(after, target):
    """To what the furthest voxel belongs."""
    voxel, _, owner = furthest(after, target)
    pieces, _ = components(after if owner == "moved" else target, np.ones([3] * after.ndim))
    main = np.bincount(pieces.ravel())[1:].argmax() + 1
    return f"{owner}, {'main body' if pieces[tuple(voxel)] == main else 'island'}"


def reasons(name, table):
    """How many rows rose in both, by reason."""
    counts = {
        f"{owner}, {part}": 0 for owner in ("moved", "fixed") for part in ("main body", "island")
    }
    for pair, rows in both(table).groupby("pair"):
        _, moved_label, fixed_label = move_label(models[name], test_pairs[pair_items[pair]])
        for structure in rows.structure:
            counts[
                reason(moved_label == value_of[structure], fixed_label == value_of[structure])
            ] += 1
    assert sum(counts.values()) == len(both(table))
    return {"share of rows (%)": 100 * len(both(table)) / len(table)} | counts


counted = {name: reasons(name, table) for name, table in tables.items()}
pd.DataFrame.from_dict(counted, orient="index").round(1)

# %% [markdown]
# ### Make it worse, on purpose
#
# Where the cause is single voxels of the *moved* structure that go their own way, a field that may do as it likes should have many
# of them. (An island in the *fixed* label map is noise of the labels. No smoothness cures that.) We drop
# the network and let Adam optimise the field of one pair directly, as classical registration does; with and without a
# penalty on roughness, and either as a free displacement of every voxel or as the integral of a velocity (notebook 03).
# **Predict** for the freest of the four: Dice, HD, HD95, and the true error.

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


# %%
gentle = b.objective["regularisation"]["weight"]
some = PairDataset(subjects, test_pairs.pairs[:10], truth=known)
ways = {
    "free": optimise(ssd_loss, 0, diffeomorphic=False),
    "integrated": optimise(ssd_loss, 0),
    "smooth": optimise(ssd_loss, gentle, diffeomorphic=False),
    "smooth, integrated": optimise(ssd_loss, gentle),
}
optimised = {name: test(way, some) for name, way in ways.items()}
overview(optimised)

# %%
rows = {}
for name, table in optimised.items():
    kept = table[table.hd_mm_after < math.inf]
    change = {
        c: (kept[f"{c}_after"] - kept[f"{c}_before"]).mean() for c in ("dice", "hd_mm", "hd95_mm")
    }
    change["both rose (% of rows)"] = 100 * len(both(table)) / len(table)
    rows[name] = change | {"folded (%)": table.folding_percent.mean()}
effect = pd.DataFrame.from_dict(rows, orient="index")
free, good = effect.loc["free"], effect.loc["smooth, integrated"]
assert good.dice > free.dice and good.hd_mm < free.hd_mm and good.hd95_mm < free.hd95_mm
assert max(effect.hd_mm["integrated"], effect.hd_mm["smooth"]) < free.hd_mm  # either helps
assert free["folded (%)"] > 2 > 0.2 > good["folded (%)"]
if known:
    assert (
        free.dice > 0 and free.hd_mm > 1 and free.hd95_mm < 0.6 * free.hd_mm
    )  # Dice rises, HD too, HD95 much less
    assert good.hd95_mm < 0 and free["both rose (% of rows)"] > 1.5 * good["both rose (% of rows)"]
    error = {name: (t.tre_mm_after - t.tre_mm_before).mean() for name, t in optimised.items()}
    assert error["free"] > 0 > error["smooth, integrated"]  # more Dice, and a map worse than none
    effect["true error (mm)"] = pd.Series(error)
effect.round(2)

# %% [markdown]
# The free field gains Dice and tears the structures: the largest distance grows by millimetres. Where the truth is known,
# look at the true error: with *more* Dice than before, the map is *worse than none*. Either brake helps, and the two together
# do best. So, in the order in which they should be given, three answers:
#
# 1. **Prevent it**: enough smoothness, and a diffeomorphic map. An invertible continuous map cannot cut an island off; what
#    is left comes from the voxel grid.
# 2. **Measure it robustly**: HD95 beside the maximum.
# 3. **Never hide it**: for a surgeon the worst voxel may be the one that counts. Look at it.
#
# (Did you see that the optimiser beats our networks in overlap? It takes its time for each pair, and our networks had a few
# hundred steps. Notebook 10 compares the two, and lets one go on where the other stops.)
#
# ## What NCC is for
#
# SSD assumes that equal tissue has equal intensity; NCC that it is *locally linear* in it. So let us change the intensities
# of the moving images, as another scanner or sequence would: a gamma curve, and the negative, which swaps bright and dark.
# **Predict:** which of the two *trained networks* copes with it better? Think twice: the loss is not there any more.

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
        moving, fixed, *both_labels = (
            item[key][None].to(session.device)
            for key in ("moving", "fixed", "moving_label", "fixed_label")
        )
        with torch.inference_mode():
            u = method(change(moving), fixed).displacement
        moved_label = warp(both_labels[0], u, mode="nearest", padding="zeros")
        scores.append(dice(moved_label, both_labels[1], list(labels)).nanmean().item())
    return sum(scores) / count


def identity(moving, fixed):
    return SimpleNamespace(
        displacement=torch.zeros(1, moving.ndim - 2, *moving.shape[2:], device=moving.device)
    )


# %%
item = test_pairs[0]
panel(
    {"fixed": item["fixed"]}
    | {f"moving, {name}": change(item["moving"]) for name, change in contrasts.items()},
    columns=5,
)

# %%
COUNT = 20
networks = {"NCC": ncc.model, "SSD": ssd.model}
robust = pd.DataFrame(
    {
        name: {key: mean_dice(net, change, COUNT) for key, change in contrasts.items()}
        for name, net in networks.items()
    }
)
nothing = mean_dice(identity, contrasts["as trained"], COUNT)

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.subplots()
axes.axhline(nothing, color="#777777", linestyle="--", label="before")
for name in ("NCC", "SSD"):
    axes.plot(robust.index, robust[name], "o-", color=colours[name], label=name)
axes.set(ylabel=f"mean Dice of {COUNT} pairs", xlabel="intensities of the moving image")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
assert (robust.loc["negative"] < robust.loc["as trained"] - 0.02).all()  # both networks fail
if known:
    drop = robust.loc["as trained"] - robust.loc[["gamma 0.5", "gamma 2"]].mean()
    assert drop.NCC < drop.SSD and (robust.loc["negative"] < nothing).all()
figure

# %% [markdown]
# Under a gamma curve the network trained with NCC keeps more of its gain: what the loss ignored in training, the network had
# no reason to rely on. But on the negative both are worse than doing nothing. **A loss makes no network invariant**: it was
# computed in training, on images of one kind, and the convolutions never met another. What it decides is what can be learnt, or
# optimised, when the two images do differ. To see it, use the loss itself: the optimiser from above, smooth and integrated, on
# the negative.

# %%
losses = {"NCC": (ncc_loss, a.objective["regularisation"]["weight"]), "SSD": (ssd_loss, gentle)}
few = 4
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
# There it is. NCC squares the correlation: bright to dark is as good a line as bright to bright, and the negative still
# registers; only the brain's rim, where the negative meets the black background, misleads it. SSD destroys what alignment
# there was. So: **NCC when the contrast differs between the two images
# of a pair, SSD when it does not and every bit of it is information.** And if a *network* is to cope with other contrasts, train
# it on them (with NCC, so that the loss can tell right from wrong).
#
# ## The verdict
#
# Computed, not written: for each measure who is better, if the interval excludes zero and Holm's p is below 0.05; and
# whether the fixed subjects as observations say so too.

# %%
UNITS = {
    "hd_mm_after": "mm",
    "hd95_mm_after": "mm",
    "tre_mm_after": "mm",
    "folding_percent": "% of voxels",
}


def winner(column):
    """NCC, SSD or nobody."""
    t = tests.loc[column]
    if t["p Holm"] >= 0.05 or t.low <= 0 <= t.high:
        return "nobody"
    return "NCC" if (t["NCC - SSD"] > 0) == higher[column] else "SSD"


# %%
lines = [
    "| measure | better | NCC − SSD | 95 % interval | by subjects too |",
    "|---|---|---|---|---|",
]
for column, t in tests.iterrows():
    unit = UNITS.get(column, "")
    agrees = "yes" if t["p subjects"] < 0.05 else "no"
    cells = (
        f"{t['NCC - SSD']:+.3f} {unit} | {t.low:+.3f} to {t.high:+.3f} | "
        f"{agrees if winner(column) != 'nobody' else ''}"
    )
    lines.append(f"| {column.removesuffix('_after')} | {winner(column)} | {cells} |")
    best = (mean["NCC"][column] > mean["SSD"][column]) == higher[column]
    assert winner(column) in ("nobody", "NCC" if best else "SSD")  # never against the means
display(Markdown("\n".join(lines)))

# %%
judges = ["dice_after"] + (["tre_mm_after"] if known else [])
winners = {winner(column) for column in judges}
gap = tests["NCC - SSD"].abs()
sizes = f"Dice differs by {gap.dice_after:.3f}" + (
    f", the true error by {gap.tre_mm_after:.2f} mm" if known else ""
)
gains = {name: of.dice_after - of.dice_before for name, of in mean.items()}
if winners == {"nobody"}:
    text = f"On this data, after this training, neither network is shown to be better: {sizes}."
elif len(winners) == 1:
    text = (
        "On this data, after this training, the network trained with "
        f"**{winners.pop()}** registers better: {sizes}."
    )
else:
    said = " and ".join(
        f"{column.removesuffix('_after')} for {winner(column)}" for column in judges
    )
    text = f"The judges disagree: {said} ({sizes})."
text += f" Over doing nothing, NCC gains {gains['NCC']:.3f} Dice and SSD {gains['SSD']:.3f}."
display(Markdown(f"**Verdict.** {text}"))

# %% [markdown]
# Was your prediction right? And what is the verdict worth? It holds for *this* data, these steps, these weights of the
# smoothness, and one training of each. The built-in people are one template brain, bent at random: a network has less to learn
# from them than from real people. They have bias fields and a contrast of their own, which is what NCC forgives; on images of one scanner the answer may be another. Now you know how to find out.
#
# ## What you now have
#
# - Two networks, a fair comparison, and a verdict that follows from a table.
# - A habit: paired tests on pair means, an interval beside every p, Holm for many measures, subjects counted, seeds counted.
# - An explanation of the Hausdorff distance that rises: one voxel; and what prevents, measures and shows it.
# - What NCC is for: not robust networks, but a loss that knows right from wrong when contrasts differ.
#
# **What can go wrong.** Choosing the network on the test pairs. Tuning one method more than the other. Averaging over
# structures that vanished. Ten structures counted as ten observations. A significant difference that is too small to
# matter. A difference between two runs taken for one between two losses.
#
# **Try it.**
# 1. Run this page on real data, `COURSE_DATASET=hippocampus`. Is the verdict the same? Predict it first, from what NCC
#    forgives.
# 2. Three seeds of each: is the difference between the losses larger than that between the seeds?
# 3. Train both with the moving images' contrast drawn at random (a data set around `train_pairs` that applies a random gamma, or the negative), then repeat the
#    contrast experiment. Which network copes with the negative now?
# 4. Give both networks the labels (`dice_weight=0.5`). What is left of the difference?
#
# **References.** Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical image registration*, IEEE TMI
# 38(8), 2019. Avants et al., *Symmetric diffeomorphic image registration with cross-correlation*, Medical Image Analysis
# 12(1), 2008. Wilcoxon, *Individual comparisons by ranking methods*, Biometrics Bulletin 1(6), 1945. Holm, *A simple
# sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6(2), 1979. Huttenlocher et al.,
# *Comparing images using the Hausdorff distance*, IEEE TPAMI 15(9), 1993. Maier-Hein et al., *Metrics reloaded:
# recommendations for image analysis validation*, Nature Methods 21, 2024. Hering et al., *Learn2Reg*, IEEE TMI 42(3), 2023.
#
# This is the end of the first part: you can build, train, measure and judge. Next: [08 Teaching](08_teaching.ipynb), for
# those who give assignments. Or go straight to the data of a challenge, [09 Learn2Reg](09_learn2reg.ipynb), or begin again
# at [00 Start here](00_start_here.ipynb) with another data set: `COURSE_DATASET=hippocampus`.
