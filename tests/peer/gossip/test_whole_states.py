"""A whole state is given to others as of one moment, and not at any price."""

from __future__ import annotations

import pytest
from worlds import converged, here, in_world, put, services

from peer.gossip.client import PeerUnreachable
from peer.gossip.whole_state import WAL_BYTES_MAX, Reason
from peer.store.database import Database
from protocol.identity import NodeId
from sim.world import World


def test_a_whole_state_is_broken_off_when_the_moment_it_is_of_costs_too_much_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        whole_states = services(world, "node-2").whole_states
        monkeypatch.setattr(Database, "wal_bytes", lambda self: WAL_BYTES_MAX + 1)
        with pytest.raises(PeerUnreachable):
            await whole_states.fetch(NodeId("node-1"), Reason.DISAGREEMENT)
        monkeypatch.setattr(Database, "wal_bytes", lambda self: WAL_BYTES_MAX)
        await whole_states.fetch(NodeId("node-1"), Reason.DISAGREEMENT)
        assert here(world, "node-2").database.store.state_sum() == here(world, "node-1").database.store.state_sum()

    in_world(scenario, peers=2)
