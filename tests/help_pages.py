"""Write the stored pages of `--help` anew: `python -m tests.help_pages`."""

from typing import Any

import typer

from course_utils.commands.app import COMMANDS, app
from course_utils.commands.help_pages import PAGES, PROGRAM, WIDTH


def laid_out() -> dict[str, str]:
    """Each page as typer lays it out now, by the name of its file."""
    program: Any = typer.main.get_command(app)
    settings = program.context_settings | {"terminal_width": WIDTH - 2}
    with program.context_class(program, info_name=PROGRAM, **settings) as context:
        # Not the program's own `get_help`, which shows the stored page.
        pages = {"program": super(type(program), program).get_help(context)}
        for name in COMMANDS:
            command = program.get_command(context, name)
            with command.context_class(command, parent=context, info_name=name, **settings) as inner:
                pages[name] = command.get_help(inner)
    return {f"{name}.txt": f"{page}\n" for name, page in pages.items()}


def write() -> None:
    """Write every page, and remove those of commands that are no more."""
    PAGES.mkdir(exist_ok=True)
    pages = laid_out()
    for name, page in pages.items():
        (PAGES / name).write_text(page, encoding="utf-8")
    for path in PAGES.glob("*.txt"):
        if path.name not in pages:
            path.unlink()


if __name__ == "__main__":
    write()
