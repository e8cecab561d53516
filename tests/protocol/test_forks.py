"""Two logs of one origin: how it shows, who goes back, and what is written again."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replicas.cluster import served_hashes, snapshot_of
from replicas.stores import STORES, StoreKind

from peer.store.catalog import SqliteStore
from peer.store.rows import find_log_hashes
from protocol.codec import NO_LOG, decode_op, dots_in, encode_op, next_log_hash
from protocol.forks import Fork, find_fork, fingerprints_for
from protocol.identity import Dot, NodeId, Origin, Stamp
from protocol.ops import Delete, Drop, Hold, HoldRun, Manifest, Op, Put, last_dot
from protocol.replica import Heard, Replica
from protocol.store import MemoryStore, Store, show_order

NOW = 1_700_000_000_000
NO_LIMIT = 1 << 30


def replica(name: str) -> Replica:
    return Replica(NodeId(name), MemoryStore(), Random(name))


def image_of(original: Replica) -> Replica:
    """What it draws from now on is its own."""
    image = deepcopy(original)
    image._chance = Random("image")
    return image


def manifest(file_key: str, content: int = 0) -> Manifest:
    return Manifest(
        file_key=file_key,
        filename=file_key,
        size_bytes=0,
        sha256=content.to_bytes(32, "big"),
        content_type="text/plain",
        uploaded_at_ms=NOW,
        copies=3,
        chunks=(),
    )


def tell(teller: Replica, hearer: Replica) -> Heard:
    vv, theirs = teller.store.version_vector(), hearer.store.version_vector()
    suffix = teller.suffix(theirs, NO_LIMIT)
    assert suffix is not None
    ops = [decode_op(raw) for raw in suffix.ops]
    return hearer.hear(
        vv, fingerprints_for(teller.store.log_hash, hearer.me, vv, theirs, map(dots_in, map(encode_op, ops))), ops, NOW
    )


def end_fork(who: Replica, other: Replica, origin: Origin) -> None:
    who.end_forks({origin: find_fork(who.store, origin, *served_hashes(other.store, origin))})


def keys(who: Replica) -> list[str]:
    return sorted(op.manifest.file_key for op in who.store.live() if isinstance(op, Put))


def forked() -> tuple[Replica, Replica, Replica]:
    """The image of a peer, which wrote something else than the peer itself, and two that heard of one branch each."""
    original, told, misled = replica("p"), replica("a"), replica("b")
    original.put(manifest("common"), NOW)
    image = image_of(original)
    original.put(manifest("true"), NOW)
    image.put(manifest("other", 1), NOW)
    image.put(manifest("later", 2), NOW)
    tell(original, told)
    tell(image, misled)
    return image, told, misled


def test_a_resumed_image_that_wrote_nothing_since_goes_on_under_a_new_epoch_and_writes_nothing_again() -> None:
    original, other = replica("p"), replica("a")
    put = original.put(manifest("a"), NOW)
    image = image_of(original)
    original.put(manifest("b"), NOW)
    tell(original, other)
    heard = tell(other, image)
    assert (heard.applied, heard.disputed) == (1, ())
    assert image.origin != put.dot.origin
    assert image.root() == other.root()


def test_a_resumed_image_does_not_go_on_from_a_log_whose_beginning_is_lost() -> None:
    original, told = replica("p"), replica("a")
    original.put(manifest("common"), NOW)
    image = image_of(original)
    for key in ("true", "more", "most"):
        original.put(manifest(key), NOW)
    tell(original, told)
    told.truncate(told.store.version_vector())
    image.put(manifest("other"), NOW)
    origin, vv = image.origin, told.store.version_vector()
    fingerprints = fingerprints_for(told.store.log_hash, image.me, vv, image.store.version_vector(), ())
    assert image.hear(vv, fingerprints, (), NOW).disputed == (origin,)
    end_fork(image, told, origin)
    assert keys(image) == ["common", "other"]
    assert image.store.seen(origin) == 0


def test_logs_that_differ_are_noticed_even_at_equal_version_vectors_and_nothing_is_applied() -> None:
    original, told = replica("p"), replica("a")
    image = image_of(original)
    original.put(manifest("true"), NOW)
    image.put(manifest("other"), NOW)
    tell(original, told)
    assert told.store.version_vector() == image.store.version_vector()
    told.put(manifest("unrelated"), NOW)
    before, origin = image.root(), image.origin
    assert tell(told, image).disputed == (origin,)
    assert image.root() == before
    assert image.origin != origin


def test_the_owner_goes_back_and_writes_again_what_the_others_never_heard() -> None:
    image, told, _ = forked()
    origin = image.origin
    tell(told, image)
    end_fork(image, told, origin)
    assert image.store.seen(origin) == 1
    assert tell(told, image).applied == 1
    assert not tell(image, told).disputed
    assert image.root() == told.root()
    assert keys(told) == ["common", "later", "other", "true"]


def test_what_is_written_again_does_not_hide_what_was_uploaded_since() -> None:
    """Seed 53 of `sim run --peers 3 --minutes 1`, once: a resumed machine put back what clients had replaced."""
    image, told, _ = forked()
    since = told.put(manifest("later", 3), NOW + 1000)
    end_fork(image, told, image.origin)
    tell(image, told)
    tell(told, image)
    assert image.root() == told.root()
    assert [len(who.store.puts_of("later")) for who in (image, told)] == [2, 2]
    assert max(image.store.puts_of("later"), key=show_order) == since


def test_who_followed_the_branch_that_was_given_up_goes_back_and_hears_it_under_its_new_names() -> None:
    image, told, misled = forked()
    origin = image.origin
    tell(told, image)
    end_fork(image, told, origin)
    assert tell(misled, image).given_up == (origin,)
    end_fork(misled, image, origin)
    for _ in range(2):
        for one in (image, told, misled):
            for other in (image, told, misled):
                assert one is other or not tell(one, other).disputed
    assert image.root() == told.root() == misled.root()
    assert keys(misled) == ["common", "later", "other", "true"]


def test_two_that_heard_of_different_branches_exchange_nothing_and_neither_goes_back() -> None:
    _, told, misled = forked()
    misled.delete("other", NOW)
    heard = tell(misled, told)
    assert (heard.applied, len(heard.disputed), heard.given_up) == (0, 1, ())
    assert keys(told) == ["common", "true"]


def test_what_others_wrote_about_ops_that_were_given_up_is_about_their_new_names() -> None:
    image, told, misled = forked()
    origin = image.origin
    misled.delete("other", NOW)
    misled.put(manifest("unrelated"), NOW)
    tell(misled, image)
    tell(told, image)
    end_fork(image, told, origin)
    tell(told, image)
    tell(image, told)
    assert keys(told) == ["common", "later", "true", "unrelated"]


@pytest.mark.parametrize("as_whole_state", [False, True])
def test_an_upload_that_was_removed_before_its_owner_wrote_it_again_is_removed_again(*, as_whole_state: bool) -> None:
    image, told, misled = forked()
    origin = image.origin
    tell(told, image)
    end_fork(image, told, origin)
    tell(told, image)
    misled.delete("other", NOW)
    assert tell(misled, image).given_up == (origin,)
    end_fork(misled, image, origin)
    if as_whole_state:
        snapshot, vv = snapshot_of(image, misled.store.version_vector()), misled.store.version_vector()
        misled.store.add_incoming(snapshot.ops)
        misled.merge_incoming(snapshot.version_vector, snapshot.fingerprints, vv, NOW)
    else:
        tell(image, misled)
    tell(misled, image)
    assert keys(misled) == keys(image) == ["common", "later", "true"]


def test_what_is_written_again_refers_to_the_new_names() -> None:
    me = replica("p")
    first = me.put(manifest("a"), NOW)
    me.put(manifest("b"), NOW)
    lost = me.hold(me.put(manifest("b", 1), NOW).dot, NOW)
    me.delete("a", NOW)
    me.drop_all(NOW)
    me.end_forks({me.origin: Fork(1, 2)})
    (again, gone, drop) = me.store.log_after({first.dot.origin: 1})
    assert lost is not None
    assert isinstance(again, Put)
    assert isinstance(gone, Delete)
    assert isinstance(drop, Drop)
    assert gone.supersedes == drop.up_to == (first.dot,)
    assert all(op.dot.origin == me.origin != first.dot.origin for op in (again, gone, drop))


def test_a_drop_that_is_written_again_still_reaches_the_holds_that_stand() -> None:
    me, other = replica("p"), replica("a")
    hold = me.hold(me.put(manifest("a"), NOW).dot, NOW)
    assert hold is not None
    tell(me, other)
    me.drop_all(NOW)
    me.end_forks({me.origin: Fork(hold.dot.seq, hold.dot.seq + 1)})
    (drop,) = me.store.log_after({hold.dot.origin: hold.dot.seq})
    assert isinstance(drop, Drop)
    assert drop.up_to == (hold.dot,)
    tell(me, other)
    assert other.store.hold_at(hold.dot) is None


def test_a_hold_of_a_put_that_was_given_up_ends_and_is_not_written_again() -> None:
    me = replica("p")
    hold = me.hold(me.put(manifest("a"), NOW).dot, NOW)
    assert hold is not None
    me.end_forks({hold.dot.origin: Fork(0, 1)})
    (put,) = me.store.log_after({})
    assert isinstance(put, Put)
    assert not list(me.store.holds_by(me.me))


def test_a_put_that_is_written_again_is_declared_held_by_who_has_looked_for_it() -> None:
    me = replica("p")
    me.put(manifest("a"), NOW, is_held=True)
    me.end_forks({me.origin: Fork(0, 1)})
    (put,) = me.store.log_after({})
    assert isinstance(put, Put)
    assert not put.is_held
    assert not list(me.store.holds_by(me.me))


def test_a_run_with_a_put_that_was_given_up_is_taken_back_whole() -> None:
    image, _, misled = forked()
    puts = [op.dot for op in misled.store.live() if isinstance(op, Put)]
    assert len(misled.hold_all(puts, NOW)) == 3
    image.end_forks({image.origin: Fork(1, 2)})
    misled.end_forks({puts[0].origin: Fork(1, 2)})
    assert not misled.store.holds_by(misled.me)
    assert all(origin.node_id == NodeId("p") for origin in misled.store.version_vector())


def runs_of(length: int, name: str = "h") -> tuple[Replica, Replica]:
    """One that wrote six puts, and one that holds all of them and said so in runs of this length."""
    writer, holder = replica("w"), replica(name)
    puts = [writer.put(manifest(f"{n}"), NOW).dot for n in range(6)]
    tell(writer, holder)
    for start in range(0, 6, length):
        holder.hold_all(puts[start : start + length], NOW)
    return writer, holder


@pytest.mark.parametrize("reverse", [False, True])
def test_logs_of_which_one_has_a_run_where_the_other_has_an_end_are_told_apart(*, reverse: bool) -> None:
    (_, one), (_, other) = runs_of(2), runs_of(3)
    origin = other.origin = one.origin
    if reverse:
        one, other = other, one
    third = replica("t")
    # As far as one has it, the end of an op; the other has that dot inside a run.
    ops = [op for op in one.store.log_after({}) if op.dot.origin != origin or op.dot.seq == 1]
    third.hear({}, {}, ops, NOW)
    assert third.store.seen(origin) in (2, 3)
    assert tell(other, third).disputed == (origin,)
    assert tell(third, other).disputed == (origin,)
    third.end_forks({origin: find_fork(third.store, origin, *served_hashes(other.store, origin))})
    assert third.store.seen(origin) == 0
    tell(other, third)
    assert third.root() == other.root()


def test_a_run_that_comes_and_is_known_in_part_is_of_another_log() -> None:
    """Whatever is said of the logs."""
    (_, one), (_, other) = runs_of(2), runs_of(3)
    other.origin = one.origin
    run = next(op for op in other.store.log_after({}) if isinstance(op, HoldRun))
    third = replica("t")
    third.hear({}, {}, [op for op in one.store.log_after({}) if op.dot.seq == 1 or isinstance(op, Put)], NOW)
    assert third.hear({}, {}, [run], NOW).disputed == (one.origin,)
    assert third.store.seen(one.origin) == 2


def test_a_whole_state_of_another_branch_is_not_taken_over() -> None:
    image, told, _ = forked()
    told.put(manifest("unrelated"), NOW)
    vv = told.store.version_vector()
    fingerprints = {Dot(origin, seq): told.store.log_hash(Dot(origin, seq)) or b"" for origin, seq in vv.items()}
    image.store.add_incoming(told.store.live())
    assert image.merge_incoming(vv, fingerprints, image.store.version_vector(), NOW).disputed
    assert keys(image) == ["common", "later", "other"]
    assert not list(image.store.incoming())


def test_a_whole_state_is_not_taken_over_when_more_was_heard_since_its_logs_were_compared() -> None:
    source, me, third = replica("s"), replica("m"), replica("t")
    third.put(manifest("a"), NOW)
    tell(third, me)
    compared = me.store.version_vector()
    third.put(manifest("b"), NOW)
    tell(third, me)
    third.put(manifest("c"), NOW)
    tell(third, source)
    me.store.add_incoming(source.store.live())
    assert not me.merge_incoming(source.store.version_vector(), {}, compared, NOW).disputed
    assert keys(me) == ["a", "b"]


def test_an_op_that_names_one_of_another_branch_is_not_heard_even_by_who_has_both_its_logs() -> None:
    _, told, misled = forked()
    origin = next(iter(told.store.version_vector()))
    hold = Hold(Dot(Origin(misled.me, 1), 1), Stamp(0), Dot(origin, 2))
    fingerprints = fingerprints_for(misled.store.log_hash, told.me, {}, {}, [dots_in(encode_op(hold))])
    assert told.hear({}, fingerprints, [hold], NOW).disputed == (origin,)
    assert not told.store.holds_by(misled.me)


@given(
    kind=st.sampled_from(STORES),
    common=st.integers(0, 12),
    mine=st.integers(0, 6),
    theirs=st.integers(0, 6),
    my_floor=st.integers(0, 18),
    their_floor=st.integers(0, 18),
)
def test_where_two_logs_fork_is_found_or_known_to_be_lost(
    kind: StoreKind, common: int, mine: int, theirs: int, my_floor: int, their_floor: int
) -> None:
    origin = Origin(NodeId("p"), 1)

    def op(n: int, seq: int, branch: int) -> Op:
        dot = Dot(origin, seq)
        if n % (2 + branch):
            return Put(dot, Stamp(0), manifest(f"{branch}"))
        return HoldRun(dot, Stamp(0), (dot,) * (2 + branch))

    def log(length: int, branch: int, floor: int) -> Store:
        store = kind.new()
        for n in range(common + length):
            written = op(n, store.seen(origin) + 1, 0 if n < common else branch)
            store.append(written)
            store.advance(*last_dot(written))
        if floor := store.end_of_log(origin, floor):
            store.raise_floor(origin, floor, store.log_hash(Dot(origin, floor)))
        return store

    my_log, their_log = log(mine, 1, my_floor), log(theirs, 2, their_floor)
    if not common + mine or not common + theirs:
        return
    served = served_hashes(their_log, origin)
    if isinstance(their_log, SqliteStore):
        their_log.flush()
        last = Dot(origin, their_log.seen(origin))
        assert find_log_hashes(their_log.connection, last, 100) == served
        first, log_hashes = find_log_hashes(their_log.connection, last, 3)
        assert (first, log_hashes) == (served[0] + len(served[1]) - len(log_hashes), served[1][-3:])
    found = find_fork(my_log, origin, *served)
    floor = max(my_log.floors().get(origin, 0), their_log.floors().get(origin, 0))
    fork = sum(last_dot(op(n, 1, 0)).seq for n in range(common))
    if floor <= fork:
        assert found == Fork(fork, fork + 1)
    else:
        assert not found.is_certain
        assert found.agreed == my_log.floors().get(origin, 0)
        assert found.differs > fork
    for store in (my_log, their_log):
        kind.close(store)


def test_the_running_hash_of_a_log_says_what_is_in_it_and_in_which_order() -> None:
    ops = [Put(Dot(Origin(NodeId("p"), 1), seq), Stamp(0), manifest("a", seq)) for seq in (1, 2)]
    one, two = (encode_op(op) for op in ops)
    assert next_log_hash(next_log_hash(NO_LOG, one), two) != next_log_hash(next_log_hash(NO_LOG, two), one)
    assert next_log_hash(NO_LOG, one) != next_log_hash(NO_LOG, two) != NO_LOG


@pytest.mark.parametrize("sent", [1, 2, 3])
def test_ops_that_come_again_are_compared_with_those_that_were_heard_before(sent: int) -> None:
    """Whoever sends them may believe that they are news."""
    original, told, misled = replica("p"), replica("a"), replica("b")
    image = image_of(original)
    for n in range(3):
        original.put(manifest("true", n), NOW)
        image.put(manifest("other", n), NOW)
    tell(original, told)
    tell(image, misled)
    ops = list(misled.store.log_after({}))[:sent]
    raws = [encode_op(op) for op in ops]
    fingerprints = fingerprints_for(misled.store.log_hash, told.me, {}, {}, map(dots_in, raws))
    for said in (fingerprints, {}):
        assert told.hear({}, said, ops, NOW).disputed == (image.origin,)
