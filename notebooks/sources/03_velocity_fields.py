# %% [markdown]
# # 03 Velocity fields
#
# A displacement can fold, has no obvious inverse, and does not add up. A *velocity* that is followed for one unit of
# time does better: the flow of a smooth velocity cannot fold, and to invert it you run it backwards. Why, then, do some
# "diffeomorphic" networks fold all the same?
#
# Here you watch one person's brain flow into the shape of another's, integrate a velocity by hand in four lines, and
# measure how fast that converges. Then you find out when the promise breaks on a grid, and take apart three traps: the
# scale of half-resolution integration, padding, and half precision. Afterwards you can integrate and invert a velocity,
# say how many steps are enough, and test somebody else's integration layer before you trust it. You need notebook 02
# (warping, composing maps, the Jacobian determinant).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/03_velocity_fields.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/03_velocity_fields.ipynb)

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
# ## One brain flows into another
#
# We start with two people. The page works on slices: on the real ones of `oasis2d`, and with any other data set on the
# slices of the built-in cohort, which shows made subjects. Of eight test pairs we take the one whose structures overlap
# least, so that there is something to see.

# %%
import torch

from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.metrics import dice

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.splits["test"], cohort.info.recipe)
pairs = PairDataset(subjects, cohort.pairs("test", count=8, seed=session.seed))
labels = list(cohort.info.labels)


def overlap(moved_label, fixed_label):
    """Mean Dice over the structures."""
    return dice(moved_label, fixed_label, labels).nanmean().item()


item = min(pairs, key=lambda one: overlap(one["moving_label"][None], one["fixed_label"][None]))
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, H, W)
moving_label, fixed_label = item["moving_label"][None], item["fixed_label"][None]
shape = tuple(fixed.shape[2:])

# %%
from course_utils.plotting import panel

parts = ("lateral-ventricle", "lateral ventricle", "thal", "caud", "putamen", "deep")
drawn = {v: n for v, n in cohort.info.labels.items() if any(part in n.lower() for part in parts)}
panel(
    {"moving": moving, "fixed": fixed},
    labels={"moving": moving_label, "fixed": fixed_label},
    names=drawn,
    fill=True,
    **cohort.info.view,
)

# %% [markdown]
# Now we look for a velocity that carries the one into the other: start from zero, integrate, warp, compare, and let
# gradient descent improve it. Pages 05 and 10 take these lines apart; here they only give us a velocity to look at. It
# lives on a grid of half the size, which keeps it smooth and the search fast.

# %%
from course_utils.fields import integrate, resize, warp
from course_utils.losses import diffusion_loss, ncc_loss

