"""The real world of a peer: this machine's clock, files, threads and sockets.

Where systems differ, the difference is one small function here: folders cannot be synced on Windows, macOS needs its
own call to get bytes to the disk, and only some let several processes listen on one port.
"""

from __future__ import annotations

import errno
import os
import queue
import secrets
import shutil
import socket
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import httpx
import outcome
import trio

from peer.config import Address
from peer.world.env import (
    AsgiApp,
    ChunkMissing,
    Clock,
    Datagrams,
    Disk,
    FileIdentity,
    HttpServer,
    Listener,
    NoSpace,
    StartError,
    StoreError,
    Work,
)
from peer.world.server import Server

T = TypeVar("T")

THREADS = {Work.HASH: 2, Work.DISK: 8}
"""At most so many calls of a kind at once, each kind on threads of its own."""

DATABASE_WORK = (Work.DATABASE_WRITE, Work.DATABASE_READ)

KEEP_ALIVE_CONNECTIONS = 64
DATAGRAM_BUFFER_BYTES = 65_536
LISTEN_BACKLOG = 1024
DATABASE_CACHE_KIB = 16 * 1024
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


# --- disk ---


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The system's errors as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise ChunkMissing(f"{what}: there is no such file") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("the disk is full; make room, or add a peer") from error
        raise StoreError(f"{what}: {error.strerror}") from error


