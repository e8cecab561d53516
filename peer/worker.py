"""The one shape of work that runs without being asked: a name, a pace, one step at a time, and a status."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import trio

from peer.world.env import StoreError

log = logging.getLogger("minidfs.worker")


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker has done, what waits for it, and why its last step failed (None: it did not)."""

    name: str
    steps: int
    backlog: int
    error: str | None

    def __str__(self) -> str:
        failed = f" error={self.error!r}" if self.error else ""
        return f"worker={self.name!r} steps={self.steps} backlog={self.backlog}{failed}"


class Worker(ABC):
    """Does one step after the other, when woken and at its own pace. A disk that fails a step ends that step only."""

    name: str
    """What it does, for logs and status."""

    def __init__(self) -> None:
        self._woken = trio.Event()
        self._steps = 0
        self._error: str | None = None

    def wake(self) -> None:
        """Do a step soon, also if one runs now."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with trio.move_on_after(self.pace_s()):
                await self._woken.wait()
                await trio.sleep(self.settle_s())
            self._woken = trio.Event()
            self._error = None
            try:
                await self.step()
            except StoreError as error:
                self._error = str(error)
                log.error("%s failed: %s", self.name, error)
            self._steps += 1

    @abstractmethod
    async def step(self) -> None:
        """Do what there is to do now. Raises StoreError."""

    def pace_s(self) -> float:
        """After this long it does a step without being woken."""
        return math.inf

    def settle_s(self) -> float:
        """After being woken it waits this long for more of the same."""
        return 0.0

    def backlog(self) -> int:
        """How much waits to be done, as far as that is known."""
        return 0

    def status(self) -> WorkerStatus:
        """See WorkerStatus."""
        return WorkerStatus(self.name, self._steps, self.backlog(), self._error)
