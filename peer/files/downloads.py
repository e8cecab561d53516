"""Handing a file out: verified chunk by chunk, from this disk or from whoever holds it.

No byte leaves before the chunk it is part of gave its hash, so a client can get a file that ends early, when every
holder is gone, but never a wrong byte.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import trio
from blake3 import blake3

from peer.files.small_reads import SmallReads
from peer.gossip.fetching import Fetching
from peer.store.holding import Holding
from peer.store.lookups import SmallFile, find_small
from peer.store.recent import RecentContents
from peer.world.env import Env, ReadableFile, StoreError, Work
from protocol.identity import NodeId
from protocol.ops import Chunk, Put

log = logging.getLogger("minidfs.downloads")

REMOTE_CHUNKS_MAX = 16
"""Chunks of other peers waiting in memory for their readers, over all downloads; beyond that they wait on the disk."""

FETCHES_MAX = 8
"""Chunks on their way here at once; one that does not move is given up, so nobody waits for long."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes to be sent straight from an open file, which stays open until the next piece is asked for."""

    file: ReadableFile
    offset: int
    count: int


Piece = bytes | FileSpan


@dataclass(frozen=True, slots=True)
class _Part:
    """Which bytes of a chunk are asked for."""

    chunk: Chunk
    first: int
    count: int


class Downloads:
    """Reads files for one peer."""

    def __init__(self, env: Env, here: Holding, fetching: Fetching, small_reads: SmallReads) -> None:
        self._env = env
        self._here = here
        self._fetching = fetching
        self._small_reads = small_reads
        self._recent = RecentContents()
        self._remote_chunks = trio.CapacityLimiter(REMOTE_CHUNKS_MAX)
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)

    def small(self, file_key: str) -> SmallFile | None:
        """A small file that is here whole, read and verified; None for all others, and what cannot be read.

        Whoever gets None looks with `Keys.find` and reads with `pieces`, which see to what is wrong.
        """
        try:
            file = self._here.database.look_up(lambda connection: find_small(connection, file_key))
        except StoreError:
            return None
        return file if file is not None and is_good(file) else None

    async def small_elsewhere(self, file_key: str, bytes_max: int) -> tuple[SmallFile, NodeId] | None:
        """A file of up to so many bytes that is not here, from a peer that has it, verified; None as with `small`."""
        try:
            put = self._here.shown(file_key)
            source = None if put is None else self._fetching.source_of(put)
        except StoreError:
            return None
        if put is None or source is None or source == self._here.me:
            return None
        manifest = put.manifest
        if manifest.chunks is None or len(manifest.chunks) != 1 or manifest.size_bytes > bytes_max:
            return None
        (chunk,) = manifest.chunks
        known = self._recent.of(put.dot)
        content = known[chunk.hash] if known is not None else await self._small_reads.read(source, chunk)
        if content is None:
            return None
        if known is None:
            self._recent.remember(put.dot, {chunk.hash: content})
        file = SmallFile(
            manifest.filename,
            manifest.content_type,
            manifest.size_bytes,
            manifest.sha256,
            manifest.uploaded_at_ms,
            chunk.hash,
            content,
        )
        return (file, source) if is_good(file) else None

    async def pieces(self, put: Put, first: int, count: int) -> AsyncGenerator[Piece, None]:
        """`count` bytes of a file from `first`, each verified.

        Raises ContentUnavailable when nobody reachable has a chunk; before the first piece, when it is the first one.
        """
        for part in _parts(put, first, count):
            local = await self._local(put, part)
            if isinstance(local, bytes):
                yield local
            elif local is not None:
                try:
                    yield local
                finally:
                    local.file.close()
            else:
                async with aclosing(self._remote(put, part)) as pieces:
                    async for piece in pieces:
                        yield piece

    async def _remote(self, put: Put, part: _Part) -> AsyncGenerator[Piece, None]:
        """A part of a chunk of another peer, from memory, or from this disk when slow readers fill the memory."""
        async with self._fetches:
            content = await self._fetching.fetch(put, part.chunk)
        reader = object()
        try:
            self._remote_chunks.acquire_on_behalf_of_nowait(reader)
        except trio.WouldBlock:
            file = await self._env.run_blocking(Work.DISK, self._here.chunks.files.spool, content)
            del content
            try:
                yield FileSpan(file, part.first, part.count)
            finally:
                file.close()
            return
        try:
            yield content[part.first : part.first + part.count]
        finally:
            self._remote_chunks.release_on_behalf_of(reader)

    async def _local(self, put: Put, part: _Part) -> Piece | None:
        """A part from this disk; None when the chunk is not here, or no longer good, which is then seen to."""
        try:
            content = await self._here.read_chunk(part.chunk.hash, self._here.chunks.open_verified)
            if content is None:
                await self._here.doubt_hold(put.dot)
        except StoreError as error:
            log.error("%s; reading the chunk from another peer", error)
            return None
        if isinstance(content, bytes):
            return content[part.first : part.first + part.count]
        return None if content is None else FileSpan(content, part.first, part.count)


def is_good(file: SmallFile) -> bool:
    """Whether a content is the one its chunk is named for."""
    return len(file.content) == file.size_bytes and blake3(file.content).digest() == file.chunk_hash


def _parts(put: Put, first: int, count: int) -> list[_Part]:
    """The parts of chunks that make up a range of a file."""
    parts: list[_Part] = []
    start = 0
    for chunk in put.manifest.chunks or ():
        begin, end = max(first, start), min(first + count, start + chunk.size)
        if begin < end:
            parts.append(_Part(chunk, begin - start, end - begin))
        start += chunk.size
    return parts
