# %% [markdown]
# # 11 Your own scans
#
# You have a folder of DICOM slices from the hospital and a NIfTI file from a colleague. They have other voxels and another
# orientation, and their origins lie in other corners of the room. On this page you bring both to one registered pair without losing track of
# where anything is. You read them, look at their headers, register them with a network and without one, turn their slices with a
# slider, and prove with other software that the written field is what you think it is.
#
# Afterwards you can convert a DICOM series and say what must hold for it, read the four facts of a header that decide everything, apply
# a trained network to scans that it has never seen, and test a deformation that lies on disk. You need notebook 10 (one pair).
#
# The page makes the two files itself, from the scans of two patients, so that all the answers are known. With your own scans you
# change two paths.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 2 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/11_your_own_scans.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/11_your_own_scans.ipynb)

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
# SimpleITK reads DICOM, and at the end it checks our field.

# %%
if importlib.util.find_spec("SimpleITK") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "SimpleITK"], check=True)
    importlib.invalidate_caches()

import SimpleITK as sitk

folder = session.runs / "own_scans"
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Two scans of two people
#
# Patient A will come as a DICOM series: thick slices, tilted, one file for each slice. Patient B will come as a NIfTI file, stored from
# front to back and from top to bottom. Both files are made here, from the hippocampi of two real patients, or, where these could
# not be fetched, from two made subjects. The patients are test subjects, and the made ones are made for this page alone, so no network
# of the course was trained on them.

# %%
import numpy as np

from course_utils.data.cohorts import is_there, load_cohort
from course_utils.data.registry import dataset_info
from course_utils.data.synthetic import make_cohort

there = is_there(dataset_info("hippocampus"), session.data_root)
volumes = "hippocampus" if there and session.dataset != "synthetic" else "synthetic"
if volumes == "hippocampus":
    cohort = load_cohort(volumes, session.data_root)
    size_a, voxel_a = (36, 48, 22), (1.1, 1.1, 2.0)  # voxels, mm
    size_b, voxel_b = (32, 46, 30), (1.2, 1.15, 1.3)
else:
    root = session.data_root / "own_scans"
    make_cohort(root / "synthetic", subjects=12, spacing=2.5, seed=1)
    cohort = load_cohort(volumes, root)
    size_a, voxel_a = (72, 88, 36), (2.4, 2.4, 5.0)
    size_b, voxel_b = (64, 80, 64), (2.7, 2.6, 2.8)
chosen = cohort.splits["test"] if volumes == "hippocampus" else cohort.subjects
patient_a, patient_b = chosen[:2]
labels = dict(cohort.info.labels)
print(f"{cohort.info.name}: {patient_a.name} and {patient_b.name}")


# %%
def scanned(path, size, voxel, tilt, is_label=False):
    """What a scanner with these voxels, tilted about the left-right axis, would have stored."""
    image = sitk.ReadImage(str(path))
    if not is_label:  # of whatever unit, a scanner stores whole numbers
        image = sitk.RescaleIntensity(sitk.Cast(image, sitk.sitkFloat32), 0, 1000)
    c, s = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    middle = [(n - 1) / 2 for n in image.GetSize()]
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint(middle))
    origin = centre - direction @ ((np.array(size) - 1) / 2 * voxel)
    how = sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear
    grid = (origin, voxel, direction.ravel())
    return sitk.Resample(image, size, sitk.Transform(), how, *grid, 0.0, sitk.sitkInt16)


series = scanned(patient_a.image, size_a, voxel_a, tilt=9)
other = scanned(patient_b.image, size_b, voxel_b, tilt=0)
other_label = scanned(patient_b.label, size_b, voxel_b, tilt=0, is_label=True)

# %% [markdown]
# Patient A becomes a DICOM series. A real one has a hundred more tags; these are the ones that a reader needs to put the slices back
# in order and in place. `0020|0032` is the position of a slice, and `0020|0037` holds the directions of its rows and columns.

# %%
import shutil

