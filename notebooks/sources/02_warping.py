# %% [markdown]
# # 02 Warping
#
# Every registration ends in the same small piece of arithmetic: *read the moving image somewhere else*. It is ten
# lines long, and it holds a sign, an axis order, a unit and a border, each of which can be wrong without an error
# message. Here you write it by hand, prove it equal to SciPy's and MONAI's, and measure what each mistake costs in
# Dice and in millimetres.
#
# **Afterwards you can** write a warp and prove it right, find a wrong sign, order or unit, compose two maps, and say what
# a Jacobian determinant tells. **You need** notebooks 00 and 01, NumPy's indexing, and the gradient of a function of
# several variables.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/02_warping.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/02_warping.ipynb)

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
# ## A picture to move
#
# We take one slice of a test subject, a person's from the OASIS study unless you chose another data set (`synthetic` has made
# subjects: one template, deformed at random). Everything on this page works in 2-D and in 3-D alike.
# Page 01 told why a file's axes may run either way; here axis 0 is turned to the right of the person and axis 1 to the top. So
# the figures draw component 0 of a displacement from left to right and component 1 from bottom to top.

# %%
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import load_subject

cohort = load_cohort(session.dataset)
subject = load_subject(cohort.splits["test"][0], cohort.info.recipe)
image, label = subject["image"][None], subject["label"][None]  # (1, 1, *spatial) float32 and int16
axes = cohort.info.orientation or "RAS"  # where each array axis leads
turned = [axis for axis, letter in enumerate(axes, start=2) if letter in "LPI"]
image, label = image.flip(turned), label.flip(turned)
kept = [0, 1]
if image.ndim == 5:  # of a volume, the slice with most of the labels from 2 on
    k = int((label > 1).sum(dim=(0, 1, 2, 4)).argmax())
    image, label, kept = image[:, :, :, k], label[:, :, :, k], [0, 2]
letters = "".join({"L": "R", "P": "A", "I": "S"}.get(axes[n], axes[n]) for n in kept)
view = {"spacing": [cohort.info.spacing[n] for n in kept], "orientation": letters}
shape = tuple(image.shape[2:])
centre = (torch.tensor(shape) - 1) / 2
print(f"image {tuple(image.shape)}, label {tuple(label.shape)}, spacing {view['spacing']} mm")

# %%
import re

from course_utils.plotting import panel

KINDS = "thal|deep|anterior", "lateral.ventr|posterior", "white", "cort", "putamen", "caudate"
names = cohort.info.labels
drawn = {v: n for kind in KINDS for v, n in names.items() if re.search(kind, n, re.I)} or names
panel(
    {"image": image, "its structures": image},
    labels={"its structures": label},
    names=drawn,
    fill=True,
    **view,
)

# %% [markdown]
# ## Which way does it go?
#
# The convention of this course, of MONAI, VoxelMorph and Learn2Reg:
#
# $$\text{moved}(x) = \text{moving}\bigl(x + u(x)\bigr)$$
#
# **Predict before you run:** $u = (+20, 0)$ everywhere. Does the picture go right or left?
#
# > *My prediction:*

# %%
from course_utils.fields import warp

shift = torch.zeros(1, 2, *shape)
shift[:, 0] = 20
moved = warp(image, shift)

