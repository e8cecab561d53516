"""The end of the log, in memory: nearly all that another peer lacks is in it, and the rest is in the database."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from protocol.codec import OpDots
from protocol.identity import Dot, VersionVector

ROWS_MAX = 4096
BYTES_MAX = 8 * 1024 * 1024
"""Of ops; above one of the two, the earlier half of what may be kept goes."""


class LogRow(NamedTuple):
    """An op of the log, with what is said of it to others."""

    dots: OpDots
    raw: bytes
    log_hash: bytes | None
    """The running hash of its origin's log up to its last dot; None where that is not known."""

    @property
    def last(self) -> Dot:
        """The last dot it has."""
        return Dot(self.dots.origin, self.dots.last)


class LogTail:
    """The rows appended last, as of one commit, in order of arrival. Immutable, so any thread may look at it."""

    def __init__(self, rows: tuple[LogRow, ...] = (), size: int = 0, hashes: dict[Dot, bytes] | None = None) -> None:
        self._rows = rows
        self._size = size
        self._hashes: dict[Dot, bytes] = {} if hashes is None else hashes
        """Of these rows, and of later ones where this tail was extended: what is so of a log stays so."""

    def extended(self, appended: Sequence[LogRow]) -> LogTail:
        """This tail with more rows behind it, which are committed."""
        if not appended:
            return self
        rows = self._rows + tuple(appended)
        size = self._size + sum(len(row.raw) for row in appended)
        if len(rows) > ROWS_MAX or size > BYTES_MAX:
            rows = _last_of(rows)
            return LogTail(rows, sum(len(row.raw) for row in rows), _hashes_of(rows))
        self._hashes.update(_hashes_of(appended))
        return LogTail(rows, size, self._hashes)

    def log_hash(self, dot: Dot) -> bytes | None:
        """The running hash of the log of a dot's origin up to it, if an op that ends there is here."""
        return self._hashes.get(dot)

    def after(
        self, vv: VersionVector, seen: VersionVector, uncommitted: Sequence[LogRow] = ()
    ) -> Sequence[LogRow] | None:
        """The rows that `vv` does not cover, of a log that covers `seen`; None when they are not all here.

        Those of a transaction that is not committed yet lie behind this tail.
        """
        missing = sum(max(0, seq - vv.get(origin, 0)) for origin, seq in seen.items())
        found: list[LogRow] = []
        for row in chain(reversed(uncommitted), reversed(self._rows)):
            if missing <= 0:
                break
            origin, first, last, _ = row.dots
            lacking = last - max(first - 1, vv.get(origin, 0))
            if lacking > 0:
                missing -= lacking
                found.append(row)
        found.reverse()
        return found if not missing else None


def _hashes_of(rows: Sequence[LogRow]) -> dict[Dot, bytes]:
    return {row.last: row.log_hash for row in rows if row.log_hash is not None}


def _last_of(rows: Sequence[LogRow]) -> tuple[LogRow, ...]:
    """The last rows, half as many as may be kept, with half as many bytes."""
    left = BYTES_MAX // 2
    first = len(rows)
    for row in reversed(rows[-(ROWS_MAX // 2) :]):
        left -= len(row.raw)
        if left < 0:
            break
        first -= 1
    return tuple(rows[first:])
