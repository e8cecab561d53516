"""Chunks on this peer's disk: written aside, synced and renamed; verified before they are read.

Small chunks live in the database, larger ones are files. A chunk just written is *fresh*: its bytes are on the disk and
nobody knows them yet. The transaction that declares a file held adopts its fresh chunks into the table `chunks`, and
only rows of that table make a chunk exist; whatever else lies in the folders after a crash is removed at the next
start. A file is named `<hash>.<serial>`, a name never used twice: so a collector, a reader and a writer of equal bytes
cannot meet.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio
from blake3 import blake3

from peer.catalog_store import SqliteStore, chunk_file_name
from peer.config import Config
from peer.database import Database
from peer.env import ChunkCorrupt, ChunkMissing, Disk, Env, FileIdentity, ReadableFile, StoreError, Work, WritableFile
from protocol.ops import Chunk

log = logging.getLogger("minidfs.chunks")

VERIFIED_FOR_S = 600.0
"""A file that was verified this recently and was not touched since is served without reading it twice."""

VERIFIED_REMEMBERED_MAX = 16_384

STAGED_FOR_S = 600.0
"""A chunk another peer put here ahead of the put that names it waits this long for it."""

READ_BYTES = 1024 * 1024

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


class ChunkRow(NamedTuple):
    """Where a chunk is: in the database, or in the file of this serial."""

    size: int
    serial: int | None
    content: bytes | None


class ChunkWriter:
    """Takes one chunk's bytes in pieces; all methods block once there are more than fit the database."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._hash = blake3()
        self._head = bytearray()
        self._file: WritableFile | None = None
        self._serial = 0
        self.size = 0

    @property
    def is_inline(self) -> bool:
        """Whether all there is so far is in memory, to go into the database."""
        return self._file is None

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes. Raises NoSpace, StoreError."""
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
        name = self._hash.digest()
        if self._file is None:
            return FreshChunk(name, self.size, None, bytes(self._head))
        self._file.sync()
        self._file.close()
        self._store.publish(self._serial, name)
        return FreshChunk(name, self.size, self._serial, None)

    def abandon(self) -> None:
        """Leave nothing behind of a chunk that was not finished."""
        if self._file is not None:
            self._file.close()
            self._store.disk.remove(f"{_INCOMING}/{self._serial}")
            self._file = None


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
        self._disk.remove(self._path)


class ChunkStore:
    """All chunks of one peer. Methods that are not `async` block, but for those that say otherwise."""

    def __init__(self, env: Env, config: Config, database: Database) -> None:
        self._env = env
        self.disk = env.disk
        self._database = database
        self._serials = env.chance("chunk serials")
        self.inline_bytes_max = config.inline_bytes_max
        self._folders: set[str] = set()
        self._verified: OrderedDict[bytes, tuple[FileIdentity, float]] = OrderedDict()
        self._staged: dict[bytes, _Staged] = {}
        self._unused: list[str] = []
        self._has_unused = trio.Event()
        database.on_unused_files = self._note_unused

    # --- start ---

    def open(self) -> list[tuple[bytes, int]]:
        """Remove what a crash left behind; returns hash and serial of the chunks whose files have vanished."""
        for folder in (_INCOMING, _CHUNKS):
            self.disk.make_folder(folder)
        for name, _ in self.disk.list_files(_INCOMING):
            self.disk.remove(f"{_INCOMING}/{name}")
        vanished: list[tuple[bytes, int]] = []
        for prefix in range(256):
            vanished += self._take_stock(bytes([prefix]))
        return vanished

    def _take_stock(self, prefix: bytes) -> list[tuple[bytes, int]]:
        """Compare one folder with the rows it belongs to: nameless files go, fileless rows are reported."""
        folder = f"{_CHUNKS}/{prefix.hex()}"
        rows = self._database.reader.execute(
            "SELECT hash, serial FROM chunks WHERE serial IS NOT NULL AND hash >= ? AND hash < ? ORDER BY hash",
            (prefix, prefix + b"\xff" * 32),
        ).fetchall()
        expected = {chunk_file_name(name, serial): (name, serial) for name, serial in rows}
        found = {f"{folder}/{name}": None for name, _ in self.disk.list_files(folder)}
        for path in found:
            if path not in expected:
                self.disk.remove(path)
        return [chunk for path, chunk in expected.items() if path not in found]

    # --- writing ---

    def next_serial(self) -> int:
        """A number no chunk file has had (never blocks)."""
        return self._serials.getrandbits(53)

    def publish(self, serial: int, name: bytes) -> None:
        """Give a synced incoming file its final name, durably."""
        path = chunk_file_name(name, serial)
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self.disk.make_folder(folder)
            self._folders.add(folder)
        self.disk.rename(f"{_INCOMING}/{serial}", path)
        self.disk.sync_folder(folder)

    def discard(self, fresh: Iterable[FreshChunk]) -> None:
        """Remove fresh chunks that will not be adopted; one that was, by a commit thought to have failed, stays."""
        for chunk in fresh:
            row = self.row(chunk.hash)
            if chunk.serial is not None and (row is None or row.serial != chunk.serial):
                self.disk.remove(chunk_file_name(chunk.hash, chunk.serial))

    def spool(self, content: bytes) -> SpooledFile:
        """Bytes set aside on the disk to be read once; they need not survive anything. Raises NoSpace, StoreError."""
        path = f"{_INCOMING}/{self.next_serial()}"
        writer = self.disk.create(path)
        try:
            writer.write(content)
            writer.close()
            return SpooledFile(self.disk, path)
        except BaseException:
            writer.close()
            self.disk.remove(path)
            raise

    def open_fresh(self, chunk: FreshChunk) -> ReadableFile:
        """The file of a chunk this process wrote and hashed, or of the equal one that was kept. Raises ChunkMissing."""
        assert chunk.serial is not None, "chunks in the database have no file"
        try:
            return self.disk.open(chunk_file_name(chunk.hash, chunk.serial))
        except ChunkMissing:
            # Of equal chunks, in one file or in an upload sent again, one is adopted and the others are discarded.
            row = self.row(chunk.hash)
            if row is None or row.serial is None:
                raise
            return self.disk.open(chunk_file_name(chunk.hash, row.serial))

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
        """Where a chunk is (one look-up by key); None when this peer has none."""
        found = self._database.reader.execute(
            "SELECT size, serial, content FROM chunks WHERE hash = ?", (name,)
        ).fetchone()
        return ChunkRow(*found) if found else None

    def read_inline(self, name: bytes, row: ChunkRow) -> bytes:
        """The content of a chunk in the database, verified (never blocks). Raises ChunkCorrupt."""
        content = row.content or b""
        if blake3(content).digest() != name:
            raise ChunkCorrupt(f"chunk {name.hex()} in the database no longer gives its hash")
        return content

    async def open_verified(self, name: bytes, row: ChunkRow) -> ReadableFile:
        """The open file of a chunk, whose bytes give its hash. Raises ChunkMissing, ChunkCorrupt."""
        assert row.serial is not None, "chunks in the database have no file"
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

    async def verify_row(self, name: bytes) -> ChunkRow | None:
        """The row of a chunk this peer has, read and verified now, or None: an old chunk counts for a new file only so.

        Raises StoreError when the disk fails; a corrupt or missing file counts as None.
        """
        row = self.row(name)
        if row is None:
            return None
        try:
            if row.serial is None:
                self.read_inline(name, row)
            else:
                (await self.open_verified(name, row)).close()
        except (ChunkMissing, ChunkCorrupt) as error:
            log.warning("an old chunk does not count for a new file: %s", error)
            return None
        return row

    # --- after a commit ---

    def _note_unused(self, names: list[str]) -> None:
        for path in names:
            self._verified.pop(bytes.fromhex(path.rpartition("/")[2].partition(".")[0]), None)
        self._unused += names
        self._has_unused.set()

    async def run_collector(self) -> None:
        """Remove files whose rows were removed, until cancelled; the start removes what a crash leaves of them."""
        while True:
            await self._has_unused.wait()
            self._has_unused = trio.Event()
            names, self._unused = self._unused, []
            await self._env.run_blocking(Work.DISK, self._remove_files, names)

    def _remove_files(self, names: list[str]) -> None:
        for path in names:
            try:
                self.disk.remove(path)
            except StoreError as error:
                log.warning("an unused chunk file stays until the next start: %s", error)


def adopt(store: SqliteStore, chunks: Iterable[FreshChunk]) -> None:
    """Make fresh chunks exist, in the caller's transaction; one of equal bytes that was there before is replaced."""
    for chunk in chunks:
        old = store.connection.execute("SELECT serial FROM chunks WHERE hash = ?", (chunk.hash,)).fetchone()
        if old is None:
            store.connection.execute(
                "INSERT INTO chunks (hash, size, serial, refs, content) VALUES (?, ?, ?, 0, ?)",
                (chunk.hash, chunk.size, chunk.serial, chunk.content),
            )
            continue
        store.connection.execute(
            "UPDATE chunks SET serial = ?, content = ? WHERE hash = ?", (chunk.serial, chunk.content, chunk.hash)
        )
        if old[0] is not None and old[0] != chunk.serial:
            store.unused_files.append(chunk_file_name(chunk.hash, old[0]))


def all_exist(store: SqliteStore, chunks: Iterable[Chunk]) -> bool:
    """Whether every chunk of a file has its row, as this transaction sees it."""
    return all(
        store.connection.execute("SELECT 1 FROM chunks WHERE hash = ?", (chunk.hash,)).fetchone() for chunk in chunks
    )
