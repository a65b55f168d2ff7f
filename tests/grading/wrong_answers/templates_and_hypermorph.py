"""Wrong answers to assignment 7."""

MOVED = "weight, moved = jacobian_determinant(displacements), warp(images, displacements)\n"
SHARES = "shares = torch.stack([(labels[:, 0] == value).float().mean(0) for value in values])\n"
BEST = "best = torch.tensor(list(values))[shares.argmax(0)][None]\n"
VOTED = """\
scores = []
for person in range(len(labels)):
    others = {others}
    scores.append(dice(vote(others, values)[None], labels[person : person + 1], {structures}).nanmean().item())
return scores
"""
REST = "torch.cat([labels[:person], labels[person + 1 :]])"
STRUCTURES = "[value for value in values if value]"
NORMAL = """\
axes = tuple(range(2, features.ndim))
variance, mean = torch.var_mean(features, {axes}, correction=0, keepdim=True)
normal = (features - mean) / (variance + 1e-5).sqrt()
gamma, beta = (each.view(*each.shape, *[1] * len(axes)) for each in (gamma, beta))
"""
USUAL = NORMAL.format(axes="axes")
SHARE = "batch = len(displacements)\nnow = count + batch\nshare = min(1.0, {share})\n"
NEW = "return (1 - share) * mean + share * displacements.mean(0), now"

WRONG = [
    ("average", "return warp(images, displacements).mean(0, keepdim=True)", "the plain mean"),
    (
        "average",
        MOVED + "return (weight * images).sum(0, keepdim=True) / weight.sum(0, keepdim=True)",
        "are not warped",
    ),
    ("average", MOVED + "return (weight * moved).sum(0, keepdim=True)", "is missing below"),
    ("average", MOVED + "return (weight * moved).mean(0, keepdim=True)", "not by the sum of the weights"),
    (
        "average",
        MOVED + "return warp(images * weight, displacements).sum(0, keepdim=True) / weight.sum(0, keepdim=True)",
        "weighted before it is warped",
    ),
    (
        "average",
        MOVED + "return (moved / weight).sum(0, keepdim=True) / (1 / weight).sum(0, keepdim=True)",
        "where a person is squeezed",
    ),
    (
        "centred",
        "return displacements - displacements.mean(tuple(range(2, displacements.ndim)), True)",
        "over the people",
    ),
    ("centred", "return displacements - displacements.mean()", "one number was taken"),
    ("centred", "return displacements - displacements.mean((0, 1), keepdim=True)", "each component has its own"),
    ("centred", "return displacements - displacements.mean(1, keepdim=True)", "it is over the people"),
    ("centred", "return displacements - displacements[:1]", "the first person became"),
    ("centred", "return displacements - displacements.sum(0, keepdim=True)", "the sum was taken away"),
    ("centred", "return displacements.mean(0, keepdim=True).repeat(len(displacements), 1, 1, 1)", "common part itself"),
    (
        "stream",
        SHARE.format(share="batch / min(now, cap)") + "return (1 - share) * mean + share * displacements.mean(0), "
        "min(now, cap)",
        "not of the count that is returned",
    ),
    (
        "stream",
        SHARE.format(share="batch / min(now, cap)")
        + "return (1 - share) * mean + share * displacements.mean(0), count",
        "the count is the old one",
    ),
    ("stream", SHARE.format(share="batch / now") + NEW, "the cap does nothing"),
    ("stream", SHARE.format(share="batch / max(1, min(count, cap))") + NEW, "not counted in the weight"),
    ("stream", SHARE.format(share="1 / min(now, cap)") + NEW, "four people"),
    (
        "stream",
        SHARE.format(share="batch / min(now, cap)") + "return share * mean + (1 - share) * displacements.mean(0), now",
        "the weights are exchanged",
    ),
    (
        "stream",
        SHARE.format(share="batch / min(now, cap)") + "return (1 - share) * mean + share * displacements.sum(0), now",
        "the batch's sum enters",
    ),
    ("stream", SHARE.format(share="1") + NEW, "the old mean was replaced"),
    ("winner", SHARES + "return shares, shares.argmax(0)[None]", "places in `values`"),
    ("winner", SHARES + BEST + "return shares * len(labels), best", "those are counts"),
    ("winner", SHARES + "return shares, labels.float().mean(0).round().long()", "is no label"),
    (
        "winner",
        SHARES + BEST + "return torch.stack([(labels[:, 0] == v).float().mean(0) for v in sorted(values)]), best",
        "the order of the values' size",
    ),
    ("winner", SHARES + "return shares, labels.amax(0)", "the largest value that anybody has"),
    ("winner", SHARES + "return shares, labels[0]", "the first person's map"),
    (
        "winner",
        SHARES + "return shares, torch.tensor(list(values)[::-1])[shares.flip(0).argmax(0)][None]",
        "at a tie",
    ),
    ("winner", SHARES + BEST + "return shares.amax(0, keepdim=True), best", "keep those of all values"),
    ("left-out", VOTED.format(others="labels", structures=STRUCTURES), "leave them out"),
    ("left-out", VOTED.format(others=REST, structures="values"), "leave 0 out of the Dice"),
    ("left-out", VOTED.format(others="labels[person : person + 1]", structures=STRUCTURES), "the person alone votes"),
    (
        "left-out",
        VOTED.format(others=REST, structures=STRUCTURES).replace("return scores", "return sum(scores) / len(scores)"),
        "each person has one",
    ),
    (
        "left-out",
        VOTED.format(others="labels[[(person + 1) % len(labels)]]", structures=STRUCTURES),
        "only the next person",
    ),
    ("left-out", VOTED.format(others=REST + "[:1]", structures=STRUCTURES), "the first of the others"),
    ("weight", "return share", "lambda itself"),
    ("weight", "return 1 - share", "the weight of the similarity"),
    ("weight", "return (1 - share) / max(share, 1e-9)", "the other way round"),
    ("weight", "return share / (1 + share)", "not by 1 - lambda"),
    ("film", USUAL + "return normal * gamma + beta", "a gamma of 0 changes nothing"),
    ("film", USUAL + "return features * (1 + gamma) + beta", "are not normalised"),
    ("film", USUAL + "return normal * (1 + beta) + gamma", "are exchanged"),
    ("film", NORMAL.format(axes="(0, *axes)") + "return normal * (1 + gamma) + beta", "not the whole batch"),
    ("film", NORMAL.format(axes="(1, *axes)") + "return normal * (1 + gamma) + beta", "not all of an image"),
    ("film", USUAL + "return normal * (1 + gamma)", "beta is missing"),
    ("film", USUAL + "return (normal + beta) * (1 + gamma)", "scaled after"),
    ("film", USUAL + "return (features - mean) * (1 + gamma) + beta", "the deviation is still there"),
    ("film", USUAL + "return normal * (1 + gamma[:1]) + beta[:1]", "were given to all"),
]
