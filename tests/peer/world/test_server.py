"""The HTTP server, over real sockets on the loopback interface.

A client here is a socket and a few lines that read one answer, so that it can misbehave as it likes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from peer.world import transport
from peer.world.connection import KEEP_ALIVE_AT_LEAST, Limits
from peer.world.env import FROM_PEER, WholeAnswer
from peer.world.server import Server
from peer.world.wire import ChunkedBody

P = ParamSpec("P")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NOON_S = 1_700_000_000.5
NOON = "Tue, 14 Nov 2023 22:13:20 GMT"
MIB = 1024 * 1024


def on_trio(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test, for 10 seconds at most."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def within_deadline() -> None:
            with trio.fail_after(10):
                await test(*args, **kwargs)

        trio.run(within_deadline)

    return run


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        told = json.loads(self.body)
        assert told == {"error": told["error"], "detail": told["error"], "status": self.status}
        return told["error"]


class Client:
    """A connection to the server and what has been received of it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def send(self, content: bytes) -> None:
        await self.stream.send_all(content)

    async def answer(self, head_only: bool = False) -> Answer:
        """Read one response."""
        while b"\r\n\r\n" not in self.received:
            await self._more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        assert status_line.startswith("HTTP/1.1 ")
        fields = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in fields}
        assert len(headers) == len(fields), "a header field came twice"
        status = int(status_line.split()[1])
        bodiless = head_only or status < 200 or status in {204, 304}
        return Answer(status, headers, b"" if bodiless else await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            size = int(headers["content-length"])
            while len(self.received) < size:
                await self._more()
            body, self.received = self.received[:size], self.received[size:]
            return body
        if headers.get("transfer-encoding") != "chunked":
            return await self.until_eof()
        chunked, body = ChunkedBody(), b""
        while not chunked.finished:
            if not self.received:
                await self._more()
            piece, self.received = chunked.take(self.received)
            body += piece
        return body

    async def until_eof(self) -> bytes:
        while more := await self.stream.receive_some(MIB):
            self.received += more
        everything, self.received = self.received, b""
        return everything

    async def _more(self) -> None:
        more = await self.stream.receive_some(MIB)
        assert more, f"the server closed the connection behind {self.received!r}"
        self.received += more

    def reset(self) -> None:
        """Vanish as a killed process does."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@dataclass
class Served:
    server: Server
    port: int
    nursery: trio.Nursery
    listener: trio.SocketListener

    @asynccontextmanager
    async def client(self, receive_buffer: int | None = None) -> AsyncIterator[Client]:
        sock = trio.socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.port))
        with sock:
            yield Client(trio.SocketStream(sock))

    async def ask(self, request: bytes) -> Answer:
        async with self.client() as client:
            await client.send(request)
            return await client.answer()

    async def wait_connections(self, count: int) -> None:
        await wait_until(lambda: self.server.connections == count)


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the server counts, it does not announce
        await trio.sleep(0.001)


@asynccontextmanager
async def serving(app: Any, **limits: Any) -> AsyncIterator[Served]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = Server(app, Limits(**limits), wall_s=lambda: NOON_S)
        nursery.start_soon(server.serve, listener, "own")
        yield Served(server, listener.socket.getsockname()[1], nursery, listener)
        nursery.cancel_scope.cancel()


async def read_body(receive: Any) -> bytes | None:
    """The whole body, None if the client went away in it."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with method, path and body."""
    body = await read_body(receive)
    if body is not None:
        await respond(send, 200, f"{scope['method']} {scope['path']} ".encode() + body)


async def refuse_unread(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 413, b"too large")


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /up HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def answering(*messages: dict[str, Any]) -> Any:
    """An app that sends these messages, whatever it is asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """What the server writes to its log from this level on."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(level)
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("minidfs.http")
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)


async def assert_reset(client: Client) -> bytes:
    """The connection must not end in what could be taken for the response's end."""
    with pytest.raises(trio.BrokenResourceError) as broken:
        await client.until_eof()
    assert isinstance(broken.value.__cause__, ConnectionResetError)
    return client.received


# Connections and requests.


@on_trio
async def test_requests_follow_each_other_on_one_connection() -> None:
    async with serving(echo) as served, served.client() as client:
        for content in (b"one", b"", b"three"):
            await client.send(post(content))
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"POST /up " + content)
            assert "connection" not in answer.headers
        assert served.server.connections == 1


@on_trio
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(post(b"one") + GET + post(b"three") + b"\r\n" + post(b"four"))
        bodies = [(await client.answer()).body for _ in range(4)]
        assert bodies == [b"POST /up one", b"GET / ", b"POST /up three", b"POST /up four"]


@on_trio
async def test_a_request_may_arrive_byte_by_byte() -> None:
    async with serving(echo) as served, served.client() as client:
        for byte in post(b"hello") + post(b"again"):
            await client.send(bytes([byte]))
        assert (await client.answer()).body == b"POST /up hello"
        assert (await client.answer()).body == b"POST /up again"


@on_trio
async def test_http_1_0_connections_end_unless_the_client_asks_to_keep_them() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "keep-alive"
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.until_eof() == b""


@on_trio
async def test_a_response_without_length_ends_an_http_1_0_connection() -> None:
    async with (
        serving(answering(start(), body(b"some", more=True), body(b"thing"))) as served,
        served.client() as client,
    ):
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert answer.body == b"something"
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers


@on_trio
async def test_the_client_or_the_app_can_end_the_connection() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.until_eof() == b""
    closing = answering(start((b"content-length", b"2"), (b"connection", b"close")), body(b"hi"))
    async with serving(closing) as served, served.client() as client:
        await client.send(GET + GET)
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.until_eof() == b""


