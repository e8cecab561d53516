"""Chunks on this peer's disk: written aside, synced and renamed; verified before they are read.

Small chunks live in the database, larger ones are files. A chunk just written is *fresh*: its bytes are on the disk and
nobody knows them yet. The transaction that declares a file held adopts its fresh chunks into the table `chunks`, and
only rows of that table make a chunk exist; whatever else lies in the folders after a crash is removed after the next
start. A file is named `<hash>.<serial>`, a name never used twice: so a collector, a reader and a writer of equal bytes
cannot meet. Files are removed by the collector alone, and only while it is known what was committed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from blake3 import blake3

from peer.config import Config
from peer.store.catalog import SqliteStore
from peer.store.chunk_files import ChunkFiles, FreshChunk
from peer.store.collector import Collector
from peer.store.database import Database
from peer.store.errors import ChunkCorrupt, ChunkMissing
from peer.store.rows import ChunkRow, chunk_file_name, chunk_row
from peer.store.space import Space
from peer.store.staging import Staging
from peer.world.env import Env, FileIdentity, FileMissing, ReadableFile, Work

VERIFIED_FOR_S = 600.0
"""A file that was verified this recently and was not touched since is served without reading it twice."""

VERIFIED_REMEMBERED_MAX = 16_384

READ_BYTES = 1024 * 1024


class ChunkStore:
    """All chunks of one peer. Methods that are not `async` block, but for those that say otherwise."""

    def __init__(self, env: Env, config: Config, database: Database, space: Space) -> None:
        self._env = env
        self._disk = env.disk
        self._database = database
        self.files = ChunkFiles(env, config.inline_bytes_max, space)
        self.collector = Collector(env, database, self.files)
        self.staging = Staging(env.clock, self.discard)
        self._verified: OrderedDict[bytes, tuple[FileIdentity, float]] = OrderedDict()
        database.on_unused_files = self._note_unused

    # --- start ---

    async def open(self) -> None:
        """Have the folders, and nothing in them that was still being written. Raises StoreError."""
        await self._env.run_blocking(Work.DISK, self.files.make_folders)

    # --- writing ---

    def discard(self, fresh: Iterable[FreshChunk]) -> None:
        """Have the collector remove fresh chunks that were not adopted (never blocks, never fails)."""
        self.collector.discard(fresh)

    async def open_fresh(self, chunk: FreshChunk) -> ReadableFile:
        """The file of a chunk that was written here a moment ago. Raises ChunkMissing, StoreError."""
        assert chunk.serial is not None, "chunks in the database have no file"
        try:
            return await self._env.run_blocking(Work.DISK, self._open, chunk.hash, chunk.serial)
        except ChunkMissing:
            # Of equal chunks, in one file or in an upload sent again, one is adopted and the others are discarded.
            row = self.row(chunk.hash)
            if row is None or row.serial is None:
                raise
            return await self._env.run_blocking(Work.DISK, self._open, chunk.hash, row.serial)

    # --- reading ---

    def row(self, chunk_hash: bytes) -> ChunkRow | None:
        """Where a chunk is (one look-up by key); None when this peer has none. Raises StoreError."""
        return self._database.look_up(lambda connection: chunk_row(connection, chunk_hash))

    def read_inline(self, chunk_hash: bytes, row: ChunkRow) -> bytes:
        """The content of a chunk in the database, verified (never blocks). Raises ChunkCorrupt."""
        content = row.content or b""
        if blake3(content).digest() != chunk_hash:
            raise ChunkCorrupt(f"chunk {chunk_hash.hex()} in the database no longer gives its hash")
        return content

    async def open_verified(self, chunk_hash: bytes, row: ChunkRow) -> bytes | ReadableFile:
        """A chunk's bytes, or the open file that has them; they give its hash.

        Raises ChunkMissing, ChunkCorrupt, StoreError.
        """
        if row.serial is None:
            return self.read_inline(chunk_hash, row)
        return await self._env.run_blocking(Work.DISK, self._open_verified, chunk_hash, row)

    def _open_verified(self, chunk_hash: bytes, row: ChunkRow) -> ReadableFile:
        assert row.serial is not None
        file = self._open(chunk_hash, row.serial)
        try:
            identity = file.identity()
            if not self._is_verified(chunk_hash, identity):
                self._verify(chunk_hash, row.size, file)
                self._remember_verified(chunk_hash, identity)
        except BaseException:
            file.close()
            raise
        return file

    def _open(self, chunk_hash: bytes, serial: int) -> ReadableFile:
        try:
            return self._disk.open(chunk_file_name(chunk_hash, serial))
        except FileMissing as error:
            raise ChunkMissing(f"chunk {chunk_hash.hex()} has no file: {error}") from error

    def _is_verified(self, chunk_hash: bytes, identity: FileIdentity) -> bool:
        known = self._verified.get(chunk_hash)
        return known is not None and known[0] == identity and known[1] + VERIFIED_FOR_S > self._env.clock.now()

    def _remember_verified(self, chunk_hash: bytes, identity: FileIdentity) -> None:
        self._verified[chunk_hash] = (identity, self._env.clock.now())
        while len(self._verified) > VERIFIED_REMEMBERED_MAX:
            self._verified.popitem(last=False)

    def _verify(self, chunk_hash: bytes, size: int, file: ReadableFile) -> None:
        digest = blake3()
        offset = 0
        while piece := file.read_at(offset, READ_BYTES):
            digest.update(piece)
            offset += len(piece)
        if offset != size or digest.digest() != chunk_hash:
            raise ChunkCorrupt(f"the file of chunk {chunk_hash.hex()} no longer gives its hash")

    async def read_whole(self, chunk_hash: bytes, row: ChunkRow) -> bytes:
        """A chunk's bytes, verified. Raises ChunkMissing, ChunkCorrupt, StoreError."""
        if row.serial is None:
            return self.read_inline(chunk_hash, row)
        return await self._env.run_blocking(Work.DISK, self._read_whole, chunk_hash, row)

    def _read_whole(self, chunk_hash: bytes, row: ChunkRow) -> bytes:
        file = self._open_verified(chunk_hash, row)
        try:
            return file.read_at(0, row.size)
        finally:
            file.close()

    async def verify(self, chunk_hash: bytes, row: ChunkRow) -> ChunkRow:
        """Read a chunk; gives its row back. Raises ChunkMissing, ChunkCorrupt, StoreError."""
        content = await self.open_verified(chunk_hash, row)
        if not isinstance(content, bytes):
            content.close()
        return row

    # --- after a commit ---

    def _note_unused(self, paths: list[str]) -> None:
        for path in paths:
            self._verified.pop(bytes.fromhex(path.rpartition("/")[2].partition(".")[0]), None)
        self.collector.remove_later(paths)


def adopt(store: SqliteStore, chunks: Iterable[FreshChunk]) -> None:
    """Make fresh chunks exist, in the caller's transaction; one of equal bytes that was there before is replaced."""
    for chunk in chunks:
        store.set_chunk(chunk.hash, ChunkRow(chunk.size, chunk.serial, chunk.content))
