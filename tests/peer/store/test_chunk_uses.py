"""Which files have a chunk is found by an index, and it says what looking through all of them would say."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st

from peer.store.catalog import SqliteStore
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import adopt
from peer.store.rows import PREFIX_BYTES, select_held_with
from peer.store.schema import migrate
from protocol.identity import NodeId
from protocol.ops import Chunk, Manifest
from protocol.replica import Replica

# Two that begin alike, and a third.
HASHES = [bytes(PREFIX_BYTES) + b"\1" * 24, bytes(PREFIX_BYTES) + b"\2" * 24, b"\3" * 32]
FILES = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=8)


def filled(files: Sequence[Sequence[int]]) -> tuple[SqliteStore, Replica]:
    """A catalog with held files of these chunks."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(sqlite_utils.Database(connection))
    store = SqliteStore(connection)
    replica = Replica(NodeId("node-1"), store, Random(1))
    adopt(store, [FreshChunk(chunk_hash, 1, None, b"x") for chunk_hash in HASHES])
    for number, chunks in enumerate(files):
        manifest = Manifest(
            file_key=f"k{number}",
            filename="a",
            size_bytes=len(chunks),
            sha256=bytes(32),
            content_type="a/b",
            uploaded_at_ms=0,
            copies=1,
            chunks=tuple(Chunk(HASHES[which], 1) for which in chunks),
        )
        put = replica.put(manifest, 0, is_held=True)
        found = store.put_row(put.dot)
        assert found is not None
        store.mark_held(found[0], manifest.chunks or ())
    return store, replica


def found_with(store: SqliteStore, which: int) -> list[str]:
    return sorted(put.manifest.file_key for _, put in select_held_with(store.connection, HASHES[which]))


@given(FILES, st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_a_chunk_finds_the_files_that_are_held_and_have_it(
    files: list[list[int]], deleted: set[int], taken_back: set[int]
) -> None:
    store, replica = filled(files)
    for number in taken_back & set(range(len(files))):
        (put,) = store.puts_of(f"k{number}")
        found = store.put_row(put.dot)
        assert found is not None
        store.unmark_held(found[0])
    for number in deleted:
        replica.delete(f"k{number}", 0)
    for which in range(3):
        expected = [f"k{n}" for n, chunks in enumerate(files) if which in chunks and n not in deleted | taken_back]
        assert found_with(store, which) == sorted(expected)
    left = {row for (row,) in store.connection.execute("SELECT put FROM chunk_uses")}
    assert left <= {row for (row,) in store.connection.execute("SELECT id FROM puts")}


def test_no_file_is_looked_through() -> None:
    store, _ = filled([[0], [0, 1]])
    seen: list[str] = []
    store.connection.set_trace_callback(seen.append)
    assert found_with(store, 0) == ["k0", "k1"]
    store.connection.set_trace_callback(None)
    plan: list[Any] = [row for query in seen for row in store.connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    scans = [row[3] for row in plan if row[3].startswith("SCAN") and "puts" in row[3]]
    assert plan
    assert not scans


@given(FILES)
def test_files_of_an_older_release_are_found_too(files: list[list[int]]) -> None:
    store, _ = filled(files)
    expected = [found_with(store, which) for which in range(3)]
    execute = store.connection.execute
    for statement in (
        "DROP TABLE chunk_uses",
        "DROP INDEX puts_by_chunk",
        "DELETE FROM _sqlite_migrations WHERE name LIKE 'm006%'",
        "PRAGMA user_version = 5",
    ):
        execute(statement)
    migrate(sqlite_utils.Database(store.connection))
    assert [found_with(store, which) for which in range(3)] == expected


def test_a_row_left_behind_by_one_that_was_lost_is_in_nobodys_way() -> None:
    store, replica = filled([[0, 1]])
    (put,) = store.puts_of("k0")
    store.flush()
    store.connection.execute("DELETE FROM holds")
    store.connection.execute("DELETE FROM puts")
    store.reload()
    replica.put(replace(put.manifest, file_key="again"), 0)
    assert [one.manifest.file_key for one in store.puts_of("again")] == ["again"]
    assert found_with(store, 0) == []
