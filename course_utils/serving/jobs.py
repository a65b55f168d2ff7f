"""The registrations of a server: a queue, one process that works, and folders that are deleted when they are due."""

import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_utils.serving.limits import Limits
from course_utils.serving.process import Worker
from course_utils.serving.refusal import Refusal
from course_utils.serving.request import Request

SWEEP = 5.0
"""Seconds between two looks for what is due to be deleted."""


@dataclass(eq=False)
class Job:
    """One registration, from the first byte of its files to the end of its results.

    Attributes:
        id: Which nobody can guess: who knows it may see the job.
        folder: Of its files.
        request: What shall be done; None while its files arrive.
        state: `"arriving"`, `"waiting"`, `"running"`, `"done"` or `"failed"`.
        stage: Of a running one, see `worker.work`.
        share: Of the stage, 0 to 1; None where it is not known.
        result: See `worker.work`; of one that failed, `{"error": line}`.
        ended: When it ended, by `time.monotonic`.
    """

    id: str
    folder: Path
    request: Request | None = None
    state: str = "arriving"
    stage: str = ""
    share: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    ended: float | None = None


class Jobs:
    """All registrations of one server, in a private folder of the system's temporary one.

    Threads may call every method. Two threads of its own start a job's process and delete what is due.

    Args:
        limits: What a registration may take.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix="course-utils-serve-"))
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._worker = Worker(self.root)
        self._running: Job | None = None
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._work, self._sweep)]
        for thread in self._threads:
            thread.start()

    def begin(self) -> Job:
        """Make room for a job whose files are about to arrive.

        Raises:
            Refusal: 429, the server has as many as it takes.
        """
        with self._changed:
            if len(self._jobs) >= self.limits.jobs and not self._forget_oldest_result():
                raise Refusal(429, f"{self.limits.jobs} registrations are waiting already: try again in some minutes")
            job = Job(secrets.token_urlsafe(16), Path(tempfile.mkdtemp(dir=self.root)))
            self._jobs[job.id] = job
            return job

    def submit(self, job: Job, request: Request) -> None:
        """Put a job whose files are there at the end of the queue."""
        with self._changed:
            if job.id in self._jobs:  # else the server is closing
                job.request, job.state = request, "waiting"
                self._waiting.append(job)
                self._changed.notify_all()

    def get(self, name: str) -> Job:
        """A job by its id.

        Raises:
            Refusal: 404, there is none, or none any more.
        """
        with self._changed:
            if name not in self._jobs:
                raise Refusal(404, "there is no such registration here, or no longer: register again")
            return self._jobs[name]

    def place(self, job: Job) -> int:
        """How many registrations are before this one: 0 where it runs or has ended."""
        with self._changed:
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def remove(self, job: Job) -> None:
        """Cancel a job that waits or runs, and delete all that belongs to it."""
        with self._changed:
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
            if job is self._running:
                self._worker.kill()  # the thread that waits for it deletes the folder
            else:
                shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """End whatever runs and delete everything."""
        with self._changed:
            self._closed.set()
            self._jobs.clear()
            self._waiting.clear()
            self._worker.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._worker.end()
        shutil.rmtree(self.root, ignore_errors=True)

    # --- the two threads ---

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
                if self._closed.is_set():
                    return
                job = self._running = self._waiting.popleft()
                job.state, job.stage = "running", "starting"
            assert job.request is not None  # it waited
            result = self._run(job, job.request)
            for name in job.request.files.values():
                (job.folder / name).unlink(missing_ok=True)
            with self._changed:
                self._running = None
                job.ended = time.monotonic()
                job.result = result  # before the state: whoever reads that it is done finds it
                job.state = "failed" if "error" in result else "done"
                if job.state == "failed" or job.id not in self._jobs:
                    shutil.rmtree(job.folder, ignore_errors=True)
                if not self._closed.is_set():
                    self._worker = Worker(self.root)

    def _run(self, job: Job, request: Request) -> dict[str, Any]:
        """Let the process work, for the seconds that it may."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._worker.kill()

        def tell(message: dict[str, Any]) -> None:
            job.stage, job.share = message["stage"], message.get("share")

        timer = threading.Timer(self.limits.seconds, stop)
        timer.start()
        try:
            result = self._worker.run(request, tell)
            # Somebody may have ended the process while it waited.
            if result is None and not late.is_set() and self._replaced(job):
                result = self._worker.run(request, tell)
        finally:
            timer.cancel()
        if late.is_set() and (result is None or "error" in result):
            return {
                "error": f"the registration took longer than the {self.limits.seconds:g} seconds that it may: take "
                "fewer steps, or smaller scans"
            }
        return result or {"error": "no registration can be started here: tell whoever runs this server"}

    def _replaced(self, job: Job) -> bool:
        """Put a new process in the place of one that has ended, unless the job was cancelled."""
        with self._changed:
            wanted = job.id in self._jobs
            if wanted:
                self._worker = Worker(self.root)
            return wanted

    def _sweep(self) -> None:
        while not self._closed.wait(min(SWEEP, self.limits.keep_seconds)):
            due = time.monotonic() - self.limits.keep_seconds
            with self._changed:
                old = [job for job in self._jobs.values() if job.ended is not None and job.ended < due]
            for job in old:
                self.remove(job)

    def _forget_oldest_result(self) -> bool:
        """Delete the oldest results where there are any: who registers now goes before who has had time to fetch."""
        ended = [job for job in self._jobs.values() if job.ended is not None]
        if ended:
            self.remove(min(ended, key=lambda job: job.ended or 0.0))
        return bool(ended)
