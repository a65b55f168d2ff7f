"""Small images and small networks, and the parametrisations that the tests of networks share."""

import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from course_utils.networks import ARCHITECTURES, Registration, RegistrationNetwork

SIZES = {2: (24, 32), 3: (16, 24, 8)}

COMMON = [{}, {"half_resolution": False}, {"integration_steps": 0}]
ANTISYMMETRIC = [{"antisymmetric": True}, {"antisymmetric": True, "half_resolution": False}]
OPTIONS = {
    "voxelmorph": [*COMMON, ANTISYMMETRIC[0]],
    "pyramid": [*COMMON, *ANTISYMMETRIC],
    "swin": [{}, ANTISYMMETRIC[1]],
    # As many structures as no image has axes, see `small`.
    "joint": [{"structures": 3, **options} for options in COMMON],
    "hypernetwork": [{}, ANTISYMMETRIC[0]],
}
"""Arguments that an architecture is tested with; one that is not named here is tested with its defaults."""

NORMALISED = {
    name: {"instance_norm": True}
    for name in ("voxelmorph", "pyramid", "probabilistic", "inception", "swin", "hypernetwork", "joint")
}
"""Arguments with which an architecture normalises its features, if it can; elsewhere it is tested without."""


UNHEARD = {"hypernetwork": {"conditioning.layers.0.weight"}}
"""What has no gradient where a network is told nothing: the middle of a condition is 0 within."""


def described(options: dict[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items()) or "defaults"


NAMES = [name for name in ARCHITECTURES if name not in {"refined", "template"}]
"""What is built from its features and registers pairs; the others have tests of their own."""

both = pytest.mark.parametrize("dims", [2, 3])
resolutions = pytest.mark.parametrize("half", [True, False], ids=["half", "full"])
architectures = pytest.mark.parametrize("name", NAMES)
VARIANTS = [
    pytest.param(name, options, id=f"{name}-{described(options)}")
    for name in NAMES
    for options in OPTIONS.get(name, [{}])
]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS)
convolutional = pytest.mark.parametrize(
    ("name", "options"), [one for one in VARIANTS if not one.id.startswith("swin-")]
)
"""Those that have no sense of place; the windows of attention lie somewhere (see test_swin)."""


def images(shape: tuple[int, ...], seed: int = 0, batch: int = 1) -> Tensor:
    """A moving and a fixed image, smooth and between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, batch, 1, *shape, generator=generator).numpy()
    smooth = torch.from_numpy(scipy.ndimage.gaussian_filter(noise, (0, 0, 0, *[1.5] * len(shape))))
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def small(
    name: str,
    dims: int,
    *,
    features: tuple[int, ...] = (4, 6, 8),
    amplitude: float | None = None,
    seed: int = 0,
    **options: object,
) -> RegistrationNetwork:
    """A small network; with an amplitude, it predicts about so many voxels rather than next to nothing."""
    torch.manual_seed(seed)
    plain = dict.fromkeys(NORMALISED.get(name, {}), False)
    network = ARCHITECTURES[name](dims, features=features, **{**plain, **options}).eval()
    if amplitude:
        # What predicts has a channel for each axis, which no other layer has.
        heads = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m.out_channels == dims]
        with torch.no_grad():
            for head in heads:
                head.weight.normal_(std=0.1)
                if head.bias is not None:
                    head.bias.zero_()
            largest = predicted(network(*images(SIZES[dims]))).abs().max()
            for head in heads:
                head.weight *= amplitude / largest
    return network


def predicted(registration: Registration) -> Tensor:
    """The field that the network answers with: the velocity, or the displacement where there is none."""
    return registration.displacement if registration.velocity is None else registration.velocity


def inner(field: Tensor, margin: int) -> Tensor:
    """The field without what lies within `margin` voxels of the border."""
    return field[(..., *[slice(margin, -margin)] * (field.ndim - 2))]
