"""The server as its clients see it: a pair in, results out, a queue, limits, and nothing left behind."""

import json
import os
import signal
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from course_utils.scans.registration import register_files
from course_utils.serving import process
from course_utils.serving.access import Access
from course_utils.serving.jobs import Jobs
from course_utils.serving.limits import Limits
from course_utils.serving.offered import offered
from course_utils.serving.web import make_app
from tests.scans.test_writing import by_simpleitk
from tests.serving.pairs import files_of, phantom_pair

STEPS = 6
HERE = "http://127.0.0.1:8000"
STAND_IN = """
import json, os, sys, time
request = json.loads(sys.stdin.readline())
print(json.dumps({"stage": "optimising", "share": 0.5}), flush=True)
for _ in range(600):
    if os.path.exists(os.path.join(sys.argv[1], "go")):
        print(json.dumps({"report": {}, "files": [], "warnings": []}), flush=True)
        break
    time.sleep(0.05)
"""
"""Instead of a registration: a process that says how far it is, and ends when it may."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """`server(limits)`: a client of a server that is closed at the end, with its jobs; all it writes is in `room`."""
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    running = []

    def start(limits=None, host="127.0.0.1"):
        jobs = Jobs(limits or Limits())
        access = Access.of(host, loopback=host == "127.0.0.1")
        client = TestClient(make_app(jobs, offered(), access), base_url=HERE, raise_server_exceptions=False)
        client.__enter__()
        running.append(client)
        client.jobs, client.token = jobs, access.token
        return client

    yield start
    for client in running:
        client.__exit__(None, None, None)
        assert not client.jobs.root.exists()
    assert [path for path in room.iterdir() if "torchinductor" not in path.name] == []  # PyTorch's, of this process


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """No registration takes place."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(script)))


@pytest.fixture
def pair(tmp_path):
    return phantom_pair(tmp_path)


def send(client, paths, **fields):
    return client.post("/api/jobs", files=files_of(paths), data={"network": "none", "steps": str(STEPS)} | fields)


def until(client, told, *states, seconds=120):
    """What the server tells of a job when it has come to one of these states."""
    end = time.monotonic() + seconds
    while told["state"] not in states:
        assert time.monotonic() < end and told["state"] not in ("done", "failed"), told
        time.sleep(0.05)
        told = client.get(f"/api/jobs/{told['id']}").json()
    return told


def test_from_two_files_to_what_register_writes(server, pair, tmp_path):
    client = server()
    told = until(client, send(client, pair).json(), "done")
    folder = client.jobs.get(told["id"]).folder
    assert told["report"]["ncc_after"] > told["report"]["ncc_before"] and told["warnings"] == []
    names = {"moved": "moved.nii.gz", "warp": "field_itk.nii.gz", "inverse_warp": "inverse_field_itk.nii.gz"}
    names["moved_label"] = "moved_label.nii.gz"
    assert {file["name"] for file in told["files"]} == set(names.values())  # shapes differ: no Learn2Reg layout

    ours = {name: tmp_path / f"ours_{file}" for name, file in names.items()}
    options = {"moving_label": pair["moving_label"], "iterations": STEPS}
    register_files(pair["moving"], pair["fixed"], ours, **options)
    for name, file in names.items():
        answer = client.get(f"/api/jobs/{told['id']}/{file}")
        assert answer.status_code == 200 and f'filename="{file}"' in answer.headers["content-disposition"]
        (tmp_path / file).write_bytes(answer.content)
        theirs, here = nib.load(tmp_path / file), nib.load(ours[name])
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(here.dataobj))
        np.testing.assert_array_equal(theirs.affine, here.affine)

    # SimpleITK makes the same picture of the field that was downloaded.
    moved = nib.load(tmp_path / "moved.nii.gz").get_fdata()
    assert np.abs(by_simpleitk(pair["moving"], pair["fixed"], tmp_path / "field_itk.nii.gz") - moved).mean() < 0.5

    # What the page draws is these files.
    view = client.get(f"/api/jobs/{told['id']}/view.json").json()
    content = client.get(f"/api/jobs/{told['id']}/view.bin").content
    place = view["arrays"]["moved"]
    drawn = np.frombuffer(content, np.uint8, moved.size, place["start"]).reshape(view["shape"])
    assert view["shape"] == list(moved.shape) and view["spacing"] == [2.5] * 3
    low, high = np.percentile(nib.load(pair["moving"]).get_fdata(), (0.5, 99.5))
    np.testing.assert_allclose(drawn, 255 * ((moved - low) / (high - low)).clip(0, 1), atol=0.51)
    assert len(content) == moved.size * (2 * 3 + 4 + 2)

    # The scans were deleted when they were registered; the results go when that is asked for.
    assert not list(folder.glob("fixed*")) and not list(folder.glob("moving*"))
    assert client.delete(f"/api/jobs/{told['id']}").status_code == 204 and not folder.exists()
    for name in ("", "/moved.nii.gz", "/view.bin"):
        assert client.get(f"/api/jobs/{told['id']}{name}").status_code == 404


