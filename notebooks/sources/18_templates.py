# %% [markdown]
# # 18 Templates
#
# Which brain is everybody registered to? Somebody's own brain drags all others to its peculiarities. The mean of all images is nobody's
# and blurred. A *learnt template* is an image that is trained together with the network that deforms it: sharp, and in the middle of
# everybody. Here you build one, give its voxels names by a vote, and measure whether it is worth the work. Then you
# make one for every age, and meet two measures of it that would fool you.
#
# Afterwards you can make a template of your own scans with one command, and tell whether a template that claims to depend on age
# does. You need notebooks 03 (velocities), 05 (losses) and 06 (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 5 | 3 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/18_templates.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/18_templates.ipynb)

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
# ## Three candidates
#
# This page works on coronal slices of people (`oasis2d`), or, where they could not be fetched, on slices of the built-in cohort. The first two
# candidates cost nothing: the mean of the training images, and one of the people.

# %%
from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.plotting import panel
from course_utils.templates import mean_image

real = session.dataset == "oasis2d"
cohort = load_slices(session.dataset, session.data_root)
loaded = load_subjects(cohort.subjects, cohort.info.recipe)
labels, spacing = dict(cohort.info.labels), list(cohort.info.spacing)
train, test = (cohort.splits[split] for split in ("train", "test"))
image = {s: loaded[s]["image"][None].to(session.device) for s in cohort.subjects}  # (1, 1, H, W)
label = {s: loaded[s]["label"][None].to(session.device) for s in cohort.subjects}
mean, one = mean_image(image[s] for s in train), image[train[0]]
print(f"{cohort.info.name}: a mean of {len(train)} people, {len(test)} others to measure on")
panel({"mean image": mean, "one subject": one}, **cohort.info.view)

# %% [markdown]
# The mean is central and blurred, the subject is sharp and somewhere. The question of this page is whether an image can be as
# sharp as one subject, and yet as central as the mean.
#
# ## A template is a parameter
#
# The idea of Dalca and others (2019) fits in one line: the template $t$ is an image whose voxels are *learnt*, like weights. A
# network is shown $t$ and a scan $s$, deforms $t$ to $s$, and is judged as ever:
#
# $$\text{unlike}(t \circ \phi_s,\, s) + \lambda\, \text{roughness}(\phi_s) + \gamma\, \|\overline{u}\|^2 + \alpha\, (t \circ \phi_s - s)^2$$
#
# The gradient flows through the warp into $t$. Two terms are new. $\overline{u}$ is the **mean displacement** from the template
# to everybody: without it the template may lie anywhere, since the network can bring it back. A batch is a few scans, so a running
# mean over the last 48 is kept. And $\alpha$ **anchors the intensities**: a local correlation does not care whether an image is
# dark or bright, and where nothing is, it lets noise grow. By hand:


# %%
import torch

from course_utils.losses import diffusion_loss, ncc_loss, ssd_loss
from course_utils.objectives import TemplateObjective, pair_objective
from course_utils.templates import template_network


def by_hand(model, scans, running, smoothness=1.0, centring=0.5, anchor=1.0):
    """The loss for scans (B, 1, H, W), where the mean of the displacements was `running`."""
    template = (model.start + model.change).expand_as(scans)
    found = model(template, scans)  # the template moves
    loss = ncc_loss(found.moved, scans) + smoothness * diffusion_loss(found.velocity)
    return loss + centring * running.square().sum(1).mean() + anchor * ssd_loss(found.moved, scans)


# %%
model = template_network(mean.cpu(), seed=session.seed)
torch.manual_seed(session.seed)
for weight in model.network.parameters():
    weight.data += 0.02 * torch.randn_like(weight)  # so that it deforms something
batch = {"fixed": torch.cat([image[s].cpu() for s in train[:4]])}
tested = TemplateObjective(pair_objective("ncc", smoothness=1.0), centring=0.5)
model.train()
for step in ("first", "second"):  # at the second, a mean displacement is known
    hand = by_hand(model, batch["fixed"], model.off_centre.clone())
    outcome = tested(model, batch)
    print(f"{step} step: by hand {hand:.5f}, tested {outcome.loss:.5f}")
    assert abs(hand - outcome.loss) < 1e-4
