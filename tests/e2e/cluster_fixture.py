"""What the end-to-end tests share: real peers, real curl, and waiting for something with a deadline.

Tests know a peer from outside: its processes, its command line, its HTTP, and the data folder as operators see it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import httpx
import pytest
import sqlite_utils
import trio

from peer.cluster import (
    Layout,
    LocalCluster,
    PeerCommand,
    PeerExited,
    PeerWrote,
    free_base_port,
    open_cluster,
    serve_command,
)

POLL_S = 0.05
LOGGED_WITHIN_S = 10
TIDY_WITHIN_S = 10
CURL_TIMEOUT_S = 60
BLOCK_BYTES = 1024 * 1024

OPEN = ("PENDING", "IN_PROGRESS", "FAILED")
"""What items of the replication queue may be while copies are missing."""

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

Arguments = ParamSpec("Arguments")
T = TypeVar("T")


def within(seconds: float) -> Callable[[Callable[Arguments, Awaitable[None]]], Callable[Arguments, None]]:
    """Run an async test under trio, for so long at most."""

    def decorate(test: Callable[Arguments, Awaitable[None]]) -> Callable[Arguments, None]:
        @wraps(test)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            async def bounded() -> None:
                with trio.fail_after(seconds):
                    await test(*args, **kwargs)

            with _plain_errors():
                trio.run(bounded)

        return pytest.mark.timeout(seconds + 30)(run)

    return decorate


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A failure of the test as it was raised, not as nurseries wrapped it."""
    try:
        yield
    except BaseExceptionGroup as group:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
            found = found.exceptions[0]
        raise found from None


async def wait_until(condition: Callable[[], Awaitable[T]], within_s: float, what: str) -> T:
    """Ask again and again; the first answer that is true. Fails, saying what was waited for, after `within_s`."""
    deadline = trio.current_time() + within_s
    while not (found := await condition()):
        assert trio.current_time() < deadline, f"waited {within_s:g} s in vain until {what}"
        await trio.sleep(POLL_S)
    return found


# --- the cluster ---


@dataclass(slots=True)
class Peers:
    """A running cluster, and what tests ask of it."""

    local: LocalCluster
    exits: list[PeerExited] = field(default_factory=list)
    client: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(
            trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
        )
    )

    @property
    def node_ids(self) -> tuple[str, ...]:
        return self.local.layout.node_ids

    def url(self, node_id: str, path: str = "") -> str:
        return f"{self.local.url_of(node_id)}{path}"

    def facade(self, path: str = "") -> str:
        return f"http://localhost:{self.local.layout.facade_port}{path}"

    def port(self, node_id: str) -> int:
        return self.local.layout.address_of(node_id).port

    def folder(self, node_id: str) -> Path:
        return self.local.data / node_id

    def log_of(self, node_id: str) -> str:
        return (self.folder(node_id) / "peer.log").read_text(errors="replace")

    async def wait_logged(self, node_id: str, line: str) -> None:
        """Until a peer's log has a line: others see what was done a moment before it is logged."""

        async def is_logged() -> bool:
            return line in self.log_of(node_id)

        await wait_until(is_logged, LOGGED_WITHIN_S, f"{node_id} logs {line!r}")

    async def wait_tidy(self, node_id: str) -> None:
        """Until a peer's folder has the files its rows name, and no others: behind a start that takes a moment."""

        async def is_tidy() -> bool:
            return bytes_in(self.folder(node_id)).is_tidy

        await wait_until(is_tidy, TIDY_WITHIN_S, f"{node_id} has tidied up")

    def pid(self, node_id: str) -> int:
        (pid,) = [peer.pid for peer in self.local.status() if peer.node_id == node_id]
        assert pid is not None, f"{node_id} is down"
        return pid

    def terminate(self, node_id: str) -> None:
        os.kill(self.pid(node_id), signal.SIGTERM)

    async def wait_exit(self, node_id: str, within_s: float) -> str:
        """How a peer ended."""

        async def ended() -> str:
            return next((event.how for event in self.exits if event.node_id == node_id), "")

        return await wait_until(ended, within_s, f"{node_id} has ended")

    async def json(self, node_id: str, path: str) -> Any:
        response = await self.client.get(self.url(node_id, path))
        assert response.status_code == 200, f"{path}: {response.text}"
        return response.json()

    async def listed(self, node_id: str) -> dict[str, dict[str, Any]]:
        return {file["file_key"]: file for file in (await self.json(node_id, "/files?limit=1000"))["files"]}

    async def upload(self, node_id: str, content: bytes, name: str = "test.bin", **query: str) -> dict[str, Any]:
        response = await self.client.post(
            self.url(node_id, "/files"), params=query, files={"file": (name, content, "application/octet-stream")}
        )
        assert response.status_code == 200, response.text
        receipt = response.json()
        assert receipt["checksum_sha256"] == hashlib.sha256(content).hexdigest()
        return receipt

    async def content(self, node_id: str, file_key: str) -> tuple[int, bytes]:
        response = await self.client.get(self.url(node_id, f"/files/{file_key}"))
        return response.status_code, response.content

    async def wait_all_see_each_other(self, within_s: float = 10) -> None:
        """Every running peer takes every running peer for up, and every other one for down."""
        running = {peer.node_id for peer in self.local.status() if peer.pid is not None}

        async def all_agree() -> bool:
            for node_id in sorted(running):
                nodes = await self.json(node_id, "/nodes")
                up = {node["id"] for node in nodes if node["status"] == "UP"}
                if up != running or len(nodes) != len(self.node_ids):
                    return False
            return True

        await wait_until(all_agree, within_s, f"all take {sorted(running)} for up")

    async def wait_held_by_all(self, file_key: str, within_s: float = 5) -> None:
        """Every peer lists every peer as a holder of a file: news of a hold takes a moment to get round."""

        async def is_held_by_all() -> bool:
            lists = [await self.listed(node_id) for node_id in self.node_ids]
            return all(file_key in files and files[file_key]["replicas"] == [*self.node_ids] for files in lists)

        await wait_until(is_held_by_all, within_s, f"all peers list all peers as holders of {file_key}")

    async def wait_alike(self, within_s: float) -> dict[str, dict[str, Any]]:
        """All peers list the same and no copy is missing; the list."""

        async def alike() -> dict[str, Any] | None:
            lists = [await self.listed(node_id) for node_id in self.node_ids]
            for node_id in self.node_ids:
                for status in OPEN:
                    if (await self.json(node_id, f"/replication-queue?status={status}"))["items"]:
                        return None
            return {"files": lists[0]} if all(other == lists[0] for other in lists) else None

        return (await wait_until(alike, within_s, "all peers list the same and their queues are done"))["files"]


