"""The judge's side: stand-ins for what a student's cells define, which carry calls to the student's process.

A check cell that runs in the judge's kernel finds stand-ins where it would find the student's functions. Plain data
comes back as what it is; of anything else, a function or an object of the student's class, a stand-in comes back. The
student's code, its types and its errors never are in this process.
"""

import builtins
import inspect
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from course_utils.grading.grades import TEXT
from course_utils.grading.layers import described
from course_utils.grading.link import Broken, Message, Peer
from course_utils.grading.plain import NotPlain, no_other, pack, unpack

UNLIKE = (SyntaxError, UnicodeError, StopIteration, StopAsyncIteration, BaseExceptionGroup)
"""Errors that cannot be made of a text alone, or end more than the call."""


class Student:
    """The student's process, as the judge sees it.

    Args:
        number: of the socket to it.
        ended: called where it has ended; what then goes on sees `Broken`.
    """

    def __init__(self, number: int, ended: Callable[[], None] = lambda: None) -> None:
        self._peer = Peer(number, self._lent_is_used)
        self._ended = ended
        self._lent: list[Any] = []

    def prepare(self, number: int) -> None:
        """Run the assignment's own cells before a cell of the student's there."""
        self._told(*self._ask({"prepare": number}))

    def run(self, number: int, names: Sequence[str]) -> tuple[dict[str, Any], list[Any], "Exception | None"]:
        """Run a cell of the student's.

        Returns:
            The values and stand-ins of those of the names that are defined now, what the cell showed, and how it failed
            or None.

        Raises:
            Broken: the process has ended.
        """
        message, row = self._ask({"run": number, "names": list(names)})
        found = self._unpacked(message.get("result"), row)
        if not isinstance(found, dict) or not isinstance(found.get("names"), dict):
            raise NotPlain("this is no answer to a cell")
        failure = found.get("error")
        values = {name: value for name, value in found["names"].items() if name in names}
        shown = found["shown"] if isinstance(found.get("shown"), list) else []
        return values, shown, None if failure is None else student_error(failure)

    def call(self, function: Any, arguments: Sequence[Any], options: Mapping[str, Any] | None = None) -> Any:
        """The result of a function that is called there.

        Args:
            function: a stand-in, a function of a module, or one of the notebook, whose text is sent.
            arguments: plain data, stand-ins, layers of PyTorch and of the course, which are copied; functions and data
                sets, which are lent: what is asked of them there is answered here.
            options: arguments by name.

        Raises:
            Exception: that the function has raised, of its name and, where Python has one, its type.
            NotPlain: an argument cannot be sent, or the result not be read.
            Broken: the process has ended.
        """
        row = bytearray()
        message = {
            "call": self._callee(function, row),
            "arguments": pack(list(arguments), row, partial(self._other, row)),
            "options": pack(dict(options or {}), row, partial(self._other, row)),
            "gradients": torch.is_grad_enabled(),
        }
        return self._told(*self._ask(message, row))

    def _ask(self, question: dict[str, Any], row: bytes | bytearray = b"") -> Message:
        try:
            return self._peer.ask(question, row)
        except Broken:
            self._ended()
            raise

    def _told(self, message: dict[str, Any], row: bytes | bytearray) -> Any:
        if "error" in message:
            raise student_error(message["error"])
        return self._unpacked(message.get("result"), row)

    def _unpacked(self, document: Any, row: bytes | bytearray) -> Any:
        return unpack(document, row, self._stand_in)

    def _stand_in(self, document: dict[str, Any]) -> "StandIn":
        told = document.get("object")
        if not isinstance(told, list) or len(told) != 2 or type(told[0]) is not int:
            raise NotPlain("this is no document of plain data")
        return stand_in(self, told[0], told[1])

    def _callee(self, function: Any, row: bytearray) -> Any:
        if isinstance(function, StandIn):
            return self._other(row, function)
        if getattr(function, "__module__", "__main__") != "__main__":
            return {"named": [function.__module__, function.__qualname__]}
        return {"text": [function.__name__, *self._texts(function, row)]}

    def _texts(self, function: types.FunctionType, row: bytearray) -> tuple[dict[str, str], dict[str, Any]]:
        """The texts of a function of the notebook and of those that it uses, and what else they use, by name."""
        texts: dict[str, str] = {}
        used: dict[str, Any] = {}
        waiting = [function]
        while waiting:
            one = waiting.pop()
            texts[one.__name__] = inspect.getsource(one)
            for name in _looked_up(one.__code__):
                value = one.__globals__.get(name, self)
                if value is self or name in texts or name in used:  # a builtin, or an attribute of that name
                    continue
                if isinstance(value, types.FunctionType) and value.__module__ == one.__module__:
                    waiting.append(value)
                elif isinstance(value, types.ModuleType):
                    used[name] = {"module": value.__name__}
                elif isinstance(value, type | types.FunctionType):
                    used[name] = {"named": [value.__module__, value.__qualname__]}
                else:
                    used[name] = {"value": pack(value, row, partial(self._other, row))}
        return texts, used

    def _other(self, row: bytearray, value: Any) -> Any:
        """The document of an argument that is no plain data."""
        if isinstance(value, StandIn):
            return {"object": value._number}
        if isinstance(value, torch.nn.Module):
            return {"layer": pack(described(value), row)}
        if isinstance(value, Dataset):
            self._lent.append(value)
            return {"pairs": [len(self._lent) - 1, len(value)]}
        if callable(value):
            self._lent.append(value)
            return {"function": [len(self._lent) - 1, getattr(value, "__name__", "lent")]}
        return no_other(value)

    def _lent_is_used(self, question: dict[str, Any], row: bytes | bytearray) -> Message:
        """Answer what the student's process asks of a function or a data set that was lent to it."""
        answer = bytearray()
        try:
            number = question.get("lent")
            if type(number) is not int or not 0 <= number < len(self._lent):
                raise LookupError("nothing like it was lent")
            arguments, options = (unpack(question.get(part), row) for part in ("arguments", "options"))
            if not isinstance(arguments, list) or not isinstance(options, dict):
                raise NotPlain("this is no call")
            lent = self._lent[number]
            with torch.no_grad():
                result = lent[arguments[0]] if isinstance(lent, Dataset) else lent(*arguments, **options)
            return {"result": pack(result, answer)}, answer
        except Exception as error:
            return {"error": {"name": type(error).__name__, "text": str(error)[:TEXT]}}, b""


