"""Catching up with what many peers have: from one of them at a time, for all of them would send the same.

While a peer catches up it cannot be asked to hold anything, for puts travel in the order of the logs: so nobody waits
for it, and nobody pushes to it what it fetches by itself.
"""

from __future__ import annotations

from protocol.identity import NodeId, VersionVector

FAR_BEHIND_OPS = 1000
"""A peer that lacks more than that takes a second or so to hear of it."""


def is_far_behind(known_vv: VersionVector | None, vv: VersionVector) -> bool:
    """Whether a peer that has heard this much takes long to hear all there is; not while nobody knows how much."""
    if known_vv is None:
        return False
    return sum(max(0, seq - known_vv.get(origin, 0)) for origin, seq in vv.items()) > FAR_BEHIND_OPS


class CatchingUp:
    """From which peer this one catches up, and which others it is to ask afterwards."""

    def __init__(self) -> None:
        self._source: NodeId | None = None
        self._others: dict[NodeId, None] = {}

    def may_ask_more(self, node_id: NodeId) -> bool:
        """Whether to go on asking this peer, which has more; if not, its turn comes."""
        if self._source is None:
            self._source = node_id
        if self._source != node_id:
            self._others[node_id] = None
        return self._source == node_id

    def is_from(self, node_id: NodeId) -> bool:
        """Whether this peer is the source."""
        return self._source == node_id

    def end(self, node_id: NodeId) -> list[NodeId]:
        """Nothing more is asked of this peer for now: those whose turn has come, if it was the source."""
        if self._source != node_id:
            return []
        self._source = None
        found = list(self._others)
        self._others.clear()
        return found
