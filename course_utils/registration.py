"""One pair of scans from files to files: common grid, affine alignment, network, instance optimisation, results.

Every step works on a common grid over the fixed image's field of view. The result is one map of millimetres, so that
each image is interpolated once, on the grid that it is written on.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from course_utils import affine, losses, metrics, nifti
from course_utils.errors import CourseError
from course_utils.fields import integrate
from course_utils.loading import NORMALISATIONS
from course_utils.networks import Registration
from course_utils.nifti import Grid, Transform, Volume
from course_utils.optimise import optimise
from course_utils.training import Trained, replacing

LAYOUTS = ("itk", "learn2reg")
LARGEST_GRID = 2**27
"""Voxels, 512 x 512 x 512: a few dozen numbers for each must fit into memory."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a registration achieved.

    Attributes:
        ncc_before, ncc_after: mean local squared correlation on the common grid, 0 to 1, before anything (as the files
            position the scans) and at the end.
        folding_percent: share of voxels of the common grid where the deformation folds.
        seconds: from the scans in memory to the map.
        peak_memory: bytes that this process has held at most; of the GPU's memory where it ran on one. None on
            Windows, which does not tell.
    """

    ncc_before: float
    ncc_after: float
    folding_percent: float
    seconds: float
    peak_memory: int | None

    def __str__(self) -> str:
        memory = "" if self.peak_memory is None else f", peak memory {self.peak_memory / 1e9:.2f} GB"
        return (
            f"NCC {self.ncc_before:.4f} -> {self.ncc_after:.4f}, folding {self.folding_percent:.3f} %, "
            f"{self.seconds:.1f} s{memory}"
        )


def register(
    moving: Volume,
    fixed: Volume,
    *,
    trained: Trained | None = None,
    affine_similarity: str | None = None,
    iterations: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Transform, Transform, Report]:
    """Register two scans.

    Args:
        moving, fixed: any shapes, spacings, orientations and origins.
        trained: a network; it works on the grid that it was trained on, made larger where the fixed image is.
        affine_similarity: align with 12 parameters first, by ``"ncc"`` or ``"mi"`` (scans of different contrast).
        iterations: steps of instance optimisation, from the network's velocity or from zero.

    Returns:
        The map that makes the moved image (from fixed to moving millimetres), its inverse, and a report.

    Raises:
        CourseError: the scans do not overlap; the network is 2-D; the grid or the GPU is too small or too large.
    """
    device = torch.device(device)
    started = time.monotonic()
    if affine_similarity is None and not nifti.overlap(moving.grid, fixed.grid):
        raise CourseError(
            f"{moving.path} and {fixed.path} do not overlap, as their affines have it: align them first with --affine"
        )
    recipe = trained.about["recipe"] if trained else {"normalisation": "percentile"}
    grid = common_grid(fixed.grid, trained)
    try:
        images = [_normalised(volume, recipe["normalisation"]).to(device) for volume in (moving, fixed)]
        target = nifti.resample(images[1], fixed.grid, grid)
        source = before = nifti.resample(images[0], moving.grid, grid)
        matrix = np.eye(4)
        if affine_similarity is not None:
            matrix = affine.align(*images, moving.grid, fixed.grid, similarity=affine_similarity)
            there = Grid(moving.grid.shape, np.linalg.inv(matrix) @ moving.grid.affine)
            source = nifti.resample(images[0], there, grid)
        found = _deform(source, target, trained, iterations)
        with torch.no_grad():
            report = Report(
                ncc_before=1 - losses.ncc_loss(before, target).item(),
                ncc_after=1 - losses.ncc_loss(found.moved, target).item(),
                folding_percent=metrics.folding_percent(found.displacement).item(),
                seconds=time.monotonic() - started,
                peak_memory=_peak_memory(device),
            )
            inverse = Transform(grid, integrate(-found.velocity), before=np.linalg.inv(matrix), after=np.eye(4))
    except torch.OutOfMemoryError as error:
        raise CourseError(
            f"{device} has not enough memory for {'x'.join(map(str, grid.shape))} voxels: take --device cpu"
        ) from error
    return Transform(grid, found.displacement, before=np.eye(4), after=matrix), inverse, report


def common_grid(fixed: Grid, trained: Trained | None = None) -> Grid:
    """The grid that a registration works on: it covers the fixed image's field of view.

    Without a network its voxels are cubes of the fixed image's voxel volume. With one it is what training used, its
    spacing and orientation (axes as stored, where the data set was taken as stored) and at least its shape: a network
    of convolutions can work on a larger one.

    Raises:
        CourseError: the network is 2-D, or the grid has more than 2**27 voxels.
    """
    if trained is None:
        grid = nifti.covering(fixed, [abs(np.linalg.det(fixed.affine)) ** (1 / 3)] * 3)
    else:
        recipe = trained.about["recipe"]
        if len(recipe["shape"]) != 3:
            raise CourseError("the model is a 2-D network and the scans are volumes: choose a model trained in 3-D")
        as_stored = recipe["spacing"] is None
        grid = nifti.covering(
            fixed,
            trained.about["spacing"] if as_stored else recipe["spacing"],
            at_least=recipe["shape"],
            orientation=None if as_stored else "RAS",
        )
    if np.prod(grid.shape, dtype=float) > LARGEST_GRID:
        raise CourseError(
            f"the fixed image's field of view is {'x'.join(map(str, grid.shape))} voxels of the common grid, more than "
            f"{LARGEST_GRID}: crop or resample it"
        )
    return grid


def _normalised(volume: Volume, normalisation: str) -> Tensor:
    try:
        return torch.as_tensor(NORMALISATIONS[normalisation](volume.data), dtype=torch.float32)
    except CourseError as error:
        raise CourseError(f"{volume.path}: {error}") from error


def _deform(moving: Tensor, fixed: Tensor, trained: Trained | None, iterations: int) -> Registration:
    still = moving.new_zeros(1, 3, *moving.shape[2:])
    found = Registration(moving, still, still)
    if trained is not None:
        with torch.no_grad():
            found = trained.model.to(moving.device)(moving, fixed)
    if iterations:
        found = optimise(moving, fixed, found.velocity, iterations=iterations)
    return found


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- results ----------------------------------------------------------------------------------------------------------


def results(
    names: Iterable[str],
    moving: Volume,
    fixed: Volume,
    forward: Transform,
    inverse: Transform,
    *,
    label: Volume | None = None,
    layout: str = "itk",
) -> dict[str, nib.Nifti1Image]:
    """The contents of the files that a registration writes, by name.

    ``moved``, ``warp`` and ``moved_label`` lie on the fixed image's own grid; ``inverse_warp``, which makes images on
    the moving one's, lies there. Intensities keep the moving image's data type, labels that of their file; outside the
    moving image stands its lowest intensity.

    Args:
        names: of those to make.
        label: of the moving image; moved with the nearest neighbour, 0 outside.
        layout: of the fields, ``"itk"`` or ``"learn2reg"``.
    """
    displacement = forward.between(fixed.grid, moving.grid)
    files = {}
    for name in names:
        if name == "warp":
            files[name] = _field(forward, fixed, moving, layout)
        elif name == "inverse_warp":
            files[name] = _field(inverse, moving, fixed, layout)
        elif name == "moved":
            data = moving.data.to(displacement.device)
            moved = nifti.sample(data, displacement, outside=moving.data.min().item())
            files[name] = nifti.image_like(moved, moving, fixed.grid, fixed.header)
        elif name == "moved_label":
            moved = nifti.sample(label.data.to(displacement.device), displacement, mode="nearest")
            files[name] = nifti.image_like(moved, label, fixed.grid, fixed.header)
    return files


def check_layout(layout: str, moving: Volume, fixed: Volume) -> None:
    """Refuse, before any work, Learn2Reg's layout for scans of different shape: it knows one array only."""
    if layout == "learn2reg" and moving.grid.shape != fixed.grid.shape:
        raise CourseError(
            f"Learn2Reg's fields are for pairs of one shape, and {moving.path} and {fixed.path} differ: take "
            "--layout itk"
        )