STUDY = "1.2.826.0.1.3680043.2.1125.1"
rows_and_columns = np.array(series.GetDirection()).reshape(3, 3)[:, :2].T.ravel()


def numbers(values):
    return "\\".join(f"{x:.6f}" for x in values)


def tags_of(number):
    return {
        "0008|0060": "MR",
        "0008|103e": "T1, thick slices",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",  # MR image storage
        "0020|000d": STUDY,
        "0020|000e": f"{STUDY}.1",
        "0008|0018": f"{STUDY}.1.{number + 1}",
        "0020|0013": str(number + 1),
        "0018|0050": f"{series.GetSpacing()[2]:.3f}",
        "0020|0032": numbers(series.TransformIndexToPhysicalPoint((0, 0, number))),
        "0020|0037": numbers(rows_and_columns),
    }


# %%
dicom = folder / "patient_a"
shutil.rmtree(dicom, ignore_errors=True)
dicom.mkdir()
writer = sitk.ImageFileWriter()
writer.KeepOriginalImageUIDOn()
for number in range(series.GetDepth()):
    slice_ = series[:, :, number]
    for tag, value in tags_of(number).items():
        slice_.SetMetaData(tag, value)
    name = (number * 7) % series.GetDepth()  # in no order, as they come
    writer.SetFileName(str(dicom / f"{name:03d}.dcm"))
    writer.Execute(slice_)
print(f"{len(list(dicom.iterdir()))} files")
assert len(list(dicom.iterdir())) == series.GetDepth()

# %% [markdown]
# ## From DICOM to NIfTI
#
# An export rarely holds a single series. There may be a localiser, T1, T2, or two echoes under one name. Which series are here? With
# your own data, `dicom` is your folder; the folders in it are searched too.

# %%
from course_utils.data.dicom import convert_series, list_series

for number, one in enumerate(list_series(dicom), start=1):
    print(f"{number}: {one}")

# %%
fixed_file = folder / "patient_a.nii.gz"
convert_series(dicom, fixed_file, series=1)

scan = sitk.ReadImage(str(fixed_file))
assert scan.GetSize() == series.GetSize()
assert np.allclose(scan.GetSpacing(), series.GetSpacing(), atol=1e-3)
assert np.allclose(scan.GetOrigin(), series.GetOrigin(), atol=1e-3)
assert np.allclose(scan.GetDirection(), series.GetDirection(), atol=1e-5)
assert (sitk.GetArrayFromImage(scan) == sitk.GetArrayFromImage(series)).all()

# %% [markdown]
# In a terminal, `python -m course_utils convert-dicom FOLDER --list` lists the series, and `--series 1 --out scan.nii.gz` converts one.
# What had to be right for it? A series has to be sorted by position and never by file name. A NIfTI file knows a single distance
# between its slices, and it takes for granted that they lie exactly behind each other. So all steps along the normal of the slices must be equal,
# and no slice may be shifted sideways, as the slices of a tilted CT gantry are.

# %%
files = sorted(dicom.iterdir())
headers = [sitk.ReadImage(str(path)) for path in files]
corners = np.array(
    [header.GetOrigin() for header in headers]
)  # (slices, 3) mm, of each slice's first voxel
normal = np.array(headers[0].GetDirection()).reshape(3, 3)[:, 2]
order = np.argsort(corners @ normal)

between = np.diff(corners[order], axis=0)  # (slices - 1, 3) mm
steps = between @ normal
sideways = np.linalg.norm(between - np.outer(steps, normal), axis=1)
print(
    f"steps of {steps.min():.3f} to {steps.max():.3f} mm; sideways {sideways.max():.3f} mm at most"
)
assert np.allclose(steps, voxel_a[2], atol=1e-3) and sideways.max() < 1e-3

# %% [markdown]
# **Predict:** a slice in the middle was lost on the way. What does a reader that does not ask make of the others?
#
# > *My prediction:*

# %%
gap = folder / "patient_a_with_a_gap"
shutil.rmtree(gap, ignore_errors=True)
shutil.copytree(dicom, gap)
lost = series.GetDepth() // 2
(gap / files[order[lost]].name).unlink()

