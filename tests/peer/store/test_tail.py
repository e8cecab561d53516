"""The end of the log in memory says what the log in the database says, or nothing."""

from __future__ import annotations

import sqlite3

import pytest
import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st

from peer.store import tail
from peer.store.catalog import SqliteStore
from peer.store.rows import _log_page, find_log_hash, raw_log_after
from peer.store.schema import migrate
from peer.store.tail import LogRow, LogTail
from protocol.codec import OpDots
from protocol.identity import Dot, NodeId, Origin, Stamp, VersionVector
from protocol.ops import Delete, HoldRun, Op, last_dot

ORIGINS = [Origin(NodeId(name), 1) for name in ("node-1", "node-2", "node-3")]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from(ORIGINS), st.integers(1, 3)),
        st.tuples(st.just("rewind"), st.sampled_from(ORIGINS), st.integers(0, 8)),
        st.tuples(st.just("truncate"), st.sampled_from(ORIGINS), st.integers(0, 8)),
        st.tuples(st.sampled_from(["commit", "roll back"]), st.sampled_from(ORIGINS), st.integers(0, 0)),
    ),
    max_size=40,
)


class Peer:
    """A store on a database, whose transactions are committed and rolled back as `Database` does it."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(sqlite_utils.Database(self.connection))
        self.store = SqliteStore(self.connection)
        self.written = 0
        self.connection.execute("BEGIN")

    def append(self, origin: Origin, count: int) -> None:
        for _ in range(count):
            self.written += 1
            dot = Dot(origin, self.store.seen(origin) + 1)
            op: Op = Delete(dot, Stamp(self.written), f"key-{self.written}", ())
            if self.written % 3 == 0:
                op = HoldRun(dot, Stamp(self.written), (dot,) * 3)
            self.store.append(op)
            self.store.advance(*last_dot(op))

    def step(self, what: str, origin: Origin, number: int) -> None:
        """Do what a step says."""
        store = self.store
        if what == "append":
            self.append(origin, number)
        elif what == "rewind" and store.floors().get(origin, 0) <= number < store.seen(origin):
            store.rewind(origin, store.end_of_log(origin, number))
        elif what == "truncate" and store.floors().get(origin, 0) < store.end_of_log(origin, number):
            floor = store.end_of_log(origin, number)
            store.raise_floor(origin, floor, store.log_hash(Dot(origin, floor)))
        elif what == "commit":
            store.flush()
            self.connection.execute("COMMIT")
            self.tail = store.committed_tail()
            self.connection.execute("BEGIN")
        elif what == "roll back":
            self.connection.execute("ROLLBACK")
            store.reload()
            self.connection.execute("BEGIN")


@given(STEPS, st.integers(1, 5), st.integers(1, 300), st.integers(0, 8))
def test_the_log_is_read_in_pages_of_some_rows_and_bytes_and_nothing_is_left_out(
    steps: list[tuple[str, Origin, int]], rows: int, size: int, known: int
) -> None:
    peer = Peer()
    for step in [*steps, *(("append", origin, 4) for origin in ORIGINS)]:
        peer.step(*step)
    vv = dict.fromkeys(ORIGINS[:1], known)
    expected = list(raw_log_after(peer.connection, vv))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peer.store.rows.LOG_PAGE_ROWS", rows)
        patch.setattr("peer.store.rows.LOG_PAGE_BYTES", size)
        assert list(raw_log_after(peer.connection, vv)) == expected
        page = _log_page(peer.connection, 0)
    assert len(page) <= rows
    assert sum(len(op) for *_, op in page[:-1]) <= size
    peer.connection.close()


@given(STEPS, st.lists(st.integers(0, 12), min_size=3, max_size=3), st.integers(2, 50))
def test_what_a_peer_lacks_is_the_same_from_memory_and_from_the_database(
    steps: list[tuple[str, Origin, int]], known: list[int], rows_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "ROWS_MAX", rows_max)
        peer = Peer()
        try:
            for step in steps:
                peer.step(*step)
                _compare(peer, dict(zip(ORIGINS, known, strict=True)))
            peer.step("commit", ORIGINS[0], 0)
            _compare_hashes(peer)
        finally:
            peer.connection.close()


def _compare(peer: Peer, known: VersionVector) -> None:
    seen = peer.store.version_vector()
    for vv in (known, {origin: max(0, seq - 1) for origin, seq in seen.items()}, seen, {}):
        assert list(peer.store.raw_log_after(vv)) == list(raw_log_after(peer.connection, vv))


def _compare_hashes(peer: Peer) -> None:
    for origin in ORIGINS:
        for seq in range(1, 40):
            dot = Dot(origin, seq)
            said = peer.tail.log_hash(dot)
            in_database = find_log_hash(peer.connection, dot)
            assert said in (None, in_database), f"{dot} has another hash in memory"
    for row in peer.tail.after({}, peer.store.version_vector()) or ():
        assert peer.tail.log_hash(row.last) == row.log_hash


def test_what_is_not_all_in_memory_comes_from_the_database() -> None:
    first, second, _ = ORIGINS
    peer = Peer()
    peer.append(first, 5)
    peer.step("commit", first, 0)
    peer.step("truncate", first, 1)
    peer.append(second, 3)
    _compare(peer, {first: 4, second: 3})
    peer.connection.close()


def test_the_memory_is_bounded_in_rows_and_in_bytes() -> None:
    origin = ORIGINS[0]
    whole = LogTail()
    for seq in range(1, 3 * tail.ROWS_MAX):
        whole = whole.extended([LogRow(OpDots(origin, seq, seq, ()), b"op", b"hash")])
        assert whole.after({origin: seq - 1}, {origin: seq}) is not None
    last = 3 * tail.ROWS_MAX - 1
    assert whole.after({}, {origin: last}) is None
    assert whole.log_hash(Dot(origin, 1)) is None
    raw = bytes(tail.BYTES_MAX // 3)
    for seq in range(last + 1, last + 10):
        whole = whole.extended([LogRow(OpDots(origin, seq, seq, ()), raw, b"hash")])
    kept = whole.after({origin: last + 8}, {origin: last + 9})
    assert kept is not None
    assert len(kept) == 1
    assert whole.after({origin: last + 1}, {origin: last + 9}) is None


def test_a_tail_that_was_extended_is_itself_as_it_was() -> None:
    origin = ORIGINS[0]
    before = LogTail().extended([LogRow(OpDots(origin, 1, 1, ()), b"first", None)])
    before.extended([LogRow(OpDots(origin, 2, 2, ()), b"second", None)])
    found = before.after({}, {origin: 1})
    assert found is not None
    assert [row.raw for row in found] == [b"first"]
