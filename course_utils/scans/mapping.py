"""One pair of scans in memory, to a map: common grid, affine alignment, network, instance optimisation.

Every step works on a common grid over the fixed image's field of view. The result is one map of millimetres, so that
each image is interpolated once, on the grid that it is written on.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from course_utils import metrics
from course_utils.checkpoint import Checkpoint
from course_utils.data.grids import Grid, overlap
from course_utils.data.recipe import Recipe
from course_utils.data.resampling import resample
from course_utils.data.volumes import Volume
from course_utils.errors import CourseError, CourseWarning
from course_utils.memory import most_memory
from course_utils.networks import Probabilistic, Registration
from course_utils.objectives import NCC, SIMILARITIES
from course_utils.scans.affine import align, apart
from course_utils.scans.optimise import optimise
from course_utils.scans.transform import Transform

ITERATIONS = 100
"""Of instance optimisation from zero, unless told otherwise."""
FURTHER_ITERATIONS = 35
"""The same where a network has begun."""
SIMILARITY = "ncc-edges"
"""What it compares, likewise."""


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
        aligned: Why the scans were aligned with 12 parameters first; empty where they were not.
    """

    ncc_before: float
    ncc_after: float
    folding_percent: float
    seconds: float
    peak_memory: int | None
    aligned: str

    def __str__(self) -> str:
        memory = "" if self.peak_memory is None else f", peak memory {self.peak_memory / 1e9:.2f} GB"
        aligned = f"aligned first ({self.aligned}); " if self.aligned else ""
        return (
            f"{aligned}NCC {self.ncc_before:.4f} -> {self.ncc_after:.4f}, folding {self.folding_percent:.3f} %, "
            f"{self.seconds:.1f} s{memory}"
        )


@dataclass(frozen=True, eq=False)
class Registered:
    """What `register` finds.

    Attributes:
        forward: The map that makes the moved image, from fixed to moving millimetres.
        inverse: The other way.
        report: What it achieved.
        spread: Standard deviation of several answers, in mm, `(1, 1, *forward.grid.shape)`; None where none was asked
            for.
    """

    forward: Transform
    inverse: Transform
    report: Report
    spread: Tensor | None


