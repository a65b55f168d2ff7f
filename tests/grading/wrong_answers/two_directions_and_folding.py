"""Wrong answers to assignment 6."""

BOTH = "there, back = integrate(network(moving, fixed)), integrate(network(fixed, moving))\n"
ORDERS = "first, second = compose(there, back), compose(back, there)\n"
CORNERS = """\
rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in displacement.shape[2:]), indexing="ij")
place = displacement + torch.stack([rows, columns])
a, b, c, d = place[..., :-1, :-1], place[..., :-1, 1:], place[..., 1:, :-1], place[..., 1:, 1:]
def area(p, q, r):
    e, f = q - p, r - p
    return e[:, 0] * f[:, 1] - e[:, 1] * f[:, 0]
"""
IDENTITY = "x, y, z = (derivative + torch.eye(3)[axis] for axis, derivative in enumerate((x, y, z)))\n"
FOUND = """\
one = x[..., 0] * (y[..., 1] * z[..., 2] - y[..., 2] * z[..., 1])
two = x[..., 1] * (y[..., 0] * z[..., 2] - y[..., 2] * {}[..., 0])
three = x[..., 2] * (y[..., 0] * z[..., 1] - y[..., 1] * z[..., 0])
"""

WRONG = [
    ("from-home", BOTH + "return (there + back).norm(dim=1).mean().item()", "maps are composed"),
    (
        "from-home",
        "return compose(network(moving, fixed), network(fixed, moving)).norm(dim=1).mean().item()",
        "not integrated",
    ),
    (
        "from-home",
        "return integrate(network(moving, fixed) + network(fixed, moving)).norm(dim=1).mean().item()",
        "not the composition",
    ),
    (
        "from-home",
        "v = network(moving, fixed)\nreturn compose(integrate(v), integrate(-v)).norm(dim=1).mean().item()",
        "inverses for any network",
    ),
    ("from-home", BOTH + "return compose(back, there).norm(dim=1).mean().item()", "the other way round"),
    ("from-home", BOTH + "return compose(there, there).norm(dim=1).mean().item()", "twice in the same order"),
    ("from-home", BOTH + "return compose(there, back).norm(dim=1).max().item()", "the largest distance"),
    ("from-home", BOTH + "return compose(there, back).abs().mean().item()", "a vector has one length"),
    ("from-home", BOTH + "return compose(there, back).square().sum(1).mean().item()", "not a distance"),
    ("from-home", BOTH + "return compose(there, back).norm(dim=1).mean()", "plain number"),
    ("antisymmetric", "return lambda m, f: (network(m, f) + network(f, m)) / 2", "half of the sum is symmetric"),
    ("antisymmetric", "return lambda m, f: network(m, f) - network(f, m)", "halve it"),
    ("antisymmetric", "return lambda m, f: (network(f, m) - network(m, f)) / 2", "the sign is wrong"),
    ("antisymmetric", "return network", "as it was"),
    ("antisymmetric", "return lambda m, f: network(f, m)", "for the swapped images"),
    ("antisymmetric", "return network(moving, fixed) - network(fixed, moving)", "define one and return it"),
    ("antisymmetric", "return lambda m, f: network(m, f) / 2", "only the halved answer"),
    (
        "both-ways",
        "return similarity(warp(moving, integrate(velocity)), fixed)"
        " + similarity(warp(fixed, integrate(-velocity)), moving)",
        "not their mean",
    ),
    ("both-ways", "return similarity(warp(moving, integrate(velocity)), fixed)", "only the way there"),
    ("both-ways", "return similarity(warp(fixed, integrate(-velocity)), moving)", "only the way back"),
    (
        "both-ways",
        "u = integrate(velocity)\n"
        "return (similarity(warp(moving, u), fixed) + similarity(warp(fixed, -u), moving)) / 2",
        "not the inverse map",
    ),
    (
        "both-ways",
        "u = integrate(velocity)\nreturn (similarity(warp(moving, u), fixed) + similarity(warp(fixed, u), moving)) / 2",
        "by v, and not by -v",
    ),
    (
        "both-ways",
        "u, w = integrate(velocity), integrate(-velocity)\n"
        "return (similarity(warp(moving, u), fixed) + similarity(warp(moving, w), fixed)) / 2",
        "backwards the fixed image is",
    ),
    (
        "both-ways",
        "u, w = integrate(velocity), integrate(-velocity)\n"
        "return (similarity(fixed, warp(moving, u)) + similarity(moving, warp(fixed, w))) / 2",
        "the moved image comes first",
    ),
    ("icon", "return compose(there, back).square().sum(1).mean()", "begin with the way back too"),
    ("icon", "return compose(back, there).square().sum(1).mean()", "begin with the way there too"),
    (
        "icon",
        ORDERS + "return first.square().sum(1).mean() + second.square().sum(1).mean()",
        "the sum of the two orders",
    ),
    ("icon", "return (there + back).square().sum(1).mean()", "maps are composed"),
    ("icon", ORDERS + "return (first.square().mean() + second.square().mean()) / 2", "summed, not averaged"),
    ("icon", ORDERS + "return (first.norm(dim=1).mean() + second.norm(dim=1).mean()) / 2", "squared first"),
    ("icon", ORDERS + "return (first.square().sum() + second.square().sum()) / 2", "summed over the voxels"),
    (
        "icon",
        "from course_utils.objectives.two_directions import inconsistency\nreturn inconsistency(there, back)",
        "your own code",
    ),
    ("unpunished", "return torch.zeros(1, 2, 16, 16), torch.ones(1, 2, 16, 16)", "zero everywhere"),
    ("unpunished", "return torch.ones(1, 2, 16, 16), -torch.ones(1, 2, 16, 16)", "must not be inverses"),
    (
        "unpunished",
        "u = torch.arange(16.0).expand(1, 2, 16, 16) / 4\nreturn u, u",
        "may not change",
    ),
    ("unpunished", "return torch.ones(2, 16, 16), torch.ones(2, 16, 16)", "two tensors"),
    (
        "triangles",
        CORNERS.replace("displacement + torch.stack([rows, columns])", "displacement")
        + "return torch.stack([area(a, c, b), area(d, b, c)], 1)",
        "the displacement alone",
    ),
    ("triangles", CORNERS + "return torch.stack([area(a, b, c), area(d, c, b)], 1)", "the sign is wrong"),
    (
        "triangles",
        CORNERS.replace("[rows, columns]", "[columns, rows]") + "return torch.stack([area(a, c, b), area(d, b, c)], 1)",
        "the pixel's row belongs to it",
    ),
    ("triangles", CORNERS + "return torch.stack([area(a, c, b), area(d, b, c)], 1) / 2", "not twice the areas"),
    ("triangles", CORNERS + "return torch.stack([area(a, c, b), area(a, c, b)], 1)", "at the first corner"),
    ("triangles", CORNERS + "return torch.stack([area(a, c, b), area(d, c, b)], 1)", "runs the same way round"),
    ("triangles", CORNERS + "return torch.stack([area(d, b, c), area(a, c, b)], 1)", "are exchanged"),
    ("triangles", CORNERS + "return torch.stack([area(a, c, b), area(d, b, c)], 1).abs()", "lost their signs"),
    ("turned", "return (areas < 0).float().mean()", "how many are turned over"),
    ("turned", "return -areas[areas < 0].mean()", "not over those that are folded"),
    ("turned", "return (-areas).clamp(min=0).sum()", "take the mean"),
    ("turned", "return areas.clamp(max=0).mean()", "a penalty grows"),
    ("turned", "return areas.clamp(min=0).mean()", "not turned over"),
    ("turned", "return -areas.mean()", "outweigh the folds"),
    ("turned", "return (-areas).clamp(min=0).detach().mean().clone().requires_grad_()", "the gradient"),
    ("mended", FOUND.format("x") + "return one - two + three", "nothing is mended yet"),
    ("mended", FOUND.format("z") + "return one - two + three", "its derivative has 1"),
    ("mended", IDENTITY + FOUND.format("x") + "return one - two + three", "one letter is still wrong"),
    ("mended", IDENTITY + FOUND.format("y") + "return one - two + three", "compare the three lines"),
    (
        "mended",
        "x, y, z = x + 1, y + 1, z + 1\n" + FOUND.format("z") + "return one - two + three",
        "all three components",
    ),
    ("mended", FOUND.format("z") + "return one - two + three + 1", "not to the derivatives"),
    (
        "mended",
        "return torch.linalg.det(torch.stack([x, y, z], dim=-1) + torch.eye(3))",
        "your own code",
    ),
]
