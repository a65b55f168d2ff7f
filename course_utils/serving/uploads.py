"""Files from strangers: what they are is read from a few hundred bytes before anything is made of the rest.

A file that claims more voxels than it may have, or that unpacks to more than it claims, is refused without ever being
held in memory.
"""

import math
from pathlib import Path

from course_utils.data.formats import open_nifti
from course_utils.data.grids import by
from course_utils.data.stored import is_packed
from course_utils.serving.refusal import Refusal


def check_upload(path: Path, what: str, voxels: int) -> str:
    """Refuse an uploaded file that is no whole NIfTI volume of bounded size.

    Args:
        path: Of the file, which is not changed.
        what: It is meant to be, to begin the line with: "the fixed scan".
        voxels: It may have at most.

    Returns:
        How the name of such a file ends, `".nii"` or `".nii.gz"`: what it holds decides, not what it was called.

    Raises:
        Refusal: 400, it is something else, damaged or truncated; 413, it is too large.
    """
    try:
        stored, _ = open_nifti(path)
        _check_shape(stored.shape, what, voxels)
        stored.check_whole()
    except Refusal:
        raise
    except Exception as error:  # of nibabel, gzip and zlib, each in its own words, and of the reader's bounds
        reason = " ".join(str(error).replace(str(path), "it").split())[:120]
        raise Refusal(
            400, f"{what} is not a whole NIfTI volume in one file ({reason}): save it again as .nii or .nii.gz"
        ) from error
    return ".nii.gz" if is_packed(path) else ".nii"


def _check_shape(shape: tuple[int, ...], what: str, voxels: int) -> None:
    if len(shape) < 3 or min(shape) < 1:
        raise Refusal(400, f"{what} is no volume, as its header has it: save it as one volume of three axes")
    if math.prod(shape[3:]) > 1:
        raise Refusal(400, f"{what} holds several volumes ({by(shape)}): save one of them")
    if math.prod(shape) > voxels:
        raise Refusal(413, f"{what} has {by(shape[:3])} voxels, and this server takes {voxels}: crop or resample it")
