# %% [markdown]
# # 06 Training
#
# A training loop is four lines. What makes it one that you can leave alone overnight is the rest: a schedule, half precision
# that does not ruin the fields, validation, checkpoints, a resume that continues with *the same numbers*, and a message
# instead of a NaN. You write the four lines, then add one thing at a time and see what happens without it. On real scans you then
# train a VoxelMorph whose gain you can see with your own eyes, stop one, resume it, look into it with TensorBoard, and wreck one on
# purpose.
#
# Afterwards you can write a training loop with mixed precision and validation, say which numbers must stay in 32 bits, tell
# overfitting from too little smoothness, resume a run without a trace, and read MONAI's own registration tutorials. You need
# notebooks 04 (VoxelMorph) and 05 (losses).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 4 | 10 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/06_training.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/06_training.ipynb)

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

session = start(real="hippocampus")
print(session)

# %% [markdown]
# ## Whom we train on
#
# The first cell fetches real hippocampi once (27 MB). Where that fails, the page works on the made subjects: one template brain,
# deformed at random. A fifth of the people only judges (`val`), another fifth is left
# alone. `PairDataset` is lazy: a billion random pairs cost nothing until they are asked for.

# %%
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects, loader

cohort = load_cohort(session.dataset, fractions=(0.6, 0.2, 0.2))
subjects = load_subjects([*cohort.splits["train"], *cohort.splits["val"]], cohort.info.recipe)
cohort = cohort.without(subjects.failed)
labels, dims = dict(cohort.info.labels), len(cohort.info.shape)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 10))

judges = {subject for pair in val_pairs.pairs for subject in (pair.fixed, pair.moving)}
assert len(judges) >= 8 and not judges & {*cohort.splits["train"]}
print(f"{len(train_pairs):,} training pairs of {len(cohort.splits['train'])} subjects of", end=" ")
print(f"{cohort.info.name}; {len(val_pairs)} validation pairs of {len(judges)} others")

# %%
from course_utils.plotting import panel

item = val_pairs[0]
images = {side: item[side] for side in ("moving", "fixed")}
outlines = {side: item[f"{side}_label"] for side in images}
panel(images, labels=outlines, names=labels, fill=True, **cohort.info.view)

# %% [markdown]
# These are two of the people who judge. For experiments of seconds we use one slice through the middle of each volume: the same
# people, in two dimensions.