def _field(transform: Transform, target: Volume, source: Volume, layout: str) -> nib.Nifti1Image:
    if layout == "learn2reg":
        return nifti.learn2reg_field(transform.between(target.grid, source.grid), target.grid, target.header)
    return nifti.itk_field(transform.between(target.grid, target.grid), target.grid, target.header)


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse, before any work, files that could not be written: option to path.

    Raises:
        CourseError: a name that is not .nii or .nii.gz, a folder that is missing or cannot be written, one name twice,
            or the name of an input.
    """
    seen = {path.resolve(): option for option, path in inputs.items()}
    for option, path in outputs.items():
        if not path.name.endswith(nifti.SUFFIXES):
            raise CourseError(f"{option} {path} is not the name of a NIfTI file: let it end in .nii.gz or .nii")
        if not path.parent.is_dir():
            raise CourseError(f"{path.parent} is not a folder: make it, or choose another {option}")
        if path.is_dir():
            raise CourseError(f"{path} is a folder: name a file in it for {option}")
        if path.resolve() in seen:
            raise CourseError(f"{option} and {seen[path.resolve()]} name one file, {path}: choose another name")
        seen[path.resolve()] = option
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise CourseError(
                f"{path.parent} cannot be written ({error.strerror}): choose another folder for {option}"
            ) from error


def write(files: Mapping[Path, nib.Nifti1Image]) -> None:
    """Write all of the files or, where one fails, none.

    Raises:
        CourseError: the disk is full, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for path, image in files.items():
            partial = stack.enter_context(replacing(path))
            nifti.save(image, partial, compress=path.suffix == ".gz")
