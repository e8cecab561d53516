"""The documented scenarios, word for word but for the ports: real peers, real curl, the default settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.cluster_fixture import Peers, curl, curl_json, running_peers, wait_until, within

pytestmark = pytest.mark.e2e

BACK_WITHIN_S = 30


async def queue_items(peers: Peers, file_id: str) -> dict[str, list[tuple[str, str]]]:
    """What each running peer's queue says of a file: target and status."""
    return {
        peer.node_id: [
            (item["target_node_id"], item["status"])
            for item in (await peers.json(peer.node_id, "/replication-queue"))["items"]
            if item["file_key"] == file_id
        ]
        for peer in peers.local.status()
        if peer.pid is not None
    }


@within(100)
async def test_the_five_documented_scenarios(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "test.txt").write_text("hello\n")
    async with running_peers(tmp_path / "cluster") as peers:
        first = f"http://localhost:{peers.port('node-1')}"

        # 1. Normal.
        receipt = await curl_json("-X", "POST", f"{first}/files", "-F", "file=@test.txt", cwd=here)
        assert receipt["success"] is True
        assert receipt["replication"]["successful"] == 2
        assert receipt["replication"]["failed"] == 0
        assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        assert (receipt["original_filename"], receipt["content_type"]) == ("test.txt", "text/plain")
        await peers.wait_held_by_all(receipt["file_id"])

        # 2. Fault.
        await peers.local.stop("node-2")
        (here / "test.txt").write_text("hello again\n")
        receipt = await curl_json("-X", "POST", f"{first}/files", "-F", "file=@test.txt", cwd=here)
        file_id = receipt["file_id"]
        assert receipt["success"] is True
        assert receipt["replication"]["failed"] == 1
        assert receipt["durable_copies"] == ["node-1", "node-3"]
        queue = await curl_json(peers.facade("/replication-queue"))
        (item,) = [item for item in queue["items"] if item["file_key"] == file_id]
        assert (item["target_node_id"], item["status"]) == ("node-2", "PENDING")
        assert await queue_items(peers, file_id) == {
            node_id: [("node-2", "PENDING")] for node_id in ("node-1", "node-3")
        }

        # 3. Auto-recovery.
        await peers.local.start("node-2")

        async def is_back() -> bool:
            seen = await queue_items(peers, file_id)
            return seen == {node_id: [("node-2", "COMPLETED")] for node_id in peers.node_ids}

        await wait_until(is_back, BACK_WITHIN_S, "every peer's queue says COMPLETED")
        await peers.wait_logged("node-2", f"Auto-recovered {file_id} to node-2")
        assert await peers.content("node-2", file_id) == (200, b"hello again\n")

        # 4. Manual.
        await peers.local.stop("node-2")
        (here / "test.txt").write_text("a third time\n")
        receipt = await curl_json("-X", "POST", f"{first}/files", "-F", "file=@test.txt", cwd=here)
        await peers.local.start("node-2")
        recovered = await curl_json("-X", "POST", peers.facade("/nodes/node-2/recover"))
        assert recovered["failed"] == 0
        assert recovered["success"] == recovered["total"]
        await peers.wait_held_by_all(receipt["file_id"])
        assert (await curl_json("-X", "POST", peers.facade("/nodes/node-2/recover")))["success"] == 0

        # 5. Download from every node, also with one or two of the three nodes down.
        for stopped in (None, "node-1", "node-3"):
            if stopped is not None:
                await peers.local.stop(stopped)
            for node_id in [peer.node_id for peer in peers.local.status() if peer.pid is not None]:
                (here / file_id).unlink(missing_ok=True)
                done = await curl("-O", f"http://localhost:{peers.port(node_id)}/files/{file_id}", cwd=here)
                assert done.returncode == 0, done.stderr.decode()
                assert (here / file_id).read_text() == "hello again\n"


@within(60)
async def test_a_killed_peer_gets_what_it_missed_within_thirty_seconds(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "cluster") as peers:
        await peers.local.kill("node-2")
        missed = [(await peers.upload("node-1", bytes([n]) * 40_000))["file_id"] for n in range(5)]
        (deleted,) = [(await peers.upload("node-3", b"to be deleted"))["file_id"]]
        assert (await peers.client.delete(peers.url("node-1", f"/files/{deleted}"))).status_code == 200
        await peers.local.start("node-2")

        async def has_all() -> bool:
            listed = await peers.listed("node-2")
            return set(listed) == set(missed) and all("node-2" in file["replicas"] for file in listed.values())

        await wait_until(has_all, BACK_WITHIN_S, "node-2 has what it missed")
        for file_id in missed:
            await peers.wait_logged("node-2", f"Auto-recovered {file_id} to node-2")


@within(60)
async def test_the_other_ways_in_and_out_work_with_curl(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(bytes(range(256)) * 500)
    async with running_peers(tmp_path / "cluster") as peers:
        put = await curl_json("-T", "photo.png", peers.url("node-1", "/files/my-photo"), cwd=tmp_path)
        assert (put["file_id"], put["durable_copies"]) == ("my-photo", ["node-1", "node-2", "node-3"])
        routed = await curl_json("-F", "file=@photo.png", peers.facade("/upload"), cwd=tmp_path)
        assert routed["routed_via"] == "naming-service"
        assert routed["checksum_sha256"] == put["checksum_sha256"]
        for key in ("my-photo", routed["file_key"]):
            done = await curl("-o", "back.png", peers.url("node-3", f"/download/{key}"), cwd=tmp_path)
            assert done.returncode == 0, done.stderr.decode()
            assert (tmp_path / "back.png").read_bytes() == (tmp_path / "photo.png").read_bytes()
        last = await curl("-r", f"100000-{'9' * 25}", peers.url("node-2", "/files/my-photo"))
        assert last.stdout == (tmp_path / "photo.png").read_bytes()[100_000:]