# %%
class MiddleSlices(torch.utils.data.Dataset):
    """The middle coronal slice of every volume of a pair; a pair of slices stays as it is."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        item = self.pairs[index]
        middle = item["fixed"].shape[2] // 2
        keys = ("moving", "fixed", "moving_label", "fixed_label")
        return {key: item[key][:, :, middle] if dims == 3 else item[key] for key in keys}


small_train, small_val = MiddleSlices(train_pairs), MiddleSlices(val_pairs)
batch = next(iter(loader(small_train, batch_size=4)))
print({key: tuple(value.shape) for key, value in batch.items()})

# %% [markdown]
# ## The loop
#
# Forward, loss, backward, step. Everything else on this page is around these lines.

# %%
from course_utils.losses import diffusion_loss, ssd_loss
from course_utils.networks import VoxelMorph


def by_hand(steps, learning_rate=2e-3, clear=True):
    """The network after some steps, and the loss at each."""
    torch.manual_seed(session.seed)
    model = VoxelMorph(2, instance_norm=False)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    curve = []
    for batch in loader(small_train, batch_size=4, stop=4 * steps):
        found = model(batch["moving"], batch["fixed"])  # forward
        loss = ssd_loss(found.moved, batch["fixed"]) + 0.01 * diffusion_loss(found.velocity)
        if clear:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return model, torch.tensor(curve)


model, curve = by_hand(150)
print(f"mean loss of the first 30 steps {curve[:30].mean():.4f}, ", end="")
print(f"of the last 30 {curve[-30:].mean():.4f}")
assert curve[-30:].mean() < 0.8 * curve[:30].mean()

# %% [markdown]
# **Predict:** we leave out `zero_grad()`. PyTorch *adds* each new gradient to the old ones. Does the loss fall faster, fall
# more slowly, or climb?
#
# > *My prediction:*

# %%
from course_utils.plotting import Figure

_, kept = by_hand(150, clear=False)

figure = Figure(figsize=(7, 2.8), layout="constrained")
axes = figure.subplots()
for values, name, colour in ((curve, "with zero_grad", "#0072B2"), (kept, "without", "#D55E00")):
    axes.semilogy(values, color=colour, linewidth=0.5, alpha=0.5)
    axes.semilogy(range(9, 150), values.unfold(0, 10, 1).mean(dim=1), color=colour, label=name)
axes.set(xlabel="step", ylabel="loss (and its mean\nover 10 steps)")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
assert kept[-30:].mean() > 1.5 * curve[-30:].mean()
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The accumulated gradient is a momentum that never forgets. It runs past every minimum, and the loss ends far above that of the
# right loop.
#
# </details>
#
# PyTorch has not said a word: there was no error and no NaN. Most mistakes in training look like this. Look at the blue curve as
# well. It jumps from step to step, because every batch holds other pairs, easy ones and hard ones. A single loss value says
# little.
#
# ## A schedule
#
# Adam's first steps are its least informed, because its running averages are empty. So the learning rate *warms up*. At the end,
# steps must become small, or the weights keep circling around the minimum: the rate *cools down* on a half cosine.

# %%
import math

import numpy as np


def schedule(step, steps, highest=2e-3):
    """Learning rate of a step counted from 0: 20 steps of warm-up, under a half cosine."""
    return highest * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))


figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
for steps, colour in ((100, "#56B4E9"), (300, "#0072B2")):
    axes.plot(
        [schedule(step, steps) for step in range(steps)], color=colour, label=f"{steps} steps"
    )
axes.set(xlabel="step", ylabel="learning rate")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# The schedule needs to know where the end is. That is why a run has a *budget*, and why "train a little longer" is another
# run, not the same one continued.
#
# ## Half precision: what runs in what
#
# `torch.autocast` runs convolutions in 16 bits and leaves the rest alone. **Predict:** which of these six are then in 16 bits: the
# weights, a convolution's output, the velocity, the displacement, the loss, the gradients of the weights?
#
# > *My prediction:*


# %%
def types(model, batch, dtype):
    """The floating point type of everything in one training step."""
    seen = {"weights": next(model.parameters()).dtype}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.update({"convolutions": output.dtype})
        )
        for module in model.unet.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.autocast("cpu", dtype=dtype):
        found = model(batch["moving"], batch["fixed"])
    loss = ssd_loss(found.moved, batch["fixed"])  # outside
    loss.backward()
    for hook in hooks:
        hook.remove()
    seen |= {
        "velocity": found.velocity.dtype,
        "displacement": found.displacement.dtype,
        "moved": found.moved.dtype,
    }
    return seen | {"loss": loss.dtype, "gradients": next(model.parameters()).grad.dtype}


# %%
mixed = types(model, batch, torch.bfloat16)
for name, dtype in mixed.items():
    print(f"{name:>12}: {str(dtype).removeprefix('torch.')}")
assert {name for name, dtype in mixed.items() if dtype == torch.bfloat16} == {"convolutions"}

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Only the convolutions' outputs are. A field, a weight and a loss each need more digits than a feature does.
#
# </details>
#
# Three things must not follow the convolutions:
#
# - **Fields** (notebook 03: beyond voxel 128, bfloat16 cannot place a third of a voxel).
# - **Weights**: an update is small beside the weight, and would be rounded away.
# - **The similarity**: a local variance is a small difference of large squares.

# %%
weight, update = torch.tensor(1.0), torch.tensor(0.003)
print(f"1 + 0.003 is {weight + update:.3f} in float32,", end=" ")
print(f"{(weight.bfloat16() + update.bfloat16()).item():.3f} in bfloat16")
assert weight.bfloat16() + update.bfloat16() == 1

torch.manual_seed(session.seed)
window = 0.8 + 0.02 * torch.randn(729)  # 9 x 9 x 9 voxels of one tissue
for dtype in (torch.float32, torch.bfloat16):
    x = window.to(dtype)
    variance = (x * x).mean() - x.mean() * x.mean()
    print(f"E[x²] − E[x]² in {str(dtype)[6:]:>8}: {variance.item():.1e}", end="; ")
    print(f"true variance {window.var():.1e}")
assert not 0.5 < variance / window.var() < 2  # in bfloat16: no correct digit

# %% [markdown]
# So `fit` leaves autocast before the loss, and the losses of this course leave it by themselves. A field's `float()` costs
# nothing: a field has three channels, the network has sixteen to thirty-two.
#
# ## float16, and why it needs a scaler
#
# bfloat16 has the range of float32 and fewer digits. Older GPUs have only float16, which has more digits and little range: nothing
# below $6 \cdot 10^{-8}$ exists. A loss that is a mean over all voxels sends each voxel a gradient of the size 1 / (number of
# voxels). Let us listen to the gradients on their way back through the network that we trained by hand. For a volume at full size,
# they are smaller in proportion.

# %%
from torch import nn


def gradients(model, batch, scale=1.0, through=None):
    """Gradients that arrive at the convolutions, rounded to `through`, and those of the weights."""
    arriving, handles = [], []

    def listen(module, inputs, output):
        def hook(g):
            g = g if through is None else g.to(through).to(g.dtype)
            arriving.append(g.flatten())
            return g

        output.register_hook(hook)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(listen))
    model.zero_grad()
    found = model(batch["moving"], batch["fixed"])
    loss = ssd_loss(found.moved, batch["fixed"]) + 0.01 * diffusion_loss(found.velocity)
    (scale * loss).backward()
    for handle in handles:
        handle.remove()
    return torch.cat(arriving), torch.cat([p.grad.flatten() for p in model.parameters()]) / scale


# %% [markdown]
# **Predict:** at 160×192×224 voxels, what share of the gradients becomes exactly zero in float16?
#
# > *My prediction:*

# %%
arriving, exact = gradients(model, batch)
arriving = arriving[arriving != 0]
SCALE = 2.0**16
full = batch["fixed"].numel() / (160 * 192 * 224)  # a whole volume divides by that much more
sizes = {"these slices": 1.0, "160×192×224": full, "160×192×224, loss × 65536": full * SCALE}
lost = {name: ((size * arriving).half() == 0).float().mean().item() for name, size in sizes.items()}
for name, share in lost.items():
    print(f"{name:>26}: {share:.1%} of the gradients become exactly zero in float16")
tiny = (full * arriving).bfloat16() == 0
assert lost["160×192×224"] > 0.3 and lost["160×192×224"] > 5 * lost["160×192×224, loss × 65536"]
assert lost["these slices"] < lost["160×192×224"] and tiny.float().mean() < 1e-3

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
axes = figure.subplots()
bins = np.linspace(-14, 0, 85)
for (name, size), colour in zip(sizes.items(), ("#56B4E9", "#D55E00", "#0072B2"), strict=True):
    axes.hist(
        (size * arriving).abs().log10().numpy(),
        bins,
        histtype="step",
        color=colour,
        linewidth=1.5,
        label=name,
    )
axes.axvspan(
    -14, math.log10(2.0**-25), color="#777777", alpha=0.25, linewidth=0, label="zero in float16"
)
axes.set(xlabel="log₁₀ of a gradient's size", ylabel="gradients", xlim=(-14, 4))
axes.legend(frameon=False, loc="upper right")
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The lines above the figure say it: a large part of them, everything in the grey zone. In bfloat16, which has float32's range,
# hardly one of a thousand is lost.
#
# </details>
#
# Multiply the loss by 65536, and the whole distribution moves to the right; divide the weights' gradients by it afterwards.
# Does the gradient that Adam gets survive? We round every gradient that arrives at a convolution, as float16 would.

# %%
off = {}
for name, size in sizes.items():
    _, rounded = gradients(model, batch, size, through=torch.float16)
    off[name] = ((rounded - exact).norm() / exact.norm()).item()
    print(f"{name:>26}: the gradient of the weights is {off[name]:.2%} off")
scaled = off["160×192×224, loss × 65536"]
assert off["160×192×224"] > 5 * scaled and scaled < 0.02

# %% [markdown]
# On small slices the small gradients that vanish hardly matter; at full size they matter much more. The scaled loss loses
# next to nothing.
#
# Which factor is right? It should be as large as possible without an overflow, and that changes during training. `GradScaler`
# searches: it starts high, *skips the step* and halves the factor where a gradient becomes infinite, and doubles it after many
# good steps. **Predict:** one weight has a gradient of $10^{-6}$, float16 ends at 65504, and the search starts at $2^{39}$, about
# $5.5 \cdot 10^{11}$. How many steps are skipped at the start?
#
# > *My prediction:*

# %%
weight = nn.Parameter(torch.ones(()))
optimizer = torch.optim.SGD([weight], lr=1.0)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**39, growth_interval=5)
scales, taken = [], []
for _ in range(20):
    before = weight.item()
    optimizer.zero_grad()
    scaler.scale(1e-6 * weight).backward()
    weight.grad = weight.grad.half().float()  # what a float16 network would have
    scaler.step(optimizer)  # divides by the scale, and skips what is infinite
    scales.append(scaler.get_scale())
    scaler.update()
    taken.append(weight.item() != before)

# %%
figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
number, scales, taken = np.arange(1, 21), np.array(scales), np.array(taken)
axes.semilogy(number, scales, color="#777777", base=2, drawstyle="steps-mid")
axes.plot(number[taken], scales[taken], "o", color="#0072B2", label="step taken")
axes.plot(number[~taken], scales[~taken], "X", color="#D55E00", label="skipped")
axes.set(xlabel="step", ylabel="scale", xticks=number[::2])
axes.legend(frameon=False)
assert taken.argmax() == 4 and taken.sum() > 10 and not taken[4:].all()
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Four: $2^{39}$ to $2^{36}$ times $10^{-6}$ are all above 65504, and $2^{35}$ times $10^{-6}$ is below. Whenever the doubling goes
# too far later on, one more step is skipped.
#
# </details>
#
# So the rule is: bfloat16 and no scaler where the hardware has it, float16 with a scaler elsewhere; `amp="auto"` decides. And what
# is it worth? What a network keeps in memory for its backward pass can be counted exactly, and time can only be measured.

# %%
import time

from course_utils.training import precision

real = next(iter(loader(train_pairs, 1)))
real = {key: real[key].to(session.device) for key in ("moving", "fixed")}
net = VoxelMorph(dims, instance_norm=False).to(session.device)
half = precision("auto", session.device) or torch.bfloat16


# %%
def cost(dtype):
    """Bytes that a forward pass keeps for the backward pass, and seconds of both."""
    kept, times = {}, []

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(2):
        start_time, kept = time.perf_counter(), {}
        autocast = torch.autocast(session.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            moved = net(real["moving"], real["fixed"]).moved
        ssd_loss(moved, real["fixed"]).backward()
        _ = next(net.parameters()).grad.sum().item()  # waits for a GPU
        times.append(time.perf_counter() - start_time)
    return sum(kept.values()), times[1]


# %%
bytes_full, seconds_full = cost(None)
bytes_half, seconds_half = cost(half)
name = str(half).removeprefix("torch.")
print(f"kept for the backward pass: {bytes_full / 1e6:.0f} MB in float32,", end=" ")
print(f"{bytes_half / 1e6:.0f} MB with {name}")
print(f"on this machine, now: {seconds_full / seconds_half:.2g} × as fast with {name}")
assert bytes_half < 0.95 * bytes_full

# %% [markdown]
# Less than half is saved, because the fields (float32, and one for each squaring) are a good part of what this network keeps.
# The time depends on the machine: a GPU's matrix units gain most at full size; a CPU without bfloat16 instructions gets
# *slower*, and `auto` then stays with float32.
#
# ## One whole loop, to copy
#
# Here is all of it in one cell: schedule, autocast, scaler, loss outside of autocast, validation on other people, and the best
# network kept. The scaler is switched off where the type is bfloat16 or float32, and its lines then do nothing.

# %%
import copy

from course_utils.fields import warp
from course_utils.metrics import dice

# %%
STEPS, device = 120, session.device
dtype = precision("auto", device)  # bfloat16, float16, or None for float32
model = VoxelMorph(2).to(device)
optimizer = torch.optim.Adam(model.parameters())
scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
best, scores = {"dice": 0.0}, {}
for step, batch in enumerate(loader(small_train, batch_size=4, stop=4 * STEPS)):
    moving, fixed = batch["moving"].to(device), batch["fixed"].to(device)
    optimizer.param_groups[0]["lr"] = schedule(step, STEPS)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        found = model.train()(moving, fixed)
    loss = ssd_loss(found.moved, fixed) + 0.05 * diffusion_loss(found.velocity)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if step % 30 == 0 or step == STEPS - 1:
        with torch.no_grad():
            of = next(iter(loader(small_val, len(small_val))))
            u = model.eval()(of["moving"].to(device), of["fixed"].to(device)).displacement.cpu()
            moved = warp(of["moving_label"], u, mode="nearest", padding="zeros")
            scores[step] = dice(moved, of["fixed_label"], labels).nanmean().item()
        if scores[step] > best["dice"]:
            best = {"dice": scores[step], "weights": copy.deepcopy(model.state_dict())}

# %%
before = dice(of["moving_label"], of["fixed_label"], labels).nanmean().item()
print(f"validation Dice before {before:.3f};", {step: round(s, 3) for step, s in scores.items()})
assert best["dice"] > before + 0.02

# %% [markdown]
# ## fit: the same loop, with everything around it
#
# `fit` takes a network, an **objective** (what is minimised: it calls the network and weighs the terms), two data sets of
# pairs (one to learn from, one of *other people* that only judges), and a `TrainConfig` with the budget. This is the real run, on
# whole volumes. It may use the labels of the *training* people (`dice_weight`), and it compares the images at half resolution
# (`coarseness=2`), which costs an eighth in three dimensions.

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit


def folder(name):
    """A folder for a run of this page, empty: `fit` never writes over a run."""
    out = session.runs / "training" / name
    shutil.rmtree(out, ignore_errors=True)
    return out


def new_network(cohort):
    """An untrained VoxelMorph for a cohort; the same seed gives the same first weights."""
    return NetworkSpec("voxelmorph", {"spatial_dims": len(cohort.info.shape)}).build(session.seed)


# %%
config = TrainConfig(steps=160 if session.profile == "quick" else 4000, batch_size=4, validations=4)
out = folder("first")
goal = pair_objective("ssd", smoothness=0.05, dice_weight=0.5, labels=labels, coarseness=2)
result = fit(
    new_network(cohort),
    goal,
    train_pairs,
    val_pairs,
    out,
    config,
    card=cohort.info.card(),  # what must be known to use the network later
    device=session.device,
)
history = result.history
print(sorted(path.name for path in out.iterdir()))
history.iloc[[0, -1]].T.round(4)

# %%
from course_utils.plotting import history as draw_history

steps = config.steps
expected = [schedule(step, steps, config.learning_rate) for step in range(steps)]
assert np.allclose(history.learning_rate, expected, rtol=1e-9)  # the schedule drawn above
assert history.loss.tail(20).mean() < history.loss.head(20).mean()
draw_history(history.drop(columns="learning_rate"))

# %% [markdown]
# What to look at, in this order: does the **validation Dice** rise, on people from whom the network does not learn? Is
# **folding** small? Then the loss. The regularisation *rises*: the network starts at the identity, which is perfectly
# smooth, and buys similarity with deformation. The terms of the training are those of random pairs at each step; those of the
# validation are always of the same ten pairs, so the two levels need not agree.
#
# Can one *see* what was learnt? **Predict:** by how much has the mean Dice of the ten validation pairs risen?
#
# > *My prediction:*

# %%
from course_utils.evaluation import evaluate, summarise

table = evaluate(result.model, val_pairs, labels, list(cohort.info.spacing), device=session.device)
overall = summarise(table).loc["overall"].xs("mean", level=1)
gained = overall.dice_after - overall.dice_before
print(f"Dice {overall.dice_before:.3f} -> {overall.dice_after:.3f} ({gained:+.3f}), ", end="")
print(f"HD95 {overall.hd95_mm_before:.2f} -> {overall.hd95_mm_after:.2f} mm, ", end="")
print(f"folded {overall.folding_percent:.3f} %")
assert gained > (0.14 if session.dataset == "hippocampus" else 0.02)
assert overall.folding_percent < 0.5

# %%
gain = (table.dice_after - table.dice_before).groupby(table.pair).mean()
item = val_pairs[[pair.name for pair in val_pairs.pairs].index(gain.idxmax())]
moving, fixed = (item[key][None].to(session.device) for key in ("moving", "fixed"))
with torch.inference_mode():
    found = result.model(moving, fixed)
moved_label = warp(
    item["moving_label"][None].to(device), found.displacement, mode="nearest", padding="zeros"
)
images = {"moving": moving, "moved": found.moved, "fixed": fixed}
filled = {"moving": item["moving_label"], "moved": moved_label, "fixed": item["fixed_label"]}
dashed = dict.fromkeys(("moving", "moved"), item["fixed_label"])
panel(images, labels=filled, references=dashed, names=labels, fill=True, **cohort.info.view)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The line above the picture says it for your data. On the hippocampus it is more than 0.1, after a few minutes: the labels of the
# training people tell the network where the borders are, and the ten pairs are of people whom it has never seen.
#
# </details>
#
# The pair is the one that gained most. Filled is the structure of the moving or moved image, dashed that of the fixed one.
#
# ## Best and last
#
# Two checkpoints are kept. `last.pt` is for going on; `best.pt` has the highest validation Dice. A run that learns its few
# training pairs by heart shows why one needs both. From here on we use slices of the made subjects, because their true
# deformations are known.

# %%
from course_utils.data.synthetic import make_cohort

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
flat_subjects = load_subjects(flat.subjects, flat.info.recipe)
flat_train = PairDataset(flat_subjects, flat.pairs("train", count=10**6, seed=session.seed))
flat_val = PairDataset(flat_subjects, [*flat.pairs("val", "all"), *flat.pairs("test", "all")])
print(f"{len(flat_train):,} training pairs, {len(flat_val)} to validate on")

# %% [markdown]
# Two pairs, again and again. **Predict:** the overlap of the two pairs rises. Does the true error of *other* made subjects fall?
#
# > *My prediction:*

# %%
from course_utils.checkpoint import Checkpoint

pair_a, pair_b = flat.pairs("train", count=8)[0], flat.pairs("train", count=8)[1]
greedy = TrainConfig(steps=300, validations=15, learning_rate=4e-3, batch_size=2)
by_heart = fit(
    NetworkSpec("voxelmorph", {"spatial_dims": 2}).build(),
    pair_objective("ssd", smoothness=0.02),
    PairDataset(flat_subjects, [pair_a, pair_b] * greedy.steps),
    flat_val,
    folder("by_heart"),
    greedy,
    card=flat.info.card(),
)
best, last = Checkpoint.load(by_heart.best), Checkpoint.load(by_heart.last)
print(f"best: step {best.step}, validation Dice {best.score:.3f}; ", end="")
print(f"last: step {last.step}, {last.score:.3f}")
assert best.step < last.step and best.score > last.score + 0.02  # the last is not the best

# %%
import pandas as pd


def measured(pairs):
    """Dice and true error before and after the last network, of pairs whose truth is known."""
    known = PairDataset(flat_subjects, pairs, truth=True)
    table = evaluate(
        last.model().eval(), known, dict(flat.info.labels), list(flat.info.spacing), device="cpu"
    )
    columns = ["dice_before", "dice_after", "tre_mm_before", "tre_mm_after"]
    return summarise(table).loc["overall"].xs("mean", level=1)[columns]


by = {"the two pairs": measured([pair_a, pair_b]), "others": measured(flat_val.pairs)}
by = pd.DataFrame(by).T
assert by.dice_after.iloc[0] > by.dice_before.iloc[0] + 0.1  # learnt, and not only the grey values
assert by.tre_mm_after.iloc[0] < 0.8 * by.tre_mm_before.iloc[0]
assert by.tre_mm_after.iloc[1] > 1.1 * by.tre_mm_before.iloc[1]  # and of no use to anybody else
by.round(3)

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
h = by_heart.history
judged = h.dropna(subset="validation_dice")
left.semilogy(h.step, h.similarity, color="#0072B2", linewidth=0.8, label="the two training pairs")
left.semilogy(
    judged.step,
    judged.validation_similarity,
    "o-",
    color="#D55E00",
    markersize=3,
    label="other subjects",
)
left.set(xlabel="step", ylabel="SSD")
left.legend(frameon=False)
right.plot(judged.step, judged.validation_dice, "o-", color="#D55E00", markersize=3)
right.axvline(best.step, color="#777777", linestyle="--", label="best.pt")
right.set(xlabel="step", ylabel="validation Dice")
right.legend(frameon=False)
assert h.similarity.tail(20).mean() < 0.4 * h.similarity.head(20).mean()
assert judged.validation_similarity.iloc[-1] > 1.05 * judged.validation_similarity.min()
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It *rises*: for others these deformations are worse than none. For the two pairs themselves the training was a success, in
# overlap and in true error. The network has learnt two answers, and not how to find one.
#
# </details>
#
# That is **overfitting**, and it is not the same as too little smoothness (notebook 05), which ruins the map of the training pairs
# too. On the left the curves part: from then on, what is learnt about the two pairs is wrong for everybody else. Only the
# validation curve shows it; the training loss looks better than ever. `best.pt` keeps the network that was best for others, or
# least wrong, even if it had hardly begun. The remedies are more pairs and an earlier end.
#
# ## What a checkpoint holds

# %%
state = torch.load(result.last, weights_only=True)  # plain values: opening a file runs no code
for key, value in state.items():
    if isinstance(value, dict | list):
        print(f"{key:>16}: {type(value).__name__} of {len(value)}")
    else:
        print(f"{key:>16}: {round(value, 3) if isinstance(value, float) else value}")

weights = sum(t.numel() for t in state["weights"].values())
of_adam = [t for s in state["run"]["optimizer"]["state"].values() for t in s.values()]
moments = sum(t.numel() for t in of_adam if t.numel() > 1)
print(f"{weights:,} weights, and {moments / weights:.0f} numbers per weight that only Adam knows")
assert abs(moments / weights - 2) < 0.01

# %% [markdown]
# The weights are a third of it. Adam keeps two running averages per weight. Then there are the step, which decides the learning rate
# and which pairs come next, and the history. To interrupt a run at a known moment, we let the data set press Ctrl-C.
#
# **Predict:** a run is interrupted half-way. We resume once with everything, and once with the weights and the step but without
# Adam's averages. In which of the two are the losses the same as if nothing had happened?
#
# > *My prediction:*

# %%
import signal


class Interrupting(torch.utils.data.Dataset):
    """The same pairs, but asking for number ``at`` presses Ctrl-C."""

    def __init__(self, pairs, at):
        self.pairs, self.at = pairs, at

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        if index == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.pairs[index]


# %%
plan = TrainConfig(steps=80, batch_size=4, validations=2)


def train_flat(pairs, out, config=plan, resume=False):
    """A new network on the slices; `resume` goes on with the run in the folder."""
    objective = pair_objective("ssd")
    card = flat.info.card()
    return fit(new_network(flat), objective, pairs, flat_val, out, config, card=card, resume=resume)


whole = train_flat(flat_train, folder("whole"))
out = folder("stopped")
try:
    train_flat(Interrupting(flat_train, at=40 * plan.batch_size), out)
except KeyboardInterrupt:
    stopped = Checkpoint.load(out / "last.pt").step
print(f"stopped after step {stopped}; the step was finished and saved first")
forgetful = shutil.copytree(out, folder("forgetful"))

# %%
resumed = train_flat(flat_train, out, resume=True)

state = torch.load(forgetful / "last.pt", weights_only=True)
state["run"]["optimizer"]["state"] = {}
torch.save(state, forgetful / "last.pt")
forgot = train_flat(flat_train, forgetful, resume=True)

same = [name for name in whole.history if name != "seconds"]
assert resumed.history[same].equals(whole.history[same])  # every number of every step
final = {
    name: torch.load(run.last, weights_only=True)["weights"]
    for name, run in (("a", whole), ("b", resumed))
}
assert all(torch.equal(final["a"][key], final["b"][key]) for key in final["a"])  # every weight
gap = (forgot.history.loss - whole.history.loss).abs()
assert gap[:stopped].max() == 0 < gap[stopped + 5 :].max()
print(
    f"resumed: {len(same)} columns × {plan.steps} steps and all weights are equal to the last bit"
)

# %%
figure = Figure(figsize=(8.4, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(
    whole.history.step, whole.history.loss, color="#BBBBBB", linewidth=5, label="never stopped"
)
for run, name, colour in (
    (resumed, "resumed", "#0072B2"),
    (forgot, "without Adam's averages", "#D55E00"),
):
    left.plot(run.history.step, run.history.loss, color=colour, linewidth=1, label=name)
    right.plot(run.history.step, run.history.loss - whole.history.loss, color=colour, label=name)
left.set(xlabel="step", ylabel="loss")
right.set(xlabel="step", ylabel="loss − loss of the run\nthat was never stopped")
for axes in (left, right):
    axes.axvline(stopped, color="#777777", linestyle="--", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False, fontsize="small", loc="upper right")
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# With everything, they are equal to the last bit, on one machine with one number of threads. Pair number $i$ is computed from $i$
# and the seed, and the learning rate from the step, so no random state can be lost. Without Adam's averages it is another run.
#
# </details>
#
# Ctrl-C is polite, and a power cut is not. Then `last.pt` is at most half a minute and one step old. It is never half written,
# because a checkpoint is written beside the old one and put in its place at the end.

# %%
from course_utils.training.loop import CHECKPOINT_SECONDS

assert CHECKPOINT_SECONDS == 30

# %% [markdown]
# ## TensorBoard
#
# `fit` writes every scalar of every step, at each validation a picture of the first validation pair, and under HPARAMS a table
# with a line for each run: what decides it, and what it achieves. In Colab and Jupyter,
#
# ```
# %load_ext tensorboard
# %tensorboard --logdir {session.runs}
# ```
#
# opens it in the page; in a terminal, in the course's folder, it is `tensorboard --logdir runs`, also while the training runs. What
# is in the files can be read without it:

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sizes = {"scalars": 0, "images": 0}  # all of them
events = EventAccumulator(str(result.last.parent / "tensorboard"), size_guidance=sizes)
events.Reload()
tags = events.Tags()
print("scalars:", *tags["scalars"])
print("images: ", *tags["images"])
logged = events.Scalars("loss")
assert [event.step for event in logged] == history.step.tolist()
assert np.allclose([event.value for event in logged], history.loss, rtol=1e-6)

# %%
from IPython.display import Image

pictures = events.Images("validation/pair")
print(f"pictures of steps {[picture.step for picture in pictures]}; the last:")
text = "the first validation pair after the last step, as TensorBoard shows it"
Image(pictures[-1].encoded_image_string, width=950, alt=text)

# %% [markdown]
# ## A run that goes wrong
#
# The learning rate is 2500 times too high. Without a guard, the run would go on for hours, or end in a NaN that overwrites the
# checkpoint. **Predict:** `fit` stops such a run before any NaN. What can it compare the loss with, without a threshold that
# somebody has to guess?
#
# > *My prediction:*

# %%
from course_utils.errors import CourseError

try:
    train_flat(flat_train, folder("wild"), TrainConfig(steps=200, learning_rate=5.0))
except CourseError as error:
    message = str(error)
    print(message)
else:
    raise AssertionError("this run should have been stopped")
assert message.startswith("step ") and "learning rate" in message
assert (session.runs / "training" / "wild" / "last.pt").exists()

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# With the loss of *doing nothing on the same pairs*, every ten steps. A network starts at the identity, and the identity is always
# an option, so a run that loses to nothing has lost its way.
#
# </details>
#
# The message says at which step, what was seen, what to change, and what is still there. And `fit` does not write over a run:

# %%
try:
    train_flat(flat_train, out)
except CourseError as error:
    print(error)
else:
    raise AssertionError("a finished run must not be overwritten")

# %% [markdown]
# ## The same in MONAI
#
# This is the skeleton of MONAI's own registration tutorials (OASIS, NLST) with MONAI's parts alone: dictionary transforms, a cache,
# `VoxelMorph`, `BendingEnergyLoss`, `DiceLoss`, `DiceMetric`. It reads the same files that the course reads. Of a volume it takes the
# slice in the middle, and the network is a narrow one, so that all of it takes seconds.

# %%
import warnings

from monai.data import CacheDataset, DataLoader
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
)

warnings.filterwarnings("ignore", module="monai")  # what its next versions will change
KEYS, MAPS, CLASSES = ("moving", "fixed"), ("moving_label", "fixed_label"), max(labels) + 1
NAMES = (*KEYS, *MAPS)
prepare = [
    LoadImaged(NAMES, image_only=True),
    EnsureChannelFirstd(NAMES, channel_dim="no_channel"),
    ScaleIntensityRangePercentilesd(KEYS, 0, 99.5, 0, 1, clip=True),
    ResizeWithPadOrCropd(NAMES, cohort.info.shape + (1,) * (3 - dims)),
    AsDiscreted(MAPS, to_onehot=CLASSES),
    # A slice is stored as a volume of one; of a real volume we take the coronal one in the middle.
    Lambdad(NAMES, (lambda x: x[..., 0]) if dims == 2 else (lambda x: x[:, :, x.shape[2] // 2])),
]


# %%
def cached(pairs):
    """MONAI's items of pairs: the paths of four files each, prepared once and kept."""
    files = [
        dict(zip(NAMES, (m.image, f.image, m.label, f.label), strict=True))
        for m, f in ((pair.moving, pair.fixed) for pair in pairs)
    ]
    return CacheDataset(files, Compose(prepare), progress=False)


