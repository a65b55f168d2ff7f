# %% [markdown]
# # Assignment 4: U-Net and VoxelMorph, forward
#
# Two images in, a velocity out, integrated, resized, and one image warped. You write each stage of that forward pass
# and check it number by number against the course's network with the same weights. Then you measure how far a network
# sees, and build what VoxelMorph lacks: a network that agrees with itself when the two images are exchanged.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 90 | 90 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/04_voxelmorph.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/04_voxelmorph.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass. Your teacher's checks ask the same questions of other networks and images, in 2-D and 3-D, of odd sizes
# too. The exercises do not build on each other: every one works with the modules of the course.

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

# %%
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration
from course_utils.plotting import panel

cohort = load_cohort(session.dataset)
pair = cohort.pairs("test", count=1)[0]
item = PairDataset(load_subjects((pair.fixed, pair.moving), cohort.info.recipe), [pair])[0]
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, *spatial)
panel({"moving": moving, "fixed": fixed}, spacing=cohort.info.spacing)

# %% [markdown]
# ## Exercise 1: A block (2 points)
#
# The brick of the network is an `nn.Sequential` of a convolution and a leaky ReLU of slope 0.2. With `stride=1` the
# convolution has width 3 and keeps the size of its input. With `stride=2` it halves it, and its width is **4**: a
# coarse voxel stands for *two* fine ones, and an even kernel is centred between them. A strided 3-kernel sits on
# every second voxel, half a voxel off. Both have `padding=1`. `dims` is 2 or 3.


# %% nbgrader={"schema_version": 3, "grade_id": "block", "grade": false, "solution": true, "locked": false}
# exercise: block
def block(dims, inputs, outputs, stride=1):
    """nn.Sequential of a convolution from ``inputs`` to ``outputs`` channels and a leaky ReLU."""
    ### BEGIN SOLUTION
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    width = 4 if stride == 2 else 3
    return nn.Sequential(convolution(inputs, outputs, width, stride, padding=1), nn.LeakyReLU(0.2))
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "block-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: block-check
from course_utils.grading.judges import unet as judges

judges.block(block, dims=2, inputs=3, outputs=5, stride=1, size=(8, 10))
judges.block(block, dims=2, inputs=3, outputs=5, stride=2, size=(8, 10))
### BEGIN HIDDEN TESTS
judges.block(block, dims=3, inputs=2, outputs=4, stride=1, size=(6, 7, 5))
judges.block(block, dims=3, inputs=1, outputs=6, stride=2, size=(6, 8, 4))
judges.block(block, dims=2, inputs=7, outputs=2, stride=2, size=(14, 6))
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: Down (2 points)
#
# `levels` are blocks, finest first (`UNet(...).encoder` is such a list). The first sees the images, each other one
# the result of the one before. The decoder will need all results: return them as a list, finest first.


# %% nbgrader={"schema_version": 3, "grade_id": "encode", "grade": false, "solution": true, "locked": false}
# exercise: encode
def encode(levels, x):
    """The result (B, C, *spatial) of every level, a list from fine to coarse."""
    ### BEGIN SOLUTION
    features = []
    for level in levels:
        x = level(x)
        features.append(x)
    return features
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "encode-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: encode-check
from course_utils.grading.judges import unet as judges

# The encoder of a U-Net with known weights, and two images of this shape.
judges.encode(encode, features=(4, 6, 8), first_stride=1, shape=(16, 12), seed=0)
### BEGIN HIDDEN TESTS
for features, stride, shape, seed in [((3, 5), 2, (8, 4, 12), 1), ((2, 3, 4, 5), 2, (32, 16), 2)]:
    what = f"encode with {len(features)} levels in {len(shape)}-D"
    judges.encode(encode, features, stride, shape, seed, what)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: Up (3 points)
#
# Start with the coarsest features. For each level of the decoder (`levels`, coarsest first): double the resolution by
# repeating voxels (`F.interpolate`, `scale_factor=2`, `mode="nearest"`), put the encoder's features of that
# resolution *behind* it (channels, `dim=1`), and let the level convolve. Return the finest result.
#
# <details><summary>Hint</summary>With features f0, f1, f2 (finest first) the first level sees the doubled f2 with f1,
# the second sees its doubled result with f0.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "decode", "grade": false, "solution": true, "locked": false}
# exercise: decode
def decode(levels, features):
    """The result (B, C, *spatial) of the last level; ``features`` are those of the encoder, finest
    first."""
    ### BEGIN SOLUTION
    *skips, x = features
    for level in levels:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = level(torch.cat([x, skips.pop()], dim=1))
    return x
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "decode-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: decode-check
from course_utils.grading.judges import unet as judges

