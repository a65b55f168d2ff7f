"""The command `serve`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from course_utils.commands.settings import Device
from course_utils.commands.settings import device as device_of
from course_utils.errors import CourseError
from course_utils.serving.limits import Limits

NEEDED = ("starlette", "uvicorn", "python-multipart")
"""The extra `serve`."""
USUAL = Limits()


def serve(
    model: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint to offer beside the networks that ship; may be given several times."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines reach all but loopback addresses, and need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 8000,
    max_upload: Annotated[int, typer.Option(help="MB that the files of a pair may have together.", min=1)] = (
        USUAL.upload_bytes // 10**6
    ),
    max_voxels: Annotated[int, typer.Option(help="Millions of voxels that a scan may have.", min=1)] = (
        USUAL.voxels // 10**6
    ),
    max_seconds: Annotated[float, typer.Option(help="Seconds that a registration may take.", min=1)] = USUAL.seconds,
    max_memory: Annotated[
        float, typer.Option(help="GB that a registration may hold, in Linux and on the CPU.", min=1)
    ] = USUAL.memory_bytes / 10**9,
    keep: Annotated[float, typer.Option(help="Minutes after which results are deleted.", min=0.1)] = (
        USUAL.keep_seconds / 60
    ),
    frame: Annotated[
        list[str] | None,
        typer.Option(
            help="A site whose pages may show this one in a frame, such as http://localhost:8888, where JupyterLab is; "
            "may be given several times.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Open a page for the browser that registers two scans, until Ctrl-C.

    Drop two NIfTI files into the page, choose a network, and look at the moved scan, the deformed grid and the
    Jacobian; download the results. Everybody who can reach the address can use it; their registrations are queued.
    Scans are deleted when they are registered, results some time later, and everything when the command ends.

    \b
    Example:
      python -m course_utils serve --model OUT/best.pt
    """
    if missing := [name for name in NEEDED if find_spec(name.replace("-", "_")) is None]:
        raise CourseError(f"serve needs {', '.join(missing)}: pip install {' '.join(missing)}")
    from course_utils.serving.server import prepared  # imports them

    limits = Limits(
        upload_bytes=max_upload * 10**6,
        voxels=max_voxels * 10**6,
        seconds=max_seconds,
        memory_bytes=int(max_memory * 10**9),
        keep_seconds=keep * 60,
    )
    ready = prepared(host, port, models=model or (), limits=limits, device=device_of(device), frames=frame or ())
    try:
        with ready as (address, server, sockets):
            typer.echo(f"the page is at {address} (Ctrl-C ends it)")
            server.run(sockets)
    except KeyboardInterrupt:
        typer.echo("ended: every scan and every result is deleted", err=True)
