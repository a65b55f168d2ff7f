# %% [markdown]
# # 06 Training
#
# A training loop is four lines. What makes it one that you can leave alone overnight is the rest: a schedule, half precision
# that does not ruin the fields, validation, checkpoints, a resume that continues with *the same numbers*, and a message
# instead of a NaN. You write the four lines, then add one thing at a time and see what happens without it. By the end you
# have trained a VoxelMorph, stopped it, resumed it, watched it in TensorBoard, wrecked one on purpose, and you know the
# commands that do the same at full size.
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 10 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/06_training.ipynb)

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
# ## Something small to train on
#
# For experiments of seconds we take 2-D slices of the built-in cohort; the real run below takes this session's data set.
# `PairDataset` is lazy: a million random pairs cost nothing until they are asked for.

# %%
import torch

from course_utils.data.cohorts import load_cohort
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.synthetic import make_cohort

flat_root = session.data_root / "synthetic2d"
make_cohort(flat_root / "synthetic", subjects=12, dimensions=2)
flat = load_cohort("synthetic", flat_root)
flat_subjects = load_subjects(flat.subjects, flat.info.recipe)
flat_train = PairDataset(flat_subjects, flat.pairs("train", count=10**6, seed=session.seed))
flat_val = PairDataset(flat_subjects, [*flat.pairs("val", "all"), *flat.pairs("test", "all")])

batch = next(iter(loader(flat_train, batch_size=4)))
print({key: tuple(value.shape) for key, value in batch.items() if key != "name"})
print(f"{len(flat_train):,} training pairs, {len(flat_val)} to validate on")

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
    for batch in loader(flat_train, batch_size=4, stop=4 * steps):
        found = model(batch["moving"], batch["fixed"])  # forward
        loss = ssd_loss(found.moved, batch["fixed"]) + 0.01 * diffusion_loss(found.velocity)
        if clear:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return model, torch.tensor(curve)


model, curve = by_hand(150)
print(
    f"mean loss of the first 30 steps {curve[:30].mean():.4f}, of the last 30 "
    f"{curve[-30:].mean():.4f}"
)
assert curve[-30:].mean() < 0.8 * curve[:30].mean()

# %% [markdown]
# **Predict:** we leave out `zero_grad()`. PyTorch *adds* each new gradient to the old ones. Does the loss fall faster, fall
# slower, or climb?

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
# The accumulated gradient is a momentum that never forgets: it runs past every minimum. And PyTorch has not said a word; no
# error, no NaN. Most mistakes in training look like this. Look at the blue curve as well: it jumps from step to step because
# every batch is other pairs, easy ones and hard ones. A single loss value says little.
#
# ## A schedule
#
# Adam's first steps are its least informed: its running averages are empty. So the learning rate *warms up*. At the end,
# steps must become small, or the weights keep circling around the minimum: it *cools down* on a half cosine.

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
# `torch.autocast` runs convolutions in 16 bits and leaves the rest alone. **Predict** the types of: the weights, a
# convolution's output, the velocity, the displacement, the loss, the gradients of the weights.


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


mixed = types(model, batch, torch.bfloat16)
for name, dtype in mixed.items():
    print(f"{name:>12}: {str(dtype).removeprefix('torch.')}")
assert {name for name, dtype in mixed.items() if dtype == torch.bfloat16} == {"convolutions"}

# %% [markdown]
# Only the convolutions. Three things must not follow them:
#
# - **Fields** (notebook 03: beyond voxel 128, bfloat16 cannot place a third of a voxel).
# - **Weights**: an update is small beside the weight, and would be rounded away.
# - **The similarity**: a local variance is a small difference of large squares.

# %%
weight, update = torch.tensor(1.0), torch.tensor(0.003)
print(
    f"1 + 0.003 is {weight + update:.3f} in float32, "
    f"{(weight.bfloat16() + update.bfloat16()).item():.3f} in bfloat16"
)
assert weight.bfloat16() + update.bfloat16() == 1

