"""Files that carry the SHA-256 of their own bytes, so that one that was damaged is refused before it is read.

A seal tells of accidents. Whoever changes a file on purpose can seal it anew: what is in it is checked all the same.
"""

import hashlib
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from course_utils.errors import CourseError

END = b"PK\x05\x06"
"""What the last record of a ZIP file begins with: 22 bytes, the last two the length of a comment behind it."""
MARK = b"sha256:"
DIGITS = 64
ZIP_SEAL = re.compile(rb"sha256:([0-9a-f]{64})\Z")
OPEN = b"0" * DIGITS
"""What stands in the place of the digest while it is computed."""
SAFETENSORS_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
CHUNK = 1 << 20


def seal_zip(content: bytes) -> bytes:
    """A ZIP file, such as `torch.save` writes, with the SHA-256 of all that precedes as its comment."""
    assert content[-22:-18] == END and content[-2:] == b"\0\0"
    body = content[:-2] + struct.pack("<H", len(MARK) + DIGITS) + MARK
    return body + hashlib.sha256(body).hexdigest().encode()


def check_zip(path: Path) -> None:
    """Refuse a ZIP file of tensors that is not what was written.

    A file without a seal, which `torch.save` alone wrote, is held to the sums of its members. No member may be packed:
    it could be a thousand times as large as the file.

    Raises:
        CourseError: a wrong sum; packed members, or two of one name.
        OSError, zipfile.BadZipFile: no such file, or no ZIP file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(MARK) - DIGITS))
        seal = ZIP_SEAL.search(file.read())
        if seal:
            file.seek(0)
            _compare(path, seal[1], _digest_of_first(file, size - DIGITS))
        file.seek(max(0, size - 22))
        last = file.read()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise CourseError(f"{path} is damaged or no checkpoint of plain tensors: its members are packed")
        if len({member.filename for member in members}) < len(members):
            raise CourseError(f"{path} is damaged or no checkpoint of plain tensors: two members have one name")
        if sum(member.file_size for member in members) > size:
            raise CourseError(f"{path} is damaged or no checkpoint of plain tensors: members lie upon each other")
        if not seal and (last[:4] != END or archive.testzip() is not None):
            raise _damaged(path)


def seal_safetensors(content: bytes) -> bytes:
    """A safetensors file whose metadata have `sha256`, 64 zeros, with the SHA-256 of itself in their place."""
    found = SAFETENSORS_SEAL.search(content)
    assert found and found[1] == OPEN
    return content[: found.start(1)] + hashlib.sha256(content).hexdigest().encode() + content[found.end(1) :]


def check_safetensors(path: Path, known: str | None) -> None:
    """Refuse a safetensors file that is not what was written.

    Args:
        path: Of the file.
        known: Its SHA-256 as another file tells it, for one without a seal; None where nobody does.

    Raises:
        CourseError: a wrong sum, or none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LARGEST_HEADER))
        seal = SAFETENSORS_SEAL.search(header)
        file.seek(0)
        if seal is None and known is None:
            raise CourseError(
                f"{path} is damaged, or not a checkpoint of this version of the course: it has no SHA-256, neither in "
                "itself nor in a card beside it; get it again with its card (.json), or export it again"
            )
        digest = hashlib.sha256()
        if seal:
            digest.update(file.read(8 + seal.start(1)))
            digest.update(OPEN)
            file.seek(DIGITS, 1)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    _compare(path, seal[1] if seal else str(known).encode(), digest.hexdigest())


LARGEST_HEADER = 10**8
"""Bytes, of a safetensors file: what the format allows."""


def _digest_of_first(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _compare(path: Path, expected: bytes, found: str) -> None:
    if expected.decode() != found:
        raise _damaged(path)


def _damaged(path: Path) -> CourseError:
    return CourseError(
        f"{path} is damaged: its bytes are not those that were written (SHA-256); copy it again, or train again"
    )
