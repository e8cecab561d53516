"""Counts what goes through the app: requests, bytes, and how long answers took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from peer.pace import Pace
from peer.world.env import AnswersAtOnce, Clock, WholeAnswer

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


class App(AnswersAtOnce, Protocol):
    """An ASGI app with answers at hand."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""


class Traffic:
    """The app, counted. `route_of` gives the route of a request that was answered, None if it had none."""

    def __init__(self, app: App, clock: Clock, route_of: Callable[[Scope], str | None], pace: Pace) -> None:
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

    def at_once(self, scope: Scope) -> WholeAnswer | None:
        """See `peer.world.env.AnswersAtOnce`. How long it takes to be sent does not count."""
        started = self._clock.now()
        whole = self._app.at_once(scope)
        if whole is not None:
            sent_bytes = 0 if scope["method"] == "HEAD" else len(whole.content)
            self._note(scope, _Counts(200, sent_bytes=sent_bytes), self._clock.now() - started)
        return whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counts = _Counts()
        counted = _Counted(receive, send, scope["method"] == "HEAD", counts)
        started = self._clock.now()
        self.running += 1
        try:
            await self._app(scope, counted.receive, counted.send)
        finally:
            self.running -= 1
            self._note(scope, counts, self._clock.now() - started)

    def _note(self, scope: Scope, counts: _Counts, seconds: float) -> None:
        route = self._route_of(scope) or OTHER
        if route.startswith(CLIENTS):
            self._pace.serve()
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self.requests[method, route, counts.status] += 1
        self.durations.setdefault(route, Durations()).add(seconds)
        self.received_bytes[route] += counts.received_bytes
        self.sent_bytes[route] += counts.sent_bytes


@dataclass(slots=True)
class _Counts:
    """Of one request."""

    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class _Counted:
    """One request, counted while it is served."""

    def __init__(self, receive: Receive, send: Send, is_head: bool, counts: _Counts) -> None:
        self._receive = receive
        self._send = send
        self._is_head = is_head
        self._counts = counts

    async def receive(self) -> Message:
        message = await self._receive()
        self._counts.received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._counts.status = message["status"]
        elif not self._is_head:
            # A file sent without a count is none of ours: all name one.
            self._counts.sent_bytes += message.get("count") or len(message.get("body", b""))
