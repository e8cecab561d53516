"""The peer's database: one writer with group commit, and readers.

Whoever has something to write hands in a step, a synchronous function on the store; all steps that wait are run in
one transaction, whose one sync of the disk acknowledges them together. SQLite is in WAL mode and syncs at every
commit; the one writing connection is also the one that checkpoints, for two that do so at once can corrupt a
database (SQLite before 3.51.3, "WAL-reset").
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlite_utils
import trio

from peer.catalog_store import SqliteStore, Targets
from peer.env import Env, NoSpace, StoreError, Work
from peer.schema import migrate
from protocol.identity import VersionVector

T = TypeVar("T")

log = logging.getLogger("minidfs.database")

STEPS_WAITING_MAX = 1024
"""Steps that may wait for the writer; whoever comes later waits to be let in."""

_STOPPED = "this peer is stopping; nothing more is written"


@dataclass(slots=True, eq=False)
class _Step(Generic[T]):
    run: Callable[[], T]
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What the last commit left: all that may be told to others."""

    version_vector: VersionVector
    floors: VersionVector
    state_sum: int


class Database:
    """See the module. `on_uncertain` is called when it is unknown whether a commit reached the disk."""

    def __init__(self, env: Env, path: str, targets: Targets) -> None:
        self._env = env
        self._file = env.disk.database(path)
        with translated_errors():
            writer = self._file.connect_writer()
            migrate(sqlite_utils.Database(writer))
            self.store = SqliteStore(writer, targets)
            self._reader = self._file.connect_reader()
            self._scanner = self._file.connect_reader()
        self._writer = writer
        self._send, self._receive = trio.open_memory_channel[_Step[Any]](STEPS_WAITING_MAX)
        self._scan_turn = trio.Lock()
        self.on_uncertain: Callable[[], None] = lambda: None
        self.remember: Callable[[], Callable[[], None]] = lambda: lambda: None
        """Called as a transaction begins; what it returns is called if it is rolled back, to undo in memory too."""
        self.on_unused_files: Callable[[list[str]], None] = lambda names: None
        self._unused_files: list[str] = []
        self._is_clean = True
        """False after a roll-back that failed too: it is tried again before anything else is written."""
        self._publish()
        self.commits = 0
        self.steps = 0

    # --- writing ---

    async def write(self, step: Callable[[], T]) -> T:
        """Run `step` in a transaction and return its result once that is on the disk.

        `step` runs on the writer's thread, may run again after a roll-back, and must change nothing but the store (and
        memory the store or the rules keep). Once handed in it cannot be cancelled: the caller may own what the step
        adopts, and must hear what became of it. Raises NoSpace or StoreError when nothing of it was written, or when
        that is unknown; and what `step` raises, after rolling it back.
        """
        waiting = _Step(step)
        try:
            await self._send.send(waiting)
        except trio.BrokenResourceError:
            raise StoreError(_STOPPED) from None
        with trio.CancelScope(shield=True):
            await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.result  # type: ignore[return-value]

    async def run(self) -> None:
        """The writer: commits whatever waits, until cancelled."""
        batch: list[_Step[Any]] = []
        try:
            await self._commit_batches(batch)
        finally:
            # Whoever waits must not wait for ever.
            for step in batch + self._take_waiting():
                if not step.done.is_set():
                    step.error = StoreError(_STOPPED)
                    step.done.set()
            self._receive.close()

    def _take_waiting(self) -> list[_Step[Any]]:
        waiting: list[_Step[Any]] = []
        while True:
            try:
                waiting.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                return waiting

    async def _commit_batches(self, batch: list[_Step[Any]]) -> None:
        async for first in self._receive:
            batch[:] = [first, *self._take_waiting()]
            with trio.CancelScope(shield=True):
                await self._env.run_blocking(Work.DATABASE_WRITE, self._commit, batch)
            self._publish()
            unused, self._unused_files = self._unused_files, []
            for step in batch:
                step.done.set()
            if unused:
                self.on_unused_files(unused)

    def write_now(self, step: Callable[[], T]) -> T:
        """Run one step at once, while no writer runs yet (at start)."""
        only = _Step(step)
        self._commit([only])
        self._publish()
        if only.error is not None:
            raise only.error
        return only.result  # type: ignore[return-value]

    def _publish(self) -> None:
        self.committed = Committed(self.store.version_vector(), self.store.floors(), self.store.state_sum())

    def _commit(self, batch: list[_Step[Any]]) -> None:
        """All steps in one transaction; when one of them fails, each in its own."""
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001  (a step's own error: handed to the one who waits for that step)
            if len(batch) > 1:
                for step in batch:
                    self._commit([step])
            else:
                batch[0].error = error

    def _transact(self, batch: list[_Step[Any]]) -> None:
        committing = False
        forget = self.remember()
        try:
            with translated_errors():
                if not self._is_clean:
                    self._roll_back()
                self._writer.execute("BEGIN IMMEDIATE")
                for step in batch:
                    step.result = step.run()
                self.store.flush()
                committing = True
                self._writer.execute("COMMIT")
        except BaseException:
            forget()
            if committing:
                log.exception("a commit failed and may or may not be on the disk; writing on under a new epoch")
                self.on_uncertain()
            with translated_errors():
                self._roll_back()
            raise
        self._unused_files += self.store.unused_files
        self.store.unused_files.clear()
        self.commits += 1
        self.steps += len(batch)

    def _roll_back(self) -> None:
        self._is_clean = False
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        self.store.reload()
        self._is_clean = True

    # --- reading ---

    @property
    def reader(self) -> sqlite3.Connection:
        """For look-ups by key on the event loop: microseconds each, so cheaper than handing them to a thread."""
        return self._reader

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a longer reading query on a thread; it sees one moment when it opens a transaction."""
        async with self._scan_turn:
            return await self._env.run_blocking(Work.DATABASE_READ, self._read, query)

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with translated_errors():
            return query(self._scanner)

    def pin(self) -> sqlite3.Connection:
        """A connection that sees this moment until it is closed; may block."""
        with translated_errors():
            return self._file.pin()

    def close(self) -> None:
        """Close all connections, the writer last, which leaves one tidy file."""
        for connection in (self._reader, self._scanner, self._writer):
            connection.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        kind = NoSpace if error.sqlite_errorcode == sqlite3.SQLITE_FULL else StoreError
        raise kind(f"the database failed: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"the database failed: {error}; verify the data folder before using it on") from error


def meta_value(connection: sqlite3.Connection, key: str) -> Any:
    """A value kept in `meta`, None when it was never set."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def set_meta_value(connection: sqlite3.Connection, key: str, value: Any) -> None:
    """Keep a value in `meta`; part of the caller's transaction."""
    connection.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))
