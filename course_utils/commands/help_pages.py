"""The help of the program and of each command, stored: who only asks need not wait until PyTorch is imported.

`python -m tests.help_pages` writes the pages anew after an option has changed.
"""

import shutil
from pathlib import Path

PROGRAM = "python -m course_utils"
PAGES = Path(__file__).parent / "help"
WIDTH = 80
"""The columns that pages are laid out for; wider screens get no longer lines."""


def stored(command: str | None = None) -> str | None:
    """The page of a command, or of the program; None where the screen is too narrow for it."""
    if shutil.get_terminal_size().columns < WIDTH:
        return None
    return (PAGES / f"{command or 'program'}.txt").read_text(encoding="utf-8").removesuffix("\n")
