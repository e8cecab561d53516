"""Reading queries about files, their holders and missing copies. Each gives plain values, on any connection."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from peer.store.rows import (
    COUNTING,
    FIRST_HASH,
    ChunkRow,
    count_files,
    places,
    select_puts,
    unpack_chunks,
    version_vector_of,
)
from protocol.identity import Dot, NodeId, VersionVector
from protocol.messages import ItemStatus
from protocol.ops import Put
from protocol.store import show_order


class PageEnd(NamedTuple):
    """The last file of a page: the next one begins behind it, whatever has come and gone in between."""

    uploaded_at_ms: int
    file_key: str


class ListedFile(NamedTuple):
    """What a list says of a file."""

    file_key: str
    filename: str
    size_bytes: int
    sha256: bytes
    content_type: str
    uploaded_at_ms: int


@dataclass(frozen=True, slots=True)
class FilesPage:
    """Some files, newest first, with their holders; how many there are in all; where it ends if there are more."""

    files: tuple[tuple[ListedFile, tuple[NodeId, ...]], ...]
    total: int
    end: PageEnd | None


@dataclass(frozen=True, slots=True)
class QueueItem:
    """An item of the replication queue, as the catalog has it; times in milliseconds since 1970."""

    item_id: int
    file_key: str
    target: NodeId
    source: NodeId
    """A holder; while there is none, the peer that made the file known."""
    status: ItemStatus
    created_at_ms: int
    last_attempt_ms: int | None
    next_attempt_ms: int | None = None
    retry_count: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """How many files there are, how many of them a peer holds, and how many copies each node lacks."""

    files: int
    copies: int
    missing: dict[NodeId, int]


# --- puts and their holders ---


def find_put(connection: sqlite3.Connection, dot: Dot) -> tuple[int, Put] | None:
    """Row id and put of a live dot."""
    condition = "WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ?"
    return next(select_puts(connection, condition, dot.seq, dot.origin.epoch, dot.origin.node_id), None)


def find_shown(connection: sqlite3.Connection, file_key: str) -> Put | None:
    """The version of a file that is listed and served."""
    found = next(select_puts(connection, "WHERE puts.file_key = ? AND puts.shown", file_key), None)
    return found[1] if found else None


class SmallFile(NamedTuple):
    """The shown version of a file this disk has, and, of one that is small, its content as it lies in the database."""

    filename: str
    content_type: str
    size_bytes: int
    sha256: bytes
    uploaded_at_ms: int
    chunk_hash: bytes
    content: bytes


def find_small(connection: sqlite3.Connection, file_key: str) -> SmallFile | None:
    """A shown file that is one chunk in the database here; its content is not verified. One look-up by two keys."""
    found = connection.execute(
        "SELECT filename, content_type, size_bytes, sha256, uploaded_at_ms, chunks, content FROM puts"
        f" JOIN chunks ON chunks.hash = {FIRST_HASH} AND content IS NOT NULL AND NOT condemned"
        " WHERE file_key = ? AND shown AND held",
        (file_key,),
    ).fetchone()
    chunks = unpack_chunks(found[5]) if found else None
    if found is None or chunks is None or len(chunks) != 1:
        return None
    return SmallFile._make((*found[:5], chunks[0].hash, found[6]))


def find_versions(connection: sqlite3.Connection, file_key: str) -> list[Put]:
    """All live puts of a file, the one that is listed and served first."""
    found = (put for _, put in select_puts(connection, "WHERE puts.file_key = ?", file_key))
    return sorted(found, key=show_order, reverse=True)


def holders_of(connection: sqlite3.Connection, put: Dot) -> tuple[NodeId, ...]:
    """The peers that hold a put, by node id."""
    rows = connection.execute(
        "SELECT DISTINCT holder.node_id FROM puts"
        " JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node"
        " JOIN holds ON holds.put = puts.id"
        " JOIN origins ho ON ho.id = holds.origin JOIN nodes holder ON holder.id = ho.node"
        f" WHERE puts.seq = ? AND origins.epoch = ? AND nodes.node_id = ? AND holder.membership {COUNTING}"
        " ORDER BY holder.node_id",
        (put.seq, put.origin.epoch, put.origin.node_id),
    )
    return tuple(NodeId(node_id) for (node_id,) in rows)


def _holders_of_row(connection: sqlite3.Connection, put_row: int) -> tuple[NodeId, ...]:
    rows = connection.execute(
        "SELECT DISTINCT nodes.node_id FROM holds JOIN origins ON origins.id = holds.origin"
        f" JOIN nodes ON nodes.id = origins.node WHERE holds.put = ? AND membership {COUNTING} ORDER BY nodes.node_id",
        (put_row,),
    )
    return tuple(NodeId(node_id) for (node_id,) in rows)


def _holders_of_rows(connection: sqlite3.Connection, put_rows: Sequence[int]) -> dict[int, tuple[NodeId, ...]]:
    """The holders of many puts, by row id, each by node id: two queries however many there are."""
    holds = connection.execute(f"SELECT put, origin FROM holds WHERE put IN ({places(put_rows)})", put_rows).fetchall()
    # After the holds, for an origin may be new, and none ever goes.
    nodes = f"SELECT origins.id, node_id, membership {COUNTING} FROM origins JOIN nodes ON nodes.id = origins.node"
    node_of = {origin: node if counts else None for origin, node, counts in connection.execute(nodes)}
    found: dict[int, set[NodeId]] = {row: set() for row in put_rows}
    for row, origin in holds:
        if (node := node_of[origin]) is not None:
            found[row].add(node)
    return {row: tuple(sorted(nodes)) for row, nodes in found.items()}


def held_alone_by(connection: sqlite3.Connection, node_id: NodeId) -> int:
    """How many versions of files nobody but this peer holds."""
    query = (
        "SELECT count(*) FROM puts WHERE chunks IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM holds JOIN origins o ON o.id = holds.origin JOIN nodes n ON n.id = o.node"
        "  WHERE holds.put = puts.id AND n.node_id = ?)"
        " AND NOT EXISTS (SELECT 1 FROM holds JOIN origins o ON o.id = holds.origin JOIN nodes n ON n.id = o.node"
        f"  WHERE holds.put = puts.id AND n.node_id <> ? AND n.membership {COUNTING})"
    )
    return int(connection.execute(query, (node_id, node_id)).fetchone()[0])


def lacks_copies_of_held(connection: sqlite3.Connection) -> bool:
    """Whether a peer lacks a file whose content this disk has."""
    # Target by target, in just this order (SQLite keeps that of CROSS JOIN): the index leads past what is completed.
    query = (
        "SELECT EXISTS (SELECT 1 FROM nodes CROSS JOIN queue ON queue.target = nodes.id"
        " CROSS JOIN puts ON puts.id = queue.put WHERE queue.status = 'PENDING' AND puts.held)"
    )
    return bool(connection.execute(query).fetchone()[0])


def undeclared(connection: sqlite3.Connection, me: NodeId) -> list[Put]:
    """The puts whose content this disk has while no live hold of `me` says so."""
    condition = (
        "WHERE puts.held AND NOT EXISTS (SELECT 1 FROM holds JOIN origins ho ON ho.id = holds.origin"
        " JOIN nodes hn ON hn.id = ho.node WHERE holds.put = puts.id AND hn.node_id = ?) ORDER BY puts.id"
    )
    return [put for _, put in select_puts(connection, condition, me)]


def chunk_files_between(connection: sqlite3.Connection, first: bytes, last: bytes) -> dict[bytes, ChunkRow]:
    """The chunks of these hashes that have files, or were condemned and have none, by hash."""
    rows = connection.execute(
        "SELECT hash, size, serial FROM chunks WHERE content IS NULL AND hash BETWEEN ? AND ? ORDER BY hash",
        (first, last),
    )
    return {chunk_hash: ChunkRow(size, serial, None) for chunk_hash, size, serial in rows}


# --- lists ---


def files_page(connection: sqlite3.Connection, limit: int, after: PageEnd | None, name_prefix: str) -> FilesPage:
    """The shown files whose names begin so, newest first, from behind `after`."""
    condition, values = "puts.shown", []
    if after is not None:
        condition += " AND (puts.uploaded_at_ms, puts.file_key) < (?, ?)"
        values += [after.uploaded_at_ms, after.file_key]
    name_condition, name_values = _has_prefix(name_prefix)
    total = count_files(connection)
    if name_prefix:
        counted = connection.execute(f"SELECT count(*) FROM puts WHERE shown{name_condition}", name_values)
        (total,) = counted.fetchone()
    # No joins and no chunks: of a list of a thousand files these were most of the work.
    found = connection.execute(
        "SELECT id, file_key, filename, size_bytes, sha256, content_type, uploaded_at_ms FROM puts"
        f" WHERE {condition}{name_condition} ORDER BY puts.uploaded_at_ms DESC, puts.file_key DESC LIMIT ?",
        (*values, *name_values, limit + 1),
    ).fetchall()
    page = found[:limit]
    holders = _holders_of_rows(connection, [row[0] for row in page])
    files = tuple((ListedFile._make(row[1:]), holders[row[0]]) for row in page)
    last = files[-1][0] if len(found) > limit else None
    return FilesPage(files, total, PageEnd(last.uploaded_at_ms, last.file_key) if last else None)


def _has_prefix(prefix: str) -> tuple[str, list[str]]:
    """An SQL condition for names that begin so; a range, which an index answers."""
    if not prefix:
        return "", []
    return " AND puts.filename >= ? AND puts.filename < ?", [prefix, prefix + "\U0010ffff"]


def queue_items(
    connection: sqlite3.Connection, limit: int, node_id: NodeId | None, status: ItemStatus | None
) -> list[QueueItem]:
    """The replication queue, of the newest files first; of one target or status if given."""
    rows = connection.execute(
        "SELECT queue.id, puts.file_key, target.node_id, queue.status, puts.uploaded_at_ms, queue.completed_at_ms,"
        " queue.put, maker.node_id FROM queue JOIN puts ON puts.id = queue.put"
        " JOIN nodes target ON target.id = queue.target"
        " JOIN origins ON origins.id = puts.origin JOIN nodes maker ON maker.id = origins.node"
        " WHERE (?1 IS NULL OR target.node_id = ?1) AND (?2 IS NULL OR queue.status = ?2)"
        " ORDER BY puts.uploaded_at_ms DESC, queue.id LIMIT ?3",
        (node_id, status.value if status else None, limit),
    ).fetchall()
    return [_queue_item(connection, *row) for row in rows]


def _queue_item(
    connection: sqlite3.Connection,
    item_id: int,
    file_key: str,
    target: NodeId,
    status: str,
    uploaded_at_ms: int,
    completed_at_ms: int | None,
    put_row: int,
    maker: NodeId,
) -> QueueItem:
    source = next((holder for holder in _holders_of_row(connection, put_row) if holder != target), maker)
    return QueueItem(item_id, file_key, target, source, ItemStatus(status), uploaded_at_ms, completed_at_ms)


class Filling(NamedTuple):
    """How far a target is with what it lacks."""

    target: NodeId
    missing: int
    missing_bytes: int
    """Exact up to SIZES_READ_MAX files, beyond them as if the others were as large as those on average."""
    copies_per_s: float
    """That came back lately."""

    @property
    def seconds_left(self) -> int | None:
        """Until nothing is missing, if it goes on like this; None when nothing has come back lately."""
        return math.ceil(self.missing / self.copies_per_s) if self.copies_per_s else None


SIZES_READ_MAX = 10_000
LATELY_MS = 60_000


def filling(connection: sqlite3.Connection, now_ms: int) -> list[Filling]:
    """The targets that lack something, by node id; answered from indexes alone."""
    since = now_ms - LATELY_MS
    came = connection.execute(
        "SELECT target, count(*), min(completed_at_ms) FROM queue WHERE completed_at_ms > ? GROUP BY target", (since,)
    )
    # Clocks of peers differ, and of the first second nothing can be said.
    rates = {node: 1000 * count / max(1000, now_ms - first) for node, count, first in came}
    missing = connection.execute(
        "SELECT id, node_id, (SELECT count(*) FROM queue WHERE target = nodes.id AND status = 'PENDING') FROM nodes"
        " ORDER BY node_id"
    )
    return [
        Filling(NodeId(name), count, _missing_bytes(connection, node, count), rates.get(node, 0.0))
        for node, name, count in missing
        if count
    ]


def _missing_bytes(connection: sqlite3.Connection, node: int, missing: int) -> int:
    sizes, read = connection.execute(
        "SELECT sum(size_bytes), count(*) FROM (SELECT puts.size_bytes FROM queue JOIN puts ON puts.id = queue.put"
        " WHERE queue.target = ? AND queue.status = 'PENDING' LIMIT ?)",
        (node, SIZES_READ_MAX),
    ).fetchone()
    return int(sizes) * missing // int(read)


# --- what is missing ---


def lacks_something(connection: sqlite3.Connection, me: NodeId) -> bool:
    """Whether a peer is a target of a put it does not hold."""
    query = (
        "SELECT EXISTS (SELECT 1 FROM queue JOIN nodes ON nodes.id = queue.target"
        " WHERE nodes.node_id = ? AND queue.status = 'PENDING')"
    )
    return bool(connection.execute(query, (me,)).fetchone()[0])


class Deficit(NamedTuple):
    """A file a peer lacks: its item in the queue, its row, and how many copies there are on the peers that are up."""

    item_id: int
    put_row: int
    copies: int


DEFICITS_MAX = 500
"""Looked at in one go."""


def deficits_behind(
    connection: sqlite3.Connection, me: NodeId, live: Sequence[NodeId], after: int | None
) -> list[Deficit]:
    """What a peer lacks, behind an item or from the first one on, in the order of items; DEFICITS_MAX at most."""
    found = connection.execute(
        "SELECT id, put FROM queue WHERE target = (SELECT id FROM nodes WHERE node_id = ?) AND status = 'PENDING'"
        " AND id > ? ORDER BY id LIMIT ?",
        (me, -1 if after is None else after, DEFICITS_MAX),
    ).fetchall()
    holders = _holders_of_rows(connection, [row for _, row in found])
    return [Deficit(item, row, len(set(live).intersection(holders[row]))) for item, row in found]


def puts_of_rows(connection: sqlite3.Connection, rows: Sequence[int]) -> list[Put]:
    """The live puts in these rows, the oldest first."""
    return [put for _, put in select_puts(connection, f"WHERE puts.id IN ({places(rows)}) ORDER BY puts.id", *rows)]


def is_lacking(connection: sqlite3.Connection, item: int) -> bool:
    """Whether an item of the queue is one of a copy that is missing."""
    query = "SELECT 1 FROM queue WHERE id = ? AND status = 'PENDING'"
    return connection.execute(query, (item,)).fetchone() is not None


def vv_and_sum(connection: sqlite3.Connection) -> tuple[VersionVector, int]:
    """Version vector and sum of the live state, as a connection sees them."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'state_sum'").fetchone()
    return version_vector_of(connection), int(found[0], 16) if found else 0


def totals(connection: sqlite3.Connection, me: NodeId) -> Totals:
    """See Totals; answered from indexes alone."""
    (copies,) = connection.execute(
        "SELECT count(*) FROM holds WHERE origin IN"
        " (SELECT origins.id FROM origins JOIN nodes ON nodes.id = origins.node WHERE nodes.node_id = ?)",
        (me,),
    ).fetchone()
    missing = connection.execute(
        "SELECT nodes.node_id, (SELECT count(*) FROM queue WHERE target = nodes.id AND status = 'PENDING')"
        " FROM nodes ORDER BY nodes.node_id"
    )
    return Totals(count_files(connection), copies, {NodeId(node_id): count for node_id, count in missing})
