"""What a client is told when something goes wrong: one JSON shape, the right status, what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from multipart import MultipartError, ParserLimitReached
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from peer.files.delivery import TooFewCopies
from peer.files.intake import UploadRefused, UploadTooLarge
from peer.files.keys import Conflict, NobodyToAsk
from peer.gossip.fetching import ContentUnavailable
from peer.world.env import NoSpace, StoreError
from protocol.errors import MalformedMessage, WrongCluster, WrongVersion

log = logging.getLogger("minidfs.http")

RETRY_AFTER = {"retry-after": "2"}


class HttpError(Exception):
    """An answer other than success, decided where it is raised."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.more = more or {}


def error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> JSONResponse:
    """The JSON shape of every error."""
    return JSONResponse({"error": message, "detail": message, "status": status, **(more or {})}, status, headers)


STATUS_OF: dict[type[Exception], tuple[int, Mapping[str, str] | None]] = {
    UploadRefused: (400, None),
    UploadTooLarge: (413, None),
    ParserLimitReached: (413, None),
    MultipartError: (400, None),
    MalformedMessage: (400, None),
    WrongCluster: (403, None),
    WrongVersion: (400, None),
    Conflict: (409, None),
    ContentUnavailable: (503, RETRY_AFTER),
    NobodyToAsk: (503, RETRY_AFTER),
    TooFewCopies: (503, RETRY_AFTER),
    NoSpace: (507, None),
    StoreError: (503, RETRY_AFTER),
}
"""By kind; of related kinds the nearer one counts."""

_MESSAGES = {
    404: "there is nothing at this address; docs/http.md lists the endpoints",
    405: "this address does not take that method; docs/http.md lists the endpoints",
}


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an HttpError."""
    assert isinstance(error, HttpError)
    return error_response(error.status, error.message, error.headers, error.more)


async def on_starlette_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(_methods_at(request))
    return error_response(error.status_code, _MESSAGES.get(error.status_code, str(error.detail)), headers)


def _methods_at(request: Request) -> list[str]:
    """All methods of an address; the router knows only those of the first route that matches it."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in route.methods or ()})


async def on_known_error(request: Request, error: Exception) -> Response:
    """Answer an error of the services by its kind."""
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS_OF)
    status, headers = STATUS_OF[kind]
    # That the disk is full was said when it became so.
    if isinstance(error, StoreError) and not isinstance(error, NoSpace):
        log.error("%s %s failed: %s", request.method, request.url.path, error)
    return error_response(status, f"{error}", headers)


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The client has gone; nobody will read this."""
    return error_response(400, "the request broke off")


async def on_bug(request: Request, error: Exception) -> Response:
    """Answer what should not have happened; the server logs it."""
    return error_response(500, "an internal error; the peer's log has the details")


HANDLERS = {
    HttpError: on_http_error,
    HTTPException: on_starlette_error,
    ClientDisconnect: on_disconnect,
    **dict.fromkeys(STATUS_OF, on_known_error),
}
