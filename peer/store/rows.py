"""Rows and the values they stand for: reading puts, holds, chunks and the log, on any connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice, repeat, zip_longest
from typing import Any, NamedTuple

import msgpack

from protocol.codec import decode_op, encode_op
from protocol.errors import ProtocolError
from protocol.identity import Dot, NodeId, Origin, Stamp, VersionVector
from protocol.ops import Chunk, Hold, LiveOp, Manifest, Put

PAGE_ROWS = 500
"""Read at a time where there may be many."""


LOG_PAGE_ROWS = 100
"""As many as fit a message: nearly always that is what is asked for."""

LOG_PAGE_BYTES = 64 * 1024
"""Of the log's ops that are read at a time, and one more: that of a large file names thousands of chunks."""


COUNTING = "NOT IN ('left', 'out')"
"""The membership of a node whose copies count."""

FILES = "files"
"""The key in `meta` of how many files are shown."""


def count_files(connection: sqlite3.Connection) -> int:
    """How many files are shown, in no time; see `count_shown`."""
    query = "SELECT value FROM meta WHERE key = ? AND typeof(value) = 'integer'"
    kept: tuple[int] | None = connection.execute(query, (FILES,)).fetchone()
    return count_shown(connection) if kept is None else kept[0]


def count_shown(connection: sqlite3.Connection) -> int:
    """How many files are shown, counted one by one in their index."""
    (counted,) = connection.execute("SELECT count(*) FROM puts WHERE shown").fetchone()
    return int(counted)


def places(values: Sequence[object]) -> str:
    """Of a statement, the places of so many values."""
    return ", ".join("?" * len(values))


class ChunkRow(NamedTuple):
    """Where a chunk is: in the database, or in the file of this serial. Two that are equal are the same bytes."""

    size: int
    serial: int | None
    content: bytes | None


_PUT_COLUMNS = (
    "puts.seq, puts.stamp, puts.file_key, puts.filename, puts.size_bytes, puts.sha256, puts.content_type, "
    "puts.uploaded_at_ms, puts.copies, puts.chunks, puts.registered, puts.id"
)
_PUTS = (
    f"SELECT nodes.node_id, origins.epoch, {_PUT_COLUMNS} FROM puts "
    "JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node "
)
_ORIGIN = "FROM origins WHERE node = (SELECT id FROM nodes WHERE node_id = ?) AND epoch = ?"
_HOLDS = (
    "SELECT hn.node_id, ho.epoch, holds.seq, holds.stamp, nodes.node_id, origins.epoch, puts.seq, holds.recovered "
    "FROM holds JOIN origins ho ON ho.id = holds.origin JOIN nodes hn ON hn.id = ho.node "
    "JOIN puts ON puts.id = holds.put JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node "
)


def pack_chunks(chunks: Sequence[Chunk] | None) -> bytes | None:
    """A manifest's chunks as they stand in `puts.chunks`."""
    if chunks is None:
        return None
    packed = msgpack.packb([field for chunk in chunks for field in chunk])
    return bytes(packed)


FIRST_HASH = "substr(puts.chunks, 4, 32)"
"""The hash of a file's first chunk, in `puts.chunks` of up to seven: behind the heads of its list and of its bytes."""


PREFIX_BYTES = 8
"""Of a hash: few files share them."""

CHUNK_PREFIX = f"substr(chunks, 4, {PREFIX_BYTES})"
"""The first bytes of the hash of a file's first chunk, of a file that is one chunk; see `FIRST_HASH`."""


ONE_CHUNK_BYTES_MAX = 44
"""Of `puts.chunks` of a file that is one chunk: two heads, the hash and a size."""


def add_chunk_uses(connection: sqlite3.Connection, put_row: int, chunks: Sequence[Chunk]) -> None:
    """Have a file of several chunks found by each of them."""
    if len(chunks) > 1:
        # That of a file whose own row was lost may be there yet.
        connection.executemany("REPLACE INTO chunk_uses VALUES (?, ?)", _uses(put_row, chunks))


def remove_chunk_uses(connection: sqlite3.Connection, put_row: int, chunks: Sequence[Chunk]) -> None:
    """A file is gone."""
    if len(chunks) > 1:
        connection.executemany("DELETE FROM chunk_uses WHERE prefix = ? AND put = ?", _uses(put_row, chunks))


def _uses(put_row: int, chunks: Sequence[Chunk]) -> list[tuple[bytes, int]]:
    return [(prefix, put_row) for prefix in dict.fromkeys(chunk.hash[:PREFIX_BYTES] for chunk in chunks)]


def select_held_with(connection: sqlite3.Connection, chunk_hash: bytes) -> Iterator[tuple[int, Put]]:
    """Row ids and puts of the files that this disk has whole and of which a chunk is part."""
    prefix = chunk_hash[:PREFIX_BYTES]
    condition = (
        f"WHERE puts.held AND puts.id IN (SELECT id FROM puts WHERE {CHUNK_PREFIX} = ?1"
        " UNION SELECT put FROM chunk_uses WHERE prefix = ?1)"
    )
    for row_id, put in select_puts(connection, condition, prefix):
        if any(chunk.hash == chunk_hash for chunk in put.manifest.chunks or ()):
            yield row_id, put


