"""Plain data as bytes, and back: what a student's process and the judge's tell each other.

Numbers, strings, arrays and tensors of them, registrations, and lists, tuples, sets and dictionaries of these, become
a document of JSON and one row of bytes. Reading them makes no other object and calls nothing, whoever wrote them; that
is why there is no pickle here. What is not plain is handed to whoever packs or unpacks.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LARGEST = 128 << 20
"""Bytes that a message may carry."""

DEEPEST = 60
"""Lists within lists."""

TENSORS = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    )
}
ARRAYS = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64),
        *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
    )
}

Other = Callable[[Any], Any]


class NotPlain(ValueError):
    """What is no plain data, or none of a form that is known here."""


def no_other(value: Any) -> Any:
    """Where nothing but plain data will do.

    Raises:
        NotPlain: always.
    """
    raise NotPlain(f"a {type(value).__name__} cannot be sent")


def pack(value: Any, row: bytearray, other: Other = no_other, depth: int = 0) -> Any:
    """The document of a value, whose arrays are added to `row`.

    Args:
        value: what is to be sent.
        row: the bytes of the message.
        other: gives the document of what is not plain.
        depth: how deep in the value this is.

    Raises:
        NotPlain: it is too large or too deep, or `other` refuses a part of it.
    """
    if depth > DEEPEST:
        raise NotPlain(f"lists are nested deeper than {DEEPEST}")

    def inner(part: Any) -> Any:
        return pack(part, row, other, depth + 1)

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic) and value.dtype.name in ARRAYS:
        return {"scalar": [value.dtype.name, _put(np.asarray(value).tobytes(), row)]}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, list):
        return [inner(part) for part in value]
    for name, kind in (("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kind):
            return {name: [inner(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[inner(key), inner(part)] for key, part in value.items()]}
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and str(value.dtype)[6:] in TENSORS:
        if value.numel() * value.element_size() > LARGEST:
            raise NotPlain(f"a tensor {tuple(value.shape)} is larger than {LARGEST >> 20} MB")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().as_subclass(torch.Tensor).reshape(-1)
        place = _put(flat.view(torch.uint8).numpy().tobytes(), row)
        return {"tensor": [str(value.dtype)[6:], list(value.shape), place]}
    if isinstance(value, np.ndarray) and value.dtype.name in ARRAYS:
        if value.nbytes > LARGEST:
            raise NotPlain(f"an array {value.shape} is larger than {LARGEST >> 20} MB")
        native = np.ascontiguousarray(value, dtype=ARRAYS[value.dtype.name])
        return {"array": [value.dtype.name, list(value.shape), _put(native.tobytes(), row)]}
    registrations = sys.modules.get("course_utils.networks.registration")
    if registrations is not None and isinstance(value, registrations.Registration):
        return {"registration": [inner(value.moved), inner(value.displacement), inner(value.velocity)]}
    return other(value)


def unpack(document: Any, row: bytes | bytearray, other: Other = no_other, depth: int = 0) -> Any:
    """The value of a document.

    Args:
        document: as `pack` made it, or as somebody else did.
        row: the bytes of the message.
        other: gives what is not plain, from a dictionary of a kind that is not known here.
        depth: how deep in the document this is.

    Raises:
        NotPlain: it is no document of plain data, and nothing that `other` knows.
    """
    if depth > DEEPEST:
        raise NotPlain(f"lists are nested deeper than {DEEPEST}")

    def inner(part: Any) -> Any:
        return unpack(part, row, other, depth + 1)

    if isinstance(document, list):
        return [inner(part) for part in document]
    if not isinstance(document, dict):
        return document
    if len(document) != 1:
        raise NotPlain("this is no document of plain data")
    ((kind, told),) = document.items()
    try:
        if kind == "tuple":
            return tuple(inner(part) for part in told)
        if kind == "set":
            return {inner(part) for part in told}
        if kind == "dict":
            return {inner(key): inner(part) for key, part in told}
        if kind == "int":
            return int(told, 16)
        if kind == "complex":
            return complex(float(told[0]), float(told[1]))
        if kind == "scalar":
            return np.frombuffer(_part(told[1], ARRAYS[told[0]].itemsize, row), ARRAYS[told[0]])[0]
        if kind == "array":
            name, shape, place = told
            part = _part(place, _count(shape) * ARRAYS[name].itemsize, row)
            return np.frombuffer(part, ARRAYS[name]).reshape(shape)
        if kind == "tensor":
            name, shape, place = told
            part = _part(place, _count(shape) * TENSORS[name].itemsize, row)
            flat = torch.frombuffer(part, dtype=TENSORS[name]) if part else torch.zeros(0, dtype=TENSORS[name])
            return flat.reshape(shape)
        if kind == "registration":
            from course_utils.networks.registration import Registration

            moved, displacement, velocity = (inner(part) for part in told)
            if not all(isinstance(part, torch.Tensor) for part in (moved, displacement)):
                raise NotPlain("a registration has a moved image and a displacement")
            return Registration(moved, displacement, velocity)
    except NotPlain:
        raise
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise NotPlain(f"this is no {kind} ({error})") from None
    return other(document)


def _put(part: bytes, row: bytearray) -> int:
    """Where in the row the part begins, at a multiple of 16 so that arrays of any type may lie there."""
    row.extend(bytes(-len(row) % 16))
    if len(row) + len(part) > LARGEST:
        raise NotPlain(f"it is larger than {LARGEST >> 20} MB")
    row.extend(part)
    return len(row) - len(part)


def _part(place: Any, size: int, row: bytes | bytearray) -> bytearray:
    if type(place) is not int or not 0 <= place <= len(row) - size:
        raise NotPlain("the array is not in the message")
    return bytearray(memoryview(row)[place : place + size])


def _count(shape: Any) -> int:
    if type(shape) is not list or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise NotPlain("an array has up to 32 axes")
    return math.prod(shape)
