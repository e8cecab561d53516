"""Looking at a simulated disk from outside: what its rows and its files say, whoever runs on it or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

import msgpack
from blake3 import blake3

from sim.disk import Platter

Origin = tuple[str, int]

RUN_KIND = 5
"""What a run of holds begins with, behind the head of its list."""

_ORIGINS = "JOIN origins ON origins.id = {}.origin JOIN nodes ON nodes.id = origins.node"


def databases_on(platter: Platter) -> Iterator[sqlite3.Connection]:
    """The databases that have a peer's tables: none, on a disk no peer has started on."""
    for database in platter.databases.values():
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'given_up'").fetchone() is not None:
            yield database


def chunks_on(platter: Platter) -> Iterator[tuple[bytes, bytes]]:
    """Hash and bytes of every chunk that rows name; no bytes where the file is gone."""
    for database in databases_on(platter):
        rows = database.execute("SELECT hash, serial, content FROM chunks WHERE NOT condemned ORDER BY hash")
        for chunk, serial, content in rows.fetchall():
            file = platter.files.get(f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}")
            yield chunk, content or (bytes(file.content) if file is not None else b"")


def good_chunks_on(platter: Platter) -> dict[bytes, None]:
    """The chunks whose bytes give their hash."""
    return {chunk: None for chunk, content in chunks_on(platter) if blake3(content).digest() == chunk}


def puts_on(platter: Platter, file_key: str | None = None) -> dict[tuple[str, int, int], int]:
    """The row id of each live put, or of those of one file, by its dot."""
    query = f"SELECT node_id, epoch, puts.seq, puts.id FROM puts {_ORIGINS.format('puts')}"
    query += " WHERE file_key = ?" if file_key is not None else ""
    return {
        (node_id, epoch, seq): row_id
        for database in databases_on(platter)
        for node_id, epoch, seq, row_id in database.execute(query, (file_key,) if file_key is not None else ())
    }


def rivals_of(via: Platter, others: Iterable[Platter], file_key: str, sha256: str) -> set[str]:
    """The checksums of versions of a file that a peer had not heard of when it wrote the one of this checksum, and that
    have a later stamp all the same, for clocks are off: they are shown, and not what was acknowledged last."""
    query = (
        f"SELECT node_id, epoch, puts.seq, stamp, hex(sha256) FROM puts {_ORIGINS.format('puts')} WHERE file_key = ?"
    )

    def versions_on(platter: Platter) -> dict[tuple[str, int, int], tuple[int, str]]:
        rows = (row for database in databases_on(platter) for row in database.execute(query, (file_key,)))
        return {(node_id, epoch, seq): (stamp, found.lower()) for node_id, epoch, seq, stamp, found in rows}

    mine, vv = versions_on(via), version_vector_on(via)
    stamp = max((stamp for stamp, found in mine.values() if found == sha256), default=None)
    if stamp is None:
        return set()
    theirs = {dot: version for platter in others for dot, version in versions_on(platter).items()}
    unheard = {dot: version for dot, version in theirs.items() if vv.get(dot[:2], 0) < dot[2]}
    return {found for later, found in {**unheard, **mine}.values() if later > stamp}


def version_vector_on(platter: Platter) -> dict[Origin, int]:
    """How far each origin's log was applied."""
    return _by_origin(platter, "seen")


def floors_on(platter: Platter) -> dict[Origin, int]:
    """Up to where each origin's log is no longer there."""
    return _by_origin(platter, "floor")


def _by_origin(platter: Platter, column: str) -> dict[Origin, int]:
    query = f"SELECT node_id, epoch, {column} FROM origins JOIN nodes ON nodes.id = origins.node"
    return {
        (node_id, epoch): seq for database in databases_on(platter) for node_id, epoch, seq in database.execute(query)
    }


def logs_on(platter: Platter) -> dict[tuple[str, int, int], bytes]:
    """Every logged op, by each dot it has."""
    query = f"SELECT node_id, epoch, log.seq, op FROM log {_ORIGINS.format('log')}"
    return {
        (node_id, epoch, seq): op
        for database in databases_on(platter)
        for node_id, epoch, last, op in database.execute(query)
        for seq in range(last + 1 - dots_of(op), last + 1)
    }


