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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/assignments/04_voxelmorph.ipynb)
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
from course_utils.grading import checks


def judge_block(dims, inputs, outputs, stride, size):
    what, width = f"block({dims}, {inputs}, {outputs}, stride={stride})", 4 if stride == 2 else 3
    brick = checks.call(block, dims, inputs, outputs, stride)
    shapes = [tuple(p.shape) for p in checks.parameters(brick, what)]
    checks.agree(
        shapes,
        [(outputs, inputs, *[width] * dims), (outputs,)],
        f"{what}: the shapes of weights and bias",
        {
            "a strided convolution of width 3 shifts what it sees by half a voxel: width 4": [
                (outputs, inputs, *[3] * dims),
                (outputs,),
            ],
            "width 4 is for stride 2; a block that keeps the size has width 3": [
                (outputs, inputs, *[4] * dims),
                (outputs,),
            ],
            "inputs and outputs are exchanged": [(inputs, outputs, *[width] * dims), (inputs,)],
            "dims is not looked at: a convolution of the other dimension": [
                (outputs, inputs, *[width] * (5 - dims)),
                (outputs,),
            ],
        },
    )
    weight, bias = checks.fill(brick, shapes)
    x = torch.randn(2, inputs, *size, generator=torch.Generator().manual_seed(1))
    plain = {2: F.conv2d, 3: F.conv3d}[dims](x, weight, bias, stride, 1)
    checks.agree(
        brick(x),
        F.leaky_relu(plain, 0.2),
        f"{what}(x)",
        {
            "the activation is missing": plain,
            "a plain ReLU: negative values should be multiplied by 0.2": F.relu(plain),
            "the slope of the leaky ReLU is 0.2; PyTorch's default is 0.01": F.leaky_relu(
                plain, 0.01
            ),
            "the stride is not used": F.leaky_relu(
                {2: F.conv2d, 3: F.conv3d}[dims](x, weight, bias, 1, 1), 0.2
            ),
        },
    )


judge_block(2, 3, 5, 1, (8, 10))
judge_block(2, 3, 5, 2, (8, 10))
### BEGIN HIDDEN TESTS
judge_block(3, 2, 4, 1, (6, 7, 5))
judge_block(3, 1, 6, 2, (6, 8, 4))
judge_block(2, 7, 2, 2, (14, 6))
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
from course_utils import networks
from course_utils.grading import checks


def encoder_case(dims, features, first_stride, shape, seed):
    unet = checks.known_weights(networks.UNet(dims, 2, features, first_stride=first_stride), seed)
    x = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(seed))
    found = [unet.encoder[0](x)]
    for level in unet.encoder[1:]:
        found.append(level(found[-1]))
    return unet, x, found


with torch.no_grad():
    unet, x, found = encoder_case(2, (4, 6, 8), 1, (16, 12), 0)
    checks.agree(
        checks.call(encode, unet.encoder, x),
        found,
        "encode(levels, x)",
        {
            "the list runs from coarse to fine: finest first": found[::-1],
            "the images themselves are no result of a level": [x, *found],
            "the last level is missing": found[:-1],
            "only the last level comes back: the decoder needs all of them": found[-1:],
        },
    )
### BEGIN HIDDEN TESTS
with torch.no_grad():
    for case in [(3, (3, 5), 2, (8, 4, 12), 1), (2, (2, 3, 4, 5), 2, (32, 16), 2)]:
        unet, x, found = encoder_case(*case)
        checks.agree(
            checks.call(encode, unet.encoder, x),
            found,
            f"encode with {len(found)} levels in {case[0]}-D",
        )
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
from course_utils import networks
from course_utils.grading import checks


def decoder_case(dims, widths, shape, seed):
    unet = checks.known_weights(networks.UNet(dims, 2, widths, first_stride=1), seed)
    x = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(seed))
    features = [unet.encoder[0](x)]
    for level in unet.encoder[1:]:
        features.append(level(features[-1]))
    return unet, features, unet(x)


def decoded(unet, features, join, **options):
    *skips, x = features
    for level in unet.decoder:
        x = level(join(F.interpolate(x, scale_factor=2, **options), skips.pop()))
    return x


