"""The command `train`."""

import dataclasses
import math
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course_utils.checkpoint import Checkpoint
from course_utils.commands.data_options import takes_source, whole_numbers
from course_utils.commands.launched import together
from course_utils.commands.objective_options import (
    LOSS,
    MAPS,
    WEIGHTS,
    Bidirectional,
    Loss,
    Painted,
    Regulariser,
    any_smoothness,
    evidence_bound,
    segmented,
    whole_objective,
)
from course_utils.commands.settings import Device, Settings
from course_utils.commands.settings import device as device_of
from course_utils.data.source import Source
from course_utils.errors import CourseError
from course_utils.files import check_room
from course_utils.networks import ARCHITECTURES, NetworkSpec, Refined
from course_utils.objectives import EvidenceBound, Membership, Segmented, Shapes, Similarity, pair_objective
from course_utils.training import TensorBoard, TrainConfig, train_cohort
from course_utils.training.config import AMP
from course_utils.training.hooks import progress_hook
from course_utils.training.ranks import Ranks

NOT_BY_NAME = {"refined", "template"}
"""What holds a trained network, chosen by --refine, and what the command template trains."""
Architecture = StrEnum("Architecture", [name for name in ARCHITECTURES if name not in NOT_BY_NAME])
LossGrid = StrEnum("LossGrid", {"half": "half", "full": "full"})
Amp = StrEnum("Amp", {name: name for name in ("auto", *AMP)})
ARCHITECTURE = Architecture["pyramid"]
PROBABILISTIC, HYPERNETWORK, JOINT = "probabilistic", "hypernetwork", "joint"
MINUTES = 5.0
"""The budget where the user gives none."""


