"""A data folder of this machine: files, locks, and SQLite databases.

Where systems differ, the difference is one small function here: folders cannot be synced on Windows, and macOS needs
its own call to get bytes to the disk.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peer.locks import try_lock
from peer.world.env import FileIdentity, FileMissing, NoSpace, StartError, StoreError

WRITER_CACHE_KIB = 16 * 1024
READER_CACHE_KIB = 4 * 1024
"""A reader's: each commit of the writer empties it, so that most of a larger one would be memory and no use."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The system's errors as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissing(f"{what}: there is no such file") from error
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


def sync_path(path: Path) -> None:
    """A file, or the names in a folder, on the disk."""
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb+") as file:
        sync_file(file.fileno())


def open_database_read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot change a database, also one that a running peer writes to. Raises sqlite3.Error."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30)


class SystemFile:
    """An open file for reading, see `peer.world.env.ReadableFile`."""

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
    """A file being written, see `peer.world.env.WritableFile`."""

    def __init__(self, path: Path, *, syncs: bool = True) -> None:
        self._path = path
        self._syncs = syncs
        self._file = path.open("xb", buffering=0)

    def write(self, piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        with _translated(f"writing {self._path.name}"):
            while rest:
                rest = rest[self._file.write(rest) or 0 :]

    def sync(self) -> None:
        if self._syncs:
            with _translated(f"syncing {self._path.name}"):
                sync_file(self._file.fileno())

    def close(self) -> None:
        with _translated(f"closing {self._path.name}"):
            self._file.close()


class SystemDatabaseFile:
    """A database on disk in WAL mode."""

    def __init__(self, path: Path, *, syncs: bool = True) -> None:
        self._path = path
        self._syncs = syncs

    def _connect(self, cache_kib: int) -> sqlite3.Connection:
        # From Python 3.12 on, two threads that use one connection get rows of each other's statements.
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=True, cached_statements=256, timeout=30
        )
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def connect_writer(self) -> sqlite3.Connection:
        connection = self._connect(WRITER_CACHE_KIB)
        # Has an effect on a new database only: its size can follow the files there are, not those there ever were.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL syncs before a checkpoint only: a power cut takes commits, the last ones, and damages nothing.
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._syncs else 'NORMAL'}")
        # Only macOS knows a difference between the two syncs.
        connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA checkpoint_fullfsync = 1")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def connect_reader(self) -> sqlite3.Connection:
        connection = self._connect(READER_CACHE_KIB)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def pin(self) -> sqlite3.Connection:
        connection = self.connect_reader()
        connection.execute("BEGIN")
        # A transaction sees the moment of its first read.
        connection.execute("PRAGMA user_version").fetchone()
        return connection


class SystemDisk:
    """A data folder of this machine, see `peer.world.env.Disk`.

    Without `syncs` nothing waits for the disk: what is written is as durable as the operating system makes it.
    """

    def __init__(self, root: Path, *, syncs: bool = True) -> None:
        self._root = root
        self._syncs = syncs

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
                if self._syncs:
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
            return SystemNewFile(self._root / path, syncs=self._syncs)

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
        if self._syncs:
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
        return SystemDatabaseFile(self._root / path, syncs=self._syncs)


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
