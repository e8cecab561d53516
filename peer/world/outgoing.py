"""Whole requests to other peers over kept connections: the way of what is asked many times a second.

httpx costs five times as much for the same exchange, half of it to look at each idle connection before every request
(docs/decisions.md); what is streamed still goes through it.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress

import trio
from httptools import HttpParserError, HttpResponseParser

from peer.config import Address
from peer.world.env import HttpAnswer, HttpRequest, RequestFailed

RECV_BYTES = 64 * 1024
HEAD_BYTES_MAX = 32 * 1024
"""Of an answer's header fields."""
IDLE_PER_PEER_MAX = 16
"""Connections kept for each address; there are as many as requests at once."""


class SystemRequests:
    """See `peer.world.env.HttpRequests`."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[_Connection]] = {}

    async def request(self, address: Address, request: HttpRequest) -> HttpAnswer:
        raw = _as_bytes(address, request)
        try:
            kept = self._take_idle(address)
            if kept is not None:
                # The peer may close it just as we send: then nothing comes back, and it was not our request's fault.
                with suppress(_ClosedUnanswered):
                    return await self._exchange(address, kept, raw, request)
            with trio.fail_after(request.connect_timeout_s):
                connection = _Connection(await _connected(address))
            return await self._exchange(address, connection, raw, request)
        except trio.TooSlowError:
            raise RequestFailed("no connection in time") from None
        except OSError as error:
            raise RequestFailed(str(error) or type(error).__name__) from error

    def _take_idle(self, address: Address) -> _Connection | None:
        """The connection used last, for it is the one least likely to be closed by now."""
        idle = self._idle.get(address, [])
        while idle:
            connection = idle.pop()
            if connection.is_open():
                return connection
            connection.close()
        return None

    async def _exchange(
        self, address: Address, connection: _Connection, raw: bytes, request: HttpRequest
    ) -> HttpAnswer:
        try:
            answer, is_kept = await connection.exchange(raw, request)
        except BaseException:
            connection.close()
            raise
        idle = self._idle.setdefault(address, [])
        if is_kept and len(idle) < IDLE_PER_PEER_MAX:
            idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()


class _ClosedUnanswered(ConnectionError):
    """The other end closed the connection before it answered with a byte."""


def _as_bytes(address: Address, request: HttpRequest) -> bytes:
    lines = [f"{request.method} {request.target} HTTP/1.1", f"host: {address}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    lines += [f"content-length: {len(request.body)}", "", ""]
    return "\r\n".join(lines).encode("ascii") + request.body


async def _connected(address: Address) -> socket.socket:
    """A connection to the first of a name's addresses that takes one. Raises OSError."""
    failure: OSError = ConnectionError(f"{address.host} has no address")
    for family, kind, protocol, _, where in await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            await trio.socket.from_stdlib_socket(sock).connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


class _Connection:
    """One connection, for one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def is_open(self) -> bool:
        """Whether the other end keeps it open, as far as it has told; what it sends unasked is none of ours."""
        with suppress(OSError):
            try:
                self._sock.recv(1)
            except BlockingIOError:
                return True
        return False

    async def exchange(self, raw: bytes, request: HttpRequest) -> tuple[HttpAnswer, bool]:
        """Send a request and read its answer; also whether the connection can take another. Raises OSError."""
        answer = _Answer(request.answer_bytes_max)
        silence_s = math.inf if request.silence_timeout_s is None else request.silence_timeout_s
        with trio.move_on_after(silence_s) as silence:
            await self._send(raw, silence, silence_s)
            while not answer.is_whole:
                await trio.lowlevel.wait_readable(self._sock)
                silence.deadline = trio.current_time() + silence_s
                with suppress(BlockingIOError):
                    answer.feed(self._recv(answer))
            return HttpAnswer(answer.status(), answer.content(), answer.headers), answer.leaves_open
        raise TimeoutError(f"nothing came back for {silence_s:g} s")

    async def _send(self, raw: bytes, silence: trio.CancelScope, silence_s: float) -> None:
        unsent = memoryview(raw)
        while unsent:
            try:
                unsent = unsent[self._sock.send(unsent) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
                silence.deadline = trio.current_time() + silence_s
            except ConnectionError as error:
                raise _ClosedUnanswered(str(error)) from error

    def _recv(self, answer: _Answer) -> bytes:
        try:
            received = self._sock.recv(RECV_BYTES)
        except ConnectionError as error:
            raise (ConnectionError if answer.has_begun else _ClosedUnanswered)(str(error)) from error
        if not received and not answer.has_begun:
            raise _ClosedUnanswered("the peer hung up")
        return received

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class _Answer:
    """An answer as it comes in; what httptools finds is told to its `on_...` methods."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._head_left = HEAD_BYTES_MAX
        self._parser = HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.has_begun = False
        self.is_whole = False
        self.leaves_open = False
        """Whether the peer keeps the connection open behind this answer."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_left -= len(name) + len(value)
        if self._head_left >= 0:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left >= 0:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_whole = True
        # The parser knows only here.
        self.leaves_open = self._parser.should_keep_alive()

    def feed(self, received: bytes) -> None:
        """Take in what came, b"" when nothing more will. Raises ConnectionError when it is no answer, or too long."""
        if not received:
            raise ConnectionError("the peer hung up in the middle of its answer")
        self.has_begun = True
        try:
            self._parser.feed_data(received)
        except HttpParserError as error:
            raise ConnectionError(f"what came back is no HTTP: {error}") from None
        if self._left < 0 or self._head_left < 0:
            raise ConnectionError("the answer is too long")

    def status(self) -> int:
        return self._parser.get_status_code()

    def content(self) -> bytes:
        return b"".join(self._pieces)
