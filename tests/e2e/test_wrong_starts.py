"""Every way to start a peer wrongly is said in one line with what to do, by real processes, and harms nothing."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e.cluster_fixture import POSIX_ONLY, content_of, wait_until, within

from peer.cluster import free_base_port
from peer.cluster.key_file import make_key_file
from peer.run import SOMEWHERE_ELSE
from peer.world.sockets import own_host_towards, own_hosts

pytestmark = [pytest.mark.e2e, pytest.mark.once, POSIX_ONLY]

START_TIMEOUT_S = 20
ANY = "0.0.0.0"  # noqa: S104 - that this works is what is tested


class Machine:
    """One peer, started by `minidfs serve` with whatever options a test gives it."""

    def __init__(self, folder: Path, node_id: str, port: int) -> None:
        self.node_id = node_id
        self.port = port
        self.data = folder / node_id
        self.log = folder / f"{node_id}.log"
        self.key = folder / "cluster.key"
        self.listen = f"127.0.0.1:{port}"

    def command(self, *options: str) -> list[str]:
        named = ["--id", self.node_id, "--data", str(self.data)]
        listen = [] if "--listen" in options else ["--listen", self.listen]
        return [sys.executable, "-m", "peer", "serve", *named, *listen, *options]

    @asynccontextmanager
    async def running(self, *options: str) -> AsyncIterator[trio.Process]:
        with self.log.open("wb") as log:
            process = await trio.lowlevel.open_process(self.command(*options), stderr=log)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + START_TIMEOUT_S):
                await process.wait()
            process.kill()

    async def refused(self, *options: str) -> str:
        """The one line with which a start is refused."""
        with trio.fail_after(START_TIMEOUT_S):
            done = await trio.run_process(self.command(*options), capture_stderr=True, check=False)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1, lines
        assert [line for line in lines if " ERROR " in line or "Traceback" in line] == []
        assert lines[-1].startswith("minidfs: ")
        return lines[-1]

    async def get(self, path: str) -> Any:
        """The JSON at a path; None while the peer does not answer or refuses."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            try:
                response = await client.get(f"http://127.0.0.1:{self.port}{path}")
            except httpx.HTTPError:
                return None
        return response.json() if response.is_success else None

    async def upload(self, content: bytes) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            response = await client.post(f"http://127.0.0.1:{self.port}/files", files={"file": ("a.bin", content)})
        assert response.status_code == 200, response.text
        receipt: dict[str, Any] = response.json()
        return receipt

    async def wait_ready(self) -> None:
        await wait_until(lambda: self.get("/health/ready"), START_TIMEOUT_S, f"{self.node_id} is ready")

    async def wait_members(self, *node_ids: str) -> None:
        async def all_up() -> bool:
            nodes = await self.get("/nodes") or []
            return {node["id"] for node in nodes if node["status"] == "UP"} == set(node_ids)

        await wait_until(all_up, START_TIMEOUT_S, f"{self.node_id} sees {node_ids}")

    async def wait_said(self, words: str) -> None:
        async def is_said() -> bool:
            return words in self.log.read_text()

        await wait_until(is_said, START_TIMEOUT_S, f"{self.node_id} says {words!r}")

    async def cluster_id(self) -> str:
        return str((await self.get("/health"))["cluster_id"])


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine]:
    base = free_base_port(2)
    return Machine(tmp_path, "node-1", base), Machine(tmp_path, "node-2", base + 1)


@within(90)
async def test_a_peer_that_founded_alone_is_told_how_to_join_and_brings_its_files(
    machines: tuple[Machine, Machine],
) -> None:
    first, second = machines
    async with second.running():
        await second.wait_ready()
        mine = await second.upload(content_of(1, 200_000))
    async with first.running():
        await first.wait_ready()
        cluster_id = await first.cluster_id()
        theirs = await first.upload(content_of(2, 100))
        refusal = await second.refused("--join", first.listen)
        assert f"{first.listen} belongs to another one ({cluster_id}); add --rejoin" in refusal

        async with second.running("--join", first.listen, "--rejoin"):
            await second.wait_ready()
            await second.wait_members("node-1", "node-2")
            assert await second.cluster_id() == cluster_id

            async def each_has_both() -> bool:
                lists = [await machine.get("/files") for machine in machines]
                replicas = {file["file_key"]: file["replicas"] for found in lists for file in found["files"]}
                both = ["node-1", "node-2"]
                return replicas == {mine["file_id"]: both, theirs["file_id"]: both}

            await wait_until(each_has_both, 30, "both peers hold both files")
        # From now on it belongs there, with --rejoin or without.
        async with second.running("--join", first.listen):
            await second.wait_members("node-1", "node-2")


