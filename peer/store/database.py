"""The peer's database: one writer with group commit, and readers.

Whoever has something to write hands in a step, a synchronous function on the store; all steps that wait are run in
one transaction, whose one sync of the disk acknowledges them together. SQLite is in WAL mode and syncs at every
commit; the one writing connection is also the one that checkpoints, for two that do so at once can corrupt a
database (SQLite before 3.51.3, "WAL-reset").
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import sqlite_utils
import trio

from peer.longest import Longest
from peer.store.catalog import SqliteStore, Targets
from peer.store.errors import CatalogDamaged
from peer.store.rows import RowDamaged
from peer.store.schema import migrate
from peer.store.tail import LogTail
from peer.world.env import DatabaseFile, Env, NoSpace, StoreError, Work
from protocol.identity import VersionVector

T = TypeVar("T")

log = logging.getLogger("minidfs.database")

STEPS_WAITING_MAX = 1024
"""Steps that may wait for the writer; whoever comes later waits to be let in."""

LONG_HOLD_S = 0.2
"""Of a transaction that is worth a line of the log, for those who look for what makes clients wait."""

SETTLE_EVERY_S = 1.0
"""Between attempts to settle what became of a failed commit."""

_STOPPED = "this peer is stopping; nothing more is written"


@dataclass(slots=True, eq=False)
class _Step(Generic[T]):
    run: Callable[[], T]
    grows: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What the last commit left: all that may be told to others."""

    version_vector: VersionVector
    floors: VersionVector
    state_sum: int
    tail: LogTail


