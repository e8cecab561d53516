"""Fetches what this peer lacks: repair is a pull by the one who needs it.

The files with the fewest live copies come first. Small files are fetched many at a time; a chunk of a larger one that
arrived stays staged, so that a repair broken off goes on where it was.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from types import MappingProxyType

import trio

from peer.files.downloads import ContentUnavailable, Downloads
from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import PeerState
from peer.store.chunk_files import FreshChunk
from peer.store.rows import ChunkRow, select_puts
from peer.world.env import ChunkCorrupt, StoreError
from protocol.identity import Dot, NodeId
from protocol.ops import Chunk, Put
from protocol.placement import item_id

log = logging.getLogger("minidfs.repair")

BATCH_FILES = 64
"""Small files fetched in one request and declared in one transaction."""

BATCH_BYTES_MAX = 2 * 1024 * 1024

LANES = 3
"""Larger files fetched side by side: one alone mostly waits for syncs. Each has a chunk or two in memory."""

SETTLE_S = 1.0
"""After news of a file an upload may still be bringing it here; only then it is fetched."""

BACK_OFF_S = 5.0
"""After the first failure; doubled with each one up to the heal interval, with jitter."""


class Unfetchable(Exception):
    """A file this peer lacks cannot be had now."""


class ItemStatus(Enum):
    """Of an item of the replication queue."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(slots=True)