with torch.no_grad():
    unet, features, result = decoder_case(2, (6, 6, 6), (16, 24), 0)
    checks.agree(
        checks.call(decode, unet.decoder, features),
        result,
        "decode(levels, features)",
        {
            "the encoder's features go behind what comes from below, not before it": decoded(
                unet, features, lambda x, skip: torch.cat([skip, x], dim=1), mode="nearest"
            ),
            "the resolution is doubled by interpolation: repeat the voxels, "
            "mode='nearest'": decoded(
                unet, features, lambda x, skip: torch.cat([x, skip], dim=1), mode="bilinear"
            ),
            "the encoder's features are not used: without skips the edges are lost": decoded(
                unet, features, lambda x, skip: torch.cat([x, x], dim=1), mode="nearest"
            ),
            "the encoder's features are added and doubled, not put behind": decoded(
                unet,
                features,
                lambda x, skip: torch.cat([x + skip, x + skip], dim=1),
                mode="nearest",
            ),
        },
    )
### BEGIN HIDDEN TESTS
with torch.no_grad():
    for case in [
        (3, (3, 5, 4), (8, 4, 12), 1),
        (2, (2, 3, 4, 5), (32, 16), 2),
        (3, (4, 2), (6, 10, 4), 3),
    ]:
        unet, features, result = decoder_case(*case)
        checks.agree(
            checks.call(decode, unet.decoder, features),
            result,
            f"decode with widths {case[1]} in {case[0]}-D",
        )
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
from course_utils.grading import checks


def judge_head(dims, features):
    head, what = checks.call(velocity_head, dims, features), f"velocity_head({dims}, {features})"
    first = checks.parameters(head, what)
    shapes = [(dims, features, *[3] * dims), (dims,)]
    checks.agree(
        [tuple(p.shape) for p in first],
        shapes,
        f"{what}: shapes",
        {"one channel: a velocity has a component an axis": [(1, features, *[3] * dims), (1,)]},
    )
    checks.agree(first[1], torch.zeros(dims), f"{what}: the bias", atol=0)
    spread = first[0].std().item()
    assert spread > 0, (
        f"{what}: with weights of exactly 0 the network in front of the head gets no gradient at "
        "first"
    )
    assert spread < 1e-3, (
        f"{what}: the weights have PyTorch's default spread ({spread:.2g}); the start is no "
        "identity"
    )
    checks.agree(spread, 1e-5, f"{what}: standard deviation of the weights", rtol=0.2, atol=0)
    x = torch.rand(1, features, *[6] * dims, generator=torch.Generator().manual_seed(0))
    weight, bias = checks.fill(head, shapes)
    convolved = {2: F.conv2d, 3: F.conv3d}[dims](x, weight, bias, padding=1)
    checks.agree(head(x), convolved, f"{what}(x), a convolution that keeps the size")


judge_head(2, 16)
### BEGIN HIDDEN TESTS
judge_head(3, 7)
judge_head(2, 40)
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
from course_utils.grading import checks

x = torch.rand(2, 2, 13, 24, generator=torch.Generator().manual_seed(0))
checks.agree(
    checks.call(pad_to_multiple, x, 8),
    F.pad(x, (0, 0, 0, 3), mode="replicate"),
    "pad_to_multiple(images (2, 2, 13, 24), 8)",
    {
        "the margins are in the order of the axes: F.pad wants the last axis first": F.pad(
            x, (0, 3, 0, 0), mode="replicate"
        ),
        "a size that divides already has got another 8 voxels": F.pad(
            x, (0, 8, 0, 3), mode="replicate"
        ),
        "padded with zeros, which is an edge that nobody has: mode='replicate'": F.pad(
            x, (0, 0, 0, 3)
        ),
        "padded at the beginning: voxel 0 is voxel 3 now": F.pad(x, (0, 0, 3, 0), mode="replicate"),
        "padded on both sides: voxel 0 is voxel 1 now": F.pad(x, (0, 0, 1, 2), mode="replicate"),
        "padded on both sides: voxel 0 is voxel 2 now": F.pad(x, (0, 0, 2, 1), mode="replicate"),
        "cropped to the multiple below, and what is cut off is not registered": x[:, :, :8],
    },
)
### BEGIN HIDDEN TESTS
for shape, divisor, margins in [
    ((9, 17, 32), 16, (0, 0, 0, 15, 0, 7)),
    ((5, 6, 7), 4, (0, 1, 0, 2, 0, 3)),
    ((12, 4), 4, (0, 0, 0, 0)),
]:
    x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    wanted = F.pad(x, margins, mode="replicate")
    checks.agree(
        checks.call(pad_to_multiple, x, divisor), wanted, f"pad_to_multiple of {shape} to {divisor}"
    )
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
from course_utils import fields, networks
from course_utils.grading import checks

