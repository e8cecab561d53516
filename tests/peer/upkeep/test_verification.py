"""Rows are looked over while a peer serves already, and what must not happen before waits."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, here, in_world, peer_asks, put, rows, services

from peer.gossip.whole_state import Reason
from peer.upkeep.verification import Verification
from protocol.identity import NodeId
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 2048}
GONE = (
    "DELETE FROM holds WHERE put = (SELECT min(id) FROM puts)",
    "DELETE FROM puts WHERE id = (SELECT min(id) FROM puts)",
)
ALTERED = ("UPDATE puts SET filename = 'other' WHERE id = (SELECT min(id) FROM puts)",)
UNREADABLE = ("UPDATE puts SET chunks = x'c1' WHERE id = (SELECT min(id) FROM puts)",)
NO_NUMBER = ("UPDATE holds SET stamp = 'x' WHERE seq = (SELECT min(seq) FROM holds)",)


async def never(self: Verification) -> bool:
    await trio.sleep_forever()
    return True


def test_until_rows_are_looked_over_a_peer_serves_and_neither_gives_nor_takes_a_whole_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        await world.crash("node-1")
        with monkeypatch.context() as patched:
            patched.setattr(Verification, "_give_their_sum", never)
            await world.start("node-1")
            await services(world, "node-1").ready.wait()
            assert (await world.request("node-1", "GET", "/health/ready")).json()["verified"] is False
            assert await get(world, "node-1", "k") == b"content"
            await put(world, "node-1", "new", b"more")
            refused = await peer_asks(world, "node-1", "GET", "/peer/snapshot")
            assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
            with trio.move_on_after(20) as limit:
                await services(world, "node-1").whole_states.fetch(NodeId("node-2"), Reason.BEHIND)
            assert limit.cancelled_caught
            await world.crash("node-1")
        await world.start("node-1")
        await here(world, "node-1").verified.wait()
        await services(world, "node-1").ready.wait()
        assert (await world.request("node-1", "GET", "/health/ready")).json()["verified"] is True
        given = await peer_asks(world, "node-1", "GET", "/peer/snapshot")
        assert given.status_code == httpx.codes.OK

    in_world(scenario, peers=2)


@pytest.mark.parametrize("queries", [GONE, ALTERED, UNREADABLE, NO_NUMBER])
@pytest.mark.parametrize("page_rows", [1, 500])
def test_damage_is_found_behind_what_is_written_meanwhile_and_healed_soon(
    queries: tuple[str, ...], page_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.upkeep.verification.PAGE_ROWS", page_rows)

    async def scenario(world: World) -> None:
        for number in range(6):
            await put(world, "node-1", f"k{number}", b"%d" % number * 3000)
        await converged(world)
        await world.crash("node-1")
        for query in queries:
            rows(world, "node-1", query)
        wait = trio.Event()
        give_their_sum = Verification._give_their_sum

        async def late(self: Any) -> bool:
            if self._here.me == "node-1":
                await wait.wait()
            return await give_their_sum(self)

        monkeypatch.setattr(Verification, "_give_their_sum", late)
        await world.start("node-1")
        await put(world, "node-1", "new", b"n" * 3000)
        await put(world, "node-2", "newer", b"m" * 3000)
        wait.set()
        await here(world, "node-1").verified.wait()
        assert here(world, "node-1").is_damaged
        # Not at the next round of anti-entropy.
        await world.wait_until(lambda: not here(world, "node-1").is_damaged, 5)
        await converged(world)
        for number in range(6):
            assert await everywhere(world, f"k{number}") == [b"%d" % number * 3000] * 2
        assert await everywhere(world, "new") == [b"n" * 3000] * 2

    in_world(scenario, peers=2, **SMALL)


def test_rows_that_are_well_are_found_well_while_files_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.upkeep.verification.PAGE_ROWS", 1)

    async def scenario(world: World) -> None:
        for number in range(20):
            await put(world, "node-1", f"k{number}", b"x")
        found: list[bool] = []

        async def look_over() -> None:
            found.append(await services(world, "node-1").verification._give_their_sum())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_over)
            for number in range(20):
                await world.request("node-1", "DELETE", f"/files/k{number}")
                await put(world, "node-1", f"n{number}", b"x")
                assert number or not found
        assert found == [True]

    in_world(scenario, peers=1)


@pytest.mark.parametrize("kept", ["value + 1", "'two'", "NULL"])
def test_a_number_of_files_that_is_not_theirs_is_counted_anew(kept: str) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x")
        await put(world, "node-1", "n", b"x")
        await world.crash("node-1")
        rows(world, "node-1", f"UPDATE meta SET value = {kept} WHERE key = 'files'")
        await world.start("node-1")
        await here(world, "node-1").verified.wait()
        assert (await world.request("node-1", "GET", "/files")).json()["total"] == 2
        await put(world, "node-1", "third", b"x")
        assert (await world.request("node-1", "GET", "/files")).json()["total"] == 3

    in_world(scenario, peers=1)
