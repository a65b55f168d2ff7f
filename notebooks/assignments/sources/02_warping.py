# %% [markdown]
# # Assignment 2: warping and Jacobians
#
# Notebook 02 moved a picture. Here you write the warp yourself, one conversion at a time, then what every result is
# judged by: the Jacobian determinant. Most mistakes in this trade run without an error: a sign, an axis order, half a
# voxel, a unit. The checks know them by name. The last exercise turns the tables: a field arrives from another tool,
# and you find out what is wrong with it.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 75 | 75 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/02_warping.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/02_warping.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass. Your teacher's checks ask the same questions of other data, in 2-D and 3-D. The exercises do not build
# on each other. Where one asks for your own code, the functions of the course and of MONAI that do the same are not
# allowed.

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
from IPython.display import display
from torch.nn import functional as F

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import load_subject
from course_utils.fields import identity_grid
from course_utils.plotting import panel

cohort = load_cohort(session.dataset)
volumes = load_subject(cohort.splits["test"][0], cohort.info.recipe)
moving, moving_label = volumes["image"][None], volumes["label"][None]  # (1, 1, *spatial) each
spacing = cohort.info.spacing
if moving.ndim == 5:  # of a volume, the coronal slice in the middle
    k = moving.shape[3] // 2
    moving, moving_label, spacing = (
        moving[:, :, :, k],
        moving_label[:, :, :, k],
        (spacing[0], spacing[2]),
    )
place = identity_grid(moving.shape[2:])
truth = torch.cat(
    [3 + torch.sin(place[:, 1:] / 6), -2 + torch.cos(place[:, :1] / 5)], dim=1
)  # (1, 2, *spatial), voxels
panel({"moving": moving}, spacing=spacing)

# %% [markdown]
# The convention: a displacement $u$ is a tensor (B, N, \*spatial) in voxels, its component $c$ moves along array axis
# $c$, and $\text{moved}(x) = \text{moving}\bigl(x + u(x)\bigr)$.
#
# ## Exercise 1: Which way? (1 point)
#
# Return the displacement that moves the *content* of an image by `voxels` along array axis `axis`, towards higher
# indices: what stood at index 10 then stands at 10 + `voxels`. The grid has the shape `shape`, two or three axes.
#
# <details><summary>Hint</summary>A displacement says where each voxel of the result <em>looks</em>. Where does the
# voxel look that should show what stood at 10?</details>


# %% nbgrader={"schema_version": 3, "grade_id": "shift", "grade": false, "solution": true, "locked": false}
# exercise: shift
def shift(shape, axis, voxels):
    """Displacement (1, N, *shape) float32 that moves the content of an image by ``voxels`` along
    ``axis``."""
    ### BEGIN SOLUTION
    displacement = torch.zeros(1, len(shape), *shape)
    displacement[:, axis] = -voxels
    return displacement
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "shift-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: shift-check
from course_utils.grading.judges import warping as judges

judges.shift(shift, (5, 7), axis=0, voxels=2)
### BEGIN HIDDEN TESTS
for shape, axis, voxels in [((6, 5), 1, 3.5), ((4, 5, 6), 2, -1), ((4, 5, 6), 0, 2)]:
    judges.shift(shift, shape, axis, voxels, what=f"shift({shape}, {axis}, {voxels})")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: Between four voxels (2 points)
#
# Read a 2-D image at a point $(p_0, p_1)$ that is no voxel: a weighted mean of the four voxels around it, where the
# weight of each is the area of the rectangle *opposite* to it. Points lie anywhere in the image, its last row and
# column included. By hand: no `grid_sample`, no SciPy.
#
# <details><summary>Hint</summary>With <code>i = int(p0)</code> and <code>a = p0 - i</code>, row <code>i</code> has
# the weight <code>1 - a</code> and row <code>i + 1</code> the weight <code>a</code>. On the last row there is no row
# <code>i + 1</code>, and its weight is 0: take the smaller of <code>i</code> and <code>n - 2</code>.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "interpolate", "grade": false, "solution": true, "locked": false}
# exercise: interpolate
def interpolate(image, point):
    """The value, a float, of a 2-D image (H, W) at a point (p0, p1) in voxels, linearly
    interpolated."""
    ### BEGIN SOLUTION
    i, j = (min(int(p), n - 2) for p, n in zip(point, image.shape, strict=True))
    a, b = point[0] - i, point[1] - j
    upper = (1 - b) * image[i, j] + b * image[i, j + 1]
    lower = (1 - b) * image[i + 1, j] + b * image[i + 1, j + 1]
    return float((1 - a) * upper + a * lower)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "interpolate-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: interpolate-check
