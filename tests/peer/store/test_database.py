"""The peer's database on a real disk: group commit, failures, what survives a kill, what operators read."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import sqlite_utils
import trio
import trio.lowlevel

from peer.store.catalog import no_targets
from peer.store.database import Database, meta_value, set_meta_value
from peer.store.rows import count_files, pack_chunks
from peer.store.schema import SCHEMA_VERSION, migrate, migrations
from peer.world.disk import SystemDatabaseFile
from peer.world.env import DatabaseFile, NoSpace, StartError, StoreError, Work
from peer.world.system import SystemEnv
from protocol import catalog
from protocol.forks import Fork
from protocol.identity import NodeId
from protocol.ops import Chunk, Manifest
from protocol.replica import Replica

T = TypeVar("T")
Body = Callable[[Database], Awaitable[None]]
NOW_MS = 1_767_225_600_000


def manifest(file_key: str, size: int = 3) -> Manifest:
    return Manifest(
        file_key=file_key,
        filename=f"{file_key}.txt",
        size_bytes=size,
        sha256=bytes(32),
        content_type="text/plain",
        uploaded_at_ms=NOW_MS,
        copies=3,
        chunks=(Chunk(bytes(32), size),),
    )


class OneThreadEnv(SystemEnv):
    """Makes blocking calls where it stands, so that a test may use the writer's connection too."""

    async def run_blocking(self, work: Work, call: Callable[..., T], *args: object) -> T:
        await trio.lowlevel.checkpoint()
        return call(*args)


def run(folder: Path, body: Body, make_file: Callable[[Path], DatabaseFile] | None = None) -> None:
    """Open a database in a folder with its writer running, and close it in the end."""

    async def main() -> None:
        env = OneThreadEnv(folder)
        if make_file is not None:
            env.disk.database = lambda path: make_file(folder / path)  # type: ignore[method-assign]
        database = Database(env, "minidfs.db", no_targets)
        try:
            await database.open()
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(database.run)
                    await body(database)
                    nursery.cancel_scope.cancel()
        finally:
            await database.close()

    trio.run(main)


def replica_of(database: Database, node_id: str = "node-1") -> Replica:
    return Replica(NodeId(node_id), database.store, Random(f"{node_id} {time.time_ns()}"))


def look_up(database: Database, query: str, *values: object) -> object:
    """One row, as the event loop sees it."""
    return database.look_up(lambda connection: connection.execute(query, values).fetchone())


async def write_all(database: Database, *steps: Callable[[], object]) -> list[object]:
    """Hand in steps together; what became of each."""
    outcomes: list[object] = [None] * len(steps)

    async def write(number: int, step: Callable[[], object]) -> None:
        try:
            outcomes[number] = await database.write(step)
        except Exception as error:  # noqa: BLE001
            outcomes[number] = error

    async with trio.open_nursery() as nursery:
        for number, step in enumerate(steps):
            nursery.start_soon(write, number, step)
    return outcomes


class FaultyConnection(sqlite3.Connection):
    """Fails at statements that begin with one of `fails_at`, after carrying them out if `too_late`."""

    fails_at: tuple[str, ...] = ()
    too_late = False
    failures = 0

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
        if sql.startswith(self.fails_at) and self.fails_at:
            self.failures += 1
            if self.too_late:
                super().execute(sql, *args)  # type: ignore[arg-type]
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return super().execute(sql, *args)  # type: ignore[arg-type]


