"""Two questions that need no labels: does swapping the images invert the map, and does an image against itself stay?

Source: Duan et al., Towards saner deep image registration, ICCV 2023.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from course_utils.fields import compose

EDGE = 4
"""Voxels along each border that are left out: there a map leads out of the image, and nobody knows its inverse."""


@torch.inference_mode()
def consistency(
    model: Callable[[Tensor, Tensor], Any], pairs: Iterable[Mapping[str, Any]], device: torch.device | str = "cpu"
) -> pd.DataFrame:
    """How far a registration contradicts itself.

    Args:
        model: `model(moving, fixed)` on float32 `(1, 1, *spatial)`, answering with an object whose `displacement` is
            `(1, N, *spatial)` in voxels.
        pairs: Items with `fixed` and `moving`, `(1, *spatial)`, and `name`, of more than 8 voxels along each axis.
        device: Where the model is.

    Returns:
        A row for each pair: `pair`; `swap_voxels`, how far on average a voxel ends from its place after the map and
        the map of the swapped images; `self_voxels`, how far on average the fixed image moves against itself.
    """
    rows = []
    for item in pairs:
        moving, fixed = (item[side][None].to(device) for side in ("moving", "fixed"))
        inside = (..., *[slice(EDGE, n - EDGE) for n in fixed.shape[2:]])
        there, back = model(moving, fixed).displacement, model(fixed, moving).displacement
        row = {"swap_voxels": compose(there, back), "self_voxels": model(fixed, fixed).displacement}
        rows.append({"pair": item["name"], **{key: u[inside].norm(dim=1).mean().item() for key, u in row.items()}})
    return pd.DataFrame(rows)
