"""The Jupyter kernel in which submissions are graded: IPython's, and what a student's cell changed is put back.

Before every cell that is not a student's the kernel restores the modules that checks rely on, IPython's own hooks, and
the names of locked cells that the cell uses. So `torch.allclose = lambda *_: True`, a rebound `torch`, a replaced
function of `course_utils` or an AST transformer that drops `assert` change no verdict. It runs in one process with
the student's code, so it is a fence and no wall: code written against this very kernel can still climb it.

`python -m course_utils.grading.kernel FILE -f CONNECTION` starts it; FILE is a `Plan` as JSON.
"""

import ast
import builtins
import contextlib
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from course_utils.grading.plan import Plan, cell_hash, parse

GUARDED = (
    *("builtins", "math", "operator", "functools", "itertools", "IPython"),
    *("numpy", "scipy", "torch", "monai", "course_utils"),
)
"""Modules, with all that lies below them, whose functions and classes are put back."""

LAZY = ("numpy.testing", "torch.testing")
"""Modules that their packages import when they are first used: before a student's cell uses them, if it is up to us."""

OUTPUT = 100_000
"""Characters that a cell may write to each of its two streams; the rest is dropped."""


class Snapshot:
    """Functions and classes of modules, as they were, down to the methods of the classes and the code of the functions.

    So are the modules that they know by a name of their own, and no new name there hides one of Python's. All other
    values are left alone: libraries keep settings and caches there, and fill them when first used.
    """

    def __init__(self, modules: Iterable[str]):
        self._of_python = {name for name in vars(builtins) if not name.startswith("_")}
        self._modules = {name: sys.modules[name] for name in modules if isinstance(sys.modules.get(name), ModuleType)}
        self._holders: dict[int, tuple[Any, dict[str, Any], set[str]]] = {}
        self._functions: dict[int, tuple[FunctionType, tuple[Any, ...]]] = {}
        for module in self._modules.values():
            self._hold(module)

    def _hold(self, holder: Any) -> None:
        if id(holder) in self._holders:
            return
        kept = {name: value for name, value in vars(holder).items() if callable(value) or _is_kept(value)}
        self._holders[id(holder)] = holder, kept, set(vars(holder))
        for value in kept.values():
            if isinstance(value, FunctionType):
                self._functions[id(value)] = value, _inside(value)
            elif isinstance(value, type) and value.__module__.split(".")[0] in GUARDED:
                self._hold(value)

    def restore(self) -> None:
        """Put back what is not what it was."""
        sys.modules.update(self._modules)
        for holder, kept, names in self._holders.values():
            now = vars(holder)
            for name in [name for name, value in kept.items() if now.get(name) is not value]:
                _set(holder, name, kept[name])
            # A method that was added hides an inherited one; a module's `abs`, Python's own.
            added = set(now) if isinstance(holder, type) else self._of_python & now.keys()
            for name in [name for name in added - names if callable(now[name])]:
                delattr(holder, name)
        for function, inside in self._functions.values():
            if _inside(function) != inside:
                function.__code__, function.__defaults__, keywords = inside
                function.__kwdefaults__ = dict(keywords) if keywords else None


def _is_kept(value: Any) -> bool:
    kinds = (staticmethod, classmethod, property, ModuleType)
    return issubclass(type(value), kinds)  # isinstance would ask the value itself


def _inside(function: FunctionType) -> tuple[Any, ...]:
    keywords = function.__kwdefaults__
    return function.__code__, function.__defaults__, tuple(keywords.items()) if keywords else None


def _set(holder: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError):  # a class of C, which nobody could have changed either
        setattr(holder, name, value)


