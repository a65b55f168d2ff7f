# %% [markdown]
# # 11 Your own scans
#
# A folder of DICOM slices from the hospital, a NIfTI file from a colleague: other voxels, other orientation, another corner of
# the room. You bring both to one registered pair without losing track of where anything is: read, look at the headers, register
# with one command, turn the pages with a slider, and prove with other software that the written field is what you think it is.
# The page makes its own two scans, so that the truth is known; with yours, change two paths.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/11_your_own_scans.ipynb)

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
# Patient A comes as a DICOM series: thick slices, tilted, one file per slice. Patient B is a NIfTI file, stored from front to back
# and from right to left. Both are made here from two brains of the built-in cohort. **Predict:** how many of shape, spacing,
# orientation and origin will agree?

# %%
import numpy as np

from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort

root = session.data_root / "own_scans"
make_cohort(root / "synthetic", subjects=12, spacing=2.5)
patient_a, patient_b = load_cohort("synthetic", root).subjects[:2]


# %%
def scanned(path, size, spacing, tilt, interpolator=sitk.sitkLinear):
    """What a scanner with these voxels, tilted about the left-right axis and shifted, would have
    stored."""
    image = sitk.ReadImage(str(path))
    c, s = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    centre = np.array(
        image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    )
    origin = centre - direction @ ((np.array(size) - 1) / 2 * spacing)
    return sitk.Resample(
        image,
        size,
        sitk.Transform(),
        interpolator,
        origin,
        spacing,
        direction.ravel(),
        0.0,
        sitk.sitkInt16,
    )


# %%
series = scanned(patient_a.image, (72, 88, 36), (2.4, 2.4, 5.0), tilt=9)
other = scanned(patient_b.image, (64, 80, 64), (2.7, 2.6, 2.8), tilt=0)
other_label = scanned(
    patient_b.label, (64, 80, 64), (2.7, 2.6, 2.8), tilt=0, interpolator=sitk.sitkNearestNeighbor
)

# %% [markdown]
# Patient A becomes a DICOM series. A real one has a hundred more tags; these are what a reader needs to put the slices back in
# order and in place. `0020|0032` is the position of a slice, `0020|0037` the direction of its rows and columns.

# %%
import shutil

# %%
dicom = folder / "patient_a"
shutil.rmtree(dicom, ignore_errors=True)
dicom.mkdir()
writer = sitk.ImageFileWriter()
writer.KeepOriginalImageUIDOn()
rows_and_columns = np.array(series.GetDirection()).reshape(3, 3)[:, :2].T.ravel()
for number in range(series.GetDepth()):
    slice_ = series[:, :, number]
    tags = {
        "0008|0060": "MR",
        "0008|103e": "T1, thick slices",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",  # MR image storage
        "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
        "0020|000e": "1.2.826.0.1.3680043.2.1125.1.1",
        "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.1.{number + 1}",
        "0020|0013": str(number + 1),
        "0018|0050": f"{series.GetSpacing()[2]:.3f}",
        "0020|0032": "\\".join(
            f"{x:.6f}" for x in series.TransformIndexToPhysicalPoint((0, 0, number))
        ),
        "0020|0037": "\\".join(f"{x:.6f}" for x in rows_and_columns),
    }
    for tag, value in tags.items():
        slice_.SetMetaData(tag, value)
    writer.SetFileName(
        str(dicom / f"{(number * 7) % series.GetDepth():03d}.dcm")
    )  # names in no order, as they come
    writer.Execute(slice_)
print(f"{len(list(dicom.iterdir()))} files")

# %% [markdown]
# ## From DICOM to NIfTI
#
# An export rarely holds one series: a localiser, T1, T2, two echoes under one name. Which are here? With your own data, `dicom` is
# your folder; the folders in it are searched too.

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
# In a terminal it is `python -m course_utils convert-dicom FOLDER --list`, then `--series 1 --out scan.nii.gz`. What had to be
# right for it? A series is sorted by position, never by file name. A NIfTI file knows one step for all slices, and that they lie
# behind each other. So along the normal of the slices' plane all steps must be equal, and nothing may be shifted sideways, as a
# tilted CT gantry does.

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
assert np.allclose(steps, 5.0, atol=1e-3) and sideways.max() < 1e-3

