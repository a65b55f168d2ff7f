"""`python -m course_utils serve`: how it begins, and that it leaves nothing however it ends."""

import os
import signal
import socket
import stat
import sys
import time

import pytest
import requests

from course_utils.commands import app
from course_utils.commands import serve as command
from tests.checkpoints import SLICES, checkpoint
from tests.serving.pairs import files_of, phantom_pair

pytestmark = pytest.mark.slow


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to this machine
        yield session


def gone(folder, seconds=30):
    end = time.monotonic() + seconds
    while folder.exists():
        assert time.monotonic() < end, list(folder.rglob("*"))
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_stays_behind(serving, session, tmp_path, name):
    end = getattr(signal, name)
    process, address, folder = serving()
    assert address.startswith("http://127.0.0.1:") and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "Register two scans" in session.get(address).text
    answer = session.post(f"{address}api/jobs", files=files_of(phantom_pair(tmp_path)), data={"steps": "400"})
    assert answer.status_code == 202
    told = answer.json()
    while told["state"] == "waiting" or told["stage"] == "starting":
        time.sleep(0.1)
        told = session.get(f"{address}api/jobs/{told['id']}").json()
    process.send_signal(end)
    out, err = process.communicate(timeout=60)
    gone(folder)
    if end == signal.SIGINT:
        assert (process.returncode, out, err) == (0, "", "ended: every scan and every result is deleted\n")
    else:
        assert process.returncode == -end and (out, err) == ("", "")


def test_other_machines_need_the_token(serving, session):
    _, address, _ = serving("--host", "0.0.0.0")
    port, token = address.rpartition(":")[2].split("/?token=")
    here = f"http://127.0.0.1:{port}/"
    assert session.get(here).status_code == 403
    assert session.get(f"{here}?token={token}").status_code == 200
    assert session.get(f"{here}api/options").status_code == 200


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line of a command that must end in exit code 2."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["course_utils", "serve", *map(str, options)])
        with pytest.raises(SystemExit) as end:
            app.main()
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("error: ")
        return line

    return run


def test_what_is_missing_is_named(monkeypatch, refused):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "python_multipart" else os)
    assert refused() == "error: serve needs python-multipart: pip install python-multipart"


def test_an_address_or_a_network_that_cannot_be(refused, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in refused("--port", taken.getsockname()[1])
    assert "cannot be listened on" in refused("--host", "203.0.113.1")
    assert "does not exist" in refused("--model", tmp_path / "none.pt")
    checkpoint(SLICES).save(tmp_path / "slices.pt")
    assert "2-D" in refused("--model", tmp_path / "slices.pt")
