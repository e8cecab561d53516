"""Verifying a data folder that no peer uses: everything in it against everything else, changing nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from peer.store.catalog import SqliteStore
from peer.store.chunk_files import CHUNKS, RECEIVING
from peer.store.rows import chunk_file_name, count_files, count_shown, select_puts, unreadable_rows
from peer.store.schema import SCHEMA_VERSION
from peer.world.env import Disk, FileMissing, StartError, StoreError
from protocol import catalog
from protocol.codec import NO_LOG, decode_op, encode_op, next_log_hash
from protocol.errors import MalformedMessage
from protocol.ops import last_dot

READ_BYTES = 1024 * 1024
DATABASE_LINES_MAX = 10
"""Of what SQLite finds wrong with its file."""

REPLACE = (
    "keep a copy of the folder, then start the peer with an empty one and --join: it fetches everything from the others"
)
HEALS = "nothing while others have the file: the peer notices when it reads it, and fetches it again"
COUNTS = "start the peer: it counts them anew"
TAKES_OVER = "start the peer: it notices, and takes over another peer's catalog"

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do."""

    what: str
    next_step: str


@dataclass(slots=True)
class Report:
    """What a data folder has, and what is wrong with it."""

    files: int = 0
    held: int = 0
    """Files whose content this folder has, all of it."""
    ops: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    leftovers: int = 0
    """Files that no row names; they are removed behind the next start."""
    findings: list[Finding] = field(default_factory=list)


def check_version(connection: sqlite3.Connection) -> None:
    """Make sure that this release knows the database. Raises StartError."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == 0:
        raise StartError("there is no database of a peer in that folder; name the folder that was given with --data")
    if found > SCHEMA_VERSION:
        raise StartError(f"the database has schema {found} and this release knows {SCHEMA_VERSION}; use the newer one")
    if found < SCHEMA_VERSION:
        raise StartError(f"the database has schema {found}, of an older release; start its peer with this one first")


def bytes_to_check(connection: sqlite3.Connection) -> int:
    """How much content there is to read. Raises StartError for a database of another release."""
    check_version(connection)
    (total,) = connection.execute("SELECT coalesce(sum(size), 0) FROM chunks WHERE NOT condemned").fetchone()
    return int(total)


def check_folder(connection: sqlite3.Connection, disk: Disk, advance: Advance) -> Report:
    """Verify database, log, catalog and content; `advance` is told how many bytes of content were read.

    Raises StartError for a database of another release.
    """
    check_version(connection)
    report = Report()
    report.findings += _check_database(connection)
    if report.findings:
        # Of a file whose pages are wrong nothing further can be said.
        return report
    report.findings += _check_catalog(connection, report)
    report.findings += _check_logs(connection, report)
    report.findings += _check_chunks(connection, disk, report, advance)
    report.findings += _check_held(connection, report)
    report.leftovers = _count_leftovers(connection, disk)
    return report


def _check_database(connection: sqlite3.Connection) -> Iterator[Finding]:
    try:
        lines = [line for (line,) in connection.execute(f"PRAGMA integrity_check({DATABASE_LINES_MAX})")]
        lines += [f"a row of {table} points nowhere" for table, *_ in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        lines = [str(error)]
    for line in lines:
        if line != "ok":
            yield Finding(f"the database is damaged: {line}", REPLACE)


def _check_catalog(connection: sqlite3.Connection, report: Report) -> Iterator[Finding]:
    report.files = count_shown(connection)
    if count_files(connection) != report.files:
        yield Finding(f"the catalog counts {count_files(connection)} files and shows {report.files}", COUNTS)
    puts, holds = unreadable_rows(connection)
    if puts or holds:
        yield Finding(f"{len(puts) + len(holds)} rows of the catalog cannot be read", TAKES_OVER)
        return
    store = SqliteStore(connection)
    if catalog.sum_of_rows(store) != store.state_sum():
        yield Finding("the rows of the catalog do not give its sum: some are damaged or missing", TAKES_OVER)


def _check_logs(connection: sqlite3.Connection, report: Report) -> Iterator[Finding]:
    origins = connection.execute(
        "SELECT origins.id, node_id, epoch, seen, floor, floor_hash FROM origins JOIN nodes ON nodes.id = origins.node"
        " ORDER BY origins.id"
    ).fetchall()
    for row_id, node_id, epoch, seen, floor, floor_hash in origins:
        wrong = _wrong_in_log(connection, row_id, seen, floor, floor_hash if floor else NO_LOG, report)
        if wrong is not None:
            yield Finding(f"the log of {node_id} (epoch {epoch:x}) {wrong}", REPLACE)


def _wrong_in_log(
    connection: sqlite3.Connection, origin: int, seen: int, floor: int, log_hash: bytes | None, report: Report
) -> str | None:
    """What is wrong with one origin's log: it has every op above its floor, and each row the hash of all up to it."""
    expected = floor + 1
    for seq, op, known in connection.execute("SELECT seq, op, hash FROM log WHERE origin = ? ORDER BY seq", (origin,)):
        report.ops += 1
        try:
            found = decode_op(op)
        except MalformedMessage as error:
            return f"has op {seq} that cannot be read: {error}"
        if last_dot(found).seq != seq:
            return f"has another op {seq} than was written"
        if found.dot.seq != expected:
            return f"lacks op {expected}"
        log_hash = None if log_hash is None else next_log_hash(log_hash, encode_op(found))
        if None not in (known, log_hash) and known != log_hash:
            return f"has another op {seq} than was written"
        log_hash = known if log_hash is None else log_hash
        expected = seq + 1
    return None if expected == max(seen, floor) + 1 else f"ends before op {seen}"


