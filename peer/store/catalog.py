"""A peer's log and catalog in SQLite: the `protocol.store.Store` of production.

Everything here runs on the writer connection, inside its transaction. Version vector, floors and sum are kept in
memory too and written when the transaction is about to commit (`flush`); after a rollback they are read again
(`reload`). What follows from the live ops is kept up to date as they change: which version is shown, which targets
lack it, and which chunks on this disk are still needed.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from peer.store.incoming import Incoming
from peer.store.rows import (
    FILES,
    PAGE_ROWS,
    ChunkRow,
    add_chunk_uses,
    chunk_file_name,
    chunk_row,
    count_files,
    count_shown,
    live_ops,
    log_hash_at,
    pack_chunks,
    places,
    raw_log_after,
    remove_chunk_uses,
    select_held_with,
    select_holds,
    select_puts,
    select_puts_of,
    unreadable_rows,
)
from peer.store.tail import LogRow, LogTail
from protocol.codec import NO_LOG, OpDots, decode_op, encode_op, next_log_hash
from protocol.identity import Dot, NodeId, Origin, Stamp, VersionVector, ms_of_stamp
from protocol.ops import Chunk, Hold, LiveOp, Op, Put, item_id, last_dot, needs_of
from protocol.placement import partition_of
from protocol.store import show_order

COMPLETED_SHOWN_MS = 24 * 3600 * 1000

RECENT_PUTS_MAX = 4096
"""Of those added last, remembered with their rows: nearly all that is asked for is one of them."""
RECENT_CHUNKS_MAX = 4
"""Puts of more are not: a large file names thousands, and its look-up is not what it costs."""

Targets = Callable[[int, int], Sequence[NodeId]]
"""Of a partition and a number of copies, the peers that should hold its files."""


def no_targets(partition: int, copies: int) -> Sequence[NodeId]:
    """The targets in a world without members: none."""
    return ()


@dataclass(slots=True)
class _OriginRow:
    id: int
    seen: int
    floor: int
    floor_hash: bytes | None
    tail: tuple[int, bytes | None] | None = None
    """Seq and running hash of what was appended last, which is what is asked for next."""


class SqliteStore:
    """See `protocol.store.Store` for what each of its methods promises."""

    def __init__(self, connection: sqlite3.Connection, targets: Targets = no_targets) -> None:
        self.connection = connection
        self.targets = targets
        self._incoming = Incoming(connection)
        self.unused_files: list[str] = []
        """Chunk files whose rows this transaction removed; they may go once it is committed."""
        self._tail = LogTail()
        self._recent: OrderedDict[Dot, tuple[int, Put]] = OrderedDict()
        self._deficits: dict[int, dict[int, int]] = {}
        """Of puts added in this transaction, by row: the targets that lack them, by item. Some get it in here too."""
        self.reload()

    # --- what is kept in memory too ---

    def reload(self) -> None:
        """Forget what the transaction changed in memory: it was rolled back."""
        execute = self.connection.execute
        self._nodes: dict[NodeId, int] = {
            NodeId(name): row_id for row_id, name in execute("SELECT id, node_id FROM nodes ORDER BY id")
        }
        names = {row_id: name for name, row_id in self._nodes.items()}
        self._origins = {
            Origin(names[node], epoch): _OriginRow(row_id, seen, floor, floor_hash if floor else NO_LOG)
            for row_id, node, epoch, seen, floor, floor_hash in execute(
                "SELECT id, node, epoch, seen, floor, floor_hash FROM origins ORDER BY id"
            )
        }
        self._origin_of = {row.id: origin for origin, row in self._origins.items()}
        self._recent.clear()
        self._deficits.clear()
        self._appended: list[LogRow] = []
        self._is_cut = False
        self._has_given_up = self._look_for_given_up()
        self._changed: dict[Origin, None] = {}
        found = execute("SELECT value FROM meta WHERE key = 'state_sum'").fetchone()
        self._sum = self._stored_sum = int(found[0], 16) if found else 0
        self._files = self._stored_files = count_files(self.connection)
        self.unused_files.clear()

    def flush(self) -> None:
        """Write what is so far only in memory; called before every commit."""
        for origin in self._changed:
            row = self._origins[origin]
            self.connection.execute(
                "UPDATE origins SET seen = ?, floor = ?, floor_hash = ? WHERE id = ?",
                (row.seen, row.floor, row.floor_hash, row.id),
            )
        self._changed.clear()
        for put_row, items in self._deficits.items():
            self._write_deficits((item, put_row, target) for item, target in items.items())
        self._deficits.clear()
        if self._sum != self._stored_sum:
            self.connection.execute("REPLACE INTO meta VALUES ('state_sum', ?)", (f"{self._sum:032x}",))
            self._stored_sum = self._sum
        if self._files != self._stored_files:
            self.connection.execute("REPLACE INTO meta VALUES (?, ?)", (FILES, self._files))
            self._stored_files = self._files

    def node_row(self, node_id: NodeId) -> int:
        """The row id of a node, which is made when there is none: nothing may be refused for its want."""
        found = self._nodes.get(node_id)
        if found is None:
            cursor = self.connection.execute("INSERT INTO nodes (node_id) VALUES (?)", (node_id,))
            found = self._nodes[node_id] = _row_id(cursor)
        return found

    def _origin_row(self, origin: Origin) -> _OriginRow:
        found = self._origins.get(origin)
        if found is None:
            cursor = self.connection.execute(
                "INSERT INTO origins (node, epoch, seen, floor) VALUES (?, ?, 0, 0)",
                (self.node_row(origin.node_id), origin.epoch),
            )
            found = self._origins[origin] = _OriginRow(_row_id(cursor), 0, 0, NO_LOG)
            self._origin_of[found.id] = origin
        return found

    # --- log ---

    def version_vector(self) -> VersionVector:
        return {origin: row.seen for origin, row in self._origins.items() if row.seen}

    def seen(self, origin: Origin) -> int:
        row = self._origins.get(origin)
        return row.seen if row else 0

    def advance(self, origin: Origin, seq: int) -> None:
        self._origin_row(origin).seen = seq
        self._changed[origin] = None

    def floors(self) -> VersionVector:
        return {origin: row.floor for origin, row in self._origins.items() if row.floor}

    def raise_floor(self, origin: Origin, seq: int, log_hash: bytes | None) -> None:
        row = self._origin_row(origin)
        row.floor, row.floor_hash = seq, log_hash
        self._cut_tail()
        self._changed[origin] = None
        self.connection.execute("DELETE FROM log WHERE origin = ? AND seq <= ?", (row.id, seq))

    def append(self, op: Op) -> None:
        (origin, first), last = op.dot, last_dot(op).seq
        row, raw = self._origin_row(origin), encode_op(op)
        before = self.log_hash(Dot(origin, first - 1))
        log_hash = None if before is None else next_log_hash(before, raw)
        self.connection.execute(
            "INSERT INTO log (origin, seq, op, hash) VALUES (?, ?, ?, ?)", (row.id, last, raw, log_hash)
        )
        row.tail = last, log_hash
        self._appended.append(LogRow(OpDots(origin, first, last, needs_of(op)), raw, log_hash))

    def log_hash(self, dot: Dot) -> bytes | None:
        origin, seq = dot
        row = self._origins.get(origin) or _OriginRow(-1, 0, 0, NO_LOG)
        if seq <= row.floor:
            return row.floor_hash if seq == row.floor else None
        if row.tail is not None and row.tail[0] == seq:
            return row.tail[1]
        return log_hash_at(self.connection, row.id, seq)

    def end_of_log(self, origin: Origin, up_to: int) -> int:
        row = self._origins.get(origin)
        if row is None:
            return 0
        query = "SELECT max(seq) FROM log WHERE origin = ? AND seq <= ?"
        (found,) = self.connection.execute(query, (row.id, up_to)).fetchone()
        return row.floor if found is None else int(found)

    def committed_tail(self) -> LogTail:
        """The end of the log, now that the transaction is committed."""
        self._tail = self._tail_before().extended(self._appended)
        self._appended, self._is_cut = [], False
        return self._tail

    def _cut_tail(self) -> None:
        """Rows that are in memory have gone from the log."""
        self._appended.clear()
        self._is_cut = True

    def _tail_before(self) -> LogTail:
        return LogTail() if self._is_cut else self._tail

    def log_after(self, vv: VersionVector) -> Iterator[Op]:
        return map(decode_op, self.raw_log_after(vv))

    def raw_log_after(self, vv: VersionVector) -> Iterator[bytes]:
        rows = self._tail_before().after(vv, self.version_vector(), self._appended)
        return raw_log_after(self.connection, vv) if rows is None else (row.raw for row in rows)

    def rewind(self, origin: Origin, seq: int) -> list[Op]:
        row = self._origin_row(origin)
        taken = self.connection.execute(
            "SELECT op FROM log WHERE origin = ? AND seq > ? ORDER BY seq", (row.id, seq)
        ).fetchall()
        self.connection.execute("DELETE FROM log WHERE origin = ? AND seq > ?", (row.id, seq))
        row.tail = None
        self._cut_tail()
        self.advance(origin, seq)
        return [decode_op(raw) for (raw,) in taken]

    def give_up(self, marks: Iterable[bytes]) -> None:
        self.connection.executemany("REPLACE INTO given_up VALUES (?)", [(mark,) for mark in marks])
        self._has_given_up = self._look_for_given_up()

    def was_given_up(self, mark: bytes) -> bool:
        if not self._has_given_up:
            return False
        return self.connection.execute("SELECT 1 FROM given_up WHERE mark = ?", (mark,)).fetchone() is not None

    def has_given_up(self) -> bool:
        return self._has_given_up

    def _look_for_given_up(self) -> bool:
        return self.connection.execute("SELECT 1 FROM given_up LIMIT 1").fetchone() is not None

    # --- live ops ---

    def put_at(self, dot: Dot) -> Put | None:
        found = self.put_row(dot)
        return found[1] if found else None

    def put_row(self, dot: Dot) -> tuple[int, Put] | None:
        """Row id and put of a live dot."""
        recent = self._recent.get(dot)
        if recent is not None:
            return recent
        return next(self._puts("WHERE origin = ? AND seq = ?", *self._key(dot)), None)

    def _puts(self, condition: str, *values: object) -> Iterator[tuple[int, Put]]:
        return select_puts_of(self.connection, self._origin_of, condition, *values)

    def hold_at(self, dot: Dot) -> Hold | None:
        return next(self._holds("WHERE holds.origin = ? AND holds.seq = ?", *self._key(dot)), None)

    def puts_of(self, file_key: str) -> list[Put]:
        found = (put for _, put in self._puts("WHERE file_key = ?", file_key))
        return sorted(found, key=show_order)

    def puts_with(self, sha256: bytes) -> list[Put]:
        """The live puts of this content that name its chunks."""
        condition = "WHERE puts.sha256 = ? AND puts.chunks IS NOT NULL ORDER BY puts.id"
        return [put for _, put in select_puts(self.connection, condition, sha256)]

    def holds_of(self, put: Dot) -> list[Hold]:
        row = self._put_row_id(put)
        if row is None:
            return []
        found = self.connection.execute("SELECT origin, seq, stamp, recovered FROM holds WHERE put = ?", (row,))
        holds = (
            Hold(Dot(self._origin_of[origin], seq), Stamp(stamp), put, bool(recovered))
            for origin, seq, stamp, recovered in found
        )
        return sorted(holds, key=lambda hold: hold.dot)

    def _put_row_id(self, put: Dot) -> int | None:
        recent = self._recent.get(put)
        if recent is not None:
            return recent[0]
        query = "SELECT id FROM puts WHERE origin = ? AND seq = ?"
        found: tuple[int] | None = self.connection.execute(query, self._key(put)).fetchone()
        return found[0] if found else None

    def has_hold(self, put: Dot, holder: NodeId) -> bool:
        """Whether a peer holds a put."""
        row = self._put_row_id(put)
        query = "SELECT 1 FROM holds JOIN origins ON origins.id = origin WHERE put = ? AND node = ? LIMIT 1"
        return self.connection.execute(query, (row, self._nodes.get(holder))).fetchone() is not None

    def holds_from(self, origin: Origin, up_to: int) -> list[Hold]:
        row, seq = self._key(Dot(origin, up_to))
        return list(self._holds("WHERE holds.origin = ? AND holds.seq <= ? ORDER BY holds.seq", row, seq))

    def holds_by(self, node_id: NodeId) -> list[Hold]:
        return list(self._holds("WHERE hn.node_id = ? ORDER BY ho.epoch, holds.seq", node_id))

    def _holds(self, condition: str, *values: object) -> Iterator[Hold]:
        return select_holds(self.connection, condition, *values)

    def _key(self, dot: Dot) -> tuple[int, int]:
        """A dot as the tables have it; an unknown origin has a row id that none has."""
        origin = self._origins.get(dot.origin)
        return (origin.id if origin else -1), dot.seq

    def live(self) -> Iterator[LiveOp]:
        return live_ops(self.connection)

    def add(self, op: LiveOp) -> None:
        if isinstance(op, Put):
            self._add_put(op)
        else:
            self._add_hold(op)

    def _add_put(self, put: Put) -> None:
        manifest = put.manifest
        shown = self._shown_version(manifest.file_key)
        is_shown = shown is None or show_order(put) > show_order(shown[1])
        if shown is None:
            self._files += 1
        elif is_shown:
            self.connection.execute("UPDATE puts SET shown = 0 WHERE id = ?", (shown[0],))
        partition = partition_of(manifest.file_key)
        cursor = self.connection.execute(
            "INSERT INTO puts (origin, seq, stamp, file_key, partition, filename, size_bytes, sha256, content_type,"
            " uploaded_at_ms, copies, chunks, registered, shown) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._origin_row(put.dot.origin).id,
                put.dot.seq,
                put.stamp,
                manifest.file_key,
                partition,
                manifest.filename,
                manifest.size_bytes,
                manifest.sha256,
                manifest.content_type,
                manifest.uploaded_at_ms,
                manifest.copies,
                pack_chunks(manifest.chunks),
                manifest.registered,
                is_shown,
            ),
        )
        row_id = _row_id(cursor)
        add_chunk_uses(self.connection, row_id, manifest.chunks or ())
        if len(manifest.chunks or ()) <= RECENT_CHUNKS_MAX:
            self._recent[put.dot] = row_id, put
        if len(self._recent) > RECENT_PUTS_MAX:
            self._recent.popitem(last=False)
        targets = self.targets(partition, manifest.copies)
        self._deficits[row_id] = {item_id(put.dot, target): self.node_row(target) for target in targets}

    def _shown_version(self, file_key: str) -> tuple[int, Put] | None:
        return next(self._puts("WHERE file_key = ? AND shown", file_key), None)

    def _write_deficits(self, items: Iterable[tuple[int, int, int]]) -> None:
        """Queue items, each with the row of its put and that of the target that lacks it."""
        self.connection.executemany("REPLACE INTO queue (id, put, target, status) VALUES (?, ?, ?, 'PENDING')", items)

    def requeue(self, partition: int, after: int, limit: int) -> list[int]:
        """Make the queue say which targets lack the puts of a partition, after its targets have changed.

        The row ids of the puts it went through: the first `limit` behind the row `after`.
        """
        puts = self.connection.execute(
            "SELECT id, origin, seq, copies FROM puts WHERE partition = ? AND id > ? ORDER BY id LIMIT ?",
            (partition, after, limit),
        ).fetchall()
        rows = [row[0] for row in puts]
        holders, queued = self._holders_of(rows), self._queued_for(rows)
        unwanted: list[tuple[int]] = []
        missing: list[tuple[int, int, int]] = []
        for row, origin, seq, copies in puts:
            self._deficits.pop(row, None)
            dot = Dot(self._origin_of[origin], seq)
            targets = {self.node_row(target): target for target in self.targets(partition, copies)}
            lacking = {node: target for node, target in targets.items() if (row, node) not in holders}
            unwanted += [(item,) for node, item in queued.get(row, ()) if node not in lacking]
            known = {node for node, _ in queued.get(row, ())}
            missing += [(item_id(dot, target), row, node) for node, target in lacking.items() if node not in known]
        self.connection.executemany("DELETE FROM queue WHERE id = ?", unwanted)
        self._write_deficits(missing)
        return rows

    def _holders_of(self, put_rows: Sequence[int]) -> set[tuple[int, int]]:
        """Of some puts, which node holds which."""
        query = f"SELECT put, node FROM holds JOIN origins ON origins.id = origin WHERE put IN ({places(put_rows)})"
        return set(self.connection.execute(query, put_rows))

    def _queued_for(self, put_rows: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """Of some puts, those that nodes lack: nodes and items."""
        query = f"SELECT put, target, id FROM queue WHERE put IN ({places(put_rows)}) AND status = 'PENDING'"
        found: dict[int, list[tuple[int, int]]] = {}
        for put_row, node, item in self.connection.execute(query, put_rows):
            found.setdefault(put_row, []).append((node, item))
        return found

    def forget_completed(self, before_ms: int) -> None:
        """Show no more which copies came back before a moment."""
        self.connection.execute("DELETE FROM queue WHERE completed_at_ms < ?", (before_ms,))

    def _add_hold(self, hold: Hold) -> None:
        put_row = self._put_row_id(hold.put)
        assert put_row is not None, "the caller has looked"
        self.connection.execute(
            "INSERT INTO holds VALUES (?, ?, ?, ?, ?)",
            (self._origin_row(hold.dot.origin).id, hold.dot.seq, put_row, hold.stamp, hold.recovered),
        )
        item = item_id(hold.put, hold.holder)
        is_unwritten = self._deficits.get(put_row, {}).pop(item, None) is not None
        if hold.recovered:
            self.connection.execute(
                "REPLACE INTO queue VALUES (?, ?, ?, 'COMPLETED', ?)",
                (item, put_row, self.node_row(hold.holder), ms_of_stamp(hold.stamp)),
            )
        elif not is_unwritten:
            self.connection.execute("DELETE FROM queue WHERE id = ?", (item,))

    def remove(self, op: LiveOp) -> None:
        if isinstance(op, Put):
            self._remove_put(op)
        else:
            self.connection.execute("DELETE FROM holds WHERE origin = ? AND seq = ?", self._key(op.dot))
            self._queue_again(op)

    def _queue_again(self, hold: Hold) -> None:
        """A target whose last hold of a put has ended lacks it again."""
        found = self.put_row(hold.put)
        if found is None or any(other.holder == hold.holder for other in self.holds_of(hold.put)):
            return
        put_row, put = found
        targets = self.targets(partition_of(put.manifest.file_key), put.manifest.copies)
        item = item_id(put.dot, hold.holder)
        self._deficits.get(put_row, {}).pop(item, None)
        self.connection.execute("DELETE FROM queue WHERE id = ?", (item,))
        if hold.holder in targets:
            self._write_deficits([(item, put_row, self.node_row(hold.holder))])

    def _remove_put(self, put: Put) -> None:
        origin, seq = self._key(put.dot)
        row_id, was_shown, kept = self.connection.execute(
            "SELECT id, shown, kept FROM puts WHERE origin = ? AND seq = ?", (origin, seq)
        ).fetchone()
        if kept:
            self.release(row_id, put.manifest.chunks or ())
        self.connection.execute("DELETE FROM puts WHERE id = ?", (row_id,))
        remove_chunk_uses(self.connection, row_id, put.manifest.chunks or ())
        self._recent.pop(put.dot, None)
        self._deficits.pop(row_id, None)
        remaining = self.puts_of(put.manifest.file_key) if was_shown else []
        if remaining:
            origin, seq = self._key(remaining[-1].dot)
            self.connection.execute("UPDATE puts SET shown = 1 WHERE origin = ? AND seq = ?", (origin, seq))
        elif was_shown:
            self._files -= 1

    def remove_unreadable(self) -> None:
        """Remove live ops whose rows no longer say what an op can say."""
        self._recent.clear()
        puts, holds = unreadable_rows(self.connection)
        self.connection.executemany("DELETE FROM holds WHERE put = ?", [(row_id,) for row_id in puts])
        self.connection.executemany("DELETE FROM puts WHERE id = ?", [(row_id,) for row_id in puts])
        self.connection.executemany("DELETE FROM chunk_uses WHERE put = ?", [(row_id,) for row_id in puts])
        self.connection.executemany("DELETE FROM holds WHERE origin = ? AND seq = ?", holds)
        self.count_files_anew()

    def count_files_anew(self) -> None:
        """As needed where rows were damaged; of a million files it takes a quarter of a second."""
        self._files = count_shown(self.connection)

    # --- sums, and another peer's state on its way in ---

    def state_sum(self) -> int:
        return self._sum

    def set_state_sum(self, state_sum: int) -> None:
        self._sum = state_sum

    def add_incoming(self, ops: Iterable[LiveOp]) -> None:
        self._incoming.add(ops)

    def is_incoming(self, op: LiveOp) -> bool:
        return self._incoming.has(op)

    def incoming(self) -> Iterator[LiveOp]:
        return self._incoming.all()

    def clear_incoming(self) -> None:
        self._incoming.clear()

    # --- content on this disk ---

    def chunk_row(self, chunk_hash: bytes) -> ChunkRow | None:
        """Where a chunk is, as this transaction sees it; None when this disk has none, or one that was condemned."""
        return chunk_row(self.connection, chunk_hash)

    def has_no_content(self, chunk_hash: bytes, row: ChunkRow) -> bool:
        """Whether this is the row of a chunk yet that is a file, or that was condemned and has none."""
        query = "SELECT size, serial, content FROM chunks WHERE hash = ?"
        return bool(self.connection.execute(query, (chunk_hash,)).fetchone() == row)

    def set_chunk(self, chunk_hash: bytes, row: ChunkRow) -> None:
        """Make a chunk exist, in place of one of equal bytes that was there before, good or condemned."""
        inserted = self.connection.execute(
            "INSERT INTO chunks (hash, size, serial, refs, content) VALUES (?, ?, ?, 0, ?)"
            " ON CONFLICT (hash) DO NOTHING",
            (chunk_hash, row.size, row.serial, row.content),
        ).rowcount
        if inserted:
            return
        old = self.connection.execute("SELECT serial FROM chunks WHERE hash = ?", (chunk_hash,)).fetchone()
        self.connection.execute(
            "UPDATE chunks SET serial = ?, content = ?, condemned = 0 WHERE hash = ?",
            (row.serial, row.content, chunk_hash),
        )
        if old[0] is not None and old[0] != row.serial:
            self.unused_files.append(chunk_file_name(chunk_hash, old[0]))

    def condemn(self, chunk_hash: bytes) -> list[Put]:
        """A chunk's bytes are no good: they go, and its row stays for those who need it, until it is set again.

        Returns the puts that were held and no longer are; what else there is of them is kept.
        """
        (serial,) = self.connection.execute("SELECT serial FROM chunks WHERE hash = ?", (chunk_hash,)).fetchone()
        self.connection.execute(
            "UPDATE chunks SET serial = NULL, content = NULL, condemned = 1 WHERE hash = ?", (chunk_hash,)
        )
        if serial is not None:
            self.unused_files.append(chunk_file_name(chunk_hash, serial))
        broken = list(select_held_with(self.connection, chunk_hash))
        for put_row, _ in broken:
            self.unmark_held(put_row)
        return [put for _, put in broken]

    def mark_held(self, put_row: int, chunks: Sequence[Chunk]) -> None:
        """This disk has the content of a put, all of it: its chunks, whose rows are there, are kept for it."""
        kept_now = "UPDATE puts SET held = 1, kept = 1 WHERE id = ? AND NOT kept"
        if self.connection.execute(kept_now, (put_row,)).rowcount:
            self.connection.executemany(
                "UPDATE chunks SET refs = refs + 1 WHERE hash = ?", [(chunk_hash,) for chunk_hash in _distinct(chunks)]
            )
        else:
            self.connection.execute("UPDATE puts SET held = 1 WHERE id = ? AND NOT held", (put_row,))

    def unmark_held(self, put_row: int) -> None:
        """This disk has not all of a put's content any more; what it has is kept until it is whole again."""
        self.connection.execute("UPDATE puts SET held = 0 WHERE id = ?", (put_row,))

    def release(self, put_row: int, chunks: Sequence[Chunk]) -> None:
        """This disk need not keep the content of a put any more; chunks nothing else needs go.

        No reader or writer can be in the way: a file's name is never used again, and whoever has it open keeps it.
        """
        changed = self.connection.execute(
            "UPDATE puts SET held = 0, kept = 0 WHERE id = ? AND kept", (put_row,)
        ).rowcount
        if not changed:
            return
        for chunk_hash in _distinct(chunks):
            self.connection.execute("UPDATE chunks SET refs = refs - 1 WHERE hash = ?", (chunk_hash,))
            gone = self.connection.execute(
                "DELETE FROM chunks WHERE hash = ? AND refs <= 0 RETURNING serial", (chunk_hash,)
            ).fetchone()
            if gone is not None and gone[0] is not None:
                self.unused_files.append(chunk_file_name(chunk_hash, gone[0]))

    def pin_contents(self) -> None:
        """Keep all content, whatever happens to the puts that need it, until it is counted again."""
        self.connection.execute("UPDATE chunks SET refs = refs + 1")

    def recount_contents(self) -> None:
        """Find out anew which puts this disk has content of, and let go of what none needs."""
        execute = self.connection.execute
        here = {chunk_hash for (chunk_hash,) in execute("SELECT hash FROM chunks WHERE NOT condemned")}
        empty = {row_id for (row_id,) in execute("SELECT id FROM puts WHERE held AND size_bytes = 0")}
        execute("UPDATE puts SET held = 0, kept = 0")
        execute("UPDATE chunks SET refs = 0")
        last_id = 0
        while page := list(select_puts(self.connection, _SOME_PUTS, last_id, PAGE_ROWS)):
            for row_id, put in page:
                chunks = put.manifest.chunks or ()
                found = [chunk.hash in here for chunk in chunks]
                if any(found) or row_id in empty:
                    self.mark_held(row_id, chunks)
                if not all(found):
                    self.unmark_held(row_id)
            last_id = page[-1][0]
        gone = execute("DELETE FROM chunks WHERE refs <= 0 RETURNING hash, serial").fetchall()
        self.unused_files += [chunk_file_name(chunk_hash, serial) for chunk_hash, serial in gone if serial is not None]

    def is_held(self, put: Dot) -> bool:
        """Whether this disk has the content of a put, all of it."""
        row = self.connection.execute("SELECT held FROM puts WHERE origin = ? AND seq = ?", self._key(put)).fetchone()
        return bool(row and row[0])


_SOME_PUTS = "WHERE puts.id > ? ORDER BY puts.id LIMIT ?"


def _distinct(chunks: Sequence[Chunk]) -> list[bytes]:
    """A file may have one chunk many times; it is needed once."""
    return list(dict.fromkeys(chunk.hash for chunk in chunks))


def _row_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None, "an INSERT has a row id"
    return cursor.lastrowid
