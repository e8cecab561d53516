"""A network in memory: datagrams and HTTP between peers, with delays, losses and cuts drawn from one seed.

HTTP goes from httpx straight into the other peer's ASGI app, as streams; a request runs in the nursery of the peer
that serves it and dies with it. A cut link swallows everything, in silence: both ends time out.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any
from urllib.parse import unquote

import httpx
import trio

from peer.config import Address
from peer.tasks import helper_tasks
from peer.world.env import AnswersAtOnce, AsgiApp, HttpAnswer, HttpRequest, Listener, RequestFailed, StartError
from sim.pauses import MACHINE, Pauses
from sim.virtual_time import VirtualTime

DELAY_S = (0.0002, 0.002)
"""One way, the least and the most."""
GRID_S = 0.001
DOUBLED_WITHIN_S = 5.0
BREAKS_WITHIN_PIECES = 4
"""Of a body that breaks off: before one of its first pieces."""


class Fate(Enum):
    """What becomes of a request on its way."""

    FINE = auto()
    RESET = auto()
    """The connection breaks before the request is there, or in the middle of its body."""
    UNANSWERED = auto()
    """It is carried out, and the connection breaks before the answer."""
    CUT_OFF = auto()
    """The connection breaks in the middle of the answer."""
    SILENT = auto()
    """It is carried out, and nothing comes back, ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How bad a network is, as shares of what passes through it; delays in seconds."""

    lost: float = 0.0
    """Datagrams."""
    doubled: float = 0.0
    """Datagrams that arrive twice, the second time at any later moment."""
    slow: float = 0.0
    """Datagrams, requests, answers, and pieces of bodies that take up to `slow_max_s` longer: so they overtake."""
    slow_max_s: float = 1.0
    broken: float = 0.0
    """Requests with another fate than a good one."""
    silent: float = 0.2
    """Of the broken ones, those that hang in silence."""
    bytes_per_s: float = math.inf
    """Of each link and direction, for all that goes over it."""


FAIR = Weather()

Trace = Callable[[str, str, str], None]
"""Is told who did what, and the details."""


class Network:
    """All links between all nodes. A node's name is its address' port, a client's what it calls itself."""

    def __init__(self, chance: Random, trace: Trace, time: VirtualTime) -> None:
        self._chance = chance
        self._time = time
        self.trace = trace
        self.weather = FAIR
        self._servers: dict[int, VirtualListener] = {}
        self._mailboxes: dict[int, VirtualDatagrams] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._busy_until: dict[tuple[str, str], float] = {}
        """When a link has carried all that was sent over it before, where it has a bandwidth."""
        self.pauses = Pauses()
        self.owner_of: dict[int, str] = {}
        """Which node has which port."""

    # --- faults ---

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass from one node to another."""
        self._cut[sender, receiver] = None

    def restore(self, sender: str, receiver: str) -> None:
        """Let everything pass again."""
        self._cut.pop((sender, receiver), None)

    def passes(self, sender: str, port: int) -> bool:
        """Whether anything gets from a node to whoever has this port."""
        return (sender, self.owner_of.get(port, "")) not in self._cut

    def passes_back(self, port: int, receiver: str) -> bool:
        """Whether anything gets back from there."""
        return (self.owner_of.get(port, ""), receiver) not in self._cut

    async def delay(self) -> None:
        """One way over a link."""
        await self._time.pass_by(self._delay_s())

    def _delay_s(self) -> float:
        return self._chance.uniform(*DELAY_S) + self._lateness_s()

    async def delay_piece(self, sender: int | str, receiver: int | str, size: int) -> None:
        """A piece of a body, which comes right behind the one before, but in bad weather."""
        late_s = self._lateness_s() + self._carrying_s(sender, receiver, size)
        if late_s:
            await self._time.pass_by(late_s)

    def _carrying_s(self, sender: int | str, receiver: int | str, size: int) -> float:
        """How long it takes a link to carry what it has been given before, and this; nodes by their names or ports."""
        if self.weather.bytes_per_s == math.inf:
            return 0.0
        now = trio.current_time()
        link = self._name_of(sender), self._name_of(receiver)
        free_at = max(now, self._busy_until.get(link, 0.0)) + size / self.weather.bytes_per_s
        self._busy_until[link] = free_at
        return free_at - now

    def _name_of(self, node: int | str) -> str:
        return node if isinstance(node, str) else self.owner_of.get(node, "")

    def _lateness_s(self) -> float:
        weather = self.weather
        # In fair weather nothing is drawn: it is not to change what a seed stands for.
        if not weather.slow or self._chance.random() >= weather.slow:
            return 0.0
        return self._chance.uniform(0, weather.slow_max_s)

    def fate(self) -> Fate:
        """What will become of a request."""
        weather = self.weather
        if not weather.broken or self._chance.random() >= weather.broken:
            return Fate.FINE
        if self._chance.random() < weather.silent:
            return Fate.SILENT
        return self._chance.choice((Fate.RESET, Fate.UNANSWERED, Fate.CUT_OFF))

    def draw(self, below: int) -> int:
        """Where in a body it breaks."""
        return self._chance.randrange(below)

    # --- ports ---

    def listen(self, listener: VirtualListener) -> None:
        """Take a port. Raises StartError."""
        if listener.address.port in self._servers:
            raise StartError(f"port {listener.address.port} is taken")
        self._servers[listener.address.port] = listener

    def leave(self, listener: VirtualListener) -> None:
        """Give a port back."""
        if self._servers.get(listener.address.port) is listener:
            del self._servers[listener.address.port]

    def server_at(self, port: int) -> VirtualListener | None:
        """Who listens on a port."""
        return self._servers.get(port)

    def bind(self, mailbox: VirtualDatagrams) -> None:
        """Take a port for datagrams; a dead peer's is taken over. Raises StartError."""
        taken = self._mailboxes.get(mailbox.address.port)
        if taken is not None and not taken.is_dead:
            raise StartError(f"port {mailbox.address.port} is taken")
        self._mailboxes[mailbox.address.port] = mailbox

    def send_datagram(self, sender: VirtualDatagrams, payload: bytes, to: Address) -> None:
        """Let a datagram travel."""
        self.trace(sender.name, f"datagram to {to.port}", _digest(payload))
        if not self.passes(sender.name, to.port) or self._chance.random() < self.weather.lost:
            return
        carrying_s = self._carrying_s(sender.name, to.port, len(payload))
        self._let_travel(self._delay_s() + carrying_s, sender.address, payload, to)
        if self.weather.doubled and self._chance.random() < self.weather.doubled:
            self._let_travel(self._chance.uniform(0, DOUBLED_WITHIN_S) + self._delay_s(), sender.address, payload, to)

    def _let_travel(self, for_s: float, sender: Address, payload: bytes, to: Address) -> None:
        # On a grid, so that what arrives at nearly the same moment takes one turn.
        at = math.ceil((self._time.current_time() + for_s) / GRID_S) * GRID_S
        self._time.call_at(at, partial(self._deliver, sender, payload, to))

    def _deliver(self, sender: Address, payload: bytes, to: Address) -> None:
        mailbox = self._mailboxes.get(to.port)
        if mailbox is not None:
            mailbox.put(payload, sender)


