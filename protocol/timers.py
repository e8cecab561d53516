"""Timers as values: set for a time, and handed back when they are due."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

Timer = TypeVar("Timer")


class Timers(Generic[Timer]):
    """Timers of one state machine; of two for the same time the one set first is due first."""

    def __init__(self) -> None:
        self._set: list[tuple[float, int, Timer]] = []
        self._count = 0

    def set(self, at: float, timer: Timer) -> None:
        """Have it back at that time."""
        self._count += 1
        heapq.heappush(self._set, (at, self._count, timer))

    @property
    def next_at(self) -> float:
        """When the next one is due; infinite when none is set."""
        return self._set[0][0] if self._set else math.inf

    def due(self, now: float) -> list[Timer]:
        """Those due by now, in order; they are set no more."""
        found: list[Timer] = []
        while self._set and self._set[0][0] <= now:
            found.append(heapq.heappop(self._set)[2])
        return found
