"""Getting a chunk from another peer: from whoever holds its file, the quickest first, verified on arrival."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from blake3 import blake3

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import Peers
from peer.store.errors import ChunkCorrupt
from peer.store.holding import Holding
from peer.world.env import Env, Work
from protocol.identity import NodeId
from protocol.ops import Chunk, Put

log = logging.getLogger("minidfs.fetching")

VERIFY_INLINE_BYTES_MAX = 64 * 1024


class ContentUnavailable(Exception):
    """No peer that has the content can be reached now; the message says who was asked."""


class Fetching:
    """Fetches chunks for one peer."""

    def __init__(self, env: Env, here: Holding, others: Peers) -> None:
        self._env = env
        self._here = here
        self._others = others

    def source_of(self, put: Put) -> NodeId | None:
        """The peer a file is read from first: this one, or the reachable holder that answers soonest."""
        holders = self._here.holders(put.dot)
        if self._here.me in holders:
            return self._here.me
        return next((node_id for node_id in self._others.membership.reachable() if node_id in holders), None)

    async def fetch(self, put: Put, chunk: Chunk) -> bytes:
        """A chunk from the first peer that sends it whole and right. Raises ContentUnavailable, StoreError."""
        failures: list[str] = []
        for node_id in self._candidates(put):
            peer = self._others.membership.member(node_id)
            if peer is None:
                continue
            try:
                content = await self._others.client.fetch_chunk(peer, chunk, put.dot)
                await self._verify(chunk, content)
            except (PeerUnreachable, ChunkCorrupt) as error:
                failures.append(str(error))
            else:
                if node_id not in self._here.holders(put.dot):
                    log.info("chunk %s came from %s, which does not hold its file", chunk.hash.hex(), node_id)
                return content
        asked = "; ".join(failures) if failures else "no other peer is known to be up"
        raise ContentUnavailable(f"{put.manifest.file_key} cannot be read now: {asked}")

    async def fetch_small(self, node_id: NodeId, chunks: Sequence[Chunk]) -> list[bytes | None]:
        """Small chunks from one peer, in one request; None for each that it did not send whole and right."""
        contents = list(await self._ask_for_small(node_id, chunks))[: len(chunks)]
        contents += [None] * (len(chunks) - len(contents))
        return [await self._if_right(chunk, content) for chunk, content in zip(chunks, contents, strict=True)]

    async def _ask_for_small(self, node_id: NodeId, chunks: Sequence[Chunk]) -> Sequence[bytes | None]:
        peer = self._others.membership.member(node_id)
        if peer is None:
            return ()
        try:
            return await self._others.client.fetch_small_chunks(peer, [chunk.hash for chunk in chunks])
        except PeerUnreachable:
            return ()

    async def _if_right(self, chunk: Chunk, content: bytes | None) -> bytes | None:
        try:
            if content is not None:
                await self._verify(chunk, content)
        except ChunkCorrupt:
            return None
        return content

    def _candidates(self, put: Put) -> list[NodeId]:
        """The reachable holders, quickest first; then those believed down, for beliefs are old; then everybody else.

        Who holds a file no longer, because one chunk of it went bad, still has the others.
        """
        holders = [node_id for node_id in self._here.holders(put.dot) if node_id != self._here.me]
        reachable = self._others.membership.reachable()
        first = [node_id for node_id in reachable if node_id in holders]
        down = [node_id for node_id in holders if self._others.is_down(node_id)]
        return first + down + [node_id for node_id in reachable if node_id not in holders]

    async def _verify(self, chunk: Chunk, content: bytes) -> None:
        """Raises ChunkCorrupt unless the bytes are the chunk's."""
        if len(content) <= VERIFY_INLINE_BYTES_MAX:
            digest = blake3(content).digest()
        else:
            digest = await self._env.run_blocking(Work.HASH, lambda: blake3(content).digest())
        if digest != chunk.hash:
            raise ChunkCorrupt(f"what came as chunk {chunk.hash.hex()} does not give its hash")