# it mutters a warning, and hands out the volume all the same
sitk.ProcessObject.GlobalWarningDisplayOff()
reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(gap)))
shorter = reader.Execute()
left = np.delete(corners[order], lost, axis=0)
claimed = [shorter.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(shorter.GetDepth())]
off = np.linalg.norm(left - claimed, axis=1)
print(f"{shorter.GetDepth()} slices of {shorter.GetSpacing()[2]:.3f} mm,", end=" ")
print(f"which lie up to {off.max():.1f} mm beside their place")
assert off.max() > 0.4 * voxel_a[2] and shorter.GetSpacing()[2] > 1.01 * voxel_a[2]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It closes the gap by stretching all the others a little: the distance between slices grows, and each slice lies beside its true
# place, by up to half the distance of two slices or more. No picture would show it.
#
# </details>
#
# The course's converter refuses such a series. It also refuses slices that are there twice, files without positions, tilted gantries, and
# a folder of several series of which none was chosen:

# %% tags=["raises-exception"]
convert_series(gap, folder / "gap.nii.gz")

# %% [markdown]
# Patient B: the colleague's software stores from front to back and from top to bottom, and it puts the origin somewhere else.

# %%
import nibabel as nib


def as_the_colleague(image, path):
    """Stored PIR, 25 mm away, as NIfTI."""
    sitk.WriteImage(image, str(path))
    volume = nib.load(path)
    want = nib.orientations.axcodes2ornt("PIR")
    volume = volume.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(volume.affine), want)
    )
    affine = volume.affine.copy()
    affine[:3, 3] += [25, -15, 10]
    array = np.asarray(volume.dataobj)
    nib.save(nib.Nifti1Image(array, affine), path)


moving_file, label_file = folder / "patient_b.nii.gz", folder / "patient_b_label.nii.gz"
as_the_colleague(other, moving_file)
as_the_colleague(sitk.Cast(other_label, sitk.sitkUInt8), label_file)

# %% [markdown]
# ## Look before you register
#
# Four facts of a header decide everything: shape, spacing, orientation and origin. Print them, always.
#
# **Predict:** in how many of the four do the two scans agree?
#
# > *My prediction:*

# %%
import pandas as pd

from course_utils.data.grids import overlap
from course_utils.data.volumes import read_image

moving, fixed = read_image(moving_file), read_image(fixed_file)


def facts(volume):
    affine = volume.grid.affine
    return {
        "voxels": "x".join(map(str, volume.grid.shape)),
        "spacing mm": "x".join(f"{mm:.2f}" for mm in volume.grid.spacing),
        "orientation": "".join(nib.aff2axcodes(affine)),
        "first voxel mm (RAS)": " ".join(f"{x:.0f}" for x in affine[:3, 3]),
        "type": volume.header.get_data_dtype().name,
        "values": f"{volume.data.min():.0f} to {volume.data.max():.0f}",
    }


share = overlap(moving.grid, fixed.grid)
print(f"{share:.0%} of the fixed scan's field of view lies inside the moving one's")
a, b = facts(fixed), facts(moving)
assert not any(a[what] == b[what] for what in list(a)[:4])
pd.DataFrame({"fixed: patient A": a, "moving: patient B": b})

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# In none of them. This is what scans of two scanners look like. It does no harm as long as every step reads the headers.
#
# </details>
#
# `read_image` refuses what cannot be used, in one line: several volumes in a file, colours, NaN, a label map
# instead of a scan, a header that does not say where the voxels are. Try to register the label map:

# %% tags=["raises-exception"]
read_image(label_file)

# %% [markdown]
# What do the two look like where the headers put them? (Where the right picture is black, the header of patient B puts it elsewhere.)
# Everything is compared in *millimetres*. Each voxel of the fixed scan has a
# position, and we look up what the moving scan has there.

# %%
from course_utils.data.resampling import resample
from course_utils.plotting import panel

