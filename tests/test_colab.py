"""The setup cell as Colab meets it: numerical packages are there, the course is not."""

import os
import shutil
import subprocess
import sys

import pytest

from notebooks.build import ROOT, SETUP_CELL, repository_address

pytestmark = pytest.mark.slow

LOCK = ROOT / "requirements-lock.txt"
PREINSTALLED = ["torch", "numpy", "matplotlib", "pandas", "scipy", "requests", "tqdm", "ipykernel"]

CELL = SETUP_CELL.format(address=repository_address())
PROBE = "import course_utils, sys; print('package', course_utils.__file__, sys.prefix, sep='|')"


def run(command, **settings):
    return subprocess.run(command, capture_output=True, text=True, **settings)


@pytest.fixture
def colab(tmp_path):
    """The interpreter of a new virtual environment with what Colab brings, and the environment variables to use."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COURSE_", "PYTHON"))}
    environment["PIP_CONSTRAINT"] = str(LOCK)  # the versions under test; Colab's own differ from month to month
    run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    done = run([python, "-m", "pip", "install", "--quiet", *PREINSTALLED], env=environment)
    if done.returncode:
        message = f"packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    yield python, environment
    shutil.rmtree(tmp_path / "venv")  # about a gigabyte


@pytest.fixture
def repository(tmp_path):
    """A git repository with the working tree as it is now, committed or not."""
    copy = tmp_path / "repository"
    listing = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message=working tree"]):
        run(["git", *command], cwd=copy, check=True)
    return f"git+file://{copy}"


def test_the_setup_cell_installs_the_course_and_leaves_torch_alone(colab, repository, tmp_path):
    python, environment = colab
    environment["COURSE_REPOSITORY"] = repository
    torch_before = run([python, "-c", "import torch; print(torch.__file__)"], cwd=tmp_path, env=environment, check=True)
    torch_file = torch_before.stdout.strip()
    stamp = os.stat(torch_file).st_mtime_ns, os.stat(torch_file).st_ino

    absent = run([python, "-c", "import course_utils"], cwd=tmp_path, env=environment)
    assert "No module named 'course_utils'" in absent.stderr

    first = run([python, "-c", f"{CELL}\n{PROBE}"], cwd=tmp_path, env=environment)
    assert first.returncode == 0, first.stderr
    assert "synthetic" in first.stdout
    _, package, prefix = first.stdout.splitlines()[-1].split("|")
    assert package.startswith(f"{prefix}/") and prefix == str(tmp_path / "venv")
    assert (os.stat(torch_file).st_mtime_ns, os.stat(torch_file).st_ino) == stamp

    # A second run of the cell installs nothing: with an address that leads nowhere it still succeeds.
    environment["COURSE_REPOSITORY"] = f"git+file://{tmp_path}/nowhere"
    second = run([python, "-c", CELL], cwd=tmp_path, env=environment)
    assert second.returncode == 0, second.stderr
