"""Who may ask: a page of the web is no client (the check of `Host` and `Origin`), and pages that are get CORS headers.

A browser sends what a page tells it to, also to a store on the user's own machine. It says so in `Origin`, and a name
of the page's own that was made to point here (DNS rebinding) stands in `Host`. Programs send no `Origin`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peer.config import Address, Config
from peer.http.errors import error_response
from peer.http.services import Services

CORS_METHODS = "DELETE, GET, HEAD, POST, PUT"
CORS_EXPOSED = "Content-Disposition, Content-Range, ETag, Repr-Digest, X-Node-Latency-Ms, X-Routed-From"
PREFLIGHT_AGE_S = 600


class Callers:
    """The app for those who may use it; others are refused before anything of their request is read."""

    def __init__(self, app: ASGIApp, config: Config, services: Callable[[], Services | None]) -> None:
        self.app = app
        self._config = config
        self._services = services
        own = [config.listen, *filter(None, [config.facade, config.advertise])]
        self._names = {_plain(name) for name in (*(address.host for address in own), config.hostname, *config.names)}
        self._is_loopback = config.listen.is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if not self.names_us(scope, headers.get("host")):
            await error_response(421, "this peer does not go by that name; add it with --name")(scope, receive, send)
        elif origin is None:
            await self.app(scope, receive, send)
        elif not self._may_ask(scope, origin):
            message = f"pages of {origin[:200]!a} may not use this peer; allow them with --origin"
            await error_response(403, message, {"vary": "Origin"})(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(origin, headers)(scope, receive, send)
        else:
            await self.app(scope, receive, _with_cors(send, origin))

    def names_us(self, scope: Scope, host: str | None) -> bool:
        """Whether a `Host` is an address of this peer, or a name it was given; browsers never leave it out."""
        if host is None:
            return True
        name = _host_of(f"//{host}")
        return name is not None and self._is_ours(scope, name)

    def _is_ours(self, scope: Scope, name: str) -> bool:
        local = scope.get("server") or ("", 0)
        is_address = name in ("localhost", _plain(str(local[0]))) or (self._is_loopback and _is_loopback(name))
        return is_address or name in self._names

    def _may_ask(self, scope: Scope, origin: str) -> bool:
        """Whether a page is one of ours, of another member or of a configured place, or as local as this peer."""
        if origin in self._config.origins or origin in self._origins_of_members():
            return True
        name = _host_of(origin)
        if name is None or urlsplit(origin).scheme not in ("http", "https"):
            return False
        is_own_page = origin.partition("://")[2] == Headers(scope=scope).get("host") and self._is_ours(scope, name)
        return is_own_page or (self._is_loopback and _is_loopback(name))

    def _origins_of_members(self) -> Iterator[str]:
        services = self._services()
        facade = self._config.facade
        for member in services.others.membership.members() if services else ():
            yield f"http://{member.address}"
            if facade is not None:
                # What is served there is served here too, and its pages go on here when they must.
                yield f"http://{member.address.rpartition(':')[0]}:{facade.port}"


def _host_of(url: str) -> str | None:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return _plain(host) if host else None


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_loopback(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or Address(name, 0).is_loopback or _is_mapped(name)


def _is_mapped(name: str) -> bool:
    try:
        mapped = ipaddress.IPv6Address(name).ipv4_mapped
    except ValueError:
        return False
    return mapped is not None and mapped.is_loopback


def _preflight(origin: str, headers: Headers) -> Response:
    """The answer to a browser that asks first (the Fetch standard's CORS-preflight)."""
    asked = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "access-control-allow-origin": origin,
            "access-control-allow-methods": CORS_METHODS,
            "access-control-allow-headers": asked if asked.isascii() and asked.isprintable() else "",
            "access-control-max-age": str(PREFLIGHT_AGE_S),
            "vary": "Origin",
        },
    )


def _with_cors(send: Send, origin: str) -> Send:
    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = CORS_EXPOSED
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_cors
