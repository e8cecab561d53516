"""All a peer needs of the world: clock, chance, datagrams, HTTP, disk, blocking calls.

`peer/world/system.py` gives a peer the real world, `sim/world.py` a simulated one in which a seed decides everything. A
peer reaches the world through these interfaces and in no other way. Errors of the operating system become kinds of
StoreError or StartError at this border.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import httpx

from peer.config import Address

T = TypeVar("T")

AsgiApp = Callable[..., Any]
"""An ASGI 3 app; it may be one that `AnswersAtOnce` too."""

PEER_PATHS = "/peer/"
"""What peers ask of each other begins so; a server hears it also when there are too many clients."""
FROM_PEER = "from peer"
"""The app sets this in `scope["state"]` of a request that a peer has proven to have sent: its connection is kept."""


@dataclass(slots=True)
class WholeAnswer:
    """An answer of status 200 that is at hand; it can be sent many times."""

    headers: Sequence[tuple[bytes, bytes]]
    """With the length of the content, and without a date and what is said of connections."""
    content: bytes
    head: bytes = b""
    """What a server made of the headers when it sent them first."""


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An app that has the answers to some requests at hand: a task's turn for each would cost more than the answer."""

    def at_once(self, scope: MutableMapping[str, Any]) -> WholeAnswer | None:
        """The answer to a request without a body, which is then sent; None when the app is to be called.

        To HEAD it is the answer to GET, of which the content stays.
        """


class StoreError(Exception):
    """The disk or the database failed us; the message says what and what to do."""


class FileMissing(StoreError):
    """There is no file of this name."""


class NoSpace(StoreError):
    """The disk is full."""


class StartError(Exception):
    """The peer cannot start; one sentence with what and what to do."""


class Removed(StartError):
    """The peer was removed from its cluster for good."""


class Work(Enum):
    """Kinds of blocking calls; each has its own few threads, so that a slow disk never holds up hashing.

    The two kinds for databases have one thread each, always the same: a connection belongs to the thread that opened
    it, which SQLite's binding checks at every call.
    """

    HASH = auto()
    DISK = auto()
    DATABASE_WRITE = auto()
    DATABASE_READ = auto()


class Clock(Protocol):
    """What time it is."""

    def now(self) -> float:
        """Seconds on a clock that never jumps; only differences mean something."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC) on the wall clock, which may be wrong and may jump."""


class FileIdentity(NamedTuple):
    """What stays the same as long as nobody touches a file."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class ReadableFile(Protocol):
    """An open file; it stays readable when its name is removed."""

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end. Raises StoreError."""

    def identity(self) -> FileIdentity:
        """See FileIdentity."""

    def handle(self) -> Any | None:
        """The object with `fileno()` for `sendfile`; None where the file has none."""

    def close(self) -> None:
        """Give the file back."""


class WritableFile(Protocol):
    """A file being written from its start to its end."""

    def write(self, piece: bytes | memoryview) -> None:
        """Append all of `piece`. Raises NoSpace, StoreError."""

    def sync(self) -> None:
        """Return only when everything written would survive a power loss. Raises StoreError."""

    def close(self) -> None:
        """Give the file back; what was not synced may be lost."""


class DatabaseFile(Protocol):
    """One SQLite database, which its connections find in WAL mode.

    A connection is used and closed on the thread that opened it, and raises sqlite3.ProgrammingError on any other.
    """

    def connect_writer(self) -> sqlite3.Connection:
        """The one connection that writes and checkpoints; a commit returns when it would survive a power loss."""

    def connect_reader(self) -> sqlite3.Connection:
        """A connection that can only read."""

    def pin(self) -> sqlite3.Connection:
        """A reading connection that sees this moment, for ever; close it soon, for it keeps the log of changes."""


