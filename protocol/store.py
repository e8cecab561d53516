"""What the rules need of the place that keeps a peer's log and catalog, and a plain one in memory.

Every method is one step of the caller's transaction: the caller commits all of them together or none. `peer/` keeps
the same thing in SQLite; both pass the same contract tests.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Protocol

from protocol.codec import NO_LOG, encode_op, next_log_hash
from protocol.identity import Dot, NodeId, Origin, VersionVector
from protocol.ops import Hold, LiveOp, Op, Put, last_dot


class Store(Protocol):
    """A log of ops in order of arrival, a version vector, floors, and the set of live dots."""

    def version_vector(self) -> VersionVector:
        """For each origin the seq up to which it was applied; a copy."""

    def seen(self, origin: Origin) -> int:
        """This origin's entry of the version vector."""

    def advance(self, origin: Origin, seq: int) -> None:
        """Set this origin's entry of the version vector."""

    def floors(self) -> VersionVector:
        """For each origin the seq up to which its log is no longer kept; a copy."""

    def raise_floor(self, origin: Origin, seq: int, log_hash: bytes | None) -> None:
        """Forget this origin's log up to `seq`, but for its running hash there, None if that is not known."""

    def append(self, op: Op) -> None:
        """Add to the log, behind everything that arrived before, and to the running hash of its origin's log."""

    def log_hash(self, dot: Dot) -> bytes | None:
        """The running hash of an origin's log up to and with the op that has this dot.

        None below the floor, beyond the end, or if unknown.
        """

    def end_of_log(self, origin: Origin, up_to: int) -> int:
        """The last seq up to this one at which an op of the origin's log ends, or the floor; no lower than that."""

    def log_after(self, vv: VersionVector) -> Iterator[Op]:
        """The logged ops of which `vv` does not cover all, in order of arrival."""

    def raw_log_after(self, vv: VersionVector) -> Iterator[bytes]:
        """The same, encoded."""

    def rewind(self, origin: Origin, seq: int) -> list[Op]:
        """Take this origin's ops behind `seq` out of the log and the version vector; they are returned in order.

        `seq` is no lower than the floor, and an op ends there.
        """

    def give_up(self, marks: Iterable[bytes]) -> None:
        """Remember for good hashes of what was given up here, of logs and of uploads."""

    def was_given_up(self, mark: bytes) -> bool:
        """Whether this is one of them."""

    def has_given_up(self) -> bool:
        """Whether there is any."""

    def put_at(self, dot: Dot) -> Put | None:
        """The live put of this dot."""

    def hold_at(self, dot: Dot) -> Hold | None:
        """The live hold of this dot."""

    def puts_of(self, file_key: str) -> list[Put]:
        """The live puts of a key, the one to show last."""

    def holds_of(self, put: Dot) -> list[Hold]:
        """The live holds of a put, by dot."""

    def holds_from(self, origin: Origin, up_to: int) -> list[Hold]:
        """The live holds this origin wrote, up to a seq."""

    def holds_by(self, node_id: NodeId) -> list[Hold]:
        """The live holds all origins of one peer wrote."""

    def live(self) -> Iterator[LiveOp]:
        """Every live op, puts before holds; ops may be removed while it runs."""

    def add(self, op: LiveOp) -> None:
        """Make an op's dot live."""

    def remove(self, op: LiveOp) -> None:
        """End an op's dot."""

    def state_sum(self) -> int:
        """The stored sum over the digests of all live ops, modulo 2^128."""

    def set_state_sum(self, state_sum: int) -> None:
        """Store that sum."""

    def add_incoming(self, ops: Iterable[LiveOp]) -> None:
        """Put another peer's live ops aside, for a merge."""

    def is_incoming(self, op: LiveOp) -> bool:
        """Whether that peer has a live op of this kind and dot."""

    def incoming(self) -> Iterator[LiveOp]:
        """What was put aside, puts before holds."""

    def clear_incoming(self) -> None:
        """Forget what was put aside."""


def show_order(put: Put) -> tuple[bool, int, Dot]:
    """Of concurrent puts of a key the greatest is shown; every peer orders them alike.

    Any upload ranks above any registration: what was acknowledged is not hidden by what a client only said.
    """
    return put.manifest.is_upload, put.stamp, put.dot


