"""What clients, faults and checks of a chaos run share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from peer.cluster import LocalCluster
from sim.chaos.journal import Journal
from sim.model import FileModel, PromiseBroken, Version, content_of

OPERATION_TIMEOUT_S = 30.0
SLACK_S = 5.0
"""On top of what is promised, for a machine that runs other things too."""
POLL_S = 0.1


@dataclass(slots=True)
class Report:
    """What a run came to."""

    seed: int
    uploads: int = 0
    uploaded_bytes: int = 0
    deletes: int = 0
    reads: int = 0
    uncertain: int = 0
    wrong: int = 0
    """Uploads whose content was not what their checksum said; none may be taken."""
    refused: Counter[str] = field(default_factory=Counter)
    """By what was asked and answered."""
    timeouts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    catch_up_s: list[float] = field(default_factory=list)
    """For each restarted peer, from its first answer until it had all that had been acknowledged before."""
    converged_s: float = 0.0
    slowest_s: float = 0.0

    def __str__(self) -> str:
        caught_up = ", ".join(f"{took_s:.1f}" for took_s in self.catch_up_s) or "none"
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "none"
        return (
            f"seed {self.seed}: {self.uploads} uploads ({self.uploaded_bytes / 2**20:.0f} MiB), "
            f"{self.deletes} deletes, {self.reads} checked reads, {self.wrong} wrong uploads, "
            f"{self.uncertain} without an answer, {sum(self.refused.values())} refused, "
            f"{self.timeouts} timed out; faults: {faults}; "
            f"caught up after {caught_up} s; all alike {self.converged_s:.1f} s after the end; "
            f"the slowest operation took {self.slowest_s:.1f} s"
            + "".join(f"\n  refused {count} times: {what}" for what, count in self.refused.most_common())
        )


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Scene:
    """One cluster of real processes, and what is known of what it was given."""

    cluster: LocalCluster
    client: httpx.AsyncClient
    heal_interval_s: float
    report: Report
    journal: Journal
    files: dict[str, FileModel] = field(default_factory=dict)
    sent: dict[str, Version] = field(default_factory=dict)
    """By checksum, whatever may be stored somewhere: a file whose receipt was lost has an id nobody knows."""

    spoiled: dict[str, None] = field(default_factory=dict)
    """Peers whose disks may have content that is not what it was, until all is read and healed."""
    _reads: int = 0
    _may_read: trio.Event = field(default_factory=_set_event)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """A client reads."""
        await self._may_read.wait()
        self._reads += 1
        try:
            yield
        finally:
            self._reads -= 1

    @asynccontextmanager
    async def unread(self) -> AsyncIterator[None]:
        """No client reads meanwhile: nobody can tell that a bit flips between the look at it and the sending."""
        self._may_read = trio.Event()
        try:
            while self._reads:
                await pause()
            yield
        finally:
            self._may_read.set()

    @property
    def node_ids(self) -> tuple[str, ...]:
        """All peers, running or not."""
        return self.cluster.layout.node_ids

    def live(self) -> frozenset[str]:
        """The peers whose processes run."""
        return frozenset(peer.node_id for peer in self.cluster.status() if peer.pid is not None)

    def trusted(self) -> frozenset[str]:
        """Of them, those that surely have what they said they have."""
        return self.live() - self.spoiled.keys()

    def down(self) -> list[str]:
        """The peers whose processes do not run."""
        return [peer.node_id for peer in self.cluster.status() if peer.pid is None]

    async def with_file(self, file: FileModel, operation: Callable[..., Any], *args: object) -> None:
        """One operation at a time on a file: of two at once nobody could say which came first."""
        if file.busy or file.retired:
            return
        file.busy = True
        try:
            await operation(*args)
        finally:
            file.busy = False


def version_of(seed: int, size: int) -> tuple[Version, bytes]:
    """The body that a seed stands for."""
    body = content_of(seed, size)
    return Version(seed, size, hashlib.sha256(body).hexdigest()), body


def first_of(group: BaseExceptionGroup[PromiseBroken]) -> PromiseBroken:
    """One of the broken promises of a group."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, PromiseBroken)
    return found


def new_client() -> httpx.AsyncClient:
    """For requests to peers that come and go: a kept connection may lead to a process that has ended since."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, timeout=OPERATION_TIMEOUT_S, limits=limits)


async def pause() -> None:
    """Before looking again."""
    await trio.sleep(POLL_S)