class Database:
    """See the module; `open` it before anything else. `on_uncertain` is called when a commit's outcome is unknown.

    Each of its three connections belongs to one thread: the writer's, the one for longer reading, and the event loop's.
    """

    store: SqliteStore
    committed: Committed

    def __init__(self, env: Env, path: str, targets: Targets) -> None:
        self._env = env
        self._path = path
        self._targets = targets
        self._send, self._receive = trio.open_memory_channel[_Step[Any]](STEPS_WAITING_MAX)
        self.on_uncertain: Callable[[], None] = lambda: None
        self.remember: Callable[[], Callable[[], None]] = lambda: lambda: None
        """Called as a transaction begins; what it returns is called if it is rolled back, to undo in memory too."""
        self.on_full: Callable[[], None] = lambda: None
        """Called on the writer's thread when there is no space; it may make some."""
        self.check_space: Callable[[], None] = lambda: None
        """Called before a step that grows; raises NoSpace to keep what space there is for others."""
        self.on_unused_files: Callable[[list[str]], None] = lambda names: None
        self._unused_files: list[str] = []
        self._is_clean = True
        """False after a roll-back that failed too: it is tried again before anything else is written."""
        self._is_in_doubt = False
        """True after a commit of which nobody knows whether it is on the disk, until another one is."""
        self._settled = trio.Event()
        self._settled.set()
        self._writer: sqlite3.Connection | None = None
        self._scanner: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self.commits = 0
        self.steps = 0
        self.longest_hold = Longest(env.clock.now)
        """Of the transactions."""

    # --- opening and closing ---

    async def open(self) -> None:
        """Open the database, made or brought up to date if need be. Raises StartError, StoreError."""
        file = await self._env.run_blocking(Work.DISK, self._env.disk.database, self._path)
        await self._env.run_blocking(Work.DATABASE_WRITE, self._open_in_what_space_there_is, file)
        await self._env.run_blocking(Work.DATABASE_READ, self._open_scanner, file)
        with translated_errors():
            # What blocks, making the file and recovering it, was done by the writer.
            self._reader = file.connect_reader()
        self._file = file

    def _open_in_what_space_there_is(self, file: DatabaseFile) -> None:
        try:
            self._open_writer(file)
        except NoSpace:
            self.on_full()
            self._open_writer(file)

    def _open_writer(self, file: DatabaseFile) -> None:
        with translated_errors():
            self._writer = file.connect_writer()
            migrate(sqlite_utils.Database(self._writer))
            self.store = SqliteStore(self._writer, self._targets)
        self._publish()

    def _open_scanner(self, file: DatabaseFile) -> None:
        with translated_errors():
            self._scanner = file.connect_reader()

    async def close(self) -> None:
        """Close all connections, the writer last, which leaves one tidy file."""
        if self._reader is not None:
            self._reader.close()
        await self._env.run_blocking(Work.DATABASE_READ, _close, self._scanner)
        await self._env.run_blocking(Work.DATABASE_WRITE, _close, self._writer)

    # --- writing ---

    async def write(self, step: Callable[[], T], *, grows: bool = False) -> T:
        """Run `step` in a transaction and return its result once that is on the disk.

        One that `grows`, for it brings content, is refused while the disk is full: others, as deletions, may need what
        room there is.

        `step` runs on the writer's thread, may run again after a roll-back, and must change nothing but the store (and
        memory the store or the rules keep). Once handed in it cannot be cancelled: the caller may own what the step
        adopts, and must hear what became of it. Raises NoSpace or StoreError when nothing of it was written, or when
        that is unknown: see `wait_settled`; and what `step` raises, after rolling it back.
        """
        waiting = _Step(step, grows)
        try:
            await self._send.send(waiting)
        except trio.BrokenResourceError:
            raise StoreError(_STOPPED) from None
        with trio.CancelScope(shield=True):
            await waiting.done.wait()
        return _result_of(waiting)

    async def wait_settled(self) -> None:
        """Return when no commit's outcome is unknown: what a failed one was to adopt may be removed only then.

        A commit that failed may have reached the disk all the same, and then comes back at the next start. The next
        one that succeeds is written over it, and so settles that it never was.
        """
        await self._settled.wait()

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
        while True:
            batch[:] = self._take_waiting()
            if not batch:
                with trio.move_on_after(SETTLE_EVERY_S if self._is_in_doubt else math.inf):
                    batch.append(await self._receive.receive())
                batch += self._take_waiting()
            with trio.CancelScope(shield=True):
                await self._env.run_blocking(Work.DATABASE_WRITE, self._commit, batch)
            self._tell_doubt()
            unused, self._unused_files = self._unused_files, []
            for step in batch:
                step.done.set()
            if unused:
                self.on_unused_files(unused)

    def _tell_doubt(self) -> None:
        if not self._is_in_doubt:
            self._settled.set()
        elif self._settled.is_set():
            self._settled = trio.Event()

    async def write_alone(self, step: Callable[[], T]) -> T:
        """Run one step in a transaction while no writer runs yet (at start). Raises what `write` raises."""
        only = _Step(step)
        await self._env.run_blocking(Work.DATABASE_WRITE, self._commit, [only])
        return _result_of(only)

    def _publish(self) -> None:
        store = self.store
        self.committed = Committed(store.version_vector(), store.floors(), store.state_sum(), store.committed_tail())

    def _commit(self, batch: list[_Step[Any]]) -> None:
        """All steps in one transaction; when one of them fails, each in its own."""
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001  (a step's own error: handed to the one who waits for that step)
            if len(batch) > 1:
                for step in batch:
                    self._commit([step])
            elif batch:
                batch[0].error = self._second_attempt(batch) if isinstance(error, NoSpace) else error

    def _second_attempt(self, batch: list[_Step[Any]]) -> Exception | None:
        """After making space; what went wrong this time, if anything."""
        self.on_full()
        with suppress(StoreError):
            self._checkpoint()
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001  (as above)
            return error
        return None

    async def use_last_room(self) -> None:
        """The disk is full, and the reserve given up a moment ago: use it before others do.

        What the write-ahead log has goes over into the database, and then it is written from its start, in the room it
        has: so files can be deleted at zero bytes free. Never fails.
        """
        with suppress(StoreError):
            await self._env.run_blocking(Work.DATABASE_WRITE, self._checkpoint)

    def _checkpoint(self) -> None:
        assert self._writer is not None, "the database is open"
        with translated_errors():
            # Of the kinds of checkpoint the one that waits for no reader.
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _transact(self, batch: list[_Step[Any]]) -> None:
        assert self._writer is not None, "the database is open"
        committing = False
        forget = self.remember()
        began = self._env.clock.now()
        try:
            with translated_errors():
                if not self._is_clean:
                    self._roll_back()
                self._writer.execute("BEGIN IMMEDIATE")
                if self._is_in_doubt:
                    # A commit that changes nothing is not written, and would settle nothing.
                    set_meta_value(self._writer, "settled", (meta_value(self._writer, "settled") or 0) + 1)
                for step in batch:
                    if step.grows:
                        self.check_space()
                    step.result = step.run()
                self.store.flush()
                committing = True
                self._writer.execute("COMMIT")
        except BaseException as error:
            forget()
            # Of a full disk it is known: the frame that would have made it a commit was not written.
            if committing and not isinstance(error, NoSpace):
                self._doubt(error)
            with translated_errors():
                self._roll_back()
            raise
        self._note_hold(batch, self._env.clock.now() - began)
        self._publish()
        self._is_in_doubt = False
        self._unused_files += self.store.unused_files
        self.store.unused_files.clear()
        self.commits += 1
        self.steps += len(batch)

    def _note_hold(self, batch: list[_Step[Any]], seconds: float) -> None:
        self.longest_hold.note(seconds)
        if seconds > LONG_HOLD_S:
            log.debug("%s held the writer for %.0f ms", sorted({_name_of(step.run) for step in batch}), 1000 * seconds)

    def _doubt(self, error: BaseException) -> None:
        if not self._is_in_doubt:
            log.error("a commit failed and may or may not be on the disk; writing on under a new epoch: %s", error)
        self._is_in_doubt = True
        self.on_uncertain()

    def _roll_back(self) -> None:
        assert self._writer is not None, "the database is open"
        self._is_clean = False
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        self.store.reload()
        self._is_clean = True

    # --- reading ---

    def look_up(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a reading query by key, on the event loop: microseconds, so cheaper than handing it to a thread.

        It sees what was last committed. Raises StoreError.
        """
        assert self._reader is not None, "the database is open"
        with translated_errors():
            return query(self._reader)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a longer reading query on a thread; it sees one moment when it opens a transaction. Raises StoreError."""
        return await self._env.run_blocking(Work.DATABASE_READ, self._read, query)

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        assert self._scanner is not None, "the database is open"
        with translated_errors():
            return query(self._scanner)

    async def pin(self) -> sqlite3.Connection:
        """A connection that sees this moment until it is closed; for `Work.DATABASE_READ`. Raises StoreError."""
        return await self._env.run_blocking(Work.DATABASE_READ, self._pin)

    def _pin(self) -> sqlite3.Connection:
        with translated_errors():
            return self._file.pin()

    def wal_bytes(self) -> int:
        """How long the write-ahead log is. Blocks. Raises StoreError."""
        name = f"{self._path}-wal"
        return dict(self._env.disk.list_files("")).get(name, 0)

    async def unpin(self, pinned: sqlite3.Connection) -> None:
        """Close a connection that `pin` gave."""
        with trio.CancelScope(shield=True):
            await self._env.run_blocking(Work.DATABASE_READ, _close, pinned)


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()


def _name_of(step: Callable[[], object]) -> str:
    """A step as a log has it."""
    run = step.func if isinstance(step, partial) else step
    return getattr(run, "__qualname__", repr(run))


def _result_of(step: _Step[T]) -> T:
    if step.error is not None:
        raise step.error
    return step.result  # type: ignore[return-value]


@contextmanager
def translated_errors() -> Iterator[None]:
    """SQLite's errors as ours; those of a caller who uses it wrongly stay what they are."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except RowDamaged as error:
        raise CatalogDamaged(f"{error}; another peer's rows will take its place") from error
    except sqlite3.OperationalError as error:
        # Those that Python raises by itself, of text that is none, have no code.
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        kind = NoSpace if is_full else StoreError
        raise kind(f"the database failed: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the database failed: {error}; stop this peer and verify its data folder: minidfs check FOLDER"
        ) from error


def meta_value(connection: sqlite3.Connection, key: str) -> Any:
    """A value kept in `meta`, None when it was never set."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def set_meta_value(connection: sqlite3.Connection, key: str, value: Any) -> None:
    """Keep a value in `meta`; part of the caller's transaction."""
    connection.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))