torch.manual_seed(session.seed)
window = 0.8 + 0.02 * torch.randn(729)  # 9 x 9 x 9 voxels of white matter
for dtype in (torch.float32, torch.bfloat16):
    x = window.to(dtype)
    variance = (x * x).mean() - x.mean() * x.mean()
    print(
        f"variance of a window, E[x²] − E[x]², {str(dtype)[6:]:>8}: {variance.item():.1e}; true "
        f"{window.var():.1e}"
    )
assert not 0.5 < variance / window.var() < 2  # in bfloat16: no correct digit

# %% [markdown]
# So `fit` leaves autocast before the loss, and the losses of this course leave it by themselves. A field's `float()` costs
# nothing: a field has three channels, the network has sixteen to thirty-two.
#
# ## float16, and why it needs a scaler
#
# bfloat16 has the range of float32 and fewer digits. Older GPUs have only float16: more digits, little range. Nothing below
# $6 \cdot 10^{-8}$ exists. A loss that is a mean over all voxels sends each voxel a gradient of the size
# 1 / (number of voxels). Let us listen to the gradients on their way back through the network that we trained by hand;
# for a volume at full size, they are smaller in proportion.

# %%
from torch import nn


def gradients(model, batch, scale=1.0, through=None):
    """Gradients that arrive at the convolutions, and those of the weights; ``through`` rounds the
    former."""
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
    (
        scale * (ssd_loss(found.moved, batch["fixed"]) + 0.01 * diffusion_loss(found.velocity))
    ).backward()
    for handle in handles:
        handle.remove()
    return torch.cat(arriving), torch.cat([p.grad.flatten() for p in model.parameters()]) / scale


# %%
arriving, exact = gradients(model, batch)
arriving = arriving[arriving != 0]
SCALE = 2.0**16
full = batch["fixed"].numel() / (
    160 * 192 * 224
)  # a mean over a whole volume divides by that much more
sizes = {"these slices": 1.0, "160×192×224": full, "160×192×224, loss × 65536": full * SCALE}
lost = {name: ((size * arriving).half() == 0).float().mean().item() for name, size in sizes.items()}
for name, share in lost.items():
    print(f"{name:>26}: {share:.1%} of the gradients become exactly zero in float16")
tiny = (full * arriving).bfloat16() == 0
assert lost["these slices"] > 0.05 and lost["160×192×224"] > 0.5 and not tiny.any()
assert lost["160×192×224, loss × 65536"] < 0.05

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
axes.set(xlabel="log₁₀ of a gradient's size", ylabel="gradients", xlim=(-14, 3.5))
axes.legend(frameon=False, loc="upper right")
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# Multiply the loss by 65536 and the whole distribution moves to the right; divide the weights' gradients by it afterwards.
# Does the gradient that Adam gets survive? We round every gradient that arrives at a convolution, as float16 would.

# %%
off = {}
for name, size in sizes.items():
    _, rounded = gradients(model, batch, size, through=torch.float16)
    off[name] = ((rounded - exact).norm() / exact.norm()).item()
    print(f"{name:>26}: the gradient of the weights is {off[name]:.2%} off")
assert (
    off["160×192×224"] > 10 * off["160×192×224, loss × 65536"]
    and off["160×192×224, loss × 65536"] < 0.01
)

# %% [markdown]
# On small slices the small gradients that vanish hardly matter; at full size they are most of the signal. The scaled loss
# loses nothing.
#
# Which factor? As large as possible without an overflow, and that changes during training. `GradScaler` searches: it starts
# high; where a gradient becomes infinite it *skips the step* and halves the factor; after many good steps it doubles it.
# One weight, whose gradient is $10^{-6}$:

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

figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
steps = np.arange(1, 21)
axes.semilogy(steps, scales, color="#777777", base=2, drawstyle="steps-mid")
for value, name, colour in ((True, "step taken", "#0072B2"), (False, "skipped", "#D55E00")):
    axes.plot(
        steps[np.array(taken) == value],
        np.array(scales)[np.array(taken) == value],
        "o",
        color=colour,
        label=name,
    )
