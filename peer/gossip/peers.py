"""What the services of one peer share, and the steps in which its content and its log change together."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio
from blake3 import blake3

from peer.config import Config
from peer.gossip.client import PeerClient
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import ChunkStore, adopt
from peer.store.database import Database
from peer.store.rows import ChunkRow, select_puts
from peer.store.space import Space
from peer.world.env import ChunkCorrupt, ChunkMissing, Env
from protocol.identity import Dot, NodeId
from protocol.membership import Membership
from protocol.messages import Member
from protocol.ops import Chunk, Put
from protocol.placement import PARTITIONS, Place, partition_of, rank_places
from protocol.replica import Replica

T = TypeVar("T")

log = logging.getLogger("minidfs.state")

LOOKS_MAX = 8
"""At a chunk that is replaced again and again while it is being read."""


class Bell:
    """Wakes whoever waits for it to ring."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = trio.Event()

    async def wait_ring(self) -> None:
        """Return at the next ring."""
        await self._event.wait()


class _Ranking:
    """The ranks that follow from some places, found out as they are asked for."""

    def __init__(self, places: tuple[Place, ...]) -> None:
        self.places = places
        self._ranks: dict[int, list[NodeId]] = {}

    def of(self, partition: int) -> list[NodeId]:
        found = self._ranks.get(partition)
        if found is None:
            found = self._ranks[partition] = rank_places(partition, self.places)
        return found


class Placement:
    """Which peers should hold which files: in memory at once when members change, in the queue a little later."""

    def __init__(self) -> None:
        self._ranking = _Ranking(())
        self.queued: list[list[NodeId]] = [[] for _ in range(PARTITIONS)]
        """The ranks by which the queue of missing copies was last made, as the database has them."""

    def follow(self, members: Iterable[Member]) -> tuple[Place, ...]:
        """From now on these are the members; returns their places."""
        self._ranking = _Ranking(tuple(Place(member.node_id, member.zone) for member in members))
        return self._ranking.places

    def targets(self, partition: int, copies: int) -> Sequence[NodeId]:
        """The peers that should hold a partition's files (from any thread)."""
        return self._ranking.of(partition)[:copies]

    def targets_of(self, file_key: str, copies: int) -> Sequence[NodeId]:
        """The peers that should hold a file."""
        return self.targets(partition_of(file_key), copies)


