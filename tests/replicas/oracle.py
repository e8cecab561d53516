"""Keeps every op ever written, for ever, and says from them alone what must be live.

It shares no code with `protocol.catalog`: a put is live unless a known op supersedes it, a hold is live while its put
is and no known drop names it. No order, no version vector rule, no merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from protocol.identity import Dot, NodeId, Origin
from protocol.ops import Delete, Drop, Hold, LiveOp, Manifest, Op, Put

Content = tuple[Dot, int, Manifest | Dot, bool]


def content_of(op: LiveOp) -> Content:
    """What two peers must agree on about a live dot; what a put superseded is no part of it."""
    if isinstance(op, Put):
        return op.dot, op.stamp, op.manifest, False
    return op.dot, op.stamp, op.put, op.recovered


class Oracle:
    """All ops of all lives of all peers, and what each of them removed."""

    def __init__(self) -> None:
        self.ops: dict[Dot, list[Op]] = {}
        self.forked: set[Origin] = set()
        """Origins that an image of a peer wrote on under; their dots may have several meanings."""
        self._removed: dict[Op, frozenset[bytes]] = {}

    def record(self, writer: NodeId, log: Iterable[Op], known: dict[Dot, Op], heard: dict[Op, None]) -> None:
        """Look through the log of a peer: what is new in it is its own, and what is not is as it was written.

        `known` is all it knows, `heard` all it ever knew; what is new to it is added.
        """
        for op in log:
            before = known.get(op.dot)
            assert before is None or before is op or before == op, f"{writer} knew {before}, now it says {op}"
            if before is None:
                known[op.dot] = op
                heard[op] = None
                self._add(writer, op, known)

    def _add(self, writer: NodeId, op: Op, known: dict[Dot, Op]) -> None:
        meanings = self.ops.setdefault(op.dot, [])
        if op in meanings:
            return
        assert op.dot.origin.node_id == writer, f"{writer} has {op}, which nobody wrote"
        assert not meanings or op.dot.origin in self.forked, f"one dot, two ops: {meanings} and {op}"
        meanings.append(op)
        named = op.supersedes if isinstance(op, Put | Delete) else ()
        puts = (known[dot] for dot in named)
        self._removed[op] = frozenset(put.manifest.sha256 for put in puts if isinstance(put, Put))

    def contents(self, ops: Iterable[Op]) -> tuple[set[bytes], set[bytes]]:
        """What these ops uploaded and none of them removed, and what they removed."""
        ops = list(ops)
        removed = {sha256 for op in ops for sha256 in self._removed[op]}
        return {op.manifest.sha256 for op in ops if isinstance(op, Put)} - removed, removed


def live_under(known: Collection[Op]) -> dict[Dot, LiveOp]:
    """What is live for somebody who knows exactly these ops."""
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


def versions_under(known: Collection[Op], file_key: str) -> set[Dot]:
    """The live puts of a key for somebody who knows exactly these ops."""
    live = live_under(known).values()
    return {op.dot for op in live if isinstance(op, Put) and op.manifest.file_key == file_key}
