# %% [markdown]
# # 01 Data
#
# Most registration projects that fail do so before the network sees its first voxel: two scans in different units, an
# axis that runs the other way, one person on both sides of a split, a file cut short by a download. Here you open a
# scan by hand, bring a cohort to one grid and one scale, split it without leaks and pair it without filling the
# memory. By the end you have pairs ready for a network, and a number that says how badly they need registering.
#
# **Afterwards you can** read the affine of a scan, bring scans to one grid and one scale, split people without a leak, draw
# pairs, and say the same in MONAI. **You need** notebook 00 and NumPy.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/01_data.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/01_data.ipynb)

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

session = start(real="hippocampus")
print(session)

# %% [markdown]
# ## What may I use, and whom do I thank?
#
# The first question to a data set is not about voxels. Somebody lay in a scanner, somebody drew the labels, and a
# licence says what you may do with both. The course knows five data sets. This page wants volumes, so its first cell has
# fetched the hippocampi of real people (27 MB) unless you chose otherwise.
# `synthetic` is what the course makes by itself: one template, deformed at random. Its members are *made subjects*,
# not people, and they all have one anatomy. A file of `hippocampus` is a small box that was cut out of a head scan; the
# hippocampus, which forms memories, lies in the middle of it.

# %%
import pandas as pd

from course_utils.data.cohorts import load_cohort
from course_utils.data.registry import DATASETS, dataset_info, terms

print(terms(dataset_info(session.dataset)))
assert all(info.licence and info.citation for info in DATASETS.values())
pd.DataFrame(
    {
        name: {
            "grid": "×".join(map(str, info.shape)) or "its own",
            "download, MB": round(info.bytes / 1e6) or "–",
        }
        for name, info in DATASETS.items()
    }
).T

# %%
cohort = load_cohort(session.dataset)  # downloads, or makes, what is missing
names, spacing, shape = cohort.info.labels, cohort.info.spacing, cohort.info.shape
subject = cohort.splits["test"][0]
print(
    f"{len(cohort.subjects)} subjects, {len(names)} structures, common grid {shape} at {spacing} mm"
)
print(f"{subject.name}: image {subject.image.name}, label {subject.label.name}")

# %% [markdown]
# ## What is in a file?
#
# A NIfTI file is a header and a block of numbers. The header says how the numbers are stored and, in its **affine**,
# where in the scanner each of them was measured. Nothing in the block itself knows about millimetres, or left and right.

# %%
import nibabel
import numpy as np

nifti = nibabel.load(subject.image)
sizes = np.linalg.norm(
    nifti.affine[:3, :3], axis=0
)  # the length of a step along each array axis, mm
print("shape      ", nifti.shape)
print("stored as  ", nifti.get_data_dtype())
print("voxel size ", sizes.round(3), "mm")
print(
    "axes lead  ",
    nibabel.aff2axcodes(nifti.affine),
    "(Right, Anterior, Superior: to the patient's ...)",
)
print("affine\n", nifti.affine.round(2))
assert np.allclose(sizes[: nifti.ndim], nifti.header.get_zooms()[: nifti.ndim], atol=1e-3)

# %% [markdown]
# The columns of the affine are steps: go one voxel along array axis 0, and you move by its first column, in mm. The last
# column is where voxel (0, 0, 0) lies. So the position of voxel $v$ is $A v + t$.
#
# **Predict before you run:** you know the affine. Where is voxel (10, 20, 15), in mm? (In a slice it is (10, 20, 0).)
#
# > *My prediction:*

# %%
voxel = np.array([10, 20, 15]) * (np.array([*nifti.shape, 1])[:3] > 1)  # a slice has one layer only
by_hand = nifti.affine[:3, :3] @ voxel + nifti.affine[:3, 3]
back = np.linalg.inv(nifti.affine) @ [*by_hand, 1]

