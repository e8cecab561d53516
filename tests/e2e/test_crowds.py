"""Clients that take connections and do nothing with them: they cost themselves, and nobody else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest
import trio
from e2e.cluster_fixture import POSIX_ONLY, Peers, content_of, running_peers, wait_until, within

from peer.run import OPEN_FILES

pytestmark = [pytest.mark.e2e, POSIX_ONLY]

IDLE, SLOW, HALF = 600, 200, 50
HALF_UPLOAD = (
    b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 100000\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="half"\r\n\r\nhalf of it'
)
THREADS_MAX = 32
"""Eight for the disk, two for hashes, two for the database, a watchdog, the loop, and room for looking up names."""
GRACE_S = 10
"""The aim is a second; on a busy machine all takes longer."""


@within(60)
async def test_idle_and_slow_clients_stop_neither_health_checks_nor_uploads_nor_replication(tmp_path: Path) -> None:
    _allow_files()
    async with running_peers(tmp_path / "data") as peers, trio.open_nursery() as nursery:
        await _crowd(peers, "node-2", nursery)
        for _ in range(3):
            with trio.fail_after(GRACE_S):
                assert (await peers.client.get(peers.url("node-2", "/health"))).status_code == httpx.codes.OK
            for node_id in ("node-1", "node-2"):
                with trio.fail_after(GRACE_S):
                    receipt = await peers.upload(node_id, content_of(node_id, 100_000))
                assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
        nodes = await peers.json("node-1", "/nodes")
        assert [node["status"] for node in nodes] == ["UP"] * 3
        if sys.platform == "linux":
            threads, files = (len(os.listdir(f"/proc/{peers.pid('node-2')}/{kind}")) for kind in ("task", "fd"))
            assert threads <= THREADS_MAX
            assert files <= OPEN_FILES
        nursery.cancel_scope.cancel()


def _allow_files() -> None:
    """As many as the system lets a process have: each client here is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _crowd(peers: Peers, node_id: str, nursery: trio.Nursery) -> None:
    """Fill a peer with half uploads, idle connections and slow heads; returns when all are connected."""
    connected = 0

    async def client(first: bytes, drip: bytes) -> None:
        nonlocal connected
        stream = await trio.open_tcp_stream("127.0.0.1", peers.port(node_id))
        connected += 1
        try:
            await stream.send_all(first)
            while drip:
                await trio.sleep(0.5)
                await stream.send_all(drip)
            await trio.sleep_forever()
        except trio.BrokenResourceError:
            pass  # it had to make room
        finally:
            await trio.aclose_forcefully(stream)

    for count, first, drip in ((HALF, HALF_UPLOAD, b""), (IDLE, b"", b""), (SLOW, b"GET / HTTP/1.1\r\nHost: ", b"l")):
        for _ in range(count):
            nursery.start_soon(client, first, drip)

    async def all_connected() -> bool:
        return connected == HALF + IDLE + SLOW

    await wait_until(all_connected, 20, "all clients are connected")
