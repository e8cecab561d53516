"""How late the event loop is: a peer that is slow finds out here that it is itself to blame."""

from __future__ import annotations

from peer.longest import Longest
from peer.worker import Worker
from peer.world.env import Clock


class LoopLag(Worker):
    """Looks again and again, every `pace_s`, how much later than asked for it is called."""

    name = "loop lag"

    def __init__(self, clock: Clock, pace_s: float) -> None:
        super().__init__()
        self._clock = clock
        self._pace_s = pace_s
        self._due: float | None = None
        self.longest = Longest(clock.now)

    def pace_s(self) -> float:
        return self._pace_s

    async def step(self) -> None:
        now = self._clock.now()
        if self._due is not None:
            self.longest.note(max(0.0, now - self._due))
        self._due = now + self._pace_s