class VirtualDatagrams:
    """See `peer.world.env.Datagrams`."""

    INBOX_MAX = 1000

    def __init__(self, network: Network, name: str, address: Address) -> None:
        self._network = network
        self.name = name
        self.address = address
        self._send, self._receive = trio.open_memory_channel[tuple[bytes, Address]](self.INBOX_MAX)
        self.is_dead = False
        network.bind(self)

    async def send(self, payload: bytes, to: Address) -> None:
        # No checkpoint: it would double what a datagram costs, and nobody cancels a task that sends one.
        if not self.is_dead:
            self._network.send_datagram(self, payload, to)

    async def receive(self) -> tuple[bytes, Address]:
        return await self._receive.receive()

    def put(self, payload: bytes, sender: Address) -> None:
        """A datagram arrives; a full inbox loses it."""
        try:
            self._send.send_nowait((payload, sender))
        except trio.WouldBlock:
            return


class VirtualListener:
    """A port on which a peer's app is served."""

    def __init__(self, network: Network, app: AsgiApp, address: Address, name: str) -> None:
        self._network = network
        self.app = app
        self._address = address
        self.name = name
        self.nursery: trio.Nursery | None = None
        self._closed = trio.Event()
        self.running = 0
        self.idle = trio.Event()
        network.listen(self)

    @property
    def address(self) -> Address:
        return self._address

    async def serve(self) -> None:
        try:
            async with trio.open_nursery() as self.nursery:
                await self._closed.wait()
        finally:
            self.nursery = None
            self._network.leave(self)

    def close(self) -> None:
        self._network.leave(self)
        self._closed.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a running request."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
                self.idle = trio.Event()

    def abort(self) -> None:
        """End everything that runs here."""
        self.close()
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()


