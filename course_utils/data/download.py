"""Getting a file: resumed after an interruption, checked, never half there under its own name."""

import contextlib
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError, MaxRetryError, ReadTimeoutError

from course_utils.errors import CourseError, CourseWarning
from course_utils.files import FULL
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
SLACK = 1_000_000
"""Bytes that are taken beyond twice what the registry says."""
LARGEST_UNDECLARED = 20_000_000_000
"""Bytes that are taken from a server where neither it nor the registry says how many there are."""


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
    with in_turn(destination):
        return _download(url, destination, checksum, size, attempts, pause, timeout, progress)


@contextlib.contextmanager
def in_turn(path: Path) -> Generator[None]:
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
            raise write_fault(error, path, 0) from error
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
        most = 2 * size + SLACK if size else (start + left) or LARGEST_UNDECLARED
        if start + left > most:
            raise CourseError(_too_much(url, start + left, size))
        check_space(part, left)
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
            raise write_fault(error, part, left) from error


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


def check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise CourseError(_full_disk(path, needed, free))


def _full_disk(path: Path, needed: int, free: int) -> str:
    wanted = f"{needed:,} more bytes are needed and " if needed else ""
    return f"the disk of {path.parent} is full: {wanted}{free:,} are free; make room, then run the command again"


def write_fault(error: OSError, path: Path, needed: int) -> CourseError:
    if error.errno in FULL:
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