print(f"voxel {voxel.tolist()} lies at {by_hand.round(2).tolist()} mm")
assert np.allclose(by_hand, nibabel.affines.apply_affine(nifti.affine, voxel))
assert np.allclose(back[:3], voxel)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Multiply the matrix by the voxel and add the last column, $A v + t$. With steps of 1 mm along the axes that is the
# corner's position plus (10, 20, 15), each with the sign of its axis.
#
# </details>
#
# ## Does it matter how a file is stored?
#
# Two scanners may write one head in two ways: the first array axis may run to the right or to the left. Both files
# are correct, because their affines differ too. We take the volume from above and store it the other way. (A slice
# cannot be turned in space; where your data set has slices, a made subject stands in.)

# %%
volumetric = len(shape) == 3
brain = subject if volumetric else load_cohort("synthetic").subjects[0]
folder = session.runs / "01_data"
folder.mkdir(parents=True, exist_ok=True)

original = nibabel.load(brain.image)
backwards = np.diag([-1.0, 1, 1, 1])
backwards[0, 3] = original.shape[0] - 1  # voxel i of the new file is voxel n - 1 - i of the old one
flipped = nibabel.Nifti1Image(np.asarray(original.dataobj)[::-1], original.affine @ backwards)
nibabel.save(flipped, folder / "flipped.nii.gz")

n = original.shape[0]
print(nibabel.aff2axcodes(original.affine), "and", nibabel.aff2axcodes(flipped.affine))
assert not np.array_equal(
    original.dataobj, flipped.dataobj
)  # other numbers in the same places of the array ...
here = nibabel.affines.apply_affine(original.affine, (5, 9, 9))
assert np.allclose(
    here, nibabel.affines.apply_affine(flipped.affine, (n - 6, 9, 9))
)  # ... and the same head in the same place of the world

# %% [markdown]
# A network sees the array, never the affine. To it the second file is a mirrored person. So before anything else, all
# volumes are brought to one orientation and one spacing.

# %%
from course_utils.data.loading import load_subject
from course_utils.data.pairs import Subject
from course_utils.data.recipe import Recipe

# Reorient to RAS, resample to one spacing, pad or crop to one shape.
upright = Recipe(shape, spacing) if volumetric else Recipe((48, 64, 48), (3.5, 3.5, 3.5))
a, b = (
    load_subject(Subject(path.name, path), upright)["image"]
    for path in (brain.image, folder / "flipped.nii.gz")
)
assert a.shape == (1, *upright.shape) and (a - b).abs().max() < 1e-4
print("after preprocessing the two files are equal")

# %% [markdown]
# ## What does it look like?
#
# Three planes through one volume: **sagittal** seen from the side, **coronal** from the front, **axial** from above. (A data
# set of slices shows its one plane.) The contours are the labels that somebody, or some program, has drawn.

# %%
import re

from course_utils.plotting import slices

recipe = cohort.info.recipe  # how this data set's images are prepared for a network
view = cohort.info.view  # millimetres between voxels, and where the axes lead: for pictures
volumes = load_subject(subject, recipe)  # image (1, *shape) float32 and label (1, *shape) int16
KINDS = "anterior|thal|deep", "posterior|lateral.ventricle", "white", "cort", "putamen", "caudate"
drawn = {v: n for kind in KINDS for v, n in names.items() if re.search(kind, n, re.I)} or names
middle = (volumes["label"][0] > 0).nonzero().median(0).values.tolist()  # amid all that is labelled
slices(volumes["image"], volumes["label"], names=drawn, at=middle, **view)

# %% [markdown]
# One slice is not the volume. Go through it with the slider: along the second axis of a volume, or from person to person
# where the data set has slices. The structures are filled now.

# %%
from course_utils.plotting import Slider, panel


def page(image, label, **where):
    images = {"image": image, "its structures": image}
    return panel(images, labels={"its structures": label}, names=drawn, fill=True, **where, **view)


