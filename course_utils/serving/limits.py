"""What one server gives to those who use it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much a registration may take, and how long what belongs to it is kept.

    Attributes:
        upload_bytes: Of one request, all its files together.
        upload_seconds: That a request may take to arrive.
        voxels: Of each scan.
        steps: Of instance optimisation.
        seconds: That a registration may run.
        memory_bytes: That its process may hold, in Linux and on the CPU; elsewhere there is no such limit.
        jobs: Registrations that wait, run or have results to fetch, at a time.
        keep_seconds: After which results are deleted.
    """

    upload_bytes: int = 300 * 10**6
    upload_seconds: float = 600.0
    voxels: int = 20 * 10**6
    steps: int = 500
    seconds: float = 900.0
    memory_bytes: int = 8 * 10**9
    jobs: int = 20
    keep_seconds: float = 3600.0
