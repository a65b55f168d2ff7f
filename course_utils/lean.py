"""What a process of the course does without, so that it starts sooner."""

import sys
from types import ModuleType
from typing import cast


def spare_seconds() -> None:
    """Leave out the grammar of addresses that jsonschema would build, for a second or more, and the course never needs.

    MONAI and nbformat import jsonschema, which does without where the module cannot be imported. Call this before them,
    and only in a process that is the course's own: a command or a grader, not somebody's notebook.
    """
    sys.modules.setdefault("rfc3987_syntax", cast(ModuleType, None))