class Disk(Protocol):
    """A peer's data folder. Paths are relative to it, with `/`. Every call may block: see `Env.run_blocking`."""

    def lock(self) -> AbstractContextManager[None]:
        """Keep every other process out while it is held. Raises StartError when another one has it."""

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, durably; nothing happens when it is there."""

    def list_files(self, folder: str) -> list[tuple[str, int]]:
        """Name and size of each file in a folder, by name; empty when there is no such folder."""

    def create(self, path: str) -> WritableFile:
        """A new empty file. Raises StoreError, also when the name is taken."""

    def allocate(self, path: str, size: int) -> None:
        """A new file that takes up so many bytes, whatever they are. Raises NoSpace, and then there is none."""

    def rename(self, old: str, new: str) -> None:
        """Move a file to a name not yet taken; durable once both folders are synced."""

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable (does nothing where a system cannot)."""

    def open(self, path: str) -> ReadableFile:
        """Raises FileMissing when there is no such file."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is gone already."""

    def free_bytes(self) -> int:
        """What can still be written here."""

    def total_bytes(self) -> int:
        """The size of the file system the folder lies on."""

    def database(self, path: str) -> DatabaseFile:
        """The database of this name, made when there is none."""


class Datagrams(Protocol):
    """A bound datagram socket."""

    async def send(self, payload: bytes, to: Address) -> None:
        """Send, without knowing whether it arrives; a failing network looks like a lost datagram."""

    async def receive(self) -> tuple[bytes, Address]:
        """The next datagram and where it came from."""


class Listener(Protocol):
    """A port on which an app is being served."""

    @property
    def address(self) -> Address:
        """Where it is reached; the port that was picked when 0 was asked for."""

    async def serve(self) -> None:
        """Serve until closed or shut down."""

    def close(self) -> None:
        """Refuse new connections at once; running requests go on. Another thread may call it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request whose body is there as a whole, and whose answer will be."""

    method: str
    target: str
    """Path and query, escaped."""
    headers: tuple[tuple[str, str], ...]
    """Besides `host` and `content-length`."""
    body: bytes
    connect_timeout_s: float
    silence_timeout_s: float | None
    """How long nothing may move; None for ever."""
    answer_bytes_max: int
    """Of its body; a longer one is a failure."""


class HttpAnswer(NamedTuple):
    """What came back, whatever its status."""

    status: int
    content: bytes
    headers: Mapping[str, str]
    """Names in lower case."""


class RequestFailed(Exception):
    """No whole answer came back; whether the request was carried out is unknown."""


class HttpRequests(Protocol):
    """Sends whole requests, over connections it keeps."""

    async def request(self, address: Address, request: HttpRequest) -> HttpAnswer:
        """Ask, and wait for the answer.

        When a kept connection turns out to be closed the request is sent once more: it must do no harm to carry it out
        twice. Raises RequestFailed.
        """

    def close(self) -> None:
        """Close the connections that are kept."""


class HttpServer(Protocol):
    """Serves one app on any number of ports."""

    async def listen(self, address: Address, *, name: str, shared: bool) -> Sequence[Listener]:
        """Take a port; with `shared`, other peers of this machine may listen on it too.

        The app finds `name` in `scope["state"]["listener"]`. Raises StartError when the port is taken.
        """

    async def check(self, address: Address, *, shared: bool) -> None:
        """Raises StartError when `listen` could not take the port now."""

    async def shut_down(self, grace_s: float) -> None:
        """Refuse new requests, give running ones this long to finish, then end them."""


class Env(Protocol):
    """One peer's world."""

    clock: Clock
    disk: Disk
    version: str
    shares_ports: bool
    """Whether several peers can listen on one facade port at once."""

    def chance(self, stream: str) -> Random:
        """The random stream of one concern; a draw from one never shifts another."""

    async def run_blocking(self, work: Work, call: Callable[..., T], *args: object) -> T:
        """Run a call that may block. When cancelled, waits for it, except at shutdown."""

    async def resolve(self, address: Address) -> Sequence[Address]:
        """All that a name stands for; the address itself where it is none, or cannot be looked up."""

    async def open_datagrams(self, address: Address) -> Datagrams:
        """Bind a datagram socket. Raises StartError when the port is taken."""

    def http_transport(self) -> httpx.AsyncBaseTransport:
        """What carries this peer's requests to other peers, streamed ones too."""

    def http_requests(self) -> HttpRequests:
        """What carries this peer's whole requests to other peers, for less."""

    def http_server(self, app: AsgiApp) -> HttpServer:
        """A server for this peer's app."""

    def watch_stalls(self, limit_s: float, on_stall: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `on_stall`, from another thread, when the event loop has not turned for `limit_s`."""
