"""Members on disk, and the ranks of those that should hold a partition's files."""

from __future__ import annotations

import sqlite3
from itertools import groupby

from peer.store.catalog import SqliteStore
from peer.store.rows import select_puts
from protocol.identity import Member, NodeId
from protocol.placement import PARTITIONS


def load_members(connection: sqlite3.Connection) -> tuple[Member, ...]:
    """The members known when this peer last stopped, itself included, by node id."""
    rows = connection.execute(
        "SELECT node_id, address, incarnation, zone FROM nodes WHERE membership = 'member' ORDER BY node_id"
    )
    return tuple(Member(NodeId(node_id), address, incarnation, zone) for node_id, address, incarnation, zone in rows)


def save_members(store: SqliteStore, members: tuple[Member, ...]) -> None:
    """A step: keep these members."""
    for member in members:
        store.connection.execute(
            "UPDATE nodes SET address = ?, incarnation = ?, zone = ?, membership = 'member' WHERE id = ?",
            (member.address, member.incarnation, member.zone, store.node_row(member.node_id)),
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


def rerank(store: SqliteStore, ranks: dict[int, list[NodeId]]) -> None:
    """A step: give some partitions new ranks, and queue what that makes missing."""
    execute = store.connection.execute
    for partition, ranked in ranks.items():
        execute("DELETE FROM placement WHERE partition = ?", (partition,))
        store.connection.executemany(
            "INSERT INTO placement VALUES (?, ?, ?)",
            [(partition, rank, store.node_row(node_id)) for rank, node_id in enumerate(ranked)],
        )
        for put_row, put in list(select_puts(store.connection, "WHERE puts.partition = ?", partition)):
            store.requeue(put_row, put)