class FaultyFile(SystemDatabaseFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def connect_writer(self) -> sqlite3.Connection:
        super().connect_writer().close()
        connection = sqlite3.connect(self.path, isolation_level=None, factory=FaultyConnection)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection


# --- group commit ---


def test_steps_that_wait_together_are_committed_together(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        execute = database.store.connection.execute
        steps = [partial(set_meta_value, database.store.connection, f"key {number}", number) for number in range(300)]
        before = database.commits
        assert await write_all(database, *steps) == [None] * 300
        assert database.commits - before <= 10
        assert execute("SELECT count(*) FROM meta WHERE key LIKE 'key %'").fetchone() == (300,)

    run(tmp_path, body)


def test_more_steps_than_may_wait_are_all_written(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        results = await write_all(database, *[partial(lambda number: number, number) for number in range(3000)])
        assert results == list(range(3000))

    run(tmp_path, body)


def test_a_result_is_visible_to_readers_when_its_step_returns(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)

        async def put(number: int) -> None:
            written = await database.write(lambda: replica.put(manifest(f"k{number}"), NOW_MS))
            assert database.committed.version_vector[written.dot.origin] >= written.dot.seq
            query = "SELECT count(*) FROM puts WHERE file_key = ?"
            assert look_up(database, query, f"k{number}") == (1,)
            found = await database.read(lambda connection: connection.execute(query, (f"k{number}",)).fetchone())
            assert found == (1,)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put, number)

    run(tmp_path, body)


def test_a_step_that_fails_fails_alone(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)

        def fails() -> None:
            replica.put(manifest("never"), NOW_MS)
            set_meta_value(database.store.connection, "never", 1)
            raise ZeroDivisionError

        def breaks_a_constraint() -> None:
            database.store.connection.execute("INSERT INTO holds VALUES (99, 1, 99, 1, 0)")

        good = [partial(replica.put, manifest(f"k{number}"), NOW_MS) for number in range(20)]
        outcomes = await write_all(database, *good[:10], fails, breaks_a_constraint, *good[10:])
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert [type(error) for error in failed] == [ZeroDivisionError, StoreError]
        assert outcomes[10:12] == failed
        puts = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert sorted(put.dot.seq for put in puts) == list(range(1, 21)), "no gap, none twice"  # type: ignore[attr-defined]
        assert database.store.version_vector() == {replica.origin: 20}
        assert database.store.puts_of("never") == []
        assert database.look_up(lambda connection: meta_value(connection, "never")) is None
        assert catalog.sum_of_rows(database.store) == database.store.state_sum()

    run(tmp_path, body)


def test_a_roll_back_leaves_everything_in_memory_as_it_was(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)
        stranger = replica_of(database, "node-2")
        await database.write(lambda: replica.put(manifest("k"), NOW_MS))

        def picture() -> tuple[object, ...]:
            store = database.store
            return (
                store.version_vector(),
                store.floors(),
                store.state_sum(),
                dict(store._nodes),
                list(store.unused_files),
            )

        def fails() -> None:
            stranger.put(manifest("never"), NOW_MS)
            replica.put(manifest("k"), NOW_MS)
            database.store.node_row(NodeId("node-3"))
            replica.truncate(database.store.version_vector())
            database.store.unused_files.append("chunks/00/00.1")
            raise ZeroDivisionError

        before = picture()
        with pytest.raises(ZeroDivisionError):
            await database.write(fails)
        assert picture() == before
        assert database.committed.version_vector == before[0]
        # What memory had of the rows that were rolled back must not be used for new ones.
        await database.write(lambda: stranger.put(manifest("later"), NOW_MS))
        assert [put.manifest.file_key for put in database.store.puts_of("later")] == ["later"]

    run(tmp_path, body)


def test_an_epoch_left_in_a_transaction_that_is_rolled_back_is_not_left(tmp_path: Path) -> None:
    """Otherwise memory and disk would say different things about who wrote what."""

    async def body(database: Database) -> None:
        replica = replica_of(database)
        database.remember = replica.remember
        await database.write(lambda: replica.put(manifest("disputed"), NOW_MS))
        origin = replica.origin

        def meets_and_fails() -> None:
            replica.end_forks({origin: Fork(0, 1)})
            raise ZeroDivisionError

        await write_all(database, meets_and_fails)
        assert replica.origin == origin
        await database.write(lambda: replica.end_forks({origin: Fork(0, 1)}))
        (put,) = database.store.puts_of("disputed")
        assert put.dot.origin == replica.origin != origin

    run(tmp_path, body)


def test_files_that_lost_their_rows_are_named_only_after_the_commit(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        named: list[str] = []
        database.on_unused_files = named.extend

        def fails() -> None:
            database.store.unused_files.append("never")
            raise ZeroDivisionError

        await write_all(database, lambda: database.store.unused_files.append("gone"), fails)
        assert named == ["gone"]

    run(tmp_path, body)


# --- failing disks ---


@pytest.mark.parametrize("too_late", [False, True])
def test_a_failing_commit_tells_all_who_wait_and_leaves_the_epoch(tmp_path: Path, too_late: bool) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)
        database.on_uncertain = replica.leave_epoch
        connection = database.store.connection
        assert isinstance(connection, FaultyConnection)
        await database.write(lambda: replica.put(manifest("before"), NOW_MS))
        first_origin = replica.origin
        connection.fails_at, connection.too_late = ("COMMIT",), too_late
        outcomes = await write_all(
            database, *[partial(replica.put, manifest(f"k{number}"), NOW_MS) for number in range(5)]
        )
        assert all(type(outcome) is StoreError for outcome in outcomes)
        assert replica.epochs_left > 0
        assert replica.origin != first_origin
        connection.fails_at = ()
        put = await database.write(lambda: replica.put(manifest("after"), NOW_MS))
        assert put.dot.seq == 1 or too_late
        assert put.dot.origin == replica.origin
        assert catalog.sum_of_rows(database.store) == database.store.state_sum()
        assert database.committed.version_vector == database.store.version_vector()

    run(tmp_path, body, FaultyFile)


def test_a_disk_that_fails_even_at_rolling_back_is_still_a_store_error(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        connection = database.store.connection
        assert isinstance(connection, FaultyConnection)
        for fails_at in [("COMMIT", "ROLLBACK"), ("BEGIN",), ("COMMIT", "SELECT"), ("BEGIN", "SELECT")]:
            connection.fails_at = fails_at
            outcomes = await write_all(database, *[lambda: None] * 3)
            assert [type(outcome) for outcome in outcomes] == [StoreError] * 3, fails_at
            connection.fails_at = ()
            assert await database.write(lambda: "well again") == "well again"

    run(tmp_path, body, FaultyFile)


def test_what_was_rolled_back_is_told_to_nobody_even_if_rolling_back_failed(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        connection = database.store.connection
        assert isinstance(connection, FaultyConnection)
        replica = replica_of(database)
        await database.write(lambda: replica.put(manifest("before"), NOW_MS))
        told = database.committed
        connection.fails_at = ("COMMIT", "ROLLBACK")
        outcomes = await write_all(database, lambda: replica.put(manifest("never"), NOW_MS))
        assert [type(outcome) for outcome in outcomes] == [StoreError]
        assert database.committed == told
        connection.fails_at = ()
        await database.write(lambda: None)
        assert database.committed == told

    run(tmp_path, body, FaultyFile)


def test_a_connection_is_of_use_on_its_own_thread_only(tmp_path: Path) -> None:
    async def main() -> None:
        env = SystemEnv(tmp_path)
        database = Database(env, "minidfs.db", no_targets)
        await database.open()

        def look_up() -> object:
            return database.look_up(lambda connection: connection.execute("SELECT 1").fetchone())

        assert look_up() == (1,)
        for work in (Work.DISK, Work.HASH, Work.DATABASE_READ, Work.DATABASE_WRITE):
            with pytest.raises(sqlite3.ProgrammingError, match="thread"):
                await env.run_blocking(work, look_up)
        with pytest.raises(sqlite3.ProgrammingError, match="thread"):
            database.store.puts_of("k")
        assert await database.write_alone(lambda: database.store.puts_of("k")) == []
        assert await database.read(lambda connection: connection.execute("SELECT 2").fetchone()) == (2,)
        await database.close()

    trio.run(main)


def test_a_database_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    file = SystemDatabaseFile(tmp_path / "minidfs.db")
    writer = file.connect_writer()
    migrations.apply(sqlite_utils.Database(writer), stop_before="m002_parts")
    writer.execute("PRAGMA user_version = 1")
    writer.execute("INSERT INTO nodes (id, node_id) VALUES (1, 'node-1')")
    writer.execute("INSERT INTO origins VALUES (1, 1, 7, 3, 0)")
    columns = (
        "origin, seq, stamp, file_key, partition, filename, size_bytes, sha256, content_type, uploaded_at_ms, copies"
    )
    for seq, chunks, shown, held in [(1, pack_chunks((Chunk(bytes(32), 3),)), 0, 1), (2, None, 1, 0)]:
        writer.execute(
            f"INSERT INTO puts ({columns}, chunks, shown, held)"
            " VALUES (1, ?, ?, 'k', 0, 'k', 3, x'00', 'a/b', 0, 1, ?, ?, ?)",
            (seq, seq, chunks, shown, held),
        )
    writer.close()

    async def body(database: Database) -> None:
        await trio.lowlevel.checkpoint()
        found = database.store.connection.execute("SELECT seq, shown, held, kept, registered FROM puts ORDER BY seq")
        assert found.fetchall() == [(1, 1, 1, 1, 0), (2, 0, 0, 0, 0)]
        assert count_files(database.store.connection) == 1

    run(tmp_path, body)


def test_a_full_disk_is_no_space_and_the_store_works_again_when_there_is_room(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)
        execute = database.store.connection.execute
        await database.write(lambda: replica.put(manifest("before"), NOW_MS))
        (pages,) = execute("PRAGMA page_count").fetchone()
        (unlimited,) = execute("PRAGMA max_page_count").fetchone()
        execute(f"PRAGMA max_page_count = {pages + 2}")

        def large(number: int) -> object:
            execute("INSERT INTO meta VALUES (?, zeroblob(100000))", (f"large {number}",))
            return replica.put(manifest(f"large-{number}"), NOW_MS)

        outcomes = await write_all(
            database, *[partial(large, number) for number in range(3)], lambda: replica.put(manifest("small"), NOW_MS)
        )
        assert [type(outcome) for outcome in outcomes[:3]] == [NoSpace] * 3
        assert database.store.puts_of("small")
        assert database.store.puts_of("large-1") == []
        assert catalog.sum_of_rows(database.store) == database.store.state_sum()
        execute(f"PRAGMA max_page_count = {unlimited}")
        await database.write(partial(large, 1))
        assert database.store.puts_of("large-1")
        assert database.store.version_vector() == {replica.origin: 3}

    run(tmp_path, body)


def test_steps_cannot_wait_for_a_writer_that_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(SystemEnv(tmp_path), "minidfs.db", no_targets)
        await database.open()
        outcomes: list[object] = []

        async def write() -> None:
            try:
                outcomes.append(await database.write(lambda: "written"))
            except StoreError as error:
                outcomes.append(error)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(write)
                nursery.start_soon(database.run)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            with pytest.raises(StoreError, match="stopping"):
                await database.write(lambda: None)
        assert all(outcome == "written" or isinstance(outcome, StoreError) for outcome in outcomes)
        await database.close()

    trio.run(main)


def test_a_step_that_was_handed_in_tells_its_outcome_even_to_one_who_is_cancelled(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        told: list[str] = []
        with trio.move_on_after(0.01) as scope:
            told.append(await database.write(lambda: time.sleep(0.05) or "written"))  # type: ignore[func-returns-value]
        assert told == ["written"]
        assert scope.cancel_called

    run(tmp_path, body)


# --- opening ---


def test_a_database_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def nothing(database: Database) -> None:
        await trio.lowlevel.checkpoint()

    run(tmp_path, nothing)
    with sqlite3.connect(tmp_path / "minidfs.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = (tmp_path / "minidfs.db").read_bytes()
    with pytest.raises(StartError, match=rf"schema {SCHEMA_VERSION + 1} .* knows {SCHEMA_VERSION}; start the newer"):
        run(tmp_path, nothing)
    assert (tmp_path / "minidfs.db").read_bytes() == before


def test_a_file_that_is_no_database_is_refused_with_a_word_on_what_to_do(tmp_path: Path) -> None:
    async def nothing(database: Database) -> None:
        await trio.lowlevel.checkpoint()

    (tmp_path / "minidfs.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match="data folder"):
        run(tmp_path, nothing)


@pytest.mark.parametrize(
    ("damage", "known"), [((), 3), (("UPDATE log SET op = x'c1' WHERE seq = 2",), 1)], ids=["whole", "damaged"]
)
def test_logs_of_an_older_release_get_the_running_hashes_they_would_have_had(
    tmp_path: Path, damage: tuple[str, ...], known: int
) -> None:
    async def write(database: Database) -> None:
        replica = replica_of(database)
        for name in "abc":
            await database.write(lambda name=name: replica.put(manifest(name), NOW_MS))

    def hashes(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
        return connection.execute("SELECT origin, seq, hash FROM log ORDER BY origin, seq").fetchall()

    run(tmp_path, write)
    with sqlite3.connect(tmp_path / "minidfs.db") as connection:
        expected = hashes(connection)
        for statement in (
            "ALTER TABLE log DROP COLUMN hash",
            "ALTER TABLE origins DROP COLUMN floor_hash",
            "DROP TABLE given_up",
            "DELETE FROM _sqlite_migrations WHERE name LIKE 'm004%'",
            "PRAGMA user_version = 3",
            *damage,
        ):
            connection.execute(statement)
    migrated = sqlite_utils.Database(tmp_path / "minidfs.db")
    migrate(migrated)
    assert len(expected) == 3
    assert hashes(migrated.conn) == [row if row[1] <= known else (*row[:2], None) for row in expected]
    migrated.close()


def test_a_crash_at_any_statement_of_the_first_migration_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    statements = 0
    connection = SystemDatabaseFile(tmp_path / "whole.db").connect_writer()
    # Without the bookkeeping of sqlite_utils.
    query = "SELECT type, name, sql FROM sqlite_master WHERE tbl_name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY 1, 2"
    whole = sqlite_utils.Database(connection)
    migrate(whole)
    expected = whole.execute(query).fetchall()
    for number in range(200):
        path = tmp_path / f"{number}.db"
        connection = SystemDatabaseFile(path).connect_writer()
        count = 0

        def fail_in_time(*_: object, number: int = number) -> int:
            nonlocal count
            count += 1
            return sqlite3.SQLITE_DENY if count > number * 25 else sqlite3.SQLITE_OK

        connection.set_authorizer(fail_in_time)
        try:
            migrate(sqlite_utils.Database(connection))
        except sqlite3.DatabaseError:
            statements += 1
        else:
            break
        finally:
            # As after a kill: what was not committed is gone.
            connection.close()
        again = sqlite_utils.Database(SystemDatabaseFile(path).connect_writer())
        migrate(again)
        assert again.execute(query).fetchall() == expected, number
        again.close()
    assert statements > 5, "the migration was never interrupted"


def test_the_writer_syncs_every_commit_and_keeps_foreign_keys(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        pragma = {
            name: database.store.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            await database.write(
                lambda: database.store.connection.execute("INSERT INTO log VALUES (1, 77, 1, x'00', NULL)")
            )

    run(tmp_path, body)


def test_readers_cannot_write(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        with pytest.raises(StoreError, match="readonly"):
            await database.read(lambda connection: connection.execute("DELETE FROM meta"))
        pinned = await database.pin()
        try:
            with pytest.raises(sqlite3.OperationalError):
                pinned.execute("DELETE FROM meta")
        finally:
            await database.unpin(pinned)

    run(tmp_path, body)


def test_a_pinned_connection_sees_its_moment_for_ever(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)
        await database.write(lambda: replica.put(manifest("before"), NOW_MS))
        pinned = await database.pin()
        try:
            await database.write(lambda: replica.put(manifest("after"), NOW_MS))
            assert pinned.execute("SELECT file_key FROM puts").fetchall() == [("before",)]
        finally:
            await database.unpin(pinned)
        assert look_up(database, "SELECT count(*) FROM puts") == (2,)

    run(tmp_path, body)


# --- what operators read ---


def test_operators_read_the_four_documented_tables_with_sqlite_utils(tmp_path: Path) -> None:
    def targets(partition: int, copies: int) -> list[NodeId]:
        return [NodeId("node-1"), NodeId("node-2")]

    async def body(database: Database) -> None:
        database.store.targets = targets
        replica = replica_of(database)

        def step() -> None:
            put = replica.put(manifest("k"), NOW_MS)
            replica.hold(put.dot, NOW_MS)

        await database.write(step)
        outside = sqlite_utils.Database(sqlite3.connect(f"file:{tmp_path}/minidfs.db?mode=ro", uri=True))
        assert {"nodes", "files", "file_locations", "replication_queue"} <= {
            *outside.table_names(),
            *outside.view_names(),
        }
        assert [row["node_id"] for row in outside["nodes"].rows] == ["node-1", "node-2"]
        assert {"node_id", "address", "zone", "incarnation", "membership"} <= set(next(iter(outside["nodes"].rows)))
        assert list(outside["files"].rows) == [
            {
                "file_key": "k",
                "original_filename": "k.txt",
                "size_bytes": 3,
                "checksum_sha256": "00" * 32,
                "content_type": "text/plain",
                "uploaded_at": "2026-01-01T00:00:00Z",
                "copies": 3,
            }
        ]
        assert list(outside["file_locations"].rows) == [
            {"file_key": "k", "node_id": "node-1", "held_since": "2026-01-01T00:00:00Z"}
        ]
        (item,) = outside["replication_queue"].rows
        assert item.pop("id") > 0
        assert item == {
            "file_key": "k",
            "target_node_id": "node-2",
            "status": "PENDING",
            "created_at": "2026-01-01T00:00:00Z",
            "completed_at": None,
        }
        outside.close()

    run(tmp_path, body)


def test_the_write_ahead_log_grows_as_long_as_a_moment_is_pinned(tmp_path: Path) -> None:
    async def body(database: Database) -> None:
        replica = replica_of(database)
        pinned = await database.pin()
        sizes = []
        for number in range(3):
            await database.write(lambda number=number: replica.put(manifest(f"k{number}"), NOW_MS))  # type: ignore[misc]
            sizes.append(database.wal_bytes())
        await database.unpin(pinned)
        assert 0 < sizes[0] < sizes[1] < sizes[2]
        assert sizes[2] == (tmp_path / "minidfs.db-wal").stat().st_size

    run(tmp_path, body)


# --- kill -9 ---

WRITER = """
import sys, trio
from pathlib import Path
from random import SystemRandom
from peer.store.catalog import no_targets
from peer.store.rows import pack_chunks
from peer.store.database import Database
from peer.world.system import SystemEnv
from protocol.identity import NodeId
from protocol.ops import Manifest
from protocol.replica import Replica

async def main():
    database = Database(SystemEnv(Path(sys.argv[1])), "minidfs.db", no_targets)
    await database.open()
    replica = Replica(NodeId("node-1"), database.store, SystemRandom())

    async def write(number):
        while True:
            key = f"{sys.argv[2]}-{number}"
            manifest = Manifest(file_key=key, filename="f" * 100, size_bytes=0, sha256=bytes(32),
                                content_type="text/plain", uploaded_at_ms=1, copies=3, chunks=())
            put = await database.write(lambda: replica.put(manifest, 1))
            print(key, put.dot, flush=True)
            number += 8

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run)
        for number in range(8):
            nursery.start_soon(write, number)

trio.run(main)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_everything_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"life{life}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(100 + 57 * life)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        assert process.wait(10) == -signal.SIGKILL
        process.stdout.close()
        for line in lines:
            # The last line may have been cut off.
            if line.endswith("\n"):
                key, dot = line.split()
                acknowledged[key] = dot
    assert len(acknowledged) > 300

    async def body(database: Database) -> None:
        await trio.lowlevel.checkpoint()
        found = {put.manifest.file_key: str(put.dot) for _, put in _all_puts(database)}
        missing = {key: dot for key, dot in acknowledged.items() if found.get(key) != dot}
        assert missing == {}
        assert catalog.sum_of_rows(database.store) == database.store.state_sum()
        assert look_up(database, "PRAGMA integrity_check") == ("ok",)
        for origin, seen in database.store.version_vector().items():
            ops = [op for op in database.store.log_after({}) if op.dot.origin == origin]
            assert [op.dot.seq for op in ops] == list(range(1, seen + 1)), "no gap in a log"

    run(tmp_path, body)


def _all_puts(database: Database):
    from peer.store.rows import select_puts

    return select_puts(database.store.connection, "")
