"""Files that were damaged, or made by somebody with intentions: one line, little memory, and nothing of theirs run."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest

from course_utils.data import download as downloading
from course_utils.data import formats, unpacking
from course_utils.data.download import download
from course_utils.data.formats import open_image
from course_utils.data.registry import read_registry
from course_utils.data.unpacking import extract
from course_utils.data.volumes import read_image, read_labels, read_stored, read_volume
from course_utils.errors import CourseError
from course_utils.files import check_room, check_writable
from course_utils.locks import locked
from course_utils.training.loop import only_run_in
from notebooks.build import ROOT

# --- every reader, at random ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """What `tests.fuzzing` found, in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzzing", str(tmp_path_factory.mktemp("fuzzing"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_no_malformed_file_ends_in_a_traceback_runs_code_or_fills_the_memory(fuzzed):
    tried = fuzzed["tried"]
    assert {name: each["faults"][:2] for name, each in tried.items() if each["faults"]} == {}
    assert sum(each["files"] for each in tried.values()) > 800
    assert sum(each["refused"] for each in tried.values()) > 600
    assert tried["bombs"]["refused"] == tried["bombs"]["files"] > 30
    assert not fuzzed["ran"]
    assert fuzzed["peak"] < 1e9


# --- images -----------------------------------------------------------------------------------------------------------


def saved(folder, name="a.nii.gz", dtype=np.int16, slope=None, shape=(9, 8, 7), kind=nib.Nifti1Image):
    array = np.random.default_rng(0).integers(0, 90, shape).astype(dtype)
    image = kind(array, np.diag([2.0, 3.0, 4.0, 1.0]))
    if slope is not None:
        image.header.set_slope_inter(slope, -5)
    nib.save(image, folder / name)
    return folder / name


SAME = [("a.nii", np.int16, None), ("a.nii.gz", np.uint8, 0.25), ("a.nii", np.float64, None), ("a.nii.gz", np.int32, 3)]
SAME += [("a.hdr", np.int16, None), ("a.img.gz", np.float32, None), ("a.mgz", np.float32, None), ("a.mgh", ">i2", None)]


@pytest.mark.parametrize(("name", "dtype", "slope"), SAME)
@pytest.mark.parametrize("shape", [(9, 8, 7), (5, 6, 7, 1), (9, 8, 1)])
def test_what_is_read_is_what_nibabel_reads(tmp_path, name, dtype, slope, shape):
    if name[2:].startswith("mg"):
        shape = shape[:3]  # a fourth axis of one is none there
    kind = nib.MGHImage if name[2:].startswith("mg") else nib.Nifti1Pair if name[2:5] in ("hdr", "img") else None
    path = saved(tmp_path, name, dtype, slope, shape, kind or nib.Nifti1Image)
    theirs, ours = nib.load(path), open_image(path)
    array = read_stored(path, ours)
    np.testing.assert_array_equal(array, np.asarray(theirs.dataobj))
    assert array.dtype == np.asarray(theirs.dataobj).dtype and array.flags.f_contiguous and array.flags.writeable
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(ours.zooms[:3], theirs.header.get_zooms()[:3])


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes_and_both_versions(tmp_path, order):
    array = np.arange(9 * 8 * 7, dtype=np.int16).reshape(9, 8, 7)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class(endianness=order)
        header.set_data_dtype(np.int16)
        nib.save(kind(array, np.diag([2.0, 2, 2, 1]), header), tmp_path / "a.nii")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data[0, 0], array)