# %% [markdown]
# **Predict:** a slice in the middle was lost on the way. What does a reader that does not ask make of the other 35?

# %%
gap = folder / "patient_a_with_a_gap"
shutil.rmtree(gap, ignore_errors=True)
shutil.copytree(dicom, gap)
(gap / files[order[18]].name).unlink()

# it mutters a warning, and hands out the volume all the same
sitk.ProcessObject.GlobalWarningDisplayOff()
reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(gap)))
shorter = reader.Execute()
left = np.delete(corners[order], 18, axis=0)
claimed = [shorter.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(shorter.GetDepth())]
off = np.linalg.norm(left - claimed, axis=1)
print(
    f"{shorter.GetDepth()} slices of {shorter.GetSpacing()[2]:.3f} mm, which lie up to "
    f"{off.max():.1f} mm beside their place"
)
assert off.max() > 2 and shorter.GetSpacing()[2] > 5.1

# %% [markdown]
# Every slice is stretched a little, and no picture would show it. So it is refused, as are slices that are there twice, files
# without positions, tilted gantries, and a folder of several series where none was chosen:

# %% tags=["raises-exception"]
convert_series(gap, folder / "gap.nii.gz")

# %% [markdown]
# Patient B: the colleague's software stores from right to left and from back to front, and puts the origin elsewhere.

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
# Four facts of a header decide everything. Print them, always.

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


print(
    f"of the fixed scan's field of view, {overlap(moving.grid, fixed.grid):.0%} lies inside the "
    "moving one's"
)
pd.DataFrame({"fixed: patient A": facts(fixed), "moving: patient B": facts(moving)})

# %% [markdown]
# Nothing agrees. `read_image` refuses what cannot be used, in one line: several volumes in a file, colours, NaN, a label map
# instead of a scan, a header that does not say where the voxels are. Try to register the label map:

# %% tags=["raises-exception"]
read_image(label_file)

# %% [markdown]
# What do the two look like where the headers put them? Everything is compared in *millimetres*: for each voxel of the fixed
# scan, its position, and what the moving scan has there.

# %%
from course_utils.data.resampling import resample
from course_utils.plotting import checkerboard, panel

before = resample(moving.data, moving.grid, fixed.grid)
orientation = "".join(nib.aff2axcodes(fixed.grid.affine))
panel(
    {"fixed": fixed.data[0, 0], "moving, where its header puts it": before[0, 0]},
    axis=0,
    spacing=fixed.grid.spacing,
    orientation=orientation,
)

# %% [markdown]
# ## Register
#
# One command. It notices that the two scans do not lie on each other and aligns them with 12 parameters first; its last line says
# why. Then it optimises a velocity field for this pair, coarse to fine (notebook 10); with `--model runs/.../best.pt` instead of
# `--no-model` a trained network gives the start.

# %%
files = {
    name: folder / f"{name}.nii.gz" for name in ("moved", "warp", "inverse_warp", "moved_label")
}
command = [sys.executable, "-m", "course_utils", "register", "--no-model"]
command += ["--moving", moving_file, "--fixed", fixed_file, "--moving-label", label_file]
for name, file in files.items():
    command += [f"--{name.replace('_', '-')}", file]
done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
print(done.stdout, done.stderr)
assert done.returncode == 0 and "aligned first (their centres are" in done.stdout

# %%
moved = nib.load(files["moved"])
assert moved.shape == fixed.grid.shape and np.allclose(moved.affine, fixed.grid.affine, atol=1e-4)
assert moved.get_data_dtype() == moving.header.get_data_dtype()
pictures = {"before": before[0, 0].numpy(), "after": moved.get_fdata()}
checkerboard(
    {name: (picture, fixed.data[0, 0]) for name, picture in pictures.items()},
    axis=0,
    spacing=fixed.grid.spacing,
    orientation=orientation,
)