def unpack_chunks(packed: bytes | None) -> tuple[Chunk, ...] | None:
    """What `pack_chunks` packed."""
    if packed is None:
        return None
    flat = msgpack.unpackb(packed)
    return tuple(Chunk(flat[i], flat[i + 1]) for i in range(0, len(flat), 2))


class RowDamaged(sqlite3.DatabaseError):
    """A row of the catalog says nothing that an op can say."""


UNREADABLE = (RowDamaged, ValueError, TypeError, LookupError, OverflowError, msgpack.UnpackException)
"""What reading a damaged row, or making an op's bytes of it, may raise."""


def put_of_row(origin: Origin, row: Sequence[Any]) -> Put:
    """The put of an origin in a row of `_PUT_COLUMNS`. Raises RowDamaged."""
    try:
        return _put_of_row(origin, row)
    except UNREADABLE as error:
        raise RowDamaged(f"a file's row cannot be read: {error}") from error


def _put_of_row(origin: Origin, row: Sequence[Any]) -> Put:
    return Put(
        Dot(origin, row[0]),
        Stamp(row[1]),
        Manifest(
            file_key=row[2],
            filename=row[3],
            size_bytes=row[4],
            sha256=row[5],
            content_type=row[6],
            uploaded_at_ms=row[7],
            copies=row[8],
            chunks=unpack_chunks(row[9]),
            registered=bool(row[10]),
        ),
    )


def _put_of_joined_row(row: Sequence[Any]) -> Put:
    return put_of_row(Origin(NodeId(row[0]), row[1]), row[2:])


def select_puts(connection: sqlite3.Connection, condition: str, *values: object) -> Iterator[tuple[int, Put]]:
    """Row ids and live puts that fulfil an SQL condition, which may go on to order and limit them."""
    for row in connection.execute(_PUTS + condition, values):
        yield row[-1], _put_of_joined_row(row)


def select_puts_of(
    connection: sqlite3.Connection, origin_of: Mapping[int, Origin], condition: str, *values: object
) -> Iterator[tuple[int, Put]]:
    """The same, of the table `puts` alone, for one who knows which row stands for which origin: half the work."""
    for row in connection.execute(f"SELECT origin, {_PUT_COLUMNS} FROM puts {condition}", values):
        yield row[-1], put_of_row(origin_of[row[0]], row[1:])


def hold_of_row(row: Sequence[Any]) -> Hold:
    """The hold in a row of `_HOLDS`. SQLite takes whatever it finds in it for what its column is to have."""
    dot = Dot(Origin(NodeId(row[0]), row[1]), row[2])
    return Hold(dot, Stamp(row[3]), Dot(Origin(NodeId(row[4]), row[5]), row[6]), bool(row[7]))


def select_holds(connection: sqlite3.Connection, condition: str, *values: object) -> Iterator[Hold]:
    """The live holds that fulfil an SQL condition on `holds`, and on `puts` and their origins beside it."""
    return map(hold_of_row, connection.execute(_HOLDS + condition, values))


def unreadable_rows(connection: sqlite3.Connection) -> tuple[list[int], list[tuple[int, int]]]:
    """The keys of rows of live puts, and of live holds, that no longer say what an op can say."""
    puts = [row[-1] for row in connection.execute(_PUTS) if not _is_readable(_put_of_joined_row, row)]
    with_origin = _HOLDS.replace("SELECT ", "SELECT holds.origin, ", 1)
    holds = [(row[0], row[3]) for row in connection.execute(with_origin) if not _is_readable(hold_of_row, row[1:])]
    return puts, holds


def _is_readable(op_of_row: Callable[[Sequence[Any]], LiveOp], row: Sequence[Any]) -> bool:
    """Whether a row gives an op that could have come from another peer: those are checked to the last field."""
    try:
        decode_op(encode_op(op_of_row(row)))
    except (ProtocolError, *UNREADABLE):
        return False
    return True


def live_ops(connection: sqlite3.Connection) -> Iterator[LiveOp]:
    """Every live op a connection sees, puts before holds, a page at a time: ops may be removed in between."""
    last_id = 0
    while True:
        page = list(select_puts(connection, "WHERE puts.id > ? ORDER BY puts.id LIMIT ?", last_id, PAGE_ROWS))
        if not page:
            break
        yield from (put for _, put in page)
        last_id = page[-1][0]
    last = (0, 0)
    while True:
        rows = connection.execute(
            _HOLDS.replace("SELECT ", "SELECT holds.origin, ", 1)
            + "WHERE (holds.origin, holds.seq) > (?, ?) ORDER BY holds.origin, holds.seq LIMIT ?",
            (*last, PAGE_ROWS),
        ).fetchall()
        if not rows:
            return
        yield from (hold_of_row(row[1:]) for row in rows)
        last = (rows[-1][0], rows[-1][3])


