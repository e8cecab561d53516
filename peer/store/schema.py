"""The tables of a peer's database and the steps that bring an older one up to date.

Operators read `nodes`, `files`, `file_locations` and `replication_queue` with `sqlite-utils` or Datasette; these views
(and the table `nodes`) hold no logic of their own, all they show is kept up to date in the transactions that change it.

Foreign keys point from what was derived to what it was derived from, inside one transaction, so they can never refuse
an op: a node's row is made when its name is first heard, an origin's row when its first op is.
"""

from __future__ import annotations

from contextlib import suppress

import sqlite_utils
from sqlite_utils import Migrations

from peer.store.rows import (
    CHUNK_PREFIX,
    COUNTING,
    FILES,
    ONE_CHUNK_BYTES_MAX,
    UNREADABLE,
    add_chunk_uses,
    unpack_chunks,
)
from peer.world.env import StartError
from protocol.codec import NO_LOG, decode_op, encode_op, next_log_hash
from protocol.errors import MalformedMessage

SCHEMA_VERSION = 9
"""Written into `PRAGMA user_version`; a database with a higher one was made by a newer release and is refused."""

migrations = Migrations("minidfs")


@migrations()
def m001_first(db: sqlite_utils.Database) -> None:
    """The log, the catalog, the chunks and what operators read."""
    for statement in _TABLES + _VIEWS:
        db.execute(statement)


@migrations()
def m002_parts(db: sqlite_utils.Database) -> None:
    """What a disk keeps of a file of which a chunk has gone bad; registrations, which no upload made."""
    for statement in _PARTS:
        db.execute(statement)


@migrations()
def m003_words(db: sqlite_utils.Database) -> None:
    """One word, one meaning; and no columns that nothing fills."""
    for statement in _WORDS:
        db.execute(statement)


@migrations()
def m004_forks(db: sqlite_utils.Database) -> None:
    """Running hashes of logs, by which forked ones are told apart."""
    for statement in _FORKS:
        db.execute(statement)
    # A log whose beginning is gone has a hash nobody knows.
    for (origin,) in db.execute("SELECT id FROM origins WHERE floor = 0 ORDER BY id").fetchall():
        log_hash = NO_LOG
        rows = db.execute("SELECT arrival, op FROM log WHERE origin = ? ORDER BY seq", [origin])
        # Of a damaged row, and of all behind it, nobody knows it either.
        with suppress(MalformedMessage):
            for arrival, op in rows.fetchall():
                log_hash = next_log_hash(log_hash, encode_op(decode_op(op)))
                db.execute("UPDATE log SET hash = ? WHERE arrival = ?", [log_hash, arrival])


@migrations()
def m005_runs(db: sqlite_utils.Database) -> None:
    """The log may have ops that no earlier release can read; in `log`, `seq` is that of an op's last dot."""


@migrations()
def m006_chunk_uses(db: sqlite_utils.Database) -> None:
    """Which files have a chunk, without looking through all of them."""
    for statement in _CHUNK_USES:
        db.execute(statement)
    several = db.execute("SELECT id, chunks FROM puts WHERE length(chunks) > ?", [ONE_CHUNK_BYTES_MAX])
    for row_id, packed in several.fetchall():
        # What a damaged row had is fetched again with the row.
        with suppress(*UNREADABLE):
            add_chunk_uses(db.conn, row_id, unpack_chunks(packed) or ())


@migrations()
def m007_files(db: sqlite_utils.Database) -> None:
    """How many files there are, without counting them; which chunks are files, without looking through all."""
    db.execute("CREATE INDEX chunk_files ON chunks (hash, size, serial) WHERE content IS NULL")
    db.execute(f"REPLACE INTO meta SELECT '{FILES}', count(*) FROM puts WHERE shown")


@migrations()
def m008_evictions(db: sqlite_utils.Database) -> None:
    """Members that were removed for good: what they hold does not count."""
    for statement in _EVICTIONS:
        db.execute(statement)


@migrations()
def m009_out(db: sqlite_utils.Database) -> None:
    """What members hold that are out does not count either."""
    for statement in _OUT:
        db.execute(statement)