axes.set(xlabel="step", ylabel="scale", xticks=steps[::2])
axes.legend(frameon=False)
assert not any(taken[:3]) and sum(taken) > 10 and not taken[-1 - taken[::-1].index(False)]
figure

# %% [markdown]
# So: bfloat16 where the hardware has it, no scaler; float16 with a scaler elsewhere; `amp="auto"` decides. And what is it
# worth? What a network keeps in memory for its backward pass can be counted exactly; time can only be measured.

# %%
import time

from course_utils.training import precision

cohort = load_cohort(session.dataset)
some = cohort.pairs("train", count=2, seed=session.seed)
few = load_subjects([s for pair in some for s in (pair.fixed, pair.moving)], cohort.info.recipe)
real = {
    k: v.to(session.device)
    for k, v in next(iter(loader(PairDataset(few, some), 2))).items()
    if k != "name"
}
net = VoxelMorph(real["fixed"].ndim - 2, instance_norm=False).to(session.device)
half = precision("auto", session.device) or torch.bfloat16


# %%
def cost(dtype):
    """Bytes that a forward pass keeps for the backward pass, and seconds of both."""
    kept, times = {}, []

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(4):
        start_time, kept = time.perf_counter(), {}
        autocast = torch.autocast(session.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            moved = net(real["moving"], real["fixed"]).moved
        ssd_loss(moved, real["fixed"]).backward()
        _ = next(net.parameters()).grad.sum().item()  # waits for a GPU
        times.append(time.perf_counter() - start_time)
    return sum(kept.values()), sorted(times[1:])[1]


bytes_full, seconds_full = cost(None)
bytes_half, seconds_half = cost(half)
print(
    f"kept for the backward pass: {bytes_full / 1e6:.0f} MB in float32, {bytes_half / 1e6:.0f} MB "
    f"with {str(half)[6:]}"
)
print(f"on this machine, now: {seconds_full / seconds_half:.2g} × as fast with {str(half)[6:]}")
assert bytes_half < 0.95 * bytes_full

# %% [markdown]
# Less than half is saved, because the fields (float32, and one for each squaring) are a good part of what this network keeps.
# The time depends on the machine: a GPU's matrix units gain most at full size; a CPU without bfloat16 instructions gets
# *slower*, and `auto` then stays with float32.
#
# ## fit: the same loop, with everything around it
#
# `fit` takes a network, an **objective** (what is minimised: it calls the network and weighs the terms), two data sets of
# pairs (one to learn from, one of *other subjects* that only judges), and a `TrainConfig` with the budget.

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.training import TrainConfig, fit

subjects = load_subjects([*cohort.splits["train"], *cohort.splits["val"]], cohort.info.recipe)
cohort = cohort.without(subjects.failed)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.pairs("val", count=min(10, len(cohort.splits["val"]))))


def folder(name):
    """A folder for a run of this page, empty: `fit` never writes over a run."""
    out = session.runs / "training" / name
    shutil.rmtree(out, ignore_errors=True)
    return out


def new_network(cohort):
    """An untrained VoxelMorph for a cohort; the same seed gives the same first weights."""
    return NetworkSpec("voxelmorph", {"spatial_dims": len(cohort.info.shape)}).build(session.seed)


