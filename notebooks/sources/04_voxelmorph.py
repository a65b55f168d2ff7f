# %% [markdown]
# # 04 VoxelMorph
#
# Two images in, a velocity field out: that is all a registration network does. How far must it look, and where does its
# time go?
#
# Here you build VoxelMorph from four small pieces, print the shape at every level, and end with a class that gives bit
# for bit the output of the course's tested one. On the way you measure how far it can see, what half resolution costs and
# saves, how a wrong factor of two looks, and what a network does *not* promise: to agree with itself when the two images
# are swapped. Afterwards you can read a registration network's code, compute its receptive field and its work, and exchange
# its backbone. You need notebook 03 (velocities and the exponential).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/04_voxelmorph.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/04_voxelmorph.ipynb)

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
# ## What is asked of the network
#
# The network sees two people's images as two channels. For every voxel of the fixed one it must say where to look in the
# moving one. The page works on slices: on the real ones of `oasis2d`, and with any other data set on the slices of the
# built-in cohort, which shows made subjects. Of eight test pairs we take the one whose structures overlap least.

# %%
import torch

from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.metrics import dice
from course_utils.plotting import panel

cohort = load_slices(session.dataset, session.data_root)
structures, view = dict(cohort.info.labels), cohort.info.view
subjects = load_subjects(cohort.splits["test"], cohort.info.recipe)
pairs = PairDataset(subjects, cohort.pairs("test", count=8, seed=session.seed))


def overlap(moved_label, fixed_label):
    """Mean Dice over the structures."""
    return dice(moved_label, fixed_label, list(structures)).nanmean().item()


item = min(pairs, key=lambda one: overlap(one["moving_label"][None], one["fixed_label"][None]))
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, H, W)
moving_label, fixed_label = item["moving_label"][None], item["fixed_label"][None]
dims = moving.ndim - 2

# %%
print(f"in:  {tuple(torch.cat([moving, fixed], dim=1).shape)}, moving and fixed as channels")
print(f"out: {(1, dims, *moving.shape[2:])}, {dims * fixed.numel():,} unknowns")
parts = ("lateral-ventricle", "lateral ventricle", "thal", "caud", "putamen", "deep")
drawn = {value: n for value, n in structures.items() if any(part in n.lower() for part in parts)}
panel(
    {"moving": moving, "fixed": fixed},
    labels={"moving": moving_label, "fixed": fixed_label},
    names=drawn,
    fill=True,
    **view,
)

# %% [markdown]
# One convolution of 3 × 3 voxels sees one voxel to each side, but the answer lies many voxels away: compare the sizes of
# the ventricles. So the network must *look* far, and yet it must *place* each edge exactly. That conflict is why nearly
# everybody uses a U-Net: coarse levels that see far, fine levels that know where, and skip connections between them.
#
# ## Piece 1: a block, and a kernel that does not shift
#
# A block is a convolution and a leaky ReLU. A block that halves the resolution has a stride of 2. To see where its coarse
# voxels lie, feed it a ramp of coordinates, 0, 1, 2, 3, …, with an averaging kernel in place of the learnt one.
#
# **Predict:** which kernel reports the coordinates of the coarse voxels' centres, one of width 3 or one of width 4?
#
# > *My prediction:*

# %%
from torch import nn
from torch.nn import functional as F

ramp = torch.arange(16.0).view(1, 1, 16)
fine = ramp[0, 0, 4:12]
for width in (3, 4):
    coarse = F.conv1d(ramp, torch.full((1, 1, width), 1 / width), stride=2, padding=1)  # (1, 1, 8)
    back = F.interpolate(coarse, scale_factor=2, mode="nearest")[0, 0, 4:12]
    shift = float((back - fine).mean())
    print(
        f"width {width}: reads {coarse[0, 0, 2:6].tolist()}, after doubling off by {shift:+.1f} "
        "voxel on average"
    )
    assert abs(shift - (0.0 if width == 4 else -0.5)) < 1e-5

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The one of width 4. A strided 3-kernel sits *on* every second voxel, but a coarse voxel stands for *two*, and its centre
# lies between them.
#
# </details>
#
# At each level the odd kernel is off by half a voxel of its input, and the decoder must learn to undo that. Width 4 is
# centred, and so is pooling followed by a 3-kernel. For a classifier this is a detail; here, positions are the product.


