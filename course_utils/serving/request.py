"""What the server asks of the process that registers."""

from dataclasses import dataclass

SCANS = {"moving_label": "the label map", "moving": "the moving scan", "fixed": "the fixed scan"}
"""What is uploaded, and what a line calls it."""


@dataclass(frozen=True)
class Request:
    """One registration.

    Attributes:
        folder: That its files are in; results are written there too.
        files: Names of the files in it by what they are, of `SCANS`.
        model: A network's name or file; None registers without one.
        iterations: See `register_files`.
        as_images: Likewise.
        device: Likewise.
        memory_bytes: See `Limits`.
    """

    folder: str
    files: dict[str, str]
    model: str | None
    iterations: int | None
    as_images: bool
    device: str
    memory_bytes: int
