"""Peers on two machines, which are two network namespaces here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from e2e.cluster_fixture import wait_until, within
from e2e.namespaces import HOSTS, bad_wire, needs_namespaces, needs_tun, two_namespaces
from e2e.test_wrong_starts import ANY, Machine

from peer.cluster.key_file import make_key_file

pytestmark = [pytest.mark.e2e]

PORT = 8001


class Machines:
    """A peer in each of two namespaces."""

    def __init__(self, folder: Path, namespaces: tuple[str, str]) -> None:
        self.folder = folder
        self.namespaces = namespaces
        make_key_file(folder / "key")

    async def run(self, number: int, listen: str) -> None:
        """Run a peer until cancelled."""
        machine = Machine(self.folder, f"node-{number + 1}", PORT)
        options = ["--listen", f"{listen}:{PORT}", "--cluster-key-file", str(self.folder / "key")]
        options += ["--join", f"{HOSTS[0]}:{PORT}"] if number else []
        command = ["ip", "netns", "exec", self.namespaces[number], *machine.command(*options)]
        with machine.log.open("wb") as log:
            await trio.run_process(command, stderr=log, check=False)

    def log_of(self, number: int) -> str:
        return (self.folder / f"node-{number + 1}.log").read_text()

    async def said(self, number: int, path: str, *arguments: str) -> Any:
        """The JSON a peer answers to somebody on its machine; None without an answer."""
        command = ["ip", "netns", "exec", self.namespaces[number], "curl", "-sS", "-m", "10", *arguments]
        url = f"http://{HOSTS[number]}:{PORT}{path}"
        done = await trio.run_process([*command, url], capture_stdout=True, capture_stderr=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    async def uploaded(self, number: int, name: str) -> bool:
        """Whether an upload, on one machine, has a copy on each."""
        (self.folder / name).write_text("hello")
        receipt = await self.said(number, "/files", "-F", f"file=@{self.folder / name}")
        return receipt is not None and receipt.get("durable_copies") == ["node-1", "node-2"]

    async def state(self, number: int, node_id: str) -> str:
        """What a peer believes of another one."""
        nodes = await self.said(number, "/nodes") or []
        return next((str(node["state"]) for node in nodes if node["id"] == node_id), "")


@needs_namespaces
@pytest.mark.parametrize("wildcard", [False, True])
@within(90)
async def test_peers_on_two_machines_find_each_other_and_replicate(wildcard: bool, tmp_path: Path) -> None:
    async with two_namespaces() as namespaces, trio.open_nursery() as nursery:
        machines = Machines(tmp_path, namespaces)
        for number, host in enumerate(HOSTS):
            nursery.start_soon(machines.run, number, ANY if wildcard else host)
        await wait_until(lambda: machines.uploaded(0, "note.txt"), 30, "an upload has a copy on each machine")
        listed = await machines.said(1, "/files")
        assert {file["original_filename"] for file in listed["files"]} == {"note.txt"}
        nursery.cancel_scope.cancel()


STEADY_S = 15.0


@needs_tun
@within(150)
async def test_over_a_wire_that_loses_and_delays_peers_stay_up_and_find_each_other_again(tmp_path: Path) -> None:
    async with bad_wire(loss=0.1, delay_s=(0.02, 0.06)) as wire, trio.open_nursery() as nursery:
        machines = Machines(tmp_path, wire.names)
        for number, host in enumerate(HOSTS):
            nursery.start_soon(machines.run, number, host)
        await wait_until(lambda: machines.uploaded(0, "first.txt"), 40, "an upload has a copy on each machine")

        await trio.sleep(STEADY_S)
        assert wire.lost > 10
        assert "is down" not in machines.log_of(0) + machines.log_of(1)
        latency_ms = (await machines.said(0, "/nodes"))[1]["latency_ms"]
        assert 40 <= latency_ms <= 1000

        wire.loss = 1.0

        async def each_is_down_to_the_other() -> bool:
            return [await machines.state(0, "node-2"), await machines.state(1, "node-1")] == ["down", "down"]

        await wait_until(each_is_down_to_the_other, 30, "peers that were cut off are down")
        wire.loss = 0.1
        await wait_until(lambda: machines.uploaded(1, "second.txt"), 40, "both are there again")
        nursery.cancel_scope.cancel()
