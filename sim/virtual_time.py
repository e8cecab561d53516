"""The time of a world, which passes as soon as nothing can go on now, and costs little to wait for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import trio
from trio.lowlevel import Abort, RaiseCancelT

from sim.pauses import trio_runner

FOR_EVER_S = 999_999_999.0


class VirtualTime(trio.abc.Clock):
    """A clock that jumps to whatever comes next.

    Trio asks how long it may sleep when no task can run; that is when time passes, and what is due then is woken in the
    same turn of the loop. With `trio.testing.MockClock` each jump takes a turn, and each sleep a cancel scope.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def start_clock(self) -> None:
        self._runner = trio_runner()

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        comes_at = min(deadline, self._due[0][0] if self._due else math.inf)
        if comes_at == math.inf or self._runner.waiting_for_idle:
            return FOR_EVER_S
        self._now = max(self._now, comes_at)
        while self._due and self._due[0][0] <= self._now:
            heapq.heappop(self._due)[2]()
        return 0.0

    def call_at(self, at: float, call: Callable[[], None]) -> None:
        """Have something done at a time, between two turns of trio's loop; it must not raise."""
        self._planned += 1
        heapq.heappush(self._due, (at, self._planned, call))

    async def pass_by(self, for_s: float, *, shielded: bool = False) -> None:
        """Wait; not even a cancellation ends a `shielded` wait early."""
        task = trio.lowlevel.current_task()
        waits = True

        def wake() -> None:
            if waits:
                trio.lowlevel.reschedule(task)

        def give_up(_raise_cancel: RaiseCancelT) -> Abort:
            nonlocal waits
            if shielded:
                return Abort.FAILED
            waits = False
            return Abort.SUCCEEDED

        self.call_at(self._now + for_s, wake)
        await trio.lowlevel.wait_task_rescheduled(give_up)