checks.by_hand(register, {"VoxelMorph"}, "put the stages together")


def network_case(shape, seed):
    """A VoxelMorph that deforms by voxels, and two images."""
    model = networks.VoxelMorph(len(shape), features=(4, 6, 6), instance_norm=False)
    checks.known_weights(model, seed, scale=0.25)
    with torch.no_grad():
        model.velocity.weight.mul_(3)
    return model, *torch.rand(2, 2, 1, *shape, generator=torch.Generator().manual_seed(seed))


def variants(model, m, f):
    """What known mistakes make of images whose size divides."""
    shape = m.shape[2:]
    velocity, other = (
        model.velocity(model.unet(torch.cat(both, dim=1))) for both in ([m, f], [f, m])
    )
    flow = fields.integrate(velocity)
    linear = {"size": shape, "mode": "bilinear", "align_corners": False}
    displacements = {
        "the fixed image is the first channel: moving first": fields.resize(
            fields.integrate(other), shape
        ),
        "the vectors are still in voxels of the coarse grid: resize scales them, F.interpolate "
        "does not": F.interpolate(flow, **linear),
        "the velocity is not integrated": fields.resize(velocity, shape),
        "the velocity is resized before it is integrated: integrate on the coarse "
        "grid": fields.integrate(fields.resize(velocity, shape)),
        "the displacement is halved on its way up; in voxels of the fine grid it is twice as "
        "long": F.interpolate(flow / 2, **linear),
        "the displacement is negated": -fields.resize(flow, shape),
    }
    answers = {mistake: (fields.warp(m, u), u) for mistake, u in displacements.items()}
    right = fields.resize(flow, shape)
    answers["the fixed image is warped: the moving one moves"] = fields.warp(f, right), right
    answers["the result is (displacement, moved): the image first"] = right, fields.warp(m, right)
    return answers


with torch.no_grad():
    model, m, f = network_case((24, 32), 0)
    result = model(m, f)
    answer = checks.call(register, model.unet, model.velocity, m, f)
    checks.agree(
        answer,
        (result.moved, result.displacement),
        "register(unet, head, moving, fixed)",
        variants(model, m, f),
    )
    model, m, f = network_case((21, 30), 1)
    result = model(m, f)
    answer = checks.call(register, model.unet, model.velocity, m, f)
    checks.agree(
        answer,
        (result.moved, result.displacement),
        "register(...) of images of 21 × 30, which 8 does not divide",
    )
### BEGIN HIDDEN TESTS
with torch.no_grad():
    for seed, shape in enumerate([(40, 16), (33, 17), (16, 24, 8), (11, 18, 13)]):
        model, m, f = network_case(shape, seed + 5)
        result = model(m, f)
        answer = checks.call(register, model.unet, model.velocity, m, f)
        checks.agree(
            answer, (result.moved, result.displacement), f"register(...) of images {shape}"
        )
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
from course_utils import networks
from course_utils.grading import checks


def judge_reach(layers, channels, size, rows, mistakes, what):
    network = checks.known_weights(nn.Sequential(*layers))
    checks.agree(checks.call(reach, network, channels, size), rows, f"reach({what})", mistakes)


