"""One pair of scans from files to files: common grid, affine alignment, network, instance optimisation, results.

Every step works on a common grid over the fixed image's field of view. The result is one map of millimetres, so that
each image is interpolated once, on the grid that it is written on.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from course_utils import losses, metrics
from course_utils.checkpoint import Checkpoint
from course_utils.data.recipe import Recipe
from course_utils.data.volumes import SUFFIXES, Grid, Volume, overlap, read_image, read_label, sample
from course_utils.errors import CourseError
from course_utils.files import replacing
from course_utils.networks import Registration
from course_utils.scans import writing
from course_utils.scans.affine import align
from course_utils.scans.optimise import optimise
from course_utils.scans.transform import Transform

LAYOUTS = ("itk", "learn2reg")
RESULTS = ("moved", "warp", "inverse_warp", "moved_label")
"""What a registration can write."""
ITERATIONS = 100
"""Of instance optimisation, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a registration achieved.

    Attributes:
        ncc_before: Mean local squared correlation on the common grid, 0 to 1, as the files position the scans.
        ncc_after: The same at the end.
        folding_percent: Share of voxels of the common grid where the deformation folds.
        seconds: From the scans in memory to the map.
        peak_memory: Bytes that this process has held at most; of the GPU's memory where it ran on one. None on
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


def register_files(
    moving: str | Path,
    fixed: str | Path,
    outputs: Mapping[str, str | Path],
    *,
    model: str | Path | None = None,
    affine: str | None = None,
    iterations: int | None = None,
    moving_label: str | Path | None = None,
    layout: str = "itk",
    device: torch.device | str = "cpu",
) -> Report:
    """Register two scans and write the results, all of them or, where one fails, none.

    Args:
        moving: NIfTI file of the scan to be moved.
        fixed: NIfTI file of the scan that it is moved onto.
        outputs: Files to write, by name: `moved` (the moved scan), `warp` (the field that made it), `inverse_warp`
            (the field that moves the fixed scan), `moved_label`. See `results`.
        model: A checkpoint; None registers without a network.
        affine: Align with 12 parameters first, by `"correlation"` or `"mi"` (scans of different contrast).
        iterations: See `register`.
        moving_label: Label map of the moving scan; belongs to the output `moved_label`.
        layout: Of the fields: `"itk"` for ITK, ANTs and 3D Slicer, `"learn2reg"` for the challenge.
        device: Where to compute.

    Raises:
        CourseError: a file cannot be read or written, there is nothing to do, or the scans cannot be registered.
    """
    moving, fixed = Path(moving), Path(fixed)
    places = {name: Path(path) for name, path in outputs.items()}
    if unknown := [name for name in places if name not in RESULTS]:
        raise CourseError(f"no result called '{unknown[0]}': choose from {', '.join(RESULTS)}")
    if (moving_label is None) != ("moved_label" not in places):
        raise CourseError("--moving-label and --moved-label belong together: give both, or neither")
    if moving.resolve() == fixed.resolve():
        raise CourseError(f"--moving and --fixed are one file, {moving}: give two scans")
    given = {"--moving": moving, "--fixed": fixed, "--moving-label": moving_label, "--model": model}
    inputs = {option: Path(path) for option, path in given.items() if path is not None}
    _check_outputs({f"--{name.replace('_', '-')}": path for name, path in places.items()}, inputs)
    checkpoint = None if model is None else Checkpoint.load(model)
    if checkpoint is None and affine is None and iterations == 0:
        raise CourseError("without a model, --affine or --iterations there is nothing to do: give one of them")
    scans = read_image(moving), read_image(fixed)
    if layout == "learn2reg" and scans[0].grid.shape != scans[1].grid.shape:
        raise CourseError(
            f"Learn2Reg's fields are for pairs of one shape, and {moving} and {fixed} differ: take --layout itk"
        )
    label = None if moving_label is None else read_label(moving_label, scans[0])
    forward, inverse, report = register(
        *scans, checkpoint=checkpoint, affine=affine, iterations=iterations, device=device
    )
    files = results(places, *scans, forward, inverse, label=label, layout=layout)
    with contextlib.ExitStack() as stack:
        for name, path in places.items():
            partial = stack.enter_context(replacing(path))
            writing.save(files[name], partial, compress=path.suffix == ".gz")
    return report


# --- from two scans to a map ------------------------------------------------------------------------------------------