before = resample(moving.data, moving.grid, fixed.grid)
truth = scanned(patient_a.label, size_a, voxel_a, tilt=9, is_label=True)
truth = sitk.GetArrayFromImage(truth).transpose(2, 1, 0).astype(np.uint8)  # SimpleITK has (z, y, x)

look = {
    "axis": 0,
    "spacing": fixed.grid.spacing,
    "orientation": "".join(nib.aff2axcodes(fixed.grid.affine)),
    "limits": (0, 1),
}


# %%
def windowed(scan):
    """From 0 to 1: the brightest 0.5 % are 1, or a few vessels would leave all else dark."""
    scan = np.asarray(scan).squeeze()
    return np.clip(scan / np.percentile(scan, 99.5), 0, 1)


seen_fixed, seen_before = windowed(fixed.data), windowed(before)
panel(
    {"fixed: patient A": seen_fixed, "moving: patient B, where its header puts it": seen_before},
    labels={"fixed: patient A": truth},
    names=labels,
    fill=True,
    title="before registration, with the structures of patient A",
    **look,
)

# %% [markdown]
# ## Register
#
# One command registers the pair. It notices that the two scans do not lie on each other and aligns them with 12 parameters first; its
# last line says why. Then it optimises a velocity field for this pair (notebook 10). With `--no-model` the optimisation begins with zero,
# and with `--model` a trained network gives the start.
#
# Which network? If you have trained one of your own on scans like these on page 06, it lies in the folder of your runs and is taken.
# Otherwise the network that ships with the course is taken, where the scans are hippocampi.

# %%
from course_utils.checkpoint import Checkpoint


def network_for(scans):
    """Your network of page 06 if it was trained on such scans, else the shipped one, else none."""
    own = session.runs / "training" / "first" / "best.pt"
    if own.exists() and Checkpoint.load(own).card.dataset == scans:
        return own
    return "hippocampus" if scans == "hippocampus" else None


network = network_for(volumes)
whose = {None: "no network", "hippocampus": "the shipped network"}.get(network, "your own network")
print(f"for these scans there is {whose}")
if network is None:
    print("run notebook 06 with the same COURSE_DATASET, and then this page again")

# %%
RESULTS = ("moved", "warp", "inverse_warp", "moved_label")


def register(name, *options):
    """Run the command; the files that it has written, by name."""
    files = {one: folder / f"{name}_{one}.nii.gz" for one in RESULTS}
    command = [sys.executable, "-m", "course_utils", "register", *options]
    command += ["--moving", moving_file, "--fixed", fixed_file, "--moving-label", label_file]
    for one, file in files.items():
        command += [f"--{one.replace('_', '-')}", file]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print(f"{name}: {done.stdout or done.stderr}")
    assert done.returncode == 0 and "aligned first (" in done.stdout
    return files


ways = {"optimised": register("optimised", "--no-model")}
if network is not None:
    ways["network"] = register("network", "--model", network, "--iterations", "0")
    ways["network, optimised"] = register("both", "--model", network, "--iterations", "50")
files = list(ways.values())[-1]  # the one that the rest of the page looks at

# %%
moved = nib.load(files["moved"])
assert moved.shape == fixed.grid.shape and np.allclose(moved.affine, fixed.grid.affine, atol=1e-4)
assert moved.get_data_dtype() == moving.header.get_data_dtype()

# %% [markdown]
# The moved scan lies on the fixed scan's grid and keeps the moving scan's data type, so any viewer puts one over the other.
#
# ## Was it right?
#
# The similarity has gone up, but that was the goal of the optimisation. Something that was *not* the goal has to agree as well: labels, if you have
# them. The command has never seen the label map of patient A.
#
# **Predict:** which has the higher Dice, the optimisation that began with zero or the one that began with the network's answer, and by how much?
#
# > *My prediction:*

# %%
import torch

from course_utils.data.resampling import sample
from course_utils.metrics import dice
from course_utils.scans.transform import Transform

fixed_label = torch.from_numpy(truth)[None, None]


