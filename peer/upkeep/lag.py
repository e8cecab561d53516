"""How late the event loop is: a peer that is slow finds out here that it is itself to blame."""

from __future__ import annotations

from collections import deque

from peer.worker import Worker
from peer.world.env import Clock

PACE_S = 1.0
REMEMBERED = 60
"""Looks: a minute of them."""


class LoopLag(Worker):
    """Looks each second how much later than asked for it is called."""

    name = "loop lag"

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._due: float | None = None
        self._lags: deque[float] = deque(maxlen=REMEMBERED)

    def longest_s(self) -> float:
        """The longest delay of the last minute."""
        return max(self._lags, default=0.0)

    def pace_s(self) -> float:
        return PACE_S

    async def step(self) -> None:
        now = self._clock.now()
        if self._due is not None:
            self._lags.append(max(0.0, now - self._due))
        self._due = now + PACE_S
