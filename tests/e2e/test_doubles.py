"""Two live processes that go by one id: the later one ends with a clear error, and nothing is damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from e2e.cluster_fixture import content_of, running_peers, wait_until, within

from peer.cluster import free_base_port
from peer.cluster.layout import KEY_FILE

pytestmark = [pytest.mark.e2e]


@within(60)
async def test_a_second_peer_of_one_id_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        receipt = await peers.upload("node-1", content_of(1, 100_000))
        address = f"127.0.0.1:{free_base_port(1)}"
        command = [sys.executable, "-m", "peer", "serve", "--id", "node-2", "--listen", address]
        command += ["--data", str(tmp_path / "other"), "--join", f"127.0.0.1:{peers.port('node-1')}"]
        command += ["--cluster-key-file", str(tmp_path / "data" / KEY_FILE)]
        with trio.fail_after(20):
            done = await trio.run_process(command, capture_stderr=True, check=False)
        assert done.returncode == 1
        last = done.stderr.decode().strip().splitlines()[-1]
        assert f"a peer named node-2 runs at 127.0.0.1:{peers.port('node-2')} already" in last

        async def all_know_the_first() -> bool:
            for node_id in peers.node_ids:
                (node,) = [node for node in await peers.json(node_id, "/nodes") if node["id"] == "node-2"]
                if node["address"] != peers.url("node-2") or node["status"] != "UP":
                    return False
            return True

        await wait_until(all_know_the_first, 40, "all know node-2 by its own address again")
        assert await peers.content("node-2", receipt["file_id"]) == (200, content_of(1, 100_000))
        later = await peers.upload("node-2", b"content")
        assert later["durable_copies"] == ["node-1", "node-2", "node-3"]
