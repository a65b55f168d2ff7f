"""Who may ask this server, and what every answer says to the browser that reads it."""

import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from course_utils.errors import CourseError
from course_utils.serving.refusal import Refusal

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors "
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""The page is its own: no script or style of anybody else's, in no frame but an allowed one, no scan in a cache."""
SITE = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:([0-9]{1,5}|\*))?", re.IGNORECASE)
"""A site as a policy names it: no path, and `*` for any port."""
UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
COOKIE = "course_utils_token"


@dataclass(frozen=True)
class Access:
    """Whose requests are answered.

    Attributes:
        names: Names of hosts that the server may be asked for, lower case, beside addresses that are numbers.
        numbers: Whether any address may be asked for, or only this machine's own loopback ones.
        token: What a request must know; None where the server is bound to the loopback address.
        frames: Sites whose pages may show this one in a frame, such as `http://localhost:8888`.
    """

    names: frozenset[str]
    numbers: bool
    token: str | None
    frames: tuple[str, ...] = ()

    @classmethod
    def of(cls, host: str, *, loopback: bool, frames: Iterable[str] = ()) -> "Access":
        """That of a server bound to `host`: with a random token unless only this machine can reach it.

        Raises:
            CourseError: what may show the page is no site.
        """
        frames = tuple(frames)
        for site in frames:
            if not SITE.fullmatch(site):
                raise CourseError(f"'{site}' is no site: name it like http://localhost:8888, without a path")
        if loopback:
            return cls(frozenset({"localhost"}), numbers=False, token=None, frames=frames)
        own = {"localhost", host, socket.gethostname(), socket.getfqdn()}
        return cls(
            frozenset(name.lower() for name in own), numbers=True, token=secrets.token_urlsafe(24), frames=frames
        )

    def headers(self) -> dict[str, str]:
        """What every answer says to the browser."""
        return HEADERS | {"Content-Security-Policy": POLICY + (" ".join(self.frames) or "'none'")}

    def check(self, method: str, headers: Headers, query: str) -> bool:
        """Refuse what must not be answered.

        Returns:
            Whether the token came in the address, so that the answer should leave it with the browser.

        Raises:
            Refusal: 421, the request is for another host (a name that somebody has led here would let his page read
                the answers); 403, another site's page has sent it, or it does not know the token.
        """
        asked = headers.get("host", "")
        if not self._is_ours(asked):
            raise Refusal(421, "this server is not asked under its own name: open the address that it printed")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != asked.lower()
        foreign |= headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if method in UNSAFE and foreign:
            raise Refusal(403, "another site's page has sent this: open the page of this server and send it from there")
        if self.token is None:
            return False
        given = parse_qs(query).get("token", [""])[0]
        kept = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        known = [secrets.compare_digest(text.encode(), self.token.encode()) for text in (given, kept, bearer)]
        if not any(known):
            raise Refusal(403, "this address needs its token: open the whole address that the server printed")
        return known[0]

    def _is_ours(self, asked: str) -> bool:
        try:
            name = (urlsplit(f"//{asked}").hostname or "").lower()
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return self.numbers or address.is_loopback


class Guard:
    """The application behind `Access`, with its headers on every answer.

    Args:
        app: What answers.
        access: Whom.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        remember = False

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._access.headers().items():
                    headers[name] = value
                if remember:
                    headers.append("Set-Cookie", f"{COOKIE}={self._access.token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        try:
            query = scope["query_string"].decode("latin-1")
            remember = self._access.check(scope["method"], Headers(scope=scope), query)
        except Refusal as refusal:
            answer = JSONResponse({"error": str(refusal)}, refusal.status, {"Connection": "close"})
            await answer(scope, receive, sending)
            return
        await self._app(scope, receive, sending)
