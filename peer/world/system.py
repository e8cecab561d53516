"""The real world of a peer: this machine's clock, chance and threads, with its disk and its sockets."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import TypeVar

import httpx
import outcome
import trio

from peer.config import Address, is_numeric
from peer.world.disk import SystemDisk
from peer.world.env import AsgiApp, Clock, Datagrams, Disk, HttpRequests, HttpServer, Work
from peer.world.outgoing import SystemRequests
from peer.world.sockets import SystemDatagrams, SystemHttpServer, bound, shares_ports

T = TypeVar("T")

THREADS = {Work.HASH: 2, Work.DISK: 8}
"""At most so many calls of a kind at once, each kind on threads of its own."""

DATABASE_WORK = (Work.DATABASE_WRITE, Work.DATABASE_READ)

KEEP_ALIVE_CONNECTIONS = 64
STALL_LOOKS = 8
"""Looks at the event loop within the time it may stand still."""


class SystemClock:
    """trio's clock, readable from any thread, and the machine's wall clock."""

    def __init__(self) -> None:
        self._clock = trio.lowlevel.current_clock()

    def now(self) -> float:
        return self._clock.current_time()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


# --- threads ---


class _Thread:
    """One thread that makes calls one after the other; it ends when this object is forgotten."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_make_calls, args=(self._calls,), name=name, daemon=True)
        self._is_started = False
        weakref.finalize(self, self._calls.put, None)

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Make a call there; once it is asked for, it is made and waited for, cancelled or not."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        await trio.lowlevel.checkpoint_if_cancelled()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        results: list[outcome.Outcome[T]] = []

        def make() -> None:
            results.append(outcome.capture(call, *args))
            # The world has ended without us: a shutdown left a hung call behind.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._calls.put(make)
        with trio.CancelScope(shield=True):
            await done.wait()
        return results.pop().unwrap()


def _make_calls(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (make := calls.get()) is not None:
        make()
        del make


# --- all of it ---


class SystemEnv:
    """See `peer.world.env.Env`; made inside the trio run it is for."""

    def __init__(self, data: Path, *, syncs: bool = True) -> None:
        self.clock: Clock = SystemClock()
        self.disk: Disk = SystemDisk(data, syncs=syncs)
        self.version = _version()
        self.shares_ports = shares_ports()
        self._limiters = {work: trio.CapacityLimiter(threads) for work, threads in THREADS.items()}
        self._threads = {work: _Thread(work.name.lower().replace("_", " ")) for work in DATABASE_WORK}

    def chance(self, stream: str) -> Random:
        # The system's own, drawn anew each time: a generator with a state would come to the same numbers again in a
        # process image that is resumed twice, and epochs must not.
        return secrets.SystemRandom()

    async def run_blocking(self, work: Work, call: Callable[..., T], *args: object) -> T:
        if work in self._threads:
            return await self._threads[work].run(call, *args)
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiters[work])

    async def resolve(self, address: Address) -> Sequence[Address]:
        if is_numeric(str(address)):
            await trio.lowlevel.checkpoint()
            return (address,)
        try:
            found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return (address,)
        return tuple(dict.fromkeys(Address(str(where[0]), address.port) for *_, where in found))

    async def open_datagrams(self, address: Address) -> Datagrams:
        return SystemDatagrams(await bound(address, socket.SOCK_DGRAM, shared=False))

    def http_transport(self) -> httpx.AsyncBaseTransport:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEEP_ALIVE_CONNECTIONS)
        return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)

    def http_requests(self) -> HttpRequests:
        return SystemRequests()

    def http_server(self, app: AsgiApp) -> HttpServer:
        return SystemHttpServer(app)

    def watch_stalls(self, limit_s: float, on_stall: Callable[[], None]) -> AbstractContextManager[None]:
        return _watch_stalls(limit_s, on_stall)


@contextmanager
def _watch_stalls(limit_s: float, on_stall: Callable[[], None]) -> Iterator[None]:
    """A thread asks the event loop for a sign of life, again and again."""
    token = trio.lowlevel.current_trio_token()
    beat = threading.Event()
    over = threading.Event()

    def watch() -> None:
        last_beat = time.monotonic()
        while not over.wait(limit_s / STALL_LOOKS):
            if beat.is_set():
                beat.clear()
                last_beat = time.monotonic()
            try:
                token.run_sync_soon(beat.set, idempotent=True)
            except trio.RunFinishedError:
                return
            if time.monotonic() - last_beat > limit_s:
                on_stall()
                last_beat = time.monotonic()

    threading.Thread(target=watch, name="stall watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _version() -> str:
    try:
        return version("minidfs")
    except PackageNotFoundError:
        return "unknown"
