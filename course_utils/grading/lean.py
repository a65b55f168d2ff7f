"""What processes of grading do not load."""

import sys
from types import ModuleType
from typing import cast


def spare_seconds() -> None:
    """Leave out the grammar of addresses that jsonschema would build, for seconds, and no notebook needs.

    MONAI and nbformat import jsonschema, which does without where the module cannot be imported.
    """
    sys.modules.setdefault("rfc3987_syntax", cast(ModuleType, None))