if volumetric:
    inside = (volumes["label"][0] > 0).any((0, 2)).nonzero().flatten()
    stops = inside[:: max(1, len(inside) // 9)].tolist()
    pages = {str(k): page(volumes["image"], volumes["label"], at=k) for k in stops}
else:
    some = {s.name: load_subject(s, recipe) for s in cohort.subjects[:8]}
    pages = {name: page(item["image"], item["label"]) for name, item in some.items()}
Slider(pages, "slice" if volumetric else "person")

# %% [markdown]
# How large is each structure? Count its voxels, and multiply by the volume of one. A millilitre is 1000 mm³.

# %%
voxel_ml = np.prod(spacing) / 1000  # of a slice: an area, as if it were 1 mm thick
counts = np.bincount(volumes["label"].flatten(), minlength=max(names) + 1)
sizes = pd.DataFrame({"structure": names, "voxels": {value: counts[value] for value in names}})
sizes["ml"] = (sizes.voxels * voxel_ml).round(2)

assert sizes.voxels.sum() == (volumes["label"] > 0).sum()  # every labelled voxel has a name
ratio = sizes.voxels.max() / sizes.voxels[sizes.voxels > 0].min()
print(
    f"together {sizes.ml.sum():.1f} ml; the largest structure has {ratio:.1f} times the voxels of "
    "the smallest"
)
sizes.rename_axis("value")

# %% [markdown]
# Where this ratio is large, as between the white matter of a brain and a small nucleus, a loss that counts voxels hardly
# notices the small structure. A Dice that averages over structures notices it as much as the large one.
#
# ## Do grey values mean the same in two scans?
#
# CT has a unit. MR has none: the same tissue may be 400 in one scan and 900 in the next, unless somebody has scaled the
# scans before you got them. A data set's page does not always say so. Measure it: how bright are the bright voxels of
# twelve people?

# %%
from course_utils.data.recipe import normalise
from course_utils.plotting import histograms

raw = {
    s.name: np.asarray(nibabel.load(s.image).dataobj, dtype=np.float32)
    for s in cohort.subjects[:12]
}
tops = pd.Series({name: np.percentile(values, 99.5) for name, values in raw.items()})
peaks = pd.Series({name: values.max() for name, values in raw.items()})
spread, of_peaks = tops.max() / tops.min(), peaks.max() / peaks.min()
print(f"99.5th percentile: {tops.min():.4g} to {tops.max():.4g}, a factor of {spread:.2f}")
print(f"brightest voxel: {peaks.min():.4g} to {peaks.max():.4g}, a factor of {of_peaks:.2f}")
if spread > 1.2:
    print("So these scans have no common unit: to a loss that subtracts, they are nothing alike.")
else:
    print("So somebody has scaled these scans already. The brightest voxel does not show it.")

shown = [
    tops.idxmin(),
    tops.sort_values().index[len(tops) // 2],
    tops.idxmax(),
]  # dark, middling, bright
histograms({name: raw[name] for name in shown}, bins=24, title="as stored")

# %% [markdown]
# So each scan gets a scale of its own, from 0 to 1. There are two usual ways. One divides by the brightest voxel. The other
# takes two percentiles of *each scan*, the 0.5th and the 99.5th, and stretches what lies between to [0, 1]; the next cell
# does it by hand and then with the tested function.
#
# **Predict before you run:** take the typical grey value of each person, the median of what is not background. After which of
# the two ways do twelve people agree better in it, and why?
#
# > *My prediction:*

# %%
import torch

for values in raw.values():
    low, high = np.sort(values.ravel())[
        [round(0.005 * (values.size - 1)), round(0.995 * (values.size - 1))]
    ]
    by_hand = np.clip((values - low) / (high - low), 0, 1)
    assert np.abs(by_hand - normalise(torch.from_numpy(values)).numpy()).max() < 0.01


# %%
def disagreement(scaled):
    """Spread between people of the median of what is not background, relative to its mean."""
    typical = np.array([np.median(values[values > 0.05]) for values in scaled])
    return typical.std() / typical.mean()


percentiles = disagreement([normalise(torch.from_numpy(v)).numpy() for v in raw.values()])
maxima = disagreement([values / values.max() for values in raw.values()])
print(f"typical grey value: spread {percentiles:.1%} by percentiles, {maxima:.1%} by the maximum")
assert percentiles < maxima

histograms(
    {name: normalise(torch.from_numpy(raw[name])) for name in shown},
    bins=24,
    title="normalised, each by itself",
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# After the percentiles. The brightest voxel is a single one, a vessel or a scrap of fat, and its value is luck. Hundreds of
# voxels stand behind a percentile.
#
# </details>
#
# The distributions have moved together, though not quite onto each other: contrast still differs, and that is one reason
# why a loss that only asks for *correlation* (NCC, notebook 05) is popular.
#
# ## The same in MONAI
#
# A recipe reads, normalises, turns and resamples where that is needed, and pads or crops. MONAI says it as a chain of
# dictionary transforms: each takes `{"image": ..., "label": ...}` and hands it on changed, the same way for image and
# label where that matters (linear for grey values, nearest neighbour for labels: there is no structure 1.5). We build
# the chain from MONAI's own transforms and watch one subject pass. Scans that do not share a grid yet also pass through
# `Orientationd` and `Spacingd`, as the two files above did.

# %%
from monai.transforms import (
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)

both = ("image", "label")
channel = "no_channel" if nifti.ndim == len(shape) else -1  # a slice is a volume one voxel thick
steps = [
    LoadImaged(both),
    EnsureChannelFirstd(both, channel_dim=channel),
    ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
]
if not recipe.aligned:
    turn = Orientationd(both, "RAS", labels=None)
    steps += [turn, Spacingd(both, recipe.spacing, mode=("bilinear", "nearest"))]
steps.append(ResizeWithPadOrCropd(both, shape))

# %%
item = {"image": str(subject.image), "label": str(subject.label)}
rows = []
for step in steps:
    item = step(item)
    image = item["image"]
    dtype = str(image.dtype).removeprefix("torch.")
    extremes = f"{float(image.min()):.4g} to {float(image.max()):.4g}"
    rows.append((type(step).__name__, tuple(image.shape), dtype, extremes))

assert (item["image"] - volumes["image"]).abs().max() < 1e-3
assert (item["label"] == volumes["label"]).all()
pd.DataFrame(rows, columns=["transform", "image", "dtype", "intensities"])

# %% [markdown]
# The result is the course's own to three digits. In MONAI's tutorials the chain goes into a `CacheDataset`, which runs it
# once per subject and keeps the result, and a `DataLoader` makes batches of it.

# %%
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose

files = [{"image": str(s.image), "label": str(s.label)} for s in cohort.splits["train"][:4]]
loader = DataLoader(CacheDataset(files, Compose(steps), progress=False), batch_size=2)
batch = next(iter(loader))
ours = torch.stack([load_subject(s, recipe)["image"] for s in cohort.splits["train"][:2]])
print({key: tuple(batch[key].shape) for key in both})
assert (batch["image"] - ours).abs().max() < 1e-3

# %% [markdown]
# The last steps bring everybody to the **common grid**, which a batch needs: padded with zeros or cropped around the
# centre. A crop that cut off part of a structure would make its Dice meaningless, so it is refused. One bad subject
# must not end a cohort of hundreds, though: whoever cannot be used is named and left out.

# %%
import warnings

from course_utils.data.loading import load_subjects

sample = {side: part[: 40 if np.prod(shape) < 1e6 else 6] for side, part in cohort.splits.items()}
with warnings.catch_warnings(record=True) as left_out:
    warnings.simplefilter("always", UserWarning)
    loaded = load_subjects(sample["train"] + sample["test"], recipe)
stored = {values.shape for values in raw.values()}
assert all(loaded[s]["image"].shape == (1, *shape) for s in loaded.subjects)
print(f"shapes of the first {len(raw)} files: {len(stored)}; after loading there is one, {shape}")
print(f"{len(loaded)} subjects loaded, {len(loaded.failed)} left out")
cohort = cohort.without(loaded.failed)

# %% [markdown]
# ## Who is in which split?
#
# A network is judged on **test** subjects, tuned on **val** subjects, trained on **train** subjects. With pairs there
# is a trap: the pairs (A, B) and (B, C) are two different pairs, but share a person.
#
# **Predict before you run:** shuffle all pairs of the cohort and keep every fifth for testing. What share of the test
# pairs consists of two people whom the training has seen?
#
# > *My prediction:*

# %%
everyone = [s.name for s in cohort.subjects]
all_pairs = np.array([(f, m) for f in everyone for m in everyone if f != m])
np.random.default_rng(session.seed).shuffle(all_pairs)
test_pairs, train_pairs = np.split(all_pairs, [len(all_pairs) // 5])
leaked = np.isin(test_pairs, train_pairs).all(axis=1).mean()
print(f"split by pair: {leaked:.0%} of the test pairs are of two people seen in training")
assert leaked > 0.95

sides = {side: {s.name for s in part} for side, part in cohort.splits.items()}
print(f"split by subject: { ({side: len(part) for side, part in sides.items()}) }")
assert not (
    sides["train"] & sides["test"] or sides["train"] & sides["val"] or sides["val"] & sides["test"]
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Nearly all of them. Everybody is in many pairs, so everybody ends up in some training pair.
#
# </details>
#
# Such a test measures memory, not registration. Here subjects are split, once and by the hash of their names, and pairs
# are made only within a side. If a subject has several scans, the *person* is what must not be divided.
#
# ## Which pairs?

# %%
rows = {}
for kind in ("random", "consecutive", "atlas", "all"):
    pairs = cohort.pairs("train", kind)
    rows[kind] = {"pairs": len(pairs), "first": pairs[0].name, "second": pairs[1].name}

n = len(cohort.splits["train"])
block = cohort.pairs("train", "random", seed=session.seed)  # n pairs
assert rows["consecutive"]["pairs"] == n - 1 and rows["all"]["pairs"] == n * (n - 1)
assert {p.fixed for p in block} == {p.moving for p in block} == set(cohort.splits["train"])
assert len({p.fixed for p in cohort.pairs("train", "atlas")}) == 1
pd.DataFrame(rows).T

# %% [markdown]
# - **random**: for training. Not quite dice: in each round of $n$ pairs everyone is once fixed and once moving.
# - **consecutive**: everybody once with the next; many published tables do this.
# - **atlas**: all onto one, as in population studies.
# - **all**: every ordered pair, $n(n-1)$. For 182 subjects that is 32,942.
#
# **Predict before you run:** training draws pairs as long as it likes. How many gigabytes would a list of a billion pairs
# take?
#
# > *My prediction:*

# %%
import tracemalloc

tracemalloc.start()
pairs = cohort.pairs("train", "random", count=10**9)
late = pairs[987_654_321].name
lazy = tracemalloc.get_traced_memory()[1]  # the most there ever was, bytes
before = tracemalloc.get_traced_memory()[0]
listed = list(cohort.pairs("train", "all"))
each = (tracemalloc.get_traced_memory()[0] - before) / len(listed)
tracemalloc.stop()

print(f"as a list: {each:.0f} bytes per pair, {each:.0f} GB for a billion")
print(f"computed when asked for: {lazy / 1e3:.0f} kB, and pair number 987,654,321 is {late}")
assert lazy < 1e6 < 1e9 * each

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# As many as one pair has bytes: the cell prints it. Computed when it is asked for, a list of any length costs a few kB.
#
# </details>
#
# Nothing needs the list: pair number $i$ follows from $i$ and the seed. That is also why a training that was stopped
# can go on with exactly the pairs it would have seen (notebook 06).
#
# ## Why register at all?
#
# Average the images of the training subjects, voxel by voxel. If people were alike, the mean would be one person without
# the noise.
#
# **Predict before you run:** how alike is the mean of 29 people to a thirtieth, as a correlation of their grey values?
#
# > *My prediction:*

# %%
people = [s for s in loaded.subjects if s in cohort.splits["train"]][:30]
images = torch.stack([loaded[s]["image"] for s in people])  # (people, 1, *shape)


def likeness(one, other, everywhere):
    """Correlation where everybody has tissue: the outline alone would correlate."""
    return torch.corrcoef(torch.stack([one[everywhere], other[everywhere]]))[0, 1].item()


mean = images[1:].mean(0)
alike = likeness(images[0], mean, (images > 0.05).all(0))
print(f"mean of {len(people) - 1} others: correlation with the one subject {alike:.2f}")
assert alike < 0.95
shown = {"one subject": images[0], "another": images[1], f"mean of {len(people) - 1} others": mean}
panel(shown, limits=(0, 1), **view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell prints it. Everything that differs between people is smeared into grey; only what all have in one place stays.
#
# </details>
#
# What would a perfect registration make of it? For people nobody knows the true map. For made subjects we do: they are one
# template, deformed by maps that the course keeps. We carry each of them onto the first one *before* averaging.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.synthetic import true_displacement
from course_utils.fields import warp

made = load_slices("synthetic", session.data_root)
templates = made.splits["train"][:30]
stored_images = load_subjects(templates, made.info.recipe)
flat = torch.stack([stored_images[s]["image"] for s in templates])
fields = [true_displacement(templates[0], s)[None] for s in templates[1:]]  # (1, 2, H, W) each
aligned = torch.cat([warp(one[None], u) for one, u in zip(flat[1:], fields, strict=True)])
shown = {"one made subject": flat[0], "mean of 29": flat[1:].mean(0)}
shown["the same, truly registered"] = aligned.mean(0)
tissue = (flat > 0.05).all(0)
_, unmoved, registered = (likeness(flat[0], image, tissue) for image in shown.values())
print(f"correlation with the one subject: {unmoved:.2f}, truly registered {registered:.2f}")
assert registered > unmoved + 0.1
panel(shown, limits=(0, 1), **made.info.view)

# %% [markdown]
# Only the noise has gone. With people it would not be quite so sharp, because they have other folds; but this is what
# registration is for. *The same place* must mean the same place before anything can be averaged, compared or counted.
#
# ## How bad is it, in one number?
#
# Overlap of the labels, before anything has been done: the Dice score, $2|A \cap B| / (|A| + |B|)$.
#
# **Predict before you run:** the pairs differ. How far apart are the worst and the best of 50 pairs in their mean Dice?
#
# > *My prediction:*

# %%
from course_utils.data.loading import PairDataset
from course_utils.metrics import dice
from course_utils.plotting import Figure

known = {s.name for s in loaded.subjects}
few = cohort.without(
    s.name for s in cohort.subjects if s.name not in known
)  # all of them, unless the volumes are large
count = min(50, len(few.pairs("test", "all")))
test = PairDataset(loaded, few.pairs("test", "random", count=count, seed=session.seed))
overlaps = torch.cat(
    [dice(p["moving_label"][None], p["fixed_label"][None], names) for p in test]
)  # (pairs, structures)
by_pair = overlaps.nanmean(1)

# %%
value = next(iter(names))
moving, fixed = (test[0][f"{side}_label"] == value for side in ("moving", "fixed"))
by_hand = 2 * (moving & fixed).sum() / (moving.sum() + fixed.sum())
assert torch.isclose(by_hand, overlaps[0, 0])
assert 0.4 < by_pair.mean() < 0.7
print(f"worst pair {by_pair.min():.2f}, best {by_pair.max():.2f}")

figure = Figure(figsize=(6, 3), layout="constrained")
axes = figure.subplots()
axes.hist(by_pair, bins=np.arange(0, 1.01, 0.02), color="#0072B2", edgecolor="white")
told = f"mean {by_pair.mean():.2f}, spread {by_pair.std():.2f}"
axes.axvline(by_pair.mean(), color="#D55E00", label=told)
axes.set(xlabel="Dice before registration, mean over structures", ylabel="pairs", xlim=(0, 1))
axes.yaxis.get_major_locator().set_params(integer=True)
axes.legend(frameon=False, loc="upper left")
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The cell prints it: far enough apart that two methods which are compared on different pairs, or on ten of them, are
# compared by luck.
#
# </details>
#
# On average, little more than half of a structure lies where the other person has it. Notebook 07 comes back to the spread.
#
# ## Does training wait for the data?
#
# Reading, unpacking and normalising a volume takes milliseconds; a training needs thousands of volumes. So each
# subject is read once and kept (MONAI's `CacheDataset`, or `PersistentDataset` in a folder where memory is too
# small), and a pair is put together from two of them. Is that enough? Compare with what a training step takes.

# %%
import time

from course_utils.losses import ncc_loss
from course_utils.networks import VoxelMorph

network = VoxelMorph(
    len(shape), features=(8, 16, 16, 16), instance_norm=False
)  # a small one: it waits the shortest
item, s = test[0], people[0]


def step():
    network.zero_grad()
    ncc_loss(
        network(item["moving"][None], item["fixed"][None]).moved, item["fixed"][None]
    ).backward()


# %%
def shortest(function, repeats=5):
    """Milliseconds of the fastest call: what other programs on the machine do only makes calls
    slower."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - began))
    return min(times)


disk, cache, training = (
    shortest(lambda: load_subject(s, recipe)),
    shortest(lambda: test[0]),
    shortest(step, 3),
)
print(
    f"one volume from the file {disk:.1f} ms, a pair from the cache {cache:.3f} ms, a training "
    f"step {training:.0f} ms"
)
assert cache < 0.1 * disk and cache < 0.1 * training

# %% [markdown]
# A pair from the cache costs almost nothing, because nothing is computed or copied. The step decides, and it is the
# step that is worth making faster.
#
# ## How do I get the large data sets?
#
# What a page wants comes by itself. The large sets are a command each, run in a terminal; the commands
# show the licence, resume where they were interrupted, and keep only what the course needs:
#
# ```
# python -m course_utils download oasis2d         # 24 MB, 414 coronal slices
# python -m course_utils download oasis           # 6.6 GB, of which 1.2 GB are kept
# python -m course_utils download hippocampus     # 27 MB, Medical Segmentation Decathlon
# python -m course_utils download learn2reg       # Learn2Reg's OASIS validation subjects
# python -m course_utils check-data hippocampus   # reads every volume, names each that cannot be used
# ```
#
# Then set `COURSE_DATASET` and run the notebook again.
#
# **Your own scans** become a data set by a few lines in a file, say `mine.toml`. They say where the files lie below the data
# folder, and on which common grid a network shall see them:
#
# ```toml
# [knees]
# folder = "knees"
# image = "images/{name}.nii.gz"
# label = "labels/{name}.nii.gz"
# labels = { 1 = "femur", 2 = "tibia" }
# shape = [96, 96, 64]
# spacing = [1.5, 1.5, 2.0]
# ```
#
# With `COURSE_REGISTRY=mine.toml` and `COURSE_DATASET=knees` every notebook works on them, and so do the commands (which take
# `--registry mine.toml` as well). A table of a known name changes what it names: `[oasis]` with a `url` of your own is a mirror.
#
# When is a download complete? Not when the program ends without an error: some servers answer a
# download tool with a polite web page, which is then stored as `brains.tar`. It is complete when its **checksum** is
# the published one. Change one bit, and another number comes out.

# %%
import hashlib

published = "sha256:" + hashlib.sha256(brain.image.read_bytes()).hexdigest()
damaged = bytearray(brain.image.read_bytes())
damaged[len(damaged) // 2] ^= 1  # one bit
(folder / "damaged.nii.gz").write_bytes(damaged)

for path in (brain.image, folder / "damaged.nii.gz"):
    with path.open("rb") as file:
        sum_ = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    print(
        f"{path.name:22} {path.stat().st_size} bytes, {sum_[:23]}…, "
        f"{'complete' if sum_ == published else 'damaged'}"
    )
assert sum_ != published and len(damaged) == brain.image.stat().st_size

# %% [markdown]
# ## What does a broken file do?
#
# **Predict before you run:** the download of a volume stopped half-way. A traceback of sixty lines, a picture that is
# black from the middle on, or something else?
#
# > *My prediction:*

# %%
from course_utils.errors import CourseError

whole = brain.image.read_bytes()
(folder / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
wrong = {
    "half a file": Subject("half", folder / "half.nii.gz"),
    "no file": Subject("absent", folder / "absent.nii.gz"),
    "an image stored the other way, its label not": Subject(
        "flipped", folder / "flipped.nii.gz", brain.label
    ),
}
for what, broken in wrong.items():
    try:
        load_subject(broken, upright)
    except CourseError as error:
        message = str(error)
        assert str(folder) in message and "\n" not in message
        print(f"{what}:\n  {message.replace(str(brain.image.parents[1]), 'the data set')}")
    else:
        raise AssertionError(f"{what} was not noticed")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# One line: what is wrong, where, and what to do next. The course checks a file before it uses it.
#
# </details>
#
# The third is the dangerous one, because nothing about it looks wrong: a label
# whose affine disagrees with its image's would have trained the network on left for right.
#
# ## What you now have
#
# - A scan is an array *and* an affine. Before a network sees it: one orientation, one spacing, one grid, one scale.
# - Splits by subject, pairs within a side, computed from their number.
# - A mean brain that is blurred, and a Dice that says by how much: the task of the course.
#
# **What can go wrong.** Labels interpolated linearly grow structures that nobody has. Percentiles of a volume that is
# mostly background say nothing about the brain. A data set whose volumes somebody has already registered makes every
# method look good: ask what was done to it.
#
# **Try it.**
# 1. *(easy)* Draw the histogram of Dice for `consecutive` pairs. Is it another one? Should it be?
# 2. *(middle)* Shift one label map by a single voxel (`torch.roll`) and measure its Dice with itself, structure by structure.
#    Which lose most, and what does that say about a Dice of 0.8?
# 3. *(hard)* Normalise by matching histograms instead (`monai.transforms.HistogramNormalize`, or by hand onto one person).
#    Does the spread of typical grey values become smaller? What does it do to a person with a large ventricle?
#
# **References.** Cox et al., *A (sort of) new image data format standard: NIfTI-1*, NeuroImage 22, 2004. Nyúl and Udupa,
# *On standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42(6), 1999. Fonov et al., *Unbiased
# average age-appropriate atlases for pediatric studies*, NeuroImage 54(1), 2011,
# [doi](https://doi.org/10.1016/j.neuroimage.2010.07.033). Antonelli et al., *The Medical Segmentation Decathlon*, Nature
# Communications 13, 2022, [doi](https://doi.org/10.1038/s41467-022-30695-9). Marcus et al., *Open Access Series of
# Imaging Studies (OASIS)*, Journal of Cognitive Neuroscience 19(9), 2007,
# [doi](https://doi.org/10.1162/jocn.2007.19.9.1498). Hering et al., *Learn2Reg*, IEEE TMI 42(3), 2023,
# [doi](https://doi.org/10.1109/TMI.2022.3213983). Cardoso et al., *MONAI: an open-source framework for deep learning in
# healthcare*, 2022, [arXiv](https://doi.org/10.48550/arXiv.2211.02701).
#
# Next: [02 Warping](02_warping.ipynb): how an image is deformed, and which mistakes leave no error message.