def test_a_flipped_byte_of_a_packed_image_is_noticed(tmp_path):
    """Of the stream or of its sums; nibabel alone stops before these."""
    path = saved(tmp_path)
    content = path.read_bytes()
    for place in range(10, len(content), max(1, len(content) // 40)):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(CourseError):
            read_image(path)
    silent = bytearray(content)
    silent[-6] ^= 1  # the checksum: all voxels are right, and nobody can know
    path.write_bytes(silent)
    np.asarray(nib.load(path).dataobj)
    with pytest.raises(CourseError, match="cannot be read as an image"):
        read_image(path)


def test_gzip_files_in_several_parts_and_filled_up_with_zeros_are_whole(tmp_path):
    content = gzip.decompress(saved(tmp_path).read_bytes())
    expected = read_image(tmp_path / "a.nii.gz").data
    parts = gzip.compress(content[:300]) + gzip.compress(content[300:])
    for packed in (parts, parts + bytes(512)):
        (tmp_path / "b.nii.gz").write_bytes(packed)
        assert read_image(tmp_path / "b.nii.gz").data.equal(expected)
    (tmp_path / "b.nii.gz").write_bytes(parts + b"more")
    with pytest.raises(CourseError, match="cannot be read"):
        read_image(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_truncated_image_is_refused_wherever_it_ends(tmp_path, name):
    content = saved(tmp_path, name).read_bytes()
    for keep in (0, 1, 2, 100, 347, 348, 352, len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[: min(keep, len(content) - 1)])
        with pytest.raises(CourseError) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [112, 116], ids=["slope", "inter"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_no_number_is_refused(tmp_path, place, value):
    path = saved(tmp_path, "a.nii")
    content = bytearray(path.read_bytes())
    content[place : place + 4] = struct.pack("<f", value)
    path.write_bytes(content)
    for read in (read_image, read_labels):
        with pytest.raises(CourseError, match=r"a\.nii has a scale of .*scl_slope.*set 1 and 0"):
            read(path)


def test_a_mask_that_packs_well_is_no_bomb(tmp_path):
    """An organ in 50 million voxels of a scan: hundreds of times smaller when packed, and read."""
    array = np.zeros((512, 512, 192), np.uint8)
    x, y, z = np.ogrid[-1:1:120j, -1:1:100j, -1:1:60j]
    array[200:320, 180:280, 60:120] = x * x + y * y + z * z < 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "mask.nii.gz")
    assert array.nbytes > 150 * (tmp_path / "mask.nii.gz").stat().st_size
    assert int(read_labels(tmp_path / "mask.nii.gz").data.sum()) == int(array.sum())


# --- archives ---------------------------------------------------------------------------------------------------------


def zipped(path, names, content=b"x"):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        for name in names:
            file.writestr(name, content)
    return path


def tarred(path, names, mode="w"):
    with tarfile.open(path, mode) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            file.addfile(member, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("names", [("a/1", "a/1"), ("a/1", "A/1"), ("a/1", "./a/1")])
def test_two_members_of_one_name_are_refused(tmp_path, pack, names):
    with pytest.raises(CourseError, match="is unsafe: two of its members are called"):
        extract(pack(tmp_path / "a.archive", names), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_unpacks_to_more_than_scans_do_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpacking, "SMALL", 10**6)
    path = tmp_path / "a.archive"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a", bytes(5 * 10**6))
    else:
        with tarfile.open(path, "w:gz") as file:
            member = tarfile.TarInfo("a")
            member.size = 5 * 10**6
            file.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(CourseError, match=r"is unsafe: it unpacks|times as large"):
        extract(path, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path) == ["a.archive"]


def test_a_member_with_a_password_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ["a"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CourseError, match="needs a password"):
        extract(path, tmp_path / "out", progress=False)


OUTSIDE = ("../up", "/absolute", "C:\\drive", "a/../../b", "a\\..\\..\\b")


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("field", ["folder", "image", "label", "velocity"])
def test_a_registry_leads_nowhere_else(tmp_path, field, path):
    table = {"shape": [4, 4, 4], "spacing": [1, 1, 1], "image": "{name}.nii", field: f"{path}{{name}}"}
    (tmp_path / "r.json").write_text(json.dumps({"mine": table}), encoding="utf-8")
    with pytest.raises(CourseError, match="a path out of it"):
        read_registry(tmp_path / "r.json")


# --- downloads --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(send):
    """A server that answers every request by `send(wfile)` after the status; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.server.seen += 1
            self.send_response(200)
            send(self)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen, server.daemon_threads = 0, True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"http://127.0.0.1:{server.server_port}/a.zip"
        server.shutdown()


def without_end(handler):
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(2**16))
    except OSError:
        pass


def test_a_server_that_sends_without_end_is_left(tmp_path):
    with (
        serving(without_end) as (_, url),
        pytest.raises(CourseError, match=r"sends .* bytes or more, and 1,000,000 were"),
    ):
        download(url, tmp_path / "a.zip", None, size=10**6, progress=False)
    assert os.listdir(tmp_path) == []


def test_a_server_that_announces_too_much_is_left_at_once(tmp_path):
    def announce(handler):
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()

    with serving(announce) as (_, url), pytest.raises(CourseError, match="sends 1,000,000,000,000 bytes or more"):
        download(url, tmp_path / "a.zip", None, size=10**6, progress=False)


def test_a_server_that_drips_is_left_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "PATIENCE", 0.3)

    def drip(handler):
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    begun = time.monotonic()
    with serving(drip) as (_, url), pytest.raises(CourseError, match=r"sends \d+ bytes in 0.3 seconds: name a mirror"):
        download(url, tmp_path / "a.zip", None, progress=False)
    assert time.monotonic() - begun < 4


def test_two_downloads_of_one_file_are_one(tmp_path):
    def slowly(handler):
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(bytes(10_000))
            time.sleep(0.05)

    faults = []

    def one(url):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                download(url, tmp_path / "a.zip", None, progress=False)
        except BaseException as error:
            faults.append(error)

    with serving(slowly) as (server, url):
        threads = [threading.Thread(target=one, args=[url]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == [] and server.seen == 1
    assert os.listdir(tmp_path) == ["a.zip"] and (tmp_path / "a.zip").stat().st_size == 100_000


# --- locks and folders ------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_lost_with_its_process(tmp_path):
    lock = tmp_path / ".lock"
    code = "import sys; from pathlib import Path; from course_utils.locks import locked\n"
    code += "with locked(Path(sys.argv[1]), wait=False) as mine: print(mine, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, lock], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "True\n"
    with locked(lock, wait=False) as mine:
        assert not mine
    child.kill()
    child.wait()
    for _ in range(2):
        with locked(lock, wait=True) as mine:
            assert mine
    assert not lock.exists()


@contextmanager
def full_disk(folder):
    """A real file system without room, where the user may mount one."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", folder]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_folder_is_found_out_before_the_work(tmp_path):
    with full_disk(tmp_path / "disk") as disk:
        for check in (lambda: check_room(disk), lambda: check_room(disk / "new" / "one")):
            with pytest.raises(CourseError, match=r"was not written \(the disk is full\): make room, or choose"):
                check()
        with pytest.raises(CourseError, match=r"m.*csv was not written \(the disk is full\)"):
            check_writable(disk / "metrics.csv", "metrics.csv")


def test_a_folder_that_nobody_may_write_to_is_found_out_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match=r"/proc cannot be written \(.*\): choose another folder for --out"):
        check_writable(ROOT.__class__("/proc/metrics.csv"), "metrics.csv")
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="file is a file: choose a folder for --out"):
        check_room(tmp_path / "file" / "below")


COMMANDS = {
    "evaluate": ("evaluate", "--model", "none.pt", "--pairs", "none.csv", "--out", "/proc/m.csv"),
    "learn2reg": ("learn2reg", "--data-root", "none", "--model", "none.pt", "--out", "/proc/s.zip"),
    "measure": ("learn2reg", "--data-root", "none", "--evaluate", "none.zip", "--out", "/proc/s.csv"),
    "export": ("export", "--model", "none.pt", "--out", "/proc/bundle"),
    "export as a file": ("export", "--model", "none.pt", "--format", "safetensors", "--out", "/proc/a.safetensors"),
    "grade": ("grade", "none.zip", "--out", "/proc/grades"),
    "train": ("train", "--dataset", "synthetic", "--out", "/proc/run"),
    "template": ("template", "--dataset", "synthetic", "--out", "/proc/run"),
    "apply": ("apply", "--warp", "none.nii", "--image", "none.nii", "--out", "/proc/a.nii"),
}


EACH = """
import json, sys
from typer.testing import CliRunner
from course_utils.commands.app import app
found = {name: CliRunner().invoke(app, words) for name, words in json.loads(sys.argv[1]).items()}
print(json.dumps({name: (result.exit_code, result.output) for name, result in found.items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that nobody may write to, root neither")
def test_every_command_tries_its_folder_before_it_reads_anything():
    command = [sys.executable, "-c", EACH, json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name, (code, output) in json.loads(done.stdout.splitlines()[-1]).items():
        assert code == 2 and "/proc cannot be written" in output, (name, output)


def test_a_second_run_in_a_folder_ends_in_one_line(tmp_path):
    (tmp_path / "last.pt").touch()
    told = "another process trains in"
    with locked(tmp_path / ".running", wait=False), pytest.raises(CourseError, match=told), only_run_in(tmp_path):
        pass
    with only_run_in(tmp_path):
        assert (tmp_path / ".running").exists()
    assert os.listdir(tmp_path) == ["last.pt"]


def test_memory_that_runs_out_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = saved(tmp_path)

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(formats, "open_nifti", no_memory)
    with pytest.raises(CourseError, match=f"{path.name} needs more memory than is left here: crop or resample it"):
        read_image(path)
