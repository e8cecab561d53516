"""What the routes read out of a request, checked."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.services import Services
from protocol.ops import FILE_KEY_PATTERN

JSON_BYTES_MAX = 1024 * 1024


def services_of(request: Request) -> Services:
    """The peer's services. Raises HttpError 503 while it has not joined its cluster."""
    services = request.app.state.services()
    if services is None:
        raise HttpError(503, "this peer is still joining its cluster; try again, or another peer", RETRY_AFTER)
    assert isinstance(services, Services)
    return services


def file_key_in(request: Request) -> str:
    """The file id in the path. Raises HttpError 404: what is none names no file."""
    file_key = request.path_params["file_id"]
    if not FILE_KEY_PATTERN.fullmatch(file_key):
        raise HttpError(404, "no file can have this id; ids are letters, digits, dots, dashes and underscores")
    return str(file_key)


def number_in(request: Request, name: str, default: int, maximum: int, minimum: int = 0) -> int:
    """A whole number in the query. Raises HttpError 400."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or not minimum <= int(text) <= maximum:
        raise HttpError(400, f"{name} is a whole number from {minimum} to {maximum}")
    return int(text)


def check_length(request: Request, bytes_max: int) -> None:
    """Raises HttpError 413 if the body is said to be longer than `bytes_max`, before any of it is asked for."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise HttpError(413, f"the body has {declared} bytes; the limit is {bytes_max}")


async def body_of(request: Request, bytes_max: int) -> bytes:
    """A whole request body. Raises HttpError 413 as soon as it is longer than `bytes_max`."""
    check_length(request, bytes_max)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > bytes_max:
            raise HttpError(413, f"the body is longer than {bytes_max} bytes")
    return bytes(body)


async def json_object_of(request: Request) -> dict[str, Any]:
    """A JSON object in the body. Raises HttpError 400, 413."""
    body = await body_of(request, JSON_BYTES_MAX)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise HttpError(400, "the body is no JSON") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the body is no JSON object")
    return value
