"""A peer that leaves: nothing it held is lost, whatever happens meanwhile, and it is gone for good."""

from __future__ import annotations

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
    others,
    part,
    pending,
    put,
    really_holds,
    services,
)

from peer.upkeep.leaving import Leaving
from peer.world.env import StoreError
from protocol.identity import NodeId
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}
GOING = "node-2"


async def leave(world: World, through: str, node_id: str, **query: str) -> httpx.Response:
    return await world.request(through, "POST", f"/nodes/{node_id}/leave", params=query)


def names(world: World, name: str) -> list[str]:
    return [member.node_id for member in others(world, name).membership.members()]


async def membership_of(world: World, through: str, node_id: str) -> str:
    """What a peer says of another one's membership; empty when it is no member."""
    nodes = (await world.request(through, "GET", "/nodes")).json()
    return next((node["membership"] for node in nodes if node["id"] == node_id), "")


async def wait_gone(world: World, name: str, limit_s: float = 200) -> None:
    await world.wait_until(lambda: world.machines[name].node is None, limit_s)


@pytest.mark.parametrize("through", ["node-1", GOING])
def test_who_leaves_hands_over_all_it_holds_and_ends(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        farewell, left, handed_over = Leaving._say_farewell, ["node-1", "node-3", "node-4"], list[bool]()

        async def say_farewell(self: Leaving) -> bool:
            # Its copies are handed over before it goes, and need not be fetched from those left.
            handed_over.append(all(really_holds(world, name, key) for name in left for key in contents))
            return await farewell(self)

        monkeypatch.setattr(Leaving, "_say_farewell", say_farewell)
        contents = {f"k{number}": b"%d" % number * 3000 for number in range(8)}
        for key, content in contents.items():
            await put(world, "node-1", key, content)
        await converged(world)
        assert (await leave(world, through, GOING)).json() == {
            "message": f"{GOING} leaves once others have what it holds", "node_id": GOING,
        }  # fmt: skip
        await wait_gone(world, GOING)
        assert handed_over == [True]
        await world.wait_until(lambda: all(names(world, name) == left for name in left), 30)
        for key, content in contents.items():
            assert holders(world, "node-1", key) == left
            assert all(really_holds(world, name, key) for name in left)
            assert await everywhere(world, key) == [content] * 3

    in_world(scenario, peers=4, **SMALL)


def test_while_it_is_leaving_it_serves_and_new_files_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "old", b"old" * 2000)
        await converged(world)
        with monkeypatch.context() as patched:
            patched.setattr(Leaving, "_may_go", lambda self: False)
            await leave(world, "node-1", GOING)
            await world.wait_until(lambda: not names_placed(world, "node-1", GOING), 30)
            assert await membership_of(world, "node-3", GOING) == "draining"
            refused = await world.request(GOING, "GET", "/health/ready")
            assert (refused.status_code, refused.json()["error"][:8]) == (503, "leaving:")
            assert await get(world, GOING, "old") == b"old" * 2000
            through_it = await put(world, GOING, "new", b"new" * 2000)
            assert set(through_it["durable_copies"]) >= {"node-1", "node-3", "node-4"}
            # It stays what it is over a restart.
            await world.crash(GOING)
            await world.start(GOING)
            assert others(world, GOING).membership.me.is_draining
            await converged(world)
        await wait_gone(world, GOING)
        assert await everywhere(world, "new") == [b"new" * 2000] * 3

    in_world(scenario, peers=4, **SMALL)


def names_placed(world: World, name: str, node_id: str) -> bool:
    return any(member.node_id == node_id for member in others(world, name).membership.placed())


def test_who_thinks_better_of_it_stays_and_gets_its_share_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(Leaving, "_may_go", lambda self: False)
        await leave(world, "node-1", GOING)
        await world.wait_until(lambda: not names_placed(world, "node-3", GOING), 30)
        assert (await leave(world, "node-1", GOING, undo="true")).json()["message"] == f"{GOING} stays"
        monkeypatch.undo()
        await world.wait_until(lambda: all(names_placed(world, name, GOING) for name in world.machines), 30)
        assert await membership_of(world, "node-1", GOING) == "member"
        receipt = await put(world, "node-1", "k", b"content")
        assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        await trio.sleep(60)
        assert world.machines[GOING].is_up

    in_world(scenario, **SMALL)


def test_who_is_cut_off_does_not_go_before_others_have_what_it_took_in() -> None:
    async def scenario(world: World) -> None:
        part(world, (GOING,), ("node-1", "node-3"))
        await put(world, GOING, "alone", b"alone" * 1000)
        await leave(world, GOING, GOING)
        await trio.sleep(120)
        assert world.machines[GOING].is_up
        heal(world)
        await wait_gone(world, GOING, 300)
        assert await everywhere(world, "alone") == [b"alone" * 1000] * 2

    in_world(scenario, copies=2, **SMALL)


