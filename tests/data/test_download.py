"""Downloads against a server that misbehaves, and archives that do."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from course_utils.data import download as downloading
from course_utils.data.download import download
from course_utils.data.unpacking import extract
from course_utils.errors import CourseError

pytestmark = pytest.mark.slow

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>no tools, please</body></html>"


class Handler(BaseHTTPRequestHandler):
    """What the path says: /ranges/ serves well, the others have a vice. Requests are kept for the tests to see."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        vice = self.path.split("/")[1]
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if vice == "missing":
            return self.send_error(404)
        if vice == "forbidden":
            return self.send_error(403)
        if vice == "page":
            return self.answer(200, PAGE)
        if vice == "wrong":
            return self.answer(200, CONTENT[:-1] + b"!")
        if vice == "busy" and len(self.server.seen) < 3:
            return self.send_error(503)
        if vice == "noranges":
            return self.answer(200, CONTENT, drop=len(self.server.seen) == 1)
        if vice == "slow":
            return self.answer(200 if not wanted else 206, CONTENT[start:], start, delay=0.0 if wanted else 0.2)
        if vice == "agents" and "Mozilla" not in self.headers["User-Agent"]:
            return self.send_error(403)
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        # A server that drops sends a third of the file a connection.
        return self.answer(206 if wanted else 200, CONTENT[start:], start, drop=vice == "drops")

    def answer(self, status, body, start=0, drop=False, delay=0.0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{start + len(body)}")
        self.end_headers()
        body = body[: len(CONTENT) // 3] if drop else body
        try:
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                time.sleep(delay)
        except OSError:
            pass  # the client was killed, as a test wants


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


def get(server, vice, folder, checksum=SHA256, **options):
    return download(
        f"{server.url}/{vice}/a.tar", folder / "a.tar", checksum, pause=0.0, progress=False, timeout=5, **options
    )


def test_a_download_arrives_whole_and_under_its_name_only(server, tmp_path):
    path = get(server, "ranges", tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a.tar"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_both_checksums_are_understood(server, tmp_path, algorithm):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert get(server, "ranges", tmp_path, f"{algorithm}:{digest.upper()}").read_bytes() == CONTENT


def test_it_looks_like_a_browser(server, tmp_path):
    assert get(server, "agents", tmp_path).read_bytes() == CONTENT


def test_a_dropped_connection_is_resumed_where_it_broke(server, tmp_path):
    assert get(server, "drops", tmp_path).read_bytes() == CONTENT
    starts = [int(headers["Range"][6:-1]) for _, headers in server.seen[1:]]
    assert starts == sorted(set(starts)) and len(starts) >= 3
    # A break costs at most the chunk that was on its way.
    assert len(CONTENT) // 3 - downloading.CHUNK < starts[0] <= len(CONTENT) // 3


def test_a_server_without_ranges_starts_over(server, tmp_path):
    assert get(server, "noranges", tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_part_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
    assert get(server, "ranges", tmp_path).read_bytes() == CONTENT
    assert server.seen[0][1]["Range"] == "bytes=1000-"


def test_a_complete_part_is_only_renamed(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    assert get(server, "ranges", tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 1


def test_a_part_longer_than_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT + b"more")
    assert get(server, "ranges", tmp_path).read_bytes() == CONTENT


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    get(server, "ranges", tmp_path)
    get(server, "ranges", tmp_path)
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert get(server, "busy", tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 3


@pytest.mark.parametrize(("vice", "words"), [("page", "an HTML page of"), ("wrong", "not the file that was expected")])
def test_wrong_bytes_are_named_and_removed(server, tmp_path, vice, words):
    with pytest.raises(CourseError, match=words) as caught:
        get(server, vice, tmp_path)
    assert SHA256.split(":")[1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_page_is_refused_even_without_a_checksum(server, tmp_path):
    with pytest.raises(CourseError, match="HTML page"):
        get(server, "page", tmp_path, None)
    assert os.listdir(tmp_path) == []


def test_without_a_checksum_the_sum_is_told(server, tmp_path):
    with pytest.warns(UserWarning, match=SHA256):
        get(server, "ranges", tmp_path, None)


def test_a_wrong_file_under_the_final_name_is_kept_but_not_trusted(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"something of the user's")
    with pytest.raises(CourseError, match="remove"):
        get(server, "ranges", tmp_path)
    assert (tmp_path / "a.tar").read_bytes() == b"something of the user's"


@pytest.mark.parametrize(("vice", "status"), [("missing", "404"), ("forbidden", "403")])
def test_a_refusal_is_final(server, tmp_path, vice, status):
    with pytest.raises(CourseError, match=f"{status}.*mirror"):
        get(server, vice, tmp_path)
    assert len(server.seen) == 1
    assert os.listdir(tmp_path) == []


def test_nobody_listening(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(CourseError, match=r"no connection to 127\.0\.0\.1 .*refused.*check the network"):
        get(server, "ranges", tmp_path)


def test_a_host_without_a_name_and_an_address_that_is_none(tmp_path):
    with pytest.raises(CourseError, match=r"no connection to nowhere\.invalid \([^\"]*\): check"):
        download("http://nowhere.invalid/a.tar", tmp_path / "a.tar", SHA256, progress=False)
    with pytest.raises(CourseError, match="not an address"):
        download("nowhere/a.tar", tmp_path / "a.tar", SHA256, progress=False)
    with pytest.raises(CourseError, match=r"neither sha256:\.\.\. nor md5"):
        download("http://nowhere.invalid/a.tar", tmp_path / "a.tar", "crc:12", progress=False)


def test_a_server_that_never_gets_on_is_given_up(server, tmp_path):
    with pytest.raises(CourseError, match="in trouble"):
        server.seen.extend([None] * -100)
        get(server, "busy", tmp_path, attempts=2)
    assert os.listdir(tmp_path) == []


def test_a_disk_too_small_is_told_before_it_is_filled(server, tmp_path, monkeypatch):
    usage = downloading.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CourseError, match=f"is full: {len(CONTENT):,} more bytes are needed and 1,000 are free"):
        get(server, "ranges", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full")
def test_a_disk_that_fills_up_on_the_way(server, tmp_path):
    (tmp_path / "a.tar.part").symlink_to("/dev/full")
    with pytest.raises(CourseError, match=r"is full: .* bytes are needed and .* are free; make room"):
        get(server, "ranges", tmp_path)
    assert not (tmp_path / "a.tar").exists()


def test_a_killed_download_is_resumed(server, tmp_path):
    target = tmp_path / "a.tar"
    code = (
        "from course_utils.data.download import download\n"
        f"download('{server.url}/slow/a.tar', {str(target)!r}, {SHA256!r}, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "a.tar.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    already = part.stat().st_size
    assert 0 < already < len(CONTENT)
    assert get(server, "slow", tmp_path).read_bytes() == CONTENT
    assert server.seen[-1][1]["Range"] == f"bytes={already}-"


# --- archives ---------------------------------------------------------------------------------------------------------


def tar(path, files, mode="w", **special):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, link in special.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


MAKERS = {"a.tar": tar, "a.tar.gz": lambda path, files: tar(path, files, "w:gz"), "a.zip": zipped}
FILES = {"top/images/1.nii": b"one" * 1000, "top/images/2.nii": b"two" * 1000, "top/readme.txt": b"read me"}


@pytest.fixture(params=MAKERS)
def pack(request, tmp_path):
    return lambda files: MAKERS[request.param](tmp_path / request.param, files)


def unpack(archive, target, *members):
    return extract(archive, target, *members, progress=False)


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_single_top_folder_becomes_the_destination(pack, tmp_path):
    folder = unpack(pack(FILES), tmp_path / "data")
    assert tree(folder) == {"images/1.nii", "images/2.nii", "readme.txt"}
    assert (folder / "images/1.nii").read_bytes() == FILES["top/images/1.nii"]


def test_several_at_the_top_stay_side_by_side(pack, tmp_path):
    folder = unpack(pack({"a/1": b"1", "b/1": b"2", "./c.txt": b"3"}), tmp_path / "data")
    assert tree(folder) == {"a/1", "b/1", "c.txt"}


def test_only_the_wanted_members_are_unpacked(pack, tmp_path):
    archive = pack(FILES | {"top/images/._1.nii": b"mac", "__MACOSX/top/x.nii": b"mac"})
    assert tree(unpack(archive, tmp_path / "data", lambda name: name.endswith(".nii"))) == {
        "images/1.nii",
        "images/2.nii",
    }


@pytest.mark.parametrize("name", ["../escaped", "top/../../escaped", "/escaped", "C:\\escaped", "..\\escaped"])
def test_a_path_out_of_the_folder_is_refused(pack, tmp_path, name):
    archive = pack({"top/fine": b"fine", name: b"evil"})
    before = tree(tmp_path)
    with pytest.raises(CourseError, match=r"unsafe.*escaped"):
        unpack(archive, tmp_path / "deep" / "data")
    assert tree(tmp_path) == before


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    archive = tar(tmp_path / "a.tar", {"top/fine": b"fine"}, **{"top/link": str(tmp_path / "secret")})
    assert tree(unpack(archive, tmp_path / "data")) == {"fine"}


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_leaves_nothing(pack, tmp_path, keep):
    archive = pack({f"top/{i}": os.urandom(5000) for i in range(20)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CourseError, match=r"truncated.*download it again"):
        unpack(archive, tmp_path / "data")
    assert os.listdir(tmp_path) == [archive.name]


def test_a_tar_cut_between_two_members_is_truncated_too(tmp_path):
    archive = tar(tmp_path / "a.tar", {"top/1": b"x" * 512, "top/2": b"x" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(CourseError, match="truncated"):
        unpack(archive, tmp_path / "data")


def test_a_member_that_rotted_is_noticed(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"top/1": os.urandom(5000)})
    rotten = bytearray(archive.read_bytes())
    rotten[2000] ^= 255
    archive.write_bytes(rotten)
    with pytest.raises(CourseError, match="damaged"):
        unpack(archive, tmp_path / "data")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_what_is_no_archive_and_what_is_not_there(tmp_path):
    (tmp_path / "a.tar").write_bytes(PAGE)
    with pytest.raises(CourseError, match="neither tar nor zip"):
        unpack(tmp_path / "a.tar", tmp_path / "data")
    with pytest.raises(CourseError, match="is missing"):
        unpack(tmp_path / "b.tar", tmp_path / "data")


def test_an_archive_without_what_is_needed(pack, tmp_path):
    with pytest.raises(CourseError, match="none of the files"):
        unpack(pack(FILES), tmp_path / "data", lambda name: name.endswith(".mha"))
    assert not (tmp_path / "data").exists()


def test_an_occupied_destination_is_left_alone_and_an_empty_one_filled(pack, tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    assert len(tree(unpack(pack(FILES), target))) == 3
    (target / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(CourseError, match="move it away"):
        unpack(pack(FILES), target)
    assert (target / "mine").read_text(encoding="utf-8") == "mine"


def test_what_a_killed_run_left_behind_does_not_get_in(pack, tmp_path):
    left = tmp_path / ".data.partial" / "data"
    left.mkdir(parents=True)
    (left / "half").write_text("half", encoding="utf-8")
    assert "half" not in tree(unpack(pack(FILES), tmp_path / "data"))
    assert not (tmp_path / ".data.partial").exists()
