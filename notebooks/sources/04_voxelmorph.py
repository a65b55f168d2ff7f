# %% [markdown]
# # 04 VoxelMorph
#
# Two images in, a velocity field out: that is all a registration network does. Here you build one from four small
# pieces, print the shape at every level, and end with a class that gives bit for bit the output of the course's tested
# one. On the way you measure how far it can see, where its time goes, what half resolution costs and saves, how a wrong
# factor of two looks, and what a network does *not* promise: to agree with itself when the two images are swapped.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 1 | 1 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/04_voxelmorph.ipynb)

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
# ## What is asked of the network
#
# One pair of unseen subjects. The network sees both images as two channels and must say, for every voxel of the fixed
# one, where to look in the moving one.

# %%
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.plotting import panel

cohort = load_cohort(session.dataset)
pair = cohort.pairs("test", count=1, seed=session.seed)[0]
subjects = load_subjects((pair.fixed, pair.moving), cohort.info.recipe)
item = PairDataset(subjects, [pair])[0]
moving, fixed = item["moving"][None], item["fixed"][None]  # (1, 1, *spatial)
dims = moving.ndim - 2

print(f"in:  {tuple(torch.cat([moving, fixed], dim=1).shape)}, moving and fixed as channels")
print(f"out: {(1, dims, *moving.shape[2:])}, {dims * fixed.numel():,} unknowns")
panel({"moving": moving, "fixed": fixed}, spacing=cohort.info.spacing)

# %% [markdown]
# The experiments further down run on the built-in cohort's 2-D slices: the same code with one axis less, and the true
# velocities are known.

# %%
from course_utils.data.synthetic import make_cohort

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
flat_pair = flat.pairs("test", count=1)[0]
flat_subjects = load_subjects(flat.subjects, flat.info.recipe)
truth = PairDataset(flat_subjects, [flat_pair], truth=True)[0]
flat_moving, flat_fixed = truth["moving"][None], truth["fixed"][None]  # (1, 1, 96, 96)

length = truth["true_displacement"].norm(dim=0)  # voxels
print(f"true displacements: median {length.median():.1f} voxels, largest {length.max():.1f}")
assert length.max() > 3

# %% [markdown]
# One convolution of 3 × 3 voxels sees one voxel to each side, and the answer lies several voxels away. So the network
# must *look* far; but it must *place* the edge exactly. That conflict is why everybody uses a U-Net: coarse levels that
# see far, fine levels that know where, and skip connections between them.
#
# ## Piece 1: a block, and a kernel that does not shift
#
# A convolution and a leaky ReLU. A block that halves the resolution strides by 2. **Predict:** feed a coordinate ramp
# 0, 1, 2, 3, … to a strided averaging kernel of width 3, and one of width 4. Which coordinates do the coarse voxels
# report?

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
# A strided 3-kernel sits *on* every second voxel; a coarse voxel stands for *two*, and its centre is between them. At
# each level the odd kernel is half a voxel of its input off, and the decoder must learn to undo it. Width 4 is centred
# (so is pooling followed by a 3-kernel). For a classifier this is a detail; here, positions are the product.


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
# (`first_stride=1`) or at half of it at once: the choice this page is about.


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
# From coarse to fine: double the resolution, put the encoder's features of that level beside, convolve. We print what
# each level concatenates.


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
# It stops where the encoder began: at half the image's size. Nothing in this network ever works at full resolution.
#
# ## How far does it see?
#
# The receptive field by reasoning: start at one output voxel and walk backwards, keeping the interval of inputs it
# depends on. By measurement: let autograd say on which input voxels the output depends.


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
# Starting at half resolution doubles the window with the same number of levels. The blocks in the picture are the coarse
# levels; they lie as the grids fall, so the window is not centred on its voxel. Most of the influence is near. What lies
# outside cannot be known: a structure that has moved out of the window stays lost, however long you train.
#
# ## Sizes that the levels do not divide
#
# Four halvings need multiples of 16. **Predict:** what happens to 50 × 61 pixels?

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
# 61 is halved to 30, 15, 7 and 3; 3 doubled is 6, and the skip has 7. The remedy: repeat the edge up to the next
# multiple, crop the field afterwards. (Pad *at the end* of each axis: voxel 0 stays voxel 0, and no displacement needs
# correcting.)
#
# ## Piece 4: the whole, in 25 lines
#
# U-Net, a velocity head, integration on the coarse grid, `resize` to the image's grid (which rescales the vectors), a
# warp.

