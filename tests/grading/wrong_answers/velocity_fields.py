"""Wrong answers to assignment 3."""

SAMPLES = 'samples = F.interpolate(field, size=tuple(shape), mode="bilinear" if len(shape) == 2 else "trilinear")\n'
FACTOR = "factor = torch.tensor([new / n for new, n in zip(shape, field.shape[2:], strict=True)])\n"
SCALED = "return samples * factor.view(1, -1, *[1] * len(shape))"
CHANGES = """\
for k in range(most + 1):
    change = integrate(velocity, k + 1) - integrate(velocity, k)
"""

WRONG = [
    ("euler", "return sum([velocity / steps] * steps)", "always read at the start"),
    (
        "euler",
        "u = torch.zeros_like(velocity)\nfor _ in range(steps):\n    u = u + warp(velocity, u)\nreturn u",
        "not divided by the steps",
    ),
    (
        "euler",
        "u = torch.zeros_like(velocity)\nfor _ in range(steps):\n    u = u + warp(velocity, -u) / steps\nreturn u",
        "read at x - u(x)",
    ),
    ("euler", "return integrate(velocity, steps)", "Euler takes equal steps"),
    ("euler", "return velocity / steps", "only one step"),
    (
        "exponential",
        "u = velocity / squarings\nfor _ in range(squarings):\n    u = compose(u, u)\nreturn u",
        "multiply the time by 2 ** K",
    ),
    (
        "exponential",
        "u = velocity / 2**squarings\nfor _ in range(squarings):\n    u = u + u\nreturn u",
        "a square is a composition",
    ),
    (
        "exponential",
        "u = velocity\nfor _ in range(squarings):\n    u = compose(u, u)\nreturn u",
        "not scaled before it is squared",
    ),
    (
        "exponential",
        "u = velocity / 2**squarings\nfor _ in range(squarings + 1):\n    u = compose(u, u)\nreturn u",
        "one squaring too many",
    ),
    (
        "exponential",
        "u = velocity / 2**squarings\nfor _ in range(squarings - 1):\n    u = compose(u, u)\nreturn u",
        "one squaring too few",
    ),
    (
        "exponential",
        "step = u = velocity / 2**squarings\nfor _ in range(squarings):\n    u = compose(step, u)\nreturn u",
        "6 small steps",
    ),
    (
        "exponential",
        "u = velocity / 2**squarings\nfor _ in range(squarings):\n    u = warp(u, u)\nreturn u",
        "without the outer step",
    ),
    ("exponential", "return integrate(velocity, squarings)", "your own code, and this uses integrate"),
    ("exponential", "import course_utils.fields as f\n\nreturn f.integrate(velocity, squarings)", "your own code"),
    (
        "exponential",
        "u = velocity / 2**5\nfor _ in range(5):\n    u = compose(u, u)\nreturn u",
        "exponential of a field",
    ),
    ("backwards", "return -integrate(velocity)", "minus the displacement is not the inverse"),
    ("backwards", "return integrate(velocity)", "that is the way there"),
    ("backwards", "return -velocity", "not integrated yet"),
    ("fixed-point", "return -displacement", "no iteration was made"),
    (
        "fixed-point",
        "w = -displacement\nfor _ in range(iterations):\n    w = -warp(w, displacement)\nreturn w",
        "the formula reads u at x + w(x)",
    ),
    (
        "fixed-point",
        "w = -displacement\nfor _ in range(iterations):\n    w = warp(displacement, w)\nreturn w",
        "a sign is lost",
    ),
    (
        "fixed-point",
        "w = torch.zeros_like(displacement)\nfor _ in range(iterations):\n    w = -warp(displacement, w)\nreturn w",
        "it starts at 0",
    ),
    ("residual", "return (there + back).norm(dim=1).mean().item()", "composed, not added"),
    ("residual", "return compose(back, there).norm(dim=1).mean().item()", "in the other order"),
    ("residual", "return compose(there, back).abs().mean().item()", "over the components too"),
    ("residual", "return compose(there, back).norm().item()", "as one vector"),
    ("residual", "return compose(there, back).norm(dim=1).max().item()", "the largest length"),
    ("residual", "return compose(there, back).norm(dim=1).sum().item()", "not their mean"),
    ("residual", "return compose(there, back).norm(dim=1).mean()", ".item() makes one"),
    (
        "resize",
        'return F.interpolate(field, size=tuple(shape), mode="bilinear" if len(shape) == 2 else "trilinear")',
        "still in voxels of the old grid",
    ),
    (
        "resize",
        SAMPLES + "factor = torch.tensor([n / new for new, n in zip(shape, field.shape[2:], strict=True)])\n" + SCALED,
        "the wrong way round",
    ),
    (
        "resize",
        SAMPLES + "return samples * shape[0] / field.shape[2]",
        "takes axis 0's for all",
    ),
    (
        "resize",
        SAMPLES + FACTOR + "return samples * factor.flip(0).view(1, -1, *[1] * len(shape))",
        "exchanged between the axes",
    ),
    (
        "resize",
        'mode = "bilinear" if len(shape) == 2 else "trilinear"\n'
        "samples = F.interpolate(field, size=tuple(shape), mode=mode, align_corners=True)\n" + FACTOR + SCALED,
        "keeps the outer centres",
    ),
    (
        "resize",
        "samples = F.interpolate(field, size=tuple(shape))\n" + FACTOR + SCALED,
        "nearest samples",
    ),
    ("halfway", "u = integrate(velocity)\nreturn warp(moving, u / 2), warp(fixed, -u / 2)", "and its negative"),
    (
        "halfway",
        "return warp(moving, integrate(velocity) / 2), warp(fixed, integrate(-velocity) / 2)",
        "is not the flow of half the time",
    ),
    (
        "halfway",
        "return warp(moving, integrate(velocity / 2)), warp(fixed, -integrate(velocity / 2))",
        "not by minus the displacement",
    ),
    (
        "halfway",
        "return warp(moving, integrate(velocity / 2)), warp(fixed, integrate(velocity / 2))",
        "they pass each other",
    ),
    ("halfway", "return warp(moving, integrate(velocity)), warp(fixed, integrate(-velocity))", "the whole way"),
    (
        "halfway",
        "return warp(moving, integrate(-velocity / 2)), warp(fixed, integrate(velocity / 2))",
        "the moving image follows v",
    ),
    (
        "enough",
        CHANGES + "    if change.norm(dim=1).max() <= tolerance:\n        return k + 1\nraise ValueError",
        "that is K + 1",
    ),
    (
        "enough",
        CHANGES + "    if change.norm(dim=1).mean() <= tolerance:\n        return k\nraise ValueError",
        "it should be so at every voxel",
    ),
    (
        "enough",
        CHANGES + "    if change.abs().max() <= tolerance:\n        return k\nraise ValueError",
        "the length of the vector counts",
    ),
    (
        "enough",
        CHANGES + "    if change.norm(dim=1).max() <= tolerance:\n        return k\nreturn most",
        "should be refused with a ValueError",
    ),
    ("enough", "return 7", "it should be 0"),
]
