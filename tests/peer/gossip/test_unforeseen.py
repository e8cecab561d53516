"""Failures nobody foresaw, and peers that answer probes and nothing else: they cost a moment, not the peer."""

from __future__ import annotations

from typing import Any

import httpx
import trio
from worlds import converged, everywhere, get, here, holders, in_world, others, put, services

from peer.gossip.whole_state import Reason
from protocol.identity import NodeId
from protocol.membership import Received, Status
from sim.world import World


def failures(world: World, name: str) -> dict[str, int]:
    """What failed on a peer; forgotten, so that the world does not take it for a bug."""
    node = world.machines[name].node
    assert node is not None
    counted = dict(node.keeper.failures)
    node.keeper.failures.clear()
    return counted


def fail_once(owner: Any, method: str) -> None:
    """The next call of a method raises what nobody expects."""
    right = getattr(owner, method)

    def wrong(*arguments: Any, **named: Any) -> Any:
        setattr(owner, method, right)
        raise ZeroDivisionError

    setattr(owner, method, wrong)


def test_a_bug_in_any_task_of_the_background_costs_no_more_than_a_moment() -> None:
    async def scenario(world: World) -> None:
        running = services(world, "node-1")
        for number, (owner, method) in enumerate(
            [
                (running.gossip._membership, "_on_tick"),
                (running.exchanger, "_lacking"),
                (running.exchanger.link(NodeId("node-2")), "_suffix"),
                (running.repair, "_forget_attempts"),
                (running.anti_entropy, "step"),
                (here(world, "node-1").chunks.collector, "_take_unadopted"),
            ]
        ):
            fail_once(owner, method)
            key = f"k{number}"
            await put(world, "node-2", key, b"content")
            running.repair.wake()
            running.anti_entropy.wake()
            here(world, "node-1").chunks.collector.wake()
            await trio.sleep(5)
            assert sum(failures(world, "node-1").values()) == 1, method
            await converged(world)
            assert await everywhere(world, key) == [b"content"] * 3
            assert sorted(others(world, "node-1").membership.reachable()) == ["node-2", "node-3"]

    in_world(scenario)


def test_who_waits_for_an_exchange_that_fails_is_told() -> None:
    async def scenario(world: World) -> None:
        fail_once(services(world, "node-1").exchanger.link(NodeId("node-2")), "_suffix")
        receipt = (await world.upload("node-1", "a.bin", b"content")).json()
        failed = [detail for detail in receipt["replication"]["details"] if not detail["success"]]
        assert [detail["node"] for detail in failed] == ["node-2"]
        assert "broke off" in failed[0]["error"]
        assert failures(world, "node-1") == {"exchange": 1}
        await converged(world)

    in_world(scenario)


def test_a_message_that_gossip_stumbles_over_does_not_silence_it() -> None:
    async def scenario(world: World) -> None:
        known, membership = others(world, "node-1").membership, services(world, "node-1").gossip._membership
        right = membership.handle

        def stumble(event: Any, now: float) -> Any:
            if isinstance(event, Received) and event.message.sender.node_id == "node-3":
                raise ZeroDivisionError
            return right(event, now)

        membership.handle = stumble  # type: ignore[method-assign]
        await trio.sleep(120)
        assert known.status(NodeId("node-2")) is Status.ALIVE
        assert known.status(NodeId("node-3")) is Status.DOWN
        assert services(world, "node-1").gossip.datagrams_dropped > 50
        assert failures(world, "node-1") == {}

    in_world(scenario)


def test_a_receipt_does_not_wait_for_one_silent_peer_after_the_other() -> None:
    async def scenario(world: World) -> None:
        async def silence(*_: object) -> None:
            await trio.sleep_forever()

        for name in world.machines:
            if name != "node-1":
                services(world, name).answering.answer = silence  # type: ignore[assignment, method-assign]
        asked_at = trio.current_time()
        response = await world.client.post(
            f"http://{world.machines['node-1'].address}/files", files={"file": ("a", b"content")}, timeout=100
        )
        assert response.status_code == httpx.codes.OK
        assert response.json()["durable_copies"] == ["node-1"]
        assert trio.current_time() - asked_at < 16

    in_world(scenario, peers=12)


def test_whole_states_asked_for_again_and_again_are_fetched_once() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        whole_states = services(world, "node-2").whole_states
        fetched: list[str] = []
        right = whole_states.fetch

        async def count(node_id: NodeId, reason: Reason) -> None:
            fetched.append(node_id)
            await right(node_id, reason)

        whole_states.fetch = count  # type: ignore[method-assign]
        for _ in range(50):
            whole_states.fetch_soon(NodeId("node-1"), Reason.BEHIND)
            whole_states.fetch_soon(NodeId("node-3"), Reason.BEHIND)
        await trio.sleep(10)
        assert sorted(fetched) == ["node-1", "node-3"]
        whole_states.fetch_soon(NodeId("node-1"), Reason.BEHIND)
        await trio.sleep(10)
        assert len(fetched) == 3

    in_world(scenario)


def test_a_peer_met_while_the_services_are_being_set_is_exchanged_with_at_once() -> None:
    async def scenario(world: World) -> None:
        await world.start("node-1")
        await world.start("node-2")
        await put(world, "node-1", "k", b"content")
        await world.start("node-3")
        # Well before the next round of anti-entropy.
        await trio.sleep(3)
        assert holders(world, "node-3", "k"), "it has heard of the file"
        assert await get(world, "node-3", "k") == b"content"

    for seed in range(5):
        in_world(scenario, seed=seed, start=False, heal_interval_s=1000)