# %%
from course_utils.fields import integrate, resize, warp
from course_utils.networks import Registration


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
        spatial = moving.shape[2:]
        padded = [-(-n // self.divisor) * self.divisor for n in spatial]
        margins = [m for n, p in zip(spatial[::-1], padded[::-1], strict=True) for m in (0, p - n)]
        pair = F.pad(torch.cat([moving, fixed], dim=1), margins, mode="replicate")
        velocity = self.velocity(
            self.unet["decoder"](self.unet["encoder"](pair))
        ).float()  # coarse grid
        inside = (..., *(slice(n) for n in spatial))
        displacement = resize(integrate(velocity), padded)[
            inside
        ]  # (B, N, *spatial), voxels of the image
        return Registration(
            warp(moving, displacement), displacement, resize(velocity, padded)[inside]
        )


# %% [markdown]
# Is it right? The course's network has the same layers under the same names, so its weights fit into ours. We make its
# head's weights large, so that there is a real deformation to compare, and ask for *equal* numbers, not similar ones.

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
# ## Where it starts
#
# The head's first weights come from $\mathcal N(0, 10^{-5})$ (the second number is the standard deviation), thousands of
# times smaller than PyTorch's default. What does an untrained network do, with these, the default, and large ones?

# %%
from course_utils.plotting import deformed_grid

starts = {}
for name, std in {"N(0, 1e-5)": 1e-5, "PyTorch's default": None, "N(0, 10)": 10.0}.items():
    torch.manual_seed(session.seed)
    net = MyVoxelMorph(2)
    if std is None:
        net.velocity.reset_parameters()
    else:
        nn.init.normal_(net.velocity.weight, std=std)
    with torch.no_grad():
        u = net(flat_moving, flat_fixed).displacement  # (1, 2, 96, 96)
    size = u.norm(dim=1).mean().item()
    starts[f"{name}: mean |u| {size:.0e} voxel"] = u

small, default, large = (u.norm(dim=1).mean() for u in starts.values())
assert small < 1e-3 < default < 1 < large
deformed_grid(starts, step=3, spacing=flat.info.spacing)

# %% [markdown]
# The default is no catastrophe in this network, only a shift for no reason. The small weights make it a non-question:
# training begins at the identity whatever the width or depth of the net in front of the head.
#
# **Predict:** why not simply zeros?


# %%
def unet_gradient(std):
    """Norm of the first gradient that reaches the U-Net through a head of weights N(0, std)."""
    torch.manual_seed(session.seed)
    net = MyVoxelMorph(2)
    nn.init.normal_(net.velocity.weight, std=std)
    (net(flat_moving, flat_fixed).moved - flat_fixed).square().mean().backward()
    return sum(p.grad.square().sum() for p in net.unet.parameters()).sqrt().item()


blocked, small = unet_gradient(0.0), unet_gradient(1e-5)
assert blocked == 0 < small
print(f"gradient that reaches the U-Net: {blocked} through zeros, {small:.0e} through N(0, 1e-5)")

# %% [markdown]
# Through zeros nothing comes back: in the first step the head alone would learn. A tiny gradient is enough, because Adam
# divides by its size.
#
# ## Where the work goes
#
# Parameters say little. Multiplications count: outputs × inputs × kernel, at every layer. A hook on each convolution
# counts them, at the resolution at which it works.


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
for name, net in nets.items():
    count = sum(p.numel() for p in net.parameters())
    print(
        f"{name:>18}: {count:,} parameters, {total[name] / 1e9:.2f} billion multiplications on "
        f"{volume}"
    )

# %%
figure = Figure(figsize=(8.4, 2.5), layout="constrained")
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
figure

# %% [markdown]
# Most of each bar is one colour: whatever a network does on its finest grid costs more than all the rest together, because each
# coarser grid has an eighth of the voxels. So there is one lever, the finest level, and half resolution pulls it.
# MONAI's default net, with skips up to full resolution and three more convolutions there, has *fewer* parameters and the
# most work. Multiplications are not time; memory traffic, the integration and the warp count as well.
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
        moved = (
            found[0] if isinstance(found, tuple) else found.moved
        )  # MONAI answers with (moved, displacement)
        moved.square().mean().backward()
        times.append(time.perf_counter() - start_time)
    return torch.tensor(times[1:]).median().item()


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
# The true velocities of the built-in cohort are known, so we can ask without training anything: take one, sample it on a
# coarser grid, integrate there, come back. That is the *best* a network of that resolution could do.
# **Predict:** how much is lost at 1/2, 1/4, 1/8?

# %%
import nibabel as nib

velocities = [
    torch.from_numpy(nib.load(s.velocity).get_fdata(dtype="float32")) for s in flat.subjects
]
velocity = torch.stack(velocities).movedim(-1, 1)  # (12, 2, 96, 96), voxels
exact = integrate(velocity)
size = tuple(velocity.shape[2:])


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

# %% [markdown]
# Half the resolution loses next to nothing: these deformations are smooth, as the regulariser will make the predicted
# ones. (A rougher anatomy would lose more; that is a property of the data, and this is how to measure it.)
#
# ## ... if the two factors are right
#
# The velocity is in voxels, and the coarse voxels are twice as long: times ½ going down, times 2 coming up. A network
# predicts on the coarse grid directly, so the factor going down is whatever it learns; that makes the other one easy to
# forget. Four ways to write it:

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
    cmap="magma",
    colourbar="error (voxel)",
)

# %% [markdown]
# "½ down, none up" loses half the displacement, and anyone would see it. The other two are treacherous. Their factors
# cancel, a constant field comes out right, and what they compute, $\tfrac12\exp(2v)$ and $\tfrac14\exp(4v)$ on the fine
# grid, looks like $\exp(v)$ and is no exponential of anything simple. A network can learn around it; $\exp(-v)$ then is no
# longer the inverse (notebook 03 has the numbers). In 2-D, MONAI's `half_res` does not run at all:


# %%
def fails(net, *images):
    try:
        net(*images)
    except Exception as error:
        return type(error).__name__
    return None


flat_net = MonaiVoxelMorph(half_res=True, spatial_dims=2)
refused = {"2-D, half_res=True": fails(flat_net, flat_moving, flat_fixed)}
refused["3-D, sizes 20, 33, 17"] = fails(
    nets["MONAI's VoxelMorph"], *torch.rand(2, 1, 1, 20, 33, 17)
)
assert all(refused.values())
for case, name in refused.items():
    print(f"MONAI's VoxelMorph, {case}: {name}")

# %% [markdown]
# ## One pair, a few seconds: does it learn?
#
# The first test of any network: can it overfit one pair? Local correlation plus a little smoothness (notebook 05 takes
# losses apart), Adam, and the labels only to look at: the network never sees them.

# %%
from course_utils.losses import diffusion_loss, ncc_loss
from course_utils.metrics import dice

labels = list(flat.info.labels)
moving_label, fixed_label = truth["moving_label"][None], truth["fixed_label"][None]


def overlap(displacement):
    """Mean Dice over the structures."""
    moved_label = warp(moving_label, displacement, mode="nearest")
    return dice(moved_label, fixed_label, labels).nanmean().item()


torch.manual_seed(session.seed)
net = MyVoxelMorph(2)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
curve = []
for _ in range(120):
    found = net(flat_moving, flat_fixed)
    loss = ncc_loss(found.moved, flat_fixed) + 0.5 * diffusion_loss(found.velocity)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    curve.append((loss.item(), overlap(found.displacement.detach())))

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
losses, overlaps = zip(*curve, strict=True)
left.plot(losses, color="#0072B2", label="network")
best = ncc_loss(warp(flat_moving, truth["true_displacement"][None]), flat_fixed).item()
left.axhline(best, color="#777777", linestyle=":", label="similarity at the true map")
left.legend(fontsize=8)
left.set(xlabel="step", ylabel="loss", title="What it minimises")
right.plot(overlaps, color="#D55E00")
right.set(xlabel="step", ylabel="mean Dice", title="What it never sees")
assert losses[-1] < losses[0] - 0.15 and abs(losses[-1] - best) < 0.05
assert overlaps[-1] > overlaps[0] + 0.15
figure

# %%
from course_utils.metrics import folding_percent, target_registration_error

net.eval()
with torch.no_grad():
    found = net(flat_moving, flat_fixed)
moved, displacement = found.moved, found.displacement
inside, mm = fixed_label > 0, flat.info.spacing
target = truth["true_displacement"][None]
before = target_registration_error(torch.zeros_like(target), target, mm, inside).item()
after = target_registration_error(displacement, target, mm, inside).item()
print(
    f"true error in the brain: {before:.1f} mm before, {after:.1f} mm after; "
    f"{folding_percent(displacement).item():.2f} % folded"
)
assert after < 0.5 * before and folding_percent(displacement).item() < 0.5
panel(
    {"moving": flat_moving, "moved": moved, "fixed": flat_fixed},
    labels={
        "moving": moving_label,
        "moved": warp(moving_label, displacement, mode="nearest"),
        "fixed": fixed_label,
    },
    names={value: flat.info.labels[value] for value in (2, 3, 4, 7, 8, 9)},
    spacing=mm,
)

# %% [markdown]
# ## Swap the images
#
# If moving goes to fixed by $u$, fixed goes to moving by $u^{-1}$. The network was never told. **Predict:** swap its two
# inputs; do we get the inverse?

# %%
from course_utils.fields import compose

with torch.no_grad():
    swapped = net(flat_fixed, flat_moving).displacement
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
deformed_grid({f"there, then: {name}": u for name, u in residual.items()}, step=3, spacing=mm)

# %% [markdown]
# No: this net has learnt one pair by heart, in one direction, and deforms the same way a second time. Trained on both orders (random
# pairs do that) the two answers come closer, but nothing makes them inverse. The integrated velocity does, for free, by
# construction: negate $v$.
#
# ## Shift the images
#
# One symmetry is said to be built into convolutions: shift the input and the output shifts along. **Predict:** we shift
# both images by 1, 2, … 32 voxels and shift the predicted velocity back. For which shifts is it the same?

# %%
torch.manual_seed(session.seed)
large = F.pad(
    torch.cat([flat_moving, flat_fixed]), (96, 96, 96, 96)
)  # (2, 1, 288, 288): no border within sight
inner = (..., slice(96, 192), slice(96, 192))
shifts = list(range(33))
with torch.no_grad():
    still = net(large[:1], large[1:]).velocity
    change = []
    for s in shifts:
        a, b = large.roll(s, dims=2).split(1)
        change.append(
            (net(a, b).velocity.roll(-s, dims=2) - still)[inner].abs().mean()
            / still[inner].abs().mean()
        )
change = 100 * torch.stack(change)

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
# Only for multiples of 16, the product of all strides. In between, the coarse grids fall differently on the anatomy and
# the answer changes. It is learnt robustness, not symmetry; training on many pairs buys it. Rotations are not even
# symmetric for a single convolution.
#
# ## What you now have
#
# - A VoxelMorph from four pieces, equal to the tested one to the last bit; from here on we import it.
# - How far it sees: the strides decide, and half resolution doubles it.
# - The finest level is the bill. Half resolution cuts it several times, and loses next to nothing on smooth deformations.
# - $\exp(-v)$ is the inverse; swapping the inputs is not.
#
# **What can go wrong.** A wrong factor after the coarse integration; odd strided kernels that shift each level; sizes that
# the levels do not divide; a head of zeros, through which nothing is learnt; displacements larger than the window.
#
# **Try it.**
# 1. Leave out the skips (multiply them by 0) and overfit the pair again. What is lost, far sight or exact placing?
# 2. Train on both orders, (moving, fixed) and (fixed, moving), in every step. How close does the swap come to $\exp(-v)$?
#
# **References.** Ronneberger et al., *U-Net: convolutional networks for biomedical image segmentation*, MICCAI 2015.
# Balakrishnan et al., *VoxelMorph: a learning framework for deformable medical image registration*, IEEE TMI 38(8), 2019.
# Dalca et al., *Unsupervised learning of probabilistic diffeomorphic registration for images and surfaces*, Medical Image
# Analysis 57, 2019. Luo et al., *Understanding the effective receptive field in deep convolutional neural networks*,
# NeurIPS 2016. Zhang, *Making convolutional networks shift-invariant again*, ICML 2019.
#
# Next: [05 Losses](05_losses.ipynb): what the network should want.
