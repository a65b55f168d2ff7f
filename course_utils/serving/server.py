"""From an address to a server that answers there."""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import uvicorn

from course_utils.errors import CourseError
from course_utils.serving.access import Access
from course_utils.serving.jobs import Jobs
from course_utils.serving.limits import Limits
from course_utils.serving.offered import offered
from course_utils.serving.web import make_app


def serve(
    host: str,
    port: int,
    *,
    models: Iterable[Path] = (),
    limits: Limits | None = None,
    device: str = "cpu",
    ready: Callable[[str], None],
) -> None:
    """Answer requests until a signal ends the server; then delete everything.

    Args:
        host: Name or address to listen on; other machines reach all but a loopback one.
        port: 0 is any that is free.
        models: Checkpoints to offer beside the networks that ship.
        limits: What a registration may take.
        device: Where registrations are computed.
        ready: Called with the address of the page, with the token if there is one, before the first answer.

    Raises:
        CourseError: the address cannot be listened on, or a model cannot be used.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    networks = offered(models)
    with listening(host, port) as listener:
        number, port = listener.getsockname()[:2]
        access = Access.of(host, loopback=ipaddress.ip_address(number.partition("%")[0]).is_loopback)
        jobs = Jobs(limits or Limits())
        try:
            app = make_app(jobs, networks, access, device)
            ready(address(host, port, access))
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=1,
            )
            uvicorn.Server(config).run(sockets=[listener])
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
