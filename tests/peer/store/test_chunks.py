"""Chunks on a disk, real and virtual: where they lie, when they are read again, what a crash leaves of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.config import Address, Config
from peer.events import Events
from peer.store.catalog import no_targets
from peer.store.chunk_files import ChunkWriter, FreshChunk
from peer.store.chunks import VERIFIED_FOR_S, ChunkStore, adopt
from peer.store.database import Database
from peer.store.errors import ChunkCorrupt, ChunkMissing
from peer.store.holding import Holding
from peer.store.rows import ChunkRow, chunk_file_name
from peer.store.space import Space
from peer.store.staging import STAGED_FOR_S
from peer.upkeep.inventory import Inventory
from peer.world.disk import SystemDisk
from peer.world.env import Disk, StoreError, Work
from protocol.identity import NodeId
from protocol.ops import Chunk, Manifest, Put
from protocol.replica import Replica
from sim.disk import Mount, NewFile, Platter

INLINE = 100
NOW_MS = 1_767_225_600_000


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall_ms(self) -> int:
        return NOW_MS


class PlainEnv:
    """An environment around a disk: blocking calls are made at once, time stands still until it is set."""

    def __init__(self, disk: Disk, life: int = 1) -> None:
        self.disk = disk
        self.clock = FakeClock()
        self._life = life

    def chance(self, stream: str) -> Random:
        return Random(f"{stream} {self._life}")

    async def run_blocking(self, work: Work, call: Callable[..., Any], *args: object) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*args)


class Store:
    """A chunk store over a database, and a log to hold files in."""

    def __init__(self, disk: Disk, life: int = 1) -> None:
        config = Config(node_id="node-1", listen=Address("127.0.0.1", 0), data=Path(), inline_bytes_max=INLINE)
        self.env = PlainEnv(disk, life)
        self.events = Events(lambda: 0, life)
        self.database = Database(self.env, "minidfs.db", no_targets)  # type: ignore[arg-type]
        trio.run(self.database.open)
        self.chunks = ChunkStore(self.env, config, self.database, Space(self.env, 0, self.events))  # type: ignore[arg-type]
        trio.run(self.chunks.open)
        self.replica = Replica(NodeId("node-1"), self.database.store, self.env.chance("epochs"))
        space = Space(self.env, 0, self.events)  # type: ignore[arg-type]
        self.here = Holding(
            NodeId("node-1"), self.env.clock, self.database, self.replica, self.chunks, space, self.events  # type: ignore[arg-type]
        )  # fmt: skip

    def take_inventory(self) -> None:
        """What is done behind a start."""

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.database.run)
                await Inventory(self.env, self.here).run()  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()

        trio.run(main)
        self.collect()

    def write(self, *pieces: bytes) -> FreshChunk:
        writer = ChunkWriter(self.chunks.files)
        for piece in pieces:
            writer.write(piece)
        return writer.finish()

    def hold(self, file_key: str, *fresh: FreshChunk) -> Put:
        """Commit a file of these chunks, and that it is held."""

        def step() -> Put:
            chunks = tuple(Chunk(chunk.hash, chunk.size) for chunk in fresh)
            manifest = Manifest(
                file_key=file_key, filename="a", size_bytes=sum(chunk.size for chunk in chunks), sha256=bytes(32),
                content_type="a/b", uploaded_at_ms=NOW_MS, copies=1, chunks=chunks,
            )  # fmt: skip
            put = self.replica.put(manifest, NOW_MS)
            found = self.database.store.put_row(put.dot)
            assert found is not None
            adopt(self.database.store, fresh)
            self.database.store.mark_held(found[0], chunks)
            self.replica.hold(put.dot, NOW_MS)
            return put

        put = trio.run(self.database.write_alone, step)
        self.collect()
        return put

    def delete(self, file_key: str) -> None:
        trio.run(self.database.write_alone, lambda: self.replica.delete(file_key, NOW_MS))
        self.collect()

    def collect(self) -> None:
        """What the collector does after a commit."""
        unused, self.database._unused_files = self.database._unused_files, []
        self.database.on_unused_files(unused)
        trio.run(self.chunks.collector.step)

    def refs(self) -> list[tuple[int, int]]:
        return self.query("SELECT size, refs FROM chunks ORDER BY size")

    def query(self, query: str) -> list[tuple[Any, ...]]:
        return self.database.look_up(lambda connection: connection.execute(query).fetchall())

    def files(self) -> list[str]:
        """All files on the disk, by their paths."""
        folders = ["receiving", *(f"chunks/{prefix:02x}" for prefix in range(256))]
        return [f"{folder}/{name}" for folder in folders for name, _ in self.env.disk.list_files(folder)]

    def read(self, name: bytes) -> bytes:
        row = self.chunks.row(name)
        if row is None:
            raise ChunkMissing("no row")
        return trio.run(self.chunks.read_whole, name, row)


@pytest.fixture(params=["real", "virtual"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(SystemDisk(tmp_path) if request.param == "real" else Mount(Platter()))
    yield made
    trio.run(made.database.close)


# --- where chunks lie ---


@pytest.mark.parametrize("size", [0, 1, INLINE - 1, INLINE, INLINE + 1, 5 * INLINE])
def test_small_chunks_lie_in_the_database_and_larger_ones_in_files(store: Store, size: int) -> None:
    content = Random(size).randbytes(size)
    fresh = store.write(*(content[at : at + 7] for at in range(0, size, 7)))
    assert fresh.hash == blake3(content).digest()
    store.hold("k", fresh)
    if size <= INLINE:
        assert fresh.serial is None
        assert store.files() == []
    else:
        assert store.files() == [f"chunks/{fresh.hash[:1].hex()}/{fresh.hash.hex()}.{fresh.serial}"]
    assert store.read(fresh.hash) == content
    assert store.chunks.row(fresh.hash) is not None
    assert store.chunks.row(bytes(32)) is None
    with pytest.raises(ChunkMissing):
        store.read(bytes(32))


def test_writing_a_chunk_whole_or_in_pieces_gives_the_same_chunk(store: Store) -> None:
    for size in (0, INLINE, INLINE + 1):
        content = Random(size).randbytes(size)
        whole = trio.run(store.chunks.files.write_whole, content)
        pieces = store.write(content[: size // 2], b"", memoryview(content)[size // 2 :])  # type: ignore[arg-type]
        assert (whole.hash, whole.size, whole.content) == (pieces.hash, pieces.size, pieces.content)
        assert (whole.serial is None) == (pieces.serial is None)


def test_a_chunk_that_is_abandoned_or_discarded_leaves_nothing(store: Store) -> None:
    writer = ChunkWriter(store.chunks.files)
    writer.write(b"x" * (INLINE + 1))
    assert len(store.files()) == 1
    writer.abandon()
    writer.abandon()
    assert store.files() == []
    store.chunks.discard([store.write(b"x" * (INLINE + 1)), store.write(b"small")])
    store.collect()
    assert store.files() == []


# --- equal chunks ---


def test_a_file_that_cannot_be_removed_does_not_keep_those_behind_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, loose = store.write(b"1" * 500), store.write(b"2" * 500)
    assert stuck.serial is not None
    path, remove = chunk_file_name(stuck.hash, stuck.serial), store.env.disk.remove

    def fails_for_one(name: str) -> None:
        if name == path:
            raise StoreError("input/output error")
        remove(name)

    monkeypatch.setattr(store.env.disk, "remove", fails_for_one)
    store.chunks.discard([stuck, loose])
    store.collect()
    assert store.files() == [path]


@pytest.mark.parametrize("size", [INLINE, INLINE + 1])
def test_equal_chunks_are_stored_once_and_go_with_the_last_file_that_needs_them(store: Store, size: int) -> None:
    content = b"e" * size
    store.hold("a", store.write(content))
    store.hold("b", store.write(content))
    assert store.refs() == [(size, 2)]
    assert len(store.files()) == (size > INLINE)
    store.delete("a")
    assert store.refs() == [(size, 1)]
    assert store.read(blake3(content).digest()) == content
    store.delete("b")
    assert store.refs() == []
    assert store.files() == []


def test_an_overwrite_with_the_same_content_keeps_the_chunk(store: Store) -> None:
    content = b"e" * 500
    for _ in range(4):
        store.hold("a", store.write(content))
        assert store.refs() == [(500, 1)]
        assert len(store.files()) == 1
        assert store.read(blake3(content).digest()) == content


def test_a_chunk_that_was_adopted_is_not_discarded(store: Store) -> None:
    fresh = store.write(b"e" * 500)
    store.hold("a", fresh)
    store.chunks.discard([fresh])
    store.collect()
    assert store.read(fresh.hash) == b"e" * 500


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abc"), st.lists(st.integers(0, 4))), max_size=12
    )
)
def test_chunks_are_exactly_those_that_held_files_need(steps: list[tuple[str, str, list[int]]]) -> None:
    contents = [bytes([number]) * size for number, size in enumerate((0, 50, INLINE, INLINE + 1, 300))]
    store = Store(Mount(Platter()))
    held: dict[str, list[bytes]] = {}
    for what, key, numbers in steps:
        if what == "put":
            store.hold(key, *(store.write(contents[number]) for number in numbers))
            held[key] = [contents[number] for number in numbers]
        else:
            store.delete(key)
            held.pop(key, None)
        needed = {content for file in held.values() for content in file}
        counts = sorted((len(content), sum(content in file for file in held.values())) for content in needed)
        assert store.refs() == counts
        assert len(store.files()) == sum(len(content) > INLINE for content in needed)
        for content in needed:
            assert store.read(blake3(content).digest()) == content


# --- reading ---


def test_an_open_file_is_read_to_its_end_though_its_name_is_removed(store: Store) -> None:
    content = Random(1).randbytes(5000)
    fresh = store.write(content)
    store.hold("k", fresh)
    row = store.chunks.row(fresh.hash)
    assert row is not None
    file = trio.run(store.chunks.open_verified, fresh.hash, row)
    try:
        store.delete("k")
        assert store.files() == []
        assert b"".join(file.read_at(at, 1000) for at in range(0, 6000, 1000)) == content
    finally:
        file.close()
    with pytest.raises(ChunkMissing):
        trio.run(store.chunks.open_verified, fresh.hash, row)


@contextmanager
def in_place(folder: Path, fresh: FreshChunk) -> Iterator[Path]:
    assert fresh.serial is not None
    yield folder / chunk_file_name(fresh.hash, fresh.serial)


@pytest.mark.parametrize("spoil", ["one bit", "shorter", "longer", "empty"])
def test_a_file_that_was_touched_is_verified_again(tmp_path: Path, spoil: str) -> None:
    store = Store(SystemDisk(tmp_path))
    fresh = store.write(b"x" * 5000)
    store.hold("k", fresh)
    assert store.read(fresh.hash) == b"x" * 5000
    with in_place(tmp_path, fresh) as path:
        spoiled = {"one bit": b"y" + b"x" * 4999, "shorter": b"x" * 4999, "longer": b"x" * 5001, "empty": b""}[spoil]
        path.write_bytes(spoiled)
        for _ in range(2):
            with pytest.raises(ChunkCorrupt):
                store.read(fresh.hash)
        path.write_bytes(b"x" * 5000)
        assert store.read(fresh.hash) == b"x" * 5000
        path.unlink()
        with pytest.raises(ChunkMissing):
            store.read(fresh.hash)
    trio.run(store.database.close)


def test_a_file_verified_a_short_while_ago_is_not_read_twice_and_later_it_is(tmp_path: Path) -> None:
    store = Store(SystemDisk(tmp_path))
    fresh = store.write(b"x" * 5000)
    store.hold("k", fresh)
    store.read(fresh.hash)
    with in_place(tmp_path, fresh) as path:
        # Bits that turn without anybody touching the file.
        before = path.stat()
        path.write_bytes(b"y" * 5000)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.env.clock.time += VERIFIED_FOR_S - 1
    assert store.read(fresh.hash) == b"y" * 5000
    store.env.clock.time += 1
    with pytest.raises(ChunkCorrupt):
        store.read(fresh.hash)
    trio.run(store.database.close)


def test_rotten_bytes_in_the_database_are_found_at_every_read(store: Store) -> None:
    fresh = store.write(b"small")
    store.hold("k", fresh)
    assert store.read(fresh.hash) == b"small"
    store.database.store.connection.execute("UPDATE chunks SET content = CAST('SMALL' AS BLOB)")
    with pytest.raises(ChunkCorrupt):
        store.read(fresh.hash)
    with pytest.raises(ChunkCorrupt):
        trio.run(store.chunks.verify, fresh.hash, store.chunks.row(fresh.hash))


# --- staged chunks ---


def test_staged_chunks_wait_for_ten_minutes(store: Store) -> None:
    first, second = store.write(b"1" * 500), store.write(b"2" * 500)
    staging = store.chunks.staging
    staging.stage(first)
    store.env.clock.time += STAGED_FOR_S / 2
    staging.stage(second)
    staging.expire()
    assert staging.has(first.hash)
    store.env.clock.time += STAGED_FOR_S / 2
    staging.expire()
    assert not staging.has(first.hash)
    assert staging.claim(first.hash) is None
    assert staging.has(second.hash)
    store.collect()
    assert len(store.files()) == 1


def test_a_staged_chunk_has_one_owner(store: Store) -> None:
    first, second = store.write(b"1" * 500), store.write(b"1" * 500)
    staging = store.chunks.staging
    staging.stage(first)
    staging.stage(second)
    assert staging.claim(first.hash) is second
    assert staging.claim(first.hash) is None
    store.env.clock.time += 2 * STAGED_FOR_S
    staging.expire()
    store.collect()
    assert len(store.files()) == 1, "the one that was replaced goes, the one that was claimed is its owner's"


# --- crashes ---


class Countdown:
    """The power fails at a certain access to the disk."""

    def __init__(self, platter: Platter, accesses: int) -> None:
        self._platter = platter
        self.left = accesses

    def access(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._platter.crash()


class CountedFile(NewFile):
    countdown: Countdown

    def write(self, piece: bytes | memoryview) -> None:
        self.countdown.access()
        super().write(piece)

    def sync(self) -> None:
        self.countdown.access()
        super().sync()
        self.countdown.access()


class CountedMount(Mount):
    """A disk whose power fails before or behind a certain step."""

    def __init__(self, platter: Platter, countdown: Countdown) -> None:
        super().__init__(platter)
        platter.mount = self
        self._countdown = countdown

    def create(self, path: str) -> NewFile:
        self._countdown.access()
        super().create(path)
        counted = CountedFile(self, self.platter.files[path])
        counted.countdown = self._countdown
        self._countdown.access()
        return counted

    def rename(self, old: str, new: str) -> None:
        self._countdown.access()
        super().rename(old, new)
        self._countdown.access()

    def sync_folder(self, folder: str) -> None:
        self._countdown.access()
        super().sync_folder(folder)
        self._countdown.access()

    def remove(self, path: str) -> None:
        self._countdown.access()
        super().remove(path)
        self._countdown.access()


def test_a_crash_at_any_step_leaves_no_orphans_and_nothing_committed_without_its_bytes() -> None:
    contents = [Random(number).randbytes(size) for number, size in enumerate((50, 300, 301))]
    crashes = 0
    for accesses in range(1, 200):
        platter = Platter()
        countdown = Countdown(platter, accesses)
        committed: dict[str, list[bytes]] = {}
        try:
            store = Store(CountedMount(platter, countdown))
            for key in ("a", "b", "c"):
                fresh = [store.write(content[:100], content[100:]) for content in contents]
                # A crash comes before a commit or after it.
                store.env.disk.check()  # type: ignore[attr-defined]
                committed[key] = contents
                store.hold(key, *fresh)
            committed.pop("a")
            store.delete("a")
            committed.pop("b")
            store.delete("b")
        except StoreError:
            crashes += 1
        finished = countdown.left > 0
        if finished:
            platter.crash()
        again = Store(Mount(platter), life=2)
        again.take_inventory()
        assert again.query("SELECT hash FROM chunks WHERE condemned") == [], f"crash at access {accesses}"
        expected = {
            chunk_file_name(name, serial)
            for name, serial in again.query("SELECT hash, serial FROM chunks WHERE serial NOT NULL")
        }
        assert set(again.files()) == expected, f"crash at access {accesses}"
        for key, chunks in committed.items():
            assert again.database.store.puts_of(key), f"crash at access {accesses}"
            for content in chunks:
                assert again.read(blake3(content).digest()) == content, f"crash at access {accesses}"
        if finished:
            break
    assert crashes > 20
    assert finished


@pytest.fixture(params=["real", "virtual"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return SystemDisk(tmp_path) if request.param == "real" else Mount(Platter())


def path_of(fresh: FreshChunk) -> str:
    assert fresh.serial is not None
    return chunk_file_name(fresh.hash, fresh.serial)


def moved(fresh: FreshChunk) -> str:
    """Another name that a chunk of the same bytes may have."""
    assert fresh.serial is not None
    return chunk_file_name(fresh.hash, fresh.serial + 1)


def restarted(store: Store) -> Store:
    trio.run(store.database.close)
    return Store(store.env.disk, life=2)


def test_files_that_vanished_or_came_from_nowhere_are_found_behind_the_start(disk: Disk) -> None:
    store = Store(disk)
    kept, lost = store.write(b"1" * 500), store.write(b"2" * 500)
    both = store.hold("both", kept, lost)
    whole = store.hold("whole", kept)
    store.write(b"3" * 500)
    for path in ("receiving/12345", "chunks/00/what", f"chunks/{kept.hash[:1].hex()}/{kept.hash.hex()}.x"):
        disk.make_folder(path.rpartition("/")[0])
        disk.create(path).close()
    disk.remove(path_of(lost))
    again = restarted(store)
    again.take_inventory()
    assert again.files() == [path_of(kept)]
    assert again.here.inventoried.is_set()
    assert again.chunks.row(lost.hash) is None
    assert (again.database.store.is_held(both.dot), again.database.store.is_held(whole.dot)) == (False, True)
    assert again.here.holders(whole.dot) == ("node-1",)
    assert again.here.holders(both.dot) == ()
    trio.run(again.database.close)


def test_a_file_of_the_same_bytes_under_another_serial_takes_the_place_of_one_that_vanished(disk: Disk) -> None:
    store = Store(disk)
    chunks = [store.write(bytes([number]) * 500) for number in range(3)]
    puts = [store.hold(f"k{number}", chunk) for number, chunk in enumerate(chunks)]
    for chunk in chunks:
        disk.rename(path_of(chunk), moved(chunk))
    trio.run(store.database.write_alone, lambda: store.database.store.condemn(chunks[1].hash))
    disk.remove(moved(chunks[2]))
    rotten = disk.create(moved(chunks[2]))
    rotten.write(b"?" * 500)
    rotten.close()
    again = restarted(store)
    again.take_inventory()
    assert [again.database.store.is_held(put.dot) for put in puts] == [True, False, False]
    # Of the one that was given up already nothing is declared, but its bytes are there for whoever fetches it.
    assert [again.read(chunk.hash) for chunk in chunks[:2]] == [b"\0" * 500, b"\1" * 500]
    assert set(again.files()) == {moved(chunk) for chunk in chunks[:2]}
    trio.run(again.database.close)


def test_a_file_found_again_is_of_no_use_once_others_have_its_place(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(disk)
    chunk = store.write(b"1" * 500)
    put = store.hold("k", chunk)
    disk.rename(path_of(chunk), moved(chunk))
    again = restarted(store)
    new = again.write(b"1" * 500)
    take_file = again.here.take_file

    def late(chunk_hash: bytes, row: ChunkRow, serial: int) -> bool:
        adopt(again.database.store, [new])
        return take_file(chunk_hash, row, serial)

    monkeypatch.setattr(again.here, "take_file", late)
    again.take_inventory()
    assert again.files() == [path_of(new)]
    assert again.here.holders(put.dot) == ("node-1",)
    trio.run(again.database.close)


def test_what_is_written_while_folders_are_looked_through_stays(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.upkeep.inventory.FOLDERS_A_STEP", 256)
    store = Store(disk)
    replaced, missing = store.write(b"1" * 500), store.write(b"2" * 500)
    puts = [store.hold("replaced", replaced), store.hold("missing", missing)]
    disk.remove(path_of(missing))
    again = restarted(store)
    waits = again.write(b"3" * 500)
    new = [again.write(b"1" * 500), again.write(b"2" * 500)]
    blocking = again.env.run_blocking

    async def uploaded_behind_the_listing(work: Work, call: Callable[..., Any], *args: object) -> Any:
        found = await blocking(work, call, *args)
        if "_files_in" in call.__name__:
            await again.database.write(lambda: adopt(again.database.store, new))
        return found

    monkeypatch.setattr(again.env, "run_blocking", uploaded_behind_the_listing)
    again.take_inventory()
    monkeypatch.undo()
    assert set(again.files()) == {path_of(chunk) for chunk in (waits, *new)}
    assert [again.read(chunk.hash) for chunk in new] == [b"1" * 500, b"2" * 500]
    assert all(again.here.holders(put.dot) == ("node-1",) for put in puts)
    again.hold("waits", waits)
    assert again.read(waits.hash) == b"3" * 500
    trio.run(again.database.close)
