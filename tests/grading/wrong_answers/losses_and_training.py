"""Wrong answers to assignment 5."""

BOX = """\
pool = F.avg_pool2d if moved.ndim == 4 else F.avg_pool3d

def box(image):
    return pool(image, window, stride=1, padding=window // 2, count_include_pad=False)

m, f = moved - moved.mean(), fixed - fixed.mean()
covariance = box(m * f) - box(m) * box(f)
variance_m = (box(m * m) - box(m) ** 2).clamp(min=0)
variance_f = (box(f * f) - box(f) ** 2).clamp(min=0)
"""
SUMS = """\
axes = tuple(range(2, moved.ndim))
both, sizes = (moved * fixed).sum(axes), (moved.square() + fixed.square()).sum(axes)
present = sizes > 0
"""
FORWARD = """\
found = model(moving, fixed)
moved, displacement, velocity = found.moved, found.displacement, found.velocity
"""
LOSS = "loss = ssd_loss(moved, fixed) + smoothness * diffusion_loss(velocity)\n"
UPDATE = "optimizer.zero_grad()\nloss.backward()\noptimizer.step()\nreturn loss.item()"
MODEL = """\
torch.manual_seed(seed)
model = VoxelMorph(2)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
"""


def trained(loss, pairs="pairs"):
    """Fifty steps."""
    return f"""\
for batch in loader({pairs}, batch_size=4, stop=200):
    found, fixed = model(batch["moving"], batch["fixed"]), batch["fixed"]
    moved = found.moved
    loss = {loss}
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
return model
"""


