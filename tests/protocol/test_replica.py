"""What one replica promises to the peer around it, a sentence a test."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replicas.cluster import snapshot_of

from peer.config import Address, Config
from protocol import catalog
from protocol.codec import FILENAME_CHARS_MAX, HASH_BYTES, OP_BYTES_MAX, decode_op, dots_in, encode_op
from protocol.forks import fingerprints_for
from protocol.identity import (
    EPOCH_BITS,
    SEQ_MAX,
    STAMP_MAX,
    Dot,
    HybridClock,
    NodeId,
    Origin,
    Stamp,
    ms_of_stamp,
    stamp_of_ms,
)
from protocol.ops import RUN_MAX, Chunk, Drop, HoldRun, Manifest, Put
from protocol.replica import DROP_DOTS_MAX, Replica
from protocol.store import MemoryStore

NOW = 1_700_000_000_000
NO_LIMIT = 1 << 30


def replica(name: str, store: MemoryStore | None = None, seed: int = 0) -> Replica:
    return Replica(NodeId(name), store or MemoryStore(), Random(f"{name} {seed}"))


def manifest(file_key: str = "a") -> Manifest:
    return Manifest(
        file_key=file_key,
        filename=file_key,
        size_bytes=0,
        sha256=bytes(32),
        content_type="text/plain",
        uploaded_at_ms=NOW,
        copies=3,
        chunks=(),
    )


def tell(teller: Replica, hearer: Replica, wall_ms: int = NOW):
    suffix = teller.suffix(hearer.store.version_vector(), NO_LIMIT)
    ops = [decode_op(raw) for raw in suffix.ops]
    vv, theirs = teller.store.version_vector(), hearer.store.version_vector()
    fingerprints = fingerprints_for(teller.store.log_hash, hearer.me, vv, theirs, map(dots_in, map(encode_op, ops)))
    return hearer.hear(vv, fingerprints, ops, wall_ms)


def merge(me: Replica, other: Replica) -> None:
    """What lies staged, as of now."""
    vv = me.store.version_vector()
    snapshot = snapshot_of(other, vv)
    me.merge_incoming(snapshot.version_vector, snapshot.fingerprints, vv, NOW)


# --- writing ---


def test_a_put_replaces_the_versions_known_here() -> None:
    me = replica("a")
    first, second = me.put(manifest(), NOW), me.put(manifest(), NOW)
    assert second.supersedes == (first.dot,)
    assert me.store.puts_of("a") == [second]


def test_a_delete_of_an_unknown_file_writes_nothing() -> None:
    me = replica("a")
    assert me.delete("a", NOW) is None
    assert me.store.version_vector() == {}


def test_a_hold_of_a_removed_file_writes_nothing() -> None:
    me = replica("a")
    put = me.put(manifest(), NOW)
    me.delete("a", NOW)
    assert me.hold(put.dot, NOW) is None


def test_a_file_is_declared_held_once() -> None:
    me = replica("a")
    put = me.put(manifest(), NOW)
    assert me.hold(put.dot, NOW) is not None
    assert me.hold(put.dot, NOW) is None


def test_a_put_that_is_held_is_one_op_and_its_hold_ends_without_it() -> None:
    me, other = replica("a"), replica("b")
    put = me.put(manifest(), NOW, is_held=True)
    assert me.store.version_vector() == {me.origin: 1}
    (hold,) = me.my_holds_of(put.dot)
    assert hold.dot == put.dot
    assert me.hold(put.dot, NOW) is None
    tell(me, other)
    assert other.store.holds_of(put.dot) == [hold]
    me.drop([hold], NOW)
    tell(me, other)
    for one in (me, other):
        assert one.store.holds_of(put.dot) == []
        assert one.store.put_at(put.dot) is not None
    assert me.root() == other.root()


def test_what_is_taken_over_as_state_has_a_put_without_the_hold_it_came_with() -> None:
    me, other, late = replica("a"), replica("b"), replica("c")
    put = me.put(manifest(), NOW, is_held=True)
    tell(me, other)
    me.drop_all(NOW)
    for receiver in (late, other):
        receiver.store.add_incoming(me.store.live())
        merge(receiver, me)
    assert late.store.put_at(put.dot) is not None
    assert late.store.holds_of(put.dot) == []
    assert other.store.put_at(put.dot) is not None
    assert other.store.holds_of(put.dot) == []
    assert me.root() == other.root() == late.root()


def test_a_peer_is_told_of_the_hold_of_a_put_of_its_own_that_it_forgot() -> None:
    me, other, emptied = replica("a"), replica("b"), replica("a", seed=1)
    put = me.put(manifest(), NOW, is_held=True)
    tell(me, other)
    heard = tell(other, emptied)
    assert [hold.put for hold in heard.my_holds] == [put.dot]
    emptied.drop(heard.my_holds, NOW)
    assert emptied.store.put_at(put.dot) is not None
    assert not emptied.store.holds_by(me.me)


@pytest.mark.parametrize(("files", "ops"), [(0, 0), (1, 1), (2, 1), (RUN_MAX, 1), (RUN_MAX + 1, 2), (2 * RUN_MAX, 2)])
def test_many_files_are_declared_held_in_as_few_ops_as_may_be(files: int, ops: int) -> None:
    writer, me, third = replica("a"), replica("b"), replica("c")
    puts = [writer.put(manifest(f"{n}"), NOW) for n in range(files)]
    tell(writer, me)
    held = me.hold_all([put.dot for put in puts * 2], NOW)
    assert [hold.put for hold in held] == [put.dot for put in puts]
    assert [hold.dot.seq for hold in held] == list(range(1, files + 1))
    assert len(list(me.store.log_after(writer.store.version_vector()))) == ops
    assert me.hold_all([put.dot for put in puts], NOW) == []
    tell(me, third)
    assert third.store.holds_by(me.me) == me.store.holds_by(me.me) == held
    assert third.root() == me.root()


def test_of_a_run_only_the_holds_of_live_puts_are_and_all_dots_are_used() -> None:
    writer, me, other = replica("a"), replica("b"), replica("c")
    puts = [writer.put(manifest(key), NOW) for key in "abc"]
    tell(writer, me)
    tell(writer, other)
    held = me.hold_all([put.dot for put in puts], NOW)
    other.delete("b", NOW)
    tell(me, other)
    assert other.store.holds_by(me.me) == [held[0], held[2]]
    assert other.store.seen(me.origin) == 3
    after = other.hold_all([put.dot for put in puts], NOW)
    assert [hold.put for hold in after] == [puts[0].dot, puts[2].dot]


def test_a_hold_inside_a_run_is_dropped_by_its_own_dot_or_up_to_it() -> None:
    writer, me, other = replica("a"), replica("b"), replica("c")
    puts = [writer.put(manifest(key), NOW) for key in "abcd"]
    tell(writer, me)
    held = me.hold_all([put.dot for put in puts], NOW)
    me.drop([held[1]], NOW)
    tell(me, other)
    assert other.store.holds_by(me.me) == [held[0], held[2], held[3]]
    catalog.apply(other.store, Drop(Dot(me.origin, 6), Stamp(1), (), (held[2].dot,)))
    assert other.store.holds_by(me.me) == [held[3]]


def test_a_run_is_applied_whole_or_not_at_all() -> None:
    writer, me, other = replica("a"), replica("b"), replica("c")
    puts = [writer.put(manifest(key), NOW) for key in "ab"]
    tell(writer, me)
    me.hold_all([put.dot for put in puts], NOW)
    (run,) = me.store.log_after(writer.store.version_vector())
    assert other.hear({}, {}, [run], NOW).too_early
    first, *_ = writer.store.log_after({})
    assert other.hear({}, {}, [first, run], NOW).too_early
    assert not other.store.holds_by(me.me)
    assert other.store.seen(me.origin) == 0
    overlapping = replace(run, dot=Dot(me.origin, 2))
    assert other.hear({}, {}, [*writer.store.log_after({}), run, overlapping], NOW).too_early
    assert len(other.store.holds_by(me.me)) == other.store.seen(me.origin) == 2


def test_a_log_is_not_cut_inside_a_run() -> None:
    writer, me = replica("a"), replica("b")
    puts = [writer.put(manifest(key), NOW) for key in "abc"]
    tell(writer, me)
    me.hold_all([put.dot for put in puts], NOW)
    me.hold(writer.put(manifest("d"), NOW).dot, NOW)
    me.truncate({me.origin: 2})
    assert me.store.floors() == {}
    me.truncate({me.origin: 3})
    assert me.store.floors() == {me.origin: 3}


@pytest.mark.parametrize("takes", ["merge", "adopt"])
def test_a_whole_state_whose_vector_points_into_a_run_is_not_taken_over(takes: str) -> None:
    writer, me = replica("a"), replica("b")
    puts = [writer.put(manifest(key), NOW) for key in "abc"]
    tell(writer, me)
    me.hold_all([put.dot for put in puts], NOW)
    before, vv = me.root(), {**writer.store.version_vector(), me.origin: 2}
    if takes == "merge":
        me.merge_incoming(vv, {}, me.store.version_vector(), NOW)
    else:
        assert not me.adopt_incoming(vv, {})
    assert me.root() == before
    assert not list(me.store.incoming())


def test_holds_that_are_not_live_are_not_dropped_again() -> None:
    me = replica("a")
    hold = me.hold(me.put(manifest(), NOW).dot, NOW)
    assert [drop.supersedes for drop in me.drop([hold], NOW)] == [(hold.dot,)]
    assert me.drop([hold], NOW) == []
    assert me.drop_all(NOW) is None


def test_only_the_holds_the_disk_does_not_back_are_dropped() -> None:
    me = replica("a")
    kept, lost = (me.hold(me.put(manifest(key), NOW).dot, NOW) for key in "ab")
    me.drop_unbacked(lambda put: put == kept.put, NOW)
    assert me.store.holds_by(me.me) == [kept]
    assert lost is not None


def test_of_holds_of_several_lives_on_one_file_the_latest_stays() -> None:
    me, other = replica("a"), replica("b")
    put = other.put(manifest(), NOW)
    tell(other, me)
    for life in range(1, 4):
        me.hold(put.dot, NOW + life)
        tell(me, other)
        # The next life has its content back before it hears of this one.
        me = replica("a", seed=life)
        me.hear({}, {}, [put], NOW)
    latest = me.hold(put.dot, NOW + 4)
    heard = tell(other, me)
    assert len(me.my_holds_of(put.dot)) == 4
    me.drop_unbacked(lambda _: True, NOW, [hold.put for hold in heard.my_holds])
    assert me.my_holds_of(put.dot) == [latest]
    assert me.drop_unbacked(lambda _: True, NOW) == []
    tell(me, other)
    assert other.store.holds_of(put.dot) == [latest]
    me.drop_unbacked(lambda _: False, NOW, [put.dot])
    assert me.my_holds_of(put.dot) == []


def test_one_op_drops_the_holds_of_all_lives_of_a_peer_and_of_no_other() -> None:
    me, other = replica("a"), replica("b")
    put = other.put(manifest(), NOW)
    theirs = other.hold(put.dot, NOW)
    tell(other, me)
    first = me.hold(put.dot, NOW)
    me = replica("a", me.store, seed=1)
    second = me.hold(me.put(manifest("b"), NOW).dot, NOW)
    drop = me.drop_all(NOW)
    assert sorted(drop.up_to) == sorted([first.dot, second.dot])
    tell(me, other)
    assert me.store.holds_by(me.me) == other.store.holds_by(me.me) == []
    assert other.store.holds_of(put.dot) == [theirs]


def test_taking_back_any_number_of_holds_makes_ops_that_fit_a_message() -> None:
    me = replica("a")
    holds = [me.hold(me.put(manifest(f"f{number}"), NOW).dot, NOW) for number in range(2 * DROP_DOTS_MAX + 1)]
    drops = me.drop(holds, NOW)
    assert [len(drop.supersedes) for drop in drops] == [DROP_DOTS_MAX, DROP_DOTS_MAX, 1]
    assert me.store.holds_by(me.me) == []


def test_the_largest_ops_there_can_be_fit_a_message() -> None:
    longest = Origin(NodeId("n" * 64), (1 << EPOCH_BITS) - 1)
    dots = tuple(Dot(longest, SEQ_MAX - number) for number in range(DROP_DOTS_MAX))
    assert len(encode_op(Drop(dots[0], Stamp(STAMP_MAX), dots))) < OP_BYTES_MAX / 2
    assert len(encode_op(HoldRun(dots[-1], Stamp(STAMP_MAX), dots[:RUN_MAX]))) < OP_BYTES_MAX / 2
    config = Config(node_id="n", listen=Address("h", 1), data=Path())
    count = -(-config.file_bytes_max // config.chunk_bytes_max)
    chunks = (Chunk(b"\xff" * HASH_BYTES, config.chunk_bytes_max),) * count
    largest = replace(manifest(), chunks=chunks, filename="\U0001f600" * FILENAME_CHARS_MAX)
    assert len(encode_op(Put(dots[0], Stamp(STAMP_MAX), largest))) < OP_BYTES_MAX


# --- time ---


@given(st.lists(st.integers(0, 1 << 46), min_size=2))
def test_stamps_grow_whatever_the_clock_on_the_wall_does(walls: list[int]) -> None:
    clock = HybridClock()
    stamps = [clock.tick(wall_ms) for wall_ms in walls]
    assert all(one < other for one, other in pairwise(stamps))
    assert all(ms_of_stamp(stamp) >= wall_ms for stamp, wall_ms in zip(stamps, walls, strict=True))


@given(ahead_ms=st.integers(-(1 << 40), HybridClock.DRIFT_MAX_MS))
def test_what_is_written_after_hearing_of_a_version_is_stamped_later(ahead_ms: int) -> None:
    ahead, me = replica("b"), replica("a")
    heard = ahead.put(manifest(), NOW + ahead_ms)
    tell(ahead, me)
    assert me.put(manifest("b"), NOW).stamp > heard.stamp


def test_a_version_taken_over_as_state_counts_as_heard() -> None:
    ahead, me = replica("b"), replica("a")
    heard = ahead.put(manifest(), NOW + 5000)
    snapshot = snapshot_of(ahead)
    me.store.add_incoming(snapshot.ops)
    me.merge_incoming(snapshot.version_vector, snapshot.fingerprints, {}, NOW)
    assert me.put(manifest("b"), NOW).stamp > heard.stamp


def test_a_clock_that_is_far_ahead_does_not_pull_others_along() -> None:
    ahead, me = replica("b"), replica("a")
    ahead.put(manifest(), NOW + HybridClock.DRIFT_MAX_MS + 1)
    tell(ahead, me)
    assert me.clock.stamps_ignored == 1
    assert me.put(manifest("b"), NOW).stamp == stamp_of_ms(NOW)


# --- hearing ---


def test_an_op_heard_twice_takes_effect_once() -> None:
    me, other = replica("a"), replica("b")
    put = other.put(manifest(), NOW)
    assert me.hear({}, {}, [put, put], NOW).applied == 1
    assert list(me.store.log_after({})) == [put]


def test_a_rumor_that_leaves_a_gap_waits() -> None:
    me, other = replica("a"), replica("b")
    first, second = other.put(manifest("a"), NOW), other.put(manifest("b"), NOW)
    assert me.hear({}, {}, [second], NOW).too_early
    assert me.store.version_vector() == {}
    assert me.hear({}, {}, [first, second], NOW).applied == 2


@pytest.mark.parametrize("kind", ["put", "delete", "hold", "drop", "drop of everything"])
def test_a_rumor_that_builds_on_what_was_not_heard_waits(kind: str) -> None:
    writer, other, me = replica("w"), replica("b"), replica("a")
    put = writer.put(manifest(), NOW)
    tell(writer, other)
    other.hold(put.dot, NOW)
    other = replica("b", other.store, seed=1)
    write = {
        "put": lambda: other.put(manifest(), NOW),
        "delete": lambda: other.delete("a", NOW),
        "hold": lambda: Replica.hold(replica("c", other.store), put.dot, NOW),
        "drop": lambda: other.drop(other.my_holds_of(put.dot), NOW)[0],
        "drop of everything": lambda: other.drop_all(NOW),
    }
    assert me.hear({}, {}, [write[kind]()], NOW).too_early
    assert me.store.version_vector() == {}
    assert not tell(other, me).too_early


def test_what_follows_an_op_that_waits_waits_too() -> None:
    me, other = replica("a"), replica("b")
    _, second = other.put(manifest("a"), NOW), other.put(manifest("b"), NOW)
    unrelated = replica("c").put(manifest("c"), NOW)
    heard = me.hear({}, {}, [second, unrelated], NOW)
    assert (heard.applied, heard.too_early) == (0, True)


def test_a_peer_is_told_of_holds_and_drops_of_its_own_that_it_forgot() -> None:
    me, other = replica("a"), replica("b")
    put = me.put(manifest(), NOW)
    hold = me.hold(put.dot, NOW)
    tell(me, other)
    reborn = replica("a", seed=1)
    heard = tell(other, reborn)
    assert heard.my_holds == [hold]
    me.drop([hold], NOW)
    tell(me, other)
    assert tell(other, reborn).my_drops == 1
    again = tell(other, replica("a", seed=2))
    assert (again.my_holds, again.my_drops) == ([hold], 1)


def test_a_hold_whose_put_is_gone_is_heard_and_not_live() -> None:
    writer, holder, me = replica("w"), replica("h"), replica("a")
    put = writer.put(manifest(), NOW)
    tell(writer, me)
    tell(writer, holder)
    hold = holder.hold(put.dot, NOW)
    me.delete("a", NOW)
    assert me.hear({}, {}, [hold], NOW).applied == 1
    assert list(me.store.live()) == []
    assert me.store.state_sum() == 0


# --- suffixes ---


@given(limit=st.integers(0, 2000))
def test_a_suffix_keeps_to_its_limit_and_always_moves_on(limit: int) -> None:
    me, other = replica("a"), replica("b")
    for key in "abcdefgh":
        me.put(manifest(key), NOW)
    more, rounds = True, 0
    while more:
        suffix = me.suffix(other.store.version_vector(), limit)
        assert suffix.ops
        assert len(suffix.ops) == 1 or sum(map(len, suffix.ops)) <= limit
        other.hear({}, {}, [decode_op(raw) for raw in suffix.ops], NOW)
        more, rounds = suffix.more, rounds + 1
    assert other.root() == me.root()
    assert rounds <= 8


def test_a_suffix_follows_the_order_of_arrival() -> None:
    z, a, me = replica("z"), replica("a"), replica("m")
    put = z.put(manifest(), NOW)
    tell(z, a)
    hold = a.hold(put.dot, NOW)
    tell(a, me)
    assert me.suffix({}, NO_LIMIT).ops == (encode_op(put), encode_op(hold))


def test_who_has_everything_gets_an_empty_suffix() -> None:
    me = replica("a")
    me.put(manifest(), NOW)
    suffix = me.suffix(me.store.version_vector(), NO_LIMIT)
    assert (suffix.ops, suffix.more) == ((), False)


def test_who_is_below_a_floor_gets_no_suffix() -> None:
    me = replica("a")
    first = me.put(manifest("a"), NOW)
    me.put(manifest("b"), NOW)
    me.truncate({me.origin: 1})
    assert me.suffix({}, NO_LIMIT) is None
    assert len(me.suffix({me.origin: first.dot.seq}, NO_LIMIT).ops) == 1


def test_a_log_is_truncated_no_further_than_it_was_applied_and_no_floor_falls() -> None:
    me = replica("a")
    me.put(manifest(), NOW)
    stranger = Origin(NodeId("b"), 1)
    me.truncate({me.origin: 99, stranger: 5})
    assert me.store.floors() == {me.origin: 1}
    me.truncate({me.origin: 0})
    assert me.store.floors() == {me.origin: 1}


# --- epochs ---


def test_every_start_writes_under_a_new_origin() -> None:
    me = replica("a")
    me.put(manifest(), NOW)
    again = replica("a", me.store, seed=1)
    assert again.origin != me.origin
    assert again.put(manifest("b"), NOW).dot == Dot(again.origin, 1)


def test_no_epoch_is_left_for_a_peer_that_heard_what_was_written() -> None:
    me, other = replica("a"), replica("b")
    me.put(manifest(), NOW)
    tell(me, other)
    tell(other, me)
    assert me.epochs_left == 0


def test_a_rumor_of_an_own_op_that_was_forgotten_leaves_the_epoch() -> None:
    me = replica("a")
    me.put(manifest("a"), NOW)
    forgotten = me.origin
    me.hear({}, {}, [Put(Dot(forgotten, 2), Stamp(0), manifest("b"))], NOW)
    assert me.origin != forgotten


# --- whole states ---


def test_a_merge_removes_what_the_other_saw_removed_and_keeps_what_it_never_saw() -> None:
    me, other = replica("a"), replica("b")
    gone, kept = me.put(manifest("gone"), NOW), me.put(manifest("kept"), NOW)
    hold = me.hold(gone.dot, NOW)
    tell(me, other)
    other.delete("gone", NOW)
    unseen = me.put(manifest("unseen"), NOW)
    me.store.add_incoming(snapshot_of(other).ops)
    merge(me, other)
    assert list(me.store.live()) == [kept, unseen]
    assert me.store.hold_at(hold.dot) is None
    assert me.store.floors() == other.store.version_vector()
    assert list(me.store.incoming()) == []


def test_a_merge_into_an_empty_replica_copies_state_sum_and_vector() -> None:
    me, other = replica("a"), replica("b")
    for key in "abc":
        other.hold(other.put(manifest(key), NOW).dot, NOW)
    other.delete("b", NOW)
    me.store.add_incoming(snapshot_of(other).ops)
    merge(me, other)
    assert me.root() == other.root()
    assert list(me.store.live()) == list(other.store.live())


def test_equal_vectors_and_unequal_sums_are_a_disagreement_and_nothing_else_is() -> None:
    me, other = replica("a"), replica("b")
    me.put(manifest(), NOW)
    assert not me.disagrees({}, 0)
    tell(me, other)
    vv = me.store.version_vector()
    assert not me.disagrees(vv, other.store.state_sum())
    assert me.disagrees(vv, other.store.state_sum() + 1)
    assert not me.disagrees({**vv, Origin(NodeId("c"), 1): 1}, other.store.state_sum() + 1)


def test_after_a_disagreement_each_has_what_either_had() -> None:
    me, other = replica("a"), replica("b")
    puts = [me.put(manifest(key), NOW) for key in "ab"]
    tell(me, other)
    me.store.remove(puts[0])
    other.store.remove(puts[1])
    ours, theirs = snapshot_of(me), snapshot_of(other)
    me.store.add_incoming(theirs.ops)
    other.store.add_incoming(ours.ops)
    assert (me.repair_from_incoming(), other.repair_from_incoming()) == (1, 1)
    assert list(me.store.live()) == list(other.store.live()) == puts
    assert me.root() == other.root()


@pytest.mark.parametrize("which", [0, 1])
def test_after_a_disagreement_nobody_takes_another_ones_row_for_its_own(which: int) -> None:
    """Either may be the one that is damaged."""
    me, other = replica("a"), replica("b")
    put = me.put(manifest(), NOW)
    tell(me, other)
    other.store.remove(put)
    other.store.add(replace(put, manifest=replace(put.manifest, sha256=bytes([which * 255]) * 32, size_bytes=7)))
    me.store.add_incoming(snapshot_of(other).ops)
    assert me.repair_from_incoming() == 0
    assert list(me.store.live()) == [put]


def test_a_whole_state_that_knows_more_of_the_own_epoch_leaves_it() -> None:
    me, other = replica("a"), replica("b")
    put = me.put(manifest(), NOW)
    tell(me, other)
    image = replica("a")
    assert image.origin == me.origin
    image.store.add_incoming(snapshot_of(other).ops)
    merge(image, other)
    assert image.origin != me.origin
    assert image.put(manifest("b"), NOW).dot != put.dot
