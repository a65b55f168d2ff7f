"""From an address to a server that answers there."""

import contextlib
import ipaddress
import socket
from collections.abc import Generator, Iterable
from pathlib import Path

import uvicorn

from course_utils.errors import CourseError
from course_utils.serving.access import Access
from course_utils.serving.jobs import Jobs
from course_utils.serving.limits import Limits
from course_utils.serving.offered import offered
from course_utils.serving.web import make_app


@contextlib.contextmanager
def prepared(
    host: str,
    port: int,
    *,
    models: Iterable[Path] = (),
    limits: Limits | None = None,
    device: str = "cpu",
    frames: Iterable[str] = (),
) -> Generator[tuple[str, uvicorn.Server, list[socket.socket]]]:
    """The address of the page, a server that has not begun, and what it listens on; in the end all is deleted.

    The address holds the token, if there is one. `server.run(sockets)` answers until a signal ends it.

    Args:
        host: Name or address to listen on; other machines reach all but a loopback one.
        port: 0 is any that is free.
        models: Checkpoints to offer beside the networks that ship.
        limits: What a registration may take.
        device: Where registrations are computed.
        frames: Sites whose pages may show this one in a frame.

    Raises:
        CourseError: the address cannot be listened on, a model cannot be used, or a site is none.
    """
    networks = offered(models)
    with listening(host, port) as listener:
        number, port = listener.getsockname()[:2]
        loopback = ipaddress.ip_address(number.partition("%")[0]).is_loopback
        access = Access.of(host, loopback=loopback, frames=frames)
        jobs = Jobs(limits or Limits())
        try:
            config = uvicorn.Config(
                make_app(jobs, networks, access, device),
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=1,
            )
            yield address(host, port, access), uvicorn.Server(config), [listener]
        finally:
            jobs.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        CourseError: there is no such address on this machine, or the port is taken.
    """
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CourseError(
            f"{host}, port {port}, cannot be listened on ({reason}): choose another --port, or another --host"
        ) from error


def address(host: str, port: int, access: Access) -> str:
    """What to type into a browser."""
    everywhere = host in ("0.0.0.0", "::")
    name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    query = "" if access.token is None else f"?token={access.token}"
    return f"http://{name}:{port}/{query}"