@on_trio
async def test_the_scope_says_what_was_asked_and_where() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, 200, b"")

    async with serving(app) as served, served.client() as client:
        await client.send(b"PUT /a%20b/%C3%A4?x=%20&y HTTP/1.1\r\nHOST: a\r\nX-Empty:\r\nX-Two:  b \t\r\n\r\n")
        await client.answer()
        (scope,) = scopes
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "PUT",
            "scheme": "http",
            "path": "/a b/ä",
            "raw_path": b"/a%20b/%C3%A4",
            "query_string": b"x=%20&y",
            "root_path": "",
            "headers": [(b"host", b"a"), (b"x-empty", b""), (b"x-two", b"b")],
            "client": client.stream.socket.getsockname(),
            "server": ("127.0.0.1", served.port),
            "state": {"listener": "own"},
            "extensions": {"http.response.zerocopysend": {}},
        }


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"GET http://a:80/x/y?q HTTP/1.1", b"GET /x/y "),
        (b"GET http://a HTTP/1.1", b"GET / "),
        (b"GET http://a?q HTTP/1.1", b"GET / "),
        (b"OPTIONS * HTTP/1.1", b"OPTIONS * "),
        (b"GET /http://a HTTP/1.1", b"GET /http://a "),
        (b"GET //x HTTP/1.1", b"GET //x "),
    ],
)
@on_trio
async def test_request_targets_of_every_form_give_their_path(line: bytes, path: bytes) -> None:
    async with serving(echo) as served:
        assert (await served.ask(line + b"\r\nHost: a\r\n\r\n")).body == path


