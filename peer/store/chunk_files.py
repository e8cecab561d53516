"""Chunk files: written aside, synced, renamed to a name never used twice; and bytes set aside to be read once.

Small chunks stay in memory, to go into the database with the transaction that adopts them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from peer.store.rows import chunk_file_name
from peer.store.space import Space
from peer.world.env import Disk, Env, FileIdentity, NoSpace, StoreError, Work, WritableFile

log = logging.getLogger("minidfs.chunks")

RECEIVING = "receiving"
"""The folder of what is being written."""

CHUNKS = "chunks"

SERIALS = "chunk serials"
"""The random stream of the numbers that tell files of one chunk apart."""


@dataclass(frozen=True, slots=True)
class FreshChunk:
    """A chunk whose bytes are synced (or held in memory, to go into the database) and that no row names yet."""

    hash: bytes
    size: int
    serial: int | None
    content: bytes | None


class ChunkFiles:
    """Writes the chunk files of one peer. Methods that are not `async` block, but for those that say otherwise."""

    def __init__(self, env: Env, inline_bytes_max: int, space: Space) -> None:
        self._env = env
        self._space = space
        self._serials = env.chance(SERIALS)
        self._drawn: set[int] | None = set()
        self._folders: set[str] = set()
        self.disk = env.disk
        self.inline_bytes_max = inline_bytes_max

    def make_folders(self) -> None:
        """Have the folders, and nothing in the one for what is being written. Raises StoreError."""
        for folder in (RECEIVING, CHUNKS):
            self.disk.make_folder(folder)
        # The folders in it may be names that a kill left unsynced.
        self.disk.sync_folder(CHUNKS)
        for name, _ in self.disk.list_files(RECEIVING):
            self.disk.remove(f"{RECEIVING}/{name}")

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
        serial = self._serials.getrandbits(53)
        if self._drawn is not None:
            self._drawn.add(serial)
        return serial

    def is_of_this_life(self, serial: int) -> bool:
        """Whether a number was drawn since the start; known until `forget_serials`."""
        assert self._drawn is not None, "nobody asks any more"
        return serial in self._drawn

    def forget_serials(self) -> None:
        """Nobody will ask any more which files were there before the start."""
        self._drawn = None

    def publish(self, incoming: str, path: str) -> None:
        """Give a synced incoming file its final name, durably. Raises StoreError."""
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self.disk.make_folder(folder)
            self._folders.add(folder)
        self.disk.rename(incoming, path)
        self.disk.sync_folder(folder)

    def spool(self, content: bytes) -> SpooledFile:
        """Bytes set aside on the disk to be read once; they need not survive anything. Raises NoSpace, StoreError."""
        path = f"{RECEIVING}/{self.next_serial()}"
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

    def remove(self, paths: list[str]) -> None:
        """Remove chunk files nobody needs; what the disk keeps, the next start removes."""
        for path in paths:
            try:
                self.disk.remove(path)
            except StoreError as error:
                log.warning("an unused chunk file stays until the next start: %s", error)


class ChunkWriter:
    """Takes one chunk's bytes in pieces; all methods block once there are more than fit the database.

    Where it is not `inline`, each byte goes into a file: then also a small chunk is synced when it is finished.
    """

    def __init__(self, files: ChunkFiles, *, inline: bool = True) -> None:
        self._files = files
        self._inline_bytes_max = files.inline_bytes_max if inline else 0
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
        with self._files.noting_full():
            self._write(piece)

    def _write(self, piece: bytes | memoryview) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        if self._file is not None:
            self._file.write(piece)
        elif self.size <= self._inline_bytes_max:
            self._head += piece
        else:
            self._serial = self._files.next_serial()
            self._file = self._files.disk.create(f"{RECEIVING}/{self._serial}")
            self._file.write(bytes(self._head))
            self._file.write(piece)
            self._head.clear()

    def finish(self) -> FreshChunk:
        """Sync what was written and give it its name. Raises NoSpace, StoreError."""
        with self._files.noting_full():
            return self._finish()

    def _finish(self) -> FreshChunk:
        chunk_hash = self._hash.digest()
        if self._file is None:
            return FreshChunk(chunk_hash, self.size, None, bytes(self._head))
        self._file.sync()
        self._file.close()
        self._published = chunk_file_name(chunk_hash, self._serial)
        self._files.publish(f"{RECEIVING}/{self._serial}", self._published)
        return FreshChunk(chunk_hash, self.size, self._serial, None)

    def abandon(self) -> None:
        """Leave nothing behind of a chunk that was not finished (what the disk keeps, the next start removes)."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
            for path in (f"{RECEIVING}/{self._serial}", self._published):
                if path is not None:
                    self._files.disk.remove(path)
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