# What stood at 20 now stands at 0.
assert torch.allclose(moved[:, :, :-20], image[:, :, 20:], atol=1e-5)
panel({"moving": image, "moved, u = (+20, 0)": moved}, limits=(0, 1), **view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Left. A displacement does not push the picture. It says *where each voxel of the result looks for its value*. Each
# looks 20 voxels to the right, so the content comes 20 voxels to the left.
#
# </details>
#
# Arrows drawn from a displacement run from the fixed image into the moving one, against the visible motion. This sign
# surprises everybody once, and it is deliberate.
#
# ### Why not push?
#
# Pushing each moving voxel to its new place looks more natural. Let us push while magnifying 1.4 times, and count the
# voxels of the result on which nothing landed.
#
# **Predict:** every voxel is pushed to its new place. What share of the voxels of the result stays empty?
#
# > *My prediction:*

# %%
from course_utils.fields import affine_to_field, identity_grid

x = identity_grid(shape)  # (1, 2, *shape)
zoom = 1.4
target = (centre.view(1, 2, 1, 1) + zoom * (x - centre.view(1, 2, 1, 1))).round().long()
lands = ((target >= 0) & (target < torch.tensor(shape).view(1, 2, 1, 1))).all(dim=1)[0]
pushed, hit = torch.zeros_like(image), torch.zeros_like(image)
i, j = target[0, 0][lands], target[0, 1][lands]
pushed[0, 0, i, j] = image[0, 0][lands]
hit[0, 0, i, j] = 1
pull = (x - centre.view(1, 2, 1, 1)) * (
    1 / zoom - 1
)  # the same magnification, asked from the result's side
pulled = warp(image, pull)

holes = float((hit == 0).float().mean())
assert abs(holes - (1 - 1 / zoom**2)) < 0.06
print(
    f"pushed: nothing landed on {holes:.0%} of the voxels; pulled: each voxel has exactly one value"
)
panel({"moving": image, "pushed": pushed, "pulled": pulled}, **view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# About half: the same number of voxels is spread over an area that is 1.4² = 1.96 times as large, so only one place in
# 1.96 gets one.
#
# </details>
#
# Pushing leaves holes where the map spreads and collisions where it shrinks. Pulling asks one question per voxel and
# always gets one answer. This answer is differentiable in $u$, so a network can learn from it. The price: pulling
# with $u$ shows the picture under the *inverse* of $x \mapsto x + u(x)$. So the same magnification needs the factor
# $1/1.4$ here.

# %% [markdown]
# ## Reading between voxels
#
# $x + u(x)$ hardly ever falls on a voxel. Linear interpolation weighs the four corners (eight in 3-D) by the area of
# the opposite rectangle.

# %%
from scipy.ndimage import map_coordinates

p = centre + torch.tensor([0.3, 0.85])
low = p.floor().long()
a, b = (p - low).tolist()
corners = image[0, 0, low[0] : low[0] + 2, low[1] : low[1] + 2]  # (2, 2)
weights = torch.tensor([[(1 - a) * (1 - b), (1 - a) * b], [a * (1 - b), a * b]])
by_hand = float((weights * corners).sum())
by_scipy = float(map_coordinates(image[0, 0].numpy(), p.view(2, 1).numpy(), order=1)[0])

assert abs(by_hand - by_scipy) < 1e-5 and abs(float(weights.sum()) - 1) < 1e-6
print(f"at {tuple(round(float(c), 2) for c in p)}: {by_hand:.4f} by hand, {by_scipy:.4f} by SciPy")

# %% [markdown]
# ## PyTorch's `grid_sample`: two surprises in one call
#
# PyTorch has this, with gradients and on a GPU. Let us ask a 3 × 5 image that *contains its own coordinates* where a
# point is read: the value at $(i, j)$ is $10 i + j$.
#
# **Predict:** the sampling point is `(-1, 1)`. Which of the four corners comes back: 0, 4, 20 or 24?
#
# > *My prediction:*

# %%
from torch.nn import functional as F

tell = (10 * torch.arange(3.0).view(3, 1) + torch.arange(5.0)).view(1, 1, 3, 5)
for point in [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)]:
    read = F.grid_sample(tell, torch.tensor(point).view(1, 1, 1, 2), align_corners=True).item()
    print(f"grid_sample at {point!s:>12} reads row {read // 10:.0f}, column {read % 10:.0f}")
read = F.grid_sample(tell, torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), align_corners=True).item()
assert read == 20  # row 2, column 0: the first number walks along the LAST array axis

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# 20, which is row 2, column 0. The first number, −1, walks along the *last* array axis to its beginning, and the
# second, 1, along the first axis to its end.
#
# </details>
#
# Two things follow for every call:
#
# 1. **Order.** `grid_sample` wants $(x, y, z)$, the *last* array axis first. Our fields are `ij`: component 0 along
#    axis 0. So the components are reversed just before the call, and nowhere else.
# 2. **Unit.** It wants $[-1, 1]$ across the image, not voxels. Along an axis of $n$ voxels: $g = 2p/(n-1) - 1$, if
#    $\pm 1$ are the *centres* of the outer voxels (`align_corners=True`). With `align_corners=False`, PyTorch's
#    default, $\pm 1$ are their outer *edges*.
#
# What if the formula is of one convention and the call of the other? Everything runs. An image that contains its own
# coordinate measures where we really read.