def mean_dice(values):
    return dice(torch.as_tensor(values)[None, None], fixed_label, list(labels)).nanmean().item()


# where the headers put it: voxels of the moving scan for each voxel of the fixed one
nowhere = torch.zeros(1, 3, *fixed.grid.shape)
as_headers_say = Transform(fixed.grid, nowhere, np.eye(4), np.eye(4))
placement = as_headers_say.between(fixed.grid, moving.grid)  # (1, 3, X, Y, Z)
stored = torch.from_numpy(np.asarray(nib.load(label_file).dataobj).copy())[None, None]
moved_labels = {"as the headers say": sample(stored, placement, mode="nearest")[0, 0].numpy()}
for name, written in ways.items():
    moved_labels[name] = np.asarray(nib.load(written["moved_label"]).dataobj).astype(np.uint8)
scores = {name: mean_dice(values) for name, values in moved_labels.items()}
for name, score in scores.items():
    print(f"{name:<20} Dice {score:.3f}")

# %%
still = scores.pop("as the headers say")
assert all(score > still + 0.2 for score in scores.values())
assert max(scores.values()) > 0.55
if network is not None:
    assert abs(scores["network, optimised"] - scores["optimised"]) < 0.1
    assert scores["network, optimised"] > scores["network"] - 0.05
pictures = {"fixed: patient A": seen_fixed, "as the headers say": seen_before}
pictures |= {name: windowed(nib.load(one["moved"]).get_fdata()) for name, one in ways.items()}
shown = {"fixed: patient A": truth} | moved_labels
panel(
    pictures,
    labels=shown,
    references=dict.fromkeys(list(pictures)[1:], truth),
    names=labels,
    fill=True,
    columns=3,
    title="moved labels, filled; those of patient A, dashed",
    **look,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Where there is a network, the two differ by less than 0.1, which the cell asserts; the table says which is ahead on this pair. Both optimisations
# end near a minimum of nearly the same loss. For one pair no more can be said: notebook 10 compares eight.
#
# </details>
#
# ## Turn the slices
#
# The slider goes through the axial slices. Over the moved scan lie its own structures, filled, and the dashed contours of patient A's.
# It works on the web site too.

# %%
from course_utils.plotting import Slider

images = [seen_fixed, windowed(moved.get_fdata()), seen_before]
axial = look | {"axis": 2}
depth = fixed.grid.shape[2]
frames = {
    str(at): panel(
        {"fixed": images[0], "moved": images[1]},
        labels={"moved": moved_labels[list(ways)[-1]]},
        references={"fixed": truth, "moved": truth},
        names=labels,
        fill=True,
        at=at,
        **axial,
    )
    for at in np.linspace(0.15 * depth, 0.85 * depth, 9).astype(int)
}
Slider(frames, "slice")

# %% [markdown]
# A second slider blends from the fixed scan to the other one. An edge that stays where it is while you turn is registered. An edge that
# walks or doubles is not.

# %%
blends = {}
for percent in (0, 25, 50, 75, 100):
    share = percent / 100
    mixed = {
        "before registration": (1 - share) * images[0] + share * images[2],
        "after registration": (1 - share) * images[0] + share * images[1],
    }
    blends[f"{percent} % moving"] = panel(mixed, at=depth // 2, **axial)
Slider(blends, "blend")

# %% [markdown]
# In a running notebook you can turn both scans in 3-D, if `ipyniivue` is installed (`pip install ipyniivue`):
#
# ```python
# from ipyniivue import NiiVue
# viewer = NiiVue()
# viewer.load_volumes([
#     {"path": str(fixed_file), "colormap": "gray"},
#     {"path": str(files["moved"]), "colormap": "warm", "opacity": 0.4},
# ])
# viewer
# ```
#
# Without it, open the two files in 3D Slicer, ITK-SNAP or [niivue.com](https://niivue.com).
#
# ## Does other software agree?
#
# The field lies on disk as ITK, ANTs and 3D Slicer want it: in millimetres, along left, posterior and superior, with one vector for
# each voxel of the fixed scan. Affine map and deformation are in it together. So SimpleITK, which knows nothing of this course, must make
# *the same image* from the original scan and the field.
#
# **Predict:** suppose that one axis of the field had the wrong sign. Would the number that the cell prints show it?
#
# > *My prediction:*


# %%
def theirs(field):
    """The moved scan as SimpleITK makes it from a field, (x, y, z)."""
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))  # it takes the field away
    scan, target = (
        sitk.ReadImage(str(moving_file), sitk.sitkFloat32),
        sitk.ReadImage(str(fixed_file)),
    )
    image = sitk.Resample(scan, target, transform, sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def far_from_ours(image):
    return np.abs(image - moved.get_fdata()).mean() / np.ptp(moving.data.numpy())


field = sitk.ReadImage(str(files["warp"]), sitk.sitkVectorFloat64)
vectors = sitk.GetArrayFromImage(field)
vectors[..., 0] *= -1  # the mistake: left for right
wrong = sitk.GetImageFromArray(vectors, isVector=True)
wrong.CopyInformation(field)
shares = {"right": far_from_ours(theirs(field)), "one sign wrong": far_from_ours(theirs(wrong))}
for name, share in shares.items():
    print(f"{name}: mean difference {share:.4%} of the range")
assert shares["right"] < 0.005 < 0.02 < shares["one sign wrong"]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Yes: the difference becomes many times as large. In a picture of the field you would see nothing, because a field with a wrong sign is as
# smooth as the right one.
#
# </details>
#
# The right one is not exactly 0, because our moved scan is rounded to the moving scan's data type. Points go the other way than images: a
# point of the fixed scan is sent to where the moving image was read. The inverse field brings it back.


# %%
def as_transform(file):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(file), sitk.sitkVectorFloat64))


