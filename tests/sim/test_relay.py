"""The relay between real peers: what it is given arrives as it was sent, or as its rules say."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from peer.cluster import free_base_port
from sim.relay import HOST, Relay

DEADLINE_S = 20
QUIET_S = 0.3
"""What has not come after so long does not come."""


def requests_of(name: str) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nUser-Agent: minidfs/1.0 ({name})\r\n\r\n".encode()


async def socket_of(port: int) -> trio.socket.SocketType:
    made = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await made.bind((HOST, port))
    return made


class Two:
    """Two peers, as far as the relay is concerned: they echo what comes over connections."""

    def __init__(self, relay: Relay, sockets: dict[str, trio.socket.SocketType]) -> None:
        self.relay = relay
        self.sockets = sockets

    async def send(self, sender: str, receiver: str, payload: bytes) -> None:
        await self.sockets[sender].sendto(payload, (HOST, self.relay.port_of[receiver]))

    async def arrives(self, receiver: str) -> tuple[bytes, int] | None:
        with trio.move_on_after(QUIET_S):
            payload, (_, port) = await self.sockets[receiver].recvfrom(1000)
            return payload, port
        return None

    async def connect(self, sender: str, receiver: str) -> trio.SocketStream:
        stream = await trio.open_tcp_stream(HOST, self.relay.port_of[receiver])
        await stream.send_all(requests_of(sender))
        return stream


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := await stream.receive_some(size - len(found))):
        found += piece
    return found


@asynccontextmanager
async def two() -> AsyncIterator[Two]:
    async def echo(stream: trio.SocketStream) -> None:
        async for piece in stream:
            await stream.send_all(piece)

    base = free_base_port(4)
    ports = {"a": base, "b": base + 1}
    sockets = {name: await socket_of(port) for name, port in ports.items()}
    async with trio.open_nursery() as nursery:
        for port in ports.values():
            await nursery.start(trio.serve_tcp, echo, port)
        relay = Relay(ports, {"a": base + 2, "b": base + 3}, random.Random(1))
        await nursery.start(relay.run)
        yield Two(relay, sockets)
        nursery.cancel_scope.cancel()
    for made in sockets.values():
        made.close()


def with_two(test: Callable[[Two], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            with trio.fail_after(DEADLINE_S):
                async with two() as peers:
                    await test(peers)

        trio.run(main)

    return run


@with_two
async def _datagrams(peers: Two) -> None:
    await peers.send("a", "b", b"hello")
    assert await peers.arrives("b") == (b"hello", peers.relay.port_of["a"])
    peers.relay.cut("a", "b")
    await peers.send("a", "b", b"lost")
    await peers.send("b", "a", b"other way")
    assert await peers.arrives("b") is None
    assert await peers.arrives("a") == (b"other way", peers.relay.port_of["b"])
    peers.relay.mend()
    peers.relay.rule("a", "b").lost = 1.0
    await peers.send("a", "b", b"lost")
    assert await peers.arrives("b") is None
    peers.relay.mend()
    peers.relay.rule("a", "b").late_s = 0.01
    await peers.send("a", "b", b"late")
    assert await peers.arrives("b") == (b"late", peers.relay.port_of["a"])


def test_datagrams_come_from_where_their_sender_is_found_and_a_cut_or_loss_takes_those_of_one_way() -> None:
    _datagrams()


@with_two
async def _connections(peers: Two) -> None:
    head = requests_of("a")
    async with await peers.connect("a", "b") as stream:
        assert await receive(stream, len(head)) == head
        content = random.Random(2).randbytes(3_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, content)
            assert await receive(stream, len(content)) == content
        peers.relay.cut("a", "b")
        await stream.send_all(b"held")
        with trio.move_on_after(QUIET_S) as quiet:
            await stream.receive_some(10)
        assert quiet.cancelled_caught
        # What it answers is cut as well.
        async with await peers.connect("b", "a") as other:
            with trio.move_on_after(QUIET_S) as quiet:
                await other.receive_some(10)
            assert quiet.cancelled_caught
            peers.relay.mend()
            assert await receive(other, len(head)) == requests_of("b")
        assert await receive(stream, 4) == b"held"


def test_a_cut_holds_a_connection_up_and_mending_it_brings_what_was_sent_meanwhile() -> None:
    _connections()


@with_two
async def _closed(peers: Two) -> None:
    async with await peers.connect("a", "b") as stream:
        assert await receive(stream, 5) == b"POST "
        peers.relay.close("b")
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(100):
                pass
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(HOST, peers.relay.port_of["b"])
    await peers.relay.open("b")
    async with await peers.connect("a", "b") as stream:
        assert await receive(stream, 5) == b"POST "


def test_a_closed_port_breaks_connections_and_refuses_new_ones_until_it_is_open_again() -> None:
    _closed()
