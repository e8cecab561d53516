"""SIGTERM: running requests finish, nobody can hold the end up, and the exit code is 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from e2e.cluster_fixture import POSIX_ONLY, curl, running_peers, sha256_of, wait_until, within, write_random

pytestmark = [pytest.mark.e2e, POSIX_ONLY]

GRACE_S = 10.0
EXIT_SLACK_S = 4.0


@within(60)
async def test_a_running_upload_finishes_when_its_peer_is_told_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "slow.bin"
    sha256 = write_random(path, 5, 12 * 2**20)
    async with running_peers(tmp_path / "cluster") as peers:
        receipts: list[bytes] = []

        async def upload() -> None:
            done = await curl("--limit-rate", "3M", "-F", f"file=@{path}", peers.url("node-1", "/files"))
            assert done.returncode == 0, done.stderr.decode()
            receipts.append(done.stdout)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)

            async def has_begun() -> bool:
                return any((peers.folder("node-1") / "receiving").iterdir())

            await wait_until(has_begun, 10, "the upload has begun")
            peers.terminate("node-1")
            assert await peers.wait_exit("node-1", GRACE_S + EXIT_SLACK_S) == "exit code 0"

        (receipt,) = map(json.loads, receipts)
        assert receipt["checksum_sha256"] == sha256
        # On a busy machine a target may be too slow for the receipt; it gets its copy all the same.
        assert "node-1" in receipt["durable_copies"]
        await peers.local.start("node-1")
        for node_id in peers.node_ids:
            back = tmp_path / "back.bin"
            await curl("-o", str(back), peers.url(node_id, f"/files/{receipt['file_id']}"))
            assert sha256_of(back) == sha256


@within(60)
async def test_neither_a_stalled_reader_nor_a_stalled_sender_holds_up_the_end(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        receipt = await peers.upload("node-1", bytes(range(256)) * 2**18)
        reader = await trio.open_tcp_stream("127.0.0.1", peers.port("node-1"))
        sender = await trio.open_tcp_stream("127.0.0.1", peers.port("node-1"))
        async with reader, sender:
            await reader.send_all(f"GET /files/{receipt['file_id']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await reader.receive_some(1000)).startswith(b"HTTP/1.1 200 ")
            await sender.send_all(
                b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
                b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nand then nothing'
            )
            started = trio.current_time()
            peers.terminate("node-1")
            assert await peers.wait_exit("node-1", GRACE_S + EXIT_SLACK_S) == "exit code 0"
            print(f"ended after {trio.current_time() - started:.1f} s")
        assert "Traceback" not in peers.log_of("node-1")


@within(60)
async def test_idle_peers_end_at_once(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        kept = await trio.open_tcp_stream("127.0.0.1", peers.port("node-2"))
        async with kept:
            await kept.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await kept.receive_some(1000)).startswith(b"HTTP/1.1 200 ")
            started = trio.current_time()
            await peers.local.stop_all()
            assert trio.current_time() - started < 3
        assert [event.how for event in peers.exits] == ["exit code 0"] * 3
        for node_id in peers.node_ids:
            assert "Traceback" not in peers.log_of(node_id)
