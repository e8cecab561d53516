"""docs/commands.md: every command in it, run in its order against real peers, prints what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from e2e.cluster_fixture import POSIX_ONLY, Peers, running_peers, within

pytestmark = [pytest.mark.e2e, pytest.mark.once, POSIX_ONLY]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARYING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\b\d+ ms  "), "LATENCY  "),
    (re.compile(r"\d+ logged ops"), "OPS"),
    (re.compile(r"[\d.]+ [KM]iB$"), "SIZE"),
    (re.compile(r"\S*/\.minidfs/"), "HOME/"),
    (re.compile(r" +"), " "),
]


def commands() -> list[tuple[str, list[str]]]:
    """Each command with the lines under it."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall((ROOT / "docs" / "commands.md").read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def plain(line: str) -> str:
    """A line without what is another thing each time."""
    for pattern, instead in VARYING:
        line = pattern.sub(instead, line)
    return line.rstrip()


@within(150)
async def test_what_the_document_shows_is_what_is_printed(tmp_path: Path) -> None:
    home, work, programs = tmp_path / ".minidfs", tmp_path / "work", tmp_path / "bin"
    for folder in (work, programs):
        folder.mkdir()
    program = programs / "minidfs"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m peer "$@"\n')
    program.chmod(0o755)
    async with running_peers(home / "cluster") as peers:
        variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "MINIDFS_TO": peers.facade().replace("localhost", "127.0.0.1"),
        }
        for command, shown in commands():
            printed = await _run(command, work, variables)
            ports = {str(peers.port(node_id)): str(8000 + n) for n, node_id in enumerate(peers.node_ids, 1)}
            for port, documented in ports.items():
                printed = printed.replace(f":{port}", f":{documented}")
            assert [plain(line) for line in printed.splitlines()] == [plain(line) for line in shown], command
            await _settle(peers, command)


async def _run(command: str, folder: Path, variables: dict[str, str]) -> str:
    with trio.fail_after(40):
        done = await trio.run_process(
            ["sh", "-c", command],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("MINIDFS_")} | variables,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.stdout.decode()


async def _settle(peers: Peers, command: str) -> None:
    """Let the time pass that people take to type the next line."""
    if not command.startswith("minidfs cluster"):
        return
    await peers.wait_all_see_each_other()
    if all(peer.pid is not None for peer in peers.local.status()):
        await peers.wait_alike(20)
