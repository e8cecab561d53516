"""The longest of some durations within about the last minute."""

from __future__ import annotations

from collections.abc import Callable

REMEMBERED_S = 60.0


class Longest:
    """Remembers the longest duration of this half-minute and the one before, by the clock `now` (from any thread)."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began = now()
        self._current_s = self._before_s = 0.0

    def note(self, seconds: float) -> None:
        """Something took so long."""
        self._go_on()
        self._current_s = max(self._current_s, seconds)

    def seconds(self) -> float:
        """The longest one; 0 when there was none."""
        self._go_on()
        return max(self._current_s, self._before_s)

    def _go_on(self) -> None:
        now = self._now()
        if now - self._began < REMEMBERED_S / 2:
            return
        self._began += REMEMBERED_S / 2
        self._before_s, self._current_s = self._current_s, 0.0
        if now - self._began >= REMEMBERED_S / 2:
            self._began, self._before_s = now, 0.0