@on_trio
async def test_an_upgrade_is_answered_as_a_normal_request() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(post(b"hi", b"Connection: Upgrade", b"Upgrade: websocket") + GET)
        assert (await client.answer()).body == b"POST /up hi"
        await client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await client.answer()).body == b"GET / "
        assert (await client.answer()).body == b"GET /ws "


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(400, b"\x16\x03\x01\x02\x00\x01", id="TLS"),
        pytest.param(400, b"GET / HTTP/1.1\nHost: a\n\n", id="bare LF"),
        pytest.param(400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\n\r\n", id="bare LF in field"),
        pytest.param(400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", id="space in target"),
        pytest.param(400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", id="space before colon"),
        pytest.param(400, b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", id="folded field"),
        pytest.param(400, b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", id="NUL in field"),
        pytest.param(400, b"GET / HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts"),
        pytest.param(400, b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", id="no slash"),
        pytest.param(400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", id="star without OPTIONS"),
        pytest.param(400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", id="fragment"),
        pytest.param(400, b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", id="bad escape"),
        pytest.param(400, b"GET /a%4 HTTP/1.1\r\nHost: a\r\n\r\n", id="short escape"),
        pytest.param(400, b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", id="NUL in path"),
        pytest.param(400, b"GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n", id="path not UTF-8"),
        pytest.param(400, b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", id="unescaped path"),
        pytest.param(400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 preface"),
        pytest.param(
            400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", id="both"
        ),
        pytest.param(
            400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", id="BOTH"
        ),
        pytest.param(
            400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", id="2 lengths"
        ),
        pytest.param(400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", id="list of lengths"),
        pytest.param(400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", id="signed length"),
        pytest.param(400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", id="negative length"),
        pytest.param(400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", id="empty length"),
        pytest.param(
            400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", id="huge length"
        ),
        pytest.param(400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunked in 1.0"),
        pytest.param(
            400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", id="chunked not last"
        ),
        pytest.param(501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="gzip"),
        pytest.param(501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", id="CONNECT"),
        pytest.param(505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", id="HTTP/2.0"),
        pytest.param(505, b"GET /\r\n\r\n", id="HTTP/0.9"),
        pytest.param(
            417, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 200-ok\r\n\r\n", id="expectation"
        ),
        pytest.param(431, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="long line"),
        pytest.param(431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5000, id="long field"),
        pytest.param(431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 101 + b"\r\n", id="many fields"),
    ],
)
@on_trio
async def test_what_cannot_be_served_is_refused_with_a_reason(status: int, request_: bytes) -> None:
    async def unreachable(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app must not see this request")

    with logged() as records:
        async with serving(unreachable, header_bytes_max=4096) as served, served.client() as client:
            await client.send(request_)
            answer = await client.answer()
            assert answer.status == status
            assert answer.error
            assert answer.headers["connection"] == "close"
            assert await client.until_eof() == b""
    assert records == []


@on_trio
async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
        assert (await client.answer(head_only=True)).status == 200
        assert (await client.answer()).error.startswith("malformed request")


@on_trio
async def test_a_head_that_drips_in_is_refused_when_its_time_is_up() -> None:
    async with serving(echo, header_timeout_s=0.1, linger_s=0.01) as served, served.client() as client:
        await client.send(GET)
        await client.answer()

        async def drip() -> None:
            while True:
                await client.send(b"X-Drip: a\r\n")
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
            nursery.start_soon(drip)
            answer = await client.answer()
            nursery.cancel_scope.cancel()
        assert answer.status == 408
        assert "0.1 s" in answer.error


@on_trio
async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with serving(echo, header_timeout_s=0.05, keep_alive_timeout_s=0.05) as served:
        async with served.client() as client:
            assert await client.until_eof() == b""
        async with served.client() as client:
            await client.send(GET)
            await client.answer()
            assert await client.until_eof() == b""
        await served.wait_connections(0)


@on_trio
async def test_a_connection_too_many_makes_the_longest_idle_one_go() -> None:
    async with serving(echo, connections_max=2) as served:
        async with served.client() as first, served.client() as second:
            for client in (first, second, first):
                await client.send(GET)
                assert (await client.answer()).status == 200
            assert (await served.ask(GET)).status == 200
            assert await second.until_eof() == b""
            await first.send(GET)
            assert (await first.answer()).status == 200
        await served.wait_connections(0)


@on_trio
async def test_a_slow_head_makes_room_and_is_told_so() -> None:
    async with serving(echo, connections_max=1) as served, served.client() as slow:
        await slow.send(GET[:10])
        await wait_head_begun(served)
        assert (await served.ask(GET)).status == 200
        refused = await slow.answer()
        assert refused.status == 503
        assert "too many connections" in refused.error


async def wait_head_begun(served: Served) -> None:
    def has_begun() -> bool:
        ports = served.server._ports
        return any(connection._head_begun for port in ports for connection in port.connections)

    await wait_until(has_begun)


@asynccontextmanager
async def busy_clients(served: Served, count: int) -> AsyncIterator[None]:
    """Clients whose requests are never done."""
    async with trio.open_nursery() as nursery:
        before = served.server.requests_running
        for _ in range(count):
            nursery.start_soon(served.ask, post(b"half")[:-1])
        await wait_until(lambda: served.server.requests_running == before + count)
        yield
        nursery.cancel_scope.cancel()


async def of_peers(scope: Any, receive: Any, send: Any) -> None:
    """An app to which peers prove what they are."""
    if scope["path"].startswith("/peer/"):
        scope["state"][FROM_PEER] = True
    await echo(scope, receive, send)


@on_trio
async def test_with_all_connections_busy_a_client_is_refused_and_peers_and_health_checks_are_not() -> None:
    async with serving(of_peers, connections_max=2, linger_s=0.05) as served, busy_clients(served, 2):
        refused = await served.ask(GET)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "try again" in refused.error
        for path in (b"/health", b"/health/ready", b"/peer/exchange"):
            assert (await served.ask(GET.replace(b"/ ", path + b" "))).status == 200
        # Nor is the next request of a peer, over the same connection.
        async with served.client() as peer:
            for _ in range(2):
                await peer.send(GET.replace(b"/ ", b"/peer/exchange "))
                assert (await peer.answer()).status == 200


@on_trio
async def test_a_peer_keeps_its_idle_connection_however_many_clients_come() -> None:
    async with serving(of_peers, connections_max=2, linger_s=0.05) as served, served.client() as peer:
        for _ in range(2):
            await peer.send(GET.replace(b"/ ", b"/peer/exchange "))
            assert (await peer.answer()).status == 200
            for _ in range(6):
                async with served.client() as client:
                    await client.send(GET)
                    assert (await client.answer()).status == 200
            async with busy_clients(served, 2):
                pass


@on_trio
async def test_of_those_that_are_peers_only_some_are_kept() -> None:
    async with serving(of_peers, connections_max=1, peer_connections_max=1) as served, served.client() as first:
        await first.send(GET.replace(b"/ ", b"/peer/exchange "))
        assert (await first.answer()).status == 200
        async with served.client() as second:
            await second.send(GET.replace(b"/ ", b"/peer/exchange "))
            assert (await second.answer()).status == 200
            assert (await served.ask(GET)).status == 200
            assert await second.until_eof() == b""
        await first.send(GET)
        assert (await first.answer()).status == 200


@on_trio
async def test_who_only_asks_what_peers_ask_is_kept_no_longer_than_others() -> None:
    async with serving(echo, connections_max=1) as served, served.client() as first:
        await first.send(GET.replace(b"/ ", b"/peer/exchange "))
        assert (await first.answer()).status == 200
        assert (await served.ask(GET)).status == 200
        assert await first.until_eof() == b""


@on_trio
async def test_beyond_the_surplus_a_connection_is_hung_up_on() -> None:
    async with (
        serving(echo, connections_max=1, surplus_max=1) as served,
        busy_clients(served, 1),
        served.client() as surplus,
    ):
        await surplus.send(post(b"half").replace(b"/up", b"/health")[:-1])
        await wait_until(lambda: served.server.requests_running == 2)
        async with served.client() as beyond:
            assert await beyond.until_eof() == b""
        await surplus.send(b"f")
        assert (await surplus.answer()).status == 200


@on_trio
async def test_a_connection_whose_refused_request_is_over_makes_room_again() -> None:
    async with serving(echo, connections_max=1, linger_s=0.05) as served:
        async with busy_clients(served, 1):
            assert (await served.ask(GET)).status == 503
        await served.wait_connections(0)
        assert (await served.ask(GET)).status == 200


# Request bodies.


def chunked(content: bytes, size: int) -> bytes:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"%X;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"


CHUNKED_POST = b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"


@on_trio
async def test_a_chunked_body_arrives_whole_and_ends_where_it_ends() -> None:
    content = bytes(range(256)) * 4000
    async with serving(echo) as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, CHUNKED_POST + chunked(content, 70_001) + GET)
            assert (await client.answer()).body == b"POST /up " + content
        assert (await client.answer()).body == b"GET / "


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    cuts=st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=8),
)
def test_a_chunked_body_may_be_cut_anywhere(pieces: list[bytes], cuts: list[int]) -> None:
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nA: b\r\n\r\n" + GET
    reader, read, at = ChunkedBody(), b"", 0
    while not reader.finished:
        cut = at + cuts[at % len(cuts)]
        piece, behind = reader.take(encoded[at:cut])
        read, at = read + piece, cut
    assert read == b"".join(pieces)
    assert behind + encoded[at:] == GET


@pytest.mark.parametrize(
    "malformed",
    [
        b"x\r\n",
        b"-1\r\n",
        b"0x5\r\nhello",
        b"5\nhello\r\n",
        b"5\r\nhelloo\r\n",
        b" 5\r\n",
        b"\r\n",
        b"f" * 16 + b"\r\n",
        b"5;" + b"a" * 5000,
        b"1;a\nb\r\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
    ],
)
@on_trio
async def test_a_malformed_chunk_ends_the_body_and_is_refused(malformed: bytes) -> None:
    with logged() as records:
        async with serving(echo) as served:
            answer = await served.ask(CHUNKED_POST + b"2\r\nhi\r\n" + malformed)
            assert answer.status == 400
            assert answer.error
    assert records == []


@on_trio
async def test_the_app_gets_a_large_body_in_pieces_of_bounded_size() -> None:
    sizes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await respond(send, 200, b"")

    async with serving(app, read_bytes=100_000) as served, served.client() as client:
        await client.send(post(bytes(4 * MIB)))
        assert (await client.answer()).status == 200
    assert sum(sizes) == 4 * MIB
    assert max(sizes) <= 100_000


async def stall(client: Client, head: bytes) -> int:
    """Send without end until the server takes no more; how much it took."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        await client.send(head)
        for _ in range(64):
            await client.send(bytes(MIB))
            sent += MIB

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        while before != sent:
            before = sent
            await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    return sent


@on_trio
async def test_a_client_cannot_send_faster_than_the_app_reads() -> None:
    async def read_once(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await trio.sleep_forever()

    async with serving(read_once, read_bytes=1000) as served, served.client() as client:
        sent = await stall(client, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        assert sent < 32 * MIB, "someone buffers what only the kernel should"


@on_trio
async def test_requests_do_not_pile_up_while_the_app_waits_for_the_client_to_leave() -> None:
    async def wait_left(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    async with serving(wait_left) as served, served.client() as client:
        assert await stall(client, GET) < 32 * MIB


@on_trio
async def test_100_continue_is_sent_only_when_the_app_asks_for_the_body() -> None:
    asked, read = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await read.wait()
        await echo(scope, receive, send)

    async with serving(app) as served, served.client() as client:
        await client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
        await asked.wait()
        with trio.move_on_after(0.05):
            pytest.fail(f"not asked for yet: {await client.stream.receive_some()!r}")
        read.set()
        assert (await client.answer()).status == 100
        await client.send(b"hi" + GET)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"PUT /x hi")
        assert "connection" not in answer.headers
        assert (await client.answer()).status == 200


@on_trio
async def test_an_early_refusal_of_an_expecting_client_is_all_it_hears() -> None:
    async with serving(refuse_unread) as served, served.client() as client:
        await client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert await client.until_eof() == b""


@on_trio
async def test_an_expecting_client_that_sends_its_body_at_once_is_not_told_to_continue() -> None:
    async with serving(echo) as served:
        assert (await served.ask(post(b"hi", b"Expect: 100-continue"))).body == b"POST /up hi"


@pytest.mark.parametrize(
    "head",
    [CHUNKED_POST + b"1000000\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16777216\r\n\r\n"],
    ids=["chunked", "counted"],
)
@on_trio
async def test_an_early_refusal_reaches_a_client_that_is_still_sending(head: bytes) -> None:
    async with serving(refuse_unread, drain_bytes_max=MIB) as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, head + bytes(16 * MIB))
            answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"too large")
        assert b"Transfer-Encoding" in head or answer.headers["connection"] == "close"
        assert await client.until_eof() == b""


@on_trio
async def test_a_long_body_nobody_reads_ends_the_connection() -> None:
    async with serving(refuse_unread, drain_bytes_max=MIB) as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, CHUNKED_POST + chunked(bytes(4 * MIB), MIB) + GET)
            assert (await client.answer()).status == 413
        assert await client.until_eof() == b""


@on_trio
async def test_a_short_body_nobody_reads_is_thrown_away_and_the_connection_kept() -> None:
    async with serving(refuse_unread) as served, served.client() as client:
        for _ in range(2):
            await client.send(post(bytes(200_000)))
            assert "connection" not in (await client.answer()).headers
        await client.send(CHUNKED_POST + chunked(bytes(200_000), 50_000) + GET)
        for _ in range(2):
            assert (await client.answer()).status == 413


@on_trio
async def test_a_body_that_does_not_come_does_not_hold_the_connection() -> None:
    async with serving(refuse_unread, linger_s=0.05) as served, served.client() as client:
        await client.send(post(b"x" * 10)[:-1])
        assert (await client.answer()).status == 413
        assert await client.until_eof() == b""
        await served.wait_connections(0)


@on_trio
async def test_a_body_that_falls_silent_is_a_disconnect_to_the_app_and_408_to_the_client() -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.extend([await receive(), await receive(), await receive()])

        await respond(send, 400, b"the app's own opinion")

    async with serving(app, body_patience_s=0.05, linger_s=0.05) as served, served.client() as client:
        await client.send(post(b"hello")[:-1])
        answer = await client.answer()
        assert answer.status == 408
        assert "too slowly" in answer.error
        assert await client.until_eof() == b""
    assert [message["type"] for message in told] == ["http.request", "http.disconnect", "http.disconnect"]


@on_trio
async def test_a_body_slower_than_the_least_rate_ends_however_steadily_it_comes() -> None:
    slow = trio.Event()

    async def drip(client: Client) -> None:
        for _ in range(1000):
            await client.send(b"x")
            if slow.is_set():
                return
            await trio.sleep(0.01)

    limits = {"body_patience_s": 0.2, "rate_min": 1_000_000, "linger_s": 0.05}
    async with serving(echo, **limits) as served, served.client() as client, trio.open_nursery() as nursery:
        await client.send(post(b"x" * 10_000)[:-10_000])
        nursery.start_soon(drip, client)
        assert (await client.answer()).status == 408
        slow.set()


@on_trio
async def test_a_body_at_the_least_rate_goes_on_beyond_the_patience_for_silence() -> None:
    async with serving(echo, body_patience_s=0.5, rate_min=1) as served, served.client() as client:
        await client.send(post(b"x" * 8)[:-8])
        for _ in range(8):
            await client.send(b"x")
            await trio.sleep(0.1)
        assert (await client.answer()).status == 200


@on_trio
async def test_a_client_that_vanishes_in_its_body_is_a_disconnect_and_no_error() -> None:
    gone = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read_body(receive) is None
        gone.set()
        raise RuntimeError("what frameworks do then")

    with logged() as records:
        async with serving(app) as served:
            async with served.client() as client:
                await client.send(post(b"hello")[:-1])
                client.reset()
                await gone.wait()
            await served.wait_connections(0)
    assert records == []


@on_trio
async def test_an_app_can_wait_for_the_client_to_leave() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read_body(receive) == b"hello"
        waiting.set()
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}
        left.set()

    waiting, left = trio.Event(), trio.Event()
    async with serving(app) as served:
        async with served.client() as client:
            await client.send(post(b"hello"))
            await waiting.wait()
        await left.wait()


@on_trio
async def test_waiting_for_the_client_to_leave_ends_with_the_response_and_loses_no_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            waiting.set()
            await trio.testing.wait_all_tasks_blocked(0.02)
            await respond(send, 200, scope["path"].encode())
        assert await receive() == {"type": "http.disconnect"}

    waiting = trio.Event()
    async with serving(app) as served, served.client() as client:
        await client.send(GET)
        await waiting.wait()
        await client.send(post(b"pipelined"))
        assert (await client.answer()).body == b"/"
        assert (await client.answer()).body == b"/up"


# Responses.


@on_trio
async def test_head_and_body_leave_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    sends: list[int] = []

    async def counted(self: transport.Transport, content: Any, send: Any = transport.Transport.send) -> None:
        sends.append(len(content))
        await send(self, content)

    monkeypatch.setattr(transport.Transport, "send", counted)
    async with serving(echo) as served, served.client() as client:
        await client.send(GET)
        await client.answer()
        assert len(sends) == 1
        await client.send(CHUNKED_POST + chunked(bytes(MIB), MIB))
        await client.answer()
        assert sends[1] > 50_000


@on_trio
async def test_a_response_without_length_is_chunked() -> None:
    messages = [start(), body(b"", more=True), body(b"some", more=True), body(bytes(MIB), more=True), body(b"thing")]
    async with serving(answering(*messages)) as served, served.client() as client:
        for _ in range(2):
            await client.send(GET)
            answer = await client.answer()
            assert answer.headers["transfer-encoding"] == "chunked"
            assert answer.body == b"some" + bytes(MIB) + b"thing"


@on_trio
async def test_pieces_of_a_streamed_response_leave_as_they_are_sent() -> None:
    seen = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"first", more=True))
        await seen.wait()
        await send(body(b"last"))

    async with serving(app) as served, served.client() as client:
        await client.send(GET)
        while b"first" not in client.received:
            client.received += await client.stream.receive_some()
        seen.set()
        assert (await client.answer()).body == b"firstlast"


@pytest.mark.parametrize(
    ("method", "status", "length"), [(b"HEAD", 200, "5"), (b"GET", 204, None), (b"GET", 304, "5"), (b"HEAD", 404, "5")]
)
@on_trio
async def test_responses_that_have_no_body_send_none(method: bytes, status: int, length: str | None) -> None:
    app = answering(start((b"Content-Length", b"5"), status=status), body(b"hello"))
    async with serving(app) as served, served.client() as client:
        for _ in range(2):
            await client.send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await client.answer(head_only=True)
            assert (answer.status, answer.headers.get("content-length")) == (status, length)
            assert "transfer-encoding" not in answer.headers
        assert client.received == b""


@on_trio
async def test_a_response_is_dated_and_does_not_name_the_server() -> None:
    async with serving(echo) as served:
        headers = (await served.ask(GET)).headers
        assert headers["date"] == NOON
        assert "server" not in headers
        assert (await served.ask(b"nonsense")).headers["date"] == NOON
    async with serving(answering(start((b"Date", b"then")), body(b""))) as served:
        assert (await served.ask(GET)).headers["date"] == "then"


@on_trio
async def test_the_app_does_not_frame_the_response() -> None:
    async with serving(answering(start((b"transfer-encoding", b"gzip")), body(b"hi"))) as served:
        answer = await served.ask(GET)
        assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", b"hi")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("headers", [[(b"content-length", b"10")], []])
@pytest.mark.parametrize("failure", ["returns", "raises", "sends a last piece too short"])
@on_trio
async def test_a_response_that_stays_incomplete_is_cut_off(version: bytes, headers: Any, failure: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(*headers))
        await send(body(b"abc", more=True))
        if failure == "raises":
            raise ValueError("the app broke")
        if failure == "sends a last piece too short" and headers:
            await send(body(b"def"))

    with logged() as records:
        async with serving(app) as served, served.client() as client:
            await client.send(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version)
            received = await assert_reset(client)
            assert b"abc" in received
            assert b"def" not in received
    assert len(records) == 1


@on_trio
async def test_an_app_that_fails_before_its_response_left_is_answered_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/":
            await send(start())
        raise ValueError("the app broke")

    with logged() as records:
        async with serving(app) as served:
            for request in (GET, post(b"")):
                answer = await served.ask(request)
                assert answer.status == 500
                assert "broke" not in answer.error
    assert [record.exc_info and str(record.exc_info[1]) for record in records] == ["the app broke"] * 2


@on_trio
async def test_an_app_that_returns_without_a_response_is_answered_for() -> None:
    with logged() as records:
        async with serving(answering()) as served, served.client() as client:
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.answer(head_only=True)).status == 500
            assert await client.until_eof() == b""
    assert len(records) == 1


@pytest.mark.parametrize("value", [b"a\r\nX-Evil: b", b"a\nb", b"a\rb", b"a\0b"])
@on_trio
async def test_a_header_value_cannot_smuggle_another_field(value: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            await respond(send, 200, b"bad", (b"x-value", value))

    with logged():
        async with serving(app) as served:
            assert (await served.ask(GET)).status == 500


@on_trio
async def test_an_app_may_answer_after_its_first_try_was_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(RuntimeError, match="before it started"):
            await send(body(b""))
        with pytest.raises(ValueError, match="Content-Length"):
            await send(start((b"content-length", b"1"), (b"content-length", b"1")))
        with pytest.raises(RuntimeError, match="unknown type"):
            await send({"type": "http.response.push"})
        await send(start((b"content-length", b"2")))
        with pytest.raises(RuntimeError, match="twice"):
            await send(start())
        with pytest.raises(RuntimeError, match="3 bytes where its Content-Length leaves 2"):
            await send(body(b"abc"))
        await send(body(b"ok"))
        await send(body(b"ignored"))

    async with serving(app) as served, served.client() as client:
        await client.send(GET + GET)
        assert (await client.answer()).body == b"ok"
        assert (await client.answer()).body == b"ok"


@on_trio
async def test_sending_to_a_client_that_left_raises_in_the_app_and_logs_no_error() -> None:
    raised: list[OSError] = []
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        try:
            while True:
                await send(body(bytes(MIB), more=True))
        except OSError as error:
            raised.append(error)
            raise
        finally:
            done.set()

    with logged() as records:
        async with serving(app) as served:
            async with served.client() as client:
                await client.send(GET)
                await client.stream.receive_some()
                client.reset()
                await done.wait()
            await served.wait_connections(0)
    assert isinstance(raised[0], ConnectionError)
    assert records == []


async def send_without_end(scope: Any, receive: Any, send: Any) -> None:
    await send(start())
    while True:
        await send(body(bytes(MIB), more=True))


@on_trio
async def test_a_reader_that_takes_nothing_is_cut() -> None:
    with logged(logging.INFO) as records:
        logging.getLogger("minidfs.http").setLevel(logging.INFO)
        async with serving(send_without_end, write_timeout_s=0.1) as served, served.client() as client:
            await client.send(GET)
            await client.stream.receive_some()
            await served.wait_connections(0)
            await assert_reset(client)
    assert ["took nothing, or next to nothing, for 0.1 s" in record.getMessage() for record in records] == [True]


@pytest.mark.skipif(not hasattr(transport, "termios"), reason="only Linux tells how much the client has taken")
@on_trio
async def test_a_slow_reader_is_not_cut() -> None:
    size = 12 * MIB
    app = answering(start((b"content-length", b"%d" % size)), body(bytes(size)))
    # The server's wake-up needs megabytes read, which at this pace take several write time-outs.
    async with serving(app, write_timeout_s=0.15) as served, served.client(receive_buffer=65536) as client:
        await client.send(GET)
        with trio.move_on_after(0.9):
            while True:
                client.received += await client.stream.receive_some(50_000)
                await trio.sleep(0.02)
        assert len(client.received) < size - 8 * MIB, "too fast to prove anything"
        assert (await client.answer()).body == bytes(size)


@pytest.mark.skipif(not hasattr(transport, "termios"), reason="only Linux tells how much the client has taken")
@on_trio
async def test_a_reader_slower_than_the_least_rate_is_cut_however_steadily_it_reads() -> None:
    limits = {"write_timeout_s": 0.1, "rate_min": 10**9}
    async with serving(send_without_end, **limits) as served, served.client(receive_buffer=65536) as client:
        await client.send(GET)
        with trio.move_on_after(5):
            while served.server.connections:
                with suppress(trio.BrokenResourceError):
                    await client.stream.receive_some(20_000)
                await trio.sleep(0.01)
        assert served.server.connections == 0


# Answers that are at hand.


class AtHand:
    """An app with one answer at hand, which echoes what that is not for."""

    def __init__(self, content: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.whole = WholeAnswer([(b"content-length", b"%d" % len(content)), *headers], content)
        self.asked: list[str] = []

    def at_once(self, scope: Any) -> WholeAnswer | None:
        self.asked.append(f"{scope['method']} {scope['path']}")
        return self.whole if scope["path"] == "/" else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)


@on_trio
async def test_an_answer_at_hand_is_sent_again_and_again_and_the_app_is_not_called() -> None:
    app = AtHand(b"here", (b"etag", b"x"))
    async with serving(app) as served, served.client() as client:
        for _ in range(3):
            await client.send(GET)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"here")
            assert answer.headers == {"content-length": "4", "etag": "x", "date": NOON}
        await client.send(GET.replace(b"GET", b"HEAD"))
        answer = await client.answer(head_only=True)
        assert answer.headers == {"content-length": "4", "etag": "x", "date": NOON}
        await client.send(GET.replace(b"/ ", b"/other "))
        assert (await client.answer()).body == b"GET /other "
        await client.send(GET + GET)
        assert [(await client.answer()).body for _ in range(2)] == [b"here", b"here"]
        assert served.server.connections == 1
    assert app.asked == ["GET /", "GET /", "GET /", "HEAD /", "GET /other", "GET /", "GET /"]


@on_trio
async def test_only_requests_without_a_body_that_keep_the_connection_are_answered_at_once() -> None:
    unusual = [
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        CHUNKED_POST + chunked(b"hi", 1),
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    app = AtHand(b"here")
    async with serving(app) as served, served.client() as client:
        for request in unusual:
            await client.send(request)
            answer = await client.answer()
            assert answer.body.startswith((b"GET / ", b"POST /"))
        assert answer.headers["connection"] == "close"
        assert await client.until_eof() == b""
    assert app.asked == []


@on_trio
async def test_an_answer_at_hand_reaches_a_client_that_reads_slowly_whole() -> None:
    content = os.urandom(16 * MIB)
    async with (
        serving(AtHand(content), header_timeout_s=0.2, keep_alive_timeout_s=0.2) as served,
        served.client(receive_buffer=65536) as client,
    ):
        await client.send(GET)
        # Longer than it may wait for a request.
        await trio.sleep(0.3)
        assert (await client.answer()).body == content
        await client.send(GET.replace(b"/ ", b"/other "))
        assert (await client.answer()).body == b"GET /other "
        assert await client.until_eof() == b""


@on_trio
async def test_a_client_that_takes_nothing_of_an_answer_at_hand_is_cut() -> None:
    app = AtHand(bytes(16 * MIB))
    async with (
        serving(app, write_timeout_s=0.1, keep_alive_timeout_s=0.05) as served,
        served.client(receive_buffer=65536) as client,
    ):
        await client.send(GET)
        await served.wait_connections(1)
        await served.wait_connections(0)
        await assert_reset(client)


@on_trio
async def test_a_client_that_leaves_an_answer_at_hand_leaves_the_others_alone() -> None:
    with logged() as records:
        async with serving(AtHand(bytes(16 * MIB))) as served, served.client() as client, served.client() as other:
            await client.send(GET)
            await client.stream.receive_some()
            client.reset()
            await served.wait_connections(1)
            await other.send(GET)
            assert len((await other.answer()).body) == 16 * MIB
    assert records == []


@on_trio
async def test_an_answer_at_hand_ends_when_the_server_shuts_down_and_its_grace_is_over() -> None:
    async with serving(AtHand(bytes(16 * MIB))) as served, served.client(receive_buffer=65536) as client:
        await client.send(GET)
        await client.stream.receive_some(1)
        await served.server.shut_down(grace_s=0.1)
        assert served.server.connections == 0
        await assert_reset(client)


@on_trio
async def test_an_answer_at_hand_that_is_not_what_it_says_is_not_sent() -> None:
    for app in (AtHand(b"here"), AtHand(b"here", (b"x", b"a\r\nb: c"))):
        app.whole.content += b" and more" if len(app.whole.headers) == 1 else b""
        with logged() as records:
            async with serving(app) as served, served.client() as client, served.client() as other:
                await client.send(GET)
                assert (await client.answer()).error.startswith("internal error")
                assert await client.until_eof() == b""
                await other.send(GET.replace(b"/ ", b"/other "))
                assert (await other.answer()).body == b"GET /other "
        assert [record.exc_info is not None for record in records] == [True]


@on_trio
async def test_a_connection_that_is_used_is_not_closed_for_being_idle() -> None:
    """Neither too early, for its deadline moves on only when that is worth it, nor too late."""
    async with serving(AtHand(b"here"), keep_alive_timeout_s=0.3) as served, served.client() as client:
        for _ in range(6):
            await client.send(GET)
            assert (await client.answer()).body == b"here"
            await trio.sleep(0.1)
        await client.send(GET)
        await client.answer()
        before = trio.current_time()
        assert await client.until_eof() == b""
        assert trio.current_time() - before >= 0.3 * KEEP_ALIVE_AT_LEAST - 0.05


# Files.


@pytest.fixture(params=["sendfile", "copying", "copying without pread"])
def way_to_send(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "sendfile":
        monkeypatch.setattr(transport, "_sendfile", None)
    elif not hasattr(os, "sendfile"):
        pytest.skip("this system has no sendfile")
    if request.param == "copying without pread":
        monkeypatch.delattr(os, "pread", raising=False)


WORDS = b"".join(struct.pack(">I", number) for number in range(1_250_000))


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(WORDS)
    return path


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, None),
        (None, None),
        (7, 100),
        (4_000_001, None),
        (1_000_003, 3_000_001),
        (0, 0),
        (4_999_999, 1),
        (9_999_999, None),
        (None, 70_000),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.usefixtures("way_to_send")
@on_trio
async def test_any_part_of_a_file_can_be_sent(
    content: Path, offset: int | None, count: int | None, counted: bool
) -> None:
    begin = offset or 0
    expected = WORDS[begin:][:count]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with content.open("rb") as file:
            message = {"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count}
            given_ones = {key: value for key, value in message.items() if value is not None}
            await send(start(*[(b"content-length", b"%d" % len(expected))] * counted))
            await send(given_ones)

    async with serving(app) as served, served.client() as client:
        for _ in range(2):
            await client.send(GET)
            answer = await client.answer()
            assert answer.body == expected
            assert ("transfer-encoding" in answer.headers) is not counted
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        await client.answer(head_only=True)
        assert (await client.answer()).body == expected


@pytest.mark.usefixtures("way_to_send")
@on_trio
async def test_parts_of_files_mix_with_other_pieces(content: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        file = os.open(content, os.O_RDONLY)
        part = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
        await send(start())
        await send(body(b"<", more=True))
        await send({**part, "count": 100_000})
        await send(body(b"|", more=True))
        await send({**part, "count": 8})
        await send({**part, "offset": 4, "count": 4})
        await send(body(b">"))
        os.close(file)

    async with serving(app) as served:
        answer = await served.ask(GET)
        assert answer.body == b"<" + WORDS[:100_000] + b"|" + WORDS[100_000:100_008] + WORDS[4:8] + b">"


@pytest.mark.usefixtures("way_to_send")
@pytest.mark.parametrize("count", [100, 5_000_001])
@on_trio
async def test_a_file_shorter_than_promised_is_no_whole_response(content: Path, count: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with content.open("rb") as file:
            await send(start((b"content-length", b"%d" % (count + 1))))
            await send(body(b"x", more=True))
            offset = max(0, 5_000_050 - count)
            await send({"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count})

    with logged() as records:
        async with serving(app) as served, served.client() as client:
            await client.send(GET)
            await assert_reset(client)
    assert "the file ends" in str(records[0].exc_info)


# Shutting down, and what happens to listeners.


@on_trio
async def test_shutting_down_closes_idle_connections_at_once_and_takes_no_new_ones() -> None:
    async with serving(echo) as served, served.client() as idle, served.client() as fresh, served.client() as begun:
        await idle.send(GET)
        await idle.answer()
        await begun.send(GET[:10])
        await served.wait_connections(3)
        await served.server.shut_down(grace_s=1000)
        for client in (idle, fresh, begun):
            assert await client.until_eof() == b""
        assert served.server.connections == 0
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", served.port)


@on_trio
async def test_a_running_upload_finishes_while_the_server_shuts_down() -> None:
    async with serving(echo) as served, served.client() as client:
        await client.send(post(b"hello")[:-3])
        await wait_until(lambda: served.server.requests_running == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.server.shut_down, 1000)
            await trio.testing.wait_all_tasks_blocked()
            await client.send(b"llo" + GET)
            answer = await client.answer()
            assert answer.body == b"POST /up hello"
            assert answer.headers["connection"] == "close"
            assert await client.until_eof() == b""
            client.stream.socket.close()
        assert (served.server.connections, served.server.requests_running) == (0, 0)


@on_trio
async def test_a_client_that_was_promised_to_keep_its_connection_does_not_hold_up_the_shutdown() -> None:
    shutting_down = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"first", more=True))
        await shutting_down.wait()
        await send(body(b"last"))

    async with serving(app) as served, served.client() as client:
        await client.send(GET)
        client.received += await client.stream.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.server.shut_down, 1000)
            await trio.testing.wait_all_tasks_blocked()
            shutting_down.set()
        answer = await client.answer()
        assert answer.body == b"firstlast"
        assert "connection" not in answer.headers


@on_trio
async def test_a_stalled_reader_does_not_hold_up_the_shutdown() -> None:
    async with serving(send_without_end) as served, served.client() as client:
        await client.send(GET)
        await client.stream.receive_some(1)
        before = trio.current_time()
        await served.server.shut_down(grace_s=0.1)
        assert 0.1 <= trio.current_time() - before < 0.5
        assert (served.server.connections, served.server.requests_running) == (0, 0)
        await assert_reset(client)


@on_trio
async def test_a_server_that_was_shut_down_serves_no_more() -> None:
    server = Server(echo)
    await server.shut_down(grace_s=1000)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await server.serve(listener, "own")
    assert listener.socket.fileno() == -1


async def close_by_trio(listener: trio.SocketListener) -> None:
    await listener.aclose()


async def close_behind_trios_back(listener: trio.SocketListener) -> None:
    await trio.to_thread.run_sync(socket.close, listener.socket.detach())


async def shut_down_behind_trios_back(listener: trio.SocketListener) -> None:
    listener.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("close", [close_by_trio, close_behind_trios_back, shut_down_behind_trios_back])
@on_trio
async def test_closing_a_listener_ends_its_port_only(close: Any) -> None:
    async def where(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, scope["state"]["listener"].encode())

    if close is shut_down_behind_trios_back and os.name == "nt":
        pytest.skip("Windows does not shut down listeners")
    ended = trio.Event()

    async def serve_facade(server: Server, listener: trio.SocketListener) -> None:
        await server.serve(listener, "facade")
        ended.set()

    async with serving(where) as served:
        (facade,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        served.nursery.start_soon(serve_facade, served.server, facade)
        stream = await trio.open_tcp_stream("127.0.0.1", facade.socket.getsockname()[1])
        client = Client(stream)
        await client.send(GET)
        assert (await client.answer()).body == b"facade"
        with trio.socket.socket() as waiting:
            await close(facade)
            # The server's end of this connection gets the number of the closed listener.
            await waiting.connect(("127.0.0.1", served.port))
            early = Client(trio.SocketStream(waiting))
            await early.send(GET)
            assert (await early.answer()).body == b"own"
        assert await client.until_eof() == b""
        await ended.wait()
        assert (await served.ask(GET)).body == b"own"
        await stream.aclose()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ECONNABORTED])
@on_trio
async def test_a_failing_accept_does_not_end_the_accepting(code: int) -> None:
    class FailingSocket:
        def __init__(self, sock: trio.socket.SocketType) -> None:
            self.fileno, self.close, self._accept = sock.fileno, sock.close, sock.accept
            self.failures = [OSError(code, os.strerror(code))] * 2

        async def accept(self) -> Any:
            if self.failures:
                raise self.failures.pop()
            return await self._accept()

    with logged() as records:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            listener.socket = FailingSocket(listener.socket)  # type: ignore[assignment]
            server = Server(echo)
            nursery.start_soon(server.serve, listener, "own")
            assert (await Served(server, port, nursery, listener).ask(GET)).status == 200
            await server.shut_down(0)
    assert [record.getMessage().startswith("cannot accept on the own port") for record in records] == [True, True]


@on_trio
async def test_a_bug_in_one_connection_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: transport.Transport) -> Any:
        raise ZeroDivisionError

    with logged() as records:
        async with serving(echo) as served, served.client() as good:
            await good.send(GET)
            await good.answer()
            monkeypatch.setattr(transport.Transport, "open", broken)
            async with served.client() as bad:
                assert await bad.until_eof() == b""
            await good.send(GET)
            assert (await good.answer()).status == 200
    assert len(records) == 1


# The whole.


@on_trio
async def test_a_starlette_app_streams_through_it() -> None:
    async def count(request: Request) -> StreamingResponse:
        sizes = [len(piece) async for piece in request.stream()]

        async def lines() -> AsyncIterator[str]:
            for name in ("a", "b"):
                yield f"{name} {sum(sizes)}\n"

        return StreamingResponse(lines())

    async with serving(Starlette(routes=[Route("/up", count, methods=["POST"])])) as served:
        assert (await served.ask(post(bytes(MIB)))).body == b"a 1048576\nb 1048576\n"
        assert (await served.ask(GET)).status == 404


WHOLE = post(b"hello") + CHUNKED_POST + chunked(b"hello world", 4) + GET + post(b"", b"Expect: 100-continue")


@st.composite
def mutated_requests(draw: st.DrawFn) -> bytes:
    request = WHOLE
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(request)))
        end = min(len(request), begin + draw(st.integers(0, 12)))
        snippets = st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"%", b"/", b"0", b"Content-Length: 3\r\n"]
        )
        request = request[:begin] + draw(st.one_of(st.binary(max_size=8), snippets)) + request[end:]
    return request


@given(attack=st.one_of(st.binary(max_size=300), mutated_requests()))
@example(attack=WHOLE)
@example(attack=GET * 2000)
def test_whatever_a_client_sends_the_server_answers_the_next_one(attack: bytes) -> None:
    @on_trio
    async def run() -> None:
        async with serving(echo) as served:
            async with served.client() as client, trio.open_nursery() as nursery:
                nursery.start_soon(partial(send_and_end, client, attack))
                answers = await client.until_eof()
                assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
            assert (await served.ask(GET)).body == b"GET / "
            await served.wait_connections(0)
            assert served.server.requests_running == 0

    with logged() as records:
        run()
    assert records == []


async def send_and_end(client: Client, content: bytes) -> None:
    await client.send(content)
    await client.stream.send_eof()