assert outcome.terms["off_centre"] > 1e-4
outcome.loss.backward()
assert model.change.grad.abs().max() > 0  # the template itself is told how to change

# %% [markdown]
# ## What the mean displacement is for
#
# The next cells try it on discs, where the truth is known: all of them lie three pixels to one side of where the template begins. Twice a
# template is learnt, once with the new term and once without it.
#
# **Predict:** does the template without the term end in the middle of the discs?
#
# > *My prediction:*

# %%
import shutil

from course_utils.data.card import DataCard
from course_utils.data.recipe import Recipe
from course_utils.fields import identity_grid
from course_utils.training import TrainConfig, fit


def disc(shift, radius, size=24):
    centre = torch.tensor([(size - 1) / 2 + shift, (size - 1) / 2]).view(1, 2, 1, 1)
    return torch.sigmoid(radius - (identity_grid((size, size)) - centre).norm(dim=1, keepdim=True))


class Discs:
    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        draw = torch.rand(2, generator=torch.Generator().manual_seed(index % 40))
        fixed = disc(2.5 + draw[0], 4 + 3 * draw[1])[0]
        return {"fixed": fixed, "moving": fixed, "name": str(index)}


# %%
from course_utils.templates import mean_displacement

SMALL = {"network": "voxelmorph", "options": {"features": [4, 8]}, "rate": 3.0}
CARD = DataCard("discs", {}, Recipe((24, 24), (1.0, 1.0), aligned=True))


def fitted(name, model, objective, training, validation, steps, card, rate=2e-3):
    out = session.runs / "templates" / name.replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(steps=steps, batch_size=4, validations=1, learning_rate=rate)
    options = {"card": card, "device": session.device, "hooks": []}
    return fit(model, objective, training, validation, out, config, **options).model.eval()


@torch.no_grad()
def off_centre(model, scans):
    """How far, on average and in voxels, what the template shows is from its mean place."""
    template = model.template()
    homes = (model(template, scan).inverse() for scan in scans)
    return mean_displacement(homes, template > 0.3)


# %%
discs = [Discs()[n]["fixed"][None].to(session.device) for n in range(40)]
ended = {}
for centring in (0.02, 0.0):
    objective = TemplateObjective(pair_objective("ssd", smoothness=0.01), centring)
    model = template_network(disc(0, 5.5), **SMALL, seed=session.seed)
    few = torch.utils.data.Subset(Discs(), range(8))
    learnt = fitted(f"discs {centring}", model, objective, Discs(), few, 300, CARD, 4e-3)
    ended[centring] = off_centre(learnt, discs)
    print(f"weight {centring}: the template is {ended[centring]:.2f} pixel from the middle")
assert ended[0.02] < 0.4 and ended[0.0] > 1.0

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# It does not: it ends more than a pixel away from their middle. The network carries it over each time, and the loss is content.
#
# </details>
#
# With the term, the template moves to the middle, and the network has less to do.
#
# ## The three, trained alike
#
# Now the brains. The network and the steps are the same for all three. Once the template is learnt, beginning with the mean image, and
# twice it stays what it was (`rate=0`). Only the training subjects are seen.

