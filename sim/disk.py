"""A disk in memory on which what was not synced dies in a crash, and which fails when it is told to.

The platter outlives the peer; a peer works through a mount, which a crash cuts off before anything else happens, so
that no clean-up code writes after the power is gone. A database keeps every commit: its peer asks for a sync at each,
and a transaction here never spans a moment at which a crash could come.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from peer.world.env import DatabaseFile, FileIdentity, FileMissing, NoSpace, StartError, StoreError, Work
from sim.sometimes import CAME_BACK, MET, TORN

TOTAL_BYTES = 1 << 41

WAL_BYTES_MAX = 4 * 1024 * 1024
"""Of a database's write-ahead log, which is written from its start again once it is that long."""

EVENT_LOOP = "event loop"
Thread = Work | str
"""Where a call is made from: the event loop, or the thread of a kind of blocking calls."""


@dataclass(slots=True)
class Faults:
    """How a disk fails: shares of calls, drawn from a stream of its own."""

    chance: Random
    eio: float = 0.0
    """Of all calls and statements: they fail, having done nothing or, if they write, some of it."""
    eio_at_commit: float = 0.0
    """Of commits: they fail, and what they wrote may come back at the next start."""

    def fails(self, share: float) -> bool:
        """Whether a call fails that does so in this share of cases."""
        return share > 0 and self.chance.random() < share


class _File:
    """Bytes under a name; files here are only ever appended to."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.content = bytearray()
        self.synced_size = 0
        self.changes = 0


class Platter:
    """What lies on one peer's disk, in this life and the next. With `loses` a crash takes only some of what it may."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}
        self.folders: dict[str, None] = {"": None}
        self._durable_names: dict[str, _File] = {}
        self._durable_folders: dict[str, None] = {"": None}
        self.databases: dict[str, sqlite3.Connection] = {}
        self.left_behind: dict[str, bytes] = {}
        """Of databases whose last commit failed: what they are if it reached the disk all the same."""
        self.wal_bytes: dict[str, int] = {}
        """How long the write-ahead logs have become, and so stay."""
        self._inodes = 0
        self.mount: Mount | None = None
        self.faults: Faults | None = None
        self.loses: Random | None = None
        self.capacity_bytes = TOTAL_BYTES
        self.saw: Callable[[str], None] = _ignore
        """Is told of what must sometimes happen."""

    def new_file(self) -> _File:
        """A file without a name."""
        self._inodes += 1
        return _File(self._inodes)

    def sync_names(self, folder: str) -> None:
        """The names in a folder are durable as they are now."""
        prefix = f"{folder}/" if folder else ""
        kept = {path: file for path, file in self._durable_names.items() if not _lies_in(path, prefix)}
        now = {path: file for path, file in self.files.items() if _lies_in(path, prefix)}
        self._durable_names = kept | now
        self._durable_folders |= {path: None for path in self.folders if _lies_in(path, prefix)}

    def used_bytes(self) -> int:
        """By files and databases."""
        files = sum(len(file.content) for file in self.files.values())
        return files + sum(map(_size_of, self.databases.values())) + sum(self.wal_bytes.values())

    @property
    def is_dirty(self) -> bool:
        """Whether a power cut could take bytes."""
        return any(file.synced_size < len(file.content) for file in self.files.values())

    def free_bytes(self) -> int:
        """What can still be written."""
        if self.capacity_bytes == TOTAL_BYTES:
            return TOTAL_BYTES // 2
        return max(0, self.capacity_bytes - self.used_bytes())

    def crash(self) -> None:
        """Cut the power: the mount is dead, names and bytes that were not synced are gone."""
        if self.mount is not None:
            self.mount.is_cut = True
            self.mount = None
        self._lose_names()
        for file in {id(file): file for file in self.files.values()}.values():
            kept = self.loses.randint(file.synced_size, len(file.content)) if self.loses else file.synced_size
            if kept < len(file.content):
                self.saw(TORN)
            del file.content[kept:]
            file.synced_size = kept
        for path, connection in self.databases.items():
            assert not connection.in_transaction, "transactions run in one piece here"
            left_behind = self.left_behind.pop(path, None)
            if left_behind is not None and (self.loses is None or self._is_spared()):
                self.saw(CAME_BACK)
                self.databases[path] = database_of(left_behind)

    def _lose_names(self) -> None:
        self.folders = {path: None for path in self.folders if path in self._durable_folders or self._is_spared()}
        names = dict(self._durable_names)
        for path, file in self.files.items():
            if path not in names and self._is_spared():
                names[path] = file
        for path in self._durable_names:
            if path not in self.files and self._is_spared():
                del names[path]
        if len(names) < len(self.files):
            self.saw(TORN)
        self.files = {path: file for path, file in names.items() if path.rpartition("/")[0] in self.folders}
        self._durable_names, self._durable_folders = dict(self.files), dict(self.folders)

    def _is_spared(self) -> bool:
        """Whether something that was not synced outlives a crash all the same."""
        return self.loses is not None and self.loses.random() < 0.5

    def copy(self) -> Platter:
        """A disk with the same on it, everything durable."""
        image = Platter()
        image.folders = dict(self.folders)
        for path, file in self.files.items():
            copied = image.files[path] = image.new_file()
            copied.content += file.content
            copied.synced_size = len(copied.content)
        image._durable_names, image._durable_folders = dict(image.files), dict(image.folders)
        image.databases = {path: database_of(connection.serialize()) for path, connection in self.databases.items()}
        return image


