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
from collections.abc import Iterable
from dataclasses import dataclass

import trio
from blake3 import blake3

from peer.config import Config
from peer.store.catalog import SqliteStore
from peer.store.chunk_files import CHUNKS, ChunkFiles, FreshChunk
from peer.store.database import Database
from peer.store.rows import ChunkRow, chunk_file_name, chunk_row
from peer.store.space import Space
from peer.store.staging import Staging
from peer.world.env import ChunkCorrupt, ChunkMissing, Env, FileIdentity, ReadableFile, StoreError, Work

log = logging.getLogger("minidfs.chunks")

VERIFIED_FOR_S = 600.0
"""A file that was verified this recently and was not touched since is served without reading it twice."""

VERIFIED_REMEMBERED_MAX = 16_384

READ_BYTES = 1024 * 1024

PREFIXES_A_STEP = 16
"""Of the 256 chunk folders, those that are looked through at a time."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Stock:
    """What the start found of chunks whose files are not where their rows say."""

    vanished: list[tuple[bytes, ChunkRow]]
    found_again: list[tuple[bytes, ChunkRow, int]]
    """There is another file of the same hash, of this serial: which may be as good, and is verified when it is read."""


class ChunkStore:
    """All chunks of one peer. Methods that are not `async` block, but for those that say otherwise."""

    def __init__(self, env: Env, config: Config, database: Database, space: Space) -> None:
        self._env = env
        self._disk = env.disk
        self._database = database
        self.files = ChunkFiles(env, config.inline_bytes_max, space)
        self.staging = Staging(env.clock, self.discard)
        self._verified: OrderedDict[bytes, tuple[FileIdentity, float]] = OrderedDict()
        self._unused: list[str] = []
        self._discarded: list[FreshChunk] = []
        self._has_unused = trio.Event()
        database.on_unused_files = self._note_unused

    # --- start ---

    async def open(self) -> Stock:
        """Remove what a crash left behind; returns what is not where it should be. Raises StoreError."""
        await self._env.run_blocking(Work.DISK, self.files.make_folders)
        stock = Stock([], [])
        for first in range(0, 256, PREFIXES_A_STEP):
            prefixes = [bytes([number]) for number in range(first, first + PREFIXES_A_STEP)]
            rows = await self._database.read(lambda connection, prefixes=prefixes: _rows_of(connection, prefixes))  # type: ignore[misc]
            await self._env.run_blocking(Work.DISK, self._take_stock, prefixes, rows, stock)
        return stock

    def _take_stock(self, prefixes: list[bytes], rows: dict[bytes, ChunkRow], stock: Stock) -> None:
        """Compare some folders with their rows: nameless files go, unless one is all there is of a chunk."""
        folders = [f"{CHUNKS}/{prefix.hex()}" for prefix in prefixes]
        found = {f"{folder}/{name}": None for folder in folders for name, _ in self._disk.list_files(folder)}
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
            self._disk.remove(path)

    # --- writing ---

    def discard(self, fresh: Iterable[FreshChunk]) -> None:
        """Have the collector remove fresh chunks that were not adopted (never blocks, never fails).

        A commit thought to have failed may have adopted them all the same: the collector waits until that is known.
        """
        self._discarded += [chunk for chunk in fresh if chunk.serial is not None]
        if self._discarded:
            self._has_unused.set()

    async def open_fresh(self, chunk: FreshChunk) -> ReadableFile:
        """The file of a chunk that was written here a moment ago. Raises ChunkMissing, StoreError."""
        assert chunk.serial is not None, "chunks in the database have no file"
        try:
            return await self._env.run_blocking(Work.DISK, self._disk.open, chunk_file_name(chunk.hash, chunk.serial))
        except ChunkMissing:
            # Of equal chunks, in one file or in an upload sent again, one is adopted and the others are discarded.
            row = self.row(chunk.hash)
            if row is None or row.serial is None:
                raise
            return await self._env.run_blocking(Work.DISK, self._disk.open, chunk_file_name(chunk.hash, row.serial))

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
        file = self._disk.open(chunk_file_name(name, row.serial))
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
            await self._env.run_blocking(Work.DISK, self.files.remove, names)

    def _take_unadopted(self) -> list[str]:
        """The files of discarded chunks which no commit adopted."""
        rows = {chunk.hash: self.row(chunk.hash) for chunk in self._discarded}
        discarded, self._discarded = self._discarded, []
        return [
            chunk_file_name(chunk.hash, chunk.serial)
            for chunk in discarded
            if chunk.serial is not None and ((row := rows[chunk.hash]) is None or row.serial != chunk.serial)
        ]


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