from course_utils.grading.judges import warping as judges

image = torch.tensor([[0.0, 10, 40, 90], [1, 20, 50, 70], [3, 25, 80, 95]])  # (3, 4)
judges.interpolate(interpolate, image, (0.25, 1.5))
judges.interpolate(interpolate, image, (2.0, 3.0), what="interpolate at the last voxel, (2, 3)")
### BEGIN HIDDEN TESTS
generator = torch.Generator().manual_seed(4)
image = torch.rand(7, 11, generator=generator)
for k in range(12):
    p = (torch.rand(2, generator=generator) * torch.tensor([6.0, 10.0])).tolist()
    p = [(6.0, p[1]), (p[0], 10.0), (3.0, 4.0), (0.0, p[1])][k] if k < 4 else tuple(p)
    judges.interpolate(interpolate, image, p, what=f"interpolate at {p}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: The language of `grid_sample` (3 points)
#
# PyTorch's `grid_sample` interpolates for us, if asked in its own way: the components come *last* in the tensor, in
# the order (x, y, z), which is the reverse of the array axes, and in units in which −1 and 1 are the *centres* of the
# first and last voxel (`align_corners=True`). Convert positions in voxels, for an image of shape `shape`.
#
# <details><summary>Hint</summary>Along an axis of n voxels, position 0 is −1 and position n − 1 is 1. Scale each
# component by its own axis <em>before</em> you reverse their order.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "sampling-grid", "grade": false, "solution": true, "locked": false}
# exercise: sampling-grid
def sampling_grid(position, shape):
    """Positions (B, N, *out) in voxels of an image of ``shape`` (N sizes) to grid_sample's grid,
    (B, *out, N)."""
    ### BEGIN SOLUTION
    size = torch.tensor(shape, dtype=torch.float32)
    return (2 * position.movedim(1, -1) / (size - 1) - 1).flip(-1)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "sampling-grid-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: sampling-grid-check
from course_utils.grading.judges import warping as judges

position = identity_grid((3, 4)) * 1.5 + 0.25  # (1, 2, 3, 4), voxels of an image (5, 9)
judges.sampling_grid(sampling_grid, position, shape=(5, 9))
### BEGIN HIDDEN TESTS
generator = torch.Generator().manual_seed(1)
for shape, out in [((6, 11), (4, 5)), ((5, 7, 4), (3, 6, 2)), ((5, 7, 4), (2, 2, 2))]:
    p = 9 * torch.rand(2, len(shape), *out, generator=generator) - 1
    judges.sampling_grid(sampling_grid, p, shape, what=f"sampling_grid of an image {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: Your own warp (4 points)
#
# $\text{moved}(x) = \text{image}(x + u(x))$, in 2-D and 3-D. Intensities are interpolated linearly
# (`mode="bilinear"`, also in 3-D), beyond the image its edge is repeated (`padding_mode="border"`). Labels, which are
# integers, are read with `mode="nearest"` and keep their type: halfway between structure 1 and structure 5 there is
# no structure 3.
#
# <details><summary>Hint</summary><code>identity_grid(shape)</code> gives x. <code>grid_sample</code> needs a
# floating-point image; <code>image.is_floating_point()</code> tells labels from intensities.
# <code>align_corners</code> is False unless you say otherwise.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "warp", "grade": false, "solution": true, "locked": false}
# exercise: warp
def my_warp(image, displacement):
    """image (B, C, *spatial) along a displacement (B, N, *spatial) in voxels; the same shape and
    type as the image."""
    ### BEGIN SOLUTION
    shape = image.shape[2:]
    position = (identity_grid(shape) + displacement).movedim(1, -1)
    grid = (2 * position / (torch.tensor(shape) - 1) - 1).flip(-1)
    mode = "bilinear" if image.is_floating_point() else "nearest"
    moved = F.grid_sample(image.float(), grid, mode=mode, padding_mode="border", align_corners=True)
    return moved.to(image.dtype)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "warp-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: warp-check
from course_utils.grading.judges import warping as judges

generator = torch.Generator().manual_seed(0)
image = torch.rand(2, 1, 9, 13, generator=generator)
u = 2 * torch.randn(2, 2, 9, 13, generator=generator)
label = torch.randint(0, 6, (2, 1, 9, 13), generator=generator)
judges.warp(my_warp, image, u)
judges.warp(my_warp, label, u)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 7), (6, 9, 5), (11, 6, 8)]):
    generator = torch.Generator().manual_seed(seed + 10)
    image = torch.rand(2, 3, *shape, generator=generator)
    u = 2 * torch.randn(2, len(shape), *shape, generator=generator)
    label = torch.randint(0, 40, (2, 1, *shape), generator=generator, dtype=torch.uint8)
    judges.warp(my_warp, image, u, what=f"my_warp of an image {shape}")
    judges.warp(my_warp, label, u, what=f"my_warp of labels {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: The room that is left (4 points)
#
# $\det J(x) = \det\bigl(I + \nabla u(x)\bigr)$, where $(\nabla u)_{ca} = \partial u_c / \partial x_a$: how much
# moving space a fixed voxel covers. Derivatives are central differences inside and one-sided at the border, as
# `torch.gradient` takes them. In 2-D and in 3-D.
#
# <details><summary>Hint 1</summary><code>torch.gradient(u, dim=(2, 3))</code> is a tuple with the derivative along
# each axis, each of u's shape.</details>
# <details><summary>Hint 2</summary><code>torch.linalg.det</code> takes matrices in the last two axes: bring component
# and axis there, then add <code>torch.eye(N)</code>.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "jacobian", "grade": false, "solution": true, "locked": false}
# exercise: jacobian
def my_jacobian(displacement):
    """det(I + du/dx) of (B, N, *spatial), as (B, 1, *spatial)."""
    ### BEGIN SOLUTION
    dims = displacement.shape[1]
    slopes = torch.gradient(displacement, dim=tuple(range(2, 2 + dims)))
    matrix = torch.stack(slopes, dim=-1).movedim(1, -2) + torch.eye(dims)
    return torch.linalg.det(matrix).unsqueeze(1)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "jacobian-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: jacobian-check
from course_utils.grading.judges import warping as judges

u = 1.5 * torch.randn(1, 2, 8, 11, generator=torch.Generator().manual_seed(2))
judges.jacobian(my_jacobian, u)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(7, 5), (6, 9, 5), (5, 4, 8)]):
    u = 1.3 * torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    judges.jacobian(my_jacobian, u, what=f"my_jacobian of a field {shape}", atol=1e-3)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: Two warps are one (2 points)
