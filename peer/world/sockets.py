"""This machine's ports: datagrams, and listeners for our HTTP server.

Only some systems share connections to one port out among several processes that listen on it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

import trio

from peer.config import Address
from peer.world.env import AsgiApp, Listener, StartError
from peer.world.server import Server

DATAGRAM_BUFFER_BYTES = 65_536
LISTEN_BACKLOG = 1024

_SIOCGIFADDR = 0x8915
"""The address of an interface (netdevice(7))."""


class SystemDatagrams:
    """A bound UDP socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock

    async def send(self, payload: bytes, to: Address) -> None:
        # ValueError: a name that cannot be one, for example with a part too long for the name service.
        with suppress(OSError, ValueError):
            await self._socket.sendto(payload, (to.host, to.port))

    async def receive(self) -> tuple[bytes, Address]:
        while True:
            # Windows raises what became of an earlier datagram here.
            with suppress(OSError):
                payload, sender = await self._socket.recvfrom(DATAGRAM_BUFFER_BYTES)
                return payload, Address(sender[0], sender[1])


class SystemListener:
    """A listening socket and the server behind it."""

    def __init__(self, server: Server, sock: trio.socket.SocketType, name: str) -> None:
        self._server = server
        self._socket = sock
        self._listener = trio.SocketListener(sock)
        self._name = name

    @property
    def address(self) -> Address:
        name = self._socket.getsockname()
        return Address(name[0], name[1])

    async def serve(self) -> None:
        await self._server.serve(self._listener, self._name)

    def close(self) -> None:
        # On a listening socket this ends accepting at once, for other processes' benefit, and is safe on any thread:
        # closing it is not, for its number could be used again at the same moment.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class SystemHttpServer:
    """Our server on this machine's ports, see `peer.world.env.HttpServer`."""

    def __init__(self, app: AsgiApp) -> None:
        self._server = Server(app)

    async def listen(self, address: Address, *, name: str, shared: bool) -> Sequence[Listener]:
        sockets = [await bound(address, socket.SOCK_STREAM, shared=shared)]
        if address.host == "127.0.0.1":
            port = sockets[0].getsockname()[1]
            with suppress(_NoSuchAddress):
                sockets.append(await bound(Address("::1", port), socket.SOCK_STREAM, shared=shared))
        for sock in sockets:
            sock.listen(LISTEN_BACKLOG)
        return [SystemListener(self._server, sock, name) for sock in sockets]

    async def check(self, address: Address, *, shared: bool) -> None:
        (await bound(address, socket.SOCK_STREAM, shared=shared)).close()

    async def shut_down(self, grace_s: float) -> None:
        await self._server.shut_down(grace_s)


class _NoSuchAddress(StartError):
    """This machine has no such address."""


def shares_ports() -> bool:
    """Whether connections to a port that several processes listen on are shared out among them."""
    return hasattr(socket, "SO_REUSEPORT") and sys.platform.startswith(("linux", "freebsd"))


def own_host_towards(host: str, port: int, family: socket.AddressFamily) -> str | None:
    """The address of this machine that packets to that place would come from; None when there is no way there.

    Nothing is sent: connecting a datagram socket only looks the way up.
    """
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return None


def own_hosts() -> list[str]:
    """The IPv4 addresses of this machine's interfaces but loopback, where the system tells (Linux)."""
    if not sys.platform.startswith("linux"):
        return []
    import fcntl

    hosts = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                hosts.append(socket.inet_ntoa(answer[20:24]))
    return [host for host in hosts if not Address(host, 0).is_loopback]


async def bound(address: Address, kind: socket.SocketKind, *, shared: bool) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = trio.socket.socket(family, kind)
    except OSError as error:
        raise _NoSuchAddress(f"cannot listen on {address}: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and shares_ports():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {address.port} is taken; stop what uses it, or choose another") from error
        raise _NoSuchAddress(f"cannot listen on {address}: {error.strerror}") from error
    return sock
