"""Large files up and down in bounded memory, and a download that survives the holder it is read from.

MINIDFS_E2E_BYTES says how large; 2147483648 is what is promised.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from e2e.cluster_fixture import (
    ON_LINUX,
    Peers,
    content_of,
    curl,
    curl_json,
    curl_program,
    running_peers,
    sha256_of,
    wait_until,
    within,
    write_random,
)
from e2e.insider import Insider

from peer.gossip.client import CLUSTER_HEADER

pytestmark = pytest.mark.e2e

SIZE = int(os.environ.get("MINIDFS_E2E_BYTES", str(256 * 2**20)))
SECONDS_MAX = 90 + SIZE / 2**20 / 10
GROWTH_MAX_KIB = 64 * 1024
SAMPLE_S = 0.02


def resident_kib(pid: int) -> int:
    """How much memory a process occupies (VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


class MemoryWatch:
    """The most each peer has occupied beyond what it did at first."""

    def __init__(self, peers: Peers) -> None:
        self._pids = {node_id: peers.pid(node_id) for node_id in peers.node_ids}
        self._first = {node_id: resident_kib(pid) for node_id, pid in self._pids.items()}
        self.growth_kib = dict.fromkeys(peers.node_ids, 0)

    async def run(self) -> None:
        while True:
            for node_id, pid in self._pids.items():
                growth = resident_kib(pid) - self._first[node_id]
                self.growth_kib[node_id] = max(growth, self.growth_kib[node_id])
            await trio.sleep(SAMPLE_S)


@asynccontextmanager
async def watched_memory(peers: Peers) -> AsyncIterator[MemoryWatch]:
    async with trio.open_nursery() as nursery:
        watch = MemoryWatch(peers)
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()


@pytest.mark.once
@ON_LINUX
@within(SECONDS_MAX)
async def test_a_large_file_goes_up_and_down_in_bounded_memory(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    sha256 = write_random(large, 1, SIZE)
    mib = SIZE / 2**20
    async with running_peers(tmp_path / "cluster", nodes=4) as peers:
        # What a peer loads for its first requests is no growth.
        for node_id in peers.node_ids:
            warm = await peers.upload(node_id, content_of(node_id, 100_000))
            for other in peers.node_ids:
                await peers.content(other, warm["file_id"])
        speeds: list[str] = []
        async with watched_memory(peers) as watch:
            started = trio.current_time()
            receipt = await curl_json(
                "-X", "POST", peers.url("node-1", "/files"), "-F", f"file=@{large}", within_s=SECONDS_MAX
            )
            speeds.append(f"up {mib / (trio.current_time() - started):.0f} MiB/s")
            assert receipt["checksum_sha256"] == sha256
            assert len(receipt["durable_copies"]) >= 3
            lacking = [node_id for node_id in peers.node_ids if node_id not in receipt["durable_copies"]]
            for node_id in ("node-1", *lacking):
                here = tmp_path / "back.bin"
                started = trio.current_time()
                url = peers.url(node_id, f"/files/{receipt['file_id']}")
                done = await curl("-o", str(here), url, within_s=SECONDS_MAX)
                took_s = trio.current_time() - started
                assert done.returncode == 0, done.stderr.decode()
                kind = "with a copy" if node_id in receipt["durable_copies"] else "without"
                speeds.append(f"down from {node_id} ({kind}) {mib / took_s:.0f} MiB/s")
                assert sha256_of(here) == sha256
                here.unlink()
        growth = {node_id: f"{kib / 1024:.0f} MiB" for node_id, kib in watch.growth_kib.items()}
        print(f"{mib:.0f} MiB: {', '.join(speeds)}; memory grew by {growth}")
        assert max(watch.growth_kib.values()) <= GROWTH_MAX_KIB, growth


async def upload_that_a_peer_lacks(peers: Peers, path: Path, seed: int, size: int) -> tuple[str, list[str], str]:
    """Write a file and upload it with two copies; its id, its holders, and a peer that is none of them."""
    for attempt in range(5):
        # New content each time: equal chunks are stored once, so a peer may have those of an earlier attempt.
        write_random(path, seed + 100 * attempt, size)
        receipt = await curl_json("-X", "POST", peers.url("node-1", "/files?copies=2"), "-F", f"file=@{path}")
        holders = receipt["durable_copies"]
        others = [node_id for node_id in peers.node_ids if node_id not in holders]
        # On a busy machine another peer may have stood in for a slow target, which fetches its copy a moment later.
        if others and len(holders) >= 2 and not receipt["replication"]["failed"]:
            return receipt["file_id"], holders, others[0]
    pytest.fail("no upload of two copies left a peer without one")


@within(90)
async def test_a_download_goes_on_when_the_holder_it_is_read_from_is_killed(tmp_path: Path) -> None:
    path, back, head = tmp_path / "file.bin", tmp_path / "back.bin", tmp_path / "head"
    async with running_peers(tmp_path / "cluster", nodes=4) as peers:
        file_id, holders, reader = await upload_that_a_peer_lacks(peers, path, 2, 60 * 2**20)
        url = peers.url(reader, f"/files/{file_id}")
        process = await trio.lowlevel.open_process(
            [curl_program(), "-sS", "--limit-rate", "8M", "-D", str(head), "-o", str(back), url]
        )
        try:

            async def has_begun() -> bool:
                return back.exists() and back.stat().st_size > 2**20

            await wait_until(has_begun, 20, "the download has begun")
            headers = dict(line.split(": ", 1) for line in head.read_text().lower().splitlines() if ": " in line)
            assert headers["x-routed-from"] in holders
            await peers.local.kill(headers["x-routed-from"])
            assert back.stat().st_size < path.stat().st_size / 2, "the download was over too soon to show anything"
            assert await process.wait() == 0
        finally:
            process.kill()
            await process.wait()
        assert sha256_of(back) == sha256_of(path)


@within(90)
async def test_a_download_ends_early_and_not_wrongly_when_the_last_holder_is_killed(tmp_path: Path) -> None:
    path, back = tmp_path / "file.bin", tmp_path / "back.bin"
    async with running_peers(tmp_path / "cluster", nodes=4) as peers:
        file_id, holders, reader = await upload_that_a_peer_lacks(peers, path, 3, 60 * 2**20)
        process = await trio.lowlevel.open_process(
            [curl_program(), "-sS", "--limit-rate", "6M", "-o", str(back), peers.url(reader, f"/files/{file_id}")],
            stderr=subprocess.DEVNULL,
        )
        try:

            async def has_begun() -> bool:
                return back.exists() and back.stat().st_size > 2**20

            await wait_until(has_begun, 20, "the download has begun")
            for holder in holders:
                await peers.local.kill(holder)
            assert back.stat().st_size < path.stat().st_size / 2, "the download was over too soon to show anything"
            assert await process.wait() != 0, "curl took a part of the file for all of it"
        finally:
            process.kill()
            await process.wait()
        got = back.read_bytes()
        with path.open("rb") as file:
            assert got == file.read(len(got))
        assert (await peers.client.get(peers.url(reader, f"/files/{file_id}"))).status_code == 503


@pytest.mark.once
@within(90)
async def test_many_slow_readers_of_a_file_elsewhere_keep_nobody_from_reading(tmp_path: Path) -> None:
    """Chunks of other peers are kept in memory for slow clients, of which there may be many."""
    path = tmp_path / "file.bin"
    async with running_peers(tmp_path / "cluster", nodes=4) as peers:
        file_id, _, reader = await upload_that_a_peer_lacks(peers, path, 4, 24 * 2**20)
        url = peers.url(reader, f"/files/{file_id}")
        slow = [await trio.open_tcp_stream("127.0.0.1", peers.port(reader)) for _ in range(40)]
        try:
            for stream in slow:
                await stream.send_all(f"GET /files/{file_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            back = tmp_path / "back.bin"
            done = await curl("-o", str(back), url, within_s=8)
            assert done.returncode == 0, done.stderr.decode()
            assert sha256_of(back) == sha256_of(path)
        finally:
            for stream in slow:
                await trio.aclose_forcefully(stream)


@within(60)
async def test_a_chunk_is_sent_to_another_peer_from_its_file(tmp_path: Path) -> None:
    content = os.urandom(5 * 2**20)
    chunk_hash = blake3(content).hexdigest()
    async with running_peers(tmp_path / "cluster", nodes=1) as peers:
        await peers.upload("node-1", content)
        url = peers.url("node-1", f"/peer/chunks/{chunk_hash}")
        cluster_id = (await peers.json("node-1", "/health"))["cluster_id"]
        insider, address = Insider(tmp_path / "cluster"), url.split("/")[2]
        await trio.to_thread.run_sync(insider.meet, address)
        for method, expected in [("HEAD", b""), ("GET", content), ("HEAD", b""), ("GET", content)]:
            name, field = insider.field(address, method, f"/peer/chunks/{chunk_hash}").split(": ")
            answer = await peers.client.request(method, url, headers={CLUSTER_HEADER: cluster_id, name: field})
            assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(content)))
            assert answer.content == expected
