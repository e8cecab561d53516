"""`min_copies`: a receipt with so many copies, or an error and nothing left, whatever happens on the way."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, here, holders, in_world, orphans, others, put, really_holds, versions

from sim.world import World

INLINE, CHUNK = 1024, 4096
SMALL = {"inline_bytes_max": INLINE, "chunk_bytes_max": CHUNK}
SIZES = [0, 10, INLINE + 1, 3 * CHUNK + 10]


async def ask_for(world: World, name: str, key: str, content: bytes, **query: int) -> httpx.Response:
    options = "".join(f"&{option}={value}" for option, value in query.items())
    return await world.request(
        name, "POST", f"/files?file_id={key}{options}", files={"file": (f"{key}.bin", content)}, timeout=60
    )


def assert_refused(response: httpx.Response, why: str) -> None:
    assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
    assert why in response.json()["error"]
    assert response.headers["retry-after"].isdecimal()


async def assert_untouched(world: World, key: str, content: bytes) -> None:
    """Nobody has heard of another version, and once things have settled, nobody has bytes of one."""
    for name, machine in world.machines.items():
        if machine.node is not None:
            assert versions(world, name, key) == 1, name
            assert await get(world, name, key) == content, name
    await trio.sleep(5)
    for name, machine in world.machines.items():
        if machine.node is not None:
            assert not orphans(world, name), name
            assert not here(world, name).chunks.staging.has_any, name


@pytest.mark.parametrize("size", SIZES)
def test_a_receipt_names_as_many_copies_as_were_asked_for(size: int) -> None:
    async def scenario(world: World) -> None:
        for number in range(2, 4):
            receipt = (await ask_for(world, "node-1", f"k{number}", b"x" * size, min_copies=number)).json()
            assert len(receipt["durable_copies"]) >= number
            for name in receipt["durable_copies"]:
                assert really_holds(world, name, f"k{number}")
            assert await everywhere(world, f"k{number}") == [b"x" * size] * 3
        await converged(world)

    in_world(scenario, **SMALL)


@pytest.mark.parametrize("size", SIZES)
def test_too_few_peers_are_an_error_and_the_older_version_stays(size: int) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"old")
        await converged(world)
        await world.crash("node-3")
        # Not known to be down yet: it is asked, and fails.
        assert_refused(await ask_for(world, "node-1", "k", b"new" * size, min_copies=3), "node-3")
        await assert_untouched(world, "k", b"old")
        await trio.sleep(10)
        assert_refused(await ask_for(world, "node-1", "k", b"new" * size, min_copies=3), "2 peers can be reached")
        await assert_untouched(world, "k", b"old")
        assert (await ask_for(world, "node-1", "k", b"new" * size, min_copies=2)).status_code == httpx.codes.OK

    in_world(scenario, **SMALL)


@pytest.mark.parametrize("size", SIZES)
def test_a_peer_that_stands_in_counts(size: int) -> None:
    async def scenario(world: World) -> None:
        targets = list(others(world, "node-1").placement.targets_of("k", 3))
        spare = next(name for name in world.machines if name not in targets)
        await world.crash(targets[1])
        for wait_s in (0, 10):
            await trio.sleep(wait_s)
            key = "k"
            receipt = (await ask_for(world, targets[0], key, b"x" * size, min_copies=3)).json()
            assert sorted(receipt["durable_copies"]) == sorted([targets[0], targets[2], spare]), receipt
            assert really_holds(world, spare, key)
            assert (await world.request(targets[0], "DELETE", f"/files/{key}")).status_code == httpx.codes.OK

    in_world(scenario, peers=4, **SMALL)


def test_a_full_target_is_no_copy() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"old")
        await converged(world)
        world.machines["node-2"].platter.free = 0
        services_full = here(world, "node-2").space
        services_full.note_full()
        response = await ask_for(world, "node-1", "k", b"x" * 3 * CHUNK, min_copies=3)
        assert_refused(response, "node-2 refused: the disk is full")
        assert "{" not in response.json()["error"], "a sentence, not another peer's JSON"
        receipt = (await ask_for(world, "node-1", "other", b"x" * 3 * CHUNK)).json()
        (failed,) = [detail for detail in receipt["replication"]["details"] if not detail["success"]]
        assert failed["error"].startswith("node-2 refused: the disk is full")
        assert "{" not in failed["error"]
        assert holders(world, "node-1", "k") == ["node-1", "node-2", "node-3"]
        assert await get(world, "node-1", "k") == b"old"

    in_world(scenario, **SMALL)


def test_a_target_that_dies_after_it_promised_makes_an_error_and_repeating_the_upload_completes_it() -> None:
    async def scenario(world: World) -> None:
        content = b"x" * 3 * CHUNK

        def die(*_: Any) -> None:
            world.network.cut("node-1", "node-3")
            world.network.cut("node-3", "node-1")

        # The moment between the last promise and the exchange.
        here(world, "node-1").news.follow(die)
        assert_refused(await ask_for(world, "node-1", "k", content, min_copies=3), "send it again")
        assert await get(world, "node-1", "k") == content
        here(world, "node-1").news._followers.remove(die)
        world.network.restore("node-1", "node-3")
        world.network.restore("node-3", "node-1")
        await trio.sleep(10)
        receipt = (await ask_for(world, "node-1", "k", content, min_copies=3)).json()
        assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        assert versions(world, "node-1", "k") == 1

    in_world(scenario, **SMALL)


@pytest.mark.parametrize(("query", "status"), [({"copies": 2, "min_copies": 3}, 400), ({"min_copies": 4}, 503)])
def test_what_cannot_be_is_refused(query: dict[str, int], status: int) -> None:
    async def scenario(world: World) -> None:
        response = await ask_for(world, "node-1", "k", b"x", **query)
        assert response.status_code == status, response.text
        assert await get(world, "node-2", "k") == httpx.codes.NOT_FOUND

    in_world(scenario, **SMALL)
