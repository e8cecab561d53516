"""Ten real peers: they find each other, notice one that is killed, and go through a restart of all, one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from e2e.cluster_fixture import Peers, content_of, running_peers, wait_until, within

from peer.cluster import ClusterError

PEERS = 10
VIEW_S = 5.0
"""All know all so soon after the last has started."""
DOWN_S = 6.0
"""So soon a peer that was killed is down to all others. Both are what is promised, and some for a busy machine."""
SLACK_S = 10.0


async def wait_down(peers: Peers, victim: str, within_s: float) -> None:
    """Until all others hold a peer for down."""
    others = [node_id for node_id in peers.node_ids if node_id != victim]

    async def is_down_everywhere() -> bool:
        for node_id in others:
            states = {node["id"]: node["state"] for node in await peers.json(node_id, "/nodes")}
            if states[victim] != "down":
                return False
        return True

    await wait_until(is_down_everywhere, within_s, f"{victim} is down everywhere")


@pytest.mark.once
@pytest.mark.e2e
@within(240)
async def test_ten_peers_find_each_other_notice_who_is_killed_and_survive_a_rolling_restart(tmp_path: Path) -> None:
    async with running_peers(tmp_path, nodes=PEERS) as peers:
        await peers.wait_all_see_each_other(VIEW_S + SLACK_S)
        kept = await peers.upload("node-1", content_of(1, 5000))

        await peers.local.kill("node-4")
        await wait_down(peers, "node-4", DOWN_S + SLACK_S)
        await peers.local.start("node-4")
        await peers.wait_all_see_each_other(VIEW_S + SLACK_S)

        for node_id in peers.node_ids:
            await peers.local.stop(node_id)
            other = next(other for other in peers.node_ids if other != node_id)
            receipt = await peers.upload(other, content_of(node_id, 3000))
            assert len(receipt["durable_copies"]) >= 3
            await peers.local.start(node_id)
        await peers.wait_all_see_each_other(VIEW_S + SLACK_S)
        for node_id in peers.node_ids:
            assert (await peers.content(node_id, kept["file_key"]))[0] == 200


@pytest.mark.e2e
@within(120)
async def test_a_node_that_is_removed_ends_and_its_files_are_copied_to_the_others(tmp_path: Path) -> None:
    async with running_peers(tmp_path, nodes=4) as peers:
        receipts = [await peers.upload("node-1", content_of(number, 4000)) for number in range(8)]
        response = await peers.client.post(peers.url("node-1", "/nodes/node-3/evict"))
        assert response.status_code == 200, response.text
        assert "it has left the cluster" in await peers.wait_exit("node-3", 20)
        assert "node-3 was removed from its cluster; add --join and --rejoin to join again" in peers.log_of("node-3")

        async def are_with_the_others() -> bool:
            listed = await peers.listed("node-2")
            wanted = ["node-1", "node-2", "node-4"]
            return all(listed[receipt["file_key"]]["replicas"] == wanted for receipt in receipts)

        await wait_until(are_with_the_others, 30, "the others have what it had")
        assert [node["id"] for node in await peers.json("node-4", "/nodes")] == ["node-1", "node-2", "node-4"]


@pytest.mark.e2e
@within(120)
async def test_a_node_that_leaves_hands_its_files_over_and_ends_well(tmp_path: Path) -> None:
    async with running_peers(tmp_path, nodes=4) as peers:
        receipts = [await peers.upload("node-1", content_of(number, 400_000)) for number in range(8)]
        leave = [sys.executable, "-m", "peer", "leave", "node-3", "--to", peers.url("node-1")]
        done = await trio.run_process(leave, capture_stdout=True, check=False)
        assert done.returncode == 0
        assert done.stdout.decode().splitlines() == [
            "node-3 leaves once others have what it holds",
            "node-3 has left",
        ]
        assert "0" in await peers.wait_exit("node-3", 20)
        assert "this peer has left its cluster" in peers.log_of("node-3")
        listed = await peers.listed("node-2")
        wanted = ["node-1", "node-2", "node-4"]
        assert all(listed[receipt["file_key"]]["replicas"] == wanted for receipt in receipts)
        for receipt in receipts:
            assert (await peers.content("node-4", receipt["file_key"]))[0] == 200
        with pytest.raises(ClusterError, match="was removed from its cluster"):
            await peers.local.start("node-3")
        await peers.local.start("node-3", rejoin=True)
        await peers.wait_all_see_each_other(VIEW_S + SLACK_S)


@pytest.mark.e2e
@within(120)
async def test_a_cluster_that_one_has_left_starts_again_without_it(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        await peers.upload("node-1", b"content", file_id="k")
        left = await peers.client.post(peers.url("node-3", "/nodes/node-3/leave"))
        assert left.status_code == 200, left.text
        await peers.wait_exit("node-3", 20)
        await peers.local.stop_all()
        await peers.local.start_all()
        assert [peer.node_id for peer in peers.local.status() if peer.pid is not None] == ["node-1", "node-2"]
        assert await peers.content("node-2", "k") == (200, b"content")
