"""Fetches what this peer lacks: repair is a pull by the one who needs it.

The files with the fewest live copies come first. Small files are fetched many at a time; a chunk of a larger one that
arrived stays staged, so that a repair broken off goes on where it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType

import trio

from peer.config import Config
from peer.gossip.exchange import Exchanger
from peer.gossip.fetching import ContentUnavailable, Fetching
from peer.gossip.peers import Peers
from peer.store.chunk_files import FreshChunk
from peer.store.holding import Holding
from peer.store.lookups import is_lacking, lacks_something
from peer.store.rows import ChunkRow
from peer.upkeep.deficits import Deficits
from peer.worker import Worker
from peer.world.env import Env, StoreError
from protocol.identity import Dot, NodeId
from protocol.messages import ItemStatus, Recovery, RepairAttempt
from protocol.ops import Chunk, Put, item_id

log = logging.getLogger("minidfs.repair")

BATCH_FILES = 64
"""Small files fetched in one request and declared in one transaction."""

BATCH_BYTES_MAX = 2 * 1024 * 1024

LANES = 3
"""Larger files fetched side by side: one alone mostly waits for syncs. Each has a chunk or two in memory."""

SETTLE_S = 1.0
"""After news of a file an upload may still be bringing it here; only then it is fetched."""

ROUND_S = 60.0
"""After so long it is looked anew at what is most urgent."""

BACK_OFF_S = 5.0
"""After the first failure; doubled with each one up to the heal interval, with jitter."""


class Unfetchable(Exception):
    """A file this peer lacks cannot be had now."""


@dataclass(slots=True)
class Attempt:
    """What this peer alone knows of a file it lacks."""

    status: ItemStatus = ItemStatus.PENDING
    retry_count: int = 0
    last_attempt_ms: int | None = None
    error: str | None = None
    not_before: float = 0.0


@dataclass(slots=True)
class _Batch:
    """Small files that one peer is asked for together."""

    puts: list[Put] = field(default_factory=list)
    size: int = 0


class Repair(Worker):
    """The repairs of one peer."""

    name = "repair"

    def __init__(
        self, env: Env, config: Config, here: Holding, others: Peers, exchanger: Exchanger, fetching: Fetching
    ) -> None:
        super().__init__()
        self._env = env
        self._config = config
        self._here = here
        self._others = others
        self._exchanger = exchanger
        self._fetching = fetching
        self._turn = trio.Lock()
        self._is_waited_for = False
        self._jitter: Random = env.chance("repair")
        self.attempts: dict[Dot, Attempt] = {}
        self.copies_made = 0
        self.bytes_made = 0

    def pace_s(self) -> float:
        return self._config.heal_interval_s

    def backlog(self) -> int:
        return len(self.attempts)

    async def step(self) -> None:
        if self._here.space.reason is None:
            await self.heal()

    def retry_now(self) -> None:
        """Repair now, also what failed a short while ago: a peer has come back that may have it."""
        for attempt in self.attempts.values():
            attempt.not_before = 0.0
        self.wake()

    async def recover(self) -> Recovery:
        """Hear what others have, then fetch all that is missing here. Raises StoreError.

        All of them are asked: to a peer that has just started, those it has not heard from yet look down. Much is heard
        from one after the other, for they have the same.
        """
        others = [member.node_id for member in self._others.membership.members() if member.node_id != self._here.me]
        async with trio.open_nursery() as nursery:
            for node_id in others:
                nursery.start_soon(self._exchanger.exchange_patiently, node_id)
        for node_id in others:
            if self._exchanger.link(node_id).has_more():
                await self._exchanger.hear_all(node_id)
        return await self.heal(all_of_it=True)

    async def heal(self, *, all_of_it: bool = False) -> Recovery:
        """Fetch what this peer lacks; with `all_of_it` also what failed a short while ago. Raises StoreError."""
        async with self._turn:
            self._is_waited_for = all_of_it
            await self._forget_attempts()
            deficits = Deficits(self._here.database, self._here.me, self._live)
            until = math.inf if all_of_it else self._env.clock.now() + ROUND_S
            total = failed = 0
            copies_before, bytes_before = self.copies_made, self.bytes_made
            while lacking := await deficits.page():
                due = [put for put in lacking if all_of_it or self._is_due(put.dot)]
                await self._fetch_all(due)
                total += len(due)
                failed += sum(put.dot in self.attempts for put in due)
                if due:
                    self._here.tell_changed()
                if self._env.clock.now() > until:
                    # What has become more urgent meanwhile goes first.
                    self.wake()
                    break
            if made := self.copies_made - copies_before:
                self._here.events.tell("copied", copies=made, size_bytes=self.bytes_made - bytes_before)
            return Recovery(total=total, success=total - failed, failed=failed)

    def _live(self) -> tuple[NodeId, ...]:
        return (self._here.me, *self._others.membership.reachable())

    async def _forget_attempts(self) -> None:
        """Forget those at what is not lacking any more."""
        known = {dot: item_id(dot, self._here.me) for dot in self.attempts}
        gone = await self._here.database.read(
            lambda connection: [dot for dot, item in known.items() if not is_lacking(connection, item)]
        )
        for dot in gone:
            self.attempts.pop(dot, None)

    def _is_due(self, dot: Dot) -> bool:
        attempt = self.attempts.get(dot)
        return attempt is None or attempt.not_before <= self._env.clock.now()

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
        if chunks is None or len(chunks) != 1 or chunks[0].size > self._config.inline_bytes_max:
            return None
        source = self._fetching.source_of(put)
        return None if source == self._here.me else source

    async def _fetch_batch(self, source: NodeId, puts: Sequence[Put]) -> None:
        began = self._env.clock.now()
        contents = await self._fetching.fetch_small(source, [_only_chunk(put) for put in puts])
        fetched: list[tuple[Put, FreshChunk]] = []
        for put, content in zip(puts, contents, strict=True):
            if content is None:
                await self._fetch_one(put)
            else:
                fetched.append((put, await self._here.chunks.files.write_whole(content)))
        await self._declare([put for put, _ in fetched], {chunk.hash: chunk for _, chunk in fetched}, source)
        await self._give_way(began, source)

    async def _fetch_one(self, put: Put) -> None:
        """Fetch a file chunk by chunk, from any holder."""
        if put.manifest.chunks is None:
            self._fail(put.dot, "no peer has content for it; upload it with this file_id")
            return
        fresh: dict[bytes, FreshChunk] = {}
        try:
            rows = await self._here.verified_rows(put.manifest.chunks)
            for chunk in put.manifest.chunks:
                if chunk.hash not in rows and chunk.hash not in fresh:
                    fresh[chunk.hash] = await self._fetch_chunk(put, chunk)
            await self._declare([put], fresh, self._fetching.source_of(put), rows)
        except (Unfetchable, StoreError) as error:
            for arrived in fresh.values():
                self._here.chunks.staging.stage(arrived)
            self._fail(put.dot, str(error))

    async def _fetch_chunk(self, put: Put, chunk: Chunk) -> FreshChunk:
        """A chunk, staged by an earlier attempt or fetched now; ours alone until the whole file is here."""
        staged = self._here.chunks.staging.claim(chunk.hash)
        if staged is not None:
            return staged
        try:
            began = self._env.clock.now()
            content = await self._fetching.fetch(put, chunk)
        except ContentUnavailable as error:
            raise Unfetchable(str(error)) from error
        fresh = await self._here.chunks.files.write_whole(content)
        await self._give_way(began, self._fetching.source_of(put))
        return fresh

    async def _give_way(self, since: float, source: NodeId | None) -> None:
        """Let clients go first, but for an operator who waits."""
        if not self._is_waited_for:
            await self._others.give_way(since, source)

    async def _declare(
        self,
        puts: Sequence[Put],
        fresh: Mapping[bytes, FreshChunk],
        source: NodeId | None,
        rows: Mapping[bytes, ChunkRow] = MappingProxyType({}),
    ) -> None:
        """Write holds for files whose chunks are all here now."""
        here = self._here

        def step() -> tuple[list[FreshChunk], set[Dot]]:
            known = {put.dot for put in puts if here.replica.my_holds_of(put.dot)}
            adopted = here.take_holds([put.dot for put in puts], fresh, rows, recovered=True)
            return adopted, known

        adopted, known = await here.database.write(step, grows=True)
        kept = {id(chunk) for chunk in adopted}
        here.chunks.discard([chunk for chunk in fresh.values() if id(chunk) not in kept])
        for put in puts:
            self._conclude(put, source, was_known=put.dot in known)

    def _conclude(self, put: Put, source: NodeId | None, *, was_known: bool) -> None:
        """Say what became of a repair."""
        here = self._here
        is_held = here.me in here.holders(put.dot)
        if not is_held and here.put_at(put.dot) is not None:
            # Mostly another file that has it too brought it anew meanwhile.
            self._fail(put.dot, "a chunk that was here has gone; it will be fetched", is_own_doing=True)
            return
        self.attempts.pop(put.dot, None)
        if is_held and not was_known:
            size = put.manifest.size_bytes
            self.copies_made += 1
            self.bytes_made += size
            log.info("Auto-recovered %s to %s (%d bytes from %s)", put.manifest.file_key, here.me, size, source)

    def _begin(self, dot: Dot) -> None:
        attempt = self.attempts.setdefault(dot, Attempt())
        attempt.status = ItemStatus.IN_PROGRESS
        attempt.last_attempt_ms = self._here.wall_ms()

    def _fail(self, dot: Dot, error: str, *, is_own_doing: bool = False) -> None:
        """Try again later; the first time at once, when no other peer was the reason."""
        if self._is_gone(dot):
            # Deleted or overwritten in the meantime: nobody has it, and nobody misses it.
            self.attempts.pop(dot, None)
            return
        attempt = self.attempts.setdefault(dot, Attempt())
        attempt.status = ItemStatus.FAILED
        attempt.error = error
        longest = max(BACK_OFF_S, self._config.heal_interval_s)
        pause = min(longest, BACK_OFF_S * 2 ** min(attempt.retry_count, 16)) * self._jitter.uniform(0.8, 1.0)
        if is_own_doing and not attempt.retry_count:
            pause = 0.0
            self.wake()
        attempt.retry_count += 1
        attempt.not_before = self._env.clock.now() + pause
        log.warning("repair of a copy failed, attempt %d: %s", attempt.retry_count, error)

    def _is_gone(self, dot: Dot) -> bool:
        try:
            return self._here.put_at(dot) is None
        except StoreError:
            # Nobody knows; the next look at what is missing tells.
            return False

    def known_attempts(self) -> list[RepairAttempt]:
        """What this peer alone knows of the copies it is working on, or has failed to get."""
        return [
            RepairAttempt(
                item_id(dot, self._here.me),
                attempt.status,
                attempt.retry_count,
                attempt.last_attempt_ms,
                attempt.error,
                self._next_ms(attempt),
            )
            for dot, attempt in self.attempts.items()
        ]

    def _next_ms(self, attempt: Attempt) -> int | None:
        """When a copy that could not be had is tried again, at the earliest."""
        if attempt.status is not ItemStatus.FAILED:
            return None
        return self._here.wall_ms() + max(0, int((attempt.not_before - self._env.clock.now()) * 1000))


class DeficitWatch(Worker):
    """After news, looks whether this peer lacks something, and then wakes its repair."""

    name = "deficit watch"

    def __init__(self, here: Holding, repair: Repair) -> None:
        super().__init__()
        self._here = here
        self._repair = repair
        here.news.follow(self.wake)

    def settle_s(self) -> float:
        return SETTLE_S

    async def step(self) -> None:
        if self._here.database.look_up(lambda connection: lacks_something(connection, self._here.me)):
            self._repair.wake()


def _only_chunk(put: Put) -> Chunk:
    (chunk,) = put.manifest.chunks or ()
    return chunk
