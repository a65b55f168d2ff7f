"""The judge: a Jupyter kernel in which an assignment's own cells and its checks run, and no cell of a student's.

Where the student's cell stood, one of `course_utils.grading.pages.cell_of` does; it has the student's process run the
cell, shows what that shows, and binds stand-ins of the names that the exercise asks for.
"""

import base64
import binascii
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.display import display

from course_utils.grading.pages import NAME
from course_utils.grading.standins import Student


class Guest(Student):
    """The student's process in the judge's page; without it there is nothing to judge, and the kernel ends.

    What the assignment's own cells have bound no cell of a student's binds anew, whatever the exercise asks for.

    Args:
        number: of the socket to it.
        page: the names of the judge's page.
    """

    def __init__(self, number: int, page: dict[str, Any]) -> None:
        super().__init__(number, lambda: os._exit(1))
        self._page = page
        self._answered: set[str] = set()

    def answer(self, number: int, names: Sequence[str]) -> None:
        """Run a cell of the student's, show what it shows, and bind the names here.

        Raises:
            Exception: the cell's own.
        """
        bound, shown, failure = self.run(number, names)
        # Where the cell fails, too: what stands before that line counts.
        new = {name: value for name, value in bound.items() if name in self._answered or name not in self._page}
        self._answered |= set(new)
        self._page.update(new)
        show(shown)
        if failure is not None:
            raise failure


def show(outputs: Iterable[Any]) -> None:
    """Show texts and pictures, as a cell that is run here would."""
    for output in outputs:
        text, picture = (output.get(key) if isinstance(output, dict) else None for key in ("text", "picture"))
        if isinstance(text, str):
            print(text, end="")
        elif isinstance(picture, str) and _is_png(picture):
            display({"image/png": picture}, raw=True)


def _is_png(picture: str) -> bool:
    try:
        return base64.b64decode(picture, validate=False).startswith(b"\x89PNG")
    except (binascii.Error, ValueError):
        return False


class JudgeKernel(IPythonKernel):
    """IPython's kernel, whose page knows the student's process."""

    number: int
    shell: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shell.user_ns[NAME] = Guest(self.number, self.shell.user_ns)


def main(number: int, connection: str) -> None:
    """Be the kernel, until it is told to end.

    Args:
        number: of the socket to the student's process.
        connection: the file that says by which sockets the kernel is reached.
    """
    JudgeKernel.number = number
    IPKernelApp.launch_instance(["-f", connection, "--HistoryManager.enabled=False"], kernel_class=JudgeKernel)
