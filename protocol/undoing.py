"""Ends a fork: goes back to where two logs of one origin are alike, and writes again what only this peer would know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b

from protocol import catalog
from protocol.codec import manifest_fields, pack
from protocol.forks import Fork
from protocol.identity import Dot, NodeId, Origin
from protocol.ops import Delete, Drop, Hold, HoldRun, LiveOp, Manifest, Op, Put, holds_in, needs_of
from protocol.store import Store

Forks = Mapping[Origin, Fork]

Write = Callable[[Put | Delete | Drop], Dot]
"""Writes an op again, under a dot of its own; returns that dot."""


def mark_of(manifest: Manifest) -> bytes:
    """16 bytes that stand for an upload, whatever its dot; see `Store.give_up`."""
    return blake2b(pack(manifest_fields(manifest)), digest_size=16, person=b"minidfs.upload").digest()


class Undone:
    """Ops that were taken back out of a store: those behind a fork, those naming one of them, and what follows these.

    There a dot has two meanings, and that of the others is to stay. An op by another origin that names such a dot was
    heard from somebody with the same branch, so it means the op of this one; from there on that origin too is taken
    back. Where nobody can tell any more where the fork is, all that is in the log is taken back, though others may have
    heard of some of it, and what is below the floor is not compared any more.
    """

    def __init__(self, store: Store, me: NodeId, forks: Forks) -> None:
        self._store = store
        self._me = me
        self._disputed = frozenset(forks)
        self._stands = {origin: fork.agreed for origin, fork in forks.items()}
        """Of each origin that loses ops, the seq up to which it keeps them."""
        self._ops = list(filter(self._is_undone, store.log_after({})))
        self.count = len(self._ops)
        self._was_live = {op.dot for op in self._ops if self._end(op)}
        self._renamed: dict[Dot, Dot] = {}
        for origin, fork in sorted(forks.items()):
            self._give_up_branch(origin, fork)
        for origin, seq in sorted(self._stands.items()):
            if store.seen(origin) > seq:
                store.rewind(origin, seq)

    def _give_up_branch(self, origin: Origin, fork: Fork) -> None:
        """Never hear it again from others, and where its beginning is lost, do not stay apart from them for that."""
        seqs = range(max(fork.differs, fork.agreed + 1), self._store.seen(origin) + 1)
        hashes = (self._store.log_hash(Dot(origin, seq)) for seq in seqs)
        self._store.give_up([log_hash for log_hash in hashes if log_hash is not None])
        if fork.agreed and not fork.is_certain:
            self._store.raise_floor(origin, fork.agreed, None)

    def _is_given_up(self, dot: Dot) -> bool:
        return dot.seq > self._stands.get(dot.origin, dot.seq)

    def _is_undone(self, op: Op) -> bool:
        """Asked in the order of the log, for what follows an op that is taken back goes with it."""
        if any(map(self._is_given_up, needs_of(op))):
            self._stands.setdefault(op.dot.origin, op.dot.seq - 1)
        return self._is_given_up(op.dot)

    def _end(self, op: Op) -> bool:
        """Take what it made live out of the state; whether it was live still."""
        found: Iterable[LiveOp | None]
        if isinstance(op, Put):
            found = (self._store.put_at(op.dot),)
        else:
            found = [self._store.hold_at(hold.dot) for hold in holds_in(op)]
        live = [one for one in found if one is not None]
        for one in live:
            catalog.end(self._store, one)
        return bool(live)

    def write_again(self, write: Write) -> None:
        """Write the same under new dots; what was removed since is not, and each peer declares its own holds anew.

        A put of a log that is disputed is written again by its owner alone; all else by everybody who takes it back.
        """
        for op in self._ops:
            match op:
                case Put() if op.dot in self._was_live and self._is_ours(op):
                    again = replace(op, supersedes=self._now(op.supersedes), is_held=False)
                    self._renamed[op.dot] = write(again)
                case Put():
                    others = () if op.dot in self._was_live else tuple(self._removed_again(op.manifest))
                    names = self._now(op.supersedes) + others
                    self._remove(Delete(op.dot, op.stamp, op.manifest.file_key, names), write)
                case Delete():
                    self._remove(replace(op, supersedes=self._now(op.supersedes)), write)
                case Drop():
                    up_to = tuple(self._last_standing(op.up_to))
                    self._remove(replace(op, supersedes=self._now(op.supersedes), up_to=up_to), write)
                case Hold() | HoldRun():
                    pass

    def _removed_again(self, manifest: Manifest) -> Iterable[Dot]:
        """What somebody wrote again of an upload that was removed here, so far; more of it is removed when it comes."""
        self._store.give_up([mark_of(manifest)])
        return (put.dot for put in self._store.puts_of(manifest.file_key) if put.manifest == manifest)

    def _is_ours(self, op: Op) -> bool:
        return op.dot.origin.node_id == self._me or op.dot.origin not in self._disputed

    def _remove(self, op: Delete | Drop, write: Write) -> None:
        """It took effect here when it was first heard; others have still to hear of it."""
        if needs_of(op):
            write(op)

    def _now(self, dots: tuple[Dot, ...]) -> tuple[Dot, ...]:
        """What ops of these dots are called now, those that have a name."""
        return tuple(self._renamed.get(dot, dot) for dot in dots if dot in self._renamed or not self._is_given_up(dot))

    def _last_standing(self, ends: Iterable[Dot]) -> Iterable[Dot]:
        for origin, seq in ends:
            kept = min(seq, self._stands.get(origin, seq))
            if kept:
                yield Dot(origin, kept)
