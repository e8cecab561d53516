"""Small files of other peers, for readers here: those that want one of a peer at the same time share a request.

A request and its answer cost both peers several times what a file of 4 KiB in them does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from peer.gossip.fetching import Fetching
from protocol.identity import NodeId
from protocol.ops import Chunk

REQUESTS_MAX = 2
"""To one peer at a time: while it answers one, this peer can do what there is to do for the other."""
CHUNKS_MAX = 64
BYTES_MAX = 1024 * 1024
"""Of chunks asked for in one request, or one chunk more."""
PATIENCE_S = 2.0
"""A reader does not wait longer: then its chunk is asked for apart, and of others too."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A request to come, and what it brought."""

    chunks: dict[Chunk, None] = field(default_factory=dict)
    size: int = 0
    contents: dict[bytes, bytes] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def is_full(self) -> bool:
        return len(self.chunks) >= CHUNKS_MAX or self.size >= BYTES_MAX

    def add(self, chunk: Chunk) -> None:
        if chunk not in self.chunks:
            self.chunks[chunk] = None
            self.size += chunk.size


class SmallReads:
    """Reads small chunks of other peers."""

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[NodeId, deque[_Turn]] = {}
        self._running: dict[NodeId, int] = {}

    async def run(self) -> None:
        """Send the requests, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def read(self, node_id: NodeId, chunk: Chunk) -> bytes | None:
        """A chunk from a peer, verified; None when it does not send it whole and right, or not soon."""
        if self._nursery is None:
            return None
        turns = self._waiting.setdefault(node_id, deque())
        if not turns or turns[-1].is_full:
            turns.append(_Turn())
        turn = turns[-1]
        turn.add(chunk)
        running = self._running.get(node_id, 0)
        if running < REQUESTS_MAX:
            self._running[node_id] = running + 1
            self._nursery.start_soon(self._ask, node_id)
        with trio.move_on_after(PATIENCE_S):
            await turn.done.wait()
        return turn.contents.get(chunk.hash)

    async def _ask(self, node_id: NodeId) -> None:
        """One request after the other, as long as something is wanted of a peer."""
        turns = self._waiting[node_id]
        try:
            while turns:
                turn = turns.popleft()
                try:
                    chunks = list(turn.chunks)
                    contents = await self._fetching.fetch_small(node_id, chunks)
                    found = zip(chunks, contents, strict=True)
                    turn.contents = {chunk.hash: content for chunk, content in found if content is not None}
                finally:
                    turn.done.set()
        finally:
            self._running[node_id] -= 1
