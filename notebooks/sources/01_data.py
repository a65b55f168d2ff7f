# %% [markdown]
# # 01 Data
#
# Most registration projects that fail do so before the network sees its first voxel: two scans in different units, an
# axis that runs the other way, one person on both sides of a split, a file cut short by a download. Here you open a
# scan by hand, bring a cohort to one grid and one scale, split it without leaks and pair it without filling the
# memory. By the end you have pairs ready for a network, and a number that says how badly they need registering.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/01_data.ipynb)

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
# ## What may I use, and whom do I thank?
#
# The first question to a data set is not about voxels. Somebody lay in a scanner, somebody drew the labels, and a
# licence says what you may do with both. The course knows five data sets.

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
# **Predict before you run:** you know the affine. Where is voxel (10, 20, 15), in mm?

# %%
voxel = np.array([10, 20, 15]) * (np.array([*nifti.shape, 1])[:3] > 1)  # a slice has one layer only
by_hand = nifti.affine[:3, :3] @ voxel + nifti.affine[:3, 3]
back = np.linalg.inv(nifti.affine) @ [*by_hand, 1]

print(f"voxel {voxel.tolist()} lies at {by_hand.round(2).tolist()} mm")
assert np.allclose(by_hand, nibabel.affines.apply_affine(nifti.affine, voxel))
assert np.allclose(back[:3], voxel)

# %% [markdown]
# ## Does it matter how a file is stored?
#
# Two scanners may write one head in two ways: the first array axis may run to the right or to the left. Both files
# are correct, because their affines differ too. We take a brain of the built-in cohort and store it the other way.

# %%
brain = load_cohort("synthetic").subjects[0]
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

upright = Recipe((48, 64, 48), (3.5, 3.5, 3.5))  # reorient to RAS, resample to 3.5 mm, pad or crop
a, b = (
    load_subject(Subject(path.name, path), upright)["image"]
    for path in (brain.image, folder / "flipped.nii.gz")
)
assert a.shape == (1, 48, 64, 48) and (a - b).abs().max() < 1e-4
print("after preprocessing the two files are equal")

# %% [markdown]
# ## What does a brain look like?
#
# Three planes through one volume: **sagittal** seen from the side, **coronal** from the front, **axial** from above.
# Contours are the labels that somebody, or some program, has drawn.

# %%
from course_utils.plotting import slices

recipe = cohort.info.recipe  # how this data set's images are prepared for a network
volumes = load_subject(
    subject, recipe
)  # {"image": (1, *shape) float32, "label": (1, *shape) uint8}
middle = (
    (volumes["label"][0] > 0).nonzero().median(0).values.tolist()
)  # a voxel, amid all that is labelled
slices(volumes["image"], at=middle, spacing=spacing)

# %%
slices(volumes["image"], volumes["label"], names=names, at=middle, spacing=spacing)

# %% [markdown]
# How large is each structure? Count its voxels, and multiply by the volume of one. A millilitre is 1000 mm³.

# %%
voxel_ml = np.prod(spacing) / 1000  # of a slice: an area, as if it were 1 mm thick
counts = np.bincount(volumes["label"].flatten(), minlength=max(names) + 1)
sizes = pd.DataFrame({"structure": names, "voxels": {value: counts[value] for value in names}})
sizes["ml"] = (sizes.voxels * voxel_ml).round(2)

assert sizes.voxels.sum() == (volumes["label"] > 0).sum()  # every labelled voxel has a name
ratio = sizes.voxels.max() / sizes.voxels.min()
print(
    f"together {sizes.ml.sum():.1f} ml; the largest structure has {ratio:.1f} times the voxels of "
    "the smallest"
)
sizes.rename_axis("value")

# %% [markdown]
# Remember those ratios. A loss that counts voxels hardly notices the small structures, and a Dice that averages over
# structures notices them as much as the large ones.
#
# ## Do grey values mean the same in two scans?
#
# CT has a unit. MR has none: the same tissue may be 400 in one scan and 900 in the next.

# %%
from course_utils.data.recipe import normalise
from course_utils.plotting import histograms

