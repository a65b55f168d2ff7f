"""`make lab` opens JupyterLab where notebooks and sources are paired: what is edited in the page reaches the source."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import requests

from notebooks import build


def arguments_of_make_lab():
    """What the Makefile gives to JupyterLab."""
    (line,) = re.findall(r"-m jupyterlab (.*)$", (build.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return line.split()


@pytest.fixture
def server(tmp_path):
    """JupyterLab as `make lab` starts it, in a copy of the course: the copy, and what sends a request to its API."""
    course = tmp_path / "course"
    (course / "notebooks" / "assignments").mkdir(parents=True)
    shutil.copy(build.ROOT / "pyproject.toml", course)
    for name in ("00_start_here.ipynb", "assignments/02_warping.ipynb"):
        shutil.copy(build.ROOT / "notebooks" / name, course / "notebooks" / name)
    # Copied last: of a pair that differs, as it does before a rebuild, jupytext opens the newer one only if it is the
    # source.
    for folder in ("sources", "assignments/sources"):
        (course / "notebooks" / folder).mkdir(parents=True)
        for source in (build.ROOT / "notebooks" / folder).glob("*.py"):
            shutil.copyfile(source, course / "notebooks" / folder / source.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments_of_make_lab(), *options],
            cwd=course,
            env=os.environ | folders | {"JUPYTER_TOKEN": "test"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    session = requests.Session()
    session.trust_env = False  # no proxy leads to this machine
    session.headers["Authorization"] = "token test"

    def contents(path, content=None):
        address = f"http://127.0.0.1:{port}/api/contents/{path}"
        if content is None:
            answer = session.get(address, timeout=10)
        else:
            answer = session.put(address, json={"type": "notebook", "format": "json", "content": content}, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    try:
        _wait(contents, process, tmp_path / "log")
        yield course, contents
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(contents, process, log):
    for _ in range(240):
        try:
            return contents("")
        except requests.ConnectionError:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.25)
    return pytest.fail(log.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_edit_in_the_page_reaches_the_source(server):
    course, contents = server
    before = {path: path.read_bytes() for path in course.rglob("*.py")}
    notebook = contents("notebooks/00_start_here.ipynb")["content"]
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "panel(" in cell["source"])
    cell["source"] += "\nprint('edited in the page')"
    contents("notebooks/00_start_here.ipynb", notebook)
    source = course / "notebooks" / "sources" / "00_start_here.py"
    # The notebook that belongs to the source is the edited one, and nothing else of the source has changed.
    sources = [cell.source for cell in build.read_source(source).cells]
    assert sources == [cell["source"] for cell in notebook["cells"]]
    assert source.read_text(encoding="utf-8").replace("\nprint('edited in the page')", "").encode() == before[source]

    # A student's assignment is not paired: its source has the solutions.
    own = contents("notebooks/assignments/02_warping.ipynb")["content"]
    own["cells"][0]["source"] += "\nmine"
    contents("notebooks/assignments/02_warping.ipynb", own)
    saved = json.loads((course / "notebooks" / "assignments" / "02_warping.ipynb").read_text(encoding="utf-8"))
    assert "mine" in "".join(saved["cells"][0]["source"])
    after = {path: path.read_bytes() for path in course.rglob("*.py")}
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} == {source}
