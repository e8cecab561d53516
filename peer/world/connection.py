"""A connection of our server: the loop over its requests, and the cycle of one request and its response.

A connection is one task, most of its life in one cancel scope whose deadline moves along. A response that cannot be
completed ends in a reset, never in what a client could take for its end.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import trio

from peer.world.env import FROM_PEER, PEER_PATHS, AnswersAtOnce, WholeAnswer
from peer.world.transport import Buffer, Transport, read_at
from peer.world.wire import CountedBody, HeadReader, Request, RequestError, Response, format_head, format_whole

log = logging.getLogger("minidfs.http")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

HEAD_RECV_BYTES = 64 * 1024
"""Takes in a head and a small body at once, and bounds the pipelined requests one client can pile up here."""
COPIED_BYTES_MAX = 64 * 1024
"""A body up to this size is copied behind its head, to leave in one system call; beyond it copying costs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may ask of the server; times in seconds, sizes in bytes."""

    header_bytes_max: int = 32 * 1024
    """Of request line and header fields: the longest path there is, escaped, with room for tokens."""
    header_count_max: int = 100
    """Header fields: they cost more as objects than as bytes, and apps search them one by one."""
    header_timeout_s: float = 10.0
    """From the first byte of a head to its last, and from connecting to the first byte: against slow heads."""
    body_patience_s: float = 30.0
    """For a body: spent by waiting, earned back by what comes. So long is one waited for that comes to a stop."""
    rate_min: float = 500.0
    """Bytes a second of a body, that come or are taken: a slower client is given up, however steady it is."""
    write_timeout_s: float = 30.0
    """Without the client taking any of its response, or less than `rate_min` allows."""
    keep_alive_timeout_s: float = 75.0
    """Between two requests: longer than clients keep idle connections, so that they close first and lose no request."""
    connections_max: int = 512
    """Of clients, open at one time: beyond it those that wait for a request make room, the longest idle first."""
    peer_connections_max: int = 128
    """Connections that do not count as clients', once a request that a peer has proven has come over them."""
    surplus_max: int = 64
    """Beyond `connections_max` while all others are busy: for health checks, and for peers until they say so."""
    drain_bytes_max: int = 256 * 1024
    """Of a body the app did not read, thrown away to keep the connection; for more, reconnecting is cheaper."""
    linger_s: float = 1.0
    """For reading on behind our answer, to drain a body or until the client closes."""
    read_bytes: int = 256 * 1024
    """Received at one time for a body, and the largest piece the app gets: large pieces make fast uploads."""


DEFAULT_LIMITS = Limits()

KEEP_ALIVE_AT_LEAST = 0.98
"""Of `keep_alive_timeout_s` an idle connection is kept so much at least."""

VITAL_PATHS = (PEER_PATHS, "/health")
"""Answered also when there are too many clients."""
FAILED = "internal error; the log of this peer says more"
CROWDED = "too many connections; try again later or ask another peer"


class Site:
    """What all connections of a server share: the app, the limits, the date, and who may be connected."""

    def __init__(self, app: ASGIApp, limits: Limits, wall_s: Callable[[], float]) -> None:
        self.app = app
        self.at_once = app.at_once if isinstance(app, AnswersAtOnce) else _never_at_once
        self.limits = limits
        self.requests_running = 0
        self._clients: set[Connection] = set()
        self._peers: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        """Without a whole request, those that have waited longest first."""
        self._wall_s = wall_s
        self._date = (0, b"")

    # --- who may be connected ---

    @property
    def _is_crowded(self) -> bool:
        """Whether there are more clients than there should be."""
        return len(self._clients) > self.limits.connections_max

    def admit(self, connection: Connection) -> bool:
        """Make room for a new connection by ending one that waits, if there are too many; False if that is not enough.

        Peers keep theirs: what clients do never costs them a connection.
        """
        if len(self._clients) >= self.limits.connections_max:
            idle = next((waiting for waiting in self._waiting if waiting in self._clients), None)
            if idle is not None:
                self.forget(idle)
                idle.make_room()
        if len(self._clients) >= self.limits.connections_max + self.limits.surplus_max:
            return False
        self._clients.add(connection)
        self._waiting[connection] = None
        connection.surplus = self._is_crowded
        return True

    def note_waiting(self, connection: Connection) -> None:
        """A connection has nothing to do."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def may_serve(self, connection: Connection, path: str) -> bool:
        """Whether to answer a request, which a connection has brought in full."""
        self._waiting.pop(connection, None)
        is_too_many = connection.surplus and self._is_crowded and connection in self._clients
        return not is_too_many or path.startswith(VITAL_PATHS)

    def keep(self, connection: Connection) -> None:
        """A connection is that of a peer: what clients do no longer costs it its place."""
        if connection in self._clients and len(self._peers) < self.limits.peer_connections_max:
            self._clients.discard(connection)
            self._peers.add(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is about to end."""
        self._clients.discard(connection)
        self._peers.discard(connection)
        self._waiting.pop(connection, None)

    # --- the date ---

    def date(self) -> bytes:
        """The time as a Date header gives it."""
        second = int(self._wall_s())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]