# The decoder of a U-Net with known weights, and what its encoder makes of two images of this shape.
judges.decode(decode, features=(6, 6, 6), shape=(16, 24), seed=0)
### BEGIN HIDDEN TESTS
for features, shape, seed in [
    ((3, 5, 4), (8, 4, 12), 1),
    ((2, 3, 4, 5), (32, 16), 2),
    ((4, 2), (6, 10, 4), 3),
]:
    what = f"decode with widths {features} in {len(shape)}-D"
    judges.decode(decode, features, shape, seed, what)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: Start at the identity (1 point)
#
# The last layer turns the features into a velocity with a component an axis: a convolution of width 3 that keeps the
# size. Training should start with hardly any deformation: draw its weights from $\mathcal N(0, 10^{-5})$ (standard
# deviation), and set its bias to 0.


# %% nbgrader={"schema_version": 3, "grade_id": "head", "grade": false, "solution": true, "locked": false}
# exercise: head
def velocity_head(dims, features):
    """The convolution from ``features`` channels to a velocity of ``dims`` components."""
    ### BEGIN SOLUTION
    head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, dims, 3, padding=1)
    nn.init.normal_(head.weight, std=1e-5)
    nn.init.zeros_(head.bias)
    return head
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "head-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: head-check
from course_utils.grading.judges import unet as judges

judges.head(velocity_head, dims=2, features=16)
### BEGIN HIDDEN TESTS
judges.head(velocity_head, dims=3, features=7)
judges.head(velocity_head, dims=2, features=40)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: Sizes that do not divide (2 points)
#
# Three halvings need sizes that are multiples of 8. Bring any image there: repeat its edge (`mode="replicate"`) at
# the *end* of each axis, up to the next multiple. At the end, because then voxel 0 stays voxel 0 and no displacement
# needs correcting. A size that divides already stays.
#
# <details><summary>Hint</summary><code>F.pad</code> wants its margins for the <em>last</em> axis first: (before,
# after) of the last axis, then (before, after) of the one before it.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "pad", "grade": false, "solution": true, "locked": false}
# exercise: pad
def pad_to_multiple(images, divisor):
    """Images (B, C, *spatial), padded at the end of each axis to the next multiple of
    ``divisor``."""
    ### BEGIN SOLUTION
    margins = []
    for n in reversed(images.shape[2:]):
        margins += [0, -n % divisor]
    return F.pad(images, margins, mode="replicate")
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "pad-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: pad-check
from course_utils.grading.judges import voxelmorph as judges

judges.pad(pad_to_multiple, shape=(2, 2, 13, 24), divisor=8)
### BEGIN HIDDEN TESTS
for shape, divisor in [((9, 17, 32), 16), ((5, 6, 7), 4), ((12, 4), 4)]:
    what = f"pad_to_multiple of {shape} to {divisor}"
    judges.pad(pad_to_multiple, (1, 1, *shape), divisor, seed=1, what=what)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: VoxelMorph (5 points)
