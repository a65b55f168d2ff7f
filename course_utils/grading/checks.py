"""What the check cells of the assignments are written with: assertions whose messages teach.

An answer is compared with the right one and, where it differs, with answers that are wrong in a known way; the one it
equals is named. Types are compared exactly, and values as NumPy arrays by functions bound when this module is
imported, so neither an object that equals everything nor a `torch.allclose` that always agrees passes.

A check is an ordinary cell of a notebook. When a class is graded it runs in the judge's process, and the student's
functions in another (`course_utils.grading.standins`): plain data goes there and comes back. What a check wants to do
with an object of the student's, but to call it, to index it and to ask for its length, the functions here do where the
object is: `gradient`, `parameters`, `fill`, `by_hand`, and `there` for a function of the check's own.
"""

import copy
import dis
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

from course_utils.grading.standins import there

__all__ = ["agree", "by_hand", "call", "fill", "gradient", "known_weights", "parameters", "raises", "there"]

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_FLOATS = (torch.float32, torch.float64, np.dtype(np.float32), np.dtype(np.float64))
_NUMBERS = (float, int, np.float64, np.float32, np.int64, np.int32)
_array, _isfinite, _errstate, _deepcopy = np.asarray, np.isfinite, np.errstate, copy.deepcopy
_detach, _cpu, _numpy = torch.Tensor.detach, torch.Tensor.cpu, torch.Tensor.numpy


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The function's result on copies of the arguments: what it does to its input does not reach the comparison."""
    return function(*_deepcopy(arguments), **_deepcopy(options))


