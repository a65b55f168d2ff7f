"""The built-in cohort: brains made from one template by known diffeomorphisms, so that the true map is known.

A subject `s` is the ICBM152 2009a T1 template seen through `phi_s = exp(v_s)`: `image_s(x) = T(x + d_s(x))`,
where `v_s` is a smooth random stationary velocity and `d_s` its displacement. Labels go through the same map;
contrast, a bias field and noise come on top. `true_displacement` is then known between any two subjects, and
a registration can be judged by its target registration error instead of by overlap alone. Nothing is downloaded:
the template (Fonov et al., NeuroImage 54, 2011) is in the folder `template`, with its notice.
"""

import json
import math
import os
import secrets
import shutil
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import BSpline
from torch import Tensor

from course_utils.data.formats import open_nifti
from course_utils.data.pairs import Subject
from course_utils.errors import CourseError
from course_utils.fields import compose, integrate, jacobian_determinant

TEMPLATE = Path(__file__).parent / "template"
TISSUES = ("cortical grey", "white matter", "deep grey", "lateral ventricle", "CSF")
LABELS = {
    5 * i + k: f"{side} {tissue}" for i, side in enumerate(("left", "right")) for k, tissue in enumerate(TISSUES, 1)
}

# The field of view in MNI millimetres: the template's brain with a margin in which the velocity fades to zero.
FIELD_OF_VIEW = ((-84.0, 84.0), (-121.0, 87.0), (-77.0, 91.0))
CORONAL_Y = -8.0  # a 2-D cohort is this slice: it shows all five tissues
SPACING = {2: 1.75, 3: 3.5}  # mm; the defaults give 96x96 and 48x64x48
AMPLITUDE = 2.4  # mm
FADE = (2.0, 14.0)  # mm from the edge of the field of view between which the velocity rises from nothing

# Anatomical variation: cubic B-splines on lattices of these spacings (mm), with these shares of the variance.
LATTICES = ((52.0, 0.4), (22.0, 0.6))
BIAS_LATTICE, BIAS_SD = 75.0, 0.12  # mm, and the standard deviation of the log of the bias
GAMMA_SD = 0.15  # of the log of the contrast's exponent
NOISE_SD = 0.025  # of either channel, as a fraction of the template's brightest voxel


class _Grid(NamedTuple):
    """Where the voxels are, in MNI millimetres."""

    axes: tuple[NDArray[np.float64], ...]  # voxel centres along each array axis
    spans: tuple[tuple[float, float], ...]  # and the field of view that they cover
    spacing: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to MNI millimetres. A volume is RAS; a slice's axes are right and superior, its normal posterior."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        if len(self.axes) == 3:
            affine[:3, 3] = [axis[0] for axis in self.axes]
        else:
            affine[1:3, 1:3] = [[0.0, -self.spacing], [self.spacing, 0.0]]
            affine[:3, 3] = self.axes[0][0], CORONAL_Y, self.axes[1][0]
        return affine


class _Scene(NamedTuple):
    """The template as a scanner of some resolution would see it, still sampled at 1 mm."""

    image: NDArray[np.float32]  # 0 to 1
    label: NDArray[np.uint8]
    origin: NDArray[np.float64]  # MNI millimetres of voxel 0


