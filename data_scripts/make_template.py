"""Make course_utils/data/template anew: the ICBM152 template as nilearn ships it, and a map of its tissues.

The course ships both files, so that it needs no nilearn (whose demands on pandas and requests are above what Colab
keeps). This script says where they come from: `pip install nilearn`, then `python data_scripts/make_template.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import typer
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from numpy.typing import NDArray
from scipy import ndimage

from course_utils.commands.ending import run
from course_utils.data.synthetic import TEMPLATE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def make_template(out: Annotated[Path, typer.Argument(help="The folder to write into.")] = TEMPLATE) -> None:
    """Write t1.nii.gz, the brightness in 255 steps, and tissue.nii.gz, the index in `TISSUES` plus one."""
    t1, grey, white = (
        load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    affine = t1.affine
    t1, grey, white = (volume.get_fdata(dtype=np.float32) for volume in (t1, grey, white))
    for name, values in ("t1", np.rint(255 * t1)), ("tissue", tissues(t1, grey, white, affine[:3, 3])):
        volume = nib.Nifti1Image(values.astype(np.uint8), affine)
        volume.header.set_xyzt_units("mm")
        volume.to_filename(out / f"{name}.nii.gz")


def tissues(
    t1: NDArray[np.float32], grey: NDArray[np.float32], white: NDArray[np.float32], origin: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The tissue of each voxel: its index in `TISSUES` plus one, 0 outside the brain.

    nilearn ships no atlas of deep structures. Deep grey is found as grey matter inside ellipsoids over thalamus,
    caudate, putamen and pallidum in MNI space; the lateral ventricles as the largest connected fluid far below the
    surface there (with them go their openings into the third). The cerebellum's cortex counts as cortical grey.

    Args:
        t1: brightness from 0 to 1, of shape (X, Y, Z) with voxels of 1 mm.
        grey: the share of grey matter in each voxel.
        white: the share of white matter.
        origin: MNI millimetres of voxel 0.
    """
    axes = [low + np.arange(size) for low, size in zip(origin, t1.shape, strict=True)]
    x, y, z = np.ix_(*axes)
    x = np.abs(x)  # the template is symmetric

    def ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.bool_]:
        (a, b, c), (ra, rb, rc) = centre, radii
        return ((x - a) / ra) ** 2 + ((y - b) / rb) ** 2 + ((z - c) / rc) ** 2 < 1

    brain = t1 > 0
    fluid = brain & (1 - grey - white > np.maximum(grey, white))
    depth = ndimage.distance_transform_edt(brain)  # mm
    inside = (depth > 10) & (x < 40) & (y > -60) & (y < 35) & (z > -6) & (z < 32)
    components, _ = ndimage.label(fluid & inside)
    core = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    # Mixed voxels line the ventricles: the dark ones belong to them, and the grey they seem to be is not cortex.
    ventricle = core | ndimage.binary_dilation(core, iterations=2) & (t1 < 0.6)
    lining = ndimage.binary_dilation(core, iterations=4)
    brainstem = ellipsoid((0, -28, -35), (17, 15, 32))
    deep = (
        ellipsoid((11, -18, 8), (12, 16, 12))  # thalamus
        | ellipsoid((24, 2, 1), (10, 20, 12))  # putamen and pallidum
        | ellipsoid((12, 13, 6), (8, 13, 14))  # head of the caudate
        | ellipsoid((16, -2, 20), (7, 14, 8))  # its body
        | ellipsoid((0, -8, 4), (28, 28, 18))  # what is grey between them
    )
    deep = ndimage.binary_opening(deep & (grey > 0.25) & ~brainstem)
    # The fluid of narrow sulci is mixed too, and dark; so is the brain's rim, but that is cortex cut by the mask.
    fluid |= (depth > 3) & (t1 < 0.6)
    return np.select([~brain, ventricle, fluid, deep, (white > grey) | lining | brainstem], [0, 4, 5, 3, 2], 1)


if __name__ == "__main__":
    run(app)