coarse = torch.zeros(1, 2, *(n // 2 for n in shape), requires_grad=True)
optimizer = torch.optim.Adam([coarse], lr=0.1)
for _ in range(80):
    displacement = resize(integrate(coarse), shape)
    loss = ncc_loss(warp(moving, displacement), fixed) + 0.3 * diffusion_loss(coarse)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
found = resize(coarse.detach(), shape)  # (1, 2, H, W), pixels per unit of time
print(f"found a velocity of up to {found.norm(dim=1).max():.1f} pixels per unit of time")

# %% [markdown]
# The velocity was chosen so that the image arrives after *one* unit of time. But a flow can be stopped earlier, it can
# run on beyond 1, and it can run backwards. Following $v$ for the time $t$ is the same as following $t\,v$ for one unit
# of time, so `integrate(t * found)` is all we need.
#
# **Predict:** at which of the times −0.4, 0, 0.4, 0.8, 1 and 1.6 is the image least like the fixed one?
#
# > *My prediction:*

# %%
times = [-0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
frames, likeness = {}, {}
for t in times:
    u = integrate(t * found)
    flowed, flowed_label = warp(moving, u), warp(moving_label, u, mode="nearest")
    likeness[t] = ncc_loss(flowed, fixed).item()
    agreement = overlap(flowed_label, fixed_label)
    print(f"t = {t:4.1f}: NCC loss {likeness[t]:.3f}, Dice {agreement:.3f}")
    frames[f"{t:.1f}"] = panel(
        {"moving, carried along": flowed, "fixed": fixed},
        labels={"moving, carried along": flowed_label, "fixed": fixed_label},
        names=drawn,
        fill=True,
        **cohort.info.view,
    )

assert min(likeness, key=likeness.get) == 1.0  # the lowest loss is at the end ...
assert max(likeness, key=likeness.get) == -0.4  # ... and the highest where the flow runs backwards
assert likeness[0.0] > likeness[0.4] > likeness[0.8] > likeness[1.0] < likeness[1.2] < likeness[1.6]

# %%
from course_utils.plotting import Slider

Slider(frames, "time t", start="1.0")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# At −0.4. Before 0 the flow runs the wrong way, and the image becomes less like the fixed one than it was at the start.
# The likeness is best at 1, the time for which the velocity was chosen; after that the flow overshoots.
#
# </details>
#
# Turn the slider slowly. Each structure moves all the time, none of them jumps, and none is torn. That is what the word
# *flow* promises. The rest of this page asks how such a flow is computed, and how far one may trust it.
#
# ## A field with a known answer
#
# Nobody knows the true flow between two people, so to test an integrator we need a field whose flow is known. Take nine
# eddies on a square: $v_0 = A \sin kx_0 \cos kx_1$, $v_1 = -A \cos kx_0 \sin kx_1$. It never points out of the square,
# and its divergence is zero: a fluid that moves in this way keeps every area. So we know what a right answer looks
# like: $\det J = 1$ everywhere.
#
# **Predict:** take this field as a *displacement* with $A = 12$ voxels. Is $\det J$ equal to 1 then?
#
# > *My prediction:*

# %%
import math

from course_utils.fields import identity_grid, jacobian_determinant
from course_utils.metrics import folding_percent

size = 97
x = identity_grid((size, size))  # (1, 2, 97, 97)
k = 3 * math.pi / (size - 1)


def eddies(position, amplitude=12.0):
    """Velocity (B, 2, ...) in voxels per unit of time, at positions (B, 2, ...) in voxels."""
    a, b = k * position[:, :1], k * position[:, 1:]
    return amplitude * torch.cat([a.sin() * b.cos(), -a.cos() * b.sin()], dim=1)


velocity = eddies(x)
as_displacement = jacobian_determinant(velocity)
folded = folding_percent(velocity).item()
assert folded > 5 and as_displacement.min() < -0.2
print(
    f"taken as a displacement: det J from {as_displacement.min():.2f} to "
    f"{as_displacement.max():.2f}, {folded:.0f} % folded"
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No. The determinant falls below zero, and the map folds in about a tenth of the square. A displacement jumps along a
# straight line, whatever it passes on the way, so neighbours may jump over each other.
#
# </details>
#
# A particle in a fluid does not jump. It takes the flow as it finds it, at every moment:
#
# $$\frac{d\phi_t(x)}{dt} = v\bigl(\phi_t(x)\bigr), \qquad \phi_0(x) = x, \qquad \exp(v) = \phi_1$$
#
# If $v$ is Lipschitz continuous, solutions of this equation never cross, so $\phi_1$ cannot fold. How do we solve it?
# Euler's way is to jump after all, but often and by little. We try it on a turntable, where each particle's true path is
# known to be a circle:

# %%
from course_utils.plotting import Figure

BLUE, ORANGE, GREEN, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00"


def euler(v, start, steps):
    """Positions (steps + 1, ...) of particles that jump by v / steps, steps times."""
    path = [start]
    for _ in range(steps):
        path.append(path[-1] + v(path[-1]) / steps)
    return torch.stack(path)


def turntable(p):
    return 2 * math.pi * torch.stack([-p[..., 1], p[..., 0]], dim=-1)


# %%
starts = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
angle = torch.linspace(0, 2 * math.pi, 200)[:, None]
figure = Figure(figsize=(9, 3.3), layout="constrained")
for axes, n in zip(figure.subplots(1, 3, sharex=True, sharey=True), (32, 128, 512), strict=True):
    path = euler(turntable, starts, n)  # (n + 1, 3, 2)
    growth = float(path[-1].norm(dim=-1).div(starts.norm(dim=-1)).mean())
    axes.plot(
        angle.cos() * starts[:, 0], angle.sin() * starts[:, 0], color="lightgray", linewidth=4
    )
    axes.plot(path[..., 0], path[..., 1], ".-", color=BLUE, markersize=3, linewidth=0.9)
    axes.set(title=f"{n} steps: radius × {growth:.2f}", xlabel="x (voxel)", aspect="equal")
    axes.set(xlim=(-5.8, 5.8), ylim=(-5.8, 5.8))
figure.axes[0].set_ylabel("y (voxel)")
assert 1 < growth < 1.12  # 512 steps: Euler still drifts outwards, but ever less
figure

# %% [markdown]
# Grey is the true path, blue is Euler's. Each jump leaves the circle along its tangent, so the particle always ends a
# little too far out. Four times as many jumps leave about a quarter of the error.
#
# ## Composing, not adding
#
# Suppose that you know the displacement after half a unit of time. The second half of the flow is the same as the
# first.
#
# **Predict:** may we add the two displacements to get the whole?
#
# > *My prediction:*

# %%
from course_utils.fields import compose


def reference(amplitude=12.0, steps=200):
    """exp(v) of the eddies to high precision: classical Runge-Kutta on the formula itself, no
    grid, float64."""
    y, h = x.double(), 1 / steps
    for _ in range(steps):
        a = eddies(y, amplitude)
        b = eddies(y + h / 2 * a, amplitude)
        c = eddies(y + h / 2 * b, amplitude)
        y = y + h / 6 * (a + 2 * b + 2 * c + eddies(y + h * c, amplitude))
    return (y - x).float()


def distance(u, w):
    """Euclidean distance of two displacements, voxel by voxel."""
    return (u - w).norm(dim=1)


truth, half = reference(12.0), reference(6.0)  # the flow of v / 2 is half the time of v
added, composed = distance(half + half, truth), distance(compose(half, half), truth)
assert added.mean() > 20 * composed.mean()
print(f"mean error: added {added.mean():.2f} voxels, composed {composed.mean():.3f}")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No. Adding forgets that the second half starts where the first one has ended. Composing is right; the small error that
# it leaves comes from reading a sampled field between its samples.
#
# </details>
#
# This suggests a trick. If $\exp(v/2)$ composed with itself is $\exp(v)$, then we can get $\exp(v)$ with one composition
# from half the time, with two from a quarter, and with seven from $1/128$. And over $1/128$ of the time the flow is
# almost $v/128$. This is *scaling and squaring*, and by hand it takes four lines:


# %%
def exponential(velocity, steps=7):
    displacement = velocity / 2**steps  # scaling
    for _ in range(steps):  # squaring: u <- u o u
        displacement = displacement + warp(displacement, displacement)
    return displacement


flow = exponential(velocity)
assert distance(flow, integrate(velocity)).max() < 1e-3
print(f"equal to the course's; mean error {distance(flow, truth).mean():.3f} voxel after 7 warps")

# %% [markdown]
# ## How many steps?
#
# $K$ squarings do the work of $2^K$ Euler steps. Euler's error falls like $1/N$: double the steps, and you halve the
# error.
#
# **Predict:** if you go on doubling, does the error go to zero?
#
# > *My prediction:*


# %%
def euler_on_grid(velocity, steps):
    """Euler for every voxel at once, reading the sampled velocity where the particle has come."""
    u = torch.zeros_like(velocity)
    for _ in range(steps):
        u = u + warp(velocity, u) / steps
    return u


squarings = list(range(12))
error_squared = torch.stack([distance(integrate(velocity, n), truth).mean() for n in squarings])
error_euler = torch.stack(
    [distance(euler_on_grid(velocity, 2**n), truth).mean() for n in squarings[:9]]
)
order = torch.log2(error_squared[:-1] / error_squared[1:])

assert (order[:4] > 0.85).all() and (order[:4] < 1.15).all()  # first order
assert order[-1] < 0.2  # and then a floor
assert error_squared[7] < 1.5 * error_squared[-1] and error_squared[7] < 0.1
assert error_euler[-1] < error_squared[-1]
print("each squaring divides the error by", ", ".join(f"{2**o:.2f}" for o in order.tolist()))

# %%
figure = Figure(figsize=(8.4, 3.2), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
steps = 2.0 ** torch.tensor(squarings)
look = {"markersize": 4}
left.loglog(steps[:9], error_euler, "s-", color=ORANGE, label="Euler, N steps", **look)
left.loglog(steps, error_squared, "o-", color=BLUE, label="squaring, N = 2ᴷ", **look)
left.loglog(steps, error_squared[0] / steps, ":", color="gray", label="slope −1")
left.set(xlabel="time steps N", ylabel="mean error (voxel)", title="First order, then a floor")
right.loglog(steps[:9], error_euler, "s-", color=ORANGE, label="Euler: N warps", **look)
right.loglog(squarings[1:], error_squared[1:], "o-", color=BLUE, label="squaring: K warps", **look)
right.set(xlabel="warps computed", title="The same accuracy, its price")
for axes in (left, right):
    axes.legend(fontsize=8)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No, it stops at a floor of a few hundredths of a voxel. The floor has nothing to do with time steps: each squaring
# interpolates the displacement linearly, and these errors add up.
#
# </details>
#
# Euler reads the velocity itself, which is never interpolated twice, and gets below that floor, but only after 256
# warps. Squaring reaches its floor on this grid with about 7 warps. That is why nearly everybody takes 7 squarings, and
# why nobody gains anything from 20.
#
# Has the flow kept its promise?

# %%
from course_utils.plotting import deformed_grid

determinant = jacobian_determinant(flow)
assert folding_percent(flow).item() == 0
assert (determinant - 1).abs().max() < 0.05  # the fluid keeps every area
print(
    f"exp(v): det J from {determinant.min():.3f} to {determinant.max():.3f}, nothing folded (as "
    f"displacement: {folded:.0f} %)"
)
deformed_grid({"x + v(x): crosses itself": velocity, "exp(v): does not": flow}, step=3)

# %% [markdown]
# ## Backwards
#
# The inverse of a flow is the flow of $-v$; there is no equation to solve. We try it on the velocity that carries the
# one person into the other. Run backwards, it should carry the *fixed* image into the moving one, and undo what was
# done to the moving image.
#
# There are two rivals. One is $-u$, a popular shortcut. The other is a solver that knows nothing of $v$: from
# $y = x + u(x)$, the inverse $w$ must satisfy $w(y) = -u\bigl(y + w(y)\bigr)$, so guess $w$, put it in on the right, and
# repeat.
#
# **Predict:** rank the three by how close to home they bring a voxel: $-u$, $\exp(-v)$, the solver.
#
# > *My prediction:*

# %%
from course_utils.fields import invert

there, back = integrate(found), integrate(-found)
candidates = {"-u": -there, "solver": invert(there), "exp(-v)": back}
residual = {name: compose(there, w).norm(dim=1) for name, w in candidates.items()}  # (1, H, W)
for name, r in residual.items():
    print(f"{name:>8}: mean distance from home {r.mean():.3f} pixel, largest {r.max():.2f}")

mean = {name: r.mean() for name, r in residual.items()}
assert mean["exp(-v)"] < 0.08 and mean["exp(-v)"] < mean["-u"] / 10
assert mean["exp(-v)"] < mean["solver"] < 0.8 * mean["-u"]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# $\exp(-v)$ is by far the best, then comes the solver, and $-u$ is the worst. $-u$ is the displacement of the wrong
# place: it belongs to where the voxel came from, not to where it is now. The solver cannot cope where $u$ is steep.
#
# </details>
#
# $\exp(-v)$ costs another seven warps and is right to a few hundredths of a pixel. The pictures show the moving image
# there and back again, once with each of the three.

# %%
gone = warp(moving, there)
returned = {"moving": moving, "carried to the fixed": gone}
returned |= {f"and back by {name}": warp(gone, w) for name, w in candidates.items()}
panel(returned, columns=3, **cohort.info.view)

# %% [markdown]
# Why does the solver fail here? Each of its rounds shrinks the error only if neighbouring displacements differ by less
# than their distance, that is, where the Lipschitz constant $L$ of $u$ is below 1. To see both cases we take a smooth
# random velocity, once weak and once strong.

# %%
from scipy.ndimage import gaussian_filter

from course_utils.fields import gradient


def random_velocity(shape, amplitude, smoothness, seed=session.seed):
    """Smooth noise (1, N, *shape), zero at the border; ``amplitude`` is the longest vector, in
    voxels."""
    noise = torch.randn(len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.stack([torch.from_numpy(gaussian_filter(c.numpy(), smoothness)) for c in noise])
    for axis, n in enumerate(shape):
        window = torch.hann_window(n, periodic=False).sqrt()
        smooth = smooth * window.view([-1 if a == axis else 1 for a in range(len(shape))])
    return (amplitude * smooth / smooth.norm(dim=0).max())[None]


def lipschitz(u):
    """Largest singular value of the gradient of (1, 2, H, W), over all voxels."""
    slopes = torch.stack(gradient(u), dim=2)[0]  # (component, axis, H, W)
    return torch.linalg.matrix_norm(slopes.movedim((0, 1), (-2, -1)), 2).max().item()


# %%
v = random_velocity((96, 96), amplitude=12, smoothness=9.6)
figure = Figure(figsize=(6.4, 3.4), layout="constrained")
axes = figure.subplots()
iterations, last = range(1, 32, 3), {}
for scale, colour, marker in [(0.4, BLUE, "o"), (2, ORANGE, "s")]:
    u, w = integrate(scale * v), integrate(-scale * v)
    curve = [compose(u, invert(u, iterations=n)).norm(dim=1).mean().item() for n in iterations]
    last[scale] = curve[-1], compose(u, w).norm(dim=1).mean().item()
    name = f"solver, L = {lipschitz(u):.1f}"
    axes.semilogy(iterations, curve, f"{marker}-", color=colour, markersize=3, label=name)
    axes.axhline(last[scale][1], color=colour, linestyle=":", label="exp(−v) of the same field")
    assert (lipschitz(u) < 1) == (scale < 1)
axes.set(
    xlabel="rounds",
    ylabel="mean distance from home (voxel)",
    title="Inverting a displacement without its velocity",
    ylim=(1e-6, 10),
)
axes.legend(fontsize=8, loc="lower right")
assert last[0.4][0] < last[0.4][1] / 5 and last[2][0] > 5 * last[2][1]
assert lipschitz(there) > 1
print(f"the two people's displacement has L = {lipschitz(there):.1f}")
figure

# %% [markdown]
# On the gentle field the solver wins, because it inverts this very sampled $u$, with its discretisation errors. On the
# strong field it gets stuck for good, while the flow hardly notices. The two people's displacement is of the second
# kind.
#
# ## When exp(v) folds after all
#
# The theorem is about continuous fields. Ours are samples, joined by straight lines. We turn up the amplitude of a
# smooth velocity, and count folds without any integration ($K = 0$ means the displacement $v$ itself), with few
# squarings, and with seven.
#
# **Predict:** with seven squarings, is the number of folds zero at any amplitude and for any field?
#
# > *My prediction:*

# %%
amplitudes = torch.arange(0.0, 33.0, 2.0).tolist()
folds = {n: [] for n in (0, 1, 2, 4, 7)}
for a in amplitudes:
    fields = torch.cat(
        [random_velocity((96, 96), a, smoothness=6, seed=s) for s in range(4)]
    )  # (4, 2, 96, 96)
    for n, percents in folds.items():
        percents.append(folding_percent(integrate(fields, n)).mean().item())

smoothness = [1, 1.5, 2, 3, 4, 6]
rough = {n: [] for n in (0, 7)}
for s in smoothness:
    fields = torch.cat([random_velocity((96, 96), 16.0, s, seed=seed) for seed in range(4)])
    for n, percents in rough.items():
        percents.append(folding_percent(integrate(fields, n)).mean().item())

# %%
at = amplitudes.index(12.0)
assert folds[0][at] > 0.5 and folds[7][at] < 0.01
assert folds[0][-1] > 2 * folds[1][-1] > 4 * folds[2][-1] > 4 * folds[7][-1]
assert folds[0][-1] > 50 * folds[7][-1] > 0
assert rough[7][0] > 0.1 and rough[7][-1] < 0.01
assert all(b < a for a, b in zip(rough[0], rough[7], strict=True))
roughest = torch.cat([random_velocity((96, 96), 16.0, 1, seed=seed) for seed in range(4)])
assert folding_percent(integrate(roughest, 12)).mean() > 0.5 * rough[7][0]  # no help from more

# %%
figure = Figure(figsize=(8.4, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
looks = {0: (ORANGE, "s"), 1: (AMBER, "^"), 2: (GREEN, "v"), 4: (SKY, "d"), 7: (BLUE, "o")}
for n, percents in folds.items():
    name = f"exp(v), {n} squaring{'s' * (n > 1)}" if n else "displacement v"
    colour, marker = looks[n]
    left.plot(amplitudes, percents, f"{marker}-", color=colour, markersize=3, label=name)
    if n in rough:
        right.plot(smoothness, rough[n], f"{marker}-", color=colour, markersize=4, label=name)
left.set(
    xlabel="longest vector (voxel)",
    ylabel="folded voxels (%)",
    title="A smooth field (σ = 6), turned up",
)
right.set(
    xlabel="smoothness: σ of the Gaussian (voxel)",
    ylabel="folded voxels (%)",
    title="16 voxels long, ever smoother",
)
ticks = [0, 0.01, 0.1, 1, 10]
for axes in (left, right):
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set(ylim=(0, 60), yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    axes.legend(fontsize=7)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No. With seven squarings folds are far rarer than in the displacement itself, but on a rough field, or at great length,
# they come. More squarings do not remove them then: the velocity has more detail than the grid can follow.
#
# </details>
#
# With few squarings the map folds like a displacement, only later. So "diffeomorphic" is not a property of a network
# that has an integration layer. It is a property of a velocity that is smooth on the scale of its grid and is
# integrated in enough steps. Always count the folds: `folding_percent` is one line.
#
# ## Trap 1: half resolution and its two factors
#
# Integration is cheaper on a grid of half the size. Vectors are in voxels, and the voxels of the coarse grid are twice
# as long: the velocity must be *halved* on the way down, and the displacement *doubled* on the way up. `resize` does
# that. MONAI's `VoxelMorph(half_res=True)` (version 1.6.1) does the reverse: 2 on the way down, ½ on the way up. The
# two factors cancel each other, so is anything wrong at all?
#
# **Predict:** for which velocity do the exchanged factors do no harm?
#
# > *My prediction:*

# %%
import warnings

from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from torch import nn

warnings.filterwarnings("ignore", message=".*native grid_sample")


class Fixed(nn.Module):
    """A 'network' that always predicts the velocity it was given."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, pair):
        return self.velocity


# %%
def ours_half(v):
    coarse = [n // 2 for n in v.shape[2:]]
    return resize(integrate(resize(v, coarse)), v.shape[2:])


def monai_half(v):
    blank = torch.zeros(1, 1, *v.shape[2:])
    return MonaiVoxelMorph(backbone=Fixed(v), half_res=True)(blank, blank)[1]


# %%
volume = (40, 40, 40)
constant = torch.full((1, 3, *volume), 2.0)
for name, method in {"resize": ours_half, "MONAI half_res": monai_half}.items():
    middle = method(constant)[0, :, 20, 20, 20]
    assert torch.allclose(middle, torch.full((3,), 2.0), atol=1e-3)
    print(f"{name}: a constant velocity of 2 moves the middle by {middle[0]:.3f} voxels")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# A constant one. Its exponential is linear in $v$, so the factors cancel; and a constant field is exactly what many
# people would test with.
#
# </details>
#
# With other velocities they do not cancel. Doubling instead of halving integrates four times the velocity, and a quarter
# of the result comes back: $\tfrac14 \exp(4v)$ in place of $\exp(v)$. We measure it on a smooth random velocity that is
# zero at the border, against integration at full resolution:

# %%
shape_of = random_velocity(volume, 1.0, smoothness=6)
lengths = [0.5, 1, 2, 4, 8]
rows = {"half resolution, resize": [], "MONAI half_res=True": [], "¼ exp(4v)": []}
residuals = {"half resolution, resize": [], "MONAI half_res=True": []}
for length in lengths:
    v3 = length * shape_of
    full = integrate(v3)
    for name, u in zip(rows, (ours_half(v3), monai_half(v3), integrate(4 * v3) / 4), strict=True):
        rows[name].append(100 * (distance(u, full).mean() / full.norm(dim=1).mean()).item())
    for name, method in zip(residuals, (ours_half, monai_half), strict=True):
        residuals[name].append(compose(method(v3), method(-v3)).norm(dim=1).mean().item())

right_way, wrong_way, quarter = rows.values()
assert all(w > 2 * r for r, w in zip(right_way[2:], wrong_way[2:], strict=True))
assert right_way[-1] < 12 and wrong_way[-1] > 15 and wrong_way == sorted(wrong_way)
assert abs(quarter[-1] - wrong_way[-1]) < 0.25 * wrong_way[-1]  # that is what it computes
assert residuals["MONAI half_res=True"][-1] > 4 * residuals["half resolution, resize"][-1]

# %%
figure = Figure(figsize=(8.4, 3.1), layout="constrained")
left, right = figure.subplots(1, 2)
styles = {
    "half resolution, resize": (BLUE, "o-"),
    "MONAI half_res=True": (ORANGE, "s-"),
    "¼ exp(4v)": ("#777777", ":"),
}
for axes, curves in ((left, rows), (right, residuals)):
    for name, values in curves.items():
        axes.plot(lengths, values, styles[name][1], color=styles[name][0], markersize=4, label=name)
    axes.set(xlabel="longest velocity vector (voxel)")
left.set(ylabel="difference to full resolution (%)", title="Is it exp(v)?")
right.set(ylabel="mean distance from home (voxel)", title="Does exp(−v) invert it?")
left.legend(fontsize=8)
figure

# %% [markdown]
# Nothing crashes, a network can train around it, and even the Dice may be fine. What is lost is what the velocity was
# for: the map is no longer a flow, and $-v$ no longer gives its inverse. Integrating at half resolution is not to blame:
# done right, it differs from full resolution by a few per cent on this field (the detail that a grid of half the size
# cannot hold), it is inverted by $-v$, and in a volume it takes an eighth of the work.
#
# ## Trap 2: zeros in the integration
#
# For images, padding is a matter of taste. Inside the integration it is not, because there the *displacement* is what is
# sampled. MONAI's `DVF2DDF` pads it with zeros unless you tell it otherwise. Take a constant velocity of 6 voxels, which
# should move everything by 6.
#
# **Predict:** how far from 6 is the answer in the middle, and at the border?
#
# > *My prediction:*

# %%
from monai.networks.blocks import DVF2DDF

push = torch.zeros(1, 2, 48, 48)
push[:, 0] = 6.0
profiles = {
    'integrate ("border")': integrate(push),
    'DVF2DDF(padding_mode="border")': DVF2DDF(padding_mode="border")(push),
    "DVF2DDF(), zeros": DVF2DDF()(push),
}
figure = Figure(figsize=(6, 2.9), layout="constrained")
axes = figure.subplots()
looks = (("-", BLUE, 3), ("--", AMBER, 1.5), ("-", ORANGE, 1.5))
for (name, u), (style, colour, width) in zip(profiles.items(), looks, strict=True):
    axes.plot(u[0, 0, :, 24], style, color=colour, linewidth=width, label=name)
axes.set(xlabel="voxel along axis 0", ylabel="displacement (voxel)", ylim=(0, 6.6))
axes.set_title("A constant velocity of 6")
axes.legend(fontsize=8, loc="lower left")

border, told, zeros = profiles.values()
assert (border[:, 0] - 6).abs().max() < 1e-3 and (told[:, 0] - 6).abs().max() < 1e-3
assert zeros[0, 0, -1, 24] < 3 and jacobian_determinant(zeros).min() < 0.5
assert (zeros[0, 0, :36, 24] - 6).abs().max() < 1e-3
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# In the middle it is right. In the last voxels, which should be read from outside of the image, it falls below half of
# 6: the flow meets a wall that is not there.
#
# </details>
#
# At such a wall the tissue is squeezed. In the black frame around a brain that harms nobody. In a tightly cropped organ
# the border lies in the anatomy.
#
# ## Trap 3: half precision
#
# Mixed precision is a gift for convolutions. Coordinates are another matter: a bfloat16 has 8 significant bits, and a
# position along an axis of 160 voxels needs 8 for its *integer* part alone. We ask every voxel for a displacement of 0.3,
# and see where it really reads if the arithmetic of the warp runs in another type.
#
# **Predict:** what does bfloat16 make of the position 150 + 0.3?
#
# > *My prediction:*

# %%
n = 160


def asked_for(dtype, u=0.3):
    """The positions x + u along an axis of n voxels, in voxels, computed in ``dtype``."""
    return torch.arange(n, dtype=dtype) + torch.tensor(u, dtype=dtype)


def read_at(dtype):
    """The same after the way to grid_sample's [-1, 1] in ``dtype``, and back to voxels exactly."""
    normalised = asked_for(dtype) * 2 / (n - 1) - 1
    return (normalised.float() + 1) * (n - 1) / 2


wanted = torch.arange(n) + 0.3
types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
error = {name: read_at(dtype) - wanted for name, dtype in types.items()}
position_only = asked_for(torch.bfloat16).float() - wanted
worst = {name: e.abs().max().item() for name, e in error.items()}
print(f"150 + 0.3 in bfloat16: {(torch.tensor(150.0).bfloat16() + 0.3).item()}")
print(f"largest error: {', '.join(f'{name} {value:.2g}' for name, value in worst.items())} voxel")

# %%
figure = Figure(figsize=(8.4, 4.6), layout="constrained")
top, bottom = figure.subplots(2, 1, sharex=True)
looks = {"bfloat16": (ORANGE, "."), "float16": (SKY, "."), "float32": ("#000000", "")}
top.plot(position_only, ".-", color=ORANGE, markersize=3, linewidth=0.6)
top.set(ylabel="error (voxel)", title="bfloat16: the position x + 0.3 alone")
for name, (colour, marker) in looks.items():
    bottom.plot(error[name], f"{marker}-", color=colour, markersize=3, linewidth=0.6, label=name)
bottom.set(ylabel="error (voxel)", title="The whole way, through grid_sample's coordinates")
bottom.set_xlabel("voxel")
bottom.legend(fontsize=8, loc="lower left")

assert torch.tensor(150.0).bfloat16() + 0.3 == 150  # a shift of 0.3 voxel is lost
assert (position_only[128:] + 0.3).abs().max() < 1e-3  # whole voxels: rounded down
assert (position_only[64:128] - 0.2).abs().max() < 1e-3  # halves: rounded up
assert (position_only[16:64] + 0.05).abs().max() < 1e-3  # eighths, then quarters
assert worst["float32"] < 1e-4 and 0.01 < worst["float16"] < 0.2 and worst["bfloat16"] > 0.3
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It makes 150 of it: the displacement is lost. With 8 significant bits, numbers from 128 on are whole numbers.
#
# </details>
#
# The upper figure shows the steps. From voxel 16 on, positions are eighths and then quarters of a voxel, and 0.3 becomes
# 0.25. From 64 on they are halves, and 0.3 becomes 0.5, which is 0.2 too much. From 128 on they are whole, and 0.3
# becomes 0, which is 0.3 too little: that is why the error changes its sign there. The lower figure adds a second rounding, of the
# coordinates between −1 and 1. They are finest near 0, in the middle of the axis, and coarse at both ends, so the errors
# scatter.
#
# A training loop that lets its fields slip into the network's half precision registers to half a voxel at best. The cure
# is one rule: **fields are float32**, under autocast too. `warp` and `integrate` keep to it, whatever comes in:

# %%
ramp = torch.arange(float(n)).view(1, 1, n, 1).expand(1, 1, n, 8)
u = torch.zeros(1, 2, n, 8)
u[:, 0] = 0.3
with torch.autocast("cpu", dtype=torch.bfloat16):
    kept = warp(ramp, u)[0, 0, :-1, 0] - torch.arange(n - 1.0)
    stored = integrate(u.bfloat16())
assert (kept - 0.3).abs().max() < 1e-3 and stored.dtype == torch.float32
print(
    f"under bfloat16 autocast warp reads {kept.min():.4f} to {kept.max():.4f} further on; "
    f"integrate returns {stored.dtype}"
)

# %% [markdown]
# ## The same in MONAI
#
# MONAI calls a velocity a *dense velocity field* (DVF) and a displacement a *dense displacement field* (DDF). Its layer
# from the one to the other is `DVF2DDF`, and its warp is `Warp`. Both follow the same convention as this course: vectors
# in voxels, component $c$ along array axis $c$. With the padding written out, they give our numbers, on our two people
# and on the eddies:

# %%
from monai.networks.blocks import Warp

to_ddf = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border")
monai_warp = Warp(mode="bilinear", padding_mode="border")
ddf = to_ddf(found)  # (1, 2, H, W)
arrived = monai_warp(moving, ddf)
assert distance(ddf, there).max() < 1e-3 and (arrived - gone).abs().max() < 1e-3
assert distance(to_ddf(velocity), flow).max() < 1e-3
print(f"the same flow to {distance(ddf, there).max():.0e} pixel")

inside = fixed_label[:, 0] > 0
default = distance(DVF2DDF()(found), there)
print(f"with its default padding: up to {default.max():.2f} pixel off in the frame,")
print(f"and up to {default[inside].max():.3f} pixel inside the brain")
assert default[inside].mean() < 0.05 < default.max()

# %% [markdown]
# The defaults differ, and this is worth knowing when you read MONAI's tutorials: `Warp` alone pads with the border,
# `DVF2DDF` and `VoxelMorph` pad with zeros. Neither default is a mistake. What went wrong in trap 1 is one, and it is
# instructive: a test with a constant field passes, and so does a test of shapes. The tests that find it are the two of
# this page. Compare with a flow that is known, and compose with the inverse.
#
# ## What you now have
#
# - A velocity is followed, a displacement is jumped. $\exp(v)$ by scaling and squaring takes four lines, and seven warps
#   do the work of 128 Euler steps.
# - It converges with first order, down to a floor that interpolation sets.
# - The inverse is $\exp(-v)$. The fixed-point solver inverts a displacement that has no velocity, as long as it is
#   gentle.
# - It folds after all if there are too few squarings, or if the velocity is too rough for its grid.
#
# **Where this idea comes from.** Here the velocity does not change in time; it is *stationary*. LDDMM (Beg et al.) lets
# it change, which reaches more maps and gives a distance between shapes, and costs more memory and time. DARTEL
# (Ashburner) made the stationary velocity popular in neuroimaging. The log-demons (Vercauteren et al.) update such a
# velocity by optical-flow forces. VoxelMorph's diffeomorphic version (Dalca et al.) lets a network predict it.
#
# **What can go wrong.** The factors at half resolution are exchanged, and a constant test field does not tell. Zeros are
# padded into a displacement. Coordinates are computed in half precision. None of the three raises an error.
#
# **Try it.**
# 1. *(middle)* Replace the first step of `exponential` by one midpoint step,
#    $\frac{v}{2^K}\bigl(x + \frac{v(x)}{2^{K+1}}\bigr)$. What does the convergence plot look like?
# 2. *(middle)* Integrate $v$ and $2v$ of the random field. Is $\exp(2v) = \exp(v) \circ \exp(v)$? And is
#    $\exp(v + w) = \exp(v) \circ \exp(w)$ for another $w$?
# 3. *(easy)* Add the frames 3 and 5 to the slider. Does the flow of this velocity fold at some time?
# 4. *(hard)* Write `integrate` for a velocity that changes in time, given as a list of four fields that are followed for
#    a quarter of a unit each. What is its inverse?
#
# **References.** Arsigny et al., *A log-Euclidean framework for statistics on diffeomorphisms*, MICCAI 2006,
# [doi:10.1007/11866565_113](https://doi.org/10.1007/11866565_113). Ashburner, *A fast diffeomorphic image registration
# algorithm* (DARTEL), NeuroImage 38(1), 2007,
# [doi:10.1016/j.neuroimage.2007.07.007](https://doi.org/10.1016/j.neuroimage.2007.07.007). Beg et al., *Computing large
# deformation metric mappings via geodesic flows of diffeomorphisms* (LDDMM), IJCV 61(2), 2005,
# [doi:10.1023/B:VISI.0000043755.93987.aa](https://doi.org/10.1023/B:VISI.0000043755.93987.aa). Vercauteren et al.,
# *Symmetric log-domain diffeomorphic registration: a demons-based approach*, MICCAI 2008,
# [doi:10.1007/978-3-540-85988-8_90](https://doi.org/10.1007/978-3-540-85988-8_90). Dalca et al., *Unsupervised learning
# for fast probabilistic diffeomorphic registration*, MICCAI 2018,
# [doi:10.1007/978-3-030-00928-1_82](https://doi.org/10.1007/978-3-030-00928-1_82). Chen et al., *A simple fixed-point
# approach to invert a deformation field*, Medical Physics 35(1), 2008,
# [doi:10.1118/1.2816107](https://doi.org/10.1118/1.2816107). Moler and Van Loan, *Nineteen dubious ways to compute the
# exponential of a matrix, twenty-five years later*, SIAM Review 45(1), 2003,
# [doi:10.1137/S00361445024180](https://doi.org/10.1137/S00361445024180).
#
# Next: [04 VoxelMorph](04_voxelmorph.ipynb): a network that predicts the velocity.
