"""Peers on a system that has nothing beyond what all systems have: no fcntl, no sendfile, no shared ports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2e.cluster_fixture import POSIX_ONLY, Peers, content_of, free_base_port, wait_until, within

from peer.cluster import Layout, open_cluster, serve_command

pytestmark = [pytest.mark.e2e, POSIX_ONLY]

# Third parties have looked at the system by then; what is ours has not.
ELSEWHERE = """
import os, socket, sys, types
import httpx, msgpack, prometheus_client, sqlite_utils, starlette.routing, trio, trio.socket

for name in ("pread", "posix_fallocate", "sendfile", "fork"):
    delattr(os, name)
del socket.SO_REUSEPORT
import fcntl
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK = 2
msvcrt.locking = lambda descriptor, mode, count, flock=fcntl.flock: flock(descriptor, 2 | 4)
sys.modules.update(fcntl=None, resource=None, msvcrt=msvcrt)
sys.platform = "elsewhere"
sys.path.insert(0, {root!r})
from peer.cli.main import main
sys.exit(main())
"""


def elsewhere(folder: Path) -> Callable[[Layout, str, Path], list[str]]:
    script = folder / "elsewhere.py"
    script.write_text(ELSEWHERE.format(root=str(Path(__file__).parents[2])))

    def command(layout: Layout, node_id: str, data: Path) -> list[str]:
        words = serve_command(layout, node_id, data)
        return [sys.executable, str(script), *words[words.index("serve") :]]

    return command


@within(120)
async def test_peers_replicate_serve_and_take_over_the_facade_without_what_only_linux_has(tmp_path: Path) -> None:
    base = free_base_port(4)
    command = elsewhere(tmp_path)
    async with open_cluster(tmp_path / "data", nodes=3, base_port=base + 1, facade_port=base, command=command) as local:
        peers = Peers(local)
        async with peers.client:
            await local.start_all()
            await peers.wait_all_see_each_other()
            contents = {"small": content_of("small", 100), "large": content_of("large", 10_000_000)}
            for file_key, content in contents.items():
                receipt = await peers.upload("node-1", content, file_id=file_key)
                assert receipt["durable_copies"] == ["node-1", "node-2", "node-3"]
            for node_id in peers.node_ids:
                for file_key, content in contents.items():
                    assert await peers.content(node_id, file_key) == (200, content)

            first = await _holder_of_facade(peers)
            await local.kill(first)
            second = await wait_until(lambda: _other_holder(peers, first), 20, "another peer holds the facade's port")
            assert second in peers.node_ids
            assert (await peers.client.delete(peers.facade("/files/large"))).status_code == httpx.codes.OK
            await local.start(first)
            await peers.wait_alike(30)


async def _holder_of_facade(peers: Peers) -> str:
    return str((await peers.client.get(peers.facade("/health"))).json()["node_id"])


async def _other_holder(peers: Peers, gone: str) -> str:
    try:
        found = await _holder_of_facade(peers)
    except httpx.HTTPError:
        return ""
    return "" if found == gone else found