# %%
from course_utils.plotting import Figure

n = 48
position = torch.arange(float(n))
ramp = position.view(1, 1, n, 1).expand(1, 1, n, n)
grid = torch.stack(torch.meshgrid(*[2 * position / (n - 1) - 1] * 2, indexing="ij"), -1)[None].flip(
    -1
)
error = {
    flag: F.grid_sample(ramp, grid, align_corners=flag, padding_mode="border")[0, 0, :, 0]
    - position
    for flag in (True, False)
}

assert error[True].abs().max() < 1e-4
assert 0.45 < error[False].abs().max() < 0.5
theory = position / (n - 1) - 0.5
assert torch.allclose(error[False][1:-1], theory[1:-1], atol=1e-4)

# %%
figure = Figure(figsize=(6, 2.8), layout="constrained")
axes = figure.subplots()
axes.plot(position, error[True], color="black", label="formula and call agree")
axes.plot(position, error[False], ".", color="#D55E00", label="call with align_corners=False")
axes.plot(position, theory, color="#D55E00", linewidth=0.8, label="i / (n − 1) − ½")
axes.set(xlabel="voxel i", ylabel="read at − meant (voxel)", title="An identity warp that is none")
axes.legend(fontsize=8)
figure

# %% [markdown]
# It is a zoom about the centre, by half a voxel at either end (only the outermost points are saved by the border). That is
# too little to see, and enough to cost a benchmark. A network even learns to undo it, until its fields meet another tool.
#
# ## The warp, by hand


# %%
def warp_by_hand(image, displacement, mode="bilinear", padding="border"):
    """moved(x) = image(x + u(x)); image (B, C, *spatial), displacement (B, N, *spatial) in voxels,
    ij order."""
    spatial = image.shape[2:]
    axes = [torch.arange(n, dtype=torch.float32) for n in spatial]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (N, *spatial): voxel coordinates
    position = (x + displacement).movedim(
        1, -1
    )  # (B, *spatial, N): grid_sample wants components last,
    position = 2 * position / (torch.tensor(spatial) - 1) - 1  # from -1 to 1 between outer centres,
    position = position.flip(-1)  # and the last axis first
    return F.grid_sample(image, position, mode=mode, padding_mode=padding, align_corners=True)


# %% [markdown]
# Is it right? We ask three who do not know this code: SciPy, MONAI and the course's own tested `warp`. The field is
# rough and leaves the image, and the volume has three different sizes, so that a transposed axis cannot hide.

# %%
import warnings

import numpy as np
from monai.networks.blocks import Warp

warnings.filterwarnings("ignore", message=".*native grid_sample")
generator = torch.Generator().manual_seed(session.seed)
for size in [(17, 23), (11, 17, 14)]:
    picture = torch.rand(1, 1, *size, generator=generator)
    u = 3 * torch.randn(1, len(size), *size, generator=generator)
    ours = warp_by_hand(picture, u)
    positions = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")) + u[0].numpy()
    others = {
        "SciPy": torch.from_numpy(
            map_coordinates(picture[0, 0].numpy(), positions, order=1, mode="nearest")
        ),
        "MONAI": Warp()(picture, u)[0, 0],
        "course_utils": warp(picture, u)[0, 0],
    }
    for name, other in others.items():
        difference = float((ours[0, 0] - other).abs().max())
        assert difference < 1e-4, name
    print(f"{size}: equal to {', '.join(others)} within 1e-4")

# %% [markdown]
# From here on we use `course_utils.fields.warp`.
#
# ## What lies outside?
#
# A voxel may ask for a place beyond the image. `"border"` answers with the nearest edge voxel, `"zeros"` with 0. On a
# brain in a black frame nobody sees a difference, but on a crop everybody does.