@within(60)
async def test_a_lone_peer_ends_when_the_one_it_waits_for_turns_out_a_stranger(
    machines: tuple[Machine, Machine],
) -> None:
    first, second = machines
    async with second.running():
        await second.wait_ready()
    async with second.running("--join", first.listen) as waiting:
        await second.wait_said("not joined yet, this peer is alone")
        async with first.running():
            with trio.fail_after(START_TIMEOUT_S):
                assert await waiting.wait() == 1
        assert "belongs to another one" in second.log.read_text().splitlines()[-1]


@within(60)
async def test_a_peer_with_other_members_does_not_go_over(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    first, second = machines
    async with first.running():
        await first.wait_ready()
        async with second.running("--join", first.listen):
            await second.wait_members("node-1", "node-2")
    stranger = Machine(tmp_path, "node-3", free_base_port(1))
    async with stranger.running():
        await stranger.wait_ready()
        assert "which has other members" in await second.refused("--join", stranger.listen, "--rejoin")
        # It has files of its cluster, and goes on serving them.
        async with second.running("--join", stranger.listen):
            await second.wait_said(f"ERROR minidfs.joining {stranger.listen} belongs to another cluster")
            assert len(await second.get("/nodes")) == 2


@within(60)
async def test_a_failed_first_start_founds_nothing(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    first, second = machines
    facade = f"127.0.0.1:{free_base_port(1)}"
    async with first.running("--facade", facade):
        await first.wait_ready()
        taken = await second.refused("--listen", first.listen)
        assert f"port {first.port} is taken" in taken
        strange_facade = await second.refused("--facade", facade)
        assert "serves another cluster; choose another with --facade" in strange_facade
        # The folder still belongs to nobody: neither to a node nor to a cluster.
        other = Machine(tmp_path, "node-9", second.port)
        shutil.move(second.data, other.data)
        async with other.running("--join", first.listen):
            await other.wait_members("node-1", "node-9")


@within(60)
async def test_a_peer_told_to_join_only_itself_is_told_so(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    assert "--join names only this peer itself" in await first.refused("--join", first.listen)
    # All peers may be given one list; then each of them finds itself in it.
    both = ["--join", first.listen, "--join", second.listen]
    async with first.running():
        await first.wait_ready()
        async with second.running(*both):
            await second.wait_members("node-1", "node-2")


@within(60)
async def test_a_dead_address_is_said_once(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    async with second.running("--join", first.listen):
        await second.wait_said("waiting for a cluster to join")
        # Some tries later: a peer that has no cluster yet answers too, and is said once as well.
        await trio.sleep(2.5)
        assert second.log.read_text().count("waiting for a cluster") == 1
        async with first.running("--join", second.listen):
            await second.wait_said("start one of them without --join")
            await first.wait_said("start one of them without --join")
            await trio.sleep(2.5)
            assert second.log.read_text().count("start one of them without --join") == 1


def own_address() -> str:
    """An address of this machine that is none of loopback, the one towards elsewhere first; empty when it has none."""
    towards = own_host_towards(SOMEWHERE_ELSE[socket.AF_INET], 9, socket.AF_INET)
    return next(iter([*filter(None, [towards]), *own_hosts()]), "")


@within(60)
async def test_a_peer_on_all_addresses_tells_others_one_at_which_it_is_reached(
    machines: tuple[Machine, Machine],
) -> None:
    first, second = machines
    make_key_file(first.key)
    key = ["--cluster-key-file", str(first.key)]
    async with (
        first.running(*key, "--listen", f"{ANY}:{first.port}", "--advertise", "127.0.0.1"),
        second.running(*key, "--listen", f"{ANY}:{second.port}", "--join", first.listen),
    ):
        await second.wait_members("node-1", "node-2")
        await first.wait_members("node-1", "node-2")
        addresses = {node["address"] for node in await second.get("/nodes")}
        assert addresses == {f"http://{machine.listen}" for machine in machines}


@within(60)
async def test_a_peer_that_others_can_reach_needs_a_key(machines: tuple[Machine, Machine]) -> None:
    first, _ = machines
    for options in (["--listen", f"{ANY}:{first.port}"], ["--facade", f"{ANY}:{first.port + 2}"]):
        assert "minidfs keygen FILE" in await first.refused(*options, "--advertise", "127.0.0.1")


@within(60)
async def test_without_others_the_advertised_address_is_that_towards_elsewhere(
    machines: tuple[Machine, Machine],
) -> None:
    first, _ = machines
    make_key_file(first.key)
    listen = ["--listen", f"{ANY}:{first.port}", "--cluster-key-file", str(first.key)]
    if not own_address():
        assert "say it with --advertise HOST" in await first.refused(*listen)
        return
    async with first.running(*listen):
        await first.wait_ready()
        assert (await first.get("/nodes"))[0]["address"] == f"http://{own_address()}:{first.port}"
