"""Getting an archive and unpacking it: resumed after an interruption, checked, never half there under its own name."""

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError

from course_utils.data.zipped import check_member
from course_utils.errors import CourseError, CourseWarning
from course_utils.locks import locked

# The OASIS host answers the names of download tools with a 403 page. Identity: a server that compresses on the way
# would make byte ranges mean something else.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept-Encoding": "identity",
}
CHUNK = 1 << 16
PATIENCE = 60.0
"""Seconds in which a server must send `CHUNK` bytes."""
LARGEST_UNDECLARED = 20_000_000_000
"""Bytes that are taken from a server where neither it nor the registry says how many there are."""
MOST_MEMBERS = 1_000_000
"""Files of an archive."""
UNPACKED = 100
"""How many times larger than itself an archive may be unpacked, beyond `SMALL`: scans hardly shrink, labels most."""
SMALL = 1_000_000_000
"""Bytes that an archive may unpack to, however small it is."""
LARGEST_READ = 1 << 24
"""Bytes that one header of a tar file asks for at most."""
FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python before 3.11.4 has no filters; what they refuse, links and ways out of the folder, never gets so far here."""


def download(
    url: str,
    destination: str | Path,
    checksum: str | None,
    *,
    size: int = 0,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetch `url` to `destination` and return it; the file has that name only once its checksum matches.

    `checksum` is `"sha256:..."` or `"md5:..."`; with None the file is taken as it comes, after a warning. Bytes
    go to `destination` + `.part`, which a later call continues where an earlier one ended. A connection that breaks
    is taken up again until `attempts` in a row have brought nothing, `pause` seconds after the first and twice as
    long after each further one. `size` in bytes, if known, is held against the free disk space where the server names
    none, and no more than twice as many are taken. While another process fetches the same file, this one waits.

    Raises `CourseError` for a host that cannot be reached, a refusal (403, 404, ...), a server that sends without end,
    or hardly anything, a full disk and a wrong checksum; in the last case the partial file is removed.
    """
    destination = Path(destination)
    if checksum is not None:
        _split(checksum)
    with alone(destination):
        return _download(url, destination, checksum, size, attempts, pause, timeout, progress)


