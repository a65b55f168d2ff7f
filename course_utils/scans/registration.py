"""One pair of scans from files to files; what lies between is `course_utils.scans.mapping`'s."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from course_utils.checkpoint import Checkpoint
from course_utils.data.grids import sheared
from course_utils.data.volumes import Volume, check_fits, read_image, read_label, read_labels
from course_utils.errors import CourseError, CourseWarning
from course_utils.files import replacing
from course_utils.scans import writing
from course_utils.scans.mapping import SIMILARITY, Report, register
from course_utils.scans.results import RESULTS, check_outputs, results

SAMPLES = 20
"""Of the answers whose spread is written."""


def register_files(
    moving: str | Path,
    fixed: str | Path,
    outputs: Mapping[str, str | Path],
    *,
    model: str | Path | Checkpoint | None = None,
    smoothness: float | None = None,
    affine: bool | None = None,
    affine_similarity: str = "correlation",
    similarity: str = SIMILARITY,
    iterations: int | None = None,
    moving_label: str | Path | None = None,
    moving_mask: str | Path | None = None,
    fixed_mask: str | Path | None = None,
    layout: str = "itk",
    as_images: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Register two scans and write the results, all of them or, where one fails, none.

    Args:
        moving: NIfTI file of the scan to be moved.
        fixed: NIfTI file of the scan that it is moved onto.
        outputs: Files to write, by name: `moved` (the moved scan), `warp` (the field that made it), `inverse_warp`
            (the field that moves the fixed scan), `moved_label`, `spread` (how far apart a probabilistic network's
            answers lie). See `results.results`.
        model: A checkpoint, or its file; None registers without a network.
        smoothness: The weight of the smoothness that the network shall answer for, see `Checkpoint.at`.
        affine: Align with 12 parameters first; None does so where the scans do not lie on each other, see
            `affine.apart`.
        affine_similarity: What the alignment compares: `"correlation"`, or `"mi"` for scans of different contrast.
        similarity: What instance optimisation compares, a name out of `objectives.SIMILARITIES`: `"mi"` and `"mind"`
            are for scans of different contrast.
        iterations: See `register`.
        moving_label: Label map of the moving scan; belongs to the output `moved_label`.
        moving_mask: Where it is 0, the moving scan's voxels do not count in any similarity.
        fixed_mask: The same of the fixed scan.
        layout: Of the fields: `"itk"` for ITK, ANTs and 3D Slicer, `"learn2reg"` for the challenge.
        as_images: Take the scans for images although they look like label maps, see `read_image`.
        device: Where to compute.
        progress: Told how far the optimisation has got, see `optimise`.

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
    given = {"--moving": moving, "--fixed": fixed, "--moving-label": moving_label}
    given |= {"--moving-mask": moving_mask, "--fixed-mask": fixed_mask}
    if not isinstance(model, Checkpoint):
        given["--model"] = model
    inputs = {option: Path(path) for option, path in given.items() if path is not None}
    check_outputs({f"--{name.replace('_', '-')}": path for name, path in places.items()}, inputs, layout)
    checkpoint = network_of(model, smoothness)
    if checkpoint is None and not affine and iterations == 0:
        raise CourseError("without a model, --affine or --iterations there is nothing to do: give one of them")
    scans = read_image(moving, as_image=as_images), read_image(fixed, as_image=as_images)
    if layout == "learn2reg" and scans[0].grid.shape != scans[1].grid.shape:
        raise CourseError(
            f"Learn2Reg's fields are for pairs of one shape, and {moving} and {fixed} differ: take --layout itk"
        )
    label = None if moving_label is None else read_label(moving_label, scans[0])
    masks = [
        None if path is None else _read_mask(path, scan)
        for path, scan in zip((moving_mask, fixed_mask), scans, strict=True)
    ]
    registered = register(
        *scans,
        checkpoint=checkpoint,
        affine=affine,
        affine_similarity=affine_similarity,
        similarity=similarity,
        iterations=iterations,
        moving_mask=masks[0],
        fixed_mask=masks[1],
        samples=SAMPLES if "spread" in places else 0,
        device=device,
        progress=progress,
    )
    files = results(
        places,
        *scans,
        registered.forward,
        registered.inverse,
        label=label,
        spread=registered.spread,
        layout=layout,
    )
    for scan in (scans[1], *(scans[:1] if "inverse_warp" in places else ())):
        if sheared(scan.grid):
            warnings.warn(
                f"the axes of {scan.path} are not at right angles (a tilted gantry?): ITK, ANTs and 3D Slicer cannot "
                "place what is written on its grid; resample it first, to a grid without shear",
                CourseWarning,
                stacklevel=2,
            )
    with contextlib.ExitStack() as stack:
        for name, path in places.items():
            partial = stack.enter_context(replacing(path))
            writing.save(files[name], partial, path)
    return registered.report


def network_of(model: str | Path | Checkpoint | None, smoothness: float | None) -> Checkpoint | None:
    """The network that registers; see `register_files` for both arguments.

    Raises:
        CourseError: there is no such network, or none that could answer for this weight of the smoothness.
    """
    if model is not None:
        return (model if isinstance(model, Checkpoint) else Checkpoint.load(model)).at(smoothness)
    if smoothness is not None:
        raise CourseError("--smoothness chooses among the answers of a network: give --model, or leave it out")
    return None


def _read_mask(path: str | Path, scan: Volume) -> Volume:
    mask = read_labels(path)
    check_fits(mask, scan)
    if not mask.data.any():
        raise CourseError(f"{path} is 0 everywhere, so no voxel would count: give a mask with a part that does")
    return replace(mask, data=mask.data > 0)