#
# Warp by `first`, then warp the result by `second`. Which one displacement does both? Work it out on paper: put
# $y = x + u_2(x)$ into $\text{moving}\bigl(y + u_1(y)\bigr)$. From here on, use the course's `warp`.

# %%
from course_utils.fields import warp


# %% nbgrader={"schema_version": 3, "grade_id": "compose", "grade": false, "solution": true, "locked": false}
# exercise: compose
def my_compose(first, second):
    """The displacement (B, N, *spatial) of warping by ``first`` and then by ``second``, both (B,
    N, *spatial)."""
    ### BEGIN SOLUTION
    return second + warp(first, second)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "compose-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: compose-check
from course_utils.grading.judges import warping as judges

generator = torch.Generator().manual_seed(3)
first, second = (
    3 * F.avg_pool2d(torch.randn(1, 2, 24, 20, generator=generator), 5, 1, 2) for _ in range(2)
)
judges.compose(my_compose, first, second)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(9, 14), (6, 7, 9)]):
    generator = torch.Generator().manual_seed(seed)
    first, second = 1.5 * torch.randn(2, 2, len(shape), *shape, generator=generator)
    judges.compose(my_compose, first, second, what=f"my_compose of fields {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: Atrophy (3 points)
#
# A structure is drawn in the *fixed* image, and you know the displacement to the moving image, a scan of the same
# person a year later. How large is the structure in the moving image? Without any label there: a fixed voxel covers
# $\det J$ voxels of moving space, so add them up over the structure. Return its relative change of volume in percent:
# −3.0 for a loss of three percent.


# %% nbgrader={"schema_version": 3, "grade_id": "atrophy", "grade": false, "solution": true, "locked": false}
# exercise: atrophy
def atrophy_percent(displacement, label, value):
    """Change of volume, a float in percent, of the structure ``value`` of a fixed label (1, 1,
    *spatial)."""
    ### BEGIN SOLUTION
    from course_utils.fields import jacobian_determinant

    inside = label == value
    return 100 * (jacobian_determinant(displacement)[inside].mean().item() - 1)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "atrophy-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: atrophy-check
from course_utils.grading.judges import warping as judges

displacement, label = judges.atrophy_case((16, 21), seed=6)
judges.atrophy(atrophy_percent, displacement, label, value=2)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(13, 18), (9, 11, 8)]):
    displacement, label = judges.atrophy_case(shape, seed)
    for value in (1, 2):
        what = f"atrophy_percent of a structure in {shape}"
        judges.atrophy(atrophy_percent, displacement, label, value, what, atol=1e-3)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 8: A field from somewhere else (5 points)