@asynccontextmanager
async def running_peers(
    data: Path, *options: str, nodes: int = 3, facade_port: int | None = None
) -> AsyncIterator[Peers]:
    """Real peers on ports of their own, started with further options of `minidfs serve`; they see each other."""
    base = free_base_port(nodes + 1)
    exits: list[PeerExited] = []

    def tell(event: PeerWrote | PeerExited) -> None:
        if isinstance(event, PeerExited):
            exits.append(event)

    async with open_cluster(
        data,
        nodes=nodes,
        base_port=base + 1,
        facade_port=facade_port or base,
        command=with_options(*options),
        tell=tell,
    ) as local:
        peers = Peers(local, exits)
        async with peers.client:
            await local.start_all()
            await peers.wait_all_see_each_other()
            yield peers


def with_options(*options: str) -> PeerCommand:
    """The command line of real peers with more options."""

    def command(layout: Layout, node_id: str, folder: Path) -> list[str]:
        return [*serve_command(layout, node_id, folder), *options]

    return command


# --- curl ---


def curl_program() -> str:
    """Where curl is. Without it the documented commands cannot be shown to work, so the test fails."""
    found = shutil.which("curl")
    assert found, "curl is not installed; these tests run the documented commands: install curl"
    return found


async def curl(
    *arguments: str, cwd: Path | None = None, within_s: float = CURL_TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run curl as documented; only progress is switched off."""
    with trio.fail_after(within_s):
        return await trio.run_process(
            [curl_program(), "-sS", *arguments], capture_stdout=True, capture_stderr=True, check=False, cwd=cwd
        )


async def curl_json(*arguments: str, cwd: Path | None = None, within_s: float = CURL_TIMEOUT_S) -> Any:
    """What curl printed, as JSON."""
    done = await curl(*arguments, cwd=cwd, within_s=within_s)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


# --- content ---


def content_of(seed: int | str, size: int) -> bytes:
    """A body of this size; a different one for each seed."""
    return random.Random(seed).randbytes(size)


def write_random(path: Path, seed: int, size: int) -> str:
    """A file of this size in which no two blocks are equal; its SHA-256."""
    chance = random.Random(seed)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, BLOCK_BYTES):
            block = chance.randbytes(min(BLOCK_BYTES, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- data folders ---


@contextmanager
def database_of(folder: Path) -> Iterator[sqlite_utils.Database]:
    """A peer's database, as an operator opens it beside the running peer: read-only."""
    connection = sqlite3.connect(f"{(folder / 'minidfs.db').as_uri()}?mode=ro", uri=True)
    try:
        yield sqlite_utils.Database(connection)
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Bytes:
    """What content a data folder has."""

    incoming: list[str]
    orphans: list[str]
    """Chunk files that no row names."""
    lost: list[str]
    """Chunk files that a row names and that are not there."""
    rows: int
    """Chunks the database knows, in files or in itself."""

    @property
    def is_tidy(self) -> bool:
        return not (self.incoming or self.orphans or self.lost)


def bytes_in(folder: Path) -> Bytes:
    """Compare a data folder's files with its database."""
    with database_of(folder) as db:
        rows = list(db.execute("SELECT hash, serial FROM chunks"))
    named = {f"{name.hex()}.{serial}" for name, serial in rows if serial is not None}
    found = {path.name for path in (folder / "chunks").rglob("*") if path.is_file()}
    return Bytes(
        incoming=sorted(path.name for path in (folder / "receiving").iterdir()),
        orphans=sorted(found - named),
        lost=sorted(named - found),
        rows=len(rows),
    )
