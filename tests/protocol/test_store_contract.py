"""What the rules rely on in a store, for every kind of store: it behaves as a few plain lists would."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas.ops import manifests, origins, stamps
from replicas.oracle import Element, content_of, dots_of, element_of
from replicas.stores import STORES, StoreKind

from protocol.codec import NO_LOG, encode_op, next_log_hash
from protocol.identity import Dot, Origin, VersionVector, stamp_of_ms
from protocol.ops import Delete, Drop, Hold, HoldRun, LiveOp, Manifest, Op, Put, last_dot
from protocol.store import Store

# Nothing here waits for anything, so more cases may simply take longer.
pytestmark = pytest.mark.timeout(0)

every_store = pytest.mark.parametrize("kind", STORES, ids=str)


class PlainLists:
    """The contract, with nothing clever in it. Each method takes part only in what its name says."""

    def __init__(self) -> None:
        self.vv: VersionVector = {}
        self.floors: VersionVector = {}
        self.log: list[Op] = []
        self.log_hashes: dict[Dot, bytes] = {}
        self.given_up: set[bytes] = set()
        self.live: list[LiveOp] = []
        self.incoming: dict[Element, LiveOp] = {}
        self.state_sum = 0

    def copy(self) -> PlainLists:
        other = PlainLists()
        other.vv, other.floors, other.log = dict(self.vv), dict(self.floors), list(self.log)
        other.live, other.incoming, other.state_sum = list(self.live), dict(self.incoming), self.state_sum
        other.log_hashes, other.given_up = dict(self.log_hashes), set(self.given_up)
        return other

    def puts(self) -> list[Put]:
        return [op for op in self.live if isinstance(op, Put)]

    def holds(self) -> list[Hold]:
        return [op for op in self.live if isinstance(op, Hold)]

    def log_hash(self, dot: Dot) -> bytes | None:
        if dot.seq == 0 and dot.origin not in self.floors:
            return NO_LOG
        return self.log_hashes.get(dot)

    def is_free(self, op: LiveOp) -> bool:
        return all(element_of(other) != element_of(op) for other in self.live)

    def ends_of(self, origin: Origin) -> list[int]:
        """Where ops of a log end, and where it begins."""
        ends = [last_dot(op).seq for op in self.log if op.dot.origin == origin]
        return [self.floors.get(origin, 0), *ends]


class Pair:
    """A store and the plain lists, told the same; only what a caller may ask for is asked."""

    def __init__(self, kind: StoreKind, origins_: list[Origin], manifests_: list[Manifest]) -> None:
        self.kind = kind
        self.store: Store = kind.new()
        self.plain = PlainLists()
        self.origins, self.manifests = origins_, manifests_
        self.copies: list[tuple[Store, PlainLists]] = []
        self.steps: list[Callable[[int, int, int], None]] = [
            self.write,
            self.write,
            self.write,
            self.add_put,
            self.add_hold,
            self.remove,
            self.advance,
            self.raise_floor,
            self.raise_floor,
            self.rewind,
            self.give_up,
            self.add_incoming,
            self.clear_incoming,
            self.set_state_sum,
            self.swap_with_copy,
        ]

    def close(self) -> None:
        for store in (self.store, *(store for store, _ in self.copies)):
            self.kind.close(store)

    def origin(self, i: int) -> Origin:
        return self.origins[i % len(self.origins)]

    def some_op(self, dot: Dot, i: int, stamp: int) -> Op:
        others = [op.dot for op in self.plain.log[-2:]]
        ops: list[Op] = [
            Put(dot, stamp, self.manifests[i % len(self.manifests)], tuple(others)),
            Delete(dot, stamp, self.manifests[i % len(self.manifests)].file_key, tuple(others)),
            Hold(dot, stamp, (*others, dot)[0], bool(i % 2)),
            Drop(dot, stamp, tuple(others), tuple(others)),
            HoldRun(dot, stamp, (dot, dot, *others), bool(i % 2)),
        ]
        return ops[i % 5]

    def write(self, i: int, j: int, stamp: int) -> None:
        seq = self.plain.vv.get(self.origin(i), 0) + 1
        op = self.some_op(Dot(self.origin(i), seq), j, stamp)
        origin, last = last_dot(op)
        self.store.append(op)
        self.store.advance(origin, last)
        before = self.plain.log_hash(Dot(origin, seq - 1))
        if before is not None:
            log_hash = next_log_hash(before, encode_op(op))
            self.plain.log_hashes.update((dot, log_hash) for dot in dots_of(op))
        self.plain.log.append(op)
        self.plain.vv[origin] = last

    def add_put(self, i: int, j: int, stamp: int) -> None:
        put = Put(Dot(self.origin(i), 1 + j), stamp, self.manifests[(i + j) % len(self.manifests)])
        if self.plain.is_free(put):
            self.store.add(put)
            self.plain.live.append(put)

    def add_hold(self, i: int, j: int, stamp: int) -> None:
        hold_dot = Dot(self.origin(i), 1 + j)
        if self.plain.puts():
            hold = Hold(hold_dot, stamp, self.plain.puts()[j % len(self.plain.puts())].dot, bool(j % 2))
            if self.plain.is_free(hold):
                self.store.add(hold)
                self.plain.live.append(hold)

    def remove(self, i: int, j: int, _: int) -> None:
        if self.plain.live:
            self._remove(self.plain.live[(i + j) % len(self.plain.live)])

    def _remove(self, op: LiveOp) -> None:
        for hold in [hold for hold in self.plain.holds() if isinstance(op, Put) and hold.put == op.dot]:
            self._remove(hold)
        self.store.remove(op)
        self.plain.live.remove(op)

    def advance(self, i: int, j: int, _: int) -> None:
        """As a whole-state merge does: the vector and the floor jump, and no log comes with it."""
        seq = self.plain.vv.get(self.origin(i), 0) + 1 + j**9
        self.store.advance(self.origin(i), seq)
        self.plain.vv[self.origin(i)] = seq
        self._raise_floor(self.origin(i), seq, bytes([j]) * 16 if j % 2 else None)

    def raise_floor(self, i: int, j: int, _: int) -> None:
        floor, *ends = self.plain.ends_of(self.origin(i))
        seq = max((end for end in ends if end <= floor + 2 * j), default=floor)
        if seq > floor:
            self._raise_floor(self.origin(i), seq, self.plain.log_hash(Dot(self.origin(i), seq)))

    def _raise_floor(self, origin: Origin, seq: int, log_hash: bytes | None) -> None:
        self.store.raise_floor(origin, seq, log_hash)
        self.plain.floors[origin] = seq
        for dot in [dot for dot in self.plain.log_hashes if dot.origin == origin and dot.seq <= seq]:
            del self.plain.log_hashes[dot]
        if log_hash is not None:
            self.plain.log_hashes[Dot(origin, seq)] = log_hash
        self.plain.log = [op for op in self.plain.log if op.dot.origin != origin or op.dot.seq > seq]

    def rewind(self, i: int, j: int, _: int) -> None:
        origin = self.origin(i)
        seq = self.plain.ends_of(origin)[-1 - j :][0]
        taken = [op for op in self.plain.log if op.dot.origin == origin and op.dot.seq > seq]
        if origin in self.plain.vv:
            assert list(self.store.rewind(origin, seq)) == taken
            self.plain.log = [op for op in self.plain.log if op not in taken]
            self.plain.vv[origin] = seq
            for dot in [dot for dot in self.plain.log_hashes if dot.origin == origin and dot.seq > seq]:
                del self.plain.log_hashes[dot]
            if not seq:
                del self.plain.vv[origin]

    def give_up(self, i: int, j: int, _: int) -> None:
        """Some may have been given up before."""
        log_hashes = [bytes([i]) * 16, *list(self.plain.log_hashes.values())[j:]]
        self.store.give_up(iter(log_hashes))
        self.plain.given_up.update(log_hashes)

    def add_incoming(self, i: int, j: int, stamp: int) -> None:
        """Pages may come twice."""
        put = Put(Dot(self.origin(i), 1 + j), stamp, self.manifests[j % len(self.manifests)])
        page: list[LiveOp] = [Hold(Dot(self.origin(i + j % 2), 1 + j), stamp, put.dot), put]
        page = [self.plain.incoming.get(element_of(op), op) for op in page]
        self.store.add_incoming(iter(page))
        self.plain.incoming.update((element_of(op), op) for op in page)

    def clear_incoming(self, *_: int) -> None:
        self.store.clear_incoming()
        self.plain.incoming.clear()

    def set_state_sum(self, i: int, j: int, stamp: int) -> None:
        self.plain.state_sum = ((1 << 128) - 1 - i) >> j * 25 | stamp
        self.store.set_state_sum(self.plain.state_sum)

    def swap_with_copy(self, *_: int) -> None:
        """From here on with a copy; what happens to it must leave the first as it is."""
        self.copies.append((self.store, self.plain))
        self.store, self.plain = self.kind.copy(self.store), self.plain.copy()

    def compare(self) -> None:
        compare(self.store, self.plain, self.origins, self.manifests)


def contents(ops: Iterable[LiveOp]) -> list[object]:
    return sorted((op.dot, op.stamp) for op in ops)


def compare(store: Store, plain: PlainLists, origins_: list[Origin], manifests_: list[Manifest]) -> None:
    assert store.version_vector() == plain.vv
    assert store.floors() == plain.floors
    assert store.state_sum() == plain.state_sum
    _compare_logs(store, plain, origins_)
    _compare_live(store, plain, origins_, manifests_[0])
    for file_key in {manifest.file_key for manifest in manifests_} | {"no-such-key"}:
        versions = [put for put in plain.puts() if put.manifest.file_key == file_key]
        shown_last = sorted(versions, key=lambda put: (put.manifest.is_upload, put.stamp, put.dot))
        assert [content_of(put) for put in store.puts_of(file_key)] == [content_of(put) for put in shown_last]
    incoming = list(store.incoming())
    assert {content_of(op) for op in incoming} == {content_of(op) for op in plain.incoming.values()}
    assert len(incoming) == len(plain.incoming)
    assert [isinstance(op, Put) for op in incoming] == sorted((isinstance(op, Put) for op in incoming), reverse=True)
    assert all(store.is_incoming(op) for op in plain.incoming.values())


def _compare_logs(store: Store, plain: PlainLists, origins_: list[Origin]) -> None:
    for vv in ({}, plain.vv, plain.floors, {origin: seq - 1 for origin, seq in plain.vv.items()}, {origins_[0]: 2}):
        expected = [op for op in plain.log if last_dot(op).seq > vv.get(op.dot.origin, 0)]
        assert list(store.log_after(vv)) == expected
        assert list(store.raw_log_after(vv)) == [encode_op(op) for op in expected]
    for origin in origins_:
        seqs = {dot.seq for dot in plain.log_hashes if dot.origin == origin}
        for seq in {*range(12), *seqs, *(seq + 1 for seq in seqs)}:
            assert store.log_hash(Dot(origin, seq)) == plain.log_hash(Dot(origin, seq))
            floor, *ends = plain.ends_of(origin)
            if seq >= floor:
                assert store.end_of_log(origin, seq) == max(end for end in (floor, *ends) if end <= seq)
    assert store.has_given_up() == bool(plain.given_up)
    for log_hash in {NO_LOG, *plain.log_hashes.values(), *plain.given_up}:
        assert store.was_given_up(log_hash) == (log_hash in plain.given_up)


def _compare_live(store: Store, plain: PlainLists, origins_: list[Origin], manifest: Manifest) -> None:
    live = list(store.live())
    assert {content_of(op) for op in live} == {content_of(op) for op in plain.live}
    assert len(live) == len(plain.live)
    assert [isinstance(op, Put) for op in live] == sorted((isinstance(op, Put) for op in live), reverse=True)
    by_dot = sorted(plain.holds(), key=lambda hold: hold.dot)
    for origin in origins_:
        assert store.seen(origin) == plain.vv.get(origin, 0)
        assert contents(store.holds_by(origin.node_id)) == contents(h for h in by_dot if h.holder == origin.node_id)
        for seq in range(7):
            dot = Dot(origin, seq + 1)
            of_origin = [hold for hold in by_dot if hold.dot.origin == origin and hold.dot.seq <= seq]
            assert contents(store.holds_from(origin, seq)) == contents(of_origin)
            assert store.holds_of(dot) == [hold for hold in by_dot if hold.put == dot]
            assert store.hold_at(dot) == next((hold for hold in by_dot if hold.dot == dot), None)
            found, put = store.put_at(dot), next((put for put in plain.puts() if put.dot == dot), None)
            assert (found and content_of(found)) == (put and content_of(put))
            for op in (Put(dot, stamp_of_ms(0), manifest), Hold(dot, stamp_of_ms(0), dot)):
                assert store.is_incoming(op) == (element_of(op) in plain.incoming)


@every_store
def test_a_store_behaves_as_plain_lists_would(kind: StoreKind) -> None:
    call = st.tuples(st.integers(0, 99), *[st.integers(0, 5)] * 2, st.integers(0, 3) | stamps)
    # Drawn without a length, most lists would have about five.
    calls = st.integers(0, 40).flatmap(lambda length: st.lists(call, min_size=length, max_size=length))

    @settings(max_examples=settings().max_examples * 2)
    @given(st.lists(origins, min_size=3, max_size=3, unique=True), st.lists(manifests(), min_size=2, max_size=2), calls)
    def behave(origins_: list[Origin], manifests_: list[Manifest], calls_: list[tuple[int, int, int, int]]) -> None:
        pair = Pair(kind, origins_, manifests_)
        for which, i, j, stamp in calls_:
            pair.steps[which % len(pair.steps)](i, j, stamp)
        pair.compare()
        for store, plain in pair.copies:
            compare(store, plain, origins_, manifests_)
        pair.close()

    behave()


@pytest.fixture(params=STORES, ids=str)
def store(request: pytest.FixtureRequest) -> Iterable[Store]:
    kind: StoreKind = request.param
    made = kind.new()
    yield made
    kind.close(made)


def fill(store: Store, files: int) -> list[LiveOp]:
    """Some puts, each with two holds."""
    origin = Origin("node-1", 1)
    manifest = Manifest(
        file_key="a",
        filename="a",
        size_bytes=0,
        sha256=bytes(32),
        content_type="",
        uploaded_at_ms=0,
        copies=3,
        chunks=(),
    )
    ops: list[LiveOp] = []
    for n in range(files):
        put = Put(Dot(origin, 3 * n + 1), 0, manifest)
        ops += [put, Hold(Dot(origin, 3 * n + 2), 0, put.dot), Hold(Dot(origin, 3 * n + 3), 0, put.dot)]
    for op in ops:
        store.add(op)
    return ops


def test_live_ops_may_be_removed_while_they_are_listed(store: Store) -> None:
    fill(store, 5)
    for op in store.live():
        if isinstance(op, Put):
            for hold in store.holds_of(op.dot):
                store.remove(hold)
        if store.put_at(op.dot) or store.hold_at(op.dot):
            store.remove(op)
    assert not list(store.live())


def test_puts_may_be_removed_with_their_holds_while_all_are_listed_and_the_rest_is_still_listed(store: Store) -> None:
    ops = fill(store, 5)
    listed = []
    for op in store.live():
        listed.append(op.dot)
        if op == ops[0]:
            for gone in (ops[1], ops[2], ops[0]):
                store.remove(gone)
    left = [op.dot for op in ops[3:]]
    assert set(left) <= set(listed) <= {op.dot for op in ops}
    assert sorted(op.dot for op in store.live()) == left


def test_live_ops_may_be_added_while_the_stage_is_listed(store: Store) -> None:
    other = fill(store, 4)
    for op in reversed(other):
        store.remove(op)
    store.add_incoming(other)
    for op in store.incoming():
        store.add(op)
    assert {op.dot for op in store.live()} == {op.dot for op in other}


def test_the_vectors_a_store_hands_out_are_copies(store: Store) -> None:
    origin = Origin("node-1", 1)
    store.advance(origin, 5)
    store.raise_floor(origin, 3, None)
    store.version_vector()[origin] = 99
    store.floors().clear()
    assert store.version_vector() == {origin: 5}
    assert store.floors() == {origin: 3}


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.version_vector() == store.floors() == {}
    assert list(store.log_after({})) == list(store.live()) == list(store.incoming()) == []
    assert store.state_sum() == 0
