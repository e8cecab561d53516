"""How many files there are is kept beside them, and is right whatever versions of them come and go."""

from __future__ import annotations

from replicas.stores import new_sqlite_store

from peer.store.lookups import filling
from peer.store.rows import count_files, count_shown
from protocol.identity import Dot, NodeId, Origin, Stamp
from protocol.ops import Manifest, Put


def version(of: str, by: str, seq: int) -> Put:
    manifest = Manifest(
        file_key=of, filename="a", size_bytes=0, sha256=bytes(32), content_type="a/b", uploaded_at_ms=0, copies=1,
        chunks=(),
    )  # fmt: skip
    return Put(Dot(Origin(NodeId(by), 1), seq), Stamp(seq), manifest)


def test_a_file_counts_once_however_many_versions_it_has_and_none_when_the_last_has_gone() -> None:
    store = new_sqlite_store()
    first, second, other = version("k", "node-1", 1), version("k", "node-2", 2), version("other", "node-1", 3)
    counts = []
    for change, put in [
        (store.add, first), (store.add, other), (store.add, second), (store.remove, second), (store.remove, first),
        (store.add, second), (store.add, first), (store.remove, first), (store.remove, second), (store.remove, other),
    ]:  # fmt: skip
        change(put)
        store.flush()
        assert count_files(store.connection) == count_shown(store.connection)
        counts.append(count_files(store.connection))
    assert counts == [1, 2, 2, 2, 1, 2, 2, 2, 1, 0]
    store.connection.close()


def test_what_a_roll_back_undid_does_not_count() -> None:
    store = new_sqlite_store()
    store.connection.execute("BEGIN")
    store.add(version("k", "node-1", 1))
    store.flush()
    store.connection.execute("ROLLBACK")
    store.reload()
    store.add(version("k", "node-1", 1))
    store.flush()
    assert count_files(store.connection) == 1
    store.connection.close()


def test_what_is_left_to_fetch_takes_as_long_as_what_came_lately_says() -> None:
    store = new_sqlite_store()
    fast, slow, idle = (store.node_row(NodeId(name)) for name in ("fast", "slow", "idle"))
    puts = [version(f"k{number}", "node-1", number + 1) for number in range(120)]
    for put in puts:
        store.add(put)
    execute = store.connection.execute
    items = iter(range(1, 1000))
    for put in range(1, 101):
        for node in (fast, slow, idle):
            execute("INSERT INTO queue VALUES (?, ?, ?, 'PENDING', NULL)", (next(items), put, node))
    # The clock of the fast one is ahead of ours, and what came long ago says nothing.
    for node, times in [(fast, range(96_000, 101_000, 250)), (slow, (95_000, 100_000)), (idle, (39_000, 40_000))]:
        for put, at_ms in enumerate(times, start=101):
            execute("INSERT INTO queue VALUES (?, ?, ?, 'COMPLETED', ?)", (next(items), put, node, at_ms))
    found = {
        one.target: (one.missing, one.copies_per_s, one.seconds_left) for one in filling(store.connection, 100_000)
    }
    assert found == {"fast": (100, 5.0, 20), "slow": (100, 0.4, 250), "idle": (100, 0.0, None)}
    store.connection.close()
