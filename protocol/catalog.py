"""What the logs mean: the set of live dots, and how two such sets become one.

A dot that a version vector covers and that is not live was removed, for ever: that is the whole memory of a deletion.
It follows that a version vector must never cover more, or sooner, than what was applied. The idea is that of dotted
version vectors; see Almeida, Shoker and Baquero, "Delta state replicated data types" (2018), and DottedDB (SRDS 2017).
"""

from __future__ import annotations

from enum import Enum, auto

from protocol.codec import digest_of
from protocol.forks import Fingerprints
from protocol.identity import Dot, VersionVector, covers
from protocol.ops import Delete, Drop, LiveOp, Op, Put, holds_in, last_dot, needs_of
from protocol.store import Store

SUM_MODULUS = 1 << 128


class Verdict(Enum):
    """What became of an op that was heard."""

    APPLIED = auto()
    KNOWN = auto()
    TOO_EARLY = auto()
    """It leaves a gap, or what it removes or holds was not applied yet: it must come again, after that. A run of which
    a part is covered is of another log than ours, and its time never comes."""


def apply(store: Store, op: Op) -> Verdict:
    """Let an op take effect, unless it did before or its time has not come."""
    origin, seq = last_dot(op)
    seen = store.seen(origin)
    if seq <= seen:
        return Verdict.KNOWN
    if op.dot.seq != seen + 1 or any(store.seen(dot.origin) < dot.seq for dot in needs_of(op)):
        return Verdict.TOO_EARLY
    _take_effect(store, op)
    store.append(op)
    store.advance(origin, seq)
    return Verdict.APPLIED


def _take_effect(store: Store, op: Op) -> None:
    match op:
        case Put():
            _end_puts(store, op.supersedes)
            make_live(store, op)
        case Delete():
            _end_puts(store, op.supersedes)
        case Drop():
            for dot in op.supersedes:
                end_if_live(store, store.hold_at(dot))
            for origin, seq in op.up_to:
                for hold in store.holds_from(origin, seq):
                    end(store, hold)
        case _:
            pass
    for hold in holds_in(op):
        if store.put_at(hold.put) is not None:
            make_live(store, hold)


def _end_puts(store: Store, dots: tuple[Dot, ...]) -> None:
    for dot in dots:
        end_if_live(store, store.put_at(dot))


def make_live(store: Store, op: LiveOp) -> None:
    """Add a dot to the state, and its digest to the sum."""
    store.add(op)
    store.set_state_sum((store.state_sum() + digest_of(op)) % SUM_MODULUS)


def end(store: Store, op: LiveOp) -> None:
    """Take a live dot out of the state; with a put go its holds, for they are live only while it is."""
    if isinstance(op, Put):
        for hold in store.holds_of(op.dot):
            end(store, hold)
    store.remove(op)
    store.set_state_sum((store.state_sum() - digest_of(op)) % SUM_MODULUS)


def end_if_live(store: Store, op: LiveOp | None) -> None:
    """`end`, of what a look-up found."""
    if op is not None:
        end(store, op)


def merge_incoming(store: Store, their_vv: VersionVector, fingerprints: Fingerprints) -> None:
    """Become one with the whole state of another peer, which lies staged, as of its version vector.

    A dot lives if it is live on both, or live on one and not covered by the other. Floors rise to what was taken over,
    for the log behind it was never heard here. All of it is one step: a version vector raised before its state would
    turn what is still missing into deletions.
    """
    mine = store.version_vector()
    for op in store.live():
        if covers(their_vv, op.dot) and not store.is_incoming(op):
            # Its holds may have gone with a put a moment ago.
            end_if_live(store, _live(store, op))
    for op in store.incoming():
        if not covers(mine, op.dot) and _may_live(store, op):
            make_live(store, op)
    _cover(store, their_vv, fingerprints)
    store.clear_incoming()


def unite_incoming(store: Store) -> int:
    """Add what another peer has live and this one has not, and remove nothing.

    For two peers with equal version vectors and unequal sums: one of them has lost or damaged rows, and nobody can
    tell whether what only one has was deleted, or which of two rows of one dot is damaged. Returns how many dots came
    to life.
    """
    revived = 0
    for op in store.incoming():
        if _live(store, op) is None and _may_live(store, op):
            make_live(store, op)
            revived += 1
    store.clear_incoming()
    return revived


def _cover(store: Store, their_vv: VersionVector, fingerprints: Fingerprints) -> None:
    """Know all that this version vector covers, but for the log of it."""
    floors = store.floors()
    for origin, seq in sorted(their_vv.items()):
        log_hash = store.log_hash(Dot(origin, seq))
        if seq > store.seen(origin):
            store.advance(origin, seq)
            log_hash = fingerprints.get(Dot(origin, seq))
        if seq > floors.get(origin, 0):
            store.raise_floor(origin, seq, log_hash)


def adopt_incoming(store: Store, their_vv: VersionVector, fingerprints: Fingerprints) -> None:
    """Become exactly what lies staged, another peer's state as of its version vector, whatever the own rows say.

    For a peer whose rows are damaged: some are gone, some are not what they were, and none can be told apart. It must
    know of nothing beyond that vector when this begins. Then it is as whoever took over a whole state with nothing of
    its own.
    """
    for op in store.live():
        if not store.is_incoming(op):
            end_if_live(store, _live(store, op))
    for op in store.incoming():
        mine = _live(store, op)
        if mine is not None and digest_of(mine) != digest_of(op):
            end(store, mine)
            mine = None
        if mine is None and _may_live(store, op):
            make_live(store, op)
    _cover(store, their_vv, fingerprints)
    store.set_state_sum(sum_of_rows(store))
    store.clear_incoming()


def _live(store: Store, op: LiveOp) -> LiveOp | None:
    return store.put_at(op.dot) if isinstance(op, Put) else store.hold_at(op.dot)


def _may_live(store: Store, op: LiveOp) -> bool:
    return isinstance(op, Put) or store.put_at(op.put) is not None


def sum_of_rows(store: Store) -> int:
    """The sum the state really has; unequal to the stored one only through a bug or bit rot."""
    return sum(digest_of(op) for op in store.live()) % SUM_MODULUS


def sum_of_incoming(store: Store) -> int:
    """The sum of another peer's state as it arrived, to compare with what that peer says it is."""
    return sum(digest_of(op) for op in store.incoming()) % SUM_MODULUS
