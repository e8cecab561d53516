"""Keeps every op ever written, for ever, and says from them alone what must be live.

It shares no code with `protocol.catalog`: a put is live unless a known op supersedes it, a hold is live while its put
is and no known drop names it. A put may declare a hold under its own dot, and a run declares one under each of its
dots. No order, no version vector rule, no merge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from protocol.identity import Dot, NodeId, Origin
from protocol.ops import Delete, Drop, Hold, HoldRun, LiveOp, Manifest, Op, Put

Content = tuple[Dot, int, Manifest | Dot, bool]

Element = tuple[bool, Dot]
"""A live put, or a hold (True), and its dot."""


def dots_of(op: Op) -> list[Dot]:
    """The dots an op has."""
    length = len(op.puts) if isinstance(op, HoldRun) else 1
    return [Dot(op.dot.origin, op.dot.seq + n) for n in range(length)]


def element_of(op: LiveOp) -> Element:
    """What a live op is called."""
    return isinstance(op, Hold), op.dot


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
            for dot in dots_of(op):
                before = known.get(dot)
                assert before is None or before is op or before == op, f"{writer} knew {before}, now it says {op}"
                if before is None:
                    known[dot] = op
                    heard[op] = None
                    self._add(writer, dot, op, known)

    def _add(self, writer: NodeId, dot: Dot, op: Op, known: dict[Dot, Op]) -> None:
        meanings = self.ops.setdefault(dot, [])
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


def live_under(known: Collection[Op]) -> dict[Element, LiveOp]:
    """What is live for somebody who knows exactly these ops."""
    removed: set[Dot] = set()
    dropped: set[Dot] = set()
    dropped_up_to: dict[object, int] = {}
    for op in known:
        if isinstance(op, Put | Delete):
            removed.update(op.supersedes)
        if isinstance(op, Drop):
            dropped.update(op.supersedes)
            for origin, seq in op.up_to:
                dropped_up_to[origin] = max(seq, dropped_up_to.get(origin, 0))
    puts = {op.dot: op for op in known if isinstance(op, Put) and op.dot not in removed}
    live: dict[Element, LiveOp] = {element_of(put): put for put in puts.values()}
    for hold in _holds_in(known):
        is_dropped = hold.dot in dropped or hold.dot.seq <= dropped_up_to.get(hold.dot.origin, 0)
        if hold.put in puts and not is_dropped:
            live[element_of(hold)] = hold
    return live


def _holds_in(known: Collection[Op]) -> Iterator[Hold]:
    for op in known:
        if isinstance(op, Hold):
            yield op
        elif isinstance(op, HoldRun):
            for dot, put in zip(dots_of(op), op.puts, strict=True):
                yield Hold(dot, op.stamp, put, op.recovered)
        elif isinstance(op, Put) and op.is_held:
            yield Hold(op.dot, op.stamp, op.dot)


def versions_under(known: Collection[Op], file_key: str) -> set[Dot]:
    """The live puts of a key for somebody who knows exactly these ops."""
    live = live_under(known).values()
    return {op.dot for op in live if isinstance(op, Put) and op.manifest.file_key == file_key}
