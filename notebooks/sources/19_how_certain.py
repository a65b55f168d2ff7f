# %% [markdown]
# # 19 How certain is it?
#
# A surgeon who is shown a deformed atlas asks: "And how sure are you?" A network can be made to answer. The best known way is the
# probabilistic VoxelMorph of 2018, which predicts a distribution of velocities. The cheapest way is to train a few networks and to
# see where they disagree. An answer is easily given. Here you find out what it is worth: does the number that a method calls its
# uncertainty tell you where it is wrong?
#
# Afterwards you can derive the Kullback-Leibler term of that network by hand, read `--image-sigma` and `--prior-precision`, and check any
# method's uncertainty with a rank correlation, a reliability diagram and a coverage. You need notebooks 03 (velocities) and 06
# (training).
#
# | | CPU, quick | GPU, full |
# |---|---|---|
# | minutes | 3 | 2 |
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/registration-course/blob/main/notebooks/19_how_certain.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/registration-course/main?urlpath=lab/tree/notebooks/19_how_certain.ipynb)

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
# ## Pairs whose truth is known
#
# To ask "where is it wrong?" one must know the truth, and between two people nobody does. So a slice is deformed by a map that we draw
# ourselves, and gets a little noise. The networks are trained as ever, on pairs of people; they are measured on these pairs.

# %%
import torch

from course_utils.data.cohorts import load_slices
from course_utils.data.loading import PairDataset, load_subjects
from course_utils.fields import integrate, resize, warp

cohort = load_slices(session.dataset, session.data_root)
subjects = load_subjects(cohort.subjects, cohort.info.recipe)
spacing = list(cohort.info.spacing)
train_pairs = PairDataset(subjects, cohort.pairs("train", count=10**6, seed=session.seed))
val_pairs = PairDataset(subjects, cohort.distinct_pairs("val", 4))
test_pairs = PairDataset(subjects, cohort.distinct_pairs("test", 12))


