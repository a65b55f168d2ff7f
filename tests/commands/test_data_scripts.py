"""The commands that fill and check the data folder, run as a user runs them."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPTS = ("download_oasis", "download_learn2reg", "make_synthetic", "check_data")


def start(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "data_scripts" / f"{script}.py", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(script, *arguments):
    process = start(script, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def the_error(err):
    """The one line; a progress bar may stand before it."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    return server


@pytest.fixture
def shelf(tmp_path):
    """A server of the files in tmp_path/shelf."""
    (tmp_path / "shelf").mkdir()
    server = serve(partial(SimpleHTTPRequestHandler, directory=tmp_path / "shelf"))
    yield server
    server.shutdown()
    server.server_close()


def oasis_tar(path, files=("aligned_norm", "aligned_seg35", "norm", "orig")):
    with tarfile.open(path, "w") as archive:
        for name in [f"OASIS_OAS1_{n:04d}_MR1/{file}.nii.gz" for n in range(1, 4) for file in files]:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_worth_reading(script):
    code, out, _ = run(script, "--help")
    assert code == 0
    assert "--data-root" in out


def test_oasis_comes_with_its_licence_and_without_what_nobody_needs(shelf, tmp_path):
    registry = tmp_path / "own.json"
    registry.write_text(
        json.dumps({"oasis": {"checksum": oasis_tar(tmp_path / "shelf" / "oasis.tar")}}), encoding="utf-8"
    )
    mirror = f"{shelf.url}/oasis.tar"
    arguments = ("--data-root", tmp_path / "data", "--registry", registry, "--mirror", mirror)
    code, out, err = run("download_oasis", *arguments)
    assert code == 0, err
    assert "OASIS data use agreement" in out and "Marcus" in out
    files = sorted(p.relative_to(tmp_path / "data").as_posix() for p in (tmp_path / "data").rglob("*.nii.gz"))
    assert files[:2] == [f"oasis/OASIS_OAS1_0001_MR1/aligned_{part}.nii.gz" for part in ("norm", "seg35")]
    assert len(files) == 6
    assert os.listdir(tmp_path / "data") == ["oasis"]
    assert run("download_oasis", *arguments)[0] == 0  # a second time there is nothing to do


def test_a_wrong_checksum_ends_in_one_line(shelf, tmp_path):
    (tmp_path / "shelf" / "a.tar").write_bytes(b"<html>403</html>")
    code, out, err = run(
        "download_learn2reg", "hippocampus", "--data-root", tmp_path / "data", "--mirror", f"{shelf.url}/a.tar"
    )
    assert code == 2
    assert "CC BY-SA" in out
    assert "HTML page" in the_error(err) and "9d24dba78a72977dbd1d2e110310f31b" in the_error(err)
    assert os.listdir(tmp_path / "data") == []


def test_no_network_and_unknown_names(tmp_path):
    root = ("--data-root", tmp_path / "data")
    code, _, err = run("download_oasis", "--slices", *root, "--mirror", "http://127.0.0.1:9/a.tar")
    assert code == 2 and "no connection to 127.0.0.1" in the_error(err)
    code, _, err = run("download_learn2reg", "hypocampus", *root)
    assert code == 2 and "choose from synthetic, hippocampus" in the_error(err)
    code, _, err = run("download_learn2reg", "hippocampus", *root, "--registry", tmp_path / "none.toml")
    assert code == 2 and "registry" in the_error(err)


class Slow(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(27 * 10**6))  # what the registry expects
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
                time.sleep(0.02)
        except OSError:
            pass


def test_ctrl_c_ends_in_one_line_and_keeps_what_came(tmp_path):
    server = serve(Slow)
    process = start("download_learn2reg", "hippocampus", "--data-root", tmp_path, "--mirror", f"{server.url}/a.tar")
    part = tmp_path / "a.tar.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    server.shutdown()
    server.server_close()
    assert process.returncode == 2
    assert "Ctrl-C" in the_error(err)
    assert os.listdir(tmp_path) == ["a.tar.part"]


def test_the_built_in_cohort_is_made_and_passes_the_check(tmp_path):
    root = ("--data-root", tmp_path)
    code, out, err = run("make_synthetic", *root, "--subjects", 6, "--dimensions", 2)
    assert code == 0, err
    assert len(list((tmp_path / "synthetic" / "images").iterdir())) == 6
    code, out, err = run("check_data", "synthetic", *root)
    assert code == 0, err
    assert "6 subjects (2 train, 2 val, 2 test)" in out
    code, _, err = run("make_synthetic", *root, "--subjects", 1)
    assert code == 2 and "at least 2 subjects" in the_error(err)


def test_the_check_names_every_bad_file_and_goes_on(tmp_path):
    folder = tmp_path / "Task04_Hippocampus"
    for i in range(6):
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            array = np.zeros((8, 8, 8), np.uint8)
            array[2:6] = 1 + i % 2
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / f"hippocampus_{i:03d}.nii.gz")
    (folder / "imagesTr" / "hippocampus_001.nii.gz").write_bytes(b"broken")
    (folder / "labelsTr" / "hippocampus_004.nii.gz").unlink()
    code, out, err = run("check_data", "hippocampus", "--data-root", tmp_path)
    assert code == 2
    assert "imagesTr/hippocampus_001.nii.gz cannot be read" in out
    assert "warning: 1 of 6 subjects of hippocampus have no label map" in err
    assert "labelsTr/hippocampus_004.nii.gz: they are unlabelled" in err
    assert "1 of 6 subjects of hippocampus cannot be used" in err.splitlines()[-1]


def test_the_check_of_nothing_says_how_to_fill_it(tmp_path):
    code, _, err = run("check_data", "oasis2d", "--data-root", tmp_path)
    assert code == 2
    assert "python -m course_utils download oasis2d" in the_error(err)
