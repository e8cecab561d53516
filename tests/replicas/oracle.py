"""Keeps every op ever written, for ever, and says from them alone what must be live.

It shares no code with `protocol.catalog`: a put is live unless a known op supersedes it, a hold is live while its put
is and no known drop names it. No order, no version vector rule, no merge.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.identity import Dot, NodeId, VersionVector
from protocol.ops import Delete, Drop, Hold, LiveOp, Manifest, Op, Put

Content = tuple[Dot, int, Manifest | Dot, bool]


def content_of(op: LiveOp) -> Content:
    """What two peers must agree on about a live dot; what a put superseded is no part of it."""
    if isinstance(op, Put):
        return op.dot, op.stamp, op.manifest, False
    return op.dot, op.stamp, op.put, op.recovered


class Oracle:
    """All ops of all lives of all peers."""

    def __init__(self) -> None:
        self.ops: dict[Dot, Op] = {}

    def record(self, writer: NodeId, log: Iterable[Op]) -> None:
        """Look through the log of a peer: what is new in it is its own, and what is not is as it was written."""
        for op in log:
            known = self.ops.get(op.dot)
            if known is None:
                assert op.dot.origin.node_id == writer, f"{writer} has {op}, which nobody wrote"
                self.ops[op.dot] = op
            else:
                assert known is op or known == op, f"one dot, two ops: {known} and {op}"

    def live_under(self, vv: VersionVector) -> dict[Dot, LiveOp]:
        """What is live for somebody who knows exactly the ops this version vector covers."""
        known = [op for op in self.ops.values() if op.dot.seq <= vv.get(op.dot.origin, 0)]
        ended: set[Dot] = set()
        ended_up_to: dict[object, int] = {}
        for op in known:
            if isinstance(op, Put | Delete | Drop):
                ended.update(op.supersedes)
            if isinstance(op, Drop):
                for origin, seq in op.up_to:
                    ended_up_to[origin] = max(seq, ended_up_to.get(origin, 0))
        live: dict[Dot, LiveOp] = {op.dot: op for op in known if isinstance(op, Put) and op.dot not in ended}
        puts = set(live)
        for op in known:
            dropped = op.dot in ended or op.dot.seq <= ended_up_to.get(op.dot.origin, 0)
            if isinstance(op, Hold) and op.put in puts and not dropped:
                live[op.dot] = op
        return live

    def versions_under(self, vv: VersionVector, file_key: str) -> set[Dot]:
        """The live puts of a key for somebody with this version vector."""
        live = self.live_under(vv).values()
        return {op.dot for op in live if isinstance(op, Put) and op.manifest.file_key == file_key}