def register(
    moving: Volume,
    fixed: Volume,
    *,
    checkpoint: Checkpoint | None = None,
    affine: bool | None = None,
    affine_similarity: str = "correlation",
    similarity: str = SIMILARITY,
    iterations: int | None = None,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    samples: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Registered:
    """Register two scans.

    Args:
        moving: Of any shape, spacing, orientation and origin.
        fixed: Likewise.
        checkpoint: A network; it works on the grid that it was trained on, made larger where the fixed image is.
        affine: Align with 12 parameters first; None does so where the scans do not lie on each other, see
            `affine.apart`.
        affine_similarity: What the alignment compares: `"correlation"`, or `"mi"` for scans of different contrast.
        similarity: What instance optimisation compares, a name out of `objectives.SIMILARITIES`: `"mi"` and `"mind"`
            are for scans of different contrast.
        iterations: Steps of instance optimisation, from the network's velocity or from zero. None is 100 from
            zero and 35 from a network's, but none for a network that was trained with labels (it knows more than two
            images show) or predicts no velocity.
        moving_mask: On the moving scan's grid: where it is 0, voxels do not count in the affine alignment, in the
            optimisation and in the report. A network sees the whole images.
        fixed_mask: The same of the fixed scan.
        samples: Answers to draw, of which the spread is taken; 0 for none, else 2 or more.
        device: Where to compute.
        progress: Told how far the optimisation has got, see `optimise`.

    Raises:
        CourseError: the scans do not overlap; the network is 2-D; the grid or the GPU is too small or too large; a
            spread is asked for, and the answer has none (see `spread_of`).
    """
    device = torch.device(device)
    if samples:
        _check_spread(checkpoint, iterations)
    started = time.monotonic()
    if affine is False and not overlap(moving.grid, fixed.grid):
        raise CourseError(
            f"{moving.path} and {fixed.path} do not overlap, as their affines have it: leave out --no-affine"
        )
    recipe = common_recipe(fixed.grid, checkpoint)
    grid = recipe.grid(fixed.grid, whole=True)
    try:
        moving, fixed = (replace(scan, data=scan.data.to(device)) for scan in (moving, fixed))
        target = recipe.prepare(fixed, grid)
        source = before = recipe.prepare(moving, grid)
        seen = {
            name: mask.data.float().to(device)
            for name, mask in (("moving_mask", moving_mask), ("fixed_mask", fixed_mask))
            if mask is not None
        }
        masks = before_masks = _on_common_grid(seen, moving.grid, fixed.grid, grid)
        images = [recipe.normalised(scan) for scan in (moving, fixed)]
        aligned = "as you say" if affine else _apart(moving, fixed, images, seen)
        if aligned and affine is False:
            warnings.warn(
                f"{moving.path} and {fixed.path} do not lie on each other, {aligned}: leave out --no-affine, or check "
                "that they show the same part",
                CourseWarning,
                stacklevel=3,
            )
            aligned = ""
        matrix = np.eye(4)
        if aligned:
            matrix = align(*images, moving.grid, fixed.grid, similarity=affine_similarity, **seen)
            there = Grid(moving.grid.shape, np.linalg.inv(matrix) @ moving.grid.affine)
            source = recipe.prepare(replace(moving, grid=there), grid)
            masks = _on_common_grid(seen, there, fixed.grid, grid)
        found = deform(source, target, checkpoint, iterations, masks, similarity, progress)
        with torch.no_grad():
            report = Report(
                ncc_before=_ncc(Registration(before, torch.zeros_like(found.displacement)), target, before_masks),
                ncc_after=_ncc(found, target, masks),
                folding_percent=metrics.folding_percent(found.displacement).item(),
                seconds=time.monotonic() - started,
                peak_memory=_peak_memory(device),
                aligned=aligned,
            )
            inverse = Transform(grid, found.inverse(), before=np.linalg.inv(matrix).astype(np.float64), after=np.eye(4))
        spread = spread_of(checkpoint, source, target, samples, grid.spacing) if checkpoint and samples else None
    except torch.OutOfMemoryError as error:
        raise CourseError(
            f"{device} has not enough memory for {'x'.join(map(str, grid.shape))} voxels: take --device cpu"
        ) from error
    return Registered(Transform(grid, found.displacement, before=np.eye(4), after=matrix), inverse, report, spread)


def _check_spread(checkpoint: Checkpoint | None, iterations: int | None) -> None:
    if checkpoint is None or not isinstance(checkpoint.model(), Probabilistic):
        raise CourseError(
            "a spread needs a network that answers with a distribution: train one with --architecture probabilistic, "
            "or leave --spread out"
        )
    if iterations != 0:
        raise CourseError(
            "the spread is that of the network's answers, which steps that refine a pair change: add --iterations 0"
        )


def spread_of(checkpoint: Checkpoint, moving: Tensor, fixed: Tensor, samples: int, spacing: Sequence[float]) -> Tensor:
    """How far apart a probabilistic network's answers lie: see `uncertainty.spread`, but in mm.

    The same images give the same numbers: the samples are drawn from a seed of their own.

    Args:
        checkpoint: Of a `Probabilistic` network.
        moving: `(1, 1, *spatial)`, on the common grid.
        fixed: Of the same shape.
        samples: Two or more.
        spacing: Of the grid's voxels, mm.

    Returns:
        `(1, 1, *spatial)`, mm.
    """
    from course_utils.uncertainty import spread  # SciPy's statistics take half a second, which few registrations need

    network = checkpoint.model().to(moving.device)
    assert isinstance(network, Probabilistic)
    sides = moving.new_tensor(list(spacing)).view(1, -1, *[1] * (moving.ndim - 2))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return spread([found.displacement * sides for found in network.sample(moving, fixed, samples)])


def _apart(moving: Volume, fixed: Volume, images: Sequence[Tensor], masks: Mapping[str, Tensor]) -> str:
    """See `affine.apart`; what a mask leaves out does not count."""
    moving_mask, fixed_mask = masks.get("moving_mask", 1.0), masks.get("fixed_mask", 1.0)
    return apart(images[0] * moving_mask, images[1] * fixed_mask, moving.grid, fixed.grid)


def _on_common_grid(masks: Mapping[str, Tensor], moving: Grid, fixed: Grid, common: Grid) -> dict[str, Tensor]:
    grids = {"moving_mask": moving, "fixed_mask": fixed}
    return {name: resample(mask, grids[name], common, mode="nearest") for name, mask in masks.items()}


def _ncc(registration: Registration, fixed: Tensor, masks: Mapping[str, Tensor]) -> float:
    """Mean local squared correlation of what counts."""
    return 1 - NCC()(registration, {"fixed": fixed, **masks}).item()


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


def deform(
    moving: Tensor,
    fixed: Tensor,
    checkpoint: Checkpoint | None,
    iterations: int | None,
    masks: Mapping[str, Tensor] | None = None,
    similarity: str = SIMILARITY,
    progress: Callable[[float], None] | None = None,
) -> Registration:
    """The deformation of one image to another, by a network, by optimisation, or both.

    Args:
        moving: `(1, 1, *spatial)`, on the common grid.
        fixed: Of the same shape.
        checkpoint: A network; None begins with no motion.
        iterations: See `register`.
        masks: What counts in the optimisation, see `optimise`.
        similarity: See `register`.
        progress: Likewise.

    Raises:
        CourseError: there is no such similarity, or one is chosen and no step compares it; steps are asked for, and
            the network predicts no velocity that they could start from.
    """
    if similarity not in SIMILARITIES:
        raise CourseError(f"similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}: change it")
    # The usual one has a window of its own after a network.
    compared = None if similarity == SIMILARITY else SIMILARITIES[similarity](1)
    if checkpoint is None:
        still = moving.new_zeros(1, moving.ndim - 2, *moving.shape[2:])
        found, start, usual = Registration(moving, still, still), None, ITERATIONS
    else:
        with torch.no_grad():
            found = checkpoint.model().to(moving.device)(moving, fixed)
        start = found.velocity
        usual = 0 if checkpoint.knows_labels or start is None else FURTHER_ITERATIONS
    iterations = usual if iterations is None else iterations
    if not iterations and compared is not None:
        raise CourseError(
            f"--similarity {similarity} is what the steps compare that refine a pair, and there are none: give "
            "--iterations, or leave it out"
        )
    if not iterations:
        return found
    if found.velocity is None:
        raise CourseError("the model predicts no velocity that optimisation could start from: take --iterations 0")
    return optimise(
        moving, fixed, start=start, similarity=compared, masks=masks, iterations=iterations, progress=progress
    )


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else most_memory()