@contextlib.contextmanager
def alone(path: Path) -> Generator[None]:
    """Make a file or a folder while no other process does; wait for one that is making it, after a warning.

    Raises:
        CourseError: its folder cannot be made, or written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"{lock.parent} cannot be made ({error.strerror}): choose another data root") from error
    with contextlib.ExitStack() as stack:
        try:
            if not stack.enter_context(locked(lock, wait=False)):
                warnings.warn(f"another process is fetching {path}: waiting for it", CourseWarning, stacklevel=4)
                stack.enter_context(locked(lock, wait=True))
        except OSError as error:
            raise _write_fault(error, path, 0) from error
        yield


def _download(
    url: str,
    destination: Path,
    checksum: str | None,
    size: int,
    attempts: int,
    pause: float,
    timeout: float,
    progress: bool,
) -> Path:
    part = destination.with_name(destination.name + ".part")
    if destination.is_file():
        _verify(destination, checksum, url)
        return destination
    failures, reached = 0, False
    while True:
        start = _size(part)
        try:
            _receive(url, part, size, timeout, progress, destination.name)
            break
        except requests.RequestException as error:
            grown = _size(part) > start
            reached = reached or grown
            failures = 1 if grown else failures + 1
            if failures >= attempts or not (reached or _may_pass(error)):
                raise CourseError(_network_fault(url, error, part)) from error
            time.sleep(pause * 2 ** (failures - 1))
    _verify(part, checksum, url, remove=True)
    os.replace(part, destination)
    return destination


def _receive(url: str, part: Path, size: int, timeout: float, progress: bool, name: str) -> None:
    """One connection: append to `part` what is missing of it. Raises `requests.RequestException` when that breaks."""
    start = _size(part)
    headers = HEADERS | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if start and response.status_code == 416:  # nothing lies beyond: the file is complete, or another one by now
            if response.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            raise requests.ConnectionError("the partial file does not fit: starting over")
        response.raise_for_status()
        resumed = re.match(rf"bytes {start}-", response.headers.get("Content-Range", ""))
        if start and not (response.status_code == 206 and resumed):
            start = 0  # the server sends the whole file again
        left = _declared(response) or max(0, size - start)
        most = 2 * size + SMALL // 1000 if size else (start + left) or LARGEST_UNDECLARED
        if start + left > most:
            raise CourseError(_too_much(url, start + left, size))
        _check_space(part, left)
        total = start + left or None
        try:
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=not progress) as bar,
            ):
                got, due = 0, time.monotonic() + PATIENCE
                for chunk in _as_it_comes(response):
                    file.write(chunk)
                    bar.update(len(chunk))
                    start, got = start + len(chunk), got + len(chunk)
                    if start > most:
                        part.unlink()
                        raise CourseError(_too_much(url, start, size))
                    if got >= CHUNK:
                        got, due = 0, time.monotonic() + PATIENCE
                    elif time.monotonic() > due:
                        raise CourseError(
                            f"{urlsplit(url).hostname} sends {got} bytes in {PATIENCE:g} seconds: name a mirror with "
                            f"--mirror, or run the command again later, it goes on after {start:,} bytes"
                        )
        except requests.RequestException:  # an OSError too, but the network's
            raise
        except OSError as error:
            raise _write_fault(error, part, left) from error


def _declared(response: requests.Response) -> int:
    """How many bytes a server says that it sends; 0 where it says nothing that is a number."""
    told = response.headers.get("Content-Length") or ""
    return int(told) if re.fullmatch(r"[0-9]{1,15}", told) else 0


def _as_it_comes(response: requests.Response) -> Iterator[bytes]:
    """What a server sends, at once and not when a chunk is full: one that drips shall be noticed."""
    try:
        while chunk := response.raw.read1(CHUNK, decode_content=False):
            yield chunk
    except ReadTimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except HTTPError as error:
        raise requests.ConnectionError(error) from error


def _too_much(url: str, sent: int, expected: int) -> str:
    known = f"{expected:,} were expected" if expected else "no archive here is so large"
    return f"{url} sends {sent:,} bytes or more, and {known}: name a mirror with --mirror, or correct the registry"


def _may_pass(error: requests.RequestException) -> bool:
    """Whether trying again may help: with a busy server or a broken connection, not where none could be made."""
    if error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, ValueError):  # requests' own InvalidURL, MissingSchema, InvalidSchema
        return False
    return not isinstance(error.args[0] if error.args else None, MaxRetryError)


def _network_fault(url: str, error: requests.RequestException, part: Path) -> str:
    host = urlsplit(url).hostname or url
    again = "run the command again" + (f", it goes on after {_size(part):,} bytes" if _size(part) else "")
    if error.response is not None:
        status = f"{error.response.status_code} {error.response.reason}"
        if error.response.status_code >= 500:
            return f"{host} is in trouble ({status}): {again} later"
        return f"{host} refuses {url} ({status}): open it in a browser, or name a mirror with --mirror"
    if isinstance(error, ValueError):
        return f"{url} is not an address to download from: give one that begins with https://"
    if isinstance(error, requests.Timeout):
        return f"{host} does not answer: check the network, then {again}"
    cause = getattr(error.args[0], "reason", error) if error.args else error  # urllib3's, without what wraps it
    reason = re.sub(r"\s+", " ", str(cause)).rsplit(": ", 1)[-1]
    return f"no connection to {host} ({reason}): check the network, then {again}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise CourseError(_full_disk(path, needed, free))


def _full_disk(path: Path, needed: int, free: int) -> str:
    wanted = f"{needed:,} more bytes are needed and " if needed else ""
    return f"the disk of {path.parent} is full: {wanted}{free:,} are free; make room, then run the command again"


def _write_fault(error: OSError, path: Path, needed: int) -> CourseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CourseError(_full_disk(path, needed, shutil.disk_usage(path.parent).free))
    return CourseError(f"{path} cannot be written ({error.strerror or error}): choose another data root")


def _split(checksum: str) -> tuple[str, str]:
    algorithm, _, digest = checksum.partition(":")
    if algorithm not in ("sha256", "md5") or not re.fullmatch(r"[0-9a-fA-F]+", digest):
        raise CourseError(f"checksum '{checksum}' is neither sha256:... nor md5:...: correct the registry")
    return algorithm, digest.lower()


def _verify(path: Path, checksum: str | None, url: str, remove: bool = False) -> None:
    algorithm, expected = _split(checksum) if checksum is not None else ("sha256", None)
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
        file.seek(0)
        got = hashlib.file_digest(file, algorithm).hexdigest()
    page = head.startswith((b"<!doctype html", b"<html"))
    if expected is None and not page:
        warnings.warn(f"no checksum is known for {url}; this file has {algorithm}:{got}", CourseWarning, stacklevel=3)
        return
    if got == expected:
        return
    what = f"an HTML page of {_size(path)} bytes instead of an archive" if page else "not the file that was expected"
    if remove:
        path.unlink()
        advice = "the partial file is removed; run the command again, or name a mirror with --mirror"
    else:
        advice = f"remove {path}, then run the command again"
    sums = f"{algorithm} {got}, expected {expected}" if expected else f"{algorithm} {got}"
    raise CourseError(f"{url} gave {what} ({sums}): {advice}")


# --- unpacking --------------------------------------------------------------------------------------------------------


def extract(
    archive: str | Path,
    destination: str | Path,
    members: Callable[[str], bool] = lambda name: True,
    *,
    progress: bool = True,
) -> Path:
    """Unpack the files of a tar or zip archive that `members` accepts by their path; returns the folder.

    `destination` appears at once, when all is unpacked. An archive with one folder at its top becomes that folder:
    `NAME/images/1.nii.gz` is found at `destination/images/1.nii.gz`. Links, devices and the hidden companions that
    macOS adds are not unpacked.

    Raises `CourseError` for a destination that holds something already, an archive that is truncated, of another format
    or without any such member, a path that leads out of the destination, two members of one name, one that needs a
    password, more than archives hold (see `UNPACKED`), and a full disk.
    """
    archive, destination = Path(archive), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CourseError(f"{destination} exists: move it away to unpack {archive.name} there")
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    content = partial / destination.name
    try:
        content.mkdir(parents=True)
        for _ in tqdm(_unpack(archive, content, members), desc="unpacking", unit=" files", disable=not progress):
            pass
        top = list(content.iterdir())
        if not top:
            raise CourseError(f"{archive} has none of the files that are needed: is it the right archive?")
        if destination.exists():
            destination.rmdir()
        os.replace(top[0] if len(top) == 1 and top[0].is_dir() else content, destination)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise CourseError(f"{archive} is truncated or damaged ({error}): remove it and download it again") from error
    except OSError as error:
        if error.errno is None:  # gzip, bz2 and lzma streams
            raise CourseError(f"{archive} is damaged ({error}): remove it and download it again") from error
        if isinstance(error, FileNotFoundError) and not archive.exists():
            raise CourseError(f"{archive} is missing: download it first") from error
        raise _write_fault(error, destination, 0) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _unpack(archive: Path, folder: Path, members: Callable[[str], bool]) -> Iterator[str]:
    budget = _Budget(archive)
    if zipfile.is_zipfile(archive) and not _begins_as_tar(archive):
        yield from _unpack_zip(archive, folder, members, budget)
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(_unpacked(archive))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise CourseError(
                f"{archive} is truncated, or neither tar nor zip: remove it and download it again"
            ) from error
        for member in tar:
            if member.isfile() and _is_wanted(archive, member.name, members):
                budget.take(member.name, member.size)
                tar.extract(member, folder, set_attrs=False, **FILTER)
                yield member.name
        # A tar that was cut between two members ends like a whole one, but for the empty block that closes it.
        if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


class _Budget:
    """What an archive may unpack to."""

    def __init__(self, archive: Path) -> None:
        self._archive, self._names = archive, set[str]()
        self._left = max(SMALL, UNPACKED * archive.stat().st_size)

    def take(self, name: str, size: int) -> None:
        """Count a member; raises CourseError where it is one too many, or its name was there before."""
        # As the file systems of macOS and Windows compare names.
        plain = PurePosixPath(name.replace("\\", "/")).as_posix().casefold()
        if plain in self._names:
            raise CourseError(f"{self._archive} is unsafe: two of its members are called {name}; do not use it")
        self._names.add(plain)
        self._left -= size
        if self._left < 0 or len(self._names) > MOST_MEMBERS:
            raise CourseError(
                f"{self._archive} is unsafe: it unpacks to more than {UNPACKED} times its size, or to more than "
                f"{MOST_MEMBERS:,} files; do not use this archive"
            )


class _Stream(io.RawIOBase):
    """A tar file's content, unpacked; no header of it is given more than `LARGEST_READ` bytes of memory."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _unpacked(archive: Path) -> _Stream:
    with archive.open("rb") as file:
        begins = file.read(6)
    packed = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    opener = next((opener for magic, opener in packed.items() if begins.startswith(magic)), open)
    return _Stream(opener(archive, "rb"))


def _begins_as_tar(archive: Path) -> bool:
    """A tar of a ZIP ends like a ZIP; its first block has tar's own mark."""
    with archive.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"


def _unpack_zip(archive: Path, folder: Path, members: Callable[[str], bool], budget: _Budget) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        wanted = [
            info
            for info in file.infolist()
            if not info.is_dir()
            and not stat.S_ISLNK(info.external_attr >> 16)
            and _is_wanted(archive, info.filename, members)
        ]
        for info in wanted:
            check_member(archive, info)
            budget.take(info.filename, info.file_size)
        _check_space(folder, sum(info.file_size for info in wanted))
        for info in wanted:
            file.extract(info, folder)
            yield info.filename


def _is_wanted(archive: Path, name: str, members: Callable[[str], bool]) -> bool:
    path = PurePosixPath(name)
    if path.name.startswith("._") or "__MACOSX" in path.parts or not members(name):
        return False
    # Both systems' rules, wherever this runs: an archive that tries is not to be trusted anywhere.
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise CourseError(f"{archive} is unsafe: its member {name} leads out of the folder; do not use this archive")
    return True
