"""The shared port: no single peer's death is felt on it, and nobody else's cluster hides behind it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from e2e.cluster_fixture import Peers, curl, curl_json, running_peers, wait_until, within

from peer.cluster import HOST, free_base_port

pytestmark = pytest.mark.e2e

SHARES_PORTS = pytest.mark.skipif(
    not sys.platform.startswith(("linux", "freebsd")), reason="on this system one peer holds the facade's port"
)


async def wait_all_serve_the_facade(peers: Peers) -> None:
    """New connections reach every peer."""

    async def reaches_all() -> bool:
        answers = [await peers.client.get(peers.facade("/health")) for _ in range(10)]
        seen.update(answer.json()["node"] for answer in answers)
        return seen == set(peers.node_ids)

    seen: set[str] = set()
    await wait_until(reaches_all, 10, "the facade reaches every peer")


@SHARES_PORTS
@within(60)
async def test_a_killed_peers_share_of_the_facade_goes_to_the_others_at_once(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        await wait_all_serve_the_facade(peers)
        for node_id in ("node-3", "node-1"):
            await peers.local.kill(node_id)
            for _ in range(50):
                answer = await peers.client.get(peers.facade("/files"))
                assert answer.status_code == 200
        assert (await curl_json(peers.facade("/health"))) | {"service": "naming-service", "node_id": "node-2"} == (
            await curl_json(peers.facade("/health"))
        )


@SHARES_PORTS
@within(60)
async def test_nobody_on_the_facade_feels_an_orderly_stop(tmp_path: Path) -> None:
    """A peer that drains, however long, takes no new connections."""
    async with running_peers(tmp_path) as peers:
        await wait_all_serve_the_facade(peers)
        file_id = (await peers.upload("node-1", bytes(80 * 2**20)))["file_id"]
        stalled = await trio.open_tcp_stream("127.0.0.1", peers.port("node-1"))
        async with stalled:
            await stalled.send_all(f"GET /files/{file_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await stalled.receive_some(1000)
            peers.terminate("node-1")

            async def is_draining() -> bool:
                return "stopping;" in peers.log_of("node-1")

            await wait_until(is_draining, 5, "node-1 stops")
            until = trio.current_time() + 4
            while trio.current_time() < until:
                answer = await peers.client.get(peers.facade("/health"))
                assert answer.json()["node"] in ("node-2", "node-3")
            assert "taking it again" not in peers.log_of("node-1")
        assert await peers.wait_exit("node-1", 15) == "exit code 0"


@within(60)
async def test_both_loopback_addresses_answer(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            if host == "[::1]" and not has_ipv6():
                continue
            for port, service in ((peers.port("node-1"), "storage-node"), (peers.local.layout.facade_port, None)):
                done = await curl("-g", f"http://{host}:{port}/health")
                assert done.returncode == 0, done.stderr.decode()
                assert (service or "naming-service").encode() in done.stdout


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def run_peer_to_its_end(folder: Path, *options: str) -> tuple[int | None, str]:
    """Exit code and output of a peer that is not expected to run."""
    with trio.fail_after(20):
        done = await trio.run_process(
            [sys.executable, "-m", "peer", "serve", "--data", str(folder), *options],
            capture_stdout=True,
            check=False,
            stderr=subprocess.STDOUT,
        )
    return done.returncode, done.stdout.decode()


@within(40)
async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    port = free_base_port(1)
    with socket.socket() as taken:
        # Connections of an earlier cluster on this port may still wait for their end.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, port))
        taken.listen()
        code, output = await run_peer_to_its_end(tmp_path, "--id", "node-1", "--listen", f"{HOST}:{port}")
    assert code == 1
    assert output == f"minidfs: port {port} is taken; stop what uses it, or choose another\n"


@SHARES_PORTS
@within(60)
async def test_another_clusters_facade_is_refused(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "one", nodes=1) as peers:
        await wait_all_serve_the_facade(peers)
        port = free_base_port(1)
        facade = f"{HOST}:{peers.local.layout.facade_port}"
        code, output = await run_peer_to_its_end(
            tmp_path / "two", "--id", "node-1", "--listen", f"{HOST}:{port}", "--facade", facade
        )
        assert code == 1
        assert "Traceback" not in output
        last_line = output.splitlines()[-1]
        assert last_line.startswith("minidfs: "), output
        assert "another cluster" in last_line
        assert (await peers.client.get(peers.facade("/health"))).json()["node"] == "node-1"


@within(40)
async def test_a_folder_in_use_is_one_clear_line(tmp_path: Path) -> None:
    async with running_peers(tmp_path, nodes=1) as peers:
        port = free_base_port(1)
        code, output = await run_peer_to_its_end(peers.folder("node-1"), "--id", "node-1", "--listen", f"{HOST}:{port}")
        assert code == 1
        assert output.count("\n") == 1
        assert "another peer uses the data folder" in output


@SHARES_PORTS
@within(60)
async def test_what_one_peer_took_in_the_facade_lists_with_all_its_holders_at_once(tmp_path: Path) -> None:
    """Within half a second in a calm cluster, which virtual time shows; here it only must not take long."""
    async with running_peers(tmp_path) as peers:
        await wait_all_serve_the_facade(peers)
        for number in range(20):
            receipt = await peers.upload(peers.node_ids[number % 3], f"content {number}".encode())

            async def all_list_it(receipt: dict[str, Any] = receipt) -> bool:
                # One after the other, for each new connection may reach another peer.
                for _ in range(6):
                    newest = (await peers.client.get(peers.facade("/files?limit=1"))).json()["files"][0]
                    found = newest["file_key"] == receipt["file_id"]
                    if not found or not set(receipt["durable_copies"]) <= set(newest["replicas"]):
                        return False
                return True

            await wait_until(all_list_it, 5, f"the facade lists {receipt['durable_copies']}")
