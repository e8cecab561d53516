"""`sim fill`: the data folders of a local cluster that has very many files, as if they had been uploaded.

The ops are written by the peers' own replicas and applied by their own store, to one catalog, of which each peer gets
a copy; then each gets the content it holds. So the rows are those that uploads make, in less time than uploads take.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from uuid import UUID

import click
import sqlite_utils
from blake3 import blake3

from peer.cluster.folder import claimed, write_private
from peer.cluster.layout import ClusterError, Layout, settle_layout
from peer.config import INLINE_BYTES_MAX
from peer.gossip.placement import Placement
from peer.node import DATABASE
from peer.store.catalog import SqliteStore
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import adopt
from peer.store.database import set_meta_value
from peer.store.members import rerank, save_members
from peer.store.rows import select_puts
from peer.store.schema import migrate
from peer.world.disk import SystemDisk, sync_path
from protocol.identity import Dot, Member, NodeId
from protocol.ops import Chunk, Manifest
from protocol.placement import PARTITIONS, rank_all
from protocol.replica import Replica

A_TRANSACTION = 2000
"""Files."""
A_RUN = 16
"""Files a peer declares held in one op: about as many as share an exchange when sixteen clients upload at once."""
CACHE_KIB = 512 * 1024
EVERY_MS = 20
"""Between two uploads, by the clock in their stamps."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What a cluster is filled with: so many files of so many bytes, in so many copies."""

    files: int
    size: int
    copies: int

    def content(self, file_key: str) -> bytes:
        """The bytes of a file: other ones for each."""
        return blake3(file_key.encode()).digest(self.size)


def fill(data: Path, layout: Layout, filling: Filling, tell: Callable[[str], None]) -> None:
    """Make the folders of a cluster's peers in a folder where there is none yet. Raises ClusterError."""
    with claimed(data):
        if (data / "cluster.json").exists():
            raise ClusterError(f"{data} holds a cluster already; fill another folder, or remove that one")
        made = data / "filling"
        shutil.rmtree(made, ignore_errors=True)
        _make_catalog(made, layout, filling, tell)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            for node_id in pool.map(partial(_make_folder, data, made, filling), layout.node_ids):
                tell(f"{node_id} has its content")
        shutil.rmtree(made)
        # Last, for it makes a cluster of it.
        write_private(data / "cluster.json", asdict(layout))


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database of a data folder to be written, with room in memory; synced when it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(SystemDisk(folder, syncs=False).database(DATABASE).connect_writer()) as connection:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        yield connection
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    sync_path(folder / DATABASE)
    sync_path(folder)


@contextmanager
def _transaction(store: SqliteStore) -> Iterator[None]:
    store.connection.execute("BEGIN IMMEDIATE")
    yield
    store.flush()
    store.connection.execute("COMMIT")
    store.committed_tail()


def _make_catalog(folder: Path, layout: Layout, filling: Filling, tell: Callable[[str], None]) -> None:
    """A catalog and the log that leads to it, as all peers have it once they have heard of everything."""
    members = tuple(Member(NodeId(node_id), str(layout.address_of(node_id)), 1) for node_id in layout.node_ids)
    placement = Placement()
    places = placement.follow(members)
    with _opened(folder) as connection:
        migrate(sqlite_utils.Database(connection))
        store = SqliteStore(connection, placement.targets)
        with _transaction(store):
            set_meta_value(connection, "cluster_id", layout.cluster_id)
            save_members(store, members)
            rerank(store, list(enumerate(rank_all(places))), 0, 2 * PARTITIONS)
        uploads = _Uploads(store, placement, filling, [member.node_id for member in members])
        for numbers in _pieces(range(filling.files), A_TRANSACTION):
            with _transaction(store):
                for run in _pieces(numbers, A_RUN):
                    uploads.carry_out(run)
            tell(f"{numbers[-1] + 1} of {filling.files} files are in the catalog")


def _pieces(numbers: range, size: int) -> Iterator[range]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


