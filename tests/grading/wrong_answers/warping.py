"""Wrong answers to assignment 2."""

BILINEAR = """\
i, j = (min(int(p), n - 2) for p, n in zip(point, image.shape, strict=True))
a, b = point[0] - i, point[1] - j
"""
SAMPLE = """\
shape = image.shape[2:]
position = (identity_grid(shape) + displacement).movedim(1, -1)
grid = (2 * position / (torch.tensor(shape) - 1) - 1).flip(-1)
mode = "bilinear" if image.is_floating_point() else "nearest"
"""
SEARCH = """\
import itertools

best, least = field, -1.0
mm = torch.tensor(spacing).view(1, -1, *[1] * len(spacing))
for reverse, negate, scale in itertools.product((False, True), repeat=3):
    candidate = field
"""
JUDGE = """\
    moved = warp(moving_label, candidate, mode="nearest", padding="zeros")
    score = dice(moved, fixed_label, structures).nanmean().item()
"""

WRONG = [
    ("shift", "u = torch.zeros(1, len(shape), *shape)\nu[:, axis] = voxels\nreturn u", "the other way"),
    (
        "shift",
        "u = torch.zeros(1, len(shape), *shape)\nu[:, -1 - axis] = -voxels\nreturn u",
        "along axis 1: component c",
    ),
    ("shift", "return torch.full((1, len(shape), *shape), -float(voxels))", "all components move"),
    ("shift", "u = torch.zeros(len(shape), *shape)\nu[axis] = -voxels\nreturn u", "an axis of length 1 (batch"),
    ("shift", "u = identity_grid(shape)\nu[:, axis] -= voxels\nreturn u", "a position, x + u(x)"),
    (
        "interpolate",
        BILINEAR
        + "return float(a * b * image[i, j] + a * (1 - b) * image[i, j + 1] + (1 - a) * b * image[i + 1, j]"
        + " + (1 - a) * (1 - b) * image[i + 1, j + 1])",
        "the weights are exchanged",
    ),
    ("interpolate", "return float(image[round(point[0]), round(point[1])])", "nearest voxel"),
    ("interpolate", "return float(image[int(point[0]), int(point[1])])", "fractions are lost"),
    (
        "interpolate",
        BILINEAR + "return float(image[i : i + 2, j : j + 2].mean())",
        "all four voxels weigh the same",
    ),
    (
        "interpolate",
        "h, w = image.shape\npoint = torch.tensor([[[[2 * point[1] / (w - 1) - 1, 2 * point[0] / (h - 1) - 1]]]])\n"
        "return F.grid_sample(image[None, None], point, align_corners=True).item()",
        "your own code, and this uses grid_sample",
    ),
    ("interpolate", "return {(0.25, 1.5): 27.5, (2.0, 3.0): 95.0}[point]", "KeyError"),
    (
        "sampling-grid",
        "size = torch.tensor(shape)\nreturn 2 * position.movedim(1, -1) / (size - 1) - 1",
        "the last axis first",
    ),
    (
        "sampling-grid",
        "size = torch.tensor(shape)\nreturn (2 * position.movedim(1, -1) / size - 1).flip(-1)",
        "there are n - 1 voxels",
    ),
    (
        "sampling-grid",
        "size = torch.tensor(shape)\nreturn ((2 * position.movedim(1, -1) + 1) / size - 1).flip(-1)",
        "align_corners=False",
    ),
    (
        "sampling-grid",
        "size = torch.tensor(shape)\nreturn 2 * position.movedim(1, -1).flip(-1) / (size - 1) - 1",
        "scale first, then reverse",
    ),
    ("sampling-grid", "return position.movedim(1, -1).flip(-1)", "still voxels"),
    (
        "sampling-grid",
        "size = torch.tensor(shape)\nreturn (position.movedim(1, -1) / (size - 1)).flip(-1)",
        "from 0 to 1",
    ),
    (
        "sampling-grid",
        "size = torch.tensor(shape).view(1, -1, *[1] * len(shape))\nreturn (2 * position / (size - 1) - 1).flip(1)",
        "the axes are in another order",
    ),
    (
        "warp",
        SAMPLE + 'return F.grid_sample(image.float(), grid, mode=mode, padding_mode="border").to(image.dtype)',
        "without align_corners=True",
    ),
    (
        "warp",
        SAMPLE + "return F.grid_sample(image.float(), grid, mode=mode, align_corners=True).to(image.dtype)",
        "beyond the image there are zeros",
    ),
    (
        "warp",
        SAMPLE.replace("+ displacement", "- displacement")
        + 'moved = F.grid_sample(image.float(), grid, mode=mode, padding_mode="border", align_corners=True)\n'
        + "return moved.to(image.dtype)",
        "it reads at x - u(x)",
    ),
    (
        "warp",
        SAMPLE.replace("+ displacement", "+ displacement.flip(1)")
        + 'moved = F.grid_sample(image.float(), grid, mode=mode, padding_mode="border", align_corners=True)\n'
        + "return moved.to(image.dtype)",
        "in reverse order",
    ),
    (
        "warp",
        SAMPLE + 'return F.grid_sample(image.float(), grid, padding_mode="border", align_corners=True).to(image.dtype)',
        "labels are interpolated linearly and cut",
    ),
    (
        "warp",
        SAMPLE + 'return F.grid_sample(image.float(), grid, mode=mode, padding_mode="border", align_corners=True)',
        "give them back their type",
    ),
    (
        "warp",
        'from course_utils.fields import warp as sample\n\nreturn sample(image, displacement, mode="bilinear" '
        'if image.is_floating_point() else "nearest")',
        "your own code",
    ),
    (
        "jacobian",
        "slopes = torch.gradient(displacement, dim=tuple(range(2, displacement.ndim)))\n"
        "return torch.linalg.det(torch.stack(slopes, dim=-1).movedim(1, -2)).unsqueeze(1)",
        "the identity is missing",
    ),
    (
        "jacobian",
        "(a, c), (b, d) = (slope.unbind(1) for slope in torch.gradient(displacement, dim=(2, 3)))\n"
        "return ((1 + a) * (1 + d) + b * c).unsqueeze(1)",
        "the sign of the product off the diagonal",
    ),
    (
        "jacobian",
        "(a, c), (b, d) = (slope.unbind(1) for slope in torch.gradient(displacement, dim=(2, 3)))\n"
        "return (1 + a + d).unsqueeze(1)",
        "1 + the divergence",
    ),
    (
        "jacobian",
        "(a, c), (b, d) = (slope.unbind(1) for slope in torch.gradient(displacement, dim=(2, 3)))\n"
        "return ((1 + a) * (1 + d) - b * c).unsqueeze(1)",
        "",  # right in 2-D, and the hidden tests have volumes
    ),
    (
        "jacobian",
        "wide = F.pad(displacement, (0, 1, 0, 1), mode='replicate')\n"
        "(a, c), (b, d) = ((w - displacement).unbind(1) for w in (wide[:, :, 1:, :-1], wide[:, :, :-1, 1:]))\n"
        "return ((1 + a) * (1 + d) - b * c).unsqueeze(1)",
        "forward differences",
    ),
    (
        "jacobian",
        "slopes = torch.gradient(displacement, dim=tuple(range(2, displacement.ndim)))\n"
        "return torch.linalg.det(torch.stack(slopes, dim=-1).movedim(1, -2) + 1).unsqueeze(1)",
        "1 is added to every slope",
    ),
    ("compose", "return first + second", "displacements do not add"),
    ("compose", "return first + warp(second, first)", "the order is exchanged"),
    ("compose", "return warp(first, second)", "the outer step is missing"),
    ("compose", "return first + warp(second, second)", "u1 is read at x"),
    ("compose", "from course_utils.fields import compose\n\nreturn compose(first, second)", "it is one line with warp"),
    (
        "atrophy",
        "from course_utils.fields import jacobian_determinant\n\n"
        "return 100 * (1 / jacobian_determinant(displacement)[label == value].mean().item() - 1)",
        "the wrong way round",
    ),
    (
        "atrophy",
        "from course_utils.fields import jacobian_determinant\n\n"
        "return jacobian_determinant(displacement)[label == value].mean().item() - 1",
        "a share, not percent",
    ),
    (
        "atrophy",
        "from course_utils.fields import jacobian_determinant\n\n"
        "return 100 * (jacobian_determinant(displacement).mean().item() - 1)",
        "over the whole image",
    ),
    (
        "atrophy",
        "from course_utils.fields import jacobian_determinant\n\n"
        "return 100 * (jacobian_determinant(displacement)[label > 0].mean().item() - 1)",
        "label == value",
    ),
    (
        "atrophy",
        "from course_utils.fields import jacobian_determinant\n\n"
        "return 100 * jacobian_determinant(displacement)[label == value].mean().item()",
        "100 % too much",
    ),
    ("repair", "return field", "it comes back as it was sent"),
    (
        "repair",
        SEARCH
        + "    candidate = candidate.flip(1) if reverse else candidate\n"
        + "    candidate = -candidate if negate else candidate\n"
        + JUDGE
        + "    if score > least:\n        best, least = candidate, score\nreturn best",
        "it is still in mm",
    ),
    (
        "repair",
        SEARCH
        + "    candidate = candidate / mm if scale else candidate\n"
        + "    candidate = candidate.flip(1) if reverse else candidate\n"
        + "    candidate = -candidate if negate else candidate\n"
        + JUDGE
        + "    if score > least:\n        best, least = candidate, score\nreturn best",
        "order first, then unit",
    ),
    (
        "repair",
        SEARCH
        + "    candidate = candidate.flip(1) if reverse else candidate\n"
        + "    candidate = candidate / mm if scale else candidate\n"
        + JUDGE
        + "    if score > least:\n        best, least = candidate, score\nreturn best",
        "with wrong sign",
    ),
]

RIGHT = [
    (
        "jacobian",
        "u = displacement.double()\n"
        "slopes = torch.gradient(u, dim=tuple(range(2, u.ndim)))\n"
        "return torch.linalg.det(torch.stack(slopes, dim=-1).movedim(1, -2) + torch.eye(u.shape[1])).unsqueeze(1)",
    ),
]
"""Answers that differ from the reference and are right."""