def raw_log_after(connection: sqlite3.Connection, vv: VersionVector) -> Iterator[bytes]:
    """The encoded ops in the log that `vv` does not cover, in order of arrival, a page at a time."""
    known = {
        row_id: vv.get(Origin(NodeId(node_id), epoch), 0)
        for row_id, node_id, epoch in connection.execute(
            "SELECT origins.id, node_id, epoch FROM origins JOIN nodes ON nodes.id = origins.node ORDER BY origins.id"
        )
    }
    firsts = [
        connection.execute(
            "SELECT arrival FROM log WHERE origin = ? AND seq > ? ORDER BY seq LIMIT 1", (row_id, seq)
        ).fetchone()
        for row_id, seq in known.items()
    ]
    # Within an origin arrival follows seq, so nothing that is lacking arrived before these.
    next_arrival = min((first[0] for first in firsts if first), default=None)
    while next_arrival is not None:
        rows = _log_page(connection, next_arrival)
        yield from (op for _, origin, seq, op in rows if seq > known.get(origin, 0))
        next_arrival = rows[-1][0] + 1 if rows else None


def _log_page(connection: sqlite3.Connection, first: int) -> list[tuple[int, int, int, bytes]]:
    """Rows of the log from an arrival on: as many as there may be in memory at a time."""
    page: list[tuple[int, int, int, bytes]] = []
    size = 0
    query = "SELECT arrival, origin, seq, op FROM log WHERE arrival >= ? ORDER BY arrival LIMIT ?"
    with closing(connection.execute(query, (first, LOG_PAGE_ROWS))) as found:
        for row in found:
            page.append(row)
            size += len(row[3])
            if size > LOG_PAGE_BYTES:
                break
    return page


def log_hash_at(connection: sqlite3.Connection, origin_row: int, seq: int) -> bytes | None:
    """The running hash in an origin's log at a seq above its floor; None when it is not known."""
    # The op that has this dot ends there, or is a run that ends behind it.
    query = "SELECT hash FROM log WHERE origin = ? AND seq >= ? ORDER BY seq LIMIT 1"
    found = connection.execute(query, (origin_row, seq)).fetchone()
    return found[0] if found else None


def find_log_hash(connection: sqlite3.Connection, dot: Dot) -> bytes | None:
    """The running hash of an origin's log at a dot; None when it is not known."""
    found = connection.execute(f"SELECT id, floor, floor_hash {_ORIGIN}", dot.origin).fetchone()
    if found is None:
        return None
    origin, floor, floor_hash = found
    if dot.seq <= floor:
        return floor_hash if dot.seq == floor else None
    return log_hash_at(connection, origin, dot.seq)


def find_log_hashes(connection: sqlite3.Connection, last: Dot, limit: int) -> tuple[int, list[bytes]]:
    """The running hashes of an origin's log up to a dot, or to its end: at most the last so many that are known.

    With the seq of the first one, or of the op behind them when there are none.
    """
    found = connection.execute(f"SELECT id, floor, floor_hash {_ORIGIN}", last.origin).fetchone()
    if found is None:
        return 1, []
    origin, floor, floor_hash = found
    rows = connection.execute(
        "SELECT seq, hash FROM log WHERE origin = ? AND seq <= ? ORDER BY seq DESC LIMIT ?", (origin, last.seq, limit)
    ).fetchall()
    if len(rows) < limit:
        rows.append((floor, floor_hash if floor else None))
    log_hashes = list(islice(_hashes_at_each(rows), limit))
    log_hashes.reverse()
    return rows[0][0] + 1 - len(log_hashes), log_hashes


def _hashes_at_each(rows: Sequence[tuple[int, bytes | None]]) -> Iterator[bytes]:
    """The running hashes at each seq, from those at the ends of ops, last first; up to one that is not known."""
    for (seq, log_hash), (before, _) in zip_longest(rows, rows[1:], fillvalue=(None, None)):
        if seq is None or log_hash is None:
            return
        yield from repeat(log_hash, 1 if before is None else seq - before)


def version_vector_of(connection: sqlite3.Connection) -> VersionVector:
    """The version vector a connection sees."""
    return {
        Origin(NodeId(node_id), epoch): seen
        for node_id, epoch, seen in connection.execute(
            "SELECT node_id, epoch, seen FROM origins JOIN nodes ON nodes.id = origins.node WHERE seen > 0"
            " ORDER BY origins.id"
        )
    }


def chunk_row(connection: sqlite3.Connection, chunk_hash: bytes) -> ChunkRow | None:
    """Where a chunk is, as a connection sees it; None when there is none, or one that was condemned."""
    found = connection.execute(
        "SELECT size, serial, content FROM chunks WHERE hash = ? AND NOT condemned", (chunk_hash,)
    ).fetchone()
    return ChunkRow(*found) if found else None


def chunk_file_name(chunk_hash: bytes, serial: int) -> str:
    """The file of a chunk, relative to the data folder."""
    return f"chunks/{chunk_hash[:1].hex()}/{chunk_hash.hex()}.{serial}"
