"""Layers and networks as plain data, and built again of it: what a check lends to a student's function."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from course_utils.grading.plain import NotPlain, no_other, pack

KEPT = ("_parameters", "_buffers", "_modules")
"""What a module holds its content in."""


def described(module: nn.Module) -> dict[str, Any]:
    """A module of PyTorch's or the course's as plain data: its class, settings, numbers, and the modules in it.

    Raises:
        NotPlain: it is of another class, or holds what is no plain data.
    """
    if (spec := getattr(module, "spec", None)) is not None:
        return {"architecture": spec.architecture, "arguments": dict(spec.arguments), "weights": module.state_dict()}
    kind = type(module)
    if kind.__module__.partition(".")[0] not in ("torch", "course_utils"):
        raise NotPlain(f"{kind.__name__} is no layer of PyTorch or of the course")
    usual = vars(nn.Module())
    return {
        "class": [kind.__module__, kind.__qualname__],
        "settings": {name: _plain(value) for name, value in vars(module).items() if name not in usual},
        "training": module.training,
        "parameters": dict(module._parameters),
        "buffers": dict(module._buffers),
        "modules": {name: described(each) for name, each in module._modules.items() if each is not None},
    }


def built(description: Mapping[str, Any]) -> nn.Module:
    """The module that `described` has described; the description is trusted."""
    if "architecture" in description:
        from course_utils.networks import NetworkSpec

        network = NetworkSpec(description["architecture"], description["arguments"]).build()
        network.load_state_dict(description["weights"])
        return network
    module, name = description["class"]
    kind = getattr(importlib.import_module(module), name)
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    vars(made).update(description["settings"], training=description["training"])
    for each, value in description["parameters"].items():
        made.register_parameter(each, None if value is None else nn.Parameter(value))
    for each, value in description["buffers"].items():
        made.register_buffer(each, value)
    for each, inner in description["modules"].items():
        made.add_module(each, built(inner))
    return made


def _plain(value: Any) -> Any:
    pack(value, bytearray(), no_other)
    return value
