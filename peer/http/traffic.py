"""Counts what goes through the app: requests, bytes, and how long answers took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peer.pace import Pace
from peer.world.env import Clock

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Upper bounds of the classes of durations; beyond them is one more."""
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"})
CLIENTS = ("/files", "/download", "/upload")
"""How the routes begin that move files for clients."""
OTHER = "other"
"""What strangers make up must not grow the list of labels."""


@dataclass(slots=True)
class Durations:
    """How often an answer took so long, by class, and all of it together."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total_s += seconds


class Traffic:
    """The app, counted. `route_of` gives the route of a request that was answered, None if it had none."""

    def __init__(self, app: ASGIApp, clock: Clock, route_of: Callable[[Scope], str | None], pace: Pace) -> None:
        self._app = app
        self._clock = clock
        self._route_of = route_of
        self._pace = pace
        self.running = 0
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """By method, route and status; status 0 is an answer that never began."""
        self.durations: dict[str, Durations] = {}
        """By route, to the end of the answer."""
        self.received_bytes: Counter[str] = Counter()
        """Of bodies, by route."""
        self.sent_bytes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = _Counted(receive, send, scope["method"] == "HEAD")
        started = self._clock.now()
        self.running += 1
        try:
            await self._app(scope, counted.receive, counted.send)
        finally:
            self.running -= 1
            self._note(scope, counted, self._clock.now() - started)

    def _note(self, scope: Scope, counted: _Counted, seconds: float) -> None:
        route = self._route_of(scope) or OTHER
        if route.startswith(CLIENTS):
            self._pace.serve()
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self.requests[method, route, counted.status] += 1
        self.durations.setdefault(route, Durations()).add(seconds)
        self.received_bytes[route] += counted.received_bytes
        self.sent_bytes[route] += counted.sent_bytes


class _Counted:
    """One request."""

    def __init__(self, receive: Receive, send: Send, is_head: bool) -> None:
        self._receive = receive
        self._send = send
        self._is_head = is_head
        self.status = 0
        self.received_bytes = 0
        self.sent_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not self._is_head:
            # A file sent without a count is none of ours: all name one.
            self.sent_bytes += message.get("count") or len(message.get("body", b""))
