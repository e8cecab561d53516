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

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import PeerState
from peer.world.env import ChunkCorrupt, ReadableFile, StoreError, Work
from protocol.identity import NodeId
from protocol.membership import Status
from protocol.ops import Chunk, Put

log = logging.getLogger("minidfs.downloads")

REMOTE_CHUNKS_MAX = 16
"""Chunks of other peers waiting in memory for their readers, over all downloads; beyond that they wait on the disk."""

FETCHES_MAX = 8
"""Chunks on their way here at once; one that does not move is given up, so nobody waits for long."""

VERIFY_INLINE_BYTES_MAX = 64 * 1024


class ContentUnavailable(Exception):
    """No peer that has the content can be reached now; the message says who was asked."""


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

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._remote_chunks = trio.CapacityLimiter(REMOTE_CHUNKS_MAX)
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)

    def source_of(self, put: Put) -> NodeId | None:
        """The peer a file is read from first: this one, or the reachable holder that answers soonest."""
        sources = self._sources(put)
        return sources[0] if sources else None

    def _sources(self, put: Put) -> list[NodeId]:
        holders = self._state.holders(put.dot)
        here = [self._state.me] if self._state.me in holders else []
        return here + [node_id for node_id in self._state.membership.reachable() if node_id in holders]

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
            content = await self.fetch(put, part.chunk)
        reader = object()
        try:
            self._remote_chunks.acquire_on_behalf_of_nowait(reader)
        except trio.WouldBlock:
            file = await self._state.env.run_blocking(Work.DISK, self._state.chunks.files.spool, content)
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
        state = self._state
        try:
            content = await state.read_chunk(part.chunk.hash, state.chunks.open_verified)
            if content is None:
                await state.doubt_hold(put.dot)
        except StoreError as error:
            log.error("%s; reading the chunk from another peer", error)
            return None
        if isinstance(content, bytes):
            return content[part.first : part.first + part.count]
        return None if content is None else FileSpan(content, part.first, part.count)

    async def fetch(self, put: Put, chunk: Chunk) -> bytes:
        """A chunk from the first peer that sends it whole and right. Raises ContentUnavailable."""
        failures: list[str] = []
        for node_id in self._candidates(put):
            peer = self._state.membership.member(node_id)
            if peer is None:
                continue
            try:
                content = await self._state.client.fetch_chunk(peer, chunk, put.dot)
                await self.verify(chunk, content)
            except (PeerUnreachable, ChunkCorrupt) as error:
                failures.append(str(error))
            else:
                return content
        asked = "; ".join(failures) if failures else "no other peer is known to be up"
        raise ContentUnavailable(f"{put.manifest.file_key} cannot be read now: {asked}")

    def _candidates(self, put: Put) -> list[NodeId]:
        """The reachable holders, quickest first; then those believed down, for beliefs are old; then everybody else.

        Who holds a file no longer, because one chunk of it went bad, still has the others.
        """
        membership = self._state.membership
        holders = [node_id for node_id in self._state.holders(put.dot) if node_id != self._state.me]
        reachable = membership.reachable()
        first = [node_id for node_id in reachable if node_id in holders]
        down = [node_id for node_id in holders if membership.status(node_id) is Status.DOWN]
        return first + down + [node_id for node_id in reachable if node_id not in holders]

    async def verify(self, chunk: Chunk, content: bytes) -> None:
        """Raises ChunkCorrupt unless the bytes are the chunk's."""
        if len(content) <= VERIFY_INLINE_BYTES_MAX:
            digest = blake3(content).digest()
        else:
            digest = await self._state.env.run_blocking(Work.HASH, lambda: blake3(content).digest())
        if digest != chunk.hash:
            raise ChunkCorrupt(f"what came as chunk {chunk.hash.hex()} does not give its hash")


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
