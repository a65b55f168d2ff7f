"""Does the page for a pair last: `python -m tests.benchmarks soak --count 200`.

Several people register hippocampus scans one after the other, fetch a result, and delete it. The server's memory and
its files are looked at after each; in the end it is killed in the middle of a registration.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import nibabel
import pandas as pd
import psutil
import requests
import typer

from course_utils.data.cohorts import load_cohort
from course_utils.data.pairs import Subject


def soak(
    count: Annotated[int, typer.Option(help="Registrations.")] = 200,
    users: Annotated[int, typer.Option(help="People at a time.")] = 4,
    steps: Annotated[int, typer.Option(help="Of optimisation, after the network.")] = 5,
) -> None:
    """Many registrations by the page's server: memory, files that stay, and what a kill leaves behind."""
    subjects = load_cohort("hippocampus").splits["test"]
    with tempfile.TemporaryDirectory() as name:
        server, address = _started(Path(name))
        (folder,) = Path(name).iterdir()
        numbers, rows = iter(range(count)), []

        def use() -> None:
            for number in numbers:
                begun = time.monotonic()
                pair = subjects[number % len(subjects)], subjects[(number + 1) % len(subjects)]
                job = _register(address, *pair, steps)
                right = job["state"] == "done" and _fetched(address, job) == nibabel.load(pair[0].image).shape
                rows.append(
                    {
                        "seconds": time.monotonic() - begun,
                        "right": right,
                        "MB": psutil.Process(server.pid).memory_info().rss / 1e6,
                    }
                )

        begun = time.monotonic()
        threads = [threading.Thread(target=use) for _ in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        table = pd.DataFrame(rows)
        tenth = max(1, count // 10)
        typer.echo(
            f"{len(table)} registrations by {users} people in {(time.monotonic() - begun) / 60:.1f} minutes, "
            f"{int(table.right.sum())} right; {table.seconds.median():.1f} s each, queue included\n"
            f"memory of the server: {table.MB[:tenth].mean():.0f} MB in the first tenth, "
            f"{table.MB[-tenth:].mean():.0f} in the last, {table.MB.max():.0f} at most\n"
            f"{len(list(folder.iterdir()))} folders left when all is fetched and deleted"
        )
        _send(address, subjects[0], subjects[1], 500)
        time.sleep(3)
        family = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGKILL)
        server.wait()
        gone = psutil.wait_procs(family, timeout=30)[1] == []
        typer.echo(f"killed in the middle of a registration: processes gone: {gone}, files gone: {not folder.exists()}")


def _started(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The server, whose files are in a folder, and its address."""
    command = [sys.executable, "-m", "course_utils", "serve", "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)})
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    if not found:
        raise typer.Exit(server.wait())
    return server, found[0]


def _send(address: str, fixed: Subject, moving: Subject, steps: int) -> dict:
    files = {"fixed": fixed.image.read_bytes(), "moving": moving.image.read_bytes()}
    form = {"network": "hippocampus", "steps": str(steps)}
    named = {key: (f"{key}.nii.gz", data) for key, data in files.items()}
    answer = requests.post(f"{address}api/jobs", data=form, files=named, timeout=60)
    answer.raise_for_status()
    return answer.json()


def _register(address: str, fixed: Subject, moving: Subject, steps: int) -> dict:
    """The job of a registration that has ended."""
    job = _send(address, fixed, moving, steps)
    for _ in range(2400):
        time.sleep(0.25)
        job = requests.get(f"{address}api/jobs/{job['id']}", timeout=60).json()
        if job["state"] in ("done", "failed"):
            return job
    raise TimeoutError("a registration did not end")


def _fetched(address: str, job: dict) -> tuple[int, ...]:
    """The shape of the moved scan, which is fetched and then deleted."""
    place = f"{address}api/jobs/{job['id']}"
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        file.write(requests.get(f"{place}/moved.nii.gz", timeout=60).content)
        file.flush()
        shape = nibabel.load(file.name).shape
    requests.delete(place, timeout=60)
    return shape
