"""Files that clients make known: what was uploaded is never hidden by what was only said."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, heal, in_world, part, put, versions

from sim.world import World


async def register(world: World, name: str, file_key: str, content: bytes, **other: Any) -> httpx.Response:
    body = {
        "file_key": file_key,
        "original_filename": "a.bin",
        "size_bytes": len(content),
        "checksum_sha256": hashlib.sha256(content).hexdigest(),
        "node_id": name,
    }
    return await world.request(name, "POST", "/files/register", json=body | other)


@pytest.mark.parametrize("is_known", [False, True], ids=["no content", "with chunks of equal content"])
@pytest.mark.parametrize("first", ["upload", "register"])
def test_an_upload_is_shown_above_any_registration(first: str, is_known: bool) -> None:
    async def scenario(world: World) -> None:
        said = b"said to be there"
        if is_known:
            await put(world, "node-1", "other", said)
        part(world, ("node-1", "node-2"), ("node-3", "node-4"))
        await trio.sleep(10)
        for turn in (first, "register" if first == "upload" else "upload"):
            await trio.sleep(2)
            if turn == "upload":
                await put(world, "node-1", "k", b"really sent")
            else:
                assert (await register(world, "node-4", "k", said)).status_code == 200
        heal(world)
        await trio.sleep(100)
        assert await everywhere(world, "k") == [b"really sent"] * 4
        assert all(versions(world, name, "k") == 2 for name in world.machines)
        # A later write or delete through any peer ends both.
        await put(world, "node-4", "k", b"sent again")
        await converged(world)
        assert await everywhere(world, "k") == [b"sent again"] * 4
        assert versions(world, "node-2", "k") == 1

    in_world(scenario, peers=4, copies=4)


def test_who_can_ask_nobody_registers_nothing() -> None:
    async def scenario(world: World) -> None:
        part(world, ("node-1",), ("node-2", "node-3"))
        await trio.sleep(10)
        response = await register(world, "node-1", "k", b"x")
        assert response.status_code == 503
        assert versions(world, "node-1", "k") == 0
        heal(world)
        await trio.sleep(10)
        assert (await register(world, "node-1", "k", b"x")).status_code == 200

    in_world(scenario)


def test_an_upload_over_its_own_registration_is_a_version_of_its_own() -> None:
    async def scenario(world: World) -> None:
        content = b"the same"
        await put(world, "node-1", "other", content)
        response = await register(world, "node-1", "k", content, original_filename="k.bin")
        assert response.json()["verified"] is True
        await put(world, "node-1", "k", content)
        await converged(world)
        query = "SELECT registered, shown FROM puts WHERE file_key = 'k'"
        (database,) = world.machines["node-2"].platter.databases.values()
        assert database.execute(query).fetchall() == [(0, 1)]

    in_world(scenario)


def test_an_empty_file_has_content_whoever_is_there() -> None:
    async def scenario(world: World) -> None:
        assert (await register(world, "node-1", "k", b"")).json()["verified"] is True
        await put(world, "node-2", "sent", b"")
        await trio.sleep(5)
        for name in ("node-2", "node-3"):
            await world.crash(name)
        assert [await get(world, "node-1", key) for key in ("k", "sent")] == [b"", b""]
        contradicts = await register(world, "node-1", "c", b"", checksum_sha256="00" * 32)
        assert contradicts.status_code == 400

    in_world(scenario)


def test_nodes_that_failed_get_an_item_in_the_queue_of_every_peer() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "same", b"content")
        await converged(world)
        await world.crash("node-3")
        await trio.sleep(10)
        response = await register(world, "node-1", "k", b"content", failed_nodes=["node-3"])
        assert response.json()["verified"] is True
        await trio.sleep(5)
        for name in ("node-1", "node-2"):
            queue = await world.request(name, "GET", "/replication-queue", params={"node_id": "node-3"})
            (item,) = queue.json()["items"]
            assert (item["file_key"], item["source_node_id"], item["status"]) == ("k", "node-1", "PENDING")
        await world.start("node-3")
        await converged(world)
        assert await everywhere(world, "k") == [b"content"] * 3

    in_world(scenario)
