"""Chunks on this peer's disk: written aside, synced and renamed; verified before they are read.

Small chunks live in the database, larger ones are files. A chunk just written is *fresh*: its bytes are on the disk and
nobody knows them yet. The transaction that declares a file held adopts its fresh chunks into the table `chunks`, and
only rows of that table make a chunk exist; whatever else lies in the folders after a crash is removed at the next
start. A file is named `<hash>.<serial>`, a name never used twice: so a collector, a reader and a writer of equal bytes
cannot meet. Files are removed by the collector alone, and only while it is known what was committed.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio
from blake3 import blake3

from peer.config import Config
from peer.store.catalog import SqliteStore
from peer.store.database import Database
from peer.store.rows import ChunkRow, chunk_file_name, chunk_row
from peer.store.space import Space
from peer.world.env import (
    ChunkCorrupt,
    ChunkMissing,
    Disk,
    Env,
    FileIdentity,
    NoSpace,
    ReadableFile,
    StoreError,
    Work,
    WritableFile,
)

log = logging.getLogger("minidfs.chunks")

VERIFIED_FOR_S = 600.0
"""A file that was verified this recently and was not touched since is served without reading it twice."""

VERIFIED_REMEMBERED_MAX = 16_384

STAGED_FOR_S = 600.0
"""A chunk another peer put here ahead of the put that names it waits this long for it, or for a word that it comes."""

READ_BYTES = 1024 * 1024

PREFIXES_A_STEP = 16
"""Of the 256 chunk folders, those that are looked through at a time."""

_ABSENT = object()
_INCOMING = "incoming"
_CHUNKS = "chunks"


@dataclass(frozen=True, slots=True)
class FreshChunk:
    """A chunk whose bytes are synced (or held in memory, to go into the database) and that no row names yet."""

    hash: bytes
    size: int
    serial: int | None
    content: bytes | None


class _Staged(NamedTuple):
    """A chunk that waits for its put, until when, and how often it was brought: equal ones may belong to several."""

    chunk: FreshChunk
    until: float
    times: int


@dataclass(frozen=True, slots=True)
class Stock:
    """What the start found of chunks whose files are not where their rows say."""

    vanished: list[tuple[bytes, ChunkRow]]
    found_again: list[tuple[bytes, ChunkRow, int]]
    """There is another file of the same hash, of this serial: which may be as good, and is verified when it is read."""


class ChunkWriter:
    """Takes one chunk's bytes in pieces; all methods block once there are more than fit the database."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._hash = blake3()
        self._head = bytearray()
        self._file: WritableFile | None = None
        self._serial = 0
        self._published: str | None = None
        self.size = 0

    @property
    def is_inline(self) -> bool:
        """Whether all there is so far is in memory, to go into the database."""
        return self._file is None

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes. Raises NoSpace, StoreError."""
        with self._store.noting_full():
            self._write(piece)

    def _write(self, piece: bytes | memoryview) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        if self._file is not None:
            self._file.write(piece)
        elif self.size <= self._store.inline_bytes_max:
            self._head += piece
        else:
            self._serial = self._store.next_serial()
            self._file = self._store.disk.create(f"{_INCOMING}/{self._serial}")
            self._file.write(bytes(self._head))
            self._file.write(piece)
            self._head.clear()

    def finish(self) -> FreshChunk:
        """Sync what was written and give it its name. Raises NoSpace, StoreError."""
        with self._store.noting_full():
            return self._finish()

    def _finish(self) -> FreshChunk:
        name = self._hash.digest()
        if self._file is None:
            return FreshChunk(name, self.size, None, bytes(self._head))
        self._file.sync()
        self._file.close()
        self._published = chunk_file_name(name, self._serial)
        self._store.publish(f"{_INCOMING}/{self._serial}", self._published)
        return FreshChunk(name, self.size, self._serial, None)

    def abandon(self) -> None:
        """Leave nothing behind of a chunk that was not finished (what the disk keeps, the next start removes)."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
            for path in (f"{_INCOMING}/{self._serial}", self._published):
                if path is not None:
                    self._store.disk.remove(path)
        except StoreError as error:
            log.warning("a chunk that was not finished stays until the next start: %s", error)