class GradedKernel(IPythonKernel):
    """IPython's kernel, which trusts the cells of the assignment and no other."""

    plan: Plan
    shell: Any

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._snapshot: Snapshot | None = None
        self._locked: dict[str, Any] = {}  # what locked cells bound
        self.shell.ask_exit = lambda: None  # exit() would end the kernel some time after its cell
        self.shell.system = self._system
        self._hooks = _hooks(self.shell)

    async def do_execute(self, code: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        answers = self.plan.answers.get(cell_hash(code))
        if answers is not None:
            self._answers = answers
            if self._snapshot is None:
                self._snapshot = take_snapshot(self.plan.imports)
            return await super().do_execute(code, *arguments, **options)
        names = self.shell.user_ns
        if self._snapshot is not None:
            self._snapshot.restore()
            _put_back(self.shell, self._hooks)
            used = _names(code) - set(self._answers)
            names.update({name: value for name, value in self._locked.items() if name in used})
        before = dict(names)
        reply = await super().do_execute(code, *arguments, **options)
        self._locked |= {name: value for name, value in names.items() if before.get(name, self) is not value}
        return reply

    def _system(self, command: str) -> None:
        """A line `!command`, or one of a magic such as `%pip`; IPython's own needs a terminal, and a sandbox has none.

        One that fails says so and ends no cell, as in IPython.
        """
        done = subprocess.run(
            self.shell.var_expand(command, depth=1),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        print(done.stdout, end="")
        self.shell.user_ns["_exit_code"] = done.returncode


def take_snapshot(imports: Iterable[str]) -> Snapshot:
    """A snapshot of every guarded module that the notebook may use."""
    for name in (*imports, *LAZY):
        if name in LAZY and name.partition(".")[0] not in sys.modules:
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return Snapshot([name for name in sys.modules if name.split(".")[0] in GUARDED])


def _names(code: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(parse(code)) if isinstance(node, ast.Name)}
    except SyntaxError:  # it holds a magic of IPython's
        return set()


_LISTS = ("ast_transformers", "input_transformers_post")


def _hooks(shell: Any) -> dict[str, Any]:
    manager = shell.input_transformer_manager
    return {
        "attributes": dict(vars(shell)),
        "lists": {name: list(getattr(shell, name)) for name in _LISTS},
        "transforms": (
            list(manager.cleanup_transforms),
            list(manager.line_transforms),
            list(manager.token_transformers),
        ),
        "events": {name: list(functions) for name, functions in shell.events.callbacks.items()},
    }


def _put_back(shell: Any, hooks: dict[str, Any]) -> None:
    """Undo what a cell hung into IPython and Python to change, hide or watch later cells."""
    for name in [name for name, value in vars(shell).items() if callable(value) and name not in hooks["attributes"]]:
        delattr(shell, name)
    for name, value in hooks["lists"].items():
        getattr(shell, name)[:] = value
    manager = shell.input_transformer_manager
    manager.cleanup_transforms[:], manager.line_transforms[:], manager.token_transformers[:] = (
        list(transforms) for transforms in hooks["transforms"]
    )
    for name, functions in hooks["events"].items():
        shell.events.callbacks[name][:] = functions
    shell.custom_exceptions = ()
    sys.settrace(None)
    sys.setprofile(None)
    threading.settrace(None)
    threading.setprofile(None)


class ShortStream(OutStream):
    """A cell's stdout or stderr, cut after `OUTPUT` characters: 100 MB of them fill no memory and no disk."""

    _written = 0

    def set_parent(self, parent: dict[str, Any]) -> None:
        self._written = 0
        super().set_parent(parent)

    def write(self, string: str) -> int | None:
        if not isinstance(string, str) or self._written > OUTPUT:
            return len(string) if isinstance(string, str) else super().write(string)
        left = OUTPUT - self._written
        self._written += len(string) + 1
        super().write(
            string if len(string) <= left else f"{string[:left]}\n[cut here: a cell shows {OUTPUT} characters]"
        )
        return len(string)


def main(plan: Path, arguments: list[str]) -> None:
    """Start the kernel."""
    GradedKernel.plan = Plan(**json.loads(plan.read_text(encoding="utf-8")))
    IPKernelApp.launch_instance(
        [
            *arguments,
            "--IPKernelApp.outstream_class=course_utils.grading.kernel.ShortStream",
            "--HistoryManager.enabled=False",
        ],
        kernel_class=GradedKernel,
    )


if __name__ == "__main__":
    # Under its own name, for the stream's class, which is found by name, is of this very module then.
    importlib.import_module("course_utils.grading.kernel").main(Path(sys.argv[1]), sys.argv[2:])
