"""The bridges to other methods: each gives back a known translation, along the right axis and with the right sign."""

import pytest
import torch
from torch.nn import functional as F

from tests.benchmarks.peers import PEERS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PEERS)
def test_a_known_translation_is_found(name):
    package, method = PEERS[name]
    pytest.importorskip(package)
    knots = torch.rand(1, 1, 7, 9, 8, generator=torch.Generator().manual_seed(0))
    scene = F.interpolate(knots, size=(48, 64, 56), mode="trilinear")
    # moving(x + 2) is fixed(x)
    fixed, moving = scene[..., 4:-4, 4:-4, 4:-4].clone(), scene[..., 2:-6, 4:-4, 4:-4].clone()
    found = method(moving, fixed).displacement[0, :, 8:-8, 8:-8, 8:-8].mean((1, 2, 3))
    assert found.tolist() == pytest.approx([2, 0, 0], abs=0.15)