# %% [markdown]
# Follow an edge from tile to tile: before it jumps, after it goes on. The moved scan lies on the fixed scan's grid, so any viewer
# puts one over the other.
#
# ## Was it right?
#
# Similarity went up, because that was the goal. Something that was *not* the goal has to agree: labels, if you have them.
# Patient A's label was never shown to the command.

# %%
import torch

from course_utils.data.resampling import sample
from course_utils.metrics import dice
from course_utils.scans.transform import Transform

truth = scanned(
    patient_a.label, (72, 88, 36), (2.4, 2.4, 5.0), tilt=9, interpolator=sitk.sitkNearestNeighbor
)
truth = torch.from_numpy(sitk.GetArrayFromImage(truth).transpose(2, 1, 0).astype(np.uint8))[
    None, None
]
label = nib.load(label_file)


def mean_dice(values):
    return dice(torch.as_tensor(values)[None, None], truth, range(1, 11)).nanmean().item()


# %%
placed = nib.load(files["moved_label"])
flip = nib.orientations.ornt_transform(
    nib.io_orientation(placed.affine), nib.io_orientation(nib.load(fixed_file).affine)
)
assert (flip == [[0, 1], [1, 1], [2, 1]]).all()  # the same array as patient A's
as_headers_say = Transform(fixed.grid, torch.zeros(1, 3, *fixed.grid.shape), np.eye(4), np.eye(4))
placement = as_headers_say.between(
    fixed.grid, moving.grid
)  # (1, 3, X, Y, Z), voxels of the moving scan
still = sample(
    torch.from_numpy(np.asarray(label.dataobj).copy())[None, None], placement, mode="nearest"
)[0, 0]
after = mean_dice(np.asarray(placed.dataobj).astype(np.uint8))
print(f"Dice of ten structures: {mean_dice(still):.3f} -> {after:.3f}")
assert after > 0.6 and after > mean_dice(still) + 0.2

# %% [markdown]
# ## Turn the pages
#
# In a running notebook, the slider goes through the slices, and the second control blends from fixed to moved. (On a page that
# is only read, you see the middle slice.)

# %%
import ipywidgets

images = [np.asarray(image, dtype=float) for image in (fixed.data[0, 0], moved.get_fdata())]
images = [image / np.percentile(image, 99.5) for image in images]


def blended(position, blend):
    """An axial slice: 0 shows the fixed scan, 1 the moved one."""
    mixed = {
        f"{1 - blend:.0%} fixed, {blend:.0%} moved": (1 - blend) * images[0] + blend * images[1]
    }
    return panel(
        mixed,
        axis=2,
        at=position,
        spacing=fixed.grid.spacing,
        orientation=orientation,
        limits=(0, 1),
    )


middle = fixed.grid.shape[2] // 2
blended(middle, 0.5)

# %%
_ = ipywidgets.interact(blended, position=(0, fixed.grid.shape[2] - 1), blend=(0.0, 1.0, 0.1))
# %% [markdown]
# In 3-D, with the moved scan coloured over the fixed one, if `ipyniivue` is installed (`pip install ipyniivue`):

# %%
if importlib.util.find_spec("ipyniivue"):
    from ipyniivue import NiiVue
    from IPython.display import display

    viewer = NiiVue()
    viewer.load_volumes(
        [
            {"path": str(fixed_file), "colormap": "gray"},
            {"path": str(files["moved"]), "colormap": "warm", "opacity": 0.4},
        ]
    )
    display(viewer)
else:
    print(
        "ipyniivue is not installed: open the two files in 3D Slicer, ITK-SNAP or niivue.com "
        "instead"
    )

# %% [markdown]
# ## Does other software agree?
#
# The field is on disk as ITK, ANTs and 3D Slicer want it: millimetres, along left, posterior and superior, one vector per voxel of
# the fixed scan. Affine and deformation are in it together. So SimpleITK, which knows nothing of this course, must make *the same
# image* from the original and the field. **Predict:** if the sign of one axis were wrong, would you see it in the picture of the
# field? Would you see it in this number?