# %%
from monai.losses import BendingEnergyLoss, DiceLoss
from monai.metrics import DiceMetric
from monai.networks.blocks import Warp
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet

torch.manual_seed(session.seed)
unet = VoxelMorphUNet(2, 2, 8, channels=(8, 8, 16, 16, 16, 16), final_conv_channels=(8, 8))
theirs = MonaiVoxelMorph(unet, integration_steps=5, spatial_dims=2).to(device)
optimizer = torch.optim.Adam(theirs.parameters(), 4e-3)
similar, bending, overlap = nn.MSELoss(), BendingEnergyLoss(), DiceLoss(include_background=False)
soft, hard = Warp("bilinear", "zeros"), Warp("nearest", "zeros")
few = DataLoader(cached(cohort.pairs("train", count=64)), batch_size=4, shuffle=True)
for _ in range(15):  # epochs
    for batch in few:
        moving, fixed, moving_map, fixed_map = (batch[key].as_tensor().to(device) for key in NAMES)
        moved, field = theirs(moving, fixed)
        loss = similar(moved, fixed) + overlap(soft(moving_map, field), fixed_map)
        loss = loss + 0.3 * bending(field)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
metric, start = DiceMetric(include_background=False), DiceMetric(include_background=False)
for batch in DataLoader(cached(val_pairs.pairs), batch_size=1):
    moving, fixed, moving_map, fixed_map = (batch[key].as_tensor().to(device) for key in NAMES)
    with torch.no_grad():
        _, field = theirs(moving, fixed)
    moved_map = hard(moving_map, field)
    metric(moved_map, fixed_map)
    start(moving_map, fixed_map)
    ours = warp(moving_map, field, mode="nearest", padding="zeros")
    assert (ours != moved_map).float().mean() < 1e-3  # the same convention of a displacement
