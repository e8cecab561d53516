"""Work in the background rests while clients are being served, and only then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from worlds import converged, in_world, others, put, services

from peer.pace import HEARD_S, REST_MAX_S, RESTS, SERVING_S, Pace
from peer.upkeep.repair import Repair
from protocol.identity import NodeId
from sim.world import World

A, B = NodeId("a"), NodeId("b")


async def rested(pace: Pace, worked_s: float, *node_ids: NodeId, rests: float = RESTS) -> float:
    began = trio.current_time()
    await pace.rest(worked_s, node_ids, rests)
    return trio.current_time() - began


def in_virtual_time(pace_test: Callable[[Pace], Awaitable[None]]) -> None:
    async def main() -> None:
        await pace_test(Pace(trio.current_time))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_without_clients_nobody_rests() -> None:
    async def main(pace: Pace) -> None:
        assert await rested(pace, 1, A) == 0
        pace.heard(A, is_serving=False)
        assert await rested(pace, 1, A) == 0

    in_virtual_time(main)


def test_while_this_peer_serves_clients_work_rests_in_proportion_and_never_long() -> None:
    async def main(pace: Pace) -> None:
        pace.serve()
        assert await rested(pace, 0.01) == pytest.approx(RESTS * 0.01)
        assert await rested(pace, 0.01, rests=1) == pytest.approx(0.01)
        assert await rested(pace, 100) == pytest.approx(REST_MAX_S)
        await trio.sleep(SERVING_S)
        assert not pace.is_serving()
        assert await rested(pace, 0.01) == 0

    in_virtual_time(main)


def test_work_rests_for_those_peers_that_have_to_do_with_it_while_they_say_they_serve() -> None:
    async def main(pace: Pace) -> None:
        pace.heard(A, is_serving=True)
        assert await rested(pace, 0.01, B) == 0
        assert await rested(pace, 0.01, B, A) > 0
        pace.heard(A, is_serving=False)
        assert await rested(pace, 0.01, A) == 0
        pace.heard(A, is_serving=True)
        await trio.sleep(HEARD_S)
        assert await rested(pace, 0.01, A) == 0

    in_virtual_time(main)


def test_what_clients_ask_is_heard_by_the_others_and_what_peers_and_operators_ask_is_not() -> None:
    async def scenario(world: World) -> None:
        await converged(world)
        await trio.sleep(40)
        await world.request("node-1", "GET", "/nodes")
        await world.request("node-1", "GET", "/metrics")
        await services(world, "node-2").exchanger.exchange(NodeId("node-1"))
        assert not any(others(world, name).pace.is_serving() for name in world.machines)
        await put(world, "node-1", "k", b"x")
        assert others(world, "node-1").pace.is_serving()
        assert not others(world, "node-2").pace.is_serving()
        # In both directions: who is asked and who asks is told.
        await services(world, "node-2").exchanger.exchange(NodeId("node-1"))
        await services(world, "node-1").exchanger.exchange(NodeId("node-3"))
        for name in ("node-2", "node-3"):
            assert await rested(others(world, name).pace, 0.01, NodeId("node-1")) > 0
        # On one machine, whoever it is that works.
        began = trio.current_time()
        await others(world, "node-2").give_way(began - 0.01, NodeId("node-3"))
        assert trio.current_time() > began

    in_world(scenario, peers=3)


def test_repair_rests_while_clients_are_served_and_not_for_an_operator_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []

    async def noted(self: Pace, worked_s: float, node_ids: object, rests_: float = RESTS) -> None:
        rests.append(rests_)

    async def scenario(world: World) -> None:
        for is_waited_for in (False, True):
            await world.crash("node-2")
            for number in range(5):
                await put(world, "node-1", f"{is_waited_for}-{number}", b"x")
            await world.start("node-2")
            await services(world, "node-2").exchanger.exchange(NodeId("node-1"))
            rests.clear()
            recovery = await services(world, "node-2").repair.heal(all_of_it=is_waited_for)
            assert recovery.success == 5
            assert (RESTS in rests) == (not is_waited_for)

    async def nothing(self: Repair) -> None:
        """In place of a step: it repairs when it is told to."""

    monkeypatch.setattr(Pace, "rest", noted)
    monkeypatch.setattr(Repair, "step", nothing)
    in_world(scenario, peers=2)
