"""Where data and results go by default: to one place, wherever in the course's folder a program was started."""

import os
import tomllib
from pathlib import Path


def home() -> Path:
    """The folder that `data` and `runs` are in: in a checkout of the course its root, elsewhere the current folder.

    A notebook runs in `notebooks`, a command mostly at the root; both must find what the other one made. The checkout
    is the nearest folder upwards whose `pyproject.toml` is the course's.

    Returns:
        A path relative to the current folder.
    """
    here = Path.cwd()
    for levels, folder in enumerate((here, *here.parents)):
        if _is_course(folder / "pyproject.toml"):
            return Path(*[".."] * levels)
    return Path()


def place(variable: str, default: str) -> Path:
    """What an environment variable names, or `default` where it is unset; either is meant from `home` on."""
    return home() / (os.environ.get(variable) or default)


def _is_course(path: Path) -> bool:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("name") == "course_utils"
    except (OSError, ValueError, AttributeError):  # none, of something else, or somebody's who is still writing it
        return False
