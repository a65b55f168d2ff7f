"""What a GPU adds: `python -m tests.benchmarks gpu --minutes 8 --out gpu`, which writes gpu.json and gpu.md.

It needs the checkout, a CUDA build of PyTorch and, for what is trained, hippocampus in the data folder. Full-size
volumes are made. Every path that only a GPU takes is run once and compared with the CPU.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor

from course_utils import fields, losses, metrics
from course_utils.checkpoint import Checkpoint
from course_utils.data.cohorts import load_cohort
from course_utils.data.grids import Grid
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.pairs import Cohort
from course_utils.data.resampling import resample
from course_utils.data.synthetic import make_cohort
from course_utils.data.volumes import read_image
from course_utils.errors import CourseError
from course_utils.evaluation import evaluate_checkpoint, summarise
from course_utils.networks import NetworkSpec
from course_utils.objectives import pair_objective
from course_utils.scans.optimise import optimise
from course_utils.scans.registration import register_files
from course_utils.scans.writing import image_like, save
from course_utils.training import TrainConfig, train_cohort

FULL = (160, 192, 224)
TINY = (32, 48, 32)
PAIR_STEPS = 32_942
"""All ordered pairs of the 182 training and validation subjects that the Learn2Reg task has."""


@dataclass
class Report:
    """Everything that is measured, for JSON and Markdown."""

    device: str
    torch_version: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """Two tables and a list."""
        lines = [
            f"{self.device}, PyTorch {self.torch_version}",
            "",
            "| network | precision | s / step | peak GB | s / pair |",
        ]
        lines += ["|---|---|---|---|---|"]
        for row in self.steps:
            cells = [f"{row[name]:.3g}" if name in row else "" for name in ("step", "memory", "inference")]
            lines.append(f"| {row['network']} | {row['precision']} | {' | '.join(cells)} |")
        lines += ["", "| largest difference to the CPU | |", "|---|---|"]
        lines += [f"| {name} | {value:.2g} |" for name, value in self.agreement.items()]
        lines += ["", *(f"- {name}: {value}" for name, value in self.figures.items())]
        return "\n".join(lines) + "\n"


def _network(name: str) -> torch.nn.Module:
    if name == "MONAI VoxelMorph":
        from monai.networks.nets import VoxelMorph

        return VoxelMorph()
    return NetworkSpec(name, {"spatial_dims": 3}).build()


def _call(model: torch.nn.Module, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    found = model(moving, fixed)
    return found if isinstance(found, tuple) else (found.moved, found.displacement)


def _time_steps(name: str, precision: str, shape: tuple[int, ...], device: torch.device, count: int) -> dict[str, Any]:
    """Seconds of a training step (SSD, diffusion, Adam), peak memory in GB, and seconds of a registration."""
    row: dict[str, Any] = {"network": name, "precision": precision}
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.split(",")[0]]
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    try:
        model = _network(name).to(device).train()
        if "channels last" in precision:
            model = model.to(memory_format=torch.channels_last_3d)
        call: Callable[..., Any] = torch.compile(model) if "compiled" in precision else model
        moving, fixed = torch.rand(2, 1, 1, *shape, device=device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(count + 2):
            wait()
            begun = time.perf_counter()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                moved, displacement = _call(call, moving, fixed)
            loss = losses.ssd_loss(moved, fixed) + 0.25 * losses.diffusion_loss(displacement)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            wait()
            times.append(time.perf_counter() - begun)
        row["step"] = statistics.median(times[2:])
        if device.type == "cuda":
            row["memory"] = torch.cuda.max_memory_allocated() / 1e9
        model.eval()
        times = []
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for _ in range(count + 1):
                begun = time.perf_counter()
                _call(call, moving, fixed)
                wait()
                times.append(time.perf_counter() - begun)
        row["inference"] = statistics.median(times[1:])
    except torch.OutOfMemoryError:
        row["precision"] += " (out of memory)"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _agreement(device: torch.device) -> dict[str, float]:
    """Largest differences between this device and the CPU, of what runs on both."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, 1, 12, 16, 12, generator=generator)
    moving, fixed = torch.nn.functional.interpolate(noise.flatten(0, 1), size=(48, 64, 48), mode="trilinear")[:, None]
    label = (moving > moving.median()).to(torch.uint8)
    velocity = fields.resize(torch.randn(1, 3, 4, 4, 4, generator=generator), moving.shape[2:])
    found: dict[str, float] = {}

    def compare(name: str, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        there = function(*(x.to(device) for x in inputs)).detach().float().cpu()
        found[name] = (there - function(*inputs).detach().float()).abs().max().item()

    compare("warp, intensities", fields.warp, moving, velocity)
    compare("integrate, voxels", fields.integrate, velocity)
    compare("invert, voxels", fields.invert, 0.2 * velocity)
    compare("NCC", losses.ncc_loss, moving, fixed)
    compare("determinant", fields.jacobian_determinant, velocity)
    compare("Dice", lambda a, b: metrics.dice(a, b, [1]), label, label.roll(1, 2))
    for name in ("voxelmorph", "pyramid"):
        model = _network(name).eval()
        for parameter_name, weight in model.named_parameters():
            if parameter_name.startswith("velocity") and parameter_name.endswith("weight"):
                weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
        there = {where: _call(model.to(where), moving.to(where), fixed.to(where))[1].cpu() for where in (device, "cpu")}
        found[f"{name}, voxels"] = (there[device] - there["cpu"]).abs().max().item()
    refined = [
        optimise(moving.to(where), fixed.to(where), iterations=50).displacement.cpu() for where in (device, "cpu")
    ]
    found["optimise (50 steps), mean voxels"] = (refined[0] - refined[1]).norm(dim=1).mean().item()
    return found


def _register(model: Path | None, shape: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """The report of `register` on two template brains of 1 mm, with and without optimisation."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        cohort = make_cohort(Path(folder) / "cohort", subjects=2, spacing=1.0 if shape == FULL else 4.0)
        files = []
        for path in sorted((cohort / "images").iterdir()):
            scan = read_image(path)
            affine = scan.grid.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ [(n - m) / 2 for n, m in zip(scan.grid.shape, shape, strict=True)]
            grid = Grid(shape, affine)
            files.append(Path(folder) / path.name)
            save(image_like(resample(scan.data, scan.grid, grid), scan, grid, scan.header), files[-1], files[-1])
        for iterations in (0, 100):
            options = {"model": model, "iterations": iterations if model else max(1, iterations)}
            report = register_files(files[1], files[0], {"moved": Path(folder) / "m.nii.gz"}, device=device, **options)
            figures[f"register {'x'.join(map(str, shape))}, {iterations} iterations"] = str(report)
    return figures


def _epoch(cohort: Cohort, device: torch.device, seconds: float) -> str:
    """How long training on all ordered pairs takes, from the steps of a while."""
    loaded = load_subjects(cohort.splits["train"], cohort.info.recipe)
    pairs = PairDataset(loaded, cohort.pairs("train", count=10**9))
    model = _network("voxelmorph").to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    dtype = torch.bfloat16 if device.type == "cuda" else None
    objective, batch_size = pair_objective("ssd"), 16 if device.type == "cuda" else 2
    done, begun = 0, time.monotonic()
    for batch in loader(pairs, batch_size):
        batch = {name: batch[name].to(device, non_blocking=True) for name in ("moving", "fixed")}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            registration = model(batch["moving"], batch["fixed"])
        loss = objective.judge(registration, batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done += batch_size
        if time.monotonic() - begun > seconds:
            break
    loss.item()
    rate = done / (time.monotonic() - begun)
    minutes = PAIR_STEPS / rate / 60
    return (
        f"{rate:.0f} pairs / s over {seconds:.0f} s, batch {batch_size}; {minutes:.2f} minutes for {PAIR_STEPS:,} pairs"
    )


def _trainings(cohort: Cohort, device: torch.device, minutes: float, folder: Path) -> dict[str, str]:
    """Dice of test pairs after some minutes of training, without and with labels."""
    figures = {}
    settings: dict[str, tuple[dict[str, Any], str, int]] = {
        "NCC": ({"similarity": "ncc"}, "auto", 8),
        "labels": ({"similarity": "ssd", "smoothness": 0.05, "dice_weight": 0.5}, "fp16", 8),
    }
    for name, (loss, amp, batch_size) in settings.items():
        amp = amp if device.type == "cuda" else "off"
        result = train_cohort(
            cohort,
            folder / name,
            network=NetworkSpec("pyramid", {"spatial_dims": 3, "antisymmetric": "dice_weight" not in loss}),
            objective=pair_objective(**loss, labels=cohort.info.labels, coarseness=2),
            config=TrainConfig(minutes=minutes, batch_size=batch_size, validations=4, amp=amp),
            device=device,
            hooks=[],
        )
        table = evaluate_checkpoint(Checkpoint.load(result.best), cohort.distinct_pairs("test", 50), device=device)
        mean = summarise(table).loc["overall"].xs("mean", level=1)
        figures[f"hippocampus, pyramid, {name}, {amp}, {minutes:g} minutes"] = (
            f"{len(result.history)} steps of {batch_size}, Dice {mean.dice_before:.3f} -> {mean.dice_after:.3f}, "
            f"HD95 {mean.hd95_mm_before:.2f} -> {mean.hd95_mm_after:.2f} mm, folding {mean.folding_percent:.4f} %, "
            f"{mean.seconds:.4f} s / pair"
        )
    return figures


def gpu(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json and gpu.md.")],
    minutes: Annotated[float, typer.Option(help="About how long all of it may take.")] = 8.0,
    device: Annotated[str, typer.Option(help="Where.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Small volumes and few steps, to try the script.")] = False,
) -> None:
    """Step times and memory at full size, agreement with the CPU, registration, an epoch, and two short trainings."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CourseError("there is no CUDA device here: run it where there is one, or try it with --device cpu --tiny")
    where, shape = torch.device(device), TINY if tiny else FULL
    report = Report(torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU", torch.__version__)
    out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        (out / "gpu.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        (out / "gpu.md").write_text(report.markdown(), encoding="utf-8")

    begun = time.monotonic()
    report.agreement = _agreement(where)
    write()
    cohort = None
    try:
        cohort = load_cohort("hippocampus", download=False)
    except CourseError as error:
        typer.echo(f"nothing is trained: {error}", err=True)
    model = None
    with tempfile.TemporaryDirectory() as folder:
        if cohort is not None:
            report.figures |= _trainings(cohort, where, 0.02 if tiny else minutes / 6, Path(folder))
            report.figures["all against all"] = _epoch(cohort, where, 2 if tiny else 30)
            model = Path(folder) / "NCC" / "best.pt"
            write()
        report.figures |= _register(model, shape, where)
        write()
    precisions = ["fp32", "bf16"] if tiny else ["fp32", "bf16", "fp16", "bf16, channels last", "bf16, compiled"]
    for precision in precisions:
        for name in ("voxelmorph", "pyramid", "MONAI VoxelMorph"):
            if name.startswith("MONAI") and "," in precision:
                continue
            report.steps.append(_time_steps(name, precision, shape, where, 1 if tiny else 5))
            write()
            if time.monotonic() - begun > 60 * minutes:
                break
    report.figures["minutes of all this"] = f"{(time.monotonic() - begun) / 60:.1f}"
    write()
    typer.echo(report.markdown())
    assert all(math.isfinite(value) for value in report.agreement.values())
    assert pd.DataFrame(report.steps)["step"].notna().any()