def test_a_network_and_the_learn2reg_layout(server, tmp_path):
    pair = phantom_pair(tmp_path, moving="same")
    del pair["moving_label"]
    client = server()
    told = until(client, send(client, pair, network="hippocampus", steps="0").json(), "done")
    file = client.get(f"/api/jobs/{told['id']}/field_learn2reg.nii.gz").content
    (tmp_path / "field.nii.gz").write_bytes(file)
    register_files(
        pair["moving"],
        pair["fixed"],
        {"moved": tmp_path / "m.nii.gz", "warp": tmp_path / "w.nii.gz"},
        model="hippocampus",
        iterations=0,
        layout="learn2reg",
    )
    theirs, ours = (nib.load(tmp_path / name).get_fdata() for name in ("field.nii.gz", "w.nii.gz"))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)  # voxels


def test_an_error_of_the_registration_is_one_line_without_a_path(server, pair):
    client = server()
    swapped = pair | {"fixed": pair["moving_label"]}
    told = until(client, send(client, swapped).json(), "failed")
    assert told["error"].startswith("the fixed scan looks like a label map") and "--" not in told["error"]
    assert str(client.jobs.root) not in json.dumps(told) and "files" in told and told["files"] == []
    assert not client.jobs.get(told["id"]).folder.exists()


# --- the queue --------------------------------------------------------------------------------------------------------


def test_two_are_queued_one_at_a_time_and_either_can_be_cancelled(server, pair, stand_in):
    client = server()
    first, second, third = (send(client, pair).json() for _ in range(3))
    until(client, first, "running")
    assert [client.get(f"/api/jobs/{job['id']}").json()["place"] for job in (first, second, third)] == [0, 1, 2]
    folders = [client.jobs.get(job["id"]).folder for job in (first, second, third)]
    assert client.delete(f"/api/jobs/{second['id']}").status_code == 204  # it waited
    assert client.delete(f"/api/jobs/{first['id']}").status_code == 204  # it ran
    until(client, third, "running")
    assert not folders[0].exists() and not folders[1].exists() and folders[2].exists()
    (client.jobs.root / "go").touch()
    until(client, third, "done")
    for job in (first, second):
        assert client.get(f"/api/jobs/{job['id']}").status_code == 404


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_process_is_one_line_and_the_next_one_works(server, pair, stand_in):
    client = server()
    told = send(client, pair).json()
    while told["share"] is None:  # until then it would be begun again
        told = client.get(f"/api/jobs/{told['id']}").json()
    os.kill(client.jobs._worker.pid, signal.SIGKILL)
    told = until(client, told, "failed")
    assert "ended from outside" in told["error"]
    os.kill(client.jobs._worker.pid, signal.SIGKILL)  # the next one, while it waits
    (client.jobs.root / "go").touch()
    until(client, send(client, pair).json(), "done")


def test_the_limit_of_time(server, pair, stand_in):
    client = server(Limits(seconds=0.3))
    assert "longer than the 0.3 seconds" in until(client, send(client, pair).json(), "failed")["error"]


def test_results_are_deleted_when_they_are_due(server, pair, stand_in):
    client = server(Limits(keep_seconds=0.2))
    (client.jobs.root / "go").touch()
    told = send(client, pair).json()
    folder = client.jobs.get(told["id"]).folder
    end = time.monotonic() + 60
    while client.get(f"/api/jobs/{told['id']}").status_code != 404:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not folder.exists()


def test_a_full_server_says_so_and_forgets_results_first(server, pair, stand_in):
    client = server(Limits(jobs=2))
    first = until(client, send(client, pair).json(), "running")
    assert send(client, pair).status_code == 202
    answer = send(client, pair)
    assert answer.status_code == 429 and "waiting already" in answer.json()["error"]
    (client.jobs.root / "go").touch()
    until(client, first, "done")
    assert send(client, pair).status_code == 202
    assert client.get(f"/api/jobs/{first['id']}").status_code == 404


# --- what is refused --------------------------------------------------------------------------------------------------