def test_it_waits_for_those_that_are_to_hold_its_files() -> None:
    async def scenario(world: World) -> None:
        keys = [f"k{number}" for number in range(8)]
        for key in keys:
            await put(world, "node-1", key, b"content" * 1000)
        await converged(world)
        await world.crash("node-4")
        await leave(world, "node-1", GOING)
        await trio.sleep(60)
        assert {target for _, target in pending(world, GOING)} == {"node-4"}
        assert world.machines[GOING].is_up
        await world.start("node-4")
        await wait_gone(world, GOING)
        assert all(really_holds(world, "node-4", key) for key in keys)

    in_world(scenario, peers=4, **SMALL)


def test_nothing_is_taken_in_between_the_last_look_and_the_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        farewell, tried = Leaving._say_farewell, []

        async def say_farewell(self: Leaving) -> bool:
            for method, path in (("PUT", "/files/late"), ("DELETE", "/files/k")):
                tried.append((await world.request(GOING, method, path, content=b"late")).status_code)
            held = await services(world, "node-1").exchanger.exchange_patiently(NodeId(GOING))
            assert held is None
            return await farewell(self)

        monkeypatch.setattr(Leaving, "_say_farewell", say_farewell)
        await leave(world, "node-1", GOING)
        await wait_gone(world, GOING)
        assert tried == [503, 503]
        assert await everywhere(world, "k") == [b"content"] * 2
        assert await get(world, "node-1", "late") == 404

    in_world(scenario, copies=2, **SMALL)


def test_a_farewell_that_nobody_heard_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        farewell, said = Leaving._say_farewell, []

        async def say_farewell(self: Leaving) -> bool:
            said.append(here(world, GOING).is_closed)
            if len(said) == 1:
                part(world, (GOING,), ("node-1", "node-3"))
                heard = await farewell(self)
                heal(world)
                return heard
            return await farewell(self)

        monkeypatch.setattr(Leaving, "_say_farewell", say_farewell)
        await leave(world, "node-1", GOING)
        await world.wait_until(lambda: said == [True] and not here(world, GOING).is_closed, 60)
        assert (await put(world, GOING, "k", b"content"))["file_id"] == "k"
        await wait_gone(world, GOING)
        assert await everywhere(world, "k") == [b"content"] * 2

    in_world(scenario, copies=2, **SMALL)


def test_a_farewell_that_fails_as_the_disk_does_leaves_the_peer_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        farewell, said = Leaving._say_farewell, list[bool]()

        async def say_farewell(self: Leaving) -> bool:
            said.append(here(world, GOING).is_closed)
            if len(said) == 1:
                raise StoreError("the disk fails")
            return await farewell(self)

        monkeypatch.setattr(Leaving, "_say_farewell", say_farewell)
        await leave(world, "node-1", GOING)
        await world.wait_until(lambda: len(said) == 1, 60)
        assert not here(world, GOING).is_closed
        assert (await put(world, GOING, "k", b"content"))["file_id"] == "k"
        await wait_gone(world, GOING)

    in_world(scenario, copies=2, **SMALL)


def test_who_says_farewell_already_cannot_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        farewell, answers = Leaving._say_farewell, list[int]()

        async def say_farewell(self: Leaving) -> bool:
            answers.append((await leave(world, "node-1", GOING, undo="true")).status_code)
            return await farewell(self)

        monkeypatch.setattr(Leaving, "_say_farewell", say_farewell)
        await leave(world, "node-1", GOING)
        await wait_gone(world, GOING)
        assert answers == [503]

    in_world(scenario, copies=2, **SMALL)


def test_who_cannot_leave_is_told_why() -> None:
    async def scenario(world: World) -> None:
        assert (await leave(world, "node-1", "node-9")).status_code == 404
        assert (await leave(world, "node-1", GOING, undo="yes")).status_code == 400
        await world.crash(GOING)
        down = await leave(world, "node-1", GOING)
        assert (down.status_code, "evict" in down.json()["error"]) == (503, True)
        await world.start(GOING)
        await leave(world, "node-1", GOING)
        await wait_gone(world, GOING)
        alone = await leave(world, "node-1", "node-1")
        assert (alone.status_code, "no other node stays" in alone.json()["error"]) == (409, True)
        assert await membership_of(world, "node-1", "node-1") == "member"

    in_world(scenario, peers=2, **SMALL)


def test_who_has_left_joins_again_with_its_files() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content" * 1000)
        await leave(world, "node-1", GOING)
        await wait_gone(world, GOING)
        world.settings["rejoin"] = True
        await world.start(GOING)
        await world.wait_until(world.all_met, 60)
        assert await membership_of(world, "node-1", GOING) == "member"
        await converged(world)
        assert await get(world, GOING, "k") == b"content" * 1000

    in_world(scenario, **SMALL)