# %%
def known(item, seed):
    """A slice, the same deformed and noisy, and the displacement (1, 2, H, W) that registers the
    second to the first."""
    generator = torch.Generator().manual_seed(seed)
    fixed = item["fixed"][None]
    knots = [max(4, n // 24) for n in fixed.shape[2:]]
    velocity = resize(torch.randn(1, 2, *knots, generator=generator), fixed.shape[2:])
    velocity = 2.5 * velocity / velocity.norm(dim=1).mean()  # pixels, on average
    moving = warp(fixed, integrate(velocity))
    noisy = [
        (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        for image in (moving, fixed)
    ]
    return *noisy, integrate(-velocity), item["fixed_label"][None] > 0


pairs = [known(test_pairs[n], 100 + n) for n in range(len(test_pairs))]
moving, fixed, truth, inside = pairs[0]

# %%
from course_utils.plotting import panel

far = truth.norm(dim=1)[0]
panel(
    {"moving": moving[0, 0], "fixed": fixed[0, 0], "true distance, pixels": far}, **cohort.info.view
)

# %% [markdown]
# ## A distribution, by hand
#
# The network predicts two numbers for each component of each pixel's velocity: a mean $\mu$ and a variance $\sigma^2$. In training
# the velocity is *drawn*, $v = \mu + \sigma\,\varepsilon$ with $\varepsilon$ normal, so that the gradient reaches both. Two terms pull
# at them:
#
# - the **images**: $\lVert f - m\circ\exp(v)\rVert^2 / 2\sigma_I^2$, smaller where the draw fits. It wants a small $\sigma$;
# - the **prior**: before the images are seen, neighbours differ little and nothing else is known, $p(v)\propto\exp(-\tfrac{\lambda}{2}\sum_{i\sim
#   j}(v_i-v_j)^2)$. The divergence of the prediction from it is, with $d$ the number of a pixel's neighbours,
#
# $$\tfrac12\sum_i\bigl(\lambda d_i\sigma_i^2-\log\sigma_i^2\bigr)+\tfrac{\lambda}{2}\sum_{i\sim j}(\mu_i-\mu_j)^2 .$$
#
# The last sum is the smoothness of notebook 05. The first is new.
#
# **Predict:** if the images say nothing, which $\sigma$ makes it smallest, for $\lambda=10$ and the 4 neighbours of a pixel?
#
# > *My prediction:*

# %%
precision, neighbours = 10.0, 4
variance = torch.linspace(0.002, 0.2, 2000)
cost = (precision * neighbours * variance - variance.log()) / 2
alone = variance[cost.argmin()].sqrt().item()
by_formula = (precision * neighbours) ** -0.5
print(f"standard deviation of the prior alone: {alone:.3f} pixel; ", end="")
print(f"1 / sqrt(precision x neighbours) = {by_formula:.3f}")
assert abs(alone - by_formula) < 0.003

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# 0.158 pixel. The derivative of $\lambda d\sigma^2 - \log\sigma^2$ by $\sigma^2$ is zero where $\sigma^2 = 1 / (\lambda d)$, so
# $\sigma = 1 / \sqrt{10 \cdot 4}$.
#
# </details>
#
# Remember this number. It knows nothing of any image. The tested version of the divergence is `losses.velocity_divergence`; against a
# multivariate normal distribution of PyTorch it differs by a constant, as it should:

# %%
from torch.distributions import MultivariateNormal, kl_divergence

from course_utils.losses import velocity_divergence

chain = 2 * torch.eye(5) - torch.diag(torch.ones(4), 1) - torch.diag(torch.ones(4), -1)
chain[0, 0] = chain[-1, -1] = 1  # five pixels in a row: those at the ends have one neighbour
prior = MultivariateNormal(torch.zeros(5), precision_matrix=precision * chain + 1e-4 * torch.eye(5))
constants = []
for seed in range(3):
    mean, log_variance = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    whole = kl_divergence(MultivariateNormal(mean, torch.diag(log_variance.exp())), prior)
    ours = 5 * velocity_divergence(mean.view(1, 1, 5), log_variance.view(1, 1, 5), precision)
    constants.append((whole - ours).item())
print("PyTorch's divergence minus ours:", [round(value, 2) for value in constants])
assert max(constants) - min(constants) < 0.02

# %% [markdown]
# ## Three ways to be uncertain
#
# - the **probabilistic** network, and the spread of twelve samples of its distribution;
# - an **ensemble**: three plain networks, alike but for the seed of their first weights and of their pairs, and their spread;
# - the **residual**, which needs no theory: how much the moved image and the fixed image still differ around a pixel, on average over
#   a window of 9 x 9. Anybody can look at it. It is the control.
#
# **Predict:** are the errors of the first two larger or smaller than the spread that they state?
#
# > *My prediction:*

# %%
import shutil

from course_utils.networks import NetworkSpec
from course_utils.objectives import EvidenceBound, pair_objective
from course_utils.training import TrainConfig, fit

STEPS = 250


def trained(name, architecture, objective, seed):
    out = session.runs / "how_certain" / f"{name}_{seed}"
    shutil.rmtree(out, ignore_errors=True)
    return fit(
        NetworkSpec(architecture, {"spatial_dims": 2}).build(seed),
        objective,
        train_pairs,
        val_pairs,
        out,
        TrainConfig(steps=STEPS, batch_size=4, validations=1, seed=seed),
        card=cohort.info.card(),
        device=session.device,
        hooks=[],
    ).model.eval()


# %%
bound = EvidenceBound(image_sigma=0.02, prior_precision=precision, coarseness=2)
probabilistic = trained("probabilistic", "probabilistic", bound, session.seed)
plain = pair_objective("ssd", smoothness=0.05, coarseness=2)
ensemble = [trained("plain", "voxelmorph", plain, session.seed + n) for n in range(3)]

# %%
from course_utils.uncertainty import spread


@torch.no_grad()
def answers(method, moving, fixed):
    """Mean displacement and its spread, (1, 2, H, W) and (1, 1, H, W) pixels."""
    images = moving.to(session.device), fixed.to(session.device)
    if method == "probabilistic":
        torch.manual_seed(session.seed)
        fields = [sample.displacement.cpu() for sample in probabilistic.sample(*images, 12)]
    else:
        fields = [network(*images).displacement.cpu() for network in ensemble]
    return torch.stack(fields).mean(0), spread(fields)


# %%
from course_utils.fields import box_mean

inside_of = [inside for *_, inside in pairs]  # what is measured: the pixels that lie in a structure
truths = [truth for _, _, truth, _ in pairs]
given = {
    name: [answers(name, m, f) for m, f, *_ in pairs] for name in ("probabilistic", "ensemble")
}
errors = {
    name: [(u - t).norm(dim=1, keepdim=True) for (u, _), t in zip(given[name], truths, strict=True)]
    for name in given
}
spreads = {name: [each for _, each in given[name]] for name in given}
spreads["residual"] = [
    box_mean((warp(m, u) - f).abs(), 9)
    for (m, f, *_), (u, _) in zip(pairs, given["ensemble"], strict=True)
]
errors["residual"] = errors["ensemble"]  # it asks where the ensemble's mean is wrong


def pixels(maps, part=slice(None)):
    """The values of some pairs' maps inside the structures, in one row."""
    both = list(zip(maps, inside_of, strict=True))[part]
    return torch.cat([each[inside] for each, inside in both])


# %%
before = pixels([truth.norm(dim=1, keepdim=True) for truth in truths]).mean()
print(f"true distance, mean: {before:.2f} pixels before registration")
for name in given:
    error, said = pixels(errors[name]).mean(), pixels(spreads[name]).mean()
    print(f"{name:<14} error {error:.2f}, spread {said:.2f} pixels")
    assert error > said

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Larger, for both; the two lines above say by how much. What a network cannot know it does not count: its spread comes from its prior, or from what three
# networks with the same loss and the same data do differently.
#
# </details>
#
# Where does each say that it is uncertain, and where is it wrong? The next figure shows it for one pair. Each picture has its own scale of
# brightness, because only the *pattern* is asked for here.
#
# **Predict:** which of the three looks most like the error?
#
# > *My prediction:*

# %%
pictures = {"error of the ensemble": errors["ensemble"][0]}
pictures |= {f"{name}: what it says": spreads[name][0] for name in spreads}
panel(
    {name: (each * inside)[0, 0] for name, each in pictures.items()},
    **cohort.info.view,
    cmap="magma",
    columns=2,
)

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# The residual, in most places; the rank correlations below say the same in numbers. The probabilistic network's answer is nearly the same
# everywhere.
#
# </details>
#
# ## Is it true? Three questions
#
# **Order.** Are the places where the spread is large those where the error is? A rank correlation answers, 0 for chance.
#
# **Size.** Are the errors as large as the spread says? If not, one factor can mend it, the *temperature*. It is fitted on half of
# the pairs and used on the other half. (The residual is in units of intensity, so it means nothing without one.)
#
# **Coverage.** Does the region that should hold 95 % of the truth hold 95 %?
#
# **Predict:** what share of the truth does that region hold, before the temperature?
#
# > *My prediction:*

# %%
import pandas as pd
from scipy.stats import spearmanr

from course_utils.uncertainty import coverage, temperature

first, second = slice(len(pairs) // 2), slice(len(pairs) // 2, None)
rows = {}
for name in spreads:
    factor = temperature(pixels(spreads[name], first), pixels(errors[name], first))
    said, wrong = pixels(spreads[name], second), pixels(errors[name], second)
    rows[name] = {
        "rank correlation": spearmanr(said, wrong).statistic,
        "coverage of 95 %": coverage(said, wrong, 2),
        "temperature": factor,
        "coverage with it": coverage(factor * said, wrong, 2),
    }
verdict = pd.DataFrame(rows).T
verdict.round(2)

# %%
rank, factor = verdict["rank correlation"], verdict["temperature"]
assert (verdict["coverage of 95 %"] < 0.6).all()  # much too sure of themselves
assert (verdict["coverage with it"] > 0.75).all()
assert factor["probabilistic"] > factor["ensemble"] > 1.5
assert rank["residual"] > max(rank["probabilistic"], rank["ensemble"]) + 0.1
with torch.no_grad():
    images = moving.to(session.device), fixed.to(session.device)
    own = probabilistic.distribution(*images)[1].div(2).exp()
low, high = (own.quantile(q).item() for q in (0.05, 0.95))
print(f"standard deviation, in pixels of the network's grid: prior alone {alone:.3f}")
print(f"probabilistic network {own.mean():.3f}, nine pixels of ten from {low:.3f} to {high:.3f}")
assert 0.6 * alone < own.mean() < 1.5 * alone

# %%
from course_utils.plotting import Figure
from course_utils.uncertainty import reliability

figure = Figure(figsize=(7.5, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
for name, colour, marker in zip(spreads, ("#D55E00", "#0072B2", "#009E73"), "osd", strict=True):
    said, wrong = pixels(spreads[name], second), pixels(errors[name], second)
    for axes, scale in ((left, 1.0), (right, factor[name])):
        if axes is left and name == "residual":
            continue  # it has another unit
        table = reliability(scale * said, wrong)
        axes.plot(table.spread, table.error, marker=marker, color=colour, label=name)
for axes, title in ((left, "as it is said"), (right, "with a temperature")):
    end = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, end], [0, end], color="0.6", linewidth=1, linestyle="--")
    axes.set(xlabel="spread, pixels", ylabel="error (root mean square), pixels", title=title)
    axes.spines[["top", "right"]].set_visible(False)
right.legend(frameon=False)
figure

# %% [markdown]
# <details>
# <summary>Compare with your prediction</summary>
#
# Less than 60 % for each of them, as the table says: they are much too sure of themselves. With a temperature the share rises above 75 %,
# because one factor makes the regions larger.
#
# </details>
#
# Each point is a tenth of the pixels, in the order of what was said of them. On the dashed line, errors are as large as the spread.
# Left, both methods lie far above it: **they are wrong by much more than they say**. Right, one factor brings them to the line on
# average. It cannot bend a curve: where it is flat, the spread does not know where the errors are. The residual's curve climbs.
#
# So, honestly:
#
# - The **probabilistic** network's spread is close to the prior's own number. That is no fault of the training. Its distribution treats
#   each pixel as independent of its neighbours, and an image says little about *one* pixel's velocity; so the prior decides. Its samples
#   are noise from pixel to pixel, as users of voxelmorph have noticed.
# - The **ensemble** says more, at three times the cost of training, and is too sure of itself as well: networks with one loss
#   and one data set make the same mistakes.
# - None of this is a matter of more samples (50 instead of 12), of the other published setting ($\sigma_I=0.01$, $\lambda=25$) or of the
#   seed: [measured](../docs/results.md), in volumes of hippocampi too (rank correlations of −0.02 and 0.1, where the residual has 0.5).
#   An ensemble of five knows more than one of three, and nearly as much as the residual.
# - The **residual** knows best where the field is wrong, and it costs nothing. What it cannot see are errors along structures that look
#   alike. Between *pairs* it is no guide either (notebook 16): within one image it compares places, not scans.
# - Before a spread is shown to a surgeon, it needs a temperature, fitted on cases with a known truth, and a reliability diagram,
#   and a control as simple as this one.
#
# ## The same in MONAI
#
# MONAI has no registration network that answers with a distribution. But its `VoxelMorphUNet` takes a `dropout`, and a network whose
# dropout layers stay switched on answers differently each time: these are Monte Carlo samples. `MeanEnsemble` takes their mean. The network
# below is untrained, so the numbers mean nothing yet:

# %%
import warnings

from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet
from monai.transforms import MeanEnsemble

warnings.filterwarnings("ignore", message=".*native grid_sample")
torch.manual_seed(session.seed)
narrow = VoxelMorphUNet(
    2, 2, 16, channels=(16, 16, 16, 16), final_conv_channels=(16, 16), dropout=0.2
)
theirs = MonaiVoxelMorph(narrow, spatial_dims=2).eval()
for layer in theirs.modules():
    if isinstance(layer, torch.nn.Dropout2d | torch.nn.Dropout):
        layer.train()
with torch.no_grad():
    samples = torch.stack([theirs(moving, fixed)[1] for _ in range(12)])  # (12, 1, 2, H, W)
centre, wide = MeanEnsemble()(samples), spread(samples)
print(f"twelve answers: mean spread {wide.mean():.4f} pixel, of a mean displacement of", end=" ")
print(f"{centre.norm(dim=1).mean():.4f} pixel")
assert torch.allclose(centre, samples.mean(0)) and wide.mean() > 0

# %% [markdown]
# **The same elsewhere.** voxelmorph (TensorFlow): `--use-probs --legacy-image-sigma 0.02 --kl-lambda 10 --lambda 1`; there the two
# terms are both means, here each counts by its number of voxels, as in the sum that the paper derives.
#
# **What you now have.** Three numbers that judge any method's uncertainty, and a control that costs nothing and must be beaten.
#
# **What can go wrong.** A map of "uncertainty" is shown without comparing it with errors. The divergence is weighed twice: voxelmorph's
# script multiplies it by `--lambda`, whose default is 0.01 and must be 1 then. The sample with the best likeness is read as "the
# answer". A mean of the displacements of different maps is taken for a map: it may fold where none of them does.
#
# **Try it.**
# 1. *(easy)* Train with `image_sigma=0.1`. What happens to the error, and what to the spread?
# 2. *(middle)* Smooth each sample's noise by the prior (solve with the Laplacian instead of drawing pixel by pixel). Does the rank
#    correlation rise?
# 3. *(hard)* Add a fourth and a fifth member to the ensemble. When does the rank correlation stop growing?
#
# **References.** Dalca et al., *Unsupervised learning for fast probabilistic diffeomorphic registration*, MICCAI 2018,
# https://doi.org/10.1007/978-3-030-00928-1_82. Lakshminarayanan, Pritzel and Blundell, *Simple and scalable predictive uncertainty
# estimation using deep ensembles*, NeurIPS 2017, https://doi.org/10.48550/arXiv.1612.01474. Guo et al., *On calibration of modern neural
# networks*, ICML 2017, https://doi.org/10.48550/arXiv.1706.04599. Luo et al., *On the applicability of registration uncertainty*, MICCAI 2019.
#
# Next: [20 HyperMorph](20_hypermorph.ipynb): one network for every weight of the smoothness.
