"""Ends forks of logs: found while exchanging, and ended here one after the other.

See `protocol/forks.py` for what a fork is. Who owns a log goes back to where it is like that of the others, and writes
again what they lack; who followed a branch that its owner gave up, and is told so by it, goes back too. All others
only wait: nothing moves between two peers that do not agree about a log until both agree with its owner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import Peers
from peer.store.holding import Holding
from peer.worker import Worker
from protocol.identity import Dot, NodeId, Origin
from protocol.replica import Heard

log = logging.getLogger("minidfs.forks")


def _no_one(node_id: NodeId) -> None:
    """Until somebody wants to know."""


class Forks(Worker):
    """Settles what is disputed between this peer and others."""

    name = "forks"

    def __init__(self, here: Holding, others: Peers) -> None:
        super().__init__()
        self._here = here
        self._others = others
        self._pending: dict[Origin, NodeId] = {}
        self.disputed: dict[tuple[NodeId, Origin], None] = {}
        """What stands between this peer and others; nothing is exchanged with these meanwhile."""
        self.on_ended: Callable[[NodeId], None] = _no_one
        """Called with the peer this one agrees with again."""
        self.ended = 0

    def backlog(self) -> int:
        return len(self._pending)

    def note(self, node_id: NodeId, heard: Heard, gave_up: tuple[Origin, ...]) -> None:
        """Take notice of what is disputed with a peer, and of which logs of its own it says that it gave them up."""
        for origin in heard.disputed:
            if (node_id, origin) not in self.disputed:
                self.disputed[node_id, origin] = None
                log.warning("%s has another log of %s:%x than this peer", node_id, origin.node_id, origin.epoch)
            if origin.node_id == self._here.me and origin not in heard.given_up:
                self._pending[origin] = node_id
        for origin in gave_up:
            if origin.node_id == node_id:
                self._pending[origin] = node_id
        if self._pending:
            self.wake()

    async def step(self) -> None:
        while self._pending:
            origin, node_id = next(iter(self._pending.items()))
            del self._pending[origin]
            try:
                await self._end(origin, node_id)
            except PeerUnreachable as error:
                log.warning("%s; the next exchange with it tries again", error)

    async def _end(self, origin: Origin, node_id: NodeId) -> None:
        """Bring this peer's log of an origin in line with another one's. Raises PeerUnreachable, StoreError."""
        peer = self._others.membership.member(node_id)
        last = self._here.database.committed.version_vector.get(origin, 0)
        if peer is None or not last:
            return
        first, log_hashes = await self._others.client.log_hashes(peer, Dot(origin, last))
        undone = await self._here.database.write(lambda: self._here.end_fork(origin, first, log_hashes))
        if undone:
            self.ended += 1
            self._here.pinned_for = origin.node_id
            message = "the log of %s:%x is that of %s again: %d ops were taken back, and what was ours written again"
            log.warning(message, origin.node_id, origin.epoch, node_id, undone)
            self._here.tell_changed()
        await self.exchanged(self._here.me)
        self.on_ended(node_id)

    async def exchanged(self, node_id: NodeId) -> None:
        """After an exchange, or what is as good: what came back of this peer's ops is there under its new names.

        Content that nothing needs may go. Raises StoreError.
        """
        for pair in [pair for pair in self.disputed if pair[0] == node_id]:
            del self.disputed[pair]
        if self._here.pinned_for == node_id and node_id not in self._pending.values():
            await self._here.database.write(self._here.unpin)
            self._here.pinned_for = None
            await self._here.declare_backed()
