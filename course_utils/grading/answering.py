"""The student's side: a process in a sandbox that runs the student's cells, and answers calls of what they define.

It knows the cells of the assignment without the checks, and the student's. Checks, expected values and comparisons are
in another process, the judge's. So whatever a cell changes here, in IPython, in PyTorch or in this very module, changes
its own answers only.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from torch.utils.data import Dataset
from traitlets.config import Config

from course_utils.grading.grades import PICTURE, PICTURES, TEXT
from course_utils.grading.layers import built
from course_utils.grading.link import Broken, Message, Peer
from course_utils.grading.plain import NotPlain, pack, unpack
from course_utils.grading.sandbox import OUT_OF_MEMORY
from course_utils.grading.standins import student_error

OUTPUT = 100_000
"""Characters that a cell may write to each of its two streams; the rest is dropped."""

RESERVE = 16 << 20
"""Bytes that are kept to say with that the memory is exhausted."""


class ShortText(io.StringIO):
    """What a cell writes, cut after `OUTPUT` characters: 100 MB of them fill no memory and no message."""

    def __init__(self) -> None:
        super().__init__()
        self._left = OUTPUT

    def write(self, text: str) -> int:
        if self._left >= 0:
            cut = text if len(text) <= self._left else f"{text[: self._left]}\n[cut here: {OUTPUT} characters]"
            super().write(cut)
            self._left -= len(text) + 1
        return len(text)

    def close(self) -> None:
        """A cell that closes its output loses nothing that it has written."""


class Shell(InteractiveShell):
    """IPython without a terminal: what its cells show and how they fail is kept."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown: list[dict[str, str]] = []
        self.failure: dict[str, str] | None = None

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: Sequence[str]) -> None:
        self.failure = _error(evalue, "\n".join(map(str, stb)))

    def ask_exit(self) -> None:
        """`exit()` ends the cell, if anything, and not the process."""

    def enable_gui(self, gui: str | None = None) -> None:
        """There are no windows; `%matplotlib inline` asks for none."""

    def system(self, cmd: str) -> None:
        """A line `!command`, or one of a magic such as `%pip`; IPython's own needs a terminal, and a sandbox has none.

        One that fails says so and ends no cell, as in IPython.
        """
        done = subprocess.run(
            self.var_expand(cmd, depth=1),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        print(done.stdout, end="")
        self.user_ns["_exit_code"] = done.returncode


class Publisher(DisplayPublisher):
    """Keeps what a cell displays."""

    def publish(self, data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        keep(self.shell, data)


class Hook(DisplayHook):
    """Keeps what the last line of a cell is worth."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        keep(self.shell, format_dict)

    def write_output_prompt(self) -> None:
        pass

    def finish_displayhook(self) -> None:
        pass


def keep(shell: Any, data: dict[str, Any]) -> None:
    """Keep a picture or a text that a cell shows."""
    picture, text = data.get("image/png"), data.get("text/plain")
    if isinstance(picture, bytes):
        from base64 import b64encode

        picture = b64encode(picture).decode()
    if isinstance(picture, str):
        if len(picture) <= PICTURE and sum("picture" in each for each in shell.shown) < PICTURES:
            shell.shown.append({"picture": picture})
    elif isinstance(text, str):
        print(text)


class Answering:
    """The student's session: it runs cells when it is asked to, and functions that they have defined.

    Args:
        cells: in the order of the page, the assignment's own among them.
        number: of the socket to the judge.
    """

    def __init__(self, cells: Sequence[str], number: int) -> None:
        self._cells = cells
        self._done = 0  # so many of the cells have run
        self._objects: list[Any] = []
        self._process = os.getpid()
        self._reserve = [bytearray(RESERVE)]
        # Workers of a DataLoader may ask for pairs, too.
        self._judge = Peer(number, self._answer, multiprocessing.get_context("fork").RLock())
        config = Config()
        config.HistoryManager.enabled = False
        self._shell = Shell.instance(config=config, display_pub_class=Publisher, displayhook_class=Hook)
        self._handlers: dict[str, Callable[[dict[str, Any], bytes | bytearray], Any]] = {
            "prepare": self._prepare,
            "run": self._run,
            "call": self._call,
        }

    def serve(self) -> None:
        """Answer the judge until there is none."""
        with contextlib.suppress(Broken):
            self._judge.serve()

    def _answer(self, question: dict[str, Any], row: bytes | bytearray) -> Message:
        answer = bytearray()
        try:
            handler = next(self._handlers[name] for name in self._handlers if name in question)
            return {"result": pack(handler(question, row), answer, self._kept)}, answer
        except MemoryError as error:
            self._reserve.clear()
            return {"error": _error(error, "")}, b""
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answers, too
            return {"error": _error(error, "".join(traceback.format_exception(error)))}, b""

    def _prepare(self, question: dict[str, Any], row: bytes | bytearray) -> None:
        """Run the cells before the one of this number.

        Raises:
            Exception: the first of their errors.
        """
        failure = None
        while self._done < question["prepare"]:
            failure = failure or self._run_cell()[1]
        if failure is not None:
            raise student_error(failure)

    def _run(self, question: dict[str, Any], row: bytes | bytearray) -> dict[str, Any]:
        while self._done < question["run"]:
            self._run_cell()
        shown, failure = self._run_cell()
        here = self._shell.user_ns
        names = {name: here[name] for name in question["names"] if name in here}
        return {"shown": shown, "error": failure, "names": names}

    def _run_cell(self) -> tuple[list[dict[str, str]], dict[str, str] | None]:
        shell, texts = self._shell, ShortText()
        errors = ShortText()
        shell.shown, shell.failure = [], None
        with contextlib.redirect_stdout(texts), contextlib.redirect_stderr(errors):
            shell.run_cell(self._cells[self._done])
        if os.getpid() != self._process:  # the cell has forked: one answers
            os._exit(0)
        self._done += 1
        written = [{"text": text} for text in (texts.getvalue(), errors.getvalue()) if text]
        return [*written, *shell.shown], shell.failure

    def _call(self, question: dict[str, Any], row: bytes | bytearray) -> Any:
        other = partial(self._other, row)
        function = other(question["call"])
        arguments = unpack(question["arguments"], row, other)
        options = unpack(question["options"], row, other)
        nowhere = ShortText()
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            torch.set_grad_enabled(question["gradients"]),
        ):
            return function(*arguments, **options)

    def _kept(self, value: Any) -> dict[str, Any]:
        """What the judge knows an object by that is no plain data."""
        self._objects.append(value)
        return {"object": [len(self._objects) - 1, type(value).__name__]}

    def _other(self, row: bytes | bytearray, document: dict[str, Any]) -> Any:
        """What the judge has sent that is no plain data."""
        ((kind, told),) = document.items()
        if kind == "object":
            return self._objects[told]
        if kind == "named":
            return _named(*told)
        if kind == "text":
            return self._of_texts(row, *told)
        if kind == "layer":
            return built(unpack(told, row, partial(self._other, row)))
        if kind == "pairs":
            return LentPairs(partial(self._ask_for, told[0]), told[1])
        if kind == "function":
            lent = partial(self._ask_for, told[0])

            def function(*arguments: Any, **options: Any) -> Any:
                return lent(*arguments, **options)

            function.__name__ = function.__qualname__ = told[1]
            return function
        raise NotPlain(f"a {kind} is not known")

    def _of_texts(
        self, row: bytes | bytearray, name: str, texts: dict[str, str], used: dict[str, dict[str, Any]]
    ) -> Callable[..., Any]:
        """A function of the check's page, whose text the judge has sent."""
        names: dict[str, Any] = {"__name__": "__check__"}
        for each, document in used.items():
            ((kind, told),) = document.items()
            if kind == "module":
                names[each] = importlib.import_module(told)
            else:
                names[each] = _named(*told) if kind == "named" else unpack(told, row, partial(self._other, row))
        for text in texts.values():
            exec(text, names)
        return names[name]

    def _ask_for(self, number: int, *arguments: Any, **options: Any) -> Any:
        """What the judge answers when something that it has lent is used."""
        row = bytearray()
        question = {"lent": number, "arguments": pack(list(arguments), row), "options": pack(options, row)}
        message, brought = self._judge.ask(question, row)
        if "error" in message:
            raise student_error(message["error"])
        return unpack(message["result"], brought)


class LentPairs(Dataset):
    """A data set of the judge's, which counts what it is asked for."""

    def __init__(self, ask: Callable[[int], Any], length: int) -> None:
        self._ask, self._length = ask, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._ask(index)


def _named(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _error(error: BaseException, shown: str) -> dict[str, str]:
    """What is told of an error."""
    try:
        text = str(error)
    except Exception:
        text = "(it cannot be told)"
    builtin = next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), "")
    return {"name": type(error).__name__, "base": builtin, "text": text[:TEXT], "shown": shown[-TEXT:]}


def stay_on_this_machine(devices: Any = torch) -> None:
    """Have `torch.set_default_device("cuda")`, which is right on the student's machine, be so where there is no GPU."""
    set_default = devices.set_default_device

    def set_default_device(device: Any) -> None:
        if device is not None and torch.device(device).type != "cpu":
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError, NotImplementedError):
                warnings.warn(f"there is no device {device} here: the default stays as it is", stacklevel=2)
                return
        set_default(device)

    devices.set_default_device = set_default_device


def main(page: Path, number: int) -> None:
    """Answer until the judge is gone; memory that is exhausted ends it with `OUT_OF_MEMORY`.

    Args:
        page: the cells, a list of texts as JSON.
        number: of the socket to the judge.
    """
    cells = json.loads(page.read_text(encoding="utf-8"))
    stay_on_this_machine()
    try:
        Answering(cells, number).serve()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
