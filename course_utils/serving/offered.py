"""The networks that a page offers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from course_utils import shipped
from course_utils.data.grids import by
from course_utils.errors import CourseError

NONE = "none"
"""The choice of no network."""


@dataclass(frozen=True)
class Offered:
    """A choice of the page.

    Attributes:
        name: That a request has.
        label: That a reader sees.
        model: A network's name or file, for the server alone; None is no network.
    """

    name: str
    label: str
    model: str | None


def offered(files: Iterable[Path] = ()) -> dict[str, Offered]:
    """What can register a volume, by name: no network, those that ship, and those of some files.

    Raises:
        CourseError: a file is no checkpoint, or of a 2-D network.
    """
    choices = [Offered(NONE, "No network: optimisation alone", None)]
    for name in shipped.names():
        card = shipped.card(name)
        if len(card["shape"]) == 3:
            choices.append(Offered(name, f"{name}: {card['about']}", name))
    for number, path in enumerate(files, 1):
        choices.append(Offered(f"own{number}", _label(path), str(path.resolve())))
    return {choice.name: choice for choice in choices}


def _label(path: Path) -> str:
    from course_utils.checkpoint import Checkpoint  # PyTorch takes seconds, which a server without own files saves

    if not path.is_file():
        raise CourseError(f"--model {path} does not exist: name a checkpoint; networks that ship are offered anyway")
    shape = Checkpoint.load(path).card.recipe.shape
    if len(shape) != 3:
        raise CourseError(f"--model {path} is a 2-D network, and the page registers volumes: leave it out")
    # The folder's name alone: the page tells nobody where on the server a file is.
    return f"{path.resolve().parent.name}, {path.stem}: your own, {by(shape)} voxels"