def dots_of(raw: bytes) -> int:
    """How many dots a logged op has. Said of its bytes alone: what one looks with shares no code with what one sees."""
    kind, puts = msgpack.unpackb(raw)[0:6:5]
    return len(puts) if kind == RUN_KIND else 1


def gaps_on(platter: Platter) -> list[Origin]:
    """The origins whose log does not have each dot from its floor to what was applied."""
    within = "log.origin = origins.id AND log.seq > floor AND log.seq <= seen"
    query = (
        f"SELECT origins.id, node_id, epoch, seen - floor - (SELECT count(*) FROM log WHERE {within})"
        " FROM origins JOIN nodes ON nodes.id = origins.node"
    )
    # Of runs, by the second byte of what is a list: each is one row and has more dots than that.
    runs = f"SELECT origins.id, op FROM log JOIN origins ON {within} WHERE hex(substr(op, 2, 1)) = '{RUN_KIND:02X}'"
    found: list[Origin] = []
    for database in databases_on(platter):
        more: dict[int, int] = {}
        for origin, op in database.execute(runs):
            more[origin] = more.get(origin, 0) + dots_of(op) - 1
        rows = database.execute(query)
        found += [(node_id, epoch) for origin, node_id, epoch, missing in rows if missing != more.get(origin, 0)]
    return found


def holders_on(platter: Platter) -> dict[tuple[str, int, int], list[str]]:
    """Who declared to hold each live put, by its dot, as a disk has it."""
    query = (
        "SELECT writers.node_id, origins.epoch, puts.seq, holders.node_id FROM holds JOIN puts ON puts.id = holds.put"
        " JOIN origins ON origins.id = puts.origin JOIN nodes writers ON writers.id = origins.node"
        " JOIN origins theirs ON theirs.id = holds.origin JOIN nodes holders ON holders.id = theirs.node"
        " ORDER BY 1, 2, 3, 4"
    )
    found: dict[tuple[str, int, int], list[str]] = {}
    for database in databases_on(platter):
        for node_id, epoch, seq, holder in database.execute(query):
            found.setdefault((node_id, epoch, seq), []).append(holder)
    return found


def chunks_of_puts_on(platter: Platter) -> dict[tuple[str, int, int], tuple[str, list[bytes]]]:
    """The key of each live put and its chunks, wherever they are, by its dot; without those that have no content."""
    from peer.store.rows import unpack_chunks

    query = f"SELECT node_id, epoch, puts.seq, file_key, chunks FROM puts {_ORIGINS.format('puts')}"
    query += " WHERE chunks IS NOT NULL"
    return {
        (node_id, epoch, seq): (key, [chunk.hash for chunk in unpack_chunks(packed) or ()])
        for database in databases_on(platter)
        for node_id, epoch, seq, key, packed in database.execute(query)
    }


def lacking_on(platter: Platter) -> dict[tuple[str, int, int], int]:
    """How many chunks of each live put a disk does not have, good or bad, by the put's dot."""
    here = {chunk for chunk, content in chunks_on(platter) if content or chunk == blake3(b"").digest()}
    return {dot: sum(chunk not in here for chunk in chunks) for dot, (_, chunks) in chunks_of_puts_on(platter).items()}


def holds(platter: Platter, file_key: str) -> bool:
    """Whether a disk has all chunks of some version of a file."""
    lacking = lacking_on(platter)
    return any(lacking.get(dot, 0) == 0 for dot in puts_on(platter, file_key))


def unnamed_chunks_on(platter: Platter) -> list[bytes]:
    """The hash of each chunk file that no row names."""
    named = {
        f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}"
        for database in databases_on(platter)
        for chunk, serial in database.execute("SELECT hash, serial FROM chunks WHERE serial IS NOT NULL")
    }
    files = [path for path in platter.files if path.startswith("chunks/") and path not in named]
    return [bytes.fromhex(path.rpartition("/")[2].partition(".")[0]) for path in files]
