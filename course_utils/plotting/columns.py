"""Words for the columns of the course's tables."""

import re

_MEASURES = {
    "dice": "Dice",
    "folding": "folded voxels",
    "hd": "Hausdorff distance",
    "hd95": "HD95",
    "ndv": "volume turned over",
    "self": "moved against itself",
    "swap": "there and back",
    "sdlogj": "SDlogJ",
    "tre": "target registration error",
}


def describe_column(column: str) -> str:
    """Words for a column's name: "hd95_mm_after" is "HD95 (mm)"."""
    name = re.sub(r"_(before|after)$", "", column)
    validation = "validation " if name.startswith("validation_") else ""
    name = name.removeprefix("validation_")
    measure, unit = name, ""
    for ending, text in (("_mm", " (mm)"), ("_percent", " (%)"), ("_voxels", " (voxels)")):
        if name.endswith(ending):
            measure, unit = name.removesuffix(ending), text
    return validation + _MEASURES.get(measure, measure.replace("_", " ")) + unit
