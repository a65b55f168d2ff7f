# %% [markdown]
# # 03 Velocity fields
#
# A displacement can fold, has no obvious inverse, and does not add up. A *velocity* that is followed for one unit of
# time does better: the flow of a smooth velocity cannot fold, and running it backwards inverts it. Here you integrate
# one by hand in four lines, measure how fast that converges, find out when the promise breaks on a grid, and take
# apart three traps: the scale of half-resolution integration, padding, and half precision.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/03_velocity_fields.ipynb)

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
# ## A field with a known answer
#
# Nine eddies on a square: $v_0 = A \sin kx_0 \cos kx_1$, $v_1 = -A \cos kx_0 \sin kx_1$. It never points out of the
# square, and its divergence is zero: a fluid that moves this way keeps every area. So we know what a right answer
# looks like: $\det J = 1$ everywhere.
#
# **Predict:** take this field as a *displacement* with $A = 12$ voxels. Is $\det J$ 1?

# %%
import math

import torch

from course_utils.fields import identity_grid, jacobian_determinant
from course_utils.metrics import folding_percent
from course_utils.plotting import deformed_grid

size = 97
x = identity_grid((size, size))  # (1, 2, 97, 97)
k = 3 * math.pi / (size - 1)


def eddies(position, amplitude=12.0):
    """Velocity (B, 2, ...) in voxels a unit of time, at positions (B, 2, ...) in voxels."""
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
# It folds in a tenth of the square. A displacement jumps along a straight line, whatever it passes on the way;
# neighbours may jump over each other. A particle in a fluid takes the flow as it finds it, at every moment:
#
# $$\frac{d\phi_t(x)}{dt} = v\bigl(\phi_t(x)\bigr), \qquad \phi_0(x) = x, \qquad \exp(v) = \phi_1$$
#
# Solutions of this equation do not cross (if $v$ is Lipschitz), so $\phi_1$ cannot fold. How do we solve it? Euler's
# way: jump, but often. Three particles on a turntable, where the true path is known to be a circle:

# %%
from course_utils.plotting import Figure


def euler(v, start, steps):
    """Positions (steps + 1, ...) of particles that jump by v / steps, steps times."""
    path = [start]
    for _ in range(steps):
        path.append(path[-1] + v(path[-1]) / steps)
    return torch.stack(path)


def turntable(p):
    return 1.5 * math.pi * torch.stack([-p[..., 1], p[..., 0]], dim=-1)


# %%
starts = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
figure = Figure(figsize=(8.4, 3), layout="constrained")
for axes, n in zip(figure.subplots(1, 3, sharex=True, sharey=True), (8, 32, 128), strict=True):
    path = euler(turntable, starts, n)  # (n + 1, 3, 2)
    growth = float(path[-1].norm(dim=-1).div(starts.norm(dim=-1)).mean())
    angle = torch.linspace(0, 1.5 * math.pi, 100)
    axes.plot(
        angle.cos()[:, None] * starts[:, 0],
        angle.sin()[:, None] * starts[:, 0],
        color="lightgray",
        linewidth=4,
    )
    axes.plot(path[..., 0], path[..., 1], ".-", color="tab:blue", markersize=3, linewidth=0.9)
    axes.set(title=f"{n} steps: radius × {growth:.2f}", xlabel="x (voxel)", aspect="equal")
assert 1 < growth < 1.12  # 128 steps: Euler drifts outwards, ever less
figure

# %% [markdown]
# ## Composing, not adding
#
# Half a unit of time, then another half. **Predict:** may we add the two displacements?

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
# Adding forgets that the second half starts where the first one ended. Composition is exact but for interpolation,
# and it suggests a trick. If $\exp(v/2)$ composed with itself is $\exp(v)$, then $\exp(v)$ takes one composition from
# half the time, two from a quarter, seven from $1/128$; and over $1/128$ of the time the flow is almost $v/128$.
# *Scaling and squaring*, by hand:

# %%
import warnings

from monai.networks.blocks import DVF2DDF

from course_utils.fields import integrate, warp

warnings.filterwarnings("ignore", message=".*native grid_sample")