# %%
field = sitk.ReadImage(str(files["warp"]), sitk.sitkVectorFloat64)
transform = sitk.DisplacementFieldTransform(field)
theirs = sitk.Resample(
    sitk.ReadImage(str(moving_file), sitk.sitkFloat32),
    sitk.ReadImage(str(fixed_file)),
    transform,
    sitk.sitkLinear,
    0.0,
)
theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)  # SimpleITK's arrays are (z, y, x)
difference = np.abs(theirs - moved.get_fdata())
share = difference.mean() / np.ptp(moving.data.numpy())
print(
    f"mean difference {share:.4%} of the range, largest {difference.max():.2f} grey values (ours "
    f"are rounded to {moved.get_data_dtype()})"
)
assert share < 0.005

# %% [markdown]
# Points go the other way than images: a point of the fixed scan is sent to where the moving image was read. And the inverse
# field brings it back.

# %%
back = sitk.DisplacementFieldTransform(
    sitk.ReadImage(str(files["inverse_warp"]), sitk.sitkVectorFloat64)
)
field = sitk.ReadImage(
    str(files["warp"]), sitk.sitkVectorFloat64
)  # a transform takes its field away from the image
there = sitk.DisplacementFieldTransform(field)
inside = np.argwhere(truth[0, 0].numpy() > 0)[::997]
points = [fixed.grid.affine[:3, :3] @ voxel + fixed.grid.affine[:3, 3] for voxel in inside]
points = [tuple(point * [-1, -1, 1]) for point in points]  # RAS to ITK's LPS
moved_by = [np.linalg.norm(np.subtract(there.TransformPoint(point), point)) for point in points]
error = [
    np.linalg.norm(np.subtract(back.TransformPoint(there.TransformPoint(point)), point))
    for point in points
]
print(
    f"{len(points)} points are sent {np.mean(moved_by):.1f} mm away and come back "
    f"{np.mean(error):.2f} mm from home"
)
assert np.mean(error) < 0.5 < np.mean(moved_by)

# %% [markdown]
# ## With your own files
#
# ```sh
# python -m course_utils convert-dicom EXPORT --series 1 --out A.nii.gz
# python -m course_utils register --moving B.nii.gz --fixed A.nii.gz --moved B_on_A.nii.gz \
#     --warp warp.nii.gz --inverse-warp inverse.nii.gz --model runs/hippocampus/best.pt
# antsApplyTransforms -d 3 -i B_seg.nii.gz -r A.nii.gz -t warp.nii.gz -n GenericLabel -o B_seg_on_A.nii.gz
# ```
#
# - Scans of different contrast: `--affine-similarity mi`. The deformation uses local correlation, which forgives much of it.
# - A model works at the spacing that it was trained on. What it never saw (another organ, another contrast, a skull) it cannot do.
# - `--layout learn2reg` writes the challenge's layout instead.
#
# **What can go wrong.** A converter that drops the orientation: left becomes right, and the picture looks fine. Two headers (sform
# and qform) that disagree. A turn that nobody notices: `--affine` aligns in any case. A label resampled linearly has labels that nobody drew.
# **No number on this page makes a result fit for a clinical decision.**
#
# **Try it.**
# 1. Add `--no-affine`. What does the command say of the distance, and what does the result look like?
# 2. Destroy a header (`nib.Nifti1Image(array, None)`) and register it. Which line do you get?
# 3. Apply `inverse_warp` to the fixed scan. On whose grid is the result?
#
# **References.** NIfTI-1 data format, nifti.nimh.nih.gov, 2004. Larobina and Murino, *Medical image file formats*, Journal of
# Digital Imaging 27, 2014. Li et al., *The first step for neuroimaging data analysis: DICOM to NIfTI conversion*, Journal of
# Neuroscience Methods 264, 2016. Avants et al., *A reproducible evaluation of ANTs similarity metric performance in brain image
# registration*, NeuroImage 54(3), 2011.
#
# Next: [12 Two directions](12_two_directions.ipynb): what a network answers when it is asked twice.
