"""The whole state of a peer, for one whose log no longer has what another lacks, and for two that disagree."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from enum import Enum, auto
from functools import partial

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import Peers
from peer.store.database import translated_errors
from peer.store.holding import Holding
from peer.store.lookups import vv_and_sum
from peer.store.rows import find_log_hash, live_ops
from peer.world.env import Env, StoreError, Work
from protocol import catalog, messages
from protocol.codec import encode_op
from protocol.errors import MalformedMessage
from protocol.forks import Fingerprints, disputed, fingerprints_of_all
from protocol.identity import Member, NodeId, VersionVector
from protocol.ops import LiveOp

log = logging.getLogger("minidfs.whole_state")

PAGE_BYTES = 512 * 1024
"""Of ops in one frame."""


WAL_BYTES_MAX = 1024 * 1024 * 1024
"""Of the write-ahead log while a whole state is served."""


class Reason(Enum):
    """Why a whole state is fetched."""

    BEHIND = auto()
    """What we lack is no longer in the other's log."""
    DISAGREEMENT = auto()
    """Equal version vectors, unequal sums."""
    DAMAGE = auto()
    """Our own rows are not what they were."""


class WholeStates:
    """Serves this peer's whole state, and takes over that of others."""

    def __init__(self, env: Env, here: Holding, others: Peers) -> None:
        self._env = env
        self._here = here
        self._others = others
        self._turn = trio.Lock()
        self._pending: dict[NodeId, Reason] = {}
        self._nursery: trio.Nursery | None = None
        self.disagreements = 0

    async def run(self) -> None:
        """Carry out what is asked for without being waited for, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    def fetch_soon(self, node_id: NodeId, reason: Reason) -> None:
        """Have `fetch` done, once however often that is asked; what it cannot do, the next exchange tries again."""
        if node_id not in self._pending:
            self._pending[node_id] = reason
            self._start(partial(self._fetch_pending, node_id))

    async def _fetch_pending(self, node_id: NodeId) -> None:
        try:
            await self.fetch(node_id, self._pending[node_id])
        finally:
            del self._pending[node_id]

    def declare_soon(self) -> None:
        """Have `Holding.declare_backed` done; what it cannot do, the next exchange tries again."""
        self._start(self._here.declare_backed)

    def _start(self, task: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None, "whole states are not running"
        self._nursery.start_soon(self._guarded, task)

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (PeerUnreachable, StoreError) as error:
            log.warning("%s", error)
        except Exception:
            log.exception("taking over a whole state failed")

    async def pages(self) -> AsyncGenerator[bytes, None]:
        """Our live state with the version vector it belongs to, as of one moment, as messages to another peer.

        Raises StoreError.
        """
        pinned = await self._here.database.pin()
        try:
            vv, state_sum, fingerprints = await self._env.run_blocking(Work.DATABASE_READ, _head, pinned)
            head = messages.SnapshotHead(vv, state_sum, self._here.is_damaged, fingerprints)
            yield messages.encode_snapshot_head(head)
            ops = live_ops(pinned)
            while page := await self._env.run_blocking(Work.DATABASE_READ, _next_page, ops):
                await self._env.run_blocking(Work.DISK, self._check_log)
                yield messages.encode_snapshot_page(page)
            yield messages.encode_snapshot_page([])
        finally:
            await self._here.database.unpin(pinned)

    def _check_log(self) -> None:
        """What is written while a moment is pinned stays in the write-ahead log, so not for ever. Raises StoreError."""
        if self._here.database.wal_bytes() > WAL_BYTES_MAX:
            raise StoreError("a whole state was broken off: who asked for it takes so long that the disk fills up")

    async def fetch(
        self,
        node_id: NodeId,
        reason: Reason,
        fingerprints: Fingerprints | None = None,
        compared: VersionVector | None = None,
    ) -> None:
        """Take over the whole state of a peer: become one with it, or, after a disagreement, add what it has.

        `fingerprints` are those of its logs it told when this peer stood at `compared`. Raises PeerUnreachable,
        StoreError.
        """
        peer = self._others.membership.member(node_id)
        if peer is None:
            return
        # To merge into rows that are damaged would be to take what is missing for deleted.
        await self._here.verified.wait()
        async with self._turn, self._others.client.snapshot(peer) as frames:
            if reason is Reason.DAMAGE and not self._here.is_damaged:
                return
            head = await self._stage(peer, frames, reason)
            merges: dict[Reason, Callable[[NodeId, messages.SnapshotHead], bool]] = {
                Reason.BEHIND: partial(self._merge, fingerprints or {}, compared or {}),
                Reason.DISAGREEMENT: self._unite,
                Reason.DAMAGE: self._adopt,
            }
            self._here.is_damaged = await self._here.database.write(partial(merges[reason], node_id, head))
        log.info("took over the whole state of %s, %s", node_id, reason.name.lower())
        self._here.tell_changed(by_others=True)
        await self._here.declare_backed()

    async def _stage(self, peer: Member, frames: AsyncIterator[bytes], reason: Reason) -> messages.SnapshotHead:
        """Put a whole state aside; returns its head once all of it is there."""
        write, store = self._here.database.write, self._here.database.store
        await write(store.clear_incoming)
        head: messages.SnapshotHead | None = None
        try:
            async for raw in frames:
                if head is None:
                    head = messages.decode_snapshot_head(raw)
                    if head.is_damaged and reason is not Reason.DISAGREEMENT:
                        raise PeerUnreachable(f"{peer.node_id} has damaged rows; its whole state is of no use")
                    continue
                ops = messages.decode_snapshot_page(raw)
                if not ops:
                    return head
                await write(partial(store.add_incoming, ops))
        except MalformedMessage as error:
            raise PeerUnreachable(f"{peer.node_id} sent a whole state that is none: {error}") from None
        raise PeerUnreachable(f"{peer.node_id} broke off its whole state")

    def _merge(
        self, fingerprints: Fingerprints, compared: VersionVector, node_id: NodeId, head: messages.SnapshotHead
    ) -> bool:
        """A step: merge what is staged, if it is whole, and take back what this peer is said to hold and does not."""
        replica, store = self._here.replica, self._here.database.store
        if self._is_whole(node_id, head):
            replica.merge_incoming(head.vv, {**fingerprints, **head.fingerprints}, compared, self._here.wall_ms())
            replica.drop_unbacked(store.is_held, self._here.wall_ms())
        return self._here.is_damaged

    def _is_whole(self, node_id: NodeId, head: messages.SnapshotHead) -> bool:
        """Whether what is staged gives its sum; if not, it goes: what is missing would be taken for deleted here."""
        store = self._here.database.store
        if catalog.sum_of_incoming(store) == head.state_sum:
            return True
        log.error("the whole state of %s is damaged: its rows do not give its sum; not using it", node_id)
        store.clear_incoming()
        return False

    def _adopt(self, node_id: NodeId, head: messages.SnapshotHead) -> bool:
        """A step: put what is staged, if it is whole, in place of damaged rows; True while they are damaged."""
        if not self._is_whole(node_id, head) or not self._here.adopt(head.vv, head.fingerprints):
            return True
        log.warning("the state of %s has taken the place of damaged rows; all content is verified again", node_id)
        return False

    def _unite(self, node_id: NodeId, head: messages.SnapshotHead) -> bool:
        """A step: after a disagreement, keep what either has; nothing may be removed on damaged evidence.

        If either has written since, nobody can tell any more what is new from what was lost: the next exchange tries
        again.
        """
        replica, store = self._here.replica, self._here.database.store
        is_damaged = self._here.is_damaged
        if store.version_vector() == head.vv and not disputed(store, head.fingerprints, ()):
            self.disagreements += 1
            log.error("the state of %s differs at equal version vectors: a bug or bit rot; keeping both", node_id)
            if catalog.sum_of_rows(store) != store.state_sum():
                self._here.note_damage()
                is_damaged = True
            replica.repair_from_incoming()
            replica.drop_unbacked(store.is_held, self._here.wall_ms())
        store.clear_incoming()
        return is_damaged


def _head(pinned: sqlite3.Connection) -> tuple[VersionVector, int, Fingerprints]:
    """Version vector, sum and what is said of the logs, of the moment a connection is pinned to."""
    with translated_errors():
        vv, state_sum = vv_and_sum(pinned)
        return vv, state_sum, fingerprints_of_all(partial(find_log_hash, pinned), vv, {})


def _next_page(ops: Iterator[LiveOp]) -> list[bytes]:
    """The next ops that fit a frame; none when there are no more."""
    page: list[bytes] = []
    size = 0
    with translated_errors():
        for op in ops:
            page.append(encode_op(op))
            size += len(page[-1])
            if size > PAGE_BYTES:
                break
    return page