@dataclass(slots=True)
class PeerState:
    """The parts of a running peer."""

    env: Env
    config: Config
    cluster_id: str
    me: NodeId
    database: Database
    replica: Replica
    chunks: ChunkStore
    membership: Membership
    placement: Placement
    client: PeerClient
    space: Space
    news: Bell = field(default_factory=Bell)
    """The catalog has changed."""
    ready: trio.Event = field(default_factory=trio.Event)
    """Set once this peer has joined its cluster."""
    draining: bool = False

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by this peer's clock."""
        return self.env.clock.wall_ms()

    def put_row(self, dot: Dot) -> tuple[int, Put] | None:
        """Row id and put of a live dot, as last committed."""
        condition = "WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ?"
        values = (dot.seq, dot.origin.epoch, dot.origin.node_id)
        return self.database.look_up(lambda connection: next(select_puts(connection, condition, *values), None))

    def shown(self, file_key: str) -> Put | None:
        """The version of a file that is listed and served, as last committed."""
        condition = "WHERE puts.file_key = ? AND puts.shown"
        found = self.database.look_up(lambda connection: next(select_puts(connection, condition, file_key), None))
        return found[1] if found else None

    def holders(self, put: Dot) -> list[NodeId]:
        """The peers that hold a put, as last committed, by node id."""
        query = (
            "SELECT DISTINCT holder.node_id FROM puts"
            " JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node"
            " JOIN holds ON holds.put = puts.id"
            " JOIN origins ho ON ho.id = holds.origin JOIN nodes holder ON holder.id = ho.node"
            " WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ? ORDER BY holder.node_id"
        )
        values = (put.seq, put.origin.epoch, put.origin.node_id)
        rows = self.database.look_up(lambda connection: connection.execute(query, values).fetchall())
        return [NodeId(node_id) for (node_id,) in rows]

    # --- holding content ---

    async def read_chunk(self, name: bytes, read: Callable[[bytes, ChunkRow], Awaitable[T]]) -> T | None:
        """What `read` makes of a chunk that is here; None when it is not, or no longer good, which is then seen to.

        A chunk that was replaced by equal bytes between looking it up and reading it is looked up again. Raises
        StoreError when the disk fails.
        """
        for _ in range(LOOKS_MAX):
            row = self.chunks.row(name)
            if row is None:
                return None
            try:
                return await read(name, row)
            except (ChunkMissing, ChunkCorrupt) as error:
                if self.chunks.row(name) == row:
                    log.error("%s", error)
                    await self.lose_chunk(name, row)
        return None

    async def verified_rows(self, chunks: Iterable[Chunk], fresh: Mapping[bytes, FreshChunk]) -> dict[bytes, ChunkRow]:
        """Of a file's chunks those this peer has had before, read and verified now. Raises StoreError."""
        rows: dict[bytes, ChunkRow] = {}
        for chunk in chunks:
            if chunk.hash not in fresh and chunk.hash not in rows:
                row = await self.read_chunk(chunk.hash, self.chunks.verify)
                if row is not None:
                    rows[chunk.hash] = row
        return rows

    def take_hold(
        self, put: Dot, fresh: Mapping[bytes, FreshChunk], rows: Mapping[bytes, ChunkRow], *, recovered: bool
    ) -> list[FreshChunk]:
        """A step: declare a put held if all its chunks are there, fresh or verified; returns what was adopted.

        Nothing happens when the put is no longer live, or lacks a chunk.
        """
        store = self.database.store
        found = store.put_row(put)
        if found is None or found[1].manifest.chunks is None:
            return []
        row_id, live = found
        chunks = live.manifest.chunks or ()
        is_whole = all(chunk.hash in fresh or self.is_still(chunk.hash, rows.get(chunk.hash)) for chunk in chunks)
        if not is_whole and not store.is_held(put):
            return []
        # Of a put held already too: bytes that just came take the place of some that may have rotted.
        adopted = [fresh[name] for name in dict.fromkeys(chunk.hash for chunk in chunks) if name in fresh]
        adopt(store, adopted)
        store.mark_held(row_id, chunks)
        self.replica.hold(put, self.wall_ms(), recovered=recovered)
        return adopted

    def is_still(self, name: bytes, verified: ChunkRow | None) -> bool:
        """Whether a chunk that was verified a moment ago is there yet, in this transaction."""
        return verified is not None and self.database.store.chunk_row(name) == verified

    def take_back(self, put: Dot) -> None:
        """A step: this disk has not all of a put; its hold ends, and what there is of it is kept."""
        store = self.database.store
        found = store.put_row(put)
        if found is not None:
            store.unmark_held(found[0])
        self.replica.drop(self.replica.my_holds_of(put), self.wall_ms())

    async def doubt_hold(self, put: Dot) -> None:
        """A chunk of a put is not here: if this peer says all the same that it has the put, it takes that back.

        Raises StoreError.
        """
        if self.me not in self.holders(put):
            return

        def step() -> bool:
            found = self.database.store.put_row(put)
            chunks = (found[1].manifest.chunks or ()) if found else ()
            if all(self.database.store.chunk_row(chunk.hash) is not None for chunk in chunks):
                return False
            self.take_back(put)
            return True

        if await self.database.write(step):
            log.error("%s was said to be held here and is not whole; it will be fetched", put)
            self.news.ring()

    async def lose_chunk(self, name: bytes, row: ChunkRow) -> None:
        """A chunk turned out missing or corrupt: the files it is part of are no longer held, so that it is fetched.

        `row` says which bytes it was: if others have taken their place by now, nothing happens. Raises StoreError.
        """
        keys = await self.database.write(lambda: self.condemn_chunk(name, row))
        if keys:
            log.error("chunk %s is no longer good; %d files it is part of are no longer held", name.hex(), len(keys))
            self.news.ring()

    def condemn_chunk(self, name: bytes, row: ChunkRow) -> list[str]:
        """A step: see `lose_chunk`; returns the keys of the files that are no longer held."""
        store = self.database.store
        if store.chunk_row(name) != row or (row.content is not None and blake3(row.content).digest() == name):
            return []
        broken = store.condemn(name)
        for put in broken:
            self.replica.drop(self.replica.my_holds_of(put.dot), self.wall_ms())
        return [put.manifest.file_key for put in broken]
