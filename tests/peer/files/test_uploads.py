"""Uploads to real peers in a simulated world: receipts, retries, and what becomes of ones that are broken off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    converged,
    everywhere,
    get,
    heal,
    holders,
    in_world,
    lose_disk,
    missing_files,
    orphans,
    others,
    part,
    pending,
    put,
    really_holds,
    rows,
    services,
    spoil_files,
    versions,
)

from peer.files.intake import NewFile, UploadRefused
from sim.world import World

INLINE = 1024
CHUNK = 4096
SMALL = {"inline_bytes_max": INLINE, "chunk_bytes_max": CHUNK}
"""Files of a few kilobytes have several chunks, some in the database, some in files."""

QUIET = {"probe_interval_s": 10, "down_after_s": 30, "heal_interval_s": 100}
"""For worlds that let much time pass."""


def new_file(file_key: str | None = "k", copies: int = 3) -> NewFile:
    return NewFile(filename="a.bin", content_type="text/plain", file_key=file_key, copies=copies)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


# --- what is taken in ---


def test_files_of_every_size_around_the_limits_read_back_from_every_peer() -> None:
    sizes = [
        0,
        1,
        INLINE - 1,
        INLINE,
        INLINE + 1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        CHUNK + INLINE,
        3 * CHUNK,
        5 * CHUNK + 7,
    ]

    async def scenario(world: World) -> None:
        contents = {f"size-{size}": world.chance.randbytes(size) for size in sizes}
        for number, (key, content) in enumerate(contents.items()):
            receipt = await put(world, f"node-{number % 3 + 1}", key, content)
            assert receipt["size_bytes"] == len(content)
            assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"], key
        for key, content in contents.items():
            assert await everywhere(world, key) == [content] * 3, key
        await converged(world)

    in_world(scenario, **SMALL)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_file_reads_the_same_however_its_bytes_came_in(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=3 * CHUNK + 5))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]

    async def scenario(world: World) -> None:
        receipt = await services(world, "node-1").uploads.take_in(new_file(), pieces_of(*pieces))
        assert receipt.put.manifest.size_bytes == len(content)
        assert await get(world, "node-1", "k") == content
        assert orphans(world, "node-1") == []

    in_world(scenario, peers=1, **SMALL)


def test_a_file_of_one_repeated_chunk_stores_it_once() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"z" * CHUNK * 5)
        assert await everywhere(world, "k") == [b"z" * CHUNK * 5] * 3
        await converged(world)
        for name in world.machines:
            assert rows(world, name, "SELECT refs FROM chunks") == [(1,)]
            assert orphans(world, name) == []

    in_world(scenario, **SMALL)


def test_a_refused_or_broken_off_upload_leaves_no_listing_no_bytes_and_the_older_version() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"older" * 1000)
        before = {name: sorted(machine.platter.files) for name, machine in world.machines.items()}

        async def breaks_off() -> AsyncIterator[bytes]:
            yield world.chance.randbytes(2 * CHUNK + 100)
            raise UploadRefused("the client has gone")

        wrong = NewFile(filename="a", content_type="text/plain", file_key="k", copies=3, digests={"sha256": bytes(32)})
        uploads = services(world, "node-1").uploads
        with pytest.raises(UploadRefused):
            await uploads.take_in(new_file(), breaks_off())
        with pytest.raises(UploadRefused):
            await uploads.take_in(wrong, pieces_of(world.chance.randbytes(2 * CHUNK + 100)))
        assert await everywhere(world, "k") == [b"older" * 1000] * 3
        assert versions(world, "node-1", "k") == 1
        # What was staged at the others waits for a put for ten minutes.
        await trio.sleep(700)
        assert {name: sorted(machine.platter.files) for name, machine in world.machines.items()} == before

    in_world(scenario, **SMALL, **QUIET)


@pytest.mark.parametrize("size", [INLINE, 2 * CHUNK + 1])
def test_an_upload_cancelled_at_any_moment_never_names_bytes_it_has_removed(size: int) -> None:
    """As at a shutdown whose grace is over."""

    async def scenario(world: World) -> None:
        old, new = world.chance.randbytes(size), world.chance.randbytes(size)
        for step in range(60):
            key = f"k{step}"
            await services(world, "node-1").uploads.take_in(new_file(key), pieces_of(old))
            with trio.move_on_after(0.0007 * step):
                await services(world, "node-1").uploads.take_in(new_file(key), pieces_of(new))
            await trio.sleep(0.1)
            assert missing_files(world, "node-1") == [], f"cancelled after {0.7 * step} ms"
            assert orphans(world, "node-1") == [], f"cancelled after {0.7 * step} ms"
            assert await get(world, "node-1", key) in (old, new)

    in_world(scenario, peers=1, **SMALL)


# --- receipts ---


def test_receipts_are_true_at_the_moment_they_are_given() -> None:
    async def scenario(world: World) -> None:
        for number in range(60):
            if number == 20:
                await world.crash("node-3")
            if number == 40:
                await world.start("node-3")
            content = world.chance.randbytes(world.chance.choice([0, 10, INLINE + 1, 3 * CHUNK]))
            via = world.chance.choice(["node-1", "node-2"])
            key = f"k{world.chance.randrange(8)}"
            receipt = await put(world, via, key, content)
            copies = receipt["durable_copies"]
            assert via in copies
            for name in copies:
                assert world.machines[name].node is not None, f"{number}: {name} is down"
                assert really_holds(world, name, key), f"{number}: {name} does not hold it"
            others = [name for name in copies if name != via]
            assert receipt["replication"]["successful"] == len(others)
            assert receipt["replication"]["failed"] == 2 - len(others)

    in_world(scenario, **SMALL)


@pytest.mark.parametrize("peers", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_half_a_second_after_an_upload_every_peer_lists_all_holders_of_its_receipt(peers: int, seed: int) -> None:
    async def scenario(world: World) -> None:
        for number in range(10):
            key, via = f"k{number}", world.chance.choice(list(world.machines))
            receipt = await put(world, via, key, b"x" * world.chance.choice([10, 3 * CHUNK]))
            await trio.sleep(0.5)
            for name in world.machines:
                listed = (await world.request(name, "GET", "/files")).json()["files"][0]
                assert listed["file_key"] == key, f"{via} to {name}"
                assert set(receipt["durable_copies"]) <= set(listed["replicas"]), f"{via} to {name}"

    in_world(scenario, seed=seed, peers=peers, **SMALL)


def test_with_the_others_down_an_upload_succeeds_and_says_what_is_missing() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await world.crash("node-3")
        for key in ("at once", "later"):
            receipt = await put(world, "node-1", key.replace(" ", "-"), b"x" * 3 * CHUNK)
            assert receipt["durable_copies"] == ["node-1"]
            assert receipt["replication"]["total_nodes"] == 2
            assert receipt["replication"]["failed"] == 2
            assert all(detail["error"] for detail in receipt["replication"]["details"])
            await trio.sleep(10)
        queue = (await world.request("node-1", "GET", "/replication-queue")).json()
        assert {(item["file_key"], item["target_node_id"], item["status"]) for item in queue["items"]} == {
            (key, name, "PENDING") for key in ("at-once", "later") for name in ("node-2", "node-3")
        }
        await world.start("node-2")
        await world.start("node-3")
        await converged(world)
        queue = (await world.request("node-2", "GET", "/replication-queue")).json()
        assert {item["status"] for item in queue["items"]} == {"COMPLETED"}
        assert await everywhere(world, "later") == [b"x" * 3 * CHUNK] * 3

    in_world(scenario, **SMALL)


def test_a_peer_stands_in_for_a_target_that_is_down() -> None:
    async def scenario(world: World) -> None:
        targets = list(others(world, "node-1").placement.targets_of("k", 3))
        spare = next(name for name in world.machines if name not in targets)
        via = targets[0]
        await world.crash(targets[1])
        await trio.sleep(5)
        receipt = await put(world, via, "k", b"x" * 3 * CHUNK)
        assert sorted(receipt["durable_copies"]) == sorted([via, targets[2], spare])
        assert receipt["replication"]["failed"] == 1
        stood_in = [detail for detail in receipt["replication"]["details"] if "instead_of" in detail]
        assert stood_in == [{"node": spare, "success": True, "instead_of": targets[1]}]
        assert really_holds(world, spare, "k")
        assert pending(world, via) == [("k", targets[1])]

    in_world(scenario, peers=4, **SMALL)


@pytest.mark.parametrize("size", [INLINE, 3 * CHUNK])
def test_a_peer_that_heard_of_a_file_and_cannot_take_it_is_in_no_receipt(size: int) -> None:
    async def scenario(world: World) -> None:
        services(world, "node-2").here.space.reason = "the disk is full"
        receipt = await put(world, "node-1", "k", b"x" * size)
        assert receipt["durable_copies"] == ["node-1", "node-3"]
        (failed,) = [detail for detail in receipt["replication"]["details"] if not detail["success"]]
        assert failed["node"] == "node-2"
        assert not really_holds(world, "node-2", "k")

    in_world(scenario, **SMALL)


def test_a_peer_alone_takes_files_and_says_404_and_not_503() -> None:
    async def scenario(world: World) -> None:
        receipt = await put(world, "node-1", "k", b"x" * 10_000)
        assert receipt["durable_copies"] == ["node-1"]
        assert receipt["replication"] == {"total_nodes": 0, "successful": 0, "failed": 0, "details": []}
        assert await get(world, "node-1", "k") == b"x" * 10_000
        assert await get(world, "node-1", "unknown") == httpx.codes.NOT_FOUND
        assert (await world.request("node-1", "DELETE", "/files/unknown")).status_code == httpx.codes.NOT_FOUND
        assert (await world.request("node-1", "DELETE", "/files/k")).json()["deleted_nodes"] == ["node-1"]
        assert await get(world, "node-1", "k") == httpx.codes.NOT_FOUND
        await trio.sleep(1)
        assert world.machines["node-1"].platter.files == {}

    in_world(scenario, peers=1, **SMALL)


# --- retries ---


def test_a_repeated_upload_gets_the_answer_to_the_first() -> None:
    async def scenario(world: World) -> None:
        for size in (10, 3 * CHUNK):
            content = world.chance.randbytes(size)
            first = await put(world, "node-1", f"k{size}", content)
            await trio.sleep(5)
            again = await put(world, "node-1", f"k{size}", content)
            elsewhere = await put(world, "node-2", f"k{size}", content)
            assert again == first
            assert elsewhere["uploaded_at"] == first["uploaded_at"]
            assert elsewhere["durable_copies"] == first["durable_copies"]
            assert versions(world, "node-1", f"k{size}") == 1
        puts = rows(
            world, "node-3", "SELECT count(*) FROM log JOIN puts ON puts.origin = log.origin AND puts.seq = log.seq"
        )
        assert puts == [(2,)]
        await trio.sleep(1)
        assert all(orphans(world, name) == [] for name in world.machines)

    in_world(scenario, **SMALL)


@pytest.mark.parametrize("size", [0, 10, 3 * CHUNK])
def test_what_is_sent_again_stays_though_the_first_was_removed_and_its_peer_had_not_heard_of_that(size: int) -> None:
    """Found by `sim run`, as seed 1404 was then."""

    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        await converged(world)
        part(world, ("node-3",), ("node-1", "node-2"))
        await trio.sleep(10)
        assert (await world.request("node-1", "DELETE", "/files/k")).status_code == httpx.codes.OK
        await put(world, "node-3", "k", content)
        heal(world)
        await converged(world)
        assert await everywhere(world, "k") == [content] * 3

    in_world(scenario, **SMALL)


def test_the_same_content_under_another_name_or_after_a_delete_is_a_new_version() -> None:
    async def scenario(world: World) -> None:
        first = await put(world, "node-1", "k", b"same")
        await trio.sleep(5)
        renamed = (await world.upload("node-1", "other name.bin", b"same", file_id="k")).json()
        assert renamed["uploaded_at"] > first["uploaded_at"]
        await world.request("node-2", "DELETE", "/files/k")
        await trio.sleep(5)
        fresh = await put(world, "node-3", "k", b"same")
        assert fresh["uploaded_at"] > renamed["uploaded_at"]
        assert await everywhere(world, "k") == [b"same"] * 3

    in_world(scenario)


@pytest.mark.parametrize("size", [10, 3 * CHUNK])
def test_sending_content_again_repairs_copies_that_have_rotted(size: int) -> None:
    """A receipt says the bytes are on the disk; those that were just sent are, whatever became of older ones."""

    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        await trio.sleep(700)
        for name in world.machines:
            spoil_files(world, name)
            for (database,) in [world.machines[name].platter.databases.values()]:
                database.execute("UPDATE chunks SET content = zeroblob(size) WHERE content IS NOT NULL")
        receipt = await put(world, "node-1", "k", content)
        assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        for name in ("node-1", "node-2", "node-3"):
            answer = await get(world, name, "k")
            assert answer == content, f"{name}: {answer if isinstance(answer, int) else 'other bytes'}"

    in_world(scenario, **SMALL, **QUIET)


# --- equal bytes at the same time ---


def assert_chunks_counted(world: World, count: int) -> None:
    """Every peer has each chunk once, needed by so many files, and no other file."""
    for name in world.machines:
        assert rows(world, name, "SELECT DISTINCT refs FROM chunks") == [(count,)]
        assert orphans(world, name) == []
        assert missing_files(world, name) == []


@pytest.mark.parametrize("seed", range(3))
def test_equal_content_uploaded_deleted_and_read_at_once_never_loses_a_file(seed: int) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(3 * CHUNK)
        kept: dict[str, None] = {}
        chance = Random(seed)

        async def upload_and_delete(number: int) -> None:
            await trio.sleep(chance.uniform(0, 0.2))
            via = chance.choice(list(world.machines))
            key = f"k{number}"
            await put(world, via, key, content)
            if number % 2:
                await trio.sleep(chance.uniform(0, 0.05))
                assert (await world.request(via, "DELETE", f"/files/{key}")).status_code == httpx.codes.OK
            else:
                kept[key] = None

        async def read() -> None:
            for _ in range(30):
                await trio.sleep(chance.uniform(0, 0.01))
                for key in list(kept):
                    assert await get(world, chance.choice(list(world.machines)), key) == content

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(upload_and_delete, number)
            nursery.start_soon(read)
        for key in kept:
            assert await everywhere(world, key) == [content] * 3
        await converged(world)
        await trio.sleep(700)
        assert_chunks_counted(world, len(kept))
        for key in kept:
            assert (await world.request("node-1", "DELETE", f"/files/{key}")).status_code == httpx.codes.OK
        await trio.sleep(5)
        assert all(machine.platter.files == {} for machine in world.machines.values())

    in_world(scenario, seed=seed, **SMALL, **QUIET)


def test_a_new_peer_on_an_empty_disk_is_brought_everything() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2 * CHUNK)
        await put(world, "node-1", "k", content)
        await world.crash("node-3")
        lose_disk(world, "node-3")
        await world.start("node-3")
        await converged(world)
        assert holders(world, "node-1", "k") == ["node-1", "node-2", "node-3"]
        assert really_holds(world, "node-3", "k")

    in_world(scenario, **SMALL)
