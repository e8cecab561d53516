"""What a local cluster does that has very many files, while nothing happens and while much does."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import trio

from peer.cluster import Layout, LocalCluster, open_cluster, settle_layout
from peer.config import Address
from peer.node import DATABASE
from peer.world.env import HttpAnswer, RequestFailed
from peer.world.outgoing import SystemRequests
from sim.bench import machine
from sim.bench.generator import FORM, form_of, request_of

NODES = 3
SIZE = 4096
CLIENTS = 4
UNDER_WAY_MAX = 5 * CLIENTS
"""Copies that are missing because uploads are bringing them, and files one peer has not heard of yet."""
LOOK_S = 2.0
"""Between looks; with a million files one counts for a tenth of a second at each peer."""
READS = 400
LISTS = 20


@dataclass(frozen=True, slots=True)
class Uploads:
    """What became of uploads within some time."""

    seconds: float
    took_ms: tuple[float, ...]
    short: int
    """Receipts that named fewer copies than were asked for."""
    errors: int

    def at(self, share: float) -> float:
        """The milliseconds that this share of the uploads stayed below."""
        return self.took_ms[min(len(self.took_ms) - 1, int(len(self.took_ms) * share))] if self.took_ms else 0.0

    @property
    def per_s(self) -> float:
        """Receipts a second."""
        return len(self.took_ms) / self.seconds


@dataclass(slots=True)
class Phase:
    """One thing that happens to a cluster, and what its clients and peers saw of it."""

    name: str
    uploads: Uploads
    took_s: float | None
    """From its beginning until no copy was missing any more; None where it did not get there."""
    stall_ms: float
    """The longest delay of a peer's event loop; as the next, of the minute before a look, so of what was before too."""
    hold_ms: float
    """The longest transaction of a peer."""
    has_end: bool
    """Whether it was waited for until no copy was missing."""
    memory_mib: float | None
    """Of the largest peer."""


@dataclass(slots=True)
class Grown:
    """All figures of a cluster of one size."""

    files: int
    ready_s: float
    """From a peer's start until it was ready, the slowest one."""
    verified_s: float
    """From there until all peers had looked over their rows and chunk files."""
    list_ms: float
    read_ms: float
    bytes_per_file: float
    """Of a peer's database."""
    phases: list[Phase] = field(default_factory=list)


