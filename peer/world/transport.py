"""A client's socket: bytes in, bytes and files out, and an end the client can understand. Knows nothing of HTTP.

A bare non-blocking socket, because trio's own goes through the scheduler even when there is nothing to wait for.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

import trio

if sys.platform == "linux":
    import fcntl
    import termios

Buffer = bytes | bytearray | memoryview

FILE_STEP_BYTES = 1024 * 1024
"""Other tasks wait while one step reads from a file; longer steps are hardly faster."""
COPIED_STEP_BYTES = 64 * 1024
"""The same where the system cannot send from a file: what the socket does not take is read again."""
DISCARD_BYTES = 64 * 1024

_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_sendfile: Callable[[int, int, int, int], int] | None = getattr(os, "sendfile", None)


class Transport:
    """One connected socket."""

    def __init__(self, sock: socket.socket, write_timeout_s: float, rate_min: float) -> None:
        self._sock = sock
        self._write_timeout_s = write_timeout_s
        self._rate_min = rate_min
        """Bytes a second the client has to take, where the system tells."""

    def open(self) -> tuple[str, int]:
        """Set the socket up and return its local address; OSError if the client is gone already."""
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port, *_ = self._sock.getsockname()
        return host, port

    async def recv(self, bytes_max: int) -> bytes:
        """Wait for input; b"" if the client sends no more."""
        with suppress(OSError):
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                with suppress(BlockingIOError):
                    return self._sock.recv(bytes_max)
        return b""

    def send_now(self, content: Buffer) -> memoryview:
        """Hand to the kernel what it takes without waiting; returns the rest. OSError if the client is gone."""
        unsent = memoryview(content)
        with suppress(BlockingIOError):
            unsent = unsent[self._sock.send(unsent) :]
        return unsent

    async def send(self, content: Buffer) -> None:
        """Hand everything to the kernel; OSError if the client is gone, or takes too little in the time it has."""
        unsent = memoryview(content)
        while unsent:
            try:
                unsent = unsent[self._sock.send(unsent) :]
            except BlockingIOError:
                await self._wait_room()

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Send a piece of an open file, past Python's memory where the system can."""
        while count:
            try:
                sent = self._send_step(file, offset, count)
            except BlockingIOError:
                await self._wait_room()
            else:
                offset, count = offset + sent, count - sent
                await trio.lowlevel.checkpoint()

    def _send_step(self, file: int, offset: int, count: int) -> int:
        if _sendfile is None:
            return self._sock.send(read_at(file, offset, min(count, COPIED_STEP_BYTES)))
        if sent := _sendfile(self._sock.fileno(), file, offset, min(count, FILE_STEP_BYTES)):
            return sent
        raise EOFError(f"the file ends at {offset}, {count} bytes before the end of what was to be sent")

    async def _wait_room(self) -> None:
        # The kernel wakes us when a third of its buffer is free, not for a byte: before we give up a client that reads
        # slowly, we look whether it took enough.
        before, untaken = math.inf, float(self._untaken_bytes())
        enough = max(1.0, self._rate_min * self._write_timeout_s)
        while before - untaken >= enough:
            with trio.move_on_after(self._write_timeout_s):
                await trio.lowlevel.wait_writable(self._sock)
                return
            before, untaken = untaken, self._untaken_bytes()
        raise TimeoutError(f"the client took nothing, or next to nothing, for {self._write_timeout_s} s")

    def _untaken_bytes(self) -> int:
        """How much the client's machine has not acknowledged; always 0 where the system does not tell."""
        if sys.platform == "linux":
            return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return 0

    async def linger(self, linger_s: float) -> None:
        """End our side, but read on for a while, until the client ends its own: if input came in on a closed socket,
        the reset would overtake our last answer (RFC 9112, 9.6)."""
        self._sock.shutdown(socket.SHUT_WR)
        with trio.move_on_after(linger_s):
            while await self.recv(DISCARD_BYTES):
                pass

    def close(self, *, reset: bool) -> None:
        """Close at once; with `reset`, so that the client cannot take it for an orderly end."""
        if reset:
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


def read_at(file: int, offset: int, count: int) -> bytes:
    """Read so much of an open file; EOFError if there is less."""
    if hasattr(os, "pread"):
        content: bytes = os.pread(file, count, offset)
    else:
        os.lseek(file, offset, os.SEEK_SET)
        content = os.read(file, count)
    if len(content) < count:
        raise EOFError(f"the file ends {count - len(content)} bytes before the end of what was to be sent")
    return content
