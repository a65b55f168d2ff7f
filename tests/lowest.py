"""The lowest version that is declared of each package that the course asks for, as constraints for pip.

`python tests/lowest.py > lowest.txt`, then `pip install --constraint lowest.txt --editable ".[notebooks,test,export]"`:
what works with these works with everything that is declared.
"""

import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(pyproject: Path = PYPROJECT) -> Iterator[str]:
    """Yield `name==version` for each requirement with a lower bound, of the package and of its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    for text in sorted(set(chain(project["dependencies"], *project["optional-dependencies"].values()))):
        requirement = Requirement(text)
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if bounds:
            yield f"{requirement.name}=={bounds[0]}"


if __name__ == "__main__":
    print(*lowest(), sep="\n")