class StandIn:
    """What stands for an object of the student's; what is asked of it is asked there, and nothing of it is here."""

    _student: Student
    _number: int

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._student.call(self, arguments, options)

    def __getitem__(self, key: Any) -> Any:
        return self._student.call(operator.getitem, [self, key])

    def __len__(self) -> int:
        return self._student.call(len, [self])

    def __bool__(self) -> bool:
        return True

    def __deepcopy__(self, memory: dict[int, Any]) -> "StandIn":
        return self


def stand_in(student: Student, number: int, kind: Any) -> StandIn:
    """A stand-in, whose type bears the name of the student's, which messages tell."""
    name = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < 60 else "object"
    made = type(name, (StandIn,), {})()
    made._student, made._number = student, number
    return made


def there(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of the check's own, run where the student's code is.

    In a notebook that is here. In the judge's kernel the function and what it uses of its page go to the student's
    process, in whose hands the result then is: the function must know no right answer, and compare nothing.

    Args:
        function: of the page or of the course.
        arguments: among them what the student has defined.
    """
    found = next((each for each in arguments if isinstance(each, StandIn)), None)
    return function(*arguments) if found is None else found._student.call(function, arguments)


class StudentError(Exception):
    """An error of the student's own kind."""


def student_error(told: Any) -> Exception:
    """The error that a student's process tells, of its name and, where it can be, of a type that Python has."""
    known = told if isinstance(told, dict) else {}
    name, text, base, shown = (str(known.get(key) or "")[:TEXT] for key in ("name", "text", "base", "shown"))
    kind = getattr(builtins, base or name, None)
    fits = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UNLIKE)
    parent = kind if fits else StudentError
    words = {"__str__": lambda self: text, "_render_traceback_": lambda self: [shown or f"{name}: {text}"]}
    return type(name if name.isidentifier() else "StudentError", (parent,), words)(text)


def _looked_up(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _looked_up(constant)