def migrate(db: sqlite_utils.Database) -> None:
    """Bring a database to this release's schema.

    Raises StartError when it was made by a newer release.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise StartError(
            f"the database has schema {found} and this release knows {SCHEMA_VERSION}; start the newer release again"
        )
    if found < SCHEMA_VERSION:
        migrations.apply(db)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # A node whose name was only heard in an op, or in a request about it, has no address.
    """CREATE TABLE nodes (
        id INTEGER PRIMARY KEY,
        node_id TEXT NOT NULL UNIQUE,
        address TEXT,
        zone TEXT NOT NULL DEFAULT '',
        incarnation INTEGER NOT NULL DEFAULT 0,
        membership TEXT NOT NULL DEFAULT 'unknown',
        status TEXT NOT NULL DEFAULT 'DOWN',
        last_heartbeat TEXT)""",
    """CREATE TABLE origins (
        id INTEGER PRIMARY KEY,
        node INTEGER NOT NULL REFERENCES nodes(id),
        epoch INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        floor INTEGER NOT NULL,
        UNIQUE (node, epoch))""",
    # The order of `arrival` is the order in which ops travel on.
    """CREATE TABLE log (
        arrival INTEGER PRIMARY KEY,
        origin INTEGER NOT NULL REFERENCES origins(id),
        seq INTEGER NOT NULL,
        op BLOB NOT NULL,
        UNIQUE (origin, seq))""",
    # `shown`: of the live versions of its key the one that is listed and served.
    # `held`: this peer's disk has the content, all of it.
    """CREATE TABLE puts (
        id INTEGER PRIMARY KEY,
        origin INTEGER NOT NULL REFERENCES origins(id),
        seq INTEGER NOT NULL,
        stamp INTEGER NOT NULL,
        file_key TEXT NOT NULL,
        partition INTEGER NOT NULL,
        filename TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        content_type TEXT NOT NULL,
        uploaded_at_ms INTEGER NOT NULL,
        copies INTEGER NOT NULL,
        chunks BLOB,
        shown INTEGER NOT NULL DEFAULT 0,
        held INTEGER NOT NULL DEFAULT 0,
        UNIQUE (origin, seq))""",
    "CREATE INDEX puts_by_key ON puts (file_key)",
    "CREATE INDEX puts_by_age ON puts (uploaded_at_ms, file_key) WHERE shown",
    "CREATE INDEX puts_by_name ON puts (filename) WHERE shown",
    "CREATE INDEX puts_by_content ON puts (sha256)",
    "CREATE INDEX puts_by_partition ON puts (partition)",
    """CREATE TABLE holds (
        origin INTEGER NOT NULL REFERENCES origins(id),
        seq INTEGER NOT NULL,
        put INTEGER NOT NULL REFERENCES puts(id),
        stamp INTEGER NOT NULL,
        recovered INTEGER NOT NULL,
        PRIMARY KEY (origin, seq)) WITHOUT ROWID""",
    "CREATE INDEX holds_by_put ON holds (put)",
    # The peers a partition's files belong on, best first; made anew when members change.
    """CREATE TABLE placement (
        partition INTEGER NOT NULL,
        rank INTEGER NOT NULL,
        node INTEGER NOT NULL REFERENCES nodes(id),
        PRIMARY KEY (partition, rank)) WITHOUT ROWID""",
    # Targets that lack a file (PENDING), and those that got it by repair (COMPLETED).
    """CREATE TABLE queue (
        id INTEGER PRIMARY KEY,
        put INTEGER NOT NULL REFERENCES puts(id) ON DELETE CASCADE,
        target INTEGER NOT NULL REFERENCES nodes(id),
        status TEXT NOT NULL,
        completed_at_ms INTEGER)""",
    "CREATE INDEX queue_by_target ON queue (target, status)",
    "CREATE INDEX queue_by_put ON queue (put)",
    "CREATE INDEX queue_by_completion ON queue (completed_at_ms) WHERE completed_at_ms IS NOT NULL",
    # Small chunks have their `content` here, others a file named `<hash>.<serial>`. `refs` counts the puts it is for.
    """CREATE TABLE chunks (
        id INTEGER PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        serial INTEGER,
        refs INTEGER NOT NULL,
        content BLOB)""",
    # Another peer's whole state, on its way in.
    """CREATE TABLE staged (
        node_id TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        is_hold INTEGER NOT NULL,
        op BLOB NOT NULL,
        PRIMARY KEY (is_hold, node_id, epoch, seq)) WITHOUT ROWID""",
)

_PARTS = (
    # `kept`: what this disk has of the content counts in the `refs` of its chunks, all of it (`held`) or not.
    "ALTER TABLE puts ADD COLUMN kept INTEGER NOT NULL DEFAULT 0",
    "UPDATE puts SET kept = held",
    # `registered`: made known by a client, and not uploaded.
    "ALTER TABLE puts ADD COLUMN registered INTEGER NOT NULL DEFAULT 0",
    # Registrations rank below uploads from now on.
    """UPDATE puts SET shown = 0 WHERE chunks IS NULL
        AND EXISTS (SELECT 1 FROM puts other WHERE other.file_key = puts.file_key AND other.chunks IS NOT NULL)""",
    """UPDATE puts SET shown = 1 WHERE id IN (SELECT id FROM (
        SELECT puts.id, row_number() OVER (
            PARTITION BY file_key ORDER BY stamp DESC, node_id DESC, epoch DESC, seq DESC) AS rank
        FROM puts JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node
        WHERE chunks IS NOT NULL AND file_key NOT IN (SELECT file_key FROM puts WHERE shown)) WHERE rank = 1)""",
    # A chunk whose bytes were found bad has neither serial nor content, and its row stays for those who need it.
    "ALTER TABLE chunks ADD COLUMN condemned INTEGER NOT NULL DEFAULT 0",
)

_WORDS = (
    "ALTER TABLE staged RENAME TO incoming",
    "ALTER TABLE nodes DROP COLUMN status",
    "ALTER TABLE nodes DROP COLUMN last_heartbeat",
)

_FORKS = (
    # The running hash of the origin's log up to this op, NULL where it is not known.
    "ALTER TABLE log ADD COLUMN hash BLOB",
    "ALTER TABLE origins ADD COLUMN floor_hash BLOB",
    # See `Store.give_up`.
    "CREATE TABLE given_up (mark BLOB PRIMARY KEY) WITHOUT ROWID",
)

_CHUNK_USES = (
    # Of a file that is one chunk: the first bytes of its hash.
    f"CREATE INDEX puts_by_chunk ON puts ({CHUNK_PREFIX})",
    # Of a file of several: the same of each.
    """CREATE TABLE chunk_uses (
        prefix BLOB NOT NULL,
        put INTEGER NOT NULL,
        PRIMARY KEY (prefix, put)) WITHOUT ROWID""",
)

_EVICTIONS = (
    # How often a member that was removed had come back, and that of those removed which have not come back since.
    "ALTER TABLE nodes ADD COLUMN joined INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE nodes ADD COLUMN evicted INTEGER",
    "DROP VIEW file_locations",
    """CREATE VIEW file_locations AS
        SELECT DISTINCT puts.file_key, nodes.node_id,
               strftime('%Y-%m-%dT%H:%M:%SZ', (holds.stamp >> 16) / 1000, 'unixepoch') AS held_since
        FROM holds
        JOIN puts ON puts.id = holds.put
        JOIN origins ON origins.id = holds.origin
        JOIN nodes ON nodes.id = origins.node
        WHERE puts.shown AND nodes.membership <> 'left'""",
)

_OUT = (
    "DROP VIEW file_locations",
    f"""CREATE VIEW file_locations AS
        SELECT DISTINCT puts.file_key, nodes.node_id,
               strftime('%Y-%m-%dT%H:%M:%SZ', (holds.stamp >> 16) / 1000, 'unixepoch') AS held_since
        FROM holds
        JOIN puts ON puts.id = holds.put
        JOIN origins ON origins.id = holds.origin
        JOIN nodes ON nodes.id = origins.node
        WHERE puts.shown AND nodes.membership {COUNTING}""",
)

_TIME = "strftime('%Y-%m-%dT%H:%M:%SZ', {} / 1000, 'unixepoch')"

_VIEWS = (
    f"""CREATE VIEW files AS
        SELECT file_key, filename AS original_filename, size_bytes, lower(hex(sha256)) AS checksum_sha256,
               content_type, {_TIME.format("uploaded_at_ms")} AS uploaded_at, copies
        FROM puts WHERE shown""",
    f"""CREATE VIEW file_locations AS
        SELECT DISTINCT puts.file_key, nodes.node_id, {_TIME.format("(holds.stamp >> 16)")} AS held_since
        FROM holds
        JOIN puts ON puts.id = holds.put
        JOIN origins ON origins.id = holds.origin
        JOIN nodes ON nodes.id = origins.node
        WHERE puts.shown""",
    f"""CREATE VIEW replication_queue AS
        SELECT queue.id, puts.file_key, nodes.node_id AS target_node_id, queue.status,
               {_TIME.format("puts.uploaded_at_ms")} AS created_at,
               {_TIME.format("queue.completed_at_ms")} AS completed_at
        FROM queue
        JOIN puts ON puts.id = queue.put
        JOIN nodes ON nodes.id = queue.target""",
)