def exponential(velocity, steps=7):
    displacement = velocity / 2**steps  # scaling
    for _ in range(steps):  # squaring: u <- u o u
        displacement = displacement + warp(displacement, displacement)
    return displacement


flow = exponential(velocity)
others = {"course_utils": integrate(velocity), "MONAI": DVF2DDF(7, padding_mode="border")(velocity)}
for name, other in others.items():
    assert distance(flow, other).max() < 1e-3, name
print(
    f"equal to {', '.join(others)}; mean error {distance(flow, truth).mean():.3f} voxel, after 7 "
    "warps"
)

# %% [markdown]
# ## How many steps?
#
# $K$ squarings do the work of $2^K$ Euler steps. Euler's error falls like $1/N$: double the steps, halve the error.
# **Predict:** does the error then go to zero?


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
print("each squaring divides the error by", ", ".join(f"{2**o:.2f}" for o in order.tolist()))

# %%
figure = Figure(figsize=(8.4, 3.2), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
steps = 2.0 ** torch.tensor(squarings)
left.loglog(steps[:9], error_euler, "s-", color="tab:orange", markersize=4, label="Euler, N steps")
left.loglog(
    steps, error_squared, "o-", color="tab:blue", markersize=4, label="scaling and squaring, N = 2ᴷ"
)
left.loglog(steps, error_squared[0] / steps, ":", color="gray", label="slope −1")
left.set(xlabel="time steps N", ylabel="mean error (voxel)", title="First order, then a floor")
right.loglog(steps[:9], error_euler, "s-", color="tab:orange", markersize=4, label="Euler: N warps")
right.loglog(
    squarings[1:],
    error_squared[1:],
    "o-",
    color="tab:blue",
    markersize=4,
    label="squaring: K warps",
)
right.set(xlabel="warps computed", title="The same accuracy, its price")
for axes in (left, right):
    axes.legend(fontsize=8)
figure

# %% [markdown]
# The floor is no matter of time steps: each squaring interpolates the displacement linearly, and that error adds up
# (Euler reads the velocity itself and gets lower, at 256 warps). On this grid it is a few hundredths of a voxel,
# reached with about 7 squarings. That is why everybody uses 7 and nobody gains from 20.
#
# Did it keep its promise?

# %%
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
# The inverse of a flow is the flow of $-v$. No equation to solve. A random velocity on a picture, there and back:

# %%
from scipy.ndimage import gaussian_filter

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import load_subject
from course_utils.plotting import panel


def random_velocity(shape, amplitude, smoothness, seed=session.seed):
    """Smooth noise (1, N, *shape), zero at the border; ``amplitude`` is the longest vector, in
    voxels."""
    noise = torch.randn(len(shape), *shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.stack([torch.from_numpy(gaussian_filter(c.numpy(), smoothness)) for c in noise])
    for axis, n in enumerate(shape):
        window = torch.hann_window(n, periodic=False).sqrt()
        smooth = smooth * window.view([-1 if a == axis else 1 for a in range(len(shape))])
    return (amplitude * smooth / smooth.norm(dim=0).max())[None]


# %%
cohort = load_cohort(session.dataset)
image = load_subject(cohort.splits["test"][0], cohort.info.recipe)["image"][None]
spacing = cohort.info.spacing
if image.ndim == 5:  # the coronal slice in the middle
    image, spacing = image[:, :, :, image.shape[3] // 2], (spacing[0], spacing[2])
shape = tuple(image.shape[2:])
v = random_velocity(shape, amplitude=min(shape) / 8, smoothness=min(shape) / 10)
there, back = integrate(v), integrate(-v)
panel(
    {
        "image": image,
        "exp(v)": warp(image, there),
        "exp(v), then exp(−v)": warp(warp(image, there), back),
        "u, then −u": warp(warp(image, there), -there),
    },
    spacing=spacing,
)

# %% [markdown]
# How close is $\exp(v) \circ \exp(-v)$ to the identity? Its displacement should be zero everywhere. Two rivals: $-u$,
# the popular shortcut, and a solver that knows nothing of $v$. From $y = x + u(x)$ the inverse $w$ must satisfy
# $w(y) = -u\bigl(y + w(y)\bigr)$: guess $w$, put it in on the right, repeat.

# %%
from course_utils.fields import invert

candidates = {"-u": -there, "exp(-v)": back, "fixed point of u": invert(there)}
residual = {
    name: compose(there, w).norm(dim=1) for name, w in candidates.items()
}  # (1, *shape), voxels
for name, r in residual.items():
    print(f"{name:>16}: mean residual {r.mean():.4f} voxel, largest {r.max():.3f}")

assert residual["exp(-v)"].mean() < 0.05 and residual["-u"].mean() > 8 * residual["exp(-v)"].mean()
assert residual["fixed point of u"].mean() < residual["-u"].mean() / 3
assert (
    distance(back, candidates["fixed point of u"]).mean() < residual["-u"].mean() / 4
)  # two roads to one inverse

# %% [markdown]
# $\exp(-v)$ costs another seven warps and is right to a few hundredths of a voxel. How good the fixed point is, the
# next figure tells: it shrinks its error only where neighbouring displacements differ by less than their distance,
# that is, where the Lipschitz constant $L$ of $u$ is below 1.

# %%
from course_utils.fields import gradient

# %%
figure = Figure(figsize=(6.4, 3.2), layout="constrained")
axes = figure.subplots()
iterations, last = range(1, 32, 3), {}
for scale, colour in [(0.4, "tab:blue"), (2, "tab:red")]:
    u, w = integrate(scale * v), integrate(-scale * v)
    slopes = torch.stack(gradient(u), dim=2)[0].movedim(
        (0, 1), (-2, -1)
    )  # (*shape, component, axis)
    lipschitz = torch.linalg.matrix_norm(slopes, 2).max().item()
    curve = [compose(u, invert(u, iterations=n)).norm(dim=1).mean().item() for n in iterations]
    last[scale] = curve[-1], compose(u, w).norm(dim=1).mean().item()
    axes.semilogy(
        iterations,
        curve,
        "o-",
        color=colour,
        markersize=3,
        label=f"fixed point, L = {lipschitz:.1f}",
    )
    axes.axhline(last[scale][1], color=colour, linestyle=":", label="exp(−v) of the same field")
    assert (lipschitz < 1) == (scale < 1)
axes.set(
    xlabel="iterations",
    ylabel="mean residual (voxel)",
    title="Inverting a displacement without its velocity",
    ylim=(1e-6, 10),
)
axes.legend(fontsize=8, ncols=2, loc="lower right")
assert last[0.4][0] < last[0.4][1] / 5 and last[2][0] > 5 * last[2][1]
figure

# %% [markdown]
# Gentle field: the fixed point wins, because it inverts this very sampled $u$, its discretisation errors included.
# Strong field: it stalls for good, and the flow hardly notices.

# %% [markdown]
# ## When exp(v) folds after all
#
# The theorem is about continuous fields. Ours are samples, joined by straight lines. We turn up the amplitude of a
# smooth velocity, and count folds with no integration at all ($K = 0$ is the displacement $v$ itself), with few
# squarings, and with seven.

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

# %%
figure = Figure(figsize=(8.4, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
colours = ("tab:red", "tab:orange", "tab:olive", "tab:cyan", "tab:blue")
for (n, percents), colour in zip(folds.items(), colours, strict=True):
    left.plot(
        amplitudes,
        percents,
        ".-",
        color=colour,
        label="displacement v" if n == 0 else f"exp(v), {n} squarings",
    )
left.set(
    xlabel="longest vector (voxel)",
    ylabel="folded voxels (%)",
    title="A smooth field, turned up (smoothness 6)",
)
for n, percents in rough.items():
    name, colour = ("exp(v), 7 squarings", colours[-1]) if n else ("displacement v", colours[0])
    right.plot(smoothness, percents, ".-", color=colour, label=name)
right.set(xlabel="smoothness: σ of the Gaussian (voxel)", title="16 voxels long, ever smoother")
for axes in (left, right):
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set(
        ylim=(0, 60), yticks=[0, 0.01, 0.1, 1, 10], yticklabels=["0", "0.01", "0.1", "1", "10"]
    )
    axes.legend(fontsize=7)
figure

# %% [markdown]
# Few squarings fold like a displacement, only later. With seven, folds are far rarer, but at great length
# or on a rough field they come, and more squarings no longer help: the velocity has more detail than the grid can
# follow.
#
# So "diffeomorphic" is no property of a network with an integration layer. It is a property of a velocity that is
# smooth on the scale of its grid, integrated in enough steps. Always count: `folding_percent` is one line.
#
# ## Trap 1: half resolution and its two factors
#
# Integration is cheaper on a grid of half the size. Vectors are in voxels, and voxels of the coarse grid are twice as
# long: the velocity must be *halved* going down and the displacement *doubled* coming up. `resize` does that. MONAI's
# `VoxelMorph(half_res=True)` does the reverse: 2 going down, 0.5 coming up. The two factors cancel, so what is wrong?
#
# **Predict:** which velocity does not notice?

# %%
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from torch import nn

from course_utils.fields import resize


class Fixed(nn.Module):
    """A 'network' that always predicts the velocity it was given."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, pair):
        return self.velocity


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
# A constant one: its exponential is linear in $v$, so factors cancel. Any other is not. Doubling instead of halving
# integrates four times the velocity, and a quarter of that comes back: $\tfrac14 \exp(4v)$ in place of $\exp(v)$.
# Measured on a smooth random velocity, zero at the border, against integration at full resolution:

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
    "half resolution, resize": ("tab:blue", "o-"),
    "MONAI half_res=True": ("tab:red", "s-"),
    "¼ exp(4v)": ("gray", ":"),
}
for axes, curves in ((left, rows), (right, residuals)):
    for name, values in curves.items():
        axes.plot(lengths, values, styles[name][1], color=styles[name][0], markersize=4, label=name)
    axes.set(xlabel="longest velocity vector (voxel)")
left.set(ylabel="difference to full resolution (%)", title="Is it exp(v)?")
right.set(ylabel="mean residual (voxel)", title="Does exp(−v) invert it?")
left.legend(fontsize=8)
figure

# %% [markdown]
# Nothing crashes, a network trains around it, and the Dice may even be fine. What is lost is what the velocity was
# for: the map is no longer a flow, and $-v$ no longer its inverse. Integrating at half resolution is not the culprit:
# done right, it differs by a few per cent on this field (the detail that a grid of half the size cannot hold,
# whatever the amplitude), is inverted by $-v$, and takes an eighth of the work.
#
# ## Trap 2: zeros in the integration
#
# For images, padding is a matter of taste. Inside the integration it is not: there the *displacement* is what is
# sampled. MONAI's `DVF2DDF` pads it with zeros unless told otherwise. A constant velocity of 6 voxels should move
# everything by 6.

# %%
push = torch.zeros(1, 2, 48, 48)
push[:, 0] = 6.0
profiles = {
    'integrate ("border")': integrate(push),
    'DVF2DDF(padding_mode="border")': DVF2DDF(padding_mode="border")(push),
    "DVF2DDF(), zeros": DVF2DDF()(push),
}
figure = Figure(figsize=(6, 2.8), layout="constrained")
axes = figure.subplots()
for (name, u), style in zip(profiles.items(), ("-", "--", "-"), strict=True):
    axes.plot(u[0, 0, :, 24], style, label=name)
axes.set(
    xlabel="voxel along axis 0",
    ylabel="displacement (voxel)",
    title="A constant velocity of 6",
    ylim=(0, 6.6),
)
axes.legend(fontsize=8, loc="lower left")

border, told, zeros = profiles.values()
assert (border[:, 0] - 6).abs().max() < 1e-3 and (told[:, 0] - 6).abs().max() < 1e-3
assert (
    zeros[0, 0, -1, 24] < 3
    and jacobian_determinant(zeros).min() < 0.5
    and (zeros[0, 0, :36, 24] - 6).abs().max() < 1e-3
)
figure

# %% [markdown]
# The flow meets a wall that is not there: the last voxels, which should be read from outside, are squeezed. On brains
# in a black frame it does not matter; on tightly cropped organs (the hippocampus, say) it pulls at the anatomy.
#
# ## Trap 3: half precision
#
# Mixed precision is a gift for convolutions. Coordinates are another matter: bfloat16 has 8 significant bits, and a
# position along an axis of 160 voxels needs 8 for the *integer* part alone. We ask every voxel for a displacement of
# 0.3 and see where it really reads, if the arithmetic of a warp runs in another type.

# %%
n = 160


def read_at(dtype, u=0.3):
    """Positions asked for along an axis of n voxels, computed in ``dtype`` the usual way: voxels,
    then [-1, 1]."""
    position = torch.arange(n, dtype=dtype) + torch.tensor(u, dtype=dtype)
    normalised = position * 2 / (n - 1) - 1
    return (normalised.float() + 1) * (n - 1) / 2  # back to voxels, exactly


types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
error = {name: read_at(dtype) - (torch.arange(n) + 0.3) for name, dtype in types.items()}
grid_only = torch.linspace(-1, 1, n)
rounding = (grid_only.bfloat16().float() - grid_only).abs().max().item() * (n - 1) / 2
worst = {name: e.abs().max().item() for name, e in error.items()}

assert torch.tensor(150.0).bfloat16() + 0.3 == 150  # a shift of 0.3 voxel is lost
assert worst["float32"] < 1e-4 and 0.01 < worst["float16"] < 0.2 and worst["bfloat16"] > 0.3
print(f"largest error: {', '.join(f'{name} {value:.2g}' for name, value in worst.items())} voxel")
print(f"of a perfect grid merely stored in bfloat16: {rounding:.2f} voxel")

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
axes = figure.subplots()
for name, colour in (("bfloat16", "tab:red"), ("float16", "tab:orange"), ("float32", "black")):
    axes.plot(error[name], ".-", color=colour, markersize=3, linewidth=0.6, label=name)
axes.set(
    xlabel="voxel",
    ylabel="read at − asked for (voxel)",
    title="A displacement of 0.3 along 160 voxels",
)
axes.legend(fontsize=8, ncols=3)
figure

# %% [markdown]
# From voxel 64 on bfloat16 knows only halves of a voxel, and from 128 on only whole ones: there a displacement of 0.3 does not exist. A training loop that lets its fields slip into
# the network's half precision registers to half a voxel at best. The cure is one rule: **fields are float32**, under
# autocast too. `warp` and `integrate` keep it, whatever comes in:

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
# ## What you now have
#
# - A velocity is followed, a displacement is jumped. $\exp(v)$ by scaling and squaring: four lines, and seven warps
#   do the work of 128 Euler steps.
# - First-order convergence down to a floor that interpolation sets.
# - The inverse is $\exp(-v)$; the fixed point inverts a displacement that has no velocity, as long as it is gentle.
# - Folding after all: too few squarings, or a velocity too rough for its grid.
#
# **What can go wrong.** Wrong factors at half resolution (a constant test field will not tell), zeros padded into a
# displacement, coordinates in half precision. All three run without a word.
#
# **Try it.**
# 1. Replace the first step of `exponential` by one midpoint step,
#    $\frac{v}{2^K}\bigl(x + \frac{v(x)}{2^{K+1}}\bigr)$. What does the convergence plot look like?
# 2. Integrate $v$ and $2v$ of the random field. Is $\exp(2v) = \exp(v) \circ \exp(v)$? And
#    $\exp(v + w) = \exp(v) \circ \exp(w)$ for another $w$?
#
# **References.** Arsigny et al., *A log-Euclidean framework for statistics on diffeomorphisms*, MICCAI 2006.
# Ashburner, *A fast diffeomorphic image registration algorithm* (DARTEL), NeuroImage 38(1), 2007. Dalca et al.,
# *Unsupervised learning for fast probabilistic diffeomorphic registration*, MICCAI 2018. Chen et al., *A simple
# fixed-point approach to invert a deformation field*, Medical Physics 35(1), 2008. Moler and Van Loan, *Nineteen
# dubious ways to compute the exponential of a matrix, twenty-five years later*, SIAM Review 45(1), 2003.
#
# Next: [04 VoxelMorph](04_voxelmorph.ipynb): a network that predicts the velocity.
