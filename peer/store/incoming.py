"""Another peer's live ops on their way in, kept aside until all are there to be merged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

from peer.store.rows import PAGE_ROWS
from protocol.codec import decode_op, encode_op
from protocol.ops import Hold, LiveOp, Put


class Incoming:
    """The table `incoming` on the writer's connection, inside its transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, ops: Iterable[LiveOp]) -> None:
        """Keep ops aside; one that comes again replaces itself."""
        self._connection.executemany(
            "REPLACE INTO incoming VALUES (?, ?, ?, ?, ?)",
            [(*op.dot.origin, op.dot.seq, isinstance(op, Hold), encode_op(op)) for op in ops],
        )

    def has(self, op: LiveOp) -> bool:
        """Whether a live op of this kind and dot is among them."""
        (found,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM incoming WHERE is_hold = ? AND node_id = ? AND epoch = ? AND seq = ?)",
            (isinstance(op, Hold), *op.dot.origin, op.dot.seq),
        ).fetchone()
        return bool(found)

    def all(self) -> Iterator[LiveOp]:
        """All of them, puts before holds, a page at a time."""
        last: tuple[object, ...] = (-1, "", 0, 0)
        while True:
            rows = self._connection.execute(
                "SELECT is_hold, node_id, epoch, seq, op FROM incoming"
                " WHERE (is_hold, node_id, epoch, seq) > (?, ?, ?, ?) ORDER BY is_hold, node_id, epoch, seq LIMIT ?",
                (*last, PAGE_ROWS),
            ).fetchall()
            if not rows:
                return
            for row in rows:
                op = decode_op(row[4])
                assert isinstance(op, Put | Hold), "only live ops ever come in so"
                yield op
            last = tuple(rows[-1][:4])

    def clear(self) -> None:
        """Forget them."""
        self._connection.execute("DELETE FROM incoming")
