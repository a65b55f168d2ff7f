"""The command line: ``python -m course_utils train``, ``evaluate`` and ``register``; each calls the package."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from course_utils import affine as affine_alignment
from course_utils import cli, nifti, registration, training
from course_utils.datasets import Cohort, Pair, data_root, load_cohort
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate as evaluate_pairs
from course_utils.loading import PairDataset, load_subjects, pairs_from_csv, preprocessing
from course_utils.metrics import summarise

app = typer.Typer(
    help="Deformable medical image registration with VoxelMorph: train a network, measure it on pairs of scans.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Similarity = StrEnum("Similarity", list(training.SIMILARITIES))
Regulariser = StrEnum("Regulariser", list(training.REGULARISERS))
Amp = StrEnum("Amp", ["auto", *training.AMP])
AffineSimilarity = StrEnum("AffineSimilarity", list(affine_alignment.SIMILARITIES))
Layout = StrEnum("Layout", list(registration.LAYOUTS))

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder with one folder a data set.", show_default="$MONAI_DATA_DIRECTORY, or ./data"),
]
Registry = Annotated[Path | None, typer.Option(help="Your own file of data sets or mirrors (JSON or TOML).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]

MEMORY = 4e9
"""Cohorts of more bytes than this are cached on disk."""


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for best.pt, last.pt, history.csv and TensorBoard's files.")],
    dataset: Annotated[
        str, typer.Option(help="synthetic, hippocampus, oasis2d, oasis, learn2reg, or a name of your registry.")
    ] = "synthetic",
    loss: Annotated[Similarity, typer.Option(help="Similarity of moved and fixed image.")] = Similarity.ncc,
    minutes: Annotated[float | None, typer.Option(help="Budget as time.", show_default="5, unless --epochs")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Budget as work, instead: an epoch has each training subject once as the fixed image."),
    ] = None,
    dice_weight: Annotated[float, typer.Option(help="Weight of the labels' soft Dice; 0 trains without labels.")] = 0.0,
    regulariser: Annotated[
        Regulariser, typer.Option(help="What keeps the velocity smooth: its first or its second derivatives.")
    ] = Regulariser.diffusion,
    smoothness: Annotated[
        float | None, typer.Option(help="Weight of the regulariser.", show_default="suits --loss and --regulariser")
    ] = None,
    jacobian_weight: Annotated[float, typer.Option(help="Weight of the penalty on folding.")] = 0.0,
    iterations: Annotated[
        int,
        typer.Option(help="How often the network looks at a pair, each time at what it moved so far; 1 is VoxelMorph."),
    ] = 3,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = training.TrainConfig.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at its highest.")] = training.TrainConfig.learning_rate,
    amp: Annotated[
        Amp, typer.Option(help="Mixed precision; auto is bf16 where the device has it, fp16 on older GPUs.")
    ] = Amp.auto,
    seed: Annotated[int, typer.Option(help="Of the network's first weights and of the training pairs.", min=0)] = 0,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that load pairs, for cohorts cached on disk.", min=0)] = 0,
    data_root: DataRoot = None,
    registry: Registry = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, begun with the same options.")
    ] = False,
) -> None:
    """Train VoxelMorph on a data set.

    The data is downloaded, or made, if it is not there. Subjects are split once into training, validation and test;
    the network that does best on the validation pairs is kept as OUT/best.pt. A run that was stopped goes on with
    --resume.

    \b
    Example:
      python -m course_utils train --dataset hippocampus --minutes 5 --out runs/ncc
    """
    if minutes is not None and epochs is not None:
        raise CourseError("--minutes and --epochs are two budgets: give one of them")
    if epochs is not None and not 0 < epochs < math.inf:
        raise CourseError(f"--epochs {epochs:g} is not above 0: change it")
    where = _device(device)
    cohort = load_cohort(dataset, data_root, registry=registry)
    for split in ("train", "val"):
        cohort.pairs(split)  # raises where there are none, before anything is loaded
    transform = preprocessing(**cohort.info.grid)
    steps = None if epochs is None else math.ceil(epochs * len(cohort.splits["train"]) / batch_size)
    config = training.TrainConfig(
        similarity=loss.value,
        regulariser=regulariser.value,
        smoothness=smoothness,
        dice_weight=dice_weight,
        jacobian_weight=jacobian_weight,
        iterations=iterations,
        steps=steps,
        minutes=5.0 if minutes is None and steps is None else minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        amp=amp.value,
        seed=seed,
    )
    progress = sys.stderr.isatty()
    loaded = load_subjects(
        (*cohort.splits["train"], *cohort.splits["val"]), transform, _cache(cohort, data_root), progress=progress
    )
    cohort = cohort.without(loaded.failed)
    result = training.fit(
        config,
        PairDataset(loaded, cohort.pairs("train", count=10**9, seed=seed)),
        PairDataset(loaded, cohort.pairs("val", count=_distinct(cohort, "val", 10))),
        out,
        about={
            "dataset": cohort.info.name,
            "labels": dict(cohort.info.labels),
            "spacing": list(cohort.info.spacing),
            "recipe": transform.recipe,
            "licence": cohort.info.licence,
            "citation": cohort.info.citation,
        },
        device=where,
        workers=workers,
        resume=resume,
        progress=progress,
    )
    last = result.history.iloc[-1]
    typer.echo(
        f"{int(last.step)} steps in {last.seconds / 60:.1f} minutes, loss {last.loss:.4f}; measure it:\n"
        f"python -m course_utils evaluate --model {result.best} --dataset {dataset} --out {out / 'metrics.csv'}"
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A checkpoint that train wrote, such as OUT/best.pt.")],
    out: Annotated[Path, typer.Option(help="The table: one row a pair and structure.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns fixed_image, moving_image, fixed_label, moving_label; paths relative to the CSV.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of --pairs: random pairs of a data set's test subjects.")
    ] = None,
    count: Annotated[int, typer.Option(help="At most so many of them.", min=1)] = 50,
    device: Device = "auto",
    data_root: DataRoot = None,
    registry: Registry = None,
) -> None:
    """Measure a trained network on pairs of scans it has not seen.

    Both images of a pair are brought to one common grid by the transform that training used, so their shapes may
    differ. Writes dice, hd_mm and hd95_mm (before and after), folding_percent, sdlogj and seconds, and prints means and
    spreads. For the built-in cohort the true deformation is known and tre_mm is measured too.

    \b
    Example:
      python -m course_utils evaluate --model runs/ncc/best.pt --pairs pairs.csv --out metrics.csv
    """
    if (pairs is None) == (dataset is None):
        raise CourseError("evaluate needs either --pairs FILE.csv or --dataset NAME: give one of them")
    if not out.parent.is_dir():
        raise CourseError(f"{out.parent} is not a folder: make it, or choose another --out")
    if out.is_dir():
        raise CourseError(f"{out} is a folder: name a file in it, such as {out / 'metrics.csv'}")
    where = _device(device)
    trained = training.load_model(model)
    cases: list[Pair]
    if pairs is not None:
        cases, truth = pairs_from_csv(pairs), False
    else:
        cohort = load_cohort(dataset, data_root, registry=registry)
        cases = list(cohort.pairs("test", count=_distinct(cohort, "test", count)))
        truth = cases[0].fixed.velocity is not None
    transform = preprocessing(**trained.about["recipe"])
    subjects = [subject for pair in cases for subject in (pair.fixed, pair.moving)]
    table = evaluate_pairs(
        trained.model,
        PairDataset(load_subjects(subjects, transform, strict=True), cases, truth=truth),
        trained.about["labels"],
        trained.about["spacing"],
        device=where,
    )
    with training.replacing(out) as partial:
        table.to_csv(partial, index=False)
    typer.echo(_readable(summarise(table)))


@app.command()
def register(
    moving: Annotated[Path, typer.Option(help="The scan to be moved (NIfTI).")],
    fixed: Annotated[Path, typer.Option(help="The scan it is moved onto (NIfTI).")],
    moved: Annotated[Path, typer.Option(help="Result: the moved scan on the fixed scan's grid.")],
    warp: Annotated[Path | None, typer.Option(help="Result: the displacement field that made it.")] = None,
    inverse_warp: Annotated[
        Path | None, typer.Option(help="Result: the field that moves the fixed scan; on the moving scan's grid.")
    ] = None,
    moving_label: Annotated[Path | None, typer.Option(help="Label map of the moving scan.")] = None,
    moved_label: Annotated[Path | None, typer.Option(help="Result: that label map, moved (nearest neighbour).")] = None,
    model: Annotated[Path | None, typer.Option(help="A checkpoint that train wrote, such as OUT/best.pt.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Register by optimisation alone.")] = False,
    affine: Annotated[bool, typer.Option("--affine", help="Align with 12 parameters first.")] = False,
    affine_similarity: Annotated[
        AffineSimilarity, typer.Option(help="What --affine compares: ncc, or mi for scans of different contrast.")
    ] = AffineSimilarity.ncc,
    iterations: Annotated[
        int, typer.Option(help="Steps that refine the field for this pair; 0 for the network alone.", min=0)
    ] = 100,
    layout: Annotated[
        Layout, typer.Option(help="Of the fields: itk for ITK, ANTs and 3D Slicer; learn2reg for the challenge.")
    ] = Layout.itk,
    device: Device = "auto",
) -> None:
    """Register two scans, with a network, by optimisation, or both.

    Shapes, spacings, orientations and origins may differ; the affines say where the scans are. --affine is for scans
    that do not lie on each other yet. Results lie on the fixed scan's grid and keep the moving scan's data type. Fields
    of the layout itk hold affine and deformation in one, and antsApplyTransforms or SimpleITK apply them alone.

    \b
    Example:
      python -m course_utils register --moving M.nii.gz --fixed F.nii.gz --moved OUT.nii.gz --model runs/ncc/best.pt
    """
    if (model is None) != no_model:
        raise CourseError("register needs either --model FILE.pt or --no-model: give one of them")
    if no_model and not affine and not iterations:
        raise CourseError("without a model, --affine or --iterations there is nothing to do: give one of them")
    if (moving_label is None) != (moved_label is None):
        raise CourseError("--moving-label and --moved-label belong together: give both, or neither")
    inputs = {"--moving": moving, "--fixed": fixed, "--moving-label": moving_label, "--model": model}
    outputs = {"moved": moved, "warp": warp, "inverse_warp": inverse_warp, "moved_label": moved_label}
    inputs = {option: path for option, path in inputs.items() if path is not None}
    outputs = {name: path for name, path in outputs.items() if path is not None}
    if moving.resolve() == fixed.resolve():
        raise CourseError(f"--moving and --fixed are one file, {moving}: give two scans")
    registration.check_outputs({f"--{name.replace('_', '-')}": path for name, path in outputs.items()}, inputs)
    where = _device(device)
    trained = None if model is None else training.load_model(model)
    images = nifti.read_image(moving), nifti.read_image(fixed)
    registration.check_layout(layout.value, *images)
    label = None if moving_label is None else nifti.read_label(moving_label, images[0])
    forward, inverse, report = registration.register(
        *images,
        trained=trained,
        affine_similarity=affine_similarity.value if affine else None,
        iterations=iterations,
        device=where,
    )
    files = registration.results(outputs, *images, forward, inverse, label=label, layout=layout.value)
    registration.write({path: files[name] for name, path in outputs.items()})
    typer.echo(report)


def _readable(summary: pd.DataFrame) -> str:
    """Mean and standard deviation over pairs: a line a structure, then what is measured once a pair."""

    def cell(structure: str, measure: str) -> str:
        line = summary.loc[structure, measure]
        lost = f", {line['lost']:.0f} lost" if line.get("lost") else ""
        return f"{line['mean']:.3f} ± {line['std']:.3f}{lost}"

    measures = [measure for measure in summary.columns.unique(level=0) if measure != "pairs"]
    of_structure = [measure for measure in measures if measure.startswith(("dice_", "hd_", "hd95_"))]
    rows = {structure: [cell(structure, measure) for measure in of_structure] for structure in summary.index}
    once = [f"{measure}: {cell('overall', measure)}" for measure in measures if measure not in of_structure]
    pairs = f"mean ± standard deviation over {summary.loc['overall', ('pairs', 'count')]:.0f} pairs"
    return "\n".join([pairs, pd.DataFrame.from_dict(rows, "index", columns=of_structure).to_string(), *once])


def _distinct(cohort: Cohort, split: str, count: int) -> int:
    """So many of ``count`` random pairs that none comes twice; at least 1, for the cohort to say why not."""
    n = len(cohort.splits[split])
    return max(1, min(count, n * (n - 1)))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).cpu()  # a "meta" tensor can be made, and holds nothing
    except Exception as error:  # every kind of device has its own way to say that it is not there
        raise CourseError(f"device '{name}' cannot be used here: choose cpu, or auto") from error
    return torch.device(name)


def _cache(cohort: Cohort, root: Path | None) -> str | Path:
    size = len(cohort.subjects) * math.prod(cohort.info.shape) * 5  # float32 and uint8
    return "memory" if size < MEMORY else (root or data_root()) / "cache" / cohort.info.name


if __name__ == "__main__":
    cli.run(app)