def _check_chunks(connection: sqlite3.Connection, disk: Disk, report: Report, advance: Advance) -> Iterator[Finding]:
    rows = connection.execute("SELECT hash, size, serial, content FROM chunks WHERE NOT condemned ORDER BY hash")
    for chunk_hash, size, serial, content in rows:
        report.chunks += 1
        report.chunk_bytes += size
        if serial is None:
            is_good = content is not None and blake3(content).digest() == chunk_hash
            wrong = None if is_good else "has other bytes than its name says"
        else:
            wrong = _wrong_in_file(disk, chunk_hash, serial)
        advance(size)
        if wrong is not None:
            yield Finding(f"chunk {chunk_hash.hex()} {wrong}", HEALS)


def _wrong_in_file(disk: Disk, chunk_hash: bytes, serial: int) -> str | None:
    digest, offset = blake3(), 0
    try:
        file = disk.open(chunk_file_name(chunk_hash, serial))
    except FileMissing:
        return "has a row and no file"
    except StoreError as error:
        return f"cannot be read ({error})"
    try:
        while piece := file.read_at(offset, READ_BYTES):
            digest.update(piece)
            offset += len(piece)
    except StoreError as error:
        return f"cannot be read ({error})"
    finally:
        file.close()
    return None if digest.digest() == chunk_hash else "has other bytes than its name says"


def _check_held(connection: sqlite3.Connection, report: Report) -> Iterator[Finding]:
    known = {chunk_hash for (chunk_hash,) in connection.execute("SELECT hash FROM chunks WHERE NOT condemned")}
    for _, put in select_puts(connection, "WHERE puts.held ORDER BY puts.id"):
        report.held += 1
        lacking = [chunk for chunk in put.manifest.chunks or () if chunk.hash not in known]
        if lacking:
            yield Finding(f"file {put.manifest.file_key} is held, and {len(lacking)} of its chunks have no row", HEALS)


def _count_leftovers(connection: sqlite3.Connection, disk: Disk) -> int:
    rows = connection.execute("SELECT hash, serial FROM chunks WHERE serial IS NOT NULL")
    named = {chunk_file_name(chunk_hash, serial) for chunk_hash, serial in rows}
    folders = [f"{CHUNKS}/{number:02x}" for number in range(256)]
    found = {f"{folder}/{name}" for folder in folders for name, _ in disk.list_files(folder)}
    return len(found - named) + len(disk.list_files(RECEIVING))