class SpooledFile:
    """A file that is gone once it is closed; see `ReadableFile`."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._file = disk.open(path)

    def read_at(self, offset: int, size: int) -> bytes:
        return self._file.read_at(offset, size)

    def identity(self) -> FileIdentity:
        return self._file.identity()

    def handle(self) -> Any | None:
        return self._file.handle()

    def close(self) -> None:
        self._file.close()
        try:
            self._disk.remove(self._path)
        except StoreError as error:
            log.warning("a file set aside stays until the next start: %s", error)


class ChunkStore:
    """All chunks of one peer. Methods that are not `async` block, but for those that say otherwise."""

    def __init__(self, env: Env, config: Config, database: Database, space: Space) -> None:
        self._env = env
        self._space = space
        self.disk = env.disk
        self._database = database
        self._serials = env.chance("chunk serials")
        self.inline_bytes_max = config.inline_bytes_max
        self._folders: set[str] = set()
        self._verified: OrderedDict[bytes, tuple[FileIdentity, float]] = OrderedDict()
        self._staged: dict[bytes, _Staged] = {}
        self._unused: list[str] = []
        self._discarded: list[FreshChunk] = []
        self._has_unused = trio.Event()
        database.on_unused_files = self._note_unused

    # --- start ---

    async def open(self) -> Stock:
        """Remove what a crash left behind; returns what is not where it should be. Raises StoreError."""
        await self._env.run_blocking(Work.DISK, self._make_folders)
        stock = Stock([], [])
        for first in range(0, 256, PREFIXES_A_STEP):
            prefixes = [bytes([number]) for number in range(first, first + PREFIXES_A_STEP)]
            rows = await self._database.read(lambda connection, prefixes=prefixes: _rows_of(connection, prefixes))  # type: ignore[misc]
            await self._env.run_blocking(Work.DISK, self._take_stock, prefixes, rows, stock)
        return stock

    def _make_folders(self) -> None:
        for folder in (_INCOMING, _CHUNKS):
            self.disk.make_folder(folder)
        # The folders in it may be names that a kill left unsynced.
        self.disk.sync_folder(_CHUNKS)
        for name, _ in self.disk.list_files(_INCOMING):
            self.disk.remove(f"{_INCOMING}/{name}")

    def _take_stock(self, prefixes: list[bytes], rows: dict[bytes, ChunkRow], stock: Stock) -> None:
        """Compare some folders with their rows: nameless files go, unless one is all there is of a chunk."""
        folders = [f"{_CHUNKS}/{prefix.hex()}" for prefix in prefixes]
        found = {f"{folder}/{name}": None for folder in folders for name, _ in self.disk.list_files(folder)}
        for name, row in rows.items():
            assert row.serial is not None, "rows of files were asked for"
            if found.pop(chunk_file_name(name, row.serial), _ABSENT) is not _ABSENT:
                continue
            others = [path for path in found if path.startswith(chunk_file_name(name, 0)[:-1])]
            if others:
                found.pop(others[-1])
                stock.found_again.append((name, row, int(others[-1].rpartition(".")[2])))
            else:
                stock.vanished.append((name, row))
        for path in found:
            self.disk.remove(path)

    # --- writing ---

    @contextmanager
    def noting_full(self) -> Iterator[None]:
        """Let the owner of the disk's space know when there is none; not on the event loop."""
        try:
            yield
        except NoSpace:
            self._space.note_full()
            raise

    def next_serial(self) -> int:
        """A number no chunk file has had (never blocks)."""
        return self._serials.getrandbits(53)

    def publish(self, incoming: str, path: str) -> None:
        """Give a synced incoming file its final name, durably. Raises StoreError."""
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self.disk.make_folder(folder)
            self._folders.add(folder)
        self.disk.rename(incoming, path)
        self.disk.sync_folder(folder)

    def discard(self, fresh: Iterable[FreshChunk]) -> None:
        """Have the collector remove fresh chunks that were not adopted (never blocks, never fails).

        A commit thought to have failed may have adopted them all the same: the collector waits until that is known.
        """
        self._discarded += [chunk for chunk in fresh if chunk.serial is not None]
        if self._discarded:
            self._has_unused.set()

    def spool(self, content: bytes) -> SpooledFile:
        """Bytes set aside on the disk to be read once; they need not survive anything. Raises NoSpace, StoreError."""
        path = f"{_INCOMING}/{self.next_serial()}"
        writer = self.disk.create(path)
        try:
            with self.noting_full():
                writer.write(content)
            writer.close()
            return SpooledFile(self.disk, path)
        except BaseException:
            writer.close()
            self.disk.remove(path)
            raise

    async def open_fresh(self, chunk: FreshChunk) -> ReadableFile:
        """The file of a chunk that was written here a moment ago. Raises ChunkMissing, StoreError."""
        assert chunk.serial is not None, "chunks in the database have no file"
        try:
            return await self._env.run_blocking(Work.DISK, self.disk.open, chunk_file_name(chunk.hash, chunk.serial))
        except ChunkMissing:
            # Of equal chunks, in one file or in an upload sent again, one is adopted and the others are discarded.
            row = self.row(chunk.hash)
            if row is None or row.serial is None:
                raise
            return await self._env.run_blocking(Work.DISK, self.disk.open, chunk_file_name(chunk.hash, row.serial))

    async def write_whole(self, content: bytes) -> FreshChunk:
        """A fresh chunk of these bytes. Raises NoSpace, StoreError."""
        if len(content) <= self.inline_bytes_max:
            return FreshChunk(blake3(content).digest(), len(content), None, content)
        return await self._env.run_blocking(Work.DISK, self._write_whole, content)

    def _write_whole(self, content: bytes) -> FreshChunk:
        writer = ChunkWriter(self)
        try:
            writer.write(content)
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise

    # --- staged for a put to come (these never block) ---

    def stage(self, chunk: FreshChunk) -> FreshChunk | None:
        """Keep a chunk for the put that will name it; returns one of equal bytes it replaces, to be discarded."""
        replaced = self._staged.pop(chunk.hash, None)
        times = replaced.times + 1 if replaced else 1
        self._staged[chunk.hash] = _Staged(chunk, self._env.clock.now() + STAGED_FOR_S, times)
        return replaced.chunk if replaced else None

    def renew(self, name: bytes) -> bool:
        """Let a staged chunk wait anew for its put; False when it is not staged."""
        found = self._staged.get(name)
        if found is None:
            return False
        self._staged[name] = found._replace(until=self._env.clock.now() + STAGED_FOR_S)
        return True

    def withdraw(self, name: bytes) -> FreshChunk | None:
        """One put that would have named this chunk will not come; returns it, to be discarded, if no other may."""
        found = self._staged.get(name)
        if found is None:
            return None
        if found.times > 1:
            self._staged[name] = found._replace(times=found.times - 1)
            return None
        return self.claim(name)

    def is_staged(self, name: bytes) -> bool:
        """Whether a chunk of this hash is staged."""
        return name in self._staged

    def claim(self, name: bytes) -> FreshChunk | None:
        """The staged chunk of this hash, the caller's alone from now on: to adopt, to stage again, or to discard."""
        found = self._staged.pop(name, None)
        return found.chunk if found else None

    def take_expired(self) -> list[FreshChunk]:
        """Staged chunks whose put never came, to be discarded."""
        now = self._env.clock.now()
        expired = [staged.chunk for staged in self._staged.values() if staged.until <= now]
        for chunk in expired:
            del self._staged[chunk.hash]
        return expired

    # --- reading ---

    def row(self, name: bytes) -> ChunkRow | None:
        """Where a chunk is (one look-up by key); None when this peer has none. Raises StoreError."""
        return self._database.look_up(lambda connection: chunk_row(connection, name))

    def read_inline(self, name: bytes, row: ChunkRow) -> bytes:
        """The content of a chunk in the database, verified (never blocks). Raises ChunkCorrupt."""
        content = row.content or b""
        if blake3(content).digest() != name:
            raise ChunkCorrupt(f"chunk {name.hex()} in the database no longer gives its hash")
        return content

    async def open_verified(self, name: bytes, row: ChunkRow) -> bytes | ReadableFile:
        """A chunk's bytes, or the open file that has them; they give its hash.

        Raises ChunkMissing, ChunkCorrupt, StoreError.
        """
        if row.serial is None:
            return self.read_inline(name, row)
        return await self._env.run_blocking(Work.DISK, self._open_verified, name, row)

    def _open_verified(self, name: bytes, row: ChunkRow) -> ReadableFile:
        assert row.serial is not None
        file = self.disk.open(chunk_file_name(name, row.serial))
        try:
            identity = file.identity()
            if not self._is_verified(name, identity):
                self._verify(name, row.size, file)
                self._remember_verified(name, identity)
        except BaseException:
            file.close()
            raise
        return file

    def _is_verified(self, name: bytes, identity: FileIdentity) -> bool:
        known = self._verified.get(name)
        return known is not None and known[0] == identity and known[1] + VERIFIED_FOR_S > self._env.clock.now()

    def _remember_verified(self, name: bytes, identity: FileIdentity) -> None:
        self._verified[name] = (identity, self._env.clock.now())
        while len(self._verified) > VERIFIED_REMEMBERED_MAX:
            self._verified.popitem(last=False)

    def _verify(self, name: bytes, size: int, file: ReadableFile) -> None:
        digest = blake3()
        offset = 0
        while piece := file.read_at(offset, READ_BYTES):
            digest.update(piece)
            offset += len(piece)
        if offset != size or digest.digest() != name:
            raise ChunkCorrupt(f"the file of chunk {name.hex()} no longer gives its hash")

    async def read_whole(self, name: bytes, row: ChunkRow) -> bytes:
        """A chunk's bytes, verified. Raises ChunkMissing, ChunkCorrupt, StoreError."""
        if row.serial is None:
            return self.read_inline(name, row)
        return await self._env.run_blocking(Work.DISK, self._read_whole, name, row)

    def _read_whole(self, name: bytes, row: ChunkRow) -> bytes:
        file = self._open_verified(name, row)
        try:
            return file.read_at(0, row.size)
        finally:
            file.close()

    async def verify(self, name: bytes, row: ChunkRow) -> ChunkRow:
        """Read a chunk; gives its row back. Raises ChunkMissing, ChunkCorrupt, StoreError."""
        content = await self.open_verified(name, row)
        if not isinstance(content, bytes):
            content.close()
        return row

    # --- after a commit ---

    def _note_unused(self, names: list[str]) -> None:
        for path in names:
            self._verified.pop(bytes.fromhex(path.rpartition("/")[2].partition(".")[0]), None)
        self._unused += names
        self._has_unused.set()

    async def run_collector(self) -> None:
        """Remove files whose rows were removed, or never came, until cancelled; the next start removes what stays."""
        while True:
            await self._has_unused.wait()
            await self._database.wait_settled()
            self._has_unused = trio.Event()
            names, self._unused = self._unused, []
            try:
                names += self._take_unadopted()
            except StoreError as error:
                log.warning("discarded chunk files stay until there are more of them: %s", error)
            await self._env.run_blocking(Work.DISK, self._remove_files, names)

    def _take_unadopted(self) -> list[str]:
        """The files of discarded chunks which no commit adopted."""
        rows = {chunk.hash: self.row(chunk.hash) for chunk in self._discarded}
        discarded, self._discarded = self._discarded, []
        return [
            chunk_file_name(chunk.hash, chunk.serial)
            for chunk in discarded
            if chunk.serial is not None and ((row := rows[chunk.hash]) is None or row.serial != chunk.serial)
        ]

    def _remove_files(self, names: list[str]) -> None:
        for path in names:
            try:
                self.disk.remove(path)
            except StoreError as error:
                log.warning("an unused chunk file stays until the next start: %s", error)


def _rows_of(connection: sqlite3.Connection, prefixes: list[bytes]) -> dict[bytes, ChunkRow]:
    """The rows, by hash, of the chunks whose files lie in the folders of these prefixes."""
    rows = connection.execute(
        "SELECT hash, size, serial FROM chunks WHERE serial IS NOT NULL AND hash >= ? AND hash <= ? ORDER BY hash",
        (prefixes[0], prefixes[-1] + b"\xff" * 31),
    )
    return {name: ChunkRow(size, serial, None) for name, size, serial in rows}


def adopt(store: SqliteStore, chunks: Iterable[FreshChunk]) -> None:
    """Make fresh chunks exist, in the caller's transaction; one of equal bytes that was there before is replaced."""
    for chunk in chunks:
        store.set_chunk(chunk.hash, ChunkRow(chunk.size, chunk.serial, chunk.content))