@together
@takes_source
def train(
    out: Annotated[
        Path, typer.Option(help="Folder for best.pt and its card, last.pt, history.csv and TensorBoard's files.")
    ],
    source: Source,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="Similarity of moved and fixed image; mi and mind for pairs of two contrasts.", show_default=LOSS.value
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget as time.", show_default=f"{MINUTES:g}, unless --epochs")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Budget as work, instead: an epoch has each training subject once as the fixed image."),
    ] = None,
    dice_weight: Annotated[float, typer.Option(help="Weight of the labels' soft Dice; 0 trains without labels.")] = 0.0,
    regulariser: Annotated[
        Regulariser, typer.Option(help="What keeps the velocity smooth: its first or its second derivatives.")
    ] = Regulariser.diffusion,
    smoothness: Annotated[
        float | None, typer.Option(help="Weight of the regulariser.", show_default="suits --loss")
    ] = None,
    smoothness_range: Annotated[
        str | None,
        typer.Option(
            help="Instead: LOW,HIGH, such as 0.1,10. One network learns the answers for all weights between them, and "
            "--smoothness of evaluate, register, learn2reg and export chooses one."
        ),
    ] = None,
    jacobian_weight: Annotated[
        float, typer.Option(help="Weight of the share of the volume that folds turn over; 100 is much.")
    ] = 0.0,
    loss_grid: Annotated[
        LossGrid,
        typer.Option(help="Grid that the loss is computed on; half the images' size takes an eighth of the work."),
    ] = LossGrid.half,
    bidirectional: Annotated[
        Bidirectional | None,
        typer.Option(
            help="Judge both directions of every pair. inverse takes one map and its inverse; both registers "
            "twice; icon and gradicon do so, and what the two maps lack of being inverses, or the changes of that, "
            "costs too; cycle registers the moved image back to the moving one; cyclemorph both moved images to each "
            "other, which shall give the images back, and each image to itself."
        ),
    ] = None,
    consistency_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of that cost, or of what is not given back.",
            min=0,
            show_default=", ".join(f"{weight:g} of {name}" for name, weight in WEIGHTS.items()),
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Begin with the weights of this checkpoint, or of a network that ships (see models), and with its "
            "network; your own images then come to its grid, unless you choose another (fine-tuning)."
        ),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Leave the network of --init as it is, and train two convolutions that correct its displacement; the "
            "result predicts a displacement.",
        ),
    ] = False,
    architecture: Annotated[
        Architecture | None,
        typer.Option(
            help="VoxelMorph; a coarse-to-fine network (pyramid) that learns more in the same time; VoxelMorph with "
            "kernels of several sizes (inception) or with attention (swin); one that learns from labels to segment "
            "each image, too (joint); one that answers with a distribution (probabilistic); one whose weights another "
            "makes for each smoothness (hypernetwork).",
            show_default=f"{ARCHITECTURE.value}, unless --init",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Channels of its levels, finest first; swin needs three levels or more, and attends to an even number "
            "of channels, the second.",
            show_default="suits --architecture",
        ),
    ] = None,
    antisymmetric: Annotated[
        bool | None,
        typer.Option(
            "--antisymmetric/--one-way",
            help="Swapping the images gives the exact inverse, and equal images do not move; or only one direction, "
            "which learns faster from labels.",
            show_default="antisymmetric, but one-way with --dice-weight or joint",
        ),
    ] = None,
    edges: Annotated[
        bool,
        typer.Option("--edges", help="Show the network where the images' edges are instead of their intensities."),
    ] = False,
    full_resolution: Annotated[
        bool, typer.Option("--full-resolution", help="Predict the velocity at full resolution: sharper, and slower.")
    ] = False,
    integration_steps: Annotated[
        int | None,
        typer.Option(help="Squarings of the velocity; 0 predicts a displacement.", min=0, show_default="7"),
    ] = None,
    image_sigma: Annotated[
        float | None,
        typer.Option(
            help="Of --architecture probabilistic: the noise in both images, as a standard deviation. The smaller, the "
            "more the images count.",
            show_default=f"{EvidenceBound.image_sigma:g}",
        ),
    ] = None,
    prior_precision: Annotated[
        float | None,
        typer.Option(
            help="Of the same: how alike the velocities of neighbours are before the images are seen.",
            show_default=f"{EvidenceBound.prior_precision:g}",
        ),
    ] = None,
    segmentation_weight: Annotated[
        float | None,
        typer.Option(
            help="Of --architecture joint: weight of what its segmentation of both images costs.",
            min=0,
            show_default=f"{Segmented.weight:g}",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs a step, of all processes.")] = TrainConfig.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at its highest.")] = TrainConfig.learning_rate,
    amp: Annotated[
        Amp, typer.Option(help="Mixed precision; auto is bf16 where the device has it, fp16 on older GPUs.")
    ] = Amp.auto,
    augment: Annotated[
        float,
        typer.Option(
            help="How much the training images are moved, bent and changed in contrast at random; 1 is much.", min=0
        ),
    ] = TrainConfig.augment,
    painted: Annotated[
        Painted | None,
        typer.Option(
            help="Show the network images in random contrasts: it learns to register contrasts that it was never "
            "shown. images paints over the images and their labels, and compares the real images; labels paints over "
            "the labels alone, and compares these (SynthMorph's brains); shapes needs no labels, but draws label maps "
            "at random."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the network's first weights and of the training pairs.", min=0)] = 0,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that load pairs, for cohorts cached on disk.", min=0)] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, begun with the same options.")
    ] = False,
) -> None:
    """Train a registration network on a data set, or on your own images.

    A data set is downloaded, or made, if it is not there. Your own images may differ in shape, spacing and orientation;
    a common grid is proposed from them and printed. Subjects are split once into training, validation and test; the
    network that does best on the validation pairs is kept as OUT/best.pt. A run that was stopped goes on with --resume.

    \b
    Example:
      python -m course_utils train --dataset hippocampus --minutes 5 --out runs/ncc
      python -m course_utils train --images scans --minutes 15 --out runs/scans
    """
    if minutes is not None and epochs is not None:
        raise CourseError("--minutes and --epochs are two budgets: give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise CourseError(f"--epochs {epochs:g} is not above 0: change it")
    network = {
        "features": whole_numbers("--features", features),
        "half_resolution": False if full_resolution else None,
        "integration_steps": integration_steps,
        "antisymmetric": antisymmetric,
        "edges": edges or None,
    }
    chosen: dict[str, object] = {name: value for name, value in network.items() if value is not None}
    if init is not None and (chosen or architecture is not None):
        raise CourseError("--init has a network of its own: leave out the options that choose another")
    start = None if init is None else Checkpoint.load(init)
    if refine:
        if start is None:
            raise CourseError("--refine corrects a network that is trained: name it with --init, or leave --refine out")
        model = Refined.around(start.model(), seed=seed)
        start = dataclasses.replace(start, network=model.spec, weights=model.state_dict())
    named = architecture if start is None else start.network.architecture
    coarseness = 2 if loss_grid == LossGrid.half else 1
    evidence = None
    if named == PROBABILISTIC:
        no_part = {
            "--loss": loss,
            "--regulariser": regulariser != Regulariser.diffusion,
            "--smoothness": smoothness is not None,
            "--smoothness-range": smoothness_range,
            "--dice-weight": dice_weight,
            "--jacobian-weight": jacobian_weight,
            "--bidirectional": bidirectional,
            "--painted": painted,
            "--antisymmetric": antisymmetric,
        }
        evidence = evidence_bound(no_part, image_sigma, prior_precision, coarseness)
    elif image_sigma is not None or prior_precision is not None:
        raise CourseError(f"--image-sigma and --prior-precision belong to --architecture {PROBABILISTIC}: add it")
    weights = any_smoothness(smoothness_range, smoothness, start)
    if weights is not None and start is None:
        chosen["conditions"] = 1
    elif named == HYPERNETWORK and start is None:
        raise CourseError(
            f"--architecture {HYPERNETWORK} is told the weight of the smoothness: add --smoothness-range LOW,HIGH"
        )
    if named == JOINT and painted in MAPS:
        raise CourseError(f"--architecture {JOINT} segments images, and --painted {painted} has none: leave one out")
    if named == JOINT and antisymmetric:
        raise CourseError(f"--architecture {JOINT} has no antisymmetric form: leave --antisymmetric out")
    if named != JOINT and segmentation_weight is not None:
        raise CourseError(f"--segmentation-weight belongs to --architecture {JOINT}: add it, or leave the weight out")
    usual = not dice_weight and bidirectional in (None, "inverse") and named not in (PROBABILISTIC, JOINT)
    if antisymmetric is None and start is None and usual:
        chosen["antisymmetric"] = True
    arguments = chosen if start is None else start.network.arguments
    if bidirectional in ("both", *WEIGHTS) and arguments.get("antisymmetric"):
        raise CourseError(
            f"--bidirectional {bidirectional} asks a network for what an antisymmetric one has by construction: "
            "take --one-way (without --init), or --bidirectional inverse"
        )
    if consistency_weight is not None and bidirectional not in WEIGHTS:
        raise CourseError(
            f"--consistency-weight belongs to --bidirectional {', '.join(WEIGHTS)}: add one of these, or leave it out"
        )
    if painted is not None and bidirectional is not None:
        raise CourseError("--painted and --bidirectional are two ways to train: give one of them")
    if painted in MAPS and loss is not None:
        raise CourseError(f"--painted {painted} compares label maps, in which --loss has no part: leave it out")
    if painted == Painted.shapes and augment:
        raise CourseError("--augment changes images that --painted shapes does not look at: leave it out")
    ranks = Ranks.here()
    ranks.batch(batch_size)
    where = ranks.device(device_of(device))
    check_room(out)
    cohort, line = source.load(like=None if start is None else start.card.recipe)
    if not Settings.current().quiet:
        typer.echo(line, err=True)
    if painted in (Painted.images, Painted.labels) and not cohort.info.labels:
        raise CourseError(
            f"--painted {painted} needs label maps, whose structures are painted: give --labels, or leave it out"
        )
    labels = tuple(range(Shapes.count)) if painted == Painted.shapes else tuple(cohort.info.labels)
    similarity: str | Similarity = Membership(labels) if painted in MAPS else (loss or LOSS).value
    objective = pair_objective(
        similarity,
        regulariser=regulariser.value,
        smoothness=smoothness if weights is None else 0.0,
        dice_weight=dice_weight,
        labels=labels,
        jacobian_weight=jacobian_weight,
        coarseness=coarseness,
    )
    minimised = evidence or whole_objective(objective, painted, bidirectional, consistency_weight, weights)
    if named == JOINT:
        minimised = segmented(minimised, labels, segmentation_weight, start)
        chosen["structures"] = len(labels)
    steps = None if epochs is None else math.ceil(epochs * len(cohort.splits["train"]) / batch_size)
    quiet = Settings.current().quiet
    result = train_cohort(
        cohort,
        out,
        network=NetworkSpec((architecture or ARCHITECTURE).value, {"spatial_dims": len(cohort.info.shape), **chosen}),
        start=start,
        objective=minimised,
        config=TrainConfig(
            steps=steps,
            minutes=MINUTES if minutes is None and steps is None else minutes,
            batch_size=batch_size,
            learning_rate=learning_rate,
            amp=amp.value,
            augment=augment,
            seed=seed,
        ),
        root=source.data_root,
        device=where,
        workers=workers,
        resume=resume,
        hooks=[TensorBoard(), *progress_hook(quiet=quiet)],
        progress=not quiet,
    )
    if not ranks.writes:
        return
    last = result.history.iloc[-1]
    again = ["evaluate", "--model", str(result.best), *source.options(), "--out", str(out / "metrics.csv")]
    again += [] if device == "auto" else ["--device", device]
    typer.echo(
        f"{int(last.step)} steps in {last.seconds / 60:.1f} minutes, loss {last.loss:.4f}; measure it:\n"
        f"python -m course_utils {shlex.join(again)}"
    )