# %%
inner = [slice(n // 4, n - n // 4) for n in shape]
crop = image[:, :, inner[0], inner[1]]
out = torch.zeros(1, 2, *crop.shape[2:])
out[:, 0] = crop.shape[2] / 3
border, zeros = warp(crop, out), warp(crop, out, padding="zeros")

lost = -(-crop.shape[2] // 3)  # rows that look outside
assert torch.allclose(
    border[:, :, -lost + 1 :], border[:, :, -1:].expand_as(border[:, :, -lost + 1 :])
)
assert (zeros[:, :, -lost + 1 :] == 0).all()
panel({"a crop": crop, "border": border, "zeros": zeros}, limits=(0, 1), **view)

# %% [markdown]
# For intensities `"border"` is the milder lie, because it makes no false edge that a similarity measure would align. For
# labels zero, the background, is honest. Notebook 03 shows a case where zeros do real harm: inside the integration of a velocity.
#
# ## Labels: the blend of two structures is a third
#
# To catch inventions, warp a *membership* image for each structure. Where the rounded label has no share at all in
# what was interpolated, that label came from nowhere.
#
# **Predict:** halfway between a voxel of structure 1 and one of structure 5, what does a linear interpolation say?
#
# > *My prediction:*

# %%
from course_utils.losses import one_hot

values = torch.unique(label).tolist()  # with 0, the background
half = torch.full((1, 2, *shape), 0.5)
share = warp(one_hot(label, values), half)  # (1, L, *shape): what is really there
blended = warp(label.float(), half).round().long()
nearest = warp(label, half, mode="nearest").long()
position_of = torch.tensor([values.index(v) if v in values else -1 for v in range(256)])


def invented(result):
    index = position_of[result]
    return (index < 0) | (share.gather(1, index.clamp(min=0)) == 0)


# %%
foreground = (blended > 0) | (nearest > 0)
false = {"linear, rounded": invented(blended), "nearest": invented(nearest)}
percent = {name: 100 * float(mask[foreground].float().mean()) for name, mask in false.items()}
assert percent["nearest"] == 0 and (percent["linear, rounded"] > 1 or max(values) < 2)
print(
    *(
        f"{name}: {value:.1f} % of labelled voxels carry an invented label"
        for name, value in percent.items()
    ),
    sep="\n",
)
moved = warp(image, half)
alone = {"invented labels": false["linear, rounded"].float()}
panel(
    {"nearest": moved, "linear, rounded": moved} | alone,
    labels={"nearest": nearest, "linear, rounded": blended},
    names=drawn,
    limits=(0, 1),
    fill=True,
    **view,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Three, which is another structure, and it may belong at the other end of the brain. A label is a name, and there is no
# mean of two names.
#
# </details>
#
# The white lines in the last picture are such inventions. So labels are warped with `mode="nearest"`. A
# smooth alternative is the membership image: warp it linearly and take the largest share (or keep the shares: that is
# how a soft Dice gets a gradient, notebook 05). `warp` refuses the mistake:

# %%
try:
    warp(label, half)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a linear blend of labels was let through")

# %% [markdown]
# ## Turning: an affine map as a field
#
# An affine map sends $x$ to $A x + t$, so its displacement is $u(x) = A x + t - x$. To turn about the centre $c$, take
# $A = R$ and $t = c - R c$. The displacement of a rotation is not constant: it grows with the distance from the centre.

# %%
import math

from course_utils.fields import jacobian_determinant


def about_centre(linear):
    """The displacement of c + A (x - c) on the slice's grid, in voxels."""
    return affine_to_field(torch.cat([linear, (centre - linear @ centre)[:, None]], 1)[None], shape)


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return about_centre(torch.tensor([[c, -s], [s, c]]))


# %%
turn, grow = rotation(20), about_centre(1.25 * torch.eye(2))
length = turn.norm(dim=1)
assert torch.allclose(
    length.max(), 2 * math.sin(math.radians(10)) * centre.norm(), rtol=1e-4
)  # the chord, at a corner
panel(
    {
        "moving": image,
        "moved by 20 degrees": warp(image, turn),
        "moved by A = 1.25 I": warp(image, grow),
    },
    **view,
)

# %% [markdown]
# The formula turns counter-clockwise, and the picture turns clockwise. In the same way $1.25\,I$ makes the picture *smaller*.
# Draw where the voxels of the fixed grid read, and neither is a surprise.

# %%
from course_utils.plotting import deformed_grid

grids = {"x + u(x), 20 degrees": turn, "x + u(x), A = 1.25 I": grow}
deformed_grid(grids, image, step=max(shape) // 16, **view)

# %% [markdown]
# ## How much room is there? The Jacobian determinant
#
# $\det J = \det(I + \nabla u)$ is the area (in 3-D, the volume) of moving space that one fixed voxel covers. A rotation
# keeps it at 1. A scaling $A = s I$ makes it $s^2$ in a plane and $s^3$ in space.

# %%
assert torch.allclose(jacobian_determinant(turn), torch.ones(1), atol=1e-4)
assert torch.allclose(jacobian_determinant(grow), torch.tensor(1.25**2), atol=1e-4)
cube = affine_to_field(torch.cat([0.8 * torch.eye(3), torch.zeros(3, 1)], 1)[None], (8, 9, 10))
assert torch.allclose(jacobian_determinant(cube), torch.tensor(0.8**3), atol=1e-4)
print(
    f"rotation 1, plane scaled by 1.25: {1.25**2:.4f}, space scaled by 0.8: {0.8**3:.3f}; all as "
    "computed"
)

# %% [markdown]
# It really is an area: sum it over a structure in the *moved* label, and out comes the structure's size in the
# *moving* image. We check with a disc and a bump of a displacement that is not affine.


# %%
def bump(amplitude, width=0.18):
    """Reads towards the centre (amplitude > 0): what is there is magnified."""
    offset = identity_grid((96, 96)) - 47.5
    distance2 = (offset**2).sum(1, keepdim=True) / (width * 96) ** 2
    return -amplitude * offset * torch.exp(-distance2 / 2)


# %%
from course_utils.plotting import jacobian

offset = identity_grid((96, 96)) - 47.5
disc = (offset.norm(dim=1, keepdim=True) < 20).to(torch.uint8)
determinants, sizes = {}, []
for amplitude in (0.4, -0.4):
    u = bump(amplitude)
    moved_disc = warp(disc, u, mode="nearest")
    determinant = jacobian_determinant(u)
    measured = float(determinant[moved_disc > 0].sum())
    sizes.append((int(moved_disc.sum()), measured))
    assert abs(measured / int(disc.sum()) - 1) < 0.03
    determinants[f"disc {int(disc.sum())} → {int(moved_disc.sum())} voxels"] = determinant
for after, measured in sizes:
    print(
        f"moved disc: {after} voxels; sum of det J over them: {measured:.0f}; moving disc: "
        f"{int(disc.sum())}"
    )
jacobian(determinants)

# %% [markdown]
# Below 1 (blue) a fixed voxel reads from less than a voxel: the moving tissue is magnified. Above 1 (red) it is
# shrunk. A study of atrophy reads this map: it takes the first visit as the fixed image and the later one as the moving image.
# A lost piece of tissue is then smaller in the moving image, so it is magnified, and blue.
#
# ## Two warps are one
#
# Warp by `first`, then warp the result by `second`. Which single field does both? Put one formula into the other:
#
# $$\text{moving}\bigl(y + u_1(y)\bigr),\; y = x + u_2(x) \;\Rightarrow\; u(x) = u_2(x) + u_1\bigl(x + u_2(x)\bigr)$$
#
# **Predict:** turn by 30° twice. The answer is known: a turn by 60°. How many voxels is $u_1 + u_2$ away from it at most?
#
# > *My prediction:*

# %%
from course_utils.fields import compose

once = rotation(30)
twice, added = compose(once, once), once + once
inside = identity_grid(shape)[0].sub(centre.view(2, 1, 1)).norm(dim=0) < min(shape) / 2 - 1
wrong = {
    name: (field - rotation(60)).norm(dim=1)[0][inside].max().item()
    for name, field in {"composed": twice, "added": added}.items()
}
area = jacobian_determinant(added).mean().item()

assert wrong["composed"] < 1e-2 and wrong["added"] > 3
assert abs(area - (5 - 4 * math.cos(math.radians(30)))) < 1e-3  # det(2R - I)
print(
    f"largest error: composed {wrong['composed']:.4f} voxel, added {wrong['added']:.1f}; added, "
    f"the area grows {area:.2f}-fold"
)

# %%
sideways, anticlockwise = shift, rotation(30)
order = (compose(sideways, anticlockwise) - compose(anticlockwise, sideways)).norm(dim=1).mean()
assert order > 1
print(f"and the order counts: shift and turn, exchanged, differ by {order:.1f} voxels on average")
panel(
    {
        "60 degrees": warp(image, rotation(60)),
        "30 and 30, composed": warp(image, twice),
        "30 and 30, added": warp(image, added),
    },
    **view,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Many: the cell prints it. The sum reads $u_1$ at $x$, but the picture that the first warp left must be read at
# $x + u_2(x)$. Only for constant $u_1$ are the two the same. The sum also enlarges every area, which no turn does.
#
# </details>
#
# ### Interpolate once
#
# Each warp averages neighbours, so each warp blurs. Turn the picture by 30° twelve times, or compose the twelve fields and
# warp once. Both are one full turn.

# %%
picture, field = image, torch.zeros(1, 2, *shape)
for _ in range(12):
    picture = warp(picture, once)
    field = compose(once, field)
single = warp(image, field)

error = {
    name: float((result - image).abs()[0, 0][inside].mean())
    for name, result in {"twelve warps": picture, "one warp": single}.items()
}
assert error["one warp"] < 0.02 and error["twelve warps"] > 3 * error["one warp"]
print(*(f"{name}: mean intensity error {value:.4f}" for name, value in error.items()), sep="\n")
panel(
    {"original": image, "twelve warps": picture, "fields composed, one warp": single},
    **view,
)

# %% [markdown]
# Compose maps, then touch the image once. Pipelines that resample after the affine step, after cropping and again
# after the deformation blur the image three times, and no network can bring back what they lose.
#
# ## Folding, on purpose
#
# A wave $u_0(x) = a \sin(2\pi x_0 / L)$ has $\det J = 1 + \frac{2\pi a}{L} \cos(2\pi x_0/L)$. It stays positive while
# $a < L / 2\pi$. Beyond that the map runs *backwards*: some tissue is read three times.
#
# **Predict:** $L = 5\pi$ voxels. From which amplitude on does it fold?
#
# > *My prediction:*

# %%
from course_utils.metrics import folding_percent

period = 5 * math.pi  # so that L / 2π = 2.5 voxels
wave = torch.sin(2 * math.pi * identity_grid((96, 96))[:, :1] / period)
amplitudes = torch.linspace(0.5, 6, 23)
fields = [torch.cat([a * wave, torch.zeros_like(wave)], dim=1) for a in amplitudes]
percents = torch.cat([folding_percent(u) for u in fields])
slope = amplitudes * math.sin(2 * math.pi / period)  # a times the central difference of the wave
expected = 100 * torch.where(slope > 1, torch.arccos((1 / slope).clamp(max=1)) / math.pi, 0)

limit = period / (2 * math.pi)
assert (percents[amplitudes < limit] == 0).all() and (percents[amplitudes > 1.2 * limit] > 5).all()
assert (percents - expected).abs().max() < 5  # a line has 96 voxels

# %%
figure = Figure(figsize=(6, 2.8), layout="constrained")
axes = figure.subplots()
axes.plot(amplitudes, expected, color="gray", label="analytic")
axes.plot(amplitudes, percents, ".", color="#D55E00", label="folding_percent")
axes.axvline(limit, color="black", linestyle=":", label="a = L / 2π")
axes.set(xlabel="amplitude a (voxel)", ylabel="voxels with det J ≤ 0 (%)", title="The wave folds")
axes.legend(fontsize=8)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# From $a = L / 2\pi = 2.5$ voxels on, where $\det J$ first reaches 0.
#
# </details>
#
# Look at it on the image. Turn the slider from no wave to an amplitude of 6 voxels; where the map folds, the right
# picture is white.

# %%
from course_utils.plotting import Slider

along = torch.sin(2 * math.pi * identity_grid(shape)[:, :1] / period)


def waved(a):
    """The field of amplitude a, and its picture."""
    u = torch.cat([a * along, torch.zeros_like(along)], dim=1)
    determinant = jacobian_determinant(u)
    pictures = {"moved": warp(image, u), "folded: det J ≤ 0": (determinant <= 0).float()}
    return determinant, panel(pictures, limits=(0, 1), **view)


steps = {a: waved(a) for a in (0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)}
assert steps[2.0][0].min() > 0 > steps[3.0][0].min()
Slider({f"{a:g}": figure for a, (_, figure) in steps.items()}, "amplitude in voxels", start="5")

# %% [markdown]
# Where it folds, edges of the image come back a second and a third time. No anatomy does that, and no similarity measure
# forbids it: smoothness must (notebook 05), or a velocity field (notebook 03).
#
# ## What each bug costs
#
# To say what a mistake costs in millimetres one must know the true displacement, and between two people nobody does. So
# here we take two made subjects: one template, deformed twice by maps that the course keeps. They are volumes, in 3-D.
# First, does the truth do what it should?

# %%
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.metrics import dice, target_registration_error

built_in = load_cohort("synthetic")
pairs = built_in.pairs("test", "random", count=1, seed=session.seed)
loaded = load_subjects([pairs[0].fixed, pairs[0].moving], built_in.info.recipe)
item = PairDataset(loaded, pairs, truth=True)[0]
fixed, moving, fixed_label, moving_label, truth = (
    item[key][None]
    for key in ("fixed", "moving", "fixed_label", "moving_label", "true_displacement")
)  # (1, 1, D, H, W) each, and (1, 3, D, H, W)
moved = warp(moving, truth)

made_names = {v: n for v, n in built_in.info.labels.items() if "CSF" not in n}
moved_label = warp(moving_label, truth, mode="nearest", padding="zeros")
panel(
    {"moving": moving, "moved by the truth": moved, "fixed": fixed},
    labels={"moving": moving_label, "moved by the truth": moved_label, "fixed": fixed_label},
    names={v: n for kind in KINDS for v, n in made_names.items() if re.search(kind, n)},
    fill=True,
    at=32,
    spacing=built_in.info.spacing,
)

# %% [markdown]
# The structures of the moved subject lie where the fixed one has them. Its brightness and its shading still differ; these
# are not the warp's business. Now every mistake of this page is made once, on this pair.
#
# **Predict:** a wrong sign, reversed components, half of the field, mixed-up corners. Which of the four mistakes does
# the Dice score notice least?
#
# > *My prediction:*

# %%
import pandas as pd

size = torch.tensor(fixed.shape[2:], dtype=torch.float32).view(1, 3, 1, 1, 1)
here = identity_grid(fixed.shape[2:])
fields = {
    "nothing (before)": torch.zeros_like(truth),
    "the truth": truth,
    "wrong sign": -truth,
    "components reversed (xyz)": truth.flip(1),
    "half of it (voxels of another grid)": truth / 2,
    "align_corners mixed up": (here + truth) * size / (size - 1) - 0.5 - here,
}
brain = fixed_label > 0
labels = list(built_in.info.labels)
rows = {}
for name, u in fields.items():
    overlap = dice(warp(moving_label, u, mode="nearest", padding="zeros"), fixed_label, labels)
    error_mm = target_registration_error(u, truth, built_in.info.spacing, brain)
    rows[name] = {
        "Dice": overlap.nanmean().item(),
        "TRE (mm)": error_mm.item(),
        "folding (%)": folding_percent(u, brain).item(),
    }
table = pd.DataFrame(rows).T
table.round(3)

# %%
score, tre = table["Dice"], table["TRE (mm)"]
assert score["the truth"] > score["nothing (before)"] + 0.2 and tre["the truth"] == 0
assert score["wrong sign"] < score["nothing (before)"] - 0.05  # worse than doing nothing
assert (
    score["components reversed (xyz)"] < score["nothing (before)"] + 0.1
)  # no better than doing nothing
assert tre["components reversed (xyz)"] > 0.8 * tre["nothing (before)"]
assert (
    score["nothing (before)"]
    < score["half of it (voxels of another grid)"]
    < score["the truth"] - 0.05
)
assert (
    score["the truth"] - score["align_corners mixed up"] < 0.1
    and score["align_corners mixed up"] > score["half of it (voxels of another grid)"]
    and tre["align_corners mixed up"] > 0.2
)
assert table["folding (%)"]["the truth"] == 0

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The mixed-up corners: they cost less than 0.1 of Dice. The overlap of large structures is blunt; the millimetres show
# the mistake.
#
# </details>
#
# A wrong sign is loud: it makes twice the error of no registration at all. Reversed components are treacherous: they are a
# smooth field without folds that gains nothing, which looks like a method that does not learn. Half the field passes for a
# mediocre method. Note too that the truth itself stops short of a Dice of 1: labels are resampled with nearest neighbour, so even the
# right map puts some voxels of the border on the wrong side. Who scores higher than the truth has fitted the labels and not the
# anatomy: a field that may tear reads a voxel of the right label everywhere, and reaches any Dice (notebook 07).
#
# ## What is left of the volume
#
# This is the Jacobian map of the truth in the same slice. It shows where one brain has more room than the other.

# %%
determinant = jacobian_determinant(truth)
assert float(determinant.min()) > 0
assert abs(float(determinant.log().mean())) < 0.2  # no growth on the whole
print(f"det J from {determinant.min():.2f} to {determinant.max():.2f}")
jacobian(determinant, fixed, at=32, spacing=built_in.info.spacing)

# %% [markdown]
# ## The same in MONAI
#
# MONAI has two ways to warp. `Warp` takes a displacement in voxels, exactly as this page does; VoxelMorph and all other
# registration networks of MONAI use it. The transforms, such as `Affine`, take a matrix. They pull too: the
# matrix says where each voxel of the result looks.

# %%
from monai.transforms import Affine

carry = Warp(mode="bilinear", padding_mode="border")
carry_label = Warp(mode="nearest", padding_mode="zeros")
image_difference = (carry(image, turn) - warp(image, turn)).abs().max()
same_labels = carry_label(label.float(), turn) == warp(label, turn, mode="nearest", padding="zeros")

angle = math.radians(20)
transform = Affine(rotate_params=angle, padding_mode="border", image_only=True)
rotated = transform(image[0])[None]
differ = (rotated - warp(image, turn)).abs().mean()
other_way = (rotated - warp(image, rotation(-20))).abs().mean()
equal = same_labels.float().mean()
print(f"Warp: images differ by at most {image_difference:.1e}, {equal:.2%} of the labels are equal")
print(f"Affine: mean difference {differ:.1e}; from the turn the other way {other_way:.2f}")
assert image_difference < 1e-3 and equal > 0.999
assert differ < 0.01 < other_way

# %% [markdown]
# Three things to remember when you read MONAI's tutorials: fields are `(B, N, *spatial)`, in voxels and in `ij` order, as
# here. `Warp` does not know what a label is, so you must ask for `mode="nearest"`. And MONAI says `align_corners=True` inside
# of `Warp`, while many other resampling functions leave it at PyTorch's default.
#
# ## What you now have
#
# - A warp of ten lines, equal to SciPy's and MONAI's, and the reason for each line.
# - $\text{moved}(x) = \text{moving}(x + u(x))$: $u$ tells where to *read*, from fixed to moving, in voxels, component
#   $c$ along axis $c$.
# - $\det J$ as an area: 1 keeps it, 0 or below is a fold.
# - Composition, $u_2 + u_1 \circ (\mathrm{id} + u_2)$, in place of addition; and one interpolation in place of many.
#
# **What can go wrong.** A field from another tool may be in mm, in `xyz` order, from moving to fixed, or for a grid
# in world coordinates with flipped axes (ITK and ANTs: LPS). Before trusting one, warp a pair of labels, compare with
# doing nothing, and try the sign and the order the other way round.
#
# **Try it.**
# 1. *(easy)* Apply the identity with mixed-up corners ten times in a row. What happens to the head, and at what rate?
# 2. *(middle)* Warp the labels of the made pair by membership (one-hot, linear, largest share). Is the Dice of the truth higher
#    than with nearest neighbour? Why?
# 3. *(hard)* Write `push`: send each voxel to $x + u(x)$, share its value among the four voxels around that place, and divide
#    by the sum of the shares. Push with `turn` what was pulled with it. How much of the image comes back, and where not?
#
# **References.** Jaderberg et al., *Spatial transformer networks*, NeurIPS 2015,
# [arXiv](https://doi.org/10.48550/arXiv.1506.02025). Balakrishnan et al., *VoxelMorph: a learning framework for
# deformable medical image registration*, IEEE TMI 38(8), 2019, [doi](https://doi.org/10.1109/TMI.2019.2897538).
# Ashburner and Friston, *Voxel-based morphometry: the methods*, NeuroImage 11(6), 2000 (what a Jacobian map is good
# for), [doi](https://doi.org/10.1006/nimg.2000.0582). Marcus et al., *Open Access Series of Imaging Studies (OASIS)*,
# Journal of Cognitive Neuroscience 19(9), 2007, [doi](https://doi.org/10.1162/jocn.2007.19.9.1498).
#
# Next: [03 Velocity fields](03_velocity_fields.ipynb), where folding becomes hard.
