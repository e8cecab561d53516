"""Lists for clients: files, nodes and the replication queue, read a page at a time."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import PeerState
from peer.http.times import rfc3339
from peer.store.rows import select_puts
from peer.upkeep.repair import ItemStatus, Repair
from protocol import codec
from protocol.errors import MalformedMessage
from protocol.identity import NodeId
from protocol.membership import Status
from protocol.messages import Member
from protocol.ops import Put

UNREACHABLE_LATENCY_MS = 9999
CHECK_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 1.0
MISSING_LOOKED_AT_MAX = 10_000
"""Missing copies whose targets are asked what became of them, when only some of them are wanted."""


class BadCursor(ValueError):
    """A cursor that no list of ours gave out."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of files ended: valid while files come and go, for it names a place and no number."""

    uploaded_at_ms: int
    file_key: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.uploaded_at_ms}:{self.file_key}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what `str(cursor)` wrote. Raises BadCursor."""
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            uploaded_at_ms, _, file_key = raw.partition(":")
            return cls(codec.read_int(int(uploaded_at_ms), codec.MS_MAX), codec.read_file_key(file_key))
        except (ValueError, MalformedMessage):
            raise BadCursor("the cursor is none of ours; take `next` from the page before") from None


@dataclass(frozen=True, slots=True)
class FilesPage:
    """Some files, newest first, with their holders; how many there are in all; where the next page starts."""

    files: tuple[tuple[Put, tuple[NodeId, ...]], ...]
    total: int
    next: Cursor | None


class Listing:
    """Lists of one peer."""

    def __init__(self, state: PeerState, repair: Repair) -> None:
        self._state = state
        self._repair = repair

    # --- files ---

    async def files(self, limit: int, after: Cursor | None, name_prefix: str) -> FilesPage:
        """A page of files. Raises StoreError."""
        return await self._state.database.read(lambda connection: _files_page(connection, limit, after, name_prefix))

    # --- nodes ---

    def nodes(self) -> list[dict[str, object]]:
        """Every member as clients know it."""
        return [self._node(member) for member in self._state.membership.members()]

    def _node(self, member: Member) -> dict[str, object]:
        membership = self._state.membership
        status = membership.status(member.node_id)
        return {
            "id": member.node_id,
            "address": f"http://{member.address}",
            "status": up_or_down(status),
            "role": "PEER",
            "last_heartbeat": rfc3339(self._heartbeat_ms(member.node_id)),
            "latency_ms": self.latency_ms(member.node_id),
            "zone": member.zone,
            "state": status.value,
            "membership": "member",
        }

    def _heartbeat_ms(self, node_id: NodeId) -> int | None:
        wall_ms = self._state.wall_ms()
        if node_id == self._state.me:
            return wall_ms
        heard_at = self._state.membership.heard_at(node_id)
        return None if heard_at is None else wall_ms - int((self._state.env.clock.now() - heard_at) * 1000)

    def latency_ms(self, node_id: NodeId) -> float:
        """The mean round trip to a peer; 9999 when it cannot be reached."""
        membership = self._state.membership
        latency_s = membership.latency_s(node_id)
        if membership.status(node_id) is Status.DOWN or latency_s is None:
            return UNREACHABLE_LATENCY_MS
        return round(latency_s * 1000, 3)

    async def check_nodes(self) -> list[dict[str, object]]:
        """Ask every member for its health now, all at once."""
        found: dict[NodeId, float | None] = {}

        async def check(member: Member) -> None:
            found[member.node_id] = await self._round_trip_s(member)

        members = self._state.membership.members()
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(check, member)
        return [
            {
                "id": member.node_id,
                "address": f"http://{member.address}",
                "status": "DOWN" if (took_s := found[member.node_id]) is None else "UP",
                "latency_ms": UNREACHABLE_LATENCY_MS if took_s is None else round(took_s * 1000, 3),
            }
            for member in members
        ]

    async def _round_trip_s(self, member: Member) -> float | None:
        if member.node_id == self._state.me:
            return 0.0
        started = self._state.env.clock.now()
        with trio.move_on_after(CHECK_TIMEOUT_S):
            try:
                await self._state.client.health(member.address)
            except PeerUnreachable:
                return None
            return self._state.env.clock.now() - started
        return None

    # --- replication queue ---

    async def queue(
        self, limit: int, node_id: NodeId | None = None, status: ItemStatus | None = None
    ) -> list[dict[str, object]]:
        """The replication queue, oldest file first: from the catalog, and what the targets alone know of their items.

        Raises StoreError.
        """
        is_known_here = status in (None, ItemStatus.COMPLETED)
        looked_at = limit if is_known_here else MISSING_LOOKED_AT_MAX
        stored = status if is_known_here else ItemStatus.PENDING
        items = await self._state.database.read(lambda connection: _queue_items(connection, looked_at, node_id, stored))
        targets = {str(item["target_node_id"]) for item in items if item["status"] == "PENDING"}
        known = await self._ask_attempts(sorted(targets))
        for item in items:
            attempt = known.get((item["target_node_id"], item["id"]))
            if attempt is not None and item["status"] == "PENDING":
                _, attempt_status, retry_count, last_attempt_ms, error = attempt
                item["status"] = attempt_status
                item["retry_count"] = retry_count
                item["last_attempt"] = rfc3339(last_attempt_ms if isinstance(last_attempt_ms, int) else None)
                item["error_message"] = error
        return [item for item in items if status is None or item["status"] == status.value][:limit]

    async def _ask_attempts(self, targets: Iterable[str]) -> dict[tuple[object, object], list[object]]:
        known: dict[tuple[object, object], list[object]] = {}

        async def ask(node_id: NodeId) -> None:
            for attempt in await self._attempts_of(node_id):
                known[node_id, attempt[0]] = attempt

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(ask, NodeId(target))
        return known

    async def _attempts_of(self, node_id: NodeId) -> Sequence[list[object]]:
        if node_id == self._state.me:
            return self._repair.known_attempts()
        peer = self._state.membership.member(node_id)
        if peer is None or self._state.membership.status(node_id) is Status.DOWN:
            return ()
        with trio.move_on_after(ASK_TIMEOUT_S):
            try:
                return [codec.read_list(attempt, 5) for attempt in await self._state.client.repairs(peer)]
            except (PeerUnreachable, MalformedMessage):
                return ()
        return ()


def up_or_down(status: Status) -> str:
    """The two words clients of the old system know."""
    return "DOWN" if status is Status.DOWN else "UP"


def _files_page(connection: sqlite3.Connection, limit: int, after: Cursor | None, name_prefix: str) -> FilesPage:
    condition, values = "puts.shown", []
    if after is not None:
        condition += " AND (puts.uploaded_at_ms, puts.file_key) < (?, ?)"
        values += [after.uploaded_at_ms, after.file_key]
    name_condition, name_values = _has_prefix(name_prefix)
    found = list(
        select_puts(
            connection,
            f"WHERE {condition}{name_condition} ORDER BY puts.uploaded_at_ms DESC, puts.file_key DESC LIMIT ?",
            *values,
            *name_values,
            limit + 1,
        )
    )
    page = found[:limit]
    (total,) = connection.execute(f"SELECT count(*) FROM puts WHERE shown{name_condition}", name_values).fetchone()
    files = tuple((put, _holders(connection, row_id)) for row_id, put in page)
    last = page[-1][1].manifest if len(found) > limit else None
    return FilesPage(files, total, Cursor(last.uploaded_at_ms, last.file_key) if last else None)


def _has_prefix(prefix: str) -> tuple[str, list[str]]:
    """An SQL condition for names that begin so; a range, which an index answers."""
    if not prefix:
        return "", []
    return " AND puts.filename >= ? AND puts.filename < ?", [prefix, prefix + "\U0010ffff"]


def _holders(connection: sqlite3.Connection, put_row: int) -> tuple[NodeId, ...]:
    rows = connection.execute(
        "SELECT DISTINCT nodes.node_id FROM holds JOIN origins ON origins.id = holds.origin"
        " JOIN nodes ON nodes.id = origins.node WHERE holds.put = ? ORDER BY nodes.node_id",
        (put_row,),
    )
    return tuple(NodeId(node_id) for (node_id,) in rows)


def _queue_items(
    connection: sqlite3.Connection, limit: int, node_id: NodeId | None, stored: ItemStatus | None
) -> list[dict[str, object]]:
    rows = connection.execute(
        "SELECT queue.id, puts.file_key, target.node_id, queue.status, puts.uploaded_at_ms, queue.completed_at_ms,"
        " queue.put, target.node_id FROM queue JOIN puts ON puts.id = queue.put"
        " JOIN nodes target ON target.id = queue.target"
        " WHERE (?1 IS NULL OR target.node_id = ?1) AND (?2 IS NULL OR queue.status = ?2)"
        " ORDER BY queue.status DESC, puts.uploaded_at_ms, queue.id LIMIT ?3",
        (node_id, stored.value if stored else None, limit),
    ).fetchall()
    return [_queue_item(connection, row) for row in rows]


def _queue_item(connection: sqlite3.Connection, row: Sequence[object]) -> dict[str, object]:
    item_id, file_key, target, status, uploaded_at_ms, completed_at_ms, put_row, _ = row
    assert isinstance(uploaded_at_ms, int)
    assert isinstance(put_row, int)
    sources = [holder for holder in _holders(connection, put_row) if holder != target]
    completed = completed_at_ms if isinstance(completed_at_ms, int) else None
    return {
        "id": item_id,
        "file_key": file_key,
        "target_node_id": target,
        "source_node_id": sources[0] if sources else None,
        "status": status,
        "retry_count": 0,
        "last_attempt": rfc3339(completed),
        "created_at": rfc3339(uploaded_at_ms),
        "error_message": None,
    }
