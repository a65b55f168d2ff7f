"""Wrong answers to assignment 4."""

CONV = "conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]\n"
LEVELS = """\
*skips, x = features
for level in levels:
    x = F.interpolate(x, scale_factor=2, mode="nearest")
"""
PAIR = """\
spatial = moving.shape[2:]
padded = [-(-n // unet.divisor) * unet.divisor for n in spatial]
margins = [m for n, p in zip(reversed(spatial), reversed(padded), strict=True) for m in (0, p - n)]
inside = (..., *(slice(n) for n in spatial))
velocity = head(unet(F.pad(torch.cat([moving, fixed], dim=1), margins, mode="replicate")))
"""
BOTH = """\
def __init__(self, model):
    super().__init__()
    self.model = model

def forward(self, moving, fixed):
    there, back = self.model(moving, fixed), self.model(fixed, moving)
"""

WRONG = [
    (
        "block",
        CONV + "return nn.Sequential(conv(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.2))",
        "shifts what it sees by half a voxel",
    ),
    (
        "block",
        CONV + "return nn.Sequential(conv(inputs, outputs, 4 if stride == 2 else 3, stride, padding=1), nn.ReLU())",
        "a plain ReLU",
    ),
    (
        "block",
        CONV
        + "return nn.Sequential(conv(inputs, outputs, 4 if stride == 2 else 3, stride, padding=1), nn.LeakyReLU())",
        "PyTorch's default is 0.01",
    ),
    (
        "block",
        CONV + "return nn.Sequential(conv(inputs, outputs, 4 if stride == 2 else 3, stride, padding=1))",
        "the activation is missing",
    ),
    (
        "block",
        CONV + "return nn.Sequential(conv(outputs, inputs, 4 if stride == 2 else 3, stride, 1), nn.LeakyReLU(0.2))",
        "inputs and outputs are exchanged",
    ),
    (
        "block",
        "width = 4 if stride == 2 else 3\n"
        "return nn.Sequential(nn.Conv2d(inputs, outputs, width, stride, 1), nn.LeakyReLU(0.2))",
        "dims is not looked at",
    ),
    (
        "encode",
        "found = []\nfor level in levels:\n    x = level(x)\n    found.insert(0, x)\nreturn found",
        "from coarse to fine",
    ),
    ("encode", "for level in levels:\n    x = level(x)\nreturn [x]", "only the last level comes back"),
    (
        "encode",
        "found = [x]\nfor level in levels:\n    found.append(level(found[-1]))\nreturn found",
        "the images themselves",
    ),
    (
        "encode",
        "found = []\nfor level in levels:\n    x = level(x)\n    found.append(x)\nreturn found[:-1]",
        "is missing",
    ),
    (
        "encode",
        "found = []\nfor level in levels:\n    x = level(x)\n    found.append(x)\nreturn tuple(found)",
        "should be a list and is a tuple",
    ),
    ("decode", LEVELS + "    x = level(torch.cat([skips.pop(), x], dim=1))\nreturn x", "not before it"),
    (
        "decode",
        LEVELS.replace("nearest", "bilinear") + "    x = level(torch.cat([x, skips.pop()], dim=1))\nreturn x",
        "repeat the voxels",
    ),
    ("decode", LEVELS + "    x = level(torch.cat([x, x], dim=1))\nreturn x", "without skips"),
    ("decode", LEVELS + "    x = level(torch.cat([x, skips.pop(0)], dim=1))\nreturn x", "RuntimeError"),
    ("head", "return {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, dims, 3, padding=1)", "the bias"),
    (
        "head",
        "head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, dims, 3, padding=1)\n"
        "nn.init.zeros_(head.bias)\nreturn head",
        "PyTorch's default spread",
    ),
    (
        "head",
        "head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, dims, 3, padding=1)\n"
        "nn.init.zeros_(head.weight)\nnn.init.zeros_(head.bias)\nreturn head",
        "gets no gradient",
    ),
    (
        "head",
        "head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, 1, 3, padding=1)\n"
        "nn.init.normal_(head.weight, std=1e-5)\nnn.init.zeros_(head.bias)\nreturn head",
        "a component an axis",
    ),
    (
        "head",
        "head = {2: nn.Conv2d, 3: nn.Conv3d}[dims](features, dims, 3)\n"
        "nn.init.normal_(head.weight, std=1e-5)\nnn.init.zeros_(head.bias)\nreturn head",
        "its shape should be (1, 2, 6, 6)",
    ),
    (
        "pad",
        "margins = [m for n in images.shape[2:] for m in (0, -n % divisor)]\n"
        'return F.pad(images, margins, mode="replicate")',
        "F.pad wants the last axis first",
    ),
    (
        "pad",
        "margins = [m for n in reversed(images.shape[2:]) for m in (0, divisor - n % divisor)]\n"
        'return F.pad(images, margins, mode="replicate")',
        "another 8 voxels",
    ),
    (
        "pad",
        "margins = [m for n in reversed(images.shape[2:]) for m in (0, -n % divisor)]\nreturn F.pad(images, margins)",
        "padded with zeros",
    ),
    (
        "pad",
        "margins = [m for n in reversed(images.shape[2:]) for m in (-n % divisor, 0)]\n"
        'return F.pad(images, margins, mode="replicate")',
        "padded at the beginning",
    ),
    (
        "pad",
        "halves = [-n % divisor / 2 for n in reversed(images.shape[2:])]\n"
        "margins = [m for half in halves for m in (int(half), round(half + 0.1))]\n"
        'return F.pad(images, margins, mode="replicate")',
        "voxel 0 is voxel 1 now",
    ),
    (
        "pad",
        "return images[(..., *(slice(n - n % divisor) for n in images.shape[2:]))]",
        "cropped to the multiple below",
    ),
    (
        "forward",
        PAIR.replace("[moving, fixed]", "[fixed, moving]")
        + "displacement = resize(integrate(velocity), padded)[inside]\nreturn warp(moving, displacement), displacement",
        "the fixed image is the first channel",
    ),
    (
        "forward",
        PAIR
        + 'linear = "bilinear" if len(spatial) == 2 else "trilinear"\n'
        + "displacement = F.interpolate(integrate(velocity), size=padded, mode=linear)[inside]\n"
        + "return warp(moving, displacement), displacement",
        "still in voxels of the coarse grid",
    ),
    (
        "forward",
        PAIR + "displacement = resize(velocity, padded)[inside]\nreturn warp(moving, displacement), displacement",
        "the velocity is not integrated",
    ),
    (
        "forward",
        PAIR
        + "displacement = integrate(resize(velocity, padded))[inside]\nreturn warp(moving, displacement), displacement",
        "resized before it is integrated",
    ),
    (
        "forward",
        PAIR
        + 'linear = "bilinear" if len(spatial) == 2 else "trilinear"\n'
        + "displacement = F.interpolate(integrate(velocity), size=padded, mode=linear)[inside] / 2\n"
        + "return warp(moving, displacement), displacement",
        "halved on its way up",
    ),
    (
        "forward",
        PAIR
        + "displacement = resize(integrate(velocity), padded)[inside]\nreturn warp(fixed, displacement), displacement",
        "the fixed image is warped",
    ),
    (
        "forward",
        PAIR
        + "displacement = resize(integrate(velocity), padded)[inside]\nreturn displacement, warp(moving, displacement)",
        "the image first",
    ),
    (
        "forward",
        PAIR + "displacement = resize(integrate(velocity), spatial)\nreturn warp(moving, displacement), displacement",
        "which 8 does not divide",
    ),
    (
        "forward",
        "velocity = head(unet(torch.cat([moving, fixed], dim=1)))\n"
        "displacement = resize(integrate(velocity), moving.shape[2:])\nreturn warp(moving, displacement), displacement",
        "RuntimeError",
    ),
    (
        "forward",
        "from course_utils.networks import VoxelMorph\n\nmodel = VoxelMorph(moving.ndim - 2)\n"
        "model.unet, model.velocity = unet, head\nfound = model(moving, fixed)\nreturn found.moved, found.displacement",
        "put the stages together",
    ),
    (
        "reach",
        "image = torch.rand(1, channels, size, size, requires_grad=True)\nnetwork(image).sum().backward()\n"
        "return int((image.grad.abs().sum(dim=(0, 1, 3)) > 0).sum())",
        "not about their sum",
    ),
    (
        "reach",
        "image = torch.rand(1, channels, size, size, requires_grad=True)\noutput = network(image)\n"
        "output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()\n"
        "columns = image.grad.abs().sum(dim=(0, 1, 2)).nonzero()\nreturn int(columns.max() - columns.min()) + 1",
        "columns (axis 1), not rows",
    ),
    (
        "reach",
        "image = torch.rand(1, channels, size, size, requires_grad=True)\noutput = network(image)\n"
        "output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()\n"
        "rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()\nreturn int(rows.max() - rows.min())",
        "both count",
    ),
    (
        "reach",
        "image = torch.rand(1, channels, size, size, requires_grad=True)\noutput = network(image)\n"
        "output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()\n"
        "return int((image.grad.abs().sum(dim=(0, 1, 3)) > 0).sum())",
        "within the reach",
    ),
    (
        "symmetric",
        BOTH + "    w = (there.velocity + back.velocity) / 2\n    u = integrate(w)\n"
        "    return Registration(warp(moving, u), u, w)",
        "the two velocities are added",
    ),
    (
        "symmetric",
        BOTH + "    w = there.velocity - back.velocity\n    u = integrate(w)\n"
        "    return Registration(warp(moving, u), u, w)",
        "the half is missing",
    ),
    (
        "symmetric",
        BOTH + "    w = (back.velocity - there.velocity) / 2\n    u = integrate(w)\n"
        "    return Registration(warp(moving, u), u, w)",
        "the sign is the wrong way round",
    ),
    (
        "symmetric",
        BOTH + "    w = (there.velocity - back.velocity) / 2\n    u = (there.displacement - back.displacement) / 2\n"
        "    return Registration(warp(moving, u), u, w)",
        "the displacements are averaged",
    ),
    ("symmetric", BOTH + "    return there", "asked one way only"),
    (
        "symmetric",
        BOTH + "    w = (there.velocity - back.velocity) / 2\n    return Registration(warp(moving, w), w, w)",
        "its displacement is exp(w)",
    ),
    (
        "symmetric",
        BOTH.replace("self.model = model", "self.ask = lambda m, f: model(m, f)").replace("self.model(", "self.ask(")
        + "    w = (there.velocity - back.velocity) / 2\n    u = integrate(w)\n"
        "    return Registration(warp(moving, u), u, w)",
        "parameters are not found",
    ),
]
