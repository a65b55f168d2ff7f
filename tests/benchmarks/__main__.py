"""`make bench`: this network beside MONAI's VoxelMorph and voxelmorph's VxmPairwise, on one machine, in one run.

    python -m tests.benchmarks speed       pairs a second, seconds a pair, peak memory
    python -m tests.benchmarks accuracy    Dice over minutes, and Dice after equal minutes
    python -m tests.benchmarks             both
    python -m tests.benchmarks refine      affine, a network, instance optimisation, and classical peers, on test pairs
    python -m tests.benchmarks large       register, on a pair of 160x192x224 voxels of 1 mm
    python -m tests.benchmarks brains      a network for any contrast, on two brains of one's own
    python -m tests.benchmarks directions  does swapping the images invert the map, and what does each cure cost?
    python -m tests.benchmarks folding     what does it cost not to fold?
    python -m tests.benchmarks backbones   does the block matter, or what is built of blocks?
    python -m tests.benchmarks contrasts   how well are contrasts registered that a network was never shown?
    python -m tests.benchmarks smoothness  does one network for every smoothness do what five do?
    python -m tests.benchmarks templates   which template carries labels best to people whom nobody trained on?
    python -m tests.benchmarks ages        does a template that depends on age show age, and what makes it?
    python -m tests.benchmarks certainty   is a spread more than its prior, and does it know where the field is wrong?
    python -m tests.benchmarks labels      what helps a network to learn from labels?
    python -m tests.benchmarks new-subjects  go on with a network that ships, or begin anew?
    python -m tests.benchmarks waiting     does training wait for its data, where no memory holds the cohort?
    python -m tests.benchmarks soak        does the page for a pair last?
    python -m tests.benchmarks gpu         what a GPU adds

All networks see the same pairs, batch, loss and optimiser. Machines are noisy, so every network is measured several
times in turn, each time in a process of its own (which also makes its peak memory its own), and ratios count.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from course_utils.commands.ending import run
from course_utils.data.cohorts import load_cohort
from course_utils.data.grids import Grid
from course_utils.data.loading import PairDataset, loader
from course_utils.data.resampling import resample
from course_utils.data.synthetic import make_cohort
from course_utils.data.volumes import read_image
from course_utils.evaluation import evaluate, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.scans.writing import image_like, save
from course_utils.training import TrainConfig, fit
from tests.benchmarks.ages import ages
from tests.benchmarks.backbones import backbones
from tests.benchmarks.brains import brains
from tests.benchmarks.candidates import BATCH, CANDIDATES, as_registration, data_of, peak_of, train
from tests.benchmarks.certainty import certainty
from tests.benchmarks.contrasts import contrasts
from tests.benchmarks.directions import directions
from tests.benchmarks.folding import folding
from tests.benchmarks.gpu import gpu
from tests.benchmarks.labels import labels
from tests.benchmarks.new_subjects import new_subjects
from tests.benchmarks.refine import refine
from tests.benchmarks.smoothness import smoothness
from tests.benchmarks.soak import soak
from tests.benchmarks.templates import templates
from tests.benchmarks.waiting import waiting

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
app.command()(gpu)
app.command()(brains)
app.command()(directions)
app.command()(folding)
app.command()(refine)
app.command()(backbones)
app.command()(contrasts)
app.command()(smoothness)
app.command()(templates)
app.command()(labels)
app.command()(new_subjects)
app.command()(waiting)
app.command()(soak)
app.command()(ages)
app.command()(certainty)


@app.command(hidden=True)
def measure(name: str, dataset: str, seconds: float) -> None:
    """One candidate in this process: prints its pairs a second, seconds a pair and peak MB as JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cohort, subjects = data_of(dataset, ("train",))
    pairs = PairDataset(subjects, cohort.pairs("train", count=10**9))
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    before = peak_of(device)
    steps = train(CANDIDATES[name], iter(loader(pairs, BATCH)), device)
    for _ in range(2):
        model = next(steps)
    wait()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        next(steps)
        wait()
        done += 1
    per_step = (time.perf_counter() - begun) / done
    peak = peak_of(device) - before
    model.eval()
    item = pairs[0]
    images = item["moving"][None].to(device), item["fixed"][None].to(device)
    times = []
    with torch.inference_mode():
        for _ in range(10):
            begun = time.perf_counter()
            CANDIDATES[name].call(model, *images)
            wait()
            times.append(time.perf_counter() - begun)
    typer.echo(json.dumps([BATCH / per_step, statistics.median(times), peak]))


