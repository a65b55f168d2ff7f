"""Does training wait for its data where no memory holds the cohort: `python -m tests.benchmarks waiting`.

Whole brains of 1 mm are made, and read as `train` reads a cohort that is too large: once, into a cache on disk. Then
random pairs are taken from there in the order of a training. Between two pairs the process sleeps for as long as a step
takes on a GPU, which leaves the processors free; what a step lasts beyond that is waiting.
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

from course_utils.data.grids import by
from course_utils.data.loading import PairDataset, load_subjects, loader
from course_utils.data.pairs import Cohort, Pair, Subject
from course_utils.data.source import Source
from course_utils.data.synthetic import make_cohort
from course_utils.training.cohort import LARGEST_IN_MEMORY, cache_of

MADE = 8
"""Brains that differ; the other files are copies of theirs, under names of their own, and are read for themselves."""
FIRST = 4
"""Pairs that are not counted: processes start, and fetch ahead."""


def waiting(
    subjects: Annotated[int, typer.Option(help="Brains of the cohort.")] = 120,
    pairs: Annotated[int, typer.Option(help="Pairs that are timed, for each number of processes and each step.")] = 40,
    step: Annotated[
        list[float] | None, typer.Option(help="Seconds of a step on the device.", show_default="0.25, 0.5 and 1")
    ] = None,
    workers: Annotated[
        list[int] | None, typer.Option(help="Processes that load pairs.", show_default="0, 1 and 2")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where there is room, 50 MB a brain.", exists=True, file_okay=False)
    ] = None,
) -> None:
    """Share of the time that training waits for its data, and memory, with a cohort on disk."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        cohort = _brains(Path(place) / "files", subjects)
        begun = time.perf_counter()
        listed = _of_a_million(cohort)
        chosen = [listed[index] for index in random.Random(0).sample(range(len(listed)), 1000)]
        seconds = time.perf_counter() - begun
        typer.echo(f"{len(listed):,} pairs listed, {len(chosen):,} of them looked at: {seconds:.3f} s")
        where = cache_of(cohort, place)
        if where == "memory":
            raise typer.BadParameter(f"{subjects} brains fit into {LARGEST_IN_MEMORY / 1e9:g} GB: take more")
        begun = time.perf_counter()
        everyone = load_subjects(cohort.subjects, cohort.info.recipe, where, workers=2)
        size = sum(path.stat().st_size for path in Path(where).rglob("*") if path.is_file())
        seconds = time.perf_counter() - begun
        typer.echo(
            f"{len(everyone)} brains of {by(cohort.info.shape)} voxels read once in {seconds:.0f} s, "
            f"{size / 1e9:.1f} GB on disk; {psutil.virtual_memory().total / 1e9:.0f} GB of memory, "
            f"{os.cpu_count()} processors"
        )
        dataset = PairDataset(everyone, cohort.pairs("train", "random", count=10**6))
        rows = [
            _timed(dataset, pairs, each, number) for number in workers or (0, 1, 2) for each in step or (0.25, 0.5, 1)
        ]
    typer.echo(pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))


def _of_a_million(cohort: Cohort) -> Sequence[Pair]:
    """All ordered pairs of 1,001 training subjects."""
    many = tuple(Subject(f"{number:04d}", Path(f"{number:04d}.nii.gz")) for number in range(1001))
    return replace(cohort, splits={"train": many}).pairs("train", "all")


def _brains(folder: Path, count: int) -> Cohort:
    """A cohort of files of the course's brains, on a grid of 1 mm."""
    made = make_cohort(folder / "made", subjects=MADE, spacing=1.0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        files = sorted((made / kind).glob("*.nii.gz"))
        for number in range(count):
            shutil.copyfile(files[number % MADE], folder / kind / f"{number:04d}.nii.gz")
    cohort, _ = Source(images=str(folder / "images"), labels=str(folder / "labels")).load()
    return cohort


def _timed(dataset: PairDataset, pairs: int, step: float, workers: int) -> dict[str, float]:
    """A row: how long a step of that many seconds lasts with its data, and the memory of all processes."""
    _empty_page_cache()
    me, waits, most = psutil.Process(), [], 0
    for wait in _waits(iter(loader(dataset, 1, 0, pairs + FIRST, workers)), step):
        waits.append(wait)
        most = max(most, sum(_own(process) for process in (me, *me.children(recursive=True))))
    waits = waits[FIRST:]
    return {
        "workers": workers,
        "step s": step,
        "waits s": statistics.mean(waits),
        "longest s": max(waits),
        "waits %": 100 * sum(waits) / (sum(waits) + step * len(waits)),
        "memory GB": most / 1e9,
    }


def _waits(batches: Iterator[object], step: float) -> Iterator[float]:
    while True:
        begun = time.perf_counter()
        if next(batches, None) is None:
            return
        yield time.perf_counter() - begun
        time.sleep(step)


def _own(process: psutil.Process) -> int:
    """Bytes that a process shares with no other; Linux alone tells them."""
    memory = process.memory_full_info()
    return getattr(memory, "uss", memory.rss)


def _empty_page_cache() -> None:
    """Have the next reading come from the disk; without root's rights what the system has kept stays."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        typer.echo("(the system's cache of files could not be emptied: the disk may be slower than this)", err=True)
