"""Getting an archive and unpacking it: resumed after an interruption, checked, never half there under its own name."""

import errno
import hashlib
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
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm
from urllib3.exceptions import MaxRetryError

from course_utils.errors import CourseError, CourseWarning

# The OASIS host answers the names of download tools with a 403 page. Identity: a server that compresses on the way
# would make byte ranges mean something else.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept-Encoding": "identity",
}
CHUNK = 1 << 16
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
    none.

    Raises `CourseError` for a host that cannot be reached, a refusal (403, 404, ...), a full disk and a wrong checksum;
    in the last case the partial file is removed.
    """
    destination = Path(destination)
    part = destination.with_name(destination.name + ".part")
    if checksum is not None:
        _split(checksum)
    if destination.is_file():
        _verify(destination, checksum, url)
        return destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"{destination.parent} cannot be made ({error.strerror}): choose another data root"
        ) from error
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
        left = int(response.headers.get("Content-Length") or max(0, size - start))
        _check_space(part, left)
        total = start + left or None
        try:
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=not progress) as bar,
            ):
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except requests.RequestException:  # an OSError too, but the network's
            raise
        except OSError as error:
            raise _write_fault(error, part, left) from error


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
    or without any such member, a path that leads out of the destination, and a full disk.
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
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
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
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and _is_wanted(archive, member.name, members):
                    tar.extract(member, folder, set_attrs=False, **FILTER)
                    yield member.name
            # A tar that was cut between two members ends like a whole one, but for the empty block that closes it.
            if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("its end is missing")
    elif zipfile.is_zipfile(archive):
        yield from _unpack_zip(archive, folder, members)
    else:
        raise CourseError(f"{archive} is truncated, or neither tar nor zip: remove it and download it again")


def _unpack_zip(archive: Path, folder: Path, members: Callable[[str], bool]) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        wanted = [
            info
            for info in file.infolist()
            if not info.is_dir()
            and not stat.S_ISLNK(info.external_attr >> 16)
            and _is_wanted(archive, info.filename, members)
        ]
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
