"""A consistent copy of a peer's database, also while the peer runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from peer.store.check import check_version
from peer.world.disk import sync_path
from peer.world.env import StoreError


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """Write the database as it is at this moment to a new file, which is there whole or not at all.

    It has the catalog, the logs and the small chunks, and no chunk files. Raises StartError for a database of another
    release, and StoreError.
    """
    check_version(source)
    part = target.with_name(target.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(part)) as copy:
            source.backup(copy)
            # One file, to be opened without leaving others beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"the copy is no sound database: {verdict}")
        sync_path(part)
        part.replace(target)
        sync_path(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot copy the database to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
