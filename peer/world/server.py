"""An ASGI 3 server for HTTP/1.1 on trio, made for large bodies and for clients that stall.

A connection is one task, most of its life in one cancel scope whose deadline moves along. It receives only while it
waits for a request or the app for a body, so the kernel holds back a client that is faster than the app. There are no
threads. A response that cannot be completed ends in a reset, never in what a client could take for its end.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import trio

from peer.world.connection import DEFAULT_LIMITS, ASGIApp, Connection, Limits, Port, Site

log = logging.getLogger("minidfs.http")

LISTENER_CHECK_S = 0.5
"""When another thread closes a listener, the kernel tells nobody; we look this often."""
ACCEPT_BACK_OFF_S = 0.1
"""After a failed accept, for example without a file descriptor left: new connections wait in the kernel's queue."""

_LISTENER_GONE = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


class Server:
    """Serves one ASGI app on any number of listeners."""

    def __init__(self, app: ASGIApp, limits: Limits = DEFAULT_LIMITS, wall_s: Callable[[], float] = time.time) -> None:
        self._site = Site(app, limits, wall_s)
        self._ports: list[Port] = []
        self._stopping = False

    @property
    def requests_running(self) -> int:
        """How many are being answered now."""
        return self._site.requests_running

    @property
    def connections(self) -> int:
        """How many are open now."""
        return sum(len(port.connections) for port in self._ports)

    async def serve(self, listener: trio.SocketListener, name: str) -> None:
        """Serve until the listener is closed or the server shut down; requests find the name in their scope's state.

        Owns the listener. When that is closed, idle connections are closed too, and this returns after the last
        running request. On Linux another thread should `shutdown` the bare socket, which is noticed at once. Where it
        has to `close` it, that takes up to LISTENER_CHECK_S, and until then whoever opens a socket with the same
        number may get trio.BusyResourceError.
        """
        port = Port(name)
        self._ports.append(port)
        try:
            with port.lifetime:
                async with trio.open_nursery() as nursery:
                    with port.accepting:
                        await self._accept(listener, port, nursery)
                    listener.socket.close()
                    port.retire()
        finally:
            listener.socket.close()
            self._ports.remove(port)
            port.ended.set()

    async def shut_down(self, grace_s: float) -> None:
        """Stop accepting, close idle connections, let requests run on for grace_s at most; then nothing is left."""
        self._stopping = True
        for port in self._ports:
            port.lifetime.deadline = trio.current_time() + grace_s
            port.accepting.cancel()
        while self._ports:
            await self._ports[0].ended.wait()

    async def _accept(self, listener: trio.SocketListener, port: Port, nursery: trio.Nursery) -> None:
        while not self._stopping and listener.socket.fileno() != -1:
            try:
                with trio.move_on_after(LISTENER_CHECK_S):
                    self._welcome(*await listener.socket.accept(), port, nursery)
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _LISTENER_GONE:
                    return
                log.warning("cannot accept on the %s port: %s", port.name, error)
                await trio.sleep(ACCEPT_BACK_OFF_S)

    def _welcome(self, accepted: trio.socket.SocketType, address: Any, port: Port, nursery: trio.Nursery) -> None:
        sock = socket.socket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # Its number may be that of a listener which another thread closed and a task still waits for.
        trio.lowlevel.notify_closing(sock)
        connection = Connection(self._site, port, sock, address)
        if not self._site.admit(connection):
            sock.close()
            return
        port.connections[connection] = None
        nursery.start_soon(connection.run)
