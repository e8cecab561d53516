"""Records and addresses that other peers bring: none of them ends a peer, or cuts it off."""

from __future__ import annotations

import httpx
import pytest
import trio
from worlds import converged, everywhere, in_world, others, peer_asks, put, services

from protocol import messages
from protocol.identity import Member, NodeId, Status
from protocol.member_list import INCARNATION_STEP_MAX
from protocol.messages import View
from sim.world import World

LONG_LABEL = f"{'a' * 64}.example:80"


@pytest.mark.parametrize(
    "address",
    [
        LONG_LABEL,
        "a..b:80",
        "\u00df\u200d:80",
        "[::1",
        "x",
        "127.0.0.1:99999",
        "a b:80",
        "http://a:1",
        "-:1",
        "\ud7ff:1",
    ],
)
def test_a_member_at_an_address_that_can_be_none_ends_no_peer(address: str) -> None:
    async def scenario(world: World) -> None:
        services(world, "node-1").gossip.learn(View.of(Member(NodeId("odd"), address, 1)))
        await trio.sleep(60)
        response = await world.request("node-1", "GET", "/nodes/check")
        assert response.status_code == httpx.codes.OK
        assert {node["id"]: node["status"] for node in response.json()["nodes"]}.get("odd", "DOWN") == "DOWN"
        await put(world, "node-1", "k", b"content")
        assert await everywhere(world, "k") == [b"content"] * 3

    in_world(scenario, copies=4)


async def tell(world: World, name: str, cluster_id: str, *members: Member) -> int:
    body = messages.encode_joined(cluster_id, members)
    return (await peer_asks(world, name, "POST", "/peer/join", body)).status_code


def test_who_brings_members_must_name_the_cluster() -> None:
    async def scenario(world: World) -> None:
        stranger = Member(NodeId("node-9"), "127.0.0.1:1", 1)
        assert await tell(world, "node-1", "", stranger) == httpx.codes.FORBIDDEN
        assert await tell(world, "node-1", "f" * 32, stranger) == httpx.codes.FORBIDDEN
        assert await tell(world, "node-1", "") == httpx.codes.OK
        assert others(world, "node-1").membership.member(NodeId("node-9")) is None

    in_world(scenario)


@pytest.mark.parametrize("incarnation", [messages.INCARNATION_MAX, messages.INCARNATION_MAX - 1, 2**40, 1000])
@pytest.mark.parametrize("victim", ["node-1", "node-2"])
def test_a_poisoned_record_isolates_nobody_for_good(victim: str, incarnation: int) -> None:
    async def scenario(world: World) -> None:
        cluster_id = others(world, "node-1").cluster_id
        poison = Member(NodeId(victim), "127.0.0.1:1", incarnation)
        assert await tell(world, "node-1", cluster_id, poison) == httpx.codes.OK
        for restart in (False, True):
            if restart:
                await world.crash(victim)
                await world.start(victim)
            await trio.sleep(100)
            for name in world.machines:
                membership = others(world, name).membership
                for member in membership.members():
                    assert membership.status(member.node_id) is Status.ALIVE, f"{name} sees {member}"
                    assert member.address == str(world.machines[member.node_id].address)
                    assert member.incarnation <= 2 * INCARNATION_STEP_MAX
            await put(world, victim, f"k{restart}", b"content")
            await converged(world)

    in_world(scenario)
