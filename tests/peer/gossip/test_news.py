"""How soon others hear of what a peer did, and at what price."""

from __future__ import annotations

import pytest
import trio
from worlds import converged, count_exchanges, heal, here, in_world, part, put

from peer.gossip.exchange import PUSH_DELAY_S, PUSH_FANOUT, RELAY_DELAYS_S
from sim.world import World

QUIET = {"heal_interval_s": 10_000.0}
"""So that nothing but news moves anything."""


def lists(world: World, name: str, file_key: str) -> bool:
    return here(world, name).shown(file_key) is not None


@pytest.mark.parametrize("peers", [3, 10])
def test_everybody_lists_a_file_within_half_a_second(peers: int) -> None:
    async def scenario(world: World) -> None:
        await converged(world)
        for number in range(5):
            await put(world, f"node-{number + 1 if number < peers else 1}", f"k{number}", b"content")
            await world.wait_until(
                lambda number=number: all(lists(world, name, f"k{number}") for name in world.machines), 0.5
            )

    in_world(scenario, peers=peers, **QUIET)


def test_who_cannot_be_reached_by_the_one_whose_news_it_is_hears_it_from_others_seconds_later() -> None:
    async def scenario(world: World) -> None:
        await converged(world)
        part(world, ("node-1",), ("node-5",))
        await put(world, "node-1", "k", b"content")
        await world.wait_until(lambda: lists(world, "node-5", "k"), 2 * RELAY_DELAYS_S[1])
        heal(world)

    in_world(scenario, peers=5, **QUIET)


def test_each_is_told_of_an_upload_and_not_by_everybody() -> None:
    """Who was told of it leaves the others to the one whose news it is."""

    async def scenario(world: World) -> None:
        peers = len(world.machines)
        await put(world, "node-1", "before", b"content")
        await converged(world)
        await trio.sleep(10 * RELAY_DELAYS_S[1])
        asked = count_exchanges(world)
        await put(world, "node-1", "k", b"content")
        # Its three targets are asked for the name, asked to hold the file, and told of each other.
        await trio.sleep(PUSH_DELAY_S * (2 + peers / PUSH_FANOUT))
        assert all(lists(world, name, "k") for name in world.machines)
        assert asked.total() <= 2 * 3 + peers - 1, asked

    in_world(scenario, peers=7, **QUIET)