class VirtualHttpServer:
    """See `peer.world.env.HttpServer`."""

    def __init__(self, network: Network, app: AsgiApp) -> None:
        self._network = network
        self._app = app
        self._listeners: list[VirtualListener] = []

    async def listen(self, address: Address, *, name: str, shared: bool) -> Sequence[Listener]:
        await trio.lowlevel.checkpoint()
        listener = VirtualListener(self._network, self._app, address, name)
        self._listeners.append(listener)
        return [listener]

    async def check(self, address: Address, *, shared: bool) -> None:
        await trio.lowlevel.checkpoint()

    async def shut_down(self, grace_s: float) -> None:
        for listener in self._listeners:
            self._network.leave(listener)
        with trio.move_on_after(grace_s):
            for listener in self._listeners:
                while listener.running:
                    await listener.idle.wait()
        for listener in self._listeners:
            listener.abort()


class VirtualTransport(httpx.AsyncBaseTransport):
    """Carries a node's requests to other nodes' apps."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {})
        assert isinstance(request.stream, httpx.AsyncByteStream)
        sent = _Sent(
            request.method,
            request.url.raw_path,
            [(name.lower(), value) for name, value in request.headers.raw],
            request.url.port or 80,
            b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else request.stream,
            _or_for_ever(timeout.get("connect")),
            _or_for_ever(timeout.get("read")),
        )
        cycle, stream = await _ask(self._network, self._name, sent)
        return httpx.Response(cycle.status or 500, headers=cycle.headers, stream=stream, request=request)


class VirtualRequests:
    """See `peer.world.env.HttpRequests`; a connection is made for each."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._name = name

    async def request(self, address: Address, request: HttpRequest) -> HttpAnswer:
        headers = [("host", str(address)), *request.headers, ("content-length", str(len(request.body)))]
        sent = _Sent(
            request.method,
            request.target.encode("ascii"),
            [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers],
            address.port,
            request.body,
            request.connect_timeout_s,
            _or_for_ever(request.silence_timeout_s),
        )
        try:
            cycle, stream = await _ask(self._network, self._name, sent)
            content = bytearray()
            try:
                async for piece in stream:
                    content += piece
                    if len(content) > request.answer_bytes_max:
                        raise RequestFailed("the answer is too long")
            finally:
                await stream.aclose()
        except httpx.HTTPError as error:
            raise RequestFailed(str(error)) from error
        fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in cycle.headers}
        return HttpAnswer(cycle.status or 500, bytes(content), fields)

    def close(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request on its way; time-outs in seconds, infinite for none."""

    method: str
    raw_path: bytes
    headers: list[tuple[bytes, bytes]]
    port: int
    body: bytes | httpx.AsyncByteStream
    connect_timeout_s: float
    read_timeout_s: float


async def _ask(network: Network, name: str, sent: _Sent) -> tuple[_Cycle, _ResponseStream]:
    """Carry a request to the app at its port, and the beginning of the answer back. Raises httpx.HTTPError."""
    port = sent.port
    shown = _digest(sent.body) if isinstance(sent.body, bytes) else "streamed"
    network.trace(name, f"{sent.method} {port} {sent.raw_path.decode()}", shown)
    await network.delay()
    if isinstance(sent.body, bytes):
        await network.delay_piece(name, port, len(sent.body))
    if not network.passes(name, port):
        await _time_out(sent.connect_timeout_s, httpx.ConnectTimeout)
    listener = network.server_at(port)
    if listener is None or listener.nursery is None:
        raise httpx.ConnectError(f"port {port} refuses connections")
    fate = network.fate()
    if fate is Fate.RESET and isinstance(sent.body, bytes):
        raise httpx.WriteError("the connection broke")
    cycle = _Cycle(listener, sent, network, name)
    listener.nursery.start_soon(cycle.serve)
    if not isinstance(sent.body, bytes):
        await cycle.send_body(breaks=fate is Fate.RESET)
    with trio.move_on_after(sent.read_timeout_s):
        await cycle.started.wait()
        await network.delay()
        if cycle.status is None or fate is Fate.UNANSWERED:
            raise httpx.ReadError("the peer hung up")
        if fate is Fate.SILENT or not network.passes_back(port, name):
            await _time_out(sent.read_timeout_s, httpx.ReadTimeout)
        network.trace(name, f"answer from {port}", str(cycle.status))
        breaks_at = network.draw(BREAKS_WITHIN_PIECES) if fate is Fate.CUT_OFF else None
        return cycle, _ResponseStream(cycle, sent.read_timeout_s, breaks_at)
    raise httpx.ReadTimeout("no answer")


class _Cycle:
    """One request at the serving end."""

    BODY_PIECES_MAX = 4

    def __init__(self, listener: VirtualListener, sent: _Sent, network: Network, sender: str) -> None:
        self.network = network
        self.sender = sender
        self.port = sent.port
        self._listener = listener
        self._sent = sent
        self._body_is_whole = self._body_is_read = False
        if not isinstance(sent.body, bytes):
            self._send_body, self._body = trio.open_memory_channel[bytes](self.BODY_PIECES_MAX)
        self.started = trio.Event()
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self._send, self.pieces = trio.open_memory_channel[bytes](self.BODY_PIECES_MAX)
        self.is_whole = False

    async def send_body(self, *, breaks: bool) -> None:
        """Send a body that is made piece by piece; what is left of it is dropped once the answer has begun.

        Raises httpx.WriteError if it `breaks`.
        """
        assert not isinstance(self._sent.body, bytes)
        left = self.network.draw(BREAKS_WITHIN_PIECES) if breaks else math.inf
        with trio.CancelScope() as sending, self._send_body:
            async with helper_tasks() as nursery:
                nursery.start_soon(self._stop_when_started, sending)
                async for piece in self._sent.body:
                    if left <= 0:
                        raise httpx.WriteError("the connection broke")
                    left -= 1
                    await self.network.delay_piece(self.sender, self.port, len(piece))
                    await self._send_body.send(piece)
                self._body_is_whole = True

    async def _stop_when_started(self, sending: trio.CancelScope) -> None:
        await self.started.wait()
        sending.cancel()

    async def serve(self) -> None:
        """Run the app, in the nursery of its peer."""
        MACHINE.set(name := self.network.owner_of.get(self.port))
        if name is not None and self.network.pauses.is_paused(name):
            await trio.lowlevel.checkpoint()
        with self._listener.counted():
            try:
                await self._answer(self._listener.app, self._scope())
            # As in the real server: what the app did not begin to answer is answered for it, and an answer it began
            # ends the connection.
            except Exception:  # noqa: BLE001
                self.is_whole = self.status is None
                self.status = self.status or 500
            finally:
                self._send.close()
                self.started.set()

    async def _answer(self, app: AsgiApp, scope: dict[str, Any]) -> None:
        whole = app.at_once(scope) if self._sent.body == b"" and isinstance(app, AnswersAtOnce) else None
        if whole is None:
            await app(scope, self._receive, self._on_message)
            return
        await self._on_message({"type": "http.response.start", "status": 200, "headers": whole.headers})
        body = b"" if self._sent.method == "HEAD" else whole.content
        await self._on_message({"type": "http.response.body", "body": body})

    def _scope(self) -> dict[str, Any]:
        path, _, query = self._sent.raw_path.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self._sent.method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self._sent.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", self.port),
            "state": {"listener": self._listener.name},
            "extensions": {},
        }

    async def _receive(self) -> dict[str, Any]:
        if self._body_is_read:
            # Nothing more will come; a client that leaves is noticed when it is answered.
            await trio.sleep_forever()
        if isinstance(self._sent.body, bytes):
            self._body_is_read = True
            return {"type": "http.request", "body": self._sent.body, "more_body": False}
        try:
            return {"type": "http.request", "body": await self._body.receive(), "more_body": True}
        except trio.EndOfChannel:
            self._body_is_read = True
        if self._body_is_whole:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.started.set()
            body = bytes(message.get("body", b""))
            # An empty piece is no end.
            if body:
                await self._send.send(body)
            self.is_whole = not message.get("more_body", False)


class _ResponseStream(httpx.AsyncByteStream):
    """The answer's body at the asking end."""

    def __init__(self, cycle: _Cycle, timeout_s: float, breaks_at: int | None) -> None:
        self._left = math.inf if breaks_at is None else breaks_at
        self._cycle = cycle
        self._timeout_s = timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        cycle = self._cycle
        while True:
            with trio.move_on_after(self._timeout_s) as limit:
                try:
                    piece = await cycle.pieces.receive()
                except trio.EndOfChannel:
                    break
                await cycle.network.delay_piece(cycle.port, cycle.sender, len(piece))
            if self._left <= 0:
                raise httpx.ReadError("the connection broke")
            self._left -= 1
            if limit.cancelled_caught:
                raise httpx.ReadTimeout("the answer stopped")
            yield piece
        if not self._cycle.is_whole:
            raise httpx.ReadError("the peer hung up")

    async def aclose(self) -> None:
        self._cycle.pieces.close()


async def _time_out(after_s: float, kind: type[httpx.TimeoutException]) -> None:
    await trio.sleep(after_s)
    raise kind("nothing came back")


def _or_for_ever(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else timeout_s


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=8).hexdigest()
