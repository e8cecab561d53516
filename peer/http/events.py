"""`GET /events`: what happened at this peer and around it, as a list or as it happens."""

from __future__ import annotations

import json
import re

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from peer.events import Event, Events
from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.requests import services_of
from peer.http.services import Services
from peer.http.times import rfc3339

LOOK_S = 0.25
"""Between two looks for new events: what comes by the hundred leaves in a few messages."""
BEAT_S = 15.0
"""Without an event something is sent so often, so that both ends notice when the other is gone."""
RETRY_MS = 2000
"""How long a browser waits before it asks again."""
WATCHERS_MAX = 64

STREAM = "text/event-stream"
_ID = re.compile(r"([0-9a-f]{1,16})-([0-9]{1,15})")


async def events(request: Request) -> JSONResponse | _Stream:
    """`GET /events`: a JSON list, or server-sent events for who accepts them, behind the one in `Last-Event-ID`."""
    services = services_of(request)
    after = _after(services.events, request.headers.get("last-event-id") or request.query_params.get("after"))
    if STREAM not in request.headers.get("accept", ""):
        found = [_as_json(services.events, event) for event in services.events.since(after)]
        return JSONResponse({"events": found, "last": _id(services.events, services.events.last)})
    if len(services.watchers) >= WATCHERS_MAX:
        raise HttpError(503, "so many watch this peer that no more can; ask another one", RETRY_AFTER)
    return _Stream(services, after)


def _after(events: Events, last: str | None) -> int:
    """The number behind which events are wanted: all of them for who has seen those of another life, or none."""
    match = _ID.fullmatch(last or "")
    if match is None or int(match[1], 16) != events.life:
        return 0
    return int(match[2])


def _id(events: Events, number: int) -> str:
    return f"{events.life:x}-{number}"


def _as_json(events: Events, event: Event) -> dict[str, object]:
    return {"id": _id(events, event.number), "at": rfc3339(event.at_ms), "kind": event.kind, **event.about}


class _Stream:
    """The events of a peer as they happen, to the end of its service, as an ASGI app."""

    def __init__(self, services: Services, after: int) -> None:
        self._services = services
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", STREAM.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._services.watchers.add(self)
        try:
            await self._send_all(send)
        finally:
            self._services.watchers.discard(self)

    async def _send_all(self, send: Send) -> None:
        events, draining = self._services.events, self._services.draining
        await send(_piece(b"retry: %d\n\n" % RETRY_MS))
        quiet_s = 0.0
        # A stream that went on would keep the peer from stopping.
        while not draining.is_set():
            found = events.since(self._after)
            if found:
                self._after, quiet_s = found[-1].number, 0.0
                await send(_piece(b"".join(_message(events, event) for event in found)))
            elif quiet_s >= BEAT_S:
                quiet_s = 0.0
                await send(_piece(b":\n\n"))
            with trio.move_on_after(LOOK_S):
                await draining.wait()
            quiet_s += LOOK_S
        await send({"type": "http.response.body", "body": b""})


def _piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _message(events: Events, event: Event) -> bytes:
    said = json.dumps(_as_json(events, event), ensure_ascii=False)
    return f"id: {_id(events, event.number)}\ndata: {said}\n\n".encode()
