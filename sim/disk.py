"""A disk in memory on which what was not synced dies in a crash.

The platter outlives the peer; a peer works through a mount, which a crash cuts off before anything else happens, so
that no clean-up code writes after the power is gone. A database keeps every commit: its peer asks for a sync at each,
and a transaction here never spans a moment at which a crash could come.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peer.env import ChunkMissing, DatabaseFile, FileIdentity, StartError, StoreError


class _File:
    """Bytes under a name; files here are only ever appended to."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.content = bytearray()
        self.synced_size = 0
        self.changes = 0


class Platter:
    """What lies on one peer's disk, in this life and the next."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}
        self.folders: dict[str, None] = {"": None}
        self._durable_names: dict[str, _File] = {}
        self.databases: dict[str, sqlite3.Connection] = {}
        self._inodes = 0
        self.mount: Mount | None = None

    def new_file(self) -> _File:
        self._inodes += 1
        return _File(self._inodes)

    def sync_names(self, folder: str) -> None:
        """The names in a folder are durable as they are now."""
        prefix = f"{folder}/"
        kept = {path: file for path, file in self._durable_names.items() if not path.startswith(prefix)}
        now = {path: file for path, file in self.files.items() if path.startswith(prefix)}
        self._durable_names = kept | now

    def crash(self) -> None:
        """Cut the power: the mount is dead, names and bytes that were not synced are gone."""
        if self.mount is not None:
            self.mount.is_cut = True
            self.mount = None
        for file in self._durable_names.values():
            del file.content[file.synced_size :]
        self.files = dict(self._durable_names)
        for connection in self.databases.values():
            assert not connection.in_transaction, "transactions run in one piece here"


class Mount:
    """A peer's view of its disk for one life, see `peer.env.Disk`."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.is_cut = False

    def check(self) -> None:
        """Raises StoreError after a crash."""
        if self.is_cut:
            raise StoreError("the power is gone")

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
        self.check()
        self.platter.folders[path] = None

    def list_files(self, folder: str) -> list[tuple[str, int]]:
        self.check()
        prefix = f"{folder}/"
        names = [
            (path.removeprefix(prefix), file) for path, file in self.platter.files.items() if path.startswith(prefix)
        ]
        return sorted((name, len(file.content)) for name, file in names if "/" not in name)

    def _check_folder(self, folder: str) -> None:
        self.check()
        if folder not in self.platter.folders:
            raise ChunkMissing(f"{folder}: there is no such folder")

    def create(self, path: str) -> NewFile:
        self._check_folder(path.rpartition("/")[0])
        if path in self.platter.files:
            raise StoreError(f"{path} is there already")
        self.platter.files[path] = self.platter.new_file()
        return NewFile(self, self.platter.files[path])

    def rename(self, old: str, new: str) -> None:
        self._check_folder(new.rpartition("/")[0])
        if old not in self.platter.files:
            raise ChunkMissing(f"{old}: there is no such file")
        self.platter.files[new] = self.platter.files.pop(old)

    def sync_folder(self, folder: str) -> None:
        self._check_folder(folder)
        self.platter.sync_names(folder)

    def open(self, path: str) -> OpenFile:
        self.check()
        if path not in self.platter.files:
            raise ChunkMissing(f"{path}: there is no such file")
        return OpenFile(self, self.platter.files[path])

    def remove(self, path: str) -> None:
        self.check()
        self.platter.files.pop(path, None)

    def free_bytes(self) -> int:
        return 1 << 40

    def total_bytes(self) -> int:
        return 1 << 41

    def database(self, path: str) -> DatabaseFile:
        self.check()
        if path not in self.platter.databases:
            self.platter.databases[path] = _connect()
        return VirtualDatabaseFile(self.platter.databases[path])


class NewFile:
    """See `peer.env.WritableFile`."""

    def __init__(self, mount: Mount, file: _File) -> None:
        self._mount = mount
        self._file = file

    def write(self, piece: bytes | memoryview) -> None:
        self._mount.check()
        self._file.content += piece
        self._file.changes += 1

    def sync(self) -> None:
        self._mount.check()
        self._file.synced_size = len(self._file.content)

    def close(self) -> None:
        """Nothing to give back."""


class OpenFile:
    """See `peer.env.ReadableFile`."""

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


class _KeptConnection(sqlite3.Connection):
    """A database that stays when its peer closes it."""

    def close(self) -> None:
        """The platter keeps it."""


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_KeptConnection)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class VirtualDatabaseFile:
    """All connections of a peer are one here: nothing in a simulated run happens at the same time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def connect_writer(self) -> sqlite3.Connection:
        return self._connection

    def connect_reader(self) -> sqlite3.Connection:
        return self._connection

    def pin(self) -> sqlite3.Connection:
        pinned = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        pinned.deserialize(self._connection.serialize())
        return pinned