#
# All together. `unet` is a `UNet` whose finest level works at *half* resolution, `head` the velocity head.
#
# 1. Pad both images (`unet.divisor` is the multiple), moving first, fixed second, as the channels of one tensor.
# 2. U-Net and head: a velocity on the coarse grid.
# 3. `integrate` it *there*, then `resize` the displacement to the padded size (the course's `resize` scales the
#    vectors too).
# 4. Crop the displacement to the image's size, warp the moving image, as it came in.
#
# <details><summary>Hint</summary>To crop the end of N axes: <code>displacement[(..., *(slice(n) for n in
# spatial))]</code>.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "forward", "grade": false, "solution": true, "locked": false}
# exercise: forward
def register(unet, head, moving, fixed):
    """(moved (B, 1, *spatial), displacement (B, N, *spatial) in voxels) of two images (B, 1,
    *spatial)."""
    ### BEGIN SOLUTION
    spatial = moving.shape[2:]
    padded = [-(-n // unet.divisor) * unet.divisor for n in spatial]
    margins = [
        m for n, p in zip(reversed(spatial), reversed(padded), strict=True) for m in (0, p - n)
    ]
    images = F.pad(torch.cat([moving, fixed], dim=1), margins, mode="replicate")
    velocity = head(unet(images))
    displacement = resize(integrate(velocity), padded)[(..., *(slice(n) for n in spatial))]
    return warp(moving, displacement), displacement
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "forward-check", "grade": true, "solution": false, "locked": true, "points": 5}
# check: forward-check
from course_utils.grading.judges import voxelmorph as judges

# A VoxelMorph with known weights, and two images: of sizes that 8 divides, and of others.
judges.forward(register, shape=(24, 32), seed=0)
what = "register(...) of images of 21 × 30, which 8 does not divide"
judges.forward(register, shape=(21, 30), seed=1, what=what)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(40, 16), (33, 17), (16, 24, 8), (11, 18, 13)]):
    judges.forward(register, shape, seed + 5, what=f"register(...) of images {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: How far does it see? (3 points)
#
# What lies outside of a network's *receptive field* cannot be registered, however long you train. Measure it: feed a
# random image (1, `channels`, `size`, `size`) that requires a gradient, take the output voxel in the middle (index `n
# // 2` of an output of n, along both axes), and let autograd say on which input voxels it depends. Return the number
# of *rows* (array axis 0) from the first to the last of them, both included.
#
# <details><summary>Hint</summary><code>output[0, :, i, j].sum().backward()</code>, then the image's
# <code>.grad</code>: where is it not 0, in any channel, in any column?</details>


# %% nbgrader={"schema_version": 3, "grade_id": "reach", "grade": false, "solution": true, "locked": false}
# exercise: reach
def reach(network, channels, size):
    """Rows of the input, an int, from the first to the last that the middle output voxel depends
    on; 2-D."""
    ### BEGIN SOLUTION
    image = torch.rand(1, channels, size, size, requires_grad=True)
    output = network(image)
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "reach-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: reach-check
from course_utils.grading.judges import voxelmorph as judges

wide = nn.Sequential(
    nn.Conv2d(2, 4, (7, 3), padding=(3, 1)),
    nn.LeakyReLU(0.2),
    nn.Conv2d(4, 2, (5, 3), padding=(2, 1)),
)
judges.reach(reach, wide, channels=2, size=40, what="a 7 × 3 and a 5 × 3 kernel")
gaps = nn.Conv2d(1, 3, 3, padding=4, dilation=4)
judges.reach(reach, gaps, channels=1, size=30, what="a dilated kernel")
### BEGIN HIDDEN TESTS
from course_utils import networks

strided = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3, padding=1))
judges.reach(reach, strided, channels=3, size=36, what="a strided network")
flat = nn.Sequential(
    nn.Conv2d(2, 2, (1, 9), padding=(0, 4)), nn.Conv2d(2, 5, (3, 1), padding=(1, 0))
)
judges.reach(reach, flat, channels=2, size=31, what="flat kernels")
unet = networks.UNet(2, 2, (4, 6, 6), first_stride=1)
judges.reach(reach, unet, channels=2, size=64, what="a U-Net")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 8: A network that agrees with itself (5 points)
#
# Exchange the two images, and a perfect registration gives the inverse map. VoxelMorph promises nothing of the kind.
# Velocities make the repair easy: ask the network both ways, and let the two answers meet:
#
# $$w = \tfrac12 \bigl(v(\text{moving}, \text{fixed}) - v(\text{fixed}, \text{moving})\bigr)$$
#
# Exchanging the images changes the sign of $w$ and nothing else, so $\exp(w)$ becomes its inverse. Design a module
# `Symmetric(model)` around any model that returns a `Registration` (fields `moved`, `displacement`, `velocity`, as
# `VoxelMorph` does). Its `forward(moving, fixed)` returns a `Registration` with the velocity $w$, the displacement
# that belongs to it (integrate $w$ where it is given, on the images' own grid), and the moved image. Its parameters are
# those of the model, so that it can be trained.


# %% nbgrader={"schema_version": 3, "grade_id": "symmetric", "grade": false, "solution": true, "locked": false}
# exercise: symmetric
class Symmetric(nn.Module):
    """Asks a registration model both ways; exchanging the images inverts the result."""

    ### BEGIN SOLUTION
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, moving, fixed):
        velocity = (self.model(moving, fixed).velocity - self.model(fixed, moving).velocity) / 2
        displacement = integrate(velocity)
        return Registration(warp(moving, displacement), displacement, velocity)

    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "symmetric-check", "grade": true, "solution": false, "locked": true, "points": 5}
# check: symmetric-check
from course_utils.grading.judges import voxelmorph as judges

# Around a VoxelMorph with known weights, on two images of this shape.
judges.symmetric(Symmetric, shape=(16, 20), seed=0)
### BEGIN HIDDEN TESTS
judges.symmetric(Symmetric, shape=(17, 23), seed=1)
judges.symmetric(Symmetric, shape=(8, 12, 10), seed=2)
### END HIDDEN TESTS

# %% [markdown]
# Everything that a registration network does between two images and a moved one, you have written. What it *learns*
# is decided by its loss: [05 Losses](05_losses_and_training.ipynb), after the lectures 05 and 06.