scores = [m.aggregate().item() for m in (start, metric)]
one_channel = [x.argmax(1, keepdim=True) for x in (moved_map, fixed_map)]
last = dice(*one_channel, labels).nanmean().item()
print(f"MONAI's VoxelMorph on slices: Dice {scores[0]:.3f} -> {scores[1]:.3f}")
print(f"of the last pair: {metric.get_buffer()[-1].nanmean():.4f}; by the course {last:.4f}")
assert scores[1] > scores[0] + 0.02
assert abs(metric.get_buffer()[-1].nanmean() - last) < 1e-4

# %% [markdown]
# The displacement means the same in both libraries, and so does Dice. Three things to know when you read MONAI's tutorials. Their
# `DiceMetric` wants one channel per structure; given a label map of one channel, it measures label 1 alone. Their `VoxelMorph`
# computes its last layers at full resolution, which is why it takes longer per pair than ours. And its option `half_res=True`
# scales the velocity the wrong way round (notebook 04), so leave it off.
#
# ## The same without a notebook
#
# Everything above is a command, too. The budget is in minutes or in epochs; with minutes the learning rate follows the clock.

# %%
from typer.main import get_command

from course_utils.commands.app import app

commands = {
    "hippocampus, with labels": "train --dataset hippocampus --loss ssd --smoothness 0.05 "
    "--dice-weight 0.5 --minutes 5 --out runs/first",
    "go on after Ctrl-C": "train --dataset hippocampus --loss ssd --smoothness 0.05 "
    "--dice-weight 0.5 --minutes 5 --out runs/first --resume",
    "OASIS at 160×192×224 on a GPU": "train --dataset oasis --loss ncc --batch-size 1 --epochs 30 "
    "--amp bf16 --device cuda --workers 4 --out runs/oasis",
    "measure it": "evaluate --model runs/first/best.pt --out runs/first/metrics.csv",
}
for what, command in commands.items():
    name, *arguments = command.split()
    parser = get_command(app).get_command(None, name)
    parser.make_context(name, arguments)  # an error where it takes no such options
    print(f"# {what}\npython -m course_utils {command}\n")