wide = [
    nn.Conv2d(2, 4, (7, 3), padding=(3, 1)),
    nn.LeakyReLU(0.2),
    nn.Conv2d(4, 2, (5, 3), padding=(2, 1)),
]
judge_reach(
    wide,
    2,
    40,
    11,
    {
        "these are columns (axis 1), not rows": 5,
        "one less than there are: the first and the last both count": 10,
        "that is the whole image: ask about one output voxel, not about their sum": 40,
    },
    "a 7 × 3 and a 5 × 3 kernel",
)
gaps = [nn.Conv2d(1, 3, 3, padding=4, dilation=4)]
judge_reach(
    gaps,
    1,
    30,
    9,
    {"rows in between that do not count are within the reach, too": 3},
    "a dilated kernel",
)
### BEGIN HIDDEN TESTS
judge_reach(
    [nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3, padding=1)],
    3,
    36,
    8,
    {},
    "a strided network",
)
judge_reach(
    [nn.Conv2d(2, 2, (1, 9), padding=(0, 4)), nn.Conv2d(2, 5, (3, 1), padding=(1, 0))],
    2,
    31,
    3,
    {},
    "flat kernels",
)
unet = networks.UNet(2, 2, (4, 6, 6), first_stride=1)
image = torch.rand(1, 2, 64, 64, requires_grad=True)
checks.known_weights(unet)(image)[0, :, 32, 32].sum().backward()
touched = [k for k in range(64) if bool((image.grad[0, :, k] != 0).any())]
judge_reach([unet], 2, 64, touched[-1] - touched[0] + 1, {}, "a U-Net")
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
from course_utils import fields, networks
from course_utils.grading import checks


def symmetric_case(shape, seed):
    model = checks.known_weights(
        networks.VoxelMorph(len(shape), features=(4, 6), instance_norm=False), seed, scale=0.25
    )
    with torch.no_grad():
        model.velocity.weight.mul_(2)
        m, f = torch.rand(2, 2, 1, *shape, generator=torch.Generator().manual_seed(seed))
        there, back = model(m, f), model(f, m)
    v, w = there.velocity, back.velocity

    def answer(velocity, displacement=None):
        u = fields.integrate(velocity) if displacement is None else displacement
        return [fields.warp(m, u), u, velocity]

    return (
        model,
        m,
        f,
        answer((v - w) / 2),
        {
            "the two velocities are added: they point in opposite directions, so subtract": answer(
                (v + w) / 2
            ),
            "the half is missing: two answers of one length, and the mean is meant": answer(v - w),
            "that is the model's own answer, asked one way only": [
                there.moved,
                there.displacement,
                there.velocity,
            ],
            "that is the flow of the model's own velocity, asked one way only": answer(v),
            "the sign is the wrong way round: v(moving, fixed) counts positive": answer(
                (w - v) / 2
            ),
            "the displacements are averaged; their mean is not the flow of the mean "
            "velocity": answer((v - w) / 2, (there.displacement - back.displacement) / 2),
            "the velocity is not integrated: its displacement is exp(w)": answer(
                (v - w) / 2, (v - w) / 2
            ),
            "the displacement is still the model's own": answer((v - w) / 2, there.displacement),
        },
    )


def judge_symmetric(shape, seed):
    model, m, f, expected, mistakes = symmetric_case(shape, seed)
    module = Symmetric(model)
    count = sum(p.numel() for p in model.parameters())
    checks.agree(
        sum(p.numel() for p in checks.parameters(module, "Symmetric(model)")),
        count,
        "number of parameters of Symmetric(model)",
        {
            "the model's parameters are not found: keep the model in an attribute, after "
            "super().__init__()": 0
        },
    )
    with torch.no_grad():
        result = checks.call(module, m, f)
        assert isinstance(result, networks.Registration), (
            f"it should return a Registration, and returns a {type(result).__name__}"
        )
        checks.agree(
            [result.moved, result.displacement, result.velocity],
            expected,
            f"Symmetric(model)(moving, fixed) of images {shape}: [moved, displacement, velocity]",
            mistakes,
        )
        exchanged = checks.call(module, f, m)
        checks.agree(
            exchanged.velocity,
            -result.velocity,
            "the velocity after exchanging the images, which should change its sign",
        )


judge_symmetric((16, 20), 0)
### BEGIN HIDDEN TESTS
judge_symmetric((17, 23), 1)
judge_symmetric((8, 12, 10), 2)
### END HIDDEN TESTS

# %% [markdown]
# Everything that a registration network does between two images and a moved one, you have written. What it *learns*
# is decided by its loss: [05 Losses](05_losses_and_training.ipynb), after the lectures 05 and 06.
