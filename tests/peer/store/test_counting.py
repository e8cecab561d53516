"""How many files there are is kept beside them, and is right whatever versions of them come and go."""

from __future__ import annotations

from replicas.stores import new_sqlite_store

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