def make_cohort(
    folder: str | Path,
    *,
    subjects: int = 40,
    spacing: float | None = None,
    seed: int = 0,
    amplitude: float = AMPLITUDE,
    dimensions: int = 3,
) -> Path:
    """Make the cohort: `images/NAME.nii.gz`, `labels/`, `velocities/` and `cohort.json` in `folder`.

    Subject number `i` is drawn from `(seed, i)` alone, so a larger cohort begins with the smaller one, and at
    another spacing it is the same brain. The folder appears complete or not at all; one that already holds the cohort
    asked for is kept as it is.

    Args:
        folder: where to put it; parents are made.
        subjects: how many, at least 2.
        spacing: voxel size in mm, 1 to 6; by default 3.5 in 3-D (48x64x48) and 1.75 in 2-D (96x96). The grid's sizes
            are multiples of 16.
        seed: 0 or more.
        amplitude: root mean square of each velocity component inside the brain, in mm. The default gives a mean
            Dice of about 0.57 between two subjects before registration.
        dimensions: 3, or 2 for coronal slices deformed within their plane (array axes right, superior).

    Returns:
        `folder` as a path. Images are int16, labels uint8 (`cohort.json` names them), velocities float32
        `(*spatial, N)` in voxels of the grid.

    Raises:
        CourseError: a parameter is out of range, an amplitude folds a subject, or the folder cannot be written.
    """
    folder = Path(folder)
    if dimensions not in SPACING:
        raise CourseError(f"dimensions must be 2 or 3 for a synthetic cohort, not {dimensions}")
    spacing = float(SPACING[dimensions] if spacing is None else spacing)
    _check_parameters(subjects, spacing, seed, amplitude)
    grid = _grid(spacing, dimensions)
    description = json.dumps(
        {
            "labels": {str(value): name for value, name in LABELS.items()},
            "shape": grid.shape,
            "spacing": [spacing] * dimensions,
            "subjects": subjects,
            "seed": seed,
            "amplitude_mm": float(amplitude),
            "lattices_mm_and_shares": LATTICES,
            "bias_lattice_mm": BIAS_LATTICE,
            "bias_sd": BIAS_SD,
            "gamma_sd": GAMMA_SD,
            "noise_sd": NOISE_SD,
        },
        indent=2,
    ).encode()
    if _holds(folder, description):
        return folder
    # Beside the destination, because a rename is atomic only within one file system.
    destination = folder.resolve()
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CourseError(
                f"{folder} holds something else or a cohort of other parameters; remove it or name another folder"
            )
        for name in ("images", "labels", "velocities"):
            (partial / name).mkdir(parents=True)
        for index in range(subjects):
            _write_subject(partial, index, grid, seed, amplitude)
        (partial / "cohort.json").write_bytes(description)
        try:
            os.replace(partial, destination)
        except OSError:
            if not _holds(folder, description):  # another process may have finished the same cohort first
                raise
    except OSError as error:
        raise CourseError(
            f"cannot write the cohort to {folder}: {error.strerror or error}; free space or name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def true_displacement(fixed: Subject, moving: Subject) -> Tensor:
    """The displacement that aligns `moving` with `fixed`: `(N, *spatial)` float32, voxels of the fixed grid.

    With `d_f` of `exp(v_fixed)`, from the fixed grid to the template, and `p_m` of `exp(-v_moving)`, from the
    template to the moving grid, `u(x) = d_f(x) + p_m(x + d_f(x))`. What remains of error is that of integrating and
    interpolating on a grid: measured at the default parameters, 0.01 voxel on average and 0.3 at worst.

    Raises:
        CourseError: a subject has no velocity, its file (.nii.gz) cannot be read, or the two grids differ.
    """
    fixed_velocity, moving_velocity = _load_velocity(fixed), _load_velocity(moving)
    if fixed_velocity.shape != moving_velocity.shape:
        raise CourseError(
            f"{fixed.velocity} and {moving.velocity} lie on grids of different shape; take both from one cohort"
        )
    return compose(integrate(-moving_velocity), integrate(fixed_velocity))[0]


def _load_velocity(subject: Subject) -> Tensor:
    if subject.velocity is None:
        raise CourseError(f"the true map of {subject.name} is unknown; only the synthetic cohort has velocities")
    try:
        velocity = open_nifti(Path(subject.velocity))[0].read(np.float32)
    except (OSError, ValueError, zlib.error, HeaderDataError) as error:
        raise CourseError(
            f"cannot read the velocity {subject.velocity}; remove the cohort and make it again"
        ) from error
    if velocity.ndim != velocity.shape[-1] + 1:
        raise CourseError(
            f"{subject.velocity} of shape {velocity.shape} is no velocity (*spatial, N); name a file of velocities/"
        )
    return torch.from_numpy(velocity).movedim(-1, 0).unsqueeze(0)


def _check_parameters(subjects: int, spacing: float, seed: int, amplitude: float) -> None:
    if subjects < 2:
        raise CourseError(f"a synthetic cohort needs at least 2 subjects, not {subjects}: registration takes a pair")
    if not 1.0 <= spacing <= 6.0:
        raise CourseError(f"spacing must be 1 to 6 mm for a synthetic cohort, not {spacing}")
    if not 0.0 <= amplitude < math.inf:
        raise CourseError(f"amplitude must be 0 mm or more for a synthetic cohort, not {amplitude}")
    if seed < 0:
        raise CourseError(f"seed must be 0 or more for a synthetic cohort, not {seed}")


def _holds(folder: Path, description: bytes) -> bool:
    try:
        return (folder / "cohort.json").read_bytes() == description
    except OSError:
        return False


def _write_subject(folder: Path, index: int, grid: _Grid, seed: int, amplitude: float) -> None:
    name = f"synthetic_{index + 1:03d}.nii.gz"
    # Two streams: how many numbers the noise takes depends on the spacing, and the anatomy must not.
    anatomy, appearance = np.random.default_rng([seed, index]).spawn(2)
    velocity = _random_velocity(grid, anatomy, amplitude)
    displacement = integrate(torch.from_numpy(velocity).unsqueeze(0))
    inverse = integrate(-torch.from_numpy(velocity).unsqueeze(0))
    if min(jacobian_determinant(field).min() for field in (displacement, inverse)) <= 0:
        raise CourseError(
            f"an amplitude of {amplitude} mm folds subject {index + 1} on this grid; choose a smaller one"
        )
    image, label = _see(grid, displacement[0].numpy())
    _save(folder / "images" / name, _acquire(image, grid, appearance), grid.affine)
    _save(folder / "labels" / name, label, grid.affine)
    _save(folder / "velocities" / name, np.moveaxis(velocity, 0, -1), grid.affine)


def _save(path: Path, array: NDArray, affine: NDArray) -> None:
    picture = nib.Nifti1Image(array, affine)
    picture.header.set_xyzt_units("mm")
    nib.save(picture, path)


def _grid(spacing: float, dimensions: int) -> _Grid:
    """The smallest grid of sizes divisible by 16 that covers the field of view, concentric with it."""
    spans = FIELD_OF_VIEW if dimensions == 3 else (FIELD_OF_VIEW[0], FIELD_OF_VIEW[2])
    axes: list[NDArray[np.float64]] = []
    for low, high in spans:
        size = 16 * math.ceil((high - low) / spacing / 16 - 1e-9)
        axes.append((low + high) / 2 + spacing * (np.arange(size, dtype=np.float64) - (size - 1) / 2))
    return _Grid(tuple(axes), spans, spacing)


def _smooth_noise(grid: _Grid, lattice: float, channels: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random cubic B-splines of mean 0 and variance 1 in every channel, `(channels, *shape)`.

    The control points lie `lattice` mm apart and are fixed to MNI space, not to the grid: a finer grid sees the same
    function. Source of the model: Rueckert et al., IEEE TMI 18(8), 1999.
    """
    spline = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    bases = []
    for axis, (low, high) in zip(grid.axes, grid.spans, strict=True):
        centres = np.arange(low - lattice, high + 2 * lattice, lattice)
        bases.append(np.nan_to_num(spline((axis[:, None] - centres) / lattice)))
    noise = rng.standard_normal((channels, *(basis.shape[1] for basis in bases)))
    for basis in bases:  # each pass turns the next axis of control points into voxels and puts it last
        noise = np.tensordot(noise, basis, axes=(1, 1))
    # The sum of the squares of a cubic B-spline's values is 151/315 on average over the places between control points.
    return noise * (315 / 151) ** (len(bases) / 2)


def _random_velocity(grid: _Grid, rng: np.random.Generator, amplitude: float) -> NDArray[np.float32]:
    """A stationary velocity `(N, *shape)` in voxels that is zero at the border of the field of view."""
    dims = len(grid.axes)
    noises = [math.sqrt(share) * _smooth_noise(grid, lattice, dims, rng) for lattice, share in LATTICES]
    velocity: NDArray[np.float64] = np.sum(noises, axis=0) * (amplitude / grid.spacing)
    for axis, (coordinates, (low, high)) in enumerate(zip(grid.axes, grid.spans, strict=True)):
        to_edge = np.minimum(coordinates - low, high - coordinates)
        ramp = np.sin(np.pi / 2 * np.clip((to_edge - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)) ** 2
        velocity *= np.expand_dims(ramp, [k for k in range(dims) if k != axis])
    return velocity.astype(np.float32)


def _see(grid: _Grid, displacement: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image (0 to 1, free of noise) and label at `x + d(x)` of the template; the displacement is in voxels."""
    scene = _scene(grid.spacing)
    places = np.stack(np.meshgrid(*grid.axes, indexing="ij")) + grid.spacing * displacement
    if len(grid.axes) == 2:
        places = np.stack([places[0], np.full(grid.shape, CORONAL_Y), places[1]])
    voxels = places - scene.origin.reshape(3, *[1] * len(grid.axes))
    image = ndimage.map_coordinates(scene.image, voxels, order=1)
    label = ndimage.map_coordinates(scene.label, voxels, order=0)
    return image, label


def _acquire(image: NDArray[np.float32], grid: _Grid, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a scanner and a brain extraction make of the clean image: contrast, gain, bias field, Rician noise."""
    brain = image > 0.05
    gain = rng.uniform(500, 1500)
    contrast = image ** math.exp(GAMMA_SD * rng.standard_normal())
    bias = np.exp(BIAS_SD * _smooth_noise(grid, BIAS_LATTICE, 1, rng)[0])
    real, imaginary = NOISE_SD * rng.standard_normal((2, *grid.shape))
    return np.rint(gain * brain * np.hypot(contrast * bias + real, imaginary)).astype(np.int16)


@lru_cache(maxsize=2)
def _scene(spacing: float) -> _Scene:
    """The template blurred to a resolution of `spacing` mm, so that sampling it that coarsely does not alias."""
    image, tissue, origin = _template()
    # The full width at half maximum of a voxel, less the 1 mm the template has already.
    blur = math.sqrt(spacing**2 - 1) / math.sqrt(8 * math.log(2))
    best = np.zeros(image.shape, np.float32)
    label = np.zeros(image.shape, np.uint8)
    for value in range(len(TISSUES) + 1):  # the tissue that fills most of the neighbourhood
        # A little more blur than the image has: detail that nearest-neighbour warping would lose is not labelled.
        share = ndimage.gaussian_filter((tissue == value).astype(np.float32), 1.3 * blur)
        label[share > best] = value
        np.maximum(best, share, out=best)
    right = origin[0] + np.arange(image.shape[0]) >= 0
    label[right] += (len(TISSUES) * (label[right] > 0)).astype(np.uint8)
    return _Scene(ndimage.gaussian_filter(image, blur), label, origin)


@lru_cache(maxsize=1)
def _template() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
    """The T1 template (0 to 1) at 1 mm, a map of its tissues (index in TISSUES plus one), and MNI mm of voxel 0."""
    t1, tissue = (nib.nifti1.load(TEMPLATE / f"{name}.nii.gz") for name in ("t1", "tissue"))
    return (
        t1.get_fdata(dtype=np.float32) / np.float32(255),
        np.asarray(tissue.dataobj, dtype=np.uint8),
        t1.affine[:3, 3],
    )