def test_hostile_requests_get_one_line_and_leave_no_file(server, pair, stand_in):
    client = server(Limits(upload_bytes=10**6, voxels=10**5))

    def refused(status, files=None, **fields):
        data = {"network": "none", "steps": "1"} | fields
        answer = client.post("/api/jobs", files=files_of(pair) if files is None else files, data=data)
        line = answer.json()["error"]
        assert answer.status_code == status and "\n" not in line and str(client.jobs.root) not in answer.text
        assert [path for path in client.jobs.root.rglob("*") if path.is_file()] == []
        return line

    whole = files_of(pair)
    assert "it ends early" in refused(400, whole | {"fixed": ("f.nii.gz", whole["fixed"][1][:500])})
    assert "it is no NIfTI" in refused(400, whole | {"moving": ("m.nii.gz", b"<script>alert(1)</script>")})
    assert "moving scan is missing" in refused(400, {"fixed": whole["fixed"]})
    assert "moving scan is missing" in refused(400, whole | {"moving": ("m.nii.gz", b"")})
    assert "1 MB" in refused(413, whole | {"fixed": ("f.nii", bytes(2 * 10**6))})
    assert "no such network" in refused(400, network="../../etc/passwd")
    for steps in ("-1", "1e3", "501", "٣", "1;2", "9" * 900):
        assert "whole number" in refused(400, steps=steps)
    assert "nothing to do" in refused(400, steps="0")
    refused(400, steps="9" * 2000)  # a field that is no number, and larger than a field may be
    refused(400, whole | {"another": ("x", b"1"), "more": ("y", b"1")})
    assert client.post("/api/jobs", json={}).status_code == 400
    assert client.post("/api/jobs", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code == 400


def test_a_body_without_a_length_is_counted(server, stand_in):
    client = server(Limits(upload_bytes=10**5))

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="fixed"; filename="f"\r\n\r\n'
        for _ in range(100):
            yield bytes(10**4)

    answer = client.post("/api/jobs", content=body(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and "0.1 MB" in answer.json()["error"]


@pytest.mark.parametrize("name", ["../../../../tmp/x.nii.gz", "<img src=x onerror=alert(1)>.nii.gz", "a\\..\\b", "con"])
def test_what_files_are_called_has_no_meaning(server, pair, stand_in, name):
    client = server()
    answer = client.post("/api/jobs", files=files_of(pair, fixed=name), data={"network": "none"})
    assert answer.status_code == 202 and "img" not in answer.text
    folder = client.jobs.get(answer.json()["id"]).folder
    assert {path.name for path in folder.iterdir()} == {"fixed.nii.gz", "moving.nii.gz", "moving_label.nii.gz"}
    assert set(client.jobs.root.iterdir()) == {folder}


def test_only_what_a_job_gives_can_be_fetched(server, pair, stand_in):
    client = server()
    told = until(client, send(client, pair).json(), "running")
    for name in ("fixed.nii.gz", "view.bin", "..%2f..%2fetc%2fpasswd", "%2e%2e/go", "x" * 5000):
        assert client.get(f"/api/jobs/{told['id']}/{name}").status_code == 404
    for address in (
        "/static/..%2fweb.py",
        "/static/index.html",
        "/static/",
        "/api/jobs/nobody",
        "/docs",
        "/api/jobs/%00",
    ):
        assert client.get(address).status_code in (404, 405)
    assert client.get("/api/jobs").status_code == 405  # nobody sees which jobs there are


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the limit")
def test_no_memory_for_a_job_is_its_own_line(server, pair):
    client = server(replace(Limits(), memory_bytes=10**6))
    told = until(client, send(client, pair).json(), "failed")
    assert "memory" in told["error"]


# --- every answer -----------------------------------------------------------------------------------------------------


def test_every_answer_keeps_other_sites_out(server, stand_in):
    client = server()
    for address in ("/", "/static/page.js", "/static/page.css", "/api/options", "/nothing"):
        answer = client.get(address)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store" and "access-control-allow-origin" not in answer.headers
    assert client.get("/static/page.js").headers["content-type"].startswith("text/javascript")
    page = client.get("/").text
    assert "http://" not in page and "https://" not in page and "onclick" not in page and "style=" not in page
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/api/jobs", headers={"origin": "http://evil.example"}).status_code == 403


def test_the_token_comes_with_the_address_and_stays_with_the_browser(server, stand_in):
    client = server(host="0.0.0.0")
    assert client.get("/").status_code == 403 and client.token not in client.get("/").text
    assert client.get("/api/options").status_code == 403
    answer = client.get(f"/?token={client.token}")
    assert answer.status_code == 200
    kept = answer.headers["set-cookie"]
    assert "HttpOnly" in kept and "SameSite=Strict" in kept
    assert client.get("/api/options").status_code == 200  # the client keeps cookies, as a browser does
    assert "set-cookie" not in client.get("/api/options").headers
