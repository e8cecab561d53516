"""What this peer holds: the steps in which the content on its disk and its log change together.

A hold is declared only in the transaction that finds every chunk of its file there, and is taken back in the one that
finds a chunk gone. What the catalog says of others is looked up here too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import trio
from blake3 import blake3

from peer.events import Events, Value
from peer.store import lookups
from peer.store.catalog import SqliteStore
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import ChunkStore, adopt
from peer.store.database import Database, set_meta_value
from peer.store.errors import ChunkCorrupt, ChunkMissing
from peer.store.recent import Contents, RecentContents
from peer.store.rows import UNREADABLE, ChunkRow
from peer.store.space import Space
from peer.tasks import News
from peer.world.env import Clock, StoreError
from protocol import catalog
from protocol.forks import Fingerprints, find_fork
from protocol.identity import Dot, NodeId, Origin, VersionVector
from protocol.messages import SMALL_CHUNK_BYTES_MAX
from protocol.ops import Chunk, Delete, Op, Put
from protocol.replica import Heard, Replica

T = TypeVar("T")

log = logging.getLogger("minidfs.holding")

DAMAGED = "damaged"
"""The key in `meta` that says so."""

PINNED_FOR = "pinned_for"
"""The key in `meta` that names the peer for whose sake more content is kept than files need."""

OPS_TOLD_MAX = 50
"""Of one message: more than these are told as a number."""
KEYS_TOLD_MAX = 5
"""Of the files that a bad chunk was for."""

LOOKS_MAX = 8
"""At a chunk that is replaced again and again while it is being read."""


class Holding:
    """One peer's log, catalog and content, as one thing. A *step* runs inside a transaction, see `Database.write`."""

    def __init__(
        self,
        me: NodeId,
        clock: Clock,
        database: Database,
        replica: Replica,
        chunks: ChunkStore,
        space: Space,
        events: Events,
    ) -> None:
        self.me = me
        self.events = events
        """Told of what happens to files here."""
        self._clock = clock
        self.database = database
        self.replica = replica
        self.chunks = chunks
        self.space = space
        self.is_damaged = False
        """The catalog's rows are not what they were; kept over restarts, see `note_damage`."""
        self.verified = trio.Event()
        """Set once it is known whether the rows were damaged when this peer started."""
        self.is_closed = False
        """Nothing is taken in any more: this peer is about to leave its cluster."""
        self.inventoried = trio.Event()
        """Set once it is known which chunk files were there when this peer started."""
        self.pinned_for: NodeId | None = None
        """Content is kept that this peer's ops may need again, see `end_fork`."""
        self.recent = RecentContents()
        self.news = News()
        """Told when the catalog has changed."""
        self.own_news = News()
        """Told when it has by this peer's doing, which others are to hear of from this peer."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 by this peer's clock."""
        return self._clock.wall_ms()

    def check_open(self) -> None:
        """A step's part. Raises StoreError once nothing is taken in any more."""
        if self.is_closed:
            raise StoreError("this peer is leaving its cluster; ask another one")

    async def close_if(self, may_close: Callable[[], bool]) -> bool:
        """Take nothing in from now on, if in that moment it may be so. Raises StoreError."""

        def step() -> bool:
            self.is_closed = may_close()
            return self.is_closed

        return await self.database.write(step)

    # --- looking up, as last committed (each raises StoreError) ---

    def put_at(self, dot: Dot) -> Put | None:
        """The live put of a dot."""
        found = self.database.look_up(lambda connection: lookups.find_put(connection, dot))
        return found[1] if found else None

    def small_contents(self, put: Dot) -> Contents:
        """The chunks of a live put that are in the database, from memory if it has just come in."""
        recent = self.recent.of(put)
        if recent is not None:
            return recent
        live = self.put_at(put)
        small = [chunk for chunk in (live.manifest.chunks or ()) if chunk.size <= SMALL_CHUNK_BYTES_MAX] if live else []
        rows = {chunk.hash: self.chunks.row(chunk.hash) for chunk in small}
        return {
            chunk_hash: row.content for chunk_hash, row in rows.items() if row is not None and row.content is not None
        }

    def shown(self, file_key: str) -> Put | None:
        """The version of a file that is listed and served."""
        return self.database.look_up(lambda connection: lookups.find_shown(connection, file_key))

    def versions(self, file_key: str) -> list[Put]:
        """All live puts of a file, the one that is listed and served first."""
        return self.database.look_up(lambda connection: lookups.find_versions(connection, file_key))

    def holders(self, put: Dot) -> tuple[NodeId, ...]:
        """The peers that hold a put, by node id."""
        return self.database.look_up(lambda connection: lookups.holders_of(connection, put))

    # --- damaged rows ---

    def note_damage(self) -> None:
        """A step: from now on, and after each start, this peer is out for the whole state of another one."""
        set_meta_value(self.database.store.connection, DAMAGED, 1)

    def set_damage_apart(self) -> bool:
        """A step: whether rows are damaged, which shows as a sum that is not theirs; others have what was lost."""
        store = self.database.store
        if _sum_if_readable(store) == store.state_sum():
            return False
        log.error("rows of the catalog are damaged, for they do not give its sum; another peer's will take their place")
        store.remove_unreadable()
        self.note_damage()
        store.set_state_sum(catalog.sum_of_rows(store))
        return True

    def adopt(self, their_vv: VersionVector, fingerprints: Fingerprints) -> bool:
        """A step: take over what lies staged in place of damaged rows; content stays, and is declared anew.

        False when that is not possible, see `Replica.adopt_incoming`.
        """
        store = self.database.store
        store.pin_contents()
        adopted = self.replica.adopt_incoming(their_vv, fingerprints)
        store.recount_contents()
        self.replica.drop_unbacked(store.is_held, self.wall_ms())
        if adopted:
            set_meta_value(store.connection, DAMAGED, None)
        return adopted

    # --- forked logs ---

    def end_fork(self, origin: Origin, first: int, log_hashes: Sequence[bytes]) -> int:
        """A step: go back to where our log of an origin is the one with these running hashes, see `Replica.end_forks`.

        All content stays until `unpin`: what it is part of may come back under another name. Returns how many ops were
        taken back.
        """
        store = self.database.store
        fork = find_fork(store, origin, first, log_hashes)
        if fork.is_certain and fork.agreed == store.seen(origin):
            return 0
        store.pin_contents()
        set_meta_value(store.connection, PINNED_FOR, origin.node_id)
        return self.replica.end_forks({origin: fork})

    def unpin(self) -> None:
        """A step: let go of content that no file needs, and take back holds this disk does not back."""
        store = self.database.store
        store.recount_contents()
        self.replica.drop_unbacked(store.is_held, self.wall_ms())
        set_meta_value(store.connection, PINNED_FOR, None)

    # --- reading content ---

    async def read_chunk(self, chunk_hash: bytes, read: Callable[[bytes, ChunkRow], Awaitable[T]]) -> T | None:
        """What `read` makes of a chunk that is here; None when it is not, or no longer good, which is then seen to.

        A chunk that was replaced by equal bytes between looking it up and reading it is looked up again. Raises
        StoreError when the disk fails.
        """
        for _ in range(LOOKS_MAX):
            row = self.chunks.row(chunk_hash)
            if row is None:
                return None
            try:
                return await read(chunk_hash, row)
            except (ChunkMissing, ChunkCorrupt) as error:
                if self.chunks.row(chunk_hash) == row:
                    log.error("%s", error)
                    await self.lose_chunk(chunk_hash, row)
        return None

    async def verified_rows(self, chunks: Iterable[Chunk]) -> dict[bytes, ChunkRow]:
        """Of a file's chunks those this peer has, read and verified now. Raises StoreError."""
        rows: dict[bytes, ChunkRow] = {}
        for chunk in chunks:
            if chunk.hash not in rows:
                row = await self.read_chunk(chunk.hash, self.chunks.verify)
                if row is not None:
                    rows[chunk.hash] = row
        return rows

    # --- steps ---

    def hear(self, their_vv: VersionVector, fingerprints: Fingerprints, ops: Sequence[Op]) -> Heard:
        """A step: apply a peer's ops; holds of ours that are not backed, or doubled, are taken back at once."""
        heard = self.replica.hear(their_vv, fingerprints, ops, self.wall_ms())
        puts = [hold.put for hold in heard.my_holds]
        self.replica.drop_unbacked(self.database.store.is_held, self.wall_ms(), puts)
        return heard

    def take_holds(
        self,
        puts: Iterable[Dot],
        fresh: Mapping[bytes, FreshChunk],
        rows: Mapping[bytes, ChunkRow],
        *,
        recovered: bool,
    ) -> list[FreshChunk]:
        """A step: declare those of these puts held of which all chunks are there; returns what was adopted of them."""
        if self.is_closed:
            return []
        taken = {put: self.take_content(put, fresh, rows) for put in puts}
        whole = {put: adopted for put, adopted in taken.items() if adopted is not None}
        self.replica.hold_all(whole, self.wall_ms(), recovered=recovered)
        return [chunk for adopted in whole.values() for chunk in adopted]

    def take_content(
        self, put: Dot, fresh: Mapping[bytes, FreshChunk], rows: Mapping[bytes, ChunkRow]
    ) -> list[FreshChunk] | None:
        """A step's part: have the content of a put if all its chunks are there, fresh or verified, to declare it held.

        Returns what was adopted. None, and nothing happens, when the put is no longer live, or lacks a chunk.
        """
        store = self.database.store
        found = store.put_row(put)
        if found is None or found[1].manifest.chunks is None:
            return None
        row_id, live = found
        chunks = live.manifest.chunks or ()
        is_whole = all(chunk.hash in fresh or self.is_still(chunk.hash, rows.get(chunk.hash)) for chunk in chunks)
        if not is_whole and not store.is_held(put):
            return None
        # Of a put held already too: bytes that just came take the place of some that may have rotted.
        hashes = dict.fromkeys(chunk.hash for chunk in chunks)
        adopted = [fresh[chunk_hash] for chunk_hash in hashes if chunk_hash in fresh]
        adopt(store, adopted)
        store.mark_held(row_id, chunks)
        return adopted

    def is_still(self, chunk_hash: bytes, verified: ChunkRow | None) -> bool:
        """A step's part: whether a chunk that was verified a moment ago is there yet."""
        return verified is not None and self.database.store.chunk_row(chunk_hash) == verified

    def take_back(self, put: Dot) -> None:
        """A step: this disk has not all of a put; its hold ends, and what there is of it is kept."""
        store = self.database.store
        found = store.put_row(put)
        if found is not None:
            store.unmark_held(found[0])
        self.replica.drop(self.replica.my_holds_of(put), self.wall_ms())

    def condemn_chunk(self, chunk_hash: bytes, row: ChunkRow) -> list[str]:
        """A step: see `lose_chunk`; returns the keys of the files that are no longer held."""
        store = self.database.store
        is_good = row.content is not None and blake3(row.content).digest() == chunk_hash
        if is_good or store.chunk_row(chunk_hash) != row:
            return []
        broken = store.condemn(chunk_hash)
        for put in broken:
            self.replica.drop(self.replica.my_holds_of(put.dot), self.wall_ms())
        return [put.manifest.file_key for put in broken]

    def take_file(self, chunk_hash: bytes, row: ChunkRow, serial: int) -> bool:
        """A step: a chunk's file is another one than its row said, if the row still says so; it is to be verified."""
        store = self.database.store
        if not store.has_no_content(chunk_hash, row):
            return False
        store.set_chunk(chunk_hash, row._replace(serial=serial))
        return True

    # --- what turned out to be gone, or to be here ---

    async def lose_chunk(self, chunk_hash: bytes, row: ChunkRow) -> None:
        """A chunk turned out missing or corrupt, see `lose_chunks`. Raises StoreError."""
        await self.lose_chunks([(chunk_hash, row)])

    async def lose_chunks(self, lost: Sequence[tuple[bytes, ChunkRow]]) -> None:
        """Chunks turned out missing or corrupt: files they are part of are no longer held, so that they are fetched.

        The rows say which bytes they were: where others have taken their place by now, nothing happens. Raises
        StoreError.
        """

        def step() -> list[list[str]]:
            return [self.condemn_chunk(chunk_hash, row) for chunk_hash, row in lost]

        keys_of = await self.database.write(step)
        for (chunk_hash, _), keys in zip(lost, keys_of, strict=True):
            if keys:
                name = chunk_hash.hex()
                log.error("chunk %s is no longer good; %d files with it are no longer held", name, len(keys))
                self.events.tell("rot", file_keys=keys[:KEYS_TOLD_MAX], files=len(keys))
                self.tell_changed()

    def tell_changed(self, *, by_others: bool = False) -> None:
        """The catalog has changed: what it has now waits to be told to others, unless they are telling it already."""
        self.news.tell()
        if not by_others:
            self.own_news.tell()

    def tell_heard(self, ops: Sequence[Op], heard: Heard) -> None:
        """Tell who watches what others did, once it is here; of very much only how much."""
        if heard.applied != len(ops) or len(ops) > OPS_TOLD_MAX:
            # They came from another peer too, or this peer catches up.
            if heard.applied:
                self.events.tell("heard", changes=heard.applied)
            return
        for op in ops:
            match op:
                case Put():
                    self.tell_put(op)
                case Delete():
                    self.events.tell("deleted", file_key=op.file_key, node=op.dot.origin.node_id)

    def tell_put(self, put: Put, **more: Value) -> None:
        """Tell who watches that a file was uploaded, or registered."""
        manifest = put.manifest
        self.events.tell(
            "uploaded" if manifest.is_upload else "registered",
            file_key=manifest.file_key,
            filename=manifest.filename,
            size_bytes=manifest.size_bytes,
            node=put.dot.origin.node_id,
            **more,
        )

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
            self.tell_changed()

    async def declare_backed(self) -> None:
        """Verify content this disk has and no hold says so, then declare it held, or let it go. Raises StoreError."""
        found = await self.database.read(lambda connection: lookups.undeclared(connection, self.me))
        for put in found:
            await self.hold_verified(put, found_undeclared=True)
        if found:
            self.tell_changed()

    async def hold_verified(self, put: Put, *, found_undeclared: bool = False) -> None:
        """Verify what is here of a put and, if that is all of it, declare it held. Raises StoreError.

        One that was `found_undeclared` and is not whole is not held any more.
        """
        chunks = put.manifest.chunks or ()
        rows = await self.verified_rows(chunks)

        def step() -> None:
            if found_undeclared and not all(self.is_still(chunk.hash, rows.get(chunk.hash)) for chunk in chunks):
                self.take_back(put.dot)
            self.take_holds([put.dot], {}, rows, recovered=False)

        await self.database.write(step)


def _sum_if_readable(store: SqliteStore) -> int | None:
    """The sum of all rows; None when some of them can no longer be read."""
    try:
        return catalog.sum_of_rows(store)
    except UNREADABLE:
        return None
