"""The command line, ``python -m course_utils COMMAND``. Each command calls functions of the package."""

import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from course_utils import affine as affine_alignment
from course_utils import cli, gradebook, grading, networks, nifti, registration, training
from course_utils import export as export_
from course_utils import learn2reg as challenge
from course_utils.assignments import assignment_sources, read_assignment
from course_utils.datasets import Cohort, Pair, data_root, load_cohort
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate as evaluate_pairs
from course_utils.grading import Assignment, Limits
from course_utils.loading import PairDataset, load_subjects, pairs_from_csv, preprocessing
from course_utils.metrics import summarise
from course_utils.submissions import find_submissions

app = typer.Typer(
    help="Deformable medical image registration with VoxelMorph: train a network, measure it on pairs of scans.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Similarity = StrEnum("Similarity", list(training.SIMILARITIES))
Architecture = StrEnum("Architecture", list(networks.ARCHITECTURES))
Regulariser = StrEnum("Regulariser", list(training.REGULARISERS))
Amp = StrEnum("Amp", ["auto", *training.AMP])
Split = StrEnum("Split", ["val", "test"])
FieldFormat = StrEnum("FieldFormat", list(challenge.FORMATS))
ModelFormat = StrEnum("ModelFormat", ["bundle", "onnx"])
AffineSimilarity = StrEnum("AffineSimilarity", list(affine_alignment.SIMILARITIES))
Layout = StrEnum("Layout", list(registration.LAYOUTS))

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder with one folder a data set.", show_default="$MONAI_DATA_DIRECTORY, or ./data"),
]
Registry = Annotated[Path | None, typer.Option(help="Your own file of data sets or mirrors (JSON or TOML).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]

SOURCES = Path("notebooks/assignments/sources")

MEMORY = 4e9
"""Cohorts of more bytes than this are cached on disk."""


@app.command()
def train(
    out: Annotated[
        Path, typer.Option(help="Folder for best.pt and its card, last.pt, history.csv and TensorBoard's files.")
    ],
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
    architecture: Annotated[
        Architecture, typer.Option(help="VoxelMorph, or a coarse-to-fine network that learns more in the same time.")
    ] = Architecture.pyramid,
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
    """Train a registration network on a data set.

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
        architecture=architecture.value,
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
    export_.write_card(result.best)
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
    _check_file(out, "metrics.csv")
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
def grade(
    submissions: Annotated[
        list[Path], typer.Argument(help="Notebooks, folders or zips of a learning platform.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for grades.csv, grades.json, histogram.png and feedback/.")],
    assignments: Annotated[Path, typer.Option(help="Folder of the assignments' sources, with hidden tests.")] = SOURCES,
    workers: Annotated[int, typer.Option(help="Submissions at a time; 0 is one a processor.", min=0)] = 0,
    cell_timeout: Annotated[float, typer.Option(help="Seconds for a cell.", min=1)] = Limits.cell_seconds,
    timeout: Annotated[float, typer.Option(help="Seconds for a submission.", min=1)] = Limits.seconds,
    memory: Annotated[float, typer.Option(help="GB for a submission.", min=0.5)] = Limits.memory / 1e9,
) -> None:
    """Grade a class of submissions, each in a sandbox, and write a table and a page a student.

    Run again, it grades only what has changed. A student's name comes from Moodle's folders, from
    STUDENT_02_topic.ipynb or from the folder STUDENT. Of several notebooks of one assignment the best counts.

    \b
    Example:
      python -m course_utils grade submissions.zip --out grades
    """
    _check_posix()
    if out.is_file():
        raise CourseError(f"{out} is a file: choose a folder for --out")
    given = [Assignment(source.stem, read_assignment(source)) for source in assignment_sources(assignments)]
    found = find_submissions(submissions, [assignment.name for assignment in given])
    out.mkdir(parents=True, exist_ok=True)
    report = grading.grade(
        found,
        given,
        limits=Limits(cell_timeout, timeout, int(memory * 1e9)),
        workers=workers or len(grading.processors()),
        **_cohort_in_view(),
        cache=out / ".cache",
        progress=sys.stderr.isatty(),
    )
    gradebook.write(report, out)
    typer.echo(gradebook.table(report.results).to_string(index=False, na_rep=""))
    if report.denied:
        typer.echo(
            f"not isolated: {report.denied}; the network and other files were in reach of the submissions", err=True
        )
    typer.echo(f"{len(report.results)} submissions; see {out / 'grades.csv'} and {out / 'feedback'}")


@app.command()
def check(
    notebook: Annotated[Path, typer.Argument(help="Your notebook of an assignment.", show_default=False)],
    assignments: Annotated[
        Path, typer.Option(help="Folder of the assignments' sources, where there is one.")
    ] = SOURCES,
) -> None:
    """Check your own solutions: points an exercise, by the checks that you can see.

    It is what `grade` does, in the same sandbox, without the hidden tests.

    \b
    Example:
      python -m course_utils check notebooks/assignments/02_warping.ipynb
    """
    _check_posix()
    given = grading.visible_assignment(notebook, assignments)
    found = find_submissions([notebook], [given.name])
    report = grading.grade(found, [given], **_cohort_in_view())
    result = report.results[0]
    if not result.exercises:
        raise CourseError(f"{notebook}: {result.status}: name a notebook of an assignment")
    for exercise in result.exercises:
        typer.echo(f"{exercise.points} of {exercise.out_of}  {exercise.title}")
        if exercise.message:
            typer.echo(f"        {exercise.message}")
    typer.echo(f"{result.total} of {result.out_of} points on the visible checks")


def _check_posix() -> None:
    if os.name != "posix":
        raise CourseError("grading limits processes as Linux and macOS can: run it there, or in WSL")


def _cohort_in_view() -> dict:
    """The built-in cohort, made once, for sandboxed kernels to read."""
    root = data_root().resolve()
    cohort = load_cohort("synthetic", root)
    environment = {
        "COURSE_DATASET": "synthetic",
        "COURSE_PROFILE": "quick",
        "COURSE_RUNS": "runs",
        "MONAI_DATA_DIRECTORY": str(root),
    }
    return {"shown": [root / cohort.info.folder], "environment": environment}


@app.command()
def learn2reg(
    data: Annotated[Path, typer.Option(help="Folder of one challenge task, with its NAME_dataset.json.")],
    out: Annotated[Path, typer.Option(help="The submission, a ZIP file; with --evaluate the table, a CSV file.")],
    model: Annotated[Path | None, typer.Option(help="A checkpoint that train wrote, such as OUT/best.pt.")] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Instead of --model: measure this submission, a ZIP file or a folder of fields.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which of the official pairs: registration_val or _test.")] = Split.val,
    file_format: Annotated[
        FieldFormat, typer.Option(help="Of the fields; npz holds the array as arr_0.")
    ] = FieldFormat["nii.gz"],
    short_names: Annotated[
        bool,
        typer.Option("--short-names", help="disp_FFFF_MMMM instead of disp_FFFF_CCCC_MMMM_CCCC, for older evaluators."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Write a Learn2Reg submission, or measure one as the challenge does.

    With --model, registers the official pairs of the folder and writes one displacement field a pair, on the task's own
    grid: shape (X, Y, Z, 3), in voxels. With --evaluate, measures fields, anybody's, where the folder has labels: Dice,
    HD95 in voxels and SDlogJ by the challenge's own definitions, and the share of folded voxels.

    \b
    Train on the folder first:
      python -m course_utils train --dataset learn2reg --data-root DIR --minutes 15 --out runs/l2r

    \b
    Example:
      python -m course_utils learn2reg --data DIR --model runs/l2r/best.pt --out submission.zip
    """
    if (model is None) == (evaluate is None):
        raise CourseError("learn2reg needs either --model FILE.pt or --evaluate SUBMISSION.zip: give one of them")
    _check_file(out, "submission.zip" if model else "metrics.csv")
    where = _device(device)
    cohort = load_cohort("learn2reg", data, download=False)
    if evaluate is not None:
        table = challenge.evaluate_submission(evaluate, cohort, split.value)
        with training.replacing(out) as partial:
            table.to_csv(partial, index=False)
        typer.echo(_readable(summarise(table)))
        return
    names = challenge.write_submission(
        training.load_model(model),
        cohort,
        out,
        split=split.value,
        file_format=file_format.value,
        short_names=short_names,
        device=where,
        progress=sys.stderr.isatty(),
    )
    typer.echo(f"{len(names)} fields, {names[0]} the first, in {out}; where the folder has labels, measure them:")
    measure = f"python -m course_utils learn2reg --data {data} --evaluate {out} --out {out.with_suffix('.csv')}"
    typer.echo(measure if split is Split.val else f"{measure} --split {split.value}")


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="A checkpoint that train wrote, such as OUT/best.pt.")],
    out: Annotated[Path, typer.Option(help="The file (onnx) or the new folder (bundle) to write.")],
    format: Annotated[
        ModelFormat, typer.Option(help="A MONAI bundle, or an ONNX graph for the grid of the training.")
    ] = ModelFormat.bundle,
) -> None:
    """Write a trained network for other programs, as a MONAI bundle or as an ONNX graph.

    A bundle holds weights, metadata, a model card and a configuration that registers two files. A graph takes the two
    images on the common grid, intensities in [0, 1], and answers with the moved image and the displacement in voxels.

    \b
    Example:
      python -m course_utils export --model runs/ncc/best.pt --format onnx --out model.onnx
    """
    write = {ModelFormat.bundle: export_.export_bundle, ModelFormat.onnx: export_.export_onnx}[format]
    if format is ModelFormat.onnx:
        _check_file(out, "model.onnx")
    elif not out.parent.is_dir():
        raise CourseError(f"{out.parent} is not a folder: make it, or choose another --out")
    write(model, out)
    typer.echo(f"{out} written")


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
        int | None,
        typer.Option(
            help="Steps that refine the field for this pair; 0 for the network alone.",
            min=0,
            show_default="100; 0 for a network trained with labels, which knows more than a pair's images show",
        ),
    ] = None,
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
    if no_model and not affine and iterations == 0:
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
    if iterations is None:
        iterations = 0 if trained and trained.config.dice_weight else 100
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


def _check_file(out: Path, example: str) -> None:
    """Before hours of work: a file can be written there."""
    if not out.parent.is_dir():
        raise CourseError(f"{out.parent} is not a folder: make it, or choose another --out")
    if out.is_dir():
        raise CourseError(f"{out} is a folder: name a file in it, such as {out / example}")


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