def register(
    moving: Volume,
    fixed: Volume,
    *,
    checkpoint: Checkpoint | None = None,
    affine: str | None = None,
    iterations: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Transform, Transform, Report]:
    """Register two scans.

    Args:
        moving: Of any shape, spacing, orientation and origin.
        fixed: Likewise.
        checkpoint: A network; it works on the grid that it was trained on, made larger where the fixed image is.
        affine: Align with 12 parameters first, by `"correlation"` or `"mi"` (scans of different contrast).
        iterations: Steps of instance optimisation, from the network's velocity or from zero. None is 100, but none for
            a network that was trained with labels (it knows more than two images show) or predicts no velocity.
        device: Where to compute.

    Returns:
        The map that makes the moved image (from fixed to moving millimetres), its inverse, and a report.

    Raises:
        CourseError: the scans do not overlap; the network is 2-D; the grid or the GPU is too small or too large.
    """
    device = torch.device(device)
    started = time.monotonic()
    if affine is None and not overlap(moving.grid, fixed.grid):
        raise CourseError(
            f"{moving.path} and {fixed.path} do not overlap, as their affines have it: align them first with --affine"
        )
    recipe = common_recipe(fixed.grid, checkpoint)
    grid = recipe.grid(fixed.grid, whole=True)
    try:
        moving, fixed = (replace(scan, data=scan.data.to(device)) for scan in (moving, fixed))
        target = recipe.prepare(fixed, grid)
        source = before = recipe.prepare(moving, grid)
        matrix = np.eye(4)
        if affine is not None:
            images = [recipe.normalised(scan) for scan in (moving, fixed)]
            matrix = align(*images, moving.grid, fixed.grid, similarity=affine)
            there = Grid(moving.grid.shape, np.linalg.inv(matrix) @ moving.grid.affine)
            source = recipe.prepare(replace(moving, grid=there), grid)
        found = deform(source, target, checkpoint, iterations)
        with torch.no_grad():
            report = Report(
                ncc_before=1 - losses.ncc_loss(before, target).item(),
                ncc_after=1 - losses.ncc_loss(found.moved, target).item(),
                folding_percent=metrics.folding_percent(found.displacement).item(),
                seconds=time.monotonic() - started,
                peak_memory=_peak_memory(device),
            )
            inverse = Transform(grid, found.inverse(), before=np.linalg.inv(matrix).astype(np.float64), after=np.eye(4))
    except torch.OutOfMemoryError as error:
        raise CourseError(
            f"{device} has not enough memory for {'x'.join(map(str, grid.shape))} voxels: take --device cpu"
        ) from error
    return Transform(grid, found.displacement, before=np.eye(4), after=matrix), inverse, report


def common_recipe(fixed: Grid, checkpoint: Checkpoint | None = None) -> Recipe:
    """How both scans are prepared for a registration: as for the network or, without one, on cubes.

    Without a network the common grid keeps the fixed image's axes, and its voxels are cubes of the fixed image's voxel
    volume.

    Raises:
        CourseError: the network is 2-D.
    """
    if checkpoint is None:
        side = abs(float(np.linalg.det(fixed.affine))) ** (1 / 3)
        return Recipe((1, 1, 1), (side,) * 3, aligned=True)
    recipe = checkpoint.card.recipe
    if len(recipe.shape) != 3:
        raise CourseError("the model is a 2-D network and the scans are volumes: choose a model trained in 3-D")
    return recipe


def deform(moving: Tensor, fixed: Tensor, checkpoint: Checkpoint | None, iterations: int | None) -> Registration:
    """The deformation of one image to another, by a network, by optimisation, or both.

    Args:
        moving: `(1, 1, *spatial)`, on the common grid.
        fixed: Of the same shape.
        checkpoint: A network; None begins with no motion.
        iterations: See `register`.

    Raises:
        CourseError: steps are asked for, and the network predicts no velocity that they could start from.
    """
    if checkpoint is None:
        still = moving.new_zeros(1, moving.ndim - 2, *moving.shape[2:])
        iterations = ITERATIONS if iterations is None else iterations
        return optimise(moving, fixed, iterations=iterations) if iterations else Registration(moving, still, still)
    with torch.no_grad():
        found = checkpoint.model().to(moving.device)(moving, fixed)
    if iterations is None:
        iterations = 0 if checkpoint.knows_labels or found.velocity is None else ITERATIONS
    if not iterations:
        return found
    if found.velocity is None:
        raise CourseError("the model predicts no velocity that optimisation could start from: take --iterations 0")
    return optimise(moving, fixed, start=found.velocity, iterations=iterations)


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # Windows has no such module

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

    `moved`, `warp` and `moved_label` lie on the fixed image's own grid; `inverse_warp`, which makes images on the
    moving one's, lies there. Intensities keep the moving image's data type, labels that of their file; outside the
    moving image stands its lowest intensity.

    Args:
        names: Of those to make.
        moving: The scan that was moved.
        fixed: The scan that it was moved onto.
        forward: From fixed to moving millimetres.
        inverse: From moving to fixed millimetres.
        label: Of the moving image; moved with the nearest neighbour, 0 outside.
        layout: Of the fields, `"itk"` or `"learn2reg"`.
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
            moved = sample(data, displacement, outside=moving.data.min().item())
            files[name] = writing.image_like(moved, moving, fixed.grid, fixed.header)
        elif name == "moved_label" and label is not None:
            moved = sample(label.data.to(displacement.device), displacement, mode="nearest")
            files[name] = writing.image_like(moved, label, fixed.grid, fixed.header)
    return files


def _field(transform: Transform, target: Volume, source: Volume, layout: str) -> nib.Nifti1Image:
    if layout == "learn2reg":
        return writing.learn2reg_field(transform.between(target.grid, source.grid), target.grid, target.header)
    return writing.itk_field(transform.between(target.grid, target.grid), target.grid, target.header)


def _check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse, before any work, files that could not be written: option to path.

    Raises:
        CourseError: a name that is not .nii or .nii.gz, a folder that is missing or cannot be written, one name twice,
            or the name of an input.
    """
    seen = {path.resolve(): option for option, path in inputs.items()}
    for option, path in outputs.items():
        if not path.name.endswith(SUFFIXES):
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
