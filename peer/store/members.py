"""Members on disk, and the ranks of those that should hold a partition's files."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Sequence
from itertools import groupby

from peer.store.catalog import SqliteStore
from protocol.identity import Eviction, Member, NodeId
from protocol.placement import PARTITIONS


def load_members(connection: sqlite3.Connection) -> tuple[Member, ...]:
    """The members known when this peer last stopped, itself included, by node id."""
    rows = connection.execute(
        "SELECT node_id, address, incarnation, zone, joined, membership = 'draining' FROM nodes"
        " WHERE membership IN ('member', 'draining', 'out') ORDER BY node_id"
    )
    return tuple(
        Member(NodeId(node_id), address, incarnation, zone, joined, bool(is_draining))
        for node_id, address, incarnation, zone, joined, is_draining in rows
    )


def load_out(connection: sqlite3.Connection) -> frozenset[NodeId]:
    """Those of them that were out."""
    return frozenset(node_id for (node_id,) in connection.execute("SELECT node_id FROM nodes WHERE membership = 'out'"))


def load_evictions(connection: sqlite3.Connection) -> tuple[Eviction, ...]:
    """The members that were removed for good, by node id; some may have come back since."""
    rows = connection.execute("SELECT node_id, evicted FROM nodes WHERE evicted IS NOT NULL ORDER BY node_id")
    return tuple(Eviction(NodeId(node_id), joined) for node_id, joined in rows)


def save_members(
    store: SqliteStore,
    members: Iterable[Member],
    evictions: Iterable[Eviction] = (),
    out: Container[NodeId] = (),
) -> None:
    """A step: keep these members, who of them is out, and who was removed; what those two hold does not count."""
    for eviction in evictions:
        store.connection.execute(
            "UPDATE nodes SET evicted = ?, membership = 'left' WHERE id = ?",
            (eviction.joined, store.node_row(eviction.node_id)),
        )
    for member in members:
        store.connection.execute(
            "UPDATE nodes SET address = ?, incarnation = ?, zone = ?, joined = ?, membership = ? WHERE id = ?",
            (
                *(member.address, member.incarnation, member.zone, member.joined),
                "out" if member.node_id in out else "draining" if member.is_draining else "member",
                store.node_row(member.node_id),
            ),
        )


def load_ranks(connection: sqlite3.Connection) -> list[list[NodeId]]:
    """The ranks the queue of missing copies was last made by; all empty for a new peer."""
    ranks: list[list[NodeId]] = [[] for _ in range(PARTITIONS)]
    rows = connection.execute(
        "SELECT partition, node_id FROM placement JOIN nodes ON nodes.id = placement.node ORDER BY partition, rank"
    )
    for partition, group in groupby(rows, key=lambda row: int(row[0])):
        ranks[partition] = [NodeId(node_id) for _, node_id in group]
    return ranks


Ranks = Sequence[tuple[int, Sequence[NodeId]]]
"""Of some partitions, the peers in the order in which they should hold its files."""


def rerank(store: SqliteStore, ranks: Ranks, after: int, budget: int) -> tuple[int, int]:
    """A step: give partitions new ranks, one after the other, and queue what that makes missing.

    Of the first one only the puts behind the row `after` are left to do. It ends when it has gone through so many puts
    and partitions together, wherever that is: returns how many partitions are done, and the last put of the next one
    that was gone through.
    """
    for done, (partition, ranked) in enumerate(ranks):
        if budget <= 0:
            return done, 0
        rows = store.requeue(partition, after, budget)
        if len(rows) == budget:
            return done, rows[-1]
        _set_ranks(store, partition, ranked)
        budget -= len(rows) + 1
        after = 0
    return len(ranks), 0


def _set_ranks(store: SqliteStore, partition: int, ranked: Sequence[NodeId]) -> None:
    store.connection.execute("DELETE FROM placement WHERE partition = ?", (partition,))
    store.connection.executemany(
        "INSERT INTO placement VALUES (?, ?, ?)",
        [(partition, rank, store.node_row(node_id)) for rank, node_id in enumerate(ranked)],
    )
