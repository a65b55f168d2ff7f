"""What figures take: images, labels and fields as arrays or tensors, checked and without needless axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

Array = np.ndarray | torch.Tensor
PerAxis = float | Sequence[float]


def as_array(values: Array) -> np.ndarray:
    """The same values as an array that matplotlib draws: bfloat16 becomes float32 and bool becomes uint8."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        array = np.asarray(values)
    return array.astype(np.uint8) if array.dtype == bool else array


def same_shape(images: Mapping[str, Array | None]) -> dict[str, np.ndarray]:
    """The images that are given, `(*spatial)`, by name; those that are None are left out.

    Raises:
        ValueError: no image is given, one is neither 2-D nor 3-D without its leading axes of size 1, or shapes differ.
    """
    arrays = {name: _without_leading_axes(image, name) for name, image in images.items() if image is not None}
    if not arrays:
        raise ValueError("there are no images to draw")
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items()))
    return arrays


def _without_leading_axes(image: Array, name: str) -> np.ndarray:
    array = as_array(image)
    given = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} of shape {given} is not one 2-D or 3-D image: take one of its batch and channels")
    return array