class _Clients:
    """Clients that upload small files through one peer, one after the other each, as long as they are let."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._requests = SystemRequests()
        self._took_ms: list[float] = []
        self._short = self._errors = 0
        self._began = time.monotonic()
        self._chance = Random()

    async def upload(self) -> None:
        """Upload until cancelled."""
        while True:
            started = time.monotonic()
            try:
                answer = await self._requests.request(
                    self._address, request_of("POST", "/files", FORM, form_of(self._chance.randbytes(SIZE)))
                )
                copies = len(json.loads(answer.content)["durable_copies"])
            except (RequestFailed, ValueError, KeyError):
                self._errors += 1
                await trio.sleep(0.1)
                continue
            self._took_ms.append(1000 * (time.monotonic() - started))
            self._short += copies < NODES

    def take(self) -> Uploads:
        """What they saw since this was asked last."""
        now = time.monotonic()
        found = Uploads(now - self._began, tuple(sorted(self._took_ms)), self._short, self._errors)
        self._took_ms, self._short, self._errors, self._began = [], 0, 0, now
        return found


class _Watch:
    """Looks at the peers of a cluster while something happens to it."""

    def __init__(self, cluster: LocalCluster, layout: Layout, clients: _Clients, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._layout = layout
        self._clients = clients
        self._tell = tell
        self._requests = SystemRequests()

    async def ask(self, node_id: str, target: str) -> HttpAnswer:
        """Ask a peer. Raises RequestFailed."""
        return await self._requests.request(self._layout.address_of(node_id), request_of("GET", target))

    async def gauges(self, node_id: str) -> dict[str, float]:
        """What a peer says of itself; nothing while it does not answer."""
        try:
            return machine.gauges_in((await self.ask(node_id, "/metrics")).content.decode())
        except RequestFailed:
            return {}

    async def phase(
        self, name: str, act: Callable[[], Awaitable[None]] | None, limit_s: float, node_id: str | None = None
    ) -> Phase:
        """Let something happen, and wait until `node_id` lacks nothing more; without one, for so long."""
        self._clients.take()
        began = time.monotonic()
        stall = hold = memory = 0.0
        took_s: float | None = None
        if act is not None:
            await act()
        while time.monotonic() - began < limit_s:
            await trio.sleep(LOOK_S)
            seen = {node: await self.gauges(node) for node in self._running()}
            if time.monotonic() - began > LOOK_S:
                stall = max([stall, *(one.get("minidfs_event_loop_lag_seconds", 0.0) for one in seen.values())])
                hold = max([hold, *(one.get("minidfs_writer_hold_seconds", 0.0) for one in seen.values())])
            memory = max(memory, self._memory_mib())
            if node_id is not None and self._is_whole(node_id, seen):
                took_s = time.monotonic() - began
                break
        found = Phase(name, self._clients.take(), took_s, 1000 * stall, 1000 * hold, node_id is not None, memory)
        self._tell(_line_of(found))
        return found

    async def until_verified(self, node_ids: Iterable[str]) -> None:
        """Wait until peers have looked over their rows and chunk files, which they do while they serve."""
        for node_id in node_ids:
            while True:
                seen = await self.gauges(node_id)
                if seen.get("minidfs_verified") and seen.get("minidfs_inventoried"):
                    break
                await trio.sleep(LOOK_S)

    def _running(self) -> Iterator[str]:
        return (status.node_id for status in self._cluster.status() if status.pid is not None)

    def _memory_mib(self) -> float:
        pids = [status.pid for status in self._cluster.status() if status.pid is not None]
        return max((machine.memory_mib([pid]) or 0.0 for pid in pids), default=0.0)

    def _is_whole(self, node_id: str, seen: dict[str, dict[str, float]]) -> bool:
        """Whether a peer knows as many files as the first one, within what is uploaded meanwhile, and lacks none."""
        mine, first = seen.get(node_id, {}), seen["node-1"]
        is_known = mine.get("minidfs_files", 0.0) >= first.get("minidfs_files", 0.0) - UNDER_WAY_MAX
        missing = max(one.get("minidfs_missing_copies", math.inf) for one in (mine, first))
        return is_known and missing <= UNDER_WAY_MAX


def _line_of(phase: Phase) -> str:
    uploads = phase.uploads
    took = "not done" if phase.took_s is None else f"{phase.took_s:.1f} s"
    return (
        f"{phase.name}: {took}; {uploads.per_s:.0f} uploads/s, p50 {uploads.at(0.5):.1f} ms, "
        f"p99 {uploads.at(0.99):.1f} ms, longest {uploads.at(1):.0f} ms, {uploads.short} short, "
        f"{uploads.errors} errors; stall {phase.stall_ms:.0f} ms, hold {phase.hold_ms:.0f} ms, "
        f"{phase.memory_mib or 0:.0f} MiB"
    )


async def measure(
    data: Path, files: int, limit_s: float, calm_s: float, missed: int, tell: Callable[[str], None]
) -> Grown:
    """Start a filled cluster and take it through all phases, uploads going on all the time; its folder is used up."""
    known = settle_layout(data, None, None, None)
    layout = settle_layout(data, NODES + 1, None, None, grow=True)
    async with open_cluster(data, nodes=NODES + 1, grow=True) as cluster:
        ready_s = await _start_all(cluster, layout, known.node_ids)
        clients = _Clients(layout.address_of("node-1"))
        watch = _Watch(cluster, layout, clients, tell)
        began = time.monotonic()
        await watch.until_verified(known.node_ids)
        verified_s = time.monotonic() - began
        size = (data / "node-1" / DATABASE).stat().st_size
        list_ms, read_ms = await _look(watch)
        grown = Grown(files, ready_s, verified_s, list_ms, read_ms, size / files)
        tell(
            f"{files} files: ready in {ready_s:.1f} s, a list takes {list_ms:.1f} ms, a read {read_ms:.2f} ms; "
            f"{size / files:.0f} B of database a file"
        )
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(clients.upload)
            grown.phases.append(await watch.phase("calm", None, calm_s))
            joins = _act(cluster, layout, "node-4")
            grown.phases.append(await watch.phase("a peer joins", joins, limit_s, "node-4"))
            grown.phases.append(await watch.phase("calm, with it", None, calm_s))
            await cluster.stop("node-2")
            grown.phases.append(await watch.phase(f"one is away for {missed} files", None, _time_for(grown, missed)))
            back = _act(cluster, layout, "node-2")
            grown.phases.append(await watch.phase("it is back", back, limit_s, "node-2"))
            await cluster.kill("node-3")
            await trio.to_thread.run_sync(shutil.rmtree, data / "node-3")
            lost = _act(cluster, layout, "node-3")
            grown.phases.append(await watch.phase("a disk was lost", lost, limit_s, "node-3"))
            nursery.cancel_scope.cancel()
    return grown


def _time_for(grown: Grown, uploads: int) -> float:
    return uploads / max(1.0, grown.phases[0].uploads.per_s)


def _act(cluster: LocalCluster, layout: Layout, node_id: str) -> Callable[[], Awaitable[None]]:
    async def start() -> None:
        await _start(cluster, layout, node_id)

    return start


async def _start(cluster: LocalCluster, layout: Layout, node_id: str) -> float:
    """Start a peer; returns the seconds until it was ready."""
    began = time.monotonic()
    await cluster.start(node_id)
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            answer = await client.get(f"http://{layout.address_of(node_id)}/health/ready")
            if answer.is_success:
                return time.monotonic() - began
            await trio.sleep(0.02)


async def _start_all(cluster: LocalCluster, layout: Layout, node_ids: Iterable[str]) -> float:
    """Start peers at once; returns the seconds until the last one was ready."""
    took: list[float] = []

    async def start(node_id: str) -> None:
        took.append(await _start(cluster, layout, node_id))

    async with trio.open_nursery() as nursery:
        for node_id in node_ids:
            nursery.start_soon(start, node_id)
    return max(took)


async def _look(watch: _Watch) -> tuple[float, float]:
    """Milliseconds that lists of a hundred files and reads of one take, medians."""
    lists: list[float] = []
    keys: list[str] = []
    for _ in range(LISTS):
        with _timed(lists):
            answer = await watch.ask("node-1", "/files?limit=100")
        keys = [file["file_key"] for file in json.loads(answer.content)["files"]]
    reads: list[float] = []
    for number in range(READS):
        with _timed(reads):
            await watch.ask("node-1", f"/files/{keys[number % len(keys)]}")
    return sorted(lists)[len(lists) // 2], sorted(reads)[len(reads) // 2]


@contextmanager
def _timed(took_ms: list[float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    took_ms.append(1000 * (time.monotonic() - began))
