"""`minidfs put`, `get`, `ls`, `rm`, … as users type them, against real peers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from e2e.cluster_fixture import POSIX_ONLY, Peers, content_of, running_peers, sha256_of, within, write_random

pytestmark = [pytest.mark.e2e]


class CommandLine:
    """`minidfs` in a folder, for one cluster."""

    def __init__(self, peers: Peers, folder: Path) -> None:
        self.peers = peers
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.variables = {"MINIDFS_TO": self.peers.facade(), "MINIDFS_HOME": str(folder / "home")}

    async def run(self, *words: str, stdin: bytes = b"", within_s: float = 40) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "peer", *words]
        root = str(Path(__file__).parents[2])
        with trio.fail_after(within_s):
            return await trio.run_process(
                command,
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": root} | self.variables,
            )

    async def out(self, *words: str, stdin: bytes = b"") -> str:
        """What it prints; a command that succeeds."""
        done = await self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def json(self, *words: str) -> Any:
        return json.loads(await self.out(*words, "--json"))

    async def failure(self, *words: str) -> str:
        """The one line a command fails with."""
        done = await self.run(*words)
        assert done.returncode == 1, done
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("minidfs: ")
        return line


@within(120)
async def test_files_go_to_a_cluster_and_come_back(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        cli = CommandLine(peers, tmp_path / "work")
        (cli.folder / "ä b.txt").write_text("hello")
        write_random(cli.folder / "large.bin", 1, 20_000_000)
        first, second = await cli.json("put", "ä b.txt", "large.bin")
        assert first["durable_copies"] == ["node-1", "node-2", "node-3"]
        assert second["checksum_sha256"] == sha256_of(cli.folder / "large.bin")
        line = await cli.out("put", "ä b.txt", "--id", "note", "--name", "note.txt", "--min-copies", "2")
        assert line == "note  note.txt, 5 B, on node-1, node-2, node-3\n"
        assert (await cli.json("put", "-", "--copies", "1"))[0]["original_filename"] == "stdin"

        listed = await cli.json("ls")
        assert [file["original_filename"] for file in listed] == ["stdin", "note.txt", "large.bin", "ä b.txt"]
        assert "note.txt  (node-1, node-2, node-3)" in await cli.out("ls", "not")
        assert len(await cli.json("ls", "--limit", "2")) == 2

        saved = tmp_path / "saved"
        assert (await cli.run("get", second["file_id"], "-o", str(saved))).returncode == 0
        assert sha256_of(saved) == second["checksum_sha256"]
        assert [path for path in os.listdir(tmp_path) if path.endswith(".part")] == []
        assert await cli.out("get", "note", "-o", "-") == "hello"
        assert "is there already" in await cli.failure("get", first["file_id"])
        assert (await cli.run("get", first["file_id"], "--force")).returncode == 0

        assert await cli.out("rm", "note") == "note  deleted on 3 of 3 peers\n"
        assert "note: no file has this id" in await cli.failure("rm", "note")
        assert "no file has this id" in await cli.failure("get", "note")
        assert "cannot read nothing.txt" in await cli.failure("put", "nothing.txt")


@within(120)
async def test_a_download_goes_on_where_it_was(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        cli = CommandLine(peers, tmp_path / "work")
        receipt = await peers.upload("node-1", content_of(1, 3_000_000))
        sha256 = receipt["checksum_sha256"]
        part = cli.folder / f".out.bin.{sha256[:16]}.part"
        part.write_bytes(content_of(1, 3_000_000)[:2_000_000])
        before = await _bytes_sent(peers)
        assert (await cli.run("get", receipt["file_id"], "-o", "out.bin")).returncode == 0
        assert sha256_of(cli.folder / "out.bin") == sha256
        assert 1_000_000 <= await _bytes_sent(peers) - before < 1_500_000
        # What is no part of the file is thrown away, and the next try begins anew.
        part.write_bytes(b"x" * 1000)
        assert "try again" in await cli.failure("get", receipt["file_id"], "-o", "out.bin")
        assert not part.exists()
        assert (await cli.run("get", receipt["file_id"], "-o", "out.bin")).returncode == 0


async def _bytes_sent(peers: Peers) -> int:
    """Content that clients got from any peer."""
    total = 0
    for node_id in peers.node_ids:
        text = (await peers.client.get(peers.url(node_id, "/metrics"))).text
        for line in text.splitlines():
            if line.startswith("minidfs_http_sent_bytes_total") and "/files/{file_id}" in line:
                total += int(float(line.rpartition(" ")[2]))
    return total


@pytest.mark.once
@POSIX_ONLY
@within(120)
async def test_a_hung_peer_is_passed_over(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        cli = CommandLine(peers, tmp_path / "work")
        receipt = await peers.upload("node-1", b"content")
        os.kill(peers.pid("node-1"), signal.SIGSTOP)
        try:
            cli.variables["MINIDFS_TO"] = f"{peers.url('node-1')} {peers.url('node-2')}"
            assert await cli.out("get", receipt["file_id"], "-o", "-") == "content"
            assert "on node-2, node-3; node-1 will get it" in await cli.out("put", __file__)
        finally:
            os.kill(peers.pid("node-1"), signal.SIGCONT)


@within(60)
async def test_a_cluster_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data", nodes=1) as peers:
        cli = CommandLine(peers, tmp_path / "work")
    for words in (["ls"], ["put", __file__], ["get", "a"], ["rm", "a"]):
        assert "start some with minidfs cluster, or say where with --to URL" in await cli.failure(*words)


@within(120)
async def test_the_state_of_a_cluster_is_told_with_what_to_do(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        cli = CommandLine(peers, tmp_path / "work")
        assert await cli.out("status") == "No files yet; 3 of 3 peers are up.\n"
        await peers.upload("node-1", b"first")
        assert await cli.out("status") == "The file has its copies; 3 of 3 peers are up.\n"
        assert [node["id"] for node in await cli.json("nodes")] == ["node-1", "node-2", "node-3"]
        assert (await cli.out("nodes")).splitlines()[0].split() == [
            "NODE",
            "STATE",
            "ADDRESS",
            "LATENCY",
            "LAST",
            "HEARD",
        ]

        await peers.local.kill("node-2")
        receipt = await peers.upload("node-1", b"second")
        await peers.wait_all_see_each_other()
        done = await cli.run("status")
        assert done.returncode == 1
        lines = done.stdout.decode().splitlines()
        assert lines[0] == "2 files; 1 copy missing; 2 of 3 peers are up."
        assert any(line.startswith("node-2 is down: it last answered at ") for line in lines)
        assert "  next: none; they are fetched when node-2 is back" in lines
        found = json.loads((await cli.run("status", "--json")).stdout)
        assert [problem["what"] for problem in found["problems"]] == ["node-2 is down", "1 copy missing on node-2"]
        (item,) = await cli.json("queue", "--status", "pending", "--node", "node-2")
        assert item["file_key"] == receipt["file_id"]
        assert "node-2 is down" in await cli.failure("recover", "node-2")

        await peers.local.start("node-2")
        assert (await cli.out("recover", "node-2")) in ("node-2 lacks nothing\n", "node-2 fetched 1 of 1 files\n")
        await peers.wait_held_by_all(receipt["file_id"])
        assert await cli.out("status") == "All 2 files have their copies; 3 of 3 peers are up.\n"
        assert f"{receipt['file_id']}  node-2  COMPLETED" in await cli.out("queue")
        assert "is no node of this cluster" in await cli.failure("recover", "node-9")


@pytest.mark.once
@POSIX_ONLY
@within(120)
async def test_a_peer_that_hangs_is_a_problem(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        cli = CommandLine(peers, tmp_path / "work")
        cli.variables["MINIDFS_TO"] = peers.url("node-1")
        os.kill(peers.pid("node-3"), signal.SIGSTOP)
        try:
            done = await cli.run("status")
        finally:
            os.kill(peers.pid("node-3"), signal.SIGCONT)
        assert done.returncode == 1
        assert "node-3 does not answer here" in done.stdout.decode() or "node-3 is down" in done.stdout.decode()


@pytest.mark.once
@within(60)
async def test_a_shell_completes_commands_nodes_and_files(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data", nodes=2) as peers:
        cli = CommandLine(peers, tmp_path / "work")
        receipt = await peers.upload("node-1", b"first")
        assert "_MINIDFS_COMPLETE=bash_complete" in await cli.out("completion", "bash")

        async def completed(*words: str) -> str:
            line = " ".join(["minidfs", *words])
            count = str(len(words))
            cli.variables |= {"_MINIDFS_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": count}
            return (await cli.run()).stdout.decode()

        assert "plain,recover" in await completed("rec")
        assert await completed("recover", "n") == "plain,node-1\nplain,node-2\n"
        assert await completed("rm", receipt["file_id"][:4]) == f"plain,{receipt['file_id']}\n"