raw = {
    s.name: np.asarray(nibabel.load(s.image).dataobj, dtype=np.float32)
    for s in cohort.subjects[:12]
}
tops = pd.Series({name: np.percentile(values, 99.5) for name, values in raw.items()})
print(
    f"bright voxels (99.5th percentile): {tops.min():.0f} in one subject, {tops.max():.0f} in "
    "another"
)
assert tops.max() > 1.2 * tops.min()

shown = [
    tops.idxmin(),
    tops.sort_values().index[len(tops) // 2],
    tops.idxmax(),
]  # dark, middling, bright
histograms({name: raw[name] for name in shown}, title="as stored")

# %% [markdown]
# To a loss that subtracts, the first brain and the last are nothing alike. A division by the maximum would hang on
# a single bright voxel. We take two percentiles of *each volume*, the 0.5th and the 99.5th, and stretch what lies
# between to [0, 1]: by hand first, then with the tested function.

# %%
import torch

for values in raw.values():
    low, high = np.sort(values.ravel())[
        [round(0.005 * (values.size - 1)), round(0.995 * (values.size - 1))]
    ]
    by_hand = np.clip((values - low) / (high - low), 0, 1)
    assert np.abs(by_hand - normalise(torch.from_numpy(values)).numpy()).max() < 0.01

histograms(
    {name: normalise(torch.from_numpy(raw[name])) for name in shown},
    title="normalised, each by itself",
)

# %% [markdown]
# The distributions have moved together, though not quite onto each other: contrast still differs, and that is one reason
# why a loss that only asks for *correlation* (NCC, notebook 05) is popular.
#
# ## What happens on the way to the network?
#
# A recipe reads, normalises, turns and resamples where that is needed, and pads or crops. **The same in MONAI** is a chain
# of dictionary transforms: each takes `{"image": ..., "label": ...}` and hands it on changed, the same way for image and
# label where that matters (linear for grey values, nearest neighbour for labels: there is no structure 1.5). We build
# the chain and watch one subject pass. `Lambdad` is our `normalise`; scans that do not share a grid yet also pass through
# `Orientationd` and `Spacingd`, as the two files above did.

# %%
from monai.transforms import (
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacingd,
)

both = ("image", "label")
channel = (
    "no_channel" if nifti.ndim == len(shape) else -1
)  # a slice is stored as a volume one voxel thick
steps = [
    LoadImaged(both),
    EnsureChannelFirstd(both, channel_dim=channel),
    Lambdad("image", normalise),
]
if not recipe.aligned:
    steps += [
        Orientationd(both, "RAS"),
        Spacingd(both, recipe.spacing, mode=("bilinear", "nearest")),
    ]
steps.append(ResizeWithPadOrCropd(both, shape))

# %%
item = {"image": str(subject.image), "label": str(subject.label)}
rows = []
for step in steps:
    item = step(item)
    image = item["image"]
    extremes = f"{float(image.min()):.4g} to {float(image.max()):.4g}"
    rows.append(
        (type(step).__name__, tuple(image.shape), str(image.dtype).removeprefix("torch."), extremes)
    )

assert (item["image"] - volumes["image"]).abs().max() < 1e-5 and (
    item["label"] == volumes["label"]
).all()
pd.DataFrame(rows, columns=["transform", "image", "dtype", "intensities"])

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
# **Predict before you run:** training draws pairs as long as it likes. What would a list of a billion cost?

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

print(f"as a list: {each:.0f} bytes a pair, {each:.0f} GB for a billion")
print(f"computed when asked for: {lazy / 1e3:.0f} kB, and pair number 987,654,321 is {late}")
assert lazy < 1e6 < 1e9 * each

# %% [markdown]
# Nothing needs the list: pair number $i$ follows from $i$ and the seed. That is also why a training that was stopped
# can go on with exactly the pairs it would have seen (notebook 06).
#
# ## Why register at all?
#
# Average the brains of the training subjects, voxel by voxel. If people were alike, the mean would be one brain without
# its noise.
#
# **Predict before you run:** what will be sharp in it, and what will not?

# %%
from course_utils.data.synthetic import true_displacement
from course_utils.fields import warp
from course_utils.plotting import panel

people = [s for s in loaded.subjects if s in cohort.splits["train"]][:30]
images = torch.stack([loaded[s]["image"] for s in people])  # (people, 1, *shape)
shown = {"one subject": images[0], f"mean of {len(people) - 1} others": images[1:].mean(0)}
if people[0].velocity is not None:  # the built-in cohort: its true deformations are known
    fields = [true_displacement(people[0], s)[None] for s in people[1:]]  # (1, N, *shape) each
    aligned = [warp(image[None], u) for image, u in zip(images[1:], fields, strict=True)]
    shown["the same, truly registered"] = torch.cat(aligned).mean(0)

everywhere = (images > 0.05).all(0)  # inside everybody's brain: the outline alone would correlate
_, *likeness = torch.corrcoef(torch.stack([image[everywhere] for image in shown.values()]))[
    0
].tolist()
for name, value in zip(list(shown)[1:], likeness, strict=True):
    print(f"{name}: correlation with the subject {value:.2f}")

assert likeness[0] < 0.9
assert len(likeness) == 1 or likeness[1] > likeness[0] + 0.1
panel(shown, spacing=spacing)

# %% [markdown]
# Everything that differs between people is smeared into grey. Of the built-in cohort we know the true deformations:
# when every subject is carried onto the first one *before* averaging, that subject's folds come out of other people's
# scans, and only the noise goes. This is what registration is for: *the same place* must mean the same place
# before anything can be averaged, compared or counted.
#
# ## How bad is it, in one number?
#
# Overlap of the labels, before anything has been done: the Dice score, $2|A \cap B| / (|A| + |B|)$.

# %%
import matplotlib.pyplot as plt

from course_utils.data.loading import PairDataset
from course_utils.metrics import dice

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
value, (moving, fixed) = (
    next(iter(names)),
    (test[0][f"{side}_label"] for side in ("moving", "fixed")),
)
both, either = (
    ((moving == value) & (fixed == value)).sum(),
    (moving == value).sum() + (fixed == value).sum(),
)
assert torch.isclose(2 * both / either, overlaps[0, 0])  # by hand
assert 0.4 < by_pair.mean() < 0.7

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.hist(by_pair, bins=np.arange(0, 1.01, 0.02), color="#0072B2", edgecolor="white")
ax.axvline(
    by_pair.mean(), color="#D55E00", label=f"mean {by_pair.mean():.2f}, spread {by_pair.std():.2f}"
)
ax.set(xlabel="Dice before registration, mean over structures", ylabel="pairs", xlim=(0.2, 0.9))
ax.yaxis.get_major_locator().set_params(integer=True)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Little more than half of a structure lies where the other person has it. And look at the spread: two methods compared
# on different pairs, or on ten of them, are compared by luck. Notebook 07 comes back to that.
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
# The built-in cohort and the hippocampus come by themselves. The others are a command each, run in a terminal; they
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
# **Predict before you run:** the download of a volume stopped half-way. A traceback of sixty lines, a brain that is
# black from the middle on, or something else?

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
        print(f"{what}:\n  {message.replace(str(brain.image.parents[1]), 'synthetic')}")
    else:
        raise AssertionError(f"{what} was not noticed")

# %% [markdown]
# One line: what, where, what to do next. The third is the dangerous one, because nothing about it looks wrong: a label
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
# 1. Draw the histogram of Dice for `consecutive` pairs. Is it another one? Should it be?
# 2. Shift one label map by a single voxel (`torch.roll`) and measure its Dice with itself, structure by structure.
#    Which lose most, and what does that say about a Dice of 0.8?
#
# **References.** Cox et al., *A (sort of) new image data format standard: NIfTI-1*, NeuroImage 22, 2004. Nyúl and Udupa,
# *On standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42(6), 1999. Fonov et al., *Unbiased
# average age-appropriate atlases for pediatric studies*, NeuroImage 54(1), 2011. Marcus et al., *Open Access Series of
# Imaging Studies (OASIS)*, Journal of Cognitive Neuroscience 19(9), 2007. Hering et al., *Learn2Reg*, IEEE TMI 42(3), 2023.
# Cardoso et al., *MONAI: an open-source framework for deep learning in healthcare*, arXiv 2211.02701, 2022.
#
# Next: [02 Warping](02_warping.ipynb): how an image is deformed, and which mistakes leave no error message.