class _Uploads:
    """What uploads write into the log, through one peer after the other."""

    def __init__(self, store: SqliteStore, placement: Placement, filling: Filling, node_ids: Sequence[NodeId]) -> None:
        self._placement = placement
        self._filling = filling
        self._replicas = {node_id: Replica(node_id, store, Random(node_id)) for node_id in node_ids}
        self._node_ids = node_ids
        self._first_ms = int(time.time() * 1000) - filling.files * EVERY_MS

    def carry_out(self, run: Sequence[int]) -> None:
        """Take in some files at one peer, and have their other targets hold them."""
        at = self._node_ids[run[0] // A_RUN % len(self._node_ids)]
        held: dict[NodeId, list[Dot]] = {node_id: [] for node_id in self._node_ids}
        wall_ms = self._first_ms + run[0] * EVERY_MS
        for number in run:
            wall_ms = self._first_ms + number * EVERY_MS
            manifest = self._manifest(number, wall_ms)
            targets = self._placement.targets_of(manifest.file_key, manifest.copies)
            put = self._replicas[at].put(manifest, wall_ms, is_held=at in targets)
            for node_id in targets:
                if node_id != at:
                    held[node_id].append(put.dot)
        for node_id, dots in held.items():
            self._replicas[node_id].hold_all(dots, wall_ms)

    def _manifest(self, number: int, wall_ms: int) -> Manifest:
        name = hashlib.md5(str(number).encode(), usedforsecurity=False).digest()
        file_key = str(UUID(bytes=name, version=4))
        content = self._filling.content(file_key)
        return Manifest(
            file_key=file_key,
            filename=f"file-{number:09}.bin",
            size_bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
            content_type="application/octet-stream",
            uploaded_at_ms=wall_ms,
            copies=self._filling.copies,
            chunks=(Chunk(blake3(content).digest(), len(content)),),
        )


def _make_folder(data: Path, made: Path, filling: Filling, node_id: str) -> str:
    """A peer's folder: the catalog, and the content of what it holds."""
    folder = data / node_id
    folder.mkdir(parents=True)
    shutil.copyfile(made / DATABASE, folder / DATABASE)
    with _opened(folder) as connection:
        store = SqliteStore(connection)
        with _transaction(store):
            set_meta_value(connection, "node_id", node_id)
        last_id = 0
        while found := list(select_puts(connection, _HELD_BY, last_id, node_id, A_TRANSACTION)):
            with _transaction(store):
                for row_id, put in found:
                    (chunk,) = put.manifest.chunks or ()
                    content = filling.content(put.manifest.file_key)
                    adopt(store, [FreshChunk(chunk.hash, chunk.size, None, content)])
                    store.mark_held(row_id, [chunk])
            last_id = found[-1][0]
    return node_id


_HELD_BY = (
    "WHERE puts.id > ? AND EXISTS (SELECT 1 FROM holds JOIN origins ho ON ho.id = holds.origin"
    " JOIN nodes hn ON hn.id = ho.node WHERE holds.put = puts.id AND hn.node_id = ?) ORDER BY puts.id LIMIT ?"
)


@click.command("fill")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--files", type=click.IntRange(1, 100_000_000), default=100_000, show_default=True, help="How many.")
@click.option(
    "--size",
    type=click.IntRange(1, INLINE_BYTES_MAX),
    default=4096,
    show_default=True,
    help="Bytes of each: as many as peers keep in their database.",
)
@click.option("--nodes", type=click.IntRange(1, 200), default=3, show_default=True, help="Peers of the cluster.")
@click.option("--copies", type=click.IntRange(1, 100), default=3, show_default=True, help="Of each file.")
@click.option("--base-port", type=int, help="The first peer's port; as minidfs cluster has it by default.")
@click.option("--facade-port", type=int, help="The naming service's port; as minidfs cluster has it by default.")
def fill_command(
    folder: Path, files: int, size: int, nodes: int, copies: int, base_port: int | None, facade_port: int | None
) -> None:
    """Make the data folders of a cluster that has many files.

    FOLDER must not hold a cluster yet; start it with minidfs cluster --data FOLDER. The files are named by random ids
    and hold random bytes.
    """
    layout = settle_layout(folder, nodes, base_port, facade_port)
    fill(folder.absolute(), layout, Filling(files, size, copies), lambda line: click.echo(line, err=True))
    click.echo(f"{folder} has {nodes} peers with {files} files of {size} bytes; minidfs cluster --data {folder}")