class MemoryStore:
    """A Store of plain dicts, for tests and for simulations of the rules alone."""

    def __init__(self) -> None:
        self._seen: VersionVector = {}
        self._floors: VersionVector = {}
        self._log: list[Op] = []
        self._log_hashes: dict[Origin, dict[int, bytes]] = {}
        self._given_up: set[bytes] = set()
        self._puts: dict[Dot, Put] = {}
        self._keys: dict[str, list[tuple[tuple[bool, int, Dot], Put]]] = {}
        self._holds: dict[Dot, Hold] = {}
        self._holds_of: dict[Dot, dict[Dot, Hold]] = {}
        self._sum = 0
        self._staged: dict[tuple[bool, Dot], LiveOp] = {}

    def version_vector(self) -> VersionVector:
        return dict(self._seen)

    def seen(self, origin: Origin) -> int:
        return self._seen.get(origin, 0)

    def advance(self, origin: Origin, seq: int) -> None:
        self._seen[origin] = seq

    def floors(self) -> VersionVector:
        return dict(self._floors)

    def raise_floor(self, origin: Origin, seq: int, log_hash: bytes | None) -> None:
        self._floors[origin] = seq
        self._log = [op for op in self._log if op.dot.origin != origin or last_dot(op).seq > seq]
        hashes = self._log_hashes.get(origin, {})
        self._log_hashes[origin] = {at: known for at, known in hashes.items() if at > seq}
        if log_hash is not None:
            self._log_hashes[origin][seq] = log_hash

    def append(self, op: Op) -> None:
        self._log.append(op)
        origin, seq = op.dot
        before = self.log_hash(Dot(origin, seq - 1))
        if before is not None:
            log_hash = next_log_hash(before, encode_op(op))
            seqs = range(seq, last_dot(op).seq + 1)
            self._log_hashes.setdefault(origin, {}).update((at, log_hash) for at in seqs)

    def log_hash(self, dot: Dot) -> bytes | None:
        if dot.seq == 0:
            return NO_LOG if dot.origin not in self._floors else None
        return self._log_hashes.get(dot.origin, {}).get(dot.seq)

    def end_of_log(self, origin: Origin, up_to: int) -> int:
        ends = (last_dot(op).seq for op in self._log if op.dot.origin == origin)
        return max((end for end in ends if end <= up_to), default=self._floors.get(origin, 0))

    def log_after(self, vv: VersionVector) -> Iterator[Op]:
        return (op for op in list(self._log) if last_dot(op).seq > vv.get(op.dot.origin, 0))

    def raw_log_after(self, vv: VersionVector) -> Iterator[bytes]:
        return map(encode_op, self.log_after(vv))

    def rewind(self, origin: Origin, seq: int) -> list[Op]:
        taken = [op for op in self._log if op.dot.origin == origin and op.dot.seq > seq]
        self._log = [op for op in self._log if op.dot.origin != origin or op.dot.seq <= seq]
        hashes = self._log_hashes.get(origin, {})
        self._log_hashes[origin] = {at: known for at, known in hashes.items() if at <= seq}
        self._seen[origin] = seq
        if not seq:
            del self._seen[origin]
        return taken

    def give_up(self, marks: Iterable[bytes]) -> None:
        self._given_up.update(marks)

    def was_given_up(self, mark: bytes) -> bool:
        return mark in self._given_up

    def has_given_up(self) -> bool:
        return bool(self._given_up)

    def put_at(self, dot: Dot) -> Put | None:
        return self._puts.get(dot)

    def hold_at(self, dot: Dot) -> Hold | None:
        return self._holds.get(dot)

    def puts_of(self, file_key: str) -> list[Put]:
        return [put for _, put in self._keys.get(file_key, [])]

    def holds_of(self, put: Dot) -> list[Hold]:
        return [hold for _, hold in sorted(self._holds_of.get(put, {}).items())]

    def holds_from(self, origin: Origin, up_to: int) -> list[Hold]:
        return [hold for dot, hold in sorted(self._holds.items()) if dot.origin == origin and dot.seq <= up_to]

    def holds_by(self, node_id: NodeId) -> list[Hold]:
        return [hold for _, hold in sorted(self._holds.items()) if hold.holder == node_id]

    def live(self) -> Iterator[LiveOp]:
        yield from [put for _, put in sorted(self._puts.items())]
        yield from [hold for _, hold in sorted(self._holds.items())]

    def add(self, op: LiveOp) -> None:
        if isinstance(op, Put):
            self._puts[op.dot] = op
            insort(self._keys.setdefault(op.manifest.file_key, []), (show_order(op), op))
        else:
            self._holds[op.dot] = op
            self._holds_of.setdefault(op.put, {})[op.dot] = op

    def remove(self, op: LiveOp) -> None:
        if isinstance(op, Put):
            del self._puts[op.dot]
            versions = self._keys[op.manifest.file_key]
            versions.remove((show_order(op), op))
            if not versions:
                del self._keys[op.manifest.file_key]
        else:
            del self._holds[op.dot]
            holds = self._holds_of[op.put]
            del holds[op.dot]
            if not holds:
                del self._holds_of[op.put]

    def state_sum(self) -> int:
        return self._sum

    def set_state_sum(self, state_sum: int) -> None:
        self._sum = state_sum

    def add_incoming(self, ops: Iterable[LiveOp]) -> None:
        self._staged.update(((isinstance(op, Hold), op.dot), op) for op in ops)

    def is_incoming(self, op: LiveOp) -> bool:
        return (isinstance(op, Hold), op.dot) in self._staged

    def incoming(self) -> Iterator[LiveOp]:
        yield from [op for _, op in sorted(self._staged.items())]

    def clear_incoming(self) -> None:
        self._staged.clear()