WRONG = [
    ("ssd", "return (moved - fixed).square().sum()", "a sum in place of a mean"),
    ("ssd", "return (moved - fixed).abs().mean()", "the difference is not squared"),
    ("ssd", "return (moved - fixed).mean().square()", "the mean is squared"),
    ("ssd", "return (moved - fixed).square().mean().sqrt()", "the root makes it a distance"),
    ("ssd", "return (moved - fixed).square().mean((1, 2, 3))", "one number for each image"),
    ("ssd", "return (moved - fixed).square().sum((1, 2, 3)).mean()", "a sum over each image"),
    ("ssd", "return (moved - fixed).square().mean().item()", "it should be a Tensor and is a float"),
    ("ssd", "return (moved - fixed).square().mean().detach()", "no gradient flows"),
    (
        "ncc",
        BOX + "return 1 - (covariance / (variance_m * variance_f + 1e-8).sqrt()).mean()",
        "not squared: inverted contrast",
    ),
    (
        "ncc",
        BOX + "return 1 - (covariance / (variance_m * variance_f + 1e-8).sqrt()).abs().mean()",
        "only its sign is dropped",
    ),
    ("ncc", BOX + "return (covariance**2 / (variance_m * variance_f + 1e-8)).mean()", "that is a similarity"),
    ("ncc", BOX + "return -(covariance**2 / (variance_m * variance_f + 1e-8)).mean()", "1 is missing"),
    (
        "ncc",
        BOX.replace(", count_include_pad=False", "")
        + "return 1 - (covariance**2 / (variance_m * variance_f + 1e-8)).mean()",
        "zeros outside of the image count",
    ),
    (
        "ncc",
        BOX.replace(" - box(m) * box(f)", "").replace(" - box(m) ** 2", "").replace(" - box(f) ** 2", "")
        + "return 1 - (covariance**2 / (variance_m * variance_f + 1e-8)).mean()",
        "means over the window are not subtracted",
    ),
    (
        "ncc",
        BOX.replace("box(image):", "box(image, window=9):")
        + "return 1 - (covariance**2 / (variance_m * variance_f + 1e-8)).mean()",
        "the window is not used",
    ),
    (
        "ncc",
        BOX.replace("F.avg_pool2d if moved.ndim == 4 else F.avg_pool3d", "F.avg_pool2d")
        + "return 1 - (covariance**2 / (variance_m * variance_f + 1e-8)).mean()",
        "",  # right in 2-D
    ),
    ("diffusion", "return sum(field.diff(dim=a).square().mean() for a in range(2, field.ndim))", "the axes are added"),
    (
        "diffusion",
        "return sum(field.diff(dim=a).abs().mean() for a in range(2, field.ndim)) / (field.ndim - 2)",
        "not squared",
    ),
    (
        "diffusion",
        "return sum(field.diff(dim=a).square().sum() for a in range(2, field.ndim))",
        "a sum in place of a mean",
    ),
    ("diffusion", "return field.diff(dim=2).square().mean()", "only the first axis"),
    ("diffusion", "return field.square().mean()", "not their differences"),
    (
        "diffusion",
        "slopes = torch.gradient(field, dim=tuple(range(2, field.ndim)))\n"
        "return torch.stack([s.square().mean() for s in slopes]).mean()",
        "central differences see nothing",
    ),
    (
        "diffusion",
        "return sum(field.diff(n=2, dim=a).square().mean() for a in range(2, field.ndim)) / (field.ndim - 2)",
        "bending energy",
    ),
    (
        "diffusion",
        "return (field.diff(dim=2).square().mean() + field.diff(dim=3).square().mean()) / 2",
        "diffusion of a field (2, 3, 5, 8, 7)",
    ),
    ("soft-dice", SUMS + "return 1 - (both[present] / sizes[present]).mean()", "a factor of 2 is missing"),
    ("soft-dice", SUMS + "return (2 * both[present] / sizes[present]).mean()", "that is a score"),
    ("soft-dice", SUMS + "return 1 - (2 * both / sizes).mean()", "nan"),
    ("soft-dice", SUMS + "return 1 - (2 * both / sizes.clamp(min=1e-6)).mean()", "counts as a miss"),
    ("soft-dice", SUMS + "return 1 - ((2 * both + 1e-6) / (sizes + 1e-6)).mean()", "counts as a full match"),
    ("soft-dice", SUMS + "return 1 - 2 * both.sum() / sizes.sum()", "small ones then count for nothing"),
    (
        "soft-dice",
        SUMS.replace(".square()", "") + "return 1 - (2 * both[present] / sizes[present]).mean()",
        "are not squared",
    ),
    (
        "schedule",
        "return highest * min(1, step / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))",
        "has a rate of 0",
    ),
    ("schedule", "return highest * 0.5 * (1 + math.cos(math.pi * step / steps))", "the warm-up is missing"),
    (
        "schedule",
        "return highest * (step + 1) / warmup * 0.5 * (1 + math.cos(math.pi * step / steps))",
        "does not end",
    ),
    (
        "schedule",
        "return highest * min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps))",
        "the half is missing",
    ),
    (
        "schedule",
        "return highest * min(1, (step + 1) / warmup) * math.cos(math.pi * step / steps)",
        "becomes negative",
    ),
    (
        "schedule",
        "return highest * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(2 * math.pi * step / steps))",
        "a whole period",
    ),
    ("step", FORWARD + LOSS + UPDATE.removeprefix("optimizer.zero_grad()\n"), "gradients of earlier steps"),
    ("step", FORWARD + LOSS + UPDATE.replace("optimizer.step()\n", ""), "the weights do not change"),
    ("step", FORWARD + "loss = ssd_loss(moved, fixed)\n" + UPDATE, "not part of the loss"),
    ("step", FORWARD + LOSS.replace("smoothness * ", "") + UPDATE, "the smoothness is not weighted"),
    ("step", FORWARD + LOSS.replace("(velocity)", "(displacement)") + UPDATE, "the loss names the velocity"),
    ("step", FORWARD + LOSS.replace("+ smooth", "- smooth") + UPDATE, "smoothness is rewarded"),
    ("step", FORWARD + LOSS + UPDATE.replace(".item()", ""), ".item() makes one"),
    ("train", "return VoxelMorph(2)", "0 of the 800 pairs were asked for"),
    (
        "train",
        MODEL + "for batch in loader(pairs, batch_size=4, stop=8):\n    model(batch['moving'], batch['fixed'])",
        "return?",
    ),
    (
        "train",
        MODEL + "for batch in loader(pairs, batch_size=4):\n    pass\nreturn model",
        "the budget of 800 pairs is spent",
    ),
    (
        "train",
        MODEL + "for batch in loader(pairs, batch_size=4, stop=200):\n    pass\nreturn model",
        "the network does nothing",
    ),
    ("train", MODEL + trained("-ssd_loss(moved, fixed)"), "worse than nothing"),
    ("train", MODEL + trained("ssd_loss(moved, fixed) + 2 * diffusion_loss(found.velocity)"), "0.59 is asked for"),
    ("train", MODEL + trained("ssd_loss(moved, fixed)", "training_pairs"), "0 of the 800 pairs were asked for"),
    ("train", MODEL.replace("2e-3", "0.5") + trained("ssd_loss(moved, fixed)"), ""),
    ("train-well", "return VoxelMorph(2)", "0 of the 800 pairs were asked for"),
    ("train-well", MODEL + trained("ssd_loss(moved, fixed)"), "the mean of three seeds"),
]
