"""A full disk: content is refused, deleting and hearing of deletions go on, and all is well again by itself."""

from __future__ import annotations

import logging

import httpx
import pytest
import trio
from worlds import converged, get, here, in_world, orphans, put, versions

from sim.disk import TOTAL_BYTES
from sim.world import World

SMALL = {"inline_bytes_max": 100, "chunk_bytes_max": 1000, "reserve_bytes": 6_000_000}


def fill(world: World, name: str) -> None:
    platter = world.machines[name].platter
    platter.capacity_bytes = platter.used_bytes()
    assert platter.free_bytes() == 0


def make_room(world: World, name: str) -> None:
    world.machines[name].platter.capacity_bytes = TOTAL_BYTES


async def status_of(world: World, name: str, method: str, path: str) -> int:
    return (await world.request(name, method, path)).status_code


@pytest.mark.parametrize("size", [50, 5000], ids=["in the database", "in files"])
def test_on_a_full_disk_files_are_deleted_and_not_taken(size: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        for number in range(20):
            await put(world, "node-1", f"k{number}", world.chance.randbytes(size))
        fill(world, "node-1")
        refused = await world.upload("node-1", "a", world.chance.randbytes(size), file_id="refused")
        assert refused.status_code == 507
        assert await status_of(world, "node-1", "DELETE", "/files/nobody-has-it") == 404
        assert await status_of(world, "node-1", "GET", "/files/refused") == 404
        for number in range(20):
            assert await status_of(world, "node-1", "DELETE", f"/files/k{number}") == 200
        ready = await world.request("node-1", "GET", "/health/ready")
        assert (ready.status_code, ready.json()["error"][:9]) == (503, "read-only")
        await trio.sleep(60)
        assert [path for path in orphans(world, "node-1") if path != "reserve"] == []
        make_room(world, "node-1")
        await trio.sleep(10)
        assert await status_of(world, "node-1", "GET", "/health/ready") == 200
        assert orphans(world, "node-1") == ["reserve"]
        await put(world, "node-1", "again", b"x" * size)

    with caplog.at_level(logging.INFO, "minidfs"):
        in_world(scenario, peers=1, copies=1, **SMALL)
    assert sum("disk is full" in record.message for record in caplog.records) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_deletions_made_elsewhere_are_heard_on_a_full_disk_and_content_comes_when_there_is_room() -> None:
    async def scenario(world: World) -> None:
        contents = {f"k{number}": world.chance.randbytes(3000) for number in range(10)}
        for key, content in contents.items():
            await put(world, "node-2", key, content)
        fill(world, "node-1")
        receipt = await put(world, "node-2", "new", b"n" * 3000)
        assert receipt["durable_copies"] == ["node-2", "node-3"]
        for key in list(contents)[:5]:
            response = await world.request("node-2", "DELETE", f"/files/{key}")
            assert response.json()["deleted_nodes"] == ["node-1", "node-2", "node-3"]
            assert versions(world, "node-1", key) == 0
        assert await get(world, "node-1", "new") == b"n" * 3000
        assert await get(world, "node-1", "k7") == contents["k7"]
        make_room(world, "node-1")
        await converged(world)
        assert (await world.request("node-1", "GET", "/files/new")).headers["x-routed-from"] == "node-1"

    in_world(scenario, **SMALL)


def test_a_peer_starts_on_a_full_disk_with_what_it_had_set_aside() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x" * 3000)
        await world.crash("node-1")
        fill(world, "node-1")
        await world.start("node-1")
        assert await get(world, "node-1", "k") == b"x" * 3000
        assert await status_of(world, "node-1", "DELETE", "/files/k") == 200
        assert here(world, "node-1").space.reason is not None

    in_world(scenario, peers=1, copies=1, **SMALL)


def test_a_peer_without_a_reserve_says_that_the_disk_is_full_and_recovers() -> None:
    async def scenario(world: World) -> None:
        fill(world, "node-1")
        refused = await world.upload("node-1", "a", b"x" * 3000)
        assert refused.status_code == httpx.codes.INSUFFICIENT_STORAGE
        make_room(world, "node-1")
        await trio.sleep(10)
        await put(world, "node-1", "k", b"x")

    in_world(scenario, peers=1, copies=1, **{**SMALL, "reserve_bytes": 0})