def sync_file(descriptor: int) -> None:
    """Bytes on the disk, past its cache where a system makes a difference."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Names in a folder on the disk; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


class SystemFile:
    """An open file for reading, see `peer.env.ReadableFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)

    def read_at(self, offset: int, size: int) -> bytes:
        with _translated(f"reading {self._path.name}"):
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), size, offset)
            self._file.seek(offset)
            return self._file.read(size)

    def identity(self) -> FileIdentity:
        with _translated(f"looking at {self._path.name}"):
            found = os.fstat(self._file.fileno())
        return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def handle(self) -> Any | None:
        return self._file

    def close(self) -> None:
        self._file.close()


class SystemNewFile:
    """A file being written, see `peer.env.WritableFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)

    def write(self, piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        with _translated(f"writing {self._path.name}"):
            while rest:
                rest = rest[self._file.write(rest) or 0 :]

    def sync(self) -> None:
        with _translated(f"syncing {self._path.name}"):
            sync_file(self._file.fileno())

    def close(self) -> None:
        with _translated(f"closing {self._path.name}"):
            self._file.close()


class SystemDatabaseFile:
    """A database on disk in WAL mode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _connect(self) -> sqlite3.Connection:
        # From Python 3.12 on, two threads that use one connection get rows of each other's statements.
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=True, cached_statements=256, timeout=30
        )
        connection.execute(f"PRAGMA cache_size = -{DATABASE_CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        # Has an effect on a new database only: its size can follow the files there are, not those there ever were.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Only macOS knows a difference between the two syncs.
        connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA checkpoint_fullfsync = 1")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def connect_reader(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def pin(self) -> sqlite3.Connection:
        connection = self.connect_reader()
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM meta").fetchone()
        return connection


class SystemDisk:
    """A data folder of this machine, see `peer.env.Disk`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def lock(self) -> Iterator[None]:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for above in self._root.absolute().parents:
                # Folders above that are not ours to open, or that cannot be synced, were there before us.
                with suppress(OSError):
                    sync_folder(above)
            file = (self._root / "lock").open("a+b")
        except OSError as error:
            raise StartError(f"cannot use the data folder {self._root}: {error.strerror}") from error
        with file:
            if not try_lock(file.fileno()):
                raise StartError(f"another peer uses the data folder {self._root}; stop it, or use another folder")
            yield

    def make_folder(self, path: str) -> None:
        folder = self._root / path
        with _translated(f"making the folder {path}"):
            folder.mkdir(parents=True, exist_ok=True)
            # Also of one that was there already: a kill may have come before its name was synced.
            for above in (folder, *folder.parents):
                if above == self._root:
                    break
                sync_folder(above.parent)

    def list_files(self, folder: str) -> list[tuple[str, int]]:
        try:
            with os.scandir(self._root / folder) as entries:
                return sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot list the folder {folder}: {error.strerror}") from error

    def create(self, path: str) -> SystemNewFile:
        with _translated(f"creating {path}"):
            return SystemNewFile(self._root / path)

    def allocate(self, path: str, size: int) -> None:
        try:
            with _translated(f"setting {size} bytes aside"), (self._root / path).open("xb") as file:
                if not _fallocate(file.fileno(), size):
                    # Of zeros some file systems make a hole.
                    file.write(secrets.token_bytes(size))
                    file.flush()
                sync_file(file.fileno())
        except StoreError:
            self.remove(path)
            raise

    def rename(self, old: str, new: str) -> None:
        with _translated(f"renaming {old}"):
            (self._root / old).rename(self._root / new)

    def sync_folder(self, folder: str) -> None:
        with _translated(f"syncing the folder {folder}"):
            sync_folder(self._root / folder)

    def open(self, path: str) -> SystemFile:
        with _translated(f"opening {path}"):
            return SystemFile(self._root / path)

    def remove(self, path: str) -> None:
        with _translated(f"removing {path}"), suppress(FileNotFoundError):
            (self._root / path).unlink()

    def free_bytes(self) -> int:
        with _translated("measuring the disk"):
            return shutil.disk_usage(self._root).free

    def total_bytes(self) -> int:
        with _translated("measuring the disk"):
            return shutil.disk_usage(self._root).total

    def database(self, path: str) -> SystemDatabaseFile:
        return SystemDatabaseFile(self._root / path)


def _fallocate(descriptor: int, size: int) -> bool:
    """Give a file its space without writing to it; False where that cannot be done."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; False when another has it. The system unlocks it when the process ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- network ---


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
    """Our server on this machine's ports, see `peer.env.HttpServer`."""

    def __init__(self, app: AsgiApp) -> None:
        self._server = Server(app)

    async def listen(self, address: Address, *, name: str, shared: bool) -> Sequence[Listener]:
        sockets = [await _bound(address, socket.SOCK_STREAM, shared=shared)]
        if address.host == "127.0.0.1":
            port = sockets[0].getsockname()[1]
            with suppress(_NoSuchAddress):
                sockets.append(await _bound(Address("::1", port), socket.SOCK_STREAM, shared=shared))
        for sock in sockets:
            sock.listen(LISTEN_BACKLOG)
        return [SystemListener(self._server, sock, name) for sock in sockets]

    async def shut_down(self, grace_s: float) -> None:
        await self._server.shut_down(grace_s)


class _NoSuchAddress(StartError):
    """This machine has no such address."""


def _shares_ports() -> bool:
    """Whether connections to a port that several processes listen on are shared out among them."""
    return hasattr(socket, "SO_REUSEPORT") and sys.platform.startswith(("linux", "freebsd"))


async def _bound(address: Address, kind: socket.SocketKind, *, shared: bool) -> trio.socket.SocketType:
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
        if shared and _shares_ports():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {address.port} is taken; stop what uses it, or choose another") from error
        raise _NoSuchAddress(f"cannot listen on {address}: {error.strerror}") from error
    return sock


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
    """See `peer.env.Env`; made inside the trio run it is for."""

    def __init__(self, data: Path) -> None:
        self.clock: Clock = SystemClock()
        self.disk: Disk = SystemDisk(data)
        self.version = _version()
        self.shares_ports = _shares_ports()
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

    async def open_datagrams(self, address: Address) -> Datagrams:
        return SystemDatagrams(await _bound(address, socket.SOCK_DGRAM, shared=False))

    def http_transport(self) -> httpx.AsyncBaseTransport:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEEP_ALIVE_CONNECTIONS)
        return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)

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
