# %% [markdown]
# # Assignment 3: scaling and squaring
#
# A displacement jumps, a velocity is followed. In notebook 03 you saw why the second one hardly ever folds, and how
# seven warps do the work of 128 steps. Here you write both ways of following, run them backwards, carry fields
# between resolutions without losing a factor of two, and end with a program that finds out by itself how many
# squarings a velocity needs.
#
# | | CPU | GPU |
# |---|---|---|
# | minutes | 70 | 70 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/03_velocity_fields.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/assignments/03_velocity_fields.ipynb)
#
# **How it works.** Write your code in place of `raise NotImplementedError("your code here")` and keep the first line
# of the cell, which names the exercise. The cell below each exercise checks it; it is folded in JupyterLab, and a click on
# its bar shows what it asks. Run it: no message means that all visible
# checks pass. Your teacher's checks ask the same questions of other fields, in 2-D and 3-D. The exercises do not
# build on each other: where you need an integrated field, take the course's `integrate`. Where an exercise asks for
# your own code, the function of the course that does the same is not allowed.

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


def random_velocity(shape, length, seed=0, smoothness=5):
    """A smooth velocity (1, N, *shape) whose longest vector has ``length`` voxels."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(shape)]
    noise = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        noise = pool(noise, smoothness, 1, smoothness // 2)
    return length * noise / noise.norm(dim=1).max()


velocity = random_velocity((48, 48), 9.0, smoothness=9)
deformed_grid({"x + v(x), a jump": velocity, "exp(v), a flow": integrate(velocity)}, step=2)

# %% [markdown]
# ## Exercise 1: One step at a time (2 points)
#
# Follow every voxel along the velocity for one unit of time, in `steps` steps of Euler's method: where a particle has
# come to, $x + u(x)$, read the velocity there and go on by $v / \text{steps}$. Start at $u = 0$.
#
# <details><summary>Hint</summary>To read the velocity at x + u(x) for all x at once is to <em>warp</em> the velocity
# by u: a velocity has channels like an image.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "euler", "grade": false, "solution": true, "locked": false}
# exercise: euler
def euler(velocity, steps):
    """The displacement of exp(v), (B, N, *spatial), by ``steps`` Euler steps."""
    ### BEGIN SOLUTION
    displacement = torch.zeros_like(velocity)
    for _ in range(steps):
        displacement = displacement + warp(velocity, displacement) / steps
    return displacement
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "euler-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: euler-check
from course_utils.grading.judges import velocity_fields as judges

judges.euler(euler, random_velocity((15, 19), 4.0, seed=1), steps=6)
### BEGIN HIDDEN TESTS
for seed, (shape, steps) in enumerate([((9, 14), 1), ((17, 12), 11), ((8, 9, 7), 5)]):
    v = random_velocity(shape, 3.0, seed=seed + 20)
    judges.euler(euler, v, steps, what=f"euler of a field {shape} in {steps} steps")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 2: Scaling and squaring (3 points)
#
# If $\exp(v/2)$ composed with itself is $\exp(v)$, then $K$ compositions lead from $v / 2^K$, which is almost its own
# flow, to $\exp(v)$. Write it: scale once, square `squarings` times. The course's `compose` may be used, `integrate`
# may not.


# %% nbgrader={"schema_version": 3, "grade_id": "exponential", "grade": false, "solution": true, "locked": false}
# exercise: exponential
def exponential(velocity, squarings):
    """The displacement of exp(v), (B, N, *spatial), by scaling and squaring."""
    ### BEGIN SOLUTION
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "exponential-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: exponential-check
from course_utils.grading.judges import velocity_fields as judges

judges.exponential(exponential, random_velocity((15, 19), 4.0, seed=2), squarings=5)
### BEGIN HIDDEN TESTS
for seed, (shape, squarings) in enumerate([((9, 14), 0), ((17, 12), 7), ((8, 9, 7), 3)]):
    v = random_velocity(shape, 5.0, seed=seed + 30)
    judges.exponential(exponential, v, squarings, what=f"exponential of a field {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 3: Backwards (1 point)
#
# `integrate(velocity)` is a displacement $u$. Return the displacement that undoes it, from the same velocity. One
# line, and it is not $-u$: what is read at $x + u(x)$ has to be undone *there*.


# %% nbgrader={"schema_version": 3, "grade_id": "backwards", "grade": false, "solution": true, "locked": false}
# exercise: backwards
def backwards(velocity):
    """The displacement (B, N, *spatial) that inverts integrate(velocity)."""
    ### BEGIN SOLUTION
    return integrate(-velocity)
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "backwards-check", "grade": true, "solution": false, "locked": true, "points": 1}
# check: backwards-check
from course_utils.grading.judges import velocity_fields as judges

judges.backwards(backwards, random_velocity((15, 19), 4.0, seed=3))
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(21, 10), (7, 9, 8)]):
    v = random_velocity(shape, 5.0, seed=seed + 40)
    judges.backwards(backwards, v, what=f"backwards of a field {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 4: An inverse without a velocity (2 points)
#
# Somebody gives you a displacement only. Its inverse $w$ satisfies $w(x) = -u\bigl(x + w(x)\bigr)$. Start with $w =
# -u$ and put it in on the right, `iterations` times.


# %% nbgrader={"schema_version": 3, "grade_id": "fixed-point", "grade": false, "solution": true, "locked": false}
# exercise: fixed-point
def fixed_point(displacement, iterations):
    """The displacement of the inverse map, (B, N, *spatial), after ``iterations`` rounds."""
    ### BEGIN SOLUTION
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp(displacement, inverse)
    return inverse
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "fixed-point-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: fixed-point-check
from course_utils.grading.judges import velocity_fields as judges

judges.fixed_point(fixed_point, random_velocity((15, 19), 2.0, seed=4), iterations=4)
### BEGIN HIDDEN TESTS
for seed, (shape, iterations) in enumerate([((21, 10), 0), ((14, 13), 9), ((7, 9, 8), 3)]):
    u = random_velocity(shape, 2.0, seed=seed + 50)
    judges.fixed_point(fixed_point, u, iterations, what=f"fixed_point of a field {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 5: Is it an inverse? (2 points)
#
# Go there and back. The composed displacement should be 0 everywhere; how long is it on average? Return the mean over
# all voxels of its Euclidean length, a plain number in voxels.
#
# <details><summary>Hint</summary>A length is the root of the sum of the squared <em>components</em>, and these are
# axis 1.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "residual", "grade": false, "solution": true, "locked": false}
# exercise: residual
def residual(there, back):
    """Mean length, a float in voxels, of the displacement that is left after ``there`` and then
    ``back``."""
    ### BEGIN SOLUTION
    return compose(there, back).norm(dim=1).mean().item()
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "residual-check", "grade": true, "solution": false, "locked": true, "points": 2}
# check: residual-check
from course_utils import fields
from course_utils.grading.judges import velocity_fields as judges

v, w = random_velocity((15, 19), 3.0, seed=5), random_velocity((15, 19), 3.0, seed=6)
judges.residual(residual, fields.integrate(v), fields.integrate(-0.7 * v + 0.2 * w))
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(21, 10), (7, 9, 8)]):
    v, w = (random_velocity(shape, 3.0, seed=s) for s in (seed + 60, seed + 70))
    there, back = torch.cat([fields.integrate(v), v]), torch.cat([fields.integrate(-v), w])
    judges.residual(residual, there, back, what=f"residual of fields {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 6: Two resolutions, two factors (4 points)
#
# To integrate at half resolution, a velocity must be carried to a coarser grid, and its displacement back to the fine
# one. Samples are interpolated (`F.interpolate`, `mode="bilinear"` or `"trilinear"`, `align_corners=False`). But
# vectors are in *voxels*, and a voxel of the coarse grid is longer. Write `resize_field(field, shape)` for any two
# grids over the same field of view; the sizes need not shrink by one common factor.
#
# <details><summary>Hint</summary>The displacement "one tenth of the field of view along axis 0" is 4.8 voxels of 48
# and 2.4 of 24. So component c grows by new / old, the sizes of axis c.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "resize", "grade": false, "solution": true, "locked": false}
# exercise: resize
def resize_field(field, shape):
    """A field (B, N, *spatial) in voxels on the grid ``shape`` (N sizes), in voxels of that
    grid."""
    ### BEGIN SOLUTION
    old = field.shape[2:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    samples = F.interpolate(field, size=tuple(shape), mode=mode, align_corners=False)
    factor = torch.tensor([new / n for new, n in zip(shape, old, strict=True)])
    return samples * factor.view(1, -1, *[1] * len(old))
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "resize-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: resize-check
from course_utils.grading.judges import velocity_fields as judges

judges.resize(resize_field, random_velocity((16, 18), 4.0, seed=7), shape=(8, 24))
### BEGIN HIDDEN TESTS
for seed, (old, new) in enumerate(
    [((15, 20), (31, 10)), ((8, 10, 6), (4, 5, 3)), ((5, 7, 6), (10, 9, 13))]
):
    v = random_velocity(old, 4.0, seed=seed + 80)
    judges.resize(resize_field, v, new, what=f"resize_field from {old} to {new}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 7: Meeting half-way (3 points)
#
# Why should one image do all the moving? If $\exp(v)$ carries the moving image to the fixed one, then after *half* of
# the time the moving image is half-way there; and the fixed image, followed backwards for half of the time, meets it.
# Return both images as they look at the meeting point.
#
# <details><summary>Hint</summary>Half of the time with velocity v is one unit of time with velocity v / 2.</details>


# %% nbgrader={"schema_version": 3, "grade_id": "halfway", "grade": false, "solution": true, "locked": false}
# exercise: halfway
def halfway(moving, fixed, velocity):
    """(moving, fixed), each (B, C, *spatial), warped to the point half-way along exp(velocity)."""
    ### BEGIN SOLUTION
    return warp(moving, integrate(velocity / 2)), warp(fixed, integrate(-velocity / 2))
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "halfway-check", "grade": true, "solution": false, "locked": true, "points": 3}
# check: halfway-check
from course_utils.grading.judges import velocity_fields as judges

v = random_velocity((22, 19), 8.0, seed=8)
m, f = torch.rand(2, 1, 1, 22, 19, generator=torch.Generator().manual_seed(8))
judges.halfway(halfway, m, f, v)
### BEGIN HIDDEN TESTS
for seed, shape in enumerate([(21, 16), (9, 11, 8)]):
    v = random_velocity(shape, 6.0, seed=seed + 90)
    m, f = torch.rand(2, 2, 3, *shape, generator=torch.Generator().manual_seed(seed))
    judges.halfway(halfway, m, f, torch.cat([v, -0.5 * v]), what=f"halfway of images {shape}")
### END HIDDEN TESTS

# %% [markdown]
# ## Exercise 8: How many squarings? (4 points)
#
# Seven is a habit. A gentle velocity needs fewer, and each one costs a warp. Find the smallest number of squarings $K
# \ge 0$ that is good enough: taking twice as many time steps, $K + 1$ squarings, moves *no* voxel by more than
# `tolerance` (in voxels, Euclidean length). If not even `most` is good enough, raise a `ValueError` that says so: the
# velocity is too rough for its grid, and somebody should know.


# %% nbgrader={"schema_version": 3, "grade_id": "enough", "grade": false, "solution": true, "locked": false}
# exercise: enough
def enough_squarings(velocity, tolerance, most=12):
    """The smallest K from 0 to most such that integrate(v, K) and integrate(v, K + 1) nowhere
    differ by more.

    Raises:
        ValueError: there is none.
    """
    ### BEGIN SOLUTION
    current = integrate(velocity, 0)
    for squarings in range(most + 1):
        finer = integrate(velocity, squarings + 1)
        if (finer - current).norm(dim=1).max() <= tolerance:
            return squarings
        current = finer
    raise ValueError(
        f"not even {most} squarings are within {tolerance} voxel of {most + 1}: smooth the velocity"
    )
    ### END SOLUTION


# %% nbgrader={"schema_version": 3, "grade_id": "enough-check", "grade": true, "solution": false, "locked": true, "points": 4}
# check: enough-check
from course_utils.grading.judges import velocity_fields as judges

for seed, length, tolerance in [(9, 0.0, 0.1), (9, 2.0, 0.05), (10, 6.0, None), (11, 9.0, 0.1)]:
    v = random_velocity((30, 26), length or 1.0, seed=seed, smoothness=9) * (length > 0)
    tolerance = tolerance or judges.critical(v, 3)
    what = f"enough_squarings of a velocity of {length} voxels"
    judges.enough(enough_squarings, v, tolerance, what)
rough = 20 * torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
judges.too_rough(enough_squarings, rough, tolerance=1e-3, most=3)
### BEGIN HIDDEN TESTS
for seed, shape, tolerance in [
    (0, (25, 31), 0.02),
    (1, (25, 31), 0.3),
    (2, (11, 12, 10), None),
    (3, (28, 19), 0.007),
]:
    v = random_velocity(shape, 5.0, seed=seed + 100, smoothness=7)
    v = torch.cat([0.3 * v, v])
    tolerance = tolerance or judges.critical(v, 2)
    what = f"enough_squarings of another velocity {shape}"
    judges.enough(enough_squarings, v, tolerance, what)
    judges.enough_limit(enough_squarings, v, tolerance)
### END HIDDEN TESTS

# %% [markdown]
# Velocities, flows, inverses, two resolutions: all that VoxelMorph needs beside its convolutions. Next:
# [04 VoxelMorph](04_voxelmorph.ipynb).
