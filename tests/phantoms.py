"""Scans of a known object in known places: an analytic function of millimetres, seen through any grid."""

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from course_utils.data.grids import Grid
from course_utils.data.volumes import read_image

RNG = np.random.default_rng(7)
CENTRES, WIDTHS, HEIGHTS = RNG.uniform(-20, 20, (3, 25)), RNG.uniform(4, 8, 25), RNG.uniform(-350, 500, 25)


def grid(shape=(24, 26, 22), spacing=(2.5, 2.5, 2.5), codes="RAS", degrees=0.0, centre=(0.0, 0.0, 0.0)):
    """A grid around a centre in mm, its axes those of the codes, then turned about an oblique direction."""
    axes = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        row = next(row for row, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        axes[row, axis] = 1 if code in "RAS" else -1
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, -0.48, 0.64])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(spacing)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def positions(of):
    """Millimetres of every voxel, `(3, *shape)`."""
    return apply(of.affine, np.stack(np.indices(of.shape)))


def apply(matrix, points):
    return np.tensordot(matrix[:3, :3], points, 1) + matrix[:3, 3].reshape(3, *[1] * (points.ndim - 1))


def intensity(points):
    """A head with lumps in it, `(3, ...)` mm to 0 to about 1000; nothing further than 27 mm from the centre."""
    lumps = sum(
        height * np.exp(-0.5 * sum((points[i] - centre[i]) ** 2 for i in range(3)) / width**2)
        for centre, width, height in zip(CENTRES.T, WIDTHS, HEIGHTS, strict=True)
    )
    edge = 1 / (1 + np.exp((np.linalg.norm(points, axis=0) - 23) / 1.0))
    return edge * np.clip(450 + lumps, 50, 1000)


def structures(points):
    """Its label map: a shell and a core."""
    radius = np.linalg.norm(points / np.array([1.2, 1.0, 0.9]).reshape(3, *[1] * (points.ndim - 1)), axis=0)
    return (radius < 18).astype(np.uint8) + (radius < 9)


def save(path, array, on, dtype=np.float32, sform=1, qform=1):
    image = nib.Nifti1Image(array.astype(dtype), on.affine)
    image.set_sform(on.affine, sform)
    image.set_qform(on.affine, qform)
    nib.save(image, path)
    return path


PLACES = {
    "same": grid(),
    "flipped LAS": grid((26, 24, 25), codes="LAS"),
    "permuted RPI": grid((22, 27, 30), (2.0, 2.5, 3.0), codes="PIR"),
    "oblique, anisotropic, shifted": grid((30, 26, 16), (1.8, 2.2, 4.5), "LPS", degrees=25, centre=(4, -3, 5)),
}
PAIRS = [("flipped LAS", "permuted RPI"), ("oblique, anisotropic, shifted", "same"), ("permuted RPI", "flipped LAS")]
PAIRS += [("same", "oblique, anisotropic, shifted")]


def volume(folder, place, name="image.nii.gz", **options):
    """The phantom on one of these grids, written to a file and read again."""
    grid = PLACES[place]
    return read_image(save(folder / name, intensity(positions(grid)), grid, **options))
