"""The whole state of a peer, for one whose log no longer has what another lacks, and for two that disagree."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from enum import Enum, auto
from functools import partial

import trio

from peer.gossip.client import PeerUnreachable, frame
from peer.gossip.peers import PeerState
from peer.store.database import meta_value, translated_errors
from peer.store.rows import ChunkRow, live_ops, select_puts, version_vector_of
from peer.world.env import Work
from protocol import catalog, codec
from protocol.codec import decode_op, encode_op
from protocol.errors import MalformedMessage
from protocol.identity import NodeId, VersionVector
from protocol.messages import Member
from protocol.ops import Hold, LiveOp, Put

log = logging.getLogger("minidfs.whole_state")

PAGE_BYTES = 512 * 1024
"""Of ops in one frame."""


class Reason(Enum):
    """Why a whole state is fetched."""

    BEHIND = auto()
    """What we lack is no longer in the other's log."""
    DISAGREEMENT = auto()
    """Equal version vectors, unequal sums."""


class WholeStates:
    """Serves this peer's whole state, and takes over that of others."""

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._turn = trio.Lock()
        self.disagreements = 0

    async def frames(self) -> AsyncIterator[bytes]:
        """Our live state with the version vector it belongs to, as of one moment, as frames for another peer.

        Raises StoreError.
        """
        state = self._state
        pinned = await state.database.pin()
        try:
            yield frame(codec.pack(await state.env.run_blocking(Work.DATABASE_READ, _pinned_head, pinned)))
            ops = live_ops(pinned)
            while page := await state.env.run_blocking(Work.DATABASE_READ, _next_page, ops):
                yield frame(codec.pack(page))
            yield frame(codec.pack([]))
        finally:
            await state.database.unpin(pinned)

    async def fetch(self, node_id: NodeId, reason: Reason) -> None:
        """Take over the whole state of a peer: become one with it, or, after a disagreement, add what it has.

        Raises PeerUnreachable, StoreError.
        """
        peer = self._state.membership.member(node_id)
        if peer is None:
            return
        async with self._turn, self._state.client.snapshot(peer) as frames:
            their_vv, their_sum = await self._stage(peer, frames)
            merge = self._merge if reason is Reason.BEHIND else self._unite
            await self._state.database.write(partial(merge, node_id, their_vv, their_sum))
        self._state.news.ring()
        await self.declare_backed()

    async def _stage(self, peer: Member, frames: AsyncIterator[bytes]) -> tuple[VersionVector, int]:
        """Put a whole state aside; returns its version vector and its sum, once all of it is there."""
        write, store = self._state.database.write, self._state.database.store
        await write(store.clear_stage)
        head: tuple[VersionVector, int] | None = None
        try:
            async for raw in frames:
                if head is None:
                    vv_fields, state_sum = codec.read_list(codec.unpack(raw), 2)
                    head = codec.read_vv(vv_fields), int.from_bytes(codec.read_bytes(state_sum, 16), "big")
                    continue
                ops = codec.read_each(codec.unpack(raw), _read_live_op)
                if not ops:
                    return head
                await write(partial(store.stage, ops))
        except MalformedMessage as error:
            raise PeerUnreachable(f"{peer.node_id} sent a whole state that is none: {error}") from None
        raise PeerUnreachable(f"{peer.node_id} broke off its whole state")

    def _merge(self, node_id: NodeId, their_vv: VersionVector, their_sum: int) -> None:
        """A step: merge what is staged, if it is whole, and take back what this peer is said to hold and does not."""
        replica, store = self._state.replica, self._state.database.store
        if catalog.sum_of_staged(store) == their_sum:
            replica.merge_staged(their_vv, self._state.wall_ms())
            replica.drop_unbacked(store.is_held, self._state.wall_ms())
        else:
            # What is missing there would be taken for deleted here.
            log.error("the whole state of %s is damaged: its rows do not give its sum; not using it", node_id)
            store.clear_stage()

    def _unite(self, node_id: NodeId, their_vv: VersionVector, _their_sum: int) -> None:
        """A step: after a disagreement, keep what either has; nothing may be removed on damaged evidence.

        If either has written since, nobody can tell any more what is new from what was lost: the next exchange tries
        again.
        """
        replica, store = self._state.replica, self._state.database.store
        if store.version_vector() == their_vv:
            self.disagreements += 1
            log.error("the state of %s differs at equal version vectors: a bug or bit rot; keeping both", node_id)
            replica.repair_from_staged()
            replica.drop_unbacked(store.is_held, self._state.wall_ms())
        store.clear_stage()

    async def declare_backed(self) -> None:
        """Verify content this disk has and no hold says so, then declare it held, or let it go."""
        state = self._state
        found = await state.database.read(partial(_undeclared, state.me))
        for put in found:
            chunks = put.manifest.chunks or ()
            rows = await state.verified_rows(chunks, {})
            await state.database.write(partial(self._declare, put, rows))
        if found:
            state.news.ring()

    def _declare(self, put: Put, rows: Mapping[bytes, ChunkRow]) -> None:
        """A step: say that this disk has a put, if what was verified a moment ago is still so."""
        state = self._state
        if not all(state.is_still(chunk.hash, rows.get(chunk.hash)) for chunk in put.manifest.chunks or ()):
            state.take_back(put.dot)
        state.take_hold(put.dot, {}, rows, recovered=False)


def _pinned_head(pinned: sqlite3.Connection) -> list[object]:
    """Version vector and sum of the moment a connection is pinned to."""
    with translated_errors():
        state_sum = int(meta_value(pinned, "state_sum") or "0", 16)
        return [codec.vv_fields(version_vector_of(pinned)), state_sum.to_bytes(16, "big")]


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


def _read_live_op(value: object) -> LiveOp:
    op = decode_op(codec.read_bytes(value))
    if not isinstance(op, Put | Hold):
        raise MalformedMessage(f"{type(op).__name__} where a live op belongs")
    return op


def _undeclared(me: NodeId, connection: sqlite3.Connection) -> list[Put]:
    """The puts whose content this disk has while no live hold of `me` says so."""
    condition = (
        "WHERE puts.held AND NOT EXISTS (SELECT 1 FROM holds JOIN origins ho ON ho.id = holds.origin"
        " JOIN nodes hn ON hn.id = ho.node WHERE holds.put = puts.id AND hn.node_id = ?) ORDER BY puts.id"
    )
    return [put for _, put in select_puts(connection, condition, me)]
