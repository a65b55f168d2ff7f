"""The page and what it asks for, as a Starlette application.

| method and address | answer |
|---|---|
| GET / | the page |
| GET /api/options | the networks, and the limits |
| POST /api/jobs | a form with `fixed`, `moving`, `moving_label`, `network`, `steps`, `as_images`: 202 and a job |
| GET /api/jobs/ID | a job: its state, its share of the work, its report |
| DELETE /api/jobs/ID | 204: cancelled, and all that belongs to it deleted |
| GET /api/jobs/ID/FILE | a result, or `view.json` and `view.bin`, which the page draws |

What is refused gets a status of 4xx and `{"error": line}`.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from course_utils.serving import request as work
from course_utils.serving.access import Access, Guard
from course_utils.serving.jobs import Job, Jobs
from course_utils.serving.limits import Limits
from course_utils.serving.offered import NONE, Offered
from course_utils.serving.refusal import Refusal
from course_utils.serving.uploads import check_upload

STATIC = Path(__file__).parent / "static"
TYPES = {
    "icon.svg": "image/svg+xml",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "view.js": "text/javascript",
}
"""Of what the page consists of. Not guessed: a system may be set up to call scripts something else."""
VIEW = ("view.json", "view.bin")
FIELD_BYTES = 1000
"""Of a field of the form that is no file."""


def make_app(jobs: Jobs, networks: Mapping[str, Offered], access: Access, device: str = "cpu") -> Starlette:
    """The application; when it ends, it closes `jobs`.

    Args:
        jobs: Where registrations are queued.
        networks: That the page offers, see `offered.offered`.
        access: Who may ask.
        device: Where registrations are computed.
    """
    page = _Page(jobs, networks, device)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        await run_in_threadpool(jobs.close)

    return Starlette(
        routes=[
            Route("/", page.index),
            Route("/api/options", page.options),
            Route("/api/jobs", page.register, methods=["POST"]),
            Route("/api/jobs/{job}", page.job, methods=["GET"]),
            Route("/api/jobs/{job}", page.remove, methods=["DELETE"]),
            Route("/api/jobs/{job}/{file}", page.file),
            Route("/static/{file}", page.static),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={Refusal: _refused, HTTPException: _not_answered},
        lifespan=lifespan,
    )


def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)  # as it is registered above
    # What has not been read of a request that is too large is not waited for.
    return JSONResponse({"error": str(refusal)}, refusal.status, {"Connection": "close"})


def _not_answered(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


class _Page:
    """What answers requests; see `make_app` for the arguments."""

    def __init__(self, jobs: Jobs, networks: Mapping[str, Offered], device: str) -> None:
        self._jobs, self._networks, self._device = jobs, networks, device

    def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    def static(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in TYPES:
            raise Refusal(404, "there is no such file of the page")
        return FileResponse(STATIC / name, media_type=TYPES[name])

    def options(self, request: Request) -> Response:
        limits = self._jobs.limits
        return JSONResponse(
            {
                "networks": [{"name": one.name, "label": one.label} for one in self._networks.values()],
                "upload_bytes": limits.upload_bytes,
                "voxels": limits.voxels,
                "steps": limits.steps,
                "seconds": limits.seconds,
                "keep_seconds": limits.keep_seconds,
            }
        )

    async def register(self, request: Request) -> Response:
        try:
            job = self._jobs.begin()
        except Refusal:
            await _read_to_the_end(request, self._jobs.limits)
            raise
        try:
            async with asyncio.timeout(self._jobs.limits.upload_seconds):
                form = await _bounded(request, self._jobs.limits.upload_bytes).form(
                    max_files=len(work.SCANS), max_fields=8, max_part_size=FIELD_BYTES
                )
            try:
                asked = await run_in_threadpool(self._accepted, form, job)
            finally:
                await form.close()
        except TimeoutError as error:
            self._jobs.remove(job)
            raise Refusal(408, "the files took too long to arrive: try again, or give smaller ones") from error
        except OSError as error:
            self._jobs.remove(job)
            raise Refusal(507, "the server has no room for these files: try again later") from error
        except BaseException:  # whoever sent it may also have gone
            self._jobs.remove(job)
            raise
        self._jobs.submit(job, asked)
        return JSONResponse(self._told(job), 202)

    def job(self, request: Request) -> Response:
        return JSONResponse(self._told(self._jobs.get(request.path_params["job"])))

    def remove(self, request: Request) -> Response:
        self._jobs.remove(self._jobs.get(request.path_params["job"]))
        return Response(status_code=204)

    def file(self, request: Request) -> Response:
        job, name = self._jobs.get(request.path_params["job"]), request.path_params["file"]
        if name not in (*job.result.get("files", ()), *(VIEW if job.state == "done" else ())):
            raise Refusal(404, "there is no such result of this registration")
        return FileResponse(job.folder / name, filename=None if name in VIEW else name)

    def _accepted(self, form: FormData, job: Job) -> work.Request:
        """The request that a form is, its files checked and in the folder of the job."""
        limits = self._jobs.limits
        network = str(form.get("network", NONE))
        if network not in self._networks:
            raise Refusal(400, "there is no such network here: choose one of those that the page offers")
        text = str(form.get("steps", "")).strip()
        if text and not (text.isascii() and text.isdigit() and int(text) <= limits.steps):
            raise Refusal(400, f"steps are a whole number from 0 to {limits.steps}, or nothing for the usual number")
        steps = int(text) if text else None
        model = self._networks[network].model
        if model is None and steps == 0:
            raise Refusal(400, "without a network and without steps there is nothing to do: choose one of the two")
        files = {}
        for name, words in work.SCANS.items():
            given = form.get(name)
            if isinstance(given, UploadFile) and given.size:
                files[name] = _kept(given, job.folder, name, words, limits.voxels)
            elif name != "moving_label":
                raise Refusal(400, f"{words} is missing: choose its file")
        return work.Request(
            folder=str(job.folder),
            files=files,
            model=model,
            iterations=steps,
            as_images=form.get("as_images") is not None,
            device=self._device,
            memory_bytes=limits.memory_bytes,
        )

    def _told(self, job: Job) -> dict[str, Any]:
        """What the page knows of a job."""
        state = job.state  # read first: a result is there before its state
        sizes = [
            {"name": name, "bytes": path.stat().st_size}
            for name in job.result.get("files", ())
            if (path := job.folder / name).is_file()
        ]
        return {
            "id": job.id,
            "state": state,
            "place": self._jobs.place(job),
            "stage": job.stage,
            "share": job.share,
            **{key: value for key, value in job.result.items() if key != "files"},
            "files": sizes,
        }


def _bounded(request: Request, most: int) -> Request:
    """A request that is refused as soon as it is known to be larger than `most` bytes."""
    too_large = Refusal(413, f"the files have more than {most / 1e6:g} MB together, more than this server takes")
    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and int(announced) > most:
        raise too_large
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise too_large
        return message

    return Request(request.scope, receive)


async def _read_to_the_end(request: Request, limits: Limits) -> None:
    """Let the rest of a request arrive, and drop it: a browser that still sends does not hear what it is told."""
    with contextlib.suppress(Refusal, TimeoutError):
        async with asyncio.timeout(limits.upload_seconds):
            async for _ in _bounded(request, limits.upload_bytes).stream():
                pass


def _kept(given: UploadFile, folder: Path, name: str, words: str, voxels: int) -> str:
    """Write an upload into a folder and check it there; its name is ours, whatever it was called."""
    arrived = folder / name
    with arrived.open("wb") as file:
        shutil.copyfileobj(given.file, file)
    final = f"{name}{check_upload(arrived, words, voxels)}"
    arrived.rename(folder / final)
    return final
