"""Wrong answers to assignment 1."""

PAIRS = "pairs = {v: (moving_label == v, fixed_label == v) for v in structures}\n"
SEQUENCE = """\
def __init__(self, subjects, count, seed):
    self.subjects, self.count, self.seed = subjects, count, seed

def __len__(self):
    return self.count

def __getitem__(self, index):
"""
BOUNDS = """\
    if not 0 <= index < self.count:
        raise IndexError(index)
"""
NEIGHBOURS = "    return self.subjects[circle[index % n]], self.subjects[circle[(index + 1) % n]]\n"

WRONG = [
    ("world-coordinates", "return voxel @ affine[:3, :3] + affine[:3, 3]", "columns of the affine"),
    ("world-coordinates", "return affine[:3, :3] @ voxel", "voxel (0, 0, 0) is not added"),
    ("world-coordinates", "return np.linalg.solve(affine[:3, :3], voxel - affine[:3, 3])", "from mm to voxels"),
    ("world-coordinates", "return affine @ [*voxel, 1]", "its shape should be (3,) and is (4,)"),
    ("world-coordinates", "return np.array([72.5, -119.0, -32.5])", "another affine"),
    ("world-coordinates", "print(affine[:3, :3] @ voxel + affine[:3, 3])", "is there a return?"),
    ("voxel-size", "return np.linalg.norm(affine[:3, :3], axis=1)", "lengths of the rows"),
    ("voxel-size", "return np.diag(affine)[:3]", "not tilted only"),
    ("voxel-size", "return abs(np.diag(affine)[:3])", "whatever its sign"),
    ("voxel-size", "return (affine[:3, :3] ** 2).sum(axis=0)", "root of the sum of squares"),
    ("intensities", "return (image - image.min()) / (image.max() - image.min())", "one broken voxel spoils"),
    (
        "intensities",
        "low, high = np.percentile(image, (0.5, 99.5))\nreturn ((image - low) / (high - low)).float()",
        "not clipped",
    ),
    ("intensities", "return (image - image.mean()) / image.std()", "z-score"),
    ("intensities", "return (image / np.percentile(image, 99.5)).clip(0, 1).float()", "only the upper end"),
    (
        "intensities",
        "low, high = np.percentile(image, (0.5, 99.5))\nreturn ((image - low) / (high - low)).clip(0, 1).numpy()",
        "it should be a Tensor and is a ndarray",
    ),
    (
        "intensities",
        "low, high = np.percentile(image, (0.5, 99.5))\nreturn ((image.double() - low) / (high - low)).clip(0, 1)",
        "should be torch.float32 and is torch.float64",
    ),
    (
        "intensities",
        "from course_utils.data.recipe import normalise\nreturn normalise(image)",
        "asks for your own code",
    ),
    (
        "richest-slice",
        "k = int((label > 0).sum(dim=(0, 2, 3)).argmax())\nreturn k, image[:, k]",
        "sagittal slice (axis 0): the channel in front shifts",
    ),
    ("richest-slice", "k = int((label > 0).sum(dim=(0, 1, 2)).argmax())\nreturn k, image[..., k]", "axial slice"),
    (
        "richest-slice",
        "k = int(label.sum(dim=(0, 1, 3)).argmax())\nreturn k, image[:, :, k]",
        "structure 9 counts nine",
    ),
    ("richest-slice", "k = int((label > 0).sum(dim=(0, 1, 3)).argmax())\nreturn k, image[0, :, k]", "lost its channel"),
    ("richest-slice", "k = (label > 0).sum(dim=(0, 1, 3)).argmax()\nreturn k, image[:, :, k]", ".item() makes one"),
    (
        "volumes",
        "return {v: int((label == v).sum()) * float(np.prod(spacing)) for v in structures}",
        "that is mm³",
    ),
    ("volumes", "return {v: float((label == v).sum()) for v in structures}", "these are voxels"),
    (
        "volumes",
        "return {v: int(label[label == v].sum()) * float(np.prod(spacing)) / 1000 for v in structures}",
        "label values are added up",
    ),
    ("volumes", "return {v: int((label == v).sum()) * spacing[0] ** 3 / 1000 for v in structures}", "no cube"),
    (
        "volumes",
        "present = [v for v in structures if (label == v).any()]\n"
        "return {v: int((label == v).sum()) * float(np.prod(spacing)) / 1000 for v in present}",
        "its keys should be",
    ),
    (
        "split-pairs",
        "t = set(test_subjects)\nreturn [p for p in pairs if not t & set(p)], [p for p in pairs if t & set(p)]",
        "a pair with one test subject tests",
    ),
    (
        "split-pairs",
        "t = set(test_subjects)\nreturn [p for p in pairs if not t >= set(p)], [p for p in pairs if t >= set(p)]",
        "a pair with one test subject trains",
    ),
    (
        "split-pairs",
        "test = test_subjects\nreturn [p for p in pairs if p[0] not in test], [p for p in pairs if p[0] in test]",
        "only the first of the two",
    ),
    (
        "split-pairs",
        "t = set(test_subjects)\nreturn [p for p in pairs if t >= set(p)], [p for p in pairs if not t & set(p)]",
        "exchanged",
    ),
    (
        "split-pairs",
        "n = len(pairs) // 5\nreturn pairs[n:], pairs[:n]",
        "it should have",
    ),
    (
        "overlap",
        PAIRS
        + "return {v: int((a & b).sum()) / (int(a.sum() + b.sum()) or float('nan')) for v, (a, b) in pairs.items()}",
        "a factor of 2 is missing",
    ),
    (
        "overlap",
        PAIRS + "return {v: int((a & b).sum()) / (int((a | b).sum()) or float('nan')) for v, (a, b) in pairs.items()}",
        "Jaccard",
    ),
    (
        "overlap",
        PAIRS + "return {v: 2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1) for v, (a, b) in pairs.items()}",
        "nan, not 0",
    ),
    (
        "overlap",
        PAIRS + "return {v: 2 * int((a & b).sum()) / int(a.sum() + b.sum()) for v, (a, b) in pairs.items()}",
        "division by zero",
    ),
    (
        "overlap",
        PAIRS
        + "nan = float('nan')\n"
        + "return {v: 2 * int((a == b).sum()) / (int(a.sum() + b.sum()) or nan) for v, (a, b) in pairs.items()}",
        "background that agrees",
    ),
    (
        "random-pairs",
        SEQUENCE.replace(
            "self.seed = subjects, count, seed", "self.generator = subjects, count, np.random.default_rng(seed)"
        )
        + BOUNDS
        + """\
    return tuple(str(name) for name in self.generator.choice(self.subjects, 2, replace=False))
""",
        "pair i must follow from i and the seed",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    drawn = np.random.default_rng([self.seed, index]).integers(len(self.subjects), size=2)
    return tuple(self.subjects[k] for k in drawn)
""",
        "paired with itself",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    generator = np.random.default_rng([self.seed, index])
    return tuple(str(name) for name in generator.choice(self.subjects, 2, replace=False))
""",
        "not everybody is fixed exactly once",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    n = len(self.subjects)
    circle = np.random.default_rng(self.seed).permutation(n)
"""
        + NEIGHBOURS,
        "the second block repeats the first",
    ),
    (
        "random-pairs",
        SEQUENCE
        + """\
    n = len(self.subjects)
    circle = np.random.default_rng([self.seed, abs(index) // n]).permutation(n)
"""
        + NEIGHBOURS,
        "IndexError",
    ),
    (
        "random-pairs",
        """\
def __init__(self, subjects, count, seed):
    everyone = [(a, b) for a in subjects for b in subjects if a != b]
    self.pairs = list(range(count)) and everyone

def __len__(self):
    return len(self.pairs)

def __getitem__(self, index):
    return self.pairs[index]
""",
        "",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    n = len(self.subjects)
    circle = np.random.default_rng(self.seed + index // n).permutation(n)
"""
        + NEIGHBOURS,
        "draw from both numbers, not from their sum",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    n = len(self.subjects)
    np.random.seed([self.seed, index // n])
    circle = np.random.permutation(n)
"""
        + NEIGHBOURS,
        "changes the global random state",
    ),
]

RIGHT = [
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    n = len(self.subjects)
    circle = np.random.default_rng([self.seed, index // n]).permutation(self.subjects)
    return circle[index % n], circle[(index + 1) % n]
""",
    ),
    (
        "random-pairs",
        SEQUENCE
        + BOUNDS
        + """\
    n = len(self.subjects)
    generator = torch.Generator().manual_seed(1000003 * self.seed + index // n)
    circle = torch.randperm(n, generator=generator).tolist()
"""
        + NEIGHBOURS,
    ),
]
"""Answers that differ from the reference and are right."""