def agree(
    got: Any,
    expected: Any,
    what: str,
    mistakes: Mapping[str, Any] | None = None,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Assert that an answer is the expected one, in type, shape and value.

    Floats of 32 and of 64 bits are one type; where only one will do, compare the `dtype` too.

    Args:
        got: the student's answer.
        expected: a tensor, array, number, string, truth value or None, or lists, tuples and dictionaries of these.
        what: names the answer in the message: `"my_warp(image, u)"`.
        mistakes: what is wrong, in words, to the answer that it leads to, of the type of `expected`.
        rtol, atol: floats may differ by `atol + rtol * abs(expected)`.

    Raises:
        AssertionError: with the mistake that explains the answer, or how it differs.
    """
    problem = _difference(got, expected, rtol, atol)
    if problem is None:
        return
    for mistake, wrong in (mistakes or {}).items():
        if _difference(wrong, expected, rtol, atol) is not None and _difference(got, wrong, rtol, atol) is None:
            raise AssertionError(f"{what}: {mistake}")
    raise AssertionError(f"{what}: {problem}")


def by_hand(function: Callable[..., Any], without: Iterable[str], instead: str) -> None:
    """Assert that a function, and what it calls of its own page, mentions none of the names `without`.

    What the page defines may have such a name.

    It stops the shortcut through the library, not somebody who hides the name.
    """
    module, name, names = there(evidence, function)
    used = set(names) & set(without)
    if module.split(".")[0] in ("course_utils", "monai") or used:
        found = ", ".join(sorted(used)) or f"{module}.{name}"
        raise AssertionError(f"the exercise asks for your own code, and this uses {found}: {instead}")


def raises(error: type[Exception], function: Callable[..., Any], *arguments: Any, what: str) -> None:
    """Assert that a call is refused with this error."""
    try:
        call(function, *arguments)
    except error:
        return
    raise AssertionError(f"{what}: should be refused with a {error.__name__}, and returned a result")


def gradient(function: Callable[..., Any], *arguments: Any, what: str) -> torch.Tensor:
    """The gradient of a function's scalar result with respect to its first argument, a tensor.

    Raises:
        AssertionError: there is none.
    """
    found = there(slope, function, list(arguments))
    if found is None:
        raise AssertionError(f"{what}: no gradient flows: leave it a tensor, without .item(), .detach() or NumPy")
    return found


def parameters(module: torch.nn.Module, what: str) -> list[torch.Tensor]:
    """The parameters of a student's module, in their order, without their gradients.

    Raises:
        AssertionError: it is no module.
    """
    found = there(content, module)
    if found is None:
        raise AssertionError(f"{what}: it should be an nn.Module and is a {_kind(module)}")
    return found


def fill(module: torch.nn.Module, shapes: Iterable[Iterable[int]], seed: int = 0) -> list[torch.Tensor]:
    """Numbers of these shapes, which follow from the seed, and which the parameters of a student's module become."""
    numbers = list(_numbers(shapes, seed, 0.3))
    there(put, module, numbers)
    return numbers


def known_weights(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """The module, its parameters filled in their order with normal numbers that follow from the seed."""
    put(module, list(_numbers((parameter.shape for parameter in module.parameters()), seed, scale)))
    return module


def _numbers(shapes: Iterable[Iterable[int]], seed: int, scale: float) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(tuple(shape), generator=generator) for shape in shapes)


# --- what runs where the student's objects are; none of it knows a right answer --------------------------------------


def evidence(function: Callable[..., Any]) -> tuple[str, str, list[str]]:
    """Where a function comes from, its name, and the names that it and its helpers look up."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", type(function).__name__)
    return str(module or ""), str(name), sorted(set(_names(function, set())))


def slope(function: Callable[..., Any], arguments: list[Any]) -> torch.Tensor | None:
    """The gradient of a scalar result with respect to the first argument, or None where there is none."""
    with torch.enable_grad():
        first, *others = _deepcopy(arguments)
        first = first.detach().requires_grad_()
        result = function(first, *others)
        if not isinstance(result, torch.Tensor) or not result.requires_grad:
            return None
        return torch.autograd.grad(result, first, allow_unused=True)[0]


def content(module: Any) -> list[torch.Tensor] | None:
    """The parameters of a module, or None of what is none."""
    if not isinstance(module, torch.nn.Module):
        return None
    return [parameter.detach() for parameter in module.parameters()]


def put(module: torch.nn.Module, numbers: list[torch.Tensor]) -> None:
    """Give the parameters of a module these numbers, and their type: a student may have another default.

    Raises:
        ValueError: they are not of the parameters' shapes.
    """
    for parameter, its in zip(module.parameters(), numbers, strict=True):
        if parameter.shape != its.shape:
            raise ValueError(f"a parameter is {tuple(parameter.shape)}, not {tuple(its.shape)}")
        parameter.data = its.clone()


def _difference(got: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """How an answer differs from the expected one, or None."""
    if type(expected) in _NUMBERS:
        return _number_difference(got, expected, rtol, atol)
    if type(got) is not type(expected):
        hint = " (is there a return?)" if got is None else ""
        return f"it should be a {_kind(expected)} and is a {_kind(got)}{hint}"
    if type(expected) in (list, tuple):
        if len(got) != len(expected):
            return f"it should have {len(expected)} items and has {len(got)}"
        return _first(enumerate(zip(got, expected, strict=True)), rtol, atol)
    if type(expected) is dict:
        if [k for k in got if k not in expected] or len(got) != len(expected):
            return f"its keys should be {list(expected)} and are {list(got)}"
        return _first(((key, (got[key], expected[key])) for key in expected), rtol, atol)
    if type(expected) in (torch.Tensor, np.ndarray):
        return _array_difference(got, expected, rtol, atol)
    return None if got == expected else f"it should be {expected!r} and is {got!r}"


def _first(items: Iterable[tuple[Any, tuple[Any, Any]]], rtol: float, atol: float) -> str | None:
    problems = ((key, _difference(got, expected, rtol, atol)) for key, (got, expected) in items)
    return next((f"at [{key!r}] {problem}" for key, problem in problems if problem is not None), None)


def _number_difference(got: Any, expected: float, rtol: float, atol: float) -> str | None:
    if type(got) not in _NUMBERS:
        hint = (
            ": .item() makes one of a tensor" if type(got) is torch.Tensor else " (is there a return?)" * (got is None)
        )
        return f"it should be a plain number and is a {_kind(got)}{hint}"
    got, expected = float(got), float(expected)
    if got == expected or (got != got and expected != expected) or abs(got - expected) <= atol + rtol * abs(expected):
        return None
    return f"it should be {expected:.6g} and is {got:.6g}{_relation(_array([got]), _array([expected]), 1)}"


def _array_difference(got: Any, expected: Any, rtol: float, atol: float) -> str | None:
    if got.dtype != expected.dtype and not (got.dtype in _FLOATS and expected.dtype in _FLOATS):
        return f"its values should be {expected.dtype} and are {got.dtype}"
    got, expected = _values(got), _values(expected)
    if got.shape != expected.shape:
        hint = _shape_hint(got.shape, expected.shape)
        return f"its shape should be {expected.shape} and is {got.shape}{hint}"
    both_nan = (got != got) & (expected != expected)
    if (odd := ~_isfinite(got) & _isfinite(expected)).any():
        return f"{int(odd.sum())} of its {got.size} values are NaN or infinite: a division by zero?"
    with _errstate(invalid="ignore"):  # infinity minus infinity
        far = ~((got == expected) | both_nan | (abs(got - expected) <= atol + rtol * abs(expected)))
    if not far.any():
        return None
    if hint := _layout_hint(got, expected, rtol, atol) or _relation(got, expected, got.size):
        return f"its values are not the expected ones{hint}"
    worst = np.unravel_index(np.nan_to_num(abs(got - expected) * far).argmax(), got.shape)
    place = tuple(int(i) for i in worst)
    return (
        f"{int(far.sum())} of its {got.size} values differ; the furthest, at {place}, should be "
        f"{expected[worst]:.5g} and is {got[worst]:.5g}"
    )


def _values(array: Any) -> np.ndarray:
    """As float64, which holds every number that is compared here."""
    if type(array) is torch.Tensor:
        array = _numpy(_cpu(_detach(array)))
    return _array(array, dtype=np.float64)


def _kind(value: Any) -> str:
    return "NoneType" if value is None else type(value).__name__


def _shape_hint(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
        return ": an axis of length 1 (batch or channel) is missing, too many, or elsewhere"
    if sorted(shape) == sorted(wanted):
        return ": the axes are in another order"
    if len(shape) != len(wanted):
        return f": {len(wanted)} axes are expected, not {len(shape)}"
    return ""


def _layout_hint(got: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    def equal(other: np.ndarray) -> bool:
        return other.shape == got.shape and bool((abs(got - other) <= atol + rtol * abs(other)).all())

    if got.ndim >= 4 and got.shape[1] in (2, 3) and equal(expected[:, ::-1]):
        return ": the components are in reverse order (x, y, z for axis 0, 1, 2)"
    if got.ndim >= 2 and equal(expected.swapaxes(-1, -2)):
        return ": the last two axes are exchanged"
    return ""


def _relation(got: np.ndarray, expected: np.ndarray, count: int) -> str:
    """Whether all the answer is the right one with another sign, or times one number."""
    solid = abs(expected) > 1e-3 * max(abs(expected).max(initial=0), 1e-12)
    ratios = got[solid] / expected[solid] if solid.any() else _array([])
    if not ratios.size or not (abs(ratios - ratios[0]) <= 1e-3 * abs(ratios[0])).all() or abs(ratios[0]) < 1e-9:
        return ""
    factors = {-1.0: "the sign is the wrong way round", 2.0: "it is twice what it should be"}
    factors |= {0.5: "it is half of what it should be"}
    if count > 1:
        factors |= {float(count): "a sum in place of a mean", 1 / count: "a mean in place of a sum"}
    for factor, words in factors.items():
        if abs(ratios[0] / factor - 1) < 1e-3:
            return f": {words}"
    return f": it is {ratios[0]:.4g} times what it should be" if count > 1 else ""


def _names(function: Any, seen: set[int]) -> Iterator[str]:
    """Names that a function and its helpers from the same page look up."""
    if isinstance(function, type):
        members = [member for member in vars(function).values() if isinstance(member, FunctionType)]
    else:
        members = [function] if isinstance(function, FunctionType) else []
    for member in members:
        if id(member) in seen:
            continue
        seen.add(id(member))
        for instruction in _instructions(member.__code__):
            name = instruction.argval
            value = member.__globals__.get(name) if instruction.opname in _GLOBALS else None
            if not isinstance(value, FunctionType | type):
                yield name
            elif value.__module__ == member.__module__:  # a helper of the page's own, whatever it is called
                yield from _names(value, seen)
            else:
                yield from (name, value.__name__)  # which may be another


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Those of a function, and of what is defined in it, that look up a name or an attribute."""
    for each in _codes(code):
        yield from (one for one in dis.get_instructions(each) if one.argval in each.co_names)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