@app.command()
def speed(
    dataset: Annotated[str, typer.Option(help="What to measure on.")] = "hippocampus",
    rounds: Annotated[int, typer.Option(help="How often, in turn; medians count.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="How long each network trains each time.")] = 10.0,
) -> None:
    """Training pairs a second, seconds a pair and peak memory (over what the data takes), and ratios."""
    load_cohort(dataset)  # fetched once, and what is wrong with it is told here rather than by every process below
    measured: dict[str, list[list[float]]] = {name: [] for name in CANDIDATES}
    for _ in range(rounds):
        for name, results in measured.items():
            command = [sys.executable, "-m", "tests.benchmarks", "measure", name, dataset, str(seconds)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    columns = ["training pairs / s", "s / pair", "peak MB"]
    table = pd.DataFrame(
        {
            name: [statistics.median(column) for column in zip(*results, strict=True)]
            for name, results in measured.items()
        },
        index=columns,
    ).T
    ours = table.loc["course_utils"]
    table["pairs / s, ours : theirs"] = ours.iloc[0] / table["training pairs / s"]
    table["s / pair, theirs : ours"] = table["s / pair"] / ours.iloc[1]
    table["memory, theirs : ours"] = table["peak MB"] / ours.iloc[2]
    typer.echo(f"{dataset}, batch {BATCH}, {torch.get_num_threads()} threads, median of {rounds} rounds\n")
    typer.echo(table.to_string(float_format="{:.3g}".format))


@app.command()
def accuracy(
    dataset: Annotated[str, typer.Option(help="What to train on.")] = "hippocampus",
    minutes: Annotated[float, typer.Option(help="How long each network trains.")] = 5.0,
    count: Annotated[int, typer.Option(help="Test pairs.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the first weights and the training pairs.")] = 0,
) -> None:
    """Dice, distances and folding of test pairs after equal minutes of training, and the validation Dice on the way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cohort, subjects = data_of(dataset, ("train", "val", "test"))
    pairs = PairDataset(subjects, cohort.pairs("train", count=10**9, seed=seed))
    validation = PairDataset(subjects, cohort.pairs("val", count=10))
    test = PairDataset(subjects, cohort.pairs("test", count=count))
    rows, curves = {}, {}

    def note(method: str, model: Callable[..., Any]) -> None:
        table = evaluate(model, test, cohort.info.labels, cohort.info.spacing, device=device)
        overall = summarise(table).loc["overall"]
        rows[method] = overall.xs("mean", level=1)
        typer.echo(f"\n{method}, {minutes:g} minutes\n{overall.unstack().to_string(float_format='{:.4g}'.format)}")

    for architecture, similarity in [("pyramid", "ncc"), ("pyramid", "ssd"), ("voxelmorph", "ssd")]:
        method = f"{architecture}, {similarity.upper()}"
        network = NetworkSpec(architecture, {"spatial_dims": 3, "antisymmetric": True}).build(seed)  # as `train` does
        config, card = TrainConfig(minutes=minutes, seed=seed), cohort.info.card()
        with tempfile.TemporaryDirectory() as folder:
            out, objective = Path(folder) / "run", pair_objective(similarity, coarseness=2)
            result = fit(network, objective, pairs, validation, out, config, card=card, device=device)
        validated = result.history.dropna(subset="validation_dice")
        curves[method] = validated.set_index((validated["seconds"] / 60).round(1))["validation_dice"]
        note(method, result.model)
    candidate = CANDIDATES["MONAI VoxelMorph"]
    end = time.monotonic() + 60 * minutes
    steps = train(candidate, iter(loader(pairs, BATCH)), device, minutes)
    model = next(model for model in steps if time.monotonic() > end)
    note("MONAI VoxelMorph, SSD", as_registration(candidate, model.eval()))
    typer.echo("\n" + pd.DataFrame(rows).T.to_string(float_format="{:.4g}".format))
    for method, curve in curves.items():
        points = ", ".join(f"{minute:g}: {dice:.3f}" for minute, dice in curve.items())
        typer.echo(f"validation Dice over minutes, {method}: {points}")


@app.command()
def large(
    model: Annotated[Path, typer.Option(help="A checkpoint that train wrote on 3-D volumes of 1 mm.")],
) -> None:
    """The report of `register` (NCC, folding, seconds, memory) on two template brains of 160x192x224 voxels."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = make_cohort(Path(folder) / "cohort", subjects=2, spacing=1.0)
        files = []
        for path in sorted((cohort / "images").iterdir()):
            scan = read_image(path)
            grid = Grid((160, 192, 224), scan.grid.affine.copy())
            grid.affine[:3, 3] += [(n - m) / 2 for n, m in zip(scan.grid.shape, grid.shape, strict=True)]
            files.append(Path(folder) / path.name)
            image = image_like(resample(scan.data, scan.grid, grid), scan, grid, scan.header)
            save(image, files[-1], files[-1])
        command = [sys.executable, "-m", "course_utils", "register", "--moving", files[0], "--fixed", files[1]]
        command += ["--moved", Path(folder) / "moved.nii.gz", "--model", model]
        begun = time.monotonic()
        subprocess.run(command, check=True)
        typer.echo(f"with reading and writing {time.monotonic() - begun:.0f} s, {torch.get_num_threads()} threads")


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Without a command: speed, then accuracy."""
    if context.invoked_subcommand is None:
        speed()
        accuracy()


if __name__ == "__main__":
    run(app)
