"""The stores that the contract and the convergence tests run on: a new one is added here, once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from peer.store.catalog import SqliteStore
from peer.store.rows import count_files, count_shown
from peer.store.schema import migrate
from protocol.store import MemoryStore


@dataclass(frozen=True)
class StoreKind:
    """How to make an empty store, and how to take an image of one, as a backup of its disk would."""

    name: str
    new: Callable[[], Any]
    copy: Callable[[Any], Any]
    cases_share: float = 1.0
    """Of the cases a profile asks for, how many to run: a store on a disk is slower than one in memory."""
    close: Callable[[Any], None] = lambda _: None
    check: Callable[[Any], None] = lambda _: None
    """That what the store keeps beside its ops is what they give."""

    def cases(self, of_memory: int) -> int:
        """How many cases to try where the store in memory tries `of_memory`."""
        return max(1, int(of_memory * self.cases_share))

    def __str__(self) -> str:
        return self.name


def new_sqlite_store() -> SqliteStore:
    return SqliteStore(_sqlite_connection(with_tables=True))


def copy_sqlite_store(store: SqliteStore) -> SqliteStore:
    """As a backup would, of what is committed."""
    store.flush()
    connection = _sqlite_connection(with_tables=False)
    store.connection.backup(connection)
    return SqliteStore(connection)


def check_sqlite_store(store: SqliteStore) -> None:
    """The kept number of files is that of different keys."""
    store.flush()
    (keys,) = store.connection.execute("SELECT count(DISTINCT file_key) FROM puts").fetchone()
    assert count_files(store.connection) == count_shown(store.connection) == keys


def _sqlite_connection(*, with_tables: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    if with_tables:
        migrate(sqlite_utils.Database(connection))
    return connection


STORES = (
    StoreKind("memory", MemoryStore, deepcopy),
    StoreKind(
        "sqlite",
        new_sqlite_store,
        copy_sqlite_store,
        0.03,
        lambda store: store.connection.close(),
        check_sqlite_store,
    ),
)