class Attempt:
    """What this peer alone knows of a file it lacks."""

    status: ItemStatus = ItemStatus.PENDING
    retry_count: int = 0
    last_attempt_ms: int | None = None
    error: str | None = None
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one look at everything this peer lacks came to."""

    total: int
    success: int
    failed: int


@dataclass(slots=True)
class _Batch:
    """Small files that one peer is asked for together."""

    puts: list[Put] = field(default_factory=list)
    size: int = 0


class Repair:
    """The repairs of one peer."""

    def __init__(self, state: PeerState, downloads: Downloads) -> None:
        self._state = state
        self._downloads = downloads
        self._turn = trio.Lock()
        self._wanted = trio.Event()
        self._jitter: Random = state.env.chance("repair")
        self.attempts: dict[Dot, Attempt] = {}

    async def run(self) -> None:
        """Repair soon after news, at once when kicked, and every heal interval, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_news)
            while True:
                with trio.move_on_after(self._state.config.heal_interval_s):
                    await self._wanted.wait()
                self._wanted = trio.Event()
                if self._state.space.reason is not None:
                    continue
                try:
                    await self.heal()
                except StoreError as error:
                    log.error("repair stopped: %s", error)

    def kick(self) -> None:
        """Repair now."""
        self._wanted.set()

    def retry_now(self) -> None:
        """Repair now, also what failed a short while ago: a peer has come back that may have it."""
        for attempt in self.attempts.values():
            attempt.not_before = 0.0
        self.kick()

    async def _watch_news(self) -> None:
        while True:
            await self._state.news.wait_ring()
            await trio.sleep(SETTLE_S)
            try:
                if self._lacks_something():
                    self.kick()
            except StoreError as error:
                log.error("cannot look for missing copies: %s", error)

    def _lacks_something(self) -> bool:
        query = (
            "SELECT EXISTS (SELECT 1 FROM queue JOIN nodes ON nodes.id = queue.target"
            " WHERE nodes.node_id = ? AND queue.status = 'PENDING')"
        )
        me = self._state.me
        return self._state.database.look_up(lambda connection: bool(connection.execute(query, (me,)).fetchone()[0]))

    async def heal(self, *, all_of_it: bool = False) -> Recovery:
        """Fetch what this peer lacks; with `all_of_it` also what failed a short while ago. Raises StoreError."""
        async with self._turn:
            live = (self._state.me, *self._state.membership.reachable())
            lacking = await self._state.database.read(lambda connection: self._deficits(connection, live))
            self._forget_attempts(lacking)
            due = [put for put in lacking if all_of_it or self._is_due(put.dot)]
            before = {put.dot for put in due}
            await self._fetch_all(due)
            if due:
                self._state.news.ring()
            failed = sum(1 for dot in self.attempts if dot in before)
            return Recovery(total=len(due), success=len(due) - failed, failed=failed)

    def _deficits(self, connection: sqlite3.Connection, live: Sequence[NodeId]) -> list[Put]:
        """What this peer lacks, the files with the fewest copies on live peers first."""
        condition = (
            "JOIN queue ON queue.put = puts.id JOIN nodes target ON target.id = queue.target"
            " WHERE target.node_id = ? AND queue.status = 'PENDING' ORDER BY"
            " (SELECT count(*) FROM holds JOIN origins ho ON ho.id = holds.origin JOIN nodes hn ON hn.id = ho.node"
            f" WHERE holds.put = puts.id AND hn.node_id IN ({', '.join('?' * len(live))})), puts.id"
        )
        return [put for _, put in select_puts(connection, condition, self._state.me, *live)]

    def _forget_attempts(self, lacking: Iterable[Put]) -> None:
        still = {put.dot for put in lacking}
        self.attempts = {dot: attempt for dot, attempt in self.attempts.items() if dot in still}

    def _is_due(self, dot: Dot) -> bool:
        attempt = self.attempts.get(dot)
        return attempt is None or attempt.not_before <= self._state.env.clock.now()

    # --- fetching ---

    async def _fetch_all(self, puts: Sequence[Put]) -> None:
        batches: dict[NodeId, _Batch] = {}
        larger: list[Put] = []
        for put in puts:
            source = self._source_of_small(put)
            if source is None:
                larger.append(put)
                continue
            self._begin(put.dot)
            batch = batches.setdefault(source, _Batch())
            batch.puts.append(put)
            batch.size += put.manifest.size_bytes
            if len(batch.puts) >= BATCH_FILES or batch.size > BATCH_BYTES_MAX:
                await self._fetch_batch(source, batches.pop(source).puts)
        for source, batch in batches.items():
            await self._fetch_batch(source, batch.puts)
        await self._fetch_side_by_side(larger)

    async def _fetch_side_by_side(self, puts: Sequence[Put]) -> None:
        waiting = iter(puts)

        async def lane() -> None:
            for put in waiting:
                self._begin(put.dot)
                await self._fetch_one(put)

        async with trio.open_nursery() as nursery:
            for _ in range(min(LANES, len(puts))):
                nursery.start_soon(lane)

    def _source_of_small(self, put: Put) -> NodeId | None:
        """Whom to ask for a file that is one small chunk; None when it takes more than one question."""
        chunks = put.manifest.chunks
        if chunks is None or len(chunks) != 1 or chunks[0].size > self._state.config.inline_bytes_max:
            return None
        source = self._downloads.source_of(put)
        return None if source == self._state.me else source

    async def _fetch_batch(self, source: NodeId, puts: Sequence[Put]) -> None:
        peer = self._state.membership.member(source)
        names = [(put.manifest.chunks or ())[0].hash for put in puts]
        contents: list[bytes | None] = [None] * len(puts)
        if peer is not None:
            try:
                contents = await self._state.client.fetch_small_chunks(peer, names)
            except PeerUnreachable as error:
                log.debug("a batch of repairs failed: %s", error)
        fetched: list[tuple[Put, FreshChunk]] = []
        for put, content in zip(puts, contents, strict=False):
            chunk = (put.manifest.chunks or ())[0]
            try:
                if content is None:
                    raise PeerUnreachable(f"{source} did not send it")
                await self._downloads.verify(chunk, content)
                fetched.append((put, await self._state.chunks.files.write_whole(content)))
            except (PeerUnreachable, ChunkCorrupt):
                await self._fetch_one(put)
        for put in puts[len(contents) :]:
            await self._fetch_one(put)
        await self._declare([put for put, _ in fetched], {chunk.hash: chunk for _, chunk in fetched}, source)

    async def _fetch_one(self, put: Put) -> None:
        """Fetch a file chunk by chunk, from any holder."""
        if put.manifest.chunks is None:
            self._fail(put.dot, "no peer has content for it; upload it with this file_id")
            return
        fresh: dict[bytes, FreshChunk] = {}
        try:
            rows = await self._state.verified_rows(put.manifest.chunks, {})
            for chunk in put.manifest.chunks:
                if chunk.hash not in rows and chunk.hash not in fresh:
                    fresh[chunk.hash] = await self._fetch_chunk(put, chunk)
            await self._declare([put], fresh, self._downloads.source_of(put), rows)
        except (Unfetchable, StoreError) as error:
            for arrived in fresh.values():
                self._state.chunks.staging.stage(arrived)
            self._fail(put.dot, str(error))

    async def _fetch_chunk(self, put: Put, chunk: Chunk) -> FreshChunk:
        """A chunk, staged by an earlier attempt or fetched now; ours alone until the whole file is here."""
        staged = self._state.chunks.staging.claim(chunk.hash)
        if staged is not None:
            return staged
        try:
            content = await self._downloads.fetch(put, chunk)
        except ContentUnavailable as error:
            raise Unfetchable(str(error)) from error
        return await self._state.chunks.files.write_whole(content)

    async def _declare(
        self,
        puts: Sequence[Put],
        fresh: Mapping[bytes, FreshChunk],
        source: NodeId | None,
        rows: Mapping[bytes, ChunkRow] = MappingProxyType({}),
    ) -> None:
        """Write holds for files whose chunks are all here now."""
        state = self._state

        def step() -> tuple[list[FreshChunk], set[Dot]]:
            known = {put.dot for put in puts if state.replica.my_holds_of(put.dot)}
            adopted = [chunk for put in puts for chunk in state.take_hold(put.dot, fresh, rows, recovered=True)]
            return adopted, known

        adopted, known = await state.database.write(step, grows=True)
        kept = {id(chunk) for chunk in adopted}
        state.chunks.discard([chunk for chunk in fresh.values() if id(chunk) not in kept])
        for put in puts:
            self._conclude(put, source, was_known=put.dot in known)

    def _conclude(self, put: Put, source: NodeId | None, *, was_known: bool) -> None:
        """Say what became of a repair."""
        state = self._state
        is_held = state.me in state.holders(put.dot)
        if not is_held and state.put_row(put.dot) is not None:
            self._fail(put.dot, "a chunk that was here has gone; it will be fetched")
            return
        self.attempts.pop(put.dot, None)
        if is_held and not was_known:
            size = put.manifest.size_bytes
            log.info("Auto-recovered %s to %s (%d bytes from %s)", put.manifest.file_key, state.me, size, source)

    def _begin(self, dot: Dot) -> None:
        attempt = self.attempts.setdefault(dot, Attempt())
        attempt.status = ItemStatus.IN_PROGRESS
        attempt.last_attempt_ms = self._state.wall_ms()

    def _fail(self, dot: Dot, error: str) -> None:
        if self._is_gone(dot):
            # Deleted or overwritten in the meantime: nobody has it, and nobody misses it.
            self.attempts.pop(dot, None)
            return
        attempt = self.attempts.setdefault(dot, Attempt())
        attempt.status = ItemStatus.FAILED
        attempt.error = error
        longest = max(BACK_OFF_S, self._state.config.heal_interval_s)
        pause = min(longest, BACK_OFF_S * 2 ** min(attempt.retry_count, 16))
        attempt.retry_count += 1
        attempt.not_before = self._state.env.clock.now() + pause * self._jitter.uniform(0.8, 1.0)
        log.warning("repair of a copy failed, attempt %d: %s", attempt.retry_count, error)

    def _is_gone(self, dot: Dot) -> bool:
        try:
            return self._state.put_row(dot) is None
        except StoreError:
            # Nobody knows; the next look at what is missing tells.
            return False

    def known_attempts(self) -> list[list[object]]:
        """For each item this peer is working on or has failed: id, status, retries, last attempt (ms) and error."""
        return [
            [
                item_id(dot, self._state.me),
                attempt.status.value,
                attempt.retry_count,
                attempt.last_attempt_ms,
                attempt.error,
            ]
            for dot, attempt in self.attempts.items()
        ]
