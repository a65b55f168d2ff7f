# %% [markdown]
# # Assignment 6: two directions, and folds
#
# A network is asked for the way there and for the way back, and contradicts itself. A map turns a piece of tissue over, and the
# usual measure steps over it. Notebooks 12 and 13 showed both. Here you write the measures, the cures and the loss terms
# yourself, and you mend a published formula.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 75 | 75 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/06_two_directions_and_folding.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/06_two_directions_and_folding.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass. Your teacher's checks ask the same questions of other fields, in 2-D and 3-D. The exercises do not
# build on each other. Where an exercise asks for your own code, the function of the course that does the same is not allowed.

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
from torch.nn import functional as F

from course_utils.fields import compose, integrate, warp
from course_utils.plotting import deformed_grid


def smooth(noise, window=5):
    """A smoother copy of (B, C, *spatial), of the same size."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[noise.ndim - 2]
    for _ in range(3):
        noise = pool(noise, window, 1, window // 2)
    return noise


def random_field(shape, length, seed=0):
    """A smooth field (1, N, *shape) whose longest vector has ``length`` voxels."""
    noise = smooth(
        torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    )
    return length * noise / noise.norm(dim=1).max()


# %%
def two_images(shape, seed=0):
    """Two images, each (1, 1, *shape), from 0 to 1."""
    noise = smooth(torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(seed)))
    return ((noise - noise.min()) / (noise.max() - noise.min())).split(1)


def network(moving, fixed):
    """A stand-in for a trained network: some velocity (B, N, *spatial) that depends on both
    images."""
    parts = [moving * fixed - moving, fixed - 0.5 * moving.square(), 0.7 * moving - fixed * moving]
    return smooth(5 * torch.cat(parts[: moving.ndim - 2], dim=1), 3)


moving, fixed = two_images((32, 32))
there, back = integrate(network(moving, fixed)), integrate(network(fixed, moving))
deformed_grid({"there": there, "back": back, "there and back": compose(there, back)}, step=2)

# %% [markdown]
# A network that agreed with itself would leave the third grid straight.
#
# ## Exercise 1: How far from home? (3 points)
#
# Ask a network for both directions. It answers with *velocities*; integrate them with the course's `integrate`. Warp the moving
# image there and then back, in one map (`compose`): where should each voxel be read, and where is it read? Return the mean over all
# voxels of the distance, a plain number in voxels.


# %% nbgrader={"schema_version": 3, "grade_id": "from-home", "grade": false, "solution": true, "locked": false}
# exercise: from-home
def from_home(network, moving, fixed):
    """Mean distance, a float in voxels, after the network's map and its map of the swapped images.

    Args:
        network: takes two images and answers with a velocity (B, N, *spatial) that maps the first
            onto the second.
    """
    ### BEGIN SOLUTION
    there, back = integrate(network(moving, fixed)), integrate(network(fixed, moving))
    return compose(there, back).norm(dim=1).mean().item()
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "from-home-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: from-home-check
from course_utils.grading.judges import two_directions as judges

m, f = two_images((17, 21), seed=1)
judges.from_home(from_home, network, m, f)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 19), (9, 8, 11)]):
    m, f = two_images(shape, seed=seed + 20)
    judges.from_home(from_home, network, m, f, what=f"from_home of images {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: Consistent by construction (3 points)
#
# Make a new network out of any network: one whose velocity only changes its sign when the two images are swapped. Half of the
# difference of the two answers does it. Return a *function* of two images.
#
# <details><summary>Hint</summary>A function defined inside a function can be returned, and remembers the network.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "antisymmetric", "grade": false, "solution": true, "locked": false}
# exercise: antisymmetric
def antisymmetric(network):
    """A network like the one given, with v(moving, fixed) = -v(fixed, moving), as a function of
    (moving, fixed)."""

    ### BEGIN SOLUTION
    def both(moving, fixed):
        return (network(moving, fixed) - network(fixed, moving)) / 2

    return both
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "antisymmetric-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: antisymmetric-check
from course_utils.grading.judges import two_directions as judges

m, f = two_images((17, 21), seed=2)
judges.antisymmetric(antisymmetric, network, m, f)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 19), (9, 8, 11)]):
    m, f = two_images(shape, seed=seed + 30)
    for a, b, what in (
        (m, f, f"antisymmetric(network) of images {shape}"),
        (f, m, f"antisymmetric(network) of the swapped images {shape}"),
    ):
        judges.antisymmetric(antisymmetric, network, a, b, what)
    what = f"antisymmetric of another network, images {shape}"
    judges.antisymmetric(antisymmetric, lambda a, b: 2 * network(a, b) + a, m, f, what)
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: The inverse is judged too (2 points)
#
# A velocity carries the moving image onto the fixed one, and run backwards it carries the fixed image onto the moving one. Return
# the mean of the two similarities.


# %% nbgrader={"schema_version": 3, "grade_id": "both-ways", "grade": false, "solution": true, "locked": false}
# exercise: both-ways
def both_ways(similarity, moving, fixed, velocity):
    """Mean similarity of both directions.

    Args:
        similarity: a function of (moved, target) that gives a scalar tensor; its two arguments are
            not alike.
    """
    ### BEGIN SOLUTION
    forwards = similarity(warp(moving, integrate(velocity)), fixed)
    backwards = similarity(warp(fixed, integrate(-velocity)), moving)
    return (forwards + backwards) / 2
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "both-ways-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: both-ways-check
from course_utils.grading.judges import two_directions as judges


def unlike(moved, target):
    """A similarity that tells its arguments apart."""
    return (moved - target).square().mean() + 0.3 * moved.mean()


m, f = two_images((17, 21), seed=3)
v = random_field((17, 21), 4.0, seed=3)
judges.both_ways(both_ways, unlike, m, f, v)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 19), (9, 8, 11)]):
    m, f = two_images(shape, seed=seed + 40)
    v = random_field(shape, 4.0, seed=seed + 40)
    judges.both_ways(both_ways, unlike, m, f, v, what=f"both_ways of images {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: ICON (3 points)
#
# Without a velocity there is no `-v`. ICON asks a network twice and lets the contradiction cost: the mean, over all voxels, of the
# *squared* distance from home. It starts once with the way there and once with the way back; take the mean of the two.


# %% nbgrader={"schema_version": 3, "grade_id": "icon", "grade": false, "solution": true, "locked": false}
# exercise: icon
def icon(there, back):
    """Mean squared distance from home, a scalar tensor, of two displacements (B, N, *spatial)."""
    ### BEGIN SOLUTION
    begun_here = compose(there, back).square().sum(dim=1).mean()
    begun_there = compose(back, there).square().sum(dim=1).mean()
    return (begun_here + begun_there) / 2
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "icon-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: icon-check
from course_utils.grading.judges import two_directions as judges

u, r = (random_field((17, 21), 3.0, seed=seed) for seed in (4, 5))
judges.icon(icon, u, r)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(12, 19), (9, 8, 11)]):
    u, r = (
        torch.cat([random_field(shape, 3.0, seed=s), random_field(shape, 1.0, seed=s + 1)])
        for s in (seed, seed + 7)
    )
    judges.icon(icon, u, r, what=f"icon of fields {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: What GradICON lets pass (2 points)
#
# GradICON does not punish the distance from home, but its *changes* from voxel to voxel. So some contradictions cost nothing. Return
# two displacements, each `(1, 2, 16, 16)`, with `there` not zero, that are a contradiction for ICON (above 1) and none for GradICON
# (below 1e-8).
#
# <details><summary>Hint</summary>When does a composition have no derivative? Look at the table with the rows "shift" and "shrink" in
# notebook 12.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "unpunished", "grade": false, "solution": true, "locked": false}
# exercise: unpunished
def unpunished():
    """(there, back), each (1, 2, 16, 16), that ICON punishes and GradICON does not."""
    ### BEGIN SOLUTION
    return torch.ones(1, 2, 16, 16), torch.ones(1, 2, 16, 16)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "unpunished-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: unpunished-check
from course_utils.grading.judges import two_directions as judges

judges.unpunished(unpunished)
### BEGIN HIDDEN TESTS
from course_utils.grading import checks

checks.agree(unpunished()[0].dtype, torch.float32, "the type of there")
checks.agree(bool(torch.isfinite(torch.cat(unpunished())).all()), True, "all numbers are finite")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: Triangles that are turned over (4 points)
#
# Central differences step over folds between neighbours. So look at the cells of the grid. The cell whose first corner is pixel
# (i, j) has four corners; after the map they lie at `pixel + displacement`. Call the places of (i, j), (i, j+1), (i+1, j) and
# (i+1, j+1): a, b, c, d. One diagonal cuts the cell into the triangles (a, c, b) and (d, b, c). Return *twice* the signed area of each,
# so that a triangle that nobody moves has 1, and one that is turned over is negative.
#
# <details><summary>Hint</summary>Twice the signed area of (p, q, r) is e0 * f1 - e1 * f0 with e = q - p and f = r - p, component 0 being
# along the rows' axis.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "triangles", "grade": false, "solution": true, "locked": false}
# exercise: triangles
def triangles(displacement):
    """(B, 2, H - 1, W - 1): twice the signed areas of (a, c, b) and (d, b, c) of each cell, of a
    field (B, 2, H, W)."""
    ### BEGIN SOLUTION
    rows, columns = torch.meshgrid(
        *(torch.arange(float(n)) for n in displacement.shape[2:]), indexing="ij"
    )
    place = displacement + torch.stack([rows, columns])
    a, b, c, d = (
        place[:, :, i : i + displacement.shape[2] - 1, j : j + displacement.shape[3] - 1]
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
    )

    def area(p, q, r):
        e, f = q - p, r - p
        return e[:, 0] * f[:, 1] - e[:, 1] * f[:, 0]

    return torch.stack([area(a, c, b), area(d, b, c)], dim=1)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "triangles-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: triangles-check
from course_utils.grading.judges import two_directions as judges

noise = 0.3 * torch.randn(1, 2, 9, 12, generator=torch.Generator().manual_seed(6))
judges.triangles(triangles, random_field((9, 12), 6.0, seed=6) + noise)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(6, 5), (2, 9), (14, 11)]):
    u = torch.cat([random_field(shape, 5.0, seed=seed + 60), torch.zeros(1, 2, *shape)])
    judges.triangles(triangles, u, what=f"triangles of a field {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: The volume that is turned over (2 points)
#
# How much is folded? Not how many triangles, but how much area: given the signed areas of all triangles (1 where nothing moves), return
# the mean, over all of them, of the part that is negative. It is 0 without folds, and a field that turns everything over exactly once
# has 1. As a loss it is the penalty of notebook 13, so keep it a tensor.


# %% nbgrader={"schema_version": 3, "grade_id": "turned", "grade": false, "solution": true, "locked": false}
# exercise: turned
def turned(areas):
    """Share of the area that is turned over, a scalar tensor, of signed areas of any shape."""
    ### BEGIN SOLUTION
    return (-areas).clamp(min=0).mean()
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "turned-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: turned-check
from course_utils.grading.judges import two_directions as judges

areas = 1 + 1.5 * torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(7))
judges.turned(turned, areas)
### BEGIN HIDDEN TESTS
from course_utils.grading import checks

for seed, shape in enumerate([(3, 5), (1, 24, 3, 3, 2)]):
    areas = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 70))
    judges.turned(turned, areas, what=f"turned of areas {shape}")
checks.agree(checks.call(turned, torch.ones(4)).item(), 0.0, "turned where nothing is folded")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 8: Mend the formula (4 points)
#
# This is the determinant in three dimensions as a public project writes it, with its mistake. `x`, `y` and `z` hold the
# derivatives of the *displacement* along the three axes, each `(..., 3)`. Two things are wrong: one letter, and something that is
# missing before the formula begins. Mend both. (The project's measure of folding was right; its loss was not.)
#
# ```python
# one = x[..., 0] * (y[..., 1] * z[..., 2] - y[..., 2] * z[..., 1])
# two = x[..., 1] * (y[..., 0] * z[..., 2] - y[..., 2] * x[..., 0])
# three = x[..., 2] * (y[..., 0] * z[..., 1] - y[..., 1] * z[..., 0])
# return one - two + three
# ```


# %% nbgrader={"schema_version": 3, "grade_id": "mended", "grade": false, "solution": true, "locked": false}
# exercise: mended
def determinant(x, y, z):
    """Jacobian determinant (...) of the map x + u(x), from the derivatives (..., 3) of u along
    each axis."""
    ### BEGIN SOLUTION
    x, y, z = (derivative + torch.eye(3)[axis] for axis, derivative in enumerate((x, y, z)))
    one = x[..., 0] * (y[..., 1] * z[..., 2] - y[..., 2] * z[..., 1])
    two = x[..., 1] * (y[..., 0] * z[..., 2] - y[..., 2] * z[..., 0])
    three = x[..., 2] * (y[..., 0] * z[..., 1] - y[..., 1] * z[..., 0])
    return one - two + three
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "mended-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: mended-check
from course_utils.grading.judges import two_directions as judges

x, y, z = torch.randn(3, 7, 5, 3, generator=torch.Generator().manual_seed(8))
judges.determinant(determinant, x, y, z)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(4,), (2, 3, 4, 5)]):
    x, y, z = 2 * torch.randn(3, *shape, 3, generator=torch.Generator().manual_seed(seed + 80))
    what = f"determinant of derivatives {shape}"
    judges.determinant(determinant, x, y, z, what, atol=1e-3)
### END HIDDEN TESTS

# %% [markdown]
# ## A question to answer in words (for your teacher; no points from the checks)
#
# A paper reports "0.00 % folding" for a network with a velocity field and "1.2 %" for one with a displacement field. Name three
# things that you would ask before you believe that the first method is better. Write five sentences at most.

# %% [markdown]
# *Your answer:*

# %% [markdown]
# Measures, cures, penalties: what makes the answer of a network a *map*. The lectures go on with
# [14 Cycles and refinement](../14_cycles_and_refinement.ipynb).
