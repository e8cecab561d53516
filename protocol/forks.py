"""Forked logs: one origin, and two logs that go on differently from some op on.

An image of a machine that is resumed writes on under the epoch it had, and so gives dots to ops which the machine had
given to others. Equal version vectors would hide that, so what is said of a log travels with a running hash of it, as
in a chain of blocks: whoever finds another hash than its own at the same dot applies nothing of that message. What
happens then is `Replica.end_forks`: the owner of the log goes back to where it is like that of the others, and writes
again, under a new epoch, what they never heard; then whoever had heard of the branch it gave up goes back too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from protocol.codec import NO_LOG, OpDots, encode_op, next_log_hash
from protocol.identity import Dot, NodeId, Origin, VersionVector
from protocol.ops import Op, last_dot
from protocol.store import Store

Fingerprints = Mapping[Dot, bytes]
"""Running hashes of logs, each up to and with the op that has that dot."""

FINGERPRINTS_MAX = 100_000
"""In one message; of more logs than that some are not compared."""

HashAt = Callable[[Dot], bytes | None]

OWN_ORIGINS_MAX = 8
"""Of the origins of the peer that is spoken to, the latest so many are compared every time."""


def fingerprints_for(
    hash_at: HashAt, to: NodeId, vv: VersionVector, their_vv: VersionVector, ops: Iterable[OpDots]
) -> Fingerprints:
    """What to say of our logs to a peer that stands at `their_vv`, with ops of these dots, which name those, for it.

    Of its own logs, for it alone can see to a fork of them; of the logs these ops continue, before the first and at the
    last of them; and of those they name ops of.
    """
    own = [origin for origin in vv if origin.node_id == to][-OWN_ORIGINS_MAX:]
    dots = dict.fromkeys(dot for origin in own for dot in _both_ends(origin, vv, their_vv))
    named: VersionVector = {}
    firsts: VersionVector = {}
    lasts: VersionVector = {}
    for origin, first, last, needs in ops:
        firsts.setdefault(origin, first - 1)
        lasts[origin] = last
        for dot in needs:
            named[dot.origin] = max(dot.seq, named.get(dot.origin, 0))
    dots |= dict.fromkeys(Dot(*entry) for entry in (*firsts.items(), *lasts.items(), *named.items()))
    return _known(hash_at, dots)


def fingerprints_of_all(hash_at: HashAt, vv: VersionVector, their_vv: VersionVector) -> Fingerprints:
    """What to say of our logs to a peer that is to take over our whole state: of each, as far as both know it."""
    dots = (dot for origin in vv for dot in _both_ends(origin, vv, their_vv))
    return _known(hash_at, islice(dots, FINGERPRINTS_MAX))


def _both_ends(origin: Origin, vv: VersionVector, their_vv: VersionVector) -> Iterator[Dot]:
    """The last op both know, and ours: it may be that of a branch they gave up."""
    yield Dot(origin, min(vv[origin], their_vv.get(origin, 0)))
    yield Dot(origin, vv[origin])


def _known(hash_at: HashAt, dots: Iterable[Dot]) -> Fingerprints:
    found = ((dot, hash_at(dot)) for dot in dots if dot.seq)
    return {dot: log_hash for dot, log_hash in found if log_hash is not None}


def disputed(store: Store, fingerprints: Fingerprints, ops: Sequence[Op]) -> dict[Origin, bytes]:
    """The origins of which another peer's log is not ours, as its fingerprints and its ops show, and a hash of its log.

    What lies below a floor cannot be compared, but for a branch that was given up here. Of a run all is known, or
    nothing: one that comes and is known in part is of another log.
    """
    found: dict[Origin, bytes] = {}
    for dot, log_hash in (*fingerprints.items(), *_running(store, fingerprints, ops)):
        if store.was_given_up(log_hash):
            found[dot.origin] = log_hash
        elif store.log_hash(dot) not in (None, log_hash):
            found.setdefault(dot.origin, log_hash)
    for op in ops:
        if op.dot.seq <= store.seen(op.dot.origin) < last_dot(op).seq:
            found.setdefault(op.dot.origin, b"")
    return found


def _running(store: Store, fingerprints: Fingerprints, ops: Sequence[Op]) -> Iterator[tuple[Dot, bytes]]:
    """The running hash at each op that comes again, or that may be one of a branch which was given up here.

    Of a log of which all comes again the fingerprint of the last op says as much.
    """
    lasts = {op.dot.origin: last_dot(op) for op in ops}
    running: dict[Origin, bytes | None] = {}
    for op in ops:
        origin, seq = last_dot(op)
        seen, last = store.seen(origin), lasts[origin]
        if not store.has_given_up() and (seq > seen or (last.seq <= seen and last in fingerprints)):
            continue
        if origin not in running:
            first = op.dot.seq
            running[origin] = NO_LOG if first == 1 else fingerprints.get(Dot(origin, first - 1))
        before = running[origin]
        if before is not None:
            running[origin] = log_hash = next_log_hash(before, encode_op(op))
            yield Dot(origin, seq), log_hash


def is_prefix(store: Store, origin: Origin, fingerprints: Fingerprints) -> bool:
    """Whether another peer, that has more of an origin's log, has all we have of it."""
    last = Dot(origin, store.seen(origin))
    return last.seq == 0 or fingerprints.get(last, b"") == store.log_hash(last)


def is_comparable(store: Store, their_vv: VersionVector, compared: VersionVector) -> bool:
    """Whether logs that were found to be alike at `compared` are so now, for a peer that took its time since."""
    seen = {origin: store.seen(origin) for origin in their_vv}
    between = [origin for origin, seq in their_vv.items() if 0 < seen[origin] < seq]
    is_as_compared = all(seen[origin] == compared.get(origin, 0) for origin in between)
    return is_as_compared and not points_into_run(store, their_vv)


def points_into_run(store: Store, vv: VersionVector) -> bool:
    """Whether a version vector covers a part of a run, as that of no peer does."""
    floors = store.floors()
    logged = (dot for dot in vv.items() if floors.get(dot[0], 0) < dot[1] <= store.seen(dot[0]))
    return any(store.end_of_log(origin, seq) != seq for origin, seq in logged)


class Fork(NamedTuple):
    """Where two logs of one origin part."""

    agreed: int
    """They are alike up to here; where that cannot be seen any more, all of ours that is left in the log is behind."""
    differs: int
    """From here on they are known not to be."""
    is_certain: bool = True
    """False where the place is lost with the beginning of one of the logs."""


def find_fork(store: Store, origin: Origin, first: int, log_hashes: Sequence[bytes]) -> Fork:
    """Where our log of an origin parts from that of another peer, whose running hashes from `first` on these are."""
    floor, seen = store.floors().get(origin, 0), store.seen(origin)

    def is_same(seq: int) -> bool:
        return log_hashes[seq - first] == store.log_hash(Dot(origin, seq))

    low, high = max(first, floor), min(first + len(log_hashes) - 1, seen)
    if low == 1 and not floor:
        # Before the first op all logs are alike.
        low = 0
    elif low > high or not is_same(low):
        return Fork(floor, low if low <= high else seen + 1, is_certain=False)
    # Two logs that are alike up to one op are alike up to each before it.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_same(middle) else (low, middle - 1)
    return Fork(low, low + 1)