#
# A colleague sends a field, and her two label maps, but no manual. Perhaps its components are in the order (x, y, z),
# the reverse of the array axes. Perhaps it points the other way: $-u$ in place of $u$. Perhaps it is in mm and not in
# voxels. Perhaps two of these, or all, or none. Bring it to the convention of this course, by what every convention
# has in common: the right one aligns the labels best. For each of the eight possibilities, warp the moving label
# (`nearest`, outside is background: `padding="zeros"`), take the mean Dice of the structures (`dice` of
# `course_utils.metrics`, and `nanmean`), and return the repaired displacement with the highest.
#
# <details><summary>Hint 1</summary><code>itertools.product((False, True), repeat=3)</code>: three questions, eight
# answers.</details>
# <details><summary>Hint 2</summary>mm become voxels by a division by the spacing, which is in the order of the array
# axes: is that before or after the components are put in order?</details>

# %%
from course_utils.metrics import dice


# %% nbgrader={"schema_version": 3, "grade_id": "repair", "grade": false, "solution": true, "locked": false}
# exercise: repair
def repair(field, spacing, moving_label, fixed_label, structures):
    """A field (1, N, *spatial) of unknown order, sign and unit as a displacement (1, N, *spatial)
    in voxels.

    spacing: mm along each array axis; labels (1, 1, *spatial); structures: label values to compare.
    """
    ### BEGIN SOLUTION
    import itertools

    best, highest = field, -1.0
    mm = torch.tensor(spacing).view(1, -1, *[1] * len(spacing))
    for reverse, negate, scale in itertools.product((False, True), repeat=3):
        candidate = field.flip(1) if reverse else field
        candidate = candidate / mm if scale else candidate
        candidate = -candidate if negate else candidate
        moved = warp(moving_label, candidate, mode="nearest", padding="zeros")
        score = dice(moved, fixed_label, structures).nanmean().item()
        if score > highest:
            best, highest = candidate, score
    return best
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "repair-check", "grade": true, "solution": false, "locked": true, "points": 5}
# check: repair-check
import itertools

from course_utils.grading.judges import warping as judges

sizes = (2.5, 1.2)
before, u, after = judges.repair_case((40, 52), seed=0)
for reverse, negate, scale in itertools.product((False, True), repeat=3):
    judges.repair(repair, u, sizes, before, after, reverse, negate, scale)
### BEGIN HIDDEN TESTS
for seed, (shape, sizes) in enumerate([((36, 44), (1.8, 3.0)), ((22, 30, 26), (0.6, 2.0, 1.5))]):
    before, u, after = judges.repair_case(shape, seed + 1)
    for convention in itertools.product((False, True), repeat=3):
        what = f"repair of another field, {shape}"
        judges.repair(repair, u, sizes, before, after, *convention, what)
### END HIDDEN TESTS

# %% [markdown]
# On a picture: a field like that, sent in the wrong order and with the wrong sign, and what your repair makes of it.

# %%
from course_utils.fields import warp

sent = -truth.flip(1)
fixed, fixed_label = warp(moving, truth), warp(moving_label, truth, mode="nearest")
try:
    mended = repair(sent, spacing, moving_label, fixed_label, list(cohort.info.labels))
except NotImplementedError:
    print("after exercise 8 there is a picture here")
else:
    shown = {
        "moving": moving,
        "by the field as sent": warp(moving, sent),
        "mended": warp(moving, mended),
        "fixed": fixed,
    }
    display(panel(shown, spacing=spacing))

# %% [markdown]
# You can read a field now, whoever wrote it. The next assignment makes fields that do not fold:
# [03 Velocity fields](03_velocity_fields.ipynb).