# %%
config = TrainConfig(steps=240 if session.profile == "quick" else 4000, validations=8)
out = folder("first")
result = fit(
    new_network(cohort),
    pair_objective("ncc"),
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
judged = history.dropna(subset="validation_dice")
assert judged.validation_dice.max() > judged.validation_dice.iloc[0] + 0.015
draw_history(history)

# %% [markdown]
# What to look at, in this order: does the **validation Dice** rise (on subjects the network does not learn from)? Is
# **folding** small? Then the loss. The regularisation *rises*: the network starts at the identity, which is perfectly
# smooth, and buys similarity with deformation.
#
# ## Best and last
#
# Two checkpoints are kept. `last.pt` is for going on; `best.pt` has the highest validation Dice. A run that learns its few
# training pairs by heart shows why one needs both: two pairs, again and again. **Predict** for the two pairs themselves, and for
# other people: does Dice rise, and does the true error fall?

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
print(
    f"best: step {best.step}, validation Dice {best.score:.3f}; last: step {last.step}, "
    f"{last.score:.3f}"
)
assert best.step < last.step and best.score > last.score + 0.02  # the last is not the best

# %%
import pandas as pd

from course_utils.evaluation import evaluate, summarise


def measured(pairs):
    """Dice and true error before and after the last network, of pairs whose truth is known."""
    known = PairDataset(flat_subjects, pairs, truth=True)
    table = evaluate(
        last.model().eval(), known, dict(flat.info.labels), list(flat.info.spacing), device="cpu"
    )
    columns = ["dice_before", "dice_after", "tre_mm_before", "tre_mm_after"]
    return summarise(table).loc["overall"].xs("mean", level=1)[columns]


by = {"the two pairs": measured([pair_a, pair_b]), "other people": measured(flat_val.pairs)}
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
# For the two pairs the training was a success: the overlap rises and the true error falls by a third. For other people the true
# error *rises*: these deformations are worse than none. That is **overfitting**, and it is not the same as too little smoothness
# (notebook 05), which ruins the map of the training pairs too. On the left the curves part: from then on, what is learnt about the
# two pairs is wrong for everybody else. Only the validation curve shows it; the training loss looks better than ever. `best.pt`
# keeps the network that was best for others, or least wrong, even if it had hardly begun. Remedies: more pairs, and an earlier end.
#
# ## What a checkpoint holds

# %%
state = torch.load(
    result.last, weights_only=True
)  # tensors and plain values: opening a file runs no code
for key, value in state.items():
    if isinstance(value, dict | list):
        print(f"{key:>16}: {type(value).__name__} of {len(value)}")
    else:
        print(f"{key:>16}: {round(value, 3) if isinstance(value, float) else value}")

weights = sum(t.numel() for t in state["weights"].values())
moments = sum(
    t.numel()
    for s in state["run"]["optimizer"]["state"].values()
    for t in s.values()
    if t.numel() > 1
)
print(f"{weights:,} weights, and {moments / weights:.0f} numbers a weight that only Adam knows")
assert abs(moments / weights - 2) < 0.01

# %% [markdown]
# The weights are a third of it. Adam keeps two running averages a weight; there is the step (it decides the learning rate and
# which pairs come next) and the history. **Predict:** a run is interrupted half way. We resume once with everything, and once
# with the weights and the step but without Adam's averages. Will the losses be the same as if nothing had happened?
#
# To interrupt at a known moment we let the data set press Ctrl-C.

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
plan = TrainConfig(steps=120, batch_size=4, validations=4)


def train_flat(pairs, out, config=plan, resume=False):
    """A new network on the slices; `resume` goes on with the run in the folder."""
    objective = pair_objective("ssd")
    card = flat.info.card()
    return fit(new_network(flat), objective, pairs, flat_val, out, config, card=card, resume=resume)


whole = train_flat(flat_train, folder("whole"))
out = folder("stopped")
try:
    train_flat(Interrupting(flat_train, at=60 * plan.batch_size), out)
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
# Equal to the last bit, on one machine with one number of threads: pair number $i$ is computed from $i$ and the seed, and the
# learning rate from the step, so there is no random state to lose. Without Adam's averages it is another run.
#
# Ctrl-C is polite. A power cut is not: then `last.pt` is at most half a minute old, and never half written, because a
# checkpoint is written beside the old one and put in its place at the end.
#
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
# opens it in the page; in a terminal, in the course's folder, `tensorboard --logdir runs`, also while the training runs. What is
# in the files can be read without it:

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(
    str(result.last.parent / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
)
events.Reload()
tags = events.Tags()
print("scalars:", *tags["scalars"])
print("images: ", *tags["images"])
logged = events.Scalars("loss")
assert [event.step for event in logged] == history.step.tolist()
assert np.allclose([event.value for event in logged], history.loss, rtol=1e-6)

figure = Figure(figsize=(7, 2.4), layout="constrained")
axes = figure.subplots()
axes.plot([event.step for event in logged], [event.value for event in logged], color="#0072B2")
axes.set(
    xlabel="step", ylabel="loss", title=f"{len(logged)} scalars 'loss', read from the event file"
)
figure

# %%
from IPython.display import Image

pictures = events.Images("validation/pair")
print(f"pictures of steps {[picture.step for picture in pictures]}; the last:")
Image(pictures[-1].encoded_image_string, width=950)

# %% [markdown]
# ## A run that goes wrong
#
# A learning rate 2500 times too high. Without a guard it would go on for hours, or end in a NaN that overwrites the checkpoint.

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
# The step, what was seen, what to change, and what is still there. How does `fit` know, before a NaN? A network starts at the
# identity, and the identity is always an option. So every ten steps it compares the loss with that of *doing nothing on the
# same pairs*; a run that loses to nothing has lost its way. It is no threshold that you would have to guess.
#
# And `fit` does not write over a run:

# %%
try:
    train_flat(flat_train, out)
except CourseError as error:
    print(error)
else:
    raise AssertionError("a finished run must not be overwritten")

# %% [markdown]
# ## The same without a notebook
#
# Everything above is a command, too. The budget is in minutes or in epochs; with minutes the learning rate follows the clock.

# %%
from typer.main import get_command

from course_utils.commands.app import app

commands = {
    "the built-in cohort": "train --dataset synthetic --minutes 5 --out runs/first",
    "go on after Ctrl-C": "train --dataset synthetic --minutes 5 --out runs/first --resume",
    "hippocampus, with labels": "train --dataset hippocampus --loss ssd --dice-weight 0.5 "
    "--minutes 9 --out runs/hippocampus",
    "OASIS at 160×192×224 on a GPU": "train --dataset oasis --loss ncc --batch-size 1 --epochs 30 "
    "--amp bf16 "
    "--device cuda --workers 4 --out runs/oasis",
    "measure it": "evaluate --model runs/oasis/best.pt --dataset oasis --out "
    "runs/oasis/metrics.csv",
}
for what, command in commands.items():
    name, *arguments = command.split()
    get_command(app).get_command(None, name).make_context(
        name, arguments
    )  # an error where it takes no such options
    print(f"# {what}\npython -m course_utils {command}\n")

# %% [markdown]
# OASIS is 414 brains; decoded, they do not fit into most memories, so `train` caches them on disk, and `--workers` processes
# read them while the GPU computes.
#
# ## What you now have
#
# - The loop, and what each thing around it is for.
# - Mixed precision with a rule: convolutions in 16 bits; fields, weights and similarity in 32; a scaler for float16 only.
# - A run that can be stopped at any time and resumed to the last bit, and one that says what is wrong with it.
#
# **What can go wrong.** No `zero_grad`; validation on training subjects; a field in half precision; a resume without the
# optimiser; "a few more steps" after the learning rate is zero; the last network taken for the best.
#
# **Try it.**
# 1. Give the run that learns by heart all training pairs instead of two. Do the curves still part?
# 2. Lower the wild run's learning rate until it survives. How far from the default is the edge?
# 3. Train with `minutes=1` twice. Are the numbers the same? Why not?
#
# **References.** Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015. Micikevicius et al., *Mixed precision
# training*, ICLR 2018. Kalamkar et al., *A study of BFLOAT16 for deep learning training*, arXiv 1905.12322, 2019. Loshchilov
# and Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017. Goyal et al., *Accurate, large minibatch SGD*,
# arXiv 1706.02677, 2017 (warm-up).
#
# Next: [07 NCC against SSD](07_ncc_against_ssd.ipynb): two trainings, fifty pairs, one verdict.
