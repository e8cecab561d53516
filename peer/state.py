"""What the services of one peer share, and the steps in which its content and its log change together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from peer.catalog_store import select_puts
from peer.chunk_store import ChunkRow, ChunkStore, FreshChunk, adopt
from peer.client import PeerClient
from peer.config import Config
from peer.database import Database
from peer.env import Env
from protocol.identity import Dot, NodeId
from protocol.membership import Membership
from protocol.messages import Member
from protocol.ops import Chunk, Put
from protocol.placement import PARTITIONS, Place, partition_of, rank_places
from protocol.replica import Replica

log = logging.getLogger("minidfs.state")


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


class Placement:
    """Which peers should hold which files: in memory at once when members change, in the queue a little later."""

    def __init__(self) -> None:
        self._places: tuple[Place, ...] = ()
        self._ranks: dict[int, list[NodeId]] = {}
        self.queued: list[list[NodeId]] = [[] for _ in range(PARTITIONS)]
        """The ranks by which the queue of missing copies was last made, as the database has them."""

    def follow(self, members: Iterable[Member]) -> tuple[Place, ...]:
        """From now on these are the members; returns their places."""
        self._places = tuple(Place(member.node_id, member.zone) for member in members)
        self._ranks = {}
        return self._places

    def targets(self, partition: int, copies: int) -> Sequence[NodeId]:
        """The peers that should hold a partition's files."""
        ranks = self._ranks
        if partition not in ranks:
            ranks[partition] = rank_places(partition, self._places)
        return ranks[partition][:copies]

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
        return next(
            select_puts(
                self.database.reader,
                "WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ?",
                dot.seq,
                dot.origin.epoch,
                dot.origin.node_id,
            ),
            None,
        )

    def shown(self, file_key: str) -> Put | None:
        """The version of a file that is listed and served, as last committed."""
        found = next(select_puts(self.database.reader, "WHERE puts.file_key = ? AND puts.shown", file_key), None)
        return found[1] if found else None

    def holders(self, put: Dot) -> list[NodeId]:
        """The peers that hold a put, as last committed, by node id."""
        rows = self.database.reader.execute(
            "SELECT DISTINCT holder.node_id FROM puts"
            " JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node"
            " JOIN holds ON holds.put = puts.id"
            " JOIN origins ho ON ho.id = holds.origin JOIN nodes holder ON holder.id = ho.node"
            " WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ? ORDER BY holder.node_id",
            (put.seq, put.origin.epoch, put.origin.node_id),
        )
        return [NodeId(node_id) for (node_id,) in rows]

    # --- holding content ---

    async def verified_rows(self, chunks: Iterable[Chunk], fresh: Mapping[bytes, FreshChunk]) -> dict[bytes, ChunkRow]:
        """Of a file's chunks those this peer has had before, read and verified now. Raises StoreError."""
        rows: dict[bytes, ChunkRow] = {}
        for chunk in chunks:
            if chunk.hash not in fresh and chunk.hash not in rows:
                row = await self.chunks.verify_row(chunk.hash)
                if row is not None:
                    rows[chunk.hash] = row
        return rows

    def take_hold(
        self, put: Dot, fresh: Mapping[bytes, FreshChunk], rows: Mapping[bytes, ChunkRow], *, recovered: bool
    ) -> list[FreshChunk]:
        """A step: declare a put held if all its chunks are there, fresh or verified; returns what was adopted.

        Nothing happens when the put is no longer live, is held already, or lacks a chunk.
        """
        store = self.database.store
        found = store.put_row(put)
        if found is None or found[1].manifest.chunks is None:
            return []
        row_id, live = found
        chunks = live.manifest.chunks or ()
        is_whole = all(chunk.hash in fresh or self._is_still(chunk.hash, rows.get(chunk.hash)) for chunk in chunks)
        if not is_whole and not store.is_held(put):
            return []
        # Of a put held already too: bytes that just came take the place of some that may have rotted.
        adopted = [fresh[name] for name in dict.fromkeys(chunk.hash for chunk in chunks) if name in fresh]
        adopt(store, adopted)
        store.mark_held(row_id, chunks)
        self.replica.hold(put, self.wall_ms(), recovered=recovered)
        return adopted

    def _is_still(self, name: bytes, verified: ChunkRow | None) -> bool:
        """Whether a chunk that was verified a moment ago is there yet, in this transaction."""
        if verified is None:
            return False
        row = self.database.store.connection.execute("SELECT serial FROM chunks WHERE hash = ?", (name,)).fetchone()
        return row is not None and row[0] == verified.serial

    def give_up(self, put: Dot) -> None:
        """A step: this disk no longer backs a put; take the hold back and let its chunks go."""
        store = self.database.store
        found = store.put_row(put)
        if found is None:
            return
        store.release(found[0], found[1].manifest.chunks or ())
        self.replica.drop(self.replica.my_holds_of(put), self.wall_ms())

    async def lose_chunk(self, name: bytes, serial: int | None) -> None:
        """A chunk turned out missing or corrupt: give up the files it is part of, so that they are repaired.

        `serial` says which file it was (None: the database). Nothing happens when the chunk has another by now: then
        it was deleted, or stored anew, between looking it up and reading it.
        """
        keys = await self.database.write(lambda: self.give_up_chunk(name, serial))
        if keys:
            log.error("chunk %s is no longer good; gave up %d files it is part of", name.hex(), len(keys))
            self.news.ring()

    def give_up_chunk(self, name: bytes, serial: int | None) -> list[str]:
        """A step: give up every held file a chunk is part of, if it still is where it was; returns their keys."""
        store = self.database.store
        row = store.connection.execute("SELECT serial FROM chunks WHERE hash = ?", (name,)).fetchone()
        if row is None or row[0] != serial:
            return []
        held = [
            put
            for _, put in select_puts(store.connection, "WHERE puts.held AND instr(puts.chunks, ?) > 0", name)
            if any(chunk.hash == name for chunk in put.manifest.chunks or ())
        ]
        for put in held:
            self.give_up(put.dot)
        return [put.manifest.file_key for put in held]
