"""One peer's replica: it writes its own log, hears those of others, and hands on what others lack.

The methods are steps of a transaction on the store; what they return may leave the process only once that is
committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

from protocol import catalog, forks
from protocol.catalog import Verdict
from protocol.codec import root_of, weight_of
from protocol.forks import Fingerprints
from protocol.identity import (
    EPOCH_BITS,
    Dot,
    HybridClock,
    NodeId,
    Origin,
    Stamp,
    VersionVector,
    covers_all,
)
from protocol.ops import RUN_MAX, Delete, Drop, Hold, HoldRun, Manifest, Op, Put, holds_in, last_dot, needs_of
from protocol.store import Store
from protocol.undoing import Forks, Undone, mark_of

DROP_DOTS_MAX = 20_000
"""Holds taken back in one op: with the longest names that is about a quarter of what an op may have."""

OwnOp = TypeVar("OwnOp", bound=Op)


@dataclass(slots=True)
class Heard:
    """What became of ops that were heard."""

    applied: int = 0
    too_early: bool = False
    """The rest has to wait: it builds on ops that must be fetched first."""
    my_holds: list[Hold] = field(default_factory=list)
    """Holds this peer is said to have written, in a life it does not remember or had forgotten parts of."""
    my_drops: int = 0
    """Drops this peer is said to have written; what its disk still backs has to be declared again."""
    disputed: tuple[Origin, ...] = ()
    """Origins of which the other's log is not ours; then nothing was applied."""
    given_up: tuple[Origin, ...] = ()
    """Of these, own ones of which the other follows a branch that was given up here: it has to take our state."""


@dataclass(frozen=True, slots=True)
class Suffix:
    """What another peer lacks of our logs, in the order in which it was applied here."""

    ops: tuple[bytes, ...]
    more: bool
    """There is more than fits; ask again once these are applied."""


