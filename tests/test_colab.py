"""The setup cell as Colab meets it: numerical packages are there, the course is not.

`colab-freeze.txt` says which versions Colab has. Nothing of it may move: google-colab pins some of them (pandas,
requests), others belong together (TensorFlow and TensorBoard), and a kernel that runs has them in memory.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from notebooks.build import ROOT, SETUP_CELL, repository_address

pytestmark = pytest.mark.slow

FREEZE = Path(__file__).parent / "colab-freeze.txt"
PYTHON = "3.13"  # Colab's at that time
COLAB = dict(line.split("==") for line in FREEZE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
PREINSTALLED = [
    *("torch", "numpy", "matplotlib", "pandas", "scipy", "requests", "tqdm", "typer", "nibabel", "tensorboard"),
    *("ipykernel", "safetensors"),
]
ADDED = {"monai", "einops"}
"""What the course brings to Colab. Newer states of it may have einops, which asks for nothing, already."""
# Colab's own build of PyTorch is of another index, and what stands in for it has wishes of its own.
STAND_IN = {"torch", "setuptools"}

CELL = SETUP_CELL.format(address=repository_address())
PROBE = """
import sys, tempfile
import course_utils
from course_utils.data.synthetic import make_cohort

make_cohort(tempfile.mkdtemp(), subjects=2, dimensions=2)  # from the template that the package brings along
print("package", course_utils.__file__, sys.prefix, sep="|")
"""


def run(command, **settings):
    return subprocess.run(command, capture_output=True, text=True, **settings)


def cannot_install(done):
    """Skip where the network lacks; where tests are proof, fail."""
    message = f"packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def pins(folder, without=()):
    """A file of constraints: Colab's versions."""
    path = folder / "colab.txt"
    path.write_text(
        "".join(f"{name}=={version}\n" for name, version in COLAB.items() if name not in without), encoding="utf-8"
    )
    return path


def test_colab_satisfies_every_requirement_but_monai_and_einops():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = {canonicalize_name(one.name): one.specifier for one in map(Requirement, dependencies)}
    assert {name for name in wanted if name not in COLAB} == ADDED
    assert [name for name in wanted if name in COLAB and COLAB[name] not in wanted[name]] == []


def test_pip_s_plan_over_colab_s_freeze_adds_both_and_moves_nothing(tmp_path):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    plan = tmp_path / "plan.json"
    only = ["--dry-run", "--report", plan, "--target", tmp_path / "none", "--python-version", PYTHON]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *only, "--only-binary=:all:"]
    done = run([*command, "--constraint", pins(tmp_path), *dependencies])
    if done.returncode:
        assert "ResolutionImpossible" not in done.stderr, done.stderr
        cannot_install(done)
    planned = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"].split("+")[0]
        for item in json.loads(plan.read_text(encoding="utf-8"))["install"]
    }
    assert {name: COLAB[name] for name in planned if name in COLAB} == {
        name: version for name, version in planned.items() if name in COLAB
    }
    # What remains comes with PyPI's build of PyTorch for CUDA; Colab's is another.
    cuda = {name for name in planned if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    markers = {"importlib-resources"}  # pip reads nibabel's "before Python 3.12" for the Python that pip runs on
    assert set(planned) - set(COLAB) - cuda - markers == ADDED


def versions(python, environment):
    """Every package that is installed, and which version."""
    listing = run([python, "-m", "pip", "list", "--format", "json"], env=environment, check=True).stdout
    return {canonicalize_name(package["name"]): package["version"] for package in json.loads(listing)}


@pytest.fixture
def colab(tmp_path):
    """The interpreter of a new virtual environment with what Colab brings, and the environment variables to use."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COURSE_", "PYTHON"))}
    run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    torch = next(
        line
        for line in (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    constrained = ["--constraint", pins(tmp_path, without=STAND_IN), torch, *PREINSTALLED]
    done = run([python, "-m", "pip", "install", "--quiet", *constrained], env=environment)
    if done.returncode:
        cannot_install(done)
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


def test_the_setup_cell_installs_the_course_and_moves_nothing(colab, repository, tmp_path):
    python, environment = colab
    environment["COURSE_REPOSITORY"] = repository
    torch_before = run([python, "-c", "import torch; print(torch.__file__)"], cwd=tmp_path, env=environment, check=True)
    torch_file = torch_before.stdout.strip()
    stamp = os.stat(torch_file).st_mtime_ns, os.stat(torch_file).st_ino
    before = versions(python, environment)
    assert {name: before[name] for name in PREINSTALLED if name not in STAND_IN} == {
        name: COLAB[name] for name in PREINSTALLED if name not in STAND_IN
    }

    absent = run([python, "-c", "import course_utils"], cwd=tmp_path, env=environment)
    assert "No module named 'course_utils'" in absent.stderr

    first = run([python, "-c", f"{CELL}\n{PROBE}"], cwd=tmp_path, env=environment)
    assert first.returncode == 0, first.stderr
    assert "synthetic" in first.stdout
    _, package, prefix = first.stdout.splitlines()[-1].split("|")
    assert package.startswith(f"{prefix}/") and prefix == str(tmp_path / "venv")
    assert (os.stat(torch_file).st_mtime_ns, os.stat(torch_file).st_ino) == stamp
    after = versions(python, environment)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"course-utils", *ADDED}

    # A second run of the cell installs nothing: with an address that leads nowhere it still succeeds.
    environment["COURSE_REPOSITORY"] = f"git+file://{tmp_path}/nowhere"
    second = run([python, "-c", CELL], cwd=tmp_path, env=environment)
    assert second.returncode == 0, second.stderr