there, back = as_transform(files["warp"]), as_transform(files["inverse_warp"])
inside = np.argwhere(truth > 0)
inside = inside[:: max(1, len(inside) // 50)]
points = [fixed.grid.affine[:3, :3] @ voxel + fixed.grid.affine[:3, 3] for voxel in inside]
points = [tuple(point * [-1, -1, 1]) for point in points]  # RAS to ITK's LPS
sent = [there.TransformPoint(point) for point in points]
away = np.linalg.norm(np.subtract(sent, points), axis=1)
error = np.linalg.norm(np.subtract([back.TransformPoint(one) for one in sent], points), axis=1)
print(f"{len(points)} points are sent {away.mean():.1f} mm away", end=" ")
print(f"and come back {error.mean():.2f} mm from home")
assert error.mean() < 0.5 < away.mean()

# %% [markdown]
# ## The same in MONAI
#
# MONAI carries the affine of a scan along in its `MetaTensor`. `LoadImage` reads scan and header, and `ResampleToMatch` brings one scan
# to the grid of the other, as the course's `sample` does. The course's `resample` does one thing more: where voxels become larger, as in the
# thick slices here, it smooths first, so that what lies between two slices is not left out. `DiceMetric` measures the moved labels. It
# takes them one-hot; of a label map with one channel it would measure label 1 alone.

# %%
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot
from monai.transforms import LoadImage, ResampleToMatch

load = LoadImage(ensure_channel_first=True, image_only=True)
onto = ResampleToMatch(mode="bilinear", padding_mode="zeros")
monai_moving, monai_fixed = load(moving_file), load(fixed_file)  # (1, X, Y, Z), with affines
matched = onto(monai_moving, monai_fixed)
inside = onto(torch.ones_like(monai_moving), monai_fixed).as_tensor() > 0.999
ours = {"sample": sample(moving.data, placement), "resample, which smooths": before}
apart = {}
for name, image in ours.items():
    apart[name] = (matched.as_tensor() - image[0])[inside].abs().max() / np.ptp(moving.data.numpy())
    print(f"{name}: differs from MONAI's by {apart[name]:.1e} of the range at most")
assert tuple(matched.shape[1:]) == fixed.grid.shape and apart["sample"] < 1e-3

# %%
metric, count = DiceMetric(include_background=False), max(labels) + 1
for name in ways:
    maps = [torch.as_tensor(one)[None, None] for one in (moved_labels[name], truth)]
    of_each = metric(*(one_hot(one.long(), count) for one in maps))[0]
    theirs_says = of_each[[value - 1 for value in labels]].nanmean().item()
    print(f"{name}: DiceMetric says {theirs_says:.4f}, ours {scores[name]:.4f}")
    assert abs(theirs_says - scores[name]) < 1e-4

# %% [markdown]
# ## With your own files
#
# ```sh
# python -m course_utils convert-dicom EXPORT --series 1 --out A.nii.gz
# python -m course_utils register --moving B.nii.gz --fixed A.nii.gz --moved B_on_A.nii.gz \
#     --warp warp.nii.gz --inverse-warp inverse.nii.gz --model hippocampus
# antsApplyTransforms -d 3 -i B_seg.nii.gz -r A.nii.gz -t warp.nii.gz -n GenericLabel -o B_seg_on_A.nii.gz
# ```
#
# `python -m course_utils serve` opens a page in the browser that does the same with two files that you drop into it. In a JupyterLab on
# your own machine it also fits into a cell, with `pip install starlette uvicorn python-multipart`:
#
# ```python
# from course_utils.serving.notebook import PageInCell
#
# page = PageInCell()
# page                # drop two scans; page.close() deletes everything
# ```
#
# - Scans of different contrast need `--affine-similarity mi`. The deformation uses local correlation, which forgives much of it.
# - A network works at the spacing that it was trained on. It cannot do what it has never seen: another organ, another contrast, a skull.
# - `--layout learn2reg` writes the challenge's layout instead.
#
# ## What you now have
#
# - Two files of different scanners, read by their headers and registered on one grid, without a network and with one.
# - A converter that refuses what it cannot convert rightly, and the reason for each refusal.
# - Three proofs that a field is right: labels that nobody has optimised, the same image by other software, and points that come home.
#
# **What can go wrong.** A converter drops the orientation: left becomes right, and the picture looks fine. Two headers (sform and
# qform) disagree. Nobody notices a turn; `--affine` aligns in any case. A label map is resampled linearly and has labels that
# nobody has drawn. **No number on this page makes a result fit for a clinical decision.**
#
# **Try it.**
# 1. *(easy)* Add `--no-affine` to the command. What does the command say, and what does the result look like?
# 2. *(easy)* Destroy a header (`nib.Nifti1Image(array, None)`) and register it. Which line do you get?
# 3. *(middle)* Apply `inverse_warp` to the fixed scan. On whose grid is the result?
# 4. *(middle)* Take `--model hippocampus-labels`. Is the optimisation after it (`--iterations 50`) worth its time?
# 5. *(hard)* Register A to B instead of B to A. How far are the two fields from being each other's inverse, in mm?
#
# **References.** NIfTI-1 data format, [nifti.nimh.nih.gov](https://nifti.nimh.nih.gov/nifti-1/), 2004. Larobina and Murino, *Medical image
# file formats*, Journal of Digital Imaging 27, 2014, [doi:10.1007/s10278-013-9657-9](https://doi.org/10.1007/s10278-013-9657-9). Li et
# al., *The first step for neuroimaging data analysis: DICOM to NIfTI conversion*, Journal of Neuroscience Methods 264, 2016,
# [doi:10.1016/j.jneumeth.2016.03.001](https://doi.org/10.1016/j.jneumeth.2016.03.001). Avants et al., *A reproducible evaluation of
# ANTs similarity metric performance in brain image registration*, NeuroImage 54(3), 2011,
# [doi:10.1016/j.neuroimage.2010.09.025](https://doi.org/10.1016/j.neuroimage.2010.09.025).
#
# Next: [12 Two directions](12_two_directions.ipynb): what a network answers when it is asked twice.
