"""A peer that stays away: after a while others hold its share, and it gets it back when it returns."""

from __future__ import annotations

from worlds import converged, everywhere, heal, holders, in_world, others, part, put, really_holds, services

from protocol.identity import NodeId
from sim.world import World

SETTINGS = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096, "out_after_s": 60.0}
GONE = "node-4"


def all_say_out(world: World, *names: str) -> bool:
    return all(others(world, name).membership.is_out(NodeId(GONE)) for name in names)


async def membership_of(world: World, through: str, node_id: str) -> dict[str, str]:
    nodes = (await world.request(through, "GET", "/nodes")).json()
    return {node["id"]: node["membership"] for node in nodes if node["id"] == node_id}


def test_the_share_of_who_stays_away_goes_to_others_and_back() -> None:
    async def scenario(world: World) -> None:
        contents = {f"k{number}": b"%d" % number * 3000 for number in range(8)}
        for key, content in contents.items():
            await put(world, "node-1", key, content)
        await converged(world)
        on_it = [key for key in contents if GONE in holders(world, "node-1", key)]
        assert on_it
        await world.crash(GONE)
        left = ["node-1", "node-2", "node-3"]
        await world.wait_until(lambda: all_say_out(world, *left), 200)
        assert await membership_of(world, "node-2", GONE) == {GONE: "out"}
        await converged(world)
        for key in contents:
            assert holders(world, "node-1", key) == left
            assert all(really_holds(world, name, key) for name in left)
        # Known on disk, so that a restart does not wait for it again.
        await world.crash("node-1")
        part(world, ("node-1",), ("node-2", "node-3"))
        await world.start("node-1")
        assert all_say_out(world, "node-1")
        heal(world)
        await world.wait_until(lambda: len(others(world, "node-1").membership.reachable()) == 2, 60)
        await put(world, "node-1", "meanwhile", b"meanwhile")
        assert holders(world, "node-1", "meanwhile") == left

        await world.start(GONE)
        await world.wait_until(lambda: not any(all_say_out(world, name) for name in left), 60)
        assert await membership_of(world, "node-2", GONE) == {GONE: "member"}
        await converged(world)
        for key, content in contents.items():
            assert await everywhere(world, key) == [content] * 4
        assert any(GONE in holders(world, "node-1", key) for key in on_it)

    in_world(scenario, peers=4, **SETTINGS)


def test_half_of_a_cluster_does_not_give_up_the_other_half() -> None:
    async def scenario(world: World) -> None:
        for name in ("node-3", GONE):
            await world.crash(name)
        await world.wait_until(lambda: services(world, "node-1").others.is_down(NodeId(GONE)), 60)
        await world.wait_until(lambda: services(world, "node-2").others.is_down(NodeId(GONE)), 60)
        with_time_passed = [0.0]

        def minutes_go_by() -> bool:
            with_time_passed[0] += 0.05
            assert not all_say_out(world, "node-1")
            assert not all_say_out(world, "node-2")
            return with_time_passed[0] > 300

        await world.wait_until(minutes_go_by, 400)

    in_world(scenario, peers=4, **SETTINGS)
