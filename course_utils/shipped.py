"""The trained networks that ship with the package: their names, files and cards.

Each is two files in the folder `weights`: NAME.safetensors, which `Checkpoint.load("NAME")` reads, and NAME.json, its
card. `data_scripts/train_network.py NAME` trains it again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.files import sha256
from course_utils.plain import read_json

WEIGHTS = Path(__file__).parent / "weights"
TOLD = ("about", "not_for", "budget", "figures")
"""What a card tells that its file of weights does not."""


def names() -> list[str]:
    """The names of the networks that ship, in alphabetical order."""
    return sorted(path.stem for path in WEIGHTS.glob("*.json"))


def card(name: str) -> dict[str, Any]:
    """What is known of a shipped network: data, licence, training, figures, what it is not for.

    Raises:
        CourseError: there is no network of this name.
    """
    if name not in names():
        raise CourseError(f"no network called '{name}' ships with the package: choose from {', '.join(names())}")
    return json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


def card_beside(path: Path) -> dict[str, Any]:
    """The card that was written beside a file of weights, `NAME.json`; nothing where there is none.

    Raises:
        CourseError: it cannot be read.
    """
    beside = path.with_suffix(".json")
    told = read_json(beside, "get it again, or remove it") if beside.is_file() else {}
    return told if isinstance(told, dict) else {}


def told_of(path: Path, digest: str) -> dict[str, Any]:
    """What the card beside a file of weights tells beyond the file; nothing where it is not the card of this file.

    Args:
        path: Of the weights.
        digest: Their SHA-256.
    """
    if path.parent != WEIGHTS or path.stem not in names():
        return {}
    known = card(path.stem)
    return {key: known[key] for key in TOLD if known["sha256"] == digest}


def resolve(model: str | Path) -> Path:
    """The file that a user means by a path, or by the name of a network that ships.

    A file of exactly this path is taken first. What ships is compared with its card, so that nobody measures or uses a
    file that was changed.

    Raises:
        CourseError: there is neither such a file nor such a network; the file that ships is not what its card tells of.
    """
    path = Path(model)
    if path.is_file():
        return path
    if str(model) not in names():
        raise CourseError(
            f"{path} does not exist: name a checkpoint that `train` wrote, such as OUT/best.pt, or a network that "
            f"ships: {', '.join(names())}"
        )
    path = WEIGHTS / f"{model}.safetensors"
    if not path.is_file() or sha256(path) != card(str(model))["sha256"]:
        raise CourseError(f"{path} is not the file that its card describes: install the package again")
    return path


def overview() -> str:
    """A line for each network that ships, as text: name, grid, size of the file, and what was measured."""
    if not names():
        return "no network ships with this package"
    rows = []
    for name in names():
        known = card(name)
        grid = f"{'x'.join(map(str, known['shape']))}, {'x'.join(f'{mm:g}' for mm in known['spacing_mm'])} mm"
        size = f"{(WEIGHTS / f'{name}.safetensors').stat().st_size / 1000:.0f} kB"
        rows.append((name, known["about"], grid, size, known["summary"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def readable(known: Mapping[str, Any]) -> str:
    """A card as text: a line for each fact, tables below their titles.

    Args:
        known: What `card` returns.
    """
    lines = []
    for key, value in known.items():
        title = key.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [f"{title}:", *(f"  {name}: {_short(its)}" for name, its in value.items())]
        else:
            lines.append(f"{title}: {_short(value)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)}: {', '.join(map(str, value[:3]))}, ... {value[-1]}"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(its)}" for name, its in value.items())
    return str(value)