# %%
STEPS = 200
judge = pair_objective("ncc", smoothness=1.0, coarseness=2)
train_pairs = PairDataset(loaded, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(loaded, cohort.distinct_pairs("val", 4))


def trained(name, start, rate):
    model = template_network(start.cpu(), rate=rate, seed=session.seed)
    objective = TemplateObjective(judge)
    return fitted(name, model, objective, train_pairs, val_pairs, STEPS, cohort.info.card())


models = {
    "learnt": trained("learnt", mean, 1.0),
    "mean image": trained("mean image", mean, 0.0),
    "one subject": trained("one subject", one, 0.0),
}

# %% [markdown]
# ## Is it worth it? Let the labels vote
#
# What does a template's voxel belong to? Bring everybody's label maps home (with the *inverse* map, from the template's voxels to
# the scan's) and count: the share of people with the thalamus here is its *probability* here, and the structure with the largest
# share *wins*. Then the test that matters: leave one person out, let the others vote, carry the winning labels to the
# person (with the map), and compare with the person's own. These are people whom nobody trained on.
#
# **Predict:** which carries labels better, the learnt template or the one subject?
#
# > *My prediction:*

# %%
import pandas as pd

from course_utils.templates import leave_one_out, sharpness

values = list(labels)
brain = mean > 0.05


@torch.no_grad()
def registered(model, subjects, template=None):
    template = model.template() if template is None else template
    return [model(template, image[s]) for s in subjects]


# %%
rows, votes = {}, {}
for name, model in models.items():
    dice = leave_one_out([label[s] for s in test], registered(model, test), values)
    homes = [found.inverse() for found in registered(model, train[:120])]
    votes[name] = dice.nanmean(dim=1).cpu()
    rows[name] = {
        "leave-one-out Dice": votes[name].mean().item(),
        "mean displacement, voxels": mean_displacement(homes, brain),
        "sharpness": sharpness(model.template(), brain),
    }
overview = pd.DataFrame(rows).T
overview.round(4)

# %%
dice, away, sharp = (overview[column] for column in overview)
print(f"the best of the three: {dice.idxmax()}")
assert dice["learnt"] > dice["one subject"] + 0.005
assert dice["learnt"] > dice["mean image"] - (0 if real else 0.01)
better = (votes["learnt"] > votes["one subject"]).float().mean()
print(f"the learnt template beats the one subject for {better:.0%} of the people")
assert better > 0.6
assert away["learnt"] < min(0.3, away["one subject"] / 2)
assert sharp["learnt"] > sharp["mean image"]

panel(
    {f"{name}: Dice {dice[name]:.3f}": models[name].template().detach() for name in models},
    **cohort.info.view,
    limits=(0, 1),
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The learnt template, and it does so for most of the people. A subject pays for being somebody: the mean of all displacements from it is
# far from zero, so everybody must be deformed more.
#
# </details>
#
# On real slices the learnt template is the best of the three to carry labels. It lies closer to the middle than a subject does, and it is
# sharper than the mean image that it began with. (The made subjects of the built-in cohort come from one brain, so its mean image is as good already, and there is little to win.)
#
# One seed and one subject prove little. With [three of each](../docs/results.md), the learnt template is ahead of the mean image every
# time, by about a hundredth of Dice, and ahead of two of three subjects: a subject is a gamble that may be won. And the older way of the
# next section, as ANTs does it with SyN (`ants.build_template`), carries labels at least as well as a template that was learnt in
# forty seconds, but lies further from the middle. After two minutes the learnt one is ahead of the mean image by 0.027 (one seed).
#
# ## The votes as pictures

# %%
from course_utils.templates import label_probabilities, winning_labels

best = models["learnt"]
template = best.template().detach()
homes = [found.inverse() for found in registered(best, train)]
probabilities = label_probabilities((label[s] for s in train), homes, values)
winners, share = winning_labels(probabilities, values)


def ventricle(name):
    return "lateral ventricle" in name.lower().replace("-", " ")


VENTRICLES = [value for value, name in labels.items() if ventricle(name)]
chance = sum(probabilities[:, values.index(value)] for value in VENTRICLES)
pictures = {"template": template, "probability: ventricles": chance, "share of the winner": share}
drawn = {value: name for value, name in labels.items() if ventricle(name) or "thal" in name.lower()}
outlines = {"template": winners}
panel(pictures, labels=outlines, names=drawn, **cohort.info.view, limits=(0, 1))

# %%
assert share.min() > 0 and ((probabilities.sum(1) - 1).max() < 1e-4)
edge = share[..., 1:-1, 1:-1] < 0.6
print(f"{edge.float().mean():.1%} of the pixels have a winner with less than 60 % of the votes")
assert share[brain].mean() < share[~brain].mean()

# %% [markdown]
# Dark lines in the last picture are where people disagree: borders, and the cortex, whose folds differ from person to person. Such a picture
# belongs beside every atlas; a winning label alone does not tell that it won with 40 %.
#
# ## The older way: average, register, average again
#
# No network needs to be trained for a template: bring all scans to the average by any method, average them, and repeat until nothing
# changes (`Gen_temp` in the Keras project that this course follows). Each scan's voxel counts as much as the volume behind it,
# $\det J$: where a scan was shrunk to fit, more of it stands behind a voxel.
#
# **Predict:** is the average of 40 registered scans as blurred as their plain mean?
#
# > *My prediction:*

# %%
from course_utils.templates import groupwise

few = [image[s] for s in train[:40]]
rounds = list(groupwise(best, few, rounds=4))
for number, found in enumerate(rounds, start=1):
    crisp = sharpness(found.template, brain)
    print(f"round {number}: changed by {found.change:.4f}, sharpness {crisp:.4f}")
assert rounds[-1].change < rounds[0].change / 2
averaged = rounds[-1].template
assert sharpness(averaged, brain) > sharpness(mean_image(few), brain)
images = {
    "mean of 40": mean_image(few),
    "averaged groupwise": averaged,
    "learnt from all": template,
}
panel(images, **cohort.info.view, limits=(0, 1))

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# No, it is sharper: averages of well registered images are sharp too, because an edge lies on an edge.
#
# </details>
#
# What averaging lacks is a term that keeps it in the middle: each round may carry
# it a little further, and when to stop is a choice.
#
# ## A template for every age
#
# Ventricles grow with age. One template for all shows a person whom nobody is. So let the template depend on a number: a small
# network fills a coarse grid from it, convolutions make that finer, and the result is added to the image. (A layer from the number to
# *every* voxel would need more weights than memory holds.) Where the table of ages lies beside the slices, the number is the age;
# otherwise it is the size of the ventricles, counted in the labels: a condition whose truth everybody has.

# %%
import numpy as np

from course_utils.templates import AttributedPairs, Attributes


def size(map_):
    """Pixels of the lateral ventricles in a label map."""
    return sum((map_ == value).sum().item() for value in VENTRICLES)


table = session.data_root / "oasis2d" / "oasis_cross-sectional.csv"
if real and table.is_file():
    attribute, ages = "age", pd.read_csv(table).set_index("ID")["Age"]
    known = {s.name: (float(ages[s.name.removeprefix("OASIS_")]),) for s in cohort.subjects}
else:
    attribute = "ventricle size"
    known = {s.name: (float(size(label[s])),) for s in cohort.subjects}
attributes = Attributes((attribute,), known)
numbers = attributes.of(train)[:, 0].numpy()
at = [float(np.round(np.quantile(numbers, q))) for q in (0.05, 0.5, 0.95)]
sizes = np.array([size(label[s]) for s in train])
correlation = np.corrcoef(numbers, sizes)[0, 1]
print(f"{attribute}: from {min(numbers):g} to {max(numbers):g}; templates at {at}")
print(f"correlation with the size of the ventricles: {correlation:.2f}")

# %%
conditional = fitted(
    "conditional",
    template_network(
        mean.cpu(), names=(attribute,), attributes=attributes.of(train), seed=session.seed
    ),
    TemplateObjective(judge),
    AttributedPairs(loaded, cohort.pairs("train", count=10**6, seed=session.seed), attributes),
    AttributedPairs(loaded, cohort.distinct_pairs("val", 4), attributes),
    150,
    cohort.info.card(),
)


@torch.no_grad()
def at_value(value):
    return conditional.template(torch.tensor([[value]], device=session.device))


templates = {f"{attribute} {value:g}": at_value(value) for value in at}
panel(templates, **cohort.info.view, limits=(0, 1))

# %% [markdown]
# ## Three rulers, of which one leaks and one sees only darkness
#
# Do the ventricles grow? By how much? There are three ways to measure it:
#
# 1. *People of that age.* Bring the label maps of the oldest people to the template of old age, of the youngest to that of young age, and let
#    them vote.
# 2. *The same people.* Bring one fixed set of people of all ages to the template of every age, by the network.
# 3. *No people.* In the region where anybody has ventricles, count the pixels of the template that are as dark as a ventricle. In scans, count the
#    same.
#
# **Predict:** which of the three shows growth even for a template that knows no attribute?
#
# > *My prediction:*

# %%
order = np.argsort(numbers)
young, old = ([train[int(n)] for n in part] for part in (order[:20], order[-20:]))
mixed = [train[int(n)] for n in order[:: max(1, len(order) // 20)]]


def voted(model, template, people):
    """Pixels of the ventricles, where these people's labels vote on this template."""
    homes = [found.inverse() for found in registered(model, people, template)]
    return size(
        winning_labels(label_probabilities([label[s] for s in people], homes, values), values)[0]
    )


leaking = [voted(best, template, people) for people in (young, old)]
fixed = [voted(conditional, at_value(value), mixed) for value in (at[0], at[-1])]
print(f"1. one template for all, the youngest and the oldest vote: {leaking}")
print(f"2. the template of {attribute} {at[0]:g} and {at[-1]:g}, the same people vote: {fixed}")

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The first. It was held to the template that knows **no** attribute, and shows growth all the same: the answer leaks from the people who
# vote. Whoever measures so will find that any template depends on age.
#
# </details>
#
# The second cannot leak. But it measures a network too: in
# training, this one met each scan with the template of its own age only, and whatever it does with an old brain and a young
# template was never judged. The third ruler asks nobody:

# %%
inside = torch.stack([label[s] == value for s in train for value in VENTRICLES]).float()
region = inside.mean(0) * len(VENTRICLES) > 0.05
is_ventricle = {s: sum((label[s] == value) for value in VENTRICLES) > 0 for s in train}
dark = torch.cat([image[s][is_ventricle[s]] for s in train]).median()
around = torch.cat([image[s][region & ~is_ventricle[s]] for s in train]).median()
threshold = ((dark + around) / 2).item()


def pixels(picture):
    return ((picture < threshold) & region).sum().item()


counted = np.array([pixels(image[s]) for s in train])
slope = np.polyfit(numbers, counted, 1)[0]
line = [pixels(at_value(value)) for value in np.linspace(at[0], at[-1], 7)]
people = slope * (at[-1] - at[0])
part = (line[-1] - line[0]) / people
print(f"3. pixels darker than {threshold:.2f}: {line}")
more = f"people have {people:.0f} more at {at[-1]:g} than at {at[0]:g}"
print(f"{more}; the template {part:.0%} of that")

# %%
assert leaking[1] > 1.05 * leaking[0]  # of a template that knows nothing of the attribute
used = "makes use" if part > 1 / 3 else "makes little use"
print(f"by this ruler, the template {used} of {attribute}")
assert line[-1] > line[0] or not real

from course_utils.plotting import Figure

figure = Figure(figsize=(6.5, 3.2), layout="constrained")
axes = figure.subplots()
axes.scatter(numbers, counted, 8, color="#999999", label="a person")
axes.plot(np.linspace(at[0], at[-1], 7), line, "o-", color="#0072B2", label="the template")
axes.axhline(pixels(template), color="#D55E00", linestyle="--", label="the template for all")
axes.set(xlabel=attribute + (", years" if attribute == "age" else ", pixels"), ylabel="dark pixels")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# On real slices with ages, more of the template is dark at a greater age; the line above says by which part of people's growth. Is that
# growth? A template may also turn *darker* where ventricles are likely, without their outline moving, and the third ruler cannot tell.
# So the second was held to them again, with a network that has met everybody with everybody, the `oasis2d` that ships; on people's own
# scans it counts a pixel for every pixel of their labels. [With three seeds](../docs/results.md), the template has a third of people's
# growth by dark pixels, and a seventh by votes. Twice the training or a stronger anchor brings it to about a half, and to a fifth or a
# quarter; a faster template or a smoother field does not help. **It uses the age, much less than people do**, and reports that such
# templates "ignore the attribute" are not far from the truth.
#
# On the built-in cohort they are right: its ventricles differ by a dozen pixels, the network deforms one template to all of
# them, and nothing asks the template to take part. The loss here does ask a little: beside the mean displacement, training watches how
# displacements *depend* on the attribute, and draws that to zero as well. It does not work wonders. So measure, each time, on your
# own templates, and with two rulers.
#
# ## When to take what
#
# - **One subject** only if the space must be that of a subject. **The mean image** to begin with. **A learnt template** where many
#   scans are to meet: `python -m course_utils template --images scans --labels labels --out runs/template`.
# - **Averaging** where a network is there: `--model oasis2d`, or `--iterations 50` without any.
# - **A conditional template** where people differ in a way that you know: `--attributes ages.csv --at age=20,50,80`. Then hold a ruler to
#   it that cannot leak.
#
# ## The same in MONAI
#
# MONAI has no learnt template. But the older way is made of its transforms: `Warp` brings everybody home, `MeanEnsemble` takes the mean of the
# images, and `VoteEnsemble` lets the labels vote. To see that they mean what we mean, the next cell compares them without any
# registration: every displacement is zero.

# %%
import warnings

from monai.networks.blocks import Warp
from monai.transforms import MeanEnsemble, VoteEnsemble

warnings.filterwarnings("ignore", message=".*native grid_sample")
voters = train[:40]
still = torch.zeros(1, 2, *mean.shape[2:])  # put the inverse map of your registration here
bring, carry = Warp(padding_mode="border"), Warp(mode="nearest", padding_mode="border")
at_home = torch.stack([bring(image[s].cpu(), still)[0] for s in voters])  # (40, 1, H, W)
ballots = torch.stack([carry(label[s].cpu().float(), still)[0] for s in voters])
their_mean = MeanEnsemble()(at_home)
their_winners = VoteEnsemble(num_classes=max(values) + 1)(ballots)
chances = label_probabilities((label[s].cpu() for s in voters), [still] * len(voters), values)
our_winners, _ = winning_labels(chances, values)
agree = (their_winners == our_winners[0]).float().mean().item()
print(f"MONAI's vote and ours agree in {agree:.2%} of the pixels")
assert torch.allclose(their_mean, mean_image(image[s].cpu() for s in voters)[0], atol=1e-4)
assert agree > 0.98

# %% [markdown]
# **The same elsewhere.** voxelmorph's `train_template.py` and `train_cond_template.py` (TensorFlow; neither runs with Keras 3) are
# the source of the first half and have the mean displacement as `MeanStream`. ANTs averages: `ants.build_template` and
# `antsMultivariateTemplateConstruction2.sh`, which also shift the average to the middle in every round.
#
# **What you now have.** A template of your own scans, the names of its voxels with the share of the votes, and three rulers for a template
# that claims to depend on age.
#
# **What can go wrong.** Labels are brought home with the map and not with its inverse. A template is measured with the people it was
# made of. A correlation alone decides on intensities, and noise grows where nothing is. The templates at 20 and at 80 are shown side by
# side, each with voters of its own age.
#
# **Try it.**
# 1. *(easy)* Set `anchor=0` and look at the background of the learnt template.
# 2. *(middle)* Begin the learnt template with one subject. How long does it take to leave that subject, with `centring` 0, 0.01 and 0.03?
# 3. *(middle)* Give the conditional template a number that means nothing, drawn at random. What do the three rulers say?
# 4. *(hard)* Train the conditional network with scans of *other* attributes than the template's in half of the steps. Does the second
#    ruler begin to see?
#
# **References.** Dalca, Rakic, Guttag and Sabuncu, *Learning conditional deformable templates with convolutional networks*, NeurIPS 2019,
# https://doi.org/10.48550/arXiv.1908.02738. Guimond, Meunier and Thirion, *Average brain models: a convergence study*, CVIU 77(2), 2000,
# https://doi.org/10.1006/cviu.1999.0815. Avants et al., *The optimal template effect in hippocampus studies of diseased populations*,
# NeuroImage 49(3), 2010, https://doi.org/10.1016/j.neuroimage.2009.09.062. Joshi et al., *Unbiased diffeomorphic atlas
# construction for computational anatomy*, NeuroImage 23, 2004, https://doi.org/10.1016/j.neuroimage.2004.07.068.
#
# Next: [19 How certain is it?](19_how_certain.ipynb): a number beside every voxel, and what it is worth.