def _never_at_once(scope: Scope) -> WholeAnswer | None:
    return None


class Port:
    """A listener and the connections that came through it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lifetime = trio.CancelScope()
        self.accepting = trio.CancelScope()
        self.ended = trio.Event()
        self.retired = False
        self.connections: dict[Connection, None] = {}

    def retire(self) -> None:
        """Take no further requests, not even on open connections."""
        self.retired = True
        for connection in self.connections:
            if not connection.busy:
                connection.patience.cancel()


class Connection:
    """A client's socket, and the loop over its requests."""

    def __init__(self, site: Site, port: Port, sock: socket.socket, address: Any) -> None:
        self.site = site
        self.limits = site.limits
        self.port = port
        self.client = address[:2]
        self.local = ("", 0)
        self.transport = Transport(sock, site.limits.write_timeout_s, site.limits.rate_min)
        self.patience = trio.CancelScope()
        """Around everything; its deadline is that of the request we wait for, and none while we serve one that takes
        its time."""
        self.busy = False
        self.surplus = False
        """It came when all others were busy, and there were as many as there should be."""
        self._makes_room = False
        self.owing = False
        """A response has begun and is not complete."""
        self.rest = b""
        """Received, but part of what comes next."""
        self._head_begun = False
        self._head_only = False

    async def run(self) -> None:
        """Serve the client to the end of the connection. Whatever happens, the other connections live on."""
        try:
            await self._serve_requests()
        except OSError as error:
            log.debug("lost %s: %s", self.client, error)
        except Exception:
            log.exception("a bug in the server ended the connection of %s", self.client)
        finally:
            self.site.forget(self)
            self.transport.close(reset=self.owing)
            self.port.connections.pop(self)

    async def _serve_requests(self) -> None:
        self.local = self.transport.open()
        self.patience.deadline = trio.current_time() + self.limits.header_timeout_s
        try:
            with self.patience:
                while await self._serve_request():
                    self._await_next()
        except RequestError as error:
            await self._refuse(error.status, str(error))
        if self.patience.cancelled_caught and self._head_begun and not self.port.retired:
            if self._makes_room:
                await self._refuse(503, CROWDED)
            else:
                await self._refuse(408, f"the head of the request took over {self.limits.header_timeout_s} s")

    def make_room(self) -> None:
        """End a connection that waits for a request: another one needs its place."""
        self._makes_room = True
        self.patience.cancel()

    def _await_next(self) -> None:
        """The next request may take its time, give or take a little: moving a deadline costs as much as a read."""
        timeout_s = self.limits.keep_alive_timeout_s
        left_s = self.patience.deadline - trio.current_time()
        if not timeout_s * KEEP_ALIVE_AT_LEAST <= left_s <= timeout_s:
            self.patience.deadline = trio.current_time() + timeout_s

    async def _serve_request(self) -> bool:
        """Serve the next request; True if the connection can take another one behind it."""
        request = await self._read_head()
        if request is None or self.patience.cancel_called:
            return False
        self._head_only = request.method == "HEAD"
        if not self.site.may_serve(self, request.path):
            raise RequestError(503, CROWDED)
        scope = self._scope(request)
        whole = self._at_hand(scope) if request.is_simple else None
        if whole is not None:
            await self._send_whole(whole)
        else:
            self._be_busy()
            if not await Cycle(self, request).run(scope):
                if not self.owing:
                    await self.transport.linger(self.limits.linger_s)
                return False
        self.busy = False
        self.site.note_waiting(self)
        return not self.port.retired

    def _be_busy(self) -> None:
        """What is under way takes as long as it takes."""
        self.busy = True
        self.patience.deadline = math.inf

    def _scope(self, request: Request) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version,
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query_string,
            "root_path": "",
            "headers": request.headers,
            "client": self.client,
            "server": self.local,
            "state": {"listener": self.port.name},
            "extensions": {"http.response.zerocopysend": {}},
        }

    def _at_hand(self, scope: Scope) -> WholeAnswer | None:
        """An answer that the app has at hand, its head made. Raises RequestError."""
        try:
            whole = self.site.at_once(scope)
            if whole is not None and not whole.head:
                whole.head = format_whole(whole.headers, len(whole.content))
        except Exception as error:
            log.exception("%s %s: the app failed", scope["method"], scope["path"])
            raise RequestError(500, FAILED) from error
        return whole

    async def _send_whole(self, whole: WholeAnswer) -> None:
        """Send an answer that is at hand: most are with the kernel before anything else can happen."""
        content = b"" if self._head_only else whole.content
        unsent = self.transport.send_now(b"".join((whole.head, b"date: ", self.site.date(), b"\r\n\r\n", content)))
        if unsent:
            self._be_busy()
            self.owing = True
            await self.transport.send(unsent)
            self.owing = False

    async def _read_head(self) -> Request | None:
        """Wait for the next request; None if the client sends no more."""
        reader = HeadReader(self.limits.header_bytes_max, self.limits.header_count_max)
        self._head_only = False
        if self.rest:
            await trio.lowlevel.checkpoint()
        received = self.rest or await self.transport.recv(HEAD_RECV_BYTES)
        request = reader.feed(received)
        if request is None:
            self._head_begun = reader.begun
            self.patience.deadline = trio.current_time() + self.limits.header_timeout_s
        while request is None and received:
            received = await self.transport.recv(HEAD_RECV_BYTES)
            request = reader.feed(received)
        self._head_begun = False
        self.rest = reader.rest
        return request

    async def _refuse(self, status: int, detail: str) -> None:
        """Answer in place of the app, with JSON, and end the connection."""
        log.debug("refused %s: %d %s", self.client, status, detail)
        self.busy = True
        body = json.dumps({"error": detail, "detail": detail, "status": status}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(b"date", self.site.date()), (b"connection", b"close")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await self.transport.send(format_head(status, headers) + (b"" if self._head_only else body))
        await self.transport.linger(self.limits.linger_s)


class Cycle:
    """A request and its response: what the app sees of a connection."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._response = Response(request)
        self._must_continue = request.expects_continue
        self._body_told = False
        self._body_error: RequestError | None = None
        self._body_patience_s = connection.limits.body_patience_s
        self._disconnected = False
        self._watching: trio.CancelScope | None = None

    async def run(self, scope: Scope) -> bool:
        """Let the app answer; True if the connection is ready for the next request.

        Raises RequestError if the server has to answer in place of the app.
        """
        site = self._connection.site
        site.requests_running += 1
        try:
            await site.app(scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this request only, and is logged
            self._report(error)
        else:
            if not (self._response.complete or self._body_error):
                self._report(RuntimeError("the app returned before its response was complete"))
        finally:
            site.requests_running -= 1
        if FROM_PEER in scope["state"]:
            site.keep(self._connection)
        if self._response.complete:
            return await self._drain() and not self._response.closing
        if not self._connection.owing and (self._body_error or not self._disconnected):
            raise self._body_error or RequestError(500, FAILED)
        return False

    def _report(self, error: Exception) -> None:
        request = self._request
        if self._disconnected:
            log.info("%s %s: the client gave up: %r", request.method, request.path, error)
        else:
            log.error("%s %s: the app failed", request.method, request.path, exc_info=error)

    async def receive(self) -> Message:
        """ASGI: the next piece of the body; behind its end, wait until the client is gone or the response complete."""
        if self._body_told or self._disconnected:
            await self._wait_disconnected()
            return {"type": "http.disconnect"}
        if self._must_continue:
            self._must_continue = False
            if not self._connection.rest and not self._connection.owing:
                with suppress(OSError):
                    await self._connection.transport.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        piece = await self._read_body()
        if piece is None:
            self._disconnected = True
            return {"type": "http.disconnect"}
        self._body_told = self._request.body.finished
        return {"type": "http.request", "body": piece, "more_body": not self._body_told}

    async def _read_body(self) -> bytes | None:
        """The next piece of the body; b"" at its end, None if the rest of it does not come."""
        connection, limits, body = self._connection, self._connection.limits, self._request.body
        while not body.finished:
            # Of a body whose end is known nothing behind it is received: then pieces need no cutting.
            size = min(body.left, limits.read_bytes) if isinstance(body, CountedBody) else limits.read_bytes
            received = connection.rest or await self._recv_body(size)
            if not received or self._body_error:
                return None
            try:
                piece, connection.rest = body.take(received)
            except RequestError as error:
                self._body_error = error
                return None
            if piece:
                return piece
        return b""

    async def _recv_body(self, size: int) -> bytes:
        """Receive a piece of a body; b"" if the client is gone, or too slow."""
        limits, received = self._connection.limits, b""
        asked_at = trio.current_time()
        with trio.move_on_after(self._body_patience_s) as waiting:
            received = await self._connection.transport.recv(size)
        if waiting.cancelled_caught:
            rate = f"{limits.rate_min:g} bytes a second"
            self._body_error = RequestError(408, f"the body comes too slowly, or not at all; send at least {rate}")
        left_s = self._body_patience_s - (trio.current_time() - asked_at)
        self._body_patience_s = min(limits.body_patience_s, max(0.0, left_s) + len(received) / limits.rate_min)
        return received

    async def _wait_disconnected(self) -> None:
        connection = self._connection
        with trio.CancelScope() as self._watching:
            while not self._response.complete and not self._disconnected:
                if len(connection.rest) > connection.limits.header_bytes_max:
                    await trio.sleep_forever()  # pipelined requests pile up: the kernel may keep the others
                received = await connection.transport.recv(HEAD_RECV_BYTES)
                connection.rest += received
                self._disconnected = not received

    async def _drain(self) -> bool:
        """Throw away what the app left of the body; True if that took us to its end within the limits."""
        left = self._connection.limits.drain_bytes_max
        if not self._request.body.finished and not self._response.closing:
            with trio.move_on_after(self._connection.limits.linger_s):
                while left >= 0 and (piece := await self._read_body()):
                    left -= len(piece)
        return self._request.body.finished

    async def send(self, message: Message) -> None:
        """ASGI: start the response or send more of it. ConnectionError or TimeoutError if the client is gone."""
        if self._response.complete or (self._body_error and not self._connection.owing):
            return  # what is wrong with the body is for the server to say
        try:
            match message["type"]:
                case "http.response.start":
                    self._start(message["status"], message.get("headers", ()))
                case "http.response.body":
                    await self._send_body(message.get("body", b""), message.get("more_body", False))
                case "http.response.zerocopysend":
                    await self._send_file(message)
                case unknown:
                    raise RuntimeError(f"the app sent a message of unknown type {unknown!r}")
        except (ConnectionError, TimeoutError):
            self._disconnected = True
            raise

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        connection, body = self._connection, self._request.body
        too_long_to_drain = isinstance(body, CountedBody) and body.left > connection.limits.drain_bytes_max
        closing = connection.port.retired or self._must_continue or too_long_to_drain
        self._response.start(status, headers, connection.site.date(), closing)

    async def _send_body(self, content: Buffer, more: bool) -> None:
        before, after = self._frame(len(content), more)
        if self._response.bodiless:
            content = b""
        if len(content) <= COPIED_BYTES_MAX:
            await self._connection.transport.send(b"".join((before, content, after)))
        else:
            await self._connection.transport.send(b"".join((before, content[:COPIED_BYTES_MAX])))
            await self._connection.transport.send(memoryview(content)[COPIED_BYTES_MAX:])
            await self._connection.transport.send(after)
        await self._end_step(more)

    async def _send_file(self, message: Message) -> None:
        file = message["file"] if isinstance(message["file"], int) else message["file"].fileno()
        offset, count, more = message.get("offset"), message.get("count"), message.get("more_body", False)
        start = os.lseek(file, 0, os.SEEK_CUR) if offset is None else offset
        size = max(0, os.fstat(file).st_size - start) if count is None else count
        if size <= COPIED_BYTES_MAX:
            await self._send_body(read_at(file, start, size), more)
        else:
            before, after = self._frame(size, more)
            await self._connection.transport.send(before)
            if not self._response.bodiless:
                await self._connection.transport.send_file(file, start, size)
            await self._connection.transport.send(after)
            await self._end_step(more)
        if offset is None:
            os.lseek(file, start + size, os.SEEK_SET)

    def _frame(self, size: int, more: bool) -> tuple[bytes, bytes]:
        framed = self._response.frame(size, more)
        self._connection.owing = True
        return framed

    async def _end_step(self, more: bool) -> None:
        if more:
            await trio.lowlevel.checkpoint()  # an app that streams to a fast client must not keep the others waiting
            return
        self._response.complete = True
        self._connection.owing = False
        if self._watching is not None:
            self._watching.cancel()