# %% [markdown]
# OASIS is 414 brains; decoded, they do not fit into most memories, so `train` caches them on disk, and `--workers` processes
# read them while the GPU computes.
#
# ## What you now have
#
# - The loop, and what each thing around it is for; the whole of it in one cell.
# - Mixed precision with a rule: convolutions in 16 bits; fields, weights and similarity in 32; a scaler for float16 only.
# - A network that registers people whom it has never seen, and a picture of it.
# - A run that can be stopped at any time and resumed to the last bit, and one that says what is wrong with it.
#
# **What can go wrong.** No `zero_grad`; validation on training subjects; a field in half precision; a resume without the
# optimiser; "a few more steps" after the learning rate is zero; the last network taken for the best.
#
# **Try it.**
# 1. *(easy)* Take the `torch.no_grad()` out of the whole loop. What changes, and what does not?
# 2. *(easy)* Lower the wild run's learning rate until it survives. How far from the default is the edge?
# 3. *(middle)* Give the run that learns by heart all training pairs instead of two. Do the curves still part?
# 4. *(middle)* Train the real run without labels (`dice_weight=0`). How much of the gain is left, and for how many more steps does
#    it go on rising?
# 5. *(hard)* Train with `minutes=1` twice. Why are the numbers not the same? Write a schedule that makes them the same, and say
#    what it costs.
#
# **References.** Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015,
# [arXiv:1412.6980](https://arxiv.org/abs/1412.6980). Micikevicius et al., *Mixed precision training*, ICLR 2018,
# [arXiv:1710.03740](https://arxiv.org/abs/1710.03740). Kalamkar et al., *A study of BFLOAT16 for deep learning training*, 2019,
# [arXiv:1905.12322](https://arxiv.org/abs/1905.12322). Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm
# restarts*, ICLR 2017, [arXiv:1608.03983](https://arxiv.org/abs/1608.03983). Goyal et al., *Accurate, large minibatch SGD*, 2017,
# [arXiv:1706.02677](https://arxiv.org/abs/1706.02677) (warm-up). Antonelli et al., *The Medical Segmentation Decathlon*, Nature
# Communications 13, 2022, [doi:10.1038/s41467-022-30695-9](https://doi.org/10.1038/s41467-022-30695-9).
#
# Next: [07 NCC against SSD](07_ncc_against_ssd.ipynb): two trainings, fifty pairs, one verdict.