class Replica:
    """The rules of one peer over its store.

    `me` writes under an epoch drawn from `chance` (which must be seeded anew at every start, never from the store): a
    dot is never used twice, even by a peer whose disk was restored or emptied.
    """

    def __init__(self, me: NodeId, store: Store, chance: Random, clock: HybridClock | None = None) -> None:
        self.me = me
        self.store = store
        self._chance = chance
        self.clock = clock or HybridClock()
        self.origin = self._draw_origin()
        self.epochs_left = 0

    def remember(self) -> Callable[[], None]:
        """What undoes in memory, after a roll-back, all that steps of the transaction that begins now will do."""
        origin, epochs_left = self.origin, self.epochs_left

        def undo() -> None:
            self.origin, self.epochs_left = origin, epochs_left

        return undo

    # --- writing the own log ---

    def put(self, manifest: Manifest, wall_ms: int, *, is_held: bool = False) -> Put:
        """Write a new version of a file, in place of those known here; declare it held too, see `hold`."""
        return self._write(Put(*self._next(wall_ms), manifest, self._versions(manifest.file_key), is_held))

    def delete(self, file_key: str, wall_ms: int) -> Delete | None:
        """Remove all versions known here; None when there is none, and nothing is written."""
        versions = self._versions(file_key)
        if not versions:
            return None
        return self._write(Delete(*self._next(wall_ms), file_key, versions))

    def hold(self, put: Dot, wall_ms: int, *, recovered: bool = False) -> Hold | None:
        """Declare that this peer's disk has all chunks of a put, synced and verified.

        None when the put is no longer live, or was declared before.
        """
        if not self._may_hold(put):
            return None
        return self._write(Hold(*self._next(wall_ms), put, recovered))

    def hold_all(self, puts: Iterable[Dot], wall_ms: int, *, recovered: bool = False) -> list[Hold]:
        """`hold` each of these puts of which that can be said, in as few ops as may be."""
        dots = list(filter(self._may_hold, dict.fromkeys(puts)))
        written: list[Hold] = []
        for start in range(0, len(dots), RUN_MAX):
            run = tuple(dots[start : start + RUN_MAX])
            if len(run) == 1:
                op: Hold | HoldRun = Hold(*self._next(wall_ms), run[0], recovered)
            else:
                op = HoldRun(*self._next(wall_ms), run, recovered)
            written += holds_in(self._write(op))
        return written

    def _may_hold(self, put: Dot) -> bool:
        return self.store.put_at(put) is not None and not self.my_holds_of(put)

    def drop(self, holds: Iterable[Hold], wall_ms: int) -> list[Drop]:
        """Take back holds of this peer, those that are live; in as many ops as it takes for each to fit a message."""
        dots = tuple(hold.dot for hold in holds if self.store.hold_at(hold.dot) is not None)
        return [
            self._write(Drop(*self._next(wall_ms), dots[start : start + DROP_DOTS_MAX]))
            for start in range(0, len(dots), DROP_DOTS_MAX)
        ]

    def drop_all(self, wall_ms: int) -> Drop | None:
        """Take back every hold this peer ever wrote, as far as it has heard: its disk has none of them."""
        last = {hold.dot.origin: hold.dot for hold in self.store.holds_by(self.me)}
        if not last:
            return None
        return self._write(Drop(*self._next(wall_ms), (), tuple(sorted(last.values()))))

    def drop_unbacked(
        self, is_backed: Callable[[Dot], bool], wall_ms: int, puts: Iterable[Dot] | None = None
    ) -> list[Drop]:
        """Take back what this peer is said to hold and its disk does not back; `is_backed` is asked with put dots.

        Of several holds on one put the latest stays: where content was back before a life was remembered in which this
        peer held it too, they would pile up. Of all puts, or only these.
        """
        if puts is None:
            mine = self.store.holds_by(self.me)
        else:
            mine = [hold for put in dict.fromkeys(puts) for hold in self.my_holds_of(put)]
        latest: dict[Dot, Hold] = {}
        for hold in mine:
            known = latest.setdefault(hold.put, hold)
            if (known.stamp, known.dot) < (hold.stamp, hold.dot):
                latest[hold.put] = hold
        untrue = [hold for hold in mine if latest[hold.put] is not hold or not is_backed(hold.put)]
        return self.drop(untrue, wall_ms)

    def my_holds_of(self, put: Dot) -> list[Hold]:
        """The live holds of this peer on a put; more than one until `drop_unbacked`, see there."""
        return [hold for hold in self.store.holds_of(put) if hold.holder == self.me]

    def _versions(self, file_key: str) -> tuple[Dot, ...]:
        return tuple(sorted(put.dot for put in self.store.puts_of(file_key)))

    def _next(self, wall_ms: int) -> tuple[Dot, Stamp]:
        return self._next_dot(), self.clock.tick(wall_ms)

    def _next_dot(self) -> Dot:
        return Dot(self.origin, self.store.seen(self.origin) + 1)

    def _write(self, op: OwnOp) -> OwnOp:
        verdict = catalog.apply(self.store, op)
        assert verdict is Verdict.APPLIED, f"{self.me} wrote {op} and could not apply it: {verdict}"
        return op

    # --- epochs ---

    def leave_epoch(self) -> None:
        """Write under a new origin from now on: it is no longer certain which of our dots are taken."""
        self.origin = self._draw_origin()
        self.epochs_left += 1

    def _draw_origin(self) -> Origin:
        return Origin(self.me, self._chance.getrandbits(EPOCH_BITS))

    # --- exchanging logs ---

    def hear(self, their_vv: VersionVector, fingerprints: Fingerprints, ops: Iterable[Op], wall_ms: int) -> Heard:
        """Apply what a peer with this version vector sent, in its order, up to the first op whose time has not come.

        Nothing of it when its logs are not ours, as its fingerprints show or the ops themselves. One that has heard
        more from our present epoch than we remember to have written shows that this process is an older image of
        itself, resumed: its dots may be taken by ops it forgot, so it leaves the epoch, and disputes it unless all it
        has is what others have of it too.
        """
        ops = list(ops)
        disputed = forks.disputed(self.store, fingerprints, ops)
        known = max([their_vv.get(self.origin, 0), *self._own_seqs(ops)])
        if known > self.store.seen(self.origin):
            if not forks.is_prefix(self.store, self.origin, fingerprints):
                disputed.setdefault(self.origin, b"")
            self.leave_epoch()
        if disputed:
            return self._refuse(disputed)
        heard = Heard()
        for op in ops:
            verdict = catalog.apply(self.store, op)
            if verdict is Verdict.TOO_EARLY:
                heard.too_early = True
                break
            if verdict is Verdict.APPLIED:
                heard.applied += 1
                self.clock.observe(op.stamp, wall_ms)
                self._note_own(op, heard)
                if isinstance(op, Put) and self._is_removed(op):
                    self._remove_again(op, wall_ms)
        return heard

    def _refuse(self, disputed: dict[Origin, bytes]) -> Heard:
        if self.origin in disputed:
            self.leave_epoch()
        given_up = [origin for origin, log_hash in disputed.items() if self.store.was_given_up(log_hash)]
        return Heard(
            disputed=tuple(sorted(disputed)),
            given_up=tuple(sorted(origin for origin in given_up if origin.node_id == self.me)),
        )

    def _own_seqs(self, ops: Sequence[Op]) -> Iterator[int]:
        """What an op builds on was heard by its writer: a rumor says so too, though no version vector comes with it."""
        for op in ops:
            yield from (dot.seq for dot in (last_dot(op), *needs_of(op)) if dot.origin == self.origin)

    def _is_removed(self, put: Put) -> bool:
        """Whether it is an upload removed here from a branch that was given up: who did not know writes it again."""
        return self.store.has_given_up() and self.store.was_given_up(mark_of(put.manifest))

    def _remove_again(self, put: Put, wall_ms: int) -> None:
        if self.store.put_at(put.dot) is not None:
            self._write(Delete(*self._next(wall_ms), put.manifest.file_key, (put.dot,)))

    def _note_own(self, op: Op, heard: Heard) -> None:
        if op.dot.origin.node_id != self.me:
            return
        heard.my_holds += [hold for hold in holds_in(op) if self.store.hold_at(hold.dot) is not None]
        if isinstance(op, Drop):
            heard.my_drops += 1

    def suffix(self, their_vv: VersionVector, bytes_max: int) -> Suffix | None:
        """What a peer with this version vector lacks of our logs, `cut_suffix` to `bytes_max`.

        None when part of that is below a floor: only the whole state can help. The order is that of arrival here, so
        that every op follows those it builds on, wherever the suffix is cut.
        """
        if not covers_all(their_vv, self.store.floors()):
            return None
        return cut_suffix(self.store.raw_log_after(their_vv), bytes_max)

    def truncate(self, cut: VersionVector) -> None:
        """Forget the logs up to `cut`, as far as they were applied here; of a run all or nothing."""
        floors = self.store.floors()
        for origin, seq in sorted(cut.items()):
            floor = self.store.end_of_log(origin, min(seq, self.store.seen(origin)))
            if floor > floors.get(origin, 0):
                self.store.raise_floor(origin, floor, self.store.log_hash(Dot(origin, floor)))

    # --- exchanging whole states ---

    def merge_incoming(
        self, their_vv: VersionVector, fingerprints: Fingerprints, compared: VersionVector, wall_ms: int
    ) -> Heard:
        """Take over the staged state of another peer, complete and as of `their_vv`; nothing if its logs are not ours.

        Its fingerprints are of our logs as they stood at `compared`, and of its own now: where this peer has heard more
        since, and yet less than the other, nobody knows whether they are alike, and nothing is taken over either.
        """
        heard = self.hear(their_vv, fingerprints, (), wall_ms)
        if heard.disputed or not forks.is_comparable(self.store, their_vv, compared):
            self.store.clear_incoming()
            return heard
        puts: list[Put] = []
        for op in self.store.incoming():
            self.clock.observe(op.stamp, wall_ms)
            if isinstance(op, Put) and self._is_removed(op):
                puts.append(op)
        catalog.merge_incoming(self.store, their_vv, fingerprints)
        for put in puts:
            self._remove_again(put, wall_ms)
        return heard

    def adopt_incoming(self, their_vv: VersionVector, fingerprints: Fingerprints) -> bool:
        """Take over the staged state of another peer in place of the own one, whose rows are damaged.

        What the own log has beyond it is applied again, in its order and under its dots, for others may have heard it.
        This peer writes under a new epoch from now on. False, and nothing happens, when that peer lacks what this one
        has truncated, which is not in the log any more, or has other logs than this one.
        """
        is_alike = not forks.disputed(self.store, fingerprints, ()) and not forks.points_into_run(self.store, their_vv)
        if not covers_all(their_vv, self.store.floors()) or not is_alike:
            self.store.clear_incoming()
            return False
        beyond = list(self.store.log_after(their_vv))
        for origin, seq in self.store.version_vector().items():
            if seq > their_vv.get(origin, 0):
                self.store.rewind(origin, their_vv.get(origin, 0))
        catalog.adopt_incoming(self.store, their_vv, fingerprints)
        self.leave_epoch()
        for op in beyond:
            verdict = catalog.apply(self.store, op)
            assert verdict is Verdict.APPLIED, f"{op} was in the log, and cannot be applied again: {verdict}"
        return True

    # --- forks ---

    def end_forks(self, forks: Forks) -> int:
        """Follow the others' logs of these origins, where they are not ours any more.

        What this peer had heard behind that is taken back, and the owner of such a log writes it again under a new
        epoch: whoever heard it only from this branch has it from there. Returns how many ops were taken back.
        """
        undone = Undone(self.store, self.me, forks)
        self.leave_epoch()

        def write(op: Put | Delete | Drop) -> Dot:
            # Its stamp stays: versions that came after it, unheard of here, are still the later ones.
            return self._write(replace(op, dot=self._next_dot())).dot

        undone.write_again(write)
        return undone.count

    def disagrees(self, their_vv: VersionVector, their_sum: int) -> bool:
        """Equal version vectors and unequal states: somebody's rows are damaged, and nothing may be removed for it."""
        return self.store.state_sum() != their_sum and self.store.version_vector() == their_vv

    def repair_from_incoming(self) -> int:
        """After a disagreement: bring the sum in line with the rows, and add what the other has.

        Returns how many dots came back to life.
        """
        self.store.set_state_sum(catalog.sum_of_rows(self.store))
        return catalog.unite_incoming(self.store)

    def root(self) -> bytes:
        """32 bytes to compare with another peer's; equal when there is nothing to exchange."""
        return root_of(self.store.version_vector(), self.store.state_sum())


def cut_suffix(ops: Iterable[bytes], bytes_max: int) -> Suffix:
    """The first of these encoded ops, at most about `bytes_max` of them by `codec.weight_of`, and one at least."""
    taken: list[bytes] = []
    size = 0
    for raw in ops:
        size += weight_of(raw)
        if taken and size > bytes_max:
            return Suffix(tuple(taken), more=True)
        taken.append(raw)
    return Suffix(tuple(taken), more=False)
