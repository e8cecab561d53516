"""The replication queue: what the catalog says is missing, and what the targets alone know of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import Peers
from peer.store.holding import Holding
from peer.store.lookups import Filling, QueueItem, filling, queue_items
from peer.upkeep.repair import Repair
from protocol.identity import NodeId
from protocol.messages import ItemStatus, RepairAttempt

ASK_TIMEOUT_S = 1.0

MISSING_LOOKED_AT_MAX = 10_000
"""Missing copies whose targets are asked what became of them, when only some of them are wanted."""


class Queue:
    """The replication queue of a cluster, as one peer sees it."""

    def __init__(self, here: Holding, others: Peers, repair: Repair) -> None:
        self._here = here
        self._others = others
        self._repair = repair

    async def items(
        self, limit: int, node_id: NodeId | None = None, status: ItemStatus | None = None
    ) -> list[QueueItem]:
        """Missing copies, and those that came back, of the newest files first. Raises StoreError."""
        is_known_here = status in (None, ItemStatus.COMPLETED)
        looked_at = limit if is_known_here else MISSING_LOOKED_AT_MAX
        stored = status if is_known_here else ItemStatus.PENDING
        items = await self._look(looked_at, node_id, stored)
        return [item for item in items if status in (None, item.status)][:limit]

    async def missing(self, limit: int, node_id: NodeId) -> list[QueueItem]:
        """What a peer lacks, whatever became of its attempts, of the newest files first. Raises StoreError."""
        return await self._look(limit, node_id, ItemStatus.PENDING)

    async def filling(self, node_id: NodeId | None = None) -> list[Filling]:
        """How far the targets are that lack something, or this one. Raises StoreError."""
        now_ms = self._here.wall_ms()
        found = await self._here.database.read(lambda connection: filling(connection, now_ms))
        return [one for one in found if node_id in (None, one.target)]

    async def _look(self, limit: int, node_id: NodeId | None, stored: ItemStatus | None) -> list[QueueItem]:
        """Items as the catalog has them, and what their targets know of those that are missing."""
        items = await self._here.database.read(lambda connection: queue_items(connection, limit, node_id, stored))
        targets = {item.target for item in items if item.status is ItemStatus.PENDING}
        known = await self._ask_attempts(sorted(targets))
        return [_with_attempt(item, known.get((item.target, item.item_id))) for item in items]

    async def _ask_attempts(self, targets: Iterable[NodeId]) -> dict[tuple[NodeId, int], RepairAttempt]:
        known: dict[tuple[NodeId, int], RepairAttempt] = {}

        async def ask(node_id: NodeId) -> None:
            for attempt in await self._attempts_of(node_id):
                known[node_id, attempt.item_id] = attempt

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(ask, target)
        return known

    async def _attempts_of(self, node_id: NodeId) -> Sequence[RepairAttempt]:
        if node_id == self._here.me:
            return self._repair.known_attempts()
        peer = self._others.membership.member(node_id)
        if peer is None or self._others.is_down(node_id):
            return ()
        with trio.move_on_after(ASK_TIMEOUT_S):
            try:
                return await self._others.client.repairs(peer)
            except PeerUnreachable:
                return ()
        return ()


def _with_attempt(item: QueueItem, attempt: RepairAttempt | None) -> QueueItem:
    if attempt is None or item.status is not ItemStatus.PENDING:
        return item
    return replace(
        item,
        status=attempt.status,
        retry_count=attempt.retry_count,
        last_attempt_ms=attempt.last_attempt_ms,
        next_attempt_ms=attempt.next_attempt_ms,
        error=attempt.error,
    )
