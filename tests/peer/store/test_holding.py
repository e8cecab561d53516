"""What a peer says it holds is what it has: rotten chunks, replaced ones, holds nothing backs, receipts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from typing import Any

import httpx
import pytest
import trio
from worlds import (
    converged,
    everywhere,
    get,
    heal,
    here,
    holders,
    in_world,
    lose_disk,
    orphans,
    others,
    part,
    pending,
    put,
    really_holds,
    rows,
    services,
    spoil_chunk,
)

from peer.store.chunks import ChunkStore
from peer.store.holding import Holding
from peer.store.rows import ChunkRow
from peer.store.staging import STAGED_FOR_S
from peer.world.env import StoreError
from protocol.messages import View
from protocol.ops import Chunk
from sim.disk import EVENT_LOOP, Faults
from sim.world import World

SMALL = {"inline_bytes_max": 100, "chunk_bytes_max": 1000}
SIZES = pytest.mark.parametrize("size", [90, 900], ids=["in the database", "in files"])


def chunks_of(world: World, name: str, file_key: str) -> tuple[Chunk, ...]:
    shown = here(world, name).shown(file_key)
    assert shown is not None
    return shown.manifest.chunks or ()


# --- one bad chunk ---


def test_a_file_is_read_and_healed_from_two_copies_that_each_have_another_rotten_chunk() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        first, second, _ = chunks_of(world, "node-1", "k")
        spoil_chunk(world, "node-1", first.hash)
        spoil_chunk(world, "node-2", second.hash)
        assert await get(world, "node-1", "k") == content
        assert await get(world, "node-2", "k") == content
        await converged(world)
        assert all(really_holds(world, name, "k") for name in ("node-1", "node-2"))
        assert await everywhere(world, "k") == [content] * 2
        assert orphans(world, "node-1") == orphans(world, "node-2") == []

    in_world(scenario, peers=2, **SMALL)


def test_chunks_of_two_restarted_peers_with_rotten_copies_make_a_whole_file_again() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        first, second, _ = chunks_of(world, "node-1", "k")
        for name, chunk in (("node-1", first), ("node-2", second)):
            await world.crash(name)
            spoil_chunk(world, name, chunk.hash)
        for name in ("node-1", "node-2"):
            await world.start(name)
        assert await everywhere(world, "k") == [content] * 2
        await converged(world)

    in_world(scenario, peers=2, **SMALL)


def test_the_only_copy_keeps_what_is_good_of_it() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        first, second, third = chunks_of(world, "node-1", "k")
        spoil_chunk(world, "node-1", second.hash)
        with pytest.raises(httpx.HTTPError):
            await get(world, "node-1", "k")
        assert holders(world, "node-1", "k") == []
        rest = await world.request("node-1", "GET", "/files/k", headers={"range": "bytes=2000-"})
        assert (rest.status_code, rest.content) == (206, content[2000:])
        middle = await world.request("node-1", "GET", "/files/k", headers={"range": "bytes=1500-1600"})
        assert middle.status_code == 503
        chunks = here(world, "node-1").chunks
        assert [chunks.row(chunk.hash) is not None for chunk in (first, second, third)] == [True, False, True]
        # The content sent again makes it whole, and a delete leaves nothing.
        await put(world, "node-1", "k", content)
        assert await get(world, "node-1", "k") == content
        await world.request("node-1", "DELETE", "/files/k")
        await trio.sleep(1)
        assert rows(world, "node-1", "SELECT count(*) FROM chunks") == [(0,)]
        assert orphans(world, "node-1") == []

    in_world(scenario, peers=1, copies=1, **SMALL)


def test_chunks_kept_of_a_broken_file_count_for_the_files_that_share_them() -> None:
    async def scenario(world: World) -> None:
        shared, own = world.chance.randbytes(1000), world.chance.randbytes(500)
        await put(world, "node-1", "broken", shared + own)
        await put(world, "node-1", "whole", shared)
        spoil_chunk(world, "node-1", chunks_of(world, "node-1", "broken")[1].hash)
        with pytest.raises(httpx.HTTPError):
            await get(world, "node-1", "broken")
        await world.request("node-1", "DELETE", "/files/whole")
        await trio.sleep(1)
        assert rows(world, "node-1", "SELECT size, refs, condemned FROM chunks ORDER BY size") == [
            (500, 1, 1),
            (1000, 1, 0),
        ]
        await put(world, "node-1", "broken", shared + own)
        assert rows(world, "node-1", "SELECT size, refs, condemned FROM chunks ORDER BY size") == [
            (500, 1, 0),
            (1000, 1, 0),
        ]
        await world.request("node-1", "DELETE", "/files/broken")
        await trio.sleep(1)
        assert rows(world, "node-1", "SELECT count(*) FROM chunks") == [(0,)]

    in_world(scenario, peers=1, copies=1, **SMALL)


# --- replaced while it is looked at ---


@SIZES
def test_a_chunk_that_was_stored_anew_is_not_given_up_for_its_old_bytes(size: int) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        node = here(world, "node-1")
        (chunk,) = chunks_of(world, "node-1", "k")
        spoil_chunk(world, "node-1", chunk.hash)
        rotten = node.chunks.row(chunk.hash)
        assert rotten is not None
        await put(world, "node-1", "k", content)
        await node.lose_chunk(chunk.hash, rotten)
        assert holders(world, "node-1", "k") == ["node-1"]
        assert await get(world, "node-1", "k") == content

    in_world(scenario, peers=1, copies=1, **SMALL)


@SIZES
def test_a_chunk_verified_before_it_was_replaced_does_not_count(size: int) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        node = here(world, "node-1")
        shown = node.shown("k")
        assert shown is not None
        verified = await node.verified_rows(shown.manifest.chunks or ())
        (chunk,) = shown.manifest.chunks or ()
        spoil_chunk(world, "node-1", chunk.hash)
        spoiled = node.chunks.row(chunk.hash)
        assert isinstance(spoiled, ChunkRow)
        await node.lose_chunk(chunk.hash, spoiled)
        assert await node.database.write(lambda: node.take_holds([shown.dot], {}, verified, recovered=False)) == []
        assert holders(world, "node-1", "k") == []

    in_world(scenario, peers=1, copies=1, **SMALL)


@SIZES
def test_reads_beside_uploads_of_equal_content_all_succeed(size: int) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        over = trio.Event()
        read: list[bytes | int] = []

        async def read_on() -> None:
            while not over.is_set():
                read.append(await get(world, "node-1", "k"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read_on)
            for number in range(40):
                await put(world, "node-1", f"k{number % 2}", content)
            over.set()
        assert len(read) > 100
        wrong = [answer for answer in read if answer != content]
        assert wrong == []

    in_world(scenario, peers=1, copies=1, **SMALL)


# --- holds that nothing backs ---


def test_a_hold_is_declared_only_if_what_was_verified_is_still_there() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", world.chance.randbytes(2500))
        node = here(world, "node-1")
        shown = node.shown("k")
        assert shown is not None
        # A drop this peer is said to have written, as after a restored backup.
        await node.database.write(lambda: node.replica.drop(node.replica.my_holds_of(shown.dot), node.wall_ms()))
        verify, spoiled = node.chunks.verify, []

        async def verify_and_lose_the_first(name: bytes, row: ChunkRow) -> ChunkRow:
            verified = await verify(name, row)
            if len(spoiled) == 1:
                spoil_chunk(world, "node-1", spoiled[0][0])
                await node.lose_chunk(*spoiled[0])
            spoiled.append((name, row))
            return verified

        node.chunks.verify = verify_and_lose_the_first  # type: ignore[method-assign]
        await here(world, "node-1").declare_backed()
        assert len(spoiled) == 3
        assert holders(world, "node-1", "k") == []

    in_world(scenario, peers=1, copies=1, **SMALL)


@pytest.mark.parametrize("reader", ["node-1", "node-3"])
def test_a_read_that_finds_no_row_of_a_file_said_to_be_held_takes_the_hold_back(reader: str) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        for name in ("node-2", "node-3"):
            await world.crash(name)
        # Behind the rules' back.
        rows(world, "node-1", "DELETE FROM chunks WHERE id = 2")
        for name in ("node-2", "node-3"):
            await world.start(name)
        if reader == "node-3":
            spoil_chunk(world, "node-3", chunks_of(world, "node-3", "k")[1].hash)
        else:
            assert await get(world, "node-1", "k") == content
        await services(world, "node-1").repair.heal(all_of_it=True)
        if reader == "node-3":
            part(world, ("node-2",), ("node-3",))
            await trio.sleep(5)
            with pytest.raises(httpx.HTTPError):
                await get(world, "node-3", "k")
            heal(world)
        await converged(world)
        assert await everywhere(world, "k") == [content] * 3
        assert all(holders(world, name, "k") == ["node-1", "node-2", "node-3"] for name in world.machines)
        assert len(rows(world, "node-1", "SELECT 1 FROM chunks WHERE NOT condemned")) == 3

    in_world(scenario, **SMALL)


# --- receipts and what comes after the commit ---


def test_a_repeated_upload_names_only_those_that_confirm_it_now() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        receipt = await put(world, "node-1", "k", content)
        assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        await world.crash("node-2")
        lose_disk(world, "node-2")
        again = await put(world, "node-1", "k", content)
        assert again["durable_copies"] == ["node-1", "node-3"]
        assert [item["success"] for item in again["replication"]["details"]].count(False) == 1
        part(world, ("node-1",), ("node-3",))
        alone = await put(world, "node-1", "k", content)
        assert alone["durable_copies"] == ["node-1"]

    in_world(scenario, **SMALL)


def test_a_disk_that_cannot_remove_a_duplicate_does_not_fail_an_upload_that_is_written() -> None:
    async def scenario(world: World) -> None:
        def fails(path: str) -> None:
            raise StoreError(f"{path} cannot be removed")

        env = world.machines["node-1"].env
        assert env is not None
        env.disk.remove = fails  # type: ignore[method-assign]
        content = world.chance.randbytes(1000) * 3
        assert (await put(world, "node-1", "k", content))["success"]
        assert (await put(world, "node-1", "k", content))["success"]
        assert await get(world, "node-1", "k") == content

    in_world(scenario, peers=1, copies=1, **SMALL)


def test_a_database_that_cannot_be_read_after_the_commit_does_not_fail_an_upload_that_is_written() -> None:
    async def scenario(world: World) -> None:
        def fails(*_: object) -> Any:
            raise StoreError("the database cannot be read")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holding, "put_at", fails)
            patch.setattr(ChunkStore, "row", fails)
            receipt = await put(world, "node-1", "k", b"x" * 2500)
        assert len(receipt["durable_copies"]) == 1
        assert receipt["replication"]["failed"] >= 2

    in_world(scenario, peers=5, **SMALL)


# --- long uploads ---


PIECE = 200_000
LARGE = {"chunk_bytes_max": PIECE, "inline_bytes_max": 1000}


async def slowly(content: bytes, pause_s: float) -> AsyncIterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    # The form's parser takes in some of it before it gives anything out.
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
        await trio.sleep(pause_s)
    yield b"\r\n--b--\r\n"


@pytest.mark.parametrize("restarted", [False, True], ids=["", "a target restarts"])
def test_an_upload_longer_than_a_lease_is_durable_on_all_its_targets(restarted: bool) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(5 * PIECE)
        before = trio.current_time()
        receipts: list[httpx.Response] = []

        async def upload() -> None:
            receipts.append(
                await world.request(
                    "node-1",
                    "POST",
                    "/files?file_id=k",
                    content=slowly(content, STAGED_FOR_S / 3),
                    headers={"content-type": "multipart/form-data; boundary=b"},
                    timeout=None,
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            if restarted:
                await trio.sleep(STAGED_FOR_S * 0.9)
                await world.crash("node-2")
                await world.start("node-2")
        assert trio.current_time() - before > STAGED_FOR_S * 1.5
        assert receipts[0].json()["durable_copies"] == ["node-1", "node-2", "node-3"], receipts[0].text
        assert pending(world, "node-1") == []
        assert await everywhere(world, "k") == [content] * 3

    in_world(scenario, limit_s=1e5, **LARGE)


def test_what_an_upload_staged_lapses_when_its_uploader_is_gone() -> None:
    async def scenario(world: World) -> None:
        async def upload() -> None:
            with pytest.raises(httpx.HTTPError):
                await world.request(
                    "node-1",
                    "POST",
                    "/files",
                    content=slowly(world.chance.randbytes(5 * PIECE), 1000),
                    headers={"content-type": "multipart/form-data; boundary=b"},
                    timeout=None,
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await trio.sleep(1900)
            assert orphans(world, "node-2") != []
            await world.crash("node-1")
            nursery.cancel_scope.cancel()
        await trio.sleep(STAGED_FOR_S + 100)
        assert orphans(world, "node-2") == []

    in_world(scenario, limit_s=1e5, **LARGE)


# --- commits of unknown outcome, and disks that fail ---


@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "is lost"])
def test_a_commit_that_failed_costs_no_content_whether_it_comes_back_or_not(comes_back: bool) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        platter = world.machines["node-1"].platter
        platter.faults = Faults(Random(1), eio_at_commit=1.0)
        refused = await world.upload("node-1", "k.bin", content, file_id="k")
        assert refused.status_code == 503
        # Long enough for whatever would be tidied up.
        await trio.sleep(100)
        assert platter.left_behind
        if not comes_back:
            platter.left_behind.clear()
        await world.crash("node-1")
        platter.faults = None
        await world.start("node-1")
        assert await get(world, "node-1", "k") == content
        assert orphans(world, "node-1") == []

    in_world(scenario, peers=1, copies=1, **SMALL)


def test_what_a_failed_commit_was_to_adopt_goes_once_another_has_settled_it() -> None:
    async def scenario(world: World) -> None:
        platter = world.machines["node-1"].platter
        platter.faults = Faults(Random(1), eio_at_commit=1.0)
        assert (await world.upload("node-1", "k.bin", b"x" * 2500, file_id="k")).status_code == 503
        await trio.sleep(10)
        assert len(orphans(world, "node-1")) > 0
        platter.faults = None
        await trio.sleep(5)
        assert orphans(world, "node-1") == []
        assert platter.left_behind == {}
        await world.crash("node-1")
        await world.start("node-1")
        assert await get(world, "node-1", "k") == 404

    in_world(scenario, peers=1, copies=1, **SMALL)


def test_no_peer_dies_of_a_disk_that_fails_at_every_call() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(2500)
        await put(world, "node-1", "k", content)
        await register_without_content(world)
        platter = world.machines["node-1"].platter
        for share in (0.2, 1.0, 0.05):
            platter.faults = Faults(Random(1), eio=share, eio_at_commit=share)
            for number in range(20):
                await world.upload("node-2", "a", world.chance.randbytes(500), file_id=f"n{number}")
                # It may end early.
                with suppress(httpx.ReadError):
                    await world.request("node-1", "GET", "/files/k")
                await world.request("node-1", "GET", "/files?limit=5")
                await trio.sleep(2)
        platter.faults = None
        await trio.sleep(60)
        assert await get(world, "node-1", "k") == content
        await put(world, "node-1", "again", content)
        assert sorted(holders(world, "node-1", "n7")) == ["node-1", "node-2", "node-3"]

    in_world(scenario, **SMALL)


async def register_without_content(world: World) -> None:
    """A copy that is missing for ever, so that repair tries and fails."""
    body = {"file_key": "r", "original_filename": "r", "size_bytes": 3, "checksum_sha256": "ab" * 32}
    assert (await world.request("node-2", "POST", "/files/register", json={**body, "node_id": "node-2"})).is_success


def test_a_repair_that_cannot_look_up_what_became_of_its_file_tries_again() -> None:
    async def scenario(world: World) -> None:
        await register_without_content(world)
        await trio.sleep(5)
        repair = services(world, "node-1").repair

        def fails(*_: object) -> None:
            raise StoreError("the database cannot be read")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holding, "put_at", fails)
            assert (await repair.heal(all_of_it=True)).failed == 1
        assert (await repair.heal(all_of_it=True)).failed == 1

    in_world(scenario, **SMALL)


def test_members_are_looked_at_on_the_event_loop_only() -> None:
    async def scenario(world: World) -> None:
        machine = world.machines["node-2"]
        membership, env = others(world, "node-2").membership, machine.env
        assert env is not None
        known, threads = membership.view, set()

        def view(digest: bytes | None) -> View:
            threads.add(env.mount.thread)
            return known(digest)

        membership.view = view  # type: ignore[method-assign]
        await put(world, "node-1", "k", b"x" * 2500)
        await put(world, "node-2", "l", b"x" * 2500)
        await world.request("node-2", "DELETE", "/files/k")
        await trio.sleep(40)
        assert threads == {EVENT_LOOP}

    in_world(scenario, **SMALL)


def test_a_file_of_the_same_hash_stands_in_for_one_that_its_row_names_and_is_not_there() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(900)
        await put(world, "node-1", "k", content)
        await world.crash("node-1")
        files = world.machines["node-1"].platter.files
        (path,) = [path for path in files if path.startswith("chunks/")]
        files[path.rpartition(".")[0] + ".12345"] = files.pop(path)
        await world.start("node-1")
        assert await get(world, "node-1", "k") == content
        assert orphans(world, "node-1") == []

    in_world(scenario, peers=1, copies=1, **SMALL)
