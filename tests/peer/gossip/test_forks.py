"""A machine's image that is resumed: it writes on under the epoch it had, and others have heard something else."""

from __future__ import annotations

import httpx
import pytest
from worlds import converged, everywhere, heal, here, in_world, part, put, rows, services, versions

from protocol.identity import Origin
from sim.disk import Platter
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}


async def delete(world: World, name: str, file_key: str) -> None:
    response = await world.request(name, "DELETE", f"/files/{file_key}")
    assert response.status_code == httpx.codes.OK, response.text


async def resume(world: World, name: str, image: Platter) -> Origin:
    """Start a peer on an image of its disk under the epoch it had then, for its chances are what they were.

    Returns that origin.
    """
    machine = world.machines[name]
    origin = here(world, name).replica.origin
    if machine.node is not None:
        await world.crash(name)
    machine.platter = image
    machine.lives -= 1
    await world.start(name)
    await services(world, name).ready.wait()
    return origin


async def all_is(world: World, expected: dict[str, bytes | int]) -> None:
    for file_key, content in expected.items():
        assert await everywhere(world, file_key) == [content] * len(world.machines), file_key


def log_hashes(world: World, name: str) -> list[tuple[object, ...]]:
    return rows(
        world,
        name,
        "SELECT node_id, epoch, seq, hash FROM log JOIN origins ON origins.id = log.origin"
        " JOIN nodes ON nodes.id = origins.node ORDER BY node_id, epoch, seq",
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [100, 6000])
def test_a_resumed_machine_that_was_cut_off_loses_nothing_it_acknowledged_and_nothing_comes_back(
    seed: int, size: int
) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "common", b"common" * size)
        await converged(world)
        image = world.machines["node-1"].platter.copy()
        await put(world, "node-1", "true", b"true" * size)
        await converged(world)
        part(world, ("node-1",), ("node-2", "node-3"))
        assert await resume(world, "node-1", image) == here(world, "node-1").replica.origin
        await put(world, "node-1", "other", b"other" * size)
        await put(world, "node-1", "later", b"later" * size)
        await put(world, "node-1", "gone", b"gone" * size)
        await delete(world, "node-1", "gone")
        await delete(world, "node-2", "common")
        heal(world)
        await converged(world)
        await all_is(
            world,
            {"common": 404, "true": b"true" * size, "other": b"other" * size, "later": b"later" * size, "gone": 404},
        )
        assert [versions(world, "node-1", file_key) for file_key in ("true", "other", "later")] == [1, 1, 1]
        assert services(world, "node-1").forks.ended == 1
        assert all(here(world, name).pinned_for is None for name in world.machines)
        assert all(services(world, name).whole_states.disagreements == 0 for name in world.machines)

    in_world(scenario, seed=seed, **SMALL)


@pytest.mark.parametrize("seed", range(3))
def test_who_heard_of_the_branch_that_was_given_up_goes_back_and_keeps_what_it_holds(seed: int) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "common", b"common" * 1000)
        await converged(world)
        image, was = (world.machines[name].platter.copy() for name in ("node-1", "node-3"))
        await put(world, "node-1", "true", b"true" * 1000)
        await converged(world)
        part(world, ("node-1", "node-3"), ("node-2", "node-4"))
        # Like one that was away meanwhile.
        await world.crash("node-3")
        world.machines["node-3"].platter = was
        assert await resume(world, "node-1", image) == here(world, "node-1").replica.origin
        await world.start("node-3")
        await put(world, "node-1", "other", b"other" * 1000)
        await put(world, "node-3", "third", b"third" * 1000)
        await delete(world, "node-2", "common")
        heal(world)
        await converged(world)
        await all_is(world, {"common": 404, "true": b"true" * 1000, "other": b"other" * 1000, "third": b"third" * 1000})

    in_world(scenario, seed=seed, peers=4, copies=4, **SMALL)


def test_a_resumed_machine_that_wrote_nothing_since_goes_on_and_writes_nothing_again() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "common", b"common")
        await converged(world)
        image = world.machines["node-1"].platter.copy()
        await put(world, "node-1", "true", b"true")
        await converged(world)
        before = set(log_hashes(world, "node-2"))
        assert await resume(world, "node-1", image) != here(world, "node-1").replica.origin
        await put(world, "node-1", "new", b"new")
        await converged(world)
        await all_is(world, {"common": b"common", "true": b"true", "new": b"new"})
        assert before <= set(log_hashes(world, "node-1")) == set(log_hashes(world, "node-3"))
        assert services(world, "node-1").forks.ended == 0

    in_world(scenario, **SMALL)