# %%
def block(dims, inputs, outputs, stride=1):
    """Convolution and leaky ReLU; stride 2 halves every axis."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    width = 4 if stride == 2 else 3
    return nn.Sequential(
        conv(inputs, outputs, width, stride, padding=1), nn.LeakyReLU(0.2, inplace=True)
    )


x = torch.cat([moving, fixed], dim=1)
same, halved = block(dims, 2, 16)(x), block(dims, 2, 16, stride=2)(x)
print(f"{tuple(x.shape)} -> {tuple(same.shape)} or, strided, {tuple(halved.shape)}")

# %% [markdown]
# ## Piece 2: the encoder
#
# Each level halves the resolution and keeps its result for the decoder. The first level may start at full resolution
# (`first_stride=1`) or go to half of it at once (`first_stride=2`). It decides how far the network sees, and what it costs.


# %%
class Encoder(nn.ModuleList):
    """Levels from fine to coarse; returns the features of all of them."""

    def __init__(self, dims, inputs, features, first_stride):
        widths = [inputs, *features]
        strides = [first_stride] + [2] * (len(features) - 1)
        super().__init__(
            block(dims, widths[i], widths[i + 1], stride) for i, stride in enumerate(strides)
        )

    def forward(self, x):
        levels = []
        for level in self:
            x = level(x)
            levels.append(x)
        return levels


features = (16, 32, 32, 32)
levels = Encoder(dims, 2, features, first_stride=2)(x)
for depth, level in enumerate(levels):
    print(f"level {depth}: {level.shape[1]} features on {tuple(level.shape[2:])}")

# %% [markdown]
# ## Piece 3: the decoder and its skips
#
# The decoder goes from coarse to fine: it doubles the resolution, puts the encoder's features of that level beside, and
# convolves. We print what each level concatenates.


# %%
class Decoder(nn.ModuleList):
    """Levels from coarse to fine; each sees the coarser result and the encoder's features of its
    own resolution."""

    def __init__(self, dims, features):
        pairs = zip(
            features[-2::-1], features[:0:-1], strict=True
        )  # (fine, coarse), coarsest first
        super().__init__(block(dims, coarse + fine, fine) for fine, coarse in pairs)

    def forward(self, levels):
        *skips, x = levels
        for level in self:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = level(torch.cat([x, skips.pop()], dim=1))
        return x


# %%
decoder = Decoder(dims, features)
*skips, deep = levels
for level, skip in zip(decoder, reversed(skips), strict=True):
    up = F.interpolate(deep, scale_factor=2, mode="nearest")
    deep = level(torch.cat([up, skip], dim=1))
    print(
        f"{up.shape[1]} from below + {skip.shape[1]} skipped -> {deep.shape[1]} features on "
        f"{tuple(deep.shape[2:])}"
    )
assert torch.equal(deep, decoder(levels))
assert deep.shape[2:] == halved.shape[2:]  # the decoder stops at the encoder's finest level

# %% [markdown]
# It stops where the encoder began, at half the image's size. Nothing in this network ever works at full resolution.
#
# ## How far does it see?
#
# The *receptive field* is the window of the input on which one output voxel depends. We find it twice. By reasoning: start
# at the output voxel and walk backwards, keeping the interval of inputs that it depends on. By measurement: let autograd
# say on which input voxels the output depends.
#
# **Predict:** with the same number of levels, how does the window change if the finest level works at half resolution?
#
# > *My prediction:*


# %%
def receptive_field(start, levels, first_stride):
    """First and last input voxel, along one axis, that the output voxel ``start`` depends on."""
    low = high = start
    low, high = low - 1, high + 1  # the head, a 3-kernel
    for _ in range(levels - 1):  # decoder: 3-kernel, then doubled from below
        low, high = (low - 1) // 2, (high + 1) // 2
    for _ in range(levels - 1 + (first_stride == 2)):  # strided 4-kernels
        low, high = 2 * low - 1, 2 * high + 2
    return (low, high) if first_stride == 2 else (low - 1, high + 1)


# %%
seen = {}
for first_stride in (1, 2):
    size = 256
    torch.manual_seed(session.seed)
    net = nn.Sequential(
        Encoder(2, 2, features, first_stride), Decoder(2, features), nn.Conv2d(16, 2, 3, padding=1)
    )
    pixels = torch.rand(1, 2, size, size, requires_grad=True)
    middle = size // first_stride // 2
    net(pixels)[0, 0, middle, middle].backward()
    seen[first_stride] = pixels.grad.abs().sum(dim=1)[0]  # (256, 256)
    touched = seen[first_stride].sum(dim=1).nonzero().flatten()
    assert receptive_field(middle, len(features), first_stride) == (
        int(touched[0]),
        int(touched[-1]),
    )
    print(
        f"finest level at 1/{first_stride}: a window of {int(touched[-1] - touched[0]) + 1} "
        "voxels, as reasoned"
    )

# %%
from course_utils.plotting import Figure

figure = Figure(figsize=(8.4, 3.4), layout="constrained")
for axes, (first_stride, gradient) in zip(figure.subplots(1, 2), seen.items(), strict=True):
    relative = (gradient / gradient.max()).clamp(min=1e-8).log10()
    picture = axes.imshow(
        relative.T, origin="lower", cmap="viridis", vmin=-6, extent=(-128, 128, -128, 128)
    )
    axes.set(
        title=f"finest level at {'full' if first_stride == 1 else 'half'} resolution",
        xlim=(-64, 64),
        ylim=(-64, 64),
    )
    axes.set(xlabel="input voxel, from the output voxel", ylabel="input voxel")
figure.colorbar(picture, ax=figure.axes, label="log₁₀ of the relative influence")

reach = {s: int((g > 0).any(dim=1).sum()) for s, g in seen.items()}
near = seen[2][128 - 24 : 128 + 24, 128 - 24 : 128 + 24].sum() / seen[2].sum()
assert reach[2] > 1.6 * reach[1] and near > 0.5
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It becomes nearly twice as wide. Every step of the same network then spans twice as many voxels of the image.
#
# </details>
#
# The blocks in the picture are the coarse levels. They lie as the grids happen to fall, so the window is not centred on its
# voxel. Most of the influence is near. What lies outside cannot be known: a structure that has moved out of the window stays
# lost, however long you train.
#
# ## Sizes that the levels do not divide
#
# Four halvings need sizes that are multiples of 16.
#
# **Predict:** what happens to an image of 50 × 61 pixels?
#
# > *My prediction:*

# %%
odd = torch.rand(1, 2, 50, 61)
try:
    Decoder(2, features)(Encoder(2, 2, features, 2)(odd))
except RuntimeError as error:
    print(f"RuntimeError: {error}")
else:
    raise AssertionError("the skip should not have fitted")

padded = [-(-n // 16) * 16 for n in odd.shape[2:]]  # rounded up
print(f"{tuple(odd.shape[2:])} fits after padding to {padded}")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The network stops with an error. 61 is halved to 30, 15, 7 and 3; but 3 doubled is 6, and the skip that should be put
# beside it has 7.
#
# </details>
#
# The remedy is to repeat the edge up to the next multiple, and to crop the field afterwards. Pad *at the end* of each axis:
# then voxel 0 stays voxel 0, and no displacement needs correcting.
#
# ## Piece 4: the whole
#
# Now we put it together: the U-Net, a head that turns features into a velocity, integration on the coarse grid, `resize`
# to the image's grid (which rescales the vectors), and a warp.

# %%
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration


# %%
class MyVoxelMorph(nn.Module):
    def __init__(self, dims, features=(16, 32, 32, 32), half_resolution=True):
        super().__init__()
        first_stride = 2 if half_resolution else 1
        self.divisor = first_stride * 2 ** (len(features) - 1)
        encoder, decoder = Encoder(dims, 2, features, first_stride), Decoder(dims, features)
        self.unet = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.velocity = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features[0], dims, 3, padding=1)
        nn.init.normal_(self.velocity.weight, std=1e-5)
        nn.init.zeros_(self.velocity.bias)

    def forward(self, moving, fixed):
        shape = moving.shape[2:]
        padded = [-(-n // self.divisor) * self.divisor for n in shape]
        ends = [m for n, p in zip(shape[::-1], padded[::-1], strict=True) for m in (0, p - n)]
        pair = F.pad(torch.cat([moving, fixed], dim=1), ends, mode="replicate")
        features = self.unet["decoder"](self.unet["encoder"](pair))
        velocity = self.velocity(features).float()  # coarse grid, and its voxels
        inside = (..., *(slice(n) for n in shape))
        displacement = resize(integrate(velocity), padded)[inside]  # the image's grid
        moved = warp(moving, displacement)
        return Registration(moved, displacement, resize(velocity, padded)[inside])


# %% [markdown]
# Is it right? The course's network has the same layers under the same names, so its weights fit into ours. We make its
# head's weights large, so that there is a deformation to compare, and ask for *equal* numbers, not similar ones.

# %%
from course_utils.networks import VoxelMorph

with torch.no_grad():
    for shape in [(96, 96), (50, 61), (32, 48, 32), (20, 33, 17)]:
        for half in (True, False):
            theirs = VoxelMorph(len(shape), half_resolution=half, instance_norm=False)
            mine = MyVoxelMorph(len(shape), half_resolution=half)
            theirs.velocity.weight.mul_(1e6)
            mine.load_state_dict(theirs.state_dict())
            a, b = torch.rand(2, 1, 1, *shape)
            expected, found = theirs(a, b), mine(a, b)
            for part in ("moved", "displacement", "velocity"):
                assert torch.equal(getattr(expected, part), getattr(found, part))
            assert expected.displacement.abs().max() > 0.5
print(
    "MyVoxelMorph = course_utils.networks.VoxelMorph, in 2-D and 3-D, half and full resolution, "
    "odd sizes too"
)

# %% [markdown]
# ## The whole, drawn
#
# A picture of a network is worth more if it cannot be wrong. So the shapes below are not typed in: hooks note the shape of
# what every layer gives, while the network registers our two people.

# %%
from itertools import pairwise

from matplotlib.patches import Patch

GREY, SKY, AMBER, GREEN = "#dddddd", "#9fd4f3", "#f3cd85", "#8fd6bf"


# %%
def shapes_of(net, layers):
    """What each layer (name to module) gives in a forward pass on the two people: (C, H, W)."""
    shapes, hooks = {}, []
    for name, layer in layers.items():

        def note(_, inputs, output, name=name):
            shapes[name] = tuple(output.shape[1:])

        hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        found = net(moving, fixed)
    for hook in hooks:
        hook.remove()
    return shapes, found


def words(title, shape):
    channels, *size = shape
    return f"{title}\n{channels} × {'×'.join(map(str, size))}"


# %%
def diagram(boxes, arrows, legend, title, size):
    """Boxes {name: (column, row, text, colour)} and arrows (from, to, line style)."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    drawn = {}
    for name, (column, row, text, colour) in boxes.items():
        look = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#333333"}
        drawn[name] = axes.text(column, -row, text, ha="center", va="center", fontsize=8, bbox=look)
    columns, rows = zip(*((column, -row) for column, row, *_ in boxes.values()), strict=True)
    axes.set(xlim=(min(columns) - 0.55, max(columns) + 0.55), title=title)
    axes.set(ylim=(min(rows) - 0.5, max(rows) + 0.5))
    figure.canvas.draw()  # now the boxes know their sizes
    for a, b, style in arrows:
        ends = {"xytext": drawn[a].get_position(), "xy": drawn[b].get_position()}
        look = {"arrowstyle": "-|>", "linestyle": style, "color": "#333333"}
        look |= {"patchA": drawn[a].get_bbox_patch(), "patchB": drawn[b].get_bbox_patch()}
        axes.annotate("", **ends, arrowprops=look)
    axes.set_axis_off()
    patches = [Patch(facecolor=c, edgecolor="#333333", label=n) for n, c in legend.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


# %%
net = MyVoxelMorph(2)
layers = {f"encoder {i}": layer for i, layer in enumerate(net.unet["encoder"])}
layers |= {f"decoder {2 - i}": layer for i, layer in enumerate(net.unet["decoder"])}
shapes, found = shapes_of(net, layers | {"velocity": net.velocity})
full = (dims, *found.displacement.shape[2:])
boxes = {"pair": (0, 0, words("both images", (2, *full[1:])), GREY)}
for i in range(4):
    boxes[f"encoder {i}"] = (i + 1, i + 1, words(f"encoder {i}", shapes[f"encoder {i}"]), SKY)
for i in (2, 1, 0):
    boxes[f"decoder {i}"] = (7 - i, i + 1, words(f"decoder {i}", shapes[f"decoder {i}"]), AMBER)
boxes["velocity"] = (8.1, 1, words("velocity", shapes["velocity"]), GREEN)
boxes["exp"] = (9.2, 1, words("exp(v)", shapes["velocity"]), GREEN)
boxes["displacement"] = (9.2, 0, words("displacement", full), GREEN)
boxes["moved"] = (7.7, 0, words("moved", (1, *full[1:])), GREY)
down = ["pair", *(f"encoder {i}" for i in range(4))]
path = [*down, "decoder 2", "decoder 1", "decoder 0", "velocity", "exp", "displacement", "moved"]
arrows = [(a, b, "-") for a, b in pairwise(path)]
arrows += [(f"encoder {i}", f"decoder {i}", ":") for i in range(3)]
arrows += [("pair", "moved", ":")]
legend = {"images": GREY, "encoder": SKY, "decoder": AMBER, "fields": GREEN}
assert shapes["velocity"] == (dims, *(n // 2 for n in full[1:]))
diagram(boxes, arrows, legend, "VoxelMorph at half resolution (dotted: skips)", (9.5, 4.6))

# %% [markdown]
# Read it along the solid arrows: down the encoder, up the decoder, out to the velocity. One row is one resolution. The
# dotted arrows carry features, and for the warp the moving image, past everything that lies between. The last green box is
# the only field that has the image's size.
#
# ## Where it starts
#
# The head's first weights come from $\mathcal N(0, 10^{-5})$ (the second number is the standard deviation), thousands of
# times smaller than PyTorch's default. We draw them with other standard deviations, and see how far an untrained network
# moves the voxels.


# %%
def untrained(std):
    """Mean length of an untrained network's displacement, voxels; None is PyTorch's default."""
    torch.manual_seed(session.seed)
    net = MyVoxelMorph(2)
    if std is None:
        net.velocity.reset_parameters()
    else:
        nn.init.normal_(net.velocity.weight, std=std)
    with torch.no_grad():
        length = net(moving, fixed).displacement.norm(dim=1).mean().item()
    return length, net.velocity.weight.std().item()


# %%
stds = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
sizes = [untrained(std)[0] for std in stds]
default, default_std = untrained(None)
assert sizes[1] < 1e-3 < default < 1 < sizes[-1]

figure = Figure(figsize=(6.6, 3.2), layout="constrained")
axes = figure.subplots()
axes.loglog(stds, sizes, "o-", color="#0072B2", markersize=4, label="drawn from N(0, std)")
axes.loglog(1e-5, sizes[1], "D", color="#009E73", label="VoxelMorph's choice")
axes.loglog(default_std, default, "s", color="#D55E00", label="PyTorch's default")
axes.axhline(1, color="#777777", linestyle=":", label="one voxel")
axes.set(xlabel="standard deviation of the head's weights", ylabel="mean |u|, untrained (voxel)")
axes.legend(fontsize=8)
figure

# %% [markdown]
# PyTorch's default is no catastrophe in this network, only a shift for no reason. The small weights make it a non-question:
# training begins at the identity, whatever the width or the depth of the net before the head.
#
# Why not take zeros?
#
# **Predict:** what is the gradient that reaches the U-Net through a head of zeros?
#
# > *My prediction:*


# %%
def unet_gradient(std):
    """Norm of the first gradient that reaches the U-Net through a head of weights N(0, std)."""
    torch.manual_seed(session.seed)
    net = MyVoxelMorph(2)
    nn.init.normal_(net.velocity.weight, std=std)
    (net(moving, fixed).moved - fixed).square().mean().backward()
    return sum(p.grad.square().sum() for p in net.unet.parameters()).sqrt().item()


blocked, small = unet_gradient(0.0), unet_gradient(1e-5)
assert blocked == 0 < small
print(f"gradient that reaches the U-Net: {blocked} through zeros, {small:.0e} through N(0, 1e-5)")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It is exactly zero, because the chain rule multiplies by the head's weights. In the first step the head alone would learn.
#
# </details>
#
# A tiny gradient is enough, because Adam divides by its size.
#
# ## Where the work goes
#
# The number of parameters says little about the time. What counts is the number of multiplications: outputs × inputs ×
# kernel, at every layer. A hook on each convolution counts them, at the resolution at which the layer works. We count in
# 3-D, where the work is.
#
# **Predict:** which share of all multiplications happens on the finest grid of the network?
#
# > *My prediction:*


# %%
def multiplications(net, shape):
    """Multiply-adds of a forward pass of 3-D convolutions, by the size of the grid they work on."""
    work, hooks = {}, []

    def count(layer, inputs, output):
        taps = layer.weight[0].numel()  # inputs x kernel
        n = output.shape[2]
        work[n] = work.get(n, 0) + output.numel() * taps

    for layer in net.modules():
        if isinstance(layer, nn.Conv3d):
            hooks.append(layer.register_forward_hook(count))
    with torch.no_grad():
        net(*torch.rand(2, 1, 1, *shape))
    for hook in hooks:
        hook.remove()
    return work


# %%
import warnings

from monai.networks.nets import VoxelMorph as MonaiVoxelMorph

warnings.filterwarnings("ignore", message=".*native grid_sample")
volume = (32, 32, 32)
torch.manual_seed(session.seed)
nets = {
    "half resolution": MyVoxelMorph(3),
    "full resolution": MyVoxelMorph(3, half_resolution=False),
    "MONAI's VoxelMorph": MonaiVoxelMorph(),
}
work = {name: multiplications(net, volume) for name, net in nets.items()}
total = {name: sum(levels.values()) for name, levels in work.items()}
counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
print(f"a forward pass on {volume}:")
for name, count in counts.items():
    print(f"{name:>18}: {count:,} parameters, {total[name] / 1e9:.2f} billion multiplications")

# %%
figure = Figure(figsize=(8.4, 2.6), layout="constrained")
axes = figure.subplots()
colours = {32: "#0072B2", 16: "#56B4E9", 8: "#009E73", 4: "#E69F00", 2: "#CC79A7", 1: "#777777"}
names = list(work)[::-1]
start_at = dict.fromkeys(names, 0.0)
for n, colour in colours.items():
    lengths = [work[name].get(n, 0) / 1e9 for name in names]
    label = "the image's grid" if n == 32 else f"1/{32 // n}"
    axes.barh(names, lengths, left=list(start_at.values()), color=colour, label=label)
    start_at = {name: start_at[name] + more for name, more in zip(names, lengths, strict=True)}
axes.set(xlabel="multiply-adds (10⁹) of a forward pass, 32³ voxels")
axes.legend(title="works on", fontsize=8, ncols=2)

finest = {name: levels[max(levels)] / total[name] for name, levels in work.items()}
assert min(finest.values()) > 0.5  # the finest level has most of the work in all of them
assert total["full resolution"] > 4 * total["half resolution"]
assert total["MONAI's VoxelMorph"] > 8 * total["half resolution"]
assert min(counts, key=counts.get) == "MONAI's VoxelMorph" == max(total, key=total.get)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# More than half, in all three networks. Each coarser grid has an eighth of the voxels, so whatever a network does on its
# finest grid costs more than all the rest together.
#
# </details>
#
# So there is one lever, the finest level, and half resolution pulls it. MONAI's default net, with skips up to full resolution
# and three more convolutions there, has the *fewest* parameters of the three, and the most work.
# Multiplications are not time, because memory traffic, the integration and the warp count as well.
# On this machine, now:

# %%
import time


def seconds(net, shape, repeats=3):
    """Median seconds of a forward and a backward pass on one pair."""
    images = torch.rand(2, 1, 1, *shape)
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start_time = time.perf_counter()
        found = net(*images)
        # MONAI answers with (moved, displacement).
        moved = found[0] if isinstance(found, tuple) else found.moved
        moved.square().mean().backward()
        times.append(time.perf_counter() - start_time)
    return torch.tensor(times[1:]).median().item()


# %%
timed = {name: seconds(net, volume) for name, net in nets.items()}
for name in timed:
    more_work = total[name] / total["half resolution"]
    more_time = timed[name] / timed["half resolution"]
    print(
        f"{name:>18}: {more_work:4.1f} × the multiplications, {more_time:.0f} × the time of a "
        "training step"
    )

# %% [markdown]
# The times are a measurement and differ from run to run; the counts do not.
#
# ## What does half resolution lose?
#
# To answer this we need true velocities, and between real people nobody knows them. So for this section and the next we take
# made subjects of the built-in cohort, one template deformed by known velocities. Then we can ask without training anything:
# take a velocity, sample it on a coarser grid, integrate it there, come back. That is the *best* a network of that resolution
# could do.
#
# **Predict:** what share of the displacement is lost at 1/2, at 1/4, and at 1/8 of the resolution?
#
# > *My prediction:*

# %%
import nibabel as nib

from course_utils.data.cohorts import load_cohort
from course_utils.data.synthetic import make_cohort

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
velocities = [
    torch.from_numpy(nib.load(s.velocity).get_fdata(dtype="float32")) for s in flat.subjects
]
velocity = torch.stack(velocities).movedim(-1, 1)  # (12, 2, 96, 96), voxels
exact = integrate(velocity)
size = tuple(velocity.shape[2:])


# %%
def through(factor, scale_down=None, scale_up=None):
    """exp(v) by way of a grid ``factor`` times coarser; with scales given, they replace those of
    resize."""
    coarse_size = [n // factor for n in size]
    down = resize(velocity, coarse_size) * (1 if scale_down is None else scale_down * factor)
    return resize(integrate(down), size) * (1 if scale_up is None else scale_up / factor)


def off_by(u):
    """Mean distance to exp(v) where something moves, voxels."""
    return (u - exact).norm(dim=1)[exact.norm(dim=1) > 0.5].mean().item()


factors = [1, 2, 4, 8, 16]
loss_of = [off_by(through(factor)) for factor in factors]
moved_by = exact.norm(dim=1)[exact.norm(dim=1) > 0.5].mean().item()
for factor, error in zip(factors, loss_of, strict=True):
    print(f"grid of 1/{factor}: {100 * error / moved_by:5.1f} % of the displacement lost")
assert loss_of[1] < 0.03 * moved_by and loss_of == sorted(loss_of) and loss_of[-1] > 0.2 * moved_by
assert loss_of[2] > 2 * loss_of[1] and loss_of[3] > 2 * loss_of[2]

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# At ½ next to nothing is lost, and each further halving loses a few times more. These deformations are smooth, as the
# regulariser will make the predicted ones.
#
# </details>
#
# Rougher deformations would lose more. That is a property of the data, and this is how to measure it.
#
# ## ... if the two factors are right
#
# The velocity is in voxels, and the coarse voxels are twice as long: times ½ on the way down, times 2 on the way up. A
# network predicts on the coarse grid directly, so the factor on the way down is whatever it learns, and the other one is
# easily forgotten. Four ways to write it:

# %%
ways = {
    "right: ½ down, 2 up": through(2),
    "no factors": through(2, scale_down=1, scale_up=1),
    "½ down, none up": through(2, scale_down=0.5, scale_up=1),
    "MONAI's: 2 down, ½ up": through(2, scale_down=2, scale_up=0.5),
}
error = {name: 100 * off_by(u) / moved_by for name, u in ways.items()}
for name, percent in error.items():
    print(f"{name:>22}: {percent:5.1f} % off")
right_error, *wrong_errors = error.values()
assert right_error < 5 and min(wrong_errors) > 2 * right_error
k = int(exact.norm(dim=1).mean(dim=(1, 2)).argmax())  # the strongest deformation
panel(
    {f"{name}\n{error[name]:.0f} % off": (u - exact)[k].norm(dim=0) for name, u in ways.items()},
    spacing=flat.info.spacing,
    orientation="RS",
    cmap="magma",
    colourbar="error (voxel)",
)

# %% [markdown]
# "½ down, none up" loses half of the displacement, and anyone would see it. The other two are treacherous. Their factors
# cancel, a constant field comes out right, and what they compute, $\tfrac12\exp(2v)$ and $\tfrac14\exp(4v)$ on the fine
# grid, looks like $\exp(v)$ and is no exponential of anything simple. A network can learn around it, but then $\exp(-v)$ is
# no longer the inverse (notebook 03 has the numbers). In 2-D, MONAI's `half_res` does not run at all (version 1.6.1), nor
# does its default network on sizes that the levels do not divide:


# %%
def fails(net, *images):
    try:
        net(*images)
    except Exception as error:
        return type(error).__name__
    return None


flat_net = MonaiVoxelMorph(half_res=True, spatial_dims=2)
refused = {"2-D, half_res=True": fails(flat_net, moving, fixed)}
refused["3-D, sizes 20, 33, 17"] = fails(
    nets["MONAI's VoxelMorph"], *torch.rand(2, 1, 1, 20, 33, 17)
)
assert all(refused.values())
for case, name in refused.items():
    print(f"MONAI's VoxelMorph, {case}: {name}")

# %% [markdown]
# ## Another architecture: the pyramid
#
# VoxelMorph looks at both images at once, at all resolutions, and answers once. A *pyramid* answers several times, from
# coarse to fine. One encoder describes both images. The coarsest level gives a first velocity. At each finer level the
# moving image's features are warped by the velocity so far, compared with the fixed image's, and the comparison adds what
# is still missing. It is the course's default, and it is drawn here in the same way.

# %%
from course_utils.networks import Pyramid

pyramid = Pyramid(2).eval()
layers = {f"features {i}": layer for i, layer in enumerate(pyramid.encoder)}
layers |= {f"compare {i}": layer for i, layer in enumerate(pyramid.decoder)}
layers |= {f"velocity {i}": layer for i, layer in enumerate(pyramid.velocity)}
shapes, found = shapes_of(pyramid, layers)
boxes = {"pair": (0, 0, words("each image", (1, *full[1:])), GREY)}
for i in range(4):
    boxes[f"f{i}"] = (0, i + 1, words("features", shapes[f"features {i}"]), SKY)
    boxes[f"c{i}"] = (2.6, i + 1, words("compared", shapes[f"compare {i}"]), AMBER)
    boxes[f"v{i}"] = (3.9, i + 1, words("velocity", shapes[f"velocity {i}"]), GREEN)
    if i < 3:
        text = words("moving's warped,\nfixed's as it is", shapes[f"features {i}"])
        boxes[f"w{i}"] = (1.3, i + 1, text, SKY)
boxes["u"] = (3.9, 0, words("displacement", full), GREEN)

# %%
arrows = [("pair", "f0", "-"), ("v0", "u", "-"), ("f3", "c3", "-")]
arrows += [(f"f{i}", f"f{i + 1}", "-") for i in range(3)]
arrows += [(f"c{i}", f"v{i}", "-") for i in range(4)]
arrows += [edge for i in range(3) for edge in ((f"f{i}", f"w{i}", "-"), (f"w{i}", f"c{i}", "-"))]
arrows += [(f"v{i + 1}", f"v{i}", "-") for i in range(3)]
arrows += [(f"v{i + 1}", f"w{i}", ":") for i in range(3)]
arrows += [(f"c{i + 1}", f"c{i}", ":") for i in range(3)]
legend = {"images": GREY, "encoder": SKY, "comparison": AMBER, "fields": GREEN}
assert found.displacement.shape[1:] == full and found.displacement.abs().max() < 1e-2
assert [shapes[f"velocity {i}"][0] for i in range(4)] == [dims] * 4
title = "The pyramid: read from the bottom up (dotted: warps by it; passes on what it saw)"
diagram(boxes, arrows, legend, title, (9.5, 5.2))

# %% [markdown]
# The two networks take the same arguments and give the same `Registration`, so everything on this page and on the next ones
# works with either. The difference is in what must be learnt. VoxelMorph must see a large displacement at once. The pyramid
# only ever needs to see what is left, a few voxels of the level's own grid. [Page 15](15_backbones.ipynb) compares them, and
# others, at equal cost.
#
# ## One pair, a few seconds: does it learn?
#
# The first test of any network is whether it can learn one pair by heart. We use local correlation plus a little smoothness
# (notebook 05 takes losses apart), and Adam. The labels are there only to look at: the network never sees them.
#
# **Predict:** does Dice rise too, although no label is in the loss?
#
# > *My prediction:*

# %%
from course_utils.losses import diffusion_loss, ncc_loss

torch.manual_seed(session.seed)
net = MyVoxelMorph(2)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
curve = []
for _ in range(200):
    found = net(moving, fixed)
    loss = ncc_loss(found.moved, fixed) + 0.5 * diffusion_loss(found.velocity)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    moved_label = warp(moving_label, found.displacement.detach(), mode="nearest")
    curve.append((loss.item(), overlap(moved_label, fixed_label)))

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
losses, overlaps = zip(*curve, strict=True)
left.plot(losses, color="#0072B2")
left.set(xlabel="step", ylabel="loss", title="What it minimises")
right.plot(overlaps, color="#D55E00")
right.set(xlabel="step", ylabel="mean Dice", title="What it never sees")
assert losses[-1] < losses[0] - 0.15 and overlaps[-1] > overlaps[0] + 0.1
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}, Dice {overlaps[0]:.3f} to {overlaps[-1]:.3f}")
figure

# %%
from course_utils.metrics import folding_percent
from course_utils.plotting import deformed_grid

net.eval()
with torch.no_grad():
    found = net(moving, fixed)
moved, displacement = found.moved, found.displacement
inside = fixed_label > 0
print(f"{folding_percent(displacement).item():.2f} % folded")
assert folding_percent(displacement).item() < 0.5
panel(
    {"moving": moving, "moved": moved, "fixed": fixed},
    labels={
        "moving": moving_label,
        "moved": warp(moving_label, displacement, mode="nearest"),
        "fixed": fixed_label,
    },
    names=drawn,
    fill=True,
    **view,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Yes. Structures have edges, and where the edges of the images agree, so do the borders of the structures. It does not get
# to 1: 200 steps are few, and the folds of two people's cortex do not correspond one to one.
#
# </details>
#
# ## Swap the images
#
# If the moving image goes to the fixed one by $u$, then the fixed image goes to the moving one by $u^{-1}$. The network was
# never told.
#
# **Predict:** swap its two inputs. Do we get the inverse?
#
# > *My prediction:*

# %%
from course_utils.fields import compose

with torch.no_grad():
    swapped = net(fixed, moving).displacement
backwards = found.inverse()  # exp(-v)
residual = {
    "do nothing": displacement,
    "swap the inputs": compose(displacement, swapped),
    "exp(−v)": compose(displacement, backwards),
}
mean = {name: u.norm(dim=1)[inside[:, 0]].mean().item() for name, u in residual.items()}
for name, value in mean.items():
    print(f"{name:>16}: {value:.3f} voxel from where it started")
assert mean["exp(−v)"] < 0.1 * mean["do nothing"] and mean["swap the inputs"] > mean["do nothing"]
deformed_grid(
    {f"there, then: {name}": u for name, u in residual.items()},
    step=moving.shape[2] // 24,
    **view,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No. This net has learnt one pair by heart, in one direction, and it deforms in the same way a second time: with the inputs
# swapped, voxels end up further from home than if nothing had been done to bring them back.
#
# </details>
#
# A network that is trained on both orders (random pairs do that) contradicts itself less, but nothing makes its two answers
# inverse. The integrated velocity does, by construction: negate $v$.
#
# ## Shift the images
#
# One symmetry is said to be built into convolutions: shift the input, and the output shifts along. We shift both images by
# 1, 2, … 32 voxels, and shift the predicted velocity back.
#
# **Predict:** for which shifts is the velocity the same as without a shift?
#
# > *My prediction:*

# %%
torch.manual_seed(session.seed)
# Frames so wide that no border is within sight:
large = F.pad(torch.cat([moving, fixed]), (96, 96, 96, 96))
inner = (..., *(slice(96, 96 + n) for n in moving.shape[2:]))
shifts = list(range(33))
with torch.no_grad():
    still = net(large[:1], large[1:]).velocity
    change = []
    for s in shifts:
        a, b = large.roll(s, dims=2).split(1)
        difference = net(a, b).velocity.roll(-s, dims=2) - still
        change.append(difference[inner].abs().mean() / still[inner].abs().mean())
change = 100 * torch.stack(change)

# %%
figure = Figure(figsize=(7, 2.6), layout="constrained")
axes = figure.subplots()
axes.plot(shifts, change, "o-", color="#0072B2", markersize=4)
axes.set(
    xlabel="shift of both images (voxel)",
    ylabel="change of the velocity (%)",
    xticks=range(0, 33, 4),
)
assert (
    max(change[0], change[16], change[32]) < 0.1 < 1 < min(change[1:16].min(), change[17:32].min())
)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Only for multiples of 16, the product of all strides. In between, the coarse grids fall differently on the anatomy, and the
# answer changes.
#
# </details>
#
# What a network shows there is learnt robustness, not symmetry, and training on many pairs buys it. Under rotations not even
# a single convolution is symmetric.
#
# ## The same in MONAI
#
# MONAI separates what this page has joined. `VoxelMorph` is a frame that integrates and warps; the U-Net inside is its
# `backbone`, and any module that turns two channels into a velocity of the image's size can take that place. First MONAI's own:

# %%
from monai.networks.nets import VoxelMorphUNet

torch.manual_seed(session.seed)
backbone = VoxelMorphUNet(
    spatial_dims=2,
    in_channels=2,  # moving and fixed
    unet_out_channels=32,
    channels=(16, 32, 32, 32, 32, 32),  # pairs of (down, up), finest first
    final_conv_channels=(16, 16),
)
monai_net = MonaiVoxelMorph(backbone=backbone, integration_steps=7, spatial_dims=2)
with torch.no_grad():
    warped, ddf = monai_net(moving, fixed)  # the moved image, the displacement
print(f"MONAI's: moved {tuple(warped.shape)}, displacement {tuple(ddf.shape)}")
assert warped.shape == moving.shape and ddf.shape == displacement.shape

# %% [markdown]
# Now we exchange the backbone: our encoder, decoder and head go into MONAI's frame. At full resolution the answer must be that
# of `MyVoxelMorph`, but for the border, where MONAI's frame pads with zeros (notebook 03, trap 2). So we compare where the
# border is out of reach:

# %%
mine = MyVoxelMorph(2, half_resolution=False).eval()
mine.velocity.weight.data.mul_(1e5)  # so that something moves
ours_inside = nn.Sequential(mine.unet["encoder"], mine.unet["decoder"], mine.velocity)
framed = MonaiVoxelMorph(backbone=ours_inside, spatial_dims=2)
with torch.no_grad():
    warped, ddf = framed(moving, fixed)
    expected = mine(moving, fixed)
margin = int(expected.displacement.abs().max()) + 2
inner = (..., *(slice(margin, n - margin) for n in moving.shape[2:]))
difference = (ddf - expected.displacement)[inner].abs().max().item()
moves = expected.displacement.norm(dim=1).max().item()
print(f"moves up to {moves:.1f} voxels; our U-Net in MONAI's frame differs by {difference:.0e}")
assert moves > 0.5 and difference < 1e-3
assert (warped - expected.moved)[inner].abs().max() < 1e-3

# %% [markdown]
# Two things to know when you read MONAI's tutorials. MONAI's network begins with weights of PyTorch's default, so it starts a
# little off the identity. And `half_res=True` has its factors exchanged in version 1.6.1, as you have seen above; a half
# resolution that works is a backbone which predicts at half the size, and `resize`.
#
# ## What you now have
#
# - You have a VoxelMorph from four pieces, equal to the tested one to the last bit. From here on we import it.
# - The strides decide how far it sees, and half resolution nearly doubles it.
# - The finest level is the bill. Half resolution cuts it several times, and loses next to nothing on smooth deformations.
# - A pyramid answers level by level, and each level sees only what is left.
# - $\exp(-v)$ is the inverse; swapping the inputs is not.
#
# **What can go wrong.** The factor after the coarse integration is wrong. Strided kernels of odd width shift each level. The
# levels do not divide the image's size. Nothing is learnt through a head of zeros. A displacement is larger than the window.
#
# **Try it.**
# 1. *(middle)* Leave out the skips (multiply them by 0) and learn the pair by heart again. What is lost, far sight or exact
#    placing?
# 2. *(middle)* Train on both orders, (moving, fixed) and (fixed, moving), in every step. How close does the swap come to
#    $\exp(-v)$?
# 3. *(easy)* Take five levels in place of four. Compute the window with `receptive_field` first, then measure it.
# 4. *(hard)* Put `monai.networks.nets.BasicUNet` into MONAI's frame as a backbone, learn the pair by heart, and compare its
#    time per step and its Dice with those of `MyVoxelMorph`.
#
# **References.** Ronneberger et al., *U-Net: convolutional networks for biomedical image segmentation*, MICCAI 2015,
# [doi:10.1007/978-3-319-24574-4_28](https://doi.org/10.1007/978-3-319-24574-4_28). Balakrishnan et al., *VoxelMorph: a
# learning framework for deformable medical image registration*, IEEE TMI 38(8), 2019,
# [doi:10.1109/TMI.2019.2897538](https://doi.org/10.1109/TMI.2019.2897538). Dalca et al., *Unsupervised learning of
# probabilistic diffeomorphic registration for images and surfaces*, Medical Image Analysis 57, 2019,
# [doi:10.1016/j.media.2019.07.006](https://doi.org/10.1016/j.media.2019.07.006). Hu et al., *Dual-stream pyramid registration
# network*, Medical Image Analysis 78, 2022,
# [doi:10.1016/j.media.2022.102379](https://doi.org/10.1016/j.media.2022.102379). Luo et al., *Understanding the effective
# receptive field in deep convolutional neural networks*, NeurIPS 2016,
# [doi:10.48550/arXiv.1701.04128](https://doi.org/10.48550/arXiv.1701.04128). Zhang, *Making convolutional networks
# shift-invariant again*, ICML 2019, [doi:10.48550/arXiv.1904.11486](https://doi.org/10.48550/arXiv.1904.11486).
#
# Next: [05 Losses](05_losses.ipynb): what the network should want.
