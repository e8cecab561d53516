"""Members that are removed for good: their share goes to the others, and nothing they say brings them back."""

from __future__ import annotations

import httpx
import trio
from worlds import converged, everywhere, get, heal, holders, in_world, others, part, put, really_holds, services

from protocol.identity import Eviction, NodeId
from sim.world import World

GONE = NodeId("node-4")


async def evict(world: World, through: str, node_id: str, **query: str) -> httpx.Response:
    return await world.request(through, "POST", f"/nodes/{node_id}/evict", params=query)


def names(world: World, name: str) -> list[str]:
    return [member.node_id for member in others(world, name).membership.members()]


def test_the_share_of_a_removed_member_goes_to_the_others_and_what_it_holds_does_not_count() -> None:
    async def scenario(world: World) -> None:
        contents = {f"k{number}": world.chance.randbytes(3000) for number in range(12)}
        for key, content in contents.items():
            await put(world, "node-1", key, content)
        await converged(world)
        assert any(str(GONE) in holders(world, "node-1", key) for key in contents)
        await world.crash(GONE)
        assert (await evict(world, "node-2", GONE)).status_code == httpx.codes.OK
        left = ["node-1", "node-2", "node-3"]
        await world.wait_until(lambda: all(names(world, name) == left for name in left), 30)
        await world.wait_until(lambda: all(holders(world, "node-1", key) == left for key in contents), 120)
        await converged(world)
        for key, content in contents.items():
            assert all(really_holds(world, name, key) for name in left)
            assert [await get(world, name, key) for name in left] == [content] * 3
        listed = (await world.request("node-2", "GET", "/files?limit=100")).json()["files"]
        assert [file["replicas"] for file in listed] == [left] * len(contents)
        # Who starts again remembers it, with nobody there to tell.
        for name in left:
            await world.crash(name)
        await world.start("node-3")
        assert names(world, "node-3") == left
        assert others(world, "node-3").membership.evictions == (Eviction(GONE, 0),)

    in_world(scenario, peers=4)


def test_a_removed_member_that_starts_again_is_told_and_comes_back_when_it_may() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "before", b"before")
        await converged(world)
        await world.crash(GONE)
        assert (await evict(world, "node-1", GONE)).status_code == httpx.codes.OK
        await trio.sleep(30)
        await put(world, "node-2", "after", b"after")
        await world.start(GONE)
        await world.wait_until(lambda: all(len(names(world, name)) == 4 for name in world.machines), 60)
        await converged(world)
        member = others(world, "node-1").membership.member(GONE)
        assert member is not None
        assert member.joined == 1
        assert await everywhere(world, "before") == [b"before"] * 4
        assert await everywhere(world, "after") == [b"after"] * 4
        # A disk that forgot how often it joined is told.
        await world.crash(GONE)
        world.put_disk(GONE, type(world.machines[GONE].platter)())
        await world.start(GONE)
        await world.wait_until(lambda: all(len(names(world, name)) == 4 for name in world.machines), 60)
        await converged(world)
        assert others(world, GONE).membership.me.joined == 1

    in_world(scenario, peers=4, copies=4, rejoin=True)


def test_a_removal_reaches_those_who_were_cut_off_and_outlasts_what_they_say() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        await world.crash(GONE)
        part(world, ("node-3",), ("node-1", "node-2"))
        await trio.sleep(20)
        assert (await evict(world, "node-1", GONE)).status_code == httpx.codes.OK
        await trio.sleep(60)
        assert str(GONE) in names(world, "node-3")
        heal(world)
        await world.wait_until(lambda: str(GONE) not in names(world, "node-3"), 60)
        await trio.sleep(60)
        assert [len(names(world, name)) for name in ("node-1", "node-2", "node-3")] == [3, 3, 3]

    in_world(scenario, peers=4)


def test_who_has_files_alone_is_removed_by_force_only_and_nobody_removes_itself_or_a_stranger() -> None:
    async def scenario(world: World) -> None:
        part(world, ("node-2",), ("node-1",))
        await trio.sleep(20)
        await put(world, "node-2", "alone", b"content")
        heal(world)
        services(world, "node-1").repair.wake = lambda: None  # type: ignore[method-assign]
        services(world, "node-1").repair.step = trio.sleep_forever  # type: ignore[method-assign]
        await services(world, "node-1").exchanger.exchange(NodeId("node-2"))
        await world.crash("node-2")
        refused = await evict(world, "node-1", "node-2")
        assert refused.status_code == httpx.codes.CONFLICT
        assert "1 versions of files are on node-2 alone" in refused.text
        assert (await evict(world, "node-1", "node-1")).status_code == httpx.codes.CONFLICT
        assert (await evict(world, "node-1", "node-9")).status_code == httpx.codes.NOT_FOUND
        assert (await evict(world, "node-1", "node-2", force="yes")).status_code == httpx.codes.BAD_REQUEST
        assert (await evict(world, "node-1", "node-2", force="false")).status_code == httpx.codes.CONFLICT
        assert names(world, "node-1") == ["node-1", "node-2"]
        given_up = await evict(world, "node-1", "node-2", force="true")
        assert given_up.json() == {"message": "node-2 was removed", "node_id": "node-2", "given_up": 1}
        assert names(world, "node-1") == ["node-1"]
        assert await get(world, "node-1", "alone") == httpx.codes.SERVICE_UNAVAILABLE

    in_world(scenario, peers=2, copies=1)