def _ignore(_what: str) -> None:
    """See Platter.saw."""


def _lies_in(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and "/" not in path.removeprefix(prefix)


def _size_of(connection: sqlite3.Connection) -> int:
    (pages,), (page_bytes,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(page_bytes)


class Mount:
    """A peer's view of its disk for one life, see `peer.world.env.Disk`."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.is_cut = False
        self.thread: Thread = EVENT_LOOP
        """Who calls now."""

    def check_power(self) -> None:
        """Raises StoreError after a crash."""
        if self.is_cut:
            raise StoreError("the power is gone")

    def check(self) -> None:
        """Raises StoreError after a crash, and when the disk is to fail."""
        self.check_power()
        faults = self.platter.faults
        if faults is not None and faults.fails(faults.eio):
            raise StoreError("the simulated disk failed: input/output error")

    @contextmanager
    def lock(self) -> Iterator[None]:
        if self.platter.mount is not None:
            raise StartError("another peer uses this disk")
        self.platter.mount = self
        try:
            yield
        finally:
            if self.platter.mount is self:
                self.platter.mount = None

    def make_folder(self, path: str) -> None:
        above = ""
        for part in path.split("/"):
            folder = f"{above}/{part}" if above else part
            self.check()
            self.platter.folders[folder] = None
            self.sync_folder(above)
            above = folder

    def list_files(self, folder: str) -> list[tuple[str, int]]:
        self.check()
        prefix = f"{folder}/" if folder else ""
        return sorted(
            (path.removeprefix(prefix), len(file.content))
            for path, file in self.platter.files.items()
            if _lies_in(path, prefix)
        )

    def _check_folder(self, folder: str) -> None:
        self.check()
        if folder not in self.platter.folders:
            raise FileMissing(f"{folder}: there is no such folder")

    def create(self, path: str) -> NewFile:
        self._check_folder(path.rpartition("/")[0])
        if path in self.platter.files:
            raise StoreError(f"{path} is there already")
        self.platter.files[path] = self.platter.new_file()
        return NewFile(self, self.platter.files[path])

    def allocate(self, path: str, size: int) -> None:
        file = self.create(path)
        try:
            file.write(bytes(size))
            file.sync()
        except StoreError:
            self.platter.files.pop(path)
            raise

    def rename(self, old: str, new: str) -> None:
        self._check_folder(new.rpartition("/")[0])
        if old not in self.platter.files:
            raise FileMissing(f"{old}: there is no such file")
        self.platter.files[new] = self.platter.files.pop(old)

    def sync_folder(self, folder: str) -> None:
        self._check_folder(folder)
        self.platter.sync_names(folder)

    def open(self, path: str) -> OpenFile:
        self.check()
        if path not in self.platter.files:
            raise FileMissing(f"{path}: there is no such file")
        return OpenFile(self, self.platter.files[path])

    def remove(self, path: str) -> None:
        self.check()
        removed = self.platter.files.pop(path, None)
        # A chunk file is named after its content and a serial number.
        content, _, _ = path.rpartition(".")
        if removed is not None and any(other.startswith(f"{content}.") for other in self.platter.files):
            self.platter.saw(MET)

    def free_bytes(self) -> int:
        self.check()
        return self.platter.free_bytes()

    def total_bytes(self) -> int:
        return self.platter.capacity_bytes

    def database(self, path: str) -> DatabaseFile:
        self.check()
        if path not in self.platter.databases:
            self.platter.databases[path] = database_of(b"")
        return VirtualDatabaseFile(self, path)


class NewFile:
    """See `peer.world.env.WritableFile`."""

    def __init__(self, mount: Mount, file: _File) -> None:
        self._mount = mount
        self._file = file

    def write(self, piece: bytes | memoryview) -> None:
        self._mount.check_power()
        fits = min(len(piece), self._mount.platter.free_bytes())
        self._file.content += piece[:fits]
        self._file.changes += 1
        # After it, so that a write that fails may have written.
        self._mount.check()
        if fits < len(piece):
            raise NoSpace("the simulated disk is full")

    def sync(self) -> None:
        self._mount.check()
        self._file.synced_size = len(self._file.content)

    def close(self) -> None:
        """Nothing to give back."""


class OpenFile:
    """See `peer.world.env.ReadableFile`."""

    def __init__(self, mount: Mount, file: _File) -> None:
        self._mount = mount
        self._file = file

    def read_at(self, offset: int, size: int) -> bytes:
        self._mount.check()
        return bytes(self._file.content[offset : offset + size])

    def identity(self) -> FileIdentity:
        return FileIdentity(0, self._file.inode, len(self._file.content), self._file.changes)

    def handle(self) -> Any | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


def database_of(content: bytes) -> sqlite3.Connection:
    """A database in memory with this content; empty without any."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    if content:
        # Not deserialized into it: such a one gives its changes away only after the commit, see `left_behind`.
        source = sqlite3.connect(":memory:", isolation_level=None)
        source.deserialize(content)
        source.backup(connection)
        source.close()
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class VirtualDatabaseFile:
    """All connections of a peer lead to one here: nothing in a simulated run happens at the same time."""

    def __init__(self, mount: Mount, path: str) -> None:
        self._mount = mount
        self._path = path

    def connect_writer(self) -> sqlite3.Connection:
        return cast(sqlite3.Connection, VirtualConnection(self._mount, self._path))

    def connect_reader(self) -> sqlite3.Connection:
        return cast(sqlite3.Connection, VirtualConnection(self._mount, self._path))

    def pin(self) -> sqlite3.Connection:
        pinned = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        pinned.deserialize(self._mount.platter.databases[self._path].serialize())
        return pinned


class VirtualConnection:
    """A connection that belongs to one thread, to a database that stays when its peer closes it."""

    def __init__(self, mount: Mount, path: str) -> None:
        self._mount = mount
        self._path = path
        self._owner = mount.thread
        self._changes_before = 0

    @property
    def _database(self) -> sqlite3.Connection:
        if self._mount.thread != self._owner:
            raise sqlite3.ProgrammingError(f"a connection of {self._owner} is used by {self._mount.thread}")
        return self._mount.platter.databases[self._path]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def __enter__(self) -> VirtualConnection:
        return self

    def __exit__(self, *_: object) -> None:
        """As sqlite3 does where transactions are told by hand: nothing."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """See sqlite3.Connection; here statements may fail."""
        database = self._database
        if self._mount.is_cut:
            raise _failure("the power is gone", sqlite3.SQLITE_IOERR)
        if sql == "COMMIT":
            return self._commit(database)
        if sql == "ROLLBACK":
            # Whatever is reported: what was not committed is in no other connection's sight, and all lead to one here.
            database.execute(sql)
        faults = self._mount.platter.faults
        if faults is not None and faults.fails(faults.eio):
            raise _failure("disk I/O error", sqlite3.SQLITE_IOERR_READ)
        if sql == "ROLLBACK":
            return database.cursor()
        if sql.startswith("BEGIN"):
            self._changes_before = database.total_changes
        return database.execute(sql, *values)

    def _commit(self, database: sqlite3.Connection) -> sqlite3.Cursor:
        platter, faults = self._mount.platter, self._mount.platter.faults
        changes = database.total_changes - self._changes_before
        if changes:
            self._lengthen_wal(changes)
            if faults is not None and faults.fails(faults.eio_at_commit):
                platter.left_behind[self._path] = database.serialize()
                raise _failure("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC)
            platter.left_behind.pop(self._path, None)
        return database.execute("COMMIT")

    def _lengthen_wal(self, changes: int) -> None:
        """A commit appends the pages it changes to the log, which is used from its start again once it is long."""
        platter = self._mount.platter
        length = platter.wal_bytes.get(self._path, 0)
        needed = min(4096 * (1 + changes), max(0, WAL_BYTES_MAX - length))
        if needed > platter.free_bytes():
            raise _failure("database or disk is full", sqlite3.SQLITE_FULL)
        platter.wal_bytes[self._path] = length + needed

    def close(self) -> None:
        """The platter keeps it."""


def _failure(message: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error
